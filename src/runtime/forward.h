/* forward.h: a model's forward pass as commands of a program: token embedding, layers, logits.
 *
 * Rows of hidden states are f32 [rows, model_dim] in a buffer of the caller. A layer reads and writes them in
 * place and appends the chunk's K and V to a dense stretch of the caller's cache. Every function begins and
 * ends with a barrier, marks steps, and leaves errors to lpx_program_finish_building.
 */
#ifndef LPX_RUNTIME_FORWARD_H
#define LPX_RUNTIME_FORWARD_H

#include "attention/attention.h"
#include "runtime/model.h"

/* Pipelines and activations of one model and cache type. Only one program that uses it may be running. */
typedef struct lpx_forward {
  const laprox_model *model;
  laprox_context *context;
  uint32_t chunk;       /* rows at most */
  uint32_t max_entries; /* of a KV head's cache, in decode */
  lpx_attention attention;
  lpx_kernels kernels;
  /* projected: behind a header, see lpx_rope; halves: a product's input, where there are products on matrices; scratch:
   * tables of all layers, then partial results */
  lpx_buffer ids, norm, projected, attended, gate_up, halves, scratch;
} lpx_forward;

/* chunk: rows at most, at least 1. max_entries: entries of a KV head at most, those of the chunk included. */
laprox_result lpx_forward_init(const laprox_model *model, laprox_dtype cache_dtype, uint32_t chunk,
                               uint32_t max_entries, lpx_forward *out);
void lpx_forward_finish(lpx_forward *forward);
/* Device memory that lpx_forward_init takes. */
uint64_t lpx_forward_bytes(const laprox_model *model, laprox_dtype cache_dtype, uint32_t chunk,
                           uint32_t max_entries);

/* Of the updates in lpx_forward_token_append, which a replay keeps in a buffer. */
uint64_t lpx_forward_token_update_bytes(const laprox_shape *shape);

/* Embeddings of n_tokens tokens (at most chunk, all inside the vocabulary) to hidden rows. */
void lpx_forward_embed_append(lpx_program *program, const lpx_forward *forward, const uint32_t *tokens,
                              uint32_t n_tokens, laprox_buffer hidden);

/* One layer for one chunk of consecutive positions. */
typedef struct lpx_forward_layer {
  uint32_t layer;
  uint32_t n_rows; /* 1 … chunk; 1 uses the kernels of decode */
  uint32_t first_position;
  laprox_buffer hidden;         /* [n_rows, model_dim], in place */
  lpx_attention_segment prefix; /* entries before the tail, seen by all rows; zeroed: none. Ragged or dense */
  laprox_buffer key, value;     /* the dense tail [n_kv_heads, head_rows, head_dim] */
  uint32_t head_rows;
  uint32_t first_row;             /* tail rows before this chunk, all of which it sees */
  laprox_buffer ring;             /* zeroed, or receives rotated queries: f32 rows [n_heads, head_dim] */
  uint32_t query_first, ring_row; /* row of the chunk that goes to the ring first, and to which row there */
  /* zeroed, or f32 [n_heads, rows of the ring], as lpx_prefill_lse_append writes it; single rows, and layers with
   * kv_only, leave nothing there */
  laprox_buffer lse;
  bool kv_only; /* append K and V, and queries where wanted, but leave the hidden states as they are */
} lpx_forward_layer;

void lpx_forward_layer_append(lpx_program *program, const lpx_forward *forward,
                              const lpx_forward_layer *layer);

/* Embedding and all layers for a single token. `layers` has one for each layer, which agree in position, tail
 * row and ring row and have n_rows 1. The commands are the same for every token: what differs is the data of
 * one update or two in front, unless a buffer is another or attention takes more chunks. */
void lpx_forward_token_append(lpx_program *program, const lpx_forward *forward, uint32_t token,
                              const lpx_forward_layer *layers);

/* Final norm and output matrix of n_rows (at most chunk) hidden rows: [n_rows, n_vocab] f32. */
void lpx_forward_logits_append(lpx_program *program, const lpx_forward *forward, laprox_buffer hidden,
                               uint32_t n_rows, laprox_buffer logits);

#endif
