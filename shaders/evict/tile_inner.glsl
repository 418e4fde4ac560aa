// How tiles of 32 rows stand in shared memory, and their products: as the operands do, four elements along the inner dimension
// in a vec4, for the inner products of 2 rows and 8 columns. What an invocation fetches it stages at once, and finds again
// where its rows begin: these tiles are for devices with few registers.
#ifndef TILE_INNER_GLSL
#define TILE_INNER_GLSL

#define TILE_X      (gl_LocalInvocationIndex & 7u)
#define TILE_Y      (gl_LocalInvocationIndex >> 3)

#define TILE_STRIDE 5 // vec4 of a row: neighbouring rows hit different banks
#define TILE_B      (16 * TILE_BLOCKS * TILE_STRIDE) // where the second operand begins

shared vec4 tile[TILE_B + TILE_COLUMNS * TILE_STRIDE];

#define FETCH_ROW(i)    ((gl_LocalInvocationIndex >> 2) + 32 * i)
#define FETCH_COLUMN(i) FETCH_ROW(i)
#define BEGIN_A(i)
#define BEGIN_B(i)
#define FROM_A(i)       start_a(FETCH_ROW(i))
#define FROM_B(i)       start_b(FETCH_COLUMN(i))

#define STAGE_A(i) tile[FETCH_ROW(i) * TILE_STRIDE + FETCH_K4] = fetched_a[i];
#define STAGE_B(i)                                                                                                     \
  tile[TILE_B + FETCH_COLUMN(i) * TILE_STRIDE + FETCH_K4] = unpack_vec4(DTYPE, fetched_b[i]);

#define LOAD_ROW(i)                                                                                                    \
  vec4 a##i = vec4(0.0);                                                                                               \
  if (i < ROW_BLOCKS) a##i = tile[ROW(i) * TILE_STRIDE + k4];
#define MULTIPLY(j, i)                                                                                                 \
  if (i < ROW_BLOCKS)                                                                                                  \
    product[i][j] = fma(a##i.x, b.x, fma(a##i.y, b.y, fma(a##i.z, b.z, fma(a##i.w, b.w, product[i][j]))));
#define MULTIPLY_COLUMN(j)                                                                                             \
  {                                                                                                                    \
    const vec4 b = tile[TILE_B + COLUMN(j) * TILE_STRIDE + k4];                                                        \
    EACH_BLOCK(MULTIPLY, j)                                                                                            \
  }

// Adds the products along four places of the inner dimension, the last one first.
void multiply(uint k4) {
  REPEAT_BLOCKS(LOAD_ROW)
  REPEAT_8(MULTIPLY_COLUMN)
}

#endif
