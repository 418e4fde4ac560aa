// Logits of the observation window: a tile of 32 window queries of one query head against 64 cache entries of its KV
// head, in base 2. Shared by the softmax pass and the norm pass, so that both see the same bits.
#ifndef WINDOW_GLSL
#define WINDOW_GLSL

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 1;  // query heads of a KV head
layout(constant_id = 2) const uint WINDOW = 32;
layout(constant_id = 3) const uint DTYPE = DTYPE_F16;
layout(constant_id = 4) const uint MODE = 0;

layout(set = 0, binding = 0) readonly buffer Query { float query[]; }; // [query_rows, heads, HEAD_DIM]
layout(set = 0, binding = 1) readonly buffer Key { uint key[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;           // word of the layer's head table in state[]
  uint n_heads;         // KV heads of the layer
  uint first_head;      // of this dispatch
  uint end_head;
  uint first_item;      // tile or split of workgroup 0, in the layer
  uint segment;
  uint first_row;       // row of the cache at which the key binding begins
  uint residual;        // elements before that row in the binding
  uint query_start, query_rows;
  float scale;          // includes log2 e
  uint softmax;         // word of (maximum, 1 / sum) in state[]
  uint out_offset;      // word of the output
  uint items_base;      // tile that the output begins with, or number of splits
  uint layer_block;     // first score block of the layer
} push;

uint query_head;  // in the layer
uint first_query; // of the tile, in the window
uint first_entry; // of the tile, in the KV head
uint entries_begin, entries_end; // of the KV head that stand in this segment
uint key_base;    // element of entry entries_begin

vec4 load_a(uint row, uint k4) {
  const uint t = first_query + row;
  if (t >= WINDOW) return vec4(0.0);
  const uint ring_row = (push.query_start + t) % push.query_rows;
  const uint at = (ring_row * push.n_heads * GROUP + query_head) * HEAD_DIM + 4 * k4;
  return vec4(query[at], query[at + 1], query[at + 2], query[at + 3]);
}

vec4 load_b(uint column, uint k4) {
  const uint entry = first_entry + column;
  if (entry < entries_begin || entry >= entries_end) return vec4(0.0);
  const uint at = key_base + (entry - entries_begin) * HEAD_DIM + 4 * k4;
  return LOAD_VEC4(key, DTYPE, at);
}

#endif
