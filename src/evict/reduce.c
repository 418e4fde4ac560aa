/* reduce.c: scores without attention, pooling, layer sums. */
#include "evict/evict.h"

enum { TOKEN_SUM_ENTRIES = 128 }; /* of a workgroup of token_sum.comp */

typedef struct synthetic_push {
  uint32_t n_groups, heads, n_heads, layer_block, raw, layer, seed;
} synthetic_push;

typedef struct pool_push {
  uint32_t n_groups, heads, n_heads, layer_block, raw, block_sums;
} pool_push;

typedef struct layer_sum_push {
  uint32_t n_groups, heads, heads_per_layer, block_sums, inverses, counters, normalize;
} layer_sum_push;
_Static_assert(sizeof(layer_sum_push) == 28, "push constants of shaders/evict/layer_sum.comp");

typedef struct token_sum_push {
  uint32_t n_groups, first_layer, n_layers, heads_per_layer, head_blocks, inverses;
} token_sum_push;

typedef struct before_push {
  uint32_t n_groups, heads, n_heads, first_item, stored_item, from, to;
} before_push;

/* Norms of a candidate that are pooled: of each query head of the group, or of their mean. */
static uint32_t n_norms(const laprox_plan *plan) {
  return plan->rules.gqa == LAPROX_GQA_ATTENTION_MEAN ? 1 : plan->group;
}

laprox_result lpx_reduce_init(laprox_plan *plan) {
  laprox_context *context = plan->context;
  const uint32_t pool[] = {lpx_plan_pools_before(plan) ? 1 : plan->rules.pool_width,
                           plan->rules.pool == LAPROX_POOL_MAX};
  laprox_result result = lpx_pipeline_get(context, "pool", 3, pool, 2, &plan->pool);
  if (!result) result = lpx_pipeline_get(context, "layer_sum", 2, NULL, 0, &plan->layer_sum);
  if (!result && lpx_plan_sums_tokens(plan))
    result = lpx_pipeline_get(context, "token_sum", 3, NULL, 0, &plan->token_sum);
  const uint32_t before[] = {plan->rules.pool_width, n_norms(plan), plan->rules.pool == LAPROX_POOL_MAX};
  if (!result && plan->rules.pool_before)
    result = lpx_pipeline_get(context, "attention_pool", 2, before, 3, &plan->pool_before);
  const uint32_t synthetic[] = {0, 0, 0, 0, plan->rules.kind == LAPROX_POLICY_RANDOM};
  if (!result && !lpx_rules_use_keys(&plan->rules))
    result = lpx_pipeline_get(context, "synthetic", 2, synthetic, 5, &plan->synthetic);
  return result;
}

void lpx_reduce_append_synthetic(laprox_binding *binding, uint32_t layer) {
  const laprox_plan *plan = binding->plan;
  const lpx_layer_items *items = &plan->layers[layer];
  if (!items->n_blocks) return;
  synthetic_push push = {.heads = plan->state.heads + layer * plan->shape.n_kv_heads * HEAD_WORDS,
                         .n_heads = plan->shape.n_kv_heads,
                         .layer_block = items->first_block,
                         .raw = plan->work.raw,
                         .layer = plan->layer_offset + layer,
                         .seed = plan->rules.seed};
  const laprox_buffer ranges[] = {binding->state, binding->work};
  lpx_program_dispatch(binding->program, &plan->synthetic, ranges, &push, sizeof push, items->n_blocks,
                       (uint64_t)items->n_blocks * BLOCK_ENTRIES * 8);
  lpx_program_barrier(binding->program);
}

void lpx_reduce_append_before(laprox_binding *binding, uint32_t layer, uint32_t stored_tile, uint32_t tile,
                              uint32_t end_tile) {
  const laprox_plan *plan = binding->plan;
  before_push push = {.heads = plan->state.heads + layer * plan->shape.n_kv_heads * HEAD_WORDS,
                      .n_heads = plan->shape.n_kv_heads,
                      .first_item = tile,
                      .stored_item = stored_tile,
                      .from = plan->work.unpooled,
                      .to = plan->work.attention};
  const laprox_buffer ranges[] = {binding->state, binding->work};
  lpx_program_dispatch(binding->program, &plan->pool_before, ranges, &push, sizeof push, end_tile - tile,
                       (uint64_t)(end_tile - tile) * TILE_ENTRIES * n_norms(plan) * plan->rules.pool_width);
  lpx_program_barrier(binding->program);
}

void lpx_reduce_append_pool(laprox_binding *binding, uint32_t layer, const lpx_pipeline *pipeline,
                            uint32_t raw, laprox_buffer to) {
  const laprox_plan *plan = binding->plan;
  const lpx_layer_items *items = &plan->layers[layer];
  pool_push pool = {.heads = plan->state.heads + layer * plan->shape.n_kv_heads * HEAD_WORDS,
                    .n_heads = plan->shape.n_kv_heads,
                    .layer_block = items->first_block,
                    .raw = raw,
                    .block_sums = plan->state.block_sums};
  const VkDeviceSize block_bytes = BLOCK_ENTRIES * 4;
  const laprox_buffer scores =
      lpx_buffer_part(to, items->first_block * block_bytes, items->n_blocks * block_bytes);
  const laprox_buffer pool_ranges[] = {binding->work, binding->state, scores};
  lpx_program_dispatch(binding->program, pipeline, pool_ranges, &pool, sizeof pool, items->n_blocks,
                       (uint64_t)items->n_blocks * BLOCK_ENTRIES * plan->rules.pool_width);
}

/* Layers before the first one that is scored have their scales. */
void lpx_reduce_append_sums(laprox_binding *binding) {
  const laprox_plan *plan = binding->plan;
  const uint32_t first = plan->first_layer, n_blocks = plan->n_blocks - plan->layers[first].first_block;
  if (!n_blocks) return;
  layer_sum_push push = {.heads = plan->state.heads + first * plan->shape.n_kv_heads * HEAD_WORDS,
                         .heads_per_layer = plan->shape.n_kv_heads,
                         .block_sums = plan->state.block_sums,
                         .inverses = plan->state.inverses + first,
                         .counters = plan->result.counters + 2 * first,
                         .normalize = plan->rules.normalize};
  const laprox_buffer ranges[] = {binding->state, binding->result};
  lpx_program_dispatch(binding->program, &plan->layer_sum, ranges, &push, sizeof push,
                       plan->shape.n_layers - first, n_blocks);
  lpx_program_barrier(binding->program);
}

void lpx_reduce_append(laprox_binding *binding, uint32_t layer) {
  const laprox_plan *plan = binding->plan;
  if (plan->layers[layer].n_blocks)
    lpx_reduce_append_pool(binding, layer, &plan->pool, plan->work.raw, binding->scores);
  lpx_program_barrier(binding->program);
}

/* Sums go on from dispatch to dispatch, each over as many layers as a binding holds. */
void lpx_reduce_append_tokens(laprox_binding *binding) {
  const laprox_plan *plan = binding->plan;
  const VkDeviceSize block_bytes = BLOCK_ENTRIES * 4;
  const uint32_t layer_blocks = plan->layers[0].n_blocks, n_layers = plan->shape.n_layers;
  if (!layer_blocks) return;
  const VkDeviceSize fit = plan->context->max_range / (layer_blocks * block_bytes);
  const uint32_t at_once = fit < n_layers ? (uint32_t)fit : n_layers;
  for (uint32_t layer = 0, n; layer < n_layers; layer += n) {
    n = n_layers - layer < at_once ? n_layers - layer : at_once;
    token_sum_push push = {.first_layer = layer,
                           .n_layers = n,
                           .heads_per_layer = plan->shape.n_kv_heads,
                           .head_blocks = plan->selection.n_blocks,
                           .inverses = plan->state.inverses};
    const laprox_buffer ranges[] = {
        lpx_buffer_part(binding->scores, layer * layer_blocks * block_bytes, n * layer_blocks * block_bytes),
        binding->state, binding->own_scores};
    lpx_program_dispatch(binding->program, &plan->token_sum, ranges, &push, sizeof push,
                         plan->selection.n_blocks * (BLOCK_ENTRIES / TOKEN_SUM_ENTRIES),
                         (uint64_t)n * layer_blocks * BLOCK_ENTRIES);
    lpx_program_barrier(binding->program);
  }
}
