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

// Of a subgroup: maxima and sums, row after row of a matrix, each with room behind that keeps them in different banks.
const uint LINE_QUADS = SIZE / 4 + 1;
const uint MATRIX_QUADS = SIZE * LINE_QUADS;
const uint ROWS_QUADS = N_SUBGROUPS * 2 * MATRIX_QUADS, VISIBLE_QUADS = QUERY_ROWS * STEP_ENTRIES / 4;
shared vec4 exchange[ROWS_QUADS < VISIBLE_QUADS ? VISIBLE_QUADS : ROWS_QUADS];

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
}

// A maximum is good enough while no logit is so much above it: the sum stays far from overflow. Plus infinity and what is no
// number make the sum none, minus infinity adds 0.
#define SLACK 16.0

float highest_logit(uint r, uint e) {
  float highest = logits[r * COLUMN_MATRICES][e];
  UNROLLED for (uint c = 1; c < COLUMN_MATRICES; c++) highest = max(highest, logits[r * COLUMN_MATRICES + c][e]);
  return highest;
}

void raise_maxima() {
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
}

void add_exponentials() {
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    UNROLLED for (uint e = 0; e < maximum[r].length(); e++) {
      float added = 0.0;
      UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++)
        added += exp2(fma(logits[r * COLUMN_MATRICES + c][e], scale, -maximum[r][e]));
      sum[r][e] += added;
    }
}

// What subgroups with the same queries have in row n of their matrices, added up: maximum, and sum of exponentials.
vec2 merged_row(uint n) {
  const uint stride = TILE_HEADS * PARTS * 2 * MATRIX_QUADS; // from one subgroup to the next that has these queries
  const uint at = n / SIZE * 2 * MATRIX_QUADS + n % SIZE * LINE_QUADS;
  vec4 highest = vec4(-1.0e38), total = vec4(0.0);
  for (uint i = 0; i < ENTRY_PARTS * SIZE / 4; i++)
    highest = max(highest, exchange[i / (SIZE / 4) * stride + at + i % (SIZE / 4)]);
  const float most = max(max(highest.x, highest.y), max(highest.z, highest.w));
  for (uint i = 0; i < ENTRY_PARTS * SIZE / 4; i++) {
    const uint from = i / (SIZE / 4) * stride + at + i % (SIZE / 4);
    total += exchange[from + MATRIX_QUADS] * exp2(exchange[from] - most);
  }
  return vec2(most, (total.x + total.y) + (total.z + total.w));
}

void write_partial(uint of_group, uint t, uint slot, vec2 partial) {
  const uint at = push.out_offset + ((slot * GROUP + of_group) * WINDOW + t) * 2;
  work[at] = partial.x;
  work[at + 1] = partial.y;
}

// What a split has come to.
void write_rows(uint slot) {
  const uint first = workgroup_index() % HEAD_TILES * TILE_HEADS, at = gl_SubgroupID * 2 * MATRIX_QUADS;
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    barrier();
    coopMatStore(maximum[r], exchange, at, LINE_QUADS, gl_CooperativeMatrixLayoutRowMajor);
    coopMatStore(sum[r], exchange, at + MATRIX_QUADS, LINE_QUADS, gl_CooperativeMatrixLayoutRowMajor);
    barrier();
    for (uint n = gl_LocalInvocationIndex; n < TILE_HEADS * PARTS * SIZE; n += N_INVOCATIONS) {
      const uint subgroup = n / SIZE, of_group = first + subgroup % TILE_HEADS;
      const uint t = subgroup / TILE_HEADS * (QUERY_ROWS / PARTS) + r * SIZE + n % SIZE;
      if (t < WINDOW && of_group < GROUP) write_partial(of_group, t, slot, merged_row(n));
    }
  }
}

// Of splits that have no entry here.
void write_nothing(uint slot, uint end_slot) {
  const uint first = workgroup_index() % HEAD_TILES * TILE_HEADS, n_rows = min(TILE_HEADS, GROUP - first) * WINDOW;
  for (uint i = gl_LocalInvocationIndex; slot + i / n_rows < end_slot; i += N_INVOCATIONS)
    write_partial(first + i % n_rows / WINDOW, i % WINDOW, slot + i / n_rows, vec2(-1.0e38, 0.0));
}

void begin_split() {
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
  begin_split();
  for (uint step = 0; step < n_steps; step++) {
    const uint first_entry = begin + step * STEP_ENTRIES, next_entry = first_entry + STEP_ENTRIES;
    enter_step(step);
    multiply();
    if (first_entry < entries_begin || next_entry > min(entries_end, n_entries - WINDOW)) hide(first_entry);
    raise_maxima();
    add_exponentials();
    if (next_entry % SPLIT_ENTRIES != 0 && step + 1 < n_steps) continue;
    write_rows(slots + first_entry / SPLIT_ENTRIES);
    begin_split();
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint begin = push.first_item + workgroup_index() / HEAD_TILES * push.group_items;
  const uint end = min(begin + push.group_items, push.end_item);
  find_subgroup();
  for (uint split = begin; split < end; split = next_item) {
    find_head(split, HEAD_FIRST_SPLIT);
    next_item = min(next_item, end);
    load_queries();
    add_splits(split);
  }
}
