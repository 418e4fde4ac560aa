// Attention of a single query row over a chunk of 128 entries of one KV head, for all its query heads: a partial result
// (maximum, sum, weighted values) to be merged in the order of the chunks. Chunks begin at multiples of 128 of a head's
// entries, so that a cache that grows changes the last one only.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "index.glsl"
#include "dtype.glsl"

layout(constant_id = 0) const uint CACHE_TYPE = 2;
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint GROUP = 2; // query heads a KV head

layout(push_constant) uniform Push {
  uint n_groups;
  uint table_first;            // uvec4s: (first row, entries, first slot, -) of the dispatch's first KV head
  uint first_head, n_heads;    // KV heads of this dispatch
  uint first_row;              // cache row at which the bound ranges begin
  uint first_slot;
  uint key_first, value_first; // elements
  uint state_first, sum_first; // uvec4s: [slots][GROUP] and [slots][GROUP][d / 4]
  float scale;                 // of the logits, times log2(e)
} push;

layout(binding = 0) readonly buffer Query { vec4 query[]; };
layout(binding = 1) readonly buffer Key { uint key[]; };
layout(binding = 2) readonly buffer Value { uint value[]; };
layout(binding = 3) buffer Scratch { uvec4 scratch[]; };

#define CHUNK  128
#define BATCH  4 // query heads at a time
#define LOWEST -1.0e38

const uint QUADS = HEAD_DIM / 4;
const uint LANES = GROUP < BATCH ? GROUP : BATCH;
const uint SPLITS = LOCAL_SIZE / QUADS; // threads that share a column of V take every SPLITS'th entry

shared vec4 queries[BATCH * 64];
shared float probability[BATCH * CHUNK];
shared float reduction[BATCH * LOCAL_SIZE];
shared vec4 partial[LOCAL_SIZE];

uvec4 find_head(uint slot, out uint head) {
  uvec4 row = uvec4(0u);
  head = push.first_head;
  for (uint i = 0; i < push.n_heads; i++) {
    const uvec4 candidate = scratch[push.table_first + i];
    const bool found = slot - candidate.z < (candidate.y + CHUNK - 1) / CHUNK;
    row = found ? candidate : row;
    head = found ? push.first_head + i : head;
  }
  return row;
}

// reduction[q][0] becomes the maximum or the sum over the threads, for each query head of the batch.
void reduce(bool maximum) {
  const uint t = gl_LocalInvocationID.x;
  for (uint width = LOCAL_SIZE / 2; width > 0; width >>= 1) {
    barrier();
    if (t < width)
      [[unroll]] for (uint q = 0; q < LANES; q++) {
        const float a = reduction[q * LOCAL_SIZE + t], b = reduction[q * LOCAL_SIZE + t + width];
        reduction[q * LOCAL_SIZE + t] = maximum ? max(a, b) : a + b;
      }
  }
  barrier();
}

void compute_scores(uint entry, bool seen, out float score[BATCH]) {
  [[unroll]] for (uint q = 0; q < LANES; q++) score[q] = 0.0;
  if (seen)
    for (uint c = 0; c < QUADS; c++) {
      const vec4 k = LOAD_VEC4(key, CACHE_TYPE, push.key_first + (entry * QUADS + c) * 4u);
      [[unroll]] for (uint q = 0; q < LANES; q++) score[q] += dot(k, queries[q * QUADS + c]);
    }
}

void add_values(uint first_entry, uint n_entries, uint slot, uint batch, uint n_batch) {
  const uint t = gl_LocalInvocationID.x;
  const uint column = t % QUADS;
  const uint split = t / QUADS;
  vec4 sum[BATCH];
  [[unroll]] for (uint q = 0; q < LANES; q++) sum[q] = vec4(0.0);
  if (split < SPLITS)
    for (uint i = split; i < n_entries; i += SPLITS) {
      const vec4 v = LOAD_VEC4(value, CACHE_TYPE, push.value_first + ((first_entry + i) * QUADS + column) * 4u);
      [[unroll]] for (uint q = 0; q < LANES; q++) sum[q] += probability[q * CHUNK + i] * v;
    }
  [[unroll]] for (uint q = 0; q < LANES; q++) {
    barrier();
    partial[t] = sum[q];
    barrier();
    if (t < QUADS && q < n_batch) {
      vec4 total = vec4(0.0);
      for (uint i = 0; i < SPLITS; i++) total += partial[i * QUADS + t];
      scratch[push.sum_first + (slot * GROUP + batch + q) * QUADS + t] = floatBitsToUint(total);
    }
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint slot = push.first_slot + workgroup_index();
  const uint t = gl_LocalInvocationID.x;
  uint head;
  const uvec4 row = find_head(slot, head);
  const uint begin = (slot - row.z) * CHUNK;
  const uint n_entries = min(row.y - begin, CHUNK);
  const uint first_entry = row.x - push.first_row + begin;
  const bool seen = t < n_entries;

  for (uint batch = 0; batch < GROUP; batch += BATCH) {
    const uint n_batch = min(GROUP - batch, LANES);
    barrier();
    for (uint i = t; i < n_batch * QUADS; i += LOCAL_SIZE)
      queries[i] = query[(head * GROUP + batch) * QUADS + i] * push.scale;
    barrier();
    float score[BATCH], largest[BATCH];
    compute_scores(first_entry + t, seen, score);
    [[unroll]] for (uint q = 0; q < LANES; q++) reduction[q * LOCAL_SIZE + t] = seen ? score[q] : LOWEST;
    reduce(true);
    [[unroll]] for (uint q = 0; q < LANES; q++) largest[q] = reduction[q * LOCAL_SIZE];
    barrier();
    [[unroll]] for (uint q = 0; q < LANES; q++) {
      const float p = seen ? exp2(score[q] - largest[q]) : 0.0;
      probability[q * CHUNK + t] = p;
      reduction[q * LOCAL_SIZE + t] = p;
    }
    reduce(false);
    if (t == 0u)
      [[unroll]] for (uint q = 0; q < LANES; q++)
        if (q < n_batch)
          scratch[push.state_first + slot * GROUP + batch + q] =
              uvec4(floatBitsToUint(largest[q]), floatBitsToUint(reduction[q * LOCAL_SIZE]), 0u, 0u);
    add_values(first_entry, n_entries, slot, batch, n_batch);
  }
}
