// Partial results of decode attention, in the order of their slots, to the output row of one query head a workgroup. A
// head's slots are those of its chunks in the first segment, then those in the second.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 2; // query heads a KV head

layout(push_constant) uniform Push {
  uint n_groups; // query heads
  uint table_first, second_table_first; // uvec4s: (first row, entries, first slot, -) of every KV head
  uint state_first, sum_first;
} push;

layout(binding = 0) readonly buffer Scratch { uvec4 scratch[]; };
layout(binding = 1) writeonly buffer Output { vec4 result[]; };

#define CHUNK  128
#define LOWEST -1.0e38

const uint QUADS = HEAD_DIM / 4;
const uint SPLITS = LOCAL_SIZE / QUADS;

shared float reduction[LOCAL_SIZE];
shared vec4 partial[LOCAL_SIZE];

uint n_first, first_slot, second_slot;

uint slot_of(uint i) {
  return i < n_first ? first_slot + i : second_slot + i - n_first;
}

void reduce(bool maximum) {
  const uint t = gl_LocalInvocationID.x;
  for (uint width = LOCAL_SIZE / 2; width > 0; width >>= 1) {
    barrier();
    if (t < width)
      reduction[t] = maximum ? max(reduction[t], reduction[t + width]) : reduction[t] + reduction[t + width];
  }
  barrier();
}

void main() {
  const uint head = workgroup_index();
  if (head >= push.n_groups) return;
  const uint t = gl_LocalInvocationID.x;
  const uvec4 first = scratch[push.table_first + head / GROUP];
  const uvec4 second = scratch[push.second_table_first + head / GROUP];
  n_first = (first.y + CHUNK - 1) / CHUNK;
  first_slot = first.z;
  second_slot = second.z;
  const uint n_slots = n_first + (second.y + CHUNK - 1) / CHUNK;
  const uint member = head % GROUP;

  reduction[t] = LOWEST;
  for (uint i = t; i < n_slots; i += LOCAL_SIZE)
    reduction[t] = max(reduction[t], uintBitsToFloat(scratch[push.state_first + slot_of(i) * GROUP + member].x));
  reduce(true);
  const float largest = reduction[0];
  barrier();
  reduction[t] = 0.0;
  for (uint i = t; i < n_slots; i += LOCAL_SIZE) {
    const vec4 state = uintBitsToFloat(scratch[push.state_first + slot_of(i) * GROUP + member]);
    reduction[t] += state.y * exp2(state.x - largest);
  }
  reduce(false);
  const float factor = reduction[0] > 0.0 ? 1.0 / reduction[0] : 0.0;

  vec4 sum = vec4(0.0);
  const uint column = t % QUADS;
  if (t / QUADS < SPLITS)
    for (uint i = t / QUADS; i < n_slots; i += SPLITS) {
      const uint at = slot_of(i) * GROUP + member;
      const float weight = exp2(uintBitsToFloat(scratch[push.state_first + at].x) - largest);
      sum += weight * uintBitsToFloat(scratch[push.sum_first + at * QUADS + column]);
    }
  partial[t] = sum;
  barrier();
  if (t < QUADS) {
    vec4 total = vec4(0.0);
    for (uint i = 0; i < SPLITS; i++) total += partial[i * QUADS + t];
    result[head * QUADS + t] = total * factor;
  }
}
