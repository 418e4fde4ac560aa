// Four consecutive elements of a weight tensor, of any type a model file may have, from element `index`, a multiple
// of 4 (with Q8_0 counted through the whole tensor, whose rows are whole blocks). The includer defines WEIGHT_DATA, an
// array of 32-bit words, and WEIGHT_TYPE.
#ifndef WEIGHT_GLSL
#define WEIGHT_GLSL

#include "dtype.glsl"

// Blocks have 34 bytes, so that every other one begins in the middle of a word.
vec4 load_q8_0(uint index) {
  const uint block_byte = (index >> 5) * 34u;
  const uint scale_word = WEIGHT_DATA[block_byte >> 2];
  const vec2 halves = unpackHalf2x16(scale_word);
  const float scale = (block_byte & 2u) == 0u ? halves.x : halves.y;
  const uint byte = block_byte + 2u + (index & 31u);
  uint word = WEIGHT_DATA[byte >> 2];
  if ((byte & 2u) != 0u) word = (word >> 16) | (WEIGHT_DATA[(byte >> 2) + 1u] << 16);
  const int bits = int(word);
  return scale * vec4(ivec4(bits << 24, bits << 16, bits << 8, bits) >> 24);
}

vec4 load_weight(uint index) {
  if (WEIGHT_TYPE == DTYPE_Q8_0) return load_q8_0(index);
  return LOAD_VEC4(WEIGHT_DATA, WEIGHT_TYPE, index);
}

#endif
