/* risk.c: attention times what values come to in the layer's output, as CriticalKV and DefensiveKV have it. */
#include "evict/evict.h"

typedef struct attention_push {
  uint32_t n_groups, heads, n_heads, layer_block, first_item, stored_item, probabilities, risk, mean;
} attention_push;
_Static_assert(sizeof(attention_push) == 36, "push constants of shaders/evict/attention_risk.comp");

typedef struct value_push {
  uint32_t n_groups, heads, n_heads, layer_block, raw, values, block_sums;
} value_push;
_Static_assert(sizeof(value_push) == 28, "push constants of shaders/evict/value_risk.comp");

enum { MODE_PRODUCT = 0, MODE_SHARE = 1 };

bool lpx_plan_takes_risks(const laprox_plan *plan) {
  return lpx_rules_factor(&plan->rules) == LPX_FACTOR_PROJECTION;
}

static bool is_defensive(const laprox_plan *plan) {
  return lpx_plan_takes_risks(plan) && plan->rules.kind != LAPROX_POLICY_CRITICALKV;
}

bool lpx_plan_stores_window(const laprox_plan *plan) {
  return is_defensive(plan);
}

static uint32_t layer_heads(const laprox_plan *plan, uint32_t layer) {
  return plan->state.heads + layer * plan->shape.n_kv_heads * HEAD_WORDS;
}

laprox_result lpx_risk_init(laprox_plan *plan) {
  if (!lpx_plan_takes_risks(plan)) return LAPROX_OK;
  laprox_context *context = plan->context;
  const lpx_rules *rules = &plan->rules;
  const bool defensive = is_defensive(plan);
  const uint32_t attention[] = {rules->pool_width, plan->group, plan->n_queries,
                                rules->pool == LAPROX_POOL_MAX};
  const uint32_t mode = defensive ? MODE_SHARE : MODE_PRODUCT;
  const uint32_t pool[] = {defensive ? 1 : rules->pool_width, rules->pool == LAPROX_POOL_MAX};
  laprox_result result = LAPROX_OK;
  if (defensive) result = lpx_entry_score_check_shared(plan);
  if (!result) result = lpx_value_init(plan);
  if (!result) result = lpx_pipeline_get(context, "value_risk", 3, &mode, 1, &plan->value_risk);
  if (!result) result = lpx_pipeline_get(context, "pool", 3, pool, 2, &plan->attention_pool);
  if (!result && defensive)
    result = lpx_pipeline_get(context, "attention_risk", 2, attention, 4, &plan->attention_risk);
  return result;
}

void lpx_risk_append_attention(laprox_binding *binding, uint32_t layer) {
  const laprox_plan *plan = binding->plan;
  const uint32_t n_tiles = plan->layers[layer].n_tiles;
  attention_push push = {.heads = layer_heads(plan, layer),
                         .n_heads = plan->shape.n_kv_heads,
                         .layer_block = plan->layers[layer].first_block,
                         .probabilities = plan->work.probabilities,
                         .risk = plan->work.raw,
                         .mean = plan->work.values};
  const uint64_t tile_cost = (uint64_t)TILE_ENTRIES * plan->group * plan->n_queries * plan->rules.pool_width;
  for (uint32_t tile = 0; tile < n_tiles; tile += plan->strip_tiles) {
    const uint32_t end = n_tiles - tile > plan->strip_tiles ? tile + plan->strip_tiles : n_tiles;
    /* with the tiles beside, in which neighbours are */
    const uint32_t begin = tile ? tile - 1 : 0;
    lpx_attention_norm_append(binding, layer, begin, end < n_tiles ? end + 1 : end);
    push.stored_item = begin;
    push.first_item = tile;
    const laprox_buffer ranges[] = {binding->state, binding->work};
    lpx_program_dispatch(binding->program, &plan->attention_risk, ranges, &push, sizeof push, end - tile,
                         (end - tile) * tile_cost);
    lpx_program_barrier(binding->program);
    lpx_program_mark_step(binding->program);
  }
}

void lpx_risk_append(laprox_binding *binding, uint32_t layer) {
  const laprox_plan *plan = binding->plan;
  const lpx_layer_items *items = &plan->layers[layer];
  if (!items->n_blocks) return;
  const bool defensive = is_defensive(plan);
  /* What the stage goes by, then what the product needs. */
  lpx_reduce_append_pool(binding, layer, &plan->attention_pool,
                         defensive ? plan->work.values : plan->work.raw, binding->own_scores);
  if (defensive) {
    lpx_program_barrier(binding->program); /* both leave sums of blocks in the same places */
    lpx_reduce_append_pool(binding, layer, &plan->attention_pool, plan->work.raw, binding->scores);
  }
  lpx_program_barrier(binding->program);
  lpx_value_append(binding, layer, plan->work.values, 0, items->n_tiles);
  const VkDeviceSize block_bytes = BLOCK_ENTRIES * 4;
  value_push push = {.heads = layer_heads(plan, layer),
                     .n_heads = plan->shape.n_kv_heads,
                     .layer_block = items->first_block,
                     .raw = plan->work.raw,
                     .values = plan->work.values,
                     .block_sums = plan->state.block_sums};
  const laprox_buffer attention =
      lpx_buffer_part(defensive ? binding->scores : binding->own_scores, items->first_block * block_bytes,
                      items->n_blocks * block_bytes);
  const laprox_buffer ranges[] = {binding->state, binding->work, attention};
  lpx_program_dispatch(binding->program, &plan->value_risk, ranges, &push, sizeof push, items->n_blocks,
                       (uint64_t)items->n_blocks * BLOCK_ENTRIES * plan->shape.n_kv_heads);
  lpx_program_barrier(binding->program);
}
