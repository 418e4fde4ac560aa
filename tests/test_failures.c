/* test_failures.c: every Vulkan call and every allocation that can fail does so once, and the library ends
 * each time with one result, one message and nothing left behind, and goes on when asked again. And: the
 * smallest device that Vulkan allows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shim/failing.h"
#include "support/flow.h"
#include "vk/table.h"

#include <cmocka.h>

#define ARENA_BYTES ((VkDeviceSize)16 << 20)

static app_vulkan vulkan;
static app_device device;
static test_host host;

static laprox_context_info shimmed_info(void) {
  laprox_context_info info = app_context_info(&vulkan, &device, &host.host);
  info.get_instance_proc_addr = shim_get_instance_proc_addr;
  return info;
}

/* ---- an application's eviction ---- */

static const flow_options small = {
    .capture = {{2, 4, 2, 32}, 150, 16, .model_dim = 32, .dtype = LAPROX_DTYPE_F16, .seed = 50},
    .policy = {.window = 16, .sinks = 1, .floor = 2, .budget.tokens = 40},
    .tail = 50};

enum { PHASE_CONTEXT, PHASE_PLAN, PHASE_BIND, PHASE_RUN, PHASE_COMPACT, N_PHASES };

static laprox_result run_phase(int phase, flow *f, laprox_context **context) {
  const laprox_context_info info = shimmed_info();
  switch (phase) {
  case PHASE_CONTEXT:
    return laprox_context_create(&info, context);
  case PHASE_PLAN:
    return flow_plan(f, *context);
  case PHASE_BIND:
    return flow_bind(f);
  case PHASE_RUN:
    return flow_run(f);
  default:
    return flow_compact(f);
  }
}

/* The whole of it with failure n somewhere inside; what failed is done again on the same objects. `briefly`: no more
 * than that. */
static bool evict_with_failure(failing_source from, flow *f, unsigned n, unsigned choice, bool briefly) {
  laprox_context *context = NULL;
  device.used_bytes = 0;
  memset(f->packed_keys, 0, f->options.capture.shape.n_layers * sizeof *f->packed_keys);
  failing_arm(&host, from, n, choice);
  for (int phase = 0; phase < N_PHASES && !(briefly && failing_has_struck(&host, from)); phase++) {
    if (phase == PHASE_BIND) flow_place(f, &device);
    const bool had_struck = failing_has_struck(&host, from);
    laprox_result result = run_phase(phase, f, &context);
    if (had_struck) {
      assert_int_equal(result, LAPROX_OK);
    } else if (failing_check(&host, from, n, result)) {
      if (phase == PHASE_CONTEXT) assert_null(context);
      if (phase == PHASE_PLAN) assert_null(f->plan);
      if (phase == PHASE_BIND) assert_null(f->binding);
      if (phase == PHASE_CONTEXT) failing_expect_nothing_left(&host);
      result = run_phase(phase, f, &context);
      assert_int_equal(result, LAPROX_OK);
      assert_int_equal(host.n_errors, 1);
    }
  }
  const bool struck = failing_has_struck(&host, from);
  if (n % 8 == 0 && !briefly) flow_expect(f);
  flow_release(f);
  laprox_context_destroy(context);
  failing_expect_nothing_left(&host);
  return struck;
}

/* Whether this function has failed for the first time in this sweep. */
static bool is_new(const char *function, const char **seen, unsigned *n_seen) {
  for (unsigned i = 0; i < *n_seen; i++)
    if (!strcmp(seen[i], function)) return false;
  seen[(*n_seen)++] = function;
  return true;
}

/* Every call, in one way after the other; the first of each function in every way that it can fail. */
static void sweep_eviction(failing_source from, unsigned least) {
  flow f;
  const char *seen[64];
  unsigned n = 1, n_failures = 0, n_seen = 0;
  flow_init(&f, &small);
  for (; evict_with_failure(from, &f, n, n, false); n++, n_failures++) {
    if (from != FAIL_VULKAN || !is_new(shim.failed, seen, &n_seen)) continue;
    const unsigned n_choices = shim.n_choices;
    for (unsigned choice = 0; choice < n_choices; choice++, n_failures++)
      assert_true(evict_with_failure(from, &f, n, choice, true));
  }
  flow_expect(&f);
  print_message("%u failures of %u calls\n", n_failures, n - 1);
  assert_true(n > least);
  flow_finish(&f);
}

static void test_vulkan_fails_in_eviction(void **state) {
  (void)state;
  sweep_eviction(FAIL_VULKAN, 60);
}

static void test_memory_fails_in_eviction(void **state) {
  (void)state;
  sweep_eviction(FAIL_MEMORY, 30);
}

static void test_missing_functions(void **state) {
  (void)state;
#define NAME(name) "vk" #name,
  static const char *const names[] = {LPX_INSTANCE_FUNCTIONS(NAME) LPX_DEVICE_FUNCTIONS(NAME)};
#undef NAME
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    laprox_context *context = NULL;
    failing_arm(&host, FAIL_VULKAN, 0, 0);
    shim.hidden = names[i];
    const laprox_context_info info = shimmed_info();
    assert_int_equal(laprox_context_create(&info, &context), LAPROX_ERROR_UNSUPPORTED);
    assert_null(context);
    assert_int_equal(host.n_errors, 1);
    assert_non_null(strstr(host.last_error, names[i]));
    failing_expect_nothing_left(&host);
  }
  shim_reset();
}

/* ---- the smallest device ---- */

static void evict_within_limits(const flow_options *options, VkDeviceSize max_range) {
  laprox_context *context = NULL;
  flow f;
  failing_arm(&host, FAIL_VULKAN, 0, 0);
  shim.small_limits = true;
  shim.max_range = max_range;
  device.used_bytes = 0;
  const laprox_context_info info = shimmed_info();
  flow_init(&f, options);
  assert_int_equal(laprox_context_create(&info, &context), LAPROX_OK);
  if (flow_prepare(&f, &device, context)) fail_msg("%s", host.last_error);
  assert_int_equal(f.needs.alignment, 256);
  assert_int_equal(flow_run(&f), LAPROX_OK);
  assert_int_equal(flow_compact(&f), LAPROX_OK);
  flow_expect(&f);
  flow_finish(&f);
  laprox_context_destroy(context);
  if (shim.n_violations) fail_msg("%u violations, the first: %s", shim.n_violations, shim.violation);
  failing_expect_nothing_left(&host);
}

static void test_small_limits(void **state) {
  (void)state;
  evict_within_limits(&small, 0);
  static const flow_options joint = {
      .capture = {{2, 4, 2, 64}, 300, 32, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 51},
      .policy = {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 60}};
  evict_within_limits(&joint, 0);
}

/* A binding that holds no more than one head of the cache: the heads of a layer go one by one. */
static void test_one_head_a_binding(void **state) {
  (void)state;
  static const flow_options dense = {
      .capture = {{2, 6, 3, 64}, 500, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 52},
      .policy = {.budget.tokens = 60}};
  static const flow_options ragged = {
      .capture = {{3, 6, 3, 64}, 700, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 53},
      .policy = {.scope = LAPROX_SCOPE_LAYER, .budget.tokens = 400},
      .tail = 250};
  evict_within_limits(&dense, 100 << 10);
  evict_within_limits(&ragged, 100 << 10);
}

static void test_range_too_small(void **state) {
  (void)state;
  laprox_context *context = NULL;
  flow f;
  failing_arm(&host, FAIL_VULKAN, 0, 0);
  shim.small_limits = true;
  shim.max_range = 4 << 10;
  const laprox_context_info info = shimmed_info();
  flow_init(&f, &small);
  assert_int_equal(laprox_context_create(&info, &context), LAPROX_OK);
  assert_int_equal(flow_plan(&f, context), LAPROX_ERROR_UNSUPPORTED);
  assert_int_equal(host.n_errors, 1);
  assert_non_null(strstr(host.last_error, "maxStorageBufferRange is 4096"));
  flow_finish(&f);
  laprox_context_destroy(context);
  failing_expect_nothing_left(&host);
}

static int set_up(void **state) {
  (void)state;
  app_vulkan_init(&vulkan);
  app_device_init(&vulkan, ARENA_BYTES, &device);
  test_host_init(&host);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  app_device_finish(&device);
  return (int)app_vulkan_finish(&vulkan);
}

/* An argument names the one test to run. */
int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_vulkan_fails_in_eviction), cmocka_unit_test(test_memory_fails_in_eviction),
      cmocka_unit_test(test_missing_functions),        cmocka_unit_test(test_small_limits),
      cmocka_unit_test(test_one_head_a_binding),       cmocka_unit_test(test_range_too_small)};
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests_name("failures", tests, set_up, tear_down);
}
