/* memory_plan.c: what a run will take, from shapes alone. */
#include "runtime/session.h"

typedef struct estimate {
  laprox_model *model;
  laprox_context *context;
  const laprox_memory_plan_info *info;
  laprox_session_info session;
  lpx_rules rules;
  uint32_t *cu_seqlens; /* n_layers x (n_kv_heads + 1), for one plan at a time */
  float *layer_scales;
} estimate;

/* The moments of a run are told one after the other; what the largest takes is the peak. */
typedef struct course {
  const estimate *e;
  laprox_memory_plan *out;
  uint32_t budget; /* UINT32_MAX: everything is kept */
  uint64_t factor_bytes;
  uint64_t most_bytes; /* besides what is there all the time */
} course;

/* K and V of so many entries in each head of a layer. */
static uint64_t layer_bytes(const estimate *e, uint64_t n_entries) {
  const laprox_shape *shape = &e->model->shape;
  const uint64_t row_bytes = laprox_dtype_bytes(e->session.kv_dtype, shape->head_dim);
  return 2 * n_entries * shape->n_kv_heads * row_bytes;
}

static uint64_t cache_bytes(const estimate *e, uint64_t n_entries) {
  return layer_bytes(e, n_entries) * e->model->shape.n_layers;
}

static void note(course *c, uint64_t kv_bytes, uint64_t other_bytes) {
  if (kv_bytes > c->out->kv_peak_bytes) c->out->kv_peak_bytes = kv_bytes;
  if (kv_bytes + other_bytes > c->most_bytes) c->most_bytes = kv_bytes + other_bytes;
}

/* ---- evictions ---- */

static void fill_rows(const estimate *e, uint32_t first_layer, uint32_t end_layer, uint32_t n_rows) {
  const uint32_t n_heads = e->model->shape.n_kv_heads;
  for (uint32_t l = first_layer; l < end_layer; l++)
    for (uint32_t head = 0; head <= n_heads; head++)
      e->cu_seqlens[(size_t)l * (n_heads + 1) + head] = head * n_rows;
}

/* Scores, tables and scratch. `last_cut`: the scores of the cut before are there, too. */
static laprox_result size_eviction(course *c, laprox_plan_info *info, uint32_t budget, bool last_cut,
                                   uint64_t *out) {
  const estimate *e = c->e;
  laprox_plan *plan = NULL;
  laprox_requirements needs;
  *out = 0;
  info->shape = e->model->shape;
  info->policy = e->info->policy;
  info->policy.budget = (laprox_budget){.tokens = budget};
  info->cache_dtype = e->session.kv_dtype;
  info->query_rows = e->session.window;
  info->model_dim = e->model->model_dim;
  const laprox_result result = laprox_plan_create(e->context, info, &plan);
  if (result) return result;
  laprox_plan_requirements(plan, &needs);
  laprox_plan_destroy(plan);
  if (needs.budget == UINT32_MAX) return LAPROX_OK;
  uint64_t before = last_cut ? needs.scores_bytes : 0;
  /* The first cut knows no layer before it. */
  if (last_cut && info->shape.n_layers <= 2)
    before = (uint64_t)(info->shape.n_layers - 1) * info->shape.n_kv_heads * info->n_tokens * sizeof(float);
  *out = needs.scratch_bytes + needs.scores_bytes + needs.result_bytes + before;
  if (*out > c->out->eviction_bytes) c->out->eviction_bytes = *out;
  *out += c->factor_bytes;
  return LAPROX_OK;
}

/* Of n_prefix entries in every head and n_tail behind them, in buffers for tail_rows. Every layer is packed
 * before the first one goes. */
static laprox_result note_eviction(course *c, uint32_t n_prefix, uint32_t n_tail, uint32_t tail_rows,
                                   uint32_t budget) {
  const estimate *e = c->e;
  laprox_plan_info info = {.n_tokens = n_prefix + n_tail};
  uint64_t bytes;
  fill_rows(e, 0, e->model->shape.n_layers, n_prefix);
  if (n_prefix) info.segments[info.n_segments++].cu_seqlens = e->cu_seqlens;
  info.segments[info.n_segments++] = (laprox_segment){.n_entries = n_tail, .head_rows = tail_rows};
  const laprox_result result = size_eviction(c, &info, budget, false, &bytes);
  if (!result) note(c, cache_bytes(e, (uint64_t)n_prefix + tail_rows + budget), bytes);
  return result;
}

/* The last cut, which has the most to hold: the layers before it have shared the budget, and the newest is
 * whole. */
static laprox_result note_last_cut(course *c, uint64_t hidden) {
  const estimate *e = c->e;
  const uint32_t n_layers = e->model->shape.n_layers, n = e->info->n_prompt;
  uint64_t rows = c->budget;
  const bool shared = e->rules.scope == LAPROX_SCOPE_GLOBAL || e->rules.kind == LAPROX_POLICY_PYRAMIDKV;
  if (shared && n_layers > 1) rows = rows * n_layers / (n_layers - 1);
  if (rows > n) rows = n;
  laprox_plan_info info = {.n_tokens = n,
                           .n_segments = 1,
                           .segments = {{.cu_seqlens = e->cu_seqlens}},
                           .model_layers = n_layers,
                           .first_layer = n_layers - 1,
                           .layer_scales = e->layer_scales,
                           .retain_scores = true};
  uint64_t bytes;
  fill_rows(e, 0, n_layers - 1, (uint32_t)rows);
  fill_rows(e, n_layers - 1, n_layers, n);
  const laprox_result result = size_eviction(c, &info, c->budget, true, &bytes);
  /* Before anything is packed; and when all but the newest have been, of which K comes first. */
  const uint64_t others = layer_bytes(e, rows) * (n_layers - 1), whole = layer_bytes(e, n);
  const uint64_t packed = layer_bytes(e, c->budget) * (n_layers - 1) + layer_bytes(e, c->budget) / 2;
  if (!result) note(c, whole + (others > packed ? others : packed), hidden + bytes);
  return result;
}

/* ---- the course of a run ---- */

static uint32_t lesser(uint64_t a, uint64_t b) {
  return (uint32_t)(a < b ? a : b);
}

static uint64_t hidden_bytes(const estimate *e, uint64_t n_tokens) {
  return n_tokens * e->model->model_dim * sizeof(float);
}

static laprox_result note_chunks(course *c) {
  const estimate *e = c->e;
  const uint32_t n = e->info->n_prompt, chunk = e->info->chunk < n ? e->info->chunk : n;
  c->out->hidden_bytes = hidden_bytes(e, chunk);
  if (c->budget == UINT32_MAX) {
    note(c, cache_bytes(e, n), c->out->hidden_bytes);
    /* From the third chunk on, a layer's tail is copied as it grows. */
    if (n > 2 * (uint64_t)chunk) note(c, cache_bytes(e, n) + layer_bytes(e, n - 2 * chunk), 0);
    return LAPROX_OK;
  }
  /* The first eviction is that of as many chunks as exceed the budget; the others have one chunk each. */
  const uint32_t first = lesser(((uint64_t)c->budget / chunk + 1) * chunk, n);
  const uint32_t prefix = first > chunk ? chunk : 0, rest = lesser(chunk, n - first);
  note(c, cache_bytes(e, first), c->out->hidden_bytes);
  const laprox_result result = note_eviction(c, prefix, first - prefix, first - prefix, c->budget);
  if (result || !rest) return result;
  note(c, cache_bytes(e, (uint64_t)c->budget + rest), c->out->hidden_bytes + c->factor_bytes);
  return note_eviction(c, c->budget, rest, rest, c->budget);
}

static laprox_result note_prompt(course *c) {
  const estimate *e = c->e;
  const uint32_t n = e->info->n_prompt;
  const bool evicts = c->budget != UINT32_MAX;
  if (e->info->chunk) return note_chunks(c);
  c->out->hidden_bytes = hidden_bytes(e, n);
  if (evicts && e->info->layerwise && e->rules.scope != LAPROX_SCOPE_TOKEN)
    return note_last_cut(c, c->out->hidden_bytes);
  note(c, cache_bytes(e, n), c->out->hidden_bytes);
  return evicts ? note_eviction(c, 0, n, n, c->budget) : LAPROX_OK;
}

/* The question is one tail, exactly as long; generated tokens grow it in steps, layer by layer. */
static laprox_result note_generation(course *c) {
  const estimate *e = c->e;
  const laprox_memory_plan_info *info = e->info;
  const uint64_t kept = c->budget == UINT32_MAX ? info->n_prompt : c->budget;
  const uint64_t factors = c->budget == UINT32_MAX ? 0 : c->factor_bytes;
  const uint64_t read = (uint64_t)info->n_question + info->n_generate;
  if (info->n_question)
    note(c, cache_bytes(e, kept + info->n_question), factors + hidden_bytes(e, info->n_question));
  uint64_t rows = info->n_question, most = read;
  const bool again = info->tail && read >= info->tail;
  if (again) most = info->tail > rows ? info->tail : rows;
  while (rows < most) {
    const uint64_t before = rows;
    rows += rows / 4 > 32 ? rows / 4 : 32;
    note(c, cache_bytes(e, kept + rows) + layer_bytes(e, before), factors);
  }
  c->out->kv_steady_bytes = cache_bytes(e, kept + rows);
  note(c, c->out->kv_steady_bytes, factors);
  if (!again) return LAPROX_OK;
  uint32_t budget;
  const laprox_result result =
      lpx_budget_resolve(&e->context->host, &e->rules, &info->policy.budget,
                         lesser(info->n_prompt + read, e->model->context_length), &budget);
  if (result || budget == UINT32_MAX) return result;
  return note_eviction(c, (uint32_t)kept, (uint32_t)most, (uint32_t)rows, budget);
}

/* Everything that the device's queue holds, and a session from its creation on, besides the weights. */
static uint64_t activation_bytes(const estimate *e) {
  const laprox_model *model = e->model;
  const uint64_t query_row = (uint64_t)model->shape.n_heads * model->shape.head_dim * sizeof(float);
  const uint64_t n_logits = e->session.keep_logits ? e->session.chunk : 1;
  return lpx_queue_bytes(model->device->queue) +
         lpx_forward_bytes(model, e->session.kv_dtype, e->session.chunk, model->context_length) +
         lpx_forward_token_update_bytes(&model->shape) + (n_logits + 1) * model->n_vocab * sizeof(float) +
         (uint64_t)model->model_dim * sizeof(float) +
         model->shape.n_layers *
             (query_row * e->session.window + lpx_session_lse_bytes(&model->shape, e->session.window));
}

static uint64_t layer_factor_bytes(const estimate *e) {
  const laprox_shape *shape = &e->model->shape;
  if (lpx_rules_factor(&e->rules) == LPX_FACTOR_PROJECTION)
    return (uint64_t)e->model->model_dim * shape->n_heads * shape->head_dim * sizeof(float);
  return lpx_rules_factor(&e->rules) ? laprox_value_factor_bytes(shape, e->rules.gqa) : 0;
}

static laprox_result fill(const estimate *e, laprox_memory_plan *out) {
  const laprox_memory_plan_info *info = e->info;
  course c = {.e = e, .out = out};
  laprox_result result =
      lpx_budget_resolve(&e->context->host, &e->rules, &info->policy.budget, info->n_prompt, &c.budget);
  if (result) return result;
  c.factor_bytes = e->model->shape.n_layers * layer_factor_bytes(e);
  out->weight_bytes = e->model->weight_bytes;
  out->activation_bytes = activation_bytes(e);
  out->kv_full_bytes = cache_bytes(e, info->n_prompt);
  result = note_prompt(&c);
  if (!result) result = note_generation(&c);
  if (out->eviction_bytes) out->eviction_bytes += c.factor_bytes;
  out->peak_bytes = out->weight_bytes + out->activation_bytes + c.most_bytes;
  out->fits = out->peak_bytes <= out->free_bytes;
  return result;
}

/* ---- what would fit ---- */

static bool fits_with(const estimate *e, uint64_t free_bytes, uint32_t n_prompt, uint32_t budget) {
  laprox_memory_plan_info info = *e->info;
  laprox_memory_plan tried = {.free_bytes = free_bytes};
  estimate other = *e;
  other.info = &info;
  info.n_prompt = n_prompt;
  if (budget) info.policy.budget = (laprox_budget){.tokens = budget};
  return !fill(&other, &tried) && tried.fits;
}

/* The largest value in [least, most] that fits; 0 where not even `least` does. */
static uint32_t largest(const estimate *e, uint64_t free_bytes, bool prompt, uint32_t least, uint32_t most) {
  uint32_t low = least - 1, high = most;
  while (low < high) {
    const uint32_t middle = low + (high - low + 1) / 2;
    const bool fits =
        prompt ? fits_with(e, free_bytes, middle, 0) : fits_with(e, free_bytes, e->info->n_prompt, middle);
    if (fits)
      low = middle;
    else
      high = middle - 1;
  }
  return low < least ? 0 : low;
}

/* What is tried and impossible is no failure, and says nothing. */
static void find_largest(const estimate *e, laprox_memory_plan *out) {
  const laprox_memory_plan_info *info = e->info;
  const lpx_rules *rules = &e->rules;
  const laprox_message_fn message = e->context->host.message;
  e->context->host.message = NULL;
  out->largest_prompt = largest(e, out->free_bytes, true, 1, e->model->context_length);
  const uint32_t extras = (rules->sinks_yield ? 0 : rules->sinks) + rules->floor,
                 least = rules->window + (extras ? extras : 1);
  if (rules->kind != LAPROX_POLICY_FULL && info->n_prompt >= least)
    out->largest_budget = largest(e, out->free_bytes, false, least, info->n_prompt);
  e->context->host.message = message;
}

static laprox_result check(const laprox_model *model, const laprox_memory_plan_info *info) {
  const laprox_host *host = &model->device->context->host;
  if (!info->n_prompt) return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "the prompt is empty");
  const uint64_t n = (uint64_t)info->n_prompt + info->n_question;
  if (n <= model->context_length) return LAPROX_OK;
  return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                  "a prompt of %llu tokens exceeds the model's context of %u", (unsigned long long)n,
                  model->context_length);
}

static uint64_t free_bytes(const estimate *e) {
  const laprox_model *model = e->model;
  uint64_t bytes = lpx_context_free_bytes(model->device->context) + lpx_queue_bytes(model->device->queue);
  if (model->has_weights) bytes += model->weight_bytes;
  return e->info->memory_bytes && e->info->memory_bytes < bytes ? e->info->memory_bytes : bytes;
}

laprox_result laprox_plan_memory(laprox_model *model, const laprox_memory_plan_info *info,
                                 laprox_memory_plan *out) {
  *out = (laprox_memory_plan){0};
  const laprox_host *host = &model->device->context->host;
  const laprox_shape *shape = &model->shape;
  /* Plans are made for their sizes alone: nothing is compiled. */
  lpx_pipeline_list list;
  laprox_context noting;
  lpx_pipelines_note(model->device->context, &list, &noting);
  estimate e = {.model = model, .context = &noting, .info = info, .session = info->session};
  laprox_result result = lpx_session_info_complete(model->device->context, &e.session, shape->head_dim);
  if (!result) result = lpx_rules_resolve(host, &info->policy, &e.rules);
  if (!result) result = check(model, info);
  if (result) return result;
  e.cu_seqlens = lpx_allocate(host, shape->n_layers, ((size_t)shape->n_kv_heads + 1) * sizeof *e.cu_seqlens);
  e.layer_scales = lpx_allocate(host, shape->n_layers, sizeof *e.layer_scales);
  if (!e.cu_seqlens || !e.layer_scales) result = lpx_fail_memory(host, "a memory plan");
  out->free_bytes = free_bytes(&e);
  if (!result) result = fill(&e, out);
  if (!result) find_largest(&e, out);
  lpx_pipeline_list_release(host, &list);
  lpx_release(host, e.cu_seqlens);
  lpx_release(host, e.layer_scales);
  return result;
}
