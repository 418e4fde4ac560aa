#version 450
#extension GL_GOOGLE_include_directive : require
// From stored window probabilities of a strip of tiles and the tiles beside it: the most that any query of any head of
// the group pays to a candidate and its neighbours, and what all of them pay to it alone (sum over the queries, mean over
// the group). One workgroup per tile.
#include "index.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint WIDTH = 5; // odd, at most 31
layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 2) const uint WINDOW = 32;
layout(constant_id = 3) const uint MODE = 0;

#define MODE_AVERAGE 0
#define MODE_MAX     1

layout(set = 0, binding = 0) readonly buffer State { uint state[]; };
layout(set = 0, binding = 1) buffer Work { float work[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads, n_heads;
  uint layer_block;
  uint first_item;    // tile of workgroup 0, in the layer
  uint stored_item;   // tile that the probabilities begin with
  uint probabilities; // word of [tile, GROUP, WINDOW, 64] in work[]
  uint risk, mean;    // words of the layer's results in work[]
} push;

const int HALO = int(WIDTH / 2);
shared float half_risk[TILE_ENTRIES], half_sum[TILE_ENTRIES];

#include "../evict/heads.glsl"

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint tile = push.first_item + workgroup_index();
  uint head = 0;
  while (head + 1 < push.n_heads && head_word(head + 1, HEAD_FIRST_TILE) <= tile) head++;
  const uint first_tile = head_word(head, HEAD_FIRST_TILE), n_candidates = head_word(head, HEAD_N_CANDIDATES);
  const uint column = gl_LocalInvocationIndex % TILE_ENTRIES, half_index = gl_LocalInvocationIndex / TILE_ENTRIES;
  const uint candidate = (tile - first_tile) * TILE_ENTRIES + column;
  const bool inside = candidate < n_candidates;
  float risk = 0.0, sum = 0.0;
  for (uint row = half_index; inside && row < GROUP * WINDOW; row += 2) {
    float total = 0.0;
    for (int k = -HALO; k <= HALO; k++) {
      const uint other = candidate + uint(k); // wraps below 0 and is then beyond n_candidates
      if (other >= n_candidates) continue;
      const uint stored = first_tile + other / TILE_ENTRIES - push.stored_item;
      const float p = work[push.probabilities + (stored * GROUP * WINDOW + row) * TILE_ENTRIES + other % TILE_ENTRIES];
      total = MODE == MODE_MAX && is_finite(p) ? max(total, p) : total + p;
      if (k == 0) sum += p;
    }
    if (MODE == MODE_AVERAGE) total /= float(WIDTH);
    risk = is_finite(total) && is_finite(risk) ? max(risk, total) : NOT_A_NUMBER;
  }
  if (half_index == 1) half_risk[column] = risk, half_sum[column] = sum;
  barrier();
  if (half_index == 1 || !inside) return;
  const bool both = is_finite(risk) && is_finite(half_risk[column]);
  const uint at = (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES + candidate;
  work[push.risk + at] = both ? max(risk, half_risk[column]) : NOT_A_NUMBER;
  work[push.mean + at] = (sum + half_sum[column]) / float(GROUP);
}
