// A 32 x 64 tile of a matrix product A B^T through shared memory, 4 x 4 results an invocation: rows 4 y + i, columns
// x + 16 j with x = local index % 16, y = local index / 16. The including shader defines load_a(row, k4) and
// load_b(column, k4), which return four elements along the inner dimension, zeros outside.
#ifndef TILE_GLSL
#define TILE_GLSL

#define TILE_ROWS 32
#define TILE_COLUMNS 64
#define TILE_DEPTH 8 // in vec4

vec4 load_a(uint row, uint k4);
vec4 load_b(uint column, uint k4);

shared vec4 tile_a[TILE_DEPTH][TILE_ROWS];
shared vec4 tile_b[TILE_DEPTH][TILE_COLUMNS];

void load_tiles(uint k4, uint k4_end) {
  for (uint n = gl_LocalInvocationIndex; n < TILE_DEPTH * TILE_ROWS; n += LOCAL_SIZE) {
    const uint k = n % TILE_DEPTH, row = n / TILE_DEPTH;
    tile_a[k][row] = k4 + k < k4_end ? load_a(row, k4 + k) : vec4(0.0);
  }
  for (uint n = gl_LocalInvocationIndex; n < TILE_DEPTH * TILE_COLUMNS; n += LOCAL_SIZE) {
    const uint k = n % TILE_DEPTH, column = n / TILE_DEPTH;
    tile_b[k][column] = k4 + k < k4_end ? load_b(column, k4 + k) : vec4(0.0);
  }
}

// result[i][j] over k4_begin <= k4 < k4_end. Ends with all invocations past their last read of the tiles only after
// the next barrier.
void tile_product(uint k4_begin, uint k4_end, out vec4 result[4]) {
  const uint x = gl_LocalInvocationIndex % 16, y = gl_LocalInvocationIndex / 16;
  for (uint i = 0; i < 4; i++) result[i] = vec4(0.0);
  for (uint k4 = k4_begin; k4 < k4_end; k4 += TILE_DEPTH) {
    barrier();
    load_tiles(k4, k4_end);
    barrier();
    for (uint k = 0; k < TILE_DEPTH; k++) {
      const vec4 b0 = tile_b[k][x], b1 = tile_b[k][x + 16], b2 = tile_b[k][x + 32], b3 = tile_b[k][x + 48];
      for (uint i = 0; i < 4; i++) {
        const vec4 a = tile_a[k][4 * y + i];
        result[i] += vec4(dot(a, b0), dot(a, b1), dot(a, b2), dot(a, b3));
      }
    }
  }
}

#endif
