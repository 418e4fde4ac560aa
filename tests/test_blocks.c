/* Sessions whose K and V are stored in blocks of 8 or 4 bits: answers, memory, evictions, files, captures. */
#include "core/core.h"
#include "io/safetensors.h"
#include "support/reading.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#define CAPTURE "test_blocks_capture.safetensors"
#define EXACT   "test_blocks_exact.safetensors"
#define SAVED   "test_blocks_saved.safetensors"

/* A key or value in the neighbouring number is one of 127 or 8 of its block's largest away. */
static const struct {
  laprox_dtype dtype;
  uint32_t row_bytes;
  double tolerance;
} types[] = {{LAPROX_DTYPE_Q8_0, 68, 0.02}, {LAPROX_DTYPE_Q4_0, 36, 0.35}};
enum { N_TYPES = 2 };

static laprox_session *make_of(laprox_dtype dtype) {
  return make_with(&(laprox_session_info){.kv_dtype = dtype});
}

/* ---- answers ---- */

enum { N_ANSWER = 6 };

static void answer(laprox_dtype dtype, const laprox_policy *policy, const char *prompt,
                   uint32_t out[N_ANSWER]) {
  uint32_t *tokens = NULL;
  size_t n;
  laprox_session *session = make_of(dtype);
  assert_int_equal(laprox_model_tokenize(rig.model, prompt, strlen(prompt), true, &tokens, &n), LAPROX_OK);
  assert_int_equal(laprox_session_prefill_evict(session, tokens, n, policy, NULL), LAPROX_OK);
  laprox_model_release(rig.model, tokens);
  for (int i = 0; i < N_ANSWER; i++) {
    out[i] = best_token(session);
    assert_int_equal(laprox_session_decode(session, out[i]), LAPROX_OK);
  }
  laprox_session_destroy(session);
}

static void test_answers(void **state) {
  (void)state;
  static const laprox_policy policies[] = {{.kind = LAPROX_POLICY_FULL}, {.budget.share = 0.2}};
  char path[512];
  FILE *file = fopen(data_path(path, "prompts/needle_512.jsonl"), "r");
  assert_non_null(file);
  json_t *task = json_loadf(file, JSON_DISABLE_EOF_CHECK, NULL);
  assert_non_null(task);
  const char *prompt = json_string_value(json_object_get(task, "prompt"));
  for (size_t p = 0; p < 2; p++) {
    uint32_t wanted[N_ANSWER], got[N_ANSWER];
    answer(LAPROX_DTYPE_F16, &policies[p], prompt, wanted);
    for (size_t t = 0; t < N_TYPES; t++) {
      answer(types[t].dtype, &policies[p], prompt, got);
      assert_memory_equal(got, wanted, sizeof wanted);
    }
  }
  json_decref(task);
  fclose(file);
}

/* ---- memory ---- */

static void test_memory(void **state) {
  (void)state;
  enum { N = 320 };
  for (size_t t = 0; t < N_TYPES; t++) {
    const laprox_memory_plan_info info = {.session.kv_dtype = types[t].dtype, .n_prompt = N};
    laprox_memory_plan plan;
    laprox_eviction out;
    assert_int_equal(laprox_plan_memory(rig.model, &info, &plan), LAPROX_OK);
    assert_int_equal(plan.kv_full_bytes, 2 * N_HEADS * N * types[t].row_bytes);
    laprox_session *session = make_of(types[t].dtype);
    read_tokens(session, N);
    assert_int_equal(laprox_session_get_memory(session).kv_bytes, plan.kv_full_bytes);
    const laprox_policy policy = {.budget.tokens = 48};
    assert_int_equal(laprox_session_evict(session, &policy, &out), LAPROX_OK);
    assert_int_equal(out.kept, N_HEADS * 48);
    assert_int_equal(out.bytes_after, 2 * out.kept * types[t].row_bytes);
    assert_true(laprox_session_get_memory(session).kv_bytes <= out.bytes_after + 2 * N_LAYERS * 256);
    laprox_session_destroy(session);
  }
}

/* ---- the same text, read in different ways ---- */

static void test_ways_of_reading(void **state) {
  (void)state;
  for (size_t t = 0; t < N_TYPES; t++) {
    const laprox_session_info parts = {.kv_dtype = types[t].dtype, .chunk = 70};
    const laprox_policy policy = {.budget.tokens = 60};
    laprox_session *whole = make_of(types[t].dtype), *again = make_of(types[t].dtype);
    laprox_session *chunked = make_with(&parts);
    read_tokens(whole, 301);
    read_tokens(again, 301);
    expect_same_logits(whole, again);
    read_tokens(chunked, 290);
    decode_tokens(chunked, 11);
    expect_near(laprox_session_logits(chunked), laprox_session_logits(whole), types[t].tolerance);
    laprox_session *layerwise = make_of(types[t].dtype);
    assert_int_equal(laprox_session_prefill_evict(layerwise, rig.tokens, 301, &policy, NULL), LAPROX_OK);
    evict(whole, &policy);
    expect_same_kept(whole, layerwise);
    /* The tail, and then what an eviction makes of prefix and tail. */
    decode_tokens(whole, 40);
    decode_tokens(layerwise, 40);
    expect_same_logits(whole, layerwise);
    evict_to(whole, 50);
    evict_to(layerwise, 50);
    expect_same_kept(whole, layerwise);
    decode_tokens(whole, 1);
    decode_tokens(layerwise, 1);
    expect_same_logits(whole, layerwise);
    laprox_session_destroy(whole);
    laprox_session_destroy(again);
    laprox_session_destroy(chunked);
    laprox_session_destroy(layerwise);
  }
}

/* ---- files ---- */

static void test_saving(void **state) {
  (void)state;
  for (size_t t = 0; t < N_TYPES; t++) {
    laprox_session *session = make_of(types[t].dtype), *loaded = make_of(types[t].dtype);
    laprox_session *other = make();
    read_tokens(session, 200);
    evict_to(session, 60);
    decode_tokens(session, 7);
    assert_int_equal(laprox_session_save(session, NULL, SAVED), LAPROX_OK);
    assert_int_equal(laprox_session_load(other, SAVED), LAPROX_ERROR_FORMAT);
    assert_int_equal(laprox_session_load(loaded, SAVED), LAPROX_OK);
    expect_same_kept(session, loaded);
    decode_tokens(session, 40);
    decode_tokens(loaded, 40);
    expect_same_logits(session, loaded);
    laprox_session_destroy(session);
    laprox_session_destroy(loaded);
    laprox_session_destroy(other);
  }
}

static float *capture_of(laprox_dtype dtype, const char *path, const char *name, size_t *n) {
  const laprox_host *host = &laprox_device_context(rig.gpu->device)->host;
  laprox_session *session = make_of(dtype);
  lpx_safetensors *file = NULL;
  const lpx_st_tensor *tensor = NULL;
  read_tokens(session, 100);
  assert_int_equal(laprox_session_capture(session, path), LAPROX_OK);
  laprox_session_destroy(session);
  assert_int_equal(lpx_safetensors_open(host, path, &file), LAPROX_OK);
  assert_int_equal(lpx_safetensors_get(file, name, &tensor), LAPROX_OK);
  assert_int_equal(tensor->dtype, LPX_ST_F32);
  *n = (size_t)tensor->n_elements;
  float *values = malloc(*n * sizeof *values);
  assert_non_null(values);
  assert_int_equal(lpx_safetensors_read_all(file, tensor, values), LAPROX_OK);
  lpx_safetensors_close(file);
  return values;
}

/* Of the first layer, in which nothing but the storing differs: within half a number of the exact values; in 4 bits, at
 * the end of the numbers, within one. */
static void test_captures(void **state) {
  (void)state;
  static const char *const names[] = {"layers.0.k", "layers.0.v"};
  for (size_t t = 0; t < N_TYPES; t++)
    for (size_t i = 0; i < 2; i++) {
      size_t n, n_exact;
      float *exact = capture_of(LAPROX_DTYPE_F32, EXACT, names[i], &n_exact);
      float *values = capture_of(types[t].dtype, CAPTURE, names[i], &n);
      assert_int_equal(n, n_exact);
      for (size_t first = 0; first < n; first += 32) {
        double largest = 0.0;
        for (size_t e = first; e < first + 32; e++) largest = fmax(largest, fabs((double)exact[e]));
        const double step = types[t].dtype == LAPROX_DTYPE_Q8_0 ? 0.5 / 127.0 : 1.0 / 8.0;
        for (size_t e = first; e < first + 32; e++)
          assert_true(fabs((double)values[e] - (double)exact[e]) <= largest * (step + 0x1p-10));
      }
      free(exact);
      free(values);
    }
}

static int tear_down(void **state) {
  remove(CAPTURE);
  remove(EXACT);
  remove(SAVED);
  return reading_teardown(state);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_answers), cmocka_unit_test(test_memory),   cmocka_unit_test(test_ways_of_reading),
      cmocka_unit_test(test_saving),  cmocka_unit_test(test_captures),
  };
  return cmocka_run_group_tests(tests, reading_setup, tear_down);
}
