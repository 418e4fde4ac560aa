/* cache_evict.c: one eviction of a cache: plan, score, select, read the counts back, pack layer by layer,
 * free. */
#include "runtime/cache.h"
#include "runtime/pass.h"

#include <string.h>

typedef struct eviction_run {
  lpx_cache *cache;
  const lpx_cache_eviction *eviction;
  laprox_context *context;
  lpx_queue *queue;
  lpx_rules rules; /* fitted to the budget */
  lpx_pass pass;
  uint32_t *cu_seqlens; /* of the plan's segments: n_layers x (n_kv_heads + 1) */
  uint32_t *head_sinks;
  laprox_layer_buffers *layers;
} eviction_run;

static uint64_t count_entries(const lpx_cache *cache) {
  uint64_t n = 0;
  for (uint32_t l = 0; l < cache->shape.n_layers; l++)
    for (uint32_t head = 0; head < cache->shape.n_kv_heads; head++)
      n += lpx_cache_head_entries(cache, l, head);
  return n;
}

static uint32_t leading_sinks(const lpx_cache *cache, uint32_t layer, uint32_t head, uint32_t n_sinks) {
  uint32_t n = 0;
  const uint32_t n_entries = lpx_cache_head_entries(cache, layer, head);
  while (n < n_entries && lpx_cache_position(cache, layer, head, n) < n_sinks) n++;
  return n;
}

/* Window queries see the window's entries by their number, so all of them must still be there. */
static laprox_result check_window(const lpx_cache *cache, const lpx_rules *rules) {
  for (uint32_t l = 0; l < cache->shape.n_layers; l++)
    for (uint32_t head = 0; head < cache->shape.n_kv_heads; head++) {
      const uint32_t n = lpx_cache_head_entries(cache, l, head);
      if (n >= rules->window &&
          lpx_cache_position(cache, l, head, n - rules->window) == cache->n_tokens - rules->window)
        continue;
      return lpx_fail(&cache->device->context->host, LAPROX_ERROR_INVALID_ARGUMENT,
                      "a window of %u tokens, but layer %u, KV head %u no longer holds all of them",
                      rules->window, l, head);
    }
  return LAPROX_OK;
}

static bool same_tokens(const lpx_cache *cache, uint32_t layer, uint32_t head, uint32_t as_layer) {
  const uint32_t n = lpx_cache_head_entries(cache, layer, head);
  if (n != lpx_cache_head_entries(cache, as_layer, 0)) return false;
  for (uint32_t i = 0; i < n; i++)
    if (lpx_cache_position(cache, layer, head, i) != lpx_cache_position(cache, as_layer, 0, i)) return false;
  return true;
}

/* Policies that score a layer's heads together, and scope token those of all layers, take entry i of each for the
   same token. */
static laprox_result check_together(const lpx_cache *cache, const lpx_rules *rules) {
  const bool tokens = rules->scope == LAPROX_SCOPE_TOKEN;
  const bool together = tokens || rules->kind == LAPROX_POLICY_TOVA ||
                        rules->kind == LAPROX_POLICY_DEFENSIVEKV ||
                        rules->kind == LAPROX_POLICY_LAYER_DEFENSIVEKV;
  for (uint32_t l = 0; together && l < cache->shape.n_layers; l++)
    for (uint32_t head = 0; head < cache->shape.n_kv_heads; head++) {
      if (same_tokens(cache, l, head, tokens ? 0 : l)) continue;
      return lpx_fail(
          &cache->device->context->host, LAPROX_ERROR_UNSUPPORTED,
          "policy %s scores the heads of %s together, but KV head %u of layer %u and KV head 0 of "
          "layer %u hold different tokens since an earlier eviction",
          laprox_policy_name(rules->kind), tokens ? "all layers" : "a layer", head, l, tokens ? 0 : l);
    }
  return LAPROX_OK;
}

laprox_buffer lpx_cache_eviction_lse(const lpx_cache_eviction *eviction, uint32_t layer) {
  if (layer >= eviction->n_lse_layers) return (laprox_buffer){0};
  return lpx_buffer_part(eviction->lse, layer * eviction->lse_bytes, eviction->lse_bytes);
}

/* Describes the cache to the plan: a ragged prefix where there is one, and the dense tail. */
static laprox_result describe(eviction_run *run, laprox_plan_info *info) {
  const lpx_cache *cache = run->cache;
  const uint32_t n_layers = cache->shape.n_layers, n_heads = cache->shape.n_kv_heads;
  run->layers = lpx_allocate(&run->context->host, n_layers, sizeof *run->layers);
  run->cu_seqlens =
      lpx_allocate(&run->context->host, n_layers, ((size_t)n_heads + 1) * sizeof *run->cu_seqlens);
  run->head_sinks = lpx_allocate(&run->context->host, n_layers, n_heads * sizeof *run->head_sinks);
  if (!run->layers || !run->cu_seqlens || !run->head_sinks)
    return lpx_fail_memory(&run->context->host, "an eviction");
  const bool has_prefix = cache->layers[0].prefix_key.buffer;
  const uint32_t tail = has_prefix ? 1 : 0;
  if (has_prefix) info->segments[info->n_segments++].cu_seqlens = run->cu_seqlens;
  info->segments[info->n_segments++] =
      (laprox_segment){.n_entries = cache->n_tail, .head_rows = cache->layers[0].tail_capacity};
  for (uint32_t l = 0; l < n_layers; l++) {
    const lpx_cache_layer *from = &cache->layers[l];
    laprox_layer_buffers *to = &run->layers[l];
    memcpy(run->cu_seqlens + (size_t)l * (n_heads + 1), from->cu_seqlens,
           ((size_t)n_heads + 1) * sizeof *from->cu_seqlens);
    for (uint32_t head = 0; head < n_heads; head++)
      run->head_sinks[l * n_heads + head] = leading_sinks(cache, l, head, run->rules.sinks);
    if (has_prefix) {
      to->key[0] = lpx_buffer_whole(&from->prefix_key);
      to->value[0] = lpx_buffer_whole(&from->prefix_value);
    }
    to->key[tail] = lpx_buffer_whole(&from->tail_key);
    to->value[tail] = lpx_buffer_whole(&from->tail_value);
    if (run->eviction->queries) to->query = lpx_buffer_whole(&run->eviction->queries[l]);
    to->lse = lpx_cache_eviction_lse(run->eviction, l);
    if (run->eviction->factors) to->factor = lpx_buffer_whole(&run->eviction->factors[l]);
  }
  return LAPROX_OK;
}

static laprox_result make_plan(eviction_run *run) {
  const lpx_cache_eviction *eviction = run->eviction;
  const lpx_cache *cache = run->cache;
  lpx_rules *rules = &run->rules;
  laprox_result result = lpx_rules_resolve(&run->context->host, eviction->policy, rules);
  if (result) return result;
  if (eviction->given) rules->window = eviction->given->window;
  laprox_plan_info info = {.shape = cache->shape,
                           .policy = *eviction->policy,
                           .cache_dtype = cache->dtype,
                           .n_tokens = cache->n_tokens,
                           .query_rows = eviction->query_rows,
                           .scale = eviction->scale,
                           .model_dim = eviction->model_dim,
                           .head_sinks = NULL};
  uint32_t budget = 0;
  result =
      lpx_budget_resolve(&run->context->host, rules, &eviction->policy->budget, cache->n_tokens, &budget);
  if (result || budget == UINT32_MAX) {
    run->pass.needs.budget = budget;
    return result;
  }
  lpx_rules_fit(rules, budget);
  if (eviction->queries && eviction->query_rows < rules->window)
    return lpx_fail(&run->context->host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "a window of %u tokens, but the queries of only %u are kept", rules->window,
                    eviction->query_rows);
  if (eviction->queries)
    info.query_start = (eviction->query_end + eviction->query_rows - rules->window) % eviction->query_rows;
  result = check_window(cache, rules);
  if (!result) result = check_together(cache, rules);
  if (!result) result = lpx_cache_reserve(run->cache, 0, true);
  if (!result) result = describe(run, &info);
  info.head_sinks = run->head_sinks;
  info.layer_scales = eviction->given ? eviction->given->layer_scales : NULL;
  return result ? result
                : lpx_pass_init(run->context, &info, eviction->given ? &rules->window : NULL, &run->pass);
}

static laprox_result report_progress(const eviction_run *run, double fraction) {
  const lpx_cache_eviction *eviction = run->eviction;
  if (!eviction->progress || eviction->progress(eviction->progress_user, "evict", fraction)) return LAPROX_OK;
  return lpx_fail(&run->context->host, LAPROX_ERROR_CANCELLED, "the eviction was cancelled");
}

/* All steps before the selection's. */
static laprox_result score(eviction_run *run) {
  uint32_t end, n_others;
  laprox_result result = LAPROX_OK;
  laprox_binding_layer_steps(run->pass.binding, run->cache->shape.n_layers, &end, &n_others);
  for (uint32_t first = 0, count; first < end && !result; first += count) {
    result = lpx_queue_run_some(run->queue, run->pass.binding->program, first, end, &count, NULL);
    if (!result) result = report_progress(run, (double)(first + count) / (end + n_others));
  }
  return result;
}

static VkDeviceSize ranks_bytes(const eviction_run *run) {
  return lpx_plan_takes_risks(run->pass.plan) ? run->pass.needs.scores_bytes : 0;
}

static laprox_buffer ranks_of(const eviction_run *run) {
  return lpx_buffer_part(lpx_buffer_whole(&run->pass.scratch), run->pass.plan->own_scores_offset,
                         ranks_bytes(run));
}

static laprox_result copy_scores(const eviction_run *run, laprox_buffer from, laprox_buffer ranks_from,
                                 laprox_buffer to, laprox_buffer ranks_to) {
  lpx_program *program = NULL;
  if (!run->pass.needs.scores_bytes) return LAPROX_OK;
  laprox_result result = lpx_program_create(run->context, "a copy of scores", &program);
  if (result) return result;
  lpx_program_copy(program, from, to);
  if (ranks_bytes(run)) lpx_program_copy(program, ranks_from, ranks_to);
  result = lpx_program_finish_building(program);
  if (!result) result = lpx_queue_run(run->queue, program, NULL);
  lpx_program_destroy(program);
  return result;
}

static laprox_result take_given(eviction_run *run) {
  const lpx_cache_scores *given = run->eviction->given;
  const lpx_rules *rules = &run->rules;
  if (given->n_entries != count_entries(run->cache) || given->scores.size != run->pass.needs.scores_bytes ||
      given->sinks != rules->sinks)
    return lpx_fail(&run->context->host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "scores of %llu entries with %u sinks, but there are %llu, with %u at this budget",
                    (unsigned long long)given->n_entries, given->sinks,
                    (unsigned long long)count_entries(run->cache), rules->sinks);
  return copy_scores(run, lpx_buffer_whole(&given->scores), lpx_buffer_whole(&given->ranks),
                     lpx_buffer_whole(&run->pass.scores), ranks_of(run));
}

static laprox_result score_and_select(eviction_run *run, laprox_eviction *out) {
  uint32_t first, count;
  const uint64_t start_ns = lpx_now_ns();
  laprox_result result = run->eviction->given ? take_given(run) : score(run);
  const uint64_t scored_ns = lpx_now_ns();
  laprox_binding_layer_steps(run->pass.binding, run->cache->shape.n_layers, &first, &count);
  if (!result) result = lpx_queue_run_steps(run->queue, run->pass.binding->program, first, count, NULL);
  if (!result) result = report_progress(run, 1.0);
  out->score_ms = (double)(scored_ns - start_ns) * 1e-6;
  out->select_ms = (double)(lpx_now_ns() - scored_ns) * 1e-6;
  return result ? result : lpx_pass_read_result(run->queue, &run->pass);
}

/* The layer's kept rows in buffers of their own; positions and offsets follow. */
static laprox_result pack(eviction_run *run, uint32_t layer, const uint32_t *cu_seqlens,
                          lpx_cache_layer *packed) {
  const lpx_cache *cache = run->cache;
  const uint32_t n_heads = cache->shape.n_kv_heads;
  const uint32_t *own = cu_seqlens + (size_t)layer * n_heads;
  const VkDeviceSize bytes = (own[n_heads] - own[0]) * lpx_cache_row_bytes(cache);
  laprox_result result =
      lpx_buffer_init(run->context, LPX_MEMORY_DEVICE, bytes, "evicted K", &packed->prefix_key);
  if (!result)
    result = lpx_buffer_init(run->context, LPX_MEMORY_DEVICE, bytes, "evicted V", &packed->prefix_value);
  if (result) return result;
  const laprox_compaction_info info = {.layer = layer,
                                       .source = run->layers[layer],
                                       .result = lpx_buffer_whole(&run->pass.result),
                                       .cu_seqlens = cu_seqlens,
                                       .key = lpx_buffer_whole(&packed->prefix_key),
                                       .value = lpx_buffer_whole(&packed->prefix_value)};
  laprox_compaction *compaction = NULL;
  result = laprox_compaction_create(run->pass.plan, &info, &compaction);
  if (!result) result = lpx_queue_run(run->queue, compaction->program, NULL);
  laprox_compaction_destroy(compaction);
  packed->positions = lpx_allocate(&run->context->host, own[n_heads] - own[0], sizeof *packed->positions);
  if (!result && !packed->positions) result = lpx_fail_memory(&run->context->host, "positions");
  if (result) return result;
  const uint32_t *indices = run->pass.result_words + run->pass.plan->result.indices;
  for (uint32_t head = 0; head < n_heads; head++)
    for (uint32_t row = own[head]; row < own[head + 1]; row++)
      packed->positions[row - own[0]] = lpx_cache_position(cache, layer, head, indices[row]);
  return LAPROX_OK;
}

static void replace(lpx_cache *cache, lpx_cache_layer *layer, const lpx_cache_layer *packed,
                    const uint32_t *own) {
  laprox_context *context = cache->device->context;
  lpx_buffer_finish(context, &layer->prefix_key);
  lpx_buffer_finish(context, &layer->prefix_value);
  lpx_buffer_finish(context, &layer->tail_key);
  lpx_buffer_finish(context, &layer->tail_value);
  lpx_release(&context->host, layer->positions);
  layer->prefix_key = packed->prefix_key;
  layer->prefix_value = packed->prefix_value;
  layer->positions = packed->positions;
  layer->tail_capacity = 0;
  for (uint32_t head = 0; head < cache->shape.n_kv_heads; head++) {
    layer->cu_seqlens[head + 1] = own[head + 1] - own[0];
    layer->head_rows[head] = own[head + 1] - own[head];
  }
}

/* All layers are packed before the first is replaced, so that a failure leaves the cache as it was. */
static laprox_result compact(eviction_run *run, laprox_eviction *out) {
  lpx_cache *cache = run->cache;
  const laprox_host *host = &run->context->host;
  const uint32_t n_layers = cache->shape.n_layers;
  const uint64_t start_ns = lpx_now_ns();
  const uint32_t *cu_seqlens = run->pass.result_words + run->pass.plan->result.cu_seqlens;
  lpx_cache_layer *packed = lpx_allocate(host, n_layers, sizeof *packed);
  if (!packed) return lpx_fail_memory(host, "an eviction");
  laprox_result result = LAPROX_OK;
  uint64_t bytes = cache->bytes;
  for (uint32_t l = 0; l < n_layers && !result; l++) {
    result = pack(run, l, cu_seqlens, &packed[l]);
    bytes += packed[l].prefix_key.allocated + packed[l].prefix_value.allocated;
  }
  if (bytes > cache->peak_bytes) cache->peak_bytes = bytes;
  for (uint32_t l = 0; l < n_layers; l++) {
    if (!result) {
      replace(cache, &cache->layers[l], &packed[l], cu_seqlens + (size_t)l * cache->shape.n_kv_heads);
      continue;
    }
    lpx_buffer_finish(run->context, &packed[l].prefix_key);
    lpx_buffer_finish(run->context, &packed[l].prefix_value);
    lpx_release(host, packed[l].positions);
  }
  lpx_release(host, packed);
  if (result) return result;
  cache->n_tail = 0;
  lpx_cache_count_bytes(cache);
  out->compact_ms = (double)(lpx_now_ns() - start_ns) * 1e-6;
  return LAPROX_OK;
}

/* Pooled and scaled scores of all candidates, heads after heads. */
static laprox_result read_scores(eviction_run *run) {
  const laprox_plan *plan = run->pass.plan;
  const laprox_host *host = &run->context->host;
  float *blocks = lpx_allocate(host, run->pass.needs.scores_bytes, 1);
  float *scores = lpx_allocate(host, run->pass.needs.scores_bytes, 1);
  laprox_result result = blocks && scores ? LAPROX_OK : lpx_fail_memory(host, "scores");
  if (!result && run->pass.needs.scores_bytes)
    result = lpx_queue_download(run->queue, lpx_buffer_whole(&run->pass.scores), blocks,
                                (size_t)run->pass.needs.scores_bytes);
  size_t n = 0;
  for (uint32_t i = 0; i < plan->n_heads_all && !result; i++) {
    const uint32_t *row = plan->tables + (size_t)i * HEAD_WORDS;
    float scale;
    memcpy(&scale, run->pass.result_words + plan->result.counters + 2 * (i / plan->shape.n_kv_heads) + 1,
           sizeof scale);
    for (uint32_t c = 0; c < row[HEAD_N_CANDIDATES]; c++)
      scores[n++] = blocks[(size_t)row[HEAD_FIRST_BLOCK] * BLOCK_ENTRIES + c] * scale;
  }
  lpx_release(host, blocks);
  if (result)
    lpx_release(host, scores);
  else
    *run->eviction->scores = scores;
  return result;
}

static void report(const eviction_run *run, laprox_eviction *out) {
  out->budget = run->pass.needs.budget;
  out->kept = run->pass.needs.n_kept;
  for (uint32_t l = 0; l < run->cache->shape.n_layers; l++)
    out->nonfinite_scores += run->pass.result_words[run->pass.plan->result.counters + 2 * l];
  if (run->eviction->given) out->nonfinite_scores = run->eviction->given->n_nonfinite;
}

static void finish(eviction_run *run) {
  const laprox_host *host = &run->context->host;
  lpx_pass_finish(run->context, &run->pass);
  lpx_release(host, run->cu_seqlens);
  lpx_release(host, run->head_sinks);
  lpx_release(host, run->layers);
}

/* What stands in the cache; its buffers may be a little larger. */
static uint64_t data_bytes(const lpx_cache *cache) {
  return 2 * count_entries(cache) * lpx_cache_row_bytes(cache);
}

laprox_result lpx_cache_evict(lpx_cache *cache, const lpx_cache_eviction *eviction, laprox_eviction *out) {
  eviction_run run = {
      .cache = cache, .eviction = eviction, .context = cache->device->context, .queue = cache->device->queue};
  *out = (laprox_eviction){.bytes_before = data_bytes(cache)};
  if (eviction->scores) *eviction->scores = NULL;
  laprox_result result = make_plan(&run);
  const uint64_t n_entries = count_entries(cache);
  if (!result && (run.pass.needs.budget == UINT32_MAX || run.pass.needs.n_kept == n_entries)) {
    out->budget = run.pass.needs.budget == UINT32_MAX ? cache->n_tokens : run.pass.needs.budget;
    out->kept = n_entries;
  } else if (!result) {
    result = lpx_pass_bind(run.context, run.layers, &run.pass);
    if (!result) result = score_and_select(&run, out);
    if (!result && eviction->scores) result = read_scores(&run);
    if (!result) report(&run, out);
    if (!result) result = compact(&run, out);
  }
  if (result && eviction->scores) {
    lpx_release(&run.context->host, *eviction->scores);
    *eviction->scores = NULL;
  }
  out->bytes_after = data_bytes(cache);
  finish(&run);
  return result;
}

/* ---- scores alone ---- */

void lpx_cache_scores_finish(laprox_context *context, lpx_cache_scores *scores) {
  lpx_buffer_finish(context, &scores->scores);
  lpx_buffer_finish(context, &scores->ranks);
  lpx_release(&context->host, scores->layer_scales);
  lpx_release(&context->host, scores->layer_words);
  *scores = (lpx_cache_scores){0};
}

/* Scales and counts of layers, which stand at the front of the result block. */
static laprox_result read_counters(const eviction_run *run, lpx_cache_scores *to) {
  const laprox_host *host = &run->context->host;
  const uint32_t n_layers = run->cache->shape.n_layers;
  uint32_t *counters = lpx_allocate(host, n_layers, 2 * sizeof *counters);
  to->layer_scales = lpx_allocate(host, n_layers, sizeof *to->layer_scales);
  to->layer_words = lpx_allocate(host, (uint64_t)n_layers + 1, sizeof *to->layer_words);
  laprox_result result =
      counters && to->layer_scales && to->layer_words ? LAPROX_OK : lpx_fail_memory(host, "scores");
  const laprox_buffer from =
      lpx_buffer_part(lpx_buffer_whole(&run->pass.result), (VkDeviceSize)run->pass.plan->result.counters * 4,
                      (VkDeviceSize)n_layers * 2 * sizeof *counters);
  if (!result) result = lpx_queue_download(run->queue, from, counters, n_layers * 2 * sizeof *counters);
  for (uint32_t l = 0; l < n_layers && !result; l++) {
    to->n_nonfinite += counters[2 * l];
    memcpy(&to->layer_scales[l], &counters[2 * l + 1], sizeof *to->layer_scales);
    to->layer_words[l + 1] = to->layer_words[l] + run->pass.plan->layers[l].n_blocks * BLOCK_ENTRIES;
  }
  lpx_release(host, counters);
  return result;
}

static laprox_result keep_scores(eviction_run *run, lpx_cache_scores *to) {
  const VkDeviceSize bytes = run->pass.needs.scores_bytes;
  laprox_result result = lpx_buffer_init(run->context, LPX_MEMORY_DEVICE, bytes, "scores", &to->scores);
  if (!result && ranks_bytes(run))
    result = lpx_buffer_init(run->context, LPX_MEMORY_DEVICE, bytes, "ranks", &to->ranks);
  if (!result)
    result = copy_scores(run, lpx_buffer_whole(&run->pass.scores), ranks_of(run),
                         lpx_buffer_whole(&to->scores), lpx_buffer_whole(&to->ranks));
  return result ? result : read_counters(run, to);
}

laprox_result lpx_cache_score(lpx_cache *cache, const lpx_cache_eviction *eviction, lpx_cache_scores *out) {
  eviction_run run = {
      .cache = cache, .eviction = eviction, .context = cache->device->context, .queue = cache->device->queue};
  *out = (lpx_cache_scores){0};
  laprox_result result = make_plan(&run);
  if (!result && run.pass.needs.budget != UINT32_MAX) {
    result = lpx_pass_bind(run.context, run.layers, &run.pass);
    if (!result) result = score(&run);
    if (!result) result = keep_scores(&run, out);
    out->n_entries = count_entries(cache);
  }
  out->sinks = run.rules.sinks;
  out->window = run.rules.window;
  if (result) lpx_cache_scores_finish(run.context, out);
  finish(&run);
  return result;
}
