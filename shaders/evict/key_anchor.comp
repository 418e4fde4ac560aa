#version 450
#extension GL_GOOGLE_include_directive : require
// The sum of a head's keys, each at length 1: MODE_SPLIT, over a split of the entries that stand in one segment, one
// workgroup per split; MODE_MERGE, over the splits of all segments in their order, one workgroup per head.
#include "index.glsl"
#include "dtype.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint DTYPE = DTYPE_F16;
layout(constant_id = 2) const uint MODE = 0;

#define MODE_SPLIT 0
#define MODE_MERGE 1

layout(set = 0, binding = 0) readonly buffer Rows { uint rows[]; };
layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
layout(set = 0, binding = 2) buffer Work { float work[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;
  uint first_head, end_head;
  uint first_item; // split of workgroup 0, in the layer
  RowLayout rows;  // of K
  uint partials;   // word of [segment, split, HEAD_DIM] in work[]
  uint n_splits;   // of the layer
  uint n_segments;
  uint anchors;    // word of [heads, HEAD_DIM] in work[]
} push;

#define LANES 16
#define ROWS_AT_ONCE (LOCAL_SIZE / LANES)
#define MAX_QUADS 64

shared float parts[ROWS_AT_ONCE][LANES];
shared vec4 sums[ROWS_AT_ONCE][MAX_QUADS];

#include "../evict/items.glsl"

void add_row(uint base, uint slot, uint lane, bool here) {
  float square = 0.0;
  if (here)
    for (uint k4 = lane; k4 < HEAD_DIM / 4; k4 += LANES) {
      const vec4 x = LOAD_VEC4(rows, DTYPE, base + 4 * k4);
      square += dot(x, x);
    }
  barrier();
  parts[slot][lane] = square;
  barrier();
  if (!here) return;
  float total = 0.0;
  for (uint i = 0; i < LANES; i++) total += parts[slot][i];
  const float scale = total != 0.0 ? 1.0 / sqrt(total) : 0.0;
  for (uint k4 = lane; k4 < HEAD_DIM / 4; k4 += LANES) sums[slot][k4] += LOAD_VEC4(rows, DTYPE, base + 4 * k4) * scale;
}

void sum_split() {
  const uint split = push.first_item + workgroup_index();
  const uint head = head_of(split, HEAD_FIRST_SPLIT);
  find_rows(head);
  const uint begin = (split - head_word(head, HEAD_FIRST_SPLIT)) * SPLIT_ENTRIES;
  const uint lane = gl_LocalInvocationIndex % LANES, slot = gl_LocalInvocationIndex / LANES;
  for (uint k4 = lane; k4 < HEAD_DIM / 4; k4 += LANES) sums[slot][k4] = vec4(0.0);
  for (uint first = begin; first < begin + SPLIT_ENTRIES; first += ROWS_AT_ONCE) {
    const uint entry = first + slot;
    add_row(row_start(entry), slot, lane, has_row(entry));
  }
  barrier();
  const uint to = push.partials + (push.rows.segment * push.n_splits + split) * HEAD_DIM;
  for (uint i = gl_LocalInvocationIndex; i < HEAD_DIM; i += LOCAL_SIZE) {
    float total = 0.0;
    for (uint row = 0; row < ROWS_AT_ONCE; row++) total += sums[row][i / 4][i % 4];
    work[to + i] = total;
  }
}

void merge_splits() {
  const uint head = workgroup_index();
  const uint first = head_word(head, HEAD_FIRST_SPLIT);
  const uint n = (head_word(head, HEAD_N_ENTRIES) + SPLIT_ENTRIES - 1) / SPLIT_ENTRIES;
  for (uint i = gl_LocalInvocationIndex; i < HEAD_DIM; i += LOCAL_SIZE) {
    float total = 0.0;
    for (uint segment = 0; segment < push.n_segments; segment++)
      for (uint split = first; split < first + n; split++)
        total += work[push.partials + (segment * push.n_splits + split) * HEAD_DIM + i];
    work[push.anchors + head * HEAD_DIM + i] = total;
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  if (MODE == MODE_SPLIT) sum_split();
  else merge_splits();
}
