/* run_answer.c: generating token by token, and showing text as soon as it is certain. */
#include "run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- text ---- */

static int append_text(const run *r, answer *a, uint32_t token) {
  char *piece = NULL;
  size_t n = 0;
  laprox_result result = laprox_model_detokenize(r->c->model, &token, 1, &piece, &n);
  if (result) return cli_fail(r->c, result);
  int status = EXIT_DONE;
  if (a->n_text + n > a->text_room) {
    size_t room = 2 * (a->n_text + n) + 256;
    char *larger = realloc(a->text, room);
    if (larger) {
      a->text = larger;
      a->text_room = room;
    } else {
      status = fail_impossible("out of memory for %zu bytes of text", room);
    }
  }
  if (!status && n) memcpy(a->text + a->n_text, piece, n);
  if (!status) a->n_text += n;
  laprox_model_release(r->c->model, piece);
  return status;
}

/* Cuts the text before the stop string, which may have begun some tokens ago. */
static bool found_stop(const run *r, answer *a, size_t from) {
  const char *stop = r->c->opt.stop;
  size_t n = stop ? strlen(stop) : 0;
  if (n == 0) return false;
  for (size_t i = from > n ? from - n : 0; i + n <= a->n_text; i++) {
    if (memcmp(a->text + i, stop, n) != 0) continue;
    a->n_text = i;
    return true;
  }
  return false;
}

/* Prints what can't become part of a stop string any more, or all of it at the end. */
static int show(const run *r, answer *a, bool at_end) {
  const char *stop = r->c->opt.stop;
  size_t held = stop && !at_end ? strlen(stop) - 1 : 0;
  size_t ready = a->n_text > held ? a->n_text - held : 0;
  if (r->c->opt.json) return EXIT_DONE;
  bool failed = false;
  if (ready > a->n_shown) {
    failed = fwrite(a->text + a->n_shown, 1, ready - a->n_shown, stdout) != ready - a->n_shown;
    a->n_shown = ready;
  }
  if (at_end && !failed) failed = fputc('\n', stdout) == EOF;
  if (failed || fflush(stdout) != 0) return fail_impossible("standard output: %s", strerror(errno));
  return EXIT_DONE;
}

/* ---- generation ---- */

/* Makes room in the tail, if it is bounded, and reads a token. */
static int read_token(run *r, uint32_t token) {
  const uint32_t tail = r->c->opt.tail;
  int status = EXIT_DONE;
  if (tail && laprox_session_n_tail(r->session) >= tail) status = run_evict(r);
  if (status) return status;
  double start = now_ms();
  laprox_result result = laprox_session_decode(r->session, token);
  r->decode_ms += now_ms() - start;
  r->n_decoded++;
  if (result) return cli_fail(r->c, result);
  (void)run_count_entries(r);
  return EXIT_DONE;
}

/* One token: chosen, shown and, unless it is the last, read. */
static int step(run *r, answer *a, float *scratch) {
  const float *logits = laprox_session_logits(r->session);
  uint32_t token = laprox_sample(&r->c->opt.sampler, logits, r->model.n_vocab, scratch);
  if (token == r->model.eos) {
    a->stopped = "eos";
    a->is_last_read = true;
    return EXIT_DONE;
  }
  size_t before = a->n_text;
  a->ids[a->n_ids++] = token;
  a->is_last_read = false;
  int status = append_text(r, a, token);
  if (status) return status;
  if (found_stop(r, a, before))
    a->stopped = "stop";
  else if (a->n_ids == r->c->opt.n_predict)
    a->stopped = "length";
  else if (laprox_session_n_tokens(r->session) >= r->model.context_length)
    a->stopped = "context";
  if (a->stopped) return EXIT_DONE;
  status = show(r, a, false);
  if (status) return status;
  if (interrupted()) return fail_impossible("interrupted");
  status = read_token(r, token);
  a->is_last_read = true;
  return status;
}

int run_answer(run *r, answer *a) {
  uint32_t most = r->c->opt.n_predict;
  if (most > r->model.context_length) most = r->model.context_length;
  *a = (answer){.is_last_read = true};
  a->ids = calloc((size_t)most + 1, sizeof *a->ids);
  float *scratch = calloc((size_t)r->model.n_vocab * 2, sizeof *scratch);
  int status = a->ids && scratch ? EXIT_DONE : fail_impossible("out of memory for %u tokens", most);
  if (r->c->opt.n_predict == 0) a->stopped = "length";
  while (!status && !a->stopped) status = step(r, a, scratch);
  if (!status) status = show(r, a, true);
  free(scratch);
  return status;
}

void answer_finish(answer *a) {
  free(a->ids);
  free(a->text);
  *a = (answer){0};
}
