/* bench_cache.c: buffers of a cache and of an eviction, and the random numbers in them. */
#include "bench_cache.h"

#include <math.h>
#include <stdlib.h>

/* ---- random numbers: close to normal, the same everywhere ---- */

static float random_normal(uint32_t *state) {
  float sum = 0;
  for (int i = 0; i < 4; i++) {
    *state = *state * 1664525u + 1013904223u;
    sum += (float)(*state >> 8) / 16777216.0f - 0.5f;
  }
  return sum * 1.732f;
}

float *bench_random_floats(const bench *b, size_t n) {
  float *values = malloc(n * sizeof *values);
  uint32_t state = 7;
  if (!values) (void)lpx_fail_memory(&b->context->host, "random numbers");
  for (size_t i = 0; values && i < n; i++) values[i] = random_normal(&state);
  return values;
}

static laprox_result upload_new(bench *b, const void *data, VkDeviceSize bytes, const char *name,
                                lpx_buffer *out) {
  const laprox_result result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, bytes, name, out);
  return result ? result : lpx_queue_upload(b->queue, lpx_buffer_whole(out), data, (size_t)bytes);
}

/* ---- the cache ---- */

VkDeviceSize bench_cache_row_bytes(const bench_cache *cache) {
  return (VkDeviceSize)cache->of.shape.head_dim * 2;
}

static VkDeviceSize layer_bytes(const bench_cache *cache) {
  return bench_cache_row_bytes(cache) * cache->of.shape.n_kv_heads * cache->of.n_tokens;
}

uint64_t bench_cache_entries(const bench_cache *cache) {
  return (uint64_t)cache->of.shape.n_layers * cache->of.shape.n_kv_heads * cache->of.n_tokens;
}

/* A block of random rows; an odd number of them, so that heads don't repeat each other row by row. */
static laprox_result make_block(const bench_cache *cache, lpx_buffer *out) {
  const VkDeviceSize row = bench_cache_row_bytes(cache), most = (VkDeviceSize)16 << 20;
  const VkDeviceSize all = layer_bytes(cache);
  const VkDeviceSize bytes = (((all < most ? all : most) / row - 1) | 1) * row;
  uint16_t table[4096], *halves = malloc((size_t)bytes);
  uint32_t state = 1;
  if (!halves) return lpx_fail_memory(&cache->b->context->host, "random numbers");
  for (int i = 0; i < 4096; i++) table[i] = lpx_f32_to_f16(random_normal(&state));
  for (size_t i = 0; i < bytes / 2; i++) {
    state = state * 1664525u + 1013904223u;
    halves[i] = table[state >> 20];
  }
  const laprox_result result = upload_new(cache->b, halves, bytes, "random rows", out);
  free(halves);
  return result;
}

/* The block again and again, each buffer from another row on. */
static void append_fill(lpx_program *program, const bench_cache *cache, const lpx_buffer *block,
                        const lpx_buffer *to, uint32_t number) {
  const VkDeviceSize row = bench_cache_row_bytes(cache);
  VkDeviceSize from = number * 131 * row % block->size, at = 0;
  while (at < to->size) {
    VkDeviceSize n = block->size - from;
    if (n > to->size - at) n = to->size - at;
    lpx_program_copy(program, lpx_buffer_part(lpx_buffer_whole(block), from, n),
                     lpx_buffer_part(lpx_buffer_whole(to), at, n));
    at += n;
    from = 0;
  }
  lpx_program_mark_step(program);
}

/* Random rows in all of the buffers. */
static laprox_result fill(const bench_cache *cache, const lpx_buffer *const *buffers, uint32_t n) {
  lpx_buffer block = {0};
  lpx_program *program = NULL;
  laprox_result result = make_block(cache, &block);
  if (!result) result = lpx_program_create(cache->b->context, "random rows", &program);
  for (uint32_t i = 0; i < n && !result; i++) append_fill(program, cache, &block, buffers[i], i);
  if (!result) result = lpx_program_finish_building(program);
  if (!result) result = lpx_queue_run(cache->b->queue, program, NULL);
  lpx_program_destroy(program);
  lpx_buffer_finish(cache->b->context, &block);
  return result;
}

static laprox_result fill_layers(const bench_cache *cache) {
  const uint32_t n_layers = cache->of.shape.n_layers;
  const lpx_buffer **buffers = malloc(2 * (size_t)n_layers * sizeof *buffers);
  if (!buffers) return lpx_fail_memory(&cache->b->context->host, "layers");
  for (uint32_t l = 0; l < n_layers; l++) {
    buffers[2 * l] = &cache->keys[l];
    buffers[2 * l + 1] = &cache->values[l];
  }
  const laprox_result result = fill(cache, buffers, 2 * n_layers);
  free(buffers);
  return result;
}

laprox_result bench_cache_fill(const bench_cache *cache, const lpx_buffer *buffer) {
  return fill(cache, &buffer, 1);
}

/* Of random output projections. Their model dimension only has to make them regular. */
static laprox_result make_factor(bench_cache *cache) {
  bench *b = cache->b;
  const laprox_shape *shape = &cache->of.shape;
  const laprox_gqa gqa = b->policy.gqa ? b->policy.gqa : LAPROX_GQA_MEAN;
  const uint32_t group = shape->n_heads / shape->n_kv_heads, model_dim = 2 * group * shape->head_dim;
  const size_t bytes = laprox_value_factor_bytes(shape, gqa);
  float *weight = bench_random_floats(b, (size_t)model_dim * shape->n_heads * shape->head_dim);
  float *factor = malloc(bytes);
  laprox_result result = weight && factor ? LAPROX_OK : LAPROX_ERROR_OUT_OF_MEMORY;
  if (weight && !factor) result = lpx_fail_memory(&b->context->host, "a value factor");
  if (!result) result = laprox_value_factor(&b->context->host, shape, gqa, model_dim, weight, factor);
  if (!result) result = upload_new(b, factor, bytes, "factor", &cache->factor);
  free(weight);
  free(factor);
  return result;
}

/* Caches, what is kept of them, scores, scratch and a prompt; a tenth of it again for what drivers need. */
static bool fits(const bench_cache *cache) {
  const double entries = (double)bench_cache_entries(cache);
  const double bytes = 2 * (double)layer_bytes(cache) * cache->of.shape.n_layers + 16 * entries +
                       bench_prompt_bytes(&cache->of);
  const double kept = (double)cache->of.budget / cache->of.n_tokens;
  return bytes * (1 + kept) * 1.1 < (double)lpx_context_free_bytes(cache->b->context);
}

static laprox_result allocate(bench_cache *cache) {
  bench *b = cache->b;
  const uint32_t n_layers = cache->of.shape.n_layers;
  cache->keys = calloc(n_layers, sizeof *cache->keys);
  cache->values = calloc(n_layers, sizeof *cache->values);
  if (!cache->keys || !cache->values) return lpx_fail_memory(&b->context->host, "a cache");
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < n_layers && !result; l++) {
    result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, layer_bytes(cache), "K", &cache->keys[l]);
    if (!result)
      result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, layer_bytes(cache), "V", &cache->values[l]);
  }
  return result;
}

laprox_result bench_cache_init(bench *b, const bench_shape *shape, bench_cache *out, const char **reason) {
  *out = (bench_cache){.b = b, .of = *shape};
  *reason = NULL;
  if (!fits(out)) {
    *reason = "it needs more memory than the device has free";
    return LAPROX_OK;
  }
  laprox_result result = allocate(out);
  if (!result) result = fill_layers(out);
  if (!result) result = make_factor(out);
  const uint32_t window = b->policy.window ? b->policy.window : 32;
  const size_t n = (size_t)window * shape->shape.n_heads * shape->shape.head_dim;
  float *queries = result ? NULL : bench_random_floats(b, n);
  if (!result && !queries) result = LAPROX_ERROR_OUT_OF_MEMORY;
  /* What an engine that computes in f16 has. */
  for (size_t i = 0; queries && i < n; i++) queries[i] = lpx_f16_to_f32(lpx_f32_to_f16(queries[i]));
  if (!result) result = upload_new(b, queries, n * sizeof *queries, "queries", &out->query);
  free(queries);
  return result;
}

static void finish_list(laprox_context *context, lpx_buffer *list, uint32_t n) {
  for (uint32_t i = 0; list && i < n; i++) lpx_buffer_finish(context, &list[i]);
  free(list);
}

void bench_cache_finish(bench_cache *cache) {
  laprox_context *context = cache->b->context;
  finish_list(context, cache->keys, cache->of.shape.n_layers);
  finish_list(context, cache->values, cache->of.shape.n_layers);
  lpx_buffer_finish(context, &cache->query);
  lpx_buffer_finish(context, &cache->factor);
}

/* ---- the eviction ---- */

static laprox_result make_plan(bench_eviction *eviction) {
  const bench_cache *cache = eviction->cache;
  const laprox_plan_info info = {.shape = cache->of.shape,
                                 .policy = cache->b->policy,
                                 .cache_dtype = LAPROX_DTYPE_F16,
                                 .n_segments = 1,
                                 .segments = {{.n_entries = cache->of.n_tokens}}};
  const laprox_result result = laprox_plan_create(cache->b->context, &info, &eviction->plan);
  if (!result) laprox_plan_requirements(eviction->plan, &eviction->needs);
  return result;
}

laprox_result bench_eviction_bind(const bench_eviction *eviction, const lpx_buffer *lse,
                                  laprox_binding **out) {
  const bench_cache *cache = eviction->cache;
  laprox_layer_buffers *layers = calloc(cache->of.shape.n_layers, sizeof *layers);
  if (!layers) return lpx_fail_memory(&cache->b->context->host, "layers");
  for (uint32_t l = 0; l < cache->of.shape.n_layers; l++) {
    layers[l] = (laprox_layer_buffers){.query = lpx_buffer_whole(&cache->query),
                                       .factor = lpx_buffer_whole(&cache->factor),
                                       .key = {lpx_buffer_whole(&cache->keys[l])},
                                       .value = {lpx_buffer_whole(&cache->values[l])}};
    if (lse) layers[l].lse = lpx_buffer_whole(lse);
  }
  const laprox_binding_info info = {.layers = layers,
                                    .scratch = lpx_buffer_whole(&eviction->scratch),
                                    .scores = lpx_buffer_whole(&eviction->scores),
                                    .result = lpx_buffer_whole(&eviction->result)};
  const laprox_result result = laprox_binding_create(eviction->plan, &info, out);
  free(layers);
  return result;
}

laprox_result bench_eviction_make_lse(const bench_eviction *eviction, lpx_buffer *out) {
  const bench_cache *cache = eviction->cache;
  const size_t n = (size_t)eviction->plan->query_rows * cache->of.shape.n_heads;
  float *sums = malloc(n * sizeof *sums);
  if (!sums) return lpx_fail_memory(&cache->b->context->host, "softmax sums");
  for (size_t i = 0; i < n; i++) sums[i] = logf((float)cache->of.n_tokens) + 0.5f;
  const laprox_result result = upload_new(cache->b, sums, n * sizeof *sums, "softmax sums", out);
  free(sums);
  return result;
}

laprox_result bench_eviction_init(bench_cache *cache, bench_eviction *out) {
  *out = (bench_eviction){.cache = cache};
  laprox_context *context = cache->b->context;
  laprox_result result = make_plan(out);
  if (result) return result;
  result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, out->needs.scratch_bytes, "scratch", &out->scratch);
  if (!result)
    result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, out->needs.scores_bytes, "scores", &out->scores);
  if (!result)
    result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, out->needs.result_bytes, "result", &out->result);
  return result ? result : bench_eviction_bind(out, NULL, &out->binding);
}

static laprox_result pack_layer(bench_eviction *eviction, uint32_t layer) {
  const bench_cache *cache = eviction->cache;
  laprox_context *context = cache->b->context;
  const uint32_t n_heads = cache->of.shape.n_kv_heads, *own = eviction->cu_seqlens + layer * n_heads;
  const VkDeviceSize bytes = (own[n_heads] - own[0]) * bench_cache_row_bytes(cache);
  laprox_result result =
      lpx_buffer_init(context, LPX_MEMORY_DEVICE, bytes, "kept K", &eviction->kept_keys[layer]);
  if (!result)
    result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, bytes, "kept V", &eviction->kept_values[layer]);
  const laprox_compaction_info info = {.layer = layer,
                                       .source = {.key = {lpx_buffer_whole(&cache->keys[layer])},
                                                  .value = {lpx_buffer_whole(&cache->values[layer])}},
                                       .result = lpx_buffer_whole(&eviction->result),
                                       .cu_seqlens = eviction->cu_seqlens,
                                       .key = lpx_buffer_whole(&eviction->kept_keys[layer]),
                                       .value = lpx_buffer_whole(&eviction->kept_values[layer])};
  return result ? result : laprox_compaction_create(eviction->plan, &info, &eviction->compactions[layer]);
}

laprox_result bench_eviction_pack(bench_eviction *eviction) {
  const bench_cache *cache = eviction->cache;
  const uint32_t n_layers = cache->of.shape.n_layers;
  const size_t n = (size_t)n_layers * cache->of.shape.n_kv_heads + 1;
  laprox_result_layout layout;
  laprox_plan_result_layout(eviction->plan, &layout);
  eviction->cu_seqlens = malloc(n * sizeof *eviction->cu_seqlens);
  eviction->kept_keys = calloc(n_layers, sizeof *eviction->kept_keys);
  eviction->kept_values = calloc(n_layers, sizeof *eviction->kept_values);
  eviction->compactions = calloc(n_layers, sizeof(laprox_compaction *));
  if (!eviction->cu_seqlens || !eviction->kept_keys || !eviction->kept_values || !eviction->compactions)
    return lpx_fail_memory(&cache->b->context->host, "an evicted cache");
  const laprox_buffer from = lpx_buffer_part(lpx_buffer_whole(&eviction->result), layout.cu_seqlens, n * 4);
  laprox_result result = lpx_queue_download(cache->b->queue, from, eviction->cu_seqlens, n * 4);
  for (uint32_t l = 0; l < n_layers && !result; l++) result = pack_layer(eviction, l);
  return result;
}

void bench_eviction_finish(bench_eviction *eviction) {
  laprox_context *context = eviction->cache->b->context;
  const uint32_t n_layers = eviction->cache->of.shape.n_layers;
  for (uint32_t l = 0; eviction->compactions && l < n_layers; l++)
    laprox_compaction_destroy(eviction->compactions[l]);
  free(eviction->compactions);
  finish_list(context, eviction->kept_keys, n_layers);
  finish_list(context, eviction->kept_values, n_layers);
  free(eviction->cu_seqlens);
  laprox_binding_destroy(eviction->binding);
  laprox_plan_destroy(eviction->plan);
  lpx_buffer_finish(context, &eviction->scratch);
  lpx_buffer_finish(context, &eviction->scores);
  lpx_buffer_finish(context, &eviction->result);
}
