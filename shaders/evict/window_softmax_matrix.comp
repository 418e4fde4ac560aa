#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// First pass of the observation-window attention on cooperative matrices: every matrix element keeps its own running
// maximum and sum over the entries it meets, and only the end of a split merges them. One workgroup per (group_items splits, up
// to four query heads).
#include "finite.glsl"
#include "../evict/layout.glsl"
#include "../evict/window_matrix.glsl"

#define MINUS_INFINITY uintBitsToFloat(0xff800000u)

// Of a subgroup: a matrix row after row, each with room behind that keeps them in different banks.
const uint LINE_QUADS = SIZE / 4 + 1;
const uint MATRIX_QUADS = SIZE * LINE_QUADS;
const uint ROWS_QUADS = N_SUBGROUPS * MATRIX_QUADS, VISIBLE_QUADS = QUERY_ROWS * STEP_ENTRIES / 4;
shared vec4 exchange[ROWS_QUADS < VISIBLE_QUADS ? VISIBLE_QUADS : ROWS_QUADS];
// Of a subgroup's queries: maximum, and sum of exponentials. What it has come to in a split.
const uint PART_QUERIES = QUERY_ROWS / PARTS;
shared float row_maximum[N_SUBGROUPS * PART_QUERIES], row_sum[N_SUBGROUPS * PART_QUERIES];

SUM_MATRIX maximum[ROW_MATRICES], sum[ROW_MATRICES];

// Takes out pairs of query and entry that are none, where a step reaches the window or an end.
void hide(uint first_entry) {
  barrier();
  for (uint i = gl_LocalInvocationIndex; i < QUERY_ROWS * STEP_ENTRIES; i += N_INVOCATIONS) {
    const uint entry = first_entry + i % STEP_ENTRIES;
    const bool visible = has_row(entry) && entry <= n_entries - WINDOW + i / STEP_ENTRIES;
    exchange[i / 4][i % 4] = visible ? 1.0 : 0.0;
  }
  barrier();
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
      SUM_MATRIX visible;
      coopMatLoad(visible, exchange, ((first_row + r * SIZE) * STEP_ENTRIES + (entry_part * COLUMN_MATRICES + c) * SIZE) / 4,
                  STEP_ENTRIES / 4, gl_CooperativeMatrixLayoutRowMajor);
      UNROLLED for (uint e = 0; e < visible.length(); e++)
        if (visible[e] == 0.0) logits[r * COLUMN_MATRICES + c][e] = MINUS_INFINITY;
    }
  barrier();
}

void hide_if_any(uint first_entry) {
  const uint end = min(entries_end, n_entries - WINDOW);
  if (first_entry < entries_begin || first_entry + STEP_ENTRIES > end) hide(first_entry);
}

float highest_logit(uint r, uint e) {
  float highest = logits[r * COLUMN_MATRICES][e];
  UNROLLED for (uint c = 1; c < COLUMN_MATRICES; c++) highest = max(highest, logits[r * COLUMN_MATRICES + c][e]);
  return highest;
}

float exponentials(uint r, uint e) {
  float total = 0.0;
  UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++)
    total += exp2(fma(logits[r * COLUMN_MATRICES + c][e], scale, -maximum[r][e]));
  return total;
}

// A maximum is good enough while exponentials are no larger than this: the sum stays far from overflow. Plus infinity and
// what is no number make the sum none, minus infinity adds 0.
#define LARGE 65536.0

void raise_maxima(uint r) {
  UNROLLED for (uint e = 0; e < maximum[r].length(); e++) {
    const float highest = max(maximum[r][e], highest_logit(r, e) * scale);
    sum[r][e] *= exp2(maximum[r][e] - highest);
    maximum[r][e] = highest;
  }
}

void add_exponentials() {
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    SUM_MATRIX added;
    [[dont_unroll]] for (uint attempt = 0; attempt < 2; attempt++) {
      bool large = false;
      UNROLLED for (uint e = 0; e < added.length(); e++) {
        added[e] = exponentials(r, e);
        large = large || !(added[e] <= LARGE);
      }
      if (!large) break;
      if (attempt == 0) raise_maxima(r);
    }
    UNROLLED for (uint e = 0; e < added.length(); e++) sum[r][e] += added[e];
  }
}

// Leaves a split's sums in shared memory; every subgroup its own.
void end_sums() {
  const uint at = gl_SubgroupID * MATRIX_QUADS, lane = gl_SubgroupInvocationID;
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    const uint row = gl_SubgroupID * PART_QUERIES + r * SIZE;
    SUM_MATRIX level;
    subgroupBarrier();
    coopMatStore(maximum[r], exchange, at, LINE_QUADS, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    for (uint i = lane; i < SIZE; i += SUBGROUP_SIZE) {
      vec4 highest = vec4(-1.0e38);
      UNROLLED for (uint q = 0; q < SIZE / 4; q++) highest = max(highest, exchange[at + i * LINE_QUADS + q]);
      row_maximum[row + i] = max(max(highest.x, highest.y), max(highest.z, highest.w));
    }
    subgroupBarrier();
    coopMatLoad(level, row_maximum, row, 0, gl_CooperativeMatrixLayoutColumnMajor); // the same in all columns
    UNROLLED for (uint e = 0; e < level.length(); e++) sum[r][e] *= exp2(maximum[r][e] - level[e]);
    coopMatStore(sum[r], exchange, at, LINE_QUADS, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    for (uint i = lane; i < SIZE; i += SUBGROUP_SIZE) {
      vec4 total = vec4(0.0);
      UNROLLED for (uint q = 0; q < SIZE / 4; q++) total += exchange[at + i * LINE_QUADS + q];
      row_sum[row + i] = (total.x + total.y) + (total.z + total.w);
    }
  }
}

void write_partial(uint of_group, uint t, uint slot, vec2 partial) {
  const uint at = push.out_offset + ((slot * GROUP + of_group) * WINDOW + t) * 2;
  work[at] = partial.x;
  work[at + 1] = partial.y;
}

// Of a split that all subgroups are through with: what those with the same queries have, added up.
void write_rows(uint slot) {
  const uint stride = TILE_HEADS * PARTS * PART_QUERIES; // from one subgroup to the next that has these queries
  for (uint n = gl_LocalInvocationIndex; n < stride; n += N_INVOCATIONS) {
    const uint subgroup = n / PART_QUERIES, h = workgroup_index() % HEAD_TILES * TILE_HEADS + subgroup % TILE_HEADS;
    const uint t = subgroup / TILE_HEADS * PART_QUERIES + n % PART_QUERIES;
    if (t >= WINDOW || h >= GROUP) continue;
    float most = row_maximum[n], total = 0.0;
    UNROLLED for (uint i = 1; i < ENTRY_PARTS; i++) most = max(most, row_maximum[i * stride + n]);
    UNROLLED for (uint i = 0; i < ENTRY_PARTS; i++) total += row_sum[i * stride + n] * exp2(row_maximum[i * stride + n] - most);
    write_partial(h, t, slot, vec2(most, total));
  }
}

// Of splits that have no entry here.
void write_nothing(uint slot, uint end_slot) {
  const uint first = workgroup_index() % HEAD_TILES * TILE_HEADS, n_rows = min(TILE_HEADS, GROUP - first) * WINDOW;
  for (uint i = gl_LocalInvocationIndex; slot + i / n_rows < end_slot; i += N_INVOCATIONS)
    write_partial(first + i % n_rows / WINDOW, i % WINDOW, slot + i / n_rows, vec2(-1.0e38, 0.0));
}

void begin_sums() {
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    maximum[r] = SUM_MATRIX(-1.0e38);
    sum[r] = SUM_MATRIX(0.0);
  }
}

// The splits from that one to next_item, of one head.
void add_splits(uint split) {
  const uint first_split = head_word(head, HEAD_FIRST_SPLIT);
  const uint first = split - first_split, end_split = next_item - first_split; // in the head
  const uint slots = first_split + push.rows.segment * push.items_base;        // of its first split
  const uint begin = max(first * SPLIT_ENTRIES, entries_begin / STEP_ENTRIES * STEP_ENTRIES);
  const uint end = min(end_split * SPLIT_ENTRIES, entries_end);
  if (begin >= end) {
    write_nothing(slots + first, slots + end_split);
    return;
  }
  write_nothing(slots + first, slots + begin / SPLIT_ENTRIES);
  write_nothing(slots + (end - 1) / SPLIT_ENTRIES + 1, slots + end_split);
  begin_steps(begin, (end - begin + STEP_ENTRIES - 1) / STEP_ENTRIES);
  uint step = 0;
  for (uint of_head = begin / SPLIT_ENTRIES; of_head * SPLIT_ENTRIES < end; of_head++) {
    const uint end_step = min((of_head + 1) * SPLIT_ENTRIES - begin, n_steps * STEP_ENTRIES) / STEP_ENTRIES;
    begin_sums();
    for (; step < end_step; step++) {
      enter_step(step);
      multiply();
      hide_if_any(begin + step * STEP_ENTRIES);
      add_exponentials();
    }
    end_sums();
    barrier();
    write_rows(slots + of_head);
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint begin = push.first_item + workgroup_index() / HEAD_TILES * push.group_items;
  const uint end = min(begin + push.group_items, push.end_item);
  find_subgroup(workgroup_index() % HEAD_TILES);
  for (uint split = begin; split < end; split = next_item) {
    find_head(split, HEAD_FIRST_SPLIT);
    next_item = min(next_item, end);
    load_queries();
    add_splits(split);
  }
}
