#include "support/kernel.h"
#include "support/encode.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

kernel_test kernel_test_begin(void **state, uint64_t seed) {
  const test_gpu *gpu = *state;
  kernel_test test = {
      .context = gpu->device->context, .queue = gpu->device->queue, .random = seed * 2654435761u + 1};
  assert_int_equal(lpx_program_create(test.context, "test", &test.program), LAPROX_OK);
  return test;
}

void kernel_test_end(kernel_test *test) {
  lpx_program_destroy(test->program);
}

lpx_buffer kernel_buffer(kernel_test *test, const void *data, size_t bytes) {
  lpx_buffer buffer;
  const size_t size = (bytes + 15) & ~(size_t)15;
  assert_int_equal(lpx_buffer_init(test->context, LPX_MEMORY_DEVICE, size, "test", &buffer), LAPROX_OK);
  uint8_t *padded = malloc(size ? size : 1);
  assert_non_null(padded);
  memset(padded, 0xff, size);
  if (data) memcpy(padded, data, bytes);
  assert_int_equal(lpx_queue_upload(test->queue, lpx_buffer_whole(&buffer), padded, size), LAPROX_OK);
  free(padded);
  return buffer;
}

void kernel_release(kernel_test *test, lpx_buffer *buffer) {
  lpx_buffer_finish(test->context, buffer);
}

void kernel_run(kernel_test *test) {
  assert_int_equal(lpx_program_finish_building(test->program), LAPROX_OK);
  assert_int_equal(lpx_queue_run(test->queue, test->program, NULL), LAPROX_OK);
  lpx_program_reset(test->program);
}

void kernel_download(kernel_test *test, const lpx_buffer *buffer, void *data, size_t bytes) {
  assert_int_equal(lpx_queue_download(test->queue, lpx_buffer_whole(buffer), data, bytes), LAPROX_OK);
}

uint32_t kernel_random(kernel_test *test, uint32_t below) {
  test->random ^= test->random << 13;
  test->random ^= test->random >> 7;
  test->random ^= test->random << 17;
  return (uint32_t)((test->random >> 32) % below);
}

float *kernel_random_floats(kernel_test *test, size_t n) {
  float *values = malloc((n ? n : 1) * sizeof *values);
  assert_non_null(values);
  for (size_t i = 0; i < n; i++) values[i] = (float)kernel_random(test, 1u << 24) / 8388608.0f - 1.0f;
  return values;
}

void *kernel_encode(laprox_dtype dtype, float *values, size_t n) {
  const size_t bytes = laprox_dtype_bytes(dtype, n);
  uint8_t *data = malloc(bytes ? bytes : 1);
  assert_non_null(data);
  encode_values(dtype, values, n, data);
  return data;
}

void kernel_assert_close(double got, double want, double tolerance, const char *what, size_t index) {
  if (fabs(got - want) <= tolerance) return;
  fail_msg("%s, element %zu: %.9g, should be %.9g within %.3g", what, index, got, want, tolerance);
}
