/* eval_answer.c: reads each prompt once for a type of cache, evicts copies of it in every way, and lets them answer. */
#include "eval.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A prompt's tokens. */
typedef struct reading {
  uint32_t *document, *question;
  size_t n_document, n_question;
} reading;

/* The item that is being answered. */
typedef struct attempt {
  eval *e;
  uint32_t row;
  task t;
  reading tokens;
  uint32_t *kept, *positions; /* scratch: of every head, and of one layer's entries */
  double prefill_ms;
} attempt;

/* ---- tokens ---- */

static laprox_result read_text(attempt *a, const text_buffer *text, bool add_bos, uint32_t **tokens,
                               size_t *n) {
  *n = 0;
  if (!text->n) return LAPROX_OK;
  return laprox_model_tokenize(a->e->c->model, text->bytes, text->n, add_bos, tokens, n);
}

/* The middle of a document that is too long goes. */
static void shorten(reading *r, size_t most) {
  const size_t front = most / 2, back = most - front;
  memmove(r->document + front, r->document + r->n_document - back, back * sizeof *r->document);
  r->n_document = most;
}

static int read_tokens(attempt *a) {
  const task_item *item = &a->e->items[a->row];
  reading *r = &a->tokens;
  const size_t limit = a->e->model.context_length;
  laprox_result result = read_text(a, &a->t.document, true, &r->document, &r->n_document);
  if (!result) result = read_text(a, &a->t.question, false, &r->question, &r->n_question);
  if (result) return cli_fail(a->e->c, result);
  const size_t behind = r->n_question + a->t.max_tokens;
  if (a->t.may_shorten && behind + 2 < limit && r->n_document + behind > limit) shorten(r, limit - behind);
  if (r->n_document + r->n_question > limit)
    return fail_impossible("%s, line %u: %zu tokens, and the model reads %zu at most",
                           a->e->c->opt.tasks[item->file], item->number, r->n_document + r->n_question,
                           limit);
  return EXIT_DONE;
}

/* ---- answers ---- */

/* Whether all that counts of an answer is there; cuts the rest off. */
static bool is_enough(const task *t, char *text) {
  if (t->first_line) {
    char *line = text + strspn(text, "\n");
    const size_t n = strcspn(line, "\n");
    if (line[n]) {
      line[n] = 0;
      return true;
    }
  }
  return metric_is_settled(t->metric, text, &t->answers);
}

static laprox_result answer(attempt *a, laprox_session *session, outcome *out) {
  const eval *e = a->e;
  const task *t = &a->t;
  laprox_sampler greedy = {0};
  uint32_t *tokens = malloc((t->max_tokens + 1) * sizeof *tokens);
  laprox_result result = tokens ? LAPROX_OK : LAPROX_ERROR_OUT_OF_MEMORY;
  for (uint32_t n = 0; n < t->max_tokens && !result;) {
    char *text = NULL;
    size_t n_bytes = 0;
    tokens[n] = laprox_sample(&greedy, laprox_session_logits(session), e->model.n_vocab, NULL);
    const bool ends = tokens[n] == e->model.eos;
    if (!ends) n++;
    result = laprox_model_detokenize(e->c->model, tokens, n, &text, &n_bytes);
    if (result) break;
    const bool enough = ends || is_enough(t, text) || n == t->max_tokens ||
                        laprox_session_n_tokens(session) >= e->model.context_length;
    if (enough)
      out->score = metric_score(t->metric, t->first_line ? text + strspn(text, "\n") : text, &t->answers);
    laprox_model_release(e->c->model, text);
    if (enough) break;
    const double start = now_ms();
    result = laprox_session_decode(session, tokens[n - 1]);
    out->decode_ms += now_ms() - start;
    out->n_decoded++;
  }
  free(tokens);
  return result || out->score >= 0 ? result : LAPROX_ERROR_OUT_OF_MEMORY;
}

/* ---- what is kept ---- */

static json_t *map_row(const uint32_t *counts) {
  json_t *row = json_array();
  for (int b = 0; b < MAP_BINS; b++) json_array_append_new(row, json_integer(counts[b]));
  return row;
}

/* Entries by position; and of the first item, for every head, or for every layer where heads are many. */
static json_t *take_stock(attempt *a, const laprox_session *session, uint32_t bins[N_BINS]) {
  const laprox_shape *shape = &a->e->model.shape;
  const uint64_t n_tokens = laprox_session_n_tokens(session);
  const bool by_layer = shape->n_layers * shape->n_kv_heads > MAX_MAP_ROWS;
  json_t *map = a->row == 0 ? json_array() : NULL;
  uint32_t counts[MAP_BINS] = {0};
  memset(bins, 0, N_BINS * sizeof *bins);
  laprox_session_kept_per_head(session, a->kept);
  for (uint32_t l = 0; l < shape->n_layers; l++) {
    const uint32_t *position = a->positions;
    laprox_session_kept_positions(session, l, a->positions);
    for (uint32_t g = 0; g < shape->n_kv_heads; g++) {
      for (uint32_t i = 0; i < a->kept[l * shape->n_kv_heads + g]; i++, position++) {
        bins[*position * (uint64_t)N_BINS / n_tokens]++;
        counts[*position * (uint64_t)MAP_BINS / n_tokens]++;
      }
      if (!map || (by_layer && g + 1 < shape->n_kv_heads)) continue;
      json_array_append_new(map, map_row(counts));
      memset(counts, 0, sizeof counts);
    }
  }
  return map;
}

/* ---- cells ---- */

static int fail_row(attempt *a, laprox_result result) {
  return cli_fail(a->e->c, result);
}

static int try_cell(attempt *a, int index, eval_reading *document) {
  eval *e = a->e;
  uint32_t bins[N_BINS];
  outcome *kept = eval_outcome(e, a->row, index), out = {.is_done = true, .prefill_ms = a->prefill_ms};
  laprox_session *session = NULL;
  json_t *map = NULL;
  out.n_tokens = (uint32_t)(a->tokens.n_document + a->tokens.n_question);
  laprox_result result = eval_evict(e, document, index, &session, &out);
  if (!result) map = take_stock(a, session, bins);
  if (!result && !e->cells[index].knows && a->tokens.n_question)
    result = laprox_session_prefill(session, a->tokens.question, a->tokens.n_question);
  if (!result) result = answer(a, session, &out);
  laprox_session_destroy(session);
  int status = result ? fail_row(a, result) : EXIT_DONE;
  if (!status) *kept = out;
  if (!status) status = eval_journal_add(e, a->row, index, a->kept, bins, map);
  if (!status) status = eval_step(e);
  json_decref(map);
  return status;
}

static int try_cells(attempt *a, laprox_dtype kv_dtype, bool knows, laprox_session *session) {
  const eval *e = a->e;
  eval_reading document = {.session = session};
  int status = EXIT_DONE;
  for (int i = 0; i < e->n_cells && !status; i++)
    if (e->cells[i].policy.kv_dtype == kv_dtype && e->cells[i].knows == knows &&
        !eval_outcome(e, a->row, i)->is_done)
      status = try_cell(a, i, &document);
  eval_reading_end(&document);
  return status;
}

/* All cells of one type of cache; the first of them is `index`. */
static int try_dtype(attempt *a, int index) {
  const laprox_dtype kv_dtype = a->e->cells[index].policy.kv_dtype;
  const reading *r = &a->tokens;
  laprox_session *session = NULL;
  laprox_result result = eval_open_session(a->e, index, false, &session);
  const double start = now_ms();
  if (!result) result = laprox_session_prefill(session, r->document, r->n_document);
  a->prefill_ms = now_ms() - start;
  int status = result ? fail_row(a, result) : try_cells(a, kv_dtype, false, session);
  if (!status && r->n_question) {
    const double again = now_ms();
    result = laprox_session_prefill(session, r->question, r->n_question);
    a->prefill_ms += now_ms() - again;
    if (result) status = fail_row(a, result);
  }
  if (!status) status = try_cells(a, kv_dtype, true, session);
  laprox_session_destroy(session);
  return status;
}

static int try_item(attempt *a) {
  const eval *e = a->e;
  const task_item *item = &e->items[a->row];
  const task_place place = {e->c->opt.tasks[item->file], e->c->opt.prompt_template, item->number};
  int status = task_init(item->line, &place, &a->t);
  if (!status) status = read_tokens(a);
  const size_t n_heads = (size_t)e->model.shape.n_layers * e->model.shape.n_kv_heads;
  a->kept = malloc(n_heads * sizeof *a->kept);
  a->positions = malloc((a->tokens.n_document + a->tokens.n_question + 1) * e->model.shape.n_kv_heads *
                        sizeof *a->positions);
  if (!status && (!a->kept || !a->positions)) status = fail_impossible("out of memory for kept positions");
  for (int i = 0; i < e->n_cells && !status; i++)
    if (!eval_outcome(e, a->row, i)->is_done) status = try_dtype(a, i);
  free(a->kept);
  free(a->positions);
  laprox_model_release(e->c->model, a->tokens.document);
  laprox_model_release(e->c->model, a->tokens.question);
  task_finish(&a->t);
  return status;
}

int eval_answer_items(eval *e) {
  int status = EXIT_DONE;
  for (uint32_t row = 0; row < e->n_items && !status; row++) {
    attempt a = {.e = e, .row = row};
    status = try_item(&a);
  }
  return status;
}
