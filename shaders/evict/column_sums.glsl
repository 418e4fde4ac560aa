// Sums of a matrix's columns, for the scoring kernels that add up squares: a subgroup's go through its own part of shared
// memory, for nobody knows which invocation has what of a matrix. The includer has what window_matrix.glsl has.
#ifndef COLUMN_SUMS_GLSL
#define COLUMN_SUMS_GLSL

// Of a subgroup: a matrix, column after column, each with room behind that keeps them in different banks.
const uint COLUMN_QUADS = SIZE / 4 + 1;
const uint EXCHANGE_QUADS = SIZE * COLUMN_QUADS;
shared vec4 exchange[N_SUBGROUPS * EXCHANGE_QUADS];
// Of squares, over a part's rows; of two steps.
shared float sums[2 * TILE_HEADS * PARTS * STEP_ENTRIES];

// To sums[to] and the following.
void sum_columns(SUM_MATRIX squares, uint to) {
  const uint base = gl_SubgroupID * EXCHANGE_QUADS;
  subgroupBarrier();
  coopMatStore(squares, exchange, base, COLUMN_QUADS, gl_CooperativeMatrixLayoutColumnMajor);
  subgroupBarrier();
  for (uint i = gl_SubgroupInvocationID; i < SIZE; i += SUBGROUP_SIZE) {
    vec4 total = vec4(0.0);
    UNROLLED for (uint q = 0; q < SIZE / 4; q++) total += exchange[base + i * COLUMN_QUADS + q];
    sums[to + i] = (total.x + total.y) + (total.z + total.w);
  }
}

#endif
