/* session_score.c: scores that serve many budgets, by the last queries or by those of probes. */
#include "runtime/session.h"

#include <string.h>

struct laprox_scores {
  laprox_device *device;
  laprox_policy policy; /* as evictions have it; the budget is theirs */
  uint32_t n_tokens;
  lpx_cache_scores scores;
};

/* What reading a probe overwrites. */
typedef struct memory {
  lpx_session_queries queries;
  float *logits;
  bool has_logits, keep_logits;
} memory;

static void forget(laprox_session *session, memory *m) {
  lpx_session_queries_finish(session, &m->queries);
  lpx_release(&session->context->host, m->logits);
}

static laprox_result remember(laprox_session *session, memory *m) {
  const laprox_host *host = &session->context->host;
  const uint32_t n_vocab = session->model->n_vocab;
  *m = (memory){.has_logits = session->has_logits, .keep_logits = session->info.keep_logits};
  m->logits = lpx_allocate(host, n_vocab, sizeof *m->logits);
  laprox_result result = m->logits ? LAPROX_OK : lpx_fail_memory(host, "a probe");
  if (!result) result = lpx_session_queries_init(session, &m->queries);
  if (!result) result = lpx_session_queries_copy(session, &session->queries, &m->queries);
  if (result) return result;
  memcpy(m->logits, session->logits, n_vocab * sizeof *m->logits);
  session->info.keep_logits = false;
  return LAPROX_OK;
}

static laprox_result restore(laprox_session *session, const memory *m) {
  const laprox_result result = lpx_session_queries_copy(session, &m->queries, &session->queries);
  memcpy(session->logits, m->logits, session->model->n_vocab * sizeof *session->logits);
  session->has_logits = m->has_logits;
  session->info.keep_logits = m->keep_logits;
  if (result) session->queries.sums = (lpx_session_sums){0};
  return result;
}

/* ---- one probe ---- */

/* The policy with which a cache is scored: sinks are those that the eviction will have, and the smallest budget there is
 * makes it a policy that evicts. */
static laprox_policy scoring_policy(const laprox_policy *policy, const lpx_rules *rules, uint32_t window) {
  laprox_policy scoring = *policy;
  const uint32_t more = rules->sinks + rules->floor;
  scoring.window = window;
  scoring.sinks = rules->sinks ? rules->sinks : LAPROX_NONE;
  scoring.budget = (laprox_budget){.tokens = window + (more ? more : 1)};
  return scoring;
}

static laprox_result score_probe(laprox_session *session, const laprox_policy *scored,
                                 const lpx_rules *fitted, const laprox_probe *probe, lpx_cache_scores *out) {
  const laprox_policy policy = scoring_policy(scored, fitted, probe->n_tokens);
  const uint32_t n_heads = session->model->shape.n_layers * session->model->shape.n_kv_heads;
  lpx_rules rules;
  lpx_cache_eviction eviction;
  laprox_result result = laprox_session_prefill(session, probe->tokens, probe->n_tokens);
  if (result) return result;
  result = lpx_session_prepare(session, &policy, 0, &rules, &eviction);
  if (!result) result = lpx_cache_score(&session->cache, &eviction, out);
  if (!result && out->n_entries) out->n_entries -= (uint64_t)probe->n_tokens * n_heads;
  const laprox_result retreated = lpx_cache_retreat(&session->cache, probe->n_tokens);
  return result ? result : retreated;
}

/* ---- several ---- */

/* Scores of all probes so far, on the host; -1 where no candidate is. */
typedef struct sum {
  const laprox_host *host;
  lpx_queue *queue;
  laprox_combine combine;
  float *scores, *ranks, *one; /* one: of the newest probe */
} sum;

static void sum_finish(sum *s) {
  lpx_release(s->host, s->scores);
  lpx_release(s->host, s->ranks);
  lpx_release(s->host, s->one);
}

static void add_numbers(const sum *s, float scale, size_t begin, size_t end, float *to) {
  for (size_t i = begin; i < end; i++) {
    const float score = s->one[i] < 0.0f ? -1.0f : s->one[i] * scale;
    if (score < 0.0f || to[i] < 0.0f)
      to[i] = score;
    else if (s->combine != LAPROX_COMBINE_MAX)
      to[i] += score;
    else if (score > to[i])
      to[i] = score;
  }
}

static laprox_result add_buffer(const sum *s, const lpx_cache_scores *from, const lpx_buffer *buffer,
                                bool scaled, uint32_t n_layers, float *to) {
  const size_t bytes = from->layer_words[n_layers] * sizeof *to;
  laprox_result result = lpx_queue_download(s->queue, lpx_buffer_whole(buffer), s->one, bytes);
  for (uint32_t l = 0; l < n_layers && !result; l++)
    add_numbers(s, scaled ? from->layer_scales[l] : 1.0f, from->layer_words[l], from->layer_words[l + 1], to);
  return result;
}

static laprox_result sum_add(sum *s, const lpx_cache_scores *from, uint32_t n_layers) {
  const size_t n = from->layer_words[n_layers];
  const bool is_first = !s->one;
  if (is_first) {
    s->one = lpx_allocate(s->host, n, sizeof *s->one);
    s->scores = lpx_allocate(s->host, n, sizeof *s->scores);
    s->ranks = lpx_allocate(s->host, from->ranks.buffer ? n : 0, sizeof *s->ranks);
    if (!s->one || !s->scores || !s->ranks) return lpx_fail_memory(s->host, "scores of probes");
  }
  laprox_result result = add_buffer(s, from, &from->scores, true, n_layers, s->scores);
  if (!result && from->ranks.buffer) result = add_buffer(s, from, &from->ranks, false, n_layers, s->ranks);
  return result;
}

/* What has come of them in place of the last probe's. */
static laprox_result sum_store(const sum *s, uint32_t n_probes, uint32_t n_layers, lpx_cache_scores *to) {
  const size_t n = to->layer_words[n_layers];
  const float share = s->combine == LAPROX_COMBINE_MAX ? 1.0f : 1.0f / (float)n_probes;
  for (size_t i = 0; i < n; i++) {
    if (s->scores[i] >= 0.0f) s->scores[i] *= share;
    if (to->ranks.buffer && s->ranks[i] >= 0.0f) s->ranks[i] *= share;
  }
  for (uint32_t l = 0; l < n_layers; l++) to->layer_scales[l] = 1.0f;
  laprox_result result =
      lpx_queue_upload(s->queue, lpx_buffer_whole(&to->scores), s->scores, n * sizeof *s->scores);
  if (!result && to->ranks.buffer)
    result = lpx_queue_upload(s->queue, lpx_buffer_whole(&to->ranks), s->ranks, n * sizeof *s->ranks);
  return result;
}

static laprox_result score_probes(laprox_session *session, const laprox_score_info *info,
                                  const lpx_rules *rules, laprox_scores *scores) {
  const uint32_t n_layers = session->model->shape.n_layers;
  sum s = {.host = &session->context->host, .queue = session->device->queue, .combine = info->combine};
  laprox_result result = LAPROX_OK;
  uint64_t n_nonfinite = 0;
  for (uint32_t i = 0; i < info->n_probes && !result; i++) {
    lpx_cache_scores_finish(session->context, &scores->scores);
    result = score_probe(session, &scores->policy, rules, &info->probes[i], &scores->scores);
    scores->scores.window = 0;
    n_nonfinite += scores->scores.n_nonfinite;
    if (!result && info->n_probes > 1 && scores->scores.n_entries)
      result = sum_add(&s, &scores->scores, n_layers);
  }
  if (!result && s.one) result = sum_store(&s, info->n_probes, n_layers, &scores->scores);
  scores->scores.n_nonfinite = n_nonfinite;
  sum_finish(&s);
  return result;
}

/* ---- scores ---- */

static laprox_result check_probes(const laprox_session *session, const laprox_score_info *info,
                                  const lpx_rules *rules) {
  const laprox_host *host = &session->context->host;
  if (info->policy.window)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "policy %s has a window of its own, but the queries of probes are to score",
                    laprox_policy_name(rules->kind));
  if (!lpx_rules_use_attention(rules))
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "policy %s looks at no queries, so that a probe is nothing to it",
                    laprox_policy_name(rules->kind));
  for (uint32_t i = 0; i < info->n_probes; i++)
    if (info->probes[i].n_tokens > session->info.window)
      return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "probe %u has %u tokens, the session's window %u",
                      i, info->probes[i].n_tokens, session->info.window);
  return LAPROX_OK;
}

/* The policy's rules, with the sinks that its budget has room for, all where it has none. The window of probes is
 * none of the budget's. */
static laprox_result fit_rules(const laprox_host *host, const laprox_policy *policy, uint32_t n_tokens,
                               bool is_probed, lpx_rules *rules) {
  uint32_t budget = 0;
  laprox_result result = lpx_rules_resolve(host, policy, rules);
  if (is_probed) rules->window = 0;
  if (!result) result = lpx_budget_resolve(host, rules, &policy->budget, n_tokens, &budget);
  if (!result && budget != UINT32_MAX) lpx_rules_fit(rules, budget);
  return result;
}

static laprox_result score_by_probes(laprox_session *session, const laprox_score_info *info,
                                     laprox_scores *scores) {
  memory m = {0};
  lpx_rules rules;
  laprox_result result = fit_rules(&session->context->host, &scores->policy, scores->n_tokens, true, &rules);
  if (!result) result = check_probes(session, info, &rules);
  if (!result) result = remember(session, &m);
  if (!result) {
    result = score_probes(session, info, &rules, scores);
    const laprox_result restored = restore(session, &m);
    if (!result) result = restored;
  }
  forget(session, &m);
  return result;
}

/* By the last tokens read. */
static laprox_result score_by_window(laprox_session *session, laprox_scores *scores) {
  lpx_rules rules;
  lpx_cache_eviction eviction;
  laprox_result result = fit_rules(&session->context->host, &scores->policy, scores->n_tokens, false, &rules);
  if (result) return result;
  const laprox_policy policy = scoring_policy(&scores->policy, &rules, rules.window);
  result = lpx_session_prepare(session, &policy, 0, &rules, &eviction);
  if (!result && lpx_rules_use_attention(&rules) && scores->n_tokens > rules.window)
    result = lpx_session_check_queries(session, rules.window);
  return result ? result : lpx_cache_score(&session->cache, &eviction, &scores->scores);
}

laprox_result laprox_session_score(laprox_session *session, const laprox_score_info *info,
                                   laprox_scores **out) {
  const laprox_host *host = &session->context->host;
  *out = NULL;
  laprox_scores *scores = lpx_allocate(host, 1, sizeof *scores);
  if (!scores) return lpx_fail_memory(host, "scores");
  *scores =
      (laprox_scores){.device = session->device, .policy = info->policy, .n_tokens = session->cache.n_tokens};
  const laprox_result result =
      info->n_probes ? score_by_probes(session, info, scores) : score_by_window(session, scores);
  if (result)
    laprox_scores_destroy(scores);
  else
    *out = scores;
  return result;
}

void laprox_scores_destroy(laprox_scores *scores) {
  if (!scores) return;
  laprox_context *context = scores->device->context;
  lpx_cache_scores_finish(context, &scores->scores);
  lpx_release(&context->host, scores);
}

bool laprox_scores_serve(const laprox_scores *scores, const laprox_budget *budget) {
  const laprox_host quiet = lpx_host_complete(NULL);
  laprox_policy policy = scores->policy;
  lpx_rules rules;
  uint32_t entries = 0;
  policy.budget = *budget;
  const bool is_probed = !scores->scores.window;
  if (fit_rules(&quiet, &policy, scores->n_tokens, is_probed, &rules) ||
      lpx_budget_resolve(&quiet, &rules, budget, scores->n_tokens, &entries))
    return false;
  return entries == UINT32_MAX || rules.sinks == scores->scores.sinks;
}

laprox_result laprox_session_evict_scored(laprox_session *session, const laprox_scores *scores,
                                          const laprox_budget *budget, laprox_eviction *out) {
  laprox_eviction unwanted;
  laprox_policy policy = scores->policy;
  policy.budget = *budget;
  const lpx_cache_eviction eviction = {.policy = &policy,
                                       .given = &scores->scores,
                                       .model_dim = session->model->model_dim,
                                       .progress = session->info.progress,
                                       .progress_user = session->info.progress_user};
  if (scores->n_tokens != session->cache.n_tokens)
    return lpx_fail(&session->context->host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "scores of %u tokens, but %u have been read", scores->n_tokens, session->cache.n_tokens);
  const laprox_result result = lpx_cache_evict(&session->cache, &eviction, out ? out : &unwanted);
  if (!result) session->queries.sums = (lpx_session_sums){0};
  return result;
}
