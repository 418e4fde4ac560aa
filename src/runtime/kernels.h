/* kernels.h: the forward pass's kernels one by one. Activations are f32 rows; weights have the type of their
 * file. Nothing here puts a barrier between commands or around them, except where a function says so.
 *
 * Row lengths are multiples of 4. Ranges begin where bindings may (range_alignment), unless a function says
 * that any multiple of 16 bytes will do; their sizes are set here.
 */
#ifndef LPX_RUNTIME_KERNELS_H
#define LPX_RUNTIME_KERNELS_H

#include "vk/vk.h"

/* A matrix [n_rows, n_columns] with rows of lpx_weight_row_bytes, or a vector (n_rows 1), which is always F32
 * and has no padding. */
typedef struct lpx_weight {
  lpx_buffer buffer;
  laprox_dtype dtype;
  uint32_t n_rows, n_columns;
} lpx_weight;

/* Bytes from row to row: whole vectors of 16 bytes, with zeros behind the row. A row of Q8_0 is first all its
 * numbers and then all its scales, so that both can be loaded as vectors. */
uint64_t lpx_weight_row_bytes(laprox_dtype dtype, uint32_t n_columns);
/* Rows as a file has them (laprox_dtype_bytes apart) to rows as above. */
void lpx_weight_pack(laprox_dtype dtype, uint32_t n_columns, uint32_t n_rows, const uint8_t *from,
                     uint8_t *to);

#define LPX_MAX_PARTS 3

/* A matrix of which several tensors are the rows: one part, where they are of one type. */
typedef struct lpx_matrix {
  lpx_weight parts[LPX_MAX_PARTS];
  uint32_t n_parts, n_rows, n_columns;
} lpx_matrix;

#define LPX_N_DTYPES 5 /* laprox_dtype, with AUTO */

/* How a product with a single row is shared out: see matvec.comp. */
typedef struct lpx_matvec {
  lpx_pipeline plain, normed, gated; /* gated: normed and with SwiGLU */
} lpx_matvec;

/* Outputs of a workgroup of matmul.comp or matmul_matrix.comp. */
typedef struct lpx_tile {
  uint32_t rows, columns; /* 0: not on this device */
} lpx_tile;

/* Tiles of matmul_matrix.comp, from the highest to the lowest. */
#define LPX_N_MATRIX_TILES 4

/* Zeroed = nothing. */
typedef struct lpx_kernels {
  laprox_context *context;
  laprox_dtype cache_dtype;
  lpx_pipeline embed[LPX_N_DTYPES], matmul[LPX_N_DTYPES]; /* by weight type */
  lpx_tile matmul_tile;
  /* Products of several rows on cooperative matrices, f16 but for the sums; without pipelines where there are none. */
  lpx_pipeline matmul_matrix[LPX_N_DTYPES][LPX_N_MATRIX_TILES];
  lpx_tile matrix_tiles[LPX_N_MATRIX_TILES];
  lpx_pipeline halve; /* for these products' input */
  lpx_matvec matvec[LPX_N_DTYPES];
  uint32_t matvec_columns;                      /* of a workgroup */
  lpx_pipeline norm, norm_single, swiglu, rope; /* norm: several rows; one */
} lpx_kernels;

/* Whether lpx_kernels_init takes products on matrices, for weights that aren't F32, on that device and beside that type of
 * cache. */
bool lpx_kernels_want_matrix(const laprox_context *context, laprox_dtype cache_dtype);
/* Products of type `dtype` on matrices whatever they are worth; UNSUPPORTED where the device can't. */
laprox_result lpx_kernels_use_matrix(lpx_kernels *kernels, laprox_dtype dtype);

/* `dtypes`: bit 1 << dtype for every weight type in use. cache_dtype: F16, F32, Q8_0 or Q4_0. */
laprox_result lpx_kernels_init(laprox_context *context, uint32_t dtypes, laprox_dtype cache_dtype,
                               lpx_kernels *out);

/* Rows of `table` for the n_tokens ids in `ids`, to out [n_tokens, n_columns], at any multiple of 16 bytes.
 */
void lpx_embed_append(lpx_program *program, const lpx_kernels *kernels, const lpx_weight *table,
                      laprox_buffer ids, uint32_t n_tokens, laprox_buffer out);

/* out = in / sqrt(mean(in^2) + epsilon) * weight for each row; `in` at any multiple of 16 bytes. */
void lpx_norm_append(lpx_program *program, const lpx_kernels *kernels, const lpx_weight *weight,
                     float epsilon, laprox_buffer in, uint32_t n_rows, laprox_buffer out);

/* out [n_rows, matrix.n_rows] (+)= in [n_rows, matrix.n_columns] W^T. */
typedef struct lpx_linear {
  const lpx_matrix *matrix;
  laprox_buffer in;
  uint32_t input_stride; /* floats from row to row, a multiple of 4; 0: n_columns */
  uint32_t n_rows;
  laprox_buffer out; /* at any multiple of 4 bytes */
  /* lpx_linear_halves_bytes, worthless before and after; for several rows where products are on matrices */
  laprox_buffer halves;
  bool accumulate;
  const lpx_weight *norm; /* NULL, or of a single row: it is normalised first */
  float epsilon;
  /* With norm, where lpx_linear_can_gate: the matrix's rows are gates and then as many values, and
   * out [matrix.n_rows / 2] = silu(gates) * values. */
  bool gated;
} lpx_linear;

/* Whether gates and values are of one type and fit one binding. */
bool lpx_linear_can_gate(const lpx_kernels *kernels, const lpx_matrix *matrix);

/* Room for rows of input as halves. */
uint64_t lpx_linear_halves_bytes(uint32_t n_rows, uint32_t n_columns);

/* Marks a step before a dispatch that would make one too long. With barriers between rounding the input and products on
 * matrices. */
void lpx_linear_append(lpx_program *program, const lpx_kernels *kernels, const lpx_linear *product);

/* Rows of gates and as many values: gates = silu(gates) * values. */
void lpx_swiglu_append(lpx_program *program, const lpx_kernels *kernels, laprox_buffer rows, uint32_t n_rows,
                       uint32_t n_gates);

/* What rope.comp finds in front of the rows of a decoded token. */
typedef struct lpx_token_state {
  uint32_t token, position, tail_row, ring_row;
} lpx_token_state;

/* Projections to be rotated and stored: rows [n_heads queries, n_kv_heads K, n_kv_heads V], f32, behind
 * lpx_rope_header_bytes with a token's state and then the frequencies: head_dim / 2 turns per position as
 * 64-bit fractions of a turn. */
typedef struct lpx_rope {
  const laprox_shape *shape;
  laprox_buffer rows; /* with the header */
  uint32_t n_rows;
  bool with_queries;
  const lpx_token_state *state; /* NULL: the one in the header */
  laprox_buffer key, value;     /* [n_kv_heads, head_rows, head_dim], from row state.tail_row on */
  uint32_t head_rows;
  /* Zeroed, or f32 [n, n_heads, head_dim] and no more: queries from row `query_first` on, at most n, go to rows
   * state.ring_row … and then from 0 on. */
  laprox_buffer ring;
  uint32_t query_first;
} lpx_rope;

VkDeviceSize lpx_rope_header_bytes(const laprox_shape *shape);
void lpx_rope_append(lpx_program *program, const lpx_kernels *kernels, const lpx_rope *rope);

#endif
