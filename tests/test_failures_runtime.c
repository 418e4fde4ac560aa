/* test_failures_runtime.c: the same for a model and its sessions on an application's device: what fails can
 * be asked again, answers as if nothing had happened, and leaves nothing behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shim/failing.h"
#include "support/app.h"
#include "support/variants.h"

#include "laprox/runtime.h"

#include <cmocka.h>

enum { N_TOKENS = 70, KEPT = 36 };

static app_vulkan vulkan;
static app_device app;
static test_host host;
static char model_path[1024];

/* LAPROX_TEST_FAILURES=sampled: where a failure takes a second, every one that is tried is twice as far as the last. */
static bool is_sampled(void) {
  const char *failures = getenv("LAPROX_TEST_FAILURES");
  return failures && !strcmp(failures, "sampled");
}

/* A device and what is made on it. */
typedef struct stage {
  laprox_device *device;
  laprox_model *model;
  laprox_session *session, *fork;
  laprox_model_description about;
} stage;

static uint32_t tokens[N_TOKENS];
static float *prompt_logits, *evicted_logits; /* as they are when nothing fails */
static const laprox_policy policy = {.budget.tokens = KEPT};
static const laprox_session_info session_info = {.chunk = 32};
static uint32_t kernels_off; /* laprox_variant, beside what the environment says */

/* ---- the calls, one by one ---- */

/* The last two read the prompt in other ways, into a session that is empty. */
typedef enum call { IMPORT, LOAD, CREATE, PREFILL, FORK, EVICT, DECODE, CUT_LAYERS, CUT_CHUNKS } call;

static laprox_result run_call(stage *s, call which) {
  switch (which) {
  case IMPORT: {
    laprox_device_import_info info = {.context = app_context_info(&vulkan, &app, &host.host),
                                      .queue = app.queue,
                                      .queue_family = app.family};
    info.context.get_instance_proc_addr = shim_get_instance_proc_addr;
    info.context.variants_off |= kernels_off;
    return laprox_device_import(&info, &s->device);
  }
  case LOAD:
    return laprox_model_load(s->device, &(laprox_model_info){.path = model_path}, &s->model);
  case CREATE:
    return laprox_session_create(s->model, &session_info, &s->session);
  case PREFILL:
    return laprox_session_prefill(s->session, tokens, N_TOKENS);
  case FORK:
    return laprox_session_fork(s->session, &s->fork);
  case EVICT:
    return laprox_session_evict(s->fork, &policy, NULL);
  case DECODE:
    return laprox_session_decode(s->fork, tokens[0]);
  case CUT_CHUNKS:
    return laprox_session_prefill_chunks(s->session, tokens, N_TOKENS, 40, &policy, NULL);
  default:
    return laprox_session_prefill_evict(s->session, tokens, N_TOKENS, &policy, NULL);
  }
}

static void undo_call(stage *s, call which) {
  if (which <= FORK) laprox_session_destroy(s->fork);
  if (which <= FORK) s->fork = NULL;
  if (which <= CREATE) laprox_session_destroy(s->session);
  if (which <= CREATE) s->session = NULL;
  if (which <= LOAD) laprox_model_destroy(s->model);
  if (which <= LOAD) s->model = NULL;
  if (which <= IMPORT) laprox_device_destroy(s->device);
  if (which <= IMPORT) s->device = NULL;
}

/* What failed has made nothing. */
static void expect_unmade(const stage *s, call which) {
  if (which == IMPORT) assert_null(s->device);
  if (which == LOAD) assert_null(s->model);
  if (which == CREATE) assert_null(s->session);
  if (which == PREFILL || which >= CUT_LAYERS) {
    assert_int_equal(laprox_session_n_tokens(s->session), 0);
    assert_int_equal(laprox_session_get_memory(s->session).kv_full_bytes, 0);
  }
  if (which == FORK) assert_null(s->fork);
  if (which == EVICT) {
    uint32_t kept[64];
    assert_true(s->about.shape.n_layers * s->about.shape.n_kv_heads <= 64);
    laprox_session_kept_per_head(s->fork, kept);
    for (uint32_t i = 0; i < s->about.shape.n_layers * s->about.shape.n_kv_heads; i++)
      assert_int_equal(kept[i], N_TOKENS);
  }
  if (which == DECODE) assert_int_equal(laprox_session_n_tokens(s->fork), N_TOKENS);
}

/* The same kernels give the same bits. */
static void expect_logits(const stage *s, call which) {
  const size_t bytes = s->about.n_vocab * sizeof(float);
  if (which == PREFILL || which == CUT_LAYERS)
    assert_memory_equal(laprox_session_logits(s->session), prompt_logits, bytes);
  if (which == DECODE) assert_memory_equal(laprox_session_logits(s->fork), evicted_logits, bytes);
}

static void must(stage *s, call which) {
  if (run_call(s, which)) fail_msg("call %d: %s", which, host.last_error);
  if (which == LOAD) laprox_model_describe(s->model, &s->about);
}

static void advance(stage *s, call from, call to) {
  for (call which = from; which <= to; which++) must(s, which);
}

/* Up to what stands before a call. */
static void advance_before(stage *s, call from, call which) {
  const call last = which >= CUT_LAYERS ? CREATE : which - 1;
  if (from <= last) advance(s, from, last);
}

/* ---- sweeps ---- */

/* Lets failure n strike in one call, then asks again. Everything before the call stands, and stays. Returns in how many
 * ways it could have struck, 0 if it has not. */
static unsigned fail_once(stage *s, call which, failing_source from, unsigned n, unsigned choice) {
  const long n_objects = shim.n_live, n_allocations = host.n_live;
  failing_arm(&host, from, n, choice);
  const laprox_result result = run_call(s, which);
  const bool struck = failing_has_struck(&host, from), failed = failing_check(&host, from, n, result);
  const unsigned n_choices = from == FAIL_VULKAN ? shim.n_choices : 1;
  failing_arm(&host, from, 0, 0);
  if (failed) {
    expect_unmade(s, which);
    if (which <= LOAD || which == FORK) assert_int_equal(host.n_live, n_allocations);
    if (which <= LOAD) assert_int_equal(shim.n_live, n_objects);
    must(s, which);
  }
  assert_int_equal(host.n_errors, 0);
  return struck ? n_choices : 0;
}

/* Where a call can be tried again from. Pipelines belong to the device: for their sake all is made anew. */
static call go_back_to(call which) {
  if (which >= FORK && which <= DECODE) return FORK;
  return which == PREFILL || which >= CUT_LAYERS ? CREATE : which == CREATE ? IMPORT : which;
}

/* All failures of one call, each in every way. In long calls, to keep them affordable, the distance from one to the next
 * grows with n, and the ways take turns. */
static void sweep(call which, failing_source from, unsigned share, unsigned least) {
  stage s = {0};
  unsigned n = 1, n_swept = 0, choice = 0;
  if (is_sampled()) share = 1;
  failing_arm(&host, from, 0, 0);
  if (which > IMPORT) advance_before(&s, IMPORT, which);
  const call anchor = go_back_to(which);
  for (unsigned n_choices = 1; n_choices; n_swept++) {
    n_choices = fail_once(&s, which, from, n, share ? n : choice);
    if (which == EVICT) must(&s, DECODE);
    expect_logits(&s, which == EVICT ? DECODE : which);
    undo_call(&s, anchor);
    if (anchor < which) advance_before(&s, anchor, which);
    choice = !share && choice + 1 < n_choices ? choice + 1 : 0;
    if (!choice) n += 1 + (share ? n / share : 0);
  }
  print_message("%u failures, up to number %u\n", n_swept - 1, n - 1);
  assert_true(n > least);
  undo_call(&s, IMPORT);
  failing_expect_nothing_left(&host);
}

typedef struct sweep_case {
  const char *name;
  call which;
  failing_source from;
  unsigned share, least;
} sweep_case;

static const sweep_case sweeps[] = {
    {"import, Vulkan", IMPORT, FAIL_VULKAN, 0, 12},
    {"import, memory", IMPORT, FAIL_MEMORY, 0, 3},
    {"load, Vulkan", LOAD, FAIL_VULKAN, 6, 100},
    {"load, memory", LOAD, FAIL_MEMORY, 6, 100},
    {"create, Vulkan", CREATE, FAIL_VULKAN, 5, 60},
    {"create, memory", CREATE, FAIL_MEMORY, 5, 10},
    {"prefill, Vulkan", PREFILL, FAIL_VULKAN, 6, 50},
    {"prefill, memory", PREFILL, FAIL_MEMORY, 6, 10},
    {"fork, Vulkan", FORK, FAIL_VULKAN, 0, 30},
    {"fork, memory", FORK, FAIL_MEMORY, 0, 10},
    {"evict, Vulkan", EVICT, FAIL_VULKAN, 0, 60},
    {"evict, memory", EVICT, FAIL_MEMORY, 0, 20},
    {"cut layers, Vulkan", CUT_LAYERS, FAIL_VULKAN, 3, 300},
    {"cut layers, memory", CUT_LAYERS, FAIL_MEMORY, 3, 50},
    {"cut chunks, Vulkan", CUT_CHUNKS, FAIL_VULKAN, 3, 300},
    {"cut chunks, memory", CUT_CHUNKS, FAIL_MEMORY, 3, 50},
    {"decode, Vulkan", DECODE, FAIL_VULKAN, 0, 20},
    {"decode, memory", DECODE, FAIL_MEMORY, 0, 1},
};
#define N_SWEEPS (sizeof sweeps / sizeof *sweeps)

static void test_sweep(void **state) {
  const sweep_case *given = *state;
  sweep(given->which, given->from, given->share, given->least);
}

/* The linker puts this in the place of lpx_loader_open, so that a device of the library's own making can fail too. */
PFN_vkGetInstanceProcAddr
__wrap_lpx_loader_open(void); /* NOLINT(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
PFN_vkGetInstanceProcAddr
__wrap_lpx_loader_open(void) { /* NOLINT(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
  return shim_get_instance_proc_addr;
}

/* What becomes of an opened device. A driver that can't be had is no device; the other failures are as anywhere. */
static laprox_result expected_opening(laprox_result result) {
  const bool no_driver =
      shim.failed_with == VK_ERROR_INITIALIZATION_FAILED || shim.failed_with == VK_ERROR_INCOMPATIBLE_DRIVER;
  return shim.failed && !strcmp(shim.failed, "vkCreateInstance") && no_driver &&
                 result == LAPROX_ERROR_NO_DEVICE
             ? LAPROX_ERROR_VULKAN
             : result;
}

static unsigned open_once(failing_source from, unsigned n, unsigned choice) {
  laprox_instance *instance = NULL;
  laprox_device *opened = NULL;
  const char *cache = getenv("XDG_CACHE_HOME");
  const laprox_instance_info info = {
      .host = host.host, .cache_directory = cache, .variants_off = test_variants_off()};
  failing_arm(&host, from, n, choice);
  laprox_result result = laprox_instance_create(&info, &instance);
  if (!result) result = laprox_device_open(instance, NULL, &opened);
  assert_true((opened == NULL) == (result != LAPROX_OK));
  if (shim.failed_with == VK_INCOMPLETE) /* what there was of it did */
    assert_int_equal(result, LAPROX_OK);
  else if (from == FAIL_VULKAN)
    (void)failing_check(&host, from, n, expected_opening(result));
  else /* what names the device may be left out for want of memory; the device may not */
    assert_true(result == LAPROX_OK ||
                (failing_has_struck(&host, from) && result == LAPROX_ERROR_OUT_OF_MEMORY));
  assert_int_equal(host.n_errors, result ? 1 : 0);
  laprox_device_destroy(opened); /* which asks for the compiled pipelines, and may be refused */
  laprox_instance_destroy(instance);
  failing_expect_nothing_left(&host);
  if (!failing_has_struck(&host, from)) return 0;
  return from == FAIL_VULKAN ? shim.n_choices : 1;
}

/* A device of the library's own making: every call, in every way. */
static void open_failing(failing_source from, unsigned least) {
  unsigned n = 1, n_failures = 0;
  for (unsigned n_choices; (n_choices = open_once(from, n, 0)) != 0; n += is_sampled() ? 1 + n : 1) {
    if (is_sampled()) n_choices = 1;
    for (unsigned choice = 1; choice < n_choices; choice++) (void)open_once(from, n, choice);
    n_failures += n_choices;
  }
  print_message("%u failures of %u calls\n", n_failures, n - 1);
  assert_true(n > least);
}

static void test_open(void **state) {
  (void)state;
  open_failing(FAIL_MEMORY, 8);
  open_failing(FAIL_VULKAN, 20);
}

/* ---- a lost device ---- */

/* The n-th call that can be told so says that the device is lost; then all is asked for that can be asked. */
static void lose_device(call which, unsigned n) {
  stage s = {0};
  failing_arm(&host, FAIL_VULKAN, 0, 0);
  advance_before(&s, IMPORT, which);
  failing_arm_loss(&host, n);
  assert_int_equal(run_call(&s, which), LAPROX_ERROR_DEVICE_LOST);
  assert_int_equal(host.n_errors, 1);
  static const call later[] = {LOAD, CREATE, FORK, PREFILL, DECODE};
  for (size_t i = 0; i < sizeof later / sizeof *later; i++) {
    stage made = s; /* what is made goes elsewhere */
    if (later[i] == DECODE && !s.fork) continue;
    failing_arm(&host, FAIL_VULKAN, 0, 0);
    assert_int_equal(run_call(&made, later[i]), LAPROX_ERROR_DEVICE_LOST);
    assert_int_equal(host.n_errors, 1);
    assert_non_null(strstr(host.last_error, "lost"));
  }
  undo_call(&s, IMPORT);
  failing_expect_nothing_left(&host);
}

static void test_lost(void **state) {
  (void)state;
  lose_device(PREFILL, 1); /* a submit */
  lose_device(EVICT, 2);   /* a wait */
  lose_device(DECODE, 2);
  lose_device(CUT_LAYERS, 7);
}

/* ---- the smallest device ---- */

/* Logits of the prompt and of the first token after the eviction, on this device or on one of the smallest limits; without
 * cooperative matrices, which such a device hasn't and which round what they multiply. */
static float *answer(bool small_limits, size_t *n_logits) {
  stage s = {0};
  failing_arm(&host, FAIL_VULKAN, 0, 0);
  shim.small_limits = small_limits;
  kernels_off = LAPROX_VARIANT_MATRIX;
  advance(&s, IMPORT, PREFILL);
  const size_t n = s.about.n_vocab;
  float *logits = malloc(2 * n * sizeof *logits);
  assert_non_null(logits);
  memcpy(logits, laprox_session_logits(s.session), n * sizeof *logits);
  advance(&s, FORK, DECODE);
  memcpy(logits + n, laprox_session_logits(s.fork), n * sizeof *logits);
  if (shim.n_violations) fail_msg("%u violations, the first: %s", shim.n_violations, shim.violation);
  kernels_off = 0;
  *n_logits = 2 * n;
  undo_call(&s, IMPORT);
  failing_expect_nothing_left(&host);
  return logits;
}

static void test_small_limits(void **state) {
  (void)state;
  size_t n = 0;
  float *here = answer(false, &n), *small = answer(true, &n);
  assert_memory_equal(small, here, n * sizeof *small);
  free(here);
  free(small);
}

/* ---- tokens in a row ---- */

/* Once recorded, a token costs the calls of one submit and no memory, until the tail outgrows its room; what comes out
 * is what a session gives that records every token anew. */
static void test_steady_decode(void **state) {
  (void)state;
  enum { N_STEADY = 20 };
  stage s = {0};
  failing_arm(&host, FAIL_VULKAN, 0, 0);
  advance(&s, IMPORT, DECODE);
  for (uint32_t i = 1; i < N_STEADY; i++) {
    failing_arm(&host, FAIL_VULKAN, 0, 0);
    const unsigned n_allocated = host.n_allocated;
    assert_int_equal(laprox_session_decode(s.fork, tokens[i]), LAPROX_OK);
    if (i == 1) continue;              /* the first token grew the tail after it was recorded */
    assert_int_equal(shim.n_calls, 3); /* vkResetFences, vkQueueSubmit, vkWaitForFences */
    assert_int_equal(host.n_allocated, n_allocated);
  }
  stage fresh = s;
  assert_int_equal(laprox_session_fork(s.session, &fresh.fork), LAPROX_OK);
  assert_int_equal(laprox_session_evict(fresh.fork, &policy, NULL), LAPROX_OK);
  for (uint32_t i = 0; i < N_STEADY; i++) {
    laprox_session *next = NULL;
    assert_int_equal(laprox_session_decode(fresh.fork, tokens[i]), LAPROX_OK);
    assert_int_equal(laprox_session_fork(fresh.fork, &next), LAPROX_OK);
    laprox_session_destroy(fresh.fork);
    fresh.fork = next;
  }
  assert_memory_equal(laprox_session_logits(s.fork), laprox_session_logits(fresh.fork),
                      s.about.n_vocab * sizeof(float));
  laprox_session_destroy(fresh.fork);
  undo_call(&s, IMPORT);
  failing_expect_nothing_left(&host);
}

/* ---- before and after ---- */

static float *copy_logits(const float *logits, uint32_t n) {
  float *copy = malloc(n * sizeof *copy);
  assert_non_null(copy);
  memcpy(copy, logits, n * sizeof *copy);
  return copy;
}

static int set_up(void **state) {
  (void)state;
  stage s = {0};
  const char *data = getenv("LAPROX_TEST_DATA");
  (void)snprintf(model_path, sizeof model_path, "%s/model-f16.gguf", data ? data : "tests/data");
  app_vulkan_init(&vulkan);
  app_device_init(&vulkan, 4096, &app);
  test_host_init(&host);
  for (uint32_t i = 0; i < N_TOKENS; i++) tokens[i] = 300 + i * 7 % 90;
  advance(&s, IMPORT, PREFILL);
  prompt_logits = copy_logits(laprox_session_logits(s.session), s.about.n_vocab);
  advance(&s, FORK, DECODE);
  evicted_logits = copy_logits(laprox_session_logits(s.fork), s.about.n_vocab);
  undo_call(&s, IMPORT);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  free(prompt_logits);
  free(evicted_logits);
  app_device_finish(&app);
  return (int)app_vulkan_finish(&vulkan);
}

int main(void) {
  struct CMUnitTest tests[N_SWEEPS + 4] = {cmocka_unit_test(test_lost), cmocka_unit_test(test_small_limits),
                                           cmocka_unit_test(test_open), cmocka_unit_test(test_steady_decode)};
  for (size_t i = 0; i < N_SWEEPS; i++) {
    sweep_case *given = (sweep_case *)(uintptr_t)&sweeps[i]; /* cmocka's state is not const */
    tests[4 + i] = (struct CMUnitTest){given->name, test_sweep, NULL, NULL, given};
  }
  return cmocka_run_group_tests_name("failures_runtime", tests, set_up, tear_down);
}
