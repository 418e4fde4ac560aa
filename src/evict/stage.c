/* stage.c: what some policies choose before the selection, by a mark above every score. */
#include "evict/evict.h"

#include <float.h>

#define MAX_HEADS 512 /* as in shaders/evict/stage.comp */

typedef struct stage_push {
  uint32_t n_groups, heads, n_heads, layer_block, places;
  float mark;
  uint32_t single;
} stage_push;
_Static_assert(sizeof(stage_push) == 28, "push constants of shaders/evict/stage.comp");

enum { MODE_SHARES = 0, MODE_HALF = 1, MODE_MASS = 2 };

bool lpx_plan_marks_in_selection(const laprox_plan *plan) {
  return plan->rules.kind == LAPROX_POLICY_ADAKV;
}

laprox_result lpx_stage_init(laprox_plan *plan) {
  const uint32_t mode = lpx_plan_marks_in_selection(plan)              ? MODE_SHARES
                        : plan->rules.kind == LAPROX_POLICY_CRITICALKV ? MODE_HALF
                                                                       : MODE_MASS;
  if (!lpx_plan_marks_in_selection(plan) && !lpx_plan_takes_risks(plan)) return LAPROX_OK;
  if (plan->context->avoid_atomics)
    return lpx_fail(&plan->context->host, LAPROX_ERROR_UNSUPPORTED,
                    "policy %s takes atomics, which compute wrongly on %s",
                    laprox_policy_name(plan->rules.kind), plan->context->properties.deviceName);
  if (plan->shape.n_kv_heads > MAX_HEADS)
    return lpx_fail(&plan->context->host, LAPROX_ERROR_UNSUPPORTED,
                    "policy %s: %u KV heads a layer, the limit is %d", laprox_policy_name(plan->rules.kind),
                    plan->shape.n_kv_heads, MAX_HEADS);
  return lpx_pipeline_get(plan->context, "stage", 3, &mode, 1, &plan->stage);
}

static void append(laprox_binding *binding, uint32_t layer, laprox_buffer ranks, laprox_buffer marked,
                   uint32_t places, bool single) {
  const laprox_plan *plan = binding->plan;
  const lpx_layer_items *items = &plan->layers[layer];
  const VkDeviceSize block_bytes = BLOCK_ENTRIES * 4, begin = items->first_block * block_bytes,
                     bytes = items->n_blocks * block_bytes;
  stage_push push = {.heads = plan->state.heads + layer * plan->shape.n_kv_heads * HEAD_WORDS,
                     .n_heads = plan->shape.n_kv_heads,
                     .layer_block = items->first_block,
                     .places = places,
                     .mark = FLT_MAX,
                     .single = single};
  const laprox_buffer ranges[] = {binding->state, lpx_buffer_part(ranks, begin, bytes),
                                  lpx_buffer_part(marked, begin, bytes)};
  lpx_program_dispatch(binding->program, &plan->stage, ranges, &push, sizeof push,
                       single ? plan->shape.n_kv_heads : 1, bytes);
}

void lpx_stage_append_shares(laprox_binding *binding) {
  const laprox_plan *plan = binding->plan;
  for (uint32_t layer = 0; layer < plan->shape.n_layers; layer++)
    if (plan->layers[layer].n_blocks)
      append(binding, layer, binding->scores, binding->own_scores, plan->selection.k[layer], false);
  lpx_program_barrier(binding->program);
}

void lpx_stage_append_layers(laprox_binding *binding) {
  const laprox_plan *plan = binding->plan;
  if (!lpx_plan_takes_risks(plan)) return;
  const bool together =
      plan->rules.kind == LAPROX_POLICY_CRITICALKV && plan->rules.scope == LAPROX_SCOPE_LAYER;
  for (uint32_t layer = plan->is_scored ? 0 : plan->first_layer; layer < plan->shape.n_layers; layer++)
    if (plan->layers[layer].n_blocks)
      append(binding, layer, binding->own_scores, binding->scores,
             together ? plan->selection.k[layer] : plan->budget - plan->rules.window, !together);
  lpx_program_barrier(binding->program);
}
