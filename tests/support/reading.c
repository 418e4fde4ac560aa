#include "support/reading.h"
#include "support/bytes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

test_reading rig;

char *data_path(char path[512], const char *name) {
  const char *folder = getenv("LAPROX_TEST_DATA");
  assert_non_null(folder);
  snprintf(path, 512, "%s/%s", folder, name);
  return path;
}

uint64_t device_bytes(void) {
  return laprox_context_memory(laprox_device_context(rig.gpu->device)).bytes;
}

/* ---- sessions ---- */

laprox_session *make_with(const laprox_session_info *info) {
  laprox_session *session = NULL;
  assert_int_equal(laprox_session_create(rig.model, info, &session), LAPROX_OK);
  return session;
}

laprox_session *make(void) {
  const laprox_session_info info = {0};
  return make_with(&info);
}

void read_tokens(laprox_session *session, size_t n) {
  const size_t at = laprox_session_n_tokens(session);
  assert_true(at + n <= rig.n_tokens);
  assert_int_equal(laprox_session_prefill(session, rig.tokens + at, n), LAPROX_OK);
  assert_int_equal(laprox_session_n_tokens(session), at + n);
}

void decode_tokens(laprox_session *session, size_t n) {
  for (size_t i = 0; i < n; i++)
    assert_int_equal(laprox_session_decode(session, rig.tokens[laprox_session_n_tokens(session)]), LAPROX_OK);
}

laprox_session *make_at(size_t n_tokens) {
  laprox_session *session = make();
  read_tokens(session, n_tokens);
  return session;
}

laprox_session *fork_of(const laprox_session *session) {
  laprox_session *fork = NULL;
  assert_int_equal(laprox_session_fork(session, &fork), LAPROX_OK);
  return fork;
}

void evict(laprox_session *session, const laprox_policy *policy) {
  assert_int_equal(laprox_session_evict(session, policy, NULL), LAPROX_OK);
}

void evict_to(laprox_session *session, uint32_t n_entries) {
  const laprox_policy policy = {.budget.tokens = n_entries};
  evict(session, &policy);
}

uint64_t count_kept(const laprox_session *session) {
  uint32_t counts[N_HEADS];
  uint64_t n = 0;
  laprox_session_kept_per_head(session, counts);
  for (size_t i = 0; i < N_HEADS; i++) n += counts[i];
  return n;
}

uint32_t best_token(const laprox_session *session) {
  laprox_sampler greedy = {0};
  return laprox_sample(&greedy, laprox_session_logits(session), rig.n_vocab, NULL);
}

/* ---- comparisons ---- */

void expect_near(const float *left, const float *right, double tolerance) {
  double largest = 0, difference = 0;
  assert_true(left && right);
  for (size_t i = 0; i < rig.n_vocab; i++) {
    assert_true(isfinite(left[i]) && isfinite(right[i]));
    largest = fmax(largest, fabs((double)right[i]));
    difference = fmax(difference, fabs((double)left[i] - (double)right[i]));
  }
  if (difference > tolerance * largest)
    fail_msg("logits differ by %g of the largest, %g is allowed", difference / largest, tolerance);
}

void expect_same_logits(const laprox_session *left, const laprox_session *right) {
  assert_non_null(laprox_session_logits(left));
  assert_non_null(laprox_session_logits(right));
  assert_memory_equal(laprox_session_logits(left), laprox_session_logits(right), rig.n_vocab * sizeof(float));
}

void expect_same_kept(const laprox_session *left, const laprox_session *right) {
  uint32_t left_counts[N_HEADS], right_counts[N_HEADS];
  laprox_session_kept_per_head(left, left_counts);
  laprox_session_kept_per_head(right, right_counts);
  assert_memory_equal(left_counts, right_counts, sizeof(left_counts));
  const size_t bytes = (size_t)count_kept(left) * sizeof(uint32_t); /* of all layers, enough for each */
  uint32_t *a = malloc(bytes), *b = malloc(bytes);
  assert_true(a && b);
  for (uint32_t l = 0, head = 0; l < N_LAYERS; l++) {
    size_t n = 0;
    for (; head < (l + 1) * (N_HEADS / N_LAYERS); head++) n += left_counts[head];
    laprox_session_kept_positions(left, l, a);
    laprox_session_kept_positions(right, l, b);
    assert_memory_equal(a, b, n * sizeof(uint32_t));
  }
  free(a);
  free(b);
}

void expect_near_queries(const laprox_session *left, const laprox_session *right, double tolerance) {
  const size_t row = (size_t)lpx_session_query_row_bytes(left) / sizeof(float), window = left->info.window;
  const size_t n_tokens = laprox_session_n_tokens(left), n = row * window, bytes = n * sizeof(float);
  float *a = malloc(bytes), *b = malloc(bytes);
  assert_true(a && b);
  for (uint32_t l = 0; l < N_LAYERS; l++) {
    double largest = 0, difference = 0;
    assert_int_equal(
        lpx_queue_download(left->device->queue, lpx_buffer_whole(&left->queries.rings[l]), a, bytes), 0);
    assert_int_equal(
        lpx_queue_download(left->device->queue, lpx_buffer_whole(&right->queries.rings[l]), b, bytes), 0);
    for (size_t i = 0; i < (n_tokens < window ? n_tokens * row : n); i++) {
      largest = fmax(largest, fabs((double)b[i]));
      difference = fmax(difference, fabs((double)a[i] - (double)b[i]));
    }
    if (!(difference <= tolerance * largest))
      fail_msg("layer %u: queries differ by %g of the largest", l, difference / largest);
  }
  free(a);
  free(b);
}

/* ---- the rig ---- */

int reading_setup(void **state) {
  char path[512];
  void *made = NULL;
  (void)state;
  if (test_gpu_setup(&made)) return -1;
  rig.gpu = made;
  const laprox_model_info info = {.path = data_path(path, "model-f16.gguf")};
  if (laprox_model_load(rig.gpu->device, &info, &rig.model)) return -1;
  laprox_model_description description;
  laprox_model_describe(rig.model, &description);
  rig.n_vocab = description.n_vocab;
  if (description.shape.n_layers * description.shape.n_kv_heads != N_HEADS) return -1;
  size_t bytes;
  char *text = read_file(data_path(path, "demo.txt"), &bytes);
  const laprox_result result =
      laprox_model_tokenize(rig.model, text, bytes, true, &rig.tokens, &rig.n_tokens);
  free(text);
  rig.bytes = device_bytes();
  return result;
}

int reading_teardown(void **state) {
  void *made = rig.gpu;
  (void)state;
  laprox_model_release(rig.model, rig.tokens);
  laprox_model_destroy(rig.model);
  return test_gpu_teardown(&made);
}
