/* cmd_bench.c: `laprox bench`: times the eviction pass and decode attention on caches of named models'
 * shapes, beside what the device can do at most. */
#include "cli.h"

#include "attention/attention.h"
#include "evict/evict.h"
#include "runtime/device.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPEATS = 5, MAX_ROWS = 16 };

static const struct {
  const char *name;
  laprox_shape shape;
} geometries[] = {
    {"llama-3.1-8b", {32, 32, 8, 128}},
    {"qwen3-8b", {36, 32, 8, 128}},
    {"qwen2.5-1.5b", {28, 12, 2, 128}},
    {"phone", {16, 32, 8, 64}},
};
enum { N_GEOMETRIES = sizeof geometries / sizeof *geometries };

/* One line of the result. */
typedef struct timing {
  const char *kernel;
  double bytes, flops;
  double us[REPEATS];
  int n;
} timing;

typedef struct bench {
  cli *c;
  laprox_context *context;
  lpx_queue *queue;
  const char *geometry;
  laprox_shape shape;
  uint32_t n_tokens;
  laprox_policy policy;
  double copy_gbps, fma_gflops;
  lpx_buffer *keys, *values; /* n_layers */
  lpx_buffer query, factor, scratch, scores, result;
  lpx_buffer *kept_keys, *kept_values;
  uint32_t *cu_seqlens; /* read back */
  laprox_plan *plan;
  laprox_binding *binding;
  laprox_requirements needs;
  timing rows[MAX_ROWS];
  int n_rows;
} bench;

/* ---- measuring ---- */

static timing *add_row(bench *b, const char *kernel, double bytes, double flops) {
  timing *row = &b->rows[b->n_rows < MAX_ROWS - 1 ? b->n_rows++ : b->n_rows];
  *row = (timing){.kernel = kernel, .bytes = bytes, .flops = flops};
  return row;
}

static int compare_doubles(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Runs steps of a program once for warmth and then REPEATS times, by the device's own clock. */
static laprox_result measure(bench *b, const lpx_program *program, uint32_t first, uint32_t count,
                             timing *row) {
  laprox_result result = lpx_queue_run_steps(b->queue, program, first, count, NULL);
  for (row->n = 0; row->n < REPEATS && !result; row->n++) {
    uint64_t ns = 0;
    double start = now_ms();
    result = lpx_queue_run_steps(b->queue, program, first, count, &ns);
    row->us[row->n] = ns ? (double)ns * 1e-3 : (now_ms() - start) * 1e3;
  }
  qsort(row->us, (size_t)row->n, sizeof row->us[0], compare_doubles);
  return result;
}

static double median_us(const timing *row) {
  return row->n ? row->us[row->n / 2] : 0;
}

/* ---- ceilings ---- */

static laprox_result measure_copy(bench *b) {
  const VkDeviceSize size = (VkDeviceSize)256 << 20;
  lpx_buffer from = {0}, to = {0};
  lpx_program *program = NULL;
  timing row = {0};
  laprox_result result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, size, "copy source", &from);
  if (!result) result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, size, "copy destination", &to);
  if (!result) result = lpx_program_create(b->context, "copy", &program);
  if (!result) {
    for (int i = 0; i < 4; i++) {
      lpx_program_copy(program, lpx_buffer_whole(&from), lpx_buffer_whole(&to));
      lpx_program_barrier(program);
    }
    result = lpx_program_finish_building(program);
  }
  if (!result) result = measure(b, program, 0, 1, &row);
  if (!result) b->copy_gbps = 4.0 * 2.0 * (double)size / (row.us[0] * 1e3);
  lpx_program_destroy(program);
  lpx_buffer_finish(b->context, &from);
  lpx_buffer_finish(b->context, &to);
  return result;
}

static laprox_result measure_fma(bench *b) {
  const bool discrete = b->context->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
  const uint32_t rounds = 4096, n_groups = discrete ? 4096 : 16;
  struct {
    uint32_t n_groups;
    float a, b;
  } push = {0, 0.999f, 0.001f};
  lpx_buffer out = {0};
  lpx_pipeline pipeline;
  lpx_program *program = NULL;
  timing row = {0};
  laprox_result result = lpx_pipeline_get(b->context, "bench_fma", 1, &rounds, 1, &pipeline);
  if (!result) result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, 512, "fma", &out);
  if (!result) result = lpx_program_create(b->context, "fma", &program);
  if (!result) {
    const laprox_buffer range = lpx_buffer_whole(&out);
    lpx_program_dispatch(program, &pipeline, &range, &push, sizeof push, n_groups, 1);
    result = lpx_program_finish_building(program);
  }
  if (!result) result = measure(b, program, 0, 1, &row);
  if (!result) b->fma_gflops = 2.0 * 16.0 * rounds * 128.0 * n_groups / (row.us[0] * 1e3);
  lpx_program_destroy(program);
  lpx_buffer_finish(b->context, &out);
  return result;
}

/* ---- a cache of the shape ---- */

static float random_normal(uint32_t *state) {
  float sum = 0;
  for (int i = 0; i < 4; i++) {
    *state = *state * 1664525u + 1013904223u;
    sum += (float)(*state >> 8) / 16777216.0f - 0.5f;
  }
  return sum * 1.732f;
}

static VkDeviceSize row_bytes(const bench *b) {
  return (VkDeviceSize)b->shape.head_dim * 2;
}

static VkDeviceSize layer_bytes(const bench *b) {
  return row_bytes(b) * b->shape.n_kv_heads * b->n_tokens;
}

/* One random layer, copied to the others from ever different places. */
static laprox_result fill_cache(bench *b) {
  const size_t n = (size_t)(layer_bytes(b) / 2);
  uint16_t *halves = malloc(n * sizeof *halves);
  uint32_t state = 1;
  if (!halves) return lpx_fail_memory(&b->context->host, "random data");
  uint16_t table[4096];
  for (int i = 0; i < 4096; i++) table[i] = lpx_f32_to_f16(random_normal(&state));
  for (size_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    halves[i] = table[state >> 20];
  }
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < b->shape.n_layers && !result; l++) {
    result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, layer_bytes(b), "K", &b->keys[l]);
    if (!result) result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, layer_bytes(b), "V", &b->values[l]);
  }
  if (!result)
    result = lpx_queue_upload(b->queue, lpx_buffer_whole(&b->keys[0]), halves, (size_t)layer_bytes(b));
  free(halves);
  lpx_program *program = NULL;
  if (!result) result = lpx_program_create(b->context, "random data", &program);
  for (uint32_t i = 1; i < 2 * b->shape.n_layers && !result; i++) {
    lpx_buffer *to = i % 2 ? &b->values[i / 2] : &b->keys[i / 2];
    const VkDeviceSize shift = row_bytes(b) * (i * 131 % (b->n_tokens - 1) + 1),
                       rest = layer_bytes(b) - shift;
    lpx_program_copy(program, lpx_buffer_part(lpx_buffer_whole(&b->keys[0]), shift, rest),
                     lpx_buffer_part(lpx_buffer_whole(to), 0, rest));
    lpx_program_copy(program, lpx_buffer_part(lpx_buffer_whole(&b->keys[0]), 0, shift),
                     lpx_buffer_part(lpx_buffer_whole(to), rest, shift));
    lpx_program_mark_step(program);
  }
  if (!result) result = lpx_program_finish_building(program);
  if (!result) result = lpx_queue_run(b->queue, program, NULL);
  lpx_program_destroy(program);
  return result;
}

static laprox_result upload_random(bench *b, VkDeviceSize bytes, const char *name, lpx_buffer *out) {
  float *values = malloc((size_t)bytes);
  uint32_t state = 7;
  if (!values) return lpx_fail_memory(&b->context->host, name);
  for (size_t i = 0; i < bytes / sizeof *values; i++) values[i] = random_normal(&state);
  laprox_result result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, bytes, name, out);
  if (!result) result = lpx_queue_upload(b->queue, lpx_buffer_whole(out), values, (size_t)bytes);
  free(values);
  return result;
}

static laprox_result make_plan(bench *b) {
  const laprox_plan_info info = {.shape = b->shape,
                                 .policy = b->policy,
                                 .cache_dtype = LAPROX_DTYPE_F16,
                                 .n_segments = 1,
                                 .segments = {{.n_entries = b->n_tokens}}};
  laprox_result result = laprox_plan_create(b->context, &info, &b->plan);
  if (result) return result;
  laprox_plan_requirements(b->plan, &b->needs);
  if (b->needs.budget == UINT32_MAX)
    return lpx_fail(&b->context->host, LAPROX_ERROR_INVALID_ARGUMENT, "the budget keeps all %u tokens",
                    b->n_tokens);
  result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, b->needs.scratch_bytes, "scratch", &b->scratch);
  if (!result)
    result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, b->needs.scores_bytes, "scores", &b->scores);
  if (!result)
    result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, b->needs.result_bytes, "result", &b->result);
  if (!result) result = upload_random(b, b->needs.query_bytes, "queries", &b->query);
  if (!result && b->needs.factor_bytes)
    result = upload_random(b, b->needs.factor_bytes, "factor", &b->factor);
  laprox_layer_buffers *layers = calloc(b->shape.n_layers, sizeof *layers);
  if (!result && !layers) result = lpx_fail_memory(&b->context->host, "layers");
  for (uint32_t l = 0; l < b->shape.n_layers && !result; l++) {
    layers[l].query = lpx_buffer_whole(&b->query);
    layers[l].factor = lpx_buffer_whole(&b->factor);
    layers[l].key[0] = lpx_buffer_whole(&b->keys[l]);
    layers[l].value[0] = lpx_buffer_whole(&b->values[l]);
  }
  const laprox_binding_info binding = {.layers = layers,
                                       .scratch = lpx_buffer_whole(&b->scratch),
                                       .scores = lpx_buffer_whole(&b->scores),
                                       .result = lpx_buffer_whole(&b->result)};
  if (!result) result = laprox_binding_create(b->plan, &binding, &b->binding);
  free(layers);
  return result;
}

/* ---- the pass ---- */

static double all_entries(const bench *b) {
  return (double)b->shape.n_layers * b->shape.n_kv_heads * b->n_tokens;
}

static laprox_result time_scores(bench *b) {
  const uint32_t query_heads = b->shape.n_heads / b->shape.n_kv_heads;
  const double n = all_entries(b), d = b->shape.head_dim, group = query_heads;
  const double window = b->policy.window ? b->policy.window : 32;
  const double attention = 2 * 2 * window * group * n * d, values = n * group * d * d;
  timing *row = add_row(b, "score", 3 * n * (double)row_bytes(b), attention + values);
  uint32_t first, count;
  laprox_binding_layer_steps(b->binding, b->shape.n_layers, &first, &count);
  return measure(b, b->binding->program, 0, first, row);
}

static laprox_result time_select(bench *b) {
  uint32_t first, count;
  laprox_binding_layer_steps(b->binding, b->shape.n_layers, &first, &count);
  timing *row = add_row(b, "select", 5 * 4 * all_entries(b) + 4 * (double)b->needs.n_kept, 0);
  laprox_result result = measure(b, b->binding->program, first, count, row);
  laprox_result_layout layout;
  laprox_plan_result_layout(b->plan, &layout);
  const size_t n = (size_t)b->shape.n_layers * b->shape.n_kv_heads + 1;
  b->cu_seqlens = malloc(n * sizeof *b->cu_seqlens);
  if (!result && !b->cu_seqlens) result = lpx_fail_memory(&b->context->host, "offsets");
  if (!result)
    result =
        lpx_queue_download(b->queue, lpx_buffer_part(lpx_buffer_whole(&b->result), layout.cu_seqlens, n * 4),
                           b->cu_seqlens, n * 4);
  return result;
}

static laprox_result make_compaction(bench *b, uint32_t layer, laprox_compaction **out) {
  const uint32_t *own = b->cu_seqlens + layer * b->shape.n_kv_heads;
  const VkDeviceSize bytes = (own[b->shape.n_kv_heads] - own[0]) * row_bytes(b);
  laprox_result result =
      lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, bytes, "kept K", &b->kept_keys[layer]);
  if (!result)
    result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, bytes, "kept V", &b->kept_values[layer]);
  const laprox_compaction_info info = {
      .layer = layer,
      .source = {.key = {lpx_buffer_whole(&b->keys[layer])}, .value = {lpx_buffer_whole(&b->values[layer])}},
      .result = lpx_buffer_whole(&b->result),
      .cu_seqlens = b->cu_seqlens,
      .key = lpx_buffer_whole(&b->kept_keys[layer]),
      .value = lpx_buffer_whole(&b->kept_values[layer])};
  return result ? result : laprox_compaction_create(b->plan, &info, out);
}

static laprox_result time_compaction(bench *b) {
  timing *row = add_row(b, "compact", 4.0 * (double)b->needs.n_kept * (double)row_bytes(b), 0);
  row->n = REPEATS;
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < b->shape.n_layers && !result; l++) {
    laprox_compaction *compaction = NULL;
    timing layer = {0};
    result = make_compaction(b, l, &compaction);
    if (!result) result = measure(b, compaction->program, 0, 1, &layer);
    for (int i = 0; i < REPEATS; i++) row->us[i] += layer.us[i];
    laprox_compaction_destroy(compaction);
  }
  return result;
}

/* Decode attention of all layers for one token, over the full or the evicted cache. */
static laprox_result time_decode(bench *b, const char *name, bool evicted) {
  const uint32_t n = b->shape.n_kv_heads;
  lpx_attention attention;
  lpx_buffer scratch = {0}, out = {0};
  lpx_program *program = NULL;
  const double entries = evicted ? (double)b->needs.n_kept : all_entries(b);
  const uint32_t query_heads = b->shape.n_heads / n;
  timing *row =
      add_row(b, name, 2 * entries * (double)row_bytes(b), 4 * entries * b->shape.head_dim * query_heads);
  laprox_result result = lpx_attention_init(b->context, &b->shape, LAPROX_DTYPE_F16, &attention);
  if (!result)
    result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE,
                             lpx_decode_attention_scratch_bytes(&b->shape, b->n_tokens), "attention scratch",
                             &scratch);
  if (!result) result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, b->needs.query_bytes, "output", &out);
  if (!result) result = lpx_program_create(b->context, "decode", &program);
  uint32_t *rows = malloc(2 * n * sizeof *rows);
  if (!result && !rows) result = lpx_fail_memory(&b->context->host, "rows");
  for (uint32_t l = 0; l < b->shape.n_layers && !result; l++) {
    lpx_attention_segment segment = lpx_attention_dense(
        lpx_buffer_whole(&b->keys[l]), lpx_buffer_whole(&b->values[l]), b->n_tokens, b->n_tokens);
    const uint32_t *own = b->cu_seqlens + l * n;
    for (uint32_t head = 0; head < n; head++)
      rows[head] = own[head] - own[0], rows[n + head] = own[head + 1] - own[head];
    if (evicted)
      segment = (lpx_attention_segment){.key = lpx_buffer_whole(&b->kept_keys[l]),
                                        .value = lpx_buffer_whole(&b->kept_values[l]),
                                        .head_first_row = rows,
                                        .head_n_rows = rows + n};
    lpx_program_barrier(program);
    lpx_decode_attention_append(program, &attention, lpx_buffer_whole(&b->query), &segment, 1,
                                lpx_buffer_whole(&scratch), lpx_buffer_whole(&out));
  }
  if (!result) result = lpx_program_finish_building(program);
  if (!result) result = measure(b, program, 0, lpx_program_n_steps(program), row);
  free(rows);
  lpx_program_destroy(program);
  lpx_buffer_finish(b->context, &scratch);
  lpx_buffer_finish(b->context, &out);
  return result;
}

/* ---- report ---- */

/* The larger of the shares of bandwidth and arithmetic rate. */
static double share_of_ceiling(const bench *b, const timing *row) {
  double us = median_us(row);
  if (us <= 0) return 0;
  double memory = row->bytes / (us * 1e3) / b->copy_gbps,
         arithmetic = row->flops / (us * 1e3) / b->fma_gflops;
  return memory > arithmetic ? memory : arithmetic;
}

static json_t *to_json(const bench *b) {
  json_t *results = json_array();
  for (int i = 0; i < b->n_rows && results; i++) {
    const timing *row = &b->rows[i];
    json_t *shape =
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "geometry", b->geometry, "n_layers",
                  (json_int_t)b->shape.n_layers, "n_heads", (json_int_t)b->shape.n_heads, "n_kv_heads",
                  (json_int_t)b->shape.n_kv_heads, "head_dim", (json_int_t)b->shape.head_dim, "n_tokens",
                  (json_int_t)b->n_tokens, "budget", (json_int_t)b->needs.budget);
    json_array_append_new(results,
                          json_pack("{s:s, s:s, s:o, s:f, s:f, s:{s:f, s:f, s:f}, s:f, s:f}", "kernel",
                                    row->kernel, "variant", "baseline", "shape", shape, "bytes", row->bytes,
                                    "flops", row->flops, "time_us", "min", row->us[0], "median",
                                    median_us(row), "max", row->us[REPEATS - 1], "gbps",
                                    median_us(row) > 0 ? row->bytes / (median_us(row) * 1e3) : 0.0,
                                    "share_of_ceiling", share_of_ceiling(b, row)));
  }
  return json_pack("{s:s, s:s, s:{s:f, s:f}, s:o}", "device", laprox_device_name(b->c->device), "version",
                   LAPROX_VERSION, "ceilings", "copy_gbps", b->copy_gbps, "fma_gflops", b->fma_gflops,
                   "results", results);
}

static void print_table(const bench *b) {
  printf("%s: copy %.1f GB/s, f32 multiply-add %.0f Gflop/s\n", laprox_device_name(b->c->device),
         b->copy_gbps, b->fma_gflops);
  printf("%s, %u tokens, %u entries a head kept\n\n", b->geometry, b->n_tokens, b->needs.budget);
  printf("%-16s %12s %12s %12s %10s %10s\n", "kernel", "median ms", "min", "max", "GB/s", "ceiling");
  for (int i = 0; i < b->n_rows; i++) {
    const timing *row = &b->rows[i];
    double us = median_us(row);
    printf("%-16s %12.3f %12.3f %12.3f %10.1f %8.0f %%\n", row->kernel, us * 1e-3, row->us[0] * 1e-3,
           row->us[REPEATS - 1] * 1e-3, us > 0 ? row->bytes / (us * 1e3) : 0, 100 * share_of_ceiling(b, row));
  }
}

static void release(bench *b) {
  laprox_binding_destroy(b->binding);
  laprox_plan_destroy(b->plan);
  lpx_buffer *const single[] = {&b->query, &b->factor, &b->scratch, &b->scores, &b->result};
  for (size_t i = 0; i < sizeof single / sizeof *single; i++) lpx_buffer_finish(b->context, single[i]);
  lpx_buffer *const arrays[] = {b->keys, b->values, b->kept_keys, b->kept_values};
  for (size_t a = 0; a < sizeof arrays / sizeof *arrays; a++) {
    for (uint32_t l = 0; arrays[a] && l < b->shape.n_layers; l++)
      lpx_buffer_finish(b->context, &arrays[a][l]);
    free(arrays[a]);
  }
  free(b->cu_seqlens);
}

static laprox_result run(bench *b) {
  lpx_buffer **const arrays[] = {&b->keys, &b->values, &b->kept_keys, &b->kept_values};
  for (size_t a = 0; a < sizeof arrays / sizeof *arrays; a++) {
    *arrays[a] = calloc(b->shape.n_layers, sizeof **arrays[a]);
    if (!*arrays[a]) return lpx_fail_memory(&b->context->host, "a cache");
  }
  laprox_result result = measure_copy(b);
  if (!result) result = measure_fma(b);
  if (!result) result = fill_cache(b);
  if (!result) result = make_plan(b);
  if (!result) result = time_scores(b);
  if (!result) result = time_select(b);
  if (!result) result = time_compaction(b);
  if (!result) result = time_decode(b, "decode, full", false);
  if (!result) result = time_decode(b, "decode, evicted", true);
  return result;
}

int cmd_bench(cli *c) {
  bench b = {.c = c, .geometry = c->opt.geometry, .n_tokens = c->opt.n_tokens, .policy = c->opt.policy};
  if (!b.policy.budget.tokens && b.policy.budget.share <= 0) b.policy.budget.share = 0.05;
  for (int i = 0; i < N_GEOMETRIES; i++)
    if (!strcmp(geometries[i].name, b.geometry)) b.shape = geometries[i].shape;
  if (!b.shape.n_layers)
    return fail_usage("--geometry: \"%s\" is none of llama-3.1-8b, qwen3-8b, qwen2.5-1.5b, phone",
                      b.geometry);
  int status = cli_open_device(c);
  if (status) return status;
  b.context = c->device->context;
  b.queue = c->device->queue;
  laprox_result result = run(&b);
  if (result)
    status = cli_fail(c, result);
  else if (c->opt.json)
    status = print_json(to_json(&b));
  else
    print_table(&b);
  release(&b);
  return status;
}
