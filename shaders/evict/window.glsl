// Logits of the observation window, in base 2: window queries of query heads of a group against 64 cache entries of their
// KV head. Shared by the softmax pass and the norm pass, so that both see the same bits.
//
// A tile's rows are the queries of TILE_HEADS query heads, each head's in whole blocks of 16; a longer
// window takes several tiles for each head.
#ifndef WINDOW_GLSL
#define WINDOW_GLSL

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 1;  // query heads of a KV head
layout(constant_id = 2) const uint WINDOW = 32;
layout(constant_id = 3) const uint DTYPE = DTYPE_F16;
layout(constant_id = 4) const uint MODE = 0;

const uint PADDED_WINDOW = (WINDOW + 15) / 16 * 16;
const uint QUERY_ROWS = PADDED_WINDOW < TILE_ROWS ? PADDED_WINDOW : TILE_ROWS; // of a head in a tile
const uint HEADS_THAT_FIT = TILE_ROWS / QUERY_ROWS;
const uint HEAD_TILES = (GROUP + HEADS_THAT_FIT - 1) / HEADS_THAT_FIT;
const uint TILE_HEADS = (GROUP + HEAD_TILES - 1) / HEAD_TILES;
const uint HEAD_BLOCKS = QUERY_ROWS / 16;
const uint ROW_BLOCKS = TILE_HEADS * HEAD_BLOCKS;
#define DEPTH_IS_WHOLE (HEAD_DIM % 16 == 0)
#define ROWS_ARE_WHOLE true

layout(set = 0, binding = 0) readonly buffer Query { vec4 query[]; }; // [query_rows, heads, HEAD_DIM]
layout(set = 0, binding = 1) readonly buffer Key { uint key[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;           // word of the layer's head table in state[]
  uint n_heads;         // KV heads of the layer
  uint first_head;      // of this dispatch
  uint end_head;
  uint first_item;      // tile or split of workgroup 0, in the layer
  RowLayout rows;       // of K
  uint query_start, query_rows;
  float scale;          // includes log2 e
  uint softmax;         // word of (maximum, 1 / sum) in state[]
  uint out_offset;      // word of the output
  uint items_base;      // tile that the output begins with, or number of splits
  uint layer_block;     // first score block of the layer
} push;

uint head;             // KV head, in the layer
uint first_group_head; // of the tile's query heads
uint first_query;      // of the tile's queries, in the window
uint first_entry;      // of the tile's columns, in the KV head
uint n_entries;        // of the KV head

#include "../evict/items.glsl"

// Finds the head that an item belongs to, HEAD_FIRST_TILE or HEAD_FIRST_SPLIT, and its entries.
void find_head(uint item, uint word) {
  head = head_of(item, word);
  n_entries = head_word(head, HEAD_N_ENTRIES);
  find_rows(head);
}

// Beyond the last one, it again.
uint start_a(uint row) {
  const uint group_head = min(first_group_head + row / QUERY_ROWS, GROUP - 1);
  const uint t = min(first_query + row % QUERY_ROWS, WINDOW - 1);
  const uint ring_row = (push.query_start + t) % push.query_rows;
  return ((ring_row * push.n_heads + head) * GROUP + group_head) * (HEAD_DIM / 4);
}

vec4 load_a(uint start, uint k4) {
  return query[start + k4];
}

uint start_b(uint column) {
  return row_start(clamp(first_entry + column, entries_begin, entries_end - 1));
}

uvec4 load_b(uint start, uint k4) {
  const uint at = start + 4 * k4;
  return PACKED_VEC4(key, DTYPE, at);
}

#endif
