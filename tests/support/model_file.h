/* model_file.h: GGUF files for tests: Llama models with random weights of any shape, and changed copies. */
#ifndef TESTS_SUPPORT_MODEL_FILE_H
#define TESTS_SUPPORT_MODEL_FILE_H

#include "laprox/laprox.h"

typedef struct test_model {
  uint32_t n_layers, n_heads, n_kv_heads, head_dim;
  uint32_t model_dim, feed_forward_dim; /* with Q8_0 all rows must be multiples of 32 long */
  uint32_t n_vocab;                     /* at least 258: two control tokens, then every byte, then fillers */
  uint32_t context_length;
  laprox_dtype dtype; /* of the matrices: F32, F16 or Q8_0 */
  uint32_t seed;
} test_model;

/* GGUF v3, the token embedding serving as output too. Equal models give equal files. False, with a line on
 * standard error, where it could not be written. */
bool model_file_write(const char *path, const test_model *model);

/* A copy in which the 32-bit number of a metadata key is another one. False likewise, also without the key.
 */
bool model_file_change(const char *from, const char *to, const char *key, uint32_t value);

#endif
