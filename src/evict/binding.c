/* binding.c: a plan's steps over an application's buffers. */
#include "evict/evict.h"

#include <string.h>

laprox_result lpx_check_buffer(const laprox_plan *plan, const char *where, const char *what,
                               laprox_buffer buffer, VkDeviceSize bytes, VkDeviceSize alignment) {
  const char *problem = NULL;
  if (!buffer.buffer)
    problem = "is missing";
  else if (buffer.size < bytes)
    problem = "is too small";
  else if (buffer.offset % alignment)
    problem = "is not aligned";
  if (!problem) return LAPROX_OK;
  return lpx_fail(&plan->context->host, LAPROX_ERROR_INVALID_ARGUMENT,
                  "%s: %s %s (%llu bytes at %llu; needed: %llu bytes, alignment %llu)", where, what, problem,
                  (unsigned long long)buffer.size, (unsigned long long)buffer.offset,
                  (unsigned long long)bytes, (unsigned long long)alignment);
}

static laprox_result check_buffer(const laprox_plan *plan, const char *what, laprox_buffer buffer,
                                  VkDeviceSize bytes, VkDeviceSize alignment) {
  return lpx_check_buffer(plan, "laprox_binding_info", what, buffer, bytes, alignment);
}

static laprox_result check_layer(const laprox_plan *plan, const laprox_requirements *needs, uint32_t layer,
                                 const laprox_layer_buffers *buffers) {
  laprox_result result = LAPROX_OK;
  const lpx_rules *rules = &plan->rules;
  if (!lpx_rules_use_keys(rules) || layer < plan->first_layer) return result;
  if (lpx_rules_use_attention(rules))
    result = check_buffer(plan, "query", buffers->query, needs->query_bytes, needs->alignment);
  if (!result && needs->factor_bytes)
    result = check_buffer(plan, "factor", buffers->factor, needs->factor_bytes, needs->alignment);
  if (!result && buffers->lse.buffer)
    result = check_buffer(plan, "lse", buffers->lse, (VkDeviceSize)plan->shape.n_heads * plan->query_rows * 4,
                          needs->alignment);
  for (uint32_t s = 0; s < plan->n_segments && !result; s++) {
    const VkDeviceSize bytes = lpx_segment_bytes(plan, layer, s);
    if (!bytes) continue;
    result = check_buffer(plan, "key", buffers->key[s], bytes, lpx_plan_cache_alignment(plan));
    if (!result && lpx_rules_use_values(rules))
      result = check_buffer(plan, "value", buffers->value[s], bytes, lpx_plan_cache_alignment(plan));
  }
  return result;
}

static laprox_result check_info(const laprox_plan *plan, const laprox_binding_info *info) {
  laprox_requirements needs;
  laprox_plan_requirements(plan, &needs);
  if (plan->budget == UINT32_MAX)
    return lpx_fail(&plan->context->host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_binding_create: the plan keeps everything and has no steps");
  laprox_result result = check_buffer(plan, "scratch", info->scratch, needs.scratch_bytes, needs.alignment);
  if (!result && needs.scores_bytes)
    result = check_buffer(plan, "scores", info->scores, needs.scores_bytes, needs.alignment);
  if (!result) result = check_buffer(plan, "result", info->result, needs.result_bytes, needs.alignment);
  if (!result && needs.keep_mask_bytes)
    result = check_buffer(plan, "keep_mask", info->keep_mask, needs.keep_mask_bytes, 4);
  for (uint32_t layer = 0; layer < plan->shape.n_layers && !result; layer++)
    result = check_layer(plan, &needs, layer, &info->layers[layer]);
  return result;
}

static void append_tables(laprox_binding *binding) {
  const laprox_plan *plan = binding->plan;
  lpx_program_update(binding->program,
                     lpx_buffer_part(binding->state, 0, (VkDeviceSize)plan->state.n_table_words * 4),
                     plan->tables, (size_t)plan->state.n_table_words * 4);
  lpx_program_update(binding->program,
                     lpx_buffer_part(binding->result, (VkDeviceSize)plan->result.heads * 4,
                                     (VkDeviceSize)(plan->n_heads_all + 1) * HEAD_WORDS * 4),
                     plan->tables, (size_t)(plan->n_heads_all + 1) * HEAD_WORDS * 4);
  lpx_program_fill(binding->program,
                   lpx_buffer_part(binding->result, 0, (VkDeviceSize)plan->result.heads * 4), 0);
  lpx_program_barrier(binding->program);
  for (uint32_t layer = 0; layer < plan->first_layer; layer++) {
    const VkDeviceSize inverse = (VkDeviceSize)(plan->state.inverses + layer) * 4;
    const VkDeviceSize scale = (VkDeviceSize)(plan->result.counters + 2 * layer + 1) * 4;
    lpx_program_update(binding->program, lpx_buffer_part(binding->state, inverse, 4),
                       &plan->layer_scales[layer], 4);
    lpx_program_update(binding->program, lpx_buffer_part(binding->result, scale, 4),
                       &plan->layer_scales[layer], 4);
  }
  if (plan->first_layer) lpx_program_barrier(binding->program);
}

static void choose_place(laprox_binding *binding, laprox_buffer scratch, uint32_t place) {
  const laprox_plan *plan = binding->plan;
  const VkDeviceSize bytes = (VkDeviceSize)plan->work.n_words * 4;
  binding->softmax = plan->state.softmax + place * plan->state.softmax_words;
  if (bytes) binding->work = lpx_buffer_part(scratch, plan->work_offset + place * plan->work_stride, bytes);
}

static void append_layer(laprox_binding *binding, uint32_t layer) {
  const laprox_plan *plan = binding->plan;
  const uint32_t n_tiles = plan->layers[layer].n_tiles;
  lpx_program_begin_section(binding->program, plan->n_places);
  if (!lpx_rules_use_keys(&plan->rules)) {
    lpx_reduce_append_synthetic(binding, layer);
  } else if (lpx_plan_uses_attention(plan)) {
    if (plan->matrix_size) lpx_matrix_append_operands(binding, layer);
    lpx_attention_norm_append_softmax(binding, layer);
    if (lpx_plan_stores_window(plan)) lpx_risk_append_attention(binding, layer);
    for (uint32_t tile = 0; tile < n_tiles && !lpx_plan_stores_window(plan); tile += plan->strip_tiles) {
      const uint32_t end = n_tiles - tile > plan->strip_tiles ? tile + plan->strip_tiles : n_tiles;
      const bool before = plan->rules.pool_before;
      const uint32_t stored = before && tile ? tile - 1 : tile;
      lpx_attention_norm_append(binding, layer, stored, before && end < n_tiles ? end + 1 : end);
      if (before) lpx_reduce_append_before(binding, layer, stored, tile, end);
      if (lpx_plan_uses_values(plan)) lpx_value_append(binding, layer, plan->work.raw, tile, end);
    }
  }
  lpx_entry_score_append(binding, layer);
  if (lpx_plan_takes_risks(plan)) lpx_risk_append(binding, layer);
  lpx_reduce_append(binding, layer);
  lpx_program_mark_step(binding->program);
}

/* The last of the last layer's steps. */
static void append_sums(laprox_binding *binding) {
  lpx_program_begin_section(binding->program, 1);
  lpx_reduce_append_sums(binding);
  lpx_program_mark_step(binding->program);
}

static laprox_result build(laprox_binding *binding, const laprox_binding_info *info) {
  const laprox_plan *plan = binding->plan;
  const laprox_host *host = &plan->context->host;
  const laprox_result result = lpx_program_create(plan->context, "eviction", &binding->program);
  if (result) return result;
  const uint32_t n_layers = plan->shape.n_layers;
  binding->layers = lpx_allocate(host, n_layers, sizeof *binding->layers);
  binding->layer_steps = lpx_allocate(host, (size_t)n_layers + 1, sizeof *binding->layer_steps);
  if (!binding->layers || !binding->layer_steps) return lpx_fail_memory(host, "a binding");
  memcpy(binding->layers, info->layers, n_layers * sizeof *binding->layers);
  binding->state = lpx_buffer_part(info->scratch, 0, (VkDeviceSize)plan->state.n_words * 4);
  binding->select =
      lpx_buffer_part(info->scratch, plan->select_offset, (VkDeviceSize)plan->select.n_words * 4);
  const VkDeviceSize scores_bytes = (VkDeviceSize)plan->n_blocks * BLOCK_ENTRIES * 4;
  binding->own_scores = lpx_buffer_part(info->scratch, plan->own_scores_offset,
                                        (VkDeviceSize)plan->selection.n_blocks * BLOCK_ENTRIES * 4);
  binding->scores = lpx_buffer_part(info->scores, 0, scores_bytes);
  binding->result = lpx_buffer_part(info->result, 0, (VkDeviceSize)plan->result.n_words * 4);
  append_tables(binding);
  lpx_program_limit_steps(binding->program, plan->step_cost);
  for (uint32_t layer = 0; layer < n_layers; layer++) {
    binding->layer_steps[layer] = layer ? lpx_program_n_steps(binding->program) : 0;
    if (layer < plan->first_layer) continue;
    choose_place(binding, info->scratch, layer % plan->n_places);
    append_layer(binding, layer);
  }
  if (plan->first_layer < n_layers) append_sums(binding);
  binding->layer_steps[n_layers] = lpx_program_n_steps(binding->program);
  lpx_program_limit_steps(binding->program, 0);
  lpx_select_append(binding);
  lpx_keep_mask_append(binding, info->keep_mask);
  if (plan->retain_scores) lpx_compact_append_scores(binding);
  return lpx_program_finish_building(binding->program);
}

laprox_result laprox_binding_create(const laprox_plan *plan, const laprox_binding_info *info,
                                    laprox_binding **out) {
  *out = NULL;
  laprox_result result = check_info(plan, info);
  if (result) return result;
  laprox_binding *binding = lpx_allocate(&plan->context->host, 1, sizeof *binding);
  if (!binding) return lpx_fail_memory(&plan->context->host, "a binding");
  binding->plan = plan;
  result = build(binding, info);
  if (result) {
    laprox_binding_destroy(binding);
    return result;
  }
  *out = binding;
  return LAPROX_OK;
}

void laprox_binding_destroy(laprox_binding *binding) {
  if (!binding) return;
  const laprox_host *host = &binding->plan->context->host;
  lpx_program_destroy(binding->program);
  lpx_release(host, binding->layers);
  lpx_release(host, binding->layer_steps);
  lpx_release(host, binding);
}

laprox_result laprox_cmd_steps(VkCommandBuffer command_buffer, const laprox_binding *binding, uint32_t first,
                               uint32_t count) {
  const uint32_t n_steps = lpx_program_n_steps(binding->program);
  if (first > n_steps || count > n_steps - first)
    return lpx_fail(&binding->plan->context->host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_cmd_steps: steps %u + %u of %u", first, count, n_steps);
  const laprox_result result = lpx_vk_check_lost(binding->plan->context);
  if (!result) lpx_program_record(binding->program, command_buffer, first, count);
  return result;
}

uint32_t laprox_binding_n_steps(const laprox_binding *binding) {
  return lpx_program_n_steps(binding->program);
}

void laprox_binding_layer_steps(const laprox_binding *binding, uint32_t layer, uint32_t *first,
                                uint32_t *count) {
  const uint32_t n_layers = binding->plan->shape.n_layers;
  if (layer > n_layers) layer = n_layers;
  *first = binding->layer_steps[layer];
  *count =
      (layer < n_layers ? binding->layer_steps[layer + 1] : lpx_program_n_steps(binding->program)) - *first;
}

uint32_t laprox_binding_n_rounds(const laprox_binding *binding) {
  return binding->n_rounds;
}

void laprox_binding_round(const laprox_binding *binding, uint32_t round, laprox_round *out) {
  if (round >= binding->n_rounds) round = binding->n_rounds - 1;
  const uint32_t n_steps = lpx_program_n_steps(binding->program);
  *out = binding->rounds[round];
  out->count = (round + 1 < binding->n_rounds ? binding->rounds[round + 1].first : n_steps) - out->first;
}

uint64_t laprox_binding_step_cost(const laprox_binding *binding, uint32_t step) {
  return lpx_program_step_cost(binding->program, step);
}
