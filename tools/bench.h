/* bench.h: the parts of `laprox bench`: how time is taken, what a device can do at most, kernels on caches of models'
 * shapes, models, and the report. */
#ifndef TOOLS_BENCH_H
#define TOOLS_BENCH_H

#include "cli.h"

#include "evict/evict.h"
#include "runtime/device.h"

enum { BENCH_REPEATS = 21, BENCH_SHADERS = 24 };

/* What the device can do at most, measured. */
typedef struct bench_ceilings {
  double copy_gbps, fma_gflops;
  double matrix_gflops; /* 0: no cooperative matrices */
  const char *copy_form;
} bench_ceilings;

/* What was timed on: a cache, or a model. */
typedef struct bench_shape {
  char geometry[64];
  laprox_shape shape;
  uint32_t n_tokens, budget;
} bench_shape;

/* Sorted microseconds of some repetitions, by the device's clock where it has one, and by ours. */
typedef struct bench_timing {
  int n;
  double us[BENCH_REPEATS], wall_us[BENCH_REPEATS];
} bench_timing;

/* One line of the report. */
typedef struct bench_result {
  const char *kernel;
  const char *variant; /* the highest one that any of its shaders needs */
  char shaders[256];   /* names in the order of their first use, with commas */
  bench_shape shape;
  double bytes, flops; /* counted from the shape */
  double n_units;      /* tokens in a result of a model; else 0 */
  bench_timing timing;
  bool on_host; /* the host's clock took the time */
} bench_result;

typedef struct bench {
  cli *c;
  const laprox_device_description *description;
  laprox_context *context;
  lpx_queue *queue;
  laprox_policy policy;
  uint32_t variants;  /* what the device has and the user lets it use */
  lpx_buffer scrub;   /* written between repetitions, so that no cache holds what comes next */
  VkQueryPool stamps; /* for profiles; null where the queue has no timestamps */
  bench_ceilings ceilings;
  bench_result *results;
  size_t n_results;
  struct {
    bench_shape shape;
    char reason[96];
  } skipped[32];
  size_t n_skipped;
} bench;

/* ---- bench_measure.c ---- */

/* Steps of a program. */
typedef struct bench_part {
  const lpx_program *program;
  uint32_t first, count;
  bool at_once; /* with the part before */
} bench_part;

bench_part bench_whole(const lpx_program *program);
/* Runs the parts in order, for warmth and then until it is enough, in submits that are as long as the device's
 * watchdog allows. */
laprox_result bench_time(bench *b, const bench_part *parts, size_t n_parts, bench_timing *out);

/* Where the time of a program goes, shader by shader; no times where the queue has no timestamps. */
typedef struct bench_profile {
  int n_repeats, n_shaders;
  struct {
    const char *shader;
    double us[BENCH_REPEATS]; /* in the order of the repetitions */
  } rows[BENCH_SHADERS];
} bench_profile;

laprox_result bench_profile_init(bench *b);
/* n_repeats 0: as many as are enough. */
laprox_result bench_take_profile(bench *b, const bench_part *parts, size_t n_parts, int n_repeats,
                                 bench_profile *out);
void bench_profile_finish(bench *b);

void bench_sort(bench_timing *timing);
double bench_median_us(const bench_timing *timing);

/* ---- bench_ceilings.c ---- */

laprox_result bench_measure_ceilings(bench *b);

/* ---- bench_kernels.c ---- */

/* All kernels on a cache of this shape, in every variant. */
laprox_result bench_run_kernels(bench *b, const bench_shape *shape);

/* ---- bench_prompt.c ---- */

/* Device memory that the kernels of a prompt take beside the cache. */
double bench_prompt_bytes(const bench_shape *of);

/* ---- bench_model.c ---- */

/* Reading and generating with the model that the command line names. */
int bench_run_model(bench *b, uint32_t n_tokens);

/* ---- bench_report.c ---- */

/* The row to fill in, or NULL after a message. */
bench_result *bench_add(bench *b, const char *kernel, const bench_shape *shape);
void bench_skip(bench *b, const bench_shape *shape, const char *reason);
json_t *bench_json(const bench *b);
void bench_print(const bench *b);

/* ---- bench_compare.c ---- */

/* Results of several devices as one page. */
int bench_compare(cli *c);

#endif
