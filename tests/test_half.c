/* test_half.c: every f16 and bf16 there and back, rounding to nearest even, blocks, sizes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/core.h"

/* An f16 by its definition, in f64. */
static double f16_value(unsigned bits) {
  int exponent = (int)(bits >> 10 & 31);
  double mantissa = bits & 1023, sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa != 0 ? (double)NAN : sign * (double)INFINITY;
  return sign * (exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25));
}

static void f16_round_trips(void **state) {
  (void)state;
  for (unsigned bits = 0; bits < 65536; bits++) {
    float value = lpx_f16_to_f32((uint16_t)bits);
    if (isnan(f16_value(bits))) {
      assert_true(isnan(value));
      assert_true(isnan(lpx_f16_to_f32(lpx_f32_to_f16(value))));
      continue;
    }
    assert_true((double)value == f16_value(bits));
    assert_int_equal(lpx_f32_to_f16(value), bits);
  }
}

/* Between each two neighbours: the middle goes to the even one, anything off it to the nearer one. */
static void f16_rounds_to_nearest_even(void **state) {
  (void)state;
  for (unsigned bits = 0; bits < 0x7bff; bits++) {
    float low = lpx_f16_to_f32((uint16_t)bits), high = lpx_f16_to_f32((uint16_t)(bits + 1));
    float middle = (low + high) / 2;
    unsigned even = bits % 2 == 0 ? bits : bits + 1;
    assert_int_equal(lpx_f32_to_f16(middle), even);
    assert_int_equal(lpx_f32_to_f16(-middle), even | 0x8000);
    assert_int_equal(lpx_f32_to_f16(nextafterf(middle, 0.0f)), bits);
    assert_int_equal(lpx_f32_to_f16(nextafterf(middle, 1e9f)), bits + 1);
  }
}

static void f16_extremes(void **state) {
  (void)state;
  assert_int_equal(lpx_f32_to_f16(65519.996f), 0x7bff);
  assert_int_equal(lpx_f32_to_f16(65520.0f), 0x7c00); /* the middle between 65504 and 65536 */
  assert_int_equal(lpx_f32_to_f16(-3e38f), 0xfc00);
  assert_int_equal(lpx_f32_to_f16(INFINITY), 0x7c00);
  assert_int_equal(lpx_f32_to_f16(1e-45f), 0);
  assert_int_equal(lpx_f32_to_f16(-0.0f), 0x8000);
  assert_int_equal(lpx_f32_to_f16(NAN) & 0x7e00, 0x7e00);
}

static void bf16_round_trips_and_rounds(void **state) {
  (void)state;
  for (unsigned bits = 0; bits < 65536; bits++) {
    float value = lpx_bf16_to_f32((uint16_t)bits);
    if (isnan(value)) {
      assert_true(isnan(lpx_bf16_to_f32(lpx_f32_to_bf16(value))));
      continue;
    }
    assert_int_equal(lpx_f32_to_bf16(value), bits);
    if ((bits & 0x7fff) >= 0x7f7f) continue;
    uint32_t middle_bits = (uint32_t)bits << 16 | 0x8000u, above_bits = middle_bits + 1,
             below_bits = middle_bits - 1;
    float middle, above, below;
    memcpy(&middle, &middle_bits, 4);
    memcpy(&above, &above_bits, 4);
    memcpy(&below, &below_bits, 4);
    assert_int_equal(lpx_f32_to_bf16(middle), bits % 2 == 0 ? bits : bits + 1);
    assert_int_equal(lpx_f32_to_bf16(above), bits + 1);
    assert_int_equal(lpx_f32_to_bf16(below), bits);
  }
  assert_int_equal(lpx_f32_to_bf16(3.4028234e38f), 0x7f80);
  uint32_t low_payload_nan_bits = 0x7f800001u; /* cutting it would give infinity */
  float low_payload_nan;
  memcpy(&low_payload_nan, &low_payload_nan_bits, 4);
  assert_true(isnan(lpx_bf16_to_f32(lpx_f32_to_bf16(low_payload_nan))));
}

static void q4_0_blocks(void **state) {
  (void)state;
  uint8_t raw[1 + 2 * 18];
  float values[64];
  for (unsigned block = 0; block < 2; block++) {
    uint8_t *at = raw + 1 + 18 * block;
    const uint16_t scale = lpx_f32_to_f16(block == 0 ? 0.5f : -2.0f);
    memcpy(at, &scale, 2);
    for (unsigned i = 0; i < 16; i++) at[2 + i] = (uint8_t)(i | (15 - i) << 4);
  }
  lpx_to_f32(LAPROX_DTYPE_Q4_0, raw + 1, 64, values);
  for (int i = 0; i < 32; i++) {
    const int number = i < 16 ? i - 8 : 23 - i;
    assert_true(values[i] == 0.5f * (float)number);
    assert_true(values[32 + i] == -2.0f * (float)number);
  }
  assert_int_equal(laprox_dtype_bytes(LAPROX_DTYPE_Q4_0, 96), 54);
  assert_int_equal(laprox_dtype_bytes(LAPROX_DTYPE_Q4_0, 80), 0);
}

/* Source addresses are odd on purpose: data of files is aligned to nothing. */
static void arrays_of_every_type(void **state) {
  (void)state;
  uint8_t raw[1 + 2 * 34] = {0};
  float values[64];
  for (unsigned block = 0; block < 2; block++) {
    uint8_t *at = raw + 1 + 34 * block;
    uint16_t scale = lpx_f32_to_f16(block == 0 ? 0.5f : -2.0f);
    memcpy(at, &scale, 2);
    for (unsigned i = 0; i < 32; i++) at[2 + i] = (uint8_t)(i * 8 + 128); /* -128 first */
  }
  lpx_to_f32(LAPROX_DTYPE_Q8_0, raw + 1, 64, values);
  for (int i = 0; i < 32; i++) {
    assert_true(values[i] == 0.5f * (float)(i * 8 - 128));
    assert_true(values[32 + i] == -2.0f * (float)(i * 8 - 128));
  }
  const float source[3] = {1.5f, -2.0f, 3.25f};
  memcpy(raw + 1, source, sizeof source);
  lpx_to_f32(LAPROX_DTYPE_F32, raw + 1, 3, values);
  assert_memory_equal(values, source, sizeof source);
  for (laprox_dtype dtype = LAPROX_DTYPE_F16; dtype <= LAPROX_DTYPE_BF16; dtype++) {
    for (size_t i = 0; i < 3; i++) {
      uint16_t bits = dtype == LAPROX_DTYPE_F16 ? lpx_f32_to_f16(source[i]) : lpx_f32_to_bf16(source[i]);
      memcpy(raw + 1 + 2 * i, &bits, 2);
    }
    memset(values, 0, sizeof values);
    lpx_to_f32(dtype, raw + 1, 3, values);
    assert_memory_equal(values, source, sizeof source);
  }
}

static void sizes(void **state) {
  (void)state;
  assert_int_equal(laprox_dtype_bytes(LAPROX_DTYPE_F32, 5), 20);
  assert_int_equal(laprox_dtype_bytes(LAPROX_DTYPE_F16, 5), 10);
  assert_int_equal(laprox_dtype_bytes(LAPROX_DTYPE_BF16, 5), 10);
  assert_int_equal(laprox_dtype_bytes(LAPROX_DTYPE_Q8_0, 64), 68);
  assert_int_equal(laprox_dtype_bytes(LAPROX_DTYPE_Q8_0, 65), 0);
  assert_int_equal(laprox_dtype_bytes(LAPROX_DTYPE_F32, SIZE_MAX / 4 + 1), 0);
  assert_int_equal(laprox_dtype_bytes(LAPROX_DTYPE_F16, SIZE_MAX / 2), SIZE_MAX - 1);
  assert_int_equal(laprox_dtype_bytes(LAPROX_DTYPE_AUTO, 4), 0);
  assert_int_equal(laprox_dtype_bytes((laprox_dtype)99, 4), 0);
  assert_string_equal(laprox_dtype_name(LAPROX_DTYPE_BF16), "BF16");
  assert_string_equal(laprox_dtype_name((laprox_dtype)99), "?");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(f16_round_trips),
      cmocka_unit_test(f16_rounds_to_nearest_even),
      cmocka_unit_test(f16_extremes),
      cmocka_unit_test(bf16_round_trips_and_rounds),
      cmocka_unit_test(arrays_of_every_type),
      cmocka_unit_test(q4_0_blocks),
      cmocka_unit_test(sizes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
