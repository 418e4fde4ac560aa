/* matrix.c: what the scoring kernels on cooperative matrices have in common: when they are used, and the operands that are
   prepared for them. */
#include "evict/evict.h"

#include <string.h>

enum {
  QUERY_ROWS = 32,
  MAX_HEAD_DIM = 128,
  WINDOW_STEP_ENTRIES = 64,
  VALUE_STEP_ENTRIES = 32,
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
  const uint32_t blocks = factor_blocks(plan);
  return blocks * (blocks + 1) / 2 * plan->matrix_size * plan->matrix_size;
}

uint32_t lpx_matrix_prepared_words(const laprox_plan *plan) {
  if (!plan->matrix_size) return 0;
  return PREPARED_QUERY + QUERY_ROWS * plan->shape.head_dim + factor_halves(plan);
}

/* Shared memory of value_norm_matrix with so many subgroups. */
static uint32_t value_bytes(const laprox_plan *plan, uint32_t n_subgroups) {
  const uint32_t values = 2 * VALUE_STEP_ENTRIES * (plan->shape.head_dim * 2 + 16);
  return values +
         n_subgroups * (plan->matrix_size * (plan->matrix_size * 4 + 16) + 2 * VALUE_STEP_ENTRIES * 4);
}

/* Of the larger of window_softmax_matrix and attention_norm_matrix. */
static uint32_t window_bytes(const laprox_plan *plan, uint32_t n_subgroups) {
  const uint32_t size = plan->matrix_size, logits = QUERY_ROWS * WINDOW_STEP_ENTRIES * 4;
  const uint32_t columns = n_subgroups * (size * (size * 4 + 16) + 2 * WINDOW_STEP_ENTRIES * 4);
  return WINDOW_STEP_ENTRIES * (plan->shape.head_dim * 2 + 16) + (logits > columns ? logits : columns);
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
  plan->value_on_matrix = lpx_plan_uses_values(plan) && plan->rules.gqa == LAPROX_GQA_MEAN;
  /* AMD's operands stand in every quarter of a subgroup of 64: fewer at once, so that none spills. */
  const bool wide = context->subgroup_size > 32;
  plan->matrix_heads = wide ? 2 : 4;
  const uint32_t tiles = lpx_matrix_head_tiles(plan), heads = (plan->group + tiles - 1) / tiles;
  /* Those that share a head in the window's attention divide a step's entries and, where there are registers for half of
     them only, its queries. */
  plan->matrix_window_parts = wide ? 2 : 1;
  plan->matrix_window_subgroups = heads * plan->matrix_window_parts * (heads <= 2 && !wide ? 4 : 2);
  if (!window_fits(plan, plan->matrix_window_subgroups))
    plan->matrix_window_subgroups = heads * plan->matrix_window_parts;
  /* Those that share a head in the value norms divide its factor. */
  const uint32_t most = (factor_blocks(plan) + 1) / 2;
  plan->matrix_value_parts = wide || heads <= 2 ? 4 : 2;
  while (plan->matrix_value_parts > most) plan->matrix_value_parts /= 2;
  while (plan->matrix_value_parts > 1 && !value_fits(plan, heads * plan->matrix_value_parts))
    plan->matrix_value_parts /= 2;
  plan->matrix_value_subgroups = heads * plan->matrix_value_parts;
  if (!window_fits(plan, plan->matrix_window_subgroups) || !value_fits(plan, plan->matrix_value_subgroups) ||
      !leaves_room(plan))
    plan->matrix_size = 0, plan->value_on_matrix = false;
}

uint32_t lpx_matrix_group_items(uint32_t n_tiles, uint32_t n_groups, uint32_t most) {
  const uint32_t many = n_tiles / n_groups;
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
