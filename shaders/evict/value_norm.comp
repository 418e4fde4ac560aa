#version 450
#extension GL_GOOGLE_include_directive : require
// Projected-value norms |R_h v|, times the attention norms, mean over the group: the raw LaProx score. R_h is upper
// triangular, so a block of its rows starts at its own column. One workgroup per tile of 64 candidates.
#include "index.glsl"
#include "dtype.glsl"
#include "../evict/layout.glsl"
#include "../evict/value.glsl"
#include "../evict/tile.glsl"

#define MODE_MEAN           0 // attention part [tile, GROUP, 64]
#define MODE_ATTENTION_MEAN 1 // attention part [tile, 64]

shared float column_part[8][TILE_COLUMNS];

uint query_head, first_factor_row;

vec4 load_a(uint row, uint k4) {
  const uint factor_row = first_factor_row + row;
  if (factor_row >= HEAD_DIM) return vec4(0.0);
  const uint at = (query_head * HEAD_DIM + factor_row) * HEAD_DIM + 4 * k4;
  return vec4(factor[at], factor[at + 1], factor[at + 2], factor[at + 3]);
}

// |R_h v| of the invocation's column; invocations beyond the columns return 0.
float column_norm() {
  const uint x = gl_LocalInvocationIndex % 16, y = gl_LocalInvocationIndex / 16;
  vec4 squares = vec4(0.0);
  for (first_factor_row = 0; first_factor_row < HEAD_DIM; first_factor_row += TILE_ROWS) {
    vec4 projected[4];
    tile_product(first_factor_row / 4, HEAD_DIM / 4, projected);
    for (uint i = 0; i < 4; i++) squares += projected[i] * projected[i];
  }
  barrier();
  for (uint j = 0; j < 4; j++) column_part[y][x + 16 * j] = squares[j];
  barrier();
  if (gl_LocalInvocationIndex >= TILE_COLUMNS) return 0.0;
  float total = 0.0;
  for (uint part = 0; part < 8; part++) total += column_part[part][gl_LocalInvocationIndex];
  return sqrt(total);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint tile = push.first_item + workgroup_index();
  if (!find_tile(tile)) return;
  const uint column = gl_LocalInvocationIndex % TILE_COLUMNS, strip_tile = tile - push.items_base;
  float score = 0.0;
  for (uint group_head = 0; group_head < GROUP; group_head++) {
    query_head = head * GROUP + group_head;
    const float norm = column_norm();
    if (MODE == MODE_ATTENTION_MEAN) score += norm;
    else score += norm * work[push.attention + (strip_tile * GROUP + group_head) * TILE_ENTRIES + column];
  }
  if (MODE == MODE_ATTENTION_MEAN) score *= work[push.attention + strip_tile * TILE_ENTRIES + column];
  write_score(gl_LocalInvocationIndex, score / float(GROUP));
}
