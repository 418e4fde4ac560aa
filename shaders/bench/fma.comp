#version 450
#extension GL_GOOGLE_include_directive : require
// The device's rate of f32 multiply-adds: chains that do not wait for each other, no memory. 2 * 16 * ROUNDS flops an
// invocation.
#include "index.glsl"

layout(constant_id = 0) const uint ROUNDS = 256;
// Not every driver has fast code for both ways to write one.
layout(constant_id = 1) const bool FUSED = true;

layout(set = 0, binding = 0) writeonly buffer Out { float result[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  float a, b;
} push;

vec4 multiply_add(vec4 x) {
  return FUSED ? fma(x, vec4(push.a), vec4(push.b)) : x * push.a + push.b;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  vec4 x = vec4(float(gl_LocalInvocationIndex)), y = x + 1.0, z = x + 2.0, w = x + 3.0;
  for (uint i = 0; i < ROUNDS; i++) {
    x = multiply_add(x);
    y = multiply_add(y);
    z = multiply_add(z);
    w = multiply_add(w);
  }
  const vec4 sum = x + y + z + w;
  // Never true for the host's a and b, but the compiler can't know.
  if (sum.x + sum.y + sum.z + sum.w == 12345.678) result[gl_LocalInvocationIndex] = sum.x;
}
