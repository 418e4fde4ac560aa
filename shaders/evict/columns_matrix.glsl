// Sums along the columns of the scoring kernels' matrices, step by step. They go through shared memory, for nobody knows
// which invocation has what of a matrix.
#ifndef COLUMNS_MATRIX_GLSL
#define COLUMNS_MATRIX_GLSL

// The includer says how many of a subgroup's matrices go there at once: EXCHANGED. Their columns are cut in slices, so that
// all invocations have something to add up.
const uint COLUMNS = EXCHANGED * SIZE;
const uint MOST_SLICES = SUBGROUP_SIZE < COLUMNS ? 1 : SUBGROUP_SIZE / COLUMNS;
const uint SLICES = MOST_SLICES < SIZE / 4 ? MOST_SLICES : SIZE / 4;
const uint SLICE_QUADS = SIZE / 4 / SLICES;
const uint LANE_SLICES = (SLICES * COLUMNS + SUBGROUP_SIZE - 1) / SUBGROUP_SIZE; // an invocation's

// Of a subgroup: one column after the other, each with room behind that keeps them in different banks.
const uint COLUMN_QUADS = SIZE / 4 + 1;
shared vec4 exchange[N_SUBGROUPS * COLUMNS * COLUMN_QUADS];
// Of two steps' entries: over a slice of a part's rows.
shared float sums[2 * PARTS * TILE_HEADS * SLICES * STEP_ENTRIES];

// The invocation's slice number i.
#define LANE_SLICE(i) ((i) * SUBGROUP_SIZE + gl_SubgroupInvocationID)

void put_columns(uint c, SUM_MATRIX columns) {
  coopMatStore(columns, exchange, (gl_SubgroupID * COLUMNS + c % EXCHANGED * SIZE) * COLUMN_QUADS, COLUMN_QUADS,
               gl_CooperativeMatrixLayoutColumnMajor);
}

// Of a slice that the subgroup has put there.
float sum_slice(uint slice) {
  const uint at = (gl_SubgroupID * COLUMNS + slice % COLUMNS) * COLUMN_QUADS + slice / COLUMNS * SLICE_QUADS;
  vec4 total = vec4(0.0);
  UNROLLED for (uint q = 0; q < SLICE_QUADS; q++) total += exchange[at + q];
  return (total.x + total.y) + (total.z + total.w);
}

// The sum of a slice, of matrices from c on.
void leave_sum(uint step, uint c, uint slice, float sum) {
  const uint of_head = step % 2 * TILE_HEADS * PARTS + gl_SubgroupID % (TILE_HEADS * PARTS);
  const uint entry = (entry_part * COLUMN_MATRICES + c) * SIZE + slice % COLUMNS;
  sums[(of_head * SLICES + slice / COLUMNS) * STEP_ENTRIES + entry] = sum;
}

// Of an entry of a step that all subgroups are through with; h: of the tile's heads.
float sum_of_parts(uint step, uint h, uint entry) {
  float total = 0.0;
  UNROLLED for (uint p = 0; p < PARTS; p++)
    UNROLLED for (uint s = 0; s < SLICES; s++)
      total += sums[(((step % 2 * PARTS + p) * TILE_HEADS + h) * SLICES + s) * STEP_ENTRIES + entry];
  return total;
}

#endif
