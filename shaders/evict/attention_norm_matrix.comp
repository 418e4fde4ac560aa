#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// Second pass of the observation-window attention on cooperative matrices: column norms of each query head. One workgroup per
// (share of the tiles of 64 candidates, up to four query heads).
#include "finite.glsl"
#include "../evict/layout.glsl"
#include "../evict/window_matrix.glsl"
#define EXCHANGED 1
#include "../evict/columns_matrix.glsl"

const uint NORMS = (TILE_HEADS * STEP_ENTRIES + N_INVOCATIONS - 1) / N_INVOCATIONS; // that an invocation writes in a step

// Twice the log2 of the sum of exponentials, the same in all columns.
SUM_MATRIX softmax[ROW_MATRICES];

// Of a query that the window has not: infinite, so that its probabilities are 0.
void load_softmax() {
  const uint base = gl_SubgroupID * COLUMNS * COLUMN_QUADS;
  subgroupBarrier();
  for (uint i = gl_SubgroupInvocationID; i < QUERY_ROWS / PARTS; i += SUBGROUP_SIZE) {
    const uint t = first_row + i, at = push.softmax + ((head * GROUP + group_head) * WINDOW + t) * 2;
    float value = uintBitsToFloat(0x7f800000u);
    if (t < WINDOW) {
      const float inverse_sum = uintBitsToFloat(state[at + 1]);
      value = is_finite(inverse_sum) ? 2.0 * (uintBitsToFloat(state[at]) - log2(inverse_sum)) : NOT_A_NUMBER;
    }
    exchange[base + i / 4][i % 4] = value;
  }
  subgroupBarrier();
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    coopMatLoad(softmax[r], exchange, base + r * SIZE / 4, 0, gl_CooperativeMatrixLayoutColumnMajor);
}

void add_squares(uint step) {
  UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
    SUM_MATRIX squares = SUM_MATRIX(0.0);
    UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
      UNROLLED for (uint e = 0; e < squares.length(); e++)
        squares[e] += exp2(fma(logits[r * COLUMN_MATRICES + c][e], 2.0 * scale, -softmax[r][e]));
    subgroupBarrier();
    put_columns(c, squares);
    subgroupBarrier();
    UNROLLED for (uint i = 0; i < LANE_SLICES; i++)
      if (LANE_SLICE(i) < SLICES * COLUMNS) leave_sum(step, c, LANE_SLICE(i), sum_slice(LANE_SLICE(i)));
  }
}

// Of a step that all subgroups are through with.
void write_norms(uint first_tile, uint step) {
  const uint tile = first_tile + step / TILE_STEPS - push.items_base;
  UNROLLED for (uint i = 0; i < NORMS; i++) {
    const uint n = i * N_INVOCATIONS + gl_LocalInvocationIndex, h = n / STEP_ENTRIES, column = n % STEP_ENTRIES;
    const uint of_group = workgroup_index() % HEAD_TILES * TILE_HEADS + h;
    if (h >= TILE_HEADS || of_group >= GROUP || !has_row(steps_begin + step * STEP_ENTRIES + column)) continue;
    const uint of_tile = step % TILE_STEPS * STEP_ENTRIES + column;
    work[push.out_offset + (tile * GROUP + of_group) * TILE_ENTRIES + of_tile] = sqrt(sum_of_parts(step, h, column));
  }
}

void add_steps(uint first_tile) {
  for (uint step = 0; step < n_steps; step++) {
    enter_step(step);
    fetch_step(step + 1);
    multiply();
    if (step > 0) write_norms(first_tile, step - 1);
    add_squares(step);
  }
  barrier();
  write_norms(first_tile, n_steps - 1);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  find_share(HEAD_TILES);
  find_subgroup(workgroup_index() % HEAD_TILES);
  for (uint first_tile = next_item; first_tile < share_end; first_tile = next_item) {
    find_head(first_tile, HEAD_FIRST_TILE);
    const uint candidate = (first_tile - head_word(head, HEAD_FIRST_TILE)) * TILE_ENTRIES;
    load_queries();
    load_softmax();
    begin_steps(head_word(head, HEAD_N_SINKS) + candidate, (next_item - first_tile) * TILE_STEPS);
    add_steps(first_tile);
  }
}
