/* bench_prompt.c: what reading a prompt consists of: attention of many tokens at once, and products with weights; the
   latter with one row too, as decoding has them. */
#include "bench_kernels.h"

#include <stdlib.h>

enum { PROMPT_ROWS = 1024 }; /* at most */

/* ---- tokens and weights ---- */

static uint32_t rows_of(const bench_shape *of) {
  return of->n_tokens < PROMPT_ROWS ? of->n_tokens : PROMPT_ROWS;
}

static uint32_t width_of(const bench_shape *of) {
  return of->shape.n_heads * of->shape.head_dim;
}

/* Weights of f16 and q8_0, and rows of input, four times as wide output, and halves. */
double bench_prompt_bytes(const bench_shape *of) {
  const double width = width_of(of);
  return 4 * (2 + 34.0 / 32) * width * width + (4 + 16 + 2) * width * rows_of(of);
}

static laprox_result make_input(const bench_cache *cache, bench_prompt *p) {
  bench *b = cache->b;
  const size_t n = (size_t)p->n_rows * p->width;
  float *input = bench_random_floats(b, n);
  laprox_result result = input ? LAPROX_OK : LAPROX_ERROR_OUT_OF_MEMORY;
  if (!result) result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, n * 4, "input", &p->input);
  if (!result) result = lpx_queue_upload(b->queue, lpx_buffer_whole(&p->input), input, n * 4);
  free(input);
  return result;
}

/* As wide as a feed-forward layer mostly is. */
static laprox_result make_weight(const bench_cache *cache, laprox_dtype dtype, uint32_t width,
                                 lpx_weight *out) {
  *out = (lpx_weight){.dtype = dtype, .n_rows = 4 * width, .n_columns = width};
  const VkDeviceSize bytes = out->n_rows * lpx_weight_row_bytes(dtype, width);
  const laprox_result result =
      lpx_buffer_init(cache->b->context, LPX_MEMORY_DEVICE, bytes, "weights", &out->buffer);
  return result ? result : bench_cache_fill(cache, &out->buffer);
}

laprox_result bench_prompt_init(bench_cache *cache, bench_prompt *out) {
  laprox_context *context = cache->b->context;
  *out = (bench_prompt){.n_rows = rows_of(&cache->of), .width = width_of(&cache->of)};
  const VkDeviceSize halves_bytes = lpx_linear_halves_bytes(out->n_rows, out->width),
                     output_bytes = (VkDeviceSize)out->n_rows * 4 * out->width * 4;
  laprox_result result = make_input(cache, out);
  if (!result)
    result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, halves_bytes, "rounded input", &out->halves);
  if (!result) result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, output_bytes, "output", &out->output);
  if (!result) result = make_weight(cache, LAPROX_DTYPE_F16, out->width, &out->weights[0]);
  if (!result) result = make_weight(cache, LAPROX_DTYPE_Q8_0, out->width, &out->weights[1]);
  return result;
}

void bench_prompt_finish(const bench_cache *cache, bench_prompt *prompt) {
  laprox_context *context = cache->b->context;
  for (size_t i = 0; i < 2; i++) lpx_buffer_finish(context, &prompt->weights[i].buffer);
  lpx_buffer_finish(context, &prompt->output);
  lpx_buffer_finish(context, &prompt->halves);
  lpx_buffer_finish(context, &prompt->input);
}

/* ---- kernels ---- */

/* The prompt's last tokens over one layer's cache. */
static laprox_result time_attention(bench_round *r) {
  const bench_cache *cache = r->cache;
  const bench_prompt *p = r->prompt;
  const uint32_t n = cache->of.n_tokens;
  const lpx_attention_segment segment =
      lpx_attention_dense(lpx_buffer_whole(&cache->keys[0]), lpx_buffer_whole(&cache->values[0]), n, n);
  lpx_attention attention;
  lpx_program *program = NULL;
  bench_result *row = NULL;
  laprox_result result = lpx_attention_init(r->b->context, &cache->of.shape, LAPROX_DTYPE_F16, &attention);
  if (!result) result = lpx_program_create(r->b->context, "prompt attention", &program);
  if (!result) {
    lpx_prefill_attention_append(program, &attention, lpx_buffer_whole(&p->input), p->n_rows, NULL, &segment,
                                 lpx_buffer_whole(&p->output));
    result = bench_time_program(r, "prompt attention", program, &row);
  }
  lpx_program_destroy(program);
  if (!row) return result;
  const double seen = n - (p->n_rows - 1) / 2.0; /* by a token */
  row->bytes += 2.0 * n * cache->of.shape.n_kv_heads * (double)bench_cache_row_bytes(cache) +
                8.0 * p->n_rows * p->width;
  row->flops += 4.0 * p->n_rows * seen * p->width;
  return result;
}

static laprox_result time_product(bench_round *r, const char *kernel, const lpx_kernels *kernels,
                                  const lpx_weight *weight, uint32_t n_rows) {
  const lpx_matrix matrix = {
      .parts = {*weight}, .n_parts = 1, .n_rows = weight->n_rows, .n_columns = weight->n_columns};
  const lpx_linear product = {.matrix = &matrix,
                              .in = lpx_buffer_whole(&r->prompt->input),
                              .n_rows = n_rows,
                              .halves = lpx_buffer_whole(&r->prompt->halves),
                              .out = lpx_buffer_whole(&r->prompt->output)};
  lpx_program *program = NULL;
  bench_result *row = NULL;
  laprox_result result = lpx_program_create(r->b->context, "product", &program);
  if (result) return result;
  lpx_linear_append(program, kernels, &product);
  result = bench_time_program(r, kernel, program, &row);
  lpx_program_destroy(program);
  if (!row) return result;
  row->bytes += (double)weight->n_rows * (double)laprox_dtype_bytes(weight->dtype, weight->n_columns) +
                4.0 * n_rows * (weight->n_rows + weight->n_columns);
  row->flops += 2.0 * n_rows * weight->n_rows * weight->n_columns;
  return result;
}

laprox_result bench_time_prompt(bench_round *r) {
  static const char *const names[][2] = {{"prompt by f16", "token by f16"},
                                         {"prompt by q8_0", "token by q8_0"}};
  laprox_result result = time_attention(r);
  for (size_t i = 0; i < 2 && !result; i++) {
    const lpx_weight *weight = &r->prompt->weights[i];
    lpx_kernels kernels;
    result = lpx_kernels_init(r->b->context, 1u << weight->dtype, LAPROX_DTYPE_F16, &kernels);
    if (!result) result = time_product(r, names[i][0], &kernels, weight, r->prompt->n_rows);
    if (!result) result = time_product(r, names[i][1], &kernels, weight, 1);
  }
  return result;
}
