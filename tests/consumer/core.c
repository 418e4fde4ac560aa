/* What a program sees of the core. Without a device that is only a refusal, but one from the right library. */
#include <laprox/vulkan.h>
#include <stdio.h>

static void print_message(void *user, laprox_message_level level, const char *text) {
  (void)level;
  (void)fprintf(user, "%s\n", text);
}

int main(void) {
  const laprox_shape shape = {.n_layers = 2, .n_heads = 8, .n_kv_heads = 2, .head_dim = 64};
  const laprox_context_info info = {.host = {.message = print_message, .message_user = stdout}};
  laprox_context *context = NULL;
  const laprox_result result = laprox_context_create(&info, &context);
  const size_t bytes = laprox_value_factor_bytes(&shape, LAPROX_GQA_MEAN);
  (void)printf("%s; %lu bytes of factors a layer\n", laprox_result_string(result), (unsigned long)bytes);
  return result != LAPROX_ERROR_INVALID_ARGUMENT || context || !bytes;
}
