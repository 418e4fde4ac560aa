/* test_chunks.c: prompts read in chunks with an eviction after each, what counts as tail, and plans that can't
 * be. */
#include "runtime/session.h"
#include "support/gpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_TOKENS = 430, N_HEADS_ALL = 8, BUDGET = 43, N_SINKS = 4 };

static uint32_t tokens[N_TOKENS];
static const laprox_policy tenth = {.budget.share = 0.1, .sinks = N_SINKS};

static laprox_model *load_model(test_gpu *gpu) {
  char path[1024];
  laprox_model *model = NULL;
  uint32_t state = 11;
  for (uint32_t i = 0; i < N_TOKENS; i++) {
    state = state * 1664525u + 1013904223u;
    tokens[i] = 2 + (state >> 8) % 2000;
  }
  snprintf(path, sizeof path, "%s/model-f16.gguf", getenv("LAPROX_TEST_DATA"));
  assert_int_equal(laprox_model_load(gpu->device, &(laprox_model_info){.path = path}, &model), LAPROX_OK);
  return model;
}

static laprox_session *make(laprox_model *model, const laprox_session_info *info) {
  laprox_session *session = NULL;
  assert_int_equal(laprox_session_create(model, info, &session), LAPROX_OK);
  return session;
}

static uint64_t count_entries(const laprox_session *session) {
  uint32_t counts[N_HEADS_ALL];
  uint64_t n = 0;
  laprox_session_kept_per_head(session, counts);
  for (size_t i = 0; i < N_HEADS_ALL; i++) n += counts[i];
  return n;
}

static void expect_same(const laprox_session *a, const laprox_session *b) {
  const size_t n_heads = a->cache.shape.n_kv_heads;
  for (uint32_t l = 0; l < a->cache.shape.n_layers; l++) {
    const lpx_cache_layer *x = &a->cache.layers[l], *y = &b->cache.layers[l];
    assert_memory_equal(x->cu_seqlens, y->cu_seqlens, (n_heads + 1) * sizeof *x->cu_seqlens);
    assert_memory_equal(x->positions, y->positions, x->cu_seqlens[n_heads] * sizeof *x->positions);
  }
  assert_memory_equal(laprox_session_logits(a), laprox_session_logits(b), a->model->n_vocab * sizeof(float));
}

static void expect_sinks(const laprox_session *session) {
  for (uint32_t l = 0; l < session->cache.shape.n_layers; l++)
    for (uint32_t head = 0; head < session->cache.shape.n_kv_heads; head++)
      for (uint32_t i = 0; i < N_SINKS; i++)
        assert_int_equal(lpx_cache_position(&session->cache, l, head, i), i);
}

/* Chunks longer and shorter than the budget and the window, and one that is longer than the prompt. */
static void test_bounded(void **state) {
  static const uint32_t chunks[] = {100, 30, 7, N_TOKENS, UINT32_MAX};
  test_gpu *gpu = *state;
  laprox_model *model = load_model(gpu);
  const laprox_session_info info = {0};
  for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
    const uint32_t chunk = chunks[i] < N_TOKENS ? chunks[i] : N_TOKENS;
    const laprox_policy every = {.budget.tokens = BUDGET, .sinks = N_SINKS};
    laprox_session *session = make(model, &info), *by_hand = make(model, &info);
    laprox_eviction done;
    assert_int_equal(laprox_session_prefill_chunks(session, tokens, N_TOKENS, chunks[i], &tenth, &done),
                     LAPROX_OK);
    assert_true(done.kept == BUDGET * N_HEADS_ALL && done.budget == BUDGET);
    assert_true(done.bytes_after == laprox_session_get_memory(session).kv_bytes);
    for (uint32_t first = 0, n; first < N_TOKENS; first += n) {
      n = N_TOKENS - first < chunk ? N_TOKENS - first : chunk;
      assert_int_equal(laprox_session_prefill(by_hand, tokens + first, n), LAPROX_OK);
      assert_true(count_entries(by_hand) <= (uint64_t)(BUDGET + chunk) * N_HEADS_ALL);
      assert_int_equal(laprox_session_evict(by_hand, &every, NULL), LAPROX_OK);
    }
    expect_same(session, by_hand);
    expect_sinks(session);
    /* The chunk, what was kept before, and its packed copy; while few are read, a layer's growth. */
    const uint64_t entry_bytes = 2 * lpx_cache_row_bytes(&session->cache) * N_HEADS_ALL;
    assert_true(laprox_session_get_memory(session).kv_peak_bytes <= (2 * BUDGET + chunk) * entry_bytes);
    laprox_session_destroy(session);
    laprox_session_destroy(by_hand);
  }
  laprox_model_destroy(model);
  assert_int_equal(gpu->n_errors, 0);
}

/* A later prompt: what was there before counts, and is cut first where it is more than the budget. */
static void test_later(void **state) {
  test_gpu *gpu = *state;
  laprox_model *model = load_model(gpu);
  const laprox_session_info info = {0};
  const laprox_policy some = {.budget.tokens = 50};
  laprox_session *session = make(model, &info);
  assert_int_equal(laprox_session_n_tail(session), 0);
  assert_int_equal(laprox_session_prefill(session, tokens, 200), LAPROX_OK);
  assert_int_equal(laprox_session_n_tail(session), 200);
  assert_int_equal(laprox_session_decode(session, 5), LAPROX_OK);
  assert_int_equal(laprox_session_n_tail(session), 201);
  const uint64_t peak = laprox_session_get_memory(session).kv_peak_bytes;
  assert_int_equal(laprox_session_prefill_chunks(session, tokens + 200, 170, 150, &some, NULL), LAPROX_OK);
  assert_int_equal(count_entries(session), 50 * N_HEADS_ALL);
  assert_int_equal(laprox_session_n_tokens(session), 371);
  assert_int_equal(laprox_session_n_tail(session), 0);
  assert_true(laprox_session_get_memory(session).kv_peak_bytes <= peak + peak / 2);
  assert_int_equal(laprox_session_decode(session, 5), LAPROX_OK);
  assert_int_equal(laprox_session_n_tail(session), 1);
  /* Nothing to evict: the tail goes on. */
  assert_int_equal(laprox_session_evict(session, &(laprox_policy){.budget.tokens = 60}, NULL), LAPROX_OK);
  assert_int_equal(laprox_session_n_tail(session), 1);
  laprox_session_destroy(session);
  laprox_model_destroy(model);
  assert_int_equal(gpu->n_errors, 0);
}

static bool stop_after(void *user, const char *what, double fraction) {
  int *left = user;
  (void)what;
  (void)fraction;
  return (*left)-- > 0;
}

/* Stopped in any chunk, a session that was empty is empty, and can be used. */
static void test_failures(void **state) {
  test_gpu *gpu = *state;
  laprox_model *model = load_model(gpu);
  int left = 0;
  const laprox_session_info info = {.progress = stop_after, .progress_user = &left};
  laprox_session *session = make(model, &info);
  uint32_t n_failures = 0;
  for (int calls = 0; calls < 40; calls += 7) {
    left = calls;
    assert_int_equal(laprox_session_prefill_chunks(session, tokens, N_TOKENS, 60, &tenth, NULL),
                     LAPROX_ERROR_CANCELLED);
    n_failures++;
    assert_int_equal(laprox_session_n_tokens(session), 0);
    assert_int_equal(laprox_session_get_memory(session).kv_bytes, 0);
    assert_null(laprox_session_logits(session));
  }
  const laprox_policy bad = {.budget.tokens = 20};
  tokens[401] = 999999;
  left = 100000;
  assert_int_equal(laprox_session_prefill_chunks(session, tokens, N_TOKENS, 60, &tenth, NULL),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  tokens[401] = 9;
  assert_int_equal(laprox_session_prefill_chunks(session, tokens, N_TOKENS, 0, &tenth, NULL),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(laprox_session_prefill_chunks(session, tokens, 0, 60, &tenth, NULL),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(laprox_session_prefill_chunks(session, tokens, N_TOKENS, 60, &bad, NULL),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(left, 100000);
  assert_int_equal(laprox_session_prefill_chunks(session, tokens, N_TOKENS, 60, &tenth, NULL), LAPROX_OK);
  assert_int_equal(count_entries(session), BUDGET * N_HEADS_ALL);
  laprox_session_destroy(session);
  laprox_model_destroy(model);
  assert_int_equal(gpu->n_errors, n_failures + 4);
}

static void test_impossible_plans(void **state) {
  test_gpu *gpu = *state;
  laprox_model *model = load_model(gpu);
  laprox_memory_plan plan;
  static const laprox_memory_plan_info bad[] = {
      {.n_prompt = 0},
      {.n_prompt = 4097},
      {.n_prompt = 4000, .n_question = 97},
      {.n_prompt = 100, .policy.budget.tokens = 20},
      {.n_prompt = 100, .policy = {.kind = LAPROX_POLICY_FULL, .scope = LAPROX_SCOPE_HEAD}},
      {.n_prompt = 100, .session.window = 999},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_int_equal(laprox_plan_memory(model, &bad[i], &plan), LAPROX_ERROR_INVALID_ARGUMENT);
    assert_int_equal(gpu->n_errors, i + 1);
  }
  /* What would not fit is no failure. */
  const laprox_memory_plan_info little = {.n_prompt = 100, .memory_bytes = 1000};
  assert_int_equal(laprox_plan_memory(model, &little, &plan), LAPROX_OK);
  assert_true(!plan.fits && plan.free_bytes == 1000 && !plan.largest_prompt && !plan.largest_budget);
  assert_int_equal(gpu->n_errors, sizeof bad / sizeof *bad);
  laprox_model_destroy(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_bounded, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_later, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_failures, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_impossible_plans, test_gpu_setup, test_gpu_teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
