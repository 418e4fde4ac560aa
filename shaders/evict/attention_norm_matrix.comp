#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// Second pass of the observation-window attention on cooperative matrices: column norms of each query head, tile after tile
// of 64 candidates. One workgroup per (group_items tiles, up to four query heads).
#include "finite.glsl"
#include "../evict/layout.glsl"
#include "../evict/window_matrix.glsl"
#include "../evict/column_sums.glsl"

// Twice the log2 of the sum of exponentials, the same in all columns.
SUM_MATRIX softmax[ROW_MATRICES];

// Of a query that the window has not: infinite, so that its probabilities are 0.
void load_softmax() {
  const uint base = gl_SubgroupID * EXCHANGE_QUADS;
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    subgroupBarrier();
    for (uint i = gl_SubgroupInvocationID; i < SIZE * SIZE; i += SUBGROUP_SIZE) {
      const uint row = i % SIZE, t = first_row + r * SIZE + row, at = push.softmax + ((head * GROUP + group_head) * WINDOW + t) * 2;
      float value = uintBitsToFloat(0x7f800000u);
      if (t < WINDOW) {
        const float inverse_sum = uintBitsToFloat(state[at + 1]);
        value = is_finite(inverse_sum) ? 2.0 * (uintBitsToFloat(state[at]) - log2(inverse_sum)) : NOT_A_NUMBER;
      }
      exchange[base + i / SIZE * COLUMN_QUADS + row / 4][row % 4] = value;
    }
    subgroupBarrier();
    coopMatLoad(softmax[r], exchange, base, COLUMN_QUADS, gl_CooperativeMatrixLayoutColumnMajor);
  }
}

void add_squares(uint step) {
  const uint to = (step % 2 * TILE_HEADS * PARTS + gl_SubgroupID % (TILE_HEADS * PARTS)) * STEP_ENTRIES;
  UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
    SUM_MATRIX squares = SUM_MATRIX(0.0);
    UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
      UNROLLED for (uint e = 0; e < squares.length(); e++)
        squares[e] += exp2(fma(logits[r * COLUMN_MATRICES + c][e], 2.0 * scale, -softmax[r][e]));
    sum_columns(squares, to + (entry_part * COLUMN_MATRICES + c) * SIZE);
  }
}

// Of a step that all subgroups are through with.
void write_norms(uint tile, uint step, uint first_entry) {
  for (uint n = gl_LocalInvocationIndex; n < TILE_HEADS * STEP_ENTRIES; n += N_INVOCATIONS) {
    const uint h = n / STEP_ENTRIES, column = n % STEP_ENTRIES;
    const uint of_group = workgroup_index() % HEAD_TILES * TILE_HEADS + h;
    float total = 0.0;
    UNROLLED for (uint part = 0; part < PARTS; part++)
      total += sums[((step % 2 * PARTS + part) * TILE_HEADS + h) * STEP_ENTRIES + column];
    if (of_group < GROUP && has_row(first_entry + column))
      work[push.out_offset + ((tile - push.items_base) * GROUP + of_group) * TILE_ENTRIES + column] = sqrt(total);
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint begin = push.first_item + workgroup_index() / HEAD_TILES * push.group_items;
  const uint end = min(begin + push.group_items, push.end_item);
  find_subgroup();
  for (uint first_tile = begin; first_tile < end; first_tile = next_item) {
    find_head(first_tile, HEAD_FIRST_TILE);
    next_item = min(next_item, end);
    const uint candidate = (first_tile - head_word(head, HEAD_FIRST_TILE)) * TILE_ENTRIES;
    const uint first_entry = head_word(head, HEAD_N_SINKS) + candidate;
    load_queries();
    load_softmax();
    fetch_step(first_entry);
    for (uint tile = first_tile; tile < next_item; tile++) {
      const uint step = tile - first_tile, entry = first_entry + step * TILE_ENTRIES;
      store_keys();
      if (tile + 1 < next_item) fetch_step(entry + TILE_ENTRIES);
      if (step > 0) write_norms(tile - 1, step - 1, entry - TILE_ENTRIES);
      multiply();
      add_squares(step);
    }
    barrier();
    const uint last = next_item - 1 - first_tile;
    write_norms(next_item - 1, last, first_entry + last * TILE_ENTRIES);
    barrier();
  }
}
