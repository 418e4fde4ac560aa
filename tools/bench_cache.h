/* bench_cache.h: a cache of a model's shape with random entries, and an eviction bound to it. */
#ifndef TOOLS_BENCH_CACHE_H
#define TOOLS_BENCH_CACHE_H

#include "bench.h"

/* One shape's buffers; lists have n_layers elements. */
typedef struct bench_cache {
  bench *b;
  bench_shape of;
  lpx_buffer *keys, *values;
  lpx_buffer query, factor;
} bench_cache;

/* UNSUPPORTED with a reason where the device hasn't the memory; that is no failure of the library, and nothing has been
 * taken then. */
laprox_result bench_cache_init(bench *b, const bench_shape *shape, bench_cache *out, const char **reason);
void bench_cache_finish(bench_cache *cache);
uint64_t bench_cache_entries(const bench_cache *cache);
VkDeviceSize bench_cache_row_bytes(const bench_cache *cache);
/* More random numbers of f16, as many as fit. */
laprox_result bench_cache_fill(const bench_cache *cache, const lpx_buffer *buffer);
/* Close to normal, the same everywhere; the caller frees them. NULL after a message. */
float *bench_random_floats(const bench *b, size_t n);

/* An eviction of it with the context's present variants, and what it leaves. */
typedef struct bench_eviction {
  bench_cache *cache;
  laprox_plan *plan;
  laprox_binding *binding;
  laprox_requirements needs;
  lpx_buffer scratch, scores, result;
  uint32_t *cu_seqlens; /* after bench_eviction_pack */
  lpx_buffer *kept_keys, *kept_values;
  laprox_compaction **compactions; /* n_layers */
} bench_eviction;

/* Plans and binds. */
laprox_result bench_eviction_init(bench_cache *cache, bench_eviction *out);
/* The same with sums that a prompt's attention would have left: about those of such random entries. */
laprox_result bench_eviction_make_lse(const bench_eviction *eviction, lpx_buffer *out);
laprox_result bench_eviction_bind(const bench_eviction *eviction, const lpx_buffer *lse,
                                  laprox_binding **out);
/* After the selection has run: reads back what is kept and prepares the compaction. */
laprox_result bench_eviction_pack(bench_eviction *eviction);
void bench_eviction_finish(bench_eviction *eviction);

#endif
