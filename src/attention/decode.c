/* decode.c: one query row over a ragged prefix and a dense tail, split into chunks and merged in order. */
#include "attention/attention.h"

typedef struct decode_push {
  uint32_t n_groups;
  uint32_t table_first;
  uint32_t first_head, n_heads;
  uint32_t first_row, first_slot;
  uint32_t key_first, value_first;
  uint32_t state_first, sum_first;
  float scale;
} decode_push;
_Static_assert(sizeof(decode_push) == 44, "decode.comp reads 11 words");

typedef struct merge_push {
  uint32_t n_groups;
  uint32_t table_first, second_table_first;
  uint32_t state_first, sum_first;
} merge_push;
_Static_assert(sizeof(merge_push) == 20, "merge.comp reads 5 words");

/* A KV head of a segment, as the shaders have it. */
typedef struct table_row {
  uint32_t first_row, n_rows, first_slot, unused;
} table_row;

#define UNIT_BYTES   16 /* of the scratch: uvec4 */
#define MAX_SEGMENTS 2

static uint32_t n_chunks(uint32_t n_rows) {
  return n_rows / LPX_DECODE_CHUNK + (n_rows % LPX_DECODE_CHUNK != 0);
}

VkDeviceSize lpx_decode_attention_scratch_bytes(const laprox_shape *shape, uint32_t max_entries) {
  /* Each of two segments may end within a chunk. */
  const VkDeviceSize n_slots = (VkDeviceSize)shape->n_kv_heads * (n_chunks(max_entries) + 1);
  const VkDeviceSize group = shape->n_heads / shape->n_kv_heads;
  const VkDeviceSize table = (VkDeviceSize)MAX_SEGMENTS * shape->n_kv_heads;
  return (table + n_slots * group * (1 + shape->head_dim / 4)) * UNIT_BYTES;
}

/* Uploads one segment's rows and gives its first free slot. */
static uint32_t append_table(lpx_program *program, const lpx_attention *attention,
                             const lpx_attention_segment *segment, laprox_buffer table, uint32_t slot) {
  enum { BATCH = 64 };
  table_row rows[BATCH];
  const uint32_t n_heads = attention->shape.n_kv_heads;
  for (uint32_t first = 0; first < n_heads; first += BATCH) {
    const uint32_t n = n_heads - first < BATCH ? n_heads - first : BATCH;
    for (uint32_t i = 0; i < n; i++) {
      const uint32_t n_rows = segment ? lpx_attention_n_rows(segment, first + i) : 0;
      const uint32_t first_row = n_rows ? lpx_attention_first_row(segment, first + i) : 0;
      rows[i] = (table_row){.first_row = first_row, .n_rows = n_rows, .first_slot = slot};
      slot += n_chunks(n_rows);
    }
    lpx_program_update(program,
                       lpx_buffer_part(table, (VkDeviceSize)first * UNIT_BYTES, (VkDeviceSize)n * UNIT_BYTES),
                       rows, n * sizeof rows[0]);
  }
  return slot;
}

static void append_chunks(lpx_program *program, const lpx_attention *attention, decode_push push,
                          laprox_buffer query, const lpx_attention_segment *segment, laprox_buffer scratch) {
  const laprox_shape *shape = &attention->shape;
  const uint32_t table_first = push.table_first;
  for (uint32_t head = 0, n; head < shape->n_kv_heads; head += n) {
    n = lpx_attention_heads_in_range(attention, segment, head);
    uint64_t end = 0, begin = UINT64_MAX, n_rows = 0;
    uint32_t n_groups = 0;
    for (uint32_t i = head; i < head + n; i++) {
      const uint32_t count = lpx_attention_n_rows(segment, i);
      if (!count) continue;
      const uint64_t first = lpx_attention_first_row(segment, i);
      if (first < begin) begin = first;
      if (first + count > end) end = first + count;
      n_groups += n_chunks(count);
      n_rows += count;
    }
    if (!n_groups) continue;
    const laprox_buffer ranges[] = {
        query, lpx_attention_rows(attention, segment->key, begin, end - begin, &push.key_first),
        lpx_attention_rows(attention, segment->value, begin, end - begin, &push.value_first), scratch};
    push.table_first = table_first + head;
    push.first_head = head;
    push.n_heads = n;
    push.first_row = (uint32_t)begin;
    lpx_program_dispatch(program, &attention->decode, ranges, &push, sizeof push, n_groups,
                         4 * n_rows * (shape->n_heads / shape->n_kv_heads) * shape->head_dim);
    push.first_slot += n_groups;
  }
}

void lpx_decode_attention_append(lpx_program *program, const lpx_attention *attention, laprox_buffer query,
                                 const lpx_attention_segment *segments, uint32_t n_segments,
                                 laprox_buffer scratch, laprox_buffer out) {
  const laprox_shape *shape = &attention->shape;
  const uint32_t group = shape->n_heads / shape->n_kv_heads;
  const VkDeviceSize table_bytes = (VkDeviceSize)shape->n_kv_heads * UNIT_BYTES;
  const VkDeviceSize row_bytes = (VkDeviceSize)shape->n_heads * shape->head_dim * sizeof(float);
  uint32_t first_slot[MAX_SEGMENTS + 1] = {0};
  for (uint32_t i = 0; i < MAX_SEGMENTS; i++)
    first_slot[i + 1] = append_table(program, attention, i < n_segments ? &segments[i] : NULL,
                                     lpx_buffer_part(scratch, i * table_bytes, table_bytes), first_slot[i]);
  lpx_program_barrier(program);
  const uint32_t state_first = MAX_SEGMENTS * shape->n_kv_heads;
  const uint32_t sum_first = state_first + first_slot[MAX_SEGMENTS] * group;
  query.size = out.size = row_bytes;
  for (uint32_t i = 0; i < n_segments && i < MAX_SEGMENTS; i++) {
    const decode_push push = {.table_first = i * shape->n_kv_heads,
                              .first_slot = first_slot[i],
                              .state_first = state_first,
                              .sum_first = sum_first,
                              .scale = lpx_attention_scale(attention)};
    append_chunks(program, attention, push, query, &segments[i], scratch);
  }
  lpx_program_barrier(program);
  merge_push push = {
      .second_table_first = shape->n_kv_heads, .state_first = state_first, .sum_first = sum_first};
  lpx_program_dispatch(program, &attention->merge, (laprox_buffer[]){scratch, out}, &push, sizeof push,
                       shape->n_heads, row_bytes);
}
