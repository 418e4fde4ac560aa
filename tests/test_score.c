/* test_score.c: scoring with tiles of every size, and with the window queries' sums of exponentials from the caller. */
#include "evict/evict.h"
#include "support/kernel.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

enum { N_HEADS = 6, N_KV_HEADS = 2, DIM = 64, N = 333, WINDOW = 32 };

static void query_lse(const float *query, const float *key, float *lse) {
  for (size_t h = 0; h < N_HEADS; h++)
    for (size_t t = 0; t < WINDOW; t++) {
      double sum = 0.0;
      for (size_t i = 0; i <= N - WINDOW + t; i++) {
        double logit = 0.0;
        for (size_t e = 0; e < DIM; e++)
          logit += (double)query[(t * N_HEADS + h) * DIM + e] *
                   (double)key[(h / (N_HEADS / N_KV_HEADS) * N + i) * DIM + e];
        sum += exp(logit / sqrt(DIM));
      }
      lse[h * WINDOW + t] = (float)log(sum);
    }
}

/* [N_KV_HEADS, n], of all but the window. */
static void score(kernel_test *test, const laprox_plan *plan, const laprox_layer_buffers *layer, size_t n,
                  float *scores) {
  laprox_requirements needs;
  laprox_plan_requirements(plan, &needs);
  lpx_buffer scratch = kernel_buffer(test, NULL, (size_t)needs.scratch_bytes),
             out = kernel_buffer(test, NULL, (size_t)needs.scores_bytes),
             result = kernel_buffer(test, NULL, (size_t)needs.result_bytes);
  const laprox_binding_info info = {.layers = layer,
                                    .scratch = lpx_buffer_whole(&scratch),
                                    .scores = lpx_buffer_whole(&out),
                                    .result = lpx_buffer_whole(&result)};
  laprox_binding *binding = NULL;
  assert_int_equal(laprox_binding_create(plan, &info, &binding), LAPROX_OK);
  assert_int_equal(lpx_queue_run(test->queue, binding->program, NULL), LAPROX_OK);
  for (uint32_t head = 0; head < N_KV_HEADS; head++)
    assert_int_equal(
        lpx_queue_download(test->queue,
                           lpx_buffer_part(lpx_buffer_whole(&out), laprox_plan_score_offset(plan, 0, head),
                                           n * sizeof *scores),
                           scores + (size_t)head * n, n * sizeof *scores),
        LAPROX_OK);
  laprox_binding_destroy(binding);
  kernel_release(test, &scratch);
  kernel_release(test, &out);
  kernel_release(test, &result);
}

/* Tiles of all sizes come to the same: to the same bits but for the joint score, whose sum over a tile's rows they
 * divide. */
static void compare_tiles(kernel_test *test, const laprox_plan_info *info, const laprox_layer_buffers *layer,
                          size_t n) {
  static float scores[LPX_N_TILE_SIZES][N_KV_HEADS * N];
  const uint32_t variants = test->context->variants;
  const uint32_t others = variants & ~(uint32_t)(LAPROX_VARIANT_LARGE_TILES | LAPROX_VARIANT_MATRIX);
  const bool few_registers = test->context->few_registers;
  for (int size = 0; size < LPX_N_TILE_SIZES; size++) {
    laprox_plan *plan = NULL;
    test->context->variants = size == LPX_TILES_LARGE ? others | LAPROX_VARIANT_LARGE_TILES : others;
    test->context->few_registers = size == LPX_TILES_SMALL;
    assert_int_equal(lpx_tile_size_of(test->context), size);
    assert_int_equal(laprox_plan_create(test->context, info, &plan), LAPROX_OK);
    score(test, plan, layer, n, scores[size]);
    laprox_plan_destroy(plan);
  }
  test->context->variants = variants;
  test->context->few_registers = few_registers;
  const float *large = scores[LPX_TILES_LARGE];
  for (int size = 0; size < LPX_TILES_LARGE; size++) {
    if (info->policy.gqa != LAPROX_GQA_JOINT)
      assert_memory_equal(large, scores[size], N_KV_HEADS * n * sizeof *large);
    for (size_t i = 0; i < N_KV_HEADS * n; i++)
      kernel_assert_close((double)scores[size][i], (double)large[i], 1e-5 * fabs((double)large[i]), "tiles",
                          i);
  }
}

static void run(void **state, uint64_t seed, laprox_gqa gqa, laprox_dtype dtype) {
  kernel_test test = kernel_test_begin(state, seed);
  const laprox_plan_info info = {.shape = {1, N_HEADS, N_KV_HEADS, DIM},
                                 .policy = {.gqa = gqa, .budget.tokens = 60},
                                 .cache_dtype = dtype,
                                 .n_segments = 1,
                                 .segments = {{.n_entries = N}}};
  laprox_plan *plan = NULL;
  assert_int_equal(laprox_plan_create(test.context, &info, &plan), LAPROX_OK);
  const size_t n_cache = N_KV_HEADS * N * DIM, n_query = WINDOW * N_HEADS * DIM;
  const size_t factor_bytes = laprox_value_factor_bytes(&info.shape, gqa);
  float *query = kernel_random_floats(&test, n_query), *key = kernel_random_floats(&test, n_cache),
        *value = kernel_random_floats(&test, n_cache), *factor = malloc(factor_bytes),
        *weight = kernel_random_floats(&test, (size_t)N_HEADS * DIM * 512), lse[N_HEADS * WINDOW];
  for (size_t i = 0; i < n_query; i++) query[i] *= 8.0f;
  void *keys = kernel_encode(dtype, key, n_cache), *values = kernel_encode(dtype, value, n_cache);
  query_lse(query, key, lse);
  assert_int_equal(laprox_value_factor(NULL, &info.shape, gqa, 512, weight, factor), LAPROX_OK);
  lpx_buffer buffers[] = {kernel_buffer(&test, query, n_query * 4),
                          kernel_buffer(&test, keys, laprox_dtype_bytes(dtype, n_cache)),
                          kernel_buffer(&test, values, laprox_dtype_bytes(dtype, n_cache)),
                          kernel_buffer(&test, factor, factor_bytes), kernel_buffer(&test, lse, sizeof lse)};
  laprox_layer_buffers layer = {.query = lpx_buffer_whole(&buffers[0]),
                                .key = {lpx_buffer_whole(&buffers[1])},
                                .value = {lpx_buffer_whole(&buffers[2])},
                                .factor = lpx_buffer_whole(&buffers[3])};
  static float own[N_KV_HEADS * (N - WINDOW)], given[N_KV_HEADS * (N - WINDOW)];
  score(&test, plan, &layer, N - WINDOW, own);
  compare_tiles(&test, &info, &layer, N - WINDOW);
  layer.lse = lpx_buffer_whole(&buffers[4]);
  score(&test, plan, &layer, N - WINDOW, given);
  double largest = 0.0;
  for (size_t i = 0; i < N_KV_HEADS * (N - WINDOW); i++) largest = fmax(largest, (double)own[i]);
  assert_true(largest > 0.0);
  const double tolerance = (dtype == LAPROX_DTYPE_F32 ? 1e-5 : 1e-4) * largest;
  for (size_t i = 0; i < N_KV_HEADS * (N - WINDOW); i++)
    kernel_assert_close((double)given[i], (double)own[i], tolerance, "score", i);
  /* it is really read: an lse larger by 1 makes every score smaller by e */
  for (size_t i = 0; i < N_HEADS * WINDOW; i++) lse[i] += 1.0f;
  assert_int_equal(lpx_queue_upload(test.queue, layer.lse, lse, sizeof lse), LAPROX_OK);
  score(&test, plan, &layer, N - WINDOW, given);
  for (size_t i = 0; i < N_KV_HEADS * (N - WINDOW); i++)
    kernel_assert_close((double)given[i], (double)own[i] * exp(-1.0), tolerance, "score", i);
  for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) kernel_release(&test, &buffers[i]);
  laprox_plan_destroy(plan);
  void *const memory[] = {query, key, value, factor, weight, keys, values};
  for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) free(memory[i]);
  kernel_test_end(&test);
}

static void test_mean(void **state) {
  run(state, 1, LAPROX_GQA_MEAN, LAPROX_DTYPE_F16);
  run(state, 2, LAPROX_GQA_MEAN, LAPROX_DTYPE_F32);
}

static void test_joint(void **state) {
  run(state, 3, LAPROX_GQA_JOINT, LAPROX_DTYPE_F16);
}

/* A shape whose rows tiles divide in their own ways, and what it is scored by. */
typedef struct tile_case {
  laprox_policy_kind kind;
  laprox_gqa gqa;
  uint32_t group, dim, window;
} tile_case;

static void run_tiles(void **state, uint64_t seed, const tile_case *c) {
  enum { MODEL_DIM = 64 };
  kernel_test test = kernel_test_begin(state, seed);
  const uint32_t n_heads = N_KV_HEADS * c->group;
  const laprox_plan_info info = {
      .shape = {1, n_heads, N_KV_HEADS, c->dim},
      .policy = {.kind = c->kind, .gqa = c->gqa, .window = c->window, .budget.tokens = 150},
      .cache_dtype = LAPROX_DTYPE_F16,
      .n_segments = 1,
      .segments = {{.n_entries = N}}};
  const size_t n_cache = (size_t)N_KV_HEADS * N * c->dim, n_query = (size_t)c->window * n_heads * c->dim;
  const size_t factor_bytes = laprox_value_factor_bytes(&info.shape, c->gqa);
  float *query = kernel_random_floats(&test, n_query), *key = kernel_random_floats(&test, n_cache),
        *value = kernel_random_floats(&test, n_cache), *factor = malloc(factor_bytes),
        *weight = kernel_random_floats(&test, (size_t)n_heads * c->dim * MODEL_DIM);
  void *keys = kernel_encode(LAPROX_DTYPE_F16, key, n_cache);
  void *values = kernel_encode(LAPROX_DTYPE_F16, value, n_cache);
  assert_int_equal(laprox_value_factor(NULL, &info.shape, c->gqa, MODEL_DIM, weight, factor), LAPROX_OK);
  lpx_buffer buffers[] = {kernel_buffer(&test, query, n_query * 4), kernel_buffer(&test, keys, n_cache * 2),
                          kernel_buffer(&test, values, n_cache * 2),
                          kernel_buffer(&test, factor, factor_bytes)};
  const laprox_layer_buffers layer = {.query = lpx_buffer_whole(&buffers[0]),
                                      .key = {lpx_buffer_whole(&buffers[1])},
                                      .value = {lpx_buffer_whole(&buffers[2])},
                                      .factor = lpx_buffer_whole(&buffers[3])};
  compare_tiles(&test, &info, &layer, N - c->window);
  for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) kernel_release(&test, &buffers[i]);
  void *const memory[] = {query, key, value, factor, weight, keys, values};
  for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) free(memory[i]);
  kernel_test_end(&test);
}

/* Windows of more queries than rows, odd head dimensions, groups up to the largest. */
static void test_tiles(void **state) {
  static const tile_case cases[] = {{LAPROX_POLICY_LAPROX, LAPROX_GQA_MEAN, 1, 80, 32},
                                    {LAPROX_POLICY_LAPROX, LAPROX_GQA_MEAN, 8, 128, 48},
                                    {LAPROX_POLICY_LAPROX, LAPROX_GQA_MEAN, 5, 20, 100},
                                    {LAPROX_POLICY_LAPROX, LAPROX_GQA_ATTENTION_MEAN, 6, 256, 8},
                                    {LAPROX_POLICY_LAPROX, LAPROX_GQA_JOINT, 1, 68, 17},
                                    {LAPROX_POLICY_LAPROX, LAPROX_GQA_JOINT, 8, 20, 33},
                                    {LAPROX_POLICY_LAPROX, LAPROX_GQA_JOINT, 16, 64, 16},
                                    {LAPROX_POLICY_SNAPKV, LAPROX_GQA_AUTO, 4, 64, 70},
                                    {LAPROX_POLICY_SNAPKV, LAPROX_GQA_AUTO, 16, 36, 1}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_tiles(state, 10 + i, &cases[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_mean), cmocka_unit_test(test_joint),
                                     cmocka_unit_test(test_tiles)};
  return cmocka_run_group_tests(tests, test_gpu_setup, test_gpu_teardown);
}
