#version 450
#extension GL_GOOGLE_include_directive : require
// Attention scores times what values come to, into the raw scores. What was no number there remains none.
//   MODE_PRODUCT: pooled attention x value; MODE_SHARE: the risk, but at least the head's mean risk, x the value's share
//   in what the values of the layer's heads at the same place come to together.
// One workgroup per block of scores.
#include "index.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint MODE = 0;

#define MODE_PRODUCT 0
#define MODE_SHARE   1

layout(set = 0, binding = 0) readonly buffer State { uint state[]; };
layout(set = 0, binding = 1) buffer Work { float work[]; };
layout(set = 0, binding = 2) readonly buffer Attention { float attention[]; }; // the layer's, pooled, numbers only

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads, n_heads;
  uint layer_block;
  uint raw, values; // words of the layer's in work[]
  uint block_sums;  // word in state[]: of attention[], as pool.comp leaves them
} push;

shared float least;

#include "../evict/heads.glsl"

float value_share(uint head, uint candidate) {
  float own = 0.0, total = 0.0;
  for (uint other = 0; other < push.n_heads; other++) {
    const uint begin = (head_word(other, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES;
    const float size = work[push.values + begin + candidate];
    if (other == head) own = size;
    total += size;
  }
  if (!is_finite(total)) return NOT_A_NUMBER;
  return total != 0.0 ? own / total : 0.0;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint block = push.layer_block + workgroup_index();
  uint head = 0;
  while (head + 1 < push.n_heads && head_word(head + 1, HEAD_FIRST_BLOCK) <= block) head++;
  const uint first_block = head_word(head, HEAD_FIRST_BLOCK), n_candidates = head_word(head, HEAD_N_CANDIDATES);
  if (gl_LocalInvocationIndex == 0) {
    float sum = 0.0;
    for (uint b = first_block; b < head_word(head + 1, HEAD_FIRST_BLOCK); b++)
      sum += uintBitsToFloat(state[push.block_sums + 2 * b]);
    least = sum / float(n_candidates);
  }
  barrier();
  for (uint i = gl_LocalInvocationIndex; i < BLOCK_ENTRIES; i += LOCAL_SIZE) {
    const uint candidate = (block - first_block) * BLOCK_ENTRIES + i, at = workgroup_index() * BLOCK_ENTRIES + i;
    if (candidate >= n_candidates) return;
    if (!is_finite(work[push.raw + at])) continue;
    if (MODE == MODE_PRODUCT) work[push.raw + at] = attention[at] * work[push.values + at];
    else work[push.raw + at] = max(attention[at], least) * value_share(head, candidate);
  }
}
