// Element types of packed buffers, with the values of laprox_dtype. Buffers are arrays of 32-bit words on every tier,
// so that no 16-bit storage feature is needed; the type is a specialisation constant and the branches fold away.
#ifndef DTYPE_GLSL
#define DTYPE_GLSL

#define DTYPE_F32  1
#define DTYPE_F16  2
#define DTYPE_BF16 3
#define DTYPE_Q8_0 4
#define DTYPE_Q4_0 5

// Both halves of a word of two bf16 values.
vec2 unpack_bf16(uint word) {
  return vec2(uintBitsToFloat(word << 16), uintBitsToFloat(word & 0xffff0000u));
}

vec4 unpack_bytes(uint word) {
  const int bits = int(word);
  return vec4(ivec4(bits << 24, bits << 16, bits << 8, bits) >> 24);
}

// GGUF's blocks of 32 elements, of 17 or 9 halves of words: a scale, then bytes; or 16 bytes, with elements 0 … 15 in
// their low and 16 … 31 in their high halves. Blocks begin at either half of a word. INDEX is a multiple of 4.
#define HALVES_OF_BLOCK(DTYPE) ((DTYPE) == DTYPE_Q8_0 ? 17u : 9u)
#define BLOCK_AT(DTYPE, INDEX) (((INDEX) >> 5) * HALVES_OF_BLOCK(DTYPE))
#define QUAD_AT(DTYPE, INDEX)                                                                                        \
  (BLOCK_AT(DTYPE, INDEX) + 1u + (((INDEX) >> 1) & ((DTYPE) == DTYPE_Q8_0 ? 14u : 6u)))

// Four elements from the words that hold their scale and, in one or two, themselves.
vec4 unpack_block(uint dtype, uint index, uint scale_word, uint low, uint high) {
  const bool odd = (index & 32u) != 0u;
  const vec2 scales = unpackHalf2x16(scale_word);
  const uint word = odd ? low : low >> 16 | high << 16;
  const uint nibbles = (index & 16u) == 0u ? word : word >> 4;
  const vec4 numbers = dtype == DTYPE_Q8_0
                           ? unpack_bytes(word)
                           : vec4(uvec4(nibbles, nibbles >> 8, nibbles >> 16, nibbles >> 24) & 15u) - 8.0;
  return (odd ? scales.y : scales.x) * numbers;
}

// WORD(BUFFER, i) gives a word of the buffer.
#define LOAD_BLOCK(WORD, BUFFER, DTYPE, INDEX)                                                                       \
  unpack_block(DTYPE, INDEX, WORD(BUFFER, BLOCK_AT(DTYPE, INDEX) >> 1), WORD(BUFFER, QUAD_AT(DTYPE, INDEX) >> 1),    \
               WORD(BUFFER, (QUAD_AT(DTYPE, INDEX) + 1u) >> 1))

// Four consecutive elements from element `index`, a multiple of 4.
#define WORD_OF_ARRAY(BUFFER, i) BUFFER[i]
#define LOAD_VEC4(BUFFER, DTYPE, INDEX)                                                                              \
  ((DTYPE) == DTYPE_F32                                                                                              \
       ? vec4(uintBitsToFloat(BUFFER[(INDEX)]), uintBitsToFloat(BUFFER[(INDEX) + 1u]),                               \
              uintBitsToFloat(BUFFER[(INDEX) + 2u]), uintBitsToFloat(BUFFER[(INDEX) + 3u]))                          \
   : (DTYPE) == DTYPE_F16                                                                                            \
       ? vec4(unpackHalf2x16(BUFFER[(INDEX) >> 1]), unpackHalf2x16(BUFFER[((INDEX) >> 1) + 1u]))                     \
   : (DTYPE) == DTYPE_BF16                                                                                           \
       ? vec4(unpack_bf16(BUFFER[(INDEX) >> 1]), unpack_bf16(BUFFER[((INDEX) >> 1) + 1u]))                           \
       : LOAD_BLOCK(WORD_OF_ARRAY, BUFFER, DTYPE, INDEX))

#endif
