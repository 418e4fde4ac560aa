/* entry_score.c: scores from single keys and values, and scores that all heads of a layer share. */
#include "evict/evict.h"

typedef struct entry_push {
  uint32_t n_groups, heads, first_head, end_head, first_item;
  lpx_row_layout rows;
  uint32_t raw, layer_block, anchors;
} entry_push;
_Static_assert(sizeof(entry_push) == 56, "push constants of shaders/evict/entry_score.comp");

typedef struct anchor_push {
  uint32_t n_groups, heads, first_head, end_head, first_item;
  lpx_row_layout rows;
  uint32_t partials, n_splits, n_segments, anchors;
} anchor_push;
_Static_assert(sizeof(anchor_push) == 60, "push constants of shaders/evict/key_anchor.comp");

typedef struct mean_push {
  uint32_t n_groups, heads, n_heads, layer_block, raw;
} mean_push;

enum { MODE_KEY_NORM = 0, MODE_KEY_DIFFERENCE = 1, MODE_VALUE_SIZE = 2 };
enum { MODE_SPLIT = 0, MODE_MERGE = 1 };

uint64_t lpx_entry_score_words(const laprox_plan *plan, uint64_t n_splits, uint32_t *anchors) {
  if (plan->rules.kind != LAPROX_POLICY_KEYDIFF) return 0;
  const uint64_t d = plan->shape.head_dim, partials = n_splits * plan->n_segments * d;
  *anchors = (uint32_t)partials;
  return partials + plan->shape.n_kv_heads * d;
}

/* Entry i of every head of a layer must be the same token. */
laprox_result lpx_entry_score_check_shared(const laprox_plan *plan) {
  for (uint32_t layer = plan->first_layer; layer < plan->shape.n_layers; layer++)
    for (uint32_t head = 1; head < plan->shape.n_kv_heads; head++) {
      const uint32_t first = lpx_head_row(plan, layer, 0)[HEAD_N_CANDIDATES],
                     own = lpx_head_row(plan, layer, head)[HEAD_N_CANDIDATES];
      if (own != first)
        return lpx_fail(&plan->context->host, LAPROX_ERROR_UNSUPPORTED,
                        "policy %s scores the heads of a layer together, but in layer %u KV head %u has %u "
                        "candidates and KV head 0 %u",
                        laprox_policy_name(plan->rules.kind), layer, head, own, first);
    }
  return LAPROX_OK;
}

laprox_result lpx_entry_score_init(laprox_plan *plan) {
  laprox_context *context = plan->context;
  uint32_t constants[] = {plan->shape.head_dim, plan->dtype, MODE_KEY_NORM};
  laprox_result result = LAPROX_OK;
  switch (plan->rules.kind) {
  case LAPROX_POLICY_KNORM:
    return lpx_pipeline_get(context, "entry_score", 3, constants, 3, &plan->entry_score);
  case LAPROX_POLICY_VATP:
    constants[2] = MODE_VALUE_SIZE;
    return lpx_pipeline_get(context, "entry_score", 3, constants, 3, &plan->entry_score);
  case LAPROX_POLICY_KEYDIFF:
    constants[2] = MODE_KEY_DIFFERENCE;
    result = lpx_pipeline_get(context, "entry_score", 3, constants, 3, &plan->entry_score);
    constants[2] = MODE_SPLIT;
    if (!result) result = lpx_pipeline_get(context, "key_anchor", 3, constants, 3, &plan->key_anchor);
    constants[2] = MODE_MERGE;
    if (!result) result = lpx_pipeline_get(context, "key_anchor", 3, constants, 3, &plan->anchor_merge);
    return result;
  case LAPROX_POLICY_TOVA:
    result = lpx_entry_score_check_shared(plan);
    if (!result) result = lpx_pipeline_get(context, "head_mean", 2, NULL, 0, &plan->head_mean);
    return result;
  default:
    return LAPROX_OK;
  }
}

static void append_anchors(laprox_binding *binding, uint32_t layer) {
  const laprox_plan *plan = binding->plan;
  const laprox_layer_buffers *buffers = &binding->layers[layer];
  const uint32_t n_splits = plan->layers[layer].n_splits;
  const uint64_t split_cost = (uint64_t)SPLIT_ENTRIES * plan->shape.head_dim * 8;
  const uint32_t at_once = lpx_items_at_once(plan, split_cost);
  anchor_push push = {.heads = plan->state.heads + layer * plan->shape.n_kv_heads * HEAD_WORDS,
                      .partials = plan->work.partials,
                      .n_splits = n_splits,
                      .n_segments = plan->n_segments,
                      .anchors = plan->work.anchors};
  lpx_head_group group = {0};
  while (lpx_head_group_next(plan, layer, HEAD_FIRST_SPLIT, 0, n_splits, &group)) {
    push.first_head = group.first_head;
    push.end_head = group.end_head;
    laprox_buffer rows = lpx_head_group_range(plan, layer, &group, buffers->key[group.segment],
                                              lpx_dtype_unit(plan->dtype), &push.rows);
    /* Where nobody has a row, nothing is read, but the sums must be written: any buffer will do. */
    if (!rows.size) rows = binding->state;
    const laprox_buffer ranges[] = {rows, binding->state, binding->work};
    for (uint32_t item = group.first_item, count; item < group.end_item; item += count) {
      count = group.end_item - item < at_once ? group.end_item - item : at_once;
      push.first_item = item;
      lpx_program_dispatch(binding->program, &plan->key_anchor, ranges, &push, sizeof push, count,
                           count * split_cost);
    }
  }
  lpx_program_barrier(binding->program);
  const laprox_buffer ranges[] = {binding->state, binding->state, binding->work};
  lpx_program_dispatch(binding->program, &plan->anchor_merge, ranges, &push, sizeof push,
                       plan->shape.n_kv_heads, (uint64_t)n_splits * plan->shape.head_dim);
  lpx_program_barrier(binding->program);
}

static void append_entries(laprox_binding *binding, uint32_t layer, const laprox_buffer *rows) {
  const laprox_plan *plan = binding->plan;
  const uint64_t tile_cost = (uint64_t)TILE_ENTRIES * plan->shape.head_dim * 8;
  const uint32_t at_once = lpx_items_at_once(plan, tile_cost);
  entry_push push = {.heads = plan->state.heads + layer * plan->shape.n_kv_heads * HEAD_WORDS,
                     .raw = plan->work.raw,
                     .layer_block = plan->layers[layer].first_block,
                     .anchors = plan->work.anchors};
  lpx_head_group group = {0};
  while (lpx_head_group_next(plan, layer, HEAD_FIRST_TILE, 0, plan->layers[layer].n_tiles, &group)) {
    push.first_head = group.first_head;
    push.end_head = group.end_head;
    const laprox_buffer range = lpx_head_group_range(plan, layer, &group, rows[group.segment],
                                                     lpx_dtype_unit(plan->dtype), &push.rows);
    if (!range.size) continue;
    const laprox_buffer ranges[] = {range, binding->state, binding->work};
    for (uint32_t item = group.first_item, count; item < group.end_item; item += count) {
      count = group.end_item - item < at_once ? group.end_item - item : at_once;
      push.first_item = item;
      lpx_program_dispatch(binding->program, &plan->entry_score, ranges, &push, sizeof push, count,
                           count * tile_cost);
    }
  }
  lpx_program_barrier(binding->program);
}

static void append_mean(laprox_binding *binding, uint32_t layer) {
  const laprox_plan *plan = binding->plan;
  const lpx_layer_items *items = &plan->layers[layer];
  const uint32_t blocks_a_head = items->n_blocks / plan->shape.n_kv_heads;
  if (!blocks_a_head) return;
  mean_push push = {.heads = plan->state.heads + layer * plan->shape.n_kv_heads * HEAD_WORDS,
                    .n_heads = plan->shape.n_kv_heads,
                    .layer_block = items->first_block,
                    .raw = plan->work.raw};
  const laprox_buffer ranges[] = {binding->state, binding->work};
  lpx_program_dispatch(binding->program, &plan->head_mean, ranges, &push, sizeof push, blocks_a_head,
                       (uint64_t)items->n_blocks * BLOCK_ENTRIES);
  lpx_program_barrier(binding->program);
}

void lpx_entry_score_append(laprox_binding *binding, uint32_t layer) {
  switch (binding->plan->rules.kind) {
  case LAPROX_POLICY_KEYDIFF:
    append_anchors(binding, layer);
    append_entries(binding, layer, binding->layers[layer].key);
    break;
  case LAPROX_POLICY_KNORM:
    append_entries(binding, layer, binding->layers[layer].key);
    break;
  case LAPROX_POLICY_VATP:
    append_entries(binding, layer, binding->layers[layer].value);
    break;
  case LAPROX_POLICY_TOVA:
    append_mean(binding, layer);
    break;
  default:
    break;
  }
}
