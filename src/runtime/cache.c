/* cache.c: K and V buffers of a sequence. */
#include "runtime/cache.h"

#include <string.h>

/* Room that is added when single tokens outgrow the tail: small beside any budget, and growing with the tail
   so that long answers copy little. */
#define TAIL_STEP 32

uint64_t lpx_cache_row_bytes(const lpx_cache *cache) {
  return laprox_dtype_bytes(cache->dtype, cache->shape.head_dim);
}

void lpx_cache_count_bytes(lpx_cache *cache) {
  cache->bytes = 0;
  for (uint32_t l = 0; l < cache->shape.n_layers; l++) {
    const lpx_cache_layer *layer = &cache->layers[l];
    cache->bytes += layer->prefix_key.allocated + layer->prefix_value.allocated + layer->tail_key.allocated +
                    layer->tail_value.allocated;
  }
  if (cache->bytes > cache->peak_bytes) cache->peak_bytes = cache->bytes;
}

laprox_result lpx_cache_init(laprox_device *device, const laprox_shape *shape, laprox_dtype dtype,
                             lpx_cache *out) {
  const laprox_host *host = &device->context->host;
  *out = (lpx_cache){.device = device, .shape = *shape, .dtype = dtype};
  out->layers = lpx_allocate(host, shape->n_layers, sizeof *out->layers);
  if (!out->layers) return lpx_fail_memory(host, "a cache");
  for (uint32_t l = 0; l < shape->n_layers; l++) {
    lpx_cache_layer *layer = &out->layers[l];
    layer->cu_seqlens = lpx_allocate(host, (size_t)shape->n_kv_heads + 1, sizeof *layer->cu_seqlens);
    layer->head_rows = lpx_allocate(host, shape->n_kv_heads, sizeof *layer->head_rows);
    if (layer->cu_seqlens && layer->head_rows) continue;
    lpx_cache_finish(out);
    return lpx_fail_memory(host, "a cache");
  }
  return LAPROX_OK;
}

static void clear_layer(lpx_cache *cache, lpx_cache_layer *layer) {
  laprox_context *context = cache->device->context;
  lpx_buffer_finish(context, &layer->prefix_key);
  lpx_buffer_finish(context, &layer->prefix_value);
  lpx_buffer_finish(context, &layer->tail_key);
  lpx_buffer_finish(context, &layer->tail_value);
  lpx_release(&context->host, layer->positions);
  layer->positions = NULL;
  layer->tail_capacity = 0;
}

void lpx_cache_clear(lpx_cache *cache) {
  for (uint32_t l = 0; l < cache->shape.n_layers; l++) {
    lpx_cache_layer *layer = &cache->layers[l];
    clear_layer(cache, layer);
    memset(layer->cu_seqlens, 0, ((size_t)cache->shape.n_kv_heads + 1) * sizeof *layer->cu_seqlens);
    memset(layer->head_rows, 0, cache->shape.n_kv_heads * sizeof *layer->head_rows);
  }
  cache->n_tail = cache->n_tokens = 0;
  lpx_cache_count_bytes(cache);
}

void lpx_cache_finish(lpx_cache *cache) {
  if (!cache->layers) return;
  const laprox_host *host = &cache->device->context->host;
  for (uint32_t l = 0; l < cache->shape.n_layers; l++) {
    clear_layer(cache, &cache->layers[l]);
    lpx_release(host, cache->layers[l].cu_seqlens);
    lpx_release(host, cache->layers[l].head_rows);
  }
  lpx_release(host, cache->layers);
  *cache = (lpx_cache){0};
}

static laprox_result copy_buffer(laprox_context *context, lpx_program *program, const lpx_buffer *from,
                                 lpx_buffer *to) {
  if (!from->buffer) return LAPROX_OK;
  const laprox_result result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, from->size, "KV cache", to);
  if (!result) lpx_program_copy(program, lpx_buffer_whole(from), lpx_buffer_whole(to));
  return result;
}

static laprox_result copy_layer(laprox_context *context, const laprox_shape *shape, lpx_program *program,
                                const lpx_cache_layer *from, lpx_cache_layer *to) {
  laprox_result result = copy_buffer(context, program, &from->prefix_key, &to->prefix_key);
  if (!result) result = copy_buffer(context, program, &from->prefix_value, &to->prefix_value);
  if (!result) result = copy_buffer(context, program, &from->tail_key, &to->tail_key);
  if (!result) result = copy_buffer(context, program, &from->tail_value, &to->tail_value);
  if (result) return result;
  to->tail_capacity = from->tail_capacity;
  memcpy(to->cu_seqlens, from->cu_seqlens, ((size_t)shape->n_kv_heads + 1) * sizeof *to->cu_seqlens);
  memcpy(to->head_rows, from->head_rows, shape->n_kv_heads * sizeof *to->head_rows);
  if (!from->positions) return LAPROX_OK;
  const size_t n_rows = from->cu_seqlens[shape->n_kv_heads];
  to->positions = lpx_allocate(&context->host, n_rows, sizeof *to->positions);
  if (!to->positions) return lpx_fail_memory(&context->host, "a cache");
  memcpy(to->positions, from->positions, n_rows * sizeof *to->positions);
  return LAPROX_OK;
}

laprox_result lpx_cache_copy(const lpx_cache *from, lpx_cache *out) {
  laprox_context *context = from->device->context;
  lpx_program *program = NULL;
  laprox_result result = lpx_cache_init(from->device, &from->shape, from->dtype, out);
  if (result) return result;
  result = lpx_program_create(context, "a copy of a cache", &program);
  for (uint32_t l = 0; l < from->shape.n_layers && !result; l++)
    result = copy_layer(context, &from->shape, program, &from->layers[l], &out->layers[l]);
  if (!result) result = lpx_program_finish_building(program);
  if (!result) result = lpx_queue_run(from->device->queue, program, NULL);
  lpx_program_destroy(program);
  if (result) {
    lpx_cache_finish(out);
    return result;
  }
  out->n_tail = from->n_tail;
  out->n_tokens = from->n_tokens;
  lpx_cache_count_bytes(out);
  return LAPROX_OK;
}

/* A dense tail that is full and has nothing before it is a prefix whose heads are equally long. */
static void turn_tail_into_prefix(lpx_cache *cache) {
  for (uint32_t l = 0; l < cache->shape.n_layers; l++) {
    lpx_cache_layer *layer = &cache->layers[l];
    layer->prefix_key = layer->tail_key;
    layer->prefix_value = layer->tail_value;
    layer->tail_key = layer->tail_value = (lpx_buffer){0};
    layer->tail_capacity = 0;
    for (uint32_t head = 0; head < cache->shape.n_kv_heads; head++) {
      layer->head_rows[head] = cache->n_tail;
      layer->cu_seqlens[head + 1] = layer->cu_seqlens[head] + cache->n_tail;
    }
  }
  cache->n_tail = 0;
}

/* Copies the tail's rows to a buffer with room for `capacity` rows a head. */
static laprox_result begin_resize(const lpx_cache *cache, lpx_program *program, uint32_t old_capacity,
                                  uint32_t capacity, const lpx_buffer *tail, lpx_buffer *resized) {
  const uint64_t row_bytes = lpx_cache_row_bytes(cache);
  const uint32_t n_heads = cache->shape.n_kv_heads;
  if (!capacity) return LAPROX_OK;
  const laprox_result result = lpx_buffer_init(cache->device->context, LPX_MEMORY_DEVICE,
                                               row_bytes * n_heads * capacity, "KV cache", resized);
  if (result) return result;
  for (uint32_t head = 0; head < n_heads && cache->n_tail; head++)
    lpx_program_copy(
        program,
        lpx_buffer_part(lpx_buffer_whole(tail), row_bytes * head * old_capacity, row_bytes * cache->n_tail),
        lpx_buffer_part(lpx_buffer_whole(resized), row_bytes * head * capacity, row_bytes * cache->n_tail));
  return LAPROX_OK;
}

static laprox_result resize_layer(lpx_cache *cache, lpx_cache_layer *layer, uint32_t capacity) {
  laprox_context *context = cache->device->context;
  lpx_buffer key = {0}, value = {0};
  lpx_program *program = NULL;
  laprox_result result = lpx_program_create(context, "resizing a cache", &program);
  if (!result) result = begin_resize(cache, program, layer->tail_capacity, capacity, &layer->tail_key, &key);
  if (!result)
    result = begin_resize(cache, program, layer->tail_capacity, capacity, &layer->tail_value, &value);
  if (!result) result = lpx_program_finish_building(program);
  if (!result) result = lpx_queue_run(cache->device->queue, program, NULL);
  lpx_program_destroy(program);
  const uint64_t bytes = cache->bytes + key.allocated + value.allocated;
  if (bytes > cache->peak_bytes) cache->peak_bytes = bytes;
  if (result) {
    lpx_buffer_finish(context, &key);
    lpx_buffer_finish(context, &value);
    return result;
  }
  lpx_buffer_finish(context, &layer->tail_key);
  lpx_buffer_finish(context, &layer->tail_value);
  layer->tail_key = key;
  layer->tail_value = value;
  layer->tail_capacity = capacity;
  lpx_cache_count_bytes(cache);
  return LAPROX_OK;
}

static laprox_result resize_tails(lpx_cache *cache, uint32_t capacity) {
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < cache->shape.n_layers && !result; l++)
    if (cache->layers[l].tail_capacity != capacity) result = resize_layer(cache, &cache->layers[l], capacity);
  return result;
}

/* A growth that failed leaves some layers with more room than others. The next one makes them equal again,
 * because segments have one distance from head to head, and gives back what is not asked for now. */
laprox_result lpx_cache_reserve(lpx_cache *cache, uint32_t n_more, bool exact) {
  uint32_t least = UINT32_MAX, most = 0;
  for (uint32_t l = 0; l < cache->shape.n_layers; l++) {
    const uint32_t here = cache->layers[l].tail_capacity;
    if (here < least) least = here;
    if (here > most) most = here;
  }
  if (least == most && n_more <= least - cache->n_tail) return LAPROX_OK;
  if (cache->n_tail && cache->n_tail == most && !cache->layers[0].prefix_key.buffer)
    turn_tail_into_prefix(cache);
  const uint32_t step = cache->n_tail / 4 > TAIL_STEP ? cache->n_tail / 4 : TAIL_STEP;
  uint64_t capacity = (uint64_t)cache->n_tail + n_more;
  if (!exact && n_more < step) capacity = (uint64_t)cache->n_tail + step;
  if (capacity > INT32_MAX)
    return lpx_fail(&cache->device->context->host, LAPROX_ERROR_UNSUPPORTED, "a cache of %llu entries a head",
                    (unsigned long long)capacity);
  return resize_tails(cache, (uint32_t)capacity);
}

void lpx_cache_advance(lpx_cache *cache, uint32_t n) {
  cache->n_tail += n;
  cache->n_tokens += n;
}

laprox_result lpx_cache_retreat(lpx_cache *cache, uint32_t n) {
  cache->n_tail -= n;
  cache->n_tokens -= n;
  return resize_tails(cache, cache->n_tail);
}

lpx_attention_segment lpx_cache_prefix(const lpx_cache *cache, uint32_t layer) {
  const lpx_cache_layer *from = &cache->layers[layer];
  if (!from->prefix_key.buffer) return (lpx_attention_segment){0};
  return (lpx_attention_segment){.key = lpx_buffer_whole(&from->prefix_key),
                                 .value = lpx_buffer_whole(&from->prefix_value),
                                 .head_first_row = from->cu_seqlens,
                                 .head_n_rows = from->head_rows};
}

uint32_t lpx_cache_head_entries(const lpx_cache *cache, uint32_t layer, uint32_t head) {
  return cache->layers[layer].head_rows[head] + cache->n_tail;
}

uint32_t lpx_cache_position(const lpx_cache *cache, uint32_t layer, uint32_t head, uint32_t entry) {
  const lpx_cache_layer *from = &cache->layers[layer];
  const uint32_t in_prefix = from->head_rows[head];
  if (entry >= in_prefix) return cache->n_tokens - cache->n_tail + entry - in_prefix;
  return from->positions ? from->positions[from->cu_seqlens[head] + entry] : entry;
}

bool lpx_cache_is_whole(const lpx_cache *cache) {
  for (uint32_t l = 0; l < cache->shape.n_layers; l++)
    if (cache->layers[l].positions) return false;
  return true;
}

void lpx_cache_find_rows(const lpx_cache *cache, uint32_t layer, uint32_t head, bool is_value,
                         laprox_buffer parts[LPX_CACHE_PARTS]) {
  const lpx_cache_layer *from = &cache->layers[layer];
  const uint64_t row_bytes = lpx_cache_row_bytes(cache);
  parts[0] = lpx_buffer_part(lpx_buffer_whole(is_value ? &from->prefix_value : &from->prefix_key),
                             from->cu_seqlens[head] * row_bytes, from->head_rows[head] * row_bytes);
  parts[1] = lpx_buffer_part(lpx_buffer_whole(is_value ? &from->tail_value : &from->tail_key),
                             (uint64_t)head * from->tail_capacity * row_bytes, cache->n_tail * row_bytes);
}

laprox_result lpx_cache_read_rows(const lpx_cache *cache, uint32_t layer, uint32_t head, bool is_value,
                                  void *to) {
  laprox_buffer parts[LPX_CACHE_PARTS];
  uint8_t *at = to;
  laprox_result result = LAPROX_OK;
  lpx_cache_find_rows(cache, layer, head, is_value, parts);
  for (uint32_t i = 0; i < LPX_CACHE_PARTS && !result; i++) {
    const size_t bytes = (size_t)parts[i].size;
    if (bytes) result = lpx_queue_download(cache->device->queue, parts[i], at, bytes);
    at += bytes;
  }
  return result;
}
