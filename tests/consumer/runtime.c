/* What a program sees of the runtime, which holds the core too. */
#include <laprox/runtime.h>
#include <stdio.h>

int main(void) {
  const float logits[] = {0.5f, 2.0f, 1.0f};
  laprox_sampler greedy = {0};
  laprox_device *device = NULL;
  const laprox_result result = laprox_device_import(&(laprox_device_import_info){0}, &device);
  const uint32_t token = laprox_sample(&greedy, logits, 3, NULL);
  (void)printf("%s; token %lu\n", laprox_result_string(result), (unsigned long)token);
  return result != LAPROX_ERROR_INVALID_ARGUMENT || device || token != 1;
}
