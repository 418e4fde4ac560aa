// A tile of a matrix product A B^T through shared memory: up to 16 x TILE_BLOCKS rows x 64 columns, TILE_BLOCKS x 8
// results an invocation. The including shader defines where the operands' rows begin, start_a(row) and start_b(column), and
// load_a(start, k4) and load_b(start, k4), which return four elements along the inner dimension, those of B packed as
// DTYPE: unpacked as soon as they are asked for, they would be waited for before the multiplying. And before that
// ROW_BLOCKS, how many blocks of 16 rows there are (1 to TILE_BLOCKS), and DEPTH_IS_WHOLE, whether the inner dimension is a
// multiple of 16. Rows and columns whose results nobody looks at may begin anywhere; rows of zeros begin NOWHERE, which
// there are none of where ROWS_ARE_WHOLE.
//
// Where ROW_MASK is defined, for tiles of 64 rows and more, row_mask(k4) says which row blocks are not all zero in the 16
// elements from k4 on, by bits, the same for the whole workgroup; the others are left out.
#ifndef TILE_GLSL
#define TILE_GLSL

#include "repeat.glsl"

#if TILE_BLOCKS == 8
#define REPEAT_BLOCKS      REPEAT_8
#define REPEAT_HALF_BLOCKS REPEAT_4
#define EACH_BLOCK         EACH_8
#define ROLLED
#elif TILE_BLOCKS == 4
#define REPEAT_BLOCKS      REPEAT_4
#define REPEAT_HALF_BLOCKS REPEAT_2
#define EACH_BLOCK         EACH_4
#define ROLLED             [[dont_unroll]] // unrolled, the loads take registers
#else
#define REPEAT_BLOCKS      REPEAT_2
#define REPEAT_HALF_BLOCKS REPEAT_1
#define EACH_BLOCK         EACH_2
#define ROLLED             [[dont_unroll]]
#endif

#define TILE_COLUMNS 64
#define TILE_DEPTH   4 // in vec4
#define ROW(i)       (TILE_Y + 16u * i)
#define COLUMN(j)    (TILE_X + 8u * j)

#define NOWHERE      0xffffffffu

uint start_a(uint row);
uint start_b(uint column);
vec4 load_a(uint start, uint k4);
uvec4 load_b(uint start, uint k4);

float product[TILE_BLOCKS][8]; // rows ROW(i), columns COLUMN(j)

#ifdef ROW_MASK
uint row_mask(uint k4);
#else
#define row_mask(k4) ALL_ROWS
#endif
#define ALL_ROWS ((1u << ROW_BLOCKS) - 1u)

// The next elements of both operands: a quarter of a row each. Of larger tiles they are on their way while the invocation
// multiplies.
vec4 fetched_a[TILE_BLOCKS / 2];
uvec4 fetched_b[2];

#define FETCH_K4 (gl_LocalInvocationIndex & 3u)

#if TILE_BLOCKS > 2
#include "../evict/tile_outer.glsl"
#else
#include "../evict/tile_inner.glsl"
#endif

// Whether there is such a row, and whether it is not all zero.
#define IS_ROW(i)    (ROW_BLOCKS == TILE_BLOCKS || FETCH_ROW(i) < 16 * ROW_BLOCKS)
#ifdef ROW_MASK
#define IS_WANTED(i) ((mask >> (FETCH_ROW(i) >> 4) & 1u) != 0u)
#else
#define IS_WANTED(i) IS_ROW(i)
#endif
#define FETCH_A(i)                                                                                                     \
  if (IS_WANTED(i)) {                                                                                                  \
    const uint from = FROM_A(i);                                                                                       \
    fetched_a[i] = vec4(0.0);                                                                                          \
    if (inside && (ROWS_ARE_WHOLE || from != NOWHERE)) fetched_a[i] = load_a(from, k4);                                \
  }
#define FETCH_B(i)                                                                                                     \
  fetched_b[i] = uvec4(0);                                                                                             \
  if (inside) fetched_b[i] = load_b(FROM_B(i), k4);

void fetch_tiles(uint first_k4, uint k4_end, uint mask) {
  const uint k4 = first_k4 + FETCH_K4;
  const bool inside = DEPTH_IS_WHOLE || k4 < k4_end;
  REPEAT_HALF_BLOCKS(FETCH_A)
  REPEAT_2(FETCH_B)
}

void stage_tiles() {
  REPEAT_HALF_BLOCKS(STAGE_A)
  REPEAT_2(STAGE_B)
}

#define CLEAR_RESULT(i, j) product[i][j] = 0.0;
#define CLEAR_ROW(i)       EACH_8(CLEAR_RESULT, i)

// product = A B^T over k4_begin <= k4 < k4_end. Ends with all invocations past their last read of the tile only after
// the next barrier.
void tile_product(uint k4_begin, uint k4_end) {
  REPEAT_BLOCKS(CLEAR_ROW)
  REPEAT_HALF_BLOCKS(BEGIN_A)
  REPEAT_2(BEGIN_B)
  if (TILE_BLOCKS > 2) fetch_tiles(k4_begin, k4_end, row_mask(k4_begin));
  ROLLED for (uint k4 = k4_begin; k4 < k4_end; k4 += TILE_DEPTH) {
    const uint mask = row_mask(k4);
    if (TILE_BLOCKS <= 2) fetch_tiles(k4, k4_end, mask);
    barrier();
    stage_tiles();
    barrier();
    if (TILE_BLOCKS > 2 && k4 + TILE_DEPTH < k4_end) fetch_tiles(k4 + TILE_DEPTH, k4_end, row_mask(k4 + TILE_DEPTH));
#ifdef ROW_MASK
    if (mask != ALL_ROWS) {
      [[dont_unroll]] for (uint k = 0; k < TILE_DEPTH; k++) multiply_masked(k, mask);
      continue;
    }
#endif
    [[dont_unroll]] for (uint k = 0; k < TILE_DEPTH; k++) multiply(k);
  }
}

// Sums over the rows of each column, of numbers that every invocation has for its eight columns. In the fixed order
// 0 … 15; for the columns' own invocations, local index = column.
#define STORE_PART(j) part_word(TILE_Y * TILE_COLUMNS + COLUMN(j), sums[j]);
void part_word(uint at, float value) {
  tile[at >> 2][at & 3u] = value;
}
float column_sum(float sums[8]) {
  barrier();
  REPEAT_8(STORE_PART)
  barrier();
  float total = 0.0;
  if (gl_LocalInvocationIndex < TILE_COLUMNS)
    for (uint y = 0; y < 16; y++) {
      const uint at = y * TILE_COLUMNS + gl_LocalInvocationIndex;
      total += tile[at >> 2][at & 3u];
    }
  return total;
}

#endif
