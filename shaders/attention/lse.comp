#version 450
#extension GL_GOOGLE_include_directive : require
// Logarithms of the sums of exponentials, from what prefill.comp has left behind its output: to a ring with a row for each
// head, as eviction reads them.
#include "index.glsl"
#include "finite.glsl"

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_items; // rows x heads
  uint n_heads;
  uint state_first; // vec4s: (-, -, maximum, sum) of the first row's heads, then the next row's
  uint ring_rows, ring_row;
} push;

layout(binding = 0) readonly buffer State { vec4 state[]; };
layout(binding = 1) writeonly buffer Ring { float ring[]; };

void main() {
  const uint item = workgroup_index() * LOCAL_SIZE + gl_LocalInvocationID.x;
  if (workgroup_index() >= push.n_groups || item >= push.n_items) return;
  const vec2 row = state[push.state_first + item].zw;
  const uint at = item % push.n_heads * push.ring_rows + (push.ring_row + item / push.n_heads) % push.ring_rows;
  const bool good = is_finite(row.x) && is_finite(row.y) && row.y > 0.0;
  ring[at] = good ? (row.x + log2(row.y)) * 0.69314718 : NOT_A_NUMBER;
}
