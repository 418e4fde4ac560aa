// Elements of a tensor of any type a model file may have, in groups of consecutive ones.
#ifndef WEIGHT_GLSL
#define WEIGHT_GLSL

#include "dtype.glsl"

// Four of an array of uvec2 from element INDEX, a multiple of 4; as PACKED_VEC4 and LOAD_VEC4.
#define WORD_OF_PAIRS(BUFFER, i) BUFFER[(i) >> 1][(i) & 1u]
#define PACKED_QUAD(BUFFER, DTYPE, INDEX)                                                                            \
  ((DTYPE) == DTYPE_F32 ? uvec4(BUFFER[(INDEX) >> 1], BUFFER[((INDEX) >> 1) + 1u])                                   \
   : (DTYPE) == DTYPE_F16 || (DTYPE) == DTYPE_BF16                                                                   \
       ? uvec4(BUFFER[(INDEX) >> 2], 0, 0)                                                                           \
       : PACKED_BLOCK(WORD_OF_PAIRS, BUFFER, DTYPE, INDEX))
#define LOAD_QUAD(BUFFER, DTYPE, INDEX) unpack_vec4(DTYPE, PACKED_QUAD(BUFFER, DTYPE, INDEX))

// Weights: the includer defines WEIGHT_TYPE and WEIGHT_DATA, an array of uvec4 with rows as lpx_weight_pack makes them.
// `first` is a row's first uvec4, `depth` the row's length.
#ifdef WEIGHT_DATA

vec2 unpack_halves(uint word) {
  return WEIGHT_TYPE == DTYPE_F16 ? unpackHalf2x16(word) : unpack_bf16(word);
}

// Of Q8_0: the scale of a row's block of 32.
float weight_scale(uint first, uint depth, uint block) {
  const vec2 halves = unpackHalf2x16(WEIGHT_DATA[first + (depth >> 4) + (block >> 3)][(block >> 1) & 3u]);
  return (block & 1u) == 0u ? halves.x : halves.y;
}

// The row's four elements from element 4 * quad.
vec4 load_weight(uint first, uint depth, uint quad) {
  if (WEIGHT_TYPE == DTYPE_F32) return uintBitsToFloat(WEIGHT_DATA[first + quad]);
  if (WEIGHT_TYPE == DTYPE_Q8_0)
    return weight_scale(first, depth, quad >> 3) * unpack_bytes(WEIGHT_DATA[first + (quad >> 2)][quad & 3u]);
  const uint unit = first + (quad >> 1), at = (quad & 1u) * 2u;
  return vec4(unpack_halves(WEIGHT_DATA[unit][at]), unpack_halves(WEIGHT_DATA[unit][at + 1u]));
}

#endif
#endif
