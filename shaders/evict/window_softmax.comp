#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// First pass of the observation-window attention: running maximum and sum of every window query over a split of the
// cache entries. One workgroup per (split, tile of query heads).
#include "index.glsl"
#include "dtype.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"

layout(set = 0, binding = 2) buffer State { uint state[]; };
layout(set = 0, binding = 3) writeonly buffer Partial { float partial[]; }; // [slot, GROUP, WINDOW, 2]

#include "../evict/window.glsl"
#include "../evict/tile.glsl"

float maximum[TILE_BLOCKS], sum[TILE_BLOCKS]; // of rows ROW(i), over the invocation's columns

#define MINUS_INFINITY uintBitsToFloat(0xff800000u)

#define START_ROW(i) maximum[i] = -1.0e38, sum[i] = 0.0;
// Adds a row's logits. What is no number, or plus infinity, spoils the sum; exp2(minus infinity) adds 0.
#define SCALE(i, j)                                                                                                    \
  product[i][j] *= push.scale;                                                                                         \
  worst = max(worst, floatBitsToUint(product[i][j]) & 0x7fffffffu);                                                    \
  highest = max(highest, product[i][j]);
#define CHECK(i, j) spoilt = spoilt || (!is_finite(product[i][j]) && !is_minus_infinity(product[i][j]));
#define ADD(i, j) added += exp2(product[i][j] - highest);
#define UPDATE(i)                                                                                                      \
  if (i < ROW_BLOCKS) {                                                                                                \
    uint worst = 0;                                                                                                    \
    bool spoilt = false;                                                                                               \
    float highest = maximum[i], added = 0.0;                                                                           \
    EACH_8(SCALE, i)                                                                                                   \
    EACH_8(ADD, i)                                                                                                     \
    if (worst >= 0x7f800000u) {                                                                                        \
      EACH_8(CHECK, i)                                                                                                 \
    }                                                                                                                  \
    sum[i] = spoilt ? NOT_A_NUMBER : sum[i] * exp2(maximum[i] - highest) + added;                                      \
    if (!spoilt) maximum[i] = highest;                                                                                 \
  }

// Rows and columns that are no pair to look at.
#define HIDE(i, j) if (!visible(ROW(i), first_entry + COLUMN(j))) product[i][j] = MINUS_INFINITY;
#define HIDE_ROW(i)                                                                                                    \
  if (i < ROW_BLOCKS) {                                                                                                \
    EACH_8(HIDE, i)                                                                                                    \
  }
bool visible(uint row, uint entry) {
  return has_row(entry) && entry <= n_entries - WINDOW + first_query + row % QUERY_ROWS;
}

#define STORE_ROW(i)                                                                                                   \
  if (i < ROW_BLOCKS) {                                                                                                \
    part_word(ROW(i) * 16 + TILE_X * 2, maximum[i]);                                                                   \
    part_word(ROW(i) * 16 + TILE_X * 2 + 1, sum[i]);                                                                   \
  }

void write_partials(uint slot) {
  barrier();
  REPEAT_BLOCKS(STORE_ROW)
  barrier();
  const uint row = gl_LocalInvocationIndex;
  const uint group_head = first_group_head + row / QUERY_ROWS, t = first_query + row % QUERY_ROWS;
  if (row >= ROW_BLOCKS * 16 || group_head >= GROUP || t >= WINDOW) return;
  float highest = tile[row * 4].x, total = 0.0;
  for (uint x = 1; x < 8; x++) highest = max(highest, tile[row * 4 + x / 2][x % 2 * 2]);
  for (uint x = 0; x < 8; x++) {
    const vec4 pair = tile[row * 4 + x / 2];
    total += x % 2 == 0 ? pair.y * exp2(pair.x - highest) : pair.w * exp2(pair.z - highest);
  }
  const uint at = push.out_offset + ((slot * GROUP + group_head) * WINDOW + t) * 2;
  partial[at] = highest;
  partial[at + 1] = total;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint split = push.first_item + workgroup_index() / HEAD_TILES;
  first_group_head = workgroup_index() % HEAD_TILES * TILE_HEADS;
  find_head(split, HEAD_FIRST_SPLIT);
  const uint split_begin = (split - head_word(head, HEAD_FIRST_SPLIT)) * SPLIT_ENTRIES;
  const uint begin = max(split_begin, entries_begin / TILE_COLUMNS * TILE_COLUMNS);
  const uint end = min(split_begin + SPLIT_ENTRIES, entries_end);
  for (first_query = 0; first_query < WINDOW; first_query += QUERY_ROWS) {
    REPEAT_BLOCKS(START_ROW)
    for (first_entry = begin; has_rows(first_entry, end); first_entry += TILE_COLUMNS) {
      tile_product(0, HEAD_DIM / 4);
      if (first_entry < entries_begin || first_entry + TILE_COLUMNS > min(entries_end, n_entries - WINDOW)) {
        REPEAT_BLOCKS(HIDE_ROW)
      }
      REPEAT_BLOCKS(UPDATE)
    }
    write_partials(split + push.rows.segment * push.items_base);
  }
}
