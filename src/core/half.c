/* half.c: f16, bf16 and blocks against f32, in integer arithmetic so that no rounding mode matters. */
#include "core/core.h"

#include <string.h>

#define BLOCK_ELEMENTS 32
#define Q8_0_BYTES     34
#define Q4_0_BYTES     18

size_t laprox_dtype_bytes(laprox_dtype dtype, size_t n) {
  size_t bytes = 0;
  bool fits = false;
  switch (dtype) {
  case LAPROX_DTYPE_F32:
    fits = lpx_multiply(n, 4, &bytes);
    break;
  case LAPROX_DTYPE_F16:
  case LAPROX_DTYPE_BF16:
    fits = lpx_multiply(n, 2, &bytes);
    break;
  case LAPROX_DTYPE_Q8_0:
    fits = n % BLOCK_ELEMENTS == 0 && lpx_multiply(n / BLOCK_ELEMENTS, Q8_0_BYTES, &bytes);
    break;
  case LAPROX_DTYPE_Q4_0:
    fits = n % BLOCK_ELEMENTS == 0 && lpx_multiply(n / BLOCK_ELEMENTS, Q4_0_BYTES, &bytes);
    break;
  case LAPROX_DTYPE_AUTO:
    break;
  }
  return fits ? bytes : 0;
}

bool lpx_dtype_is_blocks(laprox_dtype dtype) {
  return dtype == LAPROX_DTYPE_Q8_0 || dtype == LAPROX_DTYPE_Q4_0;
}

lpx_unit lpx_dtype_unit(laprox_dtype dtype) {
  const uint32_t elements = lpx_dtype_is_blocks(dtype) ? 2 * BLOCK_ELEMENTS : 1;
  return (lpx_unit){elements, (uint32_t)laprox_dtype_bytes(dtype, elements)};
}

laprox_result lpx_check_cache_dtype(const laprox_host *host, const char *where, laprox_dtype dtype,
                                    uint32_t head_dim) {
  const lpx_unit unit = lpx_dtype_unit(dtype);
  if (!unit.bytes)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "%s: a cache of type %d", where, (int)dtype);
  if (head_dim % unit.elements == 0) return LAPROX_OK;
  return lpx_fail(host, LAPROX_ERROR_UNSUPPORTED,
                  "%s: a cache of type %s takes a head_dim that is a multiple of %u, not %u", where,
                  laprox_dtype_name(dtype), unit.elements, head_dim);
}

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* bits >> shift, rounded to nearest even; 1 <= shift <= 31. */
static uint32_t shift_round(uint32_t bits, uint32_t shift) {
  uint32_t half = 1u << (shift - 1), rest = bits & ((half << 1) - 1), kept = bits >> shift;
  return kept + (rest > half || (rest == half && (kept & 1)) ? 1u : 0u);
}

uint16_t lpx_f32_to_f16(float value) {
  uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x47800000u) return (uint16_t)(sign | 0x7c00u); /* 65536 and more */
  if (magnitude >= 0x38800000u) { /* 2^-14: normal; a carry may reach infinity */
    return (uint16_t)(sign | (shift_round(magnitude, 13) - (112u << 10)));
  }
  if (magnitude < 0x33000000u) return (uint16_t)sign; /* below half of the least subnormal */
  uint32_t exponent = magnitude >> 23, mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  return (uint16_t)(sign | shift_round(mantissa, 126u - exponent));
}

float lpx_f16_to_f32(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = bits >> 10 & 0x1fu, mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) return float_of(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
  float value = (float)mantissa * 0x1p-24f;
  return sign ? -value : value;
}

uint16_t lpx_f32_to_bf16(float value) {
  uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
  return (uint16_t)shift_round(bits, 16);
}

float lpx_bf16_to_f32(uint16_t bits) {
  return float_of((uint32_t)bits << 16);
}

static uint16_t half_at(const unsigned char *from) {
  uint16_t bits;
  memcpy(&bits, from, sizeof bits);
  return bits;
}

static void q8_0_to_f32(const unsigned char *from, size_t n, float *to) {
  for (size_t i = 0; i + BLOCK_ELEMENTS <= n; i += BLOCK_ELEMENTS, from += Q8_0_BYTES) {
    float scale = lpx_f16_to_f32(half_at(from));
    for (size_t j = 0; j < BLOCK_ELEMENTS; j++) {
      int8_t quant;
      memcpy(&quant, from + 2 + j, 1);
      to[i + j] = scale * (float)quant;
    }
  }
}

static void q4_0_to_f32(const unsigned char *from, size_t n, float *to) {
  for (size_t i = 0; i + BLOCK_ELEMENTS <= n; i += BLOCK_ELEMENTS, from += Q4_0_BYTES) {
    float scale = lpx_f16_to_f32(half_at(from));
    for (size_t j = 0; j < BLOCK_ELEMENTS / 2; j++) {
      to[i + j] = scale * (float)((from[2 + j] & 15) - 8);
      to[i + BLOCK_ELEMENTS / 2 + j] = scale * (float)((from[2 + j] >> 4) - 8);
    }
  }
}

void lpx_to_f32(laprox_dtype dtype, const void *from, size_t n, float *to) {
  const unsigned char *bytes = from;
  switch (dtype) {
  case LAPROX_DTYPE_F32:
    memcpy(to, from, n * sizeof *to);
    break;
  case LAPROX_DTYPE_F16:
    for (size_t i = 0; i < n; i++) to[i] = lpx_f16_to_f32(half_at(bytes + 2 * i));
    break;
  case LAPROX_DTYPE_BF16:
    for (size_t i = 0; i < n; i++) to[i] = lpx_bf16_to_f32(half_at(bytes + 2 * i));
    break;
  case LAPROX_DTYPE_Q8_0:
    q8_0_to_f32(bytes, n, to);
    break;
  case LAPROX_DTYPE_Q4_0:
    q4_0_to_f32(bytes, n, to);
    break;
  case LAPROX_DTYPE_AUTO:
    break;
  }
}
