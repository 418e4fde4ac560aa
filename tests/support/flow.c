#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/core.h"
#include "support/flow.h"

#include <cmocka.h>

#include "reference/allocate.h"

/* Rows between the heads of a dense segment, and of the query ring beyond the window. */
#define SPARE_ROWS    3
#define BLOCK_ENTRIES 1024

static uint32_t n_heads_all(const flow *f) {
  return f->options.capture.shape.n_layers * f->options.capture.shape.n_kv_heads;
}

/* ---- the host's part ---- */

/* Rows of a head before the tail. */
static uint32_t prefix_rows(const flow_options *options, uint32_t layer, uint32_t head) {
  const uint32_t all = options->capture.n_tokens - options->tail;
  if (options->capture.shape.n_layers >= 3 && layer == 1) return 0;
  return all * (4 - (2 * layer + 3 * head) % 5) / 4;
}

static void describe_heads(flow *f) {
  const laprox_shape *shape = &f->options.capture.shape;
  const uint32_t n_tokens = f->options.capture.n_tokens;
  for (uint32_t l = 0; l < shape->n_layers; l++) {
    uint32_t *rows = f->cu_seqlens + (size_t)l * (shape->n_kv_heads + 1);
    ref_head *heads = f->ref_heads + (size_t)l * shape->n_kv_heads;
    f->ref_layers[l] = f->capture.ref_layers[l];
    f->ref_layers[l].heads = heads;
    for (uint32_t g = 0; g < shape->n_kv_heads; g++) {
      heads[g] = f->capture.ref_layers[l].heads[g];
      if (!f->options.tail) continue;
      const uint32_t n_prefix = prefix_rows(&f->options, l, g);
      rows[g + 1] = rows[g] + n_prefix;
      const uint32_t dropped = n_tokens - f->options.tail - n_prefix;
      heads[g].n_entries -= dropped;
      heads[g].key += (size_t)dropped * shape->head_dim;
      heads[g].value += (size_t)dropped * shape->head_dim;
    }
  }
}

static void describe_strides(const flow *f, laprox_segment *part) {
  const laprox_shape *shape = &f->options.capture.shape;
  const uint32_t d = shape->head_dim, entry = shape->n_kv_heads * d;
  switch (f->options.layout) {
  case FLOW_PADDED:
    part->entry_stride = d + 2;
    return;
  case FLOW_MIXED:
    if (part->cu_seqlens) return;
    part->entry_stride = entry;
    break;
  case FLOW_TOKEN_MAJOR:
    part->entry_stride = entry;
    break;
  case FLOW_TOKEN_ODD:
    part->entry_stride = shape->n_kv_heads * (d + 2) + 6;
    break;
  case FLOW_INTERLEAVED:
    part->entry_stride = 2 * entry;
    break;
  case FLOW_ONE_BUFFER:
    part->entry_stride = 2 * shape->n_layers * entry;
    break;
  default:
    return;
  }
  part->head_stride = f->options.layout == FLOW_TOKEN_ODD ? d + 2 : d;
  part->head_rows = 0;
}

void flow_init(flow *f, const flow_options *options) {
  *f = (flow){.options = *options};
  const laprox_shape *shape = &options->capture.shape;
  capture_init(&f->capture, &options->capture);
  f->ref_layers = ref_allocate(shape->n_layers, sizeof *f->ref_layers);
  f->ref_heads = ref_allocate(n_heads_all(f), sizeof *f->ref_heads);
  f->cu_seqlens = ref_allocate((size_t)shape->n_layers * (shape->n_kv_heads + 1), sizeof *f->cu_seqlens);
  f->buffers = ref_allocate(shape->n_layers, sizeof *f->buffers);
  f->packed_keys = ref_allocate(shape->n_layers, sizeof *f->packed_keys);
  f->packed_values = ref_allocate(shape->n_layers, sizeof *f->packed_values);
  describe_heads(f);
  f->cache = f->capture.cache;
  f->cache.layers = f->ref_layers;
  const uint32_t ring = options->capture.window + SPARE_ROWS;
  f->info = (laprox_plan_info){.shape = *shape,
                               .policy = options->policy,
                               .cache_dtype = options->capture.dtype,
                               .n_segments = 1,
                               .query_rows = ring,
                               .query_start = ring - SPARE_ROWS - 1,
                               .scale = (float)options->capture.scale,
                               .model_dim = f->cache.model_dim,
                               .keep_mask = options->keep_mask};
  laprox_segment *dense = &f->info.segments[0];
  if (options->tail) {
    f->info.n_segments = 2;
    f->info.segments[0].cu_seqlens = f->cu_seqlens;
    dense = &f->info.segments[1];
  }
  dense->n_entries = options->tail ? options->tail : options->capture.n_tokens;
  dense->head_rows = dense->n_entries + SPARE_ROWS;
  for (uint32_t i = 0; i < f->info.n_segments; i++) describe_strides(f, &f->info.segments[i]);
}

void flow_finish(flow *f) {
  flow_release(f);
  free(f->ref_layers);
  free(f->ref_heads);
  free(f->cu_seqlens);
  free(f->buffers);
  free(f->packed_keys);
  free(f->packed_values);
  capture_finish(&f->capture);
}

/* ---- the device's part ---- */

laprox_result flow_plan(flow *f, laprox_context *context) {
  const laprox_result result = laprox_plan_create(context, &f->info, &f->plan);
  if (result) return result;
  laprox_plan_requirements(f->plan, &f->needs);
  laprox_plan_result_layout(f->plan, &f->layout);
  return LAPROX_OK;
}

/* Rows of a segment's heads: how many, from which one, and from which token of the capture. */
static uint32_t segment_rows(const flow *f, uint32_t segment, uint32_t layer, uint32_t head,
                             uint32_t *first_row, uint32_t *first_token) {
  const laprox_segment *part = &f->info.segments[segment];
  const uint32_t *rows = f->cu_seqlens + (size_t)layer * (f->options.capture.shape.n_kv_heads + 1);
  const uint32_t n = part->cu_seqlens ? rows[head + 1] - rows[head] : part->n_entries;
  *first_row = part->cu_seqlens ? rows[head] : head * part->head_rows;
  *first_token = f->options.capture.n_tokens - n - (part->cu_seqlens ? f->options.tail : 0);
  return n;
}

/* Element of an entry in the layer's range, as the header says. */
static size_t element_of(const flow *f, uint32_t segment, uint32_t head, uint32_t row) {
  const laprox_segment *part = &f->info.segments[segment];
  const size_t stride = part->entry_stride ? part->entry_stride : f->options.capture.shape.head_dim;
  return row * stride + head * (size_t)part->head_stride;
}

/* Elements of a range that holds all rows of a layer. */
static size_t range_elements(const flow *f, uint32_t segment, uint32_t layer) {
  size_t end = 0;
  for (uint32_t g = 0; g < f->options.capture.shape.n_kv_heads; g++) {
    uint32_t row, token;
    const uint32_t n = segment_rows(f, segment, layer, g, &row, &token);
    const size_t own = n ? element_of(f, segment, g, row + n - 1) + f->options.capture.shape.head_dim : 0;
    if (own > end) end = own;
  }
  return end;
}

static laprox_buffer take_nan(flow *f, size_t bytes, VkDeviceSize odd) {
  const laprox_buffer part = app_take(f->device, bytes, 256, odd);
  memset(app_mapped(f->device, part), 0xff, bytes); /* NaN where nobody may look */
  return part;
}

static laprox_buffer from(laprox_buffer part, VkDeviceSize bytes) {
  return (laprox_buffer){part.buffer, part.offset + bytes, part.size - bytes};
}

/* Ranges of K and V of a segment, without their contents. */
static void take_ranges(flow *f, uint32_t segment, uint32_t layer, laprox_layer_buffers *to) {
  const laprox_shape *shape = &f->options.capture.shape;
  const laprox_dtype dtype = f->options.capture.dtype;
  const size_t bytes = laprox_dtype_bytes(dtype, range_elements(f, segment, layer));
  const size_t entry = laprox_dtype_bytes(dtype, (size_t)shape->n_kv_heads * shape->head_dim);
  if (!bytes) return;
  switch (f->options.layout) {
  case FLOW_INTERLEAVED:
    to->key[segment] = take_nan(f, bytes + entry, 16 * layer);
    to->value[segment] = from(to->key[segment], entry);
    break;
  case FLOW_ONE_BUFFER: {
    laprox_buffer *all = &f->one_buffer[segment];
    if (!all->buffer) {
      size_t most = 0;
      for (uint32_t l = 0; l < shape->n_layers; l++)
        if (range_elements(f, segment, l) > most) most = range_elements(f, segment, l);
      *all = take_nan(f, laprox_dtype_bytes(dtype, most) + 2 * shape->n_layers * entry, 0);
    }
    to->key[segment] = from(*all, 2 * layer * entry);
    to->value[segment] = from(*all, (2 * layer + 1) * entry);
    break;
  }
  default: {
    const bool on_start = f->options.layout == FLOW_TOKEN_MAJOR || f->options.layout == FLOW_PADDED ||
                          lpx_dtype_is_blocks(dtype);
    const VkDeviceSize odd = on_start ? 0 : 4 + 8 * layer;
    to->key[segment] = take_nan(f, bytes, odd);
    to->value[segment] = take_nan(f, bytes, odd);
  }
  }
}

static void fill_range(flow *f, uint32_t segment, uint32_t layer, const capture_tensor *tensor,
                       laprox_buffer part) {
  const laprox_shape *shape = &f->options.capture.shape;
  const size_t row_bytes = laprox_dtype_bytes(tensor->dtype, shape->head_dim);
  for (uint32_t g = 0; g < shape->n_kv_heads; g++) {
    uint32_t row, token;
    const uint32_t n = segment_rows(f, segment, layer, g, &row, &token);
    for (uint32_t i = 0; i < n; i++)
      memcpy((unsigned char *)app_mapped(f->device, part) +
                 laprox_dtype_bytes(tensor->dtype, element_of(f, segment, g, row + i)),
             (unsigned char *)tensor->data +
                 ((size_t)g * f->options.capture.n_tokens + token + i) * row_bytes,
             row_bytes);
  }
}

/* The ring of queries: row by row what the capture has head by head. */
static laprox_buffer place_query(flow *f, const capture_tensor *tensor) {
  const laprox_shape *shape = &f->options.capture.shape;
  const uint32_t window = f->options.capture.window, d = shape->head_dim;
  const laprox_buffer part = app_take(f->device, f->needs.query_bytes, f->needs.alignment, 0);
  float *to = app_mapped(f->device, part);
  memset(to, 0xff, (size_t)f->needs.query_bytes);
  for (size_t h = 0; h < shape->n_heads; h++)
    for (size_t t = 0; t < window; t++)
      memcpy(to + ((f->info.query_start + t) % f->info.query_rows * shape->n_heads + h) * d,
             tensor->values + (h * window + t) * d, d * sizeof *to);
  return part;
}

void flow_place(flow *f, app_device *device) {
  const laprox_shape *shape = &f->options.capture.shape;
  f->device = device;
  for (uint32_t l = 0; l < shape->n_layers; l++) {
    const capture_layer *layer = &f->capture.layers[l];
    laprox_layer_buffers *to = &f->buffers[l];
    to->query = place_query(f, &layer->query);
    for (uint32_t s = 0; s < f->info.n_segments; s++) {
      take_ranges(f, s, l, to);
      fill_range(f, s, l, &layer->key, to->key[s]);
      fill_range(f, s, l, &layer->value, to->value[s]);
    }
    if (!f->needs.factor_bytes) continue;
    to->factor = app_take(device, f->needs.factor_bytes, f->needs.alignment, 0);
    if (ref_has_stage(f->options.policy.kind)) {
      memcpy(app_mapped(device, to->factor), layer->output_weight.values, (size_t)f->needs.factor_bytes);
      continue;
    }
    assert_int_equal(laprox_value_factor(NULL, shape, f->options.policy.gqa, f->cache.model_dim,
                                         layer->output_weight.values, app_mapped(device, to->factor)),
                     LAPROX_OK);
  }
  f->scratch = app_take(device, f->needs.scratch_bytes, f->needs.alignment, 0);
  f->scores = app_take(device, f->needs.scores_bytes, f->needs.alignment, 0);
  f->result = app_take(device, f->needs.result_bytes, f->needs.alignment, 0);
  f->keep_mask = app_take(device, f->needs.keep_mask_bytes, 64, 4);
  flow_soil(f);
}

void flow_soil(const flow *f) {
  memset(app_mapped(f->device, f->scratch), 0xa5, (size_t)f->scratch.size);
  memset(app_mapped(f->device, f->scores), 0xa5, (size_t)f->scores.size);
  memset(app_mapped(f->device, f->result), 0xa5, (size_t)f->result.size);
  memset(app_mapped(f->device, f->keep_mask), 0xa5, (size_t)f->keep_mask.size);
}

laprox_result flow_bind(flow *f) {
  const laprox_binding_info info = {.layers = f->buffers,
                                    .scratch = f->scratch,
                                    .scores = f->scores,
                                    .result = f->result,
                                    .keep_mask = f->keep_mask};
  return laprox_binding_create(f->plan, &info, &f->binding);
}

laprox_result flow_prepare(flow *f, app_device *device, laprox_context *context) {
  laprox_result result = flow_plan(f, context);
  if (result) return result;
  flow_place(f, device);
  result = flow_bind(f);
  if (result) flow_release(f);
  return result;
}

void flow_release(flow *f) {
  laprox_binding_destroy(f->binding);
  laprox_plan_destroy(f->plan);
  f->binding = NULL;
  f->plan = NULL;
}

laprox_result flow_run(flow *f) {
  app_begin(f->device);
  const laprox_result result =
      laprox_cmd_steps(f->device->commands, f->binding, 0, laprox_binding_n_steps(f->binding));
  app_submit(f->device);
  return result;
}

/* Layers' compactions in one recording. */
static laprox_result compact(const flow *f, const laprox_compaction_info *infos, uint32_t n) {
  laprox_compaction **compactions = ref_allocate(n, sizeof *compactions);
  laprox_result result = LAPROX_OK;
  uint32_t n_made = 0;
  while (n_made < n && !result) {
    result = laprox_compaction_create(f->plan, &infos[n_made], &compactions[n_made]);
    if (!result) n_made++;
  }
  if (result) {
    assert_null(compactions[n_made]);
  } else {
    app_begin(f->device);
    result = laprox_cmd_compact(f->device->commands, (const laprox_compaction *const *)compactions, n);
    app_submit(f->device);
  }
  for (uint32_t i = 0; i < n_made; i++) laprox_compaction_destroy(compactions[i]);
  free(compactions);
  return result;
}

static laprox_compaction_info packed_layer(flow *f, uint32_t layer) {
  const laprox_shape *shape = &f->options.capture.shape;
  const uint32_t *rows = flow_cu_seqlens(f) + (size_t)layer * shape->n_kv_heads;
  const size_t bytes =
      laprox_dtype_bytes(f->options.capture.dtype, shape->head_dim) * (rows[shape->n_kv_heads] - rows[0]);
  f->packed_keys[layer] = app_take(f->device, bytes, 64, 12);
  f->packed_values[layer] = app_take(f->device, bytes, 64, 20);
  return (laprox_compaction_info){.layer = layer,
                                  .source = f->buffers[layer],
                                  .result = f->result,
                                  .cu_seqlens = flow_cu_seqlens(f),
                                  .key = f->packed_keys[layer],
                                  .value = f->packed_values[layer]};
}

laprox_result flow_compact(flow *f) {
  const uint32_t n_layers = f->options.capture.shape.n_layers;
  laprox_compaction_info *infos = ref_allocate(n_layers, sizeof *infos);
  for (uint32_t l = 0; l < n_layers; l++) infos[l] = packed_layer(f, l);
  const laprox_result result = compact(f, infos, n_layers);
  free(infos);
  return result;
}

/* What a layer's K or V is to be afterwards, over a copy of the arena. */
static void move_rows(const flow *f, uint32_t layer, laprox_buffer part, unsigned char *arena) {
  const laprox_shape *shape = &f->options.capture.shape;
  const laprox_dtype dtype = f->options.capture.dtype;
  const unsigned char *now = app_mapped(f->device, part);
  for (uint32_t g = 0; g < shape->n_kv_heads; g++) {
    const uint32_t *rows = flow_cu_seqlens(f) + (size_t)layer * shape->n_kv_heads + g;
    uint32_t first, token;
    (void)segment_rows(f, 0, layer, g, &first, &token);
    for (uint32_t row = rows[0]; row < rows[1]; row++)
      memcpy(arena + part.offset + laprox_dtype_bytes(dtype, element_of(f, 0, g, first + row - rows[0])),
             now + laprox_dtype_bytes(dtype, element_of(f, 0, g, first + flow_indices(f)[row])),
             laprox_dtype_bytes(dtype, shape->head_dim));
  }
}

laprox_result flow_compact_in_place(flow *f) {
  const size_t n_bytes = (size_t)f->device->arena_bytes;
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < f->options.capture.shape.n_layers && !result; l++) {
    unsigned char *expected = ref_allocate(n_bytes, 1);
    memcpy(expected, f->device->mapped, n_bytes);
    move_rows(f, l, f->buffers[l].key[0], expected);
    move_rows(f, l, f->buffers[l].value[0], expected);
    const laprox_compaction_info info = {.layer = l,
                                         .source = f->buffers[l],
                                         .result = f->result,
                                         .cu_seqlens = flow_cu_seqlens(f),
                                         .in_place = true};
    result = compact(f, &info, 1);
    if (!result) assert_memory_equal(expected, f->device->mapped, n_bytes);
    free(expected);
  }
  return result;
}

/* ---- what came out ---- */

const uint32_t *flow_cu_seqlens(const flow *f) {
  return (const uint32_t *)(const void *)((unsigned char *)app_mapped(f->device, f->result) +
                                          f->layout.cu_seqlens);
}

const uint32_t *flow_indices(const flow *f) {
  return (const uint32_t *)(const void *)((unsigned char *)app_mapped(f->device, f->result) +
                                          f->layout.indices);
}

static void expect_mask(const flow *f) {
  const laprox_shape *shape = &f->options.capture.shape;
  const uint32_t *cu_seqlens = flow_cu_seqlens(f), *indices = flow_indices(f);
  VkDeviceSize at = 0;
  for (uint32_t i = 0; i < n_heads_all(f) && f->options.keep_mask; i++) {
    const uint32_t n_words = (f->ref_heads[i].n_entries + 31) / 32;
    uint32_t *expected = ref_allocate(n_words, sizeof *expected);
    for (uint32_t row = cu_seqlens[i]; row < cu_seqlens[i + 1]; row++)
      expected[indices[row] / 32] |= 1u << indices[row] % 32;
    assert_int_equal(laprox_plan_keep_mask_offset(f->plan, i / shape->n_kv_heads, i % shape->n_kv_heads), at);
    assert_memory_equal(expected, (unsigned char *)app_mapped(f->device, f->keep_mask) + at,
                        n_words * sizeof *expected);
    free(expected);
    at += n_words * sizeof *expected;
  }
  assert_int_equal(at, f->keep_mask.size);
}

void flow_expect_rows(const flow *f) {
  const laprox_shape *shape = &f->options.capture.shape;
  const size_t row_bytes = laprox_dtype_bytes(f->options.capture.dtype, shape->head_dim);
  const uint32_t *cu_seqlens = flow_cu_seqlens(f), *indices = flow_indices(f);
  expect_mask(f);
  for (uint32_t i = 0; i < n_heads_all(f); i++) {
    const uint32_t l = i / shape->n_kv_heads, g = i % shape->n_kv_heads, base = cu_seqlens[i - g];
    if (!f->packed_keys[l].buffer) continue;
    const size_t first = (size_t)(g + 1) * f->options.capture.n_tokens - f->ref_heads[i].n_entries;
    const unsigned char *key = f->capture.layers[l].key.data, *value = f->capture.layers[l].value.data;
    const unsigned char *packed_key = app_mapped(f->device, f->packed_keys[l]),
                        *packed_value = app_mapped(f->device, f->packed_values[l]);
    for (uint32_t row = cu_seqlens[i]; row < cu_seqlens[i + 1]; row++) {
      const size_t from = (first + indices[row]) * row_bytes, to = (row - base) * row_bytes;
      assert_memory_equal(packed_key + to, key + from, row_bytes);
      assert_memory_equal(packed_value + to, value + from, row_bytes);
    }
  }
}

/* The device's scores in the reference's order, scaled. */
static float *read_scores(const flow *f, const ref_scores *expected) {
  const uint32_t n_heads = n_heads_all(f);
  float *scores = ref_allocate(expected->offsets[n_heads] + 1, sizeof *scores);
  const float *blocks = app_mapped(f->device, f->scores);
  const uint32_t *counters =
      (const uint32_t *)(const void *)((unsigned char *)app_mapped(f->device, f->result) +
                                       f->layout.counters);
  for (uint32_t i = 0; i < n_heads; i++) {
    const uint32_t layer = i / f->options.capture.shape.n_kv_heads;
    const uint32_t n = expected->end[i] - expected->first[i];
    float scale;
    memcpy(&scale, &counters[2 * layer + 1], sizeof scale);
    for (uint32_t c = 0; c < n; c++)
      scores[expected->offsets[i] + expected->first[i] + c] = blocks[c] * scale;
    blocks += (size_t)(n + BLOCK_ENTRIES - 1) / BLOCK_ENTRIES * BLOCK_ENTRIES;
    assert_int_equal(counters[2 * layer], expected->n_nonfinite[layer]);
  }
  return scores;
}

static ref_kept read_kept(const flow *f) {
  const uint32_t n_heads = n_heads_all(f), *cu_seqlens = flow_cu_seqlens(f);
  ref_kept kept = {.n_heads = n_heads};
  kept.offsets = ref_allocate((size_t)n_heads + 1, sizeof *kept.offsets);
  assert_int_equal(cu_seqlens[0], 0);
  for (uint32_t i = 0; i < n_heads; i++) {
    assert_true(cu_seqlens[i] <= cu_seqlens[i + 1]);
    kept.offsets[i + 1] = cu_seqlens[i + 1];
  }
  assert_int_equal(cu_seqlens[n_heads], f->needs.n_kept);
  kept.entries = ref_allocate((size_t)f->needs.n_kept, sizeof *kept.entries);
  memcpy(kept.entries, flow_indices(f), (size_t)f->needs.n_kept * sizeof *kept.entries);
  return kept;
}

void flow_expect(const flow *f) {
  const double tolerance = capture_tolerance(f->options.capture.dtype);
  const ref_rules rules = ref_rules_decide(&f->options.policy);
  char message[REF_MESSAGE_BYTES];
  ref_scores scores;
  ref_score(&f->cache, &rules, &scores);
  ref_kept kept = read_kept(f);
  float *own = read_scores(f, &scores);
  const char *complaint = ref_check_kept(&scores, &rules, f->needs.budget, tolerance, &kept, NULL, message);
  if (!complaint) complaint = ref_check_scores(&scores, own, tolerance, message);
  if (complaint) fail_msg("%s", complaint);
  flow_expect_rows(f);
  free(own);
  ref_kept_finish(&kept);
  ref_scores_finish(&scores);
}
