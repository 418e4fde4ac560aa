// Tests by integers: compilers may assume that floats are numbers and drop isnan().
#ifndef FINITE_GLSL
#define FINITE_GLSL

bool is_finite(float value) {
  return (floatBitsToUint(value) & 0x7f800000u) != 0x7f800000u;
}

bool is_minus_infinity(float value) {
  return floatBitsToUint(value) == 0xff800000u;
}

#define NOT_A_NUMBER uintBitsToFloat(0x7fc00000u)

#endif
