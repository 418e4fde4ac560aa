#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// Projected-value norms |R_h v|, times the attention norms, mean over the group: the raw LaProx score. One workgroup per
// tile of 64 candidates. A tile's rows are as many blocks of 16 rows of each of up to MOST_HEADS heads' factors.
#include "index.glsl"
#include "dtype.glsl"
#include "../evict/layout.glsl"
#include "../evict/value.glsl"

#define MODE_MEAN           0 // attention part [tile, GROUP, 64]
#define MODE_ATTENTION_MEAN 1 // attention part [tile, 64]

#define MOST_HEADS (TILE_BLOCKS / 2)
const uint HEAD_TILES = (GROUP + MOST_HEADS - 1) / MOST_HEADS;
const uint TILE_HEADS = (GROUP + HEAD_TILES - 1) / HEAD_TILES;
const uint BLOCKS_THAT_FIT = TILE_BLOCKS / TILE_HEADS, HEAD_BLOCKS = (HEAD_DIM + 15) / 16;
const uint TRIANGLE = BLOCKS_THAT_FIT < HEAD_BLOCKS ? BLOCKS_THAT_FIT : HEAD_BLOCKS;
const uint ROW_BLOCKS = TILE_HEADS * TRIANGLE;
#define ROWS_ARE_WHOLE (HEAD_DIM % (16 * TRIANGLE) == 0)

#include "../evict/tile.glsl"

uint first_group_head, first_factor_row;

uint start_a(uint row) {
  const uint group_head = min(first_group_head + row / (16 * TRIANGLE), GROUP - 1);
  const uint factor_row = first_factor_row + row % (16 * TRIANGLE);
  return factor_row < HEAD_DIM ? ((head * GROUP + group_head) * HEAD_DIM + factor_row) * (HEAD_DIM / 4) : NOWHERE;
}

float squares[MOST_HEADS][8]; // of the tile's heads, over the invocation's rows, of its eight columns

#define CLEAR_SQUARE(h, j) squares[h][j] = 0.0;
#define CLEAR_SQUARES(h)   EACH_8(CLEAR_SQUARE, h)
#define SQUARE(i, j)       squares[i / TRIANGLE % MOST_HEADS][j] += product[i][j] * product[i][j];
#define SQUARE_ROW(i)                                                                                                  \
  if (i < ROW_BLOCKS) {                                                                                                \
    EACH_8(SQUARE, i)                                                                                                  \
  }
#define ADD_HEAD(h)                                                                                                    \
  if (h < TILE_HEADS && first_group_head + h < GROUP) score += head_part(first_group_head + h, column_sum(squares[h]));

float head_part(uint group_head, float square) {
  const float norm = sqrt(square);
  if (MODE == MODE_ATTENTION_MEAN || gl_LocalInvocationIndex >= TILE_COLUMNS) return norm;
  return norm * work[push.attention + (strip_tile * GROUP + group_head) * TILE_ENTRIES + gl_LocalInvocationIndex];
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  if (!find_tile(push.first_item + workgroup_index())) return;
  float score = 0.0;
  ROLLED for (first_group_head = 0; first_group_head < GROUP; first_group_head += TILE_HEADS) {
    REPEAT_HALF_BLOCKS(CLEAR_SQUARES)
    ROLLED for (first_factor_row = 0; first_factor_row < HEAD_DIM; first_factor_row += 16 * TRIANGLE) {
      tile_product(first_factor_row / 4, HEAD_DIM / 4);
      REPEAT_BLOCKS(SQUARE_ROW)
    }
    REPEAT_HALF_BLOCKS(ADD_HEAD)
  }
  if (gl_LocalInvocationIndex >= TILE_COLUMNS) return;
  if (MODE == MODE_ATTENTION_MEAN)
    score *= work[push.attention + strip_tile * TILE_ENTRIES + gl_LocalInvocationIndex];
  write_score(gl_LocalInvocationIndex, score / float(GROUP));
}
