#include "support/gpu.h"
#include "support/variants.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void on_message(void *user, laprox_message_level level, const char *text) {
  test_gpu *gpu = user;
  if (level != LAPROX_MESSAGE_ERROR) return;
  gpu->n_errors++;
  (void)snprintf(gpu->last_error, sizeof gpu->last_error, "%s", text);
  if (strncmp(text, "validation: ", 12)) return;
  gpu->n_validation++;
  (void)fprintf(stderr, "%s\n", text);
}

int test_gpu_setup(void **state) {
  test_gpu *gpu = calloc(1, sizeof *gpu);
  if (!gpu) return -1;
  const laprox_instance_info info = {.host = {.message = on_message, .message_user = gpu},
                                     .validation = test_validation(),
                                     .variants_off = test_variants_off()};
  if (laprox_instance_create(&info, &gpu->instance) ||
      laprox_device_open(gpu->instance, getenv("LAPROX_DEVICE"), &gpu->device)) {
    (void)fprintf(stderr, "no device for the test: %s\n", gpu->last_error);
    laprox_instance_destroy(gpu->instance);
    free(gpu);
    return -1;
  }
  *state = gpu;
  return 0;
}

int test_gpu_teardown(void **state) {
  test_gpu *gpu = *state;
  if (!gpu) return 0; /* the setup failed, and has said so */
  const bool leaked = laprox_context_memory(laprox_device_context(gpu->device)).bytes > (UINT64_C(4) << 20);
  laprox_device_destroy(gpu->device);
  laprox_instance_destroy(gpu->instance);
  const unsigned n_validation = gpu->n_validation;
  if (n_validation) (void)fprintf(stderr, "%u validation messages\n", n_validation);
  if (leaked) (void)fprintf(stderr, "device memory was left behind\n");
  free(gpu);
  return n_validation || leaked ? -1 : 0;
}
