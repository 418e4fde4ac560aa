// Decode attention for processors that run shaders in software: what decode.comp does, by a workgroup of one subgroup and
// without shared memory, which is memory like any other there and takes a load or a store for every invocation.
//
// LANES threads take as many entries each of a tile at once: rows of K whole, so that products need no reduction. The
// logits stay in registers; probabilities are handed on by shuffles to the values, of which every thread has eight columns.
// Rows are of at most LANES of these.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_shuffle : require
#include "repeat.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64; // a multiple of 8, at most 8 LANES; the cache is f16
layout(constant_id = 1) const uint GROUP = 2;     // query heads a KV head
layout(constant_id = 2) const uint LANES = 8;     // invocations of a subgroup
layout(local_size_x_id = 2, local_size_y = 1, local_size_z = 1) in;

layout(push_constant) uniform Push {
  uint n_groups;
  uint table_first;            // as decode.comp has them
  uint first_head, n_heads;
  uint first_row;
  uint first_slot;
  uint chunk_bits;
  uint key_first, value_first; // uvec4s
  uint partial_first;
  float scale;
} push;

layout(binding = 0) readonly buffer Query { vec4 query[]; };
layout(binding = 1) readonly buffer Key { uvec4 key[]; };
layout(binding = 2) readonly buffer Value { uvec4 value[]; };
layout(binding = 3) buffer Scratch { uvec4 scratch[]; };

#define BATCH  4 // query heads at a time
#define ROWS   4 // entries of a thread at a time
#define LOWEST -1.0e38

const uint QUADS = HEAD_DIM / 4;
const uint OCTETS = HEAD_DIM / 8;
const uint HEADS = GROUP < BATCH ? GROUP : BATCH;
const uint PARTS = (QUADS + LANES - 1) / LANES; // of a query, a quad for every thread
const uint TILE = LANES * ROWS;                 // entries

#define EACH(i, n) [[unroll]] for (uint i = 0; i < n; i++)

vec4 queries[HEADS * PARTS]; // times the scale; handed on by shuffles
vec4 sums_low[HEADS], sums_high[HEADS];
float logits[HEADS * ROWS]; // then probabilities
float largest[HEADS], total[HEADS];

void load_queries(uint head, uint batch, uint n_batch) {
  EACH(h, HEADS) {
    const uint from = (head * GROUP + batch + min(h, n_batch - 1u)) * QUADS;
    EACH(i, PARTS) {
      const uint quad = i * LANES + gl_SubgroupInvocationID;
      queries[h * PARTS + i] = query[from + min(quad, QUADS - 1u)] * push.scale;
    }
    sums_low[h] = sums_high[h] = vec4(0.0);
    largest[h] = LOWEST;
    total[h] = 0.0;
  }
}

// Loops over loads stay loops: compilers that make a loop of each load take minutes for hundreds of them.
#define ADD_ROW(r)                                                                                                   \
  {                                                                                                                  \
    const uvec4 data = key[first + min(entry + r * LANES, last) * OCTETS + octet];                                   \
    const vec4 low = vec4(unpackHalf2x16(data.x), unpackHalf2x16(data.y));                                           \
    const vec4 high = vec4(unpackHalf2x16(data.z), unpackHalf2x16(data.w));                                          \
    EACH(h, HEADS) {                                                                                                 \
      float sum = logits[h * ROWS + r];                                                                              \
      sum = fma(a[h].x, low.x, fma(a[h].y, low.y, fma(a[h].z, low.z, fma(a[h].w, low.w, sum))));                     \
      logits[h * ROWS + r] =                                                                                         \
          fma(b[h].x, high.x, fma(b[h].y, high.y, fma(b[h].z, high.z, fma(b[h].w, high.w, sum))));                   \
    }                                                                                                                \
  }

// Of a thread's entries, LANES apart. One beyond the last is taken for the last; its probability is zero.
void compute_logits(uint first, uint begin, uint last) {
  const uint entry = begin + gl_SubgroupInvocationID;
  EACH(i, HEADS * ROWS) logits[i] = 0.0;
  EACH(i, PARTS) [[dont_unroll]] for (uint j = 0; j < min(LANES / 2, OCTETS - i * (LANES / 2)); j++) {
    const uint octet = i * (LANES / 2) + j;
    vec4 a[HEADS], b[HEADS];
    EACH(h, HEADS) {
      a[h] = subgroupShuffle(queries[h * PARTS + i], 2 * j);
      b[h] = subgroupShuffle(queries[h * PARTS + i], 2 * j + 1);
    }
    REPEAT_4(ADD_ROW)
  }
  EACH(r, ROWS) if (entry + r * LANES > last) EACH(h, HEADS) logits[h * ROWS + r] = LOWEST;
}

// The sums so far shrink as a larger logit is found.
void exponentiate() {
  EACH(h, HEADS) {
    float top = largest[h];
    EACH(r, ROWS) top = max(top, logits[h * ROWS + r]);
    for (uint distance = 1; distance < LANES; distance *= 2) top = max(top, subgroupShuffleXor(top, distance));
    const float shrink = exp2(largest[h] - top);
    largest[h] = top;
    total[h] *= shrink;
    EACH(r, ROWS) {
      logits[h * ROWS + r] = exp2(logits[h * ROWS + r] - top);
      total[h] += logits[h * ROWS + r];
    }
    sums_low[h] *= shrink;
    sums_high[h] *= shrink;
  }
}

#define ADD_VALUE(r)                                                                                                 \
  {                                                                                                                  \
    const uvec4 data = value[first + min(entry + r * LANES, last) * OCTETS + column];                                \
    const vec4 low = vec4(unpackHalf2x16(data.x), unpackHalf2x16(data.y));                                           \
    const vec4 high = vec4(unpackHalf2x16(data.z), unpackHalf2x16(data.w));                                          \
    EACH(h, HEADS) {                                                                                                 \
      const vec4 p = vec4(subgroupShuffle(logits[h * ROWS + r], lane));                                              \
      sums_low[h] = fma(p, low, sums_low[h]);                                                                        \
      sums_high[h] = fma(p, high, sums_high[h]);                                                                     \
    }                                                                                                                \
  }

void add_values(uint first, uint begin, uint last) {
  const uint column = min(gl_SubgroupInvocationID, OCTETS - 1u);
  [[dont_unroll]] for (uint lane = 0; lane < LANES && begin + lane <= last; lane++) {
    const uint entry = begin + lane;
    REPEAT_4(ADD_VALUE)
  }
}

void store(uint slot, uint batch, uint n_batch) {
  const uint base = push.partial_first + slot * GROUP * (1u + QUADS), lane = gl_SubgroupInvocationID;
  EACH(h, HEADS) {
    float sum = total[h];
    for (uint distance = 1; distance < LANES; distance *= 2) sum += subgroupShuffleXor(sum, distance);
    if (h < n_batch && lane == 0u)
      scratch[base + batch + h] = uvec4(floatBitsToUint(largest[h]), floatBitsToUint(sum), 0u, 0u);
    const uint to = base + GROUP + (batch + h) * QUADS + lane * 2u;
    if (h < n_batch && lane < OCTETS) {
      scratch[to] = floatBitsToUint(sums_low[h]);
      scratch[to + 1u] = floatBitsToUint(sums_high[h]);
    }
  }
}

void attend(uint slot, uint head, uint batch, uint first_entry, uint n_entries) {
  const uint n_batch = min(GROUP - batch, BATCH), last = n_entries - 1u, first = first_entry * OCTETS;
  load_queries(head, batch, n_batch);
  for (uint begin = 0; begin < n_entries; begin += TILE) {
    compute_logits(push.key_first + first, begin, last);
    exponentiate();
    add_values(push.value_first + first, begin, last);
  }
  store(slot, batch, n_batch);
}

void main() {
  const uint group = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
  if (group >= push.n_groups) return;
  const uint slot = push.first_slot + group;
  uvec4 row = uvec4(0u);
  uint head = 0u;
  for (uint i = 0; i < push.n_heads; i++) {
    const uvec4 found = scratch[push.table_first + i];
    if (slot < found.z || slot - found.z >= (found.y + (1u << push.chunk_bits) - 1u) >> push.chunk_bits) continue;
    row = found;
    head = push.first_head + i;
  }
  if (row.y == 0u) return;
  const uint begin = (slot - row.z) << push.chunk_bits;
  [[dont_unroll]] for (uint batch = 0; batch < GROUP; batch += BATCH)
    attend(slot, head, batch, row.x - push.first_row + begin, min(row.y - begin, 1u << push.chunk_bits));
}
