#version 450
#extension GL_GOOGLE_include_directive : require
// Scores from a candidate's own key or value, per tile of 64 candidates, 16 invocations for each of 8 rows at a time.
//   MODE_KEY_NORM: 1 / (1 + |k|), so that small keys are best; MODE_KEY_DIFFERENCE: 1 - cos(k, anchor of the head);
//   MODE_VALUE_SIZE: the raw score that is there already, times the sum of |v|.
// One workgroup per tile.
#include "index.glsl"
#include "dtype.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint DTYPE = DTYPE_F16;
layout(constant_id = 2) const uint MODE = 0;

#define MODE_KEY_NORM       0
#define MODE_KEY_DIFFERENCE 1
#define MODE_VALUE_SIZE     2

layout(set = 0, binding = 0) readonly buffer Rows { uint rows[]; };
layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
layout(set = 0, binding = 2) buffer Work { float work[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;
  uint first_head, end_head;
  uint first_item; // tile of workgroup 0, in the layer
  RowLayout rows;  // of K or V
  uint raw;        // word of the layer's raw scores in work[]
  uint layer_block;
  uint anchors;    // word of [heads, HEAD_DIM] in work[]
} push;

#define LANES 16
#define ROWS_AT_ONCE (LOCAL_SIZE / LANES)

shared vec3 parts[ROWS_AT_ONCE][LANES];

#include "../evict/items.glsl"

// This lane's share of what its row comes to.
vec3 row_part(uint base, uint anchor, uint lane) {
  vec3 sums = vec3(0.0);
  for (uint k4 = lane; k4 < HEAD_DIM / 4; k4 += LANES) {
    const vec4 x = LOAD_VEC4(rows, DTYPE, base + 4 * k4);
    if (MODE == MODE_VALUE_SIZE) {
      sums.x += dot(abs(x), vec4(1.0));
      continue;
    }
    sums.x += dot(x, x);
    if (MODE == MODE_KEY_NORM) continue;
    const uint at = anchor + 4 * k4;
    const vec4 a = vec4(work[at], work[at + 1], work[at + 2], work[at + 3]);
    sums.y += dot(a, a);
    sums.z += dot(x, a);
  }
  return sums;
}

float score_of(vec3 sums, float before) {
  if (MODE == MODE_VALUE_SIZE) return before * sums.x;
  if (MODE == MODE_KEY_NORM) return 1.0 / (1.0 + sqrt(sums.x));
  const float size = sqrt(sums.x) * sqrt(sums.y);
  const float score = 1.0 - (size != 0.0 ? sums.z / size : 0.0);
  return is_finite(score) ? max(score, 0.0) : score;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint tile = push.first_item + workgroup_index();
  const uint head = head_of(tile, HEAD_FIRST_TILE);
  const uint first_candidate = (tile - head_word(head, HEAD_FIRST_TILE)) * TILE_ENTRIES;
  const uint n_candidates = head_word(head, HEAD_N_CANDIDATES);
  find_rows(head);
  const uint raw = push.raw + (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES;
  const uint lane = gl_LocalInvocationIndex % LANES, slot = gl_LocalInvocationIndex / LANES;
  for (uint first = 0; first < TILE_ENTRIES; first += ROWS_AT_ONCE) {
    const uint candidate = first_candidate + first + slot;
    const uint entry = head_word(head, HEAD_N_SINKS) + candidate;
    const bool here = candidate < n_candidates && has_row(entry);
    barrier();
    if (here) parts[slot][lane] = row_part(row_start(entry), push.anchors + head * HEAD_DIM, lane);
    barrier();
    if (!here || lane != 0) continue;
    vec3 sums = vec3(0.0);
    for (uint i = 0; i < LANES; i++) sums += parts[slot][i];
    work[raw + candidate] = score_of(sums, MODE == MODE_VALUE_SIZE ? work[raw + candidate] : 0.0);
  }
}
