#include "support/blocks.h"

#include <math.h>
#include <string.h>

enum { ELEMENTS = 32 };

float block_scale(laprox_dtype dtype, const float *values) {
  float extreme = 0.0f;
  for (int i = 0; i < ELEMENTS; i++)
    if (fabsf(values[i]) > fabsf(extreme)) extreme = values[i];
  return dtype == LAPROX_DTYPE_Q8_0 ? fabsf(extreme) / 127.0f : extreme / -8.0f;
}

static void encode_block(laprox_dtype dtype, const float *values, uint8_t *block) {
  const float scale = block_scale(dtype, values), inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  const uint16_t stored = lpx_f32_to_f16(scale);
  memcpy(block, &stored, 2);
  memset(block + 2, 0, ELEMENTS / 2);
  for (int i = 0; i < ELEMENTS; i++) {
    if (dtype == LAPROX_DTYPE_Q8_0) {
      const int8_t number = (int8_t)roundf(values[i] * inverse);
      memcpy(block + 2 + i, &number, 1);
    } else {
      const unsigned number = (unsigned)fminf(15.0f, values[i] * inverse + 8.5f);
      const int at = 2 + i % (ELEMENTS / 2);
      block[at] = (uint8_t)(block[at] | (i < ELEMENTS / 2 ? number : number << 4));
    }
  }
}

void encode_blocks(laprox_dtype dtype, const float *values, size_t n, uint8_t *to) {
  const size_t bytes = laprox_dtype_bytes(dtype, ELEMENTS);
  for (size_t i = 0; i < n; i += ELEMENTS, to += bytes) encode_block(dtype, values + i, to);
}
