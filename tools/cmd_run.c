/* cmd_run.c: `laprox run`: prefill, evict, generate. */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Logits of every position are asked for up to here; beyond, those of the last. */
enum { MAX_LOGIT_ROWS = 4096 };

typedef struct run {
  cli *c;
  laprox_model_description model;
  laprox_session *session;
  uint32_t *prompt;
  size_t n_prompt;

  laprox_eviction eviction;
  laprox_session_memory memory; /* after the eviction */
  uint32_t *kept;
  double load_ms, prefill_ms, evict_ms, decode_ms;
  uint32_t n_decoded;

  uint32_t *ids;
  uint32_t n_ids;
  char *text;
  size_t n_text, text_room, n_shown;
  const char *stopped; /* why */
} run;

/* ---- prompt and eviction ---- */

static int open_session(run *r, uint32_t window) {
  const options *o = &r->c->opt;
  const laprox_session_info info = {.kv_dtype = o->kv_dtype,
                                    .window = window,
                                    .keep_logits = o->dump_logits && r->n_prompt <= MAX_LOGIT_ROWS,
                                    .progress = progress_step,
                                    .progress_user = &r->c->bar};
  laprox_result result = laprox_session_create(r->c->model, &info, &r->session);
  return result ? cli_fail(r->c, result) : EXIT_DONE;
}

static laprox_result prefill(run *r) {
  double start = now_ms();
  laprox_result result = laprox_session_prefill(r->session, r->prompt, r->n_prompt);
  r->prefill_ms = now_ms() - start;
  progress_clear(&r->c->bar);
  if (!result && r->c->opt.dump_logits)
    result = laprox_session_dump_logits(r->session, r->c->opt.dump_logits);
  return result;
}

static laprox_result evict(run *r) {
  laprox_result result = LAPROX_OK;
  if (r->c->opt.has_budget) {
    double start = now_ms();
    result = laprox_session_evict(r->session, &r->c->opt.policy, &r->eviction);
    r->evict_ms = now_ms() - start;
  }
  progress_clear(&r->c->bar);
  r->memory = laprox_session_get_memory(r->session);
  laprox_session_kept_per_head(r->session, r->kept);
  if (!result && r->c->opt.dump_kept) result = laprox_session_dump_kept(r->session, r->c->opt.dump_kept);
  return result;
}

/* ---- text ---- */

static int append_text(run *r, uint32_t token) {
  char *piece = NULL;
  size_t n = 0;
  laprox_result result = laprox_model_detokenize(r->c->model, &token, 1, &piece, &n);
  if (result) return cli_fail(r->c, result);
  int status = EXIT_DONE;
  if (r->n_text + n > r->text_room) {
    size_t room = 2 * (r->n_text + n) + 256;
    char *larger = realloc(r->text, room);
    if (larger) {
      r->text = larger;
      r->text_room = room;
    } else {
      status = fail_impossible("out of memory for %zu bytes of text", room);
    }
  }
  if (!status && n) memcpy(r->text + r->n_text, piece, n);
  if (!status) r->n_text += n;
  laprox_model_release(r->c->model, piece);
  return status;
}

/* Cuts the text before the stop string, which may have begun some tokens ago. */
static bool found_stop(run *r, size_t from) {
  const char *stop = r->c->opt.stop;
  size_t n = stop ? strlen(stop) : 0;
  if (n == 0) return false;
  for (size_t i = from > n ? from - n : 0; i + n <= r->n_text; i++) {
    if (memcmp(r->text + i, stop, n) != 0) continue;
    r->n_text = i;
    return true;
  }
  return false;
}

/* Prints what can't become part of a stop string any more, or all of it at the end. */
static int show(run *r, bool at_end) {
  const char *stop = r->c->opt.stop;
  size_t held = stop && !at_end ? strlen(stop) - 1 : 0;
  size_t ready = r->n_text > held ? r->n_text - held : 0;
  if (r->c->opt.json) return EXIT_DONE;
  bool failed = false;
  if (ready > r->n_shown) {
    failed = fwrite(r->text + r->n_shown, 1, ready - r->n_shown, stdout) != ready - r->n_shown;
    r->n_shown = ready;
  }
  if (at_end && !failed) failed = fputc('\n', stdout) == EOF;
  if (failed || fflush(stdout) != 0) return fail_impossible("standard output: %s", strerror(errno));
  return EXIT_DONE;
}

/* ---- generation ---- */

/* One token: chosen, shown and, unless it is the last, read. */
static int step(run *r, float *scratch) {
  const options *o = &r->c->opt;
  const float *logits = laprox_session_logits(r->session);
  uint32_t token = laprox_sample(&r->c->opt.sampler, logits, r->model.n_vocab, scratch);
  if (token == r->model.eos) {
    r->stopped = "eos";
    return EXIT_DONE;
  }
  size_t before = r->n_text;
  r->ids[r->n_ids++] = token;
  int status = append_text(r, token);
  if (status) return status;
  if (found_stop(r, before))
    r->stopped = "stop";
  else if (r->n_ids == o->n_predict)
    r->stopped = "length";
  else if (laprox_session_n_tokens(r->session) >= r->model.context_length)
    r->stopped = "context";
  if (r->stopped) return EXIT_DONE;
  status = show(r, false);
  if (status) return status;
  if (interrupted()) return fail_impossible("interrupted");
  double start = now_ms();
  laprox_result result = laprox_session_decode(r->session, token);
  r->decode_ms += now_ms() - start;
  r->n_decoded++;
  return result ? cli_fail(r->c, result) : EXIT_DONE;
}

static int generate(run *r) {
  uint32_t most = r->c->opt.n_predict;
  if (most > r->model.context_length) most = r->model.context_length;
  r->ids = calloc((size_t)most + 1, sizeof *r->ids);
  float *scratch = calloc((size_t)r->model.n_vocab * 2, sizeof *scratch);
  int status = r->ids && scratch ? EXIT_DONE : fail_impossible("out of memory for %u tokens", most);
  if (r->c->opt.n_predict == 0) r->stopped = "length";
  while (!status && !r->stopped) status = step(r, scratch);
  if (!status) status = show(r, true);
  free(scratch);
  return status;
}

/* ---- report ---- */

static double per_token_ms(const run *r) {
  return r->n_decoded ? r->decode_ms / r->n_decoded : 0;
}

static json_t *result_json(const run *r) {
  const laprox_shape *shape = &r->model.shape;
  uint64_t peak = laprox_session_get_memory(r->session).kv_peak_bytes;
  uint64_t at_end = laprox_session_get_memory(r->session).kv_bytes;
  json_t *ids = json_array();
  for (uint32_t i = 0; i < r->n_ids; i++) json_array_append_new(ids, json_integer(r->ids[i]));
  return json_pack("{s:I, s:o, s:o, s:s, s:s, s:I, s:{s:I, s:I, s:I, s:I}, s:o, s:{s:o, s:o, s:o, s:o}, s:s}",
                   "prompt_tokens", (json_int_t)r->n_prompt, "token_ids", ids, "text",
                   json_text(r->text ? r->text : "", r->n_text), "stopped", r->stopped, "policy",
                   r->c->opt.has_budget ? laprox_policy_name(r->c->opt.policy.kind) : "full",
                   "nonfinite_scores", (json_int_t)r->eviction.nonfinite_scores, "kv_bytes", "full",
                   (json_int_t)r->memory.kv_full_bytes, "kept", (json_int_t)r->memory.kv_bytes, "peak",
                   (json_int_t)peak, "at_end", (json_int_t)at_end, "kept_per_head",
                   json_kept(r->kept, shape->n_layers, shape->n_kv_heads), "time_ms", "load",
                   json_ms(r->load_ms), "prefill", json_ms(r->prefill_ms), "evict", json_ms(r->evict_ms),
                   "decode_per_token", json_ms(per_token_ms(r)), "device", laprox_device_name(r->c->device));
}

static int report(const run *r) {
  if (r->c->opt.json) return print_json(result_json(r));
  const double mib = 1 << 20;
  double full = (double)r->memory.kv_full_bytes, kept = (double)r->memory.kv_bytes;
  double peak = (double)laprox_session_get_memory(r->session).kv_peak_bytes;
  fprintf(stderr, "\nprompt    %zu tokens, then %u generated (%s)\n", r->n_prompt, r->n_ids, r->stopped);
  fprintf(stderr, "KV cache  %.2f MiB full, %.2f MiB kept (%.1f %%), %.2f MiB at the peak\n", full / mib,
          kept / mib, full > 0 ? 100 * kept / full : 0, peak / mib);
  fprintf(stderr, "time      load %.0f ms, prefill %.0f ms, evict %.1f ms, %.2f ms a token\n", r->load_ms,
          r->prefill_ms, r->evict_ms, per_token_ms(r));
  fprintf(stderr, "device    %s\n", laprox_device_name(r->c->device));
  return EXIT_DONE;
}

static int run_prompt(run *r, uint32_t window) {
  int status = cli_read_prompt(r->c, &r->prompt, &r->n_prompt);
  if (!status) status = cli_check_budget(r->c, (uint32_t)r->n_prompt);
  if (!status) status = open_session(r, window);
  if (status) return status;
  r->kept = calloc((size_t)r->model.shape.n_layers * r->model.shape.n_kv_heads, sizeof *r->kept);
  if (!r->kept) return fail_impossible("out of memory for the heads' counts");
  laprox_result result = prefill(r);
  if (!result) result = evict(r);
  if (result) return cli_fail(r->c, result);
  status = generate(r);
  return status ? status : report(r);
}

int cmd_run(cli *c) {
  run r = {.c = c};
  uint32_t window = 0;
  int status = cli_check_policy(c, &window);
  if (!status) status = cli_open_device(c);
  double start = now_ms();
  if (!status) status = cli_load_model(c);
  r.load_ms = now_ms() - start;
  if (!status) {
    laprox_model_describe(c->model, &r.model);
    status = run_prompt(&r, window);
  }
  laprox_session_destroy(r.session);
  free(r.text);
  free(r.ids);
  free(r.kept);
  free(r.prompt);
  return status;
}
