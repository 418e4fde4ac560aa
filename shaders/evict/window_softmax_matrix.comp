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
#include "../evict/window_matrix.glsl"

#define MINUS_INFINITY uintBitsToFloat(0xff800000u)

shared float exchange[N_SUBGROUPS * SIZE * SIZE < QUERY_ROWS * STEP_ENTRIES ? QUERY_ROWS * STEP_ENTRIES : N_SUBGROUPS * SIZE * SIZE];

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
      coopMatLoad(visible, exchange, (first_row + r * SIZE) * STEP_ENTRIES + (entry_part * COLUMN_MATRICES + c) * SIZE, STEP_ENTRIES,
                  gl_CooperativeMatrixLayoutRowMajor);
      UNROLLED for (uint e = 0; e < visible.length(); e++)
        if (visible[e] == 0.0) logits[r * COLUMN_MATRICES + c][e] = MINUS_INFINITY;
    }
}

// A maximum is good enough while no logit is so much above it: the sum stays far from overflow. Plus infinity and what is no
// number make the sum none, minus infinity adds 0.
#define SLACK 16.0

float highest_logit(uint r, uint e) {
  float highest = logits[r * COLUMN_MATRICES][e];
  UNROLLED for (uint c = 1; c < COLUMN_MATRICES; c++) highest = max(highest, logits[r * COLUMN_MATRICES + c][e]);
  return highest;
}

void update() {
  float excess = -SLACK;
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    UNROLLED for (uint e = 0; e < maximum[r].length(); e++)
      excess = max(excess, fma(highest_logit(r, e), scale, -maximum[r][e]));
  if (excess > SLACK)
    UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
      UNROLLED for (uint e = 0; e < maximum[r].length(); e++) {
        const float highest = max(maximum[r][e], highest_logit(r, e) * scale);
        sum[r][e] *= exp2(maximum[r][e] - highest);
        maximum[r][e] = highest;
      }
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    UNROLLED for (uint e = 0; e < maximum[r].length(); e++) {
      float added = 0.0;
      UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++)
        added += exp2(fma(logits[r * COLUMN_MATRICES + c][e], scale, -maximum[r][e]));
      sum[r][e] += added;
    }
}

uint exchange_row(uint subgroup) {
  return subgroup * SIZE * SIZE;
}

// Row n of those that subgroups with the same entries have in their matrices of number r.
void write_partial(uint r, uint first_head, uint n, uint base, float value) {
  const uint subgroup = n / SIZE, of_group = first_head + subgroup % TILE_HEADS;
  const uint t = subgroup / TILE_HEADS * (QUERY_ROWS / PARTS) + r * SIZE + n % SIZE;
  if (t < WINDOW && of_group < GROUP) work[base + (of_group * WINDOW + t) * 2] = value;
}

// What the elements of a row have come to, and the subgroups that divide the entries: of SIZE queries of every subgroup.
void write_rows(uint r, uint base) {
  const uint n_rows = TILE_HEADS * PARTS * SIZE, stride = exchange_row(TILE_HEADS * PARTS);
  const uint first = workgroup_index() % HEAD_TILES * TILE_HEADS;
  SUM_MATRIX highest;
  barrier();
  coopMatStore(maximum[r], exchange, exchange_row(gl_SubgroupID), SIZE, gl_CooperativeMatrixLayoutRowMajor);
  barrier();
  for (uint n = gl_LocalInvocationIndex; n < n_rows; n += N_INVOCATIONS) {
    float most = -1.0e38;
    for (uint i = 0; i < ENTRY_PARTS * SIZE; i++) most = max(most, exchange[i / SIZE * stride + n * SIZE + i % SIZE]);
    for (uint i = 0; i < ENTRY_PARTS * SIZE; i++) exchange[i / SIZE * stride + n * SIZE + i % SIZE] = most;
    write_partial(r, first, n, base, most);
  }
  barrier();
  coopMatLoad(highest, exchange, exchange_row(gl_SubgroupID), SIZE, gl_CooperativeMatrixLayoutRowMajor);
  UNROLLED for (uint e = 0; e < highest.length(); e++) sum[r][e] *= exp2(maximum[r][e] - highest[e]);
  barrier();
  coopMatStore(sum[r], exchange, exchange_row(gl_SubgroupID), SIZE, gl_CooperativeMatrixLayoutRowMajor);
  barrier();
  for (uint n = gl_LocalInvocationIndex; n < n_rows; n += N_INVOCATIONS) {
    float total = 0.0;
    for (uint i = 0; i < ENTRY_PARTS * SIZE; i++) total += exchange[i / SIZE * stride + n * SIZE + i % SIZE];
    write_partial(r, first, n, base + 1, total);
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
  fetch_step(begin);
  for (uint first_entry = begin; first_entry < end; first_entry += STEP_ENTRIES) {
    store_keys();
    if (first_entry + STEP_ENTRIES < end) fetch_step(first_entry + STEP_ENTRIES);
    multiply();
    if (first_entry < entries_begin || first_entry + STEP_ENTRIES > min(entries_end, n_entries - WINDOW))
      hide(first_entry);
    update();
  }
  const uint slot = split + push.rows.segment * push.items_base;
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) write_rows(r, push.out_offset + slot * GROUP * WINDOW * 2);
}
