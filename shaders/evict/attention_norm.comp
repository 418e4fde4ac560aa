#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// Second pass of the observation-window attention, per tile of 64 candidates, with the softmax of the first pass:
//   MODE_NORM: column norm of each query head; MODE_SUM: sum over queries, mean over the group, straight to the raw
//   scores; MODE_STORE: the probabilities themselves, for a strip of tiles, as the joint score needs them.
// One workgroup per (tile, tile of query heads), or per tile with MODE_SUM.
#include "index.glsl"
#include "dtype.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"

#define MODE_NORM  0
#define MODE_SUM   1
#define MODE_STORE 2

layout(set = 0, binding = 2) readonly buffer State { uint state[]; };
layout(set = 0, binding = 3) writeonly buffer Work { float work[]; };

#include "../evict/window.glsl"
#include "../evict/tile.glsl"

uint strip_tile, first_candidate;

// A logit that is no number makes the probability none, and so does a query whose softmax is spoilt.
float probability(float logit, float maximum, float inverse_sum) {
  if (is_finite(logit)) return exp2(logit - maximum) * inverse_sum;
  return is_minus_infinity(logit) ? 0.0 * inverse_sum : NOT_A_NUMBER;
}

void store(uint group_head, uint t, uint column, float value) {
  const uint entry = first_entry + column;
  if (!has_row(entry)) return;
  work[push.out_offset + ((strip_tile * GROUP + group_head) * WINDOW + t) * TILE_ENTRIES + column] = value;
}

void write_sum(uint group_head, float total) {
  const uint column = gl_LocalInvocationIndex, entry = first_entry + column;
  if (column >= TILE_COLUMNS || !has_row(entry)) return;
  if (MODE == MODE_NORM) {
    work[push.out_offset + (strip_tile * GROUP + group_head) * TILE_ENTRIES + column] = sqrt(total);
  } else if (first_candidate + column < head_word(head, HEAD_N_CANDIDATES)) {
    const uint at = (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES + first_candidate + column;
    work[push.out_offset + at] = total / float(GROUP);
  }
}

float sums[8]; // over the invocation's rows of a head, or of the group, of its eight columns

#define CLEAR_SUM(j) sums[j] = 0.0;
void clear_sums() {
  REPEAT_8(CLEAR_SUM)
}

#define ADD(i, j)                                                                                                      \
  {                                                                                                                    \
    const float p = probability(product[i][j] * push.scale, maximum, inverse_sum);                                     \
    if (MODE == MODE_STORE) store(group_head, t, COLUMN(j), p);                                                        \
    else sums[j] += MODE == MODE_SUM ? p : p * p;                                                                      \
  }
#define ADD_ROW(i)                                                                                                     \
  if (i < ROW_BLOCKS) {                                                                                                \
    const uint group_head = first_group_head + i / HEAD_BLOCKS, t = first_query + ROW(i) % QUERY_ROWS;                  \
    if (MODE == MODE_NORM && i % HEAD_BLOCKS == 0 && first_query == 0) clear_sums();                                   \
    if (group_head < GROUP && t < WINDOW) {                                                                            \
      const uint at = push.softmax + ((head * GROUP + group_head) * WINDOW + t) * 2;                                   \
      const float maximum = uintBitsToFloat(state[at]);                                                                \
      const float given = uintBitsToFloat(state[at + 1]), inverse_sum = is_finite(given) ? given : NOT_A_NUMBER;       \
      EACH_8(ADD, i)                                                                                                   \
    }                                                                                                                  \
    if (MODE == MODE_NORM && (i + 1) % HEAD_BLOCKS == 0 && first_query + QUERY_ROWS >= WINDOW && group_head < GROUP)    \
      write_sum(group_head, column_sum(sums));                                                                         \
  }

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint head_tiles_here = MODE == MODE_SUM ? 1 : HEAD_TILES;
  const uint item = push.first_item + workgroup_index() / head_tiles_here;
  strip_tile = item - push.items_base;
  find_head(item, HEAD_FIRST_TILE);
  first_candidate = (item - head_word(head, HEAD_FIRST_TILE)) * TILE_ENTRIES;
  first_entry = head_word(head, HEAD_N_SINKS) + first_candidate;
  if (!has_rows(first_entry, first_entry + TILE_COLUMNS)) return;
  const uint begin = MODE == MODE_SUM ? 0 : workgroup_index() % HEAD_TILES * TILE_HEADS;
  const uint end = MODE == MODE_SUM ? GROUP : begin + 1;

  clear_sums();
  ROLLED for (first_group_head = begin; first_group_head < end; first_group_head += TILE_HEADS)
    ROLLED for (first_query = 0; first_query < WINDOW; first_query += QUERY_ROWS) {
      tile_product(0, HEAD_DIM / 4);
      REPEAT_BLOCKS(ADD_ROW)
    }
  if (MODE == MODE_SUM) write_sum(0, column_sum(sums));
}
