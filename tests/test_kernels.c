/* Every kernel of the forward pass but attention against f64. */
#include "runtime/kernels.h"
#include "support/encode.h"
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
  const size_t bytes = n_rows * (size_t)lpx_weight_row_bytes(dtype, n_columns);
  uint8_t *packed = malloc(bytes);
  assert_non_null(packed);
  lpx_weight_pack(dtype, n_columns, n_rows, data, packed);
  const lpx_weight weight = {
      .buffer = kernel_buffer(test, packed, bytes), .dtype = dtype, .n_rows = n_rows, .n_columns = n_columns};
  free(data);
  free(packed);
  return weight;
}

/* A norm's weight, which has no padding. */
static lpx_weight make_vector(kernel_test *test, uint32_t n, float **values) {
  *values = kernel_random_floats(test, n);
  return (lpx_weight){.buffer = kernel_buffer(test, *values, n * sizeof **values),
                      .dtype = LAPROX_DTYPE_F32,
                      .n_rows = 1,
                      .n_columns = n};
}

typedef struct matmul_case {
  laprox_dtype dtype;
  uint32_t n_rows, n_outputs, depth;
  bool accumulate;
} matmul_case;

/* K products and K sums round once each: |error| <= (K + 2) 2^-24 sum |x w|. On matrices operands have been rounded to f16
 * first, those that were not f16 before. */
/* That operands are rounded to f16, relative: x, and w where it isn't f16. */
static double rounding_of(laprox_dtype dtype, bool on_matrix) {
  return !on_matrix ? 0.0 : dtype == LAPROX_DTYPE_F16 ? 0x1.01p-11 : 0x1.01p-10;
}

static void check_matmul(const matmul_case *c, bool on_matrix, const float *x, const float *w,
                         const float *before, const float *y, size_t skip) {
  char what[96];
  const double rounding = rounding_of(c->dtype, on_matrix);
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
      kernel_assert_close((double)y[at], sum, ((c->depth + 2) * EPSILON + rounding) * size, what, at);
    }
}

static bool is_on_matrix(const lpx_kernels *kernels, laprox_dtype dtype) {
  for (uint32_t i = 0; i < LPX_N_MATRIX_TILES; i++)
    if (kernels->matmul_matrix[dtype][i].pipeline) return true;
  return false;
}

static void run_matmul(kernel_test *test, const lpx_kernels *kernels, const matmul_case *c) {
  const size_t skip = 3; /* the output need not be aligned */
  const size_t n_out = skip + (size_t)c->n_rows * c->n_outputs + 1;
  float *w, *x = kernel_random_floats(test, (size_t)c->n_rows * c->depth);
  float *before = kernel_random_floats(test, n_out), *y = malloc(n_out * sizeof *y);
  lpx_weight weight = make_weight(test, c->dtype, c->n_outputs, c->depth, &w);
  lpx_buffer in = kernel_buffer(test, x, (size_t)c->n_rows * c->depth * sizeof *x);
  lpx_buffer out = kernel_buffer(test, before, n_out * sizeof *before);
  lpx_buffer halves = kernel_buffer(test, NULL, (size_t)lpx_linear_halves_bytes(c->n_rows, c->depth));
  const lpx_matrix matrix = {.parts = {weight}, .n_parts = 1, .n_rows = c->n_outputs, .n_columns = c->depth};
  const lpx_linear product = {
      .matrix = &matrix,
      .in = lpx_buffer_whole(&in),
      .halves = lpx_buffer_whole(&halves),
      .n_rows = c->n_rows,
      .out = lpx_buffer_part(lpx_buffer_whole(&out), skip * sizeof *y, (n_out - skip) * sizeof *y),
      .accumulate = c->accumulate};
  lpx_linear_append(test->program, kernels, &product);
  kernel_run(test);
  kernel_download(test, &out, y, n_out * sizeof *y);
  check_matmul(c, c->n_rows > 1 && is_on_matrix(kernels, c->dtype), x, w, before, y, skip);
  assert_memory_equal(y, before, skip * sizeof *y);
  assert_memory_equal(y + n_out - 1, before + n_out - 1, sizeof *y);
  kernel_release(test, &in);
  kernel_release(test, &halves);
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

/* Every size of tile by itself. */
static void run_matrix_tiles(kernel_test *test, lpx_kernels *kernels) {
  static const uint32_t rows[] = {2, 33, 130}, outputs[] = {1, 127, 130}, depths[] = {32, 96, 288};
  memset(kernels->matmul_matrix, 0, sizeof kernels->matmul_matrix);
  for (uint32_t dtype = 1; dtype < LPX_N_DTYPES; dtype++)
    assert_int_equal(lpx_kernels_use_matrix(kernels, (laprox_dtype)dtype), LAPROX_OK);
  const lpx_kernels all = *kernels;
  for (uint32_t tile = 0; tile < LPX_N_MATRIX_TILES; tile++) {
    if (!all.matmul_matrix[LAPROX_DTYPE_F16][tile].pipeline) continue;
    for (uint32_t dtype = 1; dtype < LPX_N_DTYPES; dtype++) {
      memset(kernels->matmul_matrix[dtype], 0, sizeof kernels->matmul_matrix[dtype]);
      kernels->matmul_matrix[dtype][tile] = all.matmul_matrix[dtype][tile];
      for (size_t i = 0; i < 27; i++)
        run_matmul(test, kernels,
                   &(matmul_case){.dtype = (laprox_dtype)dtype,
                                  .n_rows = rows[i % 3],
                                  .n_outputs = outputs[i / 3 % 3],
                                  .depth = depths[i / 9] - (dtype == LAPROX_DTYPE_Q8_0 ? 0 : 4),
                                  .accumulate = i % 2 != 0});
    }
  }
}

/* Those of devices with many registers, and those of the others. */
static void test_matmul_matrix(void **state) {
  kernel_test test = kernel_test_begin(state, 12);
  const uint32_t variants = test.context->variants;
  lpx_kernels kernels = make_kernels(&test, LAPROX_DTYPE_F16);
  if (!lpx_shader_usable(test.context, "matmul_matrix")) {
    kernel_test_end(&test);
    skip();
  }
  test.context->variants = variants | LAPROX_VARIANT_LARGE_TILES;
  run_matrix_tiles(&test, &kernels);
  test.context->variants = variants & ~(uint32_t)LAPROX_VARIANT_LARGE_TILES;
  run_matrix_tiles(&test, &kernels);
  test.context->variants = variants;
  kernel_test_end(&test);
}

static void test_matmul(void **state) {
  kernel_test test = kernel_test_begin(state, 1);
  lpx_kernels kernels = make_kernels(&test, LAPROX_DTYPE_F16);
  memset(kernels.matmul_matrix, 0, sizeof kernels.matmul_matrix);
  static const char *const variants[] = {"matmul", "matmul_small", "matmul_direct", "matmul_direct_subgroup"};
  for (size_t i = 0; i < COUNT(variants); i++) {
    if (!lpx_shader_usable(test.context, variants[i]) || (i == 3 && test.context->subgroup_size > 16))
      continue;
    kernels.matmul_tile.rows = i == 1 ? 32 : 64;
    for (uint32_t dtype = 1; dtype < LPX_N_DTYPES; dtype++)
      assert_int_equal(lpx_pipeline_get(test.context, variants[i], 3, &dtype, 1, &kernels.matmul[dtype]),
                       LAPROX_OK);
    run_matmuls(&test, &kernels);
  }
  kernel_test_end(&test);
}

/* A single row in every form that a device may choose: lanes, outputs of a thread, shared memory or shuffles. */
static void set_matvec(kernel_test *test, lpx_kernels *kernels, uint32_t lanes, uint32_t each,
                       bool subgroup) {
  kernels->matvec_columns = 128 / lanes * each;
  const char *plain_name = subgroup ? "matvec_subgroup" : "matvec";
  const char *norm_name = subgroup ? "matvec_norm_subgroup" : "matvec_norm";
  for (uint32_t dtype = 1; dtype < LPX_N_DTYPES; dtype++) {
    const uint32_t plain[] = {dtype, lanes, each, 0}, gated[] = {dtype, lanes, each, 1};
    lpx_matvec *family = &kernels->matvec[dtype];
    assert_int_equal(lpx_pipeline_get(test->context, plain_name, 3, plain, 4, &family->plain), LAPROX_OK);
    assert_int_equal(lpx_pipeline_get(test->context, norm_name, 4, plain, 4, &family->normed), LAPROX_OK);
    assert_int_equal(lpx_pipeline_get(test->context, norm_name, 4, gated, 4, &family->gated), LAPROX_OK);
  }
}

/* Gates and values, or plain outputs, of a row that is normalised first. */
static void run_normed(kernel_test *test, const lpx_kernels *kernels, laprox_dtype dtype, uint32_t n_outputs,
                       uint32_t depth, bool gated) {
  const uint32_t n_rows = gated ? 2 * n_outputs : n_outputs;
  const float epsilon = 1e-5f;
  float *w, *scale, *x = kernel_random_floats(test, depth), *y = malloc(n_outputs * sizeof *y);
  for (size_t i = 0; i < depth; i++) x[i] *= 1e-2f; /* where epsilon counts */
  lpx_weight weight = make_weight(test, dtype, n_rows, depth, &w), norm = make_vector(test, depth, &scale);
  const lpx_matrix matrix = {.parts = {weight}, .n_parts = 1, .n_rows = n_rows, .n_columns = depth};
  lpx_buffer in = kernel_buffer(test, x, depth * sizeof *x),
             out = kernel_buffer(test, NULL, n_outputs * sizeof *y);
  assert_true(lpx_linear_can_gate(kernels, &matrix));
  lpx_linear_append(test->program, kernels,
                    &(lpx_linear){.matrix = &matrix,
                                  .in = lpx_buffer_whole(&in),
                                  .n_rows = 1,
                                  .out = lpx_buffer_whole(&out),
                                  .norm = &norm,
                                  .epsilon = epsilon,
                                  .gated = gated});
  kernel_run(test);
  kernel_download(test, &out, y, n_outputs * sizeof *y);
  double squares = 0.0;
  for (size_t k = 0; k < depth; k++) squares += (double)x[k] * (double)x[k];
  const double factor = 1.0 / sqrt(squares / depth + (double)epsilon);
  for (size_t i = 0; i < n_outputs; i++) {
    double sum[2] = {0.0, 0.0}, size[2] = {0.0, 0.0};
    for (size_t half = 0; half < (gated ? 2 : 1); half++)
      for (size_t k = 0; k < depth; k++) {
        const double product =
            (double)x[k] * factor * (double)scale[k] * (double)w[(half * n_outputs + i) * depth + k];
        sum[half] += product;
        size[half] += fabs(product);
      }
    const double error = (depth + 16) * EPSILON; /* of either sum, in units of its size */
    double want = sum[0], tolerance = error * size[0];
    if (gated) {
      const double silu = sum[0] / (1.0 + exp(-sum[0]));
      want = silu * sum[1];
      /* silu' is at most 1.1; exp errs by 3 + 2 |x| units of two halves */
      tolerance = (1.1 * error * size[0] + (16.0 + 4.0 * fabs(sum[0])) * EPSILON * fabs(silu)) *
                      (fabs(sum[1]) + error * size[1]) +
                  fabs(silu) * error * size[1];
    }
    kernel_assert_close((double)y[i], want, tolerance, gated ? "gated" : "normed", i);
  }
  kernel_release(test, &in);
  kernel_release(test, &out);
  kernel_release(test, &weight.buffer);
  kernel_release(test, &norm.buffer);
  free(w);
  free(scale);
  free(x);
  free(y);
}

static void run_single_rows(kernel_test *test, const lpx_kernels *kernels) {
  static const uint32_t outputs[] = {1, 31, 260};
  for (uint32_t dtype = 1; dtype < LPX_N_DTYPES; dtype++)
    for (size_t i = 0; i < COUNT(outputs); i++) {
      const bool bytes = dtype == LAPROX_DTYPE_Q8_0;
      const uint32_t depths[] = {bytes ? 32 : 4, bytes ? 96 : 76, 800};
      for (size_t k = 0; k < COUNT(depths); k++) {
        run_matmul(test, kernels, &(matmul_case){(laprox_dtype)dtype, 1, outputs[i], depths[k], k == 1});
        run_normed(test, kernels, (laprox_dtype)dtype, outputs[i], depths[k], false);
        run_normed(test, kernels, (laprox_dtype)dtype, outputs[i], depths[k], true);
      }
    }
}

static void test_single_row(void **state) {
  kernel_test test = kernel_test_begin(state, 7);
  lpx_kernels kernels = make_kernels(&test, LAPROX_DTYPE_F16);
  run_single_rows(&test, &kernels);
  for (uint32_t lanes = 4; lanes <= 128; lanes *= 2)
    for (uint32_t each = 4; each <= 8; each *= 2)
      for (int subgroup = 0; subgroup < 2; subgroup++) {
        if (subgroup &&
            (!lpx_shader_usable(test.context, "matvec_subgroup") || lanes > test.context->subgroup_size))
          continue;
        set_matvec(&test, &kernels, lanes, each, subgroup);
        if (each == (lanes == 8 ? 8 : 4)) run_single_rows(&test, &kernels);
      }
  kernel_test_end(&test);
}

/* A matrix of tensors of different types writes its outputs side by side. */
static void test_parts(void **state) {
  kernel_test test = kernel_test_begin(state, 8);
  lpx_kernels kernels = make_kernels(&test, LAPROX_DTYPE_F16);
  enum { DEPTH = 64, N = 3, FIRST = 64, SECOND = 32, N_OUTPUTS = FIRST + SECOND, STRIDE = 80 };
  float *w[2], *x = kernel_random_floats(&test, (size_t)N * STRIDE), y[N * N_OUTPUTS];
  lpx_weight parts[2] = {make_weight(&test, LAPROX_DTYPE_F16, FIRST, DEPTH, &w[0]),
                         make_weight(&test, LAPROX_DTYPE_Q8_0, SECOND, DEPTH, &w[1])};
  const lpx_matrix matrix = {
      .parts = {parts[0], parts[1]}, .n_parts = 2, .n_rows = N_OUTPUTS, .n_columns = DEPTH};
  lpx_buffer in = kernel_buffer(&test, x, (size_t)N * STRIDE * sizeof *x),
             halves = kernel_buffer(&test, NULL, (size_t)lpx_linear_halves_bytes(N, DEPTH));
  assert_false(lpx_linear_can_gate(&kernels, &matrix));
  for (uint32_t n_rows = 1; n_rows <= N; n_rows += N - 1) {
    lpx_buffer out = kernel_buffer(&test, NULL, sizeof y);
    lpx_linear_append(test.program, &kernels,
                      &(lpx_linear){.matrix = &matrix,
                                    .in = lpx_buffer_whole(&in),
                                    .input_stride = STRIDE,
                                    .halves = lpx_buffer_whole(&halves),
                                    .n_rows = n_rows,
                                    .out = lpx_buffer_whole(&out)});
    kernel_run(&test);
    kernel_download(&test, &out, y, sizeof y);
    for (size_t row = 0; row < n_rows; row++)
      for (size_t i = 0; i < N_OUTPUTS; i++) {
        const float *weights = i < FIRST ? w[0] + i * DEPTH : w[1] + (i - FIRST) * DEPTH;
        double sum = 0.0, size = 0.0;
        for (size_t k = 0; k < DEPTH; k++) {
          sum += (double)x[row * STRIDE + k] * (double)weights[k];
          size += fabs((double)x[row * STRIDE + k] * (double)weights[k]);
        }
        const laprox_dtype dtype = i < FIRST ? LAPROX_DTYPE_F16 : LAPROX_DTYPE_Q8_0;
        const double rounding = rounding_of(dtype, n_rows > 1 && is_on_matrix(&kernels, dtype));
        kernel_assert_close((double)y[row * N_OUTPUTS + i], sum, ((DEPTH + 2) * EPSILON + rounding) * size,
                            "parts", i);
      }
    kernel_release(&test, &out);
  }
  kernel_release(&test, &in);
  kernel_release(&test, &halves);
  for (size_t i = 0; i < 2; i++) {
    kernel_release(&test, &parts[i].buffer);
    free(w[i]);
  }
  free(x);
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
  lpx_weight weight = make_vector(test, dim, &w);
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
  enum { N_ROWS = 3, N = 684 };
  float *rows = kernel_random_floats(&test, (size_t)N_ROWS * 2 * N), got[N_ROWS * 2 * N];
  for (size_t i = 0; i < N_ROWS * 2 * N; i++) rows[i] *= i % 2 ? 20.0f : 1.0f;
  rows[0] = -1000.0f;
  rows[1] = 1000.0f;
  lpx_buffer buffer = kernel_buffer(&test, rows, sizeof got);
  lpx_swiglu_append(test.program, &kernels, lpx_buffer_whole(&buffer), N_ROWS, N);
  kernel_run(&test);
  kernel_download(&test, &buffer, got, sizeof got);
  for (size_t i = 0; i < N_ROWS * N; i++) {
    const size_t gate = i / N * 2 * N + i % N;
    const double x = (double)rows[gate], want = x / (1.0 + exp(-x)) * (double)rows[gate + N];
    /* Vulkan's exp: 3 + 2 |x| units in the last place, of two halves */
    const double units = 2.0 * (3.0 + 2.0 * fabs(x)) + 8.0;
    kernel_assert_close((double)got[gate], want, units * EPSILON * fabs(want) + 1e-30, "swiglu", i);
  }
  kernel_release(&test, &buffer);
  free(rows);
  kernel_test_end(&test);
}

typedef struct rope_case {
  laprox_dtype cache_dtype;
  uint32_t n_rows, n_heads, n_kv_heads, head_dim, first_position, head_rows, first_row;
  uint32_t query_first, ring_row; /* the last n_rows - query_first queries go to rows ring_row … */
  bool from_state;                /* position and rows stand in front of the rows */
  VkDeviceSize max_range;         /* 0: the device's */
} rope_case;

static double frequency(const rope_case *c, size_t pair) {
  return pow(10000.0, -2.0 * (double)pair / (double)c->head_dim);
}

/* Header and rows [queries, K, V]. */
static lpx_buffer make_rows(kernel_test *test, const rope_case *c, const laprox_shape *shape, const float *x,
                            size_t n) {
  const size_t header = (size_t)lpx_rope_header_bytes(shape);
  uint8_t *data = malloc(header + n * sizeof *x);
  assert_non_null(data);
  const lpx_token_state state = {
      .position = c->first_position, .tail_row = c->first_row, .ring_row = c->ring_row};
  memcpy(data, &state, sizeof state);
  uint32_t words[256];
  for (size_t i = 0; i < c->head_dim / 2; i++) {
    const uint64_t turns = (uint64_t)(frequency(c, i) / 6.283185307179586 * 18446744073709551616.0);
    words[2 * i] = (uint32_t)turns;
    words[2 * i + 1] = (uint32_t)(turns >> 32);
  }
  memcpy(data + sizeof state, words, (size_t)c->head_dim * sizeof *words);
  memcpy(data + header, x, n * sizeof *x);
  lpx_buffer rows = kernel_buffer(test, data, header + n * sizeof *x);
  free(data);
  return rows;
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

/* Blocks of what was stored: within a number that stands for them of the nearest there is. What the device has rotated
 * errs, so its scale does. */
static void check_blocks(const rope_case *c, const float *x, const float *y, size_t row, bool rotate) {
  enum { BLOCK = 32 };
  for (size_t first = 0; first < c->head_dim; first += BLOCK) {
    float want[BLOCK];
    double largest = 0.0, slack = 0.0;
    for (size_t i = 0; i < BLOCK; i += 2) {
      const double a = (double)x[first + i], b = (double)x[first + i + 1];
      const double angle = rotate ? (double)(c->first_position + row) * frequency(c, (first + i) / 2) : 0.0;
      want[i] = (float)(a * cos(angle) - b * sin(angle));
      want[i + 1] = (float)(a * sin(angle) + b * cos(angle));
      largest = fmax(largest, fmax(fabs((double)want[i]), fabs((double)want[i + 1])));
      slack = fmax(slack, rotate ? (fabs(a) + fabs(b)) * 0x1p-11 : 0.0);
    }
    const double scale = (double)block_scale(c->cache_dtype, want);
    const double low = c->cache_dtype == LAPROX_DTYPE_Q8_0 ? -127.0 : -8.0;
    const double high = c->cache_dtype == LAPROX_DTYPE_Q8_0 ? 127.0 : 7.0;
    for (size_t i = 0; i < BLOCK; i++) {
      const double nearest = scale != 0.0 ? fmax(low, fmin(high, round((double)want[i] / scale))) : 0.0;
      const double error = fabs((double)want[i] - nearest * scale);
      kernel_assert_close((double)y[first + i], (double)want[i], error + 3.0 * slack + largest * 0x1p-10,
                          "stored in blocks", first + i);
    }
  }
}

/* What K or V holds: rows that were stored, and all others untouched. */
static void check_cache(kernel_test *test, const rope_case *c, const float *x, const lpx_buffer *buffer,
                        bool is_value) {
  const size_t d = c->head_dim, n_cache = (size_t)c->n_kv_heads * c->head_rows * d;
  const size_t cache_bytes = laprox_dtype_bytes(c->cache_dtype, n_cache);
  const size_t row_heads = c->n_heads + 2 * c->n_kv_heads;
  const size_t first_head = c->n_heads + (is_value ? c->n_kv_heads : 0);
  float *cache = malloc(n_cache * sizeof *cache);
  void *raw = malloc(cache_bytes);
  assert_true(cache && raw);
  kernel_download(test, buffer, raw, cache_bytes);
  lpx_to_f32(c->cache_dtype, raw, n_cache, cache);
  for (size_t head = 0; head < c->n_kv_heads; head++)
    for (size_t i = 0; i < c->head_rows; i++) {
      const float *stored = cache + (head * c->head_rows + i) * d;
      const size_t row = i - c->first_row;
      if (i >= c->first_row && row < c->n_rows && lpx_dtype_is_blocks(c->cache_dtype))
        check_blocks(c, x + (row * row_heads + first_head + head) * d, stored, row, !is_value);
      else if (i >= c->first_row && row < c->n_rows)
        check_rotated(c, x + (row * row_heads + first_head + head) * d, stored, row, !is_value,
                      c->cache_dtype == LAPROX_DTYPE_F16, "stored");
      else
        for (size_t e = 0; e < d; e++) assert_true(isnan(stored[e]));
    }
  free(cache);
  free(raw);
}

static void check_queries(kernel_test *test, const rope_case *c, const laprox_shape *shape, const float *x,
                          const lpx_buffer *rows, const lpx_buffer *ring, size_t ring_rows) {
  const size_t d = c->head_dim, row_heads = c->n_heads + 2 * c->n_kv_heads, n = c->n_rows * row_heads * d;
  const size_t header = (size_t)lpx_rope_header_bytes(shape), n_ring = ring_rows * c->n_heads * d;
  uint8_t *all = malloc(header + n * sizeof *x);
  float *kept = malloc(n_ring * sizeof *kept), *rotated = malloc(n * sizeof *rotated);
  assert_true(all && kept && rotated);
  kernel_download(test, rows, all, header + n * sizeof *x);
  kernel_download(test, ring, kept, n_ring * sizeof *kept);
  memcpy(rotated, all + header, n * sizeof *x);
  for (size_t row = 0; row < c->n_rows; row++)
    for (size_t head = 0; head < c->n_heads; head++) {
      const size_t at = (row * row_heads + head) * d;
      check_rotated(c, x + at, rotated + at, row, true, false, "rotated");
      if (row >= c->query_first)
        assert_memory_equal(kept + ((c->ring_row + row - c->query_first) * c->n_heads + head) * d,
                            rotated + at, d * sizeof *kept);
    }
  for (size_t i = 0; i < c->ring_row * c->n_heads * d; i++) assert_true(isnan(kept[i]));
  free(all);
  free(kept);
  free(rotated);
}

static void run_rope(kernel_test *test, const rope_case *c) {
  lpx_kernels kernels = make_kernels(test, c->cache_dtype);
  const VkDeviceSize max_range = test->context->max_range;
  if (c->max_range) test->context->max_range = c->max_range;
  const laprox_shape shape = {
      .n_layers = 1, .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim};
  const size_t d = c->head_dim, n = (size_t)c->n_rows * (c->n_heads + 2 * c->n_kv_heads) * d;
  const size_t cache_bytes = laprox_dtype_bytes(c->cache_dtype, (size_t)c->n_kv_heads * c->head_rows * d);
  const size_t ring_rows = c->ring_row + c->n_rows - c->query_first;
  float *x = kernel_random_floats(test, n);
  lpx_buffer rows = make_rows(test, c, &shape, x, n);
  lpx_buffer ring = kernel_buffer(test, NULL, ring_rows * c->n_heads * d * sizeof *x);
  lpx_buffer k = kernel_buffer(test, NULL, cache_bytes), v = kernel_buffer(test, NULL, cache_bytes);
  const lpx_token_state state = {
      .position = c->first_position, .tail_row = c->first_row, .ring_row = c->ring_row};
  lpx_rope_append(test->program, &kernels,
                  &(lpx_rope){.shape = &shape,
                              .rows = lpx_buffer_whole(&rows),
                              .n_rows = c->n_rows,
                              .with_queries = true,
                              .state = c->from_state ? NULL : &state,
                              .key = lpx_buffer_whole(&k),
                              .value = lpx_buffer_whole(&v),
                              .head_rows = c->head_rows,
                              .ring = lpx_buffer_whole(&ring),
                              .query_first = c->query_first});
  kernel_run(test);
  check_queries(test, c, &shape, x, &rows, &ring, ring_rows);
  check_cache(test, c, x, &k, false);
  check_cache(test, c, x, &v, true);
  test->context->max_range = max_range;
  lpx_buffer *buffers[] = {&rows, &ring, &k, &v};
  for (size_t i = 0; i < COUNT(buffers); i++) kernel_release(test, buffers[i]);
  free(x);
}

static void test_rope(void **state) {
  kernel_test test = kernel_test_begin(state, 6);
  const rope_case cases[] = {
      {LAPROX_DTYPE_F16, 1, 1, 1, 4, 0, 1, 0, 0, 0, false, 0},
      {LAPROX_DTYPE_F16, 65, 6, 3, 80, 1, 70, 5, 33, 2, false, 0},
      {LAPROX_DTYPE_F32, 3, 2, 2, 64, 131069, 9, 1, 1, 0, false, 0},
      {LAPROX_DTYPE_F16, 1, 7, 7, 128, 1000003, 3, 2, 0, 5, true, 0},
      {LAPROX_DTYPE_F32, 2, 1, 1, 256, 77, 2, 0, 0, 1, true, 0},
      {LAPROX_DTYPE_Q8_0, 1, 1, 1, 64, 0, 1, 0, 0, 0, false, 0},
      {LAPROX_DTYPE_Q8_0, 65, 6, 3, 128, 1, 70, 5, 33, 2, false, 0},
      {LAPROX_DTYPE_Q4_0, 3, 2, 2, 64, 131069, 9, 1, 1, 0, true, 0},
      {LAPROX_DTYPE_Q4_0, 66, 3, 1, 192, 1, 67, 1, 33, 2, false, 0},
      /* two heads of the cache a binding */
      {LAPROX_DTYPE_Q8_0, 17, 5, 5, 64, 20, 1000, 713, 0, 0, false, (VkDeviceSize)150 << 10},
      {LAPROX_DTYPE_Q4_0, 17, 5, 5, 64, 20, 1000, 713, 0, 0, false, (VkDeviceSize)90 << 10},
      {LAPROX_DTYPE_F16, 17, 5, 5, 96, 20, 200, 13, 0, 0, false, (VkDeviceSize)110 << 10},
  };
  for (size_t i = 0; i < COUNT(cases); i++) run_rope(&test, &cases[i]);
  kernel_test_end(&test);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_matmul),
      cmocka_unit_test(test_matmul_matrix),
      cmocka_unit_test(test_matmul_in_parts),
      cmocka_unit_test(test_single_row),
      cmocka_unit_test(test_parts),
      cmocka_unit_test(test_embed),
      cmocka_unit_test(test_norm),
      cmocka_unit_test(test_swiglu),
      cmocka_unit_test(test_rope),
  };
  return cmocka_run_group_tests(tests, test_gpu_setup, test_gpu_teardown);
}
