/* gpu.h: a Vulkan device for tests, with validation whose every message is a failure. */
#ifndef TESTS_SUPPORT_GPU_H
#define TESTS_SUPPORT_GPU_H

#include "laprox/runtime.h"

typedef struct test_gpu {
  laprox_instance *instance;
  laprox_device *device;
  unsigned n_errors;     /* error messages so far, validation's included */
  unsigned n_validation; /* of which from the validation layers */
  char last_error[512];
} test_gpu;

/* Opens the device that LAPROX_DEVICE names, else the default, with validation. cmocka setup and teardown:
 *state is a test_gpu. The teardown fails when validation had anything to say. */
int test_gpu_setup(void **state);
int test_gpu_teardown(void **state);

#endif
