#version 450
#extension GL_GOOGLE_include_directive : require
// Merges the splits of the first pass: maximum and 1 / sum of every window query. Instead of maxima, levels do that leave sums
// far from overflow. One workgroup per query head and eight queries: sixteen invocations a query, each with every sixteenth
// split, then merged in order.
#include "index.glsl"
#include "repeat.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 2) const uint WINDOW = 32;

layout(set = 0, binding = 0) buffer State { uint state[]; };
layout(set = 0, binding = 1) readonly buffer Partial { vec2 partial[]; }; // [slot, GROUP, WINDOW]: maximum, sum

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;
  uint n_segments;
  uint n_splits; // of the layer
  uint softmax;  // word of the output, [heads, WINDOW, 2]
  uint in_offset; // even
} push;

const uint GROUPS_A_HEAD = (WINDOW + 7) / 8;

#define PARTS (LOCAL_SIZE / 8) // that a query's splits are divided into

shared vec2 parts[LOCAL_SIZE];

vec2 merged(vec2 one, vec2 other) {
  const float highest = max(one.x, other.x);
  return vec2(highest, one.y * exp2(one.x - highest) + other.y * exp2(other.x - highest));
}

// Four partials at once are on their way. Nothing branches around a load, or each would wait for the one before.
#define LOAD(n)  const vec2 partial##n = partial[at + min(split + n * PARTS, end - 1) * GROUP * WINDOW];
#define MERGE(n) if (split + n * PARTS < end) merging = merged(merging, partial##n);

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint query_head = workgroup_index() / GROUPS_A_HEAD, head = query_head / GROUP, group_head = query_head % GROUP;
  const uint t = workgroup_index() % GROUPS_A_HEAD * 8 + gl_LocalInvocationIndex % 8;
  const uint words = push.heads + head * HEAD_WORDS;
  const uint begin = state[words + HEAD_FIRST_SPLIT];
  const uint end = begin + (state[words + HEAD_N_ENTRIES] + SPLIT_ENTRIES - 1) / SPLIT_ENTRIES;
  vec2 merging = vec2(-1.0e38, 0.0);
  if (t < WINDOW)
    for (uint segment = 0; segment < push.n_segments; segment++) {
      const uint at = push.in_offset / 2 + (segment * push.n_splits * GROUP + group_head) * WINDOW + t;
      for (uint split = begin + gl_LocalInvocationIndex / 8; split < end; split += 4 * PARTS) {
        REPEAT_4(LOAD)
        REPEAT_4(MERGE)
      }
    }
  parts[gl_LocalInvocationIndex] = merging;
  barrier();
  if (gl_LocalInvocationIndex >= 8 || t >= WINDOW) return;
  for (uint part = gl_LocalInvocationIndex + 8; part < LOCAL_SIZE; part += 8) merging = merged(merging, parts[part]);
  const uint to = push.softmax + (query_head * WINDOW + t) * 2;
  state[to] = floatBitsToUint(merging.x);
  state[to + 1] = floatBitsToUint(1.0 / merging.y);
}
