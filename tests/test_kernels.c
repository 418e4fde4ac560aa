/* Every kernel of the forward pass but attention against f64. */
#include "runtime/kernels.h"
#include "support/kernel.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define EPSILON      5.9604644775390625e-8 /* 2^-24: half a unit in the last place of f32 */
#define ALL_DTYPES   0x1eu
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static lpx_kernels make_kernels(kernel_test *test, laprox_dtype cache_dtype) {
  lpx_kernels kernels;
  assert_int_equal(lpx_kernels_init(test->context, ALL_DTYPES, cache_dtype, &kernels), LAPROX_OK);
  return kernels;
}

/* A random weight; *values, to be freed, is what it holds. */
static lpx_weight make_weight(kernel_test *test, laprox_dtype dtype, uint32_t n_rows, uint32_t n_columns,
                              float **values) {
  const size_t n = (size_t)n_rows * n_columns;
  *values = kernel_random_floats(test, n);
  void *data = kernel_encode(dtype, *values, n);
  const lpx_weight weight = {.buffer = kernel_buffer(test, data, laprox_dtype_bytes(dtype, n)),
                             .dtype = dtype,
                             .n_rows = n_rows,
                             .n_columns = n_columns};
  free(data);
  return weight;
}

typedef struct matmul_case {
  laprox_dtype dtype;
  uint32_t n_rows, n_outputs, depth;
  bool accumulate;
} matmul_case;

/* K products and K sums round once each: |error| <= (K + 2) 2^-24 sum |x w|. */
static void check_matmul(const matmul_case *c, const float *x, const float *w, const float *before,
                         const float *y, size_t skip) {
  char what[96];
  (void)snprintf(what, sizeof what, "matmul %s %u x %u x %u", laprox_dtype_name(c->dtype), c->n_rows,
                 c->n_outputs, c->depth);
  for (size_t row = 0; row < c->n_rows; row++)
    for (size_t column = 0; column < c->n_outputs; column++) {
      const size_t at = skip + row * c->n_outputs + column;
      double sum = c->accumulate ? (double)before[at] : 0.0, size = fabs(sum);
      for (size_t k = 0; k < c->depth; k++) {
        const double product = (double)x[row * c->depth + k] * (double)w[column * c->depth + k];
        sum += product;
        size += fabs(product);
      }
      kernel_assert_close((double)y[at], sum, (c->depth + 2) * EPSILON * size, what, at);
    }
}

static void run_matmul(kernel_test *test, const lpx_kernels *kernels, const matmul_case *c) {
  const size_t skip = 3; /* the output need not be aligned */
  const size_t n_out = skip + (size_t)c->n_rows * c->n_outputs + 1;
  float *w, *x = kernel_random_floats(test, (size_t)c->n_rows * c->depth);
  float *before = kernel_random_floats(test, n_out), *y = malloc(n_out * sizeof *y);
  lpx_weight weight = make_weight(test, c->dtype, c->n_outputs, c->depth, &w);
  lpx_buffer in = kernel_buffer(test, x, (size_t)c->n_rows * c->depth * sizeof *x);
  lpx_buffer out = kernel_buffer(test, before, n_out * sizeof *before);
  lpx_matmul_append(test->program, kernels, &weight, lpx_buffer_whole(&in), c->n_rows,
                    lpx_buffer_part(lpx_buffer_whole(&out), skip * sizeof *y, (n_out - skip) * sizeof *y),
                    c->accumulate);
  kernel_run(test);
  kernel_download(test, &out, y, n_out * sizeof *y);
  check_matmul(c, x, w, before, y, skip);
  assert_memory_equal(y, before, skip * sizeof *y);
  assert_memory_equal(y + n_out - 1, before + n_out - 1, sizeof *y);
  kernel_release(test, &in);
  kernel_release(test, &out);
  kernel_release(test, &weight.buffer);
  free(w);
  free(x);
  free(before);
  free(y);
}

static void run_matmuls(kernel_test *test, const lpx_kernels *kernels) {
  static const uint32_t rows[] = {1, 2, 3, 65};
  static const uint32_t outputs[] = {1, 31, 130};
  for (uint32_t dtype = 1; dtype < LPX_N_DTYPES; dtype++)
    for (size_t i = 0; i < COUNT(rows); i++)
      for (size_t j = 0; j < COUNT(outputs); j++) {
        const uint32_t depths[] = {dtype == LAPROX_DTYPE_Q8_0 ? 32 : 4, dtype == LAPROX_DTYPE_Q8_0 ? 96 : 76,
                                   288};
        for (size_t k = 0; k < COUNT(depths); k++)
          run_matmul(test, kernels,
                     &(matmul_case){.dtype = (laprox_dtype)dtype,
                                    .n_rows = rows[i],
                                    .n_outputs = outputs[j],
                                    .depth = depths[k],
                                    .accumulate = (i + j + k) % 2 != 0});
      }
}

static void test_matmul(void **state) {
  kernel_test test = kernel_test_begin(state, 1);
  lpx_kernels kernels = make_kernels(&test, LAPROX_DTYPE_F16);
  static const char *const variants[] = {"matmul", "matmul_direct"};
  for (size_t i = 0; i < COUNT(variants); i++) {
    for (uint32_t dtype = 1; dtype < LPX_N_DTYPES; dtype++)
      assert_int_equal(lpx_pipeline_get(test.context, variants[i], 3, &dtype, 1, &kernels.matmul[dtype]),
                       LAPROX_OK);
    run_matmuls(&test, &kernels);
  }
  kernel_test_end(&test);
}

/* Weights, inputs and outputs beyond the range of a binding. */
static void test_matmul_in_parts(void **state) {
  kernel_test test = kernel_test_begin(state, 2);
  lpx_kernels kernels = make_kernels(&test, LAPROX_DTYPE_F16);
  const VkDeviceSize max_range = test.context->max_range;
  test.context->max_range = (VkDeviceSize)150 << 10;
  run_matmul(&test, &kernels, &(matmul_case){LAPROX_DTYPE_F32, 130, 530, 128, true});
  run_matmul(&test, &kernels, &(matmul_case){LAPROX_DTYPE_F32, 1, 530, 128, false});
  test.context->max_range = (VkDeviceSize)145 << 10;
  run_matmul(&test, &kernels, &(matmul_case){LAPROX_DTYPE_Q8_0, 70, 530, 288, false});
  test.context->max_range = max_range;
  kernel_test_end(&test);
}

static void run_embed(kernel_test *test, const lpx_kernels *kernels, laprox_dtype dtype) {
  enum { N_VOCAB = 530, DIM = 96, N = 7, SKIP = 4 };
  const uint32_t ids[N] = {0, 529, 255, 256, 1, 1, 511};
  float *table, out[SKIP + N * DIM];
  lpx_weight weight = make_weight(test, dtype, N_VOCAB, DIM, &table);
  lpx_buffer tokens = kernel_buffer(test, ids, sizeof ids), hidden = kernel_buffer(test, NULL, sizeof out);
  lpx_embed_append(test->program, kernels, &weight, lpx_buffer_whole(&tokens), N,
                   lpx_buffer_part(lpx_buffer_whole(&hidden), SKIP * 4, sizeof out - SKIP * 4));
  kernel_run(test);
  kernel_download(test, &hidden, out, sizeof out);
  for (size_t i = 0; i < N; i++)
    assert_memory_equal(out + SKIP + i * DIM, table + (size_t)ids[i] * DIM, DIM * sizeof(float));
  kernel_release(test, &tokens);
  kernel_release(test, &hidden);
  kernel_release(test, &weight.buffer);
  free(table);
}

static void test_embed(void **state) {
  kernel_test test = kernel_test_begin(state, 3);
  lpx_kernels kernels = make_kernels(&test, LAPROX_DTYPE_F16);
  const VkDeviceSize max_range = test.context->max_range;
  for (uint32_t dtype = 1; dtype < LPX_N_DTYPES; dtype++) {
    test.context->max_range = max_range;
    run_embed(&test, &kernels, (laprox_dtype)dtype);
    test.context->max_range = laprox_dtype_bytes((laprox_dtype)dtype, 96) * 300;
    run_embed(&test, &kernels, (laprox_dtype)dtype);
  }
  test.context->max_range = max_range;
  kernel_test_end(&test);
}

static void run_norm(kernel_test *test, const lpx_kernels *kernels, uint32_t n_rows, uint32_t dim) {
  const size_t n = (size_t)n_rows * dim, skip = 4;
  const float epsilon = 1e-5f;
  float *w, *x = kernel_random_floats(test, skip + n), *y = malloc(n * sizeof *y);
  for (size_t i = 0; i < dim; i++) x[skip + i] *= 1e-3f; /* where epsilon counts */
  lpx_weight weight = make_weight(test, LAPROX_DTYPE_F32, 1, dim, &w);
  lpx_buffer in = kernel_buffer(test, x, (skip + n) * sizeof *x),
             out = kernel_buffer(test, NULL, n * sizeof *y);
  lpx_norm_append(test->program, kernels, &weight, epsilon,
                  lpx_buffer_part(lpx_buffer_whole(&in), skip * sizeof *x, n * sizeof *x), n_rows,
                  lpx_buffer_whole(&out));
  kernel_run(test);
  kernel_download(test, &out, y, n * sizeof *y);
  for (size_t row = 0; row < n_rows; row++) {
    double sum = 0.0;
    for (size_t i = 0; i < dim; i++) sum += (double)x[skip + row * dim + i] * (double)x[skip + row * dim + i];
    const double factor = 1.0 / sqrt(sum / dim + (double)epsilon);
    for (size_t i = 0; i < dim; i++) {
      const double want = (double)x[skip + row * dim + i] * factor * (double)w[i];
      /* dim sums, and a few roundings of root, quotient and products */
      kernel_assert_close((double)y[row * dim + i], want, (dim + 12) * EPSILON * fabs(want), "norm", i);
    }
  }
  kernel_release(test, &in);
  kernel_release(test, &out);
  kernel_release(test, &weight.buffer);
  free(w);
  free(x);
  free(y);
}

static void test_norm(void **state) {
  kernel_test test = kernel_test_begin(state, 4);
  lpx_kernels kernels = make_kernels(&test, LAPROX_DTYPE_F16);
  static const uint32_t rows[] = {1, 3, 65}, dims[] = {4, 76, 256, 1028};
  for (size_t i = 0; i < COUNT(rows); i++)
    for (size_t j = 0; j < COUNT(dims); j++) run_norm(&test, &kernels, rows[i], dims[j]);
  kernel_test_end(&test);
}

static void test_swiglu(void **state) {
  kernel_test test = kernel_test_begin(state, 5);
  lpx_kernels kernels = make_kernels(&test, LAPROX_DTYPE_F16);
  enum { N = 2052 };
  float *gate = kernel_random_floats(&test, N), *up = kernel_random_floats(&test, N), got[N];
  for (size_t i = 0; i < N; i++) gate[i] *= i % 2 ? 20.0f : 1.0f;
  gate[0] = -1000.0f;
  gate[1] = 1000.0f;
  lpx_buffer g = kernel_buffer(&test, gate, N * sizeof *gate), u = kernel_buffer(&test, up, N * sizeof *up);
  lpx_swiglu_append(test.program, &kernels, lpx_buffer_whole(&g), lpx_buffer_whole(&u), N);
  kernel_run(&test);
  kernel_download(&test, &g, got, sizeof got);
  for (size_t i = 0; i < N; i++) {
    const double x = (double)gate[i], want = x / (1.0 + exp(-x)) * (double)up[i];
    /* Vulkan's exp: 3 + 2 |x| units in the last place, of two halves */
    const double units = 2.0 * (3.0 + 2.0 * fabs(x)) + 8.0;
    kernel_assert_close((double)got[i], want, units * EPSILON * fabs(want) + 1e-30, "swiglu", i);
  }
  kernel_release(&test, &g);
  kernel_release(&test, &u);
  free(gate);
  free(up);
  kernel_test_end(&test);
}

typedef struct rope_case {
  laprox_dtype cache_dtype;
  uint32_t n_rows, n_heads, head_dim, first_position, head_rows, first_row;
  VkDeviceSize max_range; /* 0: the device's */
} rope_case;

static double frequency(const rope_case *c, size_t pair) {
  return pow(10000.0, -2.0 * (double)pair / (double)c->head_dim);
}

static lpx_buffer make_turns(kernel_test *test, const rope_case *c) {
  uint32_t words[256];
  for (size_t i = 0; i < c->head_dim / 2; i++) {
    const uint64_t turns = (uint64_t)(frequency(c, i) / 6.283185307179586 * 18446744073709551616.0);
    words[2 * i] = (uint32_t)turns;
    words[2 * i + 1] = (uint32_t)(turns >> 32);
  }
  return kernel_buffer(test, words, (size_t)c->head_dim * 4);
}

/* Row and head of what was stored against the source. */
static void check_rotated(const rope_case *c, const float *x, const float *y, size_t row, bool rotate,
                          bool rounded, const char *what) {
  for (size_t pair = 0; pair < c->head_dim / 2; pair++) {
    const double a = (double)x[2 * pair], b = (double)x[2 * pair + 1];
    const double angle = rotate ? (double)(c->first_position + row) * frequency(c, pair) : 0.0;
    const double size = fabs(a) + fabs(b);
    /* Vulkan's sin and cos err by up to 2^-11; without a rotation only the cache's rounding is left. */
    const double tolerance = size * ((rotate ? 0x1p-11 + 2.0 * EPSILON : 0.0) + (rounded ? 0x1p-11 : 0.0));
    kernel_assert_close((double)y[2 * pair], a * cos(angle) - b * sin(angle), tolerance, what, pair);
    kernel_assert_close((double)y[2 * pair + 1], a * sin(angle) + b * cos(angle), tolerance, what, pair);
  }
}

static void run_rope(kernel_test *test, const rope_case *c) {
  lpx_kernels kernels = make_kernels(test, c->cache_dtype);
  const VkDeviceSize max_range = test->context->max_range;
  if (c->max_range) test->context->max_range = c->max_range;
  const size_t d = c->head_dim, n = (size_t)c->n_rows * c->n_heads * d;
  const size_t n_cache = (size_t)c->n_heads * c->head_rows * d;
  const size_t cache_bytes = laprox_dtype_bytes(c->cache_dtype, n_cache);
  float *x = kernel_random_floats(test, n), *rotated = malloc(n * sizeof *x),
        *cache = malloc(n_cache * sizeof *x);
  void *raw = malloc(cache_bytes);
  lpx_buffer source = kernel_buffer(test, x, n * sizeof *x), turns = make_turns(test, c);
  lpx_buffer to = kernel_buffer(test, NULL, n * sizeof *x), k = kernel_buffer(test, NULL, cache_bytes),
             v = kernel_buffer(test, NULL, cache_bytes);
  lpx_head_rows rows = {.source = lpx_buffer_whole(&source),
                        .n_rows = c->n_rows,
                        .n_heads = c->n_heads,
                        .head_dim = c->head_dim,
                        .turns = lpx_buffer_whole(&turns),
                        .first_position = c->first_position,
                        .rotate = true};
  lpx_rotate_append(test->program, &kernels, &rows, lpx_buffer_whole(&to));
  lpx_store_append(test->program, &kernels, &rows, lpx_buffer_whole(&k), c->head_rows, c->first_row);
  rows.rotate = false;
  lpx_store_append(test->program, &kernels, &rows, lpx_buffer_whole(&v), c->head_rows, c->first_row);
  kernel_run(test);
  kernel_download(test, &to, rotated, n * sizeof *x);
  for (size_t i = 0; i < (size_t)c->n_rows * c->n_heads; i++)
    check_rotated(c, x + i * d, rotated + i * d, i / c->n_heads, true, false, "rotated");
  for (int rotate = 0; rotate < 2; rotate++) {
    kernel_download(test, rotate ? &k : &v, raw, cache_bytes);
    lpx_to_f32(c->cache_dtype, raw, n_cache, cache);
    for (size_t head = 0; head < c->n_heads; head++)
      for (size_t i = 0; i < c->head_rows; i++) {
        const float *stored = cache + (head * c->head_rows + i) * d;
        if (i >= c->first_row && i < c->first_row + c->n_rows)
          check_rotated(c, x + ((i - c->first_row) * c->n_heads + head) * d, stored, i - c->first_row, rotate,
                        c->cache_dtype == LAPROX_DTYPE_F16, "stored");
        else
          for (size_t e = 0; e < d; e++) assert_true(isnan(stored[e])); /* other rows are left alone */
      }
  }
  test->context->max_range = max_range;
  lpx_buffer *buffers[] = {&source, &turns, &to, &k, &v};
  for (size_t i = 0; i < COUNT(buffers); i++) kernel_release(test, buffers[i]);
  free(x);
  free(rotated);
  free(cache);
  free(raw);
}

static void test_rope(void **state) {
  kernel_test test = kernel_test_begin(state, 6);
  const rope_case cases[] = {
      {LAPROX_DTYPE_F16, 1, 1, 4, 0, 1, 0, 0},
      {LAPROX_DTYPE_F16, 65, 3, 80, 1, 70, 5, 0},
      {LAPROX_DTYPE_F32, 3, 2, 64, 131069, 9, 1, 0},
      {LAPROX_DTYPE_F16, 3, 7, 128, 1000003, 3, 0, 0},
      {LAPROX_DTYPE_F32, 2, 1, 256, 77, 2, 0, 0},
      {LAPROX_DTYPE_F16, 17, 5, 96, 20, 33, 13, (VkDeviceSize)33 << 10}, /* two or three heads a binding */
  };
  for (size_t i = 0; i < COUNT(cases); i++) run_rope(&test, &cases[i]);
  kernel_test_end(&test);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_matmul), cmocka_unit_test(test_matmul_in_parts), cmocka_unit_test(test_embed),
      cmocka_unit_test(test_norm),   cmocka_unit_test(test_swiglu),          cmocka_unit_test(test_rope),
  };
  return cmocka_run_group_tests(tests, test_gpu_setup, test_gpu_teardown);
}
