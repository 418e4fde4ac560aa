/* test_session_failures.c: sessions that are asked for what they cannot do, stopped half-way, or left without
 * memory. */
#include "core/core.h"
#include "support/host.h"
#include "support/reading.h"
#include "support/variants.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NEVER "test_session_failures_never.safetensors"
#define KEPT  "test_session_failures_kept.safetensors"

/* ---- what is refused ---- */

static void expect_refused(laprox_session *session, const uint32_t *tokens, size_t n, const char *word) {
  const uint32_t n_tokens = laprox_session_n_tokens(session);
  const unsigned n_errors = rig.gpu->n_errors;
  const uint64_t bytes = device_bytes();
  assert_int_equal(laprox_session_prefill(session, tokens, n), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(rig.gpu->n_errors, n_errors + 1);
  assert_non_null(strstr(rig.gpu->last_error, word));
  assert_int_equal(laprox_session_n_tokens(session), n_tokens);
  assert_int_equal(device_bytes(), bytes);
}

static void test_bad_prompts(void **state) {
  (void)state;
  laprox_session *session = make_at(20), *twin = make_at(20);
  uint32_t tokens[8];
  memcpy(tokens, rig.tokens, sizeof tokens);
  expect_refused(session, tokens, 0, "empty");
  tokens[7] = rig.n_vocab;
  expect_refused(session, tokens, 8, "vocabulary");
  tokens[0] = UINT32_MAX;
  expect_refused(session, tokens, 1, "vocabulary");
  expect_refused(session, tokens, (size_t)UINT32_MAX + 2, "context");
  assert_int_equal(laprox_session_decode(session, rig.n_vocab), LAPROX_ERROR_INVALID_ARGUMENT);
  expect_same_logits(session, twin);
  decode_tokens(session, 1);
  decode_tokens(twin, 1);
  expect_same_logits(session, twin);
  laprox_session_destroy(session);
  laprox_session_destroy(twin);
}

static void test_context_limit(void **state) {
  (void)state;
  const uint32_t context_length = rig.model->context_length;
  rig.model->context_length = 100;
  laprox_session *session = make();
  expect_refused(session, rig.tokens, 101, "100");
  read_tokens(session, 60);
  expect_refused(session, rig.tokens, 41, "100");
  read_tokens(session, 39);
  evict_to(session, 40); /* frees memory, not positions */
  decode_tokens(session, 1);
  assert_int_equal(laprox_session_n_tokens(session), 100);
  assert_int_equal(laprox_session_decode(session, 5), LAPROX_ERROR_INVALID_ARGUMENT);
  expect_refused(session, rig.tokens, 1, "100");
  assert_non_null(laprox_session_logits(session));
  laprox_session_destroy(session);
  rig.model->context_length = context_length;
}

static void test_bad_infos(void **state) {
  (void)state;
  static const laprox_session_info infos[] = {
      {.window = 257}, {.chunk = 65537}, {.kv_dtype = LAPROX_DTYPE_BF16}, {.kv_dtype = (laprox_dtype)77}};
  for (size_t i = 0; i < sizeof infos / sizeof *infos; i++) {
    laprox_session *session = (laprox_session *)1;
    const unsigned n_errors = rig.gpu->n_errors;
    assert_true(laprox_session_create(rig.model, &infos[i], &session) != LAPROX_OK);
    assert_null(session);
    assert_int_equal(rig.gpu->n_errors, n_errors + 1);
  }
  laprox_session *empty = make();
  const laprox_policy policy = {.budget.share = 0.5};
  laprox_eviction out;
  assert_int_equal(laprox_session_evict(empty, &policy, &out), LAPROX_OK);
  assert_int_equal(out.kept, 0);
  assert_int_equal(laprox_session_capture(empty, NEVER), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(laprox_session_dump_logits(empty, NEVER), LAPROX_ERROR_INVALID_ARGUMENT);
  laprox_session_destroy(empty);
  laprox_session_destroy(NULL);
}

/* ---- stopping half-way ---- */

typedef struct stop {
  unsigned n_calls, stop_at; /* 0: never */
} stop;

static bool count_calls(void *user, const char *what, double fraction) {
  stop *counter = user;
  assert_non_null(what);
  assert_true(fraction >= 0 && fraction <= 1);
  return ++counter->n_calls != counter->stop_at;
}

static void test_cancelled_prefill(void **state) {
  (void)state;
  stop counter = {0};
  const laprox_session_info info = {.chunk = 50, .progress = count_calls, .progress_user = &counter};
  const laprox_policy random = {.kind = LAPROX_POLICY_RANDOM, .budget.tokens = 60},
                      laprox = {.budget.tokens = 60};
  laprox_session *twin = make_with(&info);
  read_tokens(twin, 100);
  counter.n_calls = 0;
  read_tokens(twin, 140);
  const unsigned n_calls = counter.n_calls;
  assert_true(n_calls >= 3 * N_LAYERS);
  for (unsigned at = 1; at <= n_calls; at += 5) {
    laprox_session *session = make_with(&info);
    counter = (stop){0};
    read_tokens(session, 100);
    counter = (stop){.stop_at = at};
    assert_int_equal(laprox_session_prefill(session, rig.tokens + 100, 140), LAPROX_ERROR_CANCELLED);
    assert_int_equal(laprox_session_n_tokens(session), 100);
    assert_int_equal(count_kept(session), N_HEADS * 100);
    assert_null(laprox_session_logits(session));
    counter = (stop){0};
    /* The window's queries are overwritten: scoring with them would be wrong without a word. */
    assert_int_equal(laprox_session_evict(session, &laprox, NULL), LAPROX_ERROR_INVALID_ARGUMENT);
    assert_int_equal(laprox_session_capture(session, NEVER), LAPROX_ERROR_INVALID_ARGUMENT);
    if (at % 2) {
      read_tokens(session, 140);
      expect_same_logits(session, twin);
      expect_near_queries(session, twin, 0);
      evict(session, &laprox);
    } else {
      evict(session, &random);
      decode_tokens(session, 32);
      evict(session, &laprox);
    }
    assert_int_equal(count_kept(session), N_HEADS * 60);
    laprox_session_destroy(session);
  }
  laprox_session_destroy(twin);
  assert_int_equal(device_bytes(), rig.bytes);
}

/* Fewer tokens than a window: their queries can be overwritten just as well. */
static void test_cancelled_short(void **state) {
  (void)state;
  stop counter = {0};
  const laprox_session_info info = {.progress = count_calls, .progress_user = &counter};
  const laprox_policy policy = {.budget.tokens = 40};
  laprox_session *session = make_with(&info);
  read_tokens(session, 20);
  counter = (stop){.stop_at = 2};
  assert_int_equal(laprox_session_prefill(session, rig.tokens + 20, 100), LAPROX_ERROR_CANCELLED);
  counter = (stop){0};
  assert_int_equal(laprox_session_capture(session, NEVER), LAPROX_ERROR_INVALID_ARGUMENT);
  evict(session, &policy); /* nothing to evict, so nothing to score */
  assert_int_equal(count_kept(session), N_HEADS * 20);
  laprox_session_destroy(session);
}

/* What is cut layer by layer and stopped leaves an empty session, and so does a prefill before it that was
 * stopped. */
static void test_cancelled_layerwise(void **state) {
  (void)state;
  stop counter = {0};
  const laprox_session_info info = {.chunk = 50, .progress = count_calls, .progress_user = &counter};
  const laprox_policy policy = {.budget.tokens = 40};
  laprox_session *twin = make_with(&info);
  assert_int_equal(laprox_session_prefill_evict(twin, rig.tokens, 90, &policy, NULL), LAPROX_OK);
  const unsigned n_calls = counter.n_calls;
  assert_true(n_calls >= 2 * N_LAYERS);
  for (unsigned at = 1; at <= n_calls; at += 2) {
    laprox_session *session = make_with(&info);
    counter = (stop){.stop_at = at};
    const laprox_result result = at % 3 ? laprox_session_prefill_evict(session, rig.tokens, 90, &policy, NULL)
                                        : laprox_session_prefill(session, rig.tokens, 90);
    assert_int_equal(result, LAPROX_ERROR_CANCELLED);
    assert_int_equal(laprox_session_n_tokens(session), 0);
    assert_null(laprox_session_logits(session));
    counter = (stop){0};
    assert_int_equal(laprox_session_prefill_evict(session, rig.tokens, 90, &policy, NULL), LAPROX_OK);
    expect_same_kept(session, twin);
    expect_same_logits(session, twin);
    laprox_session_destroy(session);
  }
  laprox_session_destroy(twin);
  assert_int_equal(device_bytes(), rig.bytes);
}

static void test_cancelled_eviction(void **state) {
  (void)state;
  stop counter = {0};
  const laprox_session_info info = {.progress = count_calls, .progress_user = &counter};
  const laprox_policy policy = {.budget.tokens = 60};
  laprox_session *session = make_with(&info), *twin = make_with(&info);
  read_tokens(session, 200);
  read_tokens(twin, 200);
  const uint64_t bytes = laprox_session_get_memory(session).kv_bytes;
  counter = (stop){0};
  evict(twin, &policy);
  const unsigned n_calls = counter.n_calls; /* at least in the middle and before anything is replaced */
  assert_true(n_calls >= 2);
  for (unsigned at = 1; at <= n_calls; at++) {
    counter = (stop){.stop_at = at};
    assert_int_equal(laprox_session_evict(session, &policy, NULL), LAPROX_ERROR_CANCELLED);
    assert_int_equal(count_kept(session), N_HEADS * 200);
    assert_int_equal(laprox_session_get_memory(session).kv_bytes, bytes);
  }
  counter = (stop){0};
  evict(session, &policy);
  expect_same_kept(session, twin);
  decode_tokens(session, 1);
  decode_tokens(twin, 1);
  expect_same_logits(session, twin);
  laprox_session_destroy(session);
  laprox_session_destroy(twin);
}

/* ---- host memory that runs out ---- */

typedef struct failing_rig {
  test_host host;
  laprox_instance *instance;
  laprox_device *device;
  laprox_model *model;
} failing_rig;

static void failing_init(failing_rig *failing) {
  char path[512];
  const laprox_model_info model_info = {.path = data_path(path, "model-f16.gguf")};
  test_host_init(&failing->host);
  const laprox_instance_info info = {.host = failing->host.host, .variants_off = test_variants_off()};
  assert_int_equal(laprox_instance_create(&info, &failing->instance), LAPROX_OK);
  assert_int_equal(laprox_device_open(failing->instance, getenv("LAPROX_DEVICE"), &failing->device),
                   LAPROX_OK);
  assert_int_equal(laprox_model_load(failing->device, &model_info, &failing->model), LAPROX_OK);
}

static void failing_finish(failing_rig *failing) {
  laprox_model_destroy(failing->model);
  laprox_device_destroy(failing->device);
  laprox_instance_destroy(failing->instance);
  assert_int_equal(failing->host.n_live, 0);
}

/* A session, a fork of it, and one whose prompt is cut after every layer. */
typedef struct life {
  laprox_session *session, *fork, *layerwise;
} life;

enum {
  CREATE,
  PREFILL,
  DECODE,
  EVICT,
  FORK,
  DECODE_FORK,
  TURN,
  EVICT_AGAIN,
  DUMP,
  CREATE_OTHER,
  LAYERWISE,
  N_PHASES
};

static laprox_result run_phase(const failing_rig *failing, int phase, life *of) {
  static const laprox_policy policy = {.window = 4, .budget.tokens = 7},
                             joint = {.gqa = LAPROX_GQA_JOINT, .window = 3, .budget.tokens = 5};
  const laprox_session_info info = {.keep_logits = true, .chunk = 7};
  switch (phase) {
  case CREATE:
    return laprox_session_create(failing->model, &info, &of->session);
  case PREFILL:
    return laprox_session_prefill(of->session, rig.tokens, 10);
  case DECODE:
    return laprox_session_decode(of->session, rig.tokens[10]);
  case EVICT:
    return laprox_session_evict(of->session, &policy, NULL);
  case FORK:
    return laprox_session_fork(of->session, &of->fork);
  case DECODE_FORK:
    return laprox_session_decode(of->fork, rig.tokens[11]);
  case TURN:
    return laprox_session_prefill(of->fork, rig.tokens + 12, 5);
  case EVICT_AGAIN:
    return laprox_session_evict(of->fork, &joint, NULL);
  case DUMP:
    return laprox_session_dump_kept(of->fork, KEPT);
  case CREATE_OTHER:
    return laprox_session_create(failing->model, &info, &of->layerwise);
  default:
    return laprox_session_prefill_evict(of->layerwise, rig.tokens, 9, &policy, NULL);
  }
}

/* Repeats a call, each time with a later allocation failing, until it has all that it needs. Prompts cut
   after every layer begin anew each time: there, not every allocation fails. */
static unsigned fail_phase(failing_rig *failing, int phase, life *of) {
  unsigned n_failures = 0;
  for (unsigned n = 1;; n += phase == LAYERWISE ? 4 : 1, n_failures++) {
    const unsigned n_errors = failing->host.n_errors;
    failing->host.fail_at = failing->host.n_allocated + n;
    const laprox_result result = run_phase(failing, phase, of);
    failing->host.fail_at = 0;
    assert_int_equal(failing->host.n_errors, n_errors + (result != LAPROX_OK));
    if (!result) return n_failures;
    assert_int_equal(result, LAPROX_ERROR_OUT_OF_MEMORY);
  }
}

static void expect_same_lives(const life *left, const life *right) {
  expect_same_logits(left->session, right->session);
  expect_same_logits(left->fork, right->fork);
  expect_same_logits(left->layerwise, right->layerwise);
  expect_same_kept(left->session, right->session);
  expect_same_kept(left->fork, right->fork);
  expect_same_kept(left->layerwise, right->layerwise);
}

static void end_life(const life *of) {
  laprox_session_destroy(of->session);
  laprox_session_destroy(of->fork);
  laprox_session_destroy(of->layerwise);
}

/* The same life twice, the second time with every allocation failing once, which must not show in the end. */
static void test_without_memory(void **state) {
  (void)state;
  failing_rig failing;
  life easy = {0}, hard = {0};
  unsigned n_failures = 0;
  failing_init(&failing);
  for (int phase = 0; phase < N_PHASES; phase++)
    assert_int_equal(run_phase(&failing, phase, &easy), LAPROX_OK);
  const long n_live = failing.host.n_live;
  const uint64_t bytes = laprox_context_memory(laprox_device_context(failing.device)).bytes;
  for (int phase = 0; phase < N_PHASES; phase++) n_failures += fail_phase(&failing, phase, &hard);
  print_message("%u allocations failed in turn\n", n_failures);
  assert_true(n_failures > 50);
  expect_same_lives(&easy, &hard);
  end_life(&hard);
  assert_int_equal(failing.host.n_live, n_live);
  assert_int_equal(laprox_context_memory(laprox_device_context(failing.device)).bytes, bytes);
  end_life(&easy);
  failing_finish(&failing);
}

/* ---- all of them ---- */

static int tear_down(void **state) {
  FILE *file = fopen(NEVER, "rb");
  if (file) fclose(file);
  remove(KEPT);
  return reading_teardown(state) || file ? -1 : 0;
}

int main(void) {
  static const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_bad_prompts),         cmocka_unit_test(test_context_limit),
      cmocka_unit_test(test_bad_infos),           cmocka_unit_test(test_cancelled_prefill),
      cmocka_unit_test(test_cancelled_eviction),  cmocka_unit_test(test_cancelled_short),
      cmocka_unit_test(test_cancelled_layerwise), cmocka_unit_test(test_without_memory),
  };
  return cmocka_run_group_tests_name("session failures", tests, reading_setup, tear_down);
}
