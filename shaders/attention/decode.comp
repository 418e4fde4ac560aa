// Attention of a single query row over a chunk of the entries of one KV head, for all its query heads: a partial result
// (maximum, sum, weighted values) to be merged in the order of the chunks. Chunks begin at multiples of their size, so
// that a cache that grows changes the last one only.
//
// LANES threads share a row of K or V, each with a vector of it; SIDES of them stand side by side. The entries of a chunk
// are taken in tiles: products of K, the tile's maximum, probabilities, sums of V.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
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
  uint chunk_bits;             // entries of a slot: two to this power
  uint key_first, value_first; // vectors
  uint partial_first;          // uvec4s: of each slot states [GROUP], then sums [GROUP][d / 4]
  float scale;                 // of the logits, times log2(e)
} push;

// What a thread has of a row: eight f16 or, where rows are no multiple of 16 bytes or f32, four elements.
#ifdef OCTETS
#define ELEMENTS 8
#define STORED   uvec4
#define LOADED   uvec4
#define LOAD(buffer, at) buffer[at]
#define LOW(data)  vec4(unpackHalf2x16(data.x), unpackHalf2x16(data.y))
#define HIGH(data) vec4(unpackHalf2x16(data.z), unpackHalf2x16(data.w))
#define ANY_HIGH(code) code
#else
#define ELEMENTS 4
#define STORED   uvec2
#define LOADED   vec4
#define LOAD(buffer, at) LOAD_QUAD(buffer, CACHE_TYPE, (at) * 4u)
#define LOW(data) data
#define ANY_HIGH(code)
#endif

layout(binding = 0) readonly buffer Query { vec4 query[]; };
layout(binding = 1) readonly buffer Key { STORED key[]; };
layout(binding = 2) readonly buffer Value { STORED value[]; };
layout(binding = 3) buffer Scratch { uvec4 scratch[]; };

#define TILE   256 // entries
#define BATCH  4   // query heads at a time
#define ROWS   4   // of a thread at a time
#define LOWEST -1.0e38

const uint QUADS = HEAD_DIM / 4;
const uint QUADS_EACH = ELEMENTS / 4;
const uint VECTORS = HEAD_DIM / ELEMENTS;
const uint LANES = VECTORS <= 2 ? 2 : VECTORS <= 4 ? 4 : VECTORS <= 8 ? 8 : VECTORS <= 16 ? 16 : VECTORS <= 32 ? 32 : 64;
const uint SIDES = LOCAL_SIZE / LANES;
const uint STEP = SIDES * ROWS; // entries that the workgroup takes at a time, at most TILE
const uint HEADS = GROUP < BATCH ? GROUP : BATCH;
const uint PLACES = HEADS == 3 ? 4 : HEADS; // of heads, so that a thread's logits are all of one

// Threads' and sides' products lie apart so that neighbours are on other banks of shared memory.
#define PITCH (ROWS + 1)
#define PRODUCT(side, lane) (((side) * LANES + (lane)) * PITCH + (LANES < 8 ? 0u : (side) * 4u))
shared vec4 products[LOCAL_SIZE * PITCH + LOCAL_SIZE / 8 * 4];
shared vec4 scores[TILE]; // of the batch's heads, then probabilities
shared float tops[LOCAL_SIZE + 16];
// The same for all threads: here, and read where they are needed, they take no registers of loops.
shared uint chunk_head, chunk_first, chunk_entries; // KV head, first row in the bound ranges, how many
shared vec4 largest; // of the batch's heads' logits so far

#ifndef FEW_REGISTERS
vec4 query0_low, query1_low, query2_low, query3_low, query0_high, query1_high, query2_high, query3_high;
#endif
vec4 sum0_low, sum1_low, sum2_low, sum3_low, sum0_high, sum1_high, sum2_high, sum3_high;

// Loads are two steps ahead, in two sets of rows. Where registers are few, rows are loaded when they are needed, one at a
// time, and queries likewise. An entry's number beyond the last is taken for the last; its probability is zero.
#ifdef FEW_REGISTERS
#define EACH_HELD EACH_1
LOADED row_a0;
#else
#define EACH_HELD EACH_4
LOADED row_a0, row_a1, row_a2, row_a3, row_b0, row_b1, row_b2, row_b3;
#endif

#define ROW_AT(first, entry) ((first) + min(entry, last) * VECTORS + column)
#define LOAD_KEY(set, r)     row_##set##r = LOAD(key, ROW_AT(first_key, entry + r));
#define LOAD_VALUE(set, r)   row_##set##r = LOAD(value, ROW_AT(first_value, entry + r));
#define LOAD_ROWS(set, LOAD_ONE, step)                                                                               \
  {                                                                                                                  \
    const uint entry = (step) + side * ROWS;                                                                         \
    EACH_HELD(LOAD_ONE, set)                                                                                         \
  }

#ifdef FEW_REGISTERS
#define HEAD_PRODUCT(h) dot(query[query_first + min(batch + h, GROUP - 1u) * QUADS] * push.scale, low)
#else
#define HEAD_PRODUCT(h) (dot(query##h##_low, low) ANY_HIGH(+ dot(query##h##_high, high)))
#endif
#define MULTIPLY(row, r)                                                                                             \
  {                                                                                                                  \
    const vec4 low = LOW(row##r);                                                                                    \
    ANY_HIGH(const vec4 high = HIGH(row##r);)                                                                        \
    if (HEADS > 2)                                                                                                   \
      products[mine + r] = vec4(HEAD_PRODUCT(0), HEAD_PRODUCT(1), HEAD_PRODUCT(2), HEAD_PRODUCT(3));                 \
    else if (HEADS == 2)                                                                                             \
      products[mine + r].xy = vec2(HEAD_PRODUCT(0), HEAD_PRODUCT(1));                                                \
    else                                                                                                             \
      products[mine + r].x = HEAD_PRODUCT(0);                                                                        \
  }

// Adds up the lanes' products of a step. `top` becomes the maximum of a thread's logits.
void add_products(uint begin, uint n_entries, inout float top) {
  barrier();
  for (uint i = gl_LocalInvocationID.x; i < STEP * PLACES; i += LOCAL_SIZE) {
    const uint entry = i / PLACES, head = i % PLACES;
    const uint at = PRODUCT(entry / ROWS, 0u) + entry % ROWS;
    float sum = 0.0;
    for (uint j = 0; j < LANES / 2; j++)
      sum += products[at + j * PITCH][head] + products[at + (j + LANES / 2) * PITCH][head];
    scores[begin + entry][head] = sum;
    if (begin + entry < n_entries) top = max(top, sum);
  }
  barrier();
}

// Logits of a tile's entries; begins to load its values. Returns the largest of those that this thread has added up.
float compute_scores(uint batch, uint first_key, uint first_value, uint n_entries) {
  const uint t = gl_LocalInvocationID.x;
  const uint side = t / LANES, lane = t % LANES, column = min(lane, VECTORS - 1u), last = n_entries - 1u;
  float top = LOWEST;
#ifndef FEW_REGISTERS
  const uint mine = PRODUCT(side, lane);
  LOAD_ROWS(a, LOAD_KEY, 0u)
  LOAD_ROWS(b, LOAD_KEY, STEP)
  for (uint begin = 0; begin < n_entries; begin += 2 * STEP) {
    EACH_HELD(MULTIPLY, row_a)
    LOAD_ROWS(a, LOAD_KEY, begin + 2 * STEP)
    add_products(begin, n_entries, top);
    if (begin + STEP >= n_entries) break;
    EACH_HELD(MULTIPLY, row_b)
    LOAD_ROWS(b, LOAD_KEY, begin + 3 * STEP)
    add_products(begin + STEP, n_entries, top);
  }
  LOAD_ROWS(a, LOAD_VALUE, 0u)
  LOAD_ROWS(b, LOAD_VALUE, STEP)
#else
  const uint query_first = chunk_head * GROUP * QUADS + column;
  for (uint begin = 0; begin < n_entries; begin += STEP) {
    [[dont_unroll]] for (uint r = 0; r < ROWS; r++) {
      const uint mine = PRODUCT(side, lane) + r;
      LOAD_ROWS(a, LOAD_KEY, begin + r)
      if (LANES > VECTORS) row_a0 = mix(vec4(0.0), row_a0, bvec4(lane < VECTORS));
      EACH_HELD(MULTIPLY, row_a)
    }
    add_products(begin, n_entries, top);
  }
#endif
  return top;
}

// From logits to probabilities; every thread takes what it has written itself. Returns their sum.
float exponentiate(uint n_entries, float largest) {
  float total = 0.0;
  for (uint begin = 0; begin < n_entries; begin += STEP)
    for (uint i = gl_LocalInvocationID.x; i < STEP * PLACES; i += LOCAL_SIZE) {
      const uint entry = begin + i / PLACES, head = i % PLACES;
      const float p = entry < n_entries ? exp2(scores[entry][head] - largest) : 0.0;
      scores[entry][head] = p;
      total += p;
    }
  return total;
}

#define ADD_HEAD(h, p)                                                                                               \
  if (h < HEADS) {                                                                                                   \
    sum##h##_low += p * low;                                                                                         \
    ANY_HIGH(sum##h##_high += p * high;)                                                                             \
  }
#define ADD_ROW(row, r)                                                                                              \
  {                                                                                                                  \
    const vec4 p = scores[from + r];                                                                                 \
    const vec4 low = LOW(row##r);                                                                                    \
    ANY_HIGH(const vec4 high = HIGH(row##r);)                                                                        \
    ADD_HEAD(0, p.x) ADD_HEAD(1, p.y) ADD_HEAD(2, p.z) ADD_HEAD(3, p.w)                                              \
  }

void add_values(uint first_value, uint n_entries) {
  const uint t = gl_LocalInvocationID.x;
  const uint side = t / LANES, column = min(t % LANES, VECTORS - 1u), last = n_entries - 1u;
#ifndef FEW_REGISTERS
  for (uint begin = 0; begin < n_entries; begin += 2 * STEP) {
    uint from = begin + side * ROWS;
    EACH_HELD(ADD_ROW, row_a)
    LOAD_ROWS(a, LOAD_VALUE, begin + 2 * STEP)
    if (begin + STEP >= n_entries) break;
    from += STEP;
    EACH_HELD(ADD_ROW, row_b)
    LOAD_ROWS(b, LOAD_VALUE, begin + 3 * STEP)
  }
#else
  for (uint begin = 0; begin < n_entries; begin += STEP) {
    [[dont_unroll]] for (uint r = 0; r < ROWS; r++) {
      const uint from = begin + side * ROWS + r;
      LOAD_ROWS(a, LOAD_VALUE, begin + r)
      EACH_HELD(ADD_ROW, row_a)
    }
  }
#endif
}

// The maxima of the batch's heads over all threads.
vec4 reduce_top(float top) {
  const uint t = gl_LocalInvocationID.x;
  tops[t] = top;
  barrier();
  if (t < 16u) {
    for (uint i = t + 16u; i < LOCAL_SIZE; i += 16u) top = max(top, tops[i]);
    tops[LOCAL_SIZE + t] = top;
  }
  barrier();
  vec4 largest = vec4(LOWEST);
  for (uint i = 0; i < 16u; i += PLACES) {
    largest.x = max(largest.x, tops[LOCAL_SIZE + i]);
    if (HEADS > 1) largest.y = max(largest.y, tops[LOCAL_SIZE + i + 1u]);
    if (HEADS > 2) largest.zw = max(largest.zw, vec2(tops[LOCAL_SIZE + i + 2u], tops[LOCAL_SIZE + i + 3u]));
  }
  return largest;
}

// Two heads at a time: their sums of all sides, in order.
#define PLACE_SUM(h, place)                                                                                          \
  products[(place) * LOCAL_SIZE * QUADS_EACH + t * QUADS_EACH] = sum##h##_low;                                       \
  ANY_HIGH(products[(place) * LOCAL_SIZE * QUADS_EACH + t * QUADS_EACH + 1] = sum##h##_high;)

void store_sums(uint to, uint n_heads) {
  const uint t = gl_LocalInvocationID.x;
  barrier();
  for (uint i = t; i < n_heads * QUADS; i += LOCAL_SIZE) {
    const uint from = i / QUADS * LOCAL_SIZE * QUADS_EACH + i % QUADS;
    vec4 sum = vec4(0.0);
    for (uint side = 0; side < SIDES; side++) sum += products[from + side * LANES * QUADS_EACH];
    scratch[to + i] = floatBitsToUint(sum);
  }
  barrier();
}

void store(uint batch, float total) {
  const uint t = gl_LocalInvocationID.x, n_batch = min(GROUP - batch, BATCH);
  const uint slot = push.first_slot + workgroup_index();
  const uint base = push.partial_first + slot * GROUP * (1u + QUADS);
  const uint to = base + GROUP + batch * QUADS;
  barrier();
  tops[t] = total;
  PLACE_SUM(0, 0u)
  PLACE_SUM(1, 1u)
  store_sums(to, min(n_batch, 2u));
  if (t < n_batch) {
    float sum = 0.0;
    for (uint i = t; i < LOCAL_SIZE; i += PLACES) sum += tops[i];
    scratch[base + batch + t] = uvec4(floatBitsToUint(largest[t]), floatBitsToUint(sum), 0u, 0u);
  }
  if (n_batch <= 2u) return;
  PLACE_SUM(2, 0u)
  PLACE_SUM(3, 1u)
  store_sums(to + 2u * QUADS, n_batch - 2u);
}

#ifndef FEW_REGISTERS
#define LOAD_QUERY(h)                                                                                                \
  query##h##_low = query##h##_high = vec4(0.0);                                                                      \
  if (h < n_batch && lane < VECTORS) {                                                                               \
    query##h##_low = query[from + h * QUADS] * push.scale;                                                           \
    ANY_HIGH(query##h##_high = query[from + h * QUADS + 1u] * push.scale;)                                           \
  }

void load_queries(uint batch) {
  const uint lane = gl_LocalInvocationID.x % LANES, n_batch = min(GROUP - batch, BATCH);
  const uint from = (chunk_head * GROUP + batch) * QUADS + lane * QUADS_EACH;
  REPEAT_4(LOAD_QUERY)
}
#endif

#define CLEAR_SUM(h)  sum##h##_low = sum##h##_high = vec4(0.0);
#define SHRINK_SUM(h) sum##h##_low *= shrink[h]; sum##h##_high *= shrink[h];

void attend(uint batch) {
  float total = 0.0;
  REPEAT_4(CLEAR_SUM)
#ifndef FEW_REGISTERS
  load_queries(batch);
#endif
  for (uint begin = 0; begin < chunk_entries; begin += TILE) {
    const uint n = min(chunk_entries - begin, TILE), first = (chunk_first + begin) * VECTORS;
    const vec4 found = reduce_top(compute_scores(batch, push.key_first + first, push.value_first + first, n));
    const vec4 before = begin == 0u ? vec4(LOWEST) : largest, top = max(before, found), shrink = exp2(before - top);
    REPEAT_4(SHRINK_SUM)
    const uint head_in_batch = gl_LocalInvocationID.x % PLACES;
    total = total * shrink[head_in_batch] + exponentiate(n, top[head_in_batch]);
    barrier();
    if (gl_LocalInvocationID.x == 0u) largest = top;
    add_values(push.value_first + (chunk_first + begin) * VECTORS, n);
  }
  store(batch, total);
}

// The KV head of which the workgroup's slot is a chunk; no entries where there is none.
void find_chunk() {
  const uint slot = push.first_slot + workgroup_index();
  if (gl_LocalInvocationID.x == 0u) chunk_entries = 0u;
  barrier();
  for (uint i = gl_LocalInvocationID.x; i < push.n_heads; i += LOCAL_SIZE) {
    const uvec4 row = scratch[push.table_first + i];
    if (slot < row.z || slot - row.z >= (row.y + (1u << push.chunk_bits) - 1u) >> push.chunk_bits) continue;
    const uint begin = (slot - row.z) << push.chunk_bits;
    chunk_head = push.first_head + i;
    chunk_first = row.x - push.first_row + begin;
    chunk_entries = min(row.y - begin, 1u << push.chunk_bits);
  }
  barrier();
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  find_chunk();
  if (chunk_entries == 0u) return;
  for (uint batch = 0; batch < GROUP; batch += BATCH) attend(batch);
}
