/* run_session.c: reading and evicting, with clocks and counts. */
#include "run.h"

#include <stdlib.h>

const char *run_prefill_name(const run *r) {
  const options *o = &r->c->opt;
  return o->chunk_evict ? "chunks" : o->oneshot ? "oneshot" : "layerwise";
}

const char *run_prefill_words(const run *r) {
  const options *o = &r->c->opt;
  if (o->chunk_evict) return "evicted chunk by chunk (approximate)";
  if (!o->has_budget) return "nothing evicted";
  return o->oneshot ? "evicted at the end" : "evicted layer by layer";
}

int run_open(run *r) {
  const options *o = &r->c->opt;
  const laprox_shape *shape = &r->model.shape;
  const size_t n = (size_t)shape->n_layers * shape->n_kv_heads;
  r->kept = calloc(2 * n, sizeof *r->kept);
  if (r->kept) r->counts = r->kept + n;
  if (!r->kept) return fail_impossible("out of memory for the heads' counts");
  laprox_result result = laprox_session_create(r->c->model, &r->session_info, &r->session);
  double start = now_ms();
  if (!result && o->load_cache) result = laprox_session_load(r->session, o->load_cache);
  if (!result) r->n_loaded = laprox_session_n_tokens(r->session);
  r->load_ms += now_ms() - start;
  return result ? cli_fail(r->c, result) : EXIT_DONE;
}

double run_count_entries(run *r) {
  const size_t n = (size_t)r->model.shape.n_layers * r->model.shape.n_kv_heads;
  double sum = 0;
  laprox_session_kept_per_head(r->session, r->counts);
  for (size_t i = 0; i < n; i++) sum += r->counts[i];
  if (sum / (double)n > r->most_entries) r->most_entries = sum / (double)n;
  return sum / (double)n;
}

void run_take_stock(run *r) {
  laprox_session_kept_per_head(r->session, r->kept);
  r->memory = laprox_session_get_memory(r->session);
}

/* Counts an eviction that went well. */
static int end_eviction(run *r, laprox_result result, const laprox_eviction *done) {
  progress_clear(&r->c->bar);
  if (result) return cli_fail(r->c, result);
  if (done->bytes_after < done->bytes_before) r->n_evictions++;
  r->nonfinite_scores += done->nonfinite_scores;
  return EXIT_DONE;
}

int run_evict(run *r) {
  laprox_eviction done = {0};
  double start = now_ms();
  laprox_result result = laprox_session_evict(r->session, &r->c->opt.policy, &done);
  r->evict_ms += now_ms() - start;
  return end_eviction(r, result, &done);
}

int run_evict_prompt(run *r) {
  const laprox_policy *policy = &r->c->opt.policy;
  laprox_scores *scores = NULL;
  laprox_eviction done = {0};
  if (!r->probes.n) return run_evict(r);
  const double start = now_ms();
  const laprox_score_info info = probes_info(r->c, &r->probes, policy);
  laprox_result result = laprox_session_score(r->session, &info, &scores);
  if (!result) result = laprox_session_evict_scored(r->session, scores, &policy->budget, &done);
  laprox_scores_destroy(scores);
  r->evict_ms += now_ms() - start;
  return end_eviction(r, result, &done);
}

/* Layer by layer and chunk by chunk, evicting is part of the reading; its own clocks tell them apart. */
static int read_evicting(run *r, const uint32_t *tokens, size_t n) {
  const options *o = &r->c->opt;
  laprox_eviction done = {0};
  double start = now_ms();
  laprox_result result =
      o->chunk_evict ? laprox_session_prefill_chunks(r->session, tokens, n, o->chunk_evict, &o->policy, &done)
                     : laprox_session_prefill_evict(r->session, tokens, n, &o->policy, &done);
  const double evict_ms = done.score_ms + done.select_ms + done.compact_ms;
  r->prefill_ms += now_ms() - start - evict_ms;
  r->evict_ms += evict_ms;
  return end_eviction(r, result, &done);
}

static int read_whole(run *r, const uint32_t *tokens, size_t n) {
  double start = now_ms();
  laprox_result result = laprox_session_prefill(r->session, tokens, n);
  r->prefill_ms += now_ms() - start;
  progress_clear(&r->c->bar);
  if (result) return cli_fail(r->c, result);
  (void)run_count_entries(r);
  return EXIT_DONE;
}

int run_read(run *r, const uint32_t *tokens, size_t n, bool evicts) {
  const uint32_t n_read = laprox_session_n_tokens(r->session);
  int status = EXIT_DONE;
  if (n > r->model.context_length - n_read)
    return fail_impossible("%zu tokens after %u are too many: %s reads %u at most", n, n_read,
                           r->c->opt.input, r->model.context_length);
  /* Layer by layer goes for what is read first; later turns are short. */
  const bool in_one = r->c->opt.chunk_evict || (!r->c->opt.oneshot && n_read == 0);
  if (evicts && in_one) {
    status = read_evicting(r, tokens, n);
  } else {
    status = read_whole(r, tokens, n);
    if (!status && evicts) status = run_evict_prompt(r);
  }
  if (!status) (void)run_count_entries(r);
  return status;
}
