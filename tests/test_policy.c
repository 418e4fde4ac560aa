/* test_policy.c: defaults of every policy, combinations that must fail, budgets, shapes; messages and memory.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/core.h"
#include "support/host.h"

static void expect_rules(laprox_policy policy, lpx_rules expected) {
  test_host host;
  lpx_rules rules;
  test_host_init(&host);
  assert_int_equal(lpx_rules_resolve(&host.host, &policy, &rules), LAPROX_OK);
  assert_int_equal(host.n_errors, 0);
  assert_int_equal(rules.kind, expected.kind);
  assert_int_equal(rules.scope, expected.scope);
  assert_int_equal(rules.gqa, expected.gqa);
  assert_int_equal(rules.pool, expected.pool);
  assert_int_equal(rules.pool_width, expected.pool_width);
  assert_int_equal(rules.normalize, expected.normalize);
  assert_int_equal(rules.window, expected.window);
  assert_int_equal(rules.sinks, expected.sinks);
  assert_int_equal(rules.floor, expected.floor);
  assert_int_equal(rules.seed, expected.seed);
}

#define RULES(kind_, scope_, width_, normalize_, sinks_)                                                     \
  {                                                                                                          \
    .kind = LAPROX_POLICY_##kind_, .scope = LAPROX_SCOPE_##scope_, .gqa = LAPROX_GQA_MEAN,                   \
    .pool = LAPROX_POOL_AVERAGE, .pool_width = width_, .normalize = normalize_, .window = 32,                \
    .sinks = sinks_                                                                                          \
  }

static void defaults(void **state) {
  (void)state;
  expect_rules((laprox_policy){0}, (lpx_rules)RULES(LAPROX, GLOBAL, 7, true, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_LAPROX}, (lpx_rules)RULES(LAPROX, GLOBAL, 7, true, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_SNAPKV}, (lpx_rules)RULES(SNAPKV, HEAD, 7, false, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_STREAMING},
               (lpx_rules)RULES(STREAMING, HEAD, 1, false, 4));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_RANDOM}, (lpx_rules)RULES(RANDOM, HEAD, 1, false, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_FULL}, (lpx_rules)RULES(FULL, HEAD, 1, false, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_VATP}, (lpx_rules)RULES(VATP, HEAD, 1, false, 20));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_TOVA}, (lpx_rules)RULES(TOVA, HEAD, 1, false, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_KEYDIFF}, (lpx_rules)RULES(KEYDIFF, HEAD, 1, false, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_KNORM}, (lpx_rules)RULES(KNORM, HEAD, 1, false, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_CRITICALKV},
               (lpx_rules)RULES(CRITICALKV, HEAD, 7, false, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_DEFENSIVEKV},
               (lpx_rules)RULES(DEFENSIVEKV, LAYER, 5, false, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_LAYER_DEFENSIVEKV},
               (lpx_rules)RULES(LAYER_DEFENSIVEKV, GLOBAL, 5, false, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_ADAKV}, (lpx_rules)RULES(ADAKV, LAYER, 7, false, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_PYRAMIDKV},
               (lpx_rules)RULES(PYRAMIDKV, HEAD, 7, false, 0));
}

static void everything_given(void **state) {
  (void)state;
  laprox_policy policy = {.scope = LAPROX_SCOPE_LAYER,
                          .gqa = LAPROX_GQA_JOINT,
                          .pool = LAPROX_POOL_MAX,
                          .pool_width = 31,
                          .normalize = LAPROX_SWITCH_OFF,
                          .window = 256,
                          .sinks = 9,
                          .floor = 11};
  expect_rules(policy, (lpx_rules){.kind = LAPROX_POLICY_LAPROX,
                                   .scope = LAPROX_SCOPE_LAYER,
                                   .gqa = LAPROX_GQA_JOINT,
                                   .pool = LAPROX_POOL_MAX,
                                   .pool_width = 31,
                                   .window = 256,
                                   .sinks = 9,
                                   .floor = 11});
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_STREAMING, .sinks = LAPROX_NONE},
               (lpx_rules)RULES(STREAMING, HEAD, 1, false, 0));
  expect_rules((laprox_policy){.sinks = LAPROX_NONE, .floor = LAPROX_NONE, .pool_width = LAPROX_NONE},
               (lpx_rules)RULES(LAPROX, GLOBAL, 1, true, 0));
  expect_rules((laprox_policy){.kind = LAPROX_POLICY_SNAPKV, .normalize = LAPROX_SWITCH_ON},
               (lpx_rules)RULES(SNAPKV, HEAD, 7, true, 0));
  laprox_policy random = {.kind = LAPROX_POLICY_RANDOM, .scope = LAPROX_SCOPE_GLOBAL, .seed = 77, .floor = 3};
  lpx_rules random_rules = RULES(RANDOM, GLOBAL, 1, false, 0);
  random_rules.seed = 77;
  random_rules.floor = 3;
  expect_rules(random, random_rules);
}

static void invalid_policies(void **state) {
  (void)state;
  const struct {
    laprox_policy policy;
    const char *field;
  } cases[] = {
      {{.kind = (laprox_policy_kind)100}, "kind 100"},
      {{.kind = (laprox_policy_kind)-1}, "kind -1"},
      {{.scope = (laprox_scope)5}, "scope"},
      {{.scope = LAPROX_SCOPE_TOKEN, .floor = 2}, "floor 2"},
      {{.kind = LAPROX_POLICY_CRITICALKV, .scope = LAPROX_SCOPE_TOKEN}, "not token"},
      {{.kind = LAPROX_POLICY_TOVA, .scope = LAPROX_SCOPE_TOKEN}, "scope"},
      {{.gqa = (laprox_gqa)4}, "gqa"},
      {{.pool = (laprox_pool)3}, "pool"},
      {{.normalize = (laprox_switch)3}, "normalize"},
      {{.pool_width = 2}, "pool_width 2"},
      {{.pool_width = 33}, "pool_width 33"},
      {{.window = 257}, "window 257"},
      {{.window = LAPROX_NONE}, "window"},
      {{.seed = 1}, "seed"},
      {{.kind = LAPROX_POLICY_SNAPKV, .gqa = LAPROX_GQA_MEAN}, "gqa"},
      {{.kind = LAPROX_POLICY_RANDOM, .gqa = LAPROX_GQA_MEAN}, "gqa"},
      {{.kind = LAPROX_POLICY_RANDOM, .pool = LAPROX_POOL_MAX}, "pool"},
      {{.kind = LAPROX_POLICY_RANDOM, .pool_width = 1}, "pool_width"},
      {{.kind = LAPROX_POLICY_RANDOM, .normalize = LAPROX_SWITCH_OFF}, "normalize"},
      {{.kind = LAPROX_POLICY_STREAMING, .scope = LAPROX_SCOPE_HEAD}, "scope"},
      {{.kind = LAPROX_POLICY_STREAMING, .gqa = LAPROX_GQA_JOINT}, "gqa"},
      {{.kind = LAPROX_POLICY_STREAMING, .pool = LAPROX_POOL_AVERAGE}, "pool"},
      {{.kind = LAPROX_POLICY_STREAMING, .floor = 1}, "floor"},
      {{.kind = LAPROX_POLICY_ADAKV, .scope = LAPROX_SCOPE_LAYER}, "scope"},
      {{.kind = LAPROX_POLICY_ADAKV, .floor = 3}, "floor"},
      {{.kind = LAPROX_POLICY_TOVA, .scope = LAPROX_SCOPE_GLOBAL}, "scope"},
      {{.kind = LAPROX_POLICY_TOVA, .floor = 1}, "floor"},
      {{.pool_before = LAPROX_SWITCH_ON, .gqa = LAPROX_GQA_JOINT}, "pool_before"},
      {{.pool_before = (laprox_switch)3}, "pool_before"},
      {{.kind = LAPROX_POLICY_SNAPKV, .pool_before = LAPROX_SWITCH_ON}, "pool_before"},
      {{.kind = LAPROX_POLICY_CRITICALKV, .scope = LAPROX_SCOPE_GLOBAL}, "scope"},
      {{.kind = LAPROX_POLICY_CRITICALKV, .floor = 1}, "floor"},
      {{.kind = LAPROX_POLICY_DEFENSIVEKV, .scope = LAPROX_SCOPE_LAYER}, "scope"},
      {{.kind = LAPROX_POLICY_VATP, .gqa = LAPROX_GQA_MEAN}, "gqa"},
      {{.kind = LAPROX_POLICY_KEYDIFF, .pool_width = 3}, "pool_width"},
      {{.kind = LAPROX_POLICY_KNORM, .pool = LAPROX_POOL_MAX}, "pool"},
      {{.kind = LAPROX_POLICY_PYRAMIDKV, .gqa = LAPROX_GQA_MEAN}, "gqa"},
      {{.kind = LAPROX_POLICY_PYRAMIDKV, .normalize = LAPROX_SWITCH_ON}, "normalize"},
      {{.kind = LAPROX_POLICY_FULL, .scope = LAPROX_SCOPE_GLOBAL}, "scope"},
      {{.kind = LAPROX_POLICY_FULL, .normalize = LAPROX_SWITCH_ON}, "normalize"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    test_host host;
    lpx_rules rules;
    test_host_init(&host);
    assert_int_equal(lpx_rules_resolve(&host.host, &cases[i].policy, &rules), LAPROX_ERROR_INVALID_ARGUMENT);
    assert_int_equal(host.n_errors, 1);
    if (!strstr(host.last_error, cases[i].field)) fail_msg("case %zu: %s", i, host.last_error);
  }
}

static void budgets(void **state) {
  (void)state;
  const uint32_t all = UINT32_MAX, error = 0;
  const struct {
    uint32_t window, sinks, floor;
    uint32_t tokens;
    double share;
    uint32_t n_tokens, expected;
  } cases[] = {
      {32, 0, 0, 0, 0.0, 1000, all}, /* none given */
      {32, 0, 0, 100, 0.0, 1000, 100},
      {32, 0, 0, 33, 0.0, 1000, 33}, /* the least */
      {32, 0, 0, 32, 0.0, 1000, error},
      {32, 4, 0, 36, 0.0, 1000, 36}, /* sinks may fill all that is left */
      {32, 4, 0, 35, 0.0, 1000, error},
      {32, 4, 6, 42, 0.0, 1000, 42},
      {32, 4, 6, 41, 0.0, 1000, error},
      {32, 0, 0, 999, 0.0, 1000, 999}, /* one entry goes */
      {32, 0, 0, 1000, 0.0, 1000, all},
      {32, 0, 0, 5000, 0.0, 1000, all},
      {32, 0, 0, 33, 0.0, 33, all},
      {32, 0, 0, 33, 0.0, 34, 33},
      {32, 0, 0, 33, 0.0, 32, all}, /* no candidates */
      {32, 0, 0, 33, 0.0, 0, all},
      {32, 0, 0, 0, 0.05, 1000, 50},
      {32, 0, 0, 0, 0.05, 1009, 50},  /* 50.45 */
      {32, 0, 0, 0, 0.05, 1011, 51},  /* 50.55 */
      {32, 0, 0, 0, 0.5, 1001, 501},  /* 500.5: halves go up */
      {32, 0, 0, 0, 0.05, 100, 33},   /* raised */
      {32, 8, 20, 0, 0.05, 100, 60},  /* raised */
      {32, 8, 70, 0, 0.05, 100, all}, /* raised beyond what there is */
      {32, 0, 0, 0, 1e-12, 1000, 33},
      {32, 0, 0, 0, 1.0, 1000, all},
      {32, 0, 0, 0, 1.01, 1000, error},
      {32, 0, 0, 0, -0.1, 1000, error},
      {32, 0, 0, 0, (double)NAN, 1000, error},
      {32, 0, 0, 100, 0.1, 1000, error}, /* both */
      {1, 0, 0, 0, 0.5, 4000000001u, 2000000001u},
      {1, UINT32_MAX - 1, UINT32_MAX - 1, 5, 0.0, 1000, error}, /* their sum does not fit 32 bits */
      {1, UINT32_MAX - 1, UINT32_MAX - 1, 0, 0.5, 1000, all},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    test_host host;
    uint32_t budget = 12345;
    test_host_init(&host);
    lpx_rules rules = {.kind = LAPROX_POLICY_LAPROX,
                       .window = cases[i].window,
                       .sinks = cases[i].sinks,
                       .floor = cases[i].floor};
    laprox_budget given = {.tokens = cases[i].tokens, .share = cases[i].share};
    laprox_result result = lpx_budget_resolve(&host.host, &rules, &given, cases[i].n_tokens, &budget);
    bool fails = cases[i].expected == error;
    if (result != (fails ? LAPROX_ERROR_INVALID_ARGUMENT : LAPROX_OK) || host.n_errors != (fails ? 1 : 0) ||
        (!fails && budget != cases[i].expected)) {
      fail_msg("case %zu: result %d, budget %u, %u messages", i, (int)result, budget, host.n_errors);
    }
  }
}

static void full_keeps_everything(void **state) {
  (void)state;
  lpx_rules rules = {.kind = LAPROX_POLICY_FULL, .window = 32};
  laprox_budget given = {.tokens = 5};
  uint32_t budget = 0;
  assert_int_equal(lpx_budget_resolve(NULL, &rules, &given, 1000, &budget), LAPROX_OK);
  assert_int_equal(budget, UINT32_MAX);
}

/* The budget's sum exact, the line falling, its ends where the paper has them. */
static void pyramid(void **state) {
  (void)state;
  const struct {
    uint32_t n_layers, places, most, first, last;
  } cases[] = {
      {32, 480, 100000, 936, 24}, {32, 128, 100000, 250, 6}, {2, 100, 1000, 195, 5}, {1, 77, 100, 77, 77},
      {5, 0, 10, 0, 0},           {4, 90, 100, 100, 80},     {4, 90, 90, 90, 90},    {28, 7, 100000, 14, 0},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    uint64_t sum = 0;
    uint32_t before = UINT32_MAX;
    for (uint32_t l = 0; l < cases[i].n_layers; l++) {
      const uint32_t now = lpx_pyramid_places(cases[i].n_layers, l, cases[i].places, cases[i].most);
      assert_true(now <= before && now <= cases[i].most);
      before = now;
      sum += now;
      if (l == 0) assert_int_equal(now, cases[i].first);
      if (l + 1 == cases[i].n_layers) assert_int_equal(now, cases[i].last);
    }
    assert_int_equal(sum, (uint64_t)cases[i].n_layers * cases[i].places);
  }
}

/* Sinks that are only a default make room; those that were asked for don't. */
static void yielding_sinks(void **state) {
  (void)state;
  test_host host;
  lpx_rules rules;
  uint32_t budget = 0;
  test_host_init(&host);
  laprox_policy policy = {.kind = LAPROX_POLICY_STREAMING, .budget.tokens = 34};
  assert_int_equal(lpx_rules_resolve(&host.host, &policy, &rules), LAPROX_OK);
  assert_int_equal(lpx_budget_resolve(&host.host, &rules, &policy.budget, 1000, &budget), LAPROX_OK);
  assert_int_equal(budget, 34);
  lpx_rules_fit(&rules, budget);
  assert_int_equal(rules.sinks, 2);
  policy = (laprox_policy){.kind = LAPROX_POLICY_VATP, .budget.tokens = 43};
  assert_int_equal(lpx_rules_resolve(&host.host, &policy, &rules), LAPROX_OK);
  lpx_rules_fit(&rules, 43);
  assert_int_equal(rules.sinks, 5);
  policy = (laprox_policy){.kind = LAPROX_POLICY_STREAMING, .sinks = 4, .budget.tokens = 34};
  assert_int_equal(lpx_rules_resolve(&host.host, &policy, &rules), LAPROX_OK);
  assert_int_equal(lpx_budget_resolve(&host.host, &rules, &policy.budget, 1000, &budget),
                   LAPROX_ERROR_INVALID_ARGUMENT);
}

static void problems(void **state) {
  (void)state;
  laprox_shape shape = {.n_layers = 3, .n_heads = 10, .n_kv_heads = 5, .head_dim = 64};
  assert_int_equal(lpx_heads_per_problem(&(lpx_rules){.scope = LAPROX_SCOPE_GLOBAL}, &shape), 15);
  assert_int_equal(lpx_heads_per_problem(&(lpx_rules){.scope = LAPROX_SCOPE_LAYER}, &shape), 5);
  assert_int_equal(lpx_heads_per_problem(&(lpx_rules){.scope = LAPROX_SCOPE_HEAD}, &shape), 1);
  assert_int_equal(lpx_heads_per_problem(&(lpx_rules){.scope = LAPROX_SCOPE_TOKEN}, &shape), 1);
}

static void shapes(void **state) {
  (void)state;
  const struct {
    laprox_shape shape;
    laprox_result expected;
  } cases[] = {
      {{1, 1, 1, 4}, LAPROX_OK},
      {{32, 32, 8, 128}, LAPROX_OK},
      {{2, 16, 1, 256}, LAPROX_OK},
      {{2, 3, 1, 80}, LAPROX_OK},
      {{0, 1, 1, 64}, LAPROX_ERROR_INVALID_ARGUMENT},
      {{1, 0, 1, 64}, LAPROX_ERROR_INVALID_ARGUMENT},
      {{1, 1, 0, 64}, LAPROX_ERROR_INVALID_ARGUMENT},
      {{1, 1, 1, 0}, LAPROX_ERROR_INVALID_ARGUMENT},
      {{1, 7, 2, 64}, LAPROX_ERROR_INVALID_ARGUMENT},
      {{1, 2, 4, 64}, LAPROX_ERROR_INVALID_ARGUMENT},
      {{1, 17, 1, 64}, LAPROX_ERROR_UNSUPPORTED},
      {{1, 1, 1, 66}, LAPROX_ERROR_UNSUPPORTED},
      {{1, 1, 1, 260}, LAPROX_ERROR_UNSUPPORTED},
      {{UINT32_MAX, 8, 8, 64}, LAPROX_ERROR_UNSUPPORTED},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    test_host host;
    test_host_init(&host);
    laprox_result result = lpx_shape_check(&host.host, &cases[i].shape);
    if (result != cases[i].expected || host.n_errors != (result == LAPROX_OK ? 0 : 1)) {
      fail_msg("case %zu: result %d, %u messages", i, (int)result, host.n_errors);
    }
  }
}

static void names(void **state) {
  (void)state;
  assert_string_equal(laprox_policy_name(LAPROX_POLICY_AUTO), "laprox");
  assert_string_equal(laprox_policy_name(LAPROX_POLICY_SNAPKV), "snapkv");
  assert_string_equal(laprox_policy_name(LAPROX_POLICY_FULL), "full");
  assert_null(laprox_policy_name((laprox_policy_kind)100));
  for (int i = 0; i >= -10; i--) {
    assert_string_not_equal(laprox_result_string((laprox_result)i), "unknown result");
    for (int j = 0; j > i; j--) {
      assert_string_not_equal(laprox_result_string((laprox_result)i), laprox_result_string((laprox_result)j));
    }
  }
  assert_string_equal(laprox_result_string((laprox_result)-11), "unknown result");
}

/* Names from files may hold anything: what arrives is one line of UTF-8 that fits. */
static void messages_are_one_line(void **state) {
  (void)state;
  test_host host;
  test_host_init(&host);
  assert_int_equal(lpx_fail(&host.host, LAPROX_ERROR_FILE, "%s: %d", "a\nb\x80\xc3(\xe2\x82\xac\x7f", 5),
                   LAPROX_ERROR_FILE);
  assert_string_equal(host.last_error, "a?b?"
                                       "?(\xe2\x82\xac?: 5");
  const char *characters = "\xc2\x80 \xe0\xa4\x84 \xf0\x9f\x98\x80";
  lpx_fail(&host.host, LAPROX_ERROR_FILE, "%s", characters);
  assert_string_equal(host.last_error, characters);
  char longest[600];
  memset(longest, 'x', sizeof longest);
  longest[510] = '\xc3'; /* a character that the limit cuts in half */
  longest[511] = '\xa4';
  longest[599] = '\0';
  lpx_fail(&host.host, LAPROX_ERROR_FILE, "%s", longest);
  assert_int_equal(strlen(host.last_error), 511);
  assert_int_equal(host.last_error[510], '?');
  lpx_warn(&host.host, "careful");
  assert_int_equal(host.n_errors, 3);
  assert_int_equal(host.n_warnings, 1);
  assert_int_equal(lpx_fail(NULL, LAPROX_ERROR_FORMAT, "nobody listens"), LAPROX_ERROR_FORMAT);
}

static void memory(void **state) {
  (void)state;
  test_host host;
  size_t size;
  test_host_init(&host);
  unsigned char *block = lpx_allocate(&host.host, 100, 3);
  for (size_t i = 0; i < 300; i++) assert_int_equal(block[i], 0);
  block[299] = 7;
  block = lpx_reallocate(&host.host, block, 1000, 3);
  assert_int_equal(block[299], 7);
  assert_null(lpx_allocate(&host.host, SIZE_MAX / 2, 3));
  assert_null(lpx_reallocate(&host.host, block, SIZE_MAX / 2, 3));
  void *nothing = lpx_allocate(&host.host, 0, 8);
  assert_non_null(nothing);
  lpx_release(&host.host, nothing);
  lpx_release(&host.host, block);
  lpx_release(&host.host, NULL);
  assert_int_equal(host.n_live, 0);
  assert_true(lpx_multiply(SIZE_MAX / 3, 3, &size));
  assert_false(lpx_multiply(SIZE_MAX / 3 + 1, 3, &size));
  assert_true(lpx_multiply(SIZE_MAX, 0, &size) && size == 0);
  assert_true(lpx_add(SIZE_MAX - 1, 1, &size) && size == SIZE_MAX);
  assert_false(lpx_add(SIZE_MAX, 1, &size));
}

static void an_incomplete_allocator_is_replaced(void **state) {
  (void)state;
  test_host host;
  test_host_init(&host);
  host.host.allocator.reallocate = NULL;
  laprox_host complete = lpx_host_complete(&host.host);
  assert_non_null(complete.allocator.reallocate);
  assert_ptr_not_equal(complete.allocator.allocate, host.host.allocator.allocate);
  assert_ptr_equal(complete.message_user, &host);
  lpx_release(&complete, lpx_allocate(&complete, 1, 1));
  assert_int_equal(host.n_allocated, 0);
  complete = lpx_host_complete(NULL);
  assert_non_null(complete.allocator.release);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(defaults),
      cmocka_unit_test(everything_given),
      cmocka_unit_test(invalid_policies),
      cmocka_unit_test(budgets),
      cmocka_unit_test(full_keeps_everything),
      cmocka_unit_test(pyramid),
      cmocka_unit_test(yielding_sinks),
      cmocka_unit_test(problems),
      cmocka_unit_test(shapes),
      cmocka_unit_test(names),
      cmocka_unit_test(messages_are_one_line),
      cmocka_unit_test(memory),
      cmocka_unit_test(an_incomplete_allocator_is_replaced),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
