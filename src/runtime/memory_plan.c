/* memory_plan.c: what a run will take, from shapes alone. */
#include "runtime/session.h"

typedef struct estimate {
  laprox_model *model;
  laprox_context *context;
  const laprox_memory_plan_info *info;
  laprox_session_info session;
  lpx_rules rules;
  uint32_t *cu_seqlens;
} estimate;

/* Bytes of K and V of one entry of one head. */
static uint64_t entry_bytes(const estimate *e) {
  return 2 * (uint64_t)e->model->shape.head_dim * (e->session.kv_dtype == LAPROX_DTYPE_F32 ? 4 : 2);
}

static uint64_t n_heads_all(const estimate *e) {
  return (uint64_t)e->model->shape.n_layers * e->model->shape.n_kv_heads;
}

/* Generated tokens stand in a tail that grows in steps. */
static uint32_t tail_rows(uint32_t n_generate) {
  uint64_t rows = 0;
  while (rows < n_generate) rows += rows / 4 > 32 ? rows / 4 : 32;
  return rows > UINT32_MAX ? UINT32_MAX : (uint32_t)rows;
}

/* Scores, tables and scratch of the last cut: layers before hold about the budget, the newest the whole
 * prompt. */
static laprox_result eviction_bytes(const estimate *e, uint32_t budget, uint64_t *out) {
  const laprox_shape *shape = &e->model->shape;
  const uint32_t n = shape->n_kv_heads, n_prompt = e->info->n_prompt;
  for (uint32_t l = 0; l < shape->n_layers; l++)
    for (uint32_t head = 0; head <= n; head++)
      e->cu_seqlens[l * (n + 1) + head] =
          head * (e->info->layerwise && l + 1 < shape->n_layers ? budget : n_prompt);
  laprox_plan_info info = {.shape = *shape,
                           .policy = e->info->policy,
                           .cache_dtype = e->session.kv_dtype,
                           .n_segments = 1,
                           .segments = {{.cu_seqlens = e->cu_seqlens}},
                           .n_tokens = n_prompt,
                           .query_rows = e->session.window};
  laprox_plan *plan = NULL;
  const laprox_result result = laprox_plan_create(e->context, &info, &plan);
  if (result) return result;
  laprox_requirements needs;
  laprox_plan_requirements(plan, &needs);
  laprox_plan_destroy(plan);
  /* A cut holds the scores of the one before it, too. */
  *out = needs.scratch_bytes + needs.result_bytes + needs.scores_bytes * (e->info->layerwise ? 2 : 1);
  return LAPROX_OK;
}

static uint64_t activation_bytes(const estimate *e, bool evicts) {
  const laprox_model *model = e->model;
  const uint64_t query_row = (uint64_t)model->shape.n_heads * model->shape.head_dim * sizeof(float);
  const uint64_t n_logits = e->session.keep_logits ? e->session.chunk : 1;
  uint64_t bytes = lpx_forward_bytes(model, e->session.chunk, model->context_length);
  bytes += n_logits * model->n_vocab * sizeof(float) + (uint64_t)model->model_dim * sizeof(float);
  bytes += model->shape.n_layers * query_row * e->session.window;
  if (evicts && e->rules.kind == LAPROX_POLICY_LAPROX)
    bytes += model->shape.n_layers * laprox_value_factor_bytes(&model->shape, e->rules.gqa);
  return bytes;
}

static laprox_result fill(const estimate *e, laprox_memory_plan *out) {
  const uint64_t heads = n_heads_all(e), n_prompt = e->info->n_prompt;
  uint32_t budget = UINT32_MAX;
  laprox_result result =
      lpx_budget_resolve(&e->context->host, &e->rules, &e->info->policy.budget, e->info->n_prompt, &budget);
  if (result) return result;
  const bool evicts = budget != UINT32_MAX;
  out->weight_bytes = e->model->weight_bytes;
  out->hidden_bytes = n_prompt * e->model->model_dim * sizeof(float);
  out->activation_bytes = activation_bytes(e, evicts);
  out->eviction_bytes = 0;
  if (evicts) result = eviction_bytes(e, budget, &out->eviction_bytes);
  const uint64_t kept = evicts ? budget : n_prompt, tail = tail_rows(e->info->n_generate);
  out->kv_full_bytes = heads * n_prompt * entry_bytes(e);
  out->kv_steady_bytes = heads * (kept + tail) * entry_bytes(e);
  out->kv_peak_bytes = out->kv_full_bytes;
  if (evicts && e->info->layerwise)
    out->kv_peak_bytes = (heads * kept + e->model->shape.n_kv_heads * n_prompt) * entry_bytes(e);
  else if (evicts)
    out->kv_peak_bytes += heads * kept * entry_bytes(e);
  const uint64_t fixed = out->weight_bytes + out->activation_bytes + lpx_queue_bytes(e->model->device->queue);
  /* The hidden states are there while layers are cut one by one, and gone before an eviction of the whole. */
  uint64_t peak = out->kv_peak_bytes + out->eviction_bytes + (e->info->layerwise ? out->hidden_bytes : 0);
  if (peak < out->kv_full_bytes + out->hidden_bytes && !(evicts && e->info->layerwise))
    peak = out->kv_full_bytes + out->hidden_bytes;
  if (peak < out->kv_steady_bytes) peak = out->kv_steady_bytes;
  out->peak_bytes = fixed + peak;
  if (out->kv_peak_bytes < out->kv_steady_bytes) out->kv_peak_bytes = out->kv_steady_bytes;
  out->fits = out->peak_bytes <= out->free_bytes;
  return result;
}

static bool fits_with(const estimate *e, const laprox_memory_plan *plan, uint32_t n_prompt, uint32_t budget) {
  laprox_memory_plan_info info = *e->info;
  laprox_memory_plan tried = {.free_bytes = plan->free_bytes};
  estimate other = *e;
  other.info = &info;
  info.n_prompt = n_prompt;
  if (budget) info.policy.budget = (laprox_budget){.tokens = budget};
  return !fill(&other, &tried) && tried.fits;
}

/* The largest value in [least, most] that fits; 0 where not even `least` does. */
static uint32_t largest(const estimate *e, const laprox_memory_plan *plan, bool prompt, uint32_t least,
                        uint32_t most) {
  uint32_t low = least - 1, high = most;
  while (low < high) {
    const uint32_t middle = low + (high - low + 1) / 2;
    const bool fits = prompt ? fits_with(e, plan, middle, 0) : fits_with(e, plan, e->info->n_prompt, middle);
    if (fits)
      low = middle;
    else
      high = middle - 1;
  }
  return low < least ? 0 : low;
}

static laprox_result check(const laprox_model *model, const laprox_memory_plan_info *info) {
  const laprox_host *host = &model->device->context->host;
  if (!info->n_prompt) return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "the prompt is empty");
  if (info->n_prompt <= model->context_length) return LAPROX_OK;
  return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                  "a prompt of %u tokens exceeds the model's context of %u", info->n_prompt,
                  model->context_length);
}

laprox_result laprox_plan_memory(laprox_model *model, const laprox_memory_plan_info *info,
                                 laprox_memory_plan *out) {
  *out = (laprox_memory_plan){0};
  const laprox_host *host = &model->device->context->host;
  estimate e = {.model = model, .context = model->device->context, .info = info, .session = info->session};
  laprox_result result = lpx_session_info_complete(host, &e.session);
  if (!result) result = lpx_rules_resolve(host, &info->policy, &e.rules);
  if (!result) result = check(model, info);
  if (result) return result;
  const laprox_shape *shape = &model->shape;
  e.cu_seqlens = lpx_allocate(host, shape->n_layers, ((size_t)shape->n_kv_heads + 1) * sizeof *e.cu_seqlens);
  if (!e.cu_seqlens) return lpx_fail_memory(host, "a memory plan");
  out->free_bytes = lpx_context_free_bytes(e.context);
  if (model->has_weights) out->free_bytes += model->weight_bytes;
  out->free_bytes += lpx_queue_bytes(model->device->queue);
  result = fill(&e, out);
  if (!result) out->largest_prompt = largest(&e, out, true, 1, model->context_length);
  const uint32_t least = e.rules.window + 1 > e.rules.window + e.rules.sinks + e.rules.floor
                             ? e.rules.window + 1
                             : e.rules.window + e.rules.sinks + e.rules.floor;
  if (!result && e.rules.kind != LAPROX_POLICY_FULL)
    out->largest_budget = largest(&e, out, false, least, info->n_prompt > least ? info->n_prompt : least);
  lpx_release(host, e.cu_seqlens);
  return result;
}
