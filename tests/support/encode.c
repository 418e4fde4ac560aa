#include "support/encode.h"

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

static void encode_half(laprox_dtype dtype, float value, uint8_t *to) {
  const uint16_t half = dtype == LAPROX_DTYPE_F16 ? lpx_f32_to_f16(value) : lpx_f32_to_bf16(value);
  memcpy(to, &half, sizeof half);
}

void encode_values(laprox_dtype dtype, float *values, size_t n, void *to) {
  const size_t unit = lpx_dtype_is_blocks(dtype) ? ELEMENTS : 1, unit_bytes = laprox_dtype_bytes(dtype, unit);
  uint8_t *bytes = to;
  for (size_t i = 0; i < n; i += unit, bytes += unit_bytes)
    if (lpx_dtype_is_blocks(dtype))
      encode_block(dtype, values + i, bytes);
    else if (dtype == LAPROX_DTYPE_F32)
      memcpy(bytes, &values[i], sizeof *values);
    else
      encode_half(dtype, values[i], bytes);
  lpx_to_f32(dtype, to, n, values);
}
