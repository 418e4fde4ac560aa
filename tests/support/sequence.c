#include "support/sequence.h"
#include "reference/allocate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const laprox_shape *shape_of(const test_sequence *sequence) {
  return &sequence->world.options.shape;
}

static laprox_host *host_of(const test_sequence *sequence) {
  return &sequence->device->context->host;
}

static size_t all_heads(const test_sequence *sequence) {
  return (size_t)shape_of(sequence)->n_layers * shape_of(sequence)->n_kv_heads;
}

/* ---- making one ---- */

static void upload(const test_sequence *sequence, laprox_buffer to, const void *data, size_t bytes) {
  assert_int_equal(lpx_queue_upload(sequence->device->queue, to, data, bytes), LAPROX_OK);
}

static void make_buffer(const test_sequence *sequence, size_t bytes, const void *data, lpx_buffer *out) {
  assert_int_equal(lpx_buffer_init(sequence->device->context, LPX_MEMORY_DEVICE, bytes, "test", out),
                   LAPROX_OK);
  if (data) upload(sequence, lpx_buffer_whole(out), data, bytes);
}

static void make_factors(const test_sequence *sequence, laprox_gqa gqa, lpx_buffer *out) {
  const laprox_shape *shape = shape_of(sequence);
  const size_t bytes = laprox_value_factor_bytes(shape, gqa);
  float *factor = ref_allocate(bytes, 1);
  for (size_t l = 0; l < shape->n_layers; l++) {
    assert_int_equal(laprox_value_factor(host_of(sequence), shape, gqa, sequence->world.cache.model_dim,
                                         sequence->world.layers[l].output_weight.values, factor),
                     LAPROX_OK);
    make_buffer(sequence, bytes, factor, &out[l]);
  }
  free(factor);
}

static void apply_gains(test_sequence *sequence, const float *gains) {
  const laprox_shape *shape = shape_of(sequence);
  const size_t group_columns = (size_t)shape->n_heads / shape->n_kv_heads * shape->head_dim;
  for (size_t l = 0; l < shape->n_layers; l++) {
    const capture_tensor *weight = &sequence->world.layers[l].output_weight;
    for (size_t i = 0; i < weight->n_elements; i++)
      weight->values[i] *= gains[i / group_columns % shape->n_kv_heads];
  }
}

void sequence_init(test_sequence *sequence, laprox_device *device, const capture_options *options,
                   uint32_t query_rows, const float *head_gains) {
  capture_options all = *options;
  const size_t n_layers = options->shape.n_layers;
  *sequence = (test_sequence){.device = device, .query_rows = query_rows};
  all.window = all.n_tokens;
  capture_init(&sequence->world, &all);
  if (head_gains) apply_gains(sequence, head_gains);
  assert_int_equal(lpx_cache_init(device, &options->shape, options->dtype, &sequence->cache), LAPROX_OK);
  sequence->queries = ref_allocate(n_layers, sizeof(lpx_buffer));
  sequence->factors = ref_allocate(n_layers, sizeof(lpx_buffer));
  sequence->joint_factors = ref_allocate(n_layers, sizeof(lpx_buffer));
  const size_t row_bytes = (size_t)options->shape.n_heads * options->shape.head_dim * sizeof(float);
  for (size_t l = 0; l < n_layers; l++)
    make_buffer(sequence, query_rows * row_bytes, NULL, &sequence->queries[l]);
  make_factors(sequence, LAPROX_GQA_MEAN, sequence->factors);
  make_factors(sequence, LAPROX_GQA_JOINT, sequence->joint_factors);
}

void sequence_finish(test_sequence *sequence) {
  laprox_context *context = sequence->device->context;
  for (size_t l = 0; l < shape_of(sequence)->n_layers; l++) {
    lpx_buffer_finish(context, &sequence->queries[l]);
    lpx_buffer_finish(context, &sequence->factors[l]);
    lpx_buffer_finish(context, &sequence->joint_factors[l]);
  }
  free(sequence->queries);
  free(sequence->factors);
  free(sequence->joint_factors);
  lpx_cache_finish(&sequence->cache);
  capture_finish(&sequence->world);
}

/* ---- growing ---- */

static void write_rows(const test_sequence *sequence, const capture_tensor *from, const lpx_buffer *to,
                       uint32_t capacity, uint32_t n) {
  const lpx_cache *cache = &sequence->cache;
  const size_t row_bytes = (size_t)lpx_cache_row_bytes(cache);
  for (size_t g = 0; g < cache->shape.n_kv_heads; g++)
    upload(sequence,
           lpx_buffer_part(lpx_buffer_whole(to), (g * capacity + cache->n_tail) * row_bytes, n * row_bytes),
           (const char *)from->data + (g * sequence->world.options.n_tokens + cache->n_tokens) * row_bytes,
           n * row_bytes);
}

/* Rings hold a token's queries head by head, captures a head's token by token. */
static void write_queries(const test_sequence *sequence, size_t layer, uint32_t n) {
  const size_t n_heads = shape_of(sequence)->n_heads, d = shape_of(sequence)->head_dim;
  const size_t end = sequence->cache.n_tokens + n, n_tokens = sequence->world.options.n_tokens;
  const size_t begin = n > sequence->query_rows ? end - sequence->query_rows : end - n;
  float *row = ref_allocate(n_heads * d, sizeof *row);
  for (size_t position = begin; position < end; position++) {
    for (size_t h = 0; h < n_heads; h++)
      memcpy(row + h * d, sequence->world.layers[layer].query.values + (h * n_tokens + position) * d,
             d * sizeof *row);
    const size_t bytes = n_heads * d * sizeof *row;
    upload(sequence,
           lpx_buffer_part(lpx_buffer_whole(&sequence->queries[layer]),
                           position % sequence->query_rows * bytes, bytes),
           row, bytes);
  }
  free(row);
}

void sequence_grow(test_sequence *sequence, uint32_t n) {
  lpx_cache *cache = &sequence->cache;
  assert_true(cache->n_tokens + n <= sequence->world.options.n_tokens);
  assert_int_equal(lpx_cache_reserve(cache, n, n > 1), LAPROX_OK);
  for (size_t l = 0; l < cache->shape.n_layers; l++) {
    const lpx_cache_layer *layer = &cache->layers[l];
    assert_true(layer->tail_capacity >= cache->n_tail + n);
    write_rows(sequence, &sequence->world.layers[l].key, &layer->tail_key, layer->tail_capacity, n);
    write_rows(sequence, &sequence->world.layers[l].value, &layer->tail_value, layer->tail_capacity, n);
    write_queries(sequence, l, n);
  }
  lpx_cache_advance(cache, n);
}

/* ---- what there is ---- */

ref_kept sequence_positions(const test_sequence *sequence) {
  const lpx_cache *cache = &sequence->cache;
  const uint32_t n_kv_heads = cache->shape.n_kv_heads;
  ref_kept kept = {.n_heads = all_heads(sequence)};
  kept.offsets = ref_allocate(kept.n_heads + 1, sizeof *kept.offsets);
  for (uint32_t i = 0; i < kept.n_heads; i++)
    kept.offsets[i + 1] = kept.offsets[i] + lpx_cache_head_entries(cache, i / n_kv_heads, i % n_kv_heads);
  kept.entries = ref_allocate(kept.offsets[kept.n_heads], sizeof *kept.entries);
  for (uint32_t i = 0; i < kept.n_heads; i++)
    for (size_t at = kept.offsets[i]; at < kept.offsets[i + 1]; at++)
      kept.entries[at] =
          lpx_cache_position(cache, i / n_kv_heads, i % n_kv_heads, (uint32_t)(at - kept.offsets[i]));
  return kept;
}

uint64_t sequence_data_bytes(const test_sequence *sequence) {
  ref_kept kept = sequence_positions(sequence);
  const uint64_t bytes = 2 * kept.offsets[kept.n_heads] * lpx_cache_row_bytes(&sequence->cache);
  ref_kept_finish(&kept);
  return bytes;
}

/* All K or V rows of a head, prefix then tail; to be freed. */
static char *read_rows(const test_sequence *sequence, uint32_t layer, uint32_t head, bool value) {
  const lpx_cache *cache = &sequence->cache;
  const lpx_cache_layer *from = &cache->layers[layer];
  const size_t row_bytes = (size_t)lpx_cache_row_bytes(cache);
  const lpx_buffer *prefix = value ? &from->prefix_value : &from->prefix_key;
  const lpx_buffer *tail = value ? &from->tail_value : &from->tail_key;
  const size_t prefix_bytes = from->head_rows[head] * row_bytes, tail_bytes = cache->n_tail * row_bytes;
  char *rows = ref_allocate(prefix_bytes + tail_bytes, 1);
  lpx_queue *queue = sequence->device->queue;
  if (prefix_bytes)
    assert_int_equal(lpx_queue_download(queue,
                                        lpx_buffer_part(lpx_buffer_whole(prefix),
                                                        from->cu_seqlens[head] * row_bytes, prefix_bytes),
                                        rows, prefix_bytes),
                     LAPROX_OK);
  if (tail_bytes)
    assert_int_equal(
        lpx_queue_download(queue,
                           lpx_buffer_part(lpx_buffer_whole(tail),
                                           (uint64_t)head * from->tail_capacity * row_bytes, tail_bytes),
                           rows + prefix_bytes, tail_bytes),
        LAPROX_OK);
  return rows;
}

void sequence_expect_rows(const test_sequence *sequence) {
  const uint32_t n_kv_heads = shape_of(sequence)->n_kv_heads;
  const size_t row_bytes = (size_t)lpx_cache_row_bytes(&sequence->cache);
  ref_kept kept = sequence_positions(sequence);
  for (uint32_t i = 0; i < 2 * kept.n_heads; i++) {
    const uint32_t head = i / 2, layer = head / n_kv_heads;
    const bool is_value = i % 2;
    const capture_layer *from = &sequence->world.layers[layer];
    const char *all = is_value ? from->value.data : from->key.data;
    char *rows = read_rows(sequence, layer, head % n_kv_heads, is_value);
    for (size_t at = kept.offsets[head]; at < kept.offsets[head + 1]; at++) {
      const size_t row = (size_t)(head % n_kv_heads) * sequence->world.options.n_tokens + kept.entries[at];
      assert_memory_equal(rows + (at - kept.offsets[head]) * row_bytes, all + row * row_bytes, row_bytes);
    }
    free(rows);
  }
  ref_kept_finish(&kept);
}

void sequence_expect_same(const test_sequence *left, const test_sequence *right) {
  ref_kept a = sequence_positions(left), b = sequence_positions(right);
  assert_int_equal(a.n_heads, b.n_heads);
  assert_memory_equal(a.offsets, b.offsets, (a.n_heads + 1) * sizeof *a.offsets);
  assert_memory_equal(a.entries, b.entries, a.offsets[a.n_heads] * sizeof *a.entries);
  sequence_expect_rows(left);
  sequence_expect_rows(right);
  ref_kept_finish(&a);
  ref_kept_finish(&b);
}

/* ---- the reference's view of it ---- */

typedef struct reference_view {
  ref_cache cache;
  ref_layer *layers;
  ref_head *heads;
  uint32_t *head_sinks;
  float *rows, *queries;
} reference_view;

static uint32_t count_below(const uint32_t *positions, size_t n, uint32_t end) {
  uint32_t count = 0;
  while (count < n && positions[count] < end) count++;
  return count;
}

static void gather(const test_sequence *sequence, const ref_kept *held, size_t head, float *key,
                   float *value) {
  const size_t d = shape_of(sequence)->head_dim, n_kv_heads = shape_of(sequence)->n_kv_heads;
  const capture_layer *from = &sequence->world.layers[head / n_kv_heads];
  for (size_t at = held->offsets[head]; at < held->offsets[head + 1]; at++, key += d, value += d) {
    const size_t row = head % n_kv_heads * sequence->world.options.n_tokens + held->entries[at];
    memcpy(key, from->key.values + row * d, d * sizeof *key);
    memcpy(value, from->value.values + row * d, d * sizeof *value);
  }
}

static void view_init(reference_view *view, const test_sequence *sequence, const ref_kept *held,
                      const ref_rules *rules) {
  const laprox_shape *shape = shape_of(sequence);
  const size_t d = shape->head_dim, n_rows = held->offsets[held->n_heads],
               n_queries = shape->n_heads * rules->window;
  view->layers = ref_allocate(shape->n_layers, sizeof *view->layers);
  view->heads = ref_allocate(held->n_heads, sizeof *view->heads);
  view->head_sinks = ref_allocate(held->n_heads, sizeof *view->head_sinks);
  view->rows = ref_allocate(2 * n_rows * d, sizeof *view->rows);
  view->queries = ref_allocate(shape->n_layers * n_queries * d, sizeof *view->queries);
  for (size_t head = 0; head < held->n_heads; head++) {
    const size_t n = held->offsets[head + 1] - held->offsets[head];
    float *key = view->rows + held->offsets[head] * d, *value = key + n_rows * d;
    gather(sequence, held, head, key, value);
    view->heads[head] = (ref_head){(uint32_t)n, key, value};
    view->head_sinks[head] = count_below(held->entries + held->offsets[head], n, rules->sinks);
  }
  for (size_t l = 0; l < shape->n_layers; l++) {
    float *queries = view->queries + l * n_queries * d;
    const capture_layer *from = &sequence->world.layers[l];
    for (size_t h = 0; h < shape->n_heads; h++) {
      const size_t first = h * sequence->world.options.n_tokens + sequence->cache.n_tokens - rules->window;
      memcpy(queries + h * rules->window * d, from->query.values + first * d,
             rules->window * d * sizeof *queries);
    }
    view->layers[l] = (ref_layer){queries, from->output_weight.values, view->heads + l * shape->n_kv_heads};
  }
  view->cache = (ref_cache){*shape,        sequence->world.cache.model_dim,
                            rules->window, sequence->world.cache.scale,
                            view->layers,  view->head_sinks};
}

static void view_finish(reference_view *view) {
  free(view->layers);
  free(view->heads);
  free(view->head_sinks);
  free(view->rows);
  free(view->queries);
}

/* ---- evicting ---- */

laprox_result sequence_try_evict(test_sequence *sequence, const laprox_policy *policy, float **scores,
                                 laprox_eviction *out) {
  const lpx_cache_eviction eviction = {.policy = policy,
                                       .queries = sequence->queries,
                                       .query_rows = sequence->query_rows,
                                       .query_end = sequence->cache.n_tokens % sequence->query_rows,
                                       .factors = policy->gqa == LAPROX_GQA_JOINT ? sequence->joint_factors
                                                                                  : sequence->factors,
                                       .scale = (float)sequence->world.options.scale,
                                       .scores = scores};
  return lpx_cache_evict(&sequence->cache, &eviction, out);
}

/* True positions as numbers of entries of what was held before. */
static ref_kept entries_of(const ref_kept *held, const ref_kept *kept) {
  ref_kept entries = {.n_heads = kept->n_heads};
  entries.offsets = ref_allocate(kept->n_heads + 1, sizeof *entries.offsets);
  entries.entries = ref_allocate(kept->offsets[kept->n_heads], sizeof *entries.entries);
  memcpy(entries.offsets, kept->offsets, (kept->n_heads + 1) * sizeof *entries.offsets);
  for (size_t head = 0; head < kept->n_heads; head++) {
    size_t from = held->offsets[head];
    for (size_t at = kept->offsets[head]; at < kept->offsets[head + 1]; at++, from++) {
      while (from < held->offsets[head + 1] && held->entries[from] < kept->entries[at]) from++;
      assert_true(from < held->offsets[head + 1] && held->entries[from] == kept->entries[at]);
      entries.entries[at] = (uint32_t)(from - held->offsets[head]);
    }
  }
  return entries;
}

/* The device's scores where the reference has its own: sinks have a place there too. */
static float *spread_scores(const ref_scores *scores, const float *got) {
  const size_t n_heads = (size_t)scores->shape.n_layers * scores->shape.n_kv_heads;
  float *spread = ref_allocate(scores->offsets[n_heads], sizeof *spread);
  for (size_t head = 0; head < n_heads; head++)
    for (size_t entry = scores->first[head]; entry < scores->end[head]; entry++)
      spread[scores->offsets[head] + entry] = *got++;
  return spread;
}

static void expect_choice(const test_sequence *sequence, const ref_kept *held, const ref_kept *kept,
                          const ref_rules *rules, uint32_t budget, const float *got) {
  const double tolerance = capture_tolerance(sequence->cache.dtype);
  char message[REF_MESSAGE_BYTES];
  reference_view view;
  ref_scores scores;
  ref_kept entries = entries_of(held, kept);
  view_init(&view, sequence, held, rules);
  ref_score(&view.cache, rules, &scores);
  const char *complaint = ref_check_kept(&scores, rules, budget, tolerance, &entries, NULL, message);
  float *spread = spread_scores(&scores, got);
  if (!complaint) complaint = ref_check_scores(&scores, spread, tolerance, message);
  if (!complaint) complaint = ref_check_choice(&scores, spread, rules, budget, &entries, message);
  if (complaint) fail_msg("%s", complaint);
  free(spread);
  ref_scores_finish(&scores);
  ref_kept_finish(&entries);
  view_finish(&view);
}

static uint64_t buffer_bytes(const lpx_cache *cache) {
  uint64_t bytes = 0;
  for (uint32_t l = 0; l < cache->shape.n_layers; l++) {
    const lpx_cache_layer *layer = &cache->layers[l];
    bytes += layer->prefix_key.allocated + layer->prefix_value.allocated + layer->tail_key.allocated +
             layer->tail_value.allocated;
  }
  return bytes;
}

static size_t smaller(size_t a, size_t b) {
  return a < b ? a : b;
}

static void expect_accounts(const test_sequence *sequence, const laprox_eviction *out, uint64_t data_before,
                            uint64_t cache_before, uint64_t context_before) {
  const lpx_cache *cache = &sequence->cache;
  const uint64_t context_after = laprox_context_memory(sequence->device->context).bytes;
  ref_kept kept = sequence_positions(sequence);
  assert_int_equal(out->kept, kept.offsets[kept.n_heads]);
  assert_int_equal(out->bytes_before, data_before);
  assert_int_equal(out->bytes_after, sequence_data_bytes(sequence));
  assert_int_equal(cache->bytes, buffer_bytes(cache));
  assert_int_equal(context_before - context_after, cache_before - cache->bytes);
  assert_true(cache->peak_bytes >= cache_before && cache->peak_bytes >= cache->bytes);
  ref_kept_finish(&kept);
}

void sequence_evict(test_sequence *sequence, const laprox_policy *policy, laprox_eviction *out) {
  lpx_cache *cache = &sequence->cache;
  laprox_eviction unwanted;
  if (!out) out = &unwanted;
  ref_rules rules = ref_rules_decide(policy);
  const uint32_t budget = ref_budget(&rules, &policy->budget, cache->n_tokens), n_tokens = cache->n_tokens;
  const uint64_t data_before = sequence_data_bytes(sequence), cache_before = cache->bytes;
  const uint64_t context_before = laprox_context_memory(sequence->device->context).bytes;
  ref_kept held = sequence_positions(sequence);
  float *scores = NULL;
  assert_int_equal(sequence_try_evict(sequence, policy, &scores, out), LAPROX_OK);
  ref_kept kept = sequence_positions(sequence);
  const size_t n_held = held.offsets[held.n_heads], n_kept = kept.offsets[kept.n_heads];
  if (scores) {
    expect_choice(sequence, &held, &kept, &rules, budget, scores);
    assert_int_equal(cache->n_tail, 0);
  } else { /* everything fits, and nothing may have been moved */
    assert_int_equal(n_kept, n_held);
    assert_int_equal(cache->bytes, cache_before);
  }
  if (budget != REF_KEEP_ALL && rules.scope == LAPROX_SCOPE_GLOBAL)
    assert_int_equal(n_kept, smaller(n_held, (size_t)budget * kept.n_heads));
  assert_int_equal(cache->n_tokens, n_tokens);
  sequence_expect_rows(sequence);
  expect_accounts(sequence, out, data_before, cache_before, context_before);
  lpx_release(host_of(sequence), scores);
  ref_kept_finish(&held);
  ref_kept_finish(&kept);
}
