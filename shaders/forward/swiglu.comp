// gate = silu(gate) * up.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_quads;
} push;

layout(binding = 0) buffer Gate { vec4 gate[]; };
layout(binding = 1) readonly buffer Up { vec4 up[]; };

void main() {
  if (workgroup_index() >= push.n_groups) return;
  for (uint i = 0; i < 4; i++) {
    const uint at = (workgroup_index() * 4u + i) * LOCAL_SIZE + gl_LocalInvocationID.x;
    if (at < push.n_quads) {
      const vec4 g = gate[at];
      gate[at] = g / (1.0 + exp(min(-g, vec4(80.0)))) * up[at];
    }
  }
}
