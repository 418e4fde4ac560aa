// silu(gate) * up of rows [gate, up], in place of the gates.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_quads; // of all outputs
  uint row_quads;
} push;

layout(binding = 0) buffer Rows { vec4 rows[]; };

void main() {
  if (workgroup_index() >= push.n_groups) return;
  for (uint i = 0; i < 4; i++) {
    const uint at = (workgroup_index() * 4u + i) * LOCAL_SIZE + gl_LocalInvocationID.x;
    if (at < push.n_quads) {
      const uint gate = at / push.row_quads * 2u * push.row_quads + at % push.row_quads;
      const vec4 g = rows[gate];
      rows[gate] = g / (1.0 + exp(min(-g, vec4(80.0)))) * rows[gate + push.row_quads];
    }
  }
}
