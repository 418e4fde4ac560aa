#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// First pass of the observation-window attention on cooperative matrices: what a window query's exponentials add up to in
// a split. They are taken from a level, the query's highest logit in the split's first step: any does that keeps the sum in
// a float's range. Where it doesn't, the split is gone through for the highest logit of all, and then for the sum again.
// One workgroup per (share of the splits, up to four query heads).
#include "finite.glsl"
#include "../evict/layout.glsl"
#include "../evict/window_matrix.glsl"

#define MINUS_INFINITY uintBitsToFloat(0xff800000u)
#define LOWEST         -1.0e38
#define LARGE_SUM      1.0e+18 // far from overflow, when other splits' are added too

// Rounds of a split; mostly the first one is all.
#define SUMS_BY_FIRST_STEP 0
#define HIGHEST_OF_ALL     1
#define SUMS_AGAIN         2

// Of a subgroup: a matrix row after row, each with room behind that keeps them in different banks.
const uint LINE_QUADS = SIZE / 4 + 1;
const uint MATRIX_QUADS = SIZE * LINE_QUADS;
const uint ROWS_QUADS = N_SUBGROUPS * MATRIX_QUADS, VISIBLE_QUADS = QUERY_ROWS * STEP_ENTRIES / 4;
shared vec4 exchange[ROWS_QUADS < VISIBLE_QUADS ? VISIBLE_QUADS : ROWS_QUADS];
// Of a subgroup's queries in a split: level, and sum of exponentials.
const uint PART_QUERIES = QUERY_ROWS / PARTS;
shared float row_level[N_SUBGROUPS * PART_QUERIES], row_sum[N_SUBGROUPS * PART_QUERIES];
shared uint n_larger;

// What is gathered of a split: highest logits or sums, of the columns that a matrix element meets.
SUM_MATRIX gathered[ROW_MATRICES];

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

bool has_hidden(uint first_entry) {
  return first_entry < entries_begin || first_entry + STEP_ENTRIES > min(entries_end, n_entries - WINDOW);
}

void gather_highest() {
  UNROLLED for (uint i = 0; i < ROW_MATRICES * COLUMN_MATRICES; i++)
    UNROLLED for (uint e = 0; e < gathered[0].length(); e++)
      gathered[i / COLUMN_MATRICES][e] = max(gathered[i / COLUMN_MATRICES][e], logits[i][e] * scale);
}

// Levels are read again in every step, which costs less than registers for them.
void gather_exponentials() {
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    SUM_MATRIX level; // the same in all columns
    coopMatLoad(level, row_level, gl_SubgroupID * PART_QUERIES + r * SIZE, 0, gl_CooperativeMatrixLayoutColumnMajor);
    UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++)
      UNROLLED for (uint e = 0; e < level.length(); e++)
        gathered[r][e] += exp2(fma(logits[r * COLUMN_MATRICES + c][e], scale, -level[e]));
  }
}

void gather_from(float value) {
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) gathered[r] = SUM_MATRIX(value);
}

// Makes levels of the highest logits; sums come next.
void set_levels() {
  const uint at = gl_SubgroupID * MATRIX_QUADS;
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    subgroupBarrier();
    coopMatStore(gathered[r], exchange, at, LINE_QUADS, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    for (uint i = gl_SubgroupInvocationID; i < SIZE; i += SUBGROUP_SIZE) {
      vec4 highest = vec4(LOWEST);
      UNROLLED for (uint q = 0; q < SIZE / 4; q++) highest = max(highest, exchange[at + i * LINE_QUADS + q]);
      row_level[gl_SubgroupID * PART_QUERIES + r * SIZE + i] = max(max(highest.x, highest.y), max(highest.z, highest.w));
    }
  }
  subgroupBarrier();
  gather_from(0.0);
}

// Leaves the sums in shared memory; every subgroup its own.
void set_sums() {
  const uint at = gl_SubgroupID * MATRIX_QUADS;
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    subgroupBarrier();
    coopMatStore(gathered[r], exchange, at, LINE_QUADS, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    for (uint i = gl_SubgroupInvocationID; i < SIZE; i += SUBGROUP_SIZE) {
      vec4 total = vec4(0.0);
      UNROLLED for (uint q = 0; q < SIZE / 4; q++) total += exchange[at + i * LINE_QUADS + q];
      row_sum[gl_SubgroupID * PART_QUERIES + r * SIZE + i] = (total.x + total.y) + (total.z + total.w);
    }
  }
}

// Whether all sums are numbers and not too large, the same in the whole workgroup. None is too small: the level's own entry
// is in it, unless a query sees nothing.
bool sums_are_in_range() {
  if (gl_LocalInvocationIndex == 0) n_larger = 0;
  barrier();
  for (uint n = gl_LocalInvocationIndex; n < N_SUBGROUPS * PART_QUERIES; n += N_INVOCATIONS)
    if (!(row_sum[n] <= LARGE_SUM)) atomicAdd(n_larger, 1);
  barrier();
  return n_larger == 0;
}

// What most steps are. Without a branch between them, compilers let exponentials begin before the last products.
void add_plain_step() {
  multiply_high_parts();
  gather_exponentials();
}

void add_step(uint round, uint first_entry, bool sets_levels) {
  multiply();
  if (has_hidden(first_entry)) hide(first_entry);
  if (sets_levels || round == HIGHEST_OF_ALL) gather_highest();
  if (sets_levels) set_levels();
  if (round != HIGHEST_OF_ALL) gather_exponentials();
}

// Steps [first_step, end_step) are a split's.
void add_split(uint first_step, uint end_step) {
  gather_from(LOWEST);
  [[dont_unroll]] for (uint round = SUMS_BY_FIRST_STEP; round <= SUMS_AGAIN; round++) {
    if (round > SUMS_BY_FIRST_STEP) fetch_step(first_step);
    for (uint step = first_step; step < end_step; step++) {
      const uint first_entry = steps_begin + step * STEP_ENTRIES;
      const bool sets_levels = round == SUMS_BY_FIRST_STEP && step == first_step;
      enter_step(step);
      fetch_step(step + 1);
      if (sets_levels || round == HIGHEST_OF_ALL || queries_have_rests() || has_hidden(first_entry))
        add_step(round, first_entry, sets_levels);
      else add_plain_step();
    }
    if (round == HIGHEST_OF_ALL) {
      set_levels();
      continue;
    }
    set_sums();
    if (sums_are_in_range()) break;
    gather_from(LOWEST);
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
    float most = row_level[n], total = 0.0;
    UNROLLED for (uint i = 1; i < ENTRY_PARTS; i++) most = max(most, row_level[i * stride + n]);
    UNROLLED for (uint i = 0; i < ENTRY_PARTS; i++) total += row_sum[i * stride + n] * exp2(row_level[i * stride + n] - most);
    write_partial(h, t, slot, vec2(most, total));
  }
}

// Of splits that have no entry here.
void write_nothing(uint slot, uint end_slot) {
  const uint first = workgroup_index() % HEAD_TILES * TILE_HEADS, n_rows = min(TILE_HEADS, GROUP - first) * WINDOW;
  for (uint i = gl_LocalInvocationIndex; slot + i / n_rows < end_slot; i += N_INVOCATIONS)
    write_partial(first + i % n_rows / WINDOW, i % WINDOW, slot + i / n_rows, vec2(LOWEST, 0.0));
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
    add_split(step, end_step);
    step = end_step;
    write_rows(slots + of_head);
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  find_share(HEAD_TILES);
  find_subgroup(workgroup_index() % HEAD_TILES);
  for (uint split = next_item; split < share_end; split = next_item) {
    find_head(split, HEAD_FIRST_SPLIT);
    load_queries();
    add_splits(split);
  }
}
