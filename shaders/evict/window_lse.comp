#version 450
#extension GL_GOOGLE_include_directive : require
// Instead of the first pass: takes the window queries' logarithms of the sums of exponentials from the caller.
#include "index.glsl"
#include "finite.glsl"

layout(constant_id = 2) const uint WINDOW = 32;

layout(set = 0, binding = 0) readonly buffer Lse { float lse[]; }; // [heads, query_rows], natural
layout(set = 0, binding = 1) writeonly buffer State { uint state[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_queries;     // of all heads
  uint query_start, query_rows;
  uint softmax;       // word of (maximum, 1 / sum)
} push;

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint i = workgroup_index() * LOCAL_SIZE + gl_LocalInvocationIndex;
  if (i >= push.n_queries) return;
  const float given = lse[i / WINDOW * push.query_rows + (push.query_start + i % WINDOW) % push.query_rows];
  state[push.softmax + 2 * i] = floatBitsToUint(given * 1.44269504);
  state[push.softmax + 2 * i + 1] = floatBitsToUint(is_finite(given) ? 1.0 : NOT_A_NUMBER);
}
