/* minimal MODEL.gguf PROMPT.txt: reads a prompt, keeps 5 % of its KV cache, answers from that. */
#include <laprox/runtime.h>
#include <stdio.h>

static void print_message(void *user, laprox_message_level level, const char *text) {
  if (level == LAPROX_MESSAGE_ERROR) (void)fprintf(user, "%s\n", text);
}

int main(int argc, char **argv) {
  static char prompt[1 << 16], *text = NULL;
  FILE *file = argc == 3 ? fopen(argv[2], "rb") : NULL;
  if (!file) return (void)fprintf(stderr, "usage: minimal MODEL.gguf PROMPT.txt\n"), 2;
  size_t n_bytes = fread(prompt, 1, sizeof prompt, file), n_tokens = 0;
  (void)fclose(file);
  laprox_instance *instance = NULL;
  laprox_device *device = NULL;
  laprox_model *model = NULL;
  laprox_session *session = NULL;
  laprox_model_description about = {0};
  uint32_t *tokens = NULL, answer[16], n = 0;
  int failed =
      laprox_instance_create(
          &(laprox_instance_info){.host = {.message = print_message, .message_user = stderr}}, &instance) ||
      laprox_device_open(instance, NULL, &device) ||
      laprox_model_load(device, &(laprox_model_info){.path = argv[1]}, &model) ||
      laprox_model_tokenize(model, prompt, n_bytes, true, &tokens, &n_tokens) ||
      laprox_session_create(model, &(laprox_session_info){0}, &session) ||
      laprox_session_prefill(session, tokens, n_tokens) ||
      laprox_session_evict(session, &(laprox_policy){.budget.share = 0.05}, NULL);
  if (!failed) laprox_model_describe(model, &about);
  for (laprox_sampler greedy = {0}; !failed && n < 16; failed = laprox_session_decode(session, answer[n++]))
    answer[n] = laprox_sample(&greedy, laprox_session_logits(session), about.n_vocab, NULL);
  failed = failed || laprox_model_detokenize(model, answer, n, &text, &n_bytes) || puts(text) < 0;
  if (model) laprox_model_release(model, text), laprox_model_release(model, tokens);
  laprox_session_destroy(session);
  laprox_model_destroy(model);
  laprox_device_destroy(device);
  laprox_instance_destroy(instance);
  return failed;
}
