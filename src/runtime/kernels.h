/* kernels.h: the forward pass's kernels one by one. Activations are f32 rows; weights have the type of their
 * file. Nothing here puts a barrier between commands or around them, except where a function says so.
 *
 * Row lengths are multiples of 4. Ranges begin where bindings may (range_alignment), unless a function says
 * that any multiple of 16 bytes will do; their sizes are set here.
 */
#ifndef LPX_RUNTIME_KERNELS_H
#define LPX_RUNTIME_KERNELS_H

#include "vk/vk.h"

/* A matrix [n_rows, n_columns], rows contiguous, or a vector (n_rows 1), which is always F32. The buffer's
 * size is a multiple of 8 bytes. */
typedef struct lpx_weight {
  lpx_buffer buffer;
  laprox_dtype dtype;
  uint32_t n_rows, n_columns;
} lpx_weight;

#define LPX_N_DTYPES 5 /* laprox_dtype, with AUTO */

/* Zeroed = nothing. */
typedef struct lpx_kernels {
  laprox_context *context;
  laprox_dtype cache_dtype;
  lpx_pipeline embed[LPX_N_DTYPES], matmul[LPX_N_DTYPES], matvec[LPX_N_DTYPES]; /* by weight type */
  lpx_pipeline norm, norm_single, swiglu;                                       /* several rows; one */
  lpx_pipeline rotate, store; /* to f32 activations; to the cache */
} lpx_kernels;

/* `dtypes`: bit 1 << dtype for every weight type in use. cache_dtype: F16 or F32. */
laprox_result lpx_kernels_init(laprox_context *context, uint32_t dtypes, laprox_dtype cache_dtype,
                               lpx_kernels *out);

/* Rows of `table` for the n_tokens ids in `ids`, to out [n_tokens, n_columns], at any multiple of 16 bytes.
 */
void lpx_embed_append(lpx_program *program, const lpx_kernels *kernels, const lpx_weight *table,
                      laprox_buffer ids, uint32_t n_tokens, laprox_buffer out);

/* out = in / sqrt(mean(in^2) + epsilon) * weight for each row; `in` at any multiple of 16 bytes. */
void lpx_norm_append(lpx_program *program, const lpx_kernels *kernels, const lpx_weight *weight,
                     float epsilon, laprox_buffer in, uint32_t n_rows, laprox_buffer out);

/* out [n_rows, weight.n_rows] (+)= in [n_rows, weight.n_columns] W^T; `out` at any multiple of 4 bytes. Marks
 * a step before a dispatch that would make one too long. */
void lpx_matmul_append(lpx_program *program, const lpx_kernels *kernels, const lpx_weight *weight,
                       laprox_buffer in, uint32_t n_rows, laprox_buffer out, bool accumulate);

/* gate = silu(gate) * up, n elements. */
void lpx_swiglu_append(lpx_program *program, const lpx_kernels *kernels, laprox_buffer gate, laprox_buffer up,
                       uint64_t n);

/* Rows of q, K or V: [n_rows, n_heads, head_dim]. */
typedef struct lpx_head_rows {
  laprox_buffer source;
  uint32_t n_rows, n_heads, head_dim;
  laprox_buffer turns; /* frequencies: head_dim / 2 turns per position as 64-bit fractions of a turn */
  uint32_t first_position;
  bool rotate;
} lpx_head_rows;

/* The same shape in f32. */
void lpx_rotate_append(lpx_program *program, const lpx_kernels *kernels, const lpx_head_rows *rows,
                       laprox_buffer out);
/* To rows [first_row, first_row + n_rows) of every head of a cache [n_heads, head_rows, head_dim], at any
 * multiple of 4 bytes. */
void lpx_store_append(lpx_program *program, const lpx_kernels *kernels, const lpx_head_rows *rows,
                      laprox_buffer cache, uint32_t head_rows, uint32_t first_row);

#endif
