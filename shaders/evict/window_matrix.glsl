// Logits of the observation window on cooperative matrices: 64 cache entries a step, the queries of up to four query heads in
// registers. The subgroups of a head divide its queries, at most 32, and the step's entries.
#ifndef WINDOW_MATRIX_GLSL
#define WINDOW_MATRIX_GLSL

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 2) const uint WINDOW = 32;
layout(constant_id = 5) const uint SIZE = 16;        // of a matrix
layout(constant_id = 6) const uint SUBGROUP_SIZE = 32;
layout(local_size_x_id = 7, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 8) const uint N_INVOCATIONS = 128; // the same
layout(constant_id = 9) const uint PARTS = 1; // that a head's queries are divided into
layout(constant_id = 10) const uint HEADS_AT_ONCE = 4;

#include "../evict/matrix.glsl"

#define STEP_ENTRIES 64

const uint HEAD_TILES = (GROUP + HEADS_AT_ONCE - 1) / HEADS_AT_ONCE;
const uint TILE_HEADS = (GROUP + HEAD_TILES - 1) / HEAD_TILES;
const uint N_SUBGROUPS = N_INVOCATIONS / SUBGROUP_SIZE;
const uint ENTRY_PARTS = N_SUBGROUPS / TILE_HEADS / PARTS;
const uint ROW_MATRICES = QUERY_ROWS / SIZE / PARTS;
const uint DEPTH_MATRICES = HEAD_DIM / SIZE;
const uint COLUMN_MATRICES = STEP_ENTRIES / SIZE / ENTRY_PARTS;

layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
layout(set = 0, binding = 2) buffer Work { float work[]; };
layout(set = 0, binding = 2) readonly buffer WorkWords { uint work_words[]; };
layout(set = 0, binding = 2) readonly buffer WorkHalves { f16vec4 work_halves[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;           // word of the layer's head table in state[]
  uint first_head;      // of this dispatch
  uint end_head;
  uint first_item;      // tile or split of workgroup 0, in the layer
  uint end_item;
  uint group_items;     // of a workgroup
  RowLayout rows;       // of K
  uint prepared;        // word of the prepared operands in work[]
  uint softmax;         // word of (maximum, 1 / sum) in state[]
  uint out_offset;      // word of the output
  uint items_base;      // tile that the output begins with, or number of splits
} push;

uint workgroup_index() {
  return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
}

#define QUERY_MATRIX coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseA>
#define KEY_MATRIX   coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseB>
#define SUM_MATRIX   coopmat<float, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseAccumulator>

uint head, n_entries, next_item;
uint group_head; // of this subgroup, in the group; that of another subgroup where there is none left
uint entry_part, first_row; // of this subgroup: its entries of the step, and its first query
uint query_at, query_parts; // four halves in work_halves[]
float scale;

QUERY_MATRIX queries[ROW_MATRICES * DEPTH_MATRICES];
SUM_MATRIX logits[ROW_MATRICES * COLUMN_MATRICES];

#include "../evict/items.glsl"
#include "../evict/step_matrix.glsl"

// Finds the head that an item belongs to, HEAD_FIRST_TILE or HEAD_FIRST_SPLIT, and its entries.
void find_head(uint item, uint word) {
  head = head_of(item, word);
  next_item = head + 1 < push.end_head ? min(push.end_item, head_word(head + 1, word)) : push.end_item;
  n_entries = head_word(head, HEAD_N_ENTRIES);
  find_rows(head);
}

void load_queries() {
  const uint at = push.prepared + (head * GROUP + group_head) * PREPARED_WORDS;
  query_parts = work_words[at + PREPARED_QUERY_PARTS];
  scale = work[at + PREPARED_QUERY_SCALE];
  query_at = (at + PREPARED_QUERY) / 2 + first_row * HEAD_DIM / 4;
  UNROLLED for (uint i = 0; i < ROW_MATRICES * DEPTH_MATRICES; i++)
    coopMatLoad(queries[i], work_halves, query_at + i * SIZE * SIZE / 4, SIZE / 4, gl_CooperativeMatrixLayoutRowMajor);
}

void load_key_matrix(uint c, uint k, out KEY_MATRIX b) {
  coopMatLoad(b, staged, (entry_part * COLUMN_MATRICES + c) * SIZE * ROW_STRIDE + k * SIZE / 8, ROW_STRIDE,
              gl_CooperativeMatrixLayoutColumnMajor);
}

// Logits of this subgroup's queries and entries, before the scale. What f16 leaves of queries is read again and
// again, for there is no room for it; most have nothing left.
void multiply() {
  KEY_MATRIX b;
  UNROLLED for (uint i = 0; i < ROW_MATRICES * COLUMN_MATRICES; i++) logits[i] = SUM_MATRIX(0.0);
  UNROLLED for (uint k = 0; k < DEPTH_MATRICES; k++)
    UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
      load_key_matrix(c, k, b);
      UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
        logits[r * COLUMN_MATRICES + c] =
            coopMatMulAdd(queries[r * DEPTH_MATRICES + k], b, logits[r * COLUMN_MATRICES + c]);
    }
  if (query_parts == 1) return;
  UNROLLED for (uint k = 0; k < DEPTH_MATRICES; k++) {
    QUERY_MATRIX rest[ROW_MATRICES];
    ONE_AFTER_ANOTHER
    UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
      coopMatLoad(rest[r], work_halves, query_at + (QUERY_HALVES + (r * DEPTH_MATRICES + k) * SIZE * SIZE) / 4, SIZE / 4,
                  gl_CooperativeMatrixLayoutRowMajor);
    UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
      load_key_matrix(c, k, b);
      UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
        logits[r * COLUMN_MATRICES + c] = coopMatMulAdd(rest[r], b, logits[r * COLUMN_MATRICES + c]);
    }
  }
}

void find_subgroup() {
  const uint head_tile = workgroup_index() % HEAD_TILES;
  group_head = min(head_tile * TILE_HEADS + gl_SubgroupID % TILE_HEADS, GROUP - 1);
  first_row = gl_SubgroupID / TILE_HEADS % PARTS * (QUERY_ROWS / PARTS);
  entry_part = gl_SubgroupID / TILE_HEADS / PARTS;
}

#endif
