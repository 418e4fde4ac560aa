#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// First pass of the observation-window attention on cooperative matrices: every matrix element keeps its own running
// maximum and sum over the entries it meets, and only the end of a split merges them. One workgroup per (split, up to four
// query heads).
#include "finite.glsl"
#include "../evict/layout.glsl"
#define STEP_ENTRIES 32 // 64 take more registers than there are
#include "../evict/window_matrix.glsl"

#define MINUS_INFINITY uintBitsToFloat(0xff800000u)

SUM_MATRIX maximum[ROW_MATRICES], sum[ROW_MATRICES];

// Takes out pairs of query and entry that are none, where a step reaches the window or an end.
void hide(uint first_entry) {
  barrier();
  for (uint i = gl_LocalInvocationIndex; i < QUERY_ROWS * STEP_ENTRIES; i += N_INVOCATIONS) {
    const uint entry = first_entry + i % STEP_ENTRIES;
    const bool visible = has_row(entry) && entry <= n_entries - WINDOW + i / STEP_ENTRIES;
    exchange[i] = visible ? 1.0 : 0.0;
  }
  barrier();
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
      SUM_MATRIX visible;
      coopMatLoad(visible, exchange, r * SIZE * STEP_ENTRIES + (entry_part * COLUMN_MATRICES + c) * SIZE, STEP_ENTRIES,
                  gl_CooperativeMatrixLayoutRowMajor);
      UNROLLED for (uint e = 0; e < visible.length(); e++)
        if (visible[e] == 0.0) logits[r * COLUMN_MATRICES + c][e] = MINUS_INFINITY;
    }
}

// Plus infinity and what is no number make the sum none, minus infinity adds 0.
void update() {
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    UNROLLED for (uint e = 0; e < maximum[r].length(); e++) {
      float highest = maximum[r][e], added = 0.0;
      UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) highest = max(highest, logits[r * COLUMN_MATRICES + c][e]);
      UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) added += exp2(logits[r * COLUMN_MATRICES + c][e] - highest);
      sum[r][e] = sum[r][e] * exp2(maximum[r][e] - highest) + added;
      maximum[r][e] = highest;
    }
}

uint exchange_row(uint subgroup) {
  return subgroup * QUERY_ROWS * SIZE;
}

void write_partials(uint slot) {
  barrier();
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    coopMatStore(maximum[r], exchange, exchange_row(gl_SubgroupID) + r * SIZE * SIZE, SIZE,
                 gl_CooperativeMatrixLayoutRowMajor);
  barrier();
  for (uint n = gl_LocalInvocationIndex; n < TILE_HEADS * QUERY_ROWS; n += N_INVOCATIONS) {
    const uint subgroup = n / QUERY_ROWS, row = n % QUERY_ROWS;
    float highest = -1.0e38;
    for (uint part = 0; part < ENTRY_PARTS; part++)
      for (uint x = 0; x < SIZE; x++)
        highest = max(highest, exchange[exchange_row(subgroup + part * TILE_HEADS) + row * SIZE + x]);
    for (uint part = 0; part < ENTRY_PARTS; part++)
      for (uint x = 0; x < SIZE; x++) exchange[exchange_row(subgroup + part * TILE_HEADS) + row * SIZE + x] = highest;
  }
  barrier();
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    SUM_MATRIX highest;
    coopMatLoad(highest, exchange, exchange_row(gl_SubgroupID) + r * SIZE * SIZE, SIZE,
                gl_CooperativeMatrixLayoutRowMajor);
    UNROLLED for (uint e = 0; e < highest.length(); e++) sum[r][e] *= exp2(maximum[r][e] - highest[e]);
    maximum[r] = highest;
  }
  const uint first = workgroup_index() % HEAD_TILES * TILE_HEADS;
  const uint base = push.out_offset + slot * GROUP * WINDOW * 2;
  for (uint n = gl_LocalInvocationIndex; n < TILE_HEADS * QUERY_ROWS; n += N_INVOCATIONS) {
    const uint row = n % QUERY_ROWS, of_group = first + n / QUERY_ROWS;
    if (row < WINDOW && of_group < GROUP)
      work[base + (of_group * WINDOW + row) * 2] = exchange[exchange_row(n / QUERY_ROWS) + row * SIZE];
  }
  barrier();
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    coopMatStore(sum[r], exchange, exchange_row(gl_SubgroupID) + r * SIZE * SIZE, SIZE,
                 gl_CooperativeMatrixLayoutRowMajor);
  barrier();
  for (uint n = gl_LocalInvocationIndex; n < TILE_HEADS * QUERY_ROWS; n += N_INVOCATIONS) {
    const uint row = n % QUERY_ROWS, of_group = first + n / QUERY_ROWS;
    float total = 0.0;
    for (uint part = 0; part < ENTRY_PARTS; part++)
      for (uint x = 0; x < SIZE; x++)
        total += exchange[exchange_row(n / QUERY_ROWS + part * TILE_HEADS) + row * SIZE + x];
    if (row < WINDOW && of_group < GROUP) work[base + (of_group * WINDOW + row) * 2 + 1] = total;
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint split = push.first_item + workgroup_index() / HEAD_TILES;
  find_subgroup();
  find_head(split, HEAD_FIRST_SPLIT);
  load_queries();
  const uint split_begin = (split - head_word(head, HEAD_FIRST_SPLIT)) * SPLIT_ENTRIES;
  const uint begin = max(split_begin, entries_begin / STEP_ENTRIES * STEP_ENTRIES);
  const uint end = min(split_begin + SPLIT_ENTRIES, entries_end);
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    maximum[r] = SUM_MATRIX(-1.0e38);
    sum[r] = SUM_MATRIX(0.0);
  }
  if (begin < end) fetch_keys(begin);
  for (uint first_entry = begin; first_entry < end; first_entry += STEP_ENTRIES) {
    barrier();
    store_keys();
    barrier();
    if (first_entry + STEP_ENTRIES < end) fetch_keys(first_entry + STEP_ENTRIES);
    multiply();
    UNROLLED for (uint i = 0; i < ROW_MATRICES * COLUMN_MATRICES; i++) logits[i] *= scale;
    if (first_entry < entries_begin || first_entry + STEP_ENTRIES > min(entries_end, n_entries - WINDOW))
      hide(first_entry);
    update();
  }
  write_partials(split + push.rows.segment * push.items_base);
}
