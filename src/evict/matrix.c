/* matrix.c: what the scoring kernels on cooperative matrices have in common: when they are used, and the operands that are
   prepared for them. */
#include "evict/evict.h"

enum {
  QUERY_ROWS = 32,
  MAX_HEAD_DIM = 128,
  STEP_ENTRIES = 32,
  PREPARE_SLICES = 8, /* workgroups of a query head in matrix_prepare */
  PREPARED_QUERY = 4
};

typedef struct prepare_push {
  uint32_t n_groups, n_heads, query_start, query_rows;
  float scale;
  uint32_t prepared, factors;
} prepare_push;

/* Blocks of rows of a factor; halves of its triangle. */
static uint32_t factor_blocks(const laprox_plan *plan) {
  return plan->shape.head_dim / plan->matrix_size;
}

static uint32_t factor_halves(const laprox_plan *plan) {
  const uint32_t blocks = factor_blocks(plan), size = plan->matrix_size;
  return blocks * (blocks + 1) / 2 * size * size;
}

uint32_t lpx_matrix_prepared_words(const laprox_plan *plan) {
  if (!plan->matrix_size) return 0;
  return PREPARED_QUERY + QUERY_ROWS * plan->shape.head_dim + factor_halves(plan);
}

/* Query heads that share a workgroup. */
static uint32_t tile_heads(const laprox_plan *plan) {
  const uint32_t tiles = lpx_matrix_head_tiles(plan);
  return (plan->group + tiles - 1) / tiles;
}

/* Shared memory of so many rows or columns of a matrix, with room that keeps them in different banks. */
static uint32_t exchange_bytes(const laprox_plan *plan, uint32_t n_lines) {
  return n_lines * (plan->matrix_size * 4 + 16);
}

/* Of a step's rows of K or V. */
static uint32_t row_bytes(const laprox_plan *plan) {
  return STEP_ENTRIES * (plan->shape.head_dim * 2 + 16);
}

/* Of columns' sums, where a subgroup exchanges so many columns at once. */
static uint32_t column_bytes(const laprox_plan *plan, const lpx_matrix_workgroup *workgroup,
                             uint32_t columns) {
  const uint32_t lanes = plan->context->subgroup_size / columns, most = plan->matrix_size / 4,
                 slices = !lanes         ? 1
                          : lanes < most ? lanes
                                         : most;
  return exchange_bytes(plan, workgroup->subgroups * columns) +
         2 * workgroup->parts * tile_heads(plan) * slices * STEP_ENTRIES * 4;
}

/* Of rows' sums in window_softmax_matrix. */
static uint32_t softmax_bytes(const laprox_plan *plan, const lpx_matrix_workgroup *workgroup) {
  const uint32_t n = workgroup->subgroups, visible = QUERY_ROWS * STEP_ENTRIES * 4,
                 exchange = exchange_bytes(plan, n * plan->matrix_size);
  return (exchange > visible ? exchange : visible) + n * QUERY_ROWS / workgroup->parts * 2 * 4 + 4;
}

/* Of one kernel's workgroup. */
static uint32_t shared_bytes(const laprox_plan *plan, lpx_matrix_kernel kernel) {
  const lpx_matrix_workgroup *workgroup = &plan->matrix_workgroups[kernel];
  const uint32_t entry_parts = workgroup->subgroups / (tile_heads(plan) * workgroup->parts),
                 rows = row_bytes(plan), settled = workgroup->subgroups * 4;
  switch (kernel) {
  case LPX_MATRIX_SOFTMAX:
    return rows + settled + softmax_bytes(plan, workgroup);
  case LPX_MATRIX_NORM:
    return rows + settled + column_bytes(plan, workgroup, plan->matrix_size);
  default:
    return rows + column_bytes(plan, workgroup, STEP_ENTRIES / entry_parts);
  }
}

static bool fits(const laprox_plan *plan) {
  for (int kernel = 0; kernel < LPX_N_MATRIX_KERNELS; kernel++)
    if (!lpx_workgroup_fits(plan->context, plan->matrix_workgroups[kernel].subgroups,
                            shared_bytes(plan, (lpx_matrix_kernel)kernel)))
      return false;
  return true;
}

/* The prepared operands share a binding with the strips that scoring works on. */
static bool leaves_room(const laprox_plan *plan) {
  const uint64_t bytes = (uint64_t)lpx_matrix_prepared_words(plan) * plan->shape.n_heads * 4;
  return bytes <= plan->context->max_range / 4;
}

uint32_t lpx_matrix_head_tiles(const laprox_plan *plan) {
  return (plan->group + plan->matrix_heads - 1) / plan->matrix_heads;
}

/* A subgroup for each head, or for each part of its operand where there are registers for a part of it only; two at least,
 * for one would have much to fetch. Small workgroups, that do not wait for each other. */
static void choose_workgroups(laprox_plan *plan) {
  for (int kernel = 0; kernel < LPX_N_MATRIX_KERNELS; kernel++) {
    const uint32_t parts = !plan->context->wide_operands ? 1 : kernel == LPX_MATRIX_VALUE ? 4 : 2;
    const uint32_t subgroups = tile_heads(plan) * parts;
    plan->matrix_workgroups[kernel] =
        (lpx_matrix_workgroup){.parts = parts, .subgroups = subgroups < 2 ? 2 : subgroups};
  }
}

void lpx_matrix_choose(laprox_plan *plan) {
  const laprox_context *context = plan->context;
  const uint32_t d = plan->shape.head_dim, size = context->matrix.m;
  if (!lpx_plan_uses_attention(plan) || plan->dtype != LAPROX_DTYPE_F16 || d % 16 || d > MAX_HEAD_DIM ||
      plan->n_queries > QUERY_ROWS || !lpx_matrices_pay(context) || !lpx_has_square_matrices(context) ||
      !lpx_shader_usable(context, "window_softmax_matrix"))
    return;
  plan->matrix_size = size;
  for (plan->matrix_heads = context->wide_operands ? 2 : 4; plan->matrix_heads; plan->matrix_heads /= 2) {
    choose_workgroups(plan);
    if (fits(plan)) break;
  }
  if (!plan->matrix_heads || !leaves_room(plan)) plan->matrix_size = 0;
  plan->value_on_matrix =
      plan->matrix_size && lpx_plan_uses_values(plan) && plan->rules.gqa == LAPROX_GQA_MEAN;
}

uint32_t lpx_matrix_n_shares(const laprox_plan *plan, lpx_matrix_kernel kernel, uint32_t n_items,
                             uint32_t tiles) {
  enum { MANY = 512 }; /* workgroups enough for a large device */
  /* Subgroups that a processor has registers for at once. */
  static const uint32_t at_once[] = {
      [LPX_MATRIX_SOFTMAX] = 12, [LPX_MATRIX_NORM] = 12, [LPX_MATRIX_VALUE] = 8};
  const laprox_context *context = plan->context;
  uint32_t n_shares = MANY;
  if (lpx_is_software(context)) n_shares = 8;
  if (context->n_processors)
    n_shares = context->n_processors * (at_once[kernel] / plan->matrix_workgroups[kernel].subgroups);
  if (n_shares > tiles) n_shares /= tiles;
  return n_shares < n_items ? n_shares : n_items;
}

laprox_result lpx_matrix_pipeline_get(const laprox_plan *plan, lpx_matrix_kernel kernel, lpx_pipeline *out) {
  /* Devices that run shaders in software compile loops, not the same written out. */
  static const char *const shaders[][2] = {
      [LPX_MATRIX_SOFTMAX] = {"window_softmax_matrix", "window_softmax_matrix_rolled"},
      [LPX_MATRIX_NORM] = {"attention_norm_matrix", "attention_norm_matrix_rolled"},
      [LPX_MATRIX_VALUE] = {"value_norm_matrix", "value_norm_matrix_rolled"}};
  const lpx_matrix_workgroup *workgroup = &plan->matrix_workgroups[kernel];
  const uint32_t subgroup_size = plan->context->subgroup_size, n = workgroup->subgroups * subgroup_size;
  const uint32_t constants[] = {plan->shape.head_dim,
                                plan->group,
                                plan->n_queries,
                                plan->dtype,
                                0,
                                plan->matrix_size,
                                subgroup_size,
                                n,
                                n,
                                workgroup->parts,
                                plan->matrix_heads};
  return lpx_pipeline_get(plan->context, shaders[kernel][lpx_is_software(plan->context)], 3, constants, 11,
                          out);
}

laprox_result lpx_matrix_init(laprox_plan *plan) {
  const uint32_t constants[] = {plan->shape.head_dim, plan->group, plan->n_queries,
                                plan->dtype,          0,           plan->matrix_size};
  return lpx_pipeline_get(plan->context, "matrix_prepare", 3, constants, 6, &plan->matrix_prepare);
}

static void append_prepare(laprox_binding *binding, uint32_t layer, bool factors) {
  const laprox_plan *plan = binding->plan;
  const laprox_layer_buffers *buffers = &binding->layers[layer];
  const uint32_t d = plan->shape.head_dim, rows = factors ? d : QUERY_ROWS;
  prepare_push push = {.n_heads = plan->shape.n_heads,
                       .query_start = plan->query_start,
                       .query_rows = plan->query_rows,
                       .scale = plan->scale * 1.44269504f,
                       .prepared = plan->work.prepared,
                       .factors = factors};
  const laprox_buffer query =
      lpx_buffer_part(buffers->query, 0, (VkDeviceSize)plan->query_rows * plan->shape.n_heads * d * 4);
  laprox_buffer factor = query; /* not read then */
  if (factors)
    factor = lpx_buffer_part(buffers->factor, 0, laprox_value_factor_bytes(&plan->shape, plan->rules.gqa));
  const laprox_buffer ranges[] = {query, factor, binding->work};
  lpx_program_dispatch(binding->program, &plan->matrix_prepare, ranges, &push, sizeof push,
                       plan->shape.n_heads * PREPARE_SLICES, (uint64_t)plan->shape.n_heads * rows * d * 8);
}

void lpx_matrix_append_operands(laprox_binding *binding, uint32_t layer) {
  append_prepare(binding, layer, false);
  if (binding->plan->value_on_matrix) append_prepare(binding, layer, true);
}
