// y = x / sqrt(mean(x^2) + epsilon) * weight. A row has LANES threads: few where there are many rows, a whole workgroup
// where there is one.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"

layout(constant_id = 0) const uint LANES = 16; // a power of two, 16 … 128

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_rows, dim;
  uint input_first; // vec4s
  float epsilon;
} push;

layout(binding = 0) readonly buffer Input { vec4 x[]; };
layout(binding = 1) readonly buffer Weight { vec4 weight[]; };
layout(binding = 2) writeonly buffer Output { vec4 y[]; };

shared vec4 partial[LOCAL_SIZE / 4];

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint t = gl_LocalInvocationID.x;
  const uint lane = t % LANES;
  const uint row = workgroup_index() * (LOCAL_SIZE / LANES) + t / LANES;
  const uint quads = row < push.n_rows ? push.dim >> 2 : 0u;
  const uint first = push.input_first + row * quads;
  float sum = 0.0;
  for (uint c = lane; c < quads; c += LANES) {
    const vec4 value = x[first + c];
    sum += dot(value, value);
  }
  partial[t >> 2][t & 3u] = sum;
  barrier();
  vec4 all = vec4(0.0);
  for (uint i = 0; i < LANES / 4; i++) all += partial[(t - lane) / 4 + i];
  const float factor = inversesqrt((all.x + all.y + all.z + all.w) / float(push.dim) + push.epsilon);
  for (uint c = lane; c < quads; c += LANES) y[row * quads + c] = x[first + c] * factor * weight[c];
}
