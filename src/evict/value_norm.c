/* value_norm.c: projected-value norms by the triangular factor, mean over the group or jointly. */
#include "evict/evict.h"

typedef struct value_push {
  uint32_t n_groups, heads, first_head, end_head, first_item, segment, first_row, residual;
  uint32_t attention, items_base, raw, layer_block;
} value_push;
_Static_assert(sizeof(value_push) == 48, "push constants of shaders/evict/value.glsl");

laprox_result lpx_value_norm_init(laprox_plan *plan) {
  const uint32_t constants[] = {plan->shape.head_dim, plan->group, plan->rules.window, plan->dtype,
                                plan->rules.gqa == LAPROX_GQA_ATTENTION_MEAN};
  const char *shader = plan->rules.gqa == LAPROX_GQA_JOINT ? "value_joint" : "value_norm";
  return lpx_pipeline_get(plan->context, shader, 4, constants, 5, &plan->value);
}

static uint64_t tile_cost(const laprox_plan *plan) {
  const uint64_t d = plan->shape.head_dim, group = plan->group;
  const uint64_t factor_rows = plan->rules.gqa == LAPROX_GQA_JOINT ? group * d : d / 2 + 16;
  return 2 * d * factor_rows * group * TILE_ENTRIES;
}

/* Tiles [begin, end) of heads that share a binding, in dispatches that are short enough. */
static void append_tiles(laprox_binding *binding, uint32_t layer, value_push *push, uint32_t begin,
                         uint32_t end) {
  const laprox_plan *plan = binding->plan;
  const laprox_layer_buffers *buffers = &binding->layers[layer];
  if (begin >= end || lpx_head_group_empty(plan, layer, push->segment, push->first_head, push->end_head))
    return;
  const laprox_buffer value =
      lpx_head_group_range(plan, layer, push->segment, push->first_head, push->end_head,
                           buffers->value[push->segment], &push->first_row, &push->residual);
  const laprox_buffer ranges[] = {
      value, lpx_buffer_part(buffers->factor, 0, laprox_value_factor_bytes(&plan->shape, plan->rules.gqa)),
      binding->state, binding->work};
  const uint64_t fit = plan->context->dispatch_cost / tile_cost(plan);
  const uint32_t at_once = fit < 1 ? 1 : fit > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uint32_t)fit;
  for (uint32_t tile = begin, count; tile < end; tile += count) {
    count = end - tile < at_once ? end - tile : at_once;
    push->first_item = tile;
    lpx_program_dispatch(binding->program, &plan->value, ranges, push, sizeof *push, count,
                         count * tile_cost(plan));
    if (tile + count < end) lpx_program_mark_step(binding->program);
  }
}

static uint32_t limit(uint32_t value, uint32_t low, uint32_t high) {
  return value < low ? low : value > high ? high : value;
}

void lpx_value_norm_append(laprox_binding *binding, uint32_t layer, uint32_t tile, uint32_t end_tile) {
  const laprox_plan *plan = binding->plan;
  const uint32_t n_heads = plan->shape.n_kv_heads;
  value_push push = {.heads = plan->state.heads + layer * n_heads * HEAD_WORDS,
                     .attention = plan->work.attention,
                     .items_base = tile,
                     .raw = plan->work.raw,
                     .layer_block = plan->layers[layer].first_block};
  for (uint32_t s = 0; s < plan->n_segments; s++)
    for (uint32_t head = 0, end; head < n_heads; head = end) {
      end = lpx_head_group_end(plan, layer, s, head);
      push.segment = s;
      push.first_head = head;
      push.end_head = end;
      const uint32_t first = lpx_head_row(plan, layer, head)[HEAD_FIRST_TILE];
      const uint32_t last =
          end < n_heads ? lpx_head_row(plan, layer, end)[HEAD_FIRST_TILE] : plan->layers[layer].n_tiles;
      append_tiles(binding, layer, &push, limit(first, tile, end_tile), limit(last, tile, end_tile));
    }
  lpx_program_barrier(binding->program);
}
