// How the host describes a cache to the eviction kernels: one row of words per (layer, KV head). The same numbers stand
// in src/evict/layout.h.
#ifndef LAYOUT_GLSL
#define LAYOUT_GLSL

#define HEAD_N_CANDIDATES 0
#define HEAD_N_SINKS      1
#define HEAD_N_ENTRIES    2
#define HEAD_FIRST_BLOCK  3 // of scores, in the whole model
#define HEAD_FIRST_TILE   4 // of candidates, in the layer
#define HEAD_FIRST_SPLIT  5 // of entries, in the layer
#define HEAD_ROW          6 // first row in segment 0 and, two words on, in segment 1
#define HEAD_ROWS         7 // rows in segment 0 and, two words on, in segment 1
#define HEAD_PROTECTED    10 // sinks and window entries of all heads before this one
#define HEAD_MASK         11 // first word of the keep-mask
#define HEAD_WORDS        12

#define TILE_ENTRIES 64   // candidates a scoring workgroup handles
#define SPLIT_ENTRIES 512 // entries a softmax workgroup handles
#define BLOCK_ENTRIES 1024 // scores a selection workgroup handles; each head's scores begin at a multiple

// What a dispatch sees of a layer's K or V, in its push constants; rows.glsl says where an entry stands by it.
struct RowLayout {
  uint segment;
  uint begin_entry, end_entry; // of every head, what the binding holds
  uint origin; // elements from the segment's first one to the binding's, modulo 2^32
  uint entry_stride, head_stride; // elements
};

// 16 rows each that a tile of a matrix product has at most: results an invocation holds for each of its eight columns.
#ifndef TILE_BLOCKS
#define TILE_BLOCKS 4
#endif
#define TILE_ROWS (16 * TILE_BLOCKS)

#endif
