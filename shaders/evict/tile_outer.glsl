// How tiles of 64 rows and more stand in shared memory, and their products: line after line of elements at one place along the
// inner dimension, of which an invocation's rows, or columns, are neighbours, four in a vec4. Every place adds an outer
// product of 4 or 8 rows and 8 columns, loaded while the last one's is computed.
//
// What an invocation fetches, four elements along the inner dimension, so goes to four lines; that a subgroup's go to different
// banks is what a line's odd length is for, and PLACE.
#ifndef TILE_OUTER_GLSL
#define TILE_OUTER_GLSL

// Neighbours in pairs read the same row, and pairs that are next to each other the same column: NVIDIA's shared memory then
// serves half a subgroup at once.
#define TILE_X       (gl_LocalInvocationIndex >> 1 & 7u)
#define TILE_Y       (gl_LocalInvocationIndex & 1u | gl_LocalInvocationIndex >> 4 << 1)

#define A_QUADS     (TILE_BLOCKS / 4)
#define A_STRIDE    (16 * A_QUADS + 1)
#define B_STRIDE    17
#define TILE_B      (16 * A_STRIDE) // where the second operand begins
#define PLACE(n, k4) ((n) ^ (k4) & 2u)

shared vec4 tile[TILE_B + 16 * B_STRIDE];

// An invocation fetches from rows and columns of the same block of a quad.
#define FETCH_BLOCK     (gl_LocalInvocationIndex >> 3 & 3u)
#define FETCH_LINE      (gl_LocalInvocationIndex >> 5 << 1 | gl_LocalInvocationIndex >> 2 & 1u)
#define FETCH_ROW(i)    (FETCH_LINE + 8 * (i % 2) + 16 * (FETCH_BLOCK + 4 * (i / 2)))
#define FETCH_COLUMN(i) (FETCH_LINE + 8 * (FETCH_BLOCK + 4 * i))

uint begin_a[TILE_BLOCKS / 2], begin_b[2];
#define BEGIN_A(i) begin_a[i] = start_a(FETCH_ROW(i));
#define BEGIN_B(i) begin_b[i] = start_b(FETCH_COLUMN(i));
#define FROM_A(i)  begin_a[i]
#define FROM_B(i)  begin_b[i]

void stage(uint at, uint stride, vec4 elements) {
  tile[at][FETCH_BLOCK] = elements.x;
  tile[at + stride][FETCH_BLOCK] = elements.y;
  tile[at + 2 * stride][FETCH_BLOCK] = elements.z;
  tile[at + 3 * stride][FETCH_BLOCK] = elements.w;
}
#define STAGED(stride) (FETCH_K4 * 4 * stride + PLACE(FETCH_LINE, FETCH_K4))
#define STAGE_A(i)                                                                                                     \
  if (IS_ROW(i)) stage(STAGED(A_STRIDE) + 8 * (i % 2) + 16 * (i / 2), A_STRIDE, fetched_a[i]);
#define STAGE_B(i) stage(STAGED(B_STRIDE) + TILE_B + 8 * i, B_STRIDE, unpack_vec4(DTYPE, fetched_b[i]));

#define LOAD_A(q, k) tile[a_at + 16 * (q) + k * A_STRIDE]
#define LOAD_B(q, k) tile[b_at + 8 * (q) + k * B_STRIDE]
#if A_QUADS == 2
#define LOAD_ROWS(k) const vec4 a[2] = vec4[2](LOAD_A(0, k), LOAD_A(1, k));
#else
#define LOAD_ROWS(k) const vec4 a[1] = vec4[1](LOAD_A(0, k));
#endif
#define MULTIPLY(i, j) product[i][j] = fma(a[i / 4][i % 4], b[j / 4][j % 4], product[i][j]);
#define MULTIPLY_ROW(i)                                                                                                \
  if (i < ROW_BLOCKS) {                                                                                                \
    EACH_8(MULTIPLY, i)                                                                                                \
  }
#define MULTIPLY_AT(k)                                                                                                 \
  {                                                                                                                    \
    LOAD_ROWS(k)                                                                                                       \
    const vec4 b[2] = vec4[2](LOAD_B(0, k), LOAD_B(1, k));                                                             \
    REPEAT_BLOCKS(MULTIPLY_ROW)                                                                                        \
  }

// Four places along the inner dimension, as many at once as there are registers to load: those before `end`.
#if A_QUADS == 2
#define PART_PLACES   4
#define EACH_PART     const uint end = 4;
#define MULTIPLY_PART MULTIPLY_AT(3) MULTIPLY_AT(2) MULTIPLY_AT(1) MULTIPLY_AT(0)
#else
#define PART_PLACES   2
#define EACH_PART     [[dont_unroll]] for (uint end = 4; end > 0; end -= PART_PLACES)
#define MULTIPLY_PART MULTIPLY_AT(1) MULTIPLY_AT(0)
#endif
#define FIND_PART                                                                                                      \
  const uint k = 4 * k4 + end - PART_PLACES;                                                                           \
  const uint a_at = k * A_STRIDE + PLACE(TILE_Y, k4), b_at = k * B_STRIDE + TILE_B + PLACE(TILE_X, k4);

// Adds the products along four places, the last one first.
void multiply(uint k4) {
  EACH_PART {
    FIND_PART
    MULTIPLY_PART
  }
}

#ifdef ROW_MASK
#define LOAD_ELEMENT(i, k) LOAD_A(i / 4, k)[i % 4]
#define LOAD_COLUMNS(k)    const vec4 b##k[2] = vec4[2](LOAD_B(0, k), LOAD_B(1, k));
#if A_QUADS == 2
#define REPEAT_PART      REPEAT_4
#define LOAD_ELEMENTS(i)   const vec4 a = vec4(LOAD_ELEMENT(i, 0), LOAD_ELEMENT(i, 1), LOAD_ELEMENT(i, 2), LOAD_ELEMENT(i, 3));
#define MULTIPLY_ACROSS(i, j)                                                                                          \
  product[i][j] = fma(a.x, b0[j / 4][j % 4], fma(a.y, b1[j / 4][j % 4],                                                \
                  fma(a.z, b2[j / 4][j % 4], fma(a.w, b3[j / 4][j % 4], product[i][j]))));
#else
#define REPEAT_PART      REPEAT_2
#define LOAD_ELEMENTS(i)   const vec2 a = vec2(LOAD_ELEMENT(i, 0), LOAD_ELEMENT(i, 1));
#define MULTIPLY_ACROSS(i, j)                                                                                          \
  product[i][j] = fma(a.x, b0[j / 4][j % 4], fma(a.y, b1[j / 4][j % 4], product[i][j]));
#endif
#define MULTIPLY_MASKED_ROW(i)                                                                                         \
  if (i < ROW_BLOCKS && (mask & (1u << i)) != 0u) {                                                                    \
    LOAD_ELEMENTS(i)                                                                                                   \
    EACH_8(MULTIPLY_ACROSS, i)                                                                                         \
  }

// The same, of the blocks of rows in the mask.
void multiply_masked(uint k4, uint mask) {
  EACH_PART {
    FIND_PART
    REPEAT_PART(LOAD_COLUMNS)
    REPEAT_BLOCKS(MULTIPLY_MASKED_ROW)
  }
}
#endif

#endif
