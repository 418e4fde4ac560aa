// y[columns] (+)= W x for a single row: LANES threads along the depth share four outputs. Partial sums are added in a
// fixed order.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "index.glsl"

layout(constant_id = 0) const uint WEIGHT_TYPE = 2;
layout(constant_id = 1) const uint LANES = 32; // a power of two, 4 … 32

layout(push_constant) uniform Push {
  uint n_groups;
  uint first_group;
  uint n_rows, n_columns, depth; // n_rows is 1: the push constants are those of matmul
  uint output_first, output_stride;
  uint accumulate;
} push;

layout(binding = 0) readonly buffer Input { vec4 x[]; };
layout(binding = 1) readonly buffer Weight { uvec2 weight[]; };
layout(binding = 2) buffer Output { float y[]; };

#define WEIGHT_DATA weight
#include "weight.glsl"

const uint COLUMNS = LOCAL_SIZE / LANES * 4;

shared vec4 partial[LOCAL_SIZE]; // [COLUMNS][LANES / 4]

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint column0 = (push.first_group + workgroup_index()) * COLUMNS;
  const uint t = gl_LocalInvocationID.x;
  const uint lane = t % LANES;
  const uint quads = push.depth >> 2;
  const uint mine = t / LANES * 4u;
  // Columns beyond the last repeat it and are not written.
  const uvec4 base = min(column0 + mine + uvec4(0u, 1u, 2u, 3u), push.n_columns - 1u) * quads;
  vec4 sum = vec4(0.0);
  for (uint quad = lane; quad < quads; quad += LANES) {
    const vec4 a = x[quad];
    sum += vec4(dot(a, load_weight((base.x + quad) * 4u)), dot(a, load_weight((base.y + quad) * 4u)),
                dot(a, load_weight((base.z + quad) * 4u)), dot(a, load_weight((base.w + quad) * 4u)));
  }
  const uint at = mine * (LANES / 4) + lane / 4;
  partial[at][lane & 3u] = sum.x;
  partial[at + LANES / 4][lane & 3u] = sum.y;
  partial[at + LANES / 2][lane & 3u] = sum.z;
  partial[at + 3 * LANES / 4][lane & 3u] = sum.w;
  barrier();
  if (t < COLUMNS && column0 + t < push.n_columns) {
    vec4 total = vec4(0.0);
    for (uint i = 0; i < LANES / 4; i++) total += partial[t * (LANES / 4) + i];
    const float all = (total.x + total.y) + (total.z + total.w);
    const uint to = push.output_first + column0 + t;
    y[to] = push.accumulate != 0u ? y[to] + all : all;
  }
}
