#version 450
#extension GL_GOOGLE_include_directive : require
// Merges the splits of the first pass: maximum and 1 / sum of every window query. One workgroup per query head and eight
// queries: sixteen invocations a query, each with every sixteenth split, then merged in order.
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

const uint GROUPS_A_HEAD = (WINDOW + 7) / 8;

shared float part_maximum[LOCAL_SIZE], part_sum[LOCAL_SIZE];

void merge(inout float maximum, inout float sum, float other_maximum, float other_sum) {
  const float highest = max(maximum, other_maximum);
  sum = sum * exp2(maximum - highest) + other_sum * exp2(other_maximum - highest);
  maximum = highest;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint query_head = workgroup_index() / GROUPS_A_HEAD, head = query_head / GROUP, group_head = query_head % GROUP;
  const uint t = workgroup_index() % GROUPS_A_HEAD * 8 + gl_LocalInvocationIndex % 8;
  const uint words = push.heads + head * HEAD_WORDS;
  const uint begin = state[words + HEAD_FIRST_SPLIT];
  const uint end = begin + (state[words + HEAD_N_ENTRIES] + SPLIT_ENTRIES - 1) / SPLIT_ENTRIES;
  float maximum = -1.0e38, sum = 0.0;
  if (t < WINDOW)
    for (uint segment = 0; segment < push.n_segments; segment++)
      for (uint split = begin + gl_LocalInvocationIndex / 8; split < end; split += LOCAL_SIZE / 8) {
        const uint slot = split + segment * push.n_splits;
        const uint at = push.in_offset + ((slot * GROUP + group_head) * WINDOW + t) * 2;
        merge(maximum, sum, partial[at], partial[at + 1]);
      }
  part_maximum[gl_LocalInvocationIndex] = maximum;
  part_sum[gl_LocalInvocationIndex] = sum;
  barrier();
  if (gl_LocalInvocationIndex >= 8 || t >= WINDOW) return;
  for (uint part = gl_LocalInvocationIndex + 8; part < LOCAL_SIZE; part += 8)
    merge(maximum, sum, part_maximum[part], part_sum[part]);
  const uint to = push.softmax + (query_head * WINDOW + t) * 2;
  state[to] = floatBitsToUint(maximum);
  state[to + 1] = floatBitsToUint(1.0 / sum);
}
