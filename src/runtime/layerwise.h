/* layerwise.h: eviction while a prompt is read layer by layer. A layer's scores are normalised by its own
 * sum, so the best of layers 0 … l are known once layer l is scored; what drops out can never come back.
 * Cutting after every layer ends with exactly the one-shot set and holds at most what is kept plus one full
 * layer. */
#ifndef LPX_RUNTIME_LAYERWISE_H
#define LPX_RUNTIME_LAYERWISE_H

#include "runtime/cache.h"

typedef struct lpx_layerwise {
  lpx_cache *cache;
  const lpx_cache_eviction *eviction;
  uint32_t n_tokens, window; /* of the prompt; of the policy */
  uint32_t query_start;
  uint64_t peak_bytes_aim;     /* what is kept in the end plus one full layer */
  lpx_buffer scores;           /* of the candidates that are still in, as the last plan laid them out */
  VkDeviceSize *score_offsets; /* of each (layer, head) in it */
  float *layer_scales;
  laprox_eviction report;
} lpx_layerwise;

/* For an empty cache that is going to read n_tokens. The policy must not keep everything
 * (lpx_budget_resolve). */
laprox_result lpx_layerwise_init(lpx_cache *cache, const lpx_cache_eviction *eviction, uint32_t n_tokens,
                                 uint32_t budget, lpx_layerwise *out);
void lpx_layerwise_finish(lpx_layerwise *layerwise);

/* Makes the dense tail of a layer, exactly as long as the prompt. */
laprox_result lpx_layerwise_begin_layer(lpx_layerwise *layerwise, uint32_t layer);
/* The layer's tail and window queries are there: scores it, cuts all layers so far to what is still in, and
 * packs. */
laprox_result lpx_layerwise_end_layer(lpx_layerwise *layerwise, uint32_t layer);

#endif
