/* cmd_capture.c: `laprox capture`: what a real model's cache and last queries look like, for `laprox evict`.
 */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct times {
  double load, prefill, write;
} times;

static int report(cli *c, uint32_t n_tokens, uint32_t window, times t) {
  laprox_model_description model;
  laprox_model_describe(c->model, &model);
  if (!c->opt.json) {
    fprintf(stderr, "%u tokens, %u layers, %u KV heads of %u, window %u: %s\n", n_tokens,
            model.shape.n_layers, model.shape.n_kv_heads, model.shape.head_dim, window, c->opt.output);
    fprintf(stderr, "load %.0f ms, prefill %.0f ms, write %.0f ms on %s\n", t.load, t.prefill, t.write,
            laprox_device_name(c->device));
    return EXIT_DONE;
  }
  return print_json(json_pack(
      "{s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:{s:o, s:o, s:o}}", "n_tokens", (json_int_t)n_tokens,
      "n_layers", (json_int_t)model.shape.n_layers, "n_heads", (json_int_t)model.shape.n_heads, "n_kv_heads",
      (json_int_t)model.shape.n_kv_heads, "head_dim", (json_int_t)model.shape.head_dim, "window",
      (json_int_t)window, "output", c->opt.output, "device", laprox_device_name(c->device), "time_ms", "load",
      json_ms(t.load), "prefill", json_ms(t.prefill), "write", json_ms(t.write)));
}

static int capture(cli *c, laprox_session *session, const uint32_t *tokens, size_t n_tokens, uint32_t window,
                   times t) {
  double start = now_ms();
  laprox_result result = laprox_session_prefill(session, tokens, n_tokens);
  t.prefill = now_ms() - start;
  start = now_ms();
  if (!result) result = laprox_session_capture(session, c->opt.output);
  t.write = now_ms() - start;
  progress_clear(&c->bar);
  return result ? cli_fail(c, result) : report(c, (uint32_t)n_tokens, window, t);
}

int cmd_capture(cli *c) {
  uint32_t window = 0;
  cli_prompt prompt = {0};
  laprox_session *session = NULL;
  times t = {0};
  int status = cli_check_policy(c, &window);
  if (!status) status = cli_open_device(c);
  double start = now_ms();
  if (!status) status = cli_load_model(c, false);
  t.load = now_ms() - start;
  if (!status) status = cli_read_prompt(c, &prompt);
  if (!status) {
    const laprox_session_info info = {
        .kv_dtype = c->opt.kv_dtype, .window = window, .progress = progress_step, .progress_user = &c->bar};
    laprox_result result = laprox_session_create(c->model, &info, &session);
    status = result ? cli_fail(c, result) : capture(c, session, prompt.tokens, prompt.n, window, t);
  }
  laprox_session_destroy(session);
  cli_prompt_finish(&prompt);
  return status;
}
