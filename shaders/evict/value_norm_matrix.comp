#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// Projected-value norms on cooperative matrices, times the attention norms, mean over the group: the raw LaProx score.
// Every subgroup keeps a query head's factor, or its part of it, in registers, and the values pass by through shared memory.
// One workgroup per share of the tiles.
#include "../evict/layout.glsl"
#include "repeat.glsl"

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;
  uint first_head, end_head;
  uint first_item, end_item; // tiles, in the layer
  RowLayout rows; // of V
  uint prepared;
  uint attention;  // word of the attention part in work[]
  uint items_base; // tile that the attention part begins with
  uint raw;        // word of the layer's raw scores in work[]
  uint layer_block;
} push;

#include "../evict/group_matrix.glsl"
#define EXCHANGED COLUMN_MATRICES
#include "../evict/columns_matrix.glsl"

// Rows of products that are found at once: each waits for its sum.
#define STRIP_ROWS 4
// The factor's rows of matrices are dealt out to the parts forwards and backwards in turn: all have as much of the triangle.
#define TURN(n)          ((n) % (2 * PARTS))
#define IS_OF_PART(p, n) ((TURN(n) < PARTS ? TURN(n) : 2 * PARTS - 1 - TURN(n)) == p)

uint n_candidates, sinks, candidate; // the last is the first one of the workgroup's tiles
uint scores_at;                      // word of the head's scores in work[]
uint factor_at;                      // of this subgroup's head: four halves in work_halves[]
float factor_scale;

// Row by row of the part; what lies before the diagonal stays unused. Places that only code left out has are within the
// array too: compilers trip over others.
const uint N_MATRICES = (FACTOR_BLOCKS + PARTS - 1) / PARTS * FACTOR_BLOCKS;
HEAD_MATRIX factor[N_MATRICES];
#define MATRIX_AT(n, k) min((n) / PARTS * FACTOR_BLOCKS + (k), N_MATRICES - 1)

void find_candidates(uint first_tile) {
  const uint tile = first_tile - head_word(head, HEAD_FIRST_TILE);
  n_candidates = head_word(head, HEAD_N_CANDIDATES);
  sinks = head_word(head, HEAD_N_SINKS);
  candidate = tile * TILE_ENTRIES;
  scores_at = push.raw + (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES;
}

// ---- factors ----

// Matrices stay in registers where indices are literals; drivers that run in software take minutes for what is written out.
#ifdef ROLLED
#define EACH_STRIP(F)           [[dont_unroll]] for (uint s = 0; s * STRIP_ROWS < FACTOR_BLOCKS; s++) F(s)
#define EACH_STRIP_BACKWARDS(F) EACH_STRIP(F)
#define EACH_COLUMN(F, s)       [[dont_unroll]] for (uint k = 0; k < FACTOR_BLOCKS; k++) F(s, k)
#else
#define EACH_STRIP(F)           REPEAT_2(F)
#define EACH_STRIP_BACKWARDS(F) F(1) F(0)
#define EACH_COLUMN(F, s)       EACH_8(F, s)
#endif

#define LOAD_MATRIX(n, k)                                                                                            \
  if (n <= k && k < FACTOR_BLOCKS && IS_OF_PART(p, n))                                                               \
    load_head_matrix(factor_at + FACTOR_MATRIX_OF(n, k) * SIZE * SIZE / 4, factor[MATRIX_AT(n, k)]);

#define LOAD_COLUMN(s, k)                                                                                            \
  {                                                                                                                  \
    LOAD_MATRIX(s * STRIP_ROWS, k)                                                                                   \
    LOAD_MATRIX(s * STRIP_ROWS + 1, k)                                                                               \
    LOAD_MATRIX(s * STRIP_ROWS + 2, k)                                                                               \
    LOAD_MATRIX(s * STRIP_ROWS + 3, k)                                                                               \
  }

#define LOAD_STRIP(s) EACH_COLUMN(LOAD_COLUMN, s)

void load_part(uint p) {
  EACH_STRIP(LOAD_STRIP)
}

void load_factor() {
  const uint at = prepared_of(group_head);
  factor_at = (at + PREPARED_FACTOR) / 2;
  factor_scale = work[at + PREPARED_FACTOR_SCALE];
  if (part == 0) load_part(0);
  else if (part == 1) load_part(1);
  else if (part == 2) load_part(2);
  else load_part(3);
}

// Whether one of the group has more digits than f16.
bool factors_have_rests() {
  uint parts = 1;
  for (uint i = 0; i < GROUP; i++)
    parts = max(parts, work_words[prepared_of(i) + PREPARED_FACTOR_PARTS]);
  return parts > 1;
}

#define ADD_PRODUCT(s, i, k)                                                                                         \
  if (s * STRIP_ROWS + i <= k && IS_OF_PART(p, s * STRIP_ROWS + i))                                                  \
    products[i] = coopMatMulAdd(factor[MATRIX_AT(s * STRIP_ROWS + i, k)], b, products[i]);

#define ADD_COLUMN(s, k)                                                                                             \
  if (k >= s * STRIP_ROWS && k < FACTOR_BLOCKS) {                                                                    \
    load_entry_matrix(c, k, b);                                                                                      \
    ADD_PRODUCT(s, 0, k)                                                                                             \
    ADD_PRODUCT(s, 1, k)                                                                                             \
    ADD_PRODUCT(s, 2, k)                                                                                             \
    ADD_PRODUCT(s, 3, k)                                                                                             \
  }

// The rest of a factor is read again and again, for there is no room for it; most have none.
#define REST_OF(n, k) (FACTOR_HALVES + FACTOR_MATRIX_OF(n, max(n, k)) * SIZE * SIZE)
#define LOAD_REST(s, i)                                                                                              \
  if (s * STRIP_ROWS + i < FACTOR_BLOCKS && IS_OF_PART(p, s * STRIP_ROWS + i))                                       \
    load_head_matrix(factor_at + REST_OF(s * STRIP_ROWS + i, k) / 4, rest[i]);

#define ADD_REST(s, i)                                                                                               \
  if (s * STRIP_ROWS + i <= k && IS_OF_PART(p, s * STRIP_ROWS + i))                                                  \
    products[i] = coopMatMulAdd(rest[i], b, products[i]);

#define ADD_RESTS(s)                                                                                                 \
  [[dont_unroll]] for (uint k = s * STRIP_ROWS; k < FACTOR_BLOCKS; k++) {                                            \
    HEAD_MATRIX rest[STRIP_ROWS];                                                                                    \
    load_entry_matrix(c, k, b);                                                                                      \
    LOAD_REST(s, 0)                                                                                                  \
    LOAD_REST(s, 1)                                                                                                  \
    LOAD_REST(s, 2)                                                                                                  \
    LOAD_REST(s, 3)                                                                                                  \
    ADD_REST(s, 0)                                                                                                   \
    ADD_REST(s, 1)                                                                                                   \
    ADD_REST(s, 2)                                                                                                   \
    ADD_REST(s, 3)                                                                                                   \
  }

#define ADD_SQUARES(s, i)                                                                                            \
  if (IS_OF_PART(p, s * STRIP_ROWS + i))                                                                             \
    UNROLLED for (uint e = 0; e < squares.length(); e++) squares[e] = fma(products[i][e], products[i][e], squares[e]);

#define ADD_STRIP(s)                                                                                                 \
  if (s * STRIP_ROWS < FACTOR_BLOCKS) {                                                                              \
    UNROLLED for (uint i = 0; i < STRIP_ROWS; i++) products[i] = SUM_MATRIX(0.0);                                    \
    EACH_COLUMN(ADD_COLUMN, s)                                                                                       \
    if (has_rest) ADD_RESTS(s)                                                                                       \
    ADD_SQUARES(s, 0)                                                                                                \
    ADD_SQUARES(s, 1)                                                                                                \
    ADD_SQUARES(s, 2)                                                                                                \
    ADD_SQUARES(s, 3)                                                                                                \
  }

// Squares of products of part p of the factor with matrix c of the step, added up matrix by matrix.
void add_part(uint c, uint p, bool has_rest, inout SUM_MATRIX squares) {
  SUM_MATRIX products[STRIP_ROWS];
  ENTRY_MATRIX b;
  EACH_STRIP_BACKWARDS(ADD_STRIP)
}

void find_squares(uint c, bool has_rest, out SUM_MATRIX squares) {
  squares = SUM_MATRIX(0.0);
  if (part == 0) add_part(c, 0, has_rest, squares);
  else if (part == 1) add_part(c, 1, has_rest, squares);
  else if (part == 2) add_part(c, 2, has_rest, squares);
  else add_part(c, 3, has_rest, squares);
}

// ---- scores ----

const uint SCORES = (STEP_ENTRIES + SUBGROUP_SIZE - 1) / SUBGROUP_SIZE; // that an invocation writes

float attention[LANE_SLICES]; // to the invocation's columns

// Heads that the group has not stand for its last one. Of entries that are no candidates, anything; tile: of step 0.
float attention_of(uint tile, uint step, uint of_group, uint entry) {
  const uint at = (tile + step / TILE_STEPS - push.items_base) * GROUP + of_group;
  return work[push.attention + at * TILE_ENTRIES + step % TILE_STEPS * STEP_ENTRIES + entry];
}

void fetch_attention(uint tile, uint step) {
  UNROLLED for (uint i = 0; i < LANE_SLICES; i++)
    if (LANE_SLICE(i) < COLUMNS)
      attention[i] = attention_of(tile, step, group_head, entry_part * COLUMNS + LANE_SLICE(i));
}

// Of the step before. Where no other invocation has a part of the head's column, the head's share in the score; else squares.
void leave_norms(uint step) {
  UNROLLED for (uint i = 0; i < LANE_SLICES; i++)
    if (LANE_SLICE(i) < SLICES * COLUMNS) {
      const float square = sum_slice(LANE_SLICE(i));
      leave_sum(step, 0, LANE_SLICE(i), PARTS * SLICES == 1 ? sqrt(square) * (factor_scale * attention[i]) : square);
    }
  subgroupBarrier();
}

float share_of(uint tile, uint step, uint h, uint of_group, uint entry) {
  const float sum = sum_of_parts(step, h, entry);
  if (PARTS * SLICES == 1) return sum;
  return sqrt(sum) * (attention_of(tile, step, of_group, entry) * work[prepared_of(of_group) + PREPARED_FACTOR_SCALE]);
}

// Of a step that all subgroups are through with; they take turns. What the head's other tiles of heads have come to is there
// already.
void write_scores(uint tile, uint step, uint head_tile) {
  if (gl_SubgroupID != step % N_SUBGROUPS) return;
  UNROLLED for (uint i = 0; i < SCORES; i++) {
    const uint entry = i * SUBGROUP_SIZE + gl_SubgroupInvocationID, of_head = candidate + step * STEP_ENTRIES + entry;
    if (entry >= STEP_ENTRIES || of_head >= n_candidates || !has_row(sinks + of_head)) continue;
    float score = head_tile > 0 ? work[scores_at + of_head] : 0.0;
    UNROLLED for (uint h = 0; h < TILE_HEADS; h++) {
      const uint of_group = head_tile * TILE_HEADS + h;
      if (of_group < GROUP) score += share_of(tile, step, h, of_group, entry);
    }
    work[scores_at + of_head] = head_tile + 1 < HEAD_TILES ? score : score / float(GROUP);
  }
}

// Norms are found a step late and scores two: the barriers between steps are all that it takes, and nobody waits for columns
// on their way through shared memory.
void score_steps(uint first_tile, uint head_tile, bool has_rest) {
  begin_steps(sinks + candidate, (next_item - first_tile) * TILE_STEPS);
  for (uint step = 0; step < n_steps; step++) {
    enter_step(step);
    if (step > 0) leave_norms(step - 1);
    if (step > 1) write_scores(first_tile, step - 2, head_tile);
    fetch_attention(first_tile, step);
    UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
      SUM_MATRIX squares;
      find_squares(c, has_rest, squares);
      put_columns(c, squares);
      if (c == 0) fetch_step(step + 1);
    }
  }
  barrier();
  leave_norms(n_steps - 1);
  if (n_steps > 1) write_scores(first_tile, n_steps - 2, head_tile);
  barrier();
  write_scores(first_tile, n_steps - 1, head_tile);
}

void score_tiles(uint first_tile, uint head_tile) {
  find_subgroup(head_tile);
  load_factor();
  if (factors_have_rests()) score_steps(first_tile, head_tile, true);
  else score_steps(first_tile, head_tile, false);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  find_share(1);
  for (uint first_tile = next_item; first_tile < share_end; first_tile = next_item) {
    find_head(first_tile, HEAD_FIRST_TILE);
    find_candidates(first_tile);
    if (!has_rows(sinks + candidate, sinks + candidate + (next_item - first_tile) * TILE_ENTRIES)) continue;
    for (uint head_tile = 0; head_tile < HEAD_TILES; head_tile++) score_tiles(first_tile, head_tile);
  }
}
