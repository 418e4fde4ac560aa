/* Attention over ragged and dense stretches of a cache against f64. */
#include "attention/attention.h"
#include "support/kernel.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define EPSILON      5.9604644775390625e-8 /* 2^-24 */
#define HALF_EPSILON 0.000244140625        /* 2^-12 */
#define LOG2_E       1.4426950408889634
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define MAX_KV_HEADS 4

typedef struct attention_case {
  laprox_dtype dtype;
  uint32_t head_dim, n_kv_heads, group;
  uint32_t n_rows;               /* the last rows of the tail */
  uint32_t prefix[MAX_KV_HEADS]; /* entries of each head's ragged prefix */
  uint32_t n_tail, head_rows;
  VkDeviceSize max_range;     /* 0: the device's */
  float query_size, key_size; /* of the largest number; 0: 1, and 4, so that the softmax is far from flat */
} attention_case;

/* What a case runs on: values as stored, and their buffers. */
typedef struct attention_data {
  laprox_shape shape;
  uint32_t first_row[MAX_KV_HEADS + 1];
  float *query, *prefix_key, *prefix_value, *tail_key, *tail_value;
  lpx_buffer query_buffer, buffers[4];
  lpx_attention_segment prefix, tail;
} attention_data;

/* n_rows of a cache, of which those beyond `used` in every `stride` rows are NaN. */
static lpx_buffer make_rows(kernel_test *test, const attention_case *c, uint32_t n_rows, uint32_t stride,
                            uint32_t used, float scale, float **values) {
  const size_t d = c->head_dim, n = (size_t)n_rows * d;
  *values = kernel_random_floats(test, n);
  for (size_t i = 0; i < n; i++) (*values)[i] *= scale;
  uint8_t *data = kernel_encode(c->dtype, *values, n);
  const size_t row_bytes = laprox_dtype_bytes(c->dtype, d);
  for (uint32_t row = 0; row < n_rows; row++)
    if (row % stride >= used) memset(data + row * row_bytes, 0xff, row_bytes);
  lpx_buffer buffer = kernel_buffer(test, data, n_rows * row_bytes);
  free(data);
  return buffer;
}

static void make_data(kernel_test *test, const attention_case *c, attention_data *data) {
  memset(data, 0, sizeof *data);
  data->shape = (laprox_shape){.n_layers = 1,
                               .n_heads = c->n_kv_heads * c->group,
                               .n_kv_heads = c->n_kv_heads,
                               .head_dim = c->head_dim};
  for (uint32_t head = 0; head < c->n_kv_heads; head++)
    data->first_row[head + 1] = data->first_row[head] + c->prefix[head];
  const uint32_t n_prefix = data->first_row[c->n_kv_heads], n_dense = c->n_kv_heads * c->head_rows;
  const size_t n_query = (size_t)c->n_rows * data->shape.n_heads * c->head_dim;
  data->query = kernel_random_floats(test, n_query);
  for (size_t i = 0; i < n_query && c->query_size > 0; i++) data->query[i] *= c->query_size;
  data->query_buffer = kernel_buffer(test, data->query, n_query * sizeof(float));
  const float sharp = c->key_size > 0 ? c->key_size : 4.0f;
  data->buffers[0] = make_rows(test, c, n_prefix, 1, 1, sharp, &data->prefix_key);
  data->buffers[1] = make_rows(test, c, n_prefix, 1, 1, 1.0f, &data->prefix_value);
  data->buffers[2] = make_rows(test, c, n_dense, c->head_rows, c->n_tail, sharp, &data->tail_key);
  data->buffers[3] = make_rows(test, c, n_dense, c->head_rows, c->n_tail, 1.0f, &data->tail_value);
  if (n_prefix)
    data->prefix = (lpx_attention_segment){.key = lpx_buffer_whole(&data->buffers[0]),
                                           .value = lpx_buffer_whole(&data->buffers[1]),
                                           .head_first_row = data->first_row,
                                           .head_n_rows = c->prefix};
  data->tail = lpx_attention_dense(lpx_buffer_whole(&data->buffers[2]), lpx_buffer_whole(&data->buffers[3]),
                                   c->head_rows, c->n_tail);
}

static void free_data(kernel_test *test, attention_data *data) {
  kernel_release(test, &data->query_buffer);
  for (size_t i = 0; i < COUNT(data->buffers); i++) kernel_release(test, &data->buffers[i]);
  free(data->query);
  free(data->prefix_key);
  free(data->prefix_value);
  free(data->tail_key);
  free(data->tail_value);
}

/* Entry i of a KV head: those of the prefix, then the tail's. */
static size_t entry_row(const attention_case *c, const attention_data *data, uint32_t head, uint32_t entry,
                        bool *in_tail) {
  *in_tail = entry >= c->prefix[head];
  return *in_tail ? (size_t)head * c->head_rows + entry - c->prefix[head] : data->first_row[head] + entry;
}

/* To the 11 bits that f16 has. */
static double rounded(double number) {
  int exponent;
  const double digits = frexp(number, &exponent);
  return ldexp(nearbyint(ldexp(digits, 11)), exponent - 11);
}

/* An element of a query as it is multiplied, times log2(e) / sqrt(d). */
static double scaled_query(float q, uint32_t d, bool halves) {
  const double scale = LOG2_E / sqrt((double)d);
  return halves ? rounded((double)(q * (float)scale)) : (double)q * scale;
}

/* One query row of one head, rounded to f16 or not, and the logarithm of its softmax sum, with a bound of the error that
   f32 may make. */
static double reference_row(const attention_case *c, const attention_data *data, uint32_t row, uint32_t head,
                            bool halves, double *out, double *lse) {
  const uint32_t kv_head = head / c->group, d = c->head_dim;
  const uint32_t n = c->prefix[kv_head] + c->n_tail - c->n_rows + 1 + row;
  const bool none = c->prefix[kv_head] + c->n_tail == 0;
  const float *q = data->query + ((size_t)row * data->shape.n_heads + head) * d;
  double *logits = malloc((n + 1) * sizeof *logits), top = -INFINITY, size = 0.0, total = 0.0;
  bool in_tail;
  for (uint32_t i = 0; i < n && !none; i++) {
    const size_t at = entry_row(c, data, kv_head, i, &in_tail) * d;
    const float *k = (in_tail ? data->tail_key : data->prefix_key) + at;
    double sum = 0.0, magnitude = 0.0;
    for (uint32_t e = 0; e < d; e++) {
      sum += scaled_query(q[e], d, halves) * (double)k[e];
      magnitude += fabs((double)q[e] * (double)k[e]);
    }
    logits[i] = sum / LOG2_E;
    top = fmax(top, logits[i]);
    size = fmax(size, magnitude / sqrt((double)d));
  }
  for (uint32_t e = 0; e < d; e++) out[e] = 0.0;
  for (uint32_t i = 0; i < n && !none; i++) {
    const size_t at = entry_row(c, data, kv_head, i, &in_tail) * d;
    const float *v = (in_tail ? data->tail_value : data->prefix_value) + at;
    const double p = exp(logits[i] - top);
    total += p;
    for (uint32_t e = 0; e < d; e++) out[e] += p * (double)v[e];
  }
  for (uint32_t e = 0; e < d && total > 0.0; e++) out[e] /= total;
  *lse = top + log(total);
  free(logits);
  /* Logits err by d roundings, exp2 by 3 + 2 |x| units, sums by n roundings; values are at most 1. */
  return 2.0 * ((d + 8) * size + 2.0 * (3.0 + 4.0 * size) + n + 16) * EPSILON;
}

/* `halves`: of queries and probabilities rounded to f16; `sums`: NULL, or as lpx_prefill_lse_append leaves them of all
   rows. */
static void check(const attention_case *c, const attention_data *data, bool halves, const float *out,
                  const float *sums, const char *what) {
  double *want = malloc(c->head_dim * sizeof *want);
  for (uint32_t row = 0; row < c->n_rows; row++)
    for (uint32_t head = 0; head < data->shape.n_heads; head++) {
      double lse;
      const double tolerance = reference_row(c, data, row, head, halves, want, &lse);
      const size_t at = ((size_t)row * data->shape.n_heads + head) * c->head_dim;
      if (sums)
        kernel_assert_close((double)sums[(size_t)head * c->n_rows + row], lse,
                            tolerance + 8.0 * EPSILON * fabs(lse), what, at);
      for (uint32_t e = 0; e < c->head_dim; e++)
        kernel_assert_close((double)out[at + e], want[e], halves ? tolerance + HALF_EPSILON : tolerance, what,
                            at + e);
    }
  free(want);
}

static void run_prefill_kind(kernel_test *test, const attention_case *c, const attention_data *data,
                             lpx_prefill_kind kind) {
  static const char *const names[] = {"prefill, small", "prefill", "prefill, large", "prefill, direct",
                                      "prefill, matrix"};
  const VkDeviceSize max_range = test->context->max_range;
  const size_t n_sums = (size_t)c->n_rows * data->shape.n_heads, n = n_sums * c->head_dim;
  lpx_attention attention;
  assert_int_equal(lpx_attention_init(test->context, &data->shape, c->dtype, &attention), LAPROX_OK);
  if (!lpx_prefill_attention_has(&attention, kind)) return;
  assert_int_equal(lpx_prefill_attention_choose(&attention, kind), LAPROX_OK);
  lpx_buffer out = kernel_buffer(test, NULL, (size_t)lpx_prefill_attention_bytes(&data->shape, c->n_rows));
  lpx_buffer sums = kernel_buffer(test, NULL, n_sums * sizeof(float));
  if (c->max_range) test->context->max_range = c->max_range;
  lpx_prefill_attention_append(test->program, &attention, lpx_buffer_whole(&data->query_buffer), c->n_rows,
                               &data->prefix, &data->tail, lpx_buffer_whole(&out));
  lpx_program_barrier(test->program);
  const laprox_buffer ring = lpx_buffer_part(lpx_buffer_whole(&sums), 0, n_sums * sizeof(float));
  lpx_prefill_lse_append(test->program, &attention, lpx_buffer_whole(&out), c->n_rows, 0, ring, 0);
  kernel_run(test);
  test->context->max_range = max_range;
  float *got = malloc(n * sizeof *got), *got_sums = malloc(n_sums * sizeof *got_sums);
  kernel_download(test, &out, got, n * sizeof *got);
  kernel_download(test, &sums, got_sums, n_sums * sizeof *got_sums);
  check(c, data, kind == LPX_PREFILL_MATRIX, got, got_sums, names[kind]);
  kernel_release(test, &out);
  kernel_release(test, &sums);
  free(got);
  free(got_sums);
}

/* In these variants. */
static void run_prefill_kinds(kernel_test *test, const attention_case *c, int first, int last) {
  attention_data data;
  make_data(test, c, &data);
  const uint32_t variants = test->context->variants;
  test->context->variants |= LAPROX_VARIANT_LARGE_TILES; /* any device takes them, if slowly */
  for (int kind = first; kind <= last; kind++) run_prefill_kind(test, c, &data, (lpx_prefill_kind)kind);
  test->context->variants = variants;
  free_data(test, &data);
}

static void run_prefill(kernel_test *test, const attention_case *c) {
  run_prefill_kinds(test, c, 0, LPX_N_PREFILL_KINDS - 1);
}

static void use_merge_variant(lpx_attention *attention, int direct) {
  const laprox_shape *shape = &attention->shape;
  const uint32_t constants[] = {shape->head_dim, shape->n_heads / shape->n_kv_heads};
  assert_int_equal(lpx_pipeline_get(attention->context, direct ? "attention_merge_direct" : "attention_merge",
                                    2, constants, 2, &attention->merge),
                   LAPROX_OK);
}

static bool can_decode(const lpx_attention *attention, lpx_decode_kind kind) {
  if (kind == LPX_DECODE_DIRECT) return lpx_decode_can_be_direct(attention);
  return kind <= LPX_DECODE_QUADS ||
         (attention->cache_dtype == LAPROX_DTYPE_F16 && attention->shape.head_dim % 8 == 0);
}

static void run_decode(kernel_test *test, const attention_case *c) {
  attention_data data;
  make_data(test, c, &data);
  const size_t bytes = (size_t)data.shape.n_heads * c->head_dim * sizeof(float);
  float *got = malloc(bytes);
  uint32_t most = 0;
  for (uint32_t head = 0; head < c->n_kv_heads; head++)
    if (c->prefix[head] + c->n_tail > most) most = c->prefix[head] + c->n_tail;
  const VkDeviceSize max_range = test->context->max_range;
  const uint32_t variants = test->context->variants;
  static const char *const names[] = {"decode, small", "decode", "decode, octets", "decode, direct"};
  test->context->variants |= LAPROX_VARIANT_LARGE_TILES; /* any device takes them, if slowly */
  for (int kind = 0; kind < LPX_N_DECODE_KINDS; kind++) {
    lpx_attention attention;
    assert_int_equal(lpx_attention_init(test->context, &data.shape, c->dtype, &attention), LAPROX_OK);
    if (!can_decode(&attention, (lpx_decode_kind)kind)) continue;
    assert_int_equal(lpx_decode_attention_choose(&attention, (lpx_decode_kind)kind), LAPROX_OK);
    use_merge_variant(&attention, kind == LPX_DECODE_DIRECT);
    lpx_buffer out = kernel_buffer(test, NULL, bytes);
    lpx_buffer scratch =
        kernel_buffer(test, NULL, (size_t)lpx_decode_attention_scratch_bytes(&data.shape, most));
    if (c->max_range) test->context->max_range = c->max_range;
    lpx_decode_attention_append(test->program, &attention, lpx_buffer_whole(&data.query_buffer),
                                (lpx_attention_segment[]){data.prefix, data.tail}, 2,
                                lpx_buffer_whole(&scratch), lpx_buffer_whole(&out));
    kernel_run(test);
    test->context->max_range = max_range;
    kernel_download(test, &out, got, bytes);
    check(c, &data, false, got, NULL, names[kind]);
    kernel_release(test, &out);
    kernel_release(test, &scratch);
  }
  test->context->variants = variants;
  free(got);
  free_data(test, &data);
}

/* A prompt's rows, then one row over the same cache. */
static void run_both(kernel_test *test, attention_case c) {
  run_prefill(test, &c);
  c.n_rows = 1;
  run_decode(test, &c);
}

/* Head dimensions and group sizes, with lengths on and beside the edges of tiles and chunks. */
static void test_shapes(void **state) {
  kernel_test test = kernel_test_begin(state, 1);
  static const uint32_t dims[] = {4, 32, 64, 80, 96, 128, 256}, groups[] = {1, 3, 4, 7, 8, 16};
  static const uint32_t rows[] = {2, 3, 65}, before[] = {0, 1, 63, 130};
  for (size_t i = 0; i < COUNT(dims); i++)
    for (size_t j = 0; j < COUNT(groups); j++) {
      /* Each driver compiles every one of these anew: all groups with one dimension, all dimensions with one.
       */
      if (dims[i] != 64 && j != i % COUNT(groups)) continue;
      attention_case c = {.dtype = (i + j) % 3 ? LAPROX_DTYPE_F16 : LAPROX_DTYPE_F32,
                          .head_dim = dims[i],
                          .n_kv_heads = 1 + (uint32_t)(i + j) % 2,
                          .group = groups[j],
                          .n_rows = rows[(i + j) % COUNT(rows)]};
      c.n_tail = c.n_rows + before[(i * 2 + j) % COUNT(before)];
      c.head_rows = c.n_tail + (uint32_t)j;
      run_both(&test, c);
    }
  kernel_test_end(&test);
}

/* A ragged prefix of every length, empty heads too, before a tail. */
static void test_segments(void **state) {
  kernel_test test = kernel_test_begin(state, 2);
  static const uint32_t prefixes[][3] = {{0, 0, 0}, {0, 1, 0}, {1, 0, 77}, {127, 128, 129}, {300, 5, 0}};
  static const uint32_t tails[] = {1, 3, 64, 129, 257};
  for (size_t i = 0; i < COUNT(prefixes); i++)
    for (size_t j = 0; j < COUNT(tails); j++) {
      attention_case c = {.dtype = (i + j) % 2 ? LAPROX_DTYPE_F16 : LAPROX_DTYPE_F32,
                          .head_dim = i % 2 ? 64 : 96,
                          .n_kv_heads = 3,
                          .group = 2,
                          .n_rows = 1,
                          .n_tail = tails[j],
                          .head_rows = tails[j] + 2};
      memcpy(c.prefix, prefixes[i], sizeof prefixes[i]);
      run_decode(&test, &c);
      c.n_rows = tails[j] < 70 ? tails[j] : 70;
      run_prefill(&test, &c);
    }
  kernel_test_end(&test);
}

/* Blocks, in heads that begin at odd words and at every place of a range. */
static void test_blocks(void **state) {
  kernel_test test = kernel_test_begin(state, 6);
  static const uint32_t dims[] = {64, 128, 192, 256}, groups[] = {3, 1, 4, 16};
  static const uint32_t rows[] = {65, 2, 3, 33}, before[] = {63, 0, 130, 1};
  for (size_t i = 0; i < COUNT(dims); i++)
    for (size_t j = 0; j < 2; j++) {
      if (i && j != i % 2) continue; /* each compiles anew */
      attention_case c = {.dtype = j ? LAPROX_DTYPE_Q8_0 : LAPROX_DTYPE_Q4_0,
                          .head_dim = dims[i],
                          .n_kv_heads = 3,
                          .group = groups[i],
                          .n_rows = rows[(i + j) % COUNT(rows)],
                          .prefix = {129, (uint32_t)i % 2, 7 + (uint32_t)j}};
      c.n_tail = c.n_rows + before[i];
      c.head_rows = c.n_tail + (uint32_t)j;
      run_both(&test, c);
    }
  kernel_test_end(&test);
}

/* Decode over nothing but a prefix, where some head, or every one, has no entry at all: zeros. */
static void test_heads_without_entries(void **state) {
  kernel_test test = kernel_test_begin(state, 3);
  attention_case c = {.dtype = LAPROX_DTYPE_F16,
                      .head_dim = 64,
                      .n_kv_heads = 3,
                      .group = 3,
                      .n_rows = 1,
                      .prefix = {0, 130, 0},
                      .head_rows = 4};
  run_decode(&test, &c);
  c.prefix[1] = 0;
  run_decode(&test, &c);
  kernel_test_end(&test);
}

/* Caches beyond the range of a binding: head by head. */
static void test_ranges(void **state) {
  kernel_test test = kernel_test_begin(state, 4);
  attention_case c = {.dtype = LAPROX_DTYPE_F32,
                      .head_dim = 68, /* head offsets that no device's alignment divides */
                      .n_kv_heads = 4,
                      .group = 1,
                      .n_rows = 65,
                      .prefix = {290, 3, 301, 0},
                      .n_tail = 290,
                      .head_rows = 301,
                      .max_range = (VkDeviceSize)180 << 10};
  run_both(&test, c);
  for (laprox_dtype dtype = LAPROX_DTYPE_Q8_0; dtype <= LAPROX_DTYPE_Q4_0; dtype++) {
    c = (attention_case){.dtype = dtype,
                         .head_dim = 64,
                         .n_kv_heads = 4,
                         .group = 1,
                         .n_rows = 9,
                         .prefix = {1290, 3, 1301, 0},
                         .n_tail = 1290,
                         .head_rows = 1301,
                         .max_range = (VkDeviceSize)(dtype == LAPROX_DTYPE_Q8_0 ? 190 : 102) << 10};
    run_both(&test, c);
  }
  kernel_test_end(&test);
}

/* Two runs of the same give the same bits, and a tail that grows changes no chunk before it. */
static void test_decode_is_deterministic(void **state) {
  kernel_test test = kernel_test_begin(state, 5);
  const attention_case c = {.dtype = LAPROX_DTYPE_F16,
                            .head_dim = 128,
                            .n_kv_heads = 2,
                            .group = 5,
                            .n_rows = 1,
                            .prefix = {700, 33},
                            .n_tail = 150,
                            .head_rows = 160};
  attention_data data;
  make_data(&test, &c, &data);
  lpx_attention attention;
  assert_int_equal(lpx_attention_init(test.context, &data.shape, c.dtype, &attention), LAPROX_OK);
  lpx_buffer scratch =
      kernel_buffer(&test, NULL, (size_t)lpx_decode_attention_scratch_bytes(&data.shape, 850));
  float got[2][1280];
  for (int run = 0; run < 2; run++) {
    lpx_buffer out = kernel_buffer(&test, NULL, sizeof got[run]);
    lpx_decode_attention_append(test.program, &attention, lpx_buffer_whole(&data.query_buffer),
                                (lpx_attention_segment[]){data.prefix, data.tail}, 2,
                                lpx_buffer_whole(&scratch), lpx_buffer_whole(&out));
    kernel_run(&test);
    kernel_download(&test, &out, got[run], sizeof got[run]);
    kernel_release(&test, &out);
  }
  assert_memory_equal(got[0], got[1], sizeof got[0]);
  check(&c, &data, false, got[0], NULL, "decode");
  kernel_release(&test, &scratch);
  free_data(&test, &data);
  kernel_test_end(&test);
}

/* Logits that grow and shrink by more than a probability's room, and numbers that f16 has not. */
static void test_magnitudes(void **state) {
  kernel_test test = kernel_test_begin(state, 7);
  static const float sizes[][2] = {
      {1.0f, 60.0f}, {1e-3f, 4000.0f}, {1e5f, 0.004f}, {0.0625f, 0.0625f}, {1e9f, 60.0f}};
  for (size_t i = 0; i < COUNT(sizes); i++) {
    const attention_case c = {.dtype = LAPROX_DTYPE_F16,
                              .head_dim = 64,
                              .n_kv_heads = 2,
                              .group = 2,
                              .n_rows = 37,
                              .prefix = {i % 2 ? 70 : 0, i % 2 ? 1 : 0},
                              .n_tail = 201,
                              .head_rows = 201,
                              .query_size = sizes[i][0],
                              .key_size = sizes[i][1]};
    run_prefill_kinds(&test, &c, 0, LPX_PREFILL_MATRIX);
  }
  kernel_test_end(&test);
}

/* Every dimension there is on matrices, in every tile of a workgroup. */
static void test_matrices(void **state) {
  kernel_test test = kernel_test_begin(state, 8);
  uint32_t *shared_bytes = &test.context->properties.limits.maxComputeSharedMemorySize;
  const uint32_t device_bytes = *shared_bytes;
  static const uint32_t groups[] = {5, 1, 3, 8}, rows[] = {2, 65, 33, 7};
  for (uint32_t i = 0; i < 8; i++) {
    attention_case c = {.dtype = LAPROX_DTYPE_F16,
                        .head_dim = 16 * (i + 1),
                        .n_kv_heads = 2,
                        .group = groups[i % 4],
                        .n_rows = rows[i % 4],
                        .n_tail = 66 + i,
                        .head_rows = 70 + i};
    run_prefill_kinds(&test, &c, LPX_PREFILL_MATRIX, LPX_PREFILL_MATRIX);
    if (i % 4 != 3) continue;
    for (uint32_t bytes = 10240; bytes <= 24576; bytes += 2048) {
      *shared_bytes = bytes < device_bytes ? bytes : device_bytes;
      run_prefill_kinds(&test, &c, LPX_PREFILL_MATRIX, LPX_PREFILL_MATRIX);
    }
    *shared_bytes = device_bytes;
  }
  kernel_test_end(&test);
}

static void test_bad_arguments(void **state) {
  test_gpu *gpu = *state;
  laprox_context *context = laprox_device_context(gpu->device);
  const laprox_shape shape = {.n_layers = 1, .n_heads = 2, .n_kv_heads = 1, .head_dim = 64};
  laprox_shape bad = shape;
  bad.head_dim = 260;
  lpx_attention attention;
  const unsigned before = gpu->n_errors;
  assert_int_equal(lpx_attention_init(context, &shape, LAPROX_DTYPE_BF16, &attention),
                   LAPROX_ERROR_UNSUPPORTED);
  assert_int_not_equal(lpx_attention_init(context, &bad, LAPROX_DTYPE_F16, &attention), LAPROX_OK);
  assert_int_equal(gpu->n_errors, before + 2);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_shapes),        cmocka_unit_test(test_segments),
      cmocka_unit_test(test_blocks),        cmocka_unit_test(test_heads_without_entries),
      cmocka_unit_test(test_ranges),        cmocka_unit_test(test_decode_is_deterministic),
      cmocka_unit_test(test_magnitudes),    cmocka_unit_test(test_matrices),
      cmocka_unit_test(test_bad_arguments),
  };
  return cmocka_run_group_tests(tests, test_gpu_setup, test_gpu_teardown);
}
