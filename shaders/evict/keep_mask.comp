#version 450
#extension GL_GOOGLE_include_directive : require
// One bit for every entry of a layer: whether it is kept. One workgroup per 128 words of a head, one invocation per word.
#include "index.glsl"
#include "../evict/layout.glsl"

layout(set = 0, binding = 0) readonly buffer Result { uint result[]; };
layout(set = 0, binding = 1) writeonly buffer Mask { uint mask[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;      // word of the layer's head table in result[]
  uint cu_seqlens; // word of the layer's
  uint indices;
  uint head_groups;          // workgroups of a head, enough for the longest
  uint first_word, residual; // word of the mask at which the binding begins, words before it
} push;

#include "../evict/kept.glsl"

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint head = workgroup_index() / push.head_groups;
  const uint word = workgroup_index() % push.head_groups * LOCAL_SIZE + gl_LocalInvocationIndex;
  if (word >= (head_word(head, HEAD_N_ENTRIES) + 31) / 32) return;
  const uint first = result[push.cu_seqlens + head], n_kept = result[push.cu_seqlens + head + 1] - first;
  const uint list = push.indices + first;
  uint bits = 0;
  for (uint row = row_of(list, n_kept, 32 * word); row < n_kept && result[list + row] / 32 == word; row++)
    bits |= 1u << (result[list + row] & 31u);
  mask[push.residual + head_word(head, HEAD_MASK) - push.first_word + word] = bits;
}
