#version 450
#extension GL_GOOGLE_include_directive : require
// From stored window probabilities of a strip of tiles: MODE_GRAM: for every candidate the inner products of the group's
// attention columns, lower triangle row by row; MODE_MEAN: the norm of the group's mean column. One workgroup per tile.
#include "index.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 2) const uint WINDOW = 32;
layout(constant_id = 4) const uint MODE = 0;

#define MODE_GRAM 0
#define MODE_MEAN 1

layout(set = 0, binding = 0) buffer Work { float work[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint in_offset;  // [tile, GROUP, WINDOW, 64]
  uint out_offset; // [tile, pairs or 1, 64]
} push;

float probability(uint tile, uint group_head, uint t, uint column) {
  return work[push.in_offset + ((tile * GROUP + group_head) * WINDOW + t) * TILE_ENTRIES + column];
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint tile = workgroup_index();
  const uint column = gl_LocalInvocationIndex % TILE_ENTRIES, half_index = gl_LocalInvocationIndex / TILE_ENTRIES;
  if (MODE == MODE_MEAN) {
    if (half_index != 0) return;
    float total = 0.0;
    for (uint t = 0; t < WINDOW; t++) {
      float sum = 0.0;
      for (uint h = 0; h < GROUP; h++) sum += probability(tile, h, t, column);
      total += sum * sum;
    }
    work[push.out_offset + tile * TILE_ENTRIES + column] = sqrt(total) / float(GROUP);
    return;
  }
  const uint n_pairs = GROUP * (GROUP + 1) / 2;
  uint pair = 0;
  for (uint h = 0; h < GROUP; h++)
    for (uint other = 0; other <= h; other++, pair++) {
      if (pair % 2 != half_index) continue;
      float total = 0.0;
      for (uint t = 0; t < WINDOW; t++) total += probability(tile, h, t, column) * probability(tile, other, t, column);
      work[push.out_offset + (tile * n_pairs + pair) * TILE_ENTRIES + column] = total;
    }
}
