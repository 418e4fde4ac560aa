/* session_evict.c: evicting a session's cache, and what can be said about it. */
#include "runtime/session.h"

/* Those of the policy's kind. */
static lpx_buffer **find_factors(lpx_session_shared *shared, const lpx_rules *rules) {
  if (lpx_rules_factor(rules) == LPX_FACTOR_PROJECTION) return &shared->factors[LPX_FACTORS_PROJECTIONS];
  return &shared->factors[rules->gqa == LAPROX_GQA_JOINT ? LPX_FACTORS_OF_GROUPS : LPX_FACTORS_OF_HEADS];
}

/* `weight`: room for an output projection, where the policy takes that itself; else NULL. */
static laprox_result upload_factor(laprox_session *session, uint32_t layer, laprox_gqa gqa, float *weight,
                                   size_t bytes, lpx_buffer *to) {
  const float *factor = weight;
  laprox_result result = weight ? lpx_model_output_weight_f32(session->model, layer, weight)
                                : lpx_model_value_factor(session->model, layer, gqa, &factor);
  if (!result) result = lpx_buffer_init(session->context, LPX_MEMORY_DEVICE, bytes, "value factor", to);
  if (!result) result = lpx_queue_upload(session->device->queue, lpx_buffer_whole(to), factor, bytes);
  return result;
}

/* Value factors depend on the weights alone; they come to the device at the first eviction that needs them. */
static laprox_result prepare_factors(laprox_session *session, const lpx_rules *rules) {
  const laprox_model *model = session->model;
  const laprox_host *host = &session->context->host;
  const bool are_weights = lpx_rules_factor(rules) == LPX_FACTOR_PROJECTION;
  lpx_buffer **slot = find_factors(session->shared, rules);
  if (*slot) return LAPROX_OK;
  lpx_buffer *factors = lpx_allocate(host, model->shape.n_layers, sizeof *factors);
  const size_t n_weights = (size_t)model->model_dim * model->shape.n_heads * model->shape.head_dim;
  const size_t bytes =
      are_weights ? n_weights * sizeof(float) : laprox_value_factor_bytes(&model->shape, rules->gqa);
  float *weight = are_weights ? lpx_allocate(host, n_weights, sizeof *weight) : NULL;
  const bool allocated = factors && (weight || !are_weights);
  laprox_result result = allocated ? LAPROX_OK : lpx_fail_memory(host, "value factors");
  for (uint32_t l = 0; l < model->shape.n_layers && !result; l++)
    result = upload_factor(session, l, rules->gqa, weight, bytes, &factors[l]);
  lpx_release(host, weight);
  if (result)
    lpx_session_finish_array(session, factors);
  else
    *slot = factors;
  return result;
}

/* Layers whose attention has left the sums that a window's queries need. */
static uint32_t count_lse_layers(const laprox_session *session, uint32_t window, uint32_t n_more) {
  const lpx_session_sums sums = lpx_session_sums_after(session, n_more);
  const uint32_t n_tokens = session->cache.n_tokens + n_more, n_layers = session->model->shape.n_layers;
  if (sums.end != n_tokens || n_tokens < window || n_tokens - window < sums.first) return 0;
  return n_tokens - window < sums.last_layer_first ? n_layers - 1 : n_layers;
}

laprox_result lpx_session_prepare(laprox_session *session, const laprox_policy *policy, uint32_t n_more,
                                  lpx_rules *rules, lpx_cache_eviction *out) {
  const uint32_t n_tokens = session->cache.n_tokens + n_more;
  laprox_result result = lpx_rules_resolve(&session->context->host, policy, rules);
  const bool uses_factors = !result && lpx_rules_factor(rules);
  if (uses_factors) result = prepare_factors(session, rules);
  *out =
      (lpx_cache_eviction){.policy = policy,
                           .queries = session->queries.rings,
                           .query_rows = session->info.window,
                           .query_end = n_tokens % session->info.window,
                           .lse = lpx_buffer_whole(&session->queries.lse),
                           .lse_bytes = lpx_session_lse_bytes(&session->model->shape, session->info.window),
                           .n_lse_layers = result ? 0 : count_lse_layers(session, rules->window, n_more),
                           .factors = uses_factors ? *find_factors(session->shared, rules) : NULL,
                           .model_dim = session->model->model_dim,
                           .progress = session->info.progress,
                           .progress_user = session->info.progress_user};
  return result;
}

laprox_result laprox_session_evict(laprox_session *session, const laprox_policy *policy,
                                   laprox_eviction *out) {
  laprox_eviction unwanted;
  lpx_rules rules;
  lpx_cache_eviction eviction;
  laprox_result result = lpx_session_prepare(session, policy, 0, &rules, &eviction);
  if (!result && lpx_rules_use_attention(&rules) && session->cache.n_tokens > rules.window)
    result = lpx_session_check_queries(session, rules.window);
  if (result) return result;
  result = lpx_cache_evict(&session->cache, &eviction, out ? out : &unwanted);
  if (!result) session->queries.sums = (lpx_session_sums){0};
  return result;
}

/* A first prompt, cut after every layer. A failure leaves the session as empty as it was. */
static laprox_result read_layerwise(laprox_session *session, const uint32_t *tokens, uint32_t count,
                                    const lpx_cache_eviction *eviction, uint32_t budget,
                                    laprox_eviction *out) {
  lpx_layerwise layerwise;
  lpx_cache_clear(&session->cache); /* a reading that failed may have left room for its tokens */
  laprox_result result = lpx_layerwise_init(&session->cache, eviction, count, budget, &layerwise);
  if (result) return result;
  result = lpx_session_prefill(session, tokens, count, &layerwise);
  *out = layerwise.report;
  out->bytes_before = laprox_session_get_memory(session).kv_full_bytes;
  out->bytes_after = 2 * out->kept * lpx_cache_row_bytes(&session->cache);
  lpx_layerwise_finish(&layerwise);
  if (!result) return LAPROX_OK;
  lpx_cache_clear(&session->cache);
  return result;
}

laprox_result laprox_session_prefill_evict(laprox_session *session, const uint32_t *tokens, size_t count,
                                           const laprox_policy *policy, laprox_eviction *out) {
  laprox_eviction unwanted;
  lpx_rules rules;
  lpx_cache_eviction eviction;
  uint32_t budget = UINT32_MAX;
  if (!out) out = &unwanted;
  *out = (laprox_eviction){0};
  const uint64_t n_tokens = (uint64_t)session->cache.n_tokens + count;
  laprox_result result = lpx_session_prepare(session, policy, (uint32_t)count, &rules, &eviction);
  if (!result && n_tokens <= session->model->context_length)
    result =
        lpx_budget_resolve(&session->context->host, &rules, &policy->budget, (uint32_t)n_tokens, &budget);
  if (result) return result;
  if (!session->cache.n_tokens && budget != UINT32_MAX && rules.scope != LAPROX_SCOPE_TOKEN)
    return read_layerwise(session, tokens, (uint32_t)count, &eviction, budget, out);
  result = laprox_session_prefill(session, tokens, count);
  return result ? result : laprox_session_evict(session, policy, out);
}

/* One chunk, and what is left of the cache after it. */
static laprox_result read_chunk(laprox_session *session, const uint32_t *tokens, uint32_t count,
                                const laprox_policy *policy, laprox_eviction *sum) {
  laprox_eviction done;
  laprox_result result = laprox_session_prefill(session, tokens, count);
  if (!result) result = laprox_session_evict(session, policy, &done);
  if (result) return result;
  sum->budget = done.budget;
  sum->kept = done.kept;
  sum->bytes_after = done.bytes_after;
  sum->nonfinite_scores += done.nonfinite_scores;
  sum->score_ms += done.score_ms;
  sum->select_ms += done.select_ms;
  sum->compact_ms += done.compact_ms;
  return LAPROX_OK;
}

static laprox_result read_chunks(laprox_session *session, const uint32_t *tokens, uint32_t count,
                                 uint32_t chunk, const laprox_policy *policy, laprox_eviction *out) {
  laprox_result result = LAPROX_OK;
  /* What was there before may be more than the budget. */
  if (session->cache.n_tokens) result = laprox_session_evict(session, policy, out);
  for (uint32_t first = 0, now; first < count && !result; first += now) {
    now = count - first < chunk ? count - first : chunk;
    result = read_chunk(session, tokens + first, now, policy, out);
  }
  if (!result) out->bytes_before = laprox_session_get_memory(session).kv_full_bytes;
  return result;
}

laprox_result laprox_session_prefill_chunks(laprox_session *session, const uint32_t *tokens, size_t count,
                                            uint32_t chunk, const laprox_policy *policy,
                                            laprox_eviction *out) {
  const laprox_host *host = &session->context->host;
  laprox_eviction unwanted;
  laprox_policy every = *policy;
  lpx_rules rules;
  uint32_t budget = UINT32_MAX;
  const bool was_empty = !session->cache.n_tokens;
  if (!out) out = &unwanted;
  *out = (laprox_eviction){0};
  if (!chunk)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_session_prefill_chunks: chunks of 0 tokens; at least 1");
  laprox_result result = lpx_session_check_tokens(session, tokens, count);
  if (!result) result = lpx_rules_resolve(host, policy, &rules);
  if (!result)
    result =
        lpx_budget_resolve(host, &rules, &policy->budget, session->cache.n_tokens + (uint32_t)count, &budget);
  if (result) return result;
  every.budget = (laprox_budget){.tokens = budget == UINT32_MAX ? 0 : budget};
  result = read_chunks(session, tokens, (uint32_t)count, chunk, &every, out);
  if (result && was_empty) {
    lpx_cache_clear(&session->cache);
    session->has_logits = false;
    session->queries.first = 0;
    session->queries.sums = (lpx_session_sums){0};
  }
  return result;
}

/* ---- what there is ---- */

laprox_session_memory laprox_session_get_memory(const laprox_session *session) {
  const lpx_cache *cache = &session->cache;
  const uint64_t rows = (uint64_t)cache->shape.n_layers * cache->shape.n_kv_heads * cache->n_tokens;
  return (laprox_session_memory){.kv_bytes = cache->bytes,
                                 .kv_peak_bytes = cache->peak_bytes,
                                 .kv_full_bytes = 2 * rows * lpx_cache_row_bytes(cache)};
}

uint32_t laprox_session_n_tokens(const laprox_session *session) {
  return session->cache.n_tokens;
}

/* A tail that nothing stands before becomes the prefix when it grows, without anything being evicted. */
uint32_t laprox_session_n_tail(const laprox_session *session) {
  return lpx_cache_is_whole(&session->cache) ? session->cache.n_tokens : session->cache.n_tail;
}

void laprox_session_kept_per_head(const laprox_session *session, uint32_t *counts) {
  for (uint32_t l = 0; l < session->cache.shape.n_layers; l++)
    for (uint32_t head = 0; head < session->cache.shape.n_kv_heads; head++)
      *counts++ = lpx_cache_head_entries(&session->cache, l, head);
}
