/* session.h: a sequence from the inside. */
#ifndef LPX_RUNTIME_SESSION_H
#define LPX_RUNTIME_SESSION_H

#include "runtime/cache.h"
#include "runtime/forward.h"
#include "runtime/layerwise.h"

enum { LPX_FACTORS_OF_HEADS, LPX_FACTORS_OF_GROUPS, LPX_FACTORS_PROJECTIONS, LPX_N_FACTORS };

/* What a session shares with its forks: only one of them runs at a time. */
typedef struct lpx_session_shared {
  lpx_forward forward;
  lpx_buffer logits; /* rows of n_vocab */
  /* n_layers value factors of query heads, of whole groups (joint), and the output projections themselves; each NULL
   * before an eviction needs it */
  lpx_buffer *factors[LPX_N_FACTORS];
  uint32_t n_sharing;
} lpx_session_shared;

/* Positions [first, end) whose softmax sums over the cache as it is stand in the rings; of the last layer only from
 * last_layer_first on. */
typedef struct lpx_session_sums {
  uint32_t first, last_layer_first, end;
} lpx_session_sums;

/* What scoring takes of the last tokens. */
typedef struct lpx_session_queries {
  lpx_buffer *rings; /* n_layers, of `window` rows: the query of position p stands in row p % window */
  uint32_t first;    /* the first position whose query the rings may still hold */
  lpx_buffer lse;    /* of all layers, see lpx_session_lse */
  lpx_session_sums sums;
} lpx_session_queries;

struct laprox_session {
  laprox_model *model;
  laprox_device *device;
  laprox_context *context;
  laprox_session_info info; /* defaults filled in */
  lpx_session_shared *shared;
  lpx_program *program;
  lpx_replay *decode; /* the forward pass of one token */
  lpx_cache cache;
  lpx_session_queries queries;
  lpx_buffer row;            /* the hidden state of a decoded token */
  lpx_buffer read_logits;    /* mapped: logits of a decoded token */
  lpx_forward_layer *layers; /* n_layers, of the token that is being decoded */
  bool has_logits;
  float *logits;
  float *prompt_logits;
  size_t n_prompt_logits;
};

/* Fills in defaults and checks. */
laprox_result lpx_session_info_complete(const laprox_context *context, laprox_session_info *info,
                                        uint32_t head_dim);
/* Fails on an empty text, a token outside the vocabulary, and beyond the model's context. */
laprox_result lpx_session_check_tokens(const laprox_session *session, const uint32_t *tokens, size_t count);
/* Buffers as the session's own; the caller finishes them, after a failure too. */
laprox_result lpx_session_queries_init(const laprox_session *session, lpx_session_queries *out);
void lpx_session_queries_finish(laprox_session *session, lpx_session_queries *queries);
/* On the session's program. On failure `to` claims what it did before. */
laprox_result lpx_session_queries_copy(laprox_session *session, const lpx_session_queries *from,
                                       lpx_session_queries *to);
/* A layer's softmax sums, f32 [n_heads, window]: those of position p in column p % window. */
laprox_buffer lpx_session_lse(const laprox_session *session, uint32_t layer);
/* From layer to layer. */
uint64_t lpx_session_lse_bytes(const laprox_shape *shape, uint32_t window);
/* Which of them there are once `count` more tokens have been read. */
lpx_session_sums lpx_session_sums_after(const laprox_session *session, uint32_t count);
/* laprox_session_prefill; with `layerwise` into an empty cache that is cut after every layer. */
laprox_result lpx_session_prefill(laprox_session *session, const uint32_t *tokens, size_t n,
                                  lpx_layerwise *layerwise);
/* What an eviction or scoring needs once n_more tokens have been read. */
laprox_result lpx_session_prepare(laprox_session *session, const laprox_policy *policy, uint32_t n_more,
                                  lpx_rules *rules, lpx_cache_eviction *out);
/* Releases an array of n_layers buffers; NULL is nothing. */
void lpx_session_finish_array(laprox_session *session, lpx_buffer *buffers);
uint64_t lpx_session_query_row_bytes(const laprox_session *session);
/* Fails where the rings do not hold the queries of the last `window` tokens. */
laprox_result lpx_session_check_queries(const laprox_session *session, uint32_t window);
/* Tensor data [n_heads, window, head_dim] of a layer: the last `window` queries, from the ring's order, token
 * by token, to head by head. */
laprox_result lpx_session_write_queries(const laprox_session *session, lpx_st_writer *writer, uint32_t layer,
                                        uint32_t window);

#endif
