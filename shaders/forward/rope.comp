// Rows of the projections, [rows, n_heads queries, n_kv_heads K, n_kv_heads V, d] f32: queries and K are rotated, queries in
// place, K and V stored to the cache's tail. Queries that a window keeps are copied to its ring. Pairs are neighbours, as
// GGUF files of architecture llama have them.
//
// The angle is position x frequency in turns. Frequencies are 64-bit fractions of a turn per position, so that whole
// turns fall away in integer arithmetic: the angle stays exact at any position, and sin and cos see at most pi.
//
// Variant BLOCKS stores blocks of 32: sixteen neighbouring threads have the 64 elements of two blocks, whole words of the
// cache, and write those together.
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
#include "finite.glsl"

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

// What a thread has to store: four elements of K or V.
struct Stored {
  bool any, is_value;
  uint element; // in the tail, from the first head of this dispatch on
  vec4 quad;
};

#ifdef BLOCKS

#define PAIR_THREADS 16
const uint BLOCK_HALVES = HALVES_OF_BLOCK(STORE_TYPE); // and words of two blocks

shared float extremes[LOCAL_SIZE];
shared uint numbers[LOCAL_SIZE];    // four bytes each
shared uint scales[LOCAL_SIZE / 8]; // of blocks

uint magnitude(float value) {
  return floatBitsToUint(value) & 0x7fffffffu;
}

// Of those of the largest magnitude, the first. Compared as integers, so that what is no number wins everywhere.
float extreme(float first, float second) {
  return magnitude(second) > magnitude(first) ? second : first;
}

// Four elements as numbers of 8 bits, Q4_0's from 0 to 15; rounded as in GGUF's reference.
uint quantise(vec4 quad, float inverse) {
  const vec4 scaled = quad * inverse;
  const vec4 whole = floor(abs(scaled));
  const vec4 away = sign(scaled) * (whole + step(vec4(0.5), abs(scaled) - whole));
  const uvec4 bytes = STORE_TYPE == DTYPE_Q8_0 ? uvec4(ivec4(away)) & 255u : min(uvec4(scaled + 8.5), 15u);
  return bytes.x | bytes.y << 8 | bytes.z << 16 | bytes.w << 24;
}

// Every thread's four elements to `numbers`, their blocks' scales to `scales`.
void quantise_blocks(vec4 quad) {
  const uint t = gl_LocalInvocationID.x;
  extremes[t] = extreme(extreme(quad.x, quad.y), extreme(quad.z, quad.w));
  barrier();
  const uint first = t & ~7u;
  float most = extremes[first];
  for (uint i = 1; i < 8; i++) most = extreme(most, extremes[first + i]);
  const float scale = STORE_TYPE == DTYPE_Q8_0 ? abs(most) / 127.0 : most / -8.0;
  const float inverse = 1.0 / scale;
  // Of a block that holds what is no finite number, the scale says so.
  const bool usable = is_finite(most) && scale != 0.0 && is_finite(inverse);
  numbers[t] = quantise(usable ? quad : vec4(0.0), usable ? inverse : 0.0);
  if (t == first) scales[t / 8] = packHalf2x16(vec2(scale, 0.0));
  barrier();
}

// Half i of the words of two blocks, whose first thread is `first`.
uint block_half(uint first, uint i) {
  const uint block = i < BLOCK_HALVES ? 0u : 1u, at = i - block * BLOCK_HALVES;
  if (at == 0u) return scales[first / 8 + block];
  const uint from = first + block * 8 + ((at - 1u) >> 1);
  const uint bytes = STORE_TYPE == DTYPE_Q8_0 ? numbers[from] : numbers[from] | numbers[from + 4u] << 4;
  return bytes >> ((at - 1u) & 1u) * 16u & 0xffffu;
}

#define STORE(CACHE, FIRST)                                                                                          \
  const uint lane = gl_LocalInvocationID.x % PAIR_THREADS, first = gl_LocalInvocationID.x - lane;                    \
  const uint to = FIRST + (stored.element >> 6) * BLOCK_HALVES;                                                      \
  for (uint word = lane; word < BLOCK_HALVES; word += PAIR_THREADS)                                                  \
    CACHE[to + word] = block_half(first, 2u * word) | block_half(first, 2u * word + 1u) << 16;

#else

#define STORE(CACHE, FIRST)                                                                                          \
  if (STORE_TYPE == DTYPE_F16) {                                                                                     \
    const uint at = FIRST + (stored.element >> 1);                                                                   \
    CACHE[at] = packHalf2x16(stored.quad.xy);                                                                        \
    CACHE[at + 1u] = packHalf2x16(stored.quad.zw);                                                                   \
  } else {                                                                                                           \
    const uint at = FIRST + stored.element;                                                                          \
    CACHE[at] = floatBitsToUint(stored.quad.x);                                                                      \
    CACHE[at + 1u] = floatBitsToUint(stored.quad.y);                                                                 \
    CACHE[at + 2u] = floatBitsToUint(stored.quad.z);                                                                 \
    CACHE[at + 3u] = floatBitsToUint(stored.quad.w);                                                                 \
  }

#endif

Stored take(uint item) {
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
    return Stored(false, false, 0u, vec4(0.0));
  }
  const uint place = head - n_queries; // of K and V heads in this dispatch
  const bool is_value = place >= push.n_dispatch_kv_heads;
  const uint local = is_value ? place - push.n_dispatch_kv_heads : place;
  const uint source = push.n_heads + push.first_kv_head + local + (is_value ? push.n_kv_heads : 0u);
  const vec4 quad = uintBitsToFloat(rows[row_first + source * quads + at]);
  const uint element = ((local * push.head_rows + state.z + row) * quads + at) * 4u;
  return Stored(true, is_value, element, is_value ? quad : rotate_quad(quad, at, state.y + row));
}

void main() {
  const uint item = workgroup_index() * LOCAL_SIZE + gl_LocalInvocationID.x;
  if (workgroup_index() >= push.n_groups) return;
  Stored stored = Stored(false, false, 0u, vec4(0.0));
  if (item < push.n_items) stored = take(item);
#ifdef BLOCKS
  quantise_blocks(stored.quad);
#endif
  if (!stored.any) return;
  if (stored.is_value) {
    STORE(value, push.value_first)
  } else {
    STORE(key, push.key_first)
  }
}
