#version 450
#extension GL_GOOGLE_include_directive : require
// Queries and value factors as the matrix kernels read them (matrix.glsl): divided by a power of two that makes the
// largest number of a head less than 256, then f16, and what that leaves over. SLICES workgroups per query head, each of which
// finds the largest number for itself.
#include "index.glsl"
#include "split.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint WINDOW = 32;
layout(constant_id = 5) const uint SIZE = 16; // of a matrix

#include "../evict/matrix.glsl"

layout(set = 0, binding = 0) readonly buffer Query { float query[]; }; // [query_rows, heads, HEAD_DIM]
layout(set = 0, binding = 1) readonly buffer Factor { float factor[]; };
layout(set = 0, binding = 1) readonly buffer Factor4 { vec4 factor4[]; };
layout(set = 0, binding = 2) buffer Work { uint work[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_heads;
  uint query_start, query_rows;
  float scale; // includes log2 e
  uint prepared;
  uint factors; // 1: these, 0: queries
} push;

// Of a factor whose diagonal shrinks by more than this, f16 alone would lose weak directions.
#define LARGEST_RATIO 256.0

#define SLICES 8

shared float tree[LOCAL_SIZE];

uint query_head, first_pair; // of this invocation

float load_query(uint i) {
  const uint t = i / HEAD_DIM;
  if (t >= WINDOW) return 0.0;
  return query[((push.query_start + t) % push.query_rows * push.n_heads + query_head) * HEAD_DIM + i % HEAD_DIM];
}

float load_factor(uint row, uint column) {
  return factor[(query_head * HEAD_DIM + row) * HEAD_DIM + column];
}

float workgroup_max(float value) {
  barrier();
  tree[gl_LocalInvocationIndex] = value;
  for (uint width = LOCAL_SIZE / 2; width > 0; width /= 2) {
    barrier();
    if (gl_LocalInvocationIndex < width)
      tree[gl_LocalInvocationIndex] = max(tree[gl_LocalInvocationIndex], tree[gl_LocalInvocationIndex + width]);
  }
  barrier();
  return tree[0];
}

float power_for(float largest) {
  return uintBitsToFloat(exponent_for(floatBitsToUint(largest)) << 23);
}

float finite_size(float value) {
  return is_finite(value) ? abs(value) : 0.0;
}

bool has_rest(float value) {
  return is_finite(value) && value != rounded(value);
}

void write_pair(uint at, uint plane_words, vec2 values) {
  const vec2 high = vec2(rounded(values.x), rounded(values.y));
  const vec2 rest = vec2(is_finite(values.x) ? values.x - high.x : 0.0, is_finite(values.y) ? values.y - high.y : 0.0);
  work[at] = packHalf2x16(high);
  work[at + plane_words] = packHalf2x16(rest);
}

void prepare_query(uint base) {
  float largest = 0.0, rest = 0.0;
  for (uint i = gl_LocalInvocationIndex; i < QUERY_HALVES; i += LOCAL_SIZE) {
    const float value = load_query(i);
    largest = max(largest, finite_size(value));
    if (has_rest(value)) rest = 1.0;
  }
  const float power = power_for(workgroup_max(largest));
  for (uint i = first_pair; i < QUERY_HALVES / 2; i += SLICES * LOCAL_SIZE) {
    // matrix after matrix: its number, and the element in it
    const uint matrix = 2 * i / (SIZE * SIZE), e = 2 * i % (SIZE * SIZE), depth = HEAD_DIM / SIZE;
    const uint from = (matrix / depth * SIZE + e / SIZE) * HEAD_DIM + matrix % depth * SIZE + e % SIZE;
    write_pair(base + PREPARED_QUERY + i, QUERY_HALVES / 2, vec2(load_query(from), load_query(from + 1)) / power);
  }
  rest = workgroup_max(rest);
  if (first_pair != 0) return;
  work[base + PREPARED_QUERY_PARTS] = rest > 0.0 ? 2 : 1;
  work[base + PREPARED_QUERY_SCALE] = floatBitsToUint(push.scale * power);
}

void prepare_factor(uint base) {
  float largest = 0.0, smallest = -3.0e38;
  for (uint i = gl_LocalInvocationIndex; i < HEAD_DIM * HEAD_DIM / 4; i += LOCAL_SIZE) {
    const vec4 four = factor4[query_head * HEAD_DIM * HEAD_DIM / 4 + i];
    largest = max(max(max(largest, finite_size(four.x)), finite_size(four.y)), max(finite_size(four.z), finite_size(four.w)));
  }
  for (uint i = gl_LocalInvocationIndex; i < HEAD_DIM; i += LOCAL_SIZE)
    smallest = max(smallest, -finite_size(load_factor(i, i)));
  largest = workgroup_max(largest);
  smallest = -workgroup_max(smallest);
  const float power = power_for(largest);
  for (uint block = 0; block < FACTOR_BLOCKS; block++) {
    const uint first = FACTOR_MATRIX_OF(block, block) * SIZE * SIZE;
    for (uint i = first_pair; i < (FACTOR_BLOCKS - block) * SIZE * SIZE / 2; i += SLICES * LOCAL_SIZE) {
      const uint matrix = 2 * i / (SIZE * SIZE), e = 2 * i % (SIZE * SIZE);
      const uint from_row = SIZE * block + e / SIZE, from_column = SIZE * (block + matrix) + e % SIZE;
      write_pair(base + PREPARED_FACTOR + first / 2 + i, FACTOR_HALVES / 2,
                 vec2(load_factor(from_row, from_column), load_factor(from_row, from_column + 1)) / power);
    }
  }
  if (first_pair != 0) return;
  work[base + PREPARED_FACTOR_PARTS] = largest > LARGEST_RATIO * smallest ? 2 : 1;
  work[base + PREPARED_FACTOR_SCALE] = floatBitsToUint(power);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  query_head = workgroup_index() / SLICES;
  first_pair = workgroup_index() % SLICES * LOCAL_SIZE + gl_LocalInvocationIndex;
  const uint base = push.prepared + query_head * PREPARED_WORDS;
  if (push.factors == 0) prepare_query(base);
  else prepare_factor(base);
}
