// Rows rounded to f16 for matmul_matrix.comp, with zeros behind each up to whole stages of it.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "halves.glsl"
#include "index.glsl"

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_rows;
  uint row_quads, input_stride; // vec4s of a row, and from row to row
  uint row_octets;              // uvec4s of a row of halves
} push;

layout(binding = 0) readonly buffer Input { vec4 rows[]; };
layout(binding = 1) writeonly buffer Halves { uvec4 halves[]; };

uvec2 load(uint row, uint quad) {
  return quad < push.row_quads ? pack_halves(rows[row * push.input_stride + quad]) : uvec2(0);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  for (uint i = 0; i < 4; i++) {
    const uint at = (workgroup_index() * 4u + i) * LOCAL_SIZE + gl_LocalInvocationID.x;
    const uint row = at / push.row_octets, quad = at % push.row_octets * 2u;
    if (row < push.n_rows) halves[at] = uvec4(load(row, quad), load(row, quad + 1u));
  }
}
