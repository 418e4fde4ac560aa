/* gguf.h: reads GGUF v2 and v3, little-endian, as llama.cpp writes it. The reader trusts nothing: every
 * count, string and offset is checked against the file's size before memory is taken for it.
 *
 * Objects copy the host they are given. One thread at a time for each object. */
#ifndef LPX_GGUF_H
#define LPX_GGUF_H

#include "core/core.h"

#define LPX_GGUF_MAX_DIMS 4

typedef struct lpx_gguf_tensor {
  const char *name;
  laprox_dtype dtype; /* LAPROX_DTYPE_AUTO: a type that laprox cannot read */
  uint32_t ggml_type; /* as stored */
  uint32_t n_dims;
  uint64_t dims[LPX_GGUF_MAX_DIMS]; /* as stored, innermost (contiguous) first; 1 beyond n_dims */
  uint64_t n_elements;
  uint64_t offset, bytes; /* in the file, absolute; bytes is 0 where dtype is AUTO */
} lpx_gguf_tensor;

/* Bytes that need not be text; a zero byte, not counted, follows them. */
typedef struct lpx_gguf_string {
  const char *data;
  size_t bytes;
} lpx_gguf_string;

typedef struct lpx_gguf lpx_gguf;

/* Reads and checks metadata and tensor list, no tensor data. */
laprox_result lpx_gguf_open(const laprox_host *host, const char *path, lpx_gguf **out);
void lpx_gguf_close(lpx_gguf *file);
const char *lpx_gguf_path(const lpx_gguf *file);

/* ---- metadata; what the getters point to lives as long as the file ---- */

typedef enum lpx_gguf_need {
  LPX_GGUF_REQUIRED, /* a missing key fails with a message */
  LPX_GGUF_OPTIONAL  /* a missing key leaves *out as it was */
} lpx_gguf_need;

bool lpx_gguf_has(const lpx_gguf *file, const char *key);
/* A value of another type, or one that does not fit, always fails. Integers are taken from any integer type,
   f32 from f32 and f64, finite only. */
laprox_result lpx_gguf_get_u32(const lpx_gguf *file, const char *key, lpx_gguf_need need, uint32_t *out);
laprox_result lpx_gguf_get_i32(const lpx_gguf *file, const char *key, lpx_gguf_need need, int32_t *out);
laprox_result lpx_gguf_get_u64(const lpx_gguf *file, const char *key, lpx_gguf_need need, uint64_t *out);
laprox_result lpx_gguf_get_f32(const lpx_gguf *file, const char *key, lpx_gguf_need need, float *out);
laprox_result lpx_gguf_get_bool(const lpx_gguf *file, const char *key, lpx_gguf_need need, bool *out);
laprox_result lpx_gguf_get_string(const lpx_gguf *file, const char *key, lpx_gguf_need need,
                                  lpx_gguf_string *out);
/* Arrays: *out is an array of *count elements (never NULL when OK and present). */
laprox_result lpx_gguf_get_strings(const lpx_gguf *file, const char *key, lpx_gguf_need need,
                                   const lpx_gguf_string **out, size_t *count);
laprox_result lpx_gguf_get_i32s(const lpx_gguf *file, const char *key, lpx_gguf_need need,
                                const int32_t **out, size_t *count);
laprox_result lpx_gguf_get_f32s(const lpx_gguf *file, const char *key, lpx_gguf_need need, const float **out,
                                size_t *count);

/* ---- tensors ---- */

size_t lpx_gguf_count(const lpx_gguf *file);
/* In order of their names (strcmp). */
const lpx_gguf_tensor *lpx_gguf_tensor_at(const lpx_gguf *file, size_t index);
/* NULL, without a message, where there is none. */
const lpx_gguf_tensor *lpx_gguf_find(const lpx_gguf *file, const char *name);
/* As find, but a missing tensor, or one of a type that laprox cannot read, fails with a message that names
 * it. */
laprox_result lpx_gguf_get(const lpx_gguf *file, const char *name, const lpx_gguf_tensor **out);
/* Bytes [offset, offset + bytes) of a tensor's data. */
laprox_result lpx_gguf_read(lpx_gguf *file, const lpx_gguf_tensor *tensor, uint64_t offset, size_t bytes,
                            void *to);
/* All of it: tensor->bytes. */
laprox_result lpx_gguf_read_all(lpx_gguf *file, const lpx_gguf_tensor *tensor, void *to);
/* "Q4_K", …; "?" for a number that is not known. */
const char *lpx_ggml_type_name(uint32_t ggml_type);

#endif
