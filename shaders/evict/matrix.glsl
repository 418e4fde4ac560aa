// What the scoring kernels on cooperative matrices share. Elements of a matrix are spread over the subgroup in an unknown
// way, so that everything is done element by element, and sums along rows or columns go through shared memory.
//
// matrix_prepare.comp lays the operands that are the same for all of the cache into work[], in f16 with the rounding left
// over in a second part, where there is any: per query head PREPARED_WORDS words, which begin with the four below.
#ifndef MATRIX_GLSL
#define MATRIX_GLSL

// Matrices stay in registers where loops over them are written out; drivers that run in software take minutes for that.
#ifdef ROLLED
#define UNROLLED [[dont_unroll]]
#else
#define UNROLLED [[unroll]]
#endif

// Keeps a compiler from reading all operands before it multiplies the first. Not for drivers in software, which may take it
// for a barrier of the workgroup where subgroups have gone different ways.
#ifdef ROLLED
#define ONE_AFTER_ANOTHER
#else
#define ONE_AFTER_ANOTHER subgroupBarrier();
#endif

#define PREPARED_QUERY_PARTS  0 // 1, or 2 where a query has more digits than f16
#define PREPARED_FACTOR_PARTS 1
#define PREPARED_QUERY_SCALE  2 // of the logits, includes log2 e
#define PREPARED_FACTOR_SCALE 3
#define PREPARED_QUERY        4

#define QUERY_ROWS 32 // of a head

// The matrices of the factor's upper triangle, row after row of them, each from the diagonal on.
const uint FACTOR_BLOCKS = HEAD_DIM / SIZE;
#define FACTOR_MATRIX_OF(row, column) ((row) * FACTOR_BLOCKS - (row) * ((row) + 1) / 2 + (column))
const uint FACTOR_HALVES = FACTOR_BLOCKS * (FACTOR_BLOCKS + 1) / 2 * SIZE * SIZE;
const uint QUERY_HALVES = QUERY_ROWS * HEAD_DIM;
const uint PREPARED_FACTOR = PREPARED_QUERY + QUERY_HALVES; // both parts
const uint PREPARED_WORDS = PREPARED_FACTOR + FACTOR_HALVES;

#endif
