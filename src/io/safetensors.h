/* safetensors.h: reads and writes safetensors files. The reader trusts nothing: what it returns was checked
 * against the file's size; the writer's file appears under its name when it is complete, and not before.
 *
 * Objects copy the host they are given. One thread at a time for each object. */
#ifndef LPX_SAFETENSORS_H
#define LPX_SAFETENSORS_H

#include "core/core.h"

#define LPX_ST_MAX_DIMS 8

/* Element types that laprox reads and writes. Others are listed as UNKNOWN. */
typedef enum lpx_st_dtype {
  LPX_ST_UNKNOWN = 0,
  LPX_ST_F32 = 1,
  LPX_ST_F16 = 2,
  LPX_ST_BF16 = 3,
  LPX_ST_I32 = 4,
  LPX_ST_U8 = 5
} lpx_st_dtype;

/* LAPROX_DTYPE_AUTO for UNKNOWN, I32 and U8. */
laprox_dtype lpx_st_to_dtype(lpx_st_dtype dtype);
/* LPX_ST_UNKNOWN for types that safetensors does not have. */
lpx_st_dtype lpx_st_from_dtype(laprox_dtype dtype);

typedef struct lpx_st_tensor {
  const char *name;
  lpx_st_dtype dtype;
  char dtype_name[16];            /* as the file spells it, perhaps cut */
  uint32_t n_dims;                /* 0: a scalar */
  uint64_t dims[LPX_ST_MAX_DIMS]; /* outermost first */
  uint64_t n_elements;
  uint64_t offset, bytes; /* in the file, absolute */
} lpx_st_tensor;

typedef struct lpx_safetensors lpx_safetensors;

/* Reads and checks the header only. */
laprox_result lpx_safetensors_open(const laprox_host *host, const char *path, lpx_safetensors **out);
void lpx_safetensors_close(lpx_safetensors *file);

const char *lpx_safetensors_path(const lpx_safetensors *file);
/* Tensors in order of their names (strcmp). */
size_t lpx_safetensors_count(const lpx_safetensors *file);
const lpx_st_tensor *lpx_safetensors_tensor(const lpx_safetensors *file, size_t index);
/* NULL, without a message, where there is none. */
const lpx_st_tensor *lpx_safetensors_find(const lpx_safetensors *file, const char *name);
/* As find, but a missing tensor or one of an unknown type fails with a message that names file and tensor. */
laprox_result lpx_safetensors_get(const lpx_safetensors *file, const char *name, const lpx_st_tensor **out);
/* A value of __metadata__, NULL where there is none. */
const char *lpx_safetensors_metadata(const lpx_safetensors *file, const char *key);

/* Bytes [offset, offset + bytes) of a tensor's data. */
laprox_result lpx_safetensors_read(lpx_safetensors *file, const lpx_st_tensor *tensor, uint64_t offset,
                                   size_t bytes, void *to);
/* All of it: tensor->bytes. */
laprox_result lpx_safetensors_read_all(lpx_safetensors *file, const lpx_st_tensor *tensor, void *to);

/* ---- writing: create, declare every tensor, write their data in the same order, commit ---- */

typedef struct lpx_st_writer lpx_st_writer;

/* Opens a temporary file beside `path`, so that an unwritable place fails before any work is done. */
laprox_result lpx_st_writer_create(const laprox_host *host, const char *path, lpx_st_writer **out);
/* Without a commit before: removes the temporary file, and `path` is as it was. */
void lpx_st_writer_destroy(lpx_st_writer *writer);

/* Only before the first write. Keys must differ. */
laprox_result lpx_st_writer_metadata(lpx_st_writer *writer, const char *key, const char *value);
laprox_result lpx_st_writer_declare(lpx_st_writer *writer, const char *name, lpx_st_dtype dtype,
                                    uint32_t n_dims, const uint64_t *dims);
/* The next bytes of the data of all tensors, in pieces of any size. */
laprox_result lpx_st_writer_write(lpx_st_writer *writer, const void *data, size_t bytes);
/* All data must have been written. The writer still has to be destroyed. */
laprox_result lpx_st_writer_commit(lpx_st_writer *writer);

#endif
