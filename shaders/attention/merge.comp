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
shared vec2 states[SPLITS]; // maximum, sum

uint n_first, n_slots, first_slot, second_slot;

// Where slot i of the head begins.
uint slot_at(uint i) {
  return push.partial_first + (i < n_first ? first_slot + i : second_slot + (i - n_first)) * GROUP * (1u + QUADS);
}

// Nothing branches around a load, or each would wait for the one before.
#define LOAD(n)                                                                                                      \
  const uint at##n = slot_at(min(i + n * SPLITS, n_slots - 1u));                                                     \
  const vec2 loaded##n = uintBitsToFloat(scratch[at##n + in_group].xy);                                              \
  const vec4 part##n = uintBitsToFloat(scratch[at##n + GROUP + in_group * QUADS + column]);                          \
  const vec2 state##n = i + n * SPLITS < n_slots ? loaded##n : vec2(LOWEST, 0.0);
#define ADD(n)                                                                                                       \
  {                                                                                                                  \
    const float weight = i + n * SPLITS < n_slots ? exp2(state##n.x - top) : 0.0;                                    \
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
  float largest = LOWEST, total = 0.0;
  vec4 sum = vec4(0.0);
  for (uint i = split; i < n_slots; i += 4 * SPLITS) {
    REPEAT_4(LOAD)
    const float top = max(largest, max(max(state0.x, state1.x), max(state2.x, state3.x)));
    const float shrink = exp2(largest - top);
    total *= shrink;
    sum *= shrink;
    REPEAT_4(ADD)
    largest = top;
  }
  sums[t] = sum;
  if (t % STRETCH == 0u) states[split] = vec2(largest, total);
  barrier();
  if (t >= STRETCH || own_column >= QUADS) return;
  for (uint i = 0; i < SPLITS; i++) largest = max(largest, states[i].x);
  sum = vec4(0.0);
  total = 0.0;
  for (uint i = 0; i < SPLITS; i++) {
    const float weight = exp2(states[i].x - largest);
    sum += sums[i * STRETCH + t] * weight;
    total += states[i].y * weight;
  }
  result[head * QUADS + column] = total > 0.0 ? sum / total : vec4(0.0);
}
