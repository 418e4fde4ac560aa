/* decode.c: one query row over a ragged prefix and a dense tail, split into chunks and merged in order. */
#include "attention/attention.h"

typedef struct decode_push {
  uint32_t n_groups;
  uint32_t table_first;
  uint32_t first_head, n_heads;
  uint32_t first_row, first_slot;
  uint32_t chunk_bits;
  uint32_t key_first, value_first;
  uint32_t partial_first;
  float scale;
} decode_push;
_Static_assert(sizeof(decode_push) == 44, "decode.comp reads 11 words");

typedef struct merge_push {
  uint32_t n_groups;
  uint32_t table_first, second_first;
  uint32_t chunk_bits, second_chunk_bits;
  uint32_t partial_first;
} merge_push;
_Static_assert(sizeof(merge_push) == 24, "merge.comp reads 6 words");

/* A KV head of a segment, as the shaders have it. */
typedef struct table_row {
  uint32_t first_row, n_rows, first_slot, unused;
} table_row;
_Static_assert(sizeof(table_row) == LPX_DECODE_UNIT_BYTES, "the shaders read uvec4");

enum {
  MAX_SEGMENTS = 2,
  MIN_CHUNK_BITS = 7,
  MERGE_STRETCH = 8 /* vec4s of a row that a workgroup of merge.comp has */
};

static uint32_t n_chunks(uint32_t n_rows, uint32_t chunk_bits) {
  return (n_rows >> chunk_bits) + ((n_rows & ((1u << chunk_bits) - 1)) != 0);
}

/* Vectors of eight elements need rows of whole vectors, and twice the registers. */
static bool takes_octets(const lpx_attention *attention) {
  return lpx_large_tiles(attention->context) && attention->cache_dtype == LAPROX_DTYPE_F16 &&
         attention->shape.head_dim % 8 == 0;
}

/* Lavapipe with 256-bit vectors: a shuffle is one instruction there, but a loop with others. A thread has one vector of a
 * row: with more of them LLVM 15 takes minutes to compile the kernel. */
bool lpx_decode_can_be_direct(const lpx_attention *attention) {
  enum { SUBGROUP = 8, MAX_HEAD_DIM = 8 * SUBGROUP };
  return takes_octets(attention) && lpx_shader_usable(attention->context, "attention_decode_direct") &&
         attention->context->subgroup_size == SUBGROUP && attention->shape.head_dim <= MAX_HEAD_DIM;
}

laprox_result lpx_decode_attention_choose(lpx_attention *attention, lpx_decode_kind kind) {
  laprox_context *context = attention->context;
  const laprox_shape *shape = &attention->shape;
  const uint32_t group = shape->n_heads / shape->n_kv_heads;
  const uint32_t constants[] = {(uint32_t)attention->cache_dtype, shape->head_dim, group};
  const uint32_t direct[] = {shape->head_dim, group, context->subgroup_size};
  static const char *const shaders[] = {"attention_decode_small", "attention_decode",
                                        "attention_decode_octets"};
  attention->decode_elements = kind <= LPX_DECODE_QUADS ? 4 : 8;
  if (kind == LPX_DECODE_DIRECT)
    return lpx_pipeline_get(context, "attention_decode_direct", 4, direct, 3, &attention->decode);
  return lpx_pipeline_get(context, shaders[kind], 4, constants, 3, &attention->decode);
}

laprox_result lpx_decode_attention_init(lpx_attention *attention) {
  const laprox_shape *shape = &attention->shape;
  const uint32_t constants[] = {shape->head_dim, shape->n_heads / shape->n_kv_heads};
  const bool software = lpx_is_software(attention->context);
  const bool small = lpx_tile_size_of(attention->context) == LPX_TILES_SMALL;
  const lpx_decode_kind kind = software && lpx_decode_can_be_direct(attention) ? LPX_DECODE_DIRECT
                               : takes_octets(attention)                       ? LPX_DECODE_OCTETS
                               : small                                         ? LPX_DECODE_SMALL
                                                                               : LPX_DECODE_QUADS;
  const laprox_result result = lpx_decode_attention_choose(attention, kind);
  const char *merge = software ? "attention_merge_direct" : "attention_merge";
  return result ? result : lpx_pipeline_get(attention->context, merge, 2, constants, 2, &attention->merge);
}

uint32_t lpx_decode_table_units(const laprox_shape *shape) {
  return MAX_SEGMENTS * shape->n_kv_heads;
}

VkDeviceSize lpx_decode_partial_units(const laprox_shape *shape, uint32_t max_entries) {
  /* Each of two segments may end within a chunk. */
  const VkDeviceSize n_slots = (VkDeviceSize)shape->n_kv_heads * (n_chunks(max_entries, MIN_CHUNK_BITS) + 1);
  return n_slots * (shape->n_heads / shape->n_kv_heads) * (1 + shape->head_dim / 4);
}

VkDeviceSize lpx_decode_attention_scratch_bytes(const laprox_shape *shape, uint32_t max_entries) {
  return (lpx_decode_table_units(shape) + lpx_decode_partial_units(shape, max_entries)) *
         LPX_DECODE_UNIT_BYTES;
}

/* Chunks as large as leaves every part of the device something to do. It depends on nothing but the lengths,
 * and on those by their power of two, so that a tail grows for long without a change. */
static uint32_t choose_chunk_bits(const lpx_attention *attention, const lpx_attention_segment *segment) {
  const bool direct = lpx_is_software(attention->context);
  const bool discrete = lpx_is_discrete(attention->context);
  const uint64_t n_wanted = direct ? 4 : discrete ? 256 : 64;
  const uint32_t max_bits = direct ? 12 : 10;
  uint64_t n_rows = 0, rounded = 1;
  for (uint32_t head = 0; head < attention->shape.n_kv_heads; head++)
    n_rows += lpx_attention_n_rows(segment, head);
  while (rounded < n_rows) rounded *= 2;
  uint32_t bits = direct ? MIN_CHUNK_BITS + 2 : MIN_CHUNK_BITS;
  while (bits < max_bits && rounded >> (bits + 1) >= n_wanted) bits++;
  return bits;
}

/* Uploads one segment's rows and gives its first free slot. */
static uint32_t append_rows(lpx_program *program, const lpx_attention *attention,
                            const lpx_attention_segment *segment, laprox_buffer table, uint32_t slot) {
  enum { BATCH = 64 };
  table_row rows[BATCH];
  const uint32_t n_heads = attention->shape.n_kv_heads;
  const uint32_t chunk_bits = segment ? choose_chunk_bits(attention, segment) : MIN_CHUNK_BITS;
  for (uint32_t first = 0; first < n_heads; first += BATCH) {
    const uint32_t n = n_heads - first < BATCH ? n_heads - first : BATCH;
    for (uint32_t i = 0; i < n; i++) {
      const uint32_t n_rows = segment ? lpx_attention_n_rows(segment, first + i) : 0;
      const uint32_t first_row = n_rows ? lpx_attention_first_row(segment, first + i) : 0;
      rows[i] = (table_row){.first_row = first_row, .n_rows = n_rows, .first_slot = slot};
      slot += n_chunks(n_rows, chunk_bits);
    }
    lpx_program_update(program, lpx_buffer_part(table, first * sizeof rows[0], n * sizeof rows[0]), rows,
                       n * sizeof rows[0]);
  }
  return slot;
}

void lpx_decode_table_append(lpx_program *program, const lpx_attention *attention,
                             const lpx_attention_segment *segments, uint32_t n_segments,
                             lpx_decode_place place) {
  const VkDeviceSize bytes = (VkDeviceSize)attention->shape.n_kv_heads * LPX_DECODE_UNIT_BYTES;
  const VkDeviceSize first = (VkDeviceSize)place.table_first * LPX_DECODE_UNIT_BYTES;
  uint32_t slot = 0;
  for (uint32_t i = 0; i < MAX_SEGMENTS; i++)
    slot = append_rows(program, attention, i < n_segments ? &segments[i] : NULL,
                       lpx_buffer_part(place.scratch, first + i * bytes, bytes), slot);
}

/* Rows to be bound for n heads of which [begin, end) are in use: of a dense segment the room to grow, too, as far as
 * it fits, so that the ranges stay as they are while it does. */
static uint64_t bound_rows(const lpx_attention *attention, const lpx_attention_segment *segment,
                           uint64_t begin, uint64_t end, uint32_t n) {
  const uint64_t row_bytes = lpx_attention_row_bytes(attention);
  const uint64_t whole = (uint64_t)n * segment->head_rows;
  if (segment->head_n_rows || (begin + whole) * row_bytes > segment->key.size ||
      whole * row_bytes > lpx_buffer_units_room(attention->context, lpx_dtype_unit(attention->cache_dtype)))
    return end - begin;
  return whole;
}

/* The chunks of one segment; gives its first free slot. */
static uint32_t append_segment(lpx_program *program, const lpx_attention *attention, decode_push push,
                               laprox_buffer query, const lpx_attention_segment *segment,
                               laprox_buffer scratch) {
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
      n_groups += n_chunks(count, push.chunk_bits);
      n_rows += count;
    }
    if (!n_groups) continue;
    const uint64_t n_bound = bound_rows(attention, segment, begin, end, n);
    const laprox_buffer ranges[] = {
        query, lpx_attention_rows(attention, segment->key, begin, n_bound, &push.key_first),
        lpx_attention_rows(attention, segment->value, begin, n_bound, &push.value_first), scratch};
    push.key_first /= attention->decode_elements;
    push.value_first /= attention->decode_elements;
    push.table_first = table_first + head;
    push.first_head = head;
    push.n_heads = n;
    push.first_row = (uint32_t)begin;
    lpx_program_dispatch(program, &attention->decode, ranges, &push, sizeof push, n_groups,
                         4 * n_rows * (shape->n_heads / shape->n_kv_heads) * shape->head_dim);
    push.first_slot += n_groups;
  }
  return push.first_slot;
}

void lpx_decode_chunks_append(lpx_program *program, const lpx_attention *attention, laprox_buffer query,
                              const lpx_attention_segment *segments, uint32_t n_segments,
                              lpx_decode_place place) {
  const laprox_shape *shape = &attention->shape;
  query.size = (VkDeviceSize)shape->n_heads * shape->head_dim * sizeof(float);
  decode_push push = {.table_first = place.table_first,
                      .partial_first = place.partial_first,
                      .scale = lpx_attention_scale(attention)};
  for (uint32_t i = 0; i < n_segments && i < MAX_SEGMENTS; i++) {
    push.chunk_bits = choose_chunk_bits(attention, &segments[i]);
    push.first_slot = append_segment(program, attention, push, query, &segments[i], place.scratch);
    push.table_first += shape->n_kv_heads;
  }
}

void lpx_decode_merge_append(lpx_program *program, const lpx_attention *attention,
                             const lpx_attention_segment *segments, uint32_t n_segments,
                             lpx_decode_place place, laprox_buffer out) {
  const laprox_shape *shape = &attention->shape;
  const uint32_t stretch_dims = MERGE_STRETCH * 4;
  merge_push push = {.table_first = place.table_first,
                     .second_first = place.table_first + shape->n_kv_heads,
                     .chunk_bits = n_segments > 0 ? choose_chunk_bits(attention, &segments[0]) : 0,
                     .second_chunk_bits = n_segments > 1 ? choose_chunk_bits(attention, &segments[1]) : 0,
                     .partial_first = place.partial_first};
  out.size = (VkDeviceSize)shape->n_heads * shape->head_dim * sizeof(float);
  lpx_program_dispatch(program, &attention->merge, (laprox_buffer[]){place.scratch, out}, &push, sizeof push,
                       (uint64_t)shape->n_heads * ((shape->head_dim + stretch_dims - 1) / stretch_dims),
                       out.size);
}

void lpx_decode_attention_append(lpx_program *program, const lpx_attention *attention, laprox_buffer query,
                                 const lpx_attention_segment *segments, uint32_t n_segments,
                                 laprox_buffer scratch, laprox_buffer out) {
  const lpx_decode_place place = {.scratch = scratch,
                                  .partial_first = lpx_decode_table_units(&attention->shape)};
  lpx_decode_table_append(program, attention, segments, n_segments, place);
  lpx_program_barrier(program);
  lpx_decode_chunks_append(program, attention, query, segments, n_segments, place);
  lpx_program_barrier(program);
  lpx_decode_merge_append(program, attention, segments, n_segments, place, out);
}
