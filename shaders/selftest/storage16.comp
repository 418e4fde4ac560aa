#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// 16-bit floats out of and into storage buffers, one by one and in vectors, and arithmetic with them.
#include "index.glsl"

layout(set = 0, binding = 0) readonly buffer In {
  float16_t singles[2 * LOCAL_SIZE];
  f16vec4 quads[LOCAL_SIZE];
};
layout(set = 0, binding = 1) writeonly buffer Out {
  float16_t moved[2 * LOCAL_SIZE];
  f16vec4 sums[LOCAL_SIZE];
  float16_t widened[2 * LOCAL_SIZE];
};

layout(push_constant) uniform Push { uint n_groups; } push;

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint me = gl_LocalInvocationIndex;
  for (uint i = me; i < 2 * LOCAL_SIZE; i += LOCAL_SIZE) {
    moved[2 * LOCAL_SIZE - 1 - i] = singles[i];
    widened[i] = float16_t(float(singles[i]) * 0.5 + float(quads[me].x));
  }
  sums[me] = (quads[me] + quads[LOCAL_SIZE - 1 - me]) * quads[me].wzyx;
}
