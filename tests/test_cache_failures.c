/* test_cache_failures.c: caches when host memory runs out, and results that no selection can come to. */
#include "core/core.h"
#include "evict/evict.h"
#include "support/host.h"
#include "support/sequence.h"
#include "support/variants.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- host memory that runs out ---- */

typedef struct failing_rig {
  test_host host;
  laprox_instance *instance;
  laprox_device *device;
} failing_rig;

static void failing_init(failing_rig *rig) {
  test_host_init(&rig->host);
  const laprox_instance_info info = {.host = rig->host.host, .variants_off = test_variants_off()};
  assert_int_equal(laprox_instance_create(&info, &rig->instance), LAPROX_OK);
  assert_int_equal(laprox_device_open(rig->instance, getenv("LAPROX_DEVICE"), &rig->device), LAPROX_OK);
}

static void failing_finish(failing_rig *rig) {
  laprox_device_destroy(rig->device);
  laprox_instance_destroy(rig->instance);
  assert_int_equal(rig->host.n_live, 0);
}

static const capture_options failing_options = {
    {3, 4, 2, 16}, 300, .model_dim = 16, .dtype = LAPROX_DTYPE_F16, .seed = 60};

/* Two sequences in the same state, ready to be evicted again. */
static void make_twins(const failing_rig *rig, const laprox_policy *policy, test_sequence *twin,
                       test_sequence *sequence) {
  test_sequence *const both[] = {twin, sequence};
  for (int i = 0; i < 2; i++) {
    sequence_init(both[i], rig->device, &failing_options, 32, NULL);
    sequence_grow(both[i], 150);
    sequence_evict(both[i], policy, NULL);
    sequence_grow(both[i], 50);
  }
}

static void test_eviction_without_memory(void **state) {
  (void)state;
  const laprox_policy policy = {.floor = 3, .sinks = 1, .budget.tokens = 50};
  failing_rig rig;
  test_sequence twin, sequence;
  failing_init(&rig);
  make_twins(&rig, &policy, &twin, &sequence);
  sequence_evict(&twin, &policy, NULL);
  unsigned n_failures = 0;
  for (laprox_result result = LAPROX_ERROR_OUT_OF_MEMORY; result; n_failures++) {
    const uint64_t bytes = laprox_context_memory(laprox_device_context(rig.device)).bytes;
    const long n_live = rig.host.n_live;
    const unsigned n_errors = rig.host.n_errors;
    laprox_eviction out;
    float *scores = NULL;
    rig.host.fail_at = rig.host.n_allocated + 1 + n_failures;
    result = sequence_try_evict(&sequence, &policy, &scores, &out);
    rig.host.fail_at = 0;
    if (!result) {
      lpx_release(&rig.host.host, scores);
      break;
    }
    assert_int_equal(result, LAPROX_ERROR_OUT_OF_MEMORY);
    assert_null(scores);
    assert_int_equal(rig.host.n_errors, n_errors + 1);
    assert_int_equal(rig.host.n_live, n_live);
    assert_int_equal(laprox_context_memory(laprox_device_context(rig.device)).bytes, bytes);
    assert_int_equal(sequence.cache.n_tail, 50);
    if (n_failures % 8 == 0) sequence_expect_rows(&sequence);
  }
  print_message("%u allocations failed in turn\n", n_failures);
  assert_true(n_failures > 20);
  sequence_expect_same(&twin, &sequence);
  sequence_finish(&twin);
  sequence_finish(&sequence);
  failing_finish(&rig);
}

/* Growth that fails after some layers leaves tails of different capacity, which must not be noticed. */
static void test_growth_without_memory(void **state) {
  (void)state;
  const laprox_policy policy = {.budget.tokens = 45};
  failing_rig rig;
  failing_init(&rig);
  for (unsigned n = 1, failed = 1; failed; n++) {
    test_sequence sequence;
    sequence_init(&sequence, rig.device, &failing_options, 32, NULL);
    sequence_grow(&sequence, 100);
    if (n % 2) sequence_evict(&sequence, &policy, NULL);
    sequence_grow(&sequence, 1);
    const long n_live = rig.host.n_live;
    rig.host.fail_at = rig.host.n_allocated + n;
    failed = lpx_cache_reserve(&sequence.cache, 90, n % 4 < 2) != LAPROX_OK;
    rig.host.fail_at = 0;
    assert_int_equal(rig.host.n_live, n_live);
    sequence_expect_rows(&sequence);
    if (n % 3 == 0) sequence_evict(&sequence, &policy, NULL);
    sequence_grow(&sequence, 40);
    for (uint32_t l = 0; l < 3 && failed; l++)
      assert_int_equal(sequence.cache.layers[l].tail_capacity, sequence.cache.n_tail);
    for (int i = 0; i < 60; i++) sequence_grow(&sequence, 1);
    sequence_expect_rows(&sequence);
    sequence_evict(&sequence, &policy, NULL);
    sequence_finish(&sequence);
    assert_true(n < 100);
  }
  failing_finish(&rig);
}

static void test_copy_without_memory(void **state) {
  (void)state;
  const laprox_policy policy = {.budget.tokens = 45};
  failing_rig rig;
  test_sequence twin, sequence;
  failing_init(&rig);
  make_twins(&rig, &policy, &twin, &sequence);
  const long n_live = rig.host.n_live;
  const uint64_t bytes = laprox_context_memory(laprox_device_context(rig.device)).bytes;
  lpx_cache copy;
  laprox_result result = LAPROX_ERROR_OUT_OF_MEMORY;
  for (unsigned n = 1; result; n++) {
    rig.host.fail_at = rig.host.n_allocated + n;
    result = lpx_cache_copy(&sequence.cache, &copy);
    rig.host.fail_at = 0;
    if (!result) break;
    assert_int_equal(result, LAPROX_ERROR_OUT_OF_MEMORY);
    assert_int_equal(rig.host.n_live, n_live);
    assert_int_equal(laprox_context_memory(laprox_device_context(rig.device)).bytes, bytes);
  }
  assert_int_equal(copy.bytes, sequence.cache.bytes);
  lpx_cache_finish(&copy);
  assert_int_equal(rig.host.n_live, n_live);
  sequence_finish(&twin);
  sequence_finish(&sequence);
  failing_finish(&rig);
}

/* ---- a device that computes wrongly ---- */

typedef struct wrong_word {
  uint32_t word, value; /* word: of cu_seqlens, or behind it of the indices */
} wrong_word;

static void test_impossible_choice(void **state) {
  (void)state;
  static const wrong_word wrong[] = {{0, 1},   {1, 0},           {1, 41}, {1, UINT32_MAX}, {2, 39},
                                     {2, 41},  {4, 30},          {4, 0},  {5, 0},          {22, 50},
                                     {22, 48}, {23, UINT32_MAX}, {42, 50}};
  const laprox_plan_info info = {.shape = {1, 2, 2, 8},
                                 .policy = {.window = 4, .budget.tokens = 20},
                                 .n_segments = 1,
                                 .segments = {{.n_entries = 50}}};
  failing_rig rig;
  laprox_plan *plan = NULL;
  failing_init(&rig);
  assert_int_equal(laprox_plan_create(laprox_device_context(rig.device), &info, &plan), LAPROX_OK);
  uint32_t *words = calloc(plan->result.n_words, sizeof *words);
  assert_non_null(words);
  uint32_t *chosen = words + plan->result.cu_seqlens; /* 0, 20, 40, then 30 … 49 twice */
  assert_ptr_equal(chosen + 3, words + plan->result.indices);
  for (uint32_t i = 0; i < 43; i++) chosen[i] = i < 3 ? 20 * i : 30 + (i - 3) % 20;
  assert_int_equal(lpx_select_check(plan, words), LAPROX_OK);
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    const uint32_t right = chosen[wrong[i].word];
    chosen[wrong[i].word] = wrong[i].value;
    assert_int_equal(lpx_select_check(plan, words), LAPROX_ERROR_VULKAN);
    chosen[wrong[i].word] = right;
  }
  free(words);
  laprox_plan_destroy(plan);
  failing_finish(&rig);
}

int main(void) {
  static const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_eviction_without_memory),
      cmocka_unit_test(test_growth_without_memory),
      cmocka_unit_test(test_copy_without_memory),
      cmocka_unit_test(test_impossible_choice),
  };
  return cmocka_run_group_tests_name("cache failures", tests, NULL, NULL);
}
