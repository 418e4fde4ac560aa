// Element types of packed buffers, with the values of laprox_dtype. Buffers are arrays of 32-bit words on every tier,
// so that no 16-bit storage feature is needed; the type is a specialisation constant and the branches fold away.
#ifndef DTYPE_GLSL
#define DTYPE_GLSL

#define DTYPE_F32  1
#define DTYPE_F16  2
#define DTYPE_BF16 3
#define DTYPE_Q8_0 4

// Both halves of a word of two bf16 values.
vec2 unpack_bf16(uint word) {
  return vec2(uintBitsToFloat(word << 16), uintBitsToFloat(word & 0xffff0000u));
}

// Four consecutive elements from element `index`, a multiple of 4 (F32, F16 and BF16 only).
#define LOAD_VEC4(BUFFER, DTYPE, INDEX)                                                                              \
  ((DTYPE) == DTYPE_F32                                                                                              \
       ? vec4(uintBitsToFloat(BUFFER[(INDEX)]), uintBitsToFloat(BUFFER[(INDEX) + 1u]),                               \
              uintBitsToFloat(BUFFER[(INDEX) + 2u]), uintBitsToFloat(BUFFER[(INDEX) + 3u]))                          \
   : (DTYPE) == DTYPE_F16                                                                                            \
       ? vec4(unpackHalf2x16(BUFFER[(INDEX) >> 1]), unpackHalf2x16(BUFFER[((INDEX) >> 1) + 1u]))                     \
       : vec4(unpack_bf16(BUFFER[(INDEX) >> 1]), unpack_bf16(BUFFER[((INDEX) >> 1) + 1u])))

#endif
