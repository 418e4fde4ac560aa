/* cache.h: a sequence's KV cache: for each layer a ragged prefix, which evictions leave, and a dense tail,
 * which grows. Every buffer has its own memory and is exactly as large as it must be, so that what is evicted
 * is given back. */
#ifndef LPX_RUNTIME_CACHE_H
#define LPX_RUNTIME_CACHE_H

#include "attention/attention.h"
#include "io/safetensors.h"
#include "runtime/device.h"

typedef struct lpx_cache_layer {
  lpx_buffer prefix_key,
      prefix_value;                /* packed rows, head after head; empty buffers where there is no prefix */
  uint32_t *cu_seqlens;            /* n_kv_heads + 1 */
  uint32_t *head_rows;             /* n_kv_heads: the differences */
  uint32_t *positions;             /* of the prefix rows; NULL while entry i of every head is position i */
  lpx_buffer tail_key, tail_value; /* [n_kv_heads, tail_capacity, head_dim] */
  uint32_t tail_capacity;
} lpx_cache_layer;

typedef struct lpx_cache {
  laprox_device *device;
  laprox_shape shape;
  laprox_dtype dtype;
  lpx_cache_layer *layers;
  uint32_t n_tail;            /* entries of every head in the tail */
  uint32_t n_tokens;          /* read so far: the next position */
  uint64_t bytes, peak_bytes; /* device memory of K and V */
} lpx_cache;

/* `dtype`: one that lpx_check_cache_dtype takes. */
laprox_result lpx_cache_init(laprox_device *device, const laprox_shape *shape, laprox_dtype dtype,
                             lpx_cache *out);
void lpx_cache_finish(lpx_cache *cache);
/* Back to empty; the peak stays counted. */
void lpx_cache_clear(lpx_cache *cache);
/* A copy with memory of its own. */
laprox_result lpx_cache_copy(const lpx_cache *from, lpx_cache *out);

/* Makes room for n_more entries behind the tail. `exact`: no room beyond; otherwise a little, for single
 * tokens. Afterwards all layers have the same tail_capacity; after a failure they may differ. */
laprox_result lpx_cache_reserve(lpx_cache *cache, uint32_t n_more, bool exact);
/* Counts n more entries and tokens, which have been written behind the tail. */
void lpx_cache_advance(lpx_cache *cache, uint32_t n);
/* Forgets the last n tokens, which must be in the tail, and gives their memory back. */
laprox_result lpx_cache_retreat(lpx_cache *cache, uint32_t n);

/* Counts the buffers again, after a change to layers. */
void lpx_cache_count_bytes(lpx_cache *cache);

lpx_attention_segment lpx_cache_prefix(const lpx_cache *cache, uint32_t layer);
uint32_t lpx_cache_head_entries(const lpx_cache *cache, uint32_t layer, uint32_t head);
/* True position of an entry of a head. */
uint32_t lpx_cache_position(const lpx_cache *cache, uint32_t layer, uint32_t head, uint32_t entry);
uint64_t lpx_cache_row_bytes(const lpx_cache *cache);
/* Whether every head still has every token; a full tail may stand as the prefix. */
bool lpx_cache_is_whole(const lpx_cache *cache);

#define LPX_CACHE_PARTS 2
/* Where a head's rows of K or V are: first those of the ragged prefix, then those of the dense tail. */
void lpx_cache_find_rows(const lpx_cache *cache, uint32_t layer, uint32_t head, bool is_value,
                         laprox_buffer parts[LPX_CACHE_PARTS]);
/* All of them, as the cache holds them. */
laprox_result lpx_cache_read_rows(const lpx_cache *cache, uint32_t layer, uint32_t head, bool is_value,
                                  void *to);

/* Rows as a file holds them: the type, and how many of it. Blocks are bytes there. */
lpx_st_dtype lpx_cache_file_row(const lpx_cache *cache, uint64_t *n_columns);

/* A layer's cu_seqlens and indices (true positions) as tensors, in this order. */
laprox_result lpx_cache_declare_lists(const lpx_cache *cache, uint32_t layer, lpx_st_writer *writer);
laprox_result lpx_cache_write_lists(const lpx_cache *cache, uint32_t layer, lpx_st_writer *writer);

/* Scores of all candidates of a cache, on the device, before any is chosen. A zeroed one is empty. */
typedef struct lpx_cache_scores {
  uint32_t sinks;           /* that are no candidates */
  uint32_t window;          /* last entries that an eviction protects: 0 where those that scored are gone */
  lpx_buffer scores, ranks; /* ranks: of policies that choose in two stages, what the first one goes by */
  float *layer_scales;      /* n_layers */
  uint32_t *layer_words;    /* where each layer's scores begin in the buffers; n_layers + 1 */
  uint64_t n_nonfinite;
  uint64_t n_entries; /* of all heads of the cache; 0: there was nothing to choose among */
} lpx_cache_scores;
void lpx_cache_scores_finish(laprox_context *context, lpx_cache_scores *scores);

/* What an eviction needs besides the cache. */
typedef struct lpx_cache_eviction {
  const laprox_policy *policy;
  /* n_layers rings, f32 [query_rows, n_heads, head_dim]; NULL for policies without */
  const lpx_buffer *queries;
  uint32_t query_rows, query_end; /* query_end: row behind the last token's */
  /* Zeroed, or laprox_layer_buffers.lse of layers 0 … n_lse_layers - 1, lse_bytes from layer to layer: softmax sums over
   * the cache as it is */
  laprox_buffer lse;
  uint64_t lse_bytes;
  uint32_t n_lse_layers;
  const lpx_buffer *factors; /* n_layers; NULL for policies without */
  uint32_t model_dim;        /* rows of factors that are the output projection */
  float scale;               /* 0: 1 / sqrt(head_dim) */
  laprox_progress_fn progress;
  void *progress_user;
  const lpx_cache_scores *given; /* of this cache, or of one that holds the same; NULL: it scores itself */
  float **scores; /* may be NULL; receives pooled and scaled scores, heads after heads, for each its
                     candidates; NULL where nothing was evicted. The caller releases it. */
} lpx_cache_eviction;

/* Zeroed for layers without. */
laprox_buffer lpx_cache_eviction_lse(const lpx_cache_eviction *eviction, uint32_t layer);

/* Scores alone, with sinks and window as the policy's budget has them. */
laprox_result lpx_cache_score(lpx_cache *cache, const lpx_cache_eviction *eviction, lpx_cache_scores *out);
/* Evicts to the budget. On failure the cache is as it was. */
laprox_result lpx_cache_evict(lpx_cache *cache, const lpx_cache_eviction *eviction, laprox_eviction *out);

#endif
