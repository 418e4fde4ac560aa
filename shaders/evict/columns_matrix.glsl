// Sums along the columns of the scoring kernels' matrices, step by step. They go through shared memory, for nobody knows
// which invocation has what of a matrix.
#ifndef COLUMNS_MATRIX_GLSL
#define COLUMNS_MATRIX_GLSL

const uint COLUMNS = COLUMN_MATRICES * SIZE; // of a subgroup
const uint LANE_COLUMNS = (COLUMNS + SUBGROUP_SIZE - 1) / SUBGROUP_SIZE; // of an invocation

// One column after the other, each with room behind that keeps them in different banks.
const uint COLUMN_QUADS = SIZE / 4 + 1;
shared vec4 exchange[N_SUBGROUPS * COLUMNS * COLUMN_QUADS];
// Over a part's rows; of two steps.
shared float sums[2 * PARTS * TILE_HEADS * STEP_ENTRIES];

// The subgroup's column number i of this invocation.
#define LANE_COLUMN(i) ((i) * SUBGROUP_SIZE + gl_SubgroupInvocationID)

void put_columns(uint c, SUM_MATRIX columns) {
  coopMatStore(columns, exchange, (gl_SubgroupID * COLUMNS + c * SIZE) * COLUMN_QUADS, COLUMN_QUADS,
               gl_CooperativeMatrixLayoutColumnMajor);
}

// Of columns that the subgroup has put there.
float sum_column(uint column) {
  vec4 total = vec4(0.0);
  UNROLLED for (uint q = 0; q < SIZE / 4; q++) total += exchange[(gl_SubgroupID * COLUMNS + column) * COLUMN_QUADS + q];
  return (total.x + total.y) + (total.z + total.w);
}

void leave_sum(uint step, uint column, float sum) {
  const uint of_head = step % 2 * TILE_HEADS * PARTS + gl_SubgroupID % (TILE_HEADS * PARTS);
  sums[of_head * STEP_ENTRIES + entry_part * COLUMNS + column] = sum;
}

// Of an entry of a step that all subgroups are through with; h: of the tile's heads.
float sum_of_parts(uint step, uint h, uint entry) {
  float total = 0.0;
  UNROLLED for (uint p = 0; p < PARTS; p++) total += sums[((step % 2 * PARTS + p) * TILE_HEADS + h) * STEP_ENTRIES + entry];
  return total;
}

#endif
