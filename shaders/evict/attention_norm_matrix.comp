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
#define STEP_ENTRIES TILE_ENTRIES
#include "../evict/window_matrix.glsl"

SUM_MATRIX softmax[ROW_MATRICES]; // log2 of the sum of exponentials, the same in all columns

#define EXCHANGE_FLOATS 512 // of a subgroup: 512 / SIZE columns, SIZE rows
const uint SUMS_AT_ONCE = EXCHANGE_FLOATS / SIZE / SIZE;
const uint SUM_COLUMNS = EXCHANGE_FLOATS / SIZE;

// Of a query that the window has not: infinite, so that its probabilities are 0.
void load_softmax() {
  const uint base = gl_SubgroupID * EXCHANGE_FLOATS;
  barrier();
  for (uint i = gl_SubgroupInvocationID; i < QUERY_ROWS * SIZE; i += SUBGROUP_SIZE) {
    const uint t = i / SIZE, at = push.softmax + ((head * GROUP + group_head) * WINDOW + t) * 2;
    float value = uintBitsToFloat(0x7f800000u);
    if (t < WINDOW) {
      const float inverse_sum = uintBitsToFloat(state[at + 1]);
      value = is_finite(inverse_sum) ? uintBitsToFloat(state[at]) - log2(inverse_sum) : NOT_A_NUMBER;
    }
    exchange[base + i] = value;
  }
  barrier();
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    coopMatLoad(softmax[r], exchange, base + r * SIZE * SIZE, SIZE, gl_CooperativeMatrixLayoutRowMajor);
  barrier();
}

void write_norms(uint tile, uint first_entry, uint first_column, uint n_columns) {
  const uint at = push.out_offset + ((tile - push.items_base) * GROUP + group_head) * TILE_ENTRIES + first_column;
  for (uint i = gl_SubgroupInvocationID; i < n_columns; i += SUBGROUP_SIZE) {
    float total = 0.0;
    for (uint row = 0; row < SIZE; row++) total += exchange[gl_SubgroupID * EXCHANGE_FLOATS + row * SUM_COLUMNS + i];
    const uint entry = first_entry + first_column + i;
    if (has_head && has_row(entry)) work[at + i] = sqrt(total);
  }
}

void add_squares(uint tile, uint first_entry) {
  UNROLLED for (uint first = 0; first < COLUMN_MATRICES; first += SUMS_AT_ONCE) {
    const uint n = COLUMN_MATRICES - first < SUMS_AT_ONCE ? COLUMN_MATRICES - first : SUMS_AT_ONCE;
    subgroupBarrier();
    UNROLLED for (uint c = first; c < first + n; c++) {
      SUM_MATRIX squares = SUM_MATRIX(0.0);
      UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
        UNROLLED for (uint e = 0; e < squares.length(); e++) {
          const float p = exp2(fma(logits[r * COLUMN_MATRICES + c][e], scale, -softmax[r][e]));
          squares[e] = fma(p, p, squares[e]);
        }
      coopMatStore(squares, exchange, gl_SubgroupID * EXCHANGE_FLOATS + (c - first) * SIZE, SUM_COLUMNS,
                   gl_CooperativeMatrixLayoutRowMajor);
    }
    subgroupBarrier();
    write_norms(tile, first_entry, (entry_part * COLUMN_MATRICES + first) * SIZE, n * SIZE);
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
    fetch_keys(first_entry);
    for (uint tile = first_tile; tile < next_item; tile++) {
      const uint entry = first_entry + (tile - first_tile) * TILE_ENTRIES;
      barrier();
      store_keys();
      barrier();
      if (tile + 1 < next_item) fetch_keys(entry + TILE_ENTRIES);
      if (entry >= entries_end || entry + TILE_ENTRIES <= entries_begin) continue;
      multiply();
      add_squares(tile, entry);
    }
  }
}
