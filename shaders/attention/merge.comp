// Partial results of decode attention, in the order of their slots, to a stretch of the output row of one query head a
// workgroup. A head's slots are those of its chunks in the first segment, then those in the second.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"
#include "repeat.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 2; // query heads a KV head

layout(push_constant) uniform Push {
  uint n_groups;                     // query heads times stretches
  uint table_first, second_first;    // uvec4s: (first row, entries, first slot, -) of every KV head
  uint chunk_bits, second_chunk_bits; // entries of a slot: two to this power
  uint partial_first;                // uvec4s: of each slot states [GROUP], then sums [GROUP][d / 4]
} push;

layout(binding = 0) readonly buffer Scratch { uvec4 scratch[]; };
layout(binding = 1) writeonly buffer Output { vec4 result[]; };

#define STRETCH 8 // vec4s of a row
#define SPLITS  (LOCAL_SIZE / STRETCH)
#define LOWEST  -1.0e38

const uint QUADS = HEAD_DIM / 4;
const uint STRETCHES = (QUADS + STRETCH - 1) / STRETCH;

shared vec4 sums[LOCAL_SIZE];
shared float tops[LOCAL_SIZE], totals[SPLITS];

uint n_first, n_slots, first_slot, second_slot;

// Where slot i of the head begins.
uint slot_at(uint i) {
  return push.partial_first + (i < n_first ? first_slot + i : second_slot + (i - n_first)) * GROUP * (1u + QUADS);
}

float find_largest(uint in_group) {
  const uint t = gl_LocalInvocationID.x;
  float largest = LOWEST;
  for (uint i = t; i < n_slots; i += LOCAL_SIZE)
    largest = max(largest, uintBitsToFloat(scratch[slot_at(i) + in_group].x));
  tops[t] = largest;
  for (uint width = LOCAL_SIZE / 2; width > 0; width /= 2) {
    barrier();
    if (t < width) tops[t] = max(tops[t], tops[t + width]);
  }
  barrier();
  return tops[0];
}

#define LOAD(n)                                                                                                      \
  vec2 state##n;                                                                                                     \
  vec4 part##n;                                                                                                      \
  if (i + n * SPLITS < n_slots) {                                                                                    \
    const uint at = slot_at(i + n * SPLITS);                                                                         \
    state##n = uintBitsToFloat(scratch[at + in_group].xy);                                                           \
    part##n = uintBitsToFloat(scratch[at + GROUP + in_group * QUADS + column]);                                      \
  }
#define ADD(n)                                                                                                       \
  if (i + n * SPLITS < n_slots) {                                                                                    \
    const float weight = exp2(state##n.x - largest);                                                                 \
    total += state##n.y * weight;                                                                                    \
    sum += part##n * weight;                                                                                         \
  }

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint head = workgroup_index() / STRETCHES, t = gl_LocalInvocationID.x;
  const uvec4 first = scratch[push.table_first + head / GROUP];
  const uvec4 second = scratch[push.second_first + head / GROUP];
  n_first = (first.y + (1u << push.chunk_bits) - 1u) >> push.chunk_bits;
  n_slots = n_first + ((second.y + (1u << push.second_chunk_bits) - 1u) >> push.second_chunk_bits);
  first_slot = first.z;
  second_slot = second.z;
  const uint in_group = head % GROUP, split = t / STRETCH;
  const uint own_column = workgroup_index() % STRETCHES * STRETCH + t % STRETCH, column = min(own_column, QUADS - 1u);
  const float largest = find_largest(in_group);
  float total = 0.0;
  vec4 sum = vec4(0.0);
  for (uint i = split; i < n_slots; i += 4 * SPLITS) {
    REPEAT_4(LOAD)
    REPEAT_4(ADD)
  }
  sums[t] = sum;
  if (t % STRETCH == 0u) totals[split] = total;
  barrier();
  if (t >= STRETCH || own_column >= QUADS) return;
  for (uint i = 1; i < SPLITS; i++) {
    sum += sums[i * STRETCH + t];
    total += totals[i];
  }
  result[head * QUADS + column] = total > 0.0 ? sum / total : vec4(0.0);
}
