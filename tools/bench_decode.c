/* bench_decode.c: decode attention: one token, all layers. */
#include "bench_kernels.h"

#include <stdlib.h>

typedef struct decoding {
  bench_round *r;
  lpx_attention attention;
  lpx_attention_segment *segments; /* n_layers */
  uint32_t *rows;                  /* of each layer: first row and number of rows of each head */
  lpx_buffer *scratch;             /* n_layers */
  lpx_buffer out;                  /* of all layers */
  lpx_program *program;
} decoding;

static void describe_layer(decoding *d, uint32_t layer, bool evicted) {
  const bench_cache *cache = d->r->cache;
  const bench_eviction *eviction = &d->r->eviction;
  const uint32_t n = cache->of.shape.n_kv_heads, *own = eviction->cu_seqlens + layer * n;
  uint32_t *rows = d->rows + (size_t)layer * 2 * n;
  for (uint32_t head = 0; head < n; head++) {
    rows[head] = own[head] - own[0];
    rows[n + head] = own[head + 1] - own[head];
  }
  d->segments[layer] = evicted
                           ? (lpx_attention_segment){.key = lpx_buffer_whole(&eviction->kept_keys[layer]),
                                                     .value = lpx_buffer_whole(&eviction->kept_values[layer]),
                                                     .head_first_row = rows,
                                                     .head_n_rows = rows + n}
                           : lpx_attention_dense(lpx_buffer_whole(&cache->keys[layer]),
                                                 lpx_buffer_whole(&cache->values[layer]), cache->of.n_tokens,
                                                 cache->of.n_tokens);
}

static lpx_decode_place place_of(const decoding *d, uint32_t layer) {
  return (lpx_decode_place){.scratch = lpx_buffer_whole(&d->scratch[layer]),
                            .partial_first = lpx_decode_table_units(&d->attention.shape)};
}

static void append_chunks(decoding *d, uint32_t layer) {
  lpx_decode_chunks_append(d->program, &d->attention, lpx_buffer_whole(&d->r->cache->query),
                           &d->segments[layer], 1, place_of(d, layer));
}

static void append_merge(decoding *d, uint32_t layer) {
  const VkDeviceSize bytes = d->out.size / d->attention.shape.n_layers;
  lpx_decode_merge_append(d->program, &d->attention, &d->segments[layer], 1, place_of(d, layer),
                          lpx_buffer_part(lpx_buffer_whole(&d->out), layer * bytes, bytes));
}

/* A model's layers wait for each other; `at_once` is what the kernels alone can do. */
static void append_layers(decoding *d, bool at_once) {
  const uint32_t n_layers = d->attention.shape.n_layers;
  for (uint32_t l = 0; l < n_layers; l++)
    lpx_decode_table_append(d->program, &d->attention, &d->segments[l], 1, place_of(d, l));
  lpx_program_barrier(d->program);
  for (uint32_t l = 0; l < n_layers; l++) {
    append_chunks(d, l);
    if (at_once) continue;
    lpx_program_barrier(d->program);
    append_merge(d, l);
    lpx_program_barrier(d->program);
    lpx_program_mark_step(d->program);
  }
  lpx_program_barrier(d->program);
  for (uint32_t l = 0; l < n_layers && at_once; l++) append_merge(d, l);
}

static laprox_result allocate_decode(decoding *d) {
  const bench_cache *cache = d->r->cache;
  const laprox_shape *shape = &cache->of.shape;
  laprox_context *context = d->r->b->context;
  const VkDeviceSize bytes = lpx_decode_attention_scratch_bytes(shape, cache->of.n_tokens);
  d->segments = calloc(shape->n_layers, sizeof *d->segments);
  d->rows = calloc((size_t)shape->n_layers * 2 * shape->n_kv_heads, sizeof *d->rows);
  d->scratch = calloc(shape->n_layers, sizeof *d->scratch);
  if (!d->segments || !d->rows || !d->scratch) return lpx_fail_memory(&context->host, "decode attention");
  laprox_result result = lpx_buffer_init(context, LPX_MEMORY_DEVICE,
                                         (VkDeviceSize)shape->n_layers * shape->n_heads * shape->head_dim * 4,
                                         "output", &d->out);
  for (uint32_t l = 0; l < shape->n_layers && !result; l++)
    result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, bytes, "attention scratch", &d->scratch[l]);
  return result;
}

static void finish_decode(decoding *d) {
  laprox_context *context = d->r->b->context;
  lpx_program_destroy(d->program);
  for (uint32_t l = 0; d->scratch && l < d->r->cache->of.shape.n_layers; l++)
    lpx_buffer_finish(context, &d->scratch[l]);
  lpx_buffer_finish(context, &d->out);
  free(d->scratch);
  free(d->rows);
  free(d->segments);
}

static void count_decode(const bench_cache *cache, double entries, bench_result *row) {
  row->bytes += 2 * entries * (double)bench_cache_row_bytes(cache);
  row->flops += 4 * entries * cache->of.shape.head_dim * cache->of.shape.n_heads / cache->of.shape.n_kv_heads;
}

static laprox_result time_decode(bench_round *r, const char *kernel, bool evicted, bool at_once) {
  decoding d = {.r = r};
  bench_result *row = NULL;
  laprox_context *context = r->b->context;
  laprox_result result = lpx_attention_init(context, &r->cache->of.shape, LAPROX_DTYPE_F16, &d.attention);
  if (!result) result = allocate_decode(&d);
  if (!result) result = lpx_program_create(context, "decode", &d.program);
  if (!result) {
    for (uint32_t l = 0; l < r->cache->of.shape.n_layers; l++) describe_layer(&d, l, evicted);
    append_layers(&d, at_once);
    result = bench_time_program(r, kernel, d.program, &row);
  }
  if (row)
    count_decode(r->cache, evicted ? (double)r->eviction.needs.n_kept : (double)bench_cache_entries(r->cache),
                 row);
  finish_decode(&d);
  return result;
}

laprox_result bench_time_decoding(bench_round *r) {
  laprox_result result = time_decode(r, "decode, full", false, false);
  if (!result) result = time_decode(r, "decode, evicted", true, false);
  if (!result) result = time_decode(r, "full, at once", false, true);
  if (!result) result = time_decode(r, "evicted, at once", true, true);
  return result;
}
