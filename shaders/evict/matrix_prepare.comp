#version 450
#extension GL_GOOGLE_include_directive : require
// Queries and value factors as the matrix kernels read them (matrix.glsl): divided by a power of two that makes the
// largest number of a head less than 256, then f16, and what that leaves over. SLICES workgroups per query head, each of which
// finds the largest number for itself.
#include "index.glsl"
#include "repeat.glsl"
#include "split.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint WINDOW = 32;
layout(constant_id = 5) const uint SIZE = 16; // of a matrix

#include "../evict/matrix.glsl"

layout(set = 0, binding = 0) readonly buffer Query { vec4 query[]; }; // [query_rows, heads, HEAD_DIM]
layout(set = 0, binding = 1) readonly buffer Factor { vec4 factor[]; }; // [heads, HEAD_DIM, HEAD_DIM]
layout(set = 0, binding = 1) readonly buffer FactorNumber { float factor_number[]; };
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

// Quads of an operand: four numbers of a row.
const uint ROW_QUADS = HEAD_DIM / 4, MATRIX_QUADS = SIZE * SIZE / 4;
const uint QUERY_QUADS = QUERY_HALVES / 4, FACTOR_QUADS = FACTOR_HALVES / 4;

shared vec2 tree[LOCAL_SIZE];

uint query_head, first_quad; // of this invocation

// In rows beyond the window the last one's again.
vec4 load_query(uint row, uint quad) {
  const uint ring_row = (push.query_start + min(row, WINDOW - 1)) % push.query_rows;
  return query[(ring_row * push.n_heads + query_head) * ROW_QUADS + quad];
}

vec4 load_factor(uint row, uint quad) {
  return factor[(query_head * HEAD_DIM + row) * ROW_QUADS + quad];
}

float factor_diagonal(uint row) {
  return factor_number[(query_head * HEAD_DIM + row) * HEAD_DIM + row];
}

// Both components' largest, two levels of a tree at once.
vec2 workgroup_max(vec2 values) {
  const uint i = gl_LocalInvocationIndex;
  tree[i] = values;
  for (uint width = LOCAL_SIZE / 4; width > 1; width /= 4) {
    barrier();
    if (i < width) tree[i] = max(max(tree[i], tree[i + width]), max(tree[i + 2 * width], tree[i + 3 * width]));
  }
  barrier();
  return max(tree[0], tree[1]);
}

float power_for(float largest) {
  return uintBitsToFloat(exponent_for(floatBitsToUint(largest)) << 23);
}

float finite_size(float value) {
  return is_finite(value) ? abs(value) : 0.0;
}

float largest_of(vec4 quad) {
  return max(max(finite_size(quad.x), finite_size(quad.y)), max(finite_size(quad.z), finite_size(quad.w)));
}

bool number_has_rest(float value) {
  return is_finite(value) && value != rounded(value);
}

bool has_rest(vec4 quad) {
  return number_has_rest(quad.x) || number_has_rest(quad.y) || number_has_rest(quad.z) || number_has_rest(quad.w);
}

void write_pair(uint at, uint plane_words, vec2 values) {
  const vec2 high = vec2(rounded(values.x), rounded(values.y));
  const vec2 rest = vec2(is_finite(values.x) ? values.x - high.x : 0.0, is_finite(values.y) ? values.y - high.y : 0.0);
  work[at] = packHalf2x16(high);
  work[at + plane_words] = packHalf2x16(rest);
}

void write_quad(uint at, uint plane_words, vec4 values) {
  write_pair(at, plane_words, values.xy);
  write_pair(at + 1, plane_words, values.zw);
}

// Four quads are on their way at once. Nothing branches around a load, or each would wait for the one before.
#define LOAD_QUERY(n)                                                                                                \
  const uint i##n = i + n * LOCAL_SIZE;                                                                              \
  const vec4 quad##n = load_query(i##n / ROW_QUADS, i##n % ROW_QUADS);
#define FIND_LARGEST(n) largest = max(largest, largest_of(quad##n));
#define FIND_REST(n)    if (has_rest(quad##n)) rest = 1.0;

void prepare_query(uint base) {
  float largest = 0.0, rest = 0.0;
  for (uint i = gl_LocalInvocationIndex; i < QUERY_QUADS; i += 4 * LOCAL_SIZE) {
    REPEAT_4(LOAD_QUERY)
    REPEAT_4(FIND_LARGEST)
    REPEAT_4(FIND_REST)
  }
  const vec2 found = workgroup_max(vec2(largest, rest));
  const float power = power_for(found.x);
  for (uint i = first_quad; i < QUERY_QUADS; i += SLICES * LOCAL_SIZE) {
    // matrix after matrix: its number, and the quad in it
    const uint matrix = i / MATRIX_QUADS, q = i % MATRIX_QUADS, depth = HEAD_DIM / SIZE;
    const uint row = matrix / depth * SIZE + q / (SIZE / 4);
    const vec4 quad = load_query(row, matrix % depth * (SIZE / 4) + q % (SIZE / 4));
    write_quad(base + PREPARED_QUERY + 2 * i, QUERY_HALVES / 2, row < WINDOW ? quad / power : vec4(0.0));
  }
  if (first_quad != 0) return;
  work[base + PREPARED_QUERY_PARTS] = found.y > 0.0 ? 2 : 1;
  work[base + PREPARED_QUERY_SCALE] = floatBitsToUint(push.scale * power);
}

// A matrix of the triangle, below which a factor is zero, by its number in a rectangle: one row of that holds a row of
// matrices and, behind it, the one that is as far from the other end.
uvec2 factor_matrix(uint number) {
  const uint row = number / (FACTOR_BLOCKS + 1), column = number % (FACTOR_BLOCKS + 1);
  return column < FACTOR_BLOCKS - row ? uvec2(row, row + column) : uvec2(FACTOR_BLOCKS - 1 - row, column - 1);
}

// Quads beyond the last one are it again.
#define LOAD_FACTOR(stride, n)                                                                                       \
  const uint i##n = min(i + n * stride, FACTOR_QUADS - 1), q##n = i##n % MATRIX_QUADS;                               \
  const uvec2 matrix##n = factor_matrix(i##n / MATRIX_QUADS);                                                        \
  const vec4 quad##n = load_factor(matrix##n.x * SIZE + q##n / (SIZE / 4), matrix##n.y * (SIZE / 4) + q##n % (SIZE / 4));
#define WRITE_FACTOR(n)                                                                                              \
  if (i + n * SLICES * LOCAL_SIZE < FACTOR_QUADS)                                                                    \
    write_quad(base + PREPARED_FACTOR + 2 * (FACTOR_MATRIX_OF(matrix##n.x, matrix##n.y) * MATRIX_QUADS + q##n),      \
               FACTOR_HALVES / 2, quad##n / power);

void prepare_factor(uint base) {
  const float diagonal = finite_size(factor_diagonal(min(gl_LocalInvocationIndex, HEAD_DIM - 1)));
  float largest = 0.0;
  for (uint i = gl_LocalInvocationIndex; i < FACTOR_QUADS; i += 4 * LOCAL_SIZE) {
    EACH_4(LOAD_FACTOR, LOCAL_SIZE)
    REPEAT_4(FIND_LARGEST)
  }
  const vec2 found = workgroup_max(vec2(largest, -diagonal));
  const float power = power_for(found.x);
  for (uint i = first_quad; i < FACTOR_QUADS; i += 4 * SLICES * LOCAL_SIZE) {
    EACH_4(LOAD_FACTOR, SLICES * LOCAL_SIZE)
    REPEAT_4(WRITE_FACTOR)
  }
  if (first_quad != 0) return;
  work[base + PREPARED_FACTOR_PARTS] = found.x > LARGEST_RATIO * -found.y ? 2 : 1;
  work[base + PREPARED_FACTOR_SCALE] = floatBitsToUint(power);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  query_head = workgroup_index() / SLICES;
  first_quad = workgroup_index() % SLICES * LOCAL_SIZE + gl_LocalInvocationIndex;
  const uint base = push.prepared + query_head * PREPARED_WORDS;
  if (push.factors == 0) prepare_query(base);
  else prepare_factor(base);
}
