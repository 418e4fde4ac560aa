// Rows of the projections, [rows, n_heads queries, n_kv_heads K, n_kv_heads V, d] f32: queries and K are rotated, queries in
// place, K and V stored to the cache's tail. Queries that a window keeps are copied to its ring. Pairs are neighbours, as
// GGUF files of architecture llama have them.
//
// The angle is position x frequency in turns. Frequencies are 64-bit fractions of a turn per position, so that whole
// turns fall away in integer arithmetic: the angle stays exact at any position, and sin and cos see at most pi.
//
// What changes from token to token of a decode stands in front of the rows, so that the same commands serve all tokens.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "index.glsl"

layout(constant_id = 0) const uint STORE_TYPE = 2;

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_items; // rows x heads of this dispatch x d / 4
  uint n_heads, n_kv_heads;
  uint n_dispatch_heads; // queries' and K's and V's; the queries' are all or none
  uint first_kv_head, n_dispatch_kv_heads;
  uint head_dim;
  uint first_row_quad;     // of the rows
  uint use_state;          // position, tail row and ring row are the state's, else those below
  uint first_position;
  uint first_row;          // of the tail
  uint head_rows;          // of the tail, from head to head
  uint key_first, value_first; // words
  uint ring_row;           // of the first kept query
  uint query_first;        // row of the first query to keep
  uint ring_rows;
} push;

layout(binding = 0) buffer Rows { uvec4 rows[]; }; // floats but for the state
layout(binding = 1) writeonly buffer Key { uint key[]; };
layout(binding = 2) writeonly buffer Value { uint value[]; };
layout(binding = 3) writeonly buffer Ring { uvec4 ring[]; };

#include "dtype.glsl"

// The state's vec4s: (token, position, tail row, ring row), then pairs of frequencies, low word first.
#define FREQUENCIES_FIRST 1

vec2 rotate(vec2 pair, uint position, uvec2 turns) {
  uint carry, low;
  umulExtended(position, turns.x, carry, low);
  const float angle = float(int(position * turns.y + carry)) * 1.4629180792671596e-9; // 2 pi / 2^32
  const float c = cos(angle), s = sin(angle);
  return vec2(pair.x * c - pair.y * s, pair.x * s + pair.y * c);
}

vec4 rotate_quad(vec4 quad, uint at, uint position) {
  const uvec4 turns = rows[FREQUENCIES_FIRST + at];
  return vec4(rotate(quad.xy, position, turns.xy), rotate(quad.zw, position, turns.zw));
}

#define STORE(CACHE, FIRST, element, quad)                                                                           \
  if (STORE_TYPE == DTYPE_F16) {                                                                                     \
    const uint at = FIRST + (element >> 1);                                                                          \
    CACHE[at] = packHalf2x16(quad.xy);                                                                               \
    CACHE[at + 1u] = packHalf2x16(quad.zw);                                                                          \
  } else {                                                                                                           \
    const uint at = FIRST + element;                                                                                 \
    CACHE[at] = floatBitsToUint(quad.x);                                                                             \
    CACHE[at + 1u] = floatBitsToUint(quad.y);                                                                        \
    CACHE[at + 2u] = floatBitsToUint(quad.z);                                                                        \
    CACHE[at + 3u] = floatBitsToUint(quad.w);                                                                        \
  }

void main() {
  const uint item = workgroup_index() * LOCAL_SIZE + gl_LocalInvocationID.x;
  if (workgroup_index() >= push.n_groups || item >= push.n_items) return;
  const uint quads = push.head_dim >> 2;
  const uint at = item % quads;
  const uint row = item / quads / push.n_dispatch_heads;
  const uint head = item / quads % push.n_dispatch_heads; // queries', then K's, then V's
  uvec4 state = uvec4(0u, push.first_position, push.first_row, push.ring_row);
  if (push.use_state != 0u) state = rows[0];
  const uint row_first = push.first_row_quad + row * (push.n_heads + 2u * push.n_kv_heads) * quads;
  const uint n_queries = push.n_dispatch_heads - 2u * push.n_dispatch_kv_heads;
  if (head < n_queries) {
    const uint from = row_first + head * quads + at;
    const uvec4 rotated = floatBitsToUint(rotate_quad(uintBitsToFloat(rows[from]), at, state.y + row));
    rows[from] = rotated;
    if (row >= push.query_first)
      ring[((state.w + row - push.query_first) % push.ring_rows * push.n_heads + head) * quads + at] = rotated;
    return;
  }
  const uint place = head - n_queries; // of K and V heads in this dispatch
  const bool is_value = place >= push.n_dispatch_kv_heads;
  const uint local = is_value ? place - push.n_dispatch_kv_heads : place;
  const uint source = push.n_heads + push.first_kv_head + local + (is_value ? push.n_kv_heads : 0u);
  vec4 quad = uintBitsToFloat(rows[row_first + source * quads + at]);
  const uint element = ((local * push.head_rows + state.z + row) * quads + at) * 4u;
  if (is_value) {
    STORE(value, push.value_first, element, quad)
  } else {
    quad = rotate_quad(quad, at, state.y + row);
    STORE(key, push.key_first, element, quad)
  }
}
