#version 450
#extension GL_GOOGLE_include_directive : require
// The sum of a layer's scores from its blocks' sums, by a fixed tree, and its inverse, with which the selection scales;
// and how many scores are no numbers. Layers without blocks are left alone. One workgroup per layer.
#include "index.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"

layout(set = 0, binding = 0) buffer State { uint state[]; };
layout(set = 0, binding = 1) buffer Result { uint result[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads, heads_per_layer; // word of the first layer's head table in state[]
  uint block_sums;             // word in state[], as pool.comp leaves them
  uint inverses;               // word in state[]: of the first layer
  uint counters;               // word in result[]: of what is no number in the first layer, then its scale
  uint normalize;              // 0: the scale is 1
} push;

shared float tree[LOCAL_SIZE];
shared uint count_tree[LOCAL_SIZE];

#include "../evict/heads.glsl"

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint layer = workgroup_index(), head = layer * push.heads_per_layer;
  const uint first = head_word(head, HEAD_FIRST_BLOCK);
  const uint end = head_word(head + push.heads_per_layer, HEAD_FIRST_BLOCK);
  if (first == end) return;
  float total = 0.0;
  uint count = 0;
  for (uint block = first + gl_LocalInvocationIndex; block < end; block += LOCAL_SIZE) {
    total += uintBitsToFloat(state[push.block_sums + 2 * block]);
    count += uint(uintBitsToFloat(state[push.block_sums + 2 * block + 1]));
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
  state[push.inverses + layer] = scale;
  result[push.counters + 2 * layer] = count_tree[0];
  result[push.counters + 2 * layer + 1] = scale;
}
