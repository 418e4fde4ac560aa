#version 450
#extension GL_GOOGLE_include_directive : require
// First pass of the observation-window attention: running maximum and sum of every window query over a split of the
// cache entries. One workgroup per (split, query head of the group).
#include "index.glsl"
#include "dtype.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"
#include "../evict/window.glsl"

layout(set = 0, binding = 2) buffer State { uint state[]; };
layout(set = 0, binding = 3) writeonly buffer Partial { float partial[]; }; // [slot, GROUP, WINDOW, 2]

#include "../evict/tile.glsl"

shared float part_maximum[TILE_ROWS][16];
shared float part_sum[TILE_ROWS][16];

uint head_word(uint head, uint word) {
  return state[push.heads + head * HEAD_WORDS + word];
}

void update(inout float maximum, inout float sum, vec4 logits, bvec4 visible) {
  float highest = maximum;
  bool poisoned = false;
  for (uint j = 0; j < 4; j++) {
    if (!visible[j]) continue;
    if (is_minus_infinity(logits[j])) visible[j] = false;
    else if (!is_finite(logits[j])) poisoned = true;
    else highest = max(highest, logits[j]);
  }
  sum *= exp2(maximum - highest);
  for (uint j = 0; j < 4; j++)
    if (visible[j]) sum += exp2(logits[j] - highest);
  maximum = highest;
  if (poisoned) sum = NOT_A_NUMBER;
}

void write_partials(uint slot, uint group_head) {
  const uint row = gl_LocalInvocationIndex;
  if (row >= TILE_ROWS || first_query + row >= WINDOW) return;
  float maximum = part_maximum[row][0];
  for (uint x = 1; x < 16; x++) maximum = max(maximum, part_maximum[row][x]);
  float sum = 0.0;
  for (uint x = 0; x < 16; x++) sum += part_sum[row][x] * exp2(part_maximum[row][x] - maximum);
  const uint at = push.out_offset + ((slot * GROUP + group_head) * WINDOW + first_query + row) * 2;
  partial[at] = maximum;
  partial[at + 1] = sum;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint split = push.first_item + workgroup_index() / GROUP;
  const uint group_head = workgroup_index() % GROUP;
  uint head = push.first_head;
  while (head + 1 < push.end_head && head_word(head + 1, HEAD_FIRST_SPLIT) <= split) head++;
  query_head = head * GROUP + group_head;
  const uint n_entries = head_word(head, HEAD_N_ENTRIES);
  const uint split_begin = (split - head_word(head, HEAD_FIRST_SPLIT)) * SPLIT_ENTRIES;
  const uint split_end = min(split_begin + SPLIT_ENTRIES, n_entries);
  entries_begin = push.segment == 0 ? 0 : head_word(head, HEAD_ROWS);
  entries_end = entries_begin + head_word(head, HEAD_ROWS + 2 * push.segment);
  key_base = (head_word(head, HEAD_ROW + 2 * push.segment) - push.first_row) * HEAD_DIM + push.residual;
  const uint window_begin = n_entries - WINDOW;
  const uint x = gl_LocalInvocationIndex % 16, y = gl_LocalInvocationIndex / 16;

  for (first_query = 0; first_query < WINDOW; first_query += TILE_ROWS) {
    float maximum[4], sum[4];
    for (uint i = 0; i < 4; i++) maximum[i] = -1.0e38, sum[i] = 0.0;
    for (first_entry = split_begin; first_entry < split_end; first_entry += TILE_COLUMNS) {
      if (first_entry >= entries_end || first_entry + TILE_COLUMNS <= entries_begin) continue;
      vec4 logits[4];
      tile_product(0, HEAD_DIM / 4, logits);
      for (uint i = 0; i < 4; i++) {
        bvec4 visible;
        for (uint j = 0; j < 4; j++) {
          const uint entry = first_entry + x + 16 * j;
          visible[j] = entry >= entries_begin && entry < entries_end && entry < split_end &&
                       entry <= window_begin + first_query + 4 * y + i;
        }
        update(maximum[i], sum[i], logits[i] * push.scale, visible);
      }
    }
    barrier();
    for (uint i = 0; i < 4; i++) {
      part_maximum[4 * y + i][x] = maximum[i];
      part_sum[4 * y + i][x] = sum[i];
    }
    barrier();
    write_partials(split + push.segment * push.items_base, group_head);
  }
}
