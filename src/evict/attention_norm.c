/* attention_norm.c: observation-window attention in two passes, never stored as a whole. */
#include "evict/evict.h"

typedef struct window_push {
  uint32_t n_groups, heads, n_heads, first_head, end_head, first_item;
  lpx_row_layout rows;
  uint32_t query_start, query_rows;
  float scale;
  uint32_t softmax, out_offset, items_base, layer_block;
} window_push;
_Static_assert(sizeof(window_push) == 76, "push constants of shaders/evict/window.glsl");

typedef struct matrix_push {
  uint32_t n_groups, heads, first_head, end_head, first_item, end_item;
  lpx_row_layout rows;
  uint32_t prepared, softmax, out_offset, items_base;
} matrix_push;
_Static_assert(sizeof(matrix_push) == 64, "push constants of shaders/evict/window_matrix.glsl");

typedef struct merge_push {
  uint32_t n_groups, heads, n_segments, n_splits, softmax, in_offset;
} merge_push;

typedef struct lse_push {
  uint32_t n_groups, n_queries, query_start, query_rows, softmax;
} lse_push;

typedef struct gram_push {
  uint32_t n_groups, in_offset, out_offset;
} gram_push;

enum { MODE_NORM = 0, MODE_SUM = 1, MODE_STORE = 2 };

static uint32_t norm_mode(const laprox_plan *plan) {
  if (lpx_plan_stores_window(plan)) return MODE_STORE;
  if (!lpx_plan_uses_values(plan)) return MODE_SUM;
  return plan->rules.gqa == LAPROX_GQA_MEAN ? MODE_NORM : MODE_STORE;
}

laprox_result lpx_attention_norm_init(laprox_plan *plan) {
  static const char *const softmax[] = {"window_softmax_small", "window_softmax", "window_softmax_large"},
                           *const norm[] = {"attention_norm_small", "attention_norm", "attention_norm_large"};
  const lpx_tile_size size = lpx_tile_size_of(plan->context);
  uint32_t constants[] = {plan->shape.head_dim, plan->group, plan->n_queries, plan->dtype, 0};
  laprox_context *context = plan->context;
  const bool norm_on_matrix = plan->matrix_size && norm_mode(plan) == MODE_NORM;
  laprox_result result =
      plan->matrix_size ? lpx_matrix_pipeline_get(plan, LPX_MATRIX_SOFTMAX, &plan->window_softmax)
                        : lpx_pipeline_get(context, softmax[size], 4, constants, 5, &plan->window_softmax);
  if (!result) result = lpx_pipeline_get(context, "window_merge", 2, constants, 5, &plan->window_merge);
  if (!result) result = lpx_pipeline_get(context, "window_lse", 2, constants, 5, &plan->window_lse);
  constants[4] = norm_mode(plan);
  if (!result && norm_on_matrix)
    result = lpx_matrix_pipeline_get(plan, LPX_MATRIX_NORM, &plan->attention_norm);
  else if (!result)
    result = lpx_pipeline_get(context, norm[size], 4, constants, 5, &plan->attention_norm);
  constants[4] = plan->rules.gqa == LAPROX_GQA_ATTENTION_MEAN;
  if (!result && norm_mode(plan) == MODE_STORE && !lpx_plan_stores_window(plan))
    result = lpx_pipeline_get(context, "attention_gram", 1, constants, 5, &plan->attention_gram);
  return result;
}

static window_push layer_push(const laprox_binding *binding, uint32_t layer) {
  const laprox_plan *plan = binding->plan;
  const float log2_e = 1.44269504f;
  return (window_push){.heads = plan->state.heads + layer * plan->shape.n_kv_heads * HEAD_WORDS,
                       .n_heads = plan->shape.n_kv_heads,
                       .query_start = plan->query_start,
                       .query_rows = plan->query_rows,
                       .scale = plan->scale * log2_e,
                       .softmax = binding->softmax,
                       .layer_block = plan->layers[layer].first_block};
}

/* Tiles that the query heads of a group make: as in window.glsl. */
static uint32_t head_tiles(const laprox_plan *plan) {
  const uint32_t tile_rows = 32u << lpx_tile_size_of(plan->context);
  const uint32_t padded = (plan->n_queries + 15) / 16 * 16, fit = padded < tile_rows ? tile_rows / padded : 1;
  return (plan->group + fit - 1) / fit;
}

static uint64_t entry_cost(const laprox_plan *plan) {
  return (uint64_t)2 * plan->shape.head_dim * plan->group * plan->n_queries;
}

static void dispatch_matrix(laprox_binding *binding, lpx_matrix_kernel kernel, const window_push *given,
                            laprox_buffer key, uint32_t count, uint64_t cost) {
  const laprox_plan *plan = binding->plan;
  const uint32_t tiles = lpx_matrix_head_tiles(plan);
  matrix_push push = {.heads = given->heads,
                      .first_head = given->first_head,
                      .end_head = given->end_head,
                      .first_item = given->first_item,
                      .end_item = given->first_item + count,
                      .rows = given->rows,
                      .prepared = plan->work.prepared,
                      .softmax = given->softmax,
                      .out_offset = given->out_offset,
                      .items_base = given->items_base};
  const laprox_buffer ranges[] = {key, binding->state, binding->work};
  const lpx_pipeline *pipeline = kernel == LPX_MATRIX_SOFTMAX ? &plan->window_softmax : &plan->attention_norm;
  lpx_program_dispatch(binding->program, pipeline, ranges, &push, sizeof push,
                       (uint64_t)lpx_matrix_n_shares(plan, kernel, count, tiles) * tiles, cost);
}

/* A pass over items (splits or tiles) [begin, end) of the layer, in dispatches that are short enough. */
static void append_pass(laprox_binding *binding, const lpx_pipeline *pipeline, uint32_t layer,
                        window_push *push, uint32_t item_word, uint32_t begin, uint32_t end) {
  const laprox_plan *plan = binding->plan;
  const laprox_layer_buffers *buffers = &binding->layers[layer];
  const bool splits = item_word == HEAD_FIRST_SPLIT;
  const bool on_matrix = plan->matrix_size && (splits || norm_mode(plan) == MODE_NORM);
  const uint64_t item_cost =
      entry_cost(plan) * (splits ? SPLIT_ENTRIES : TILE_ENTRIES) / (on_matrix ? LPX_MATRIX_FLOPS : 1);
  const uint32_t groups_an_item = !splits && norm_mode(plan) == MODE_SUM ? 1 : head_tiles(plan);
  const uint32_t at_once = lpx_items_at_once(plan, item_cost);
  const laprox_buffer query = lpx_buffer_part(
      buffers->query, 0, (VkDeviceSize)plan->query_rows * plan->shape.n_heads * plan->shape.head_dim * 4);
  lpx_head_group group = {0};
  while (lpx_head_group_next(plan, layer, item_word, begin, end, &group)) {
    push->first_head = group.first_head;
    push->end_head = group.end_head;
    laprox_buffer key = lpx_head_group_range(plan, layer, &group, buffers->key[group.segment],
                                             lpx_dtype_unit(plan->dtype), &push->rows);
    /* Where nobody has a row, nothing is read, but the sums must be written: any buffer will do. */
    if (!key.size) key = query;
    const laprox_buffer ranges[] = {query, key, binding->state, binding->work};
    for (uint32_t item = group.first_item, count; item < group.end_item; item += count) {
      count = group.end_item - item < at_once ? group.end_item - item : at_once;
      push->first_item = item;
      if (on_matrix)
        dispatch_matrix(binding, splits ? LPX_MATRIX_SOFTMAX : LPX_MATRIX_NORM, push, key, count,
                        count * item_cost);
      else
        lpx_program_dispatch(binding->program, pipeline, ranges, push, sizeof *push,
                             (uint64_t)count * groups_an_item, count * item_cost);
    }
  }
  lpx_program_barrier(binding->program);
}

static void append_lse(laprox_binding *binding, laprox_buffer lse) {
  const laprox_plan *plan = binding->plan;
  const uint32_t n_heads = plan->shape.n_heads;
  lse_push push = {.n_queries = n_heads * plan->n_queries,
                   .query_start = plan->query_start,
                   .query_rows = plan->query_rows,
                   .softmax = binding->softmax};
  const laprox_buffer ranges[] = {lpx_buffer_part(lse, 0, (VkDeviceSize)n_heads * plan->query_rows * 4),
                                  binding->state};
  lpx_program_dispatch(binding->program, &plan->window_lse, ranges, &push, sizeof push,
                       (push.n_queries + 127) / 128, push.n_queries);
  lpx_program_barrier(binding->program);
}

void lpx_attention_norm_append_softmax(laprox_binding *binding, uint32_t layer) {
  const laprox_plan *plan = binding->plan;
  if (binding->layers[layer].lse.buffer) {
    append_lse(binding, binding->layers[layer].lse);
    return;
  }
  if (plan->matrix_size) lpx_program_barrier(binding->program);
  const uint32_t n_splits = plan->layers[layer].n_splits;
  window_push push = layer_push(binding, layer);
  push.out_offset = plan->work.partials;
  push.items_base = n_splits;
  append_pass(binding, &plan->window_softmax, layer, &push, HEAD_FIRST_SPLIT, 0, n_splits);
  merge_push merge = {.heads = push.heads,
                      .n_segments = plan->n_segments,
                      .n_splits = n_splits,
                      .softmax = binding->softmax,
                      .in_offset = plan->work.partials};
  const laprox_buffer ranges[] = {binding->state, binding->work};
  lpx_program_dispatch(binding->program, &plan->window_merge, ranges, &merge, sizeof merge,
                       (uint64_t)plan->shape.n_heads * ((plan->n_queries + 7) / 8),
                       (uint64_t)n_splits * plan->group * plan->n_queries * 8);
  lpx_program_barrier(binding->program);
}

void lpx_attention_norm_append(laprox_binding *binding, uint32_t layer, uint32_t tile, uint32_t end_tile) {
  const laprox_plan *plan = binding->plan;
  const uint32_t mode = norm_mode(plan);
  window_push push = layer_push(binding, layer);
  push.items_base = tile;
  const uint32_t attention = plan->rules.pool_before ? plan->work.unpooled : plan->work.attention;
  push.out_offset = mode == MODE_NORM  ? attention
                    : mode == MODE_SUM ? plan->work.raw
                                       : plan->work.probabilities;
  append_pass(binding, &plan->attention_norm, layer, &push, HEAD_FIRST_TILE, tile, end_tile);
  if (mode != MODE_STORE || lpx_plan_stores_window(plan)) return;
  gram_push gram = {.in_offset = plan->work.probabilities, .out_offset = attention};
  lpx_program_dispatch(
      binding->program, &plan->attention_gram, &binding->work, &gram, sizeof gram, end_tile - tile,
      (uint64_t)(end_tile - tile) * TILE_ENTRIES * plan->group * plan->group * plan->n_queries);
  lpx_program_barrier(binding->program);
}
