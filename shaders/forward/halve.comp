// Rows rounded to f16 for matmul_matrix.comp, with zeros behind each up to whole stages of it. What f16 can't hold becomes
// its largest number.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_rows;
  uint row_quads, input_stride; // vec4s of a row, and from row to row
  uint row_octets;              // uvec4s of a row of halves
} push;

layout(binding = 0) readonly buffer Input { vec4 rows[]; };
layout(binding = 1) writeonly buffer Halves { uvec4 halves[]; };

uvec2 pack(uint row, uint quad) {
  if (quad >= push.row_quads) return uvec2(0);
  const vec4 four = clamp(rows[row * push.input_stride + quad], -65504.0, 65504.0);
  return uvec2(packHalf2x16(four.xy), packHalf2x16(four.zw));
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  for (uint i = 0; i < 4; i++) {
    const uint at = (workgroup_index() * 4u + i) * LOCAL_SIZE + gl_LocalInvocationID.x;
    const uint row = at / push.row_octets, quad = at % push.row_octets * 2u;
    if (row < push.n_rows) halves[at] = uvec4(pack(row, quad), pack(row, quad + 1u));
  }
}
