/* half.c: f16, bf16 and Q8_0 against f32, in integer arithmetic so that no rounding mode matters. */
#include "core/core.h"

#include <string.h>

#define Q8_0_ELEMENTS 32
#define Q8_0_BYTES    34

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
    fits = n % Q8_0_ELEMENTS == 0 && lpx_multiply(n / Q8_0_ELEMENTS, Q8_0_BYTES, &bytes);
    break;
  case LAPROX_DTYPE_AUTO:
    break;
  }
  return fits ? bytes : 0;
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
  for (size_t i = 0; i + Q8_0_ELEMENTS <= n; i += Q8_0_ELEMENTS, from += Q8_0_BYTES) {
    float scale = lpx_f16_to_f32(half_at(from));
    for (size_t j = 0; j < Q8_0_ELEMENTS; j++) {
      int8_t quant;
      memcpy(&quant, from + 2 + j, 1);
      to[i + j] = scale * (float)quant;
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
  case LAPROX_DTYPE_AUTO:
    break;
  }
}
