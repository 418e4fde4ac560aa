// Logits of the observation window on cooperative matrices: the queries of up to four query heads, at most 32 of each, stay
// in registers.
#ifndef WINDOW_MATRIX_GLSL
#define WINDOW_MATRIX_GLSL

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;           // word of the layer's head table in state[]
  uint first_head;      // of this dispatch
  uint end_head;
  uint first_item;      // tiles or splits, in the layer
  uint end_item;
  RowLayout rows;       // of K
  uint prepared;        // word of the prepared operands in work[]
  uint softmax;         // word of (maximum, 1 / sum) in state[]
  uint out_offset;      // word of the output
  uint items_base;      // tile that the output begins with, or number of splits
} push;

#include "../evict/group_matrix.glsl"

const uint ROW_MATRICES = QUERY_ROWS / SIZE / PARTS;

uint first_row;             // of this subgroup: its first query
uint query_at, query_parts; // four halves in work_halves[]
float scale;

HEAD_MATRIX queries[ROW_MATRICES * DEPTH_MATRICES];
SUM_MATRIX logits[ROW_MATRICES * COLUMN_MATRICES];

// A word by way of shared memory. Compilers may put off reading it from a buffer till the loop over steps, and then every
// step waits there for all that is on its way.
shared uint settled_words[N_SUBGROUPS];

uint settled(uint word) {
  subgroupBarrier();
  if (gl_SubgroupInvocationID == 0) settled_words[gl_SubgroupID] = word;
  subgroupBarrier();
  return settled_words[gl_SubgroupID];
}

void load_queries() {
  const uint at = prepared_of(group_head);
  query_parts = settled(work_words[at + PREPARED_QUERY_PARTS]);
  scale = uintBitsToFloat(settled(work_words[at + PREPARED_QUERY_SCALE]));
  first_row = part * (QUERY_ROWS / PARTS);
  query_at = (at + PREPARED_QUERY) / 2 + first_row * HEAD_DIM / 4;
  UNROLLED for (uint i = 0; i < ROW_MATRICES * DEPTH_MATRICES; i++)
    load_head_matrix(query_at + i * SIZE * SIZE / 4, queries[i]);
}

// Logits of this subgroup's queries and entries, before the scale and without what f16 leaves of queries.
void multiply_high_parts() {
  ENTRY_MATRIX b;
  UNROLLED for (uint i = 0; i < ROW_MATRICES * COLUMN_MATRICES; i++) logits[i] = SUM_MATRIX(0.0);
  UNROLLED for (uint k = 0; k < DEPTH_MATRICES; k++)
    UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
      load_entry_matrix(c, k, b);
      UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
        logits[r * COLUMN_MATRICES + c] =
            coopMatMulAdd(queries[r * DEPTH_MATRICES + k], b, logits[r * COLUMN_MATRICES + c]);
    }
}

// That is read again and again, for there is no room for it.
void add_rests() {
  ENTRY_MATRIX b;
  UNROLLED for (uint k = 0; k < DEPTH_MATRICES; k++) {
    HEAD_MATRIX rest[ROW_MATRICES];
    ONE_AFTER_ANOTHER
    UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
      load_head_matrix(query_at + (QUERY_HALVES + (r * DEPTH_MATRICES + k) * SIZE * SIZE) / 4, rest[r]);
    UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
      load_entry_matrix(c, k, b);
      UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
        logits[r * COLUMN_MATRICES + c] = coopMatMulAdd(rest[r], b, logits[r * COLUMN_MATRICES + c]);
    }
  }
}

bool queries_have_rests() {
  return query_parts > 1;
}

void multiply() {
  multiply_high_parts();
  if (queries_have_rests()) add_rests();
}

#endif
