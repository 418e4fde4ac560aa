/* eval_fidelity.c: what the evicted cache predicts for the rest of a text, beside what the full one does. */
#include "eval.h"
#include "texts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Tokens that both caches are made to read behind a passage. */
enum { N_FORCED = 64 };

/* ---- passages ---- */

static uint64_t hash_tokens(const uint32_t *tokens, size_t n) {
  uint64_t h = UINT64_C(0xcbf29ce484222325);
  for (size_t i = 0; i < n; i++) h = (h ^ tokens[i]) * UINT64_C(0x100000001b3);
  return h;
}

int eval_read_passages(eval *e) {
  const options *o = &e->c->opt;
  char *own = NULL;
  if (!o->n_fidelity) return EXIT_DONE;
  int status = o->text ? cli_read_text(o->text, &own) : EXIT_DONE;
  const char *text = own ? own : text_prose;
  laprox_result result = LAPROX_OK;
  if (!status)
    result =
        laprox_model_tokenize(e->c->model, text, strlen(text), false, &e->passages, &e->n_passage_tokens);
  free(own);
  if (status || result) return status ? status : cli_fail(e->c, result);
  e->n_passages = o->n_fidelity;
  e->passage_tokens = o->lengths[0];
  if (o->n_lengths > 1) return fail_usage("--tokens: passages of --fidelity have one length");
  e->passage_hash = hash_tokens(e->passages, e->n_passage_tokens);
  if ((uint64_t)e->passage_tokens + N_FORCED > e->model.context_length)
    return fail_usage("--tokens: passages of %u tokens and %d behind them, and the model reads %u at most",
                      e->passage_tokens, N_FORCED, e->model.context_length);
  if (e->n_passage_tokens < (size_t)e->passage_tokens + N_FORCED)
    return fail_impossible("%s: %zu tokens, and a passage takes %u", o->text ? o->text : "prose",
                           e->n_passage_tokens, e->passage_tokens + N_FORCED);
  return EXIT_DONE;
}

/* ---- predictions ---- */

/* Log-probabilities of all tokens in place of their logits; the likeliest token. */
static uint32_t log_softmax(float *logits, uint32_t n) {
  uint32_t best = 0;
  double sum = 0;
  for (uint32_t i = 1; i < n; i++)
    if (logits[i] > logits[best]) best = i;
  const double top = logits[best];
  for (uint32_t i = 0; i < n; i++) sum += exp((double)logits[i] - top);
  const double shift = top + log(sum);
  for (uint32_t i = 0; i < n; i++) logits[i] = (float)((double)logits[i] - shift);
  return best;
}

typedef struct comparison {
  eval *e;
  uint32_t row;            /* of outcomes */
  const uint32_t *forced;  /* the tokens behind the passage */
  float *full, *evicted;   /* log-probabilities [N_FORCED, n_vocab] */
  uint32_t best[N_FORCED]; /* with the full cache */
  double prefill_ms;
  laprox_session *whole; /* the full cache, all tokens read */
} comparison;

/* What is predicted for each forced token: after the passage, and after those before it. */
static laprox_result predict(comparison *c, laprox_session *session, float *to) {
  const uint32_t n_vocab = c->e->model.n_vocab;
  memcpy(to, laprox_session_logits(session), n_vocab * sizeof *to);
  laprox_result result = laprox_session_keep_logits(session, true);
  if (!result) result = laprox_session_prefill(session, c->forced, N_FORCED - 1);
  size_t n = 0;
  const float *logits = result ? NULL : laprox_session_prompt_logits(session, &n);
  if (logits) memcpy(to + n_vocab, logits, n * n_vocab * sizeof *to);
  return result;
}

static void compare(comparison *c, outcome *out) {
  const uint32_t n_vocab = c->e->model.n_vocab;
  double divergence = 0, nll = 0, full_nll = 0;
  uint32_t n_same = 0;
  for (uint32_t t = 0; t < N_FORCED; t++) {
    const float *full = c->full + (size_t)t * n_vocab;
    float *evicted = c->evicted + (size_t)t * n_vocab;
    n_same += log_softmax(evicted, n_vocab) == c->best[t];
    for (uint32_t i = 0; i < n_vocab; i++)
      divergence += exp((double)full[i]) * ((double)full[i] - (double)evicted[i]);
    nll -= (double)evicted[c->forced[t]];
    full_nll -= (double)full[c->forced[t]];
  }
  out->score = divergence > 0 ? divergence / N_FORCED : 0;
  out->agreement = (double)n_same / N_FORCED;
  out->nll = nll / N_FORCED;
  out->full_nll = full_nll / N_FORCED;
}

static int compare_cell(comparison *c, int index, eval_reading *passage) {
  eval *e = c->e;
  outcome out = {.is_done = true, .prefill_ms = c->prefill_ms, .n_tokens = e->passage_tokens};
  const uint32_t bins[N_BINS] = {0};
  laprox_session *session = NULL;
  laprox_result result = eval_evict(e, passage, index, &session, &out);
  if (!result) result = predict(c, session, c->evicted);
  if (!result) result = laprox_session_compare(c->whole, session, eval_layers(e, c->row, index));
  if (!result) compare(c, &out);
  laprox_session_destroy(session);
  if (result) return cli_fail(e->c, result);
  uint32_t *none = calloc((size_t)e->model.shape.n_layers * e->model.shape.n_kv_heads, sizeof *none);
  if (!none) return fail_impossible("out of memory for a passage");
  *eval_outcome(e, c->row, index) = out;
  int status = eval_journal_add(e, c->row, index, none, bins, NULL);
  free(none);
  return status ? status : eval_step(e);
}

/* ---- sessions ---- */

static laprox_result read_passage(comparison *c, const uint32_t *tokens, laprox_session *session) {
  const double start = now_ms();
  laprox_result result = laprox_session_keep_logits(session, false);
  if (!result) result = laprox_session_prefill(session, tokens, c->e->passage_tokens);
  c->prefill_ms = now_ms() - start;
  return result;
}

static laprox_result predict_full(comparison *c, const laprox_session *passage) {
  laprox_result result = laprox_session_fork(passage, &c->whole);
  if (!result) result = predict(c, c->whole, c->full);
  for (uint32_t t = 0; t < N_FORCED && !result; t++)
    c->best[t] = log_softmax(c->full + (size_t)t * c->e->model.n_vocab, c->e->model.n_vocab);
  return result;
}

static bool is_open(const eval *e, uint32_t row, int index) {
  return !e->cells[index].is_twin && !eval_outcome(e, row, index)->is_done;
}

/* All open cells of one type of cache, that of cell `index`. The first cell's type is what all are compared with. */
static int compare_dtype(comparison *c, int index, const uint32_t *tokens) {
  eval *e = c->e;
  const laprox_dtype kv_dtype = e->cells[index].policy.kv_dtype;
  laprox_session *session = NULL;
  laprox_result result = eval_open_session(e, index, true, &session);
  if (!result) result = read_passage(c, tokens, session);
  if (!result && index == 0) result = predict_full(c, session);
  int status = result ? cli_fail(e->c, result) : EXIT_DONE;
  eval_reading passage = {.session = session};
  for (int i = 0; i < e->n_cells && !status; i++)
    if (is_open(e, c->row, i) && e->cells[i].policy.kv_dtype == kv_dtype)
      status = compare_cell(c, i, &passage);
  eval_reading_end(&passage);
  laprox_session_destroy(session);
  return status;
}

static int compare_passage(comparison *c, uint32_t passage) {
  eval *e = c->e;
  const size_t room = e->n_passage_tokens - e->passage_tokens - N_FORCED;
  const uint32_t *tokens = e->passages + (e->n_passages > 1 ? room * passage / (e->n_passages - 1) : 0);
  bool any = false;
  c->row = e->n_items + passage;
  c->forced = tokens + e->passage_tokens;
  for (int i = 0; i < e->n_cells; i++) any = any || is_open(e, c->row, i);
  int status = any ? compare_dtype(c, 0, tokens) : EXIT_DONE;
  for (int i = 0; i < e->n_cells && !status; i++)
    if (is_open(e, c->row, i)) status = compare_dtype(c, i, tokens);
  laprox_session_destroy(c->whole);
  c->whole = NULL;
  return status;
}

int eval_compare_passages(eval *e) {
  const size_t n = (size_t)N_FORCED * e->model.n_vocab;
  comparison c = {.e = e};
  if (!e->n_passages) return EXIT_DONE;
  c.full = malloc(n * sizeof *c.full);
  c.evicted = malloc(n * sizeof *c.evicted);
  int status = c.full && c.evicted ? EXIT_DONE : fail_impossible("out of memory for %zu logits", n);
  for (uint32_t p = 0; p < e->n_passages && !status; p++) status = compare_passage(&c, p);
  free(c.full);
  free(c.evicted);
  return status;
}
