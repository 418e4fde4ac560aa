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
layout(binding = 1) readonly buffer Weight { uvec2 weight[]; };
layout(binding = 2) buffer Output { float y[]; };

#define WEIGHT_DATA weight
#include "weight.glsl"

#define COLUMNS 16

shared vec4 partial[32 * 4]; // [lane][column / 4]
shared vec4 eighths[8 * 4];

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint column0 = (push.first_group + workgroup_index()) * COLUMNS;
  const uint t = gl_LocalInvocationID.x;
  const uint lane = t & 31u;
  const uint quads = push.depth >> 2;
  const uint mine = column0 + (t >> 5) * 4u;
  // Columns beyond the last repeat it and are not written.
  const uvec4 base = min(uvec4(mine, mine + 1u, mine + 2u, mine + 3u), push.n_columns - 1u) * quads;
  vec4 sum = vec4(0.0);
  for (uint quad = lane; quad < quads; quad += 32u) {
    const vec4 a = x[quad];
    sum += vec4(dot(a, load_weight((base.x + quad) * 4u)), dot(a, load_weight((base.y + quad) * 4u)),
                dot(a, load_weight((base.z + quad) * 4u)), dot(a, load_weight((base.w + quad) * 4u)));
  }
  partial[lane * 4u + (t >> 5)] = sum;
  barrier();
  if (t < 32u) {
    const uint from = (t >> 2) * 16u + (t & 3u);
    eighths[t] = (partial[from] + partial[from + 4u]) + (partial[from + 8u] + partial[from + 12u]);
  }
  barrier();
  if (t < 4u) {
    vec4 total = vec4(0.0);
    for (uint i = 0; i < 8; i++) total += eighths[i * 4u + t];
    for (uint j = 0; j < 4; j++)
      if (column0 + t * 4u + j < push.n_columns) {
        const uint at = push.output_first + column0 + t * 4u + j;
        y[at] = push.accumulate != 0u ? y[at] + total[j] : total[j];
      }
  }
}
