// Rows of q, K or V as the projections give them, [rows, heads, d] f32, rotated (q and K) and stored: to an activation
// buffer, or to rows of a cache. Pairs are neighbours, as GGUF files of architecture llama have them.
//
// The angle is position x frequency in turns. Frequencies are 64-bit fractions of a turn per position, so that whole
// turns fall away in integer arithmetic: the angle stays exact at any position, and sin and cos see at most pi.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"

layout(constant_id = 0) const uint STORE_TYPE = 2;

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_items; // rows x heads of this dispatch x d / 4
  uint n_heads; // of the source
  uint first_head, n_dispatch_heads;
  uint head_dim;
  uint first_position;
  uint rotate;
  uint first_row, row_stride, head_stride; // of the destination, in rows of d elements
  uint output_first;                       // words
} push;

layout(binding = 0) readonly buffer Source { vec4 source[]; };
layout(binding = 1) readonly buffer Frequency { uvec2 frequency[]; }; // low, high
layout(binding = 2) writeonly buffer Destination { uint destination[]; };

#include "dtype.glsl"

vec2 rotate(vec2 pair, uint position, uvec2 turns) {
  uint carry, low;
  umulExtended(position, turns.x, carry, low);
  const float angle = float(int(position * turns.y + carry)) * 1.4629180792671596e-9; // 2 pi / 2^32
  const float c = cos(angle), s = sin(angle);
  return vec2(pair.x * c - pair.y * s, pair.x * s + pair.y * c);
}

void main() {
  const uint item = workgroup_index() * LOCAL_SIZE + gl_LocalInvocationID.x;
  if (workgroup_index() >= push.n_groups || item >= push.n_items) return;
  const uint quads = push.head_dim >> 2;
  const uint quad = item % quads;
  const uint head = item / quads % push.n_dispatch_heads;
  const uint row = item / quads / push.n_dispatch_heads;
  vec4 value = source[(row * push.n_heads + push.first_head + head) * quads + quad];
  if (push.rotate != 0u) {
    const uint position = push.first_position + row;
    value.xy = rotate(value.xy, position, frequency[quad * 2u]);
    value.zw = rotate(value.zw, position, frequency[quad * 2u + 1u]);
  }
  const uint element = ((head * push.head_stride + push.first_row + row * push.row_stride) * quads + quad) * 4u;
  if (STORE_TYPE == DTYPE_F16) {
    const uint at = push.output_first + (element >> 1);
    destination[at] = packHalf2x16(value.xy);
    destination[at + 1u] = packHalf2x16(value.zw);
  } else {
    const uint at = push.output_first + element;
    destination[at] = floatBitsToUint(value.x);
    destination[at + 1u] = floatBitsToUint(value.y);
    destination[at + 2u] = floatBitsToUint(value.z);
    destination[at + 3u] = floatBitsToUint(value.w);
  }
}
