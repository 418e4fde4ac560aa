/* keep_mask.c: what is kept as one bit for every entry. */
#include "evict/evict.h"

typedef struct mask_push {
  uint32_t n_groups, heads, cu_seqlens, indices, head_groups, first_word, residual;
} mask_push;
_Static_assert(sizeof(mask_push) == 28, "push constants of shaders/evict/keep_mask.comp");

enum { GROUP_WORDS = 128 };

/* Of the layers' first heads, and behind the last. */
static uint32_t first_word(const laprox_plan *plan, uint32_t layer) {
  return lpx_head_row(plan, layer, 0)[HEAD_MASK];
}

laprox_result lpx_keep_mask_init(laprox_plan *plan) {
  const VkDeviceSize room = plan->context->max_range - plan->context->range_alignment;
  if (!plan->keep_mask) return LAPROX_OK;
  for (uint32_t layer = 0; layer < plan->shape.n_layers; layer++) {
    const VkDeviceSize bytes = (VkDeviceSize)(first_word(plan, layer + 1) - first_word(plan, layer)) * 4;
    if (bytes > room)
      return lpx_fail(
          &plan->context->host, LAPROX_ERROR_UNSUPPORTED,
          "the keep-mask of layer %u takes %llu bytes, the device's maxStorageBufferRange is %llu", layer,
          (unsigned long long)bytes, (unsigned long long)plan->context->max_range);
  }
  return lpx_pipeline_get(plan->context, "keep_mask", 2, NULL, 0, &plan->mask);
}

static uint32_t most_words(const laprox_plan *plan, uint32_t layer) {
  uint32_t most = 0;
  for (uint32_t head = 0; head < plan->shape.n_kv_heads; head++) {
    const uint32_t *row = lpx_head_row(plan, layer, head);
    if (row[HEAD_WORDS + HEAD_MASK] - row[HEAD_MASK] > most)
      most = row[HEAD_WORDS + HEAD_MASK] - row[HEAD_MASK];
  }
  return most;
}

void lpx_keep_mask_append(laprox_binding *binding, laprox_buffer mask) {
  const laprox_plan *plan = binding->plan;
  if (!plan->keep_mask) return;
  for (uint32_t layer = 0; layer < plan->shape.n_layers; layer++) {
    const uint32_t first = first_word(plan, layer), head = layer * plan->shape.n_kv_heads;
    const VkDeviceSize bytes = (VkDeviceSize)(first_word(plan, layer + 1) - first) * 4;
    VkDeviceSize before = 0;
    const laprox_buffer part =
        lpx_buffer_aligned_part(plan->context, mask, (VkDeviceSize)first * 4, bytes, &before);
    mask_push push = {.heads = plan->result.heads + head * HEAD_WORDS,
                      .cu_seqlens = plan->result.cu_seqlens + head,
                      .indices = plan->result.indices,
                      .head_groups = (most_words(plan, layer) + GROUP_WORDS - 1) / GROUP_WORDS,
                      .first_word = first,
                      .residual = (uint32_t)before / 4};
    const laprox_buffer ranges[] = {binding->result, part};
    lpx_program_dispatch(binding->program, &plan->mask, ranges, &push, sizeof push,
                         (uint64_t)plan->shape.n_kv_heads * push.head_groups, bytes * 32);
  }
  lpx_program_barrier(binding->program);
  lpx_program_mark_step(binding->program);
}
