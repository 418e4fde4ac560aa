// y[columns] (+)= W x for a single row: 16 outputs a workgroup, 32 threads along the depth for 4 of them each. Partial
// sums are added in a fixed order.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "index.glsl"

layout(constant_id = 0) const uint WEIGHT_TYPE = 2;

layout(push_constant) uniform Push {
  uint n_groups;
  uint first_group;
  uint n_rows, n_columns, depth; // n_rows is 1: the push constants are those of matmul
  uint output_first, output_stride;
  uint accumulate;
} push;

layout(binding = 0) readonly buffer Input { vec4 x[]; };
layout(binding = 1) readonly buffer Weight { uint weight[]; };
layout(binding = 2) buffer Output { float y[]; };

#define WEIGHT_DATA weight
#include "weight.glsl"

#define COLUMNS 16

shared float partial[COLUMNS * 33];
shared float eighths[COLUMNS * 8];

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint column0 = (push.first_group + workgroup_index()) * COLUMNS;
  const uint t = gl_LocalInvocationID.x;
  const uint lane = t & 31u;
  const uint quads = push.depth >> 2;
  const uint mine = (t >> 5) * 4u;
  uint base[4];
  // Columns beyond the last repeat it and are not written.
  [[unroll]] for (uint j = 0; j < 4; j++) base[j] = min(column0 + mine + j, push.n_columns - 1u) * quads;
  float sum[4] = float[4](0.0, 0.0, 0.0, 0.0);
  for (uint quad = lane; quad < quads; quad += 32u) {
    const vec4 a = x[quad];
    [[unroll]] for (uint j = 0; j < 4; j++) sum[j] += dot(a, load_weight((base[j] + quad) * 4u));
  }
  [[unroll]] for (uint j = 0; j < 4; j++) partial[(mine + j) * 33u + lane] = sum[j];
  barrier();
  const uint from = (t >> 3) * 33u + (t & 7u) * 4u;
  eighths[t] = (partial[from] + partial[from + 1u]) + (partial[from + 2u] + partial[from + 3u]);
  barrier();
  if (t < COLUMNS && column0 + t < push.n_columns) {
    float total = 0.0;
    for (uint i = 0; i < 8; i++) total += eighths[t * 8u + i];
    const uint at = push.output_first + column0 + t;
    y[at] = push.accumulate != 0u ? y[at] + total : total;
  }
}
