#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// What a candidate's value comes to in the layer's output: the sum of |v W_h| over the model's dimensions, mean over the
// group, in the places of raw scores. One workgroup per tile of 64 candidates, a tile of dimensions at a time.
#include "index.glsl"
#include "dtype.glsl"
#include "../evict/layout.glsl"
#include "../evict/value.glsl"

layout(constant_id = 2) const uint MODEL_DIM = 64;
#define N_QUERY_HEADS MODE // factor[] is the output projection, [MODEL_DIM, N_QUERY_HEADS * HEAD_DIM]

const uint ROW_BLOCKS = TILE_BLOCKS;
#define ROWS_ARE_WHOLE (MODEL_DIM % TILE_ROWS == 0)
#include "../evict/tile.glsl"

uint group_head, first_dim;

uint start_a(uint row) {
  if (first_dim + row >= MODEL_DIM) return NOWHERE;
  return ((first_dim + row) * N_QUERY_HEADS + head * GROUP + group_head) * (HEAD_DIM / 4);
}

float sums[8]; // over the invocation's rows, of its eight columns

#define CLEAR_SUM(j) sums[j] = 0.0;
#define ADD(i, j)    sums[j] += abs(product[i][j]);
#define ADD_ROW(i)   EACH_8(ADD, i)

void main() {
  if (workgroup_index() >= push.n_groups) return;
  if (!find_tile(push.first_item + workgroup_index())) return;
  REPEAT_8(CLEAR_SUM)
  for (group_head = 0; group_head < GROUP; group_head++)
    for (first_dim = 0; first_dim < MODEL_DIM; first_dim += TILE_ROWS) {
      tile_product(0, HEAD_DIM / 4);
      REPEAT_BLOCKS(ADD_ROW)
    }
  write_score(gl_LocalInvocationIndex, column_sum(sums) / float(GROUP));
}
