#version 450
#extension GL_GOOGLE_include_directive : require
// Gives all heads of a layer the mean of their raw scores, place by place: one list of entries for the whole layer. All
// heads have the same number of candidates. One workgroup per block of the first head.
#include "index.glsl"
#include "../evict/layout.glsl"

layout(set = 0, binding = 0) readonly buffer State { uint state[]; };
layout(set = 0, binding = 1) buffer Work { float work[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads, n_heads;
  uint layer_block;
  uint raw; // word of the layer's raw scores in work[]
} push;

#include "../evict/heads.glsl"

void main() {
  if (workgroup_index() >= push.n_groups) return;
  for (uint i = gl_LocalInvocationIndex; i < BLOCK_ENTRIES; i += LOCAL_SIZE) {
    const uint candidate = workgroup_index() * BLOCK_ENTRIES + i;
    if (candidate >= head_word(0, HEAD_N_CANDIDATES)) return;
    float sum = 0.0;
    for (uint head = 0; head < push.n_heads; head++)
      sum += work[push.raw + (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES + candidate];
    for (uint head = 0; head < push.n_heads; head++)
      work[push.raw + (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES + candidate] =
          sum / float(push.n_heads);
  }
}
