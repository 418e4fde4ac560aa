#version 450
#extension GL_GOOGLE_include_directive : require
// The sum of a layer's scores from its blocks' sums, by a fixed tree, and its inverse, with which the selection scales;
// and how many scores are no numbers. One workgroup.
#include "index.glsl"
#include "finite.glsl"

layout(set = 0, binding = 0) readonly buffer Work { float work[]; };
layout(set = 0, binding = 1) buffer State { uint state[]; };
layout(set = 0, binding = 2) buffer Result { uint result[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint block_sums, n_blocks;
  uint inverse;   // word in state[]
  uint counter;   // word in result[]: of what is no number, then the scale
  uint normalize; // 0: the scale is 1
} push;

shared float tree[LOCAL_SIZE];
shared uint count_tree[LOCAL_SIZE];

void main() {
  if (workgroup_index() >= push.n_groups) return;
  float total = 0.0;
  uint count = 0;
  for (uint i = gl_LocalInvocationIndex; i < push.n_blocks; i += LOCAL_SIZE) {
    total += work[push.block_sums + i];
    count += uint(work[push.block_sums + push.n_blocks + i]);
  }
  tree[gl_LocalInvocationIndex] = total;
  count_tree[gl_LocalInvocationIndex] = count;
  for (uint width = LOCAL_SIZE / 2; width > 0; width /= 2) {
    barrier();
    if (gl_LocalInvocationIndex < width) {
      tree[gl_LocalInvocationIndex] += tree[gl_LocalInvocationIndex + width];
      count_tree[gl_LocalInvocationIndex] += count_tree[gl_LocalInvocationIndex + width];
    }
  }
  if (gl_LocalInvocationIndex != 0) return;
  const float inverse = 1.0 / tree[0]; // infinite for the smallest sums there are, and then no scale
  const bool scaled = push.normalize != 0 && tree[0] > 0.0 && inverse > 0.0 && is_finite(inverse);
  const uint scale = floatBitsToUint(scaled ? inverse : 1.0);
  state[push.inverse] = scale;
  result[push.counter] = count_tree[0];
  result[push.counter + 1] = scale;
}
