/* test_cache.c: caches that grow and are evicted again and again, held against the f64 reference, and their
 * memory. */
#include "core/core.h"
#include "support/gpu.h"
#include "support/sequence.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED
#endif
#endif

#define MAX_STAGES 4

/* Some tokens more, then an eviction. */
typedef struct stage {
  uint32_t n_new;
  laprox_policy policy;
} stage;

typedef struct scenario {
  const char *name;
  capture_options options;
  uint32_t query_rows;
  const float *gains;
  stage stages[MAX_STAGES]; /* up to the first without tokens */
} scenario;

/* Heads of very different weight: the first takes nearly all places, the last none. */
static const float unequal[] = {16.0f, 0.25f, 0.0f};

static const scenario scenarios[] = {
    {"three evictions by laprox, f16",
     {{2, 4, 2, 32}, 720, .model_dim = 40, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 1},
     32,
     NULL,
     {{600, {.budget.share = 0.2}}, {64, {.budget.share = 0.15}}, {7, {.budget.tokens = 70}}}},
    {"f32, window below the ring's rows, tails of one token",
     {{2, 6, 3, 16}, 260, .model_dim = 24, .dtype = LAPROX_DTYPE_F32, .seed = 2},
     48,
     NULL,
     {{230, {.window = 16, .budget.tokens = 60}},
      {1, {.window = 16, .budget.tokens = 50}},
      {1, {.window = 16, .budget.tokens = 50}},
      {1, {.window = 8, .budget.tokens = 30}}}},
    {"joint, f32, sinks only at the second eviction",
     {{2, 4, 2, 16}, 330, .model_dim = 24, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 3},
     32,
     NULL,
     {{200, {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 90}},
      {65, {.gqa = LAPROX_GQA_JOINT, .sinks = 40, .budget.tokens = 80}},
      {65, {.gqa = LAPROX_GQA_JOINT, .sinks = 3, .budget.tokens = 80}}}},
    {"attention-mean, f16, floor at the second",
     {{2, 6, 2, 32}, 400, .model_dim = 24, .dtype = LAPROX_DTYPE_F16, .seed = 4},
     32,
     NULL,
     {{300, {.gqa = LAPROX_GQA_ATTENTION_MEAN, .budget.tokens = 64}},
      {63, {.gqa = LAPROX_GQA_ATTENTION_MEAN, .floor = 12, .budget.tokens = 56}},
      {37, {.gqa = LAPROX_GQA_MEAN, .floor = 12, .sinks = 2, .budget.tokens = 50}}}},
    {"heads that differ wildly, global, bf16",
     {{3, 3, 3, 16}, 1400, .model_dim = 20, .dtype = LAPROX_DTYPE_BF16, .seed = 5},
     32,
     unequal,
     {{1200, {.budget.tokens = 300}},
      {100, {.sinks = 4, .budget.tokens = 160}},
      {100, {.pool = LAPROX_POOL_MAX, .pool_width = 15, .budget.tokens = 150}}}},
    {"global, then within layers and heads whose candidates run out",
     {{2, 3, 3, 16}, 700, .model_dim = 20, .dtype = LAPROX_DTYPE_F32, .seed = 6},
     32,
     unequal,
     {{500, {.budget.tokens = 120}},
      {30, {.scope = LAPROX_SCOPE_HEAD, .budget.tokens = 100}},
      {30, {.scope = LAPROX_SCOPE_HEAD, .floor = 60, .sinks = 1, .budget.tokens = 95}},
      {30, {.scope = LAPROX_SCOPE_LAYER, .floor = 9, .budget.tokens = 70}}}},
    {"a floor above what some heads have",
     {{2, 3, 3, 16}, 460, .model_dim = 20, .dtype = LAPROX_DTYPE_F16, .seed = 7},
     32,
     unequal,
     {{400, {.budget.tokens = 80}},
      {20, {.floor = 30, .budget.tokens = 70}},
      {20, {.floor = 33, .scope = LAPROX_SCOPE_LAYER, .budget.tokens = 66}},
      {20, {.window = 3, .floor = 2, .budget.tokens = 6}}}},
    {"within layers, snapkv and laprox by turns",
     {{2, 4, 2, 16}, 600, .model_dim = 20, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_TIES, .seed = 8},
     32,
     NULL,
     {{400, {.kind = LAPROX_POLICY_SNAPKV, .scope = LAPROX_SCOPE_LAYER, .budget.share = 0.5}},
      {100, {.scope = LAPROX_SCOPE_LAYER, .budget.share = 0.3}},
      {50, {.kind = LAPROX_POLICY_SNAPKV, .scope = LAPROX_SCOPE_GLOBAL, .budget.share = 0.2}},
      {50,
       {.kind = LAPROX_POLICY_SNAPKV, .normalize = LAPROX_SWITCH_ON, .pool_width = 1, .budget.tokens = 60}}}},
    {"streaming, then sinks that are gone",
     {{2, 2, 2, 8}, 500, .model_dim = 16, .dtype = LAPROX_DTYPE_F16, .seed = 9},
     32,
     NULL,
     {{300, {.kind = LAPROX_POLICY_STREAMING, .budget.tokens = 100}},
      {100, {.kind = LAPROX_POLICY_STREAMING, .budget.tokens = 90}},
      {33, {.kind = LAPROX_POLICY_STREAMING, .sinks = 40, .budget.tokens = 80}},
      {66, {.kind = LAPROX_POLICY_STREAMING, .sinks = LAPROX_NONE, .budget.tokens = 40}}}},
    {"whole tokens, again and again, then within heads",
     {{3, 4, 2, 16}, 600, .model_dim = 20, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 13},
     32,
     NULL,
     {{400, {.scope = LAPROX_SCOPE_TOKEN, .budget.share = 0.5}},
      {100, {.scope = LAPROX_SCOPE_TOKEN, .sinks = 40, .gqa = LAPROX_GQA_JOINT, .budget.share = 0.3}},
      {50, {.kind = LAPROX_POLICY_KEYDIFF, .scope = LAPROX_SCOPE_TOKEN, .budget.tokens = 90}},
      {50, {.scope = LAPROX_SCOPE_HEAD, .budget.tokens = 60}}}},
    {"random, all scopes",
     {{2, 4, 2, 8}, 500, .model_dim = 16, .dtype = LAPROX_DTYPE_F32, .seed = 10},
     32,
     NULL,
     {{300, {.kind = LAPROX_POLICY_RANDOM, .scope = LAPROX_SCOPE_GLOBAL, .seed = 5, .budget.tokens = 90}},
      {70, {.kind = LAPROX_POLICY_RANDOM, .scope = LAPROX_SCOPE_LAYER, .seed = 6, .budget.tokens = 80}},
      {70, {.kind = LAPROX_POLICY_RANDOM, .sinks = 20, .floor = 3, .seed = 7, .budget.tokens = 70}}}},
    {"all scores equal, ragged",
     {{3, 4, 2, 16}, 400, .model_dim = 16, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_EQUAL, .seed = 11},
     32,
     NULL,
     {{300, {.pool_width = 1, .budget.tokens = 111}},
      {40, {.pool_width = 1, .budget.tokens = 77}},
      {40, {.budget.tokens = 70}}}},
    {"half of the values zero, ragged",
     {{2, 4, 2, 16},
      400,
      .model_dim = 16,
      .dtype = LAPROX_DTYPE_F16,
      .pattern = CAPTURE_HALF_ZERO,
      .seed = 12},
     32,
     NULL,
     {{300, {.pool_width = 1, .budget.tokens = 200}}, {40, {.pool_width = 1, .budget.tokens = 170}}}},
    {"numbers that are none, ragged",
     {{2, 4, 2, 16},
      300,
      .model_dim = 16,
      .dtype = LAPROX_DTYPE_F32,
      .spoil = CAPTURE_NAN_VALUE | CAPTURE_INF_VALUE,
      .seed = 13},
     32,
     NULL,
     {{200, {.budget.tokens = 150}}, {50, {.budget.tokens = 170}}, {50, {.budget.tokens = 120}}}},
    {"a window of one",
     {{2, 2, 1, 32}, 200, .model_dim = 16, .dtype = LAPROX_DTYPE_F16, .seed = 14},
     1,
     NULL,
     {{150, {.window = 1, .budget.tokens = 2}},
      {1, {.window = 1, .budget.tokens = 2}},
      {49, {.window = 1, .budget.tokens = 3}}}},
    {"a window of 256",
     {{1, 2, 2, 16}, 600, .model_dim = 16, .dtype = LAPROX_DTYPE_F16, .seed = 15},
     256,
     NULL,
     {{400, {.window = 256, .budget.tokens = 270}}, {100, {.window = 256, .budget.tokens = 260}}}},
    {"groups of 16, head_dim 4",
     {{1, 32, 2, 4}, 300, .model_dim = 16, .dtype = LAPROX_DTYPE_F16, .scale = 0.7, .seed = 16},
     32,
     NULL,
     {{200, {.budget.tokens = 50}}, {64, {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 48}}}},
    {"blocks of 8 bits, and tails of them",
     {{2, 4, 2, 64},
      720,
      .model_dim = 40,
      .dtype = LAPROX_DTYPE_Q8_0,
      .pattern = CAPTURE_NEEDLES,
      .seed = 18},
     32,
     NULL,
     {{600, {.budget.tokens = 100}},
      {70, {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 90}},
      {50, {.kind = LAPROX_POLICY_SNAPKV, .budget.tokens = 61}}}},
    {"blocks of 4 bits, and tails of them",
     {{2, 3, 1, 128},
      420,
      .model_dim = 24,
      .dtype = LAPROX_DTYPE_Q4_0,
      .pattern = CAPTURE_NEEDLES,
      .seed = 19},
     32,
     NULL,
     {{300, {.budget.tokens = 77}},
      {70, {.gqa = LAPROX_GQA_ATTENTION_MEAN, .budget.tokens = 80}},
      {50, {.kind = LAPROX_POLICY_KEYDIFF, .budget.tokens = 61}}}},
    {"blocks under policies that look at keys or values alone",
     {{2, 4, 2, 64}, 400, .model_dim = 24, .dtype = LAPROX_DTYPE_Q8_0, .seed = 20},
     32,
     NULL,
     {{200, {.kind = LAPROX_POLICY_TOVA, .budget.tokens = 150}},
      {70, {.kind = LAPROX_POLICY_KNORM, .budget.tokens = 120}},
      {70, {.kind = LAPROX_POLICY_VATP, .budget.tokens = 90}}}},
    {"everything fits the first and the second time",
     {{2, 4, 2, 16}, 400, .model_dim = 16, .dtype = LAPROX_DTYPE_F16, .seed = 17},
     32,
     NULL,
     {{300, {.budget.tokens = 300}},
      {1, {.budget.tokens = 100}},
      {10, {.budget.tokens = 110}},
      {1, {.budget.tokens = 120}}}},
};
#define N_SCENARIOS (sizeof scenarios / sizeof *scenarios)

static test_gpu *gpu;

static void run_stages(test_sequence *sequence, const stage *stages) {
  for (size_t i = 0; i < MAX_STAGES && stages[i].n_new; i++) {
    sequence_grow(sequence, stages[i].n_new);
    sequence_evict(sequence, &stages[i].policy, NULL);
  }
}

static void test_scenario(void **state) {
  const scenario *what = *state;
  const uint64_t bytes_before = laprox_context_memory(laprox_device_context(gpu->device)).bytes;
  const unsigned n_errors = gpu->n_errors;
  test_sequence sequence;
  sequence_init(&sequence, gpu->device, &what->options, what->query_rows, what->gains);
  run_stages(&sequence, what->stages);
  sequence_finish(&sequence);
  assert_int_equal(laprox_context_memory(laprox_device_context(gpu->device)).bytes, bytes_before);
  assert_int_equal(gpu->n_errors, n_errors);
}

/* ---- lengths around tiles, splits and blocks ---- */

static const capture_options small_options = {
    {1, 2, 2, 8}, 1600, .model_dim = 12, .dtype = LAPROX_DTYPE_F16, .seed = 30};

static void test_tail_lengths(void **state) {
  static const uint32_t lengths[] = {1, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025};
  (void)state;
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    const stage stages[MAX_STAGES] = {{200, {.budget.tokens = 90}}, {lengths[i], {.budget.tokens = 80}}};
    test_sequence sequence;
    sequence_init(&sequence, gpu->device, &small_options, 32, NULL);
    run_stages(&sequence, stages);
    sequence_finish(&sequence);
  }
}

/* Within heads, every prefix is as long as the budget. */
static void test_prefix_lengths(void **state) {
  static const uint32_t lengths[] = {33,  63,  64,  65,  95,   96,   97,   511, 512,
                                     513, 543, 544, 545, 1023, 1024, 1025, 1057};
  (void)state;
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    const uint32_t half = lengths[i] / 2 < 33 ? 33 : lengths[i] / 2;
    const stage stages[MAX_STAGES] = {{1100, {.scope = LAPROX_SCOPE_HEAD, .budget.tokens = lengths[i]}},
                                      {100, {.budget.tokens = half}},
                                      {1, {.scope = LAPROX_SCOPE_HEAD, .budget.tokens = 33}}};
    test_sequence sequence;
    sequence_init(&sequence, gpu->device, &small_options, 32, NULL);
    run_stages(&sequence, stages);
    sequence_finish(&sequence);
  }
}

/* Single tokens, with room behind the tail and without, and a dense prefix before it. */
static void test_growth(void **state) {
  (void)state;
  const laprox_policy policy = {.budget.tokens = 60};
  test_sequence sequence;
  sequence_init(&sequence, gpu->device, &small_options, 32, NULL);
  sequence_grow(&sequence, 100);
  for (int i = 0; i < 40; i++) sequence_grow(&sequence, 1);
  assert_non_null(sequence.cache.layers[0].prefix_key.buffer); /* of entries that were never evicted */
  sequence_expect_rows(&sequence);
  sequence_evict(&sequence, &policy, NULL);
  for (int i = 0; i < 70; i++) sequence_grow(&sequence, 1);
  sequence_grow(&sequence, 150);
  for (int i = 0; i < 3; i++) sequence_grow(&sequence, 1);
  sequence_expect_rows(&sequence);
  sequence_evict(&sequence, &policy, NULL);
  sequence_finish(&sequence);
}

/* ---- what must be refused, and what is nothing to do ---- */

static void expect_unchanged(test_sequence *sequence, const laprox_policy *policy, laprox_result expected) {
  laprox_eviction out;
  float *scores = NULL;
  const uint64_t context_before = laprox_context_memory(sequence->device->context).bytes;
  const lpx_cache before = sequence->cache;
  ref_kept held = sequence_positions(sequence);
  assert_int_equal(sequence_try_evict(sequence, policy, &scores, &out), expected);
  ref_kept kept = sequence_positions(sequence);
  assert_null(scores);
  assert_memory_equal(held.offsets, kept.offsets, (held.n_heads + 1) * sizeof *held.offsets);
  assert_memory_equal(held.entries, kept.entries, held.offsets[held.n_heads] * sizeof *held.entries);
  assert_int_equal(sequence->cache.n_tail, before.n_tail);
  assert_int_equal(sequence->cache.bytes, before.bytes);
  assert_int_equal(laprox_context_memory(sequence->device->context).bytes, context_before);
  sequence_expect_rows(sequence);
  ref_kept_finish(&held);
  ref_kept_finish(&kept);
}

static void test_window_that_is_gone(void **state) {
  (void)state;
  const laprox_policy first = {.window = 4, .budget.tokens = 6};
  test_sequence sequence;
  sequence_init(&sequence, gpu->device, &small_options, 64, NULL);
  sequence_grow(&sequence, 200);
  sequence_evict(&sequence, &first, NULL);
  sequence_grow(&sequence, 20);
  static const laprox_policy gone[] = {{.window = 32, .budget.tokens = 40},
                                       {.kind = LAPROX_POLICY_STREAMING, .window = 30, .budget.tokens = 40},
                                       {.kind = LAPROX_POLICY_RANDOM, .window = 25, .budget.tokens = 26},
                                       {.window = 65, .budget.tokens = 66}};
  for (size_t i = 0; i < sizeof gone / sizeof *gone; i++) {
    const unsigned n_errors = gpu->n_errors;
    expect_unchanged(&sequence, &gone[i], LAPROX_ERROR_INVALID_ARGUMENT);
    assert_int_equal(gpu->n_errors, n_errors + 1);
    assert_non_null(strstr(gpu->last_error, "window"));
  }
  const laprox_policy held = {.window = 24, .budget.tokens = 25};
  sequence_evict(&sequence, &held, NULL); /* 4 of the first eviction's window and 20 since */
  sequence_finish(&sequence);
}

static void test_nothing_to_do(void **state) {
  (void)state;
  static const laprox_policy first = {.budget.tokens = 60},
                             everything[] = {
                                 {.budget.tokens = 71},
                                 {.budget.tokens = 70},
                                 {.budget.share = 0.9},
                                 {.kind = LAPROX_POLICY_FULL},
                                 {.kind = LAPROX_POLICY_STREAMING, .budget.tokens = 199},
                             };
  test_sequence sequence;
  sequence_init(&sequence, gpu->device, &small_options, 32, NULL);
  sequence_grow(&sequence, 200);
  sequence_evict(&sequence, &first, NULL);
  sequence_grow(&sequence, 10);
  const VkBuffer prefix = sequence.cache.layers[0].prefix_key.buffer;
  const uint64_t peak = sequence.cache.peak_bytes;
  for (size_t i = 0; i < sizeof everything / sizeof *everything; i++) {
    expect_unchanged(&sequence, &everything[i], LAPROX_OK);
    assert_true(sequence.cache.layers[0].prefix_key.buffer == prefix);
    assert_int_equal(sequence.cache.peak_bytes, peak);
  }
  sequence_finish(&sequence);
}

static bool cancel_at(void *user, const char *what, double fraction) {
  unsigned *calls_left = user;
  assert_non_null(what);
  assert_true(fraction >= 0 && fraction <= 1);
  return --*calls_left > 0;
}

static void test_cancelling(void **state) {
  (void)state;
  const laprox_policy policy = {.budget.tokens = 60};
  test_sequence sequence;
  sequence_init(&sequence, gpu->device, &small_options, 32, NULL);
  sequence_grow(&sequence, 200);
  for (unsigned calls = 1; calls <= 2; calls++) {
    unsigned calls_left = calls;
    laprox_eviction out;
    const lpx_cache_eviction eviction = {.policy = &policy,
                                         .queries = sequence.queries,
                                         .query_rows = 32,
                                         .query_end = 200 % 32,
                                         .factors = sequence.factors,
                                         .progress = cancel_at,
                                         .progress_user = &calls_left};
    const uint64_t bytes = laprox_context_memory(sequence.device->context).bytes;
    assert_int_equal(lpx_cache_evict(&sequence.cache, &eviction, &out), LAPROX_ERROR_CANCELLED);
    assert_int_equal(laprox_context_memory(sequence.device->context).bytes, bytes);
    assert_int_equal(sequence.cache.n_tail, 200);
    sequence_expect_rows(&sequence);
  }
  sequence_evict(&sequence, &policy, NULL);
  sequence_finish(&sequence);
}

/* ---- copies ---- */

static void test_copy(void **state) {
  (void)state;
  const laprox_policy policy = {.budget.tokens = 60}, smaller = {.budget.tokens = 40};
  test_sequence sequence, other;
  sequence_init(&sequence, gpu->device, &small_options, 32, NULL);
  sequence_grow(&sequence, 200);
  sequence_evict(&sequence, &policy, NULL);
  sequence_grow(&sequence, 1);
  other = sequence;
  assert_int_equal(lpx_cache_copy(&sequence.cache, &other.cache), LAPROX_OK);
  sequence_expect_same(&sequence, &other);
  assert_true(other.cache.layers[0].prefix_key.buffer != sequence.cache.layers[0].prefix_key.buffer);
  sequence_evict(&other, &smaller, NULL);
  sequence_expect_rows(&sequence);
  lpx_cache_finish(&other.cache);
  sequence_expect_rows(&sequence);
  sequence_evict(&sequence, &smaller, NULL);
  sequence_finish(&sequence);
}

/* ---- small limits: the same results from many bindings, dispatches and submits ---- */

typedef struct limits {
  VkDeviceSize max_range;
  uint32_t max_groups;
  uint64_t cost;
} limits;

static limits exchange_limits(limits with) {
  laprox_context *context = laprox_device_context(gpu->device);
  const limits old = {context->max_range, context->max_groups, context->dispatch_cost};
  context->max_range = with.max_range;
  context->max_groups = with.max_groups;
  context->dispatch_cost = with.cost;
  context->submit_cost = 2 * with.cost;
  return old;
}

typedef struct split_case {
  const char *name;
  capture_options options;
  const float *gains;
  stage stages[MAX_STAGES];
  limits limits;
  /* The operands that are prepared for matrices fit beside the rest. Elsewhere small limits would choose other kernels
     than ordinary ones, with other last bits. */
  bool on_matrices;
} split_case;

static const float loud_and_quiet[] = {4.0f, 0.25f, 1.0f, 0.0f, 2.0f};

static const split_case splits[] = {
    {"global, f16",
     {{2, 10, 5, 32},
      700,
      .model_dim = 24,
      .dtype = LAPROX_DTYPE_F16,
      .pattern = CAPTURE_NEEDLES,
      .seed = 40},
     loud_and_quiet,
     {{600, {.budget.share = 0.3}}, {90, {.budget.tokens = 120}}, {10, {.budget.tokens = 100}}},
     {64 << 10, 9, 1},
     false},
    {"global, blocks",
     {{2, 8, 4, 64},
      700,
      .model_dim = 24,
      .dtype = LAPROX_DTYPE_Q8_0,
      .pattern = CAPTURE_NEEDLES,
      .seed = 44},
     loud_and_quiet,
     {{600, {.budget.share = 0.3}}, {90, {.budget.tokens = 120}}, {10, {.budget.tokens = 100}}},
     {150 << 10, 9, 1},
     false},
    {"joint, within heads, f32",
     {{2, 10, 5, 32},
      640,
      .model_dim = 24,
      .dtype = LAPROX_DTYPE_F32,
      .pattern = CAPTURE_NEEDLES,
      .seed = 41},
     loud_and_quiet,
     {{540, {.gqa = LAPROX_GQA_JOINT, .scope = LAPROX_SCOPE_HEAD, .budget.share = 0.4}},
      {90, {.gqa = LAPROX_GQA_JOINT, .scope = LAPROX_SCOPE_LAYER, .budget.tokens = 150}},
      {10, {.gqa = LAPROX_GQA_ATTENTION_MEAN, .sinks = 2, .floor = 20, .budget.tokens = 100}}},
     {96 << 10, 16, 3000000},
     false},
    {"snapkv and random, bf16",
     {{3, 6, 3, 16}, 2600, .model_dim = 16, .dtype = LAPROX_DTYPE_BF16, .seed = 42},
     NULL,
     {{2400, {.kind = LAPROX_POLICY_SNAPKV, .scope = LAPROX_SCOPE_GLOBAL, .budget.tokens = 700}},
      {200, {.kind = LAPROX_POLICY_RANDOM, .scope = LAPROX_SCOPE_LAYER, .budget.tokens = 300}}},
     {96 << 10, 10, 1000000},
     false},
    {"nearly everything kept of two dense segments",
     {{1, 3, 3, 32}, 601, .model_dim = 16, .dtype = LAPROX_DTYPE_F16, .seed = 43},
     NULL,
     {{300, {.budget.tokens = 300}}, {301, {.budget.tokens = 580}}},
     {64 << 10, 300, 1u << 29},
     false},
    {"on matrices where there are any",
     {{1, 3, 3, 32}, 601, .model_dim = 16, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 45},
     NULL,
     {{500, {.budget.tokens = 200}}, {101, {.budget.tokens = 150}}},
     {96 << 10, 6, 1u << 20},
     .on_matrices = true},
};
#define N_SPLITS (sizeof splits / sizeof *splits)

static float *evict_for_scores(test_sequence *sequence, const laprox_policy *policy, size_t *n) {
  laprox_eviction out;
  float *scores = NULL;
  ref_kept held = sequence_positions(sequence);
  const ref_rules rules = ref_rules_decide(policy);
  *n = 0;
  for (size_t head = 0; head < held.n_heads; head++) {
    uint32_t n_sinks = 0;
    for (size_t at = held.offsets[head]; at < held.offsets[head + 1]; at++)
      n_sinks += held.entries[at] < rules.sinks;
    *n += held.offsets[head + 1] - held.offsets[head] - rules.window - n_sinks;
  }
  ref_kept_finish(&held);
  if (sequence_try_evict(sequence, policy, &scores, &out)) fail_msg("%s", gpu->last_error);
  return scores;
}

static void test_splits(void **state) {
  const split_case *what = *state;
  test_sequence whole, split;
  laprox_context *context = laprox_device_context(gpu->device);
  const uint32_t variants = context->variants;
  if (!what->on_matrices) context->variants &= ~(uint32_t)LAPROX_VARIANT_MATRIX;
  sequence_init(&whole, gpu->device, &what->options, 32, what->gains);
  sequence_init(&split, gpu->device, &what->options, 32, what->gains);
  for (size_t i = 0; i < MAX_STAGES && what->stages[i].n_new; i++) {
    size_t n, n_split;
    sequence_grow(&whole, what->stages[i].n_new);
    sequence_grow(&split, what->stages[i].n_new);
    float *scores = evict_for_scores(&whole, &what->stages[i].policy, &n);
    const limits ordinary = exchange_limits(what->limits);
    float *split_scores = evict_for_scores(&split, &what->stages[i].policy, &n_split);
    (void)exchange_limits(ordinary);
    assert_int_equal(n, n_split);
    assert_int_equal(scores != NULL, split_scores != NULL);
    if (scores) assert_memory_equal(scores, split_scores, n * sizeof *scores);
    sequence_expect_same(&whole, &split);
    free(scores);
    free(split_scores);
  }
  sequence_finish(&whole);
  sequence_finish(&split);
  context->variants = variants;
}

/* What no binding can hold is refused before anything is done. */
static void test_range_too_small(void **state) {
  (void)state;
  const laprox_policy policy = {.budget.tokens = 60};
  test_sequence sequence;
  sequence_init(&sequence, gpu->device, &small_options, 32, NULL);
  sequence_grow(&sequence, 1500);
  const limits ordinary = exchange_limits((limits){16 << 10, 65535, UINT64_C(1) << 29});
  const unsigned n_errors = gpu->n_errors;
  expect_unchanged(&sequence, &policy, LAPROX_ERROR_UNSUPPORTED);
  assert_int_equal(gpu->n_errors, n_errors + 1);
  (void)exchange_limits(ordinary);
  sequence_evict(&sequence, &policy, NULL);
  sequence_finish(&sequence);
}

/* ---- memory ---- */

static void test_bytes_at_5_percent(void **state) {
  (void)state;
  static const capture_options options = {
      {2, 4, 2, 32}, 2040, .model_dim = 16, .dtype = LAPROX_DTYPE_F16, .seed = 50};
  const laprox_policy policy = {.budget.share = 0.05};
  test_sequence sequence;
  laprox_eviction out;
  sequence_init(&sequence, gpu->device, &options, 32, NULL);
  sequence_grow(&sequence, 2000);
  const uint64_t full = sequence.cache.bytes, all = laprox_context_memory(gpu->device->context).bytes;
  sequence_evict(&sequence, &policy, &out);
  const uint64_t least_peak = full + sequence.cache.bytes;
  assert_int_equal(out.kept, 4 * 100);
  assert_true(sequence.cache.peak_bytes >= least_peak);
  assert_true(laprox_context_memory(gpu->device->context).peak_bytes >= sequence.cache.peak_bytes);
  for (int i = 0; i < 40; i++) { /* room for what is generated is small too */
    assert_true(sequence.cache.bytes * 100 <= full * 7);
    assert_int_equal(all - full + sequence.cache.bytes, laprox_context_memory(gpu->device->context).bytes);
    if (i < 30) sequence_grow(&sequence, 1);
  }
  sequence_finish(&sequence);
}

/* A tail that moves to a larger buffer stands in both for a moment. */
static void test_peak_of_growth(void **state) {
  (void)state;
  test_sequence sequence;
  sequence_init(&sequence, gpu->device, &small_options, 32, NULL);
  sequence_grow(&sequence, 1);
  sequence_grow(&sequence, 900);
  const uint64_t rows = sequence.cache.bytes;
  sequence_grow(&sequence, 1);
  const lpx_cache_layer *layer = &sequence.cache.layers[0];
  const uint64_t tail = layer->tail_key.allocated + layer->tail_value.allocated;
  assert_true(sequence.cache.peak_bytes >= rows);
  sequence_grow(&sequence, 600);
  assert_true(sequence.cache.peak_bytes >= sequence.cache.bytes + tail);
  sequence_finish(&sequence);
}

/* AddressSanitizer keeps freed memory for a while: nothing can be said there. */
static uint64_t resident_bytes(void) {
  unsigned long long pages = 0;
#if defined(__linux__) && !defined(SANITIZED)
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file) return 0;
  if (fscanf(file, "%*s %llu", &pages) != 1) pages = 0;
  fclose(file);
#endif
  return pages * 4096;
}

static void fill_tail(const lpx_cache *cache, const uint32_t *pattern, size_t bytes) {
  for (uint32_t l = 0; l < cache->shape.n_layers; l++)
    for (int value = 0; value < 2; value++) {
      const lpx_buffer *to = value ? &cache->layers[l].tail_value : &cache->layers[l].tail_key;
      for (VkDeviceSize at = 0; at < to->size; at += bytes) {
        const VkDeviceSize now = to->size - at < bytes ? to->size - at : bytes;
        assert_int_equal(lpx_queue_upload(cache->device->queue,
                                          lpx_buffer_part(lpx_buffer_whole(to), at, now), pattern,
                                          (size_t)now),
                         LAPROX_OK);
      }
    }
}

static void fill_and_evict(lpx_cache *cache, uint32_t n_tokens, const uint32_t *pattern, size_t pattern_bytes,
                           uint64_t *full, uint64_t *resident) {
  const laprox_shape shape = {4, 8, 8, 128};
  const laprox_policy policy = {.kind = LAPROX_POLICY_RANDOM, .budget.share = 0.05};
  const lpx_cache_eviction eviction = {.policy = &policy};
  laprox_eviction out;
  assert_int_equal(lpx_cache_init(gpu->device, &shape, LAPROX_DTYPE_F16, cache), LAPROX_OK);
  assert_int_equal(lpx_cache_reserve(cache, n_tokens, true), LAPROX_OK);
  fill_tail(cache, pattern, pattern_bytes);
  lpx_cache_advance(cache, n_tokens);
  *full = cache->bytes;
  *resident = resident_bytes();
  assert_int_equal(lpx_cache_evict(cache, &eviction, &out), LAPROX_OK);
}

/* A software device's memory is the process's, so that the system itself can say what a cache takes: all of it while
   it is full, and at most 7 % at a budget of 5 %. */
static void test_memory_of_the_process(void **state) {
  (void)state;
  const size_t pattern_bytes = (size_t)4 << 20;
  if (gpu->device->context->properties.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU || !resident_bytes()) {
    print_message("skipped: needs a software device, /proc/self/statm and no sanitizer\n");
    skip();
  }
  uint32_t *pattern = malloc(pattern_bytes);
  assert_non_null(pattern);
  for (size_t i = 0; i < pattern_bytes / 4; i++) pattern[i] = (uint32_t)i * 2654435761u;
  lpx_cache cache;
  uint64_t full, resident;
  /* A small one first: compiled shaders and the driver's own buffers stay. */
  fill_and_evict(&cache, 3000, pattern, pattern_bytes, &full, &resident);
  lpx_cache_finish(&cache);
  const uint64_t before = resident_bytes();
  fill_and_evict(&cache, 50000, pattern, pattern_bytes, &full, &resident);
  const uint64_t after = resident_bytes();
  print_message("%llu MiB full, %llu MiB kept; the process held %lld MiB, then %lld MiB\n",
                (unsigned long long)full >> 20, (unsigned long long)cache.bytes >> 20,
                ((long long)resident - (long long)before) / (1 << 20),
                ((long long)after - (long long)before) / (1 << 20));
  assert_true(full >= UINT64_C(700) << 20);
  assert_true(resident >= before + full / 100 * 98);
  assert_true(cache.bytes <= full / 100 * 7);
  assert_true(after <= before + full / 100 * 7);
  lpx_cache_finish(&cache);
  free(pattern);
}

/* ---- all of them ---- */

/* A state of the group would take the place of the tests' own. */
static int set_up(void **state) {
  (void)state;
  void *made = NULL;
  const int result = test_gpu_setup(&made);
  gpu = made;
  return result;
}

static int tear_down(void **state) {
  (void)state;
  void *made = gpu;
  return test_gpu_teardown(&made);
}

/* cmocka's state is not const; it is not written. */
static void *as_state(const void *what) {
  return (void *)(uintptr_t)what;
}

int main(void) {
  static const struct CMUnitTest others[] = {
      cmocka_unit_test(test_memory_of_the_process),
      cmocka_unit_test(test_tail_lengths),
      cmocka_unit_test(test_prefix_lengths),
      cmocka_unit_test(test_growth),
      cmocka_unit_test(test_window_that_is_gone),
      cmocka_unit_test(test_nothing_to_do),
      cmocka_unit_test(test_cancelling),
      cmocka_unit_test(test_copy),
      cmocka_unit_test(test_range_too_small),
      cmocka_unit_test(test_bytes_at_5_percent),
      cmocka_unit_test(test_peak_of_growth),
  };
  enum { N_OTHERS = sizeof others / sizeof *others };
  struct CMUnitTest tests[N_OTHERS + N_SCENARIOS + N_SPLITS];
  struct CMUnitTest *next = tests;
  for (size_t i = 0; i < N_OTHERS; i++) *next++ = others[i];
  for (size_t i = 0; i < N_SCENARIOS; i++)
    *next++ = (struct CMUnitTest){scenarios[i].name, test_scenario, NULL, NULL, as_state(&scenarios[i])};
  for (size_t i = 0; i < N_SPLITS; i++)
    *next++ = (struct CMUnitTest){splits[i].name, test_splits, NULL, NULL, as_state(&splits[i])};
  return cmocka_run_group_tests_name("cache", tests, set_up, tear_down);
}
