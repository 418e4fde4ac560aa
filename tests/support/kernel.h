/* kernel.h: device buffers and random tensors for tests of single kernels. */
#ifndef TESTS_SUPPORT_KERNEL_H
#define TESTS_SUPPORT_KERNEL_H

#include "runtime/device.h"
#include "support/gpu.h"

/* One program at a time on the device of a test_gpu. */
typedef struct kernel_test {
  laprox_context *context;
  lpx_queue *queue;
  lpx_program *program;
  uint64_t random;
} kernel_test;

kernel_test kernel_test_begin(void **state, uint64_t seed);
void kernel_test_end(kernel_test *test);

/* Device memory holding `bytes` of `data`, or 0xff (NaN in every float type) where data is NULL; the size is
 * rounded up to 16. */
lpx_buffer kernel_buffer(kernel_test *test, const void *data, size_t bytes);
void kernel_release(kernel_test *test, lpx_buffer *buffer);
/* Runs what was appended to the program and forgets it. */
void kernel_run(kernel_test *test);
void kernel_download(kernel_test *test, const lpx_buffer *buffer, void *data, size_t bytes);

uint32_t kernel_random(kernel_test *test, uint32_t below);
/* n numbers of -1 … 1, to be freed. */
float *kernel_random_floats(kernel_test *test, size_t n);
/* n values as stored in `dtype`, to be freed; the values become what is really stored. */
void *kernel_encode(laprox_dtype dtype, float *values, size_t n);

/* |got - want| <= tolerance, and no NaN. */
void kernel_assert_close(double got, double want, double tolerance, const char *what, size_t index);

#endif
