#version 450
#extension GL_GOOGLE_include_directive : require
// The joint score: norm of the sum over the group's heads of (attention column x projected value). With u_h the value
// projected by head h's part of the group's common factor, its square is the sum over rows k of the factor of
// u[k]^T G u[k], G the Gram matrix of the attention columns. One workgroup per tile of 64 candidates.
#include "index.glsl"
#include "dtype.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"
#include "../evict/value.glsl"
#include "../evict/tile.glsl"

const uint FACTOR_DIM = GROUP * HEAD_DIM;
const uint ROWS_AT_ONCE = TILE_ROWS / GROUP; // factor rows in a tile, each once for every head of the group

shared float half_sum[TILE_COLUMNS];

uint first_factor_row;

// Tile row = factor row x GROUP + head of the group.
vec4 load_a(uint row, uint k4) {
  const uint factor_row = first_factor_row + row / GROUP;
  if (row >= ROWS_AT_ONCE * GROUP || factor_row >= FACTOR_DIM) return vec4(0.0);
  const uint at = ((head * FACTOR_DIM) + factor_row) * FACTOR_DIM + (row % GROUP) * HEAD_DIM + 4 * k4;
  return vec4(factor[at], factor[at + 1], factor[at + 2], factor[at + 3]);
}

// The products of a tile, kept where the values were: component row % 4 of word row / 4.
float projected(uint row, uint column) {
  return tile_b[row / 4][column][row % 4];
}

float quadratic_form(uint column, uint half_index, uint gram) {
  float total = 0.0;
  for (uint k = half_index; k < ROWS_AT_ONCE; k += 2) {
    uint pair = 0;
    for (uint h = 0; h < GROUP; h++) {
      const float u = projected(k * GROUP + h, column);
      float inner = 0.0;
      for (uint other = 0; other < h; other++, pair++)
        inner += work[gram + pair * TILE_ENTRIES] * projected(k * GROUP + other, column);
      total += u * (2.0 * inner + work[gram + pair * TILE_ENTRIES] * u);
      pair++;
    }
  }
  return total;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint tile = push.first_item + workgroup_index();
  if (!find_tile(tile)) return;
  const uint x = gl_LocalInvocationIndex % 16, y = gl_LocalInvocationIndex / 16;
  const uint column = gl_LocalInvocationIndex % TILE_COLUMNS, half_index = gl_LocalInvocationIndex / TILE_COLUMNS;
  const uint n_pairs = GROUP * (GROUP + 1) / 2;
  const uint gram = push.attention + (tile - push.items_base) * n_pairs * TILE_ENTRIES + column;
  float total = 0.0;
  for (first_factor_row = 0; first_factor_row < FACTOR_DIM; first_factor_row += ROWS_AT_ONCE) {
    vec4 products[4];
    tile_product(0, HEAD_DIM / 4, products);
    barrier();
    for (uint j = 0; j < 4; j++)
      tile_b[y][x + 16 * j] = vec4(products[0][j], products[1][j], products[2][j], products[3][j]);
    barrier();
    total += quadratic_form(column, half_index, gram);
  }
  if (half_index == 1) half_sum[column] = total;
  barrier();
  if (half_index == 1) return;
  total += half_sum[column];
  if (is_finite(total)) total = max(total, 0.0); // rounding may leave a zero slightly below
  write_score(gl_LocalInvocationIndex, sqrt(total));
}
