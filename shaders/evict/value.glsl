// Projected values of a tile of 64 candidates: rows of the value factor times the candidates' values.
#ifndef VALUE_GLSL
#define VALUE_GLSL

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 3) const uint DTYPE = DTYPE_F16;
layout(constant_id = 4) const uint MODE = 0;

layout(set = 0, binding = 0) readonly buffer Value { uint value[]; };
layout(set = 0, binding = 1) readonly buffer Factor { vec4 factor[]; };
layout(set = 0, binding = 2) readonly buffer State { uint state[]; };
layout(set = 0, binding = 3) buffer Work { float work[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;
  uint first_head, end_head;
  uint first_item; // tile of workgroup 0, in the layer
  RowLayout rows;  // of V
  uint attention;  // word of the attention part in work[]
  uint items_base; // tile that the attention part begins with
  uint raw;        // word of the layer's raw scores in work[]
  uint layer_block;
} push;

uint head, strip_tile, first_candidate, first_entry;

#include "../evict/items.glsl"

// False where the binding holds nothing of the tile; the same for the whole workgroup.
bool find_tile(uint item) {
  head = head_of(item, HEAD_FIRST_TILE);
  strip_tile = item - push.items_base;
  first_candidate = (item - head_word(head, HEAD_FIRST_TILE)) * TILE_ENTRIES;
  first_entry = head_word(head, HEAD_N_SINKS) + first_candidate;
  find_rows(head);
  return has_rows(first_entry, first_entry + TILE_ENTRIES);
}

#define DEPTH_IS_WHOLE (HEAD_DIM % 16 == 0)

// Beyond the last one, it again.
uint start_b(uint column) {
  return row_start(clamp(first_entry + column, entries_begin, entries_end - 1));
}

uvec4 load_b(uint start, uint k4) {
  const uint at = start + 4 * k4;
  return PACKED_VEC4(value, DTYPE, at);
}

vec4 load_a(uint start, uint k4) {
  return factor[start + k4];
}

void write_score(uint column, float score) {
  const uint entry = first_entry + column;
  if (column >= TILE_ENTRIES || !has_row(entry)) return;
  if (first_candidate + column >= head_word(head, HEAD_N_CANDIDATES)) return;
  const uint block = head_word(head, HEAD_FIRST_BLOCK) - push.layer_block;
  work[push.raw + block * BLOCK_ENTRIES + first_candidate + column] = score;
}

#endif
