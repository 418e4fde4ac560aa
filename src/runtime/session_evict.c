/* session_evict.c: evicting a session's cache, and what can be said about it. */
#include "runtime/session.h"

/* Value factors depend on the weights alone; they are made at the first eviction that needs them. */
static laprox_result prepare_factors(laprox_session *session, laprox_gqa gqa) {
  const laprox_model *model = session->model;
  const laprox_host *host = &session->context->host;
  lpx_session_shared *shared = session->shared;
  const bool joint = gqa == LAPROX_GQA_JOINT;
  if (shared->factors && joint == (shared->factors_gqa == LAPROX_GQA_JOINT)) return LAPROX_OK;
  lpx_session_finish_array(session, shared->factors);
  shared->factors_gqa = gqa;
  shared->factors = lpx_allocate(host, model->shape.n_layers, sizeof *shared->factors);
  const size_t bytes = laprox_value_factor_bytes(&model->shape, gqa);
  const size_t n_weights = (size_t)model->model_dim * model->shape.n_heads * model->shape.head_dim;
  float *weight = lpx_allocate(host, n_weights, sizeof *weight), *factor = lpx_allocate(host, bytes, 1);
  laprox_result result =
      shared->factors && weight && factor ? LAPROX_OK : lpx_fail_memory(host, "value factors");
  for (uint32_t l = 0; l < model->shape.n_layers && !result; l++) {
    result = lpx_model_output_weight_f32(model, l, weight);
    if (!result) result = laprox_value_factor(host, &model->shape, gqa, model->model_dim, weight, factor);
    if (!result)
      result =
          lpx_buffer_init(session->context, LPX_MEMORY_DEVICE, bytes, "value factor", &shared->factors[l]);
    if (!result)
      result = lpx_queue_upload(session->device->queue, lpx_buffer_whole(&shared->factors[l]), factor, bytes);
  }
  lpx_release(host, weight);
  lpx_release(host, factor);
  if (result) {
    lpx_session_finish_array(session, shared->factors);
    shared->factors = NULL;
  }
  return result;
}

laprox_result laprox_session_evict(laprox_session *session, const laprox_policy *policy,
                                   laprox_eviction *out) {
  laprox_eviction unwanted;
  lpx_rules rules;
  laprox_result result = lpx_rules_resolve(&session->context->host, policy, &rules);
  if (!result && (rules.kind == LAPROX_POLICY_LAPROX || rules.kind == LAPROX_POLICY_SNAPKV))
    result = lpx_session_check_queries(session, rules.window);
  if (!result && rules.kind == LAPROX_POLICY_LAPROX) result = prepare_factors(session, rules.gqa);
  if (result) return result;
  const lpx_cache_eviction eviction = {.policy = policy,
                                       .queries = session->queries,
                                       .query_rows = session->info.window,
                                       .query_end = session->cache.n_tokens % session->info.window,
                                       .factors = session->shared->factors,
                                       .progress = session->info.progress,
                                       .progress_user = session->info.progress_user};
  return lpx_cache_evict(&session->cache, &eviction, out ? out : &unwanted);
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

void laprox_session_kept_per_head(const laprox_session *session, uint32_t *counts) {
  for (uint32_t l = 0; l < session->cache.shape.n_layers; l++)
    for (uint32_t head = 0; head < session->cache.shape.n_kv_heads; head++)
      *counts++ = lpx_cache_head_entries(&session->cache, l, head);
}
