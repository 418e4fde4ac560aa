// y = x / sqrt(mean(x^2) + epsilon) * weight, one workgroup a row.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"

layout(push_constant) uniform Push {
  uint n_groups; // one a row
  uint dim;
  uint input_first; // vec4s
  float epsilon;
} push;

layout(binding = 0) readonly buffer Input { vec4 x[]; };
layout(binding = 1) readonly buffer Weight { vec4 weight[]; };
layout(binding = 2) writeonly buffer Output { vec4 y[]; };

shared float partial[LOCAL_SIZE];

void main() {
  const uint row = workgroup_index();
  if (row >= push.n_groups) return;
  const uint quads = push.dim >> 2;
  const uint first = push.input_first + row * quads;
  const uint t = gl_LocalInvocationID.x;
  float sum = 0.0;
  for (uint c = t; c < quads; c += LOCAL_SIZE) {
    const vec4 value = x[first + c];
    sum += dot(value, value);
  }
  partial[t] = sum;
  for (uint width = LOCAL_SIZE / 2; width > 0; width >>= 1) {
    barrier();
    if (t < width) partial[t] += partial[t + width];
  }
  barrier();
  const float factor = inversesqrt(partial[0] / float(push.dim) + push.epsilon);
  for (uint c = t; c < quads; c += LOCAL_SIZE) y[row * quads + c] = x[first + c] * factor * weight[c];
}
