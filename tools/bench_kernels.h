/* bench_kernels.h: what the kernels' benchmarks share: the present variant's cache, and how a row is timed. */
#ifndef TOOLS_BENCH_KERNELS_H
#define TOOLS_BENCH_KERNELS_H

#include "bench_cache.h"

#include "attention/attention.h"

/* A variant's measurements. */
typedef struct bench_round {
  bench *b;
  bench_cache *cache;
  bench_eviction eviction;
} bench_round;

/* The parts' own row, named and timed, or NULL where an earlier variant had the very same; `names` receives their shaders,
 * and they have run. Bytes and flops are the caller's to count. */
laprox_result bench_time_row(bench_round *r, const char *kernel, const bench_part *parts, size_t n_parts,
                             bench_profile *names, bench_result **out);

/* ---- bench_decode.c ---- */

/* Attention of one token over the full and the evicted cache; after the compaction. */
laprox_result bench_time_decoding(bench_round *r);

/* ---- bench_prompt.c ---- */

/* A layer's attention of a prompt's last tokens, and products with weights of several rows and of one. */
laprox_result bench_time_prompt(bench_round *r);

#endif
