#version 450
#extension GL_GOOGLE_include_directive : require
// Second pass of the observation-window attention, per tile of 64 candidates, with the softmax of the first pass:
//   MODE_NORM: column norm of each query head; MODE_SUM: sum over queries, mean over the group, straight to the raw
//   scores; MODE_STORE: the probabilities themselves, for a strip of tiles, as the joint score needs them.
// One workgroup per (tile, query head of the group), or per tile with MODE_SUM.
#include "index.glsl"
#include "dtype.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"
#include "../evict/window.glsl"

#define MODE_NORM  0
#define MODE_SUM   1
#define MODE_STORE 2

layout(set = 0, binding = 2) readonly buffer State { uint state[]; };
layout(set = 0, binding = 3) writeonly buffer Work { float work[]; };

#include "../evict/tile.glsl"

shared float column_part[8][TILE_COLUMNS];

uint head_word(uint head, uint word) {
  return state[push.heads + head * HEAD_WORDS + word];
}

float probability(float logit, uint t) {
  const uint at = push.softmax + (query_head * WINDOW + t) * 2;
  const float inverse_sum = uintBitsToFloat(state[at + 1]);
  if (is_minus_infinity(logit)) return is_finite(inverse_sum) ? 0.0 : NOT_A_NUMBER;
  if (!is_finite(logit) || !is_finite(inverse_sum)) return NOT_A_NUMBER;
  return exp2(logit - uintBitsToFloat(state[at])) * inverse_sum;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint heads_here = MODE == MODE_SUM ? 1 : GROUP;
  const uint tile = push.first_item + workgroup_index() / heads_here;
  const uint first_group_head = MODE == MODE_SUM ? 0 : workgroup_index() % GROUP;
  const uint end_group_head = MODE == MODE_SUM ? GROUP : first_group_head + 1;
  uint head = push.first_head;
  while (head + 1 < push.end_head && head_word(head + 1, HEAD_FIRST_TILE) <= tile) head++;
  const uint first_candidate = (tile - head_word(head, HEAD_FIRST_TILE)) * TILE_ENTRIES;
  const uint n_sinks = head_word(head, HEAD_N_SINKS);
  first_entry = n_sinks + first_candidate;
  entries_begin = push.segment == 0 ? 0 : head_word(head, HEAD_ROWS);
  entries_end = entries_begin + head_word(head, HEAD_ROWS + 2 * push.segment);
  if (first_entry >= entries_end || first_entry + TILE_COLUMNS <= entries_begin) return;
  key_base = (head_word(head, HEAD_ROW + 2 * push.segment) - push.first_row) * HEAD_DIM + push.residual;
  const uint x = gl_LocalInvocationIndex % 16, y = gl_LocalInvocationIndex / 16;

  vec4 sums = vec4(0.0); // over this invocation's rows, of its four columns
  for (uint group_head = first_group_head; group_head < end_group_head; group_head++) {
    query_head = head * GROUP + group_head;
    for (first_query = 0; first_query < WINDOW; first_query += TILE_ROWS) {
      vec4 logits[4];
      tile_product(0, HEAD_DIM / 4, logits);
      for (uint i = 0; i < 4; i++) {
        const uint t = first_query + 4 * y + i;
        if (t >= WINDOW) continue;
        vec4 p;
        for (uint j = 0; j < 4; j++) p[j] = probability(logits[i][j] * push.scale, t);
        sums += MODE == MODE_SUM ? p : p * p;
        if (MODE == MODE_STORE)
          for (uint j = 0; j < 4; j++) {
            const uint entry = first_entry + x + 16 * j;
            const uint at = (((tile - push.items_base) * GROUP + group_head) * WINDOW + t) * TILE_ENTRIES + x + 16 * j;
            if (entry >= entries_begin && entry < entries_end) work[push.out_offset + at] = p[j];
          }
      }
    }
  }
  if (MODE == MODE_STORE) return;

  barrier();
  for (uint j = 0; j < 4; j++) column_part[y][x + 16 * j] = sums[j];
  barrier();
  const uint column = gl_LocalInvocationIndex;
  const uint entry = first_entry + column;
  if (column >= TILE_COLUMNS || entry < entries_begin || entry >= entries_end) return;
  float total = 0.0;
  for (uint part = 0; part < 8; part++) total += column_part[part][column];
  if (MODE == MODE_NORM) {
    work[push.out_offset + ((tile - push.items_base) * GROUP + first_group_head) * TILE_ENTRIES + column] = sqrt(total);
  } else if (first_candidate + column < head_word(head, HEAD_N_CANDIDATES)) {
    const uint at = (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES + first_candidate + column;
    work[push.out_offset + at] = total / float(GROUP);
  }
}
