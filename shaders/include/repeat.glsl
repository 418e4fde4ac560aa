// Loops over arrays in registers, written out by the preprocessor. Not every driver splits an array whose indices come
// from an unrolled loop into registers; one whose indices are literals all do. F(i) or, with a first argument, F(a, i).
#ifndef REPEAT_GLSL
#define REPEAT_GLSL

#define REPEAT_1(F) F(0)
#define REPEAT_2(F) F(0) F(1)
#define REPEAT_4(F) REPEAT_2(F) F(2) F(3)
#define REPEAT_8(F) REPEAT_4(F) F(4) F(5) F(6) F(7)

#define EACH_1(F, a) F(a, 0)
#define EACH_2(F, a) F(a, 0) F(a, 1)
#define EACH_4(F, a) EACH_2(F, a) F(a, 2) F(a, 3)
#define EACH_8(F, a) EACH_4(F, a) F(a, 4) F(a, 5) F(a, 6) F(a, 7)

#endif
