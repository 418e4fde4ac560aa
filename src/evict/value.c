/* value.c: what values come to in the output: norms by the triangular factor, mean over the group or jointly, or sums over
   the output projection itself. */
#include "evict/evict.h"

typedef struct value_push {
  uint32_t n_groups, heads, first_head, end_head, first_item;
  lpx_row_layout rows;
  uint32_t attention, items_base, raw, layer_block;
} value_push;
_Static_assert(sizeof(value_push) == 60, "push constants of shaders/evict/value.glsl");

typedef struct matrix_push {
  uint32_t n_groups, heads, first_head, end_head, first_item, end_item;
  lpx_row_layout rows;
  uint32_t prepared, attention, items_base, raw, layer_block;
} matrix_push;
_Static_assert(sizeof(matrix_push) == 68, "push constants of shaders/evict/value_norm_matrix.comp");

typedef enum value_kind { KIND_MEAN, KIND_JOINT, KIND_PROJECTION } value_kind;

static value_kind kind_of(const laprox_plan *plan) {
  if (lpx_plan_takes_risks(plan)) return KIND_PROJECTION;
  return plan->rules.gqa == LAPROX_GQA_JOINT ? KIND_JOINT : KIND_MEAN;
}

laprox_result lpx_value_init(laprox_plan *plan) {
  static const char *const shaders[][LPX_N_TILE_SIZES] = {
      [KIND_MEAN] = {"value_norm_small", "value_norm", "value_norm_large"},
      [KIND_JOINT] = {"value_joint_small", "value_joint", "value_joint_large"},
      [KIND_PROJECTION] = {"value_projection_small", "value_projection", "value_projection_large"}};
  if (plan->value_on_matrix) return lpx_matrix_pipeline_get(plan, LPX_MATRIX_VALUE, &plan->value);
  const value_kind kind = kind_of(plan);
  uint32_t constants[] = {plan->shape.head_dim, plan->group, plan->rules.window, plan->dtype,
                          plan->rules.gqa == LAPROX_GQA_ATTENTION_MEAN};
  if (kind == KIND_PROJECTION) {
    constants[2] = plan->model_dim;
    constants[4] = plan->shape.n_heads;
  }
  return lpx_pipeline_get(plan->context, shaders[kind][lpx_tile_size_of(plan->context)], 4, constants, 5,
                          &plan->value);
}

static uint64_t tile_cost(const laprox_plan *plan) {
  const uint64_t d = plan->shape.head_dim, group = plan->group;
  const uint64_t factor_rows[] = {
      [KIND_MEAN] = d / 2 + 16, [KIND_JOINT] = group * d, [KIND_PROJECTION] = plan->model_dim};
  return 2 * d * factor_rows[kind_of(plan)] * group * TILE_ENTRIES /
         (plan->value_on_matrix ? LPX_MATRIX_FLOPS : 1);
}

static void dispatch(laprox_binding *binding, const value_push *given, laprox_buffer value,
                     laprox_buffer factor, uint32_t count) {
  const laprox_plan *plan = binding->plan;
  const uint64_t cost = count * tile_cost(plan);
  if (plan->value_on_matrix) {
    matrix_push push = {.heads = given->heads,
                        .first_head = given->first_head,
                        .end_head = given->end_head,
                        .first_item = given->first_item,
                        .end_item = given->first_item + count,
                        .rows = given->rows,
                        .prepared = plan->work.prepared,
                        .attention = given->attention,
                        .items_base = given->items_base,
                        .raw = given->raw,
                        .layer_block = given->layer_block};
    const laprox_buffer ranges[] = {value, binding->state, binding->work};
    lpx_program_dispatch(binding->program, &plan->value, ranges, &push, sizeof push,
                         lpx_matrix_n_shares(plan, LPX_MATRIX_VALUE, count, 1), cost);
    return;
  }
  value_push push = *given;
  const laprox_buffer ranges[] = {value, factor, binding->state, binding->work};
  lpx_program_dispatch(binding->program, &plan->value, ranges, &push, sizeof push, count, cost);
}

void lpx_value_append(laprox_binding *binding, uint32_t layer, uint32_t raw, uint32_t tile,
                      uint32_t end_tile) {
  const laprox_plan *plan = binding->plan;
  const laprox_layer_buffers *buffers = &binding->layers[layer];
  value_push push = {.heads = plan->state.heads + layer * plan->shape.n_kv_heads * HEAD_WORDS,
                     .attention = plan->work.attention,
                     .items_base = tile,
                     .raw = raw,
                     .layer_block = plan->layers[layer].first_block};
  laprox_requirements needs;
  laprox_plan_requirements(plan, &needs);
  const laprox_buffer factor = lpx_buffer_part(buffers->factor, 0, needs.factor_bytes);
  const uint32_t at_once = lpx_items_at_once(plan, tile_cost(plan));
  lpx_head_group group = {0};
  while (lpx_head_group_next(plan, layer, HEAD_FIRST_TILE, tile, end_tile, &group)) {
    push.first_head = group.first_head;
    push.end_head = group.end_head;
    const laprox_buffer value = lpx_head_group_range(plan, layer, &group, buffers->value[group.segment],
                                                     lpx_dtype_unit(plan->dtype), &push.rows);
    if (!value.size) continue;
    for (uint32_t item = group.first_item, count; item < group.end_item; item += count) {
      count = group.end_item - item < at_once ? group.end_item - item : at_once;
      push.first_item = item;
      dispatch(binding, &push, value, factor, count);
    }
  }
  lpx_program_barrier(binding->program);
}
