/* compact.c: a layer's kept rows of K and V, packed out of place or in place. */
#include "evict/evict.h"

typedef struct compact_push {
  uint32_t n_groups, heads, cu_seqlens, indices, first_head, end_head;
  lpx_row_layout rows;
  uint32_t to_row, to_end, to_residual;
} compact_push;
_Static_assert(sizeof(compact_push) == 60, "push constants of shaders/evict/compact.comp");

typedef struct in_place_push {
  uint32_t n_groups, heads, cu_seqlens, indices, first_head;
  lpx_row_layout rows;
  uint32_t to_begin, to_end, to_origin;
} in_place_push;
_Static_assert(sizeof(in_place_push) == 56, "push constants of shaders/evict/compact_in_place.comp");

typedef struct scores_push {
  uint32_t n_groups, heads, cu_seqlens, indices, layer_block, window;
} scores_push;

enum { WIDE_WORDS = 4 }; /* that a thread copies at once where rows allow it */

static const lpx_unit word_unit = {1, 4}, wide_unit = {1, 4 * WIDE_WORDS};

static uint32_t row_words(const laprox_plan *plan) {
  return (uint32_t)lpx_plan_row_bytes(plan) / 4;
}

/* Whether some head takes several bindings. */
static bool has_cuts(const laprox_plan *plan) {
  for (uint32_t layer = 0; layer < plan->shape.n_layers; layer++)
    for (lpx_head_group group = {0}; lpx_head_group_next(plan, layer, HEAD_FIRST_SPLIT, 0, 0, &group);)
      if (lpx_head_group_is_cut(&group)) return true;
  return false;
}

laprox_result lpx_compact_init(laprox_plan *plan) {
  const uint32_t words = row_words(plan);
  laprox_context *context = plan->context;
  const uint32_t vectors = words / WIDE_WORDS;
  laprox_result result = lpx_pipeline_get(context, "compact", 3, &words, 1, &plan->compact);
  if (!result && words % WIDE_WORDS == 0)
    result = lpx_pipeline_get(context, "compact_wide", 3, &vectors, 1, &plan->compact_wide);
  if (!result) result = lpx_pipeline_get(context, "compact_in_place", 2, &words, 1, &plan->compact_in_place);
  if (!result && has_cuts(plan))
    result = lpx_pipeline_get(context, "compact_across", 3, &words, 1, &plan->compact_across);
  if (!result && plan->retain_scores)
    result = lpx_pipeline_get(context, "compact_scores", 2, NULL, 0, &plan->compact_scores);
  return result;
}

void lpx_compact_append_scores(laprox_binding *binding) {
  const laprox_plan *plan = binding->plan;
  const VkDeviceSize block_bytes = BLOCK_ENTRIES * 4;
  for (uint32_t layer = 0; layer < plan->shape.n_layers; layer++) {
    const lpx_layer_items *items = &plan->layers[layer];
    const uint32_t first = layer * plan->shape.n_kv_heads;
    if (!items->n_blocks) continue;
    scores_push push = {.heads = plan->result.heads + first * HEAD_WORDS,
                        .cu_seqlens = plan->result.cu_seqlens + first,
                        .indices = plan->result.indices,
                        .layer_block = items->first_block,
                        .window = plan->rules.window};
    const laprox_buffer ranges[] = {
        lpx_buffer_part(binding->scores, items->first_block * block_bytes, items->n_blocks * block_bytes),
        binding->result};
    lpx_program_dispatch(binding->program, &plan->compact_scores, ranges, &push, sizeof push,
                         plan->shape.n_kv_heads, items->n_blocks * block_bytes);
  }
  lpx_program_barrier(binding->program);
  lpx_program_mark_step(binding->program);
}

/* What stands in one group of K or V and belongs into another of the same heads. */
static void append_move(laprox_compaction *compaction, const laprox_compaction_info *info,
                        const lpx_head_group *from, const lpx_head_group *to, laprox_buffer rows) {
  const laprox_plan *plan = compaction->plan;
  const uint32_t first = info->layer * plan->shape.n_kv_heads, slice_words = 16;
  const bool across = from->begin_entry != to->begin_entry;
  lpx_row_layout to_layout;
  in_place_push push = {.heads = plan->result.heads + first * HEAD_WORDS,
                        .cu_seqlens = plan->result.cu_seqlens + first,
                        .indices = plan->result.indices,
                        .first_head = from->first_head,
                        .to_begin = to->begin_entry,
                        .to_end = to->end_entry};
  const laprox_buffer range = lpx_head_group_range(plan, info->layer, from, rows, word_unit, &push.rows);
  const laprox_buffer to_range = lpx_head_group_range(plan, info->layer, to, rows, word_unit, &to_layout);
  if (!range.size) return;
  push.to_origin = to_layout.origin;
  const laprox_buffer ranges[] = {
      range, lpx_buffer_part(info->result, 0, (VkDeviceSize)plan->result.n_words * 4), to_range};
  const uint64_t n_slices = (row_words(plan) + slice_words - 1) / slice_words;
  lpx_program_dispatch(compaction->program, across ? &plan->compact_across : &plan->compact_in_place, ranges,
                       &push, sizeof push, (from->end_head - from->first_head) * n_slices, range.size);
}

/* K or V of a group to the front of each head's rows, which is in groups before it where the head is cut. Their rows have
   moved by then. */
static void append_in_place(laprox_compaction *compaction, const laprox_compaction_info *info,
                            const lpx_head_group *group, laprox_buffer rows) {
  const laprox_plan *plan = compaction->plan;
  lpx_head_group to = {0};
  while (lpx_head_group_next(plan, info->layer, HEAD_FIRST_SPLIT, 0, 0, &to) &&
         (to.first_head < group->first_head || to.begin_entry < group->begin_entry)) {
    if (to.first_head < group->first_head) continue;
    append_move(compaction, info, group, &to, rows);
    lpx_program_barrier(compaction->program);
  }
  append_move(compaction, info, group, group, rows);
}

/* Rows [row, end) of the destination, as far as they come from a group of the source. */
static void append_rows(laprox_compaction *compaction, const laprox_compaction_info *info,
                        const lpx_head_group *group, uint32_t row, uint32_t end, laprox_buffer source,
                        laprox_buffer to) {
  const laprox_plan *plan = compaction->plan;
  const uint32_t first = info->layer * plan->shape.n_kv_heads;
  const VkDeviceSize row_bytes = lpx_plan_row_bytes(plan), to_bytes = (end - row) * row_bytes;
  compact_push push = {.heads = plan->result.heads + first * HEAD_WORDS,
                       .cu_seqlens = plan->result.cu_seqlens + first,
                       .indices = plan->result.indices,
                       .first_head = group->first_head,
                       .end_head = group->end_head,
                       .to_row = row,
                       .to_end = end};
  const laprox_buffer source_range =
      lpx_head_group_range(plan, info->layer, group, source, word_unit, &push.rows);
  if (!source_range.size) return;
  VkDeviceSize to_before = 0;
  const laprox_buffer to_range = lpx_buffer_aligned_part(
      plan->context, to, (row - info->cu_seqlens[first]) * row_bytes, to_bytes, &to_before);
  push.to_residual = (uint32_t)(to_before / 4);
  const bool wide = (row_words(plan) | push.rows.origin | push.rows.entry_stride | push.rows.head_stride |
                     push.to_residual) %
                        WIDE_WORDS ==
                    0;
  if (wide) {
    (void)lpx_head_group_range(plan, info->layer, group, source, wide_unit, &push.rows);
    push.to_residual /= WIDE_WORDS;
  }
  const laprox_buffer ranges[] = {
      source_range, lpx_buffer_part(info->result, 0, (VkDeviceSize)plan->result.n_words * 4), to_range};
  lpx_program_dispatch(compaction->program, wide ? &plan->compact_wide : &plan->compact, ranges, &push,
                       sizeof push, (end - row + COMPACT_ROWS - 1) / COMPACT_ROWS, 2 * to_bytes);
}

/* All that heads of a group keep, as much at a time as one binding of the destination holds. */
static void append_group(laprox_compaction *compaction, const laprox_compaction_info *info,
                         const lpx_head_group *group, laprox_buffer source, laprox_buffer to) {
  const laprox_plan *plan = compaction->plan;
  const uint32_t *cu_seqlens = info->cu_seqlens + (size_t)info->layer * plan->shape.n_kv_heads;
  const VkDeviceSize room = plan->context->max_range - plan->context->range_alignment;
  const VkDeviceSize fit = room / lpx_plan_row_bytes(plan);
  const uint32_t last = cu_seqlens[group->end_head];
  for (uint32_t row = cu_seqlens[group->first_head], end; row < last; row = end) {
    end = last - row > fit ? row + (uint32_t)fit : last;
    append_rows(compaction, info, group, row, end, source, to);
    if (end < last) lpx_program_barrier(compaction->program);
  }
}

static laprox_result check_buffer(const laprox_plan *plan, const char *what, laprox_buffer buffer,
                                  VkDeviceSize bytes, VkDeviceSize alignment) {
  return lpx_check_buffer(plan, "laprox_compaction_info", what, buffer, bytes, alignment);
}

static laprox_result check_buffers(const laprox_plan *plan, const laprox_compaction_info *info,
                                   VkDeviceSize packed_bytes) {
  laprox_result result = check_buffer(plan, "result", info->result, (VkDeviceSize)plan->result.n_words * 4,
                                      plan->context->range_alignment);
  for (uint32_t s = 0; s < plan->n_segments && !result; s++) {
    const VkDeviceSize bytes = lpx_segment_bytes(plan, info->layer, s);
    if (!bytes) continue;
    result = check_buffer(plan, "source key", info->source.key[s], bytes, lpx_plan_cache_alignment(plan));
    if (!result)
      result =
          check_buffer(plan, "source value", info->source.value[s], bytes, lpx_plan_cache_alignment(plan));
  }
  if (result || info->in_place || !packed_bytes) return result;
  result = check_buffer(plan, "key", info->key, packed_bytes, 4);
  return result ? result : check_buffer(plan, "value", info->value, packed_bytes, 4);
}

static laprox_result check_info(const laprox_plan *plan, const laprox_compaction_info *info) {
  const laprox_host *host = &plan->context->host;
  if (plan->budget == UINT32_MAX || info->layer >= plan->shape.n_layers)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_compaction_create: layer %u of a plan with %u to evict", info->layer,
                    plan->budget == UINT32_MAX ? 0 : plan->shape.n_layers);
  const uint32_t *cu_seqlens = info->cu_seqlens + (size_t)info->layer * plan->shape.n_kv_heads;
  for (uint32_t head = 0; head < plan->shape.n_kv_heads; head++)
    if (cu_seqlens[head] > cu_seqlens[head + 1] || cu_seqlens[head + 1] > plan->n_kept)
      return lpx_fail(
          host, LAPROX_ERROR_INVALID_ARGUMENT,
          "laprox_compaction_create: cu_seqlens of layer %u, KV head %u are %u, %u; %llu entries are kept",
          info->layer, head, cu_seqlens[head], cu_seqlens[head + 1], (unsigned long long)plan->n_kept);
  if (info->in_place && plan->n_segments != 1)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_compaction_create: a cache of two segments can't be packed in place");
  return check_buffers(plan, info,
                       (cu_seqlens[plan->shape.n_kv_heads] - cu_seqlens[0]) * lpx_plan_row_bytes(plan));
}

/* Whether bindings of different dispatches may overlap: they are rounded down to the device's alignment,
   segments share their destination, and an application may keep everything in one buffer. */
static bool share_buffers(const laprox_plan *plan, const laprox_compaction_info *info) {
  const laprox_layer_buffers *from = &info->source;
  const VkBuffer all[] = {from->key[0].buffer, from->value[0].buffer, info->key.buffer, info->value.buffer};
  for (int i = 0; i < (info->in_place ? 2 : 4); i++)
    for (int j = 0; j < i; j++)
      if (all[i] == all[j]) return true;
  lpx_head_group group = {0};
  (void)lpx_head_group_next(plan, info->layer, HEAD_FIRST_SPLIT, 0, 0, &group);
  return plan->n_segments > 1 || group.end_head < plan->shape.n_kv_heads || lpx_head_group_is_cut(&group);
}

static laprox_result build(laprox_compaction *compaction, const laprox_compaction_info *info) {
  const laprox_plan *plan = compaction->plan;
  const laprox_result result = lpx_program_create(plan->context, "compaction", &compaction->program);
  if (result) return result;
  const bool shared = share_buffers(plan, info);
  lpx_head_group group = {0};
  while (lpx_head_group_next(plan, info->layer, HEAD_FIRST_SPLIT, 0, 0, &group))
    for (int which = 0; which < 2; which++) {
      const laprox_buffer source = (which ? info->source.value : info->source.key)[group.segment];
      if (info->in_place)
        append_in_place(compaction, info, &group, source);
      else
        append_group(compaction, info, &group, source, which ? info->value : info->key);
      if (shared) lpx_program_barrier(compaction->program);
    }
  return lpx_program_finish_building(compaction->program);
}

static void remember_buffers(laprox_compaction *compaction, const laprox_compaction_info *info) {
  laprox_buffer *next = compaction->buffers;
  *next++ = info->in_place ? info->source.key[0] : info->key;
  *next++ = info->in_place ? info->source.value[0] : info->value;
  for (uint32_t s = 0; s < compaction->plan->n_segments; s++) {
    *next++ = info->source.key[s];
    *next++ = info->source.value[s];
  }
}

laprox_result laprox_compaction_create(const laprox_plan *plan, const laprox_compaction_info *info,
                                       laprox_compaction **out) {
  *out = NULL;
  laprox_result result = check_info(plan, info);
  if (result) return result;
  laprox_compaction *compaction = lpx_allocate(&plan->context->host, 1, sizeof *compaction);
  if (!compaction) return lpx_fail_memory(&plan->context->host, "a compaction");
  compaction->plan = plan;
  remember_buffers(compaction, info);
  result = build(compaction, info);
  if (result) {
    laprox_compaction_destroy(compaction);
    return result;
  }
  *out = compaction;
  return LAPROX_OK;
}

void laprox_compaction_destroy(laprox_compaction *compaction) {
  if (!compaction) return;
  lpx_program_destroy(compaction->program);
  lpx_release(&compaction->plan->context->host, compaction);
}

/* Bindings begin at multiples of the alignment. */
static bool overlaps(const laprox_context *context, laprox_buffer a, laprox_buffer b) {
  const VkDeviceSize a_begin = a.offset - a.offset % context->range_alignment;
  const VkDeviceSize b_begin = b.offset - b.offset % context->range_alignment;
  return a.buffer == b.buffer && a.size && b.size && a_begin < b.offset + b.size &&
         b_begin < a.offset + a.size;
}

/* Whether one of two writes what the other touches. */
static bool conflict(const laprox_compaction *a, const laprox_compaction *b) {
  for (int i = 0; i < COMPACTION_BUFFERS; i++)
    for (int j = 0; j < COMPACTION_BUFFERS; j++)
      if ((i < COMPACTION_WRITES || j < COMPACTION_WRITES) &&
          overlaps(a->plan->context, a->buffers[i], b->buffers[j]))
        return true;
  return false;
}

/* Whether one of those recorded since the last barrier must have ended first. */
static bool must_wait(const laprox_compaction *const *recorded, uint32_t n, const laprox_compaction *next) {
  for (uint32_t i = 0; i < n; i++)
    if (conflict(recorded[i], next)) return true;
  return false;
}

laprox_result laprox_cmd_compact(VkCommandBuffer command_buffer, const laprox_compaction *const *compactions,
                                 uint32_t n_compactions) {
  if (!n_compactions) return LAPROX_OK;
  laprox_context *context = compactions[0]->plan->context;
  const laprox_result result = lpx_vk_check_lost(context);
  if (result) return result;
  lpx_record_barrier(context, command_buffer);
  for (uint32_t i = 0, since = 0; i < n_compactions; i++) {
    const laprox_compaction *next = compactions[i];
    if (must_wait(compactions + since, i - since, next)) {
      lpx_record_barrier(context, command_buffer);
      since = i;
    }
    lpx_program_record_bare(next->program, command_buffer, 0, lpx_program_n_steps(next->program));
  }
  lpx_record_barrier(context, command_buffer);
  return LAPROX_OK;
}
