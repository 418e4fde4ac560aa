/* The selection over given scores against a sort: ties, codes of every size, lengths beside the edges of blocks, all
   scopes and the floor, with atomics and without. */
#include "evict/evict.h"
#include "support/kernel.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_LAYERS = 3, N_KV_HEADS = 4, N_HEADS = N_LAYERS * N_KV_HEADS, WINDOW = 4, SINKS = 2 };

typedef enum pattern {
  ALL_EQUAL,
  TWO_VALUES,
  ZEROS,
  MOSTLY_ZERO, /* and the rest tiny and huge */
  LOG_NORMAL,
  CLOSE, /* neighbouring floats */
  N_PATTERNS
} pattern;

typedef struct select_case {
  const uint32_t *lengths; /* N_HEADS: entries of each head */
  laprox_scope scope;
  uint32_t budget, floor;
  pattern pattern;
  VkDeviceSize max_range; /* 0: the device's */
  uint32_t first_layer;
} select_case;

typedef struct candidate {
  uint32_t key, head, entry;
} candidate;

static float make_score(kernel_test *test, pattern which) {
  const uint32_t random = kernel_random(test, 1u << 16);
  switch (which) {
  case ALL_EQUAL:
    return 0.25f;
  case TWO_VALUES:
    return random % 16 ? 0.25f : 0.75f;
  case ZEROS:
    return 0.0f;
  case MOSTLY_ZERO:
    return random % 8    ? 0.0f
           : random % 16 ? 1e-42f
                         : ldexpf(1.0f + (float)random / 65536.0f, (int)(random % 100));
  case LOG_NORMAL:
    return expf(((float)random / 65536.0f + (float)kernel_random(test, 1u << 16) / 65536.0f - 1.0f) * 20.0f);
  default:
    return 1.0f + (float)(random % 512) * 1.1920929e-7f;
  }
}

/* Of a head's candidate; what is not a normal number counts nothing. */
static float scaled_score(const laprox_plan *plan, const float *scores, const uint32_t *result, uint32_t head,
                          uint32_t i) {
  const uint32_t layer = head / N_KV_HEADS;
  const float score = scores[laprox_plan_score_offset(plan, layer, head % N_KV_HEADS) / sizeof *scores + i];
  float scale;
  memcpy(&scale, &result[plan->result.counters + 2 * layer + 1], sizeof scale);
  const float scaled = score * scale;
  return score >= FLT_MIN && scaled >= FLT_MIN ? scaled : 0.0f;
}

/* Of each token over all heads, as the device comes to it: layers in their order, and heads within. */
static float token_score(const laprox_plan *plan, const float *scores, const uint32_t *result, uint32_t i) {
  float sum = 0.0f;
  for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
    float of_layer = 0.0f;
    for (uint32_t head = 0; head < N_KV_HEADS; head++)
      of_layer += scaled_score(plan, scores, result, layer * N_KV_HEADS + head, i);
    sum += of_layer;
  }
  return sum;
}

static int compare(const void *left, const void *right) {
  const candidate *a = left, *b = right;
  if (a->key != b->key) return a->key > b->key ? -1 : 1;
  if (a->head != b->head) return a->head < b->head ? -1 : 1;
  return a->entry < b->entry ? -1 : 1;
}

/* Takes the best k of heads [first, last). */
static void choose(candidate *all, size_t n, uint32_t first, uint32_t last, size_t k, uint8_t *taken,
                   size_t stride) {
  candidate *some = malloc((n ? n : 1) * sizeof *some);
  size_t n_some = 0;
  for (size_t i = 0; i < n; i++)
    if (all[i].head >= first && all[i].head < last) some[n_some++] = all[i];
  qsort(some, n_some, sizeof *some, compare);
  for (size_t i = 0; i < k && i < n_some; i++) taken[some[i].head * stride + some[i].entry] = 1;
  free(some);
}

/* What each entry should come to, as bytes [head][entry]. */
static uint8_t *reference(const laprox_plan *plan, const select_case *c, const float *scores,
                          const uint32_t *result, size_t stride) {
  uint8_t *taken = calloc(N_HEADS, stride), *floors = calloc(N_HEADS, stride);
  candidate *all = malloc(((size_t)plan->n_blocks * BLOCK_ENTRIES + 1) * sizeof *all);
  const bool tokens = c->scope == LAPROX_SCOPE_TOKEN;
  size_t n = 0;
  for (uint32_t head = 0; head < N_HEADS; head++) {
    const uint32_t *row = plan->tables + (size_t)head * HEAD_WORDS;
    for (uint32_t i = 0; i < row[HEAD_N_CANDIDATES]; i++, n++) {
      const float score =
          tokens ? token_score(plan, scores, result, i) : scaled_score(plan, scores, result, head, i);
      all[n] = (candidate){.head = head, .entry = row[HEAD_N_SINKS] + i};
      memcpy(&all[n].key, &score, sizeof score);
    }
    for (uint32_t i = 0; i < row[HEAD_N_ENTRIES]; i++)
      taken[head * stride + i] = i < row[HEAD_N_SINKS] || i + WINDOW >= row[HEAD_N_ENTRIES];
  }
  for (uint32_t head = 0; head < N_HEADS && c->floor; head++)
    choose(all, n, head, head + 1, c->floor, floors, stride);
  for (size_t i = 0; i < n; i++)
    if (floors[all[i].head * stride + all[i].entry]) all[i].key = 0x7f800000;
  /* Whole tokens are one problem, which every head has the answer to. */
  const uint32_t heads = plan->selection.heads_per_problem;
  const uint32_t n_problems = tokens ? N_HEADS : plan->selection.n_problems;
  for (uint32_t problem = 0; problem < n_problems; problem++)
    choose(all, n, problem * heads, (problem + 1) * heads, plan->selection.k[tokens ? 0 : problem], taken,
           stride);
  free(all);
  free(floors);
  return taken;
}

static void check(const laprox_plan *plan, const select_case *c, const float *scores,
                  const uint32_t *result) {
  size_t stride = 1;
  for (uint32_t head = 0; head < N_HEADS; head++)
    if (c->lengths[head] > stride) stride = c->lengths[head];
  uint8_t *taken = reference(plan, c, scores, result, stride);
  const uint32_t *cu_seqlens = result + plan->result.cu_seqlens, *indices = result + plan->result.indices;
  uint32_t row = 0;
  for (uint32_t head = 0; head < N_HEADS; head++) {
    assert_int_equal(cu_seqlens[head], row);
    for (uint32_t i = 0; i < c->lengths[head]; i++) {
      if (!taken[head * stride + i]) continue;
      assert_true(row < plan->n_kept);
      assert_int_equal(indices[row++], i);
    }
  }
  assert_int_equal(cu_seqlens[N_HEADS], row);
  assert_int_equal(row, plan->n_kept);
  free(taken);
}

/* The ranges of what goes, against the result's own lists. */
static void check_ranges(const laprox_plan *plan, const select_case *c, const uint32_t *result) {
  uint32_t n = 0, room, at = 0;
  assert_int_equal(laprox_removed_ranges(plan, result, NULL, &n), LAPROX_OK);
  laprox_range *ranges = malloc((n + 1) * sizeof *ranges);
  assert_non_null(ranges);
  room = n;
  assert_int_equal(laprox_removed_ranges(plan, result, ranges, &room), LAPROX_OK);
  assert_int_equal(room, n);
  const uint32_t n_kept = result[plan->result.cu_seqlens + 1];
  uint32_t position = 0;
  for (uint32_t row = 0; row <= n_kept; row++, position++) {
    const uint32_t kept = row < n_kept ? result[plan->result.indices + row] : c->lengths[0];
    if (kept == position) continue;
    assert_true(at < n);
    assert_int_equal(ranges[at].first, position);
    assert_int_equal(ranges[at++].end, kept);
    position = kept;
  }
  assert_int_equal(at, n);
  if (n > 1) {
    room = n - 1;
    assert_int_equal(laprox_removed_ranges(plan, result, ranges, &room), LAPROX_ERROR_INVALID_ARGUMENT);
  }
  free(ranges);
}

static const float given_scales[N_LAYERS] = {3.0f, 5.0f, 7.0f}; /* of layers before first_layer */

static laprox_plan *make_plan(kernel_test *test, const select_case *c) {
  uint32_t cu_seqlens[N_LAYERS * (N_KV_HEADS + 1)];
  for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
    uint32_t *rows = cu_seqlens + (size_t)layer * (N_KV_HEADS + 1);
    rows[0] = 0;
    for (uint32_t head = 0; head < N_KV_HEADS; head++)
      rows[head + 1] = rows[head] + c->lengths[layer * N_KV_HEADS + head];
  }
  const laprox_plan_info info = {
      .shape = {.n_layers = N_LAYERS, .n_heads = N_KV_HEADS, .n_kv_heads = N_KV_HEADS, .head_dim = 4},
      .policy = {.kind = LAPROX_POLICY_RANDOM,
                 .scope = c->scope,
                 .budget = {.tokens = c->budget},
                 .window = WINDOW,
                 .sinks = SINKS,
                 .floor = c->floor},
      .cache_dtype = LAPROX_DTYPE_F16,
      .n_segments = 1,
      .n_tokens = 1u << 20,
      .segments = {{.cu_seqlens = cu_seqlens}},
      .first_layer = c->first_layer,
      .layer_scales = given_scales};
  laprox_plan *plan = NULL;
  assert_int_equal(laprox_plan_create(test->context, &info, &plan), LAPROX_OK);
  return plan;
}

typedef struct bound_plan {
  lpx_buffer scratch, result, scores_buffer;
  laprox_binding *binding;
  float *scores;
  uint32_t *words; /* of the result */
  laprox_requirements needs;
} bound_plan;

static bound_plan bind_plan(kernel_test *test, const laprox_plan *plan) {
  bound_plan out = {0};
  laprox_plan_requirements(plan, &out.needs);
  const size_t scores_bytes = out.needs.scores_bytes ? (size_t)out.needs.scores_bytes : sizeof *out.scores;
  out.scratch = kernel_buffer(test, NULL, (size_t)out.needs.scratch_bytes);
  out.result = kernel_buffer(test, NULL, (size_t)out.needs.result_bytes);
  out.scores_buffer = kernel_buffer(test, NULL, scores_bytes);
  out.scores = malloc(scores_bytes);
  out.words = malloc((size_t)out.needs.result_bytes);
  const laprox_layer_buffers layers[N_LAYERS] = {0};
  const laprox_binding_info info = {.layers = layers,
                                    .scratch = lpx_buffer_whole(&out.scratch),
                                    .scores = lpx_buffer_whole(&out.scores_buffer),
                                    .result = lpx_buffer_whole(&out.result)};
  assert_int_equal(laprox_binding_create(plan, &info, &out.binding), LAPROX_OK);
  return out;
}

static void run_bound(kernel_test *test, const bound_plan *bound, uint32_t first, uint32_t count) {
  assert_int_equal(lpx_queue_run_steps(test->queue, bound->binding->program, first, count, NULL), LAPROX_OK);
  kernel_download(test, &bound->result, bound->words, (size_t)bound->needs.result_bytes);
}

static void release_bound(kernel_test *test, bound_plan *bound) {
  free(bound->words);
  free(bound->scores);
  laprox_binding_destroy(bound->binding);
  kernel_release(test, &bound->scores_buffer);
  kernel_release(test, &bound->result);
  kernel_release(test, &bound->scratch);
}

static void run_plan(kernel_test *test, const select_case *c, const laprox_plan *plan) {
  bound_plan bound = bind_plan(test, plan);
  const size_t n = (size_t)bound.needs.scores_bytes / sizeof *bound.scores;
  uint32_t first, count;
  laprox_binding_layer_steps(bound.binding, N_LAYERS, &first, &count);
  run_bound(test, &bound, 0, first);
  kernel_download(test, &bound.scores_buffer, bound.scores, n * sizeof *bound.scores);
  for (size_t i = 0; i < n; i++)
    if (bound.scores[i] >= 0.0f) bound.scores[i] = make_score(test, c->pattern);
  if (n)
    assert_int_equal(lpx_queue_upload(test->queue, lpx_buffer_whole(&bound.scores_buffer), bound.scores,
                                      n * sizeof *bound.scores),
                     LAPROX_OK);
  for (int repeat = 0; repeat < 2; repeat++) {
    run_bound(test, &bound, first, count);
    check(plan, c, bound.scores, bound.words);
    if (c->scope == LAPROX_SCOPE_TOKEN) check_ranges(plan, c, bound.words);
  }
  release_bound(test, &bound);
}

/* With atomics, for few registers, and without atomics. */
static void run_case(kernel_test *test, const select_case *c) {
  enum { ATOMIC, SMALL, PLAIN, N_FORMS };
  const VkDeviceSize max_range = test->context->max_range;
  const bool avoid_atomics = test->context->avoid_atomics, few_registers = test->context->few_registers;
  const uint32_t variants = test->context->variants;
  for (int form = ATOMIC; form < N_FORMS; form++) {
    test->context->avoid_atomics = form == PLAIN;
    test->context->few_registers = form == SMALL;
    if (form == SMALL) test->context->variants &= ~(uint32_t)LAPROX_VARIANT_LARGE_TILES;
    if (c->max_range) test->context->max_range = c->max_range;
    laprox_plan *plan = make_plan(test, c);
    run_plan(test, c, plan);
    laprox_plan_destroy(plan);
    test->context->max_range = max_range;
    test->context->variants = variants;
  }
  test->context->avoid_atomics = avoid_atomics;
  test->context->few_registers = few_registers;
}

/* Heads without candidates, with one, and around one, two and eight blocks. */
static const uint32_t ragged[N_HEADS] = {1029, 6, 7, 2054, 1030, 1031, 300, 8198, 5000, 4, 4, 1035};
static const uint32_t long_heads[N_HEADS] = {9000, 8000, 20000, 7, 12345, 9001, 9002, 30000, 8, 9, 10000, 6};

static void test_patterns(void **state) {
  kernel_test test = kernel_test_begin(state, 1);
  for (pattern which = 0; which < N_PATTERNS; which++)
    for (laprox_scope scope = LAPROX_SCOPE_GLOBAL; scope <= LAPROX_SCOPE_HEAD; scope++) {
      const select_case c = {.lengths = ragged, .scope = scope, .budget = 300, .pattern = which};
      run_case(&test, &c);
    }
  kernel_test_end(&test);
}

/* Nothing beside what is protected, one entry, all but few, all. */
static void test_budgets(void **state) {
  kernel_test test = kernel_test_begin(state, 2);
  static const uint32_t budgets[] = {WINDOW + SINKS, WINDOW + SINKS + 1, 1500, 1u << 19};
  for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++)
    for (pattern which = 0; which < N_PATTERNS; which += 2) {
      const select_case c = {
          .lengths = ragged, .scope = LAPROX_SCOPE_GLOBAL, .budget = budgets[i], .pattern = which};
      run_case(&test, &c);
    }
  kernel_test_end(&test);
}

static void test_floor(void **state) {
  kernel_test test = kernel_test_begin(state, 3);
  for (pattern which = 0; which < N_PATTERNS; which++) {
    const select_case c = {.lengths = long_heads,
                           .scope = which % 2 ? LAPROX_SCOPE_LAYER : LAPROX_SCOPE_GLOBAL,
                           .budget = 700,
                           .floor = 130,
                           .pattern = which};
    run_case(&test, &c);
  }
  kernel_test_end(&test);
}

/* Scores beyond one binding: runs end where a binding does. */
static void test_ranges(void **state) {
  kernel_test test = kernel_test_begin(state, 4);
  select_case c = {.lengths = long_heads,
                   .scope = LAPROX_SCOPE_GLOBAL,
                   .budget = 900,
                   .floor = 10,
                   .pattern = CLOSE,
                   .max_range = (VkDeviceSize)340 << 10};
  run_case(&test, &c);
  c.scope = LAPROX_SCOPE_HEAD; /* more histograms than a binding holds */
  c.max_range = (VkDeviceSize)280 << 10;
  run_case(&test, &c);
  kernel_test_end(&test);
}

static void test_tokens(void **state) {
  kernel_test test = kernel_test_begin(state, 5);
  static const uint32_t lengths[] = {WINDOW, WINDOW + SINKS + 1, 300, 1024 + WINDOW + SINKS, 2500, 9000},
                        budgets[] = {WINDOW + SINKS + 1, 200, 900};
  for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
    for (pattern which = 0; which < N_PATTERNS; which++) {
      uint32_t same[N_HEADS];
      for (uint32_t head = 0; head < N_HEADS; head++) same[head] = lengths[l];
      const select_case c = {.lengths = same,
                             .scope = LAPROX_SCOPE_TOKEN,
                             .budget = budgets[(l + which) % 3],
                             .pattern = which,
                             .max_range = l == 5 && which % 2 ? (VkDeviceSize)200 << 10 : 0};
      run_case(&test, &c);
    }
  kernel_test_end(&test);
}

static void test_tokens_refused(void **state) {
  kernel_test test = kernel_test_begin(state, 6);
  const uint32_t heads[] = {0, 50, 100}, other[] = {0, 50, 99}, sinks[] = {1, 1, 1, 2};
  laprox_plan_info info = {.shape = {.n_layers = 1, .n_heads = 2, .n_kv_heads = 2, .head_dim = 4},
                           .policy = {.kind = LAPROX_POLICY_RANDOM,
                                      .scope = LAPROX_SCOPE_TOKEN,
                                      .budget = {.tokens = 20},
                                      .window = WINDOW},
                           .n_segments = 1,
                           .segments = {{.cu_seqlens = heads}}};
  laprox_plan *plan = NULL;
  uint32_t n;
  assert_int_equal(laprox_plan_create(test.context, &info, &plan), LAPROX_OK);
  const uint32_t nonsense[1000] = {0};
  assert_int_equal(laprox_removed_ranges(plan, nonsense, NULL, &n), LAPROX_ERROR_VULKAN);
  laprox_plan_destroy(plan);
  info.model_layers = 2;
  assert_int_equal(laprox_plan_create(test.context, &info, &plan), LAPROX_ERROR_INVALID_ARGUMENT);
  info.model_layers = 1;
  info.segments[0].cu_seqlens = other;
  assert_int_equal(laprox_plan_create(test.context, &info, &plan), LAPROX_ERROR_UNSUPPORTED);
  info.segments[0].cu_seqlens = heads;
  info.head_sinks = sinks + 2;
  assert_int_equal(laprox_plan_create(test.context, &info, &plan), LAPROX_ERROR_UNSUPPORTED);
  info.head_sinks = NULL;
  info.policy.scope = LAPROX_SCOPE_HEAD;
  assert_int_equal(laprox_plan_create(test.context, &info, &plan), LAPROX_OK);
  assert_int_equal(laprox_removed_ranges(plan, nonsense, NULL, &n), LAPROX_ERROR_INVALID_ARGUMENT);
  laprox_plan_destroy(plan);
  kernel_test_end(&test);
}

static double layer_sum(const laprox_plan *plan, const float *scores, uint32_t layer) {
  const lpx_layer_items *items = &plan->layers[layer];
  const float *first = scores + (size_t)items->first_block * BLOCK_ENTRIES;
  double sum = 0.0;
  for (size_t i = 0; i < (size_t)items->n_blocks * BLOCK_ENTRIES; i++)
    sum += first[i] < 0.0f ? 0.0 : first[i];
  return sum;
}

/* Scales stand before the selection begins; a layer without candidates has none. */
static void test_layer_sums(void **state) {
  static const uint32_t lengths[N_HEADS] = {1029, 6, 7, 2054, 4, 4, 4, 4, 5000, 4, 300, 1035};
  kernel_test test = kernel_test_begin(state, 7);
  for (uint32_t first_layer = 0; first_layer < N_LAYERS; first_layer++) {
    const select_case c = {.lengths = lengths, .budget = 300, .first_layer = first_layer};
    laprox_plan *plan = make_plan(&test, &c);
    plan->rules.normalize = true; /* as no policy without keys does */
    bound_plan bound = bind_plan(&test, plan);
    uint32_t first, count;
    laprox_binding_layer_steps(bound.binding, N_LAYERS, &first, &count);
    run_bound(&test, &bound, 0, first);
    kernel_download(&test, &bound.scores_buffer, bound.scores, (size_t)bound.needs.scores_bytes);
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
      const uint32_t *counters = bound.words + plan->result.counters + 2 * (size_t)layer;
      const double sum =
          layer < first_layer ? 1.0 / (double)given_scales[layer] : layer_sum(plan, bound.scores, layer);
      float scale;
      memcpy(&scale, &counters[1], sizeof scale);
      assert_int_equal(counters[0], 0);
      assert_true(fabs((double)scale * sum - (sum > 0.0)) < 1e-5);
      assert_true(sum > 0.0 || counters[1] == 0);
    }
    release_bound(&test, &bound);
    laprox_plan_destroy(plan);
  }
  kernel_test_end(&test);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_patterns),   cmocka_unit_test(test_budgets),
      cmocka_unit_test(test_floor),      cmocka_unit_test(test_ranges),
      cmocka_unit_test(test_tokens),     cmocka_unit_test(test_tokens_refused),
      cmocka_unit_test(test_layer_sums),
  };
  return cmocka_run_group_tests(tests, test_gpu_setup, test_gpu_teardown);
}
