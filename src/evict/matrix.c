/* matrix.c: what the scoring kernels on cooperative matrices have in common: when they are used, and the operands that are
   prepared for them. */
#include "evict/evict.h"

#include <string.h>

enum {
  QUERY_ROWS = 32,
  MAX_HEAD_DIM = 128,
  STEP_ENTRIES = 64,     /* of the window's attention */
  EXCHANGE_COLUMNS = 32, /* of attention_norm_matrix */
  MOST_VALUE_SUBGROUPS = 8,
  PREPARE_SLICES = 8, /* workgroups of a query head in matrix_prepare */
  PREPARED_QUERY = 4
};

typedef struct prepare_push {
  uint32_t n_groups, n_heads, query_start, query_rows;
  float scale;
  uint32_t prepared;
} prepare_push;

/* Blocks of rows of a factor; halves of its triangle. */
static uint32_t factor_blocks(const laprox_plan *plan) {
  return plan->shape.head_dim / plan->matrix_size;
}

static uint32_t factor_halves(const laprox_plan *plan) {
  const uint32_t blocks = factor_blocks(plan), size = plan->matrix_size;
  return size * (blocks * (blocks + 1) / 2 * size + 8);
}

uint32_t lpx_matrix_prepared_words(const laprox_plan *plan) {
  if (!plan->matrix_size) return 0;
  return PREPARED_QUERY + QUERY_ROWS * plan->shape.head_dim + factor_halves(plan);
}

/* Shared memory of so many rows or columns of a matrix, with room that keeps them in different banks. */
static uint32_t exchange_bytes(const laprox_plan *plan, uint32_t n_lines) {
  return n_lines * (plan->matrix_size * 4 + 16);
}

/* Shared memory of so many rows of K or V. */
static uint32_t row_bytes(const laprox_plan *plan, uint32_t n_rows) {
  return n_rows * (plan->shape.head_dim * 2 + 16);
}

/* Shared memory of value_norm_matrix with so many subgroups. */
static uint32_t value_bytes(const laprox_plan *plan, uint32_t n_subgroups) {
  const uint32_t strips = row_bytes(plan, n_subgroups * plan->matrix_size),
                 factors = 2 * factor_halves(plan) * 2;
  return (strips > factors ? strips : factors) + n_subgroups * exchange_bytes(plan, plan->matrix_size);
}

/* Of the larger of window_softmax_matrix and attention_norm_matrix. */
static uint32_t window_bytes(const laprox_plan *plan, uint32_t n_subgroups) {
  const uint32_t visible = QUERY_ROWS * STEP_ENTRIES * 4;
  const uint32_t rows = n_subgroups * exchange_bytes(plan, 2 * plan->matrix_size);
  const uint32_t columns = n_subgroups * (exchange_bytes(plan, EXCHANGE_COLUMNS) + 2 * STEP_ENTRIES * 4);
  const uint32_t softmax = rows > visible ? rows : visible;
  return row_bytes(plan, STEP_ENTRIES) + (softmax > columns ? softmax : columns);
}

static bool window_fits(const laprox_plan *plan, uint32_t n_subgroups) {
  return lpx_workgroup_fits(plan->context, n_subgroups, window_bytes(plan, n_subgroups));
}

static bool value_fits(const laprox_plan *plan, uint32_t n_subgroups) {
  return lpx_workgroup_fits(plan->context, n_subgroups, value_bytes(plan, n_subgroups));
}

/* The prepared operands share a binding with the strips that scoring works on. */
static bool leaves_room(const laprox_plan *plan) {
  const uint64_t bytes = (uint64_t)lpx_matrix_prepared_words(plan) * plan->shape.n_heads * 4;
  return bytes <= plan->context->max_range / 4;
}

uint32_t lpx_matrix_head_tiles(const laprox_plan *plan) {
  return (plan->group + plan->matrix_heads - 1) / plan->matrix_heads;
}

void lpx_matrix_choose(laprox_plan *plan) {
  const laprox_context *context = plan->context;
  const uint32_t d = plan->shape.head_dim, size = context->matrix.m;
  if (!lpx_plan_uses_attention(plan) || plan->dtype != LAPROX_DTYPE_F16 || d % 16 || d > MAX_HEAD_DIM ||
      plan->n_queries > QUERY_ROWS || !lpx_matrices_pay(context) || !lpx_has_square_matrices(context) ||
      !lpx_shader_usable(context, "window_softmax_matrix"))
    return;
  plan->matrix_size = size;
  /* AMD's operands stand in every quarter of a subgroup of 64: fewer at once, so that none spills. */
  const bool wide = context->subgroup_size > 32;
  plan->matrix_heads = wide ? 2 : 4;
  const uint32_t tiles = lpx_matrix_head_tiles(plan), heads = (plan->group + tiles - 1) / tiles;
  /* Those that share a head in the window's attention divide its queries where there are registers for half of them
     only, and a step's entries where few heads leave an invocation many to fetch. */
  plan->matrix_window_parts = wide ? 2 : 1;
  plan->matrix_window_subgroups = heads * plan->matrix_window_parts * (heads == 1 && !wide ? 4 : 2);
  if (!window_fits(plan, plan->matrix_window_subgroups))
    plan->matrix_window_subgroups = heads * plan->matrix_window_parts;
  if (!window_fits(plan, plan->matrix_window_subgroups) || !leaves_room(plan)) {
    plan->matrix_size = 0;
    return;
  }
  plan->matrix_candidates = wide ? 16 : 32;
  const uint32_t least = TILE_ENTRIES / plan->matrix_candidates;
  plan->matrix_value_subgroups = MOST_VALUE_SUBGROUPS;
  while (plan->matrix_value_subgroups > least && !value_fits(plan, plan->matrix_value_subgroups))
    plan->matrix_value_subgroups -= least;
  plan->value_on_matrix = lpx_plan_uses_values(plan) && plan->rules.gqa == LAPROX_GQA_MEAN &&
                          value_fits(plan, plan->matrix_value_subgroups);
}

uint32_t lpx_matrix_group_items(const laprox_plan *plan, uint32_t n_items, uint32_t most) {
  const uint32_t many = n_items / (lpx_is_software(plan->context) ? 8 : 512);
  return many < 1 ? 1 : many > most ? most : many;
}

/* Devices that run shaders in software compile loops, not the same written out. */
static const char *variant_of(const laprox_plan *plan, const char *shader) {
  if (!lpx_is_software(plan->context)) return shader;
  if (!strcmp(shader, "window_softmax_matrix")) return "window_softmax_matrix_rolled";
  return strcmp(shader, "value_norm_matrix") ? "attention_norm_matrix_rolled" : "value_norm_matrix_rolled";
}

laprox_result lpx_matrix_pipeline_get(const laprox_plan *plan, const char *shader, uint32_t n_bindings,
                                      uint32_t n_subgroups, uint32_t parts, lpx_pipeline *out) {
  const uint32_t subgroup_size = plan->context->subgroup_size;
  const uint32_t constants[] = {plan->shape.head_dim,
                                plan->group,
                                plan->n_queries,
                                plan->dtype,
                                0,
                                plan->matrix_size,
                                subgroup_size,
                                n_subgroups * subgroup_size,
                                n_subgroups * subgroup_size,
                                parts,
                                plan->matrix_heads};
  return lpx_pipeline_get(plan->context, variant_of(plan, shader), n_bindings, constants, 11, out);
}

laprox_result lpx_matrix_init(laprox_plan *plan) {
  const uint32_t constants[] = {plan->shape.head_dim, plan->group,           plan->n_queries,
                                plan->dtype,          plan->value_on_matrix, plan->matrix_size};
  return lpx_pipeline_get(plan->context, "matrix_prepare", 3, constants, 6, &plan->matrix_prepare);
}

void lpx_matrix_append_prepare(laprox_binding *binding, uint32_t layer) {
  const laprox_plan *plan = binding->plan;
  const laprox_layer_buffers *buffers = &binding->layers[layer];
  const uint32_t d = plan->shape.head_dim;
  prepare_push push = {.n_heads = plan->shape.n_heads,
                       .query_start = plan->query_start,
                       .query_rows = plan->query_rows,
                       .scale = plan->scale * 1.44269504f,
                       .prepared = plan->work.prepared};
  const laprox_buffer query =
      lpx_buffer_part(buffers->query, 0, (VkDeviceSize)plan->query_rows * plan->shape.n_heads * d * 4);
  laprox_buffer factor = query; /* not read then */
  if (plan->value_on_matrix)
    factor = lpx_buffer_part(buffers->factor, 0, laprox_value_factor_bytes(&plan->shape, plan->rules.gqa));
  const laprox_buffer ranges[] = {query, factor, binding->work};
  lpx_program_dispatch(binding->program, &plan->matrix_prepare, ranges, &push, sizeof push,
                       plan->shape.n_heads * PREPARE_SLICES, (uint64_t)plan->shape.n_heads * d * d * 8);
  lpx_program_barrier(binding->program);
}
