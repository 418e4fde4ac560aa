// Numbers as f16, two a word. What f16 can't hold becomes its largest number.
#ifndef HALVES_GLSL
#define HALVES_GLSL

uvec2 pack_halves(vec4 four) {
  const vec4 within = clamp(four, -65504.0, 65504.0);
  return uvec2(packHalf2x16(within.xy), packHalf2x16(within.zw));
}

#endif
