/* bench_kernels.h: what the kernels' benchmarks share: the present variant's cache, and how a row is timed. */
#ifndef TOOLS_BENCH_KERNELS_H
#define TOOLS_BENCH_KERNELS_H

#include "bench_cache.h"

#include "attention/attention.h"
#include "runtime/kernels.h"

/* What a prompt's kernels work on. */
typedef struct bench_prompt {
  uint32_t n_rows, width; /* tokens; elements of one */
  lpx_buffer input, halves, output;
  lpx_weight weights[2]; /* F16, Q8_0 */
} bench_prompt;

/* A variant's measurements. */
typedef struct bench_round {
  bench *b;
  bench_cache *cache;
  bench_prompt *prompt;
  bench_eviction eviction;
} bench_round;

/* The program's own row, named and timed, or NULL where an earlier variant had the very same. Finishes the building. Bytes
 * and flops are the caller's to count. */
laprox_result bench_time_program(bench_round *r, const char *kernel, lpx_program *program,
                                 bench_result **out);

/* ---- bench_decode.c ---- */

/* Attention of one token over the full and the evicted cache; after the compaction. */
laprox_result bench_time_decoding(bench_round *r);

/* ---- bench_prompt.c ---- */

/* Random tokens and weights for the cache's shape. */
laprox_result bench_prompt_init(bench_cache *cache, bench_prompt *out);
void bench_prompt_finish(const bench_cache *cache, bench_prompt *prompt);
/* A layer's attention of a prompt's last tokens, and products with weights of several rows and of one. */
laprox_result bench_time_prompt(bench_round *r);

#endif
