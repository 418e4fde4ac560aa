#version 450
#extension GL_GOOGLE_include_directive : require
// Merges the splits of the first pass in their order: maximum and 1 / sum of every window query. One workgroup per
// query head.
#include "index.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 2) const uint WINDOW = 32;

layout(set = 0, binding = 0) buffer State { uint state[]; };
layout(set = 0, binding = 1) readonly buffer Partial { float partial[]; }; // [slot, GROUP, WINDOW, 2]

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;
  uint n_segments;
  uint n_splits; // of the layer
  uint softmax;  // word of the output, [heads, WINDOW, 2]
  uint in_offset;
} push;

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint query_head = workgroup_index(), head = query_head / GROUP, group_head = query_head % GROUP;
  const uint words = push.heads + head * HEAD_WORDS;
  const uint begin = state[words + HEAD_FIRST_SPLIT];
  const uint end = begin + (state[words + HEAD_N_ENTRIES] + SPLIT_ENTRIES - 1) / SPLIT_ENTRIES;
  for (uint t = gl_LocalInvocationIndex; t < WINDOW; t += LOCAL_SIZE) {
    float maximum = -1.0e38, sum = 0.0;
    for (uint segment = 0; segment < push.n_segments; segment++)
      for (uint split = begin; split < end; split++) {
        const uint slot = split + segment * push.n_splits;
        const uint at = push.in_offset + ((slot * GROUP + group_head) * WINDOW + t) * 2;
        const float highest = max(maximum, partial[at]);
        sum = sum * exp2(maximum - highest) + partial[at + 1] * exp2(partial[at] - highest);
        maximum = highest;
      }
    const uint to = push.softmax + (query_head * WINDOW + t) * 2;
    state[to] = floatBitsToUint(maximum);
    state[to + 1] = floatBitsToUint(1.0 / sum);
  }
}
