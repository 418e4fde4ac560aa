// Four consecutive elements of a tensor of any type a model file may have. Buffers are arrays of uvec2: four 16-bit
// elements, two f32, and for Q8_0 a stretch of bytes. `index`, the first element, is a multiple of 4 (with Q8_0 counted
// through the whole tensor, whose rows are whole blocks).
#ifndef WEIGHT_GLSL
#define WEIGHT_GLSL

#include "dtype.glsl"

// F32, F16 and BF16.
#define LOAD_QUAD(BUFFER, DTYPE, INDEX)                                                                              \
  ((DTYPE) == DTYPE_F32 ? uintBitsToFloat(uvec4(BUFFER[(INDEX) >> 1], BUFFER[((INDEX) >> 1) + 1u]))                  \
   : (DTYPE) == DTYPE_F16                                                                                            \
       ? vec4(unpackHalf2x16(BUFFER[(INDEX) >> 2].x), unpackHalf2x16(BUFFER[(INDEX) >> 2].y))                        \
       : vec4(unpack_bf16(BUFFER[(INDEX) >> 2].x), unpack_bf16(BUFFER[(INDEX) >> 2].y)))

// Weights: the includer defines WEIGHT_DATA and WEIGHT_TYPE.
#ifdef WEIGHT_DATA

uint weight_word(uint index) {
  const uvec2 pair = WEIGHT_DATA[index >> 1];
  return (index & 1u) == 0u ? pair.x : pair.y;
}

// Blocks have 34 bytes, a scale and 32 numbers, so that every other one begins in the middle of a word.
vec4 load_q8_0(uint index) {
  const uint block_byte = (index >> 5) * 34u;
  const vec2 halves = unpackHalf2x16(weight_word(block_byte >> 2));
  const float scale = (block_byte & 2u) == 0u ? halves.x : halves.y;
  const uint byte = block_byte + 2u + (index & 31u);
  uint word = weight_word(byte >> 2);
  if ((byte & 2u) != 0u) word = (word >> 16) | (weight_word((byte >> 2) + 1u) << 16);
  const int bits = int(word);
  return scale * vec4(ivec4(bits << 24, bits << 16, bits << 8, bits) >> 24);
}

vec4 load_weight(uint index) {
  if (WEIGHT_TYPE == DTYPE_Q8_0) return load_q8_0(index);
  return LOAD_QUAD(WEIGHT_DATA, WEIGHT_TYPE, index);
}

#endif
#endif
