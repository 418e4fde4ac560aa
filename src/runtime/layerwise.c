/* layerwise.c: the running selection and the packing of layers in little memory. */
#include "runtime/layerwise.h"
#include "runtime/pass.h"

#include <string.h>

/* One cut: layers 0 … newest, of which the newest is a dense tail and the others are ragged prefixes. */
typedef struct cut {
  lpx_layerwise *layerwise;
  lpx_cache *cache;
  laprox_context *context;
  lpx_queue *queue;
  uint32_t newest;
  lpx_pass pass;
  laprox_layer_buffers *layers;
  uint32_t *old_cu_seqlens; /* newest + 1 times (n_kv_heads + 1) */
} cut;

static uint32_t n_heads(const lpx_cache *cache) {
  return cache->shape.n_kv_heads;
}

laprox_result lpx_layerwise_init(lpx_cache *cache, const lpx_cache_eviction *eviction, uint32_t n_tokens,
                                 uint32_t budget, lpx_layerwise *out) {
  const laprox_host *host = &cache->device->context->host;
  lpx_rules rules;
  *out = (lpx_layerwise){.cache = cache, .eviction = eviction, .n_tokens = n_tokens};
  laprox_result result = lpx_rules_resolve(host, eviction->policy, &rules);
  if (result) return result;
  out->window = rules.window;
  if (eviction->queries && eviction->query_rows < rules.window)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "a window of %u tokens, but the queries of only %u are kept", rules.window,
                    eviction->query_rows);
  if (eviction->queries)
    out->query_start = (eviction->query_end + eviction->query_rows - rules.window) % eviction->query_rows;
  const uint64_t layer_rows = 2 * (uint64_t)n_heads(cache) * lpx_cache_row_bytes(cache);
  out->peak_bytes_aim = layer_rows * ((uint64_t)cache->shape.n_layers * budget + n_tokens);
  out->score_offsets = lpx_allocate(host, cache->shape.n_layers, n_heads(cache) * sizeof *out->score_offsets);
  out->layer_scales = lpx_allocate(host, cache->shape.n_layers, sizeof *out->layer_scales);
  if (out->score_offsets && out->layer_scales) return LAPROX_OK;
  lpx_layerwise_finish(out);
  return lpx_fail_memory(host, "a layer-by-layer eviction");
}

void lpx_layerwise_finish(lpx_layerwise *layerwise) {
  if (!layerwise->cache) return;
  laprox_context *context = layerwise->cache->device->context;
  lpx_buffer_finish(context, &layerwise->scores);
  lpx_release(&context->host, layerwise->score_offsets);
  lpx_release(&context->host, layerwise->layer_scales);
  *layerwise = (lpx_layerwise){0};
}

laprox_result lpx_layerwise_begin_layer(lpx_layerwise *layerwise, uint32_t layer) {
  lpx_cache *cache = layerwise->cache;
  lpx_cache_layer *to = &cache->layers[layer];
  const VkDeviceSize bytes = lpx_cache_row_bytes(cache) * n_heads(cache) * layerwise->n_tokens;
  laprox_context *context = cache->device->context;
  laprox_result result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, bytes, "a layer's K", &to->tail_key);
  if (!result) result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, bytes, "a layer's V", &to->tail_value);
  if (result) return result;
  to->tail_capacity = layerwise->n_tokens;
  lpx_cache_count_bytes(cache);
  return LAPROX_OK;
}

/* ---- choosing ---- */

static const uint32_t *old_rows(const cut *c, uint32_t layer) {
  return c->old_cu_seqlens + (size_t)layer * (n_heads(c->cache) + 1);
}

static laprox_result describe(cut *c) {
  const uint32_t n = n_heads(c->cache), n_layers = c->newest + 1;
  c->layers = lpx_allocate(&c->context->host, n_layers, sizeof *c->layers);
  c->old_cu_seqlens = lpx_allocate(&c->context->host, n_layers, ((size_t)n + 1) * sizeof *c->old_cu_seqlens);
  if (!c->layers || !c->old_cu_seqlens)
    return lpx_fail_memory(&c->context->host, "a layer-by-layer eviction");
  for (uint32_t l = 0; l < n_layers; l++) {
    const lpx_cache_layer *from = &c->cache->layers[l];
    const bool dense = l == c->newest;
    uint32_t *rows = c->old_cu_seqlens + (size_t)l * (n + 1);
    for (uint32_t head = 0; head <= n; head++)
      rows[head] = dense ? head * c->layerwise->n_tokens : from->cu_seqlens[head];
    c->layers[l].key[0] = lpx_buffer_whole(dense ? &from->tail_key : &from->prefix_key);
    c->layers[l].value[0] = lpx_buffer_whole(dense ? &from->tail_value : &from->prefix_value);
  }
  const lpx_cache_eviction *eviction = c->layerwise->eviction;
  if (eviction->queries) c->layers[c->newest].query = lpx_buffer_whole(&eviction->queries[c->newest]);
  c->layers[c->newest].lse = lpx_cache_eviction_lse(eviction, c->newest);
  if (eviction->factors) c->layers[c->newest].factor = lpx_buffer_whole(&eviction->factors[c->newest]);
  return LAPROX_OK;
}

static laprox_result make_plan(cut *c) {
  const lpx_layerwise *layerwise = c->layerwise;
  laprox_plan_info info = {.shape = c->cache->shape,
                           .policy = *layerwise->eviction->policy,
                           .cache_dtype = c->cache->dtype,
                           .n_segments = 1,
                           .segments = {{.cu_seqlens = c->old_cu_seqlens}},
                           .n_tokens = layerwise->n_tokens,
                           .query_rows = layerwise->eviction->query_rows,
                           .query_start = layerwise->query_start,
                           .scale = layerwise->eviction->scale,
                           .model_dim = layerwise->eviction->model_dim,
                           .model_layers = c->cache->shape.n_layers,
                           .first_layer = c->newest,
                           .layer_scales = layerwise->layer_scales,
                           .retain_scores = true};
  info.shape.n_layers = c->newest + 1;
  return lpx_pass_init(c->context, &info, NULL, &c->pass);
}

/* Scores of the layers before go to where the new plan wants them; everything else is no candidate. */
static laprox_result carry_scores(cut *c) {
  const float nothing = -1.0f;
  uint32_t bits;
  memcpy(&bits, &nothing, sizeof bits);
  lpx_program *program = NULL;
  laprox_result result = lpx_program_create(c->context, "carrying scores", &program);
  if (result) return result;
  lpx_program_fill(program, lpx_buffer_whole(&c->pass.scores), bits);
  lpx_program_barrier(program);
  for (uint32_t i = 0; i < c->newest * n_heads(c->cache); i++) {
    const uint32_t layer = i / n_heads(c->cache), head = i % n_heads(c->cache);
    const VkDeviceSize bytes =
        (VkDeviceSize)lpx_head_row(c->pass.plan, layer, head)[HEAD_N_CANDIDATES] * sizeof(float);
    lpx_program_copy(
        program,
        lpx_buffer_part(lpx_buffer_whole(&c->layerwise->scores), c->layerwise->score_offsets[i], bytes),
        lpx_buffer_part(lpx_buffer_whole(&c->pass.scores),
                        laprox_plan_score_offset(c->pass.plan, layer, head), bytes));
  }
  result = lpx_program_finish_building(program);
  if (!result) result = lpx_queue_run(c->queue, program, NULL);
  lpx_program_destroy(program);
  return result;
}

static laprox_result choose(cut *c) {
  laprox_eviction *report = &c->layerwise->report;
  uint32_t first, count, select_first, select_count;
  laprox_binding_layer_steps(c->pass.binding, c->newest, &first, &count);
  laprox_binding_layer_steps(c->pass.binding, c->newest + 1, &select_first, &select_count);
  const uint64_t start_ns = lpx_now_ns();
  /* From step 0: the tables come before the first layer's own steps. */
  laprox_result result = lpx_queue_run_steps(c->queue, c->pass.binding->program, 0, first + count, NULL);
  const uint64_t scored_ns = lpx_now_ns();
  if (!result)
    result = lpx_queue_run_steps(c->queue, c->pass.binding->program, select_first, select_count, NULL);
  report->score_ms += (double)(scored_ns - start_ns) * 1e-6;
  report->select_ms += (double)(lpx_now_ns() - scored_ns) * 1e-6;
  return result ? result : lpx_pass_read_result(c->queue, &c->pass);
}

/* ---- packing ---- */

static const uint32_t *new_rows(const cut *c, uint32_t layer) {
  return c->pass.result_words + c->pass.plan->result.cu_seqlens + (size_t)layer * n_heads(c->cache);
}

static uint32_t kept_rows(const cut *c, uint32_t layer, uint32_t head) {
  return new_rows(c, layer)[head + 1] - new_rows(c, layer)[head];
}

static uint32_t layer_rows(const cut *c, uint32_t layer) {
  return new_rows(c, layer)[n_heads(c->cache)] - new_rows(c, layer)[0];
}

static bool has_shrunk(const cut *c, uint32_t layer) {
  return layer_rows(c, layer) < old_rows(c, layer)[n_heads(c->cache)];
}

/* Every head's kept rows to the front of its rows, in the buffers they are in. */
static laprox_result pack_in_place(cut *c, uint32_t layer) {
  const laprox_compaction_info info = {.layer = layer,
                                       .source = c->layers[layer],
                                       .result = lpx_buffer_whole(&c->pass.result),
                                       .cu_seqlens = c->pass.result_words + c->pass.plan->result.cu_seqlens,
                                       .in_place = true};
  laprox_compaction *compaction = NULL;
  laprox_result result = laprox_compaction_create(c->pass.plan, &info, &compaction);
  if (!result) result = lpx_queue_run(c->queue, compaction->program, NULL);
  laprox_compaction_destroy(compaction);
  return result;
}

/* Positions and offsets of what a layer keeps. */
static laprox_result update_books(cut *c, uint32_t layer) {
  lpx_cache_layer *to = &c->cache->layers[layer];
  const uint32_t *rows = new_rows(c, layer), *indices = c->pass.result_words + c->pass.plan->result.indices;
  const uint32_t *old = old_rows(c, layer);
  uint32_t *positions = lpx_allocate(&c->context->host, layer_rows(c, layer), sizeof *positions);
  if (!positions) return lpx_fail_memory(&c->context->host, "positions");
  for (uint32_t head = 0; head < n_heads(c->cache); head++)
    for (uint32_t row = rows[head]; row < rows[head + 1]; row++)
      positions[row - rows[0]] = to->positions ? to->positions[old[head] + indices[row]] : indices[row];
  lpx_release(&c->context->host, to->positions);
  to->positions = positions;
  for (uint32_t head = 0; head < n_heads(c->cache); head++) {
    to->cu_seqlens[head + 1] = rows[head + 1] - rows[0];
    to->head_rows[head] = rows[head + 1] - rows[head];
  }
  return LAPROX_OK;
}

/* Where bytes can be put for a moment: behind the kept rows of each head of the newest layer's dense K and V.
 */
typedef struct staging {
  const cut *cut;
  uint32_t part;        /* K heads, then V heads */
  VkDeviceSize in_part; /* bytes of it in use */
} staging;

static laprox_buffer staging_part(const cut *c, uint32_t part) {
  const lpx_cache_layer *dense = &c->cache->layers[c->newest];
  const uint32_t head = part % n_heads(c->cache);
  const VkDeviceSize row_bytes = lpx_cache_row_bytes(c->cache);
  const uint64_t kept = kept_rows(c, c->newest, head), n = c->layerwise->n_tokens;
  return lpx_buffer_part(lpx_buffer_whole(part < n_heads(c->cache) ? &dense->tail_key : &dense->tail_value),
                         (head * n + kept) * row_bytes, (n - kept) * row_bytes);
}

static VkDeviceSize staging_bytes(const cut *c) {
  VkDeviceSize bytes = 0;
  for (uint32_t part = 0; part < 2 * n_heads(c->cache); part++) bytes += staging_part(c, part).size;
  return bytes;
}

/* Appends copies between `range` and the staging space, which goes on where it stopped. */
static void stage(staging *at, lpx_program *program, laprox_buffer range, bool to_staging) {
  VkDeviceSize done = 0;
  while (done < range.size) {
    const laprox_buffer part = staging_part(at->cut, at->part);
    const VkDeviceSize room = part.size - at->in_part, left = range.size - done,
                       now = left < room ? left : room;
    const laprox_buffer there = lpx_buffer_part(part, at->in_part, now),
                        here = lpx_buffer_part(range, done, now);
    lpx_program_copy(program, to_staging ? here : there, to_staging ? there : here);
    done += now;
    at->in_part += now;
    if (at->in_part < part.size) continue;
    at->part++;
    at->in_part = 0;
  }
}

static laprox_result run_and_reset(cut *c, lpx_program *program) {
  laprox_result result = lpx_program_finish_building(program);
  if (!result) result = lpx_queue_run(c->queue, program, NULL);
  lpx_program_reset(program);
  return result;
}

static void note_peak(cut *c, VkDeviceSize more) {
  if (c->cache->bytes + more > c->cache->peak_bytes) c->cache->peak_bytes = c->cache->bytes + more;
}

/* Head by head: the front rows of `from`, which lie as before the cut, to or from their packed places. */
static laprox_buffer front_rows(const cut *c, uint32_t layer, uint32_t head, const lpx_buffer *from) {
  const VkDeviceSize row_bytes = lpx_cache_row_bytes(c->cache);
  return lpx_buffer_part(lpx_buffer_whole(from), old_rows(c, layer)[head] * row_bytes,
                         kept_rows(c, layer, head) * row_bytes);
}

static laprox_buffer packed_rows(const cut *c, uint32_t layer, uint32_t head, const lpx_buffer *to) {
  const VkDeviceSize row_bytes = lpx_cache_row_bytes(c->cache);
  const uint32_t *rows = new_rows(c, layer);
  return lpx_buffer_part(lpx_buffer_whole(to), (rows[head] - rows[0]) * row_bytes,
                         kept_rows(c, layer, head) * row_bytes);
}

/* Old and new buffer side by side for a moment. */
static laprox_result shrink_directly(cut *c, lpx_program *program, uint32_t layer, VkDeviceSize bytes,
                                     lpx_buffer *from, lpx_buffer *to) {
  lpx_buffer packed;
  laprox_result result = lpx_buffer_init(c->context, LPX_MEMORY_DEVICE, bytes, "evicted rows", &packed);
  if (result) return result;
  note_peak(c, packed.allocated);
  for (uint32_t head = 0; head < n_heads(c->cache); head++)
    lpx_program_copy(program, front_rows(c, layer, head, from), packed_rows(c, layer, head, &packed));
  result = run_and_reset(c, program);
  if (result) {
    lpx_buffer_finish(c->context, &packed);
    return result;
  }
  lpx_buffer_finish(c->context, from);
  *to = packed;
  lpx_cache_count_bytes(c->cache);
  return LAPROX_OK;
}

/* The old buffer goes before the new one comes; the rows wait in what the newest layer no longer needs. */
static laprox_result shrink_staged(cut *c, lpx_program *program, uint32_t layer, VkDeviceSize bytes,
                                   lpx_buffer *buffer) {
  staging out = {.cut = c}, in = {.cut = c};
  for (uint32_t head = 0; head < n_heads(c->cache); head++)
    stage(&out, program, front_rows(c, layer, head, buffer), true);
  laprox_result result = run_and_reset(c, program);
  if (result) return result;
  lpx_buffer_finish(c->context, buffer);
  result = lpx_buffer_init(c->context, LPX_MEMORY_DEVICE, bytes, "evicted rows", buffer);
  if (result) return result;
  lpx_cache_count_bytes(c->cache);
  for (uint32_t head = 0; head < n_heads(c->cache); head++)
    stage(&in, program, packed_rows(c, layer, head, buffer), false);
  return run_and_reset(c, program);
}

static laprox_result shrink(cut *c, lpx_program *program, uint32_t layer, lpx_buffer *buffer) {
  const VkDeviceSize bytes = layer_rows(c, layer) * lpx_cache_row_bytes(c->cache);
  const bool fits = c->cache->bytes + bytes <= c->layerwise->peak_bytes_aim;
  if (fits || bytes > staging_bytes(c)) return shrink_directly(c, program, layer, bytes, buffer, buffer);
  return shrink_staged(c, program, layer, bytes, buffer);
}

/* First everything moves to the front of where it is, which takes no memory; then the layers before shrink,
   then the newest one becomes a prefix as they are. */
static laprox_result pack(cut *c) {
  lpx_program *program = NULL;
  laprox_result result = lpx_program_create(c->context, "packing", &program);
  for (uint32_t l = 0; l <= c->newest && !result; l++)
    if (has_shrunk(c, l)) result = pack_in_place(c, l);
  for (uint32_t l = 0; l < c->newest && !result; l++) {
    if (!has_shrunk(c, l)) continue;
    result = shrink(c, program, l, &c->cache->layers[l].prefix_key);
    if (!result) result = shrink(c, program, l, &c->cache->layers[l].prefix_value);
    if (!result) result = update_books(c, l);
  }
  lpx_cache_layer *newest = &c->cache->layers[c->newest];
  const VkDeviceSize bytes = layer_rows(c, c->newest) * lpx_cache_row_bytes(c->cache);
  if (!result && has_shrunk(c, c->newest)) {
    result = shrink_directly(c, program, c->newest, bytes, &newest->tail_key, &newest->prefix_key);
    if (!result)
      result = shrink_directly(c, program, c->newest, bytes, &newest->tail_value, &newest->prefix_value);
  } else if (!result) {
    newest->prefix_key = newest->tail_key;
    newest->prefix_value = newest->tail_value;
    newest->tail_key = newest->tail_value = (lpx_buffer){0};
  }
  newest->tail_capacity = 0;
  if (!result) result = update_books(c, c->newest);
  lpx_program_destroy(program);
  lpx_cache_count_bytes(c->cache);
  return result;
}

/* ---- a layer ---- */

/* Keeps what the next cut needs, and adds to the report. */
static void carry_on(cut *c) {
  lpx_layerwise *layerwise = c->layerwise;
  lpx_buffer_finish(c->context, &layerwise->scores);
  layerwise->scores = c->pass.scores;
  c->pass.scores = (lpx_buffer){0};
  for (uint32_t i = 0; i < (c->newest + 1) * n_heads(c->cache); i++)
    layerwise->score_offsets[i] =
        laprox_plan_score_offset(c->pass.plan, i / n_heads(c->cache), i % n_heads(c->cache));
  const uint32_t *counters = c->pass.result_words + c->pass.plan->result.counters + 2 * (size_t)c->newest;
  memcpy(&layerwise->layer_scales[c->newest], counters + 1, sizeof(float));
  layerwise->report.nonfinite_scores += counters[0];
  layerwise->report.budget = c->pass.needs.budget;
  layerwise->report.kept = c->pass.needs.n_kept;
}

static void finish(cut *c) {
  lpx_pass_finish(c->context, &c->pass);
  lpx_release(&c->context->host, c->layers);
  lpx_release(&c->context->host, c->old_cu_seqlens);
}

laprox_result lpx_layerwise_end_layer(lpx_layerwise *layerwise, uint32_t layer) {
  lpx_cache *cache = layerwise->cache;
  cut c = {.layerwise = layerwise,
           .cache = cache,
           .context = cache->device->context,
           .queue = cache->device->queue,
           .newest = layer};
  laprox_result result = describe(&c);
  if (!result) result = make_plan(&c);
  if (!result) result = lpx_pass_bind(c.context, c.layers, &c.pass);
  if (!result) result = carry_scores(&c);
  if (!result) result = choose(&c);
  const uint64_t start_ns = lpx_now_ns();
  if (!result) result = pack(&c);
  layerwise->report.compact_ms += (double)(lpx_now_ns() - start_ns) * 1e-6;
  if (!result) carry_on(&c);
  finish(&c);
  return result;
}
