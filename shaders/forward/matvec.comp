// y[columns] (+)= W x for a single row: LANES threads along the depth share COLUMNS_EACH outputs. Partial sums are added
// in a fixed order, through shared memory or, variant SUBGROUP, by shuffles.
//
// Variant NORM normalises x first: y = W (x / sqrt(mean(x^2) + epsilon) * norm). The factor is common to all outputs, so
// that every thread adds up its share of x^2 beside its products. With SWIGLU, W has 2 columns rows, gates first, and
// y = silu(gate) * up.
#version 450
#extension GL_GOOGLE_include_directive : require
#ifdef SUBGROUP
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
#include "index.glsl"
#include "repeat.glsl"

layout(constant_id = 0) const uint WEIGHT_TYPE = 2;
layout(constant_id = 1) const uint LANES = 32;       // a power of two, 4 … 128; SUBGROUP: of one subgroup
layout(constant_id = 2) const uint COLUMNS_EACH = 4; // rows of W a thread: 4 or 8
layout(constant_id = 3) const bool SWIGLU = false;

layout(push_constant) uniform Push {
  uint n_groups;
  uint first_group;
  uint n_rows, n_columns, depth; // n_rows is 1: the push constants begin as those of matmul
  uint row_units, input_stride;
  uint output_first, output_stride;
  uint accumulate;
#ifdef NORM
  float epsilon;
#endif
} push;

layout(binding = 0) readonly buffer Input { vec4 x[]; };
layout(binding = 1) readonly buffer Weight { uvec4 weight[]; };
layout(binding = 2) buffer Output { float y[]; };
#ifdef NORM
layout(binding = 3) readonly buffer Norm { vec4 norm[]; };
#endif

#define WEIGHT_DATA weight
#include "weight.glsl"

const uint SLOTS = LOCAL_SIZE / LANES;
const uint OUTPUTS_EACH = SWIGLU ? COLUMNS_EACH / 2 : COLUMNS_EACH;
const uint OUTPUTS = SLOTS * OUTPUTS_EACH; // of a workgroup

float sums[8];
float squares;

// The row of W of a thread's sum j. Outputs beyond the last repeat it and are not written.
uint row_of(uint output0, uint j) {
  const uint at = min(output0 + j % OUTPUTS_EACH, push.n_columns - 1u);
  return (j < OUTPUTS_EACH ? at : push.n_columns + at) * push.row_units;
}

vec4 load_x(uint quad) {
  const vec4 value = x[quad];
#ifdef NORM
  squares += dot(value, value);
  return value * norm[quad];
#else
  return value;
#endif
}

// The second half of eight elements: a row may end before it. Then the last elements stand in, which W multiplies by zero.
vec4 load_x_within(uint quad, uint quads) {
  const uint at = min(quad, quads - 1u);
  const vec4 value = x[at];
#ifdef NORM
  squares += quad < quads ? dot(value, value) : 0.0;
  return value * norm[at];
#else
  return value;
#endif
}

float dot_halves(uvec4 w, vec4 a, vec4 b) {
  const vec2 w0 = unpack_halves(w.x), w1 = unpack_halves(w.y), w2 = unpack_halves(w.z), w3 = unpack_halves(w.w);
  return dot(a, vec4(w0, w1)) + dot(b, vec4(w2, w3));
}

#define CLEAR(j) sums[j] = 0.0;
#define FIRST(j) const uint first##j = row_of(output0, j);
#define ADD_FLOATS(j) if (j < COLUMNS_EACH) sums[j] += dot(a, uintBitsToFloat(weight[first##j + step]));
#define ADD_HALVES(j) if (j < COLUMNS_EACH) sums[j] += dot_halves(weight[first##j + step], a, b);
#define ADD_BYTES(j)                                                                                                 \
  if (j < COLUMNS_EACH) {                                                                                            \
    const uvec4 w = weight[first##j + step];                                                                         \
    sums[j] += weight_scale(first##j, push.depth, step >> 1) *                                                       \
               ((dot(a, unpack_bytes(w.x)) + dot(b, unpack_bytes(w.y))) +                                            \
                (dot(c, unpack_bytes(w.z)) + dot(d, unpack_bytes(w.w))));                                            \
  }

// A thread's share of its outputs' products.
void multiply(uint output0, uint lane) {
  const uint quads = push.depth >> 2;
  REPEAT_8(FIRST)
  REPEAT_8(CLEAR)
  squares = 0.0;
  if (WEIGHT_TYPE == DTYPE_F32) {
    for (uint step = lane; step < quads; step += LANES) {
      const vec4 a = load_x(step);
      REPEAT_8(ADD_FLOATS)
    }
  } else if (WEIGHT_TYPE == DTYPE_Q8_0) {
    for (uint step = lane; step < quads >> 2; step += LANES) {
      const vec4 a = load_x(step * 4u), b = load_x(step * 4u + 1u);
      const vec4 c = load_x(step * 4u + 2u), d = load_x(step * 4u + 3u);
      REPEAT_8(ADD_BYTES)
    }
  } else {
    for (uint step = lane; step < (quads + 1u) >> 1; step += LANES) {
      const vec4 a = load_x(step * 2u), b = load_x_within(step * 2u + 1u, quads);
      REPEAT_8(ADD_HALVES)
    }
  }
}

void store(uint column, float value, float gated, float all_squares) {
  if (column >= push.n_columns) return;
#ifdef NORM
  const float factor = inversesqrt(all_squares / float(push.depth) + push.epsilon);
  value *= factor;
  gated *= factor;
#endif
  if (SWIGLU) value = value / (1.0 + exp(min(-value, 80.0))) * gated;
  const uint to = push.output_first + column;
  y[to] = push.accumulate != 0u ? y[to] + value : value;
}

#ifdef SUBGROUP
#define ADD_LANES(j) if (j < COLUMNS_EACH) sums[j] += subgroupShuffleXor(sums[j], distance);
#define TAKE(j)                                                                                                      \
  if (lane == j) value = sums[j];                                                                                    \
  if (lane + OUTPUTS_EACH == j) gated = sums[j];

// LANES may be fewer than a thread's outputs: then a lane stores several.
void reduce(uint output0, uint lane) {
  for (uint distance = 1; distance < LANES; distance *= 2) {
    REPEAT_8(ADD_LANES)
#ifdef NORM
    squares += subgroupShuffleXor(squares, distance);
#endif
  }
  for (; lane < OUTPUTS_EACH; lane += LANES) {
    float value = 0.0, gated = 0.0;
    REPEAT_8(TAKE)
    store(output0 + lane, value, gated, squares);
  }
}
#else
shared float partial[9 * LOCAL_SIZE]; // [COLUMNS_EACH + 1][SLOTS][LANES]
shared float joined[9 * LOCAL_SIZE / 8]; // the same, eight neighbours added up, where there are many

const uint JOIN = LANES > 16 ? 8 : 1;

void join() {
  for (uint i = gl_LocalInvocationID.x; i < (COLUMNS_EACH + 1) * LOCAL_SIZE / 8; i += LOCAL_SIZE) {
    const uint from = i * 8;
    joined[i] = ((partial[from] + partial[from + 1]) + (partial[from + 2] + partial[from + 3])) +
                ((partial[from + 4] + partial[from + 5]) + (partial[from + 6] + partial[from + 7]));
  }
  barrier();
}

float joined_or_partial(uint at) {
  return JOIN > 1 ? joined[at] : partial[at];
}

float total(uint j, uint slot) {
  const uint from = (j * SLOTS + slot) * (LANES / JOIN);
  vec4 sum = vec4(0.0);
  for (uint i = 0; i < LANES / JOIN; i += 4)
    sum += vec4(joined_or_partial(from + i), joined_or_partial(from + i + 1), joined_or_partial(from + i + 2),
                joined_or_partial(from + i + 3));
  return (sum.x + sum.y) + (sum.z + sum.w);
}

#define PUT(j) if (j < COLUMNS_EACH) partial[j * LOCAL_SIZE + gl_LocalInvocationID.x] = sums[j];

void reduce(uint group_output0) {
  REPEAT_8(PUT)
  partial[COLUMNS_EACH * LOCAL_SIZE + gl_LocalInvocationID.x] = squares;
  barrier();
  if (JOIN > 1) join();
  for (uint i = gl_LocalInvocationID.x; i < OUTPUTS; i += LOCAL_SIZE) {
    const uint slot = i / OUTPUTS_EACH, j = i % OUTPUTS_EACH;
    float all_squares = 0.0, gated = 0.0;
#ifdef NORM
    all_squares = total(COLUMNS_EACH, slot);
#endif
    if (SWIGLU) gated = total(j + OUTPUTS_EACH, slot);
    store(group_output0 + i, total(j, slot), gated, all_squares);
  }
}
#endif

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint group_output0 = (push.first_group + workgroup_index()) * OUTPUTS;
  const uint lane = gl_LocalInvocationID.x % LANES;
  const uint output0 = group_output0 + gl_LocalInvocationID.x / LANES * OUTPUTS_EACH;
  multiply(output0, lane);
#ifdef SUBGROUP
  reduce(output0, lane);
#else
  reduce(group_output0);
#endif
}
