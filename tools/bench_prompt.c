/* bench_prompt.c: what reading a prompt consists of: attention of many tokens at once, and products with weights; the
   latter with one row too, as decoding has them. */
#include "bench_kernels.h"

#include "runtime/kernels.h"

#include <stdlib.h>

enum { PROMPT_ROWS = 1024 }; /* at most */

typedef struct prompt {
  bench_round *r;
  uint32_t n_rows, width; /* tokens; elements of one */
  lpx_buffer input, halves, output;
  lpx_weight weight;
  lpx_program *program;
} prompt;

static uint32_t rows_of(const bench_shape *of) {
  return of->n_tokens < PROMPT_ROWS ? of->n_tokens : PROMPT_ROWS;
}

static uint32_t width_of(const bench_shape *of) {
  return of->shape.n_heads * of->shape.head_dim;
}

/* Weights of f16, and rows of input, four times as wide output, and halves. */
double bench_prompt_bytes(const bench_shape *of) {
  const double width = width_of(of);
  return 8 * width * width + (4 + 16 + 2) * width * rows_of(of);
}

static laprox_result begin(prompt *p, const char *name) {
  lpx_program_destroy(p->program);
  p->program = NULL;
  return lpx_program_create(p->r->b->context, name, &p->program);
}

static laprox_result time_program(prompt *p, const char *kernel, bench_result **row) {
  bench_profile names;
  *row = NULL;
  const laprox_result result = lpx_program_finish_building(p->program);
  if (result) return result;
  const bench_part part = bench_whole(p->program);
  return bench_time_row(p->r, kernel, &part, 1, &names, row);
}

/* The prompt's last tokens over one layer's cache. */
static laprox_result time_attention(prompt *p) {
  const bench_cache *cache = p->r->cache;
  const uint32_t n = cache->of.n_tokens;
  const lpx_attention_segment segment =
      lpx_attention_dense(lpx_buffer_whole(&cache->keys[0]), lpx_buffer_whole(&cache->values[0]), n, n);
  lpx_attention attention;
  bench_result *row = NULL;
  laprox_result result = lpx_attention_init(p->r->b->context, &cache->of.shape, LAPROX_DTYPE_F16, &attention);
  if (!result) result = begin(p, "prompt attention");
  if (!result) {
    lpx_prefill_attention_append(p->program, &attention, lpx_buffer_whole(&p->input), p->n_rows, NULL,
                                 &segment, lpx_buffer_whole(&p->output));
    result = time_program(p, "prompt attention", &row);
  }
  if (!row) return result;
  const double seen = n - (p->n_rows - 1) / 2.0; /* by a token */
  row->bytes += 2.0 * n * cache->of.shape.n_kv_heads * (double)bench_cache_row_bytes(cache) +
                8.0 * p->n_rows * p->width;
  row->flops += 4.0 * p->n_rows * seen * p->width;
  return result;
}

static laprox_result time_product(prompt *p, const lpx_kernels *kernels, uint32_t n_rows) {
  const lpx_weight *weight = &p->weight;
  const lpx_matrix matrix = {
      .parts = {*weight}, .n_parts = 1, .n_rows = weight->n_rows, .n_columns = weight->n_columns};
  const lpx_linear product = {.matrix = &matrix,
                              .in = lpx_buffer_whole(&p->input),
                              .n_rows = n_rows,
                              .halves = lpx_buffer_whole(&p->halves),
                              .out = lpx_buffer_whole(&p->output)};
  const char *name = weight->dtype == LAPROX_DTYPE_F16 ? n_rows == 1 ? "token by f16" : "prompt by f16"
                     : n_rows == 1                     ? "token by q8_0"
                                                       : "prompt by q8_0";
  bench_result *row = NULL;
  laprox_result result = begin(p, "product");
  if (result) return result;
  lpx_linear_append(p->program, kernels, &product);
  result = time_program(p, name, &row);
  if (!row) return result;
  row->bytes += (double)weight->n_rows * (double)laprox_dtype_bytes(weight->dtype, weight->n_columns) +
                4.0 * n_rows * (weight->n_rows + weight->n_columns);
  row->flops += 2.0 * n_rows * weight->n_rows * weight->n_columns;
  return result;
}

/* As wide as a feed-forward layer mostly is. */
static laprox_result time_products(prompt *p, laprox_dtype dtype) {
  laprox_context *context = p->r->b->context;
  lpx_kernels kernels;
  p->weight = (lpx_weight){.dtype = dtype, .n_rows = 4 * p->width, .n_columns = p->width};
  const VkDeviceSize bytes = p->weight.n_rows * lpx_weight_row_bytes(dtype, p->width);
  laprox_result result = lpx_kernels_init(context, 1u << dtype, LAPROX_DTYPE_F16, &kernels);
  if (!result) result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, bytes, "weights", &p->weight.buffer);
  if (!result) result = bench_cache_fill(p->r->cache, &p->weight.buffer);
  if (!result) result = time_product(p, &kernels, p->n_rows);
  if (!result) result = time_product(p, &kernels, 1);
  lpx_buffer_finish(context, &p->weight.buffer);
  return result;
}

static laprox_result prepare(prompt *p) {
  bench *b = p->r->b;
  const size_t n = (size_t)p->n_rows * p->width;
  float *input = bench_random_floats(b, n);
  laprox_result result = input ? LAPROX_OK : LAPROX_ERROR_OUT_OF_MEMORY;
  if (!result) result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, n * 4, "input", &p->input);
  if (!result) result = lpx_queue_upload(b->queue, lpx_buffer_whole(&p->input), input, n * 4);
  if (!result)
    result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, lpx_linear_halves_bytes(p->n_rows, p->width),
                             "rounded input", &p->halves);
  if (!result) result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, 4 * n * 4, "output", &p->output);
  free(input);
  return result;
}

laprox_result bench_time_prompt(bench_round *r) {
  const bench_shape *of = &r->cache->of;
  prompt p = {.r = r, .n_rows = rows_of(of), .width = width_of(of)};
  laprox_result result = prepare(&p);
  if (!result) result = time_attention(&p);
  if (!result) result = time_products(&p, LAPROX_DTYPE_F16);
  if (!result) result = time_products(&p, LAPROX_DTYPE_Q8_0);
  lpx_program_destroy(p.program);
  lpx_buffer_finish(r->b->context, &p.output);
  lpx_buffer_finish(r->b->context, &p.halves);
  lpx_buffer_finish(r->b->context, &p.input);
  return result;
}
