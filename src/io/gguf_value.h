/* gguf_value.h: what gguf.c parses and gguf_value.c hands out. */
#ifndef LPX_GGUF_VALUE_H
#define LPX_GGUF_VALUE_H

#include "io/file.h"
#include "io/gguf.h"

/* Numbers of the format. */
enum {
  LPX_GGUF_U8 = 0,
  LPX_GGUF_I8 = 1,
  LPX_GGUF_U16 = 2,
  LPX_GGUF_I16 = 3,
  LPX_GGUF_U32 = 4,
  LPX_GGUF_I32 = 5,
  LPX_GGUF_F32 = 6,
  LPX_GGUF_BOOL = 7,
  LPX_GGUF_STRING = 8,
  LPX_GGUF_ARRAY = 9,
  LPX_GGUF_U64 = 10,
  LPX_GGUF_I64 = 11,
  LPX_GGUF_F64 = 12,
  LPX_GGUF_N_TYPES = 13
};

typedef struct lpx_gguf_value {
  char *key;
  uint32_t type, element_type;
  uint64_t bits;            /* of a number or bool, as stored, zero-extended */
  size_t count;             /* of an array */
  void *data;               /* elements of an array of numbers; the bytes of strings */
  lpx_gguf_string *strings; /* a string, or those of an array */
} lpx_gguf_value;

struct lpx_gguf {
  lpx_file file;
  uint64_t at;            /* while parsing */
  lpx_gguf_value *values; /* by key */
  size_t n_values;
  lpx_gguf_tensor *tensors; /* by name */
  size_t n_tensors;
};

const lpx_gguf_value *lpx_gguf_value_of(const lpx_gguf *file, const char *key);
const char *lpx_gguf_type_name(uint32_t type);

#endif
