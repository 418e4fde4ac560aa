/* rows.c: where the entries of a cache stand, and what of it one storage buffer binding can hold. */
#include "evict/evict.h"

/* ---- what the application says ---- */

/* Strides may be long where size_t is short. */
static uint64_t element_bytes(laprox_dtype dtype, uint64_t n) {
  return n / 32 * laprox_dtype_bytes(dtype, 32) + laprox_dtype_bytes(dtype, n % 32);
}

static uint32_t head_rows(const laprox_segment *part) {
  return part->head_rows ? part->head_rows : part->n_entries;
}

uint32_t lpx_segment_rows(const laprox_plan_info *info, uint32_t segment, uint32_t layer, uint32_t head,
                          uint32_t *first_row) {
  const laprox_segment *part = &info->segments[segment];
  if (!part->cu_seqlens) {
    *first_row = part->head_stride ? 0 : head * head_rows(part);
    return part->n_entries;
  }
  const uint32_t *rows = part->cu_seqlens + (size_t)layer * (info->shape.n_kv_heads + 1) + head;
  *first_row = rows[0];
  return rows[1] - rows[0];
}

/* Rows must begin where 32-bit words do, and not overlap. */
static laprox_result check_stride(const laprox_host *host, const laprox_plan_info *info, uint32_t segment,
                                  const char *name, uint64_t stride, uint64_t limit) {
  const laprox_dtype dtype = info->cache_dtype ? info->cache_dtype : LAPROX_DTYPE_F16;
  const lpx_unit unit = lpx_dtype_unit(dtype);
  const uint32_t step = unit.bytes < 4 ? 4 / unit.bytes : unit.elements;
  if (!stride || (stride >= info->shape.head_dim && stride <= limit && stride % step == 0)) return LAPROX_OK;
  return lpx_fail(
      host, LAPROX_ERROR_INVALID_ARGUMENT,
      "laprox_plan_info: segment %u has %s %llu; %s takes from head_dim (%u) to %llu, in multiples of %u",
      segment, name, (unsigned long long)stride, laprox_dtype_name(dtype), info->shape.head_dim,
      (unsigned long long)limit, step);
}

static laprox_result check_dense(const laprox_host *host, const laprox_plan_info *info, uint32_t segment) {
  const laprox_segment *part = &info->segments[segment];
  if (part->head_rows && part->head_rows < part->n_entries)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_plan_info: segment %u has %u head_rows for %u entries", segment, part->head_rows,
                    part->n_entries);
  if (part->head_rows && part->head_stride)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_plan_info: segment %u has both head_rows (%u) and head_stride (%llu)", segment,
                    part->head_rows, (unsigned long long)part->head_stride);
  const uint64_t rows = (uint64_t)head_rows(part) * info->shape.n_kv_heads;
  if (rows <= UINT32_MAX || part->head_stride) return LAPROX_OK;
  return lpx_fail(host, LAPROX_ERROR_UNSUPPORTED,
                  "laprox_plan_info: segment %u has %llu rows a layer; the limit is 2^32 - 1", segment,
                  (unsigned long long)rows);
}

laprox_result lpx_segment_check(const laprox_host *host, const laprox_plan_info *info, uint32_t segment) {
  const laprox_segment *part = &info->segments[segment];
  const uint32_t n_heads = info->shape.n_kv_heads;
  laprox_result result = check_stride(host, info, segment, "entry_stride", part->entry_stride, 1u << 26);
  if (!result)
    result =
        check_stride(host, info, segment, "head_stride", part->head_stride, (UINT64_C(1) << 40) / n_heads);
  if (result) return result;
  if (!part->cu_seqlens) return check_dense(host, info, segment);
  const uint32_t *rows = part->cu_seqlens;
  for (uint32_t layer = 0; layer < info->shape.n_layers; layer++, rows += n_heads + 1)
    for (uint32_t head = 0; head <= n_heads; head++)
      if (head ? rows[head] < rows[head - 1] : rows[0])
        return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                        "laprox_plan_info: segment %u, layer %u: cu_seqlens[%u] is %u, after %u", segment,
                        layer, head, rows[head], head ? rows[head - 1] : 0);
  return LAPROX_OK;
}

void lpx_rows_init(laprox_plan *plan, const laprox_plan_info *info) {
  for (uint32_t s = 0; s < plan->n_segments; s++) {
    const laprox_segment *part = &info->segments[s];
    const uint64_t entry = part->entry_stride ? part->entry_stride : info->shape.head_dim;
    plan->strides[s] = (lpx_strides){.entry_bytes = element_bytes(plan->dtype, entry),
                                     .head_bytes = element_bytes(plan->dtype, part->head_stride)};
  }
}

/* ---- bytes of a layer's range ---- */

typedef struct span {
  uint64_t begin, end; /* end 0: nothing */
} span;

static uint32_t segment_begin(const uint32_t *row, uint32_t segment) {
  return segment ? row[HEAD_ROWS] : 0;
}

/* Entries [begin, end) of a head, as far as they stand in the segment. */
static span head_span(const laprox_plan *plan, uint32_t layer, uint32_t segment, uint32_t head,
                      uint32_t begin, uint32_t end) {
  const uint32_t *row = lpx_head_row(plan, layer, head);
  const lpx_strides *strides = &plan->strides[segment];
  const uint32_t first = segment_begin(row, segment), last = first + row[HEAD_ROWS + 2 * segment];
  const uint64_t base = head * strides->head_bytes + row[HEAD_ROW + 2 * segment] * strides->entry_bytes;
  if (begin < first) begin = first;
  if (end > last) end = last;
  if (begin >= end) return (span){0, 0};
  return (span){base + (begin - first) * strides->entry_bytes,
                base + (end - first - 1) * strides->entry_bytes + lpx_plan_row_bytes(plan)};
}

static span join(span a, span b) {
  if (!a.end || !b.end) return a.end ? a : b;
  return (span){a.begin < b.begin ? a.begin : b.begin, a.end > b.end ? a.end : b.end};
}

static span group_span(const laprox_plan *plan, uint32_t layer, const lpx_head_group *group) {
  span all = {0, 0};
  for (uint32_t head = group->first_head; head < group->end_head; head++)
    all = join(all, head_span(plan, layer, group->segment, head, group->begin_entry, group->end_entry));
  return all;
}

VkDeviceSize lpx_segment_bytes(const laprox_plan *plan, uint32_t layer, uint32_t segment) {
  const lpx_head_group all = {
      .segment = segment, .end_head = plan->shape.n_kv_heads, .end_entry = UINT32_MAX};
  return group_span(plan, layer, &all).end;
}

static uint32_t elements(uint64_t bytes, lpx_unit unit) {
  return (uint32_t)(bytes / unit.bytes * unit.elements);
}

laprox_buffer lpx_head_group_range(const laprox_plan *plan, uint32_t layer, const lpx_head_group *group,
                                   laprox_buffer whole, lpx_unit unit, lpx_row_layout *rows) {
  const span part = group_span(plan, layer, group);
  const lpx_strides *strides = &plan->strides[group->segment];
  *rows = (lpx_row_layout){.segment = group->segment,
                           .begin_entry = group->begin_entry,
                           .end_entry = group->end_entry,
                           .entry_stride = elements(strides->entry_bytes, unit),
                           .head_stride = elements(strides->head_bytes, unit)};
  if (!part.end) return (laprox_buffer){0};
  uint32_t before = 0;
  const laprox_buffer range =
      lpx_buffer_aligned_units(plan->context, unit, whole, part.begin, part.end - part.begin, &before);
  rows->origin = elements(part.begin, unit) - before;
  return range;
}

/* ---- head groups ---- */

static VkDeviceSize room(const laprox_plan *plan) {
  return lpx_buffer_units_room(plan->context, lpx_dtype_unit(plan->dtype));
}

static bool fits(const laprox_plan *plan, span part) {
  return part.end - part.begin <= room(plan);
}

/* Where a binding of one head must end that begins with an entry; the softmax pass takes whole splits. */
static uint32_t cut_head(const laprox_plan *plan, uint32_t layer, uint32_t segment, uint32_t head,
                         uint32_t begin) {
  const uint32_t first = segment_begin(lpx_head_row(plan, layer, head), segment);
  if (fits(plan, head_span(plan, layer, segment, head, begin, UINT32_MAX))) return UINT32_MAX;
  const uint64_t n = (room(plan) - lpx_plan_row_bytes(plan)) / plan->strides[segment].entry_bytes + 1;
  return (uint32_t)(((begin > first ? begin : first) + n) / SPLIT_ENTRIES * SPLIT_ENTRIES);
}

static uint32_t end_of_heads(const laprox_plan *plan, uint32_t layer, uint32_t segment, uint32_t head) {
  span all = head_span(plan, layer, segment, head, 0, UINT32_MAX);
  while (fits(plan, all) && ++head < plan->shape.n_kv_heads)
    all = join(all, head_span(plan, layer, segment, head, 0, UINT32_MAX));
  return head;
}

static uint32_t limit(uint32_t value, uint32_t low, uint32_t high) {
  return value < low ? low : value > high ? high : value;
}

/* The item of a head that holds an entry, or the one behind those before it. */
static uint32_t item_of(const uint32_t *row, uint32_t item_word, uint32_t entry, bool behind) {
  if (item_word == HEAD_FIRST_SPLIT) return row[item_word] + entry / SPLIT_ENTRIES;
  const uint32_t candidate = entry > row[HEAD_N_SINKS] ? entry - row[HEAD_N_SINKS] : 0;
  const uint32_t most = row[HEAD_N_CANDIDATES];
  return row[item_word] +
         ((candidate < most ? candidate : most) + (behind ? TILE_ENTRIES - 1 : 0)) / TILE_ENTRIES;
}

bool lpx_head_group_next(const laprox_plan *plan, uint32_t layer, uint32_t item_word, uint32_t begin,
                         uint32_t end, lpx_head_group *group) {
  const uint32_t n_heads = plan->shape.n_kv_heads;
  uint32_t segment = group->segment, head = group->end_head, entry = 0;
  if (group->end_entry && group->end_entry != UINT32_MAX) {
    head = group->first_head;
    entry = group->end_entry;
  } else if (head == n_heads) {
    head = 0;
    segment++;
  }
  if (segment >= plan->n_segments) return false;
  uint32_t end_head = entry ? head : end_of_heads(plan, layer, segment, head), end_entry = UINT32_MAX;
  if (end_head == head) {
    end_head = head + 1;
    end_entry = cut_head(plan, layer, segment, head, entry);
  }
  const uint32_t *row = lpx_head_row(plan, layer, head);
  uint32_t last = end_head < n_heads ? lpx_head_row(plan, layer, end_head)[item_word] : end;
  if (end_entry != UINT32_MAX) last = item_of(row, item_word, end_entry, true);
  *group = (lpx_head_group){.segment = segment,
                            .first_head = head,
                            .end_head = end_head,
                            .begin_entry = entry,
                            .end_entry = end_entry,
                            .first_item = limit(item_of(row, item_word, entry, false), begin, end),
                            .end_item = limit(last, begin, end)};
  return true;
}

bool lpx_head_group_is_cut(const lpx_head_group *group) {
  return group->begin_entry || group->end_entry != UINT32_MAX;
}

/* A split of a head is the least that a binding can hold. */
laprox_result lpx_rows_check(const laprox_plan *plan) {
  for (uint32_t layer = 0; layer < plan->shape.n_layers; layer++)
    for (uint32_t head = 0; head < plan->shape.n_kv_heads; head++)
      for (uint32_t s = 0; s < plan->n_segments; s++) {
        const uint32_t first = segment_begin(lpx_head_row(plan, layer, head), s);
        const span part = head_span(plan, layer, s, head, first, first + SPLIT_ENTRIES);
        const uint64_t bytes = part.end - part.begin + plan->context->max_range - room(plan);
        if (bytes > plan->context->max_range)
          return lpx_fail(&plan->context->host, LAPROX_ERROR_UNSUPPORTED,
                          "%d entries of one KV head span %llu bytes, the device's maxStorageBufferRange is "
                          "%llu",
                          SPLIT_ENTRIES, (unsigned long long)bytes,
                          (unsigned long long)plan->context->max_range);
      }
  return LAPROX_OK;
}
