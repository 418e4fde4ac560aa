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

shared vec4 partial[LOCAL_SIZE];
shared vec4 states[LOCAL_SIZE]; // maximum, sum

void main() {
  const uint head = workgroup_index();
  if (head >= push.n_groups) return;
  const uint t = gl_LocalInvocationID.x;
  const uvec4 first = scratch[push.table_first + head / GROUP];
  const uvec4 second = scratch[push.second_table_first + head / GROUP];
  const uint n_first = (first.y + CHUNK - 1) / CHUNK;
  const uint n_slots = n_first + (second.y + CHUNK - 1) / CHUNK;
  const uint column = t % QUADS;
  float largest = LOWEST, total = 0.0;
  vec4 sum = vec4(0.0);
  if (t / QUADS < SPLITS)
    for (uint i = t / QUADS; i < n_slots; i += SPLITS) {
      const uint slot = i < n_first ? first.z + i : second.z + i - n_first;
      const uint at = slot * GROUP + head % GROUP;
      const vec2 state = uintBitsToFloat(scratch[push.state_first + at].xy);
      const float top = max(largest, state.x);
      const float shrink = exp2(largest - top), weight = exp2(state.x - top);
      total = total * shrink + state.y * weight;
      sum = sum * shrink + uintBitsToFloat(scratch[push.sum_first + at * QUADS + column]) * weight;
      largest = top;
    }
  partial[t] = sum;
  states[t] = vec4(largest, total, 0.0, 0.0);
  barrier();
  if (t < QUADS) {
    largest = LOWEST;
    for (uint i = 0; i < SPLITS; i++) largest = max(largest, states[i * QUADS + t].x);
    total = 0.0;
    sum = vec4(0.0);
    for (uint i = 0; i < SPLITS; i++) {
      const float weight = exp2(states[i * QUADS + t].x - largest);
      total += states[i * QUADS + t].y * weight;
      sum += partial[i * QUADS + t] * weight;
    }
    result[head * QUADS + t] = total > 0.0 ? sum / total : vec4(0.0);
  }
}
