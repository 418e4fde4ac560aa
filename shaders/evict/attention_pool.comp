#version 450
#extension GL_GOOGLE_include_directive : require
// Smooths attention norms of a strip of tiles along positions, before they meet the values' norms; the tiles beside the
// strip are there, too. What is no number counts as 0 for its neighbours and remains none. One workgroup per tile.
#include "index.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint WIDTH = 7;  // odd, at most 31
layout(constant_id = 1) const uint N_PARTS = 1; // norms of a candidate
layout(constant_id = 2) const uint MODE = 0;

#define MODE_AVERAGE 0
#define MODE_MAX     1

layout(set = 0, binding = 0) readonly buffer State { uint state[]; };
layout(set = 0, binding = 1) buffer Work { float work[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads, n_heads;
  uint first_item;  // tile of workgroup 0, in the layer
  uint stored_item; // tile that the input begins with
  uint from, to;    // words of [tile, N_PARTS, 64] in work[]; the output begins with first_item
} push;

const int HALO = int(WIDTH / 2);

#include "../evict/heads.glsl"

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint tile = push.first_item + workgroup_index();
  uint head = 0;
  while (head + 1 < push.n_heads && head_word(head + 1, HEAD_FIRST_TILE) <= tile) head++;
  const uint first_tile = head_word(head, HEAD_FIRST_TILE), n_candidates = head_word(head, HEAD_N_CANDIDATES);
  for (uint i = gl_LocalInvocationIndex; i < N_PARTS * TILE_ENTRIES; i += LOCAL_SIZE) {
    const uint part = i / TILE_ENTRIES, candidate = (tile - first_tile) * TILE_ENTRIES + i % TILE_ENTRIES;
    if (candidate >= n_candidates) continue;
    float total = 0.0;
    bool is_number = true;
    for (int k = -HALO; k <= HALO; k++) {
      const uint other = candidate + uint(k); // wraps below 0 and is then beyond n_candidates
      if (other >= n_candidates) continue;
      const uint stored = first_tile + other / TILE_ENTRIES - push.stored_item;
      const float norm = work[push.from + (stored * N_PARTS + part) * TILE_ENTRIES + other % TILE_ENTRIES];
      if (k == 0) is_number = is_finite(norm);
      if (is_finite(norm)) total = MODE == MODE_MAX ? max(total, norm) : total + norm;
    }
    if (MODE == MODE_AVERAGE) total /= float(WIDTH);
    work[push.to + workgroup_index() * N_PARTS * TILE_ENTRIES + i] = is_number ? total : NOT_A_NUMBER;
  }
}
