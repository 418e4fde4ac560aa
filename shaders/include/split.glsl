// f32 numbers as what f16 holds of them and what that leaves over, for products on cooperative matrices.
#ifndef SPLIT_GLSL
#define SPLIT_GLSL

#include "finite.glsl"

// As many digits as f16 has, by integers, which no compiler mistakes for the number itself.
float rounded(float number) {
  return is_finite(number) ? uintBitsToFloat((floatBitsToUint(number) + 0x1000u) & 0xffffe000u) : number;
}

// The exponent, as floats have it, of a power of two that numbers up to this size are divided by to be less than 256.
uint exponent_for(uint largest_bits) {
  return clamp(largest_bits >> 23, 32u, 240u) - 7u;
}

#endif
