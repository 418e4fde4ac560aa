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

// Four consecutive elements from element INDEX, a multiple of 4, in two steps, so that the words may be on their way while
// something else is done: which words, and what they stand for. Of a block: the scale's, one or two with the elements, and
// INDEX. WORD(BUFFER, i) gives a word of the buffer.
#define WORD_OF_ARRAY(BUFFER, i) BUFFER[i]
#define PACKED_BLOCK(WORD, BUFFER, DTYPE, INDEX)                                                                     \
  uvec4(WORD(BUFFER, BLOCK_AT(DTYPE, INDEX) >> 1), WORD(BUFFER, QUAD_AT(DTYPE, INDEX) >> 1),                         \
        WORD(BUFFER, (QUAD_AT(DTYPE, INDEX) + 1u) >> 1), INDEX)
#define PACKED_VEC4(BUFFER, DTYPE, INDEX)                                                                            \
  ((DTYPE) == DTYPE_F32                                                                                              \
       ? uvec4(BUFFER[(INDEX)], BUFFER[(INDEX) + 1u], BUFFER[(INDEX) + 2u], BUFFER[(INDEX) + 3u])                    \
   : (DTYPE) == DTYPE_F16 || (DTYPE) == DTYPE_BF16                                                                   \
       ? uvec4(BUFFER[(INDEX) >> 1], BUFFER[((INDEX) >> 1) + 1u], 0, 0)                                              \
       : PACKED_BLOCK(WORD_OF_ARRAY, BUFFER, DTYPE, INDEX))

vec4 unpack_block(uint dtype, uvec4 packed) {
  const uint index = packed.w;
  const bool odd = (index & 32u) != 0u;
  const vec2 scales = unpackHalf2x16(packed.x);
  const uint word = odd ? packed.y : packed.y >> 16 | packed.z << 16;
  const uint nibbles = (index & 16u) == 0u ? word : word >> 4;
  const vec4 numbers = dtype == DTYPE_Q8_0
                           ? unpack_bytes(word)
                           : vec4(uvec4(nibbles, nibbles >> 8, nibbles >> 16, nibbles >> 24) & 15u) - 8.0;
  return (odd ? scales.y : scales.x) * numbers;
}

vec4 unpack_vec4(uint dtype, uvec4 packed) {
  return dtype == DTYPE_F32    ? uintBitsToFloat(packed)
         : dtype == DTYPE_F16  ? vec4(unpackHalf2x16(packed.x), unpackHalf2x16(packed.y))
         : dtype == DTYPE_BF16 ? vec4(unpack_bf16(packed.x), unpack_bf16(packed.y))
                               : unpack_block(dtype, packed);
}

#define LOAD_VEC4(BUFFER, DTYPE, INDEX) unpack_vec4(DTYPE, PACKED_VEC4(BUFFER, DTYPE, INDEX))

#endif
