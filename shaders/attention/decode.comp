// Attention of a single query row over a chunk of 128 entries of one KV head, for all its query heads: a partial result
// (maximum, sum, weighted values) to be merged in the order of the chunks. Chunks begin at multiples of 128 of a head's
// entries, so that a cache that grows changes the last one only.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"
#include "repeat.glsl"
#include "weight.glsl"

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
layout(binding = 1) readonly buffer Key { uvec2 key[]; };
layout(binding = 2) readonly buffer Value { uvec2 value[]; };
layout(binding = 3) buffer Scratch { uvec4 scratch[]; };

#define CHUNK  128
#define BATCH  4 // query heads at a time
#define SLICES 4 // threads that share four keys take every fourth vec4 of the head dimension
#define LOWEST -1.0e38

const uint QUADS = HEAD_DIM / 4;
const uint HEADS = GROUP < BATCH ? GROUP : BATCH;
const uint SPLITS = LOCAL_SIZE / QUADS; // threads that share a column of V take every SPLITS'th four entries

shared vec4 queries[BATCH * 64];
shared vec4 partial[BATCH * LOCAL_SIZE];     // scores by slice, then values by split
shared vec4 probability[BATCH * CHUNK / 4];
shared vec4 sums[LOCAL_SIZE];                // maxima of four entries, then sums of probabilities by split

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

// Entries beyond the last repeat it; their probability is zero.
#define LOAD_KEY(n)                                                                                                  \
  const vec4 k##n =                                                                                                  \
      LOAD_QUAD(key, CACHE_TYPE, push.key_first + ((first_entry + min(block * 4u + n, last)) * QUADS + c) * 4u);
#define CLEAR_SCORE(q) vec4 score##q = vec4(0.0);
#define ADD_SCORE(q)                                                                                                 \
  if (q < HEADS) {                                                                                                   \
    const vec4 a = queries[q * QUADS + c];                                                                           \
    score##q += vec4(dot(a, k0), dot(a, k1), dot(a, k2), dot(a, k3));                                                \
  }
#define STORE_SCORE(q) if (q < HEADS) partial[(q * SLICES + slice) * (CHUNK / 4) + block] = score##q;

void compute_scores(uint first_entry, uint last) {
  const uint slice = gl_LocalInvocationID.x & 3u, block = gl_LocalInvocationID.x >> 2;
  REPEAT_4(CLEAR_SCORE)
  for (uint c = slice; c < QUADS; c += SLICES) {
    REPEAT_4(LOAD_KEY)
    REPEAT_4(ADD_SCORE)
  }
  REPEAT_4(STORE_SCORE)
}

// One thread has four entries of one query head. Returns the head's maximum.
float exponentiate(uint n_entries) {
  const uint t = gl_LocalInvocationID.x;
  const uint head = t / (CHUNK / 4), block = t % (CHUNK / 4);
  vec4 score = vec4(LOWEST);
  const bvec4 seen = lessThan(uvec4(0u, 1u, 2u, 3u) + block * 4u, uvec4(n_entries));
  if (head < HEADS) {
    const uint at = head * SLICES * (CHUNK / 4) + block;
    score = (partial[at] + partial[at + CHUNK / 4]) + (partial[at + CHUNK / 2] + partial[at + 3 * CHUNK / 4]);
    score = mix(vec4(LOWEST), score, seen);
  }
  sums[t >> 2][t & 3u] = max(max(score.x, score.y), max(score.z, score.w));
  barrier();
  vec4 top = vec4(LOWEST);
  for (uint i = 0; i < CHUNK / 16; i++) top = max(top, sums[head * (CHUNK / 16) + i]);
  const float largest = max(max(top.x, top.y), max(top.z, top.w));
  probability[t] = mix(vec4(0.0), exp2(score - largest), seen);
  return largest;
}

#define LOAD_VALUE(n)                                                                                                \
  const vec4 v##n =                                                                                                  \
      LOAD_QUAD(value, CACHE_TYPE, push.value_first + ((first_entry + min(block * 4u + n, last)) * QUADS + c) * 4u);
#define CLEAR_VALUE(q) vec4 sum##q = vec4(0.0);
#define ADD_VALUE(q)                                                                                                 \
  if (q < HEADS) {                                                                                                   \
    const vec4 p = probability[q * (CHUNK / 4) + block];                                                             \
    sum##q += p.x * v0 + p.y * v1 + p.z * v2 + p.w * v3;                                                             \
    total[q] += p.x + p.y + p.z + p.w;                                                                               \
  }
#define STORE_VALUE(q) if (q < HEADS) partial[q * LOCAL_SIZE + t] = sum##q;

void add_values(uint first_entry, uint last) {
  const uint t = gl_LocalInvocationID.x;
  const uint c = t % QUADS, split = t / QUADS;
  REPEAT_4(CLEAR_VALUE)
  vec4 total = vec4(0.0);
  if (split < SPLITS)
    for (uint block = split; block <= last / 4; block += SPLITS) {
      REPEAT_4(LOAD_VALUE)
      REPEAT_4(ADD_VALUE)
    }
  REPEAT_4(STORE_VALUE)
  if (c == 0u && split < SPLITS) sums[split] = total;
}

// Adds what the splits have, in their order.
void store(uint slot, uint batch, uint n_batch, float largest) {
  const uint t = gl_LocalInvocationID.x;
  for (uint i = t; i < n_batch * QUADS; i += LOCAL_SIZE) {
    const uint from = i / QUADS * LOCAL_SIZE + i % QUADS;
    vec4 sum = vec4(0.0);
    for (uint split = 0; split < SPLITS; split++) sum += partial[from + split * QUADS];
    scratch[push.sum_first + (slot * GROUP + batch) * QUADS + i] = floatBitsToUint(sum);
  }
  // The first thread of every head's in exponentiate knows its maximum.
  const uint head = t / (CHUNK / 4);
  if (t % (CHUNK / 4) == 0u && head < n_batch) {
    float total = 0.0;
    for (uint split = 0; split < SPLITS; split++) total += sums[split][head];
    scratch[push.state_first + slot * GROUP + batch + head] =
        uvec4(floatBitsToUint(largest), floatBitsToUint(total), 0u, 0u);
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint slot = push.first_slot + workgroup_index();
  uint head;
  const uvec4 row = find_head(slot, head);
  const uint begin = (slot - row.z) * CHUNK;
  const uint n_entries = min(row.y - begin, CHUNK);
  const uint first_entry = row.x - push.first_row + begin;

  for (uint batch = 0; batch < GROUP; batch += BATCH) {
    const uint n_batch = min(GROUP - batch, HEADS);
    barrier();
    for (uint i = gl_LocalInvocationID.x; i < n_batch * QUADS; i += LOCAL_SIZE)
      queries[i] = query[(head * GROUP + batch) * QUADS + i] * push.scale;
    barrier();
    compute_scores(first_entry, n_entries - 1u);
    barrier();
    const float largest = exponentiate(n_entries);
    barrier();
    add_values(first_entry, n_entries - 1u);
    barrier();
    store(slot, batch, n_batch, largest);
  }
}
