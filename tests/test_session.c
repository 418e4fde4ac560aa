/* test_session.c: sessions on the shipped model: the same results however a text is read, evictions while
 * generating, forks, captures, failures. What the model itself computes is test_model.c's. */
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

#define CAPTURE "test_session_capture.safetensors"
#define EVICTED "test_session_evicted.safetensors"
#define KEPT    "test_session_kept.safetensors"

/* Decode and prefill add in different orders, and so do chunks of different lengths. With an f16 cache a key
   or value may land on the neighbouring half, 2^-11 of it, which four layers carry to the logits; with f32
   only the sums differ. */
#define TOLERANCE_F16 4e-3
#define TOLERANCE_F32 1e-5

/* ---- the same text, read in different ways ---- */

static void test_decode_after_prefill(void **state) {
  (void)state;
  static const struct {
    laprox_dtype dtype;
    double tolerance;
  } types[] = {{LAPROX_DTYPE_F16, TOLERANCE_F16}, {LAPROX_DTYPE_F32, TOLERANCE_F32}};
  static const size_t lengths[] = {1, 31, 32, 64, 300};
  for (size_t t = 0; t < 2; t++)
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
      const laprox_session_info info = {.kv_dtype = types[t].dtype};
      laprox_session *step = make_with(&info), *whole = make_with(&info);
      read_tokens(step, lengths[i]);
      decode_tokens(step, 1);
      read_tokens(whole, lengths[i] + 1);
      expect_near(laprox_session_logits(step), laprox_session_logits(whole), types[t].tolerance);
      expect_near_queries(step, whole, types[t].tolerance);
      laprox_session_destroy(step);
      laprox_session_destroy(whole);
    }
}

static void test_chunk_lengths(void **state) {
  (void)state;
  static const struct {
    size_t n_tokens;
    uint32_t chunk;
    laprox_dtype dtype;
  } cases[] = {{70, 1, LAPROX_DTYPE_F32},    {151, 7, LAPROX_DTYPE_F32},  {151, 7, LAPROX_DTYPE_F16},
               {300, 64, LAPROX_DTYPE_F32},  {400, 64, LAPROX_DTYPE_F16}, {300, 4096, LAPROX_DTYPE_F32},
               {400, 256, LAPROX_DTYPE_F16}, {300, 129, LAPROX_DTYPE_F16}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const double tolerance = cases[i].dtype == LAPROX_DTYPE_F16 ? TOLERANCE_F16 : TOLERANCE_F32;
    const laprox_session_info whole_info = {.kv_dtype = cases[i].dtype, .chunk = 400},
                              info = {.kv_dtype = cases[i].dtype, .chunk = cases[i].chunk};
    laprox_session *whole = make_with(&whole_info), *chunked = make_with(&info);
    read_tokens(whole, cases[i].n_tokens);
    read_tokens(chunked, cases[i].n_tokens);
    expect_near(laprox_session_logits(chunked), laprox_session_logits(whole), tolerance);
    expect_near_queries(chunked, whole, tolerance);
    assert_int_equal(laprox_session_get_memory(chunked).kv_bytes, laprox_session_get_memory(whole).kv_bytes);
    laprox_session_destroy(whole);
    laprox_session_destroy(chunked);
  }
}

/* The logits of every prompt token are those that reading no further gives. */
static void test_short_prompts(void **state) {
  (void)state;
  static const uint32_t lengths[] = {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129};
  const laprox_session_info info = {.keep_logits = true, .kv_dtype = LAPROX_DTYPE_F32, .chunk = 50};
  laprox_session *all = make_with(&info);
  size_t count;
  assert_null(laprox_session_logits(all));
  read_tokens(all, 130);
  const float *logits = laprox_session_prompt_logits(all, &count);
  assert_int_equal(count, 130);
  expect_near(laprox_session_logits(all), logits + 129 * (size_t)rig.n_vocab, TOLERANCE_F32);
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    const laprox_session_info alone_info = {.kv_dtype = LAPROX_DTYPE_F32};
    laprox_session *alone = make_with(&alone_info);
    read_tokens(alone, lengths[i]);
    expect_near(laprox_session_logits(alone), logits + (lengths[i] - 1) * (size_t)rig.n_vocab, TOLERANCE_F32);
    const laprox_policy policy = {.budget.tokens = 33};
    laprox_eviction out;
    assert_int_equal(laprox_session_evict(alone, &policy, &out), LAPROX_OK);
    assert_int_equal(out.kept, N_HEADS * (lengths[i] < 33 ? lengths[i] : 33));
    assert_int_equal(count_kept(alone), out.kept);
    decode_tokens(alone, 1);
    laprox_session_destroy(alone);
  }
  laprox_session_destroy(all);
}

static void test_turns(void **state) {
  (void)state;
  static const size_t turns[] = {45, 1, 100, 33, 64, 7, 31, 19};
  const laprox_session_info info = {.kv_dtype = LAPROX_DTYPE_F32, .chunk = 40};
  laprox_session *session = make_with(&info);
  for (size_t i = 0; i < sizeof turns / sizeof *turns; i++) {
    read_tokens(session, turns[i]);
    if (i == 3) decode_tokens(session, 5);
    laprox_session *whole = make_with(&info);
    read_tokens(whole, laprox_session_n_tokens(session));
    expect_near(laprox_session_logits(session), laprox_session_logits(whole), TOLERANCE_F32);
    expect_near_queries(session, whole, TOLERANCE_F32);
    laprox_session_destroy(whole);
  }
  laprox_session_destroy(session);
}

/* Behind an eviction, a turn read at once and one read token by token are the same, and so is what is kept
 * then. */
static void test_turns_after_eviction(void **state) {
  (void)state;
  const laprox_session_info info = {.kv_dtype = LAPROX_DTYPE_F32, .chunk = 64};
  laprox_session *session = make_with(&info);
  read_tokens(session, 400);
  evict_to(session, 60);
  laprox_session *single = fork_of(session);
  static const size_t turns[] = {150, 33, 1, 70};
  for (size_t i = 0; i < sizeof turns / sizeof *turns; i++) {
    read_tokens(session, turns[i]);
    decode_tokens(single, turns[i]);
    expect_near(laprox_session_logits(session), laprox_session_logits(single), TOLERANCE_F32);
    expect_near_queries(session, single, TOLERANCE_F32);
    expect_same_kept(session, single);
    if (i != 1) continue;
    evict_to(session, 50);
    evict_to(single, 50);
    assert_int_equal(count_kept(session), N_HEADS * 50);
    assert_int_equal(count_kept(single), N_HEADS * 50);
    laprox_session_destroy(single); /* the two may differ where two scores are nearly the same */
    single = fork_of(session);
  }
  laprox_session_destroy(session);
  laprox_session_destroy(single);
}

/* ---- evictions ---- */

static void test_evictions_while_generating(void **state) {
  (void)state;
  laprox_session *session = make_at(300);
  const uint64_t full_bytes = laprox_session_get_memory(session).kv_bytes;
  for (uint32_t round = 0; round < 12; round++) {
    const uint32_t budget = 90 - 4 * round, n_tokens = laprox_session_n_tokens(session);
    evict_to(session, budget);
    assert_int_equal(count_kept(session), N_HEADS * budget);
    assert_int_equal(laprox_session_n_tokens(session), n_tokens);
    const laprox_session_memory memory = laprox_session_get_memory(session);
    assert_true(memory.kv_bytes < full_bytes / 2);
    assert_int_equal(memory.kv_full_bytes, (uint64_t)2 * N_HEADS * n_tokens * 64 * 2);
    assert_true(memory.kv_peak_bytes >= full_bytes);
    for (uint32_t i = 0; i < 1 + round; i++)
      assert_int_equal(laprox_session_decode(session, best_token(session)), LAPROX_OK);
    assert_int_equal(laprox_session_n_tokens(session), n_tokens + 1 + round);
    assert_int_equal(count_kept(session), N_HEADS * (budget + 1 + round));
  }
  laprox_session_destroy(session);
}

static void test_determinism(void **state) {
  (void)state;
  laprox_session *twins[2];
  for (int i = 0; i < 2; i++) {
    twins[i] = make_at(500);
    evict_to(twins[i], 70);
    decode_tokens(twins[i], 20);
    evict_to(twins[i], 60);
    read_tokens(twins[i], 100);
    const laprox_policy joint = {.gqa = LAPROX_GQA_JOINT, .budget.share = 0.1};
    evict(twins[i], &joint);
    decode_tokens(twins[i], 3);
  }
  expect_same_kept(twins[0], twins[1]);
  expect_same_logits(twins[0], twins[1]);
  laprox_session_destroy(twins[0]);
  laprox_session_destroy(twins[1]);
}

/* More queries kept than a policy looks at change nothing; fewer are an error. */
static void test_windows(void **state) {
  (void)state;
  laprox_session *usual = make_at(301);
  evict_to(usual, 50);
  for (uint32_t window = 16; window <= 256; window *= 4) {
    const laprox_session_info info = {.window = window};
    const laprox_policy policy = {.budget.tokens = 50};
    laprox_session *session = make_with(&info);
    read_tokens(session, 301);
    if (window < 32) {
      assert_int_equal(laprox_session_evict(session, &policy, NULL), LAPROX_ERROR_INVALID_ARGUMENT);
      assert_int_equal(count_kept(session), N_HEADS * 301);
    } else {
      evict(session, &policy);
      expect_same_kept(session, usual);
      decode_tokens(session, 1);
    }
    laprox_session_destroy(session);
  }
  laprox_session_destroy(usual);
}

static void *list_tensor(const char *path, uint32_t layer, const char *name, size_t *bytes) {
  char full[64];
  lpx_safetensors *file = NULL;
  const lpx_st_tensor *tensor = NULL;
  const laprox_host *host = &laprox_device_context(rig.gpu->device)->host;
  snprintf(full, sizeof full, "layers.%u.%s", layer, name);
  assert_int_equal(lpx_safetensors_open(host, path, &file), LAPROX_OK);
  assert_int_equal(lpx_safetensors_get(file, full, &tensor), LAPROX_OK);
  *bytes = (size_t)tensor->bytes;
  void *data = malloc(*bytes + 1);
  assert_non_null(data);
  assert_int_equal(lpx_safetensors_read_all(file, tensor, data), LAPROX_OK);
  lpx_safetensors_close(file);
  return data;
}

static void expect_same_lists(const char *left_path, const char *right_path) {
  static const char *const names[] = {"cu_seqlens", "indices"};
  for (uint32_t i = 0; i < 2 * N_LAYERS; i++) {
    size_t left_bytes, right_bytes;
    void *left = list_tensor(left_path, i / 2, names[i % 2], &left_bytes);
    void *right = list_tensor(right_path, i / 2, names[i % 2], &right_bytes);
    assert_int_equal(left_bytes, right_bytes);
    assert_memory_equal(left, right, left_bytes);
    free(left);
    free(right);
  }
}

static void test_capture(void **state) {
  (void)state;
  static const laprox_policy policies[] = {
      {.budget.share = 0.025},
      {.budget.share = 0.05},
      {.budget.share = 0.1},
      {.budget.share = 0.2},
      {.budget.share = 0.5},
      {.gqa = LAPROX_GQA_JOINT, .budget.share = 0.03},
      {.gqa = LAPROX_GQA_JOINT, .sinks = 4, .floor = 5, .budget.share = 0.25},
      {.kind = LAPROX_POLICY_SNAPKV, .budget.share = 0.05},
      {.kind = LAPROX_POLICY_SNAPKV, .scope = LAPROX_SCOPE_GLOBAL, .window = 20, .budget.share = 0.4},
  };
  laprox_session *session = make_at(900);
  decode_tokens(session, 45); /* a dense prefix and a tail */
  assert_int_equal(laprox_session_capture(session, CAPTURE), LAPROX_OK);
  for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
    const laprox_evict_file_info info = {.input = CAPTURE, .output = EVICTED, .policy = policies[i]};
    laprox_evict_file_report report;
    laprox_eviction out;
    laprox_session *fork = fork_of(session);
    assert_int_equal(laprox_session_evict(fork, &policies[i], &out), LAPROX_OK);
    assert_int_equal(laprox_session_dump_kept(fork, KEPT), LAPROX_OK);
    assert_int_equal(laprox_evict_file(rig.gpu->device, &info, &report), LAPROX_OK);
    assert_int_equal(report.n_tokens, 945);
    assert_int_equal(report.eviction.kept, out.kept);
    const double wanted = floor(policies[i].budget.share * 945 + 0.5);
    assert_int_equal(out.kept, N_HEADS * (uint64_t)fmax(wanted, 33));
    expect_same_lists(KEPT, EVICTED);
    laprox_evict_file_report_finish(rig.gpu->device, &report);
    assert_int_equal(laprox_session_capture(fork, CAPTURE), LAPROX_ERROR_INVALID_ARGUMENT); /* evicted */
    laprox_session_destroy(fork);
  }
  laprox_session_destroy(session);
}

/* ---- forks ---- */

static void test_fork(void **state) {
  (void)state;
  laprox_session *session = make_at(200), *twin = make_at(200), *fork = fork_of(session);
  expect_same_logits(session, fork);
  assert_int_equal(laprox_session_n_tokens(fork), 200);
  evict_to(fork, 40);
  decode_tokens(fork, 3);
  assert_int_equal(count_kept(session), N_HEADS * 200);
  expect_same_logits(session, twin);
  decode_tokens(session, 40); /* over the whole window, whose queries the fork has too */
  decode_tokens(twin, 40);
  expect_same_logits(session, twin);
  evict_to(session, 50);
  evict_to(twin, 50);
  expect_same_kept(session, twin);
  laprox_session_destroy(fork);
  decode_tokens(session, 1);
  decode_tokens(twin, 1);
  expect_same_logits(session, twin);
  laprox_session_destroy(session);
  laprox_session_destroy(twin);
}

/* A fork that outlives what it was made from, and whose own queries are not disturbed by it. */
static void test_fork_alone(void **state) {
  (void)state;
  for (int order = 0; order < 2; order++) {
    laprox_session *session = make_at(200), *twin = make_at(200), *fork = fork_of(session);
    decode_tokens(session, 20);
    if (order) laprox_session_destroy(session);
    decode_tokens(fork, 1);
    decode_tokens(twin, 1);
    expect_same_logits(fork, twin);
    expect_near_queries(fork, twin, 0);
    if (!order) laprox_session_destroy(session);
    laprox_session *grandchild = fork_of(fork);
    laprox_session_destroy(fork);
    evict_to(grandchild, 40);
    evict_to(twin, 40);
    expect_same_kept(grandchild, twin);
    read_tokens(grandchild, 70);
    read_tokens(twin, 70);
    expect_same_logits(grandchild, twin);
    laprox_session_destroy(grandchild);
    laprox_session_destroy(twin);
  }
  assert_int_equal(device_bytes(), rig.bytes);
}

/* ---- memory ---- */

static void test_memory(void **state) {
  (void)state;
  const uint64_t before = device_bytes();
  assert_int_equal(before, rig.bytes);
  laprox_session *session = make_at(2000);
  const uint64_t full = laprox_session_get_memory(session).kv_bytes, all = device_bytes();
  const laprox_policy streaming = {.kind = LAPROX_POLICY_STREAMING, .budget.share = 0.05};
  evict(session, &streaming);
  const uint64_t kept = laprox_session_get_memory(session).kv_bytes;
  assert_int_equal(all - device_bytes(), full - kept);
  decode_tokens(session, 0);
  assert_int_equal(laprox_session_decode(session, best_token(session)), LAPROX_OK);
  assert_true(laprox_session_get_memory(session).kv_bytes * 100 <= full * 7);
  laprox_session *fork = fork_of(session);
  evict_to(fork, 60); /* with value factors */
  laprox_session_destroy(session);
  laprox_session_destroy(fork);
  assert_int_equal(device_bytes(), before);
}

/* ---- the whole point ---- */

static bool answers_right(laprox_session *session, const char *answer) {
  char text[64] = "";
  size_t used = 0;
  for (int i = 0; i < 8; i++) {
    const uint32_t token = best_token(session);
    char *piece = NULL;
    size_t bytes;
    assert_int_equal(laprox_model_detokenize(rig.model, &token, 1, &piece, &bytes), LAPROX_OK);
    if (used + bytes < sizeof text) memcpy(text + used, piece, bytes + 1), used += bytes;
    laprox_model_release(rig.model, piece);
    assert_int_equal(laprox_session_decode(session, token), LAPROX_OK);
  }
  return strncmp(text + strspn(text, " "), answer, strlen(answer)) == 0;
}

static void ask(const char *prompt, const char *answer, unsigned n_right[2]) {
  static const laprox_policy policies[] = {{.kind = LAPROX_POLICY_LAPROX, .budget.share = 0.05},
                                           {.kind = LAPROX_POLICY_STREAMING, .budget.share = 0.05}};
  uint32_t *tokens = NULL;
  size_t n;
  laprox_session *session = make();
  assert_int_equal(laprox_model_tokenize(rig.model, prompt, strlen(prompt), true, &tokens, &n), LAPROX_OK);
  assert_int_equal(laprox_session_prefill(session, tokens, n), LAPROX_OK);
  for (size_t i = 0; i < 2; i++) {
    laprox_session *fork = fork_of(session);
    evict(fork, &policies[i]);
    n_right[i] += answers_right(fork, answer);
    laprox_session_destroy(fork);
  }
  laprox_model_release(rig.model, tokens);
  laprox_session_destroy(session);
}

/* One fact to be found, and not among what is read last. */
static bool suits(json_t *task) {
  const char *name = json_string_value(json_object_get(task, "task"));
  const json_t *first = json_array_get(json_array_get(json_object_get(task, "needle_pos"), 0), 0);
  assert_non_null(name);
  return strcmp(name, "multivalue") != 0 && json_integer_value(first) < 800;
}

/* With 5 % of the cache the answer is there; with the most recent 5 % it is gone. */
static void test_needles(void **state) {
  (void)state;
  char path[512];
  FILE *file = fopen(data_path(path, "prompts/needle_1024.jsonl"), "r");
  unsigned n_asked = 0, n_right[2] = {0};
  assert_non_null(file);
  while (n_asked < 4) {
    json_error_t error;
    json_t *task = json_loadf(file, JSON_DISABLE_EOF_CHECK, &error);
    assert_non_null(task);
    if (suits(task)) {
      ask(json_string_value(json_object_get(task, "prompt")),
          json_string_value(json_object_get(task, "answer")), n_right);
      n_asked++;
    }
    json_decref(task);
  }
  fclose(file);
  print_message("right of %u: laprox %u, streaming %u\n", n_asked, n_right[0], n_right[1]);
  assert_true(n_right[0] >= n_asked - 1);
  assert_int_equal(n_right[1], 0);
}

/* ---- all of them ---- */

static int tear_down(void **state) {
  remove(CAPTURE);
  remove(EVICTED);
  remove(KEPT);
  return reading_teardown(state);
}

/* A document without logits, then a continuation of which every token's are wanted: those that reading all with them
 * gives. */
static void test_keep_logits(void **state) {
  (void)state;
  const laprox_session_info info = {.keep_logits = true, .kv_dtype = LAPROX_DTYPE_F32};
  laprox_session *all = make_with(&info), *some = make_with(&info), *none = make();
  size_t count = 0;
  read_tokens(all, 110);
  assert_int_equal(laprox_session_keep_logits(some, false), LAPROX_OK);
  read_tokens(some, 100);
  (void)laprox_session_prompt_logits(some, &count);
  assert_int_equal(count, 0);
  laprox_session *fork = fork_of(some);
  assert_int_equal(laprox_session_keep_logits(fork, true), LAPROX_OK);
  read_tokens(fork, 10);
  const float *last = laprox_session_prompt_logits(fork, &count);
  assert_int_equal(count, 10);
  const float *whole = laprox_session_prompt_logits(all, &count);
  assert_int_equal(count, 110);
  for (size_t t = 0; t < 10; t++)
    expect_near(last + t * rig.n_vocab, whole + (100 + t) * rig.n_vocab, TOLERANCE_F32);
  assert_int_equal(laprox_session_keep_logits(none, true), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_non_null(strstr(rig.gpu->last_error, "keep_logits"));
  rig.gpu->n_errors = 0;
  laprox_session_destroy(all);
  laprox_session_destroy(some);
  laprox_session_destroy(none);
  laprox_session_destroy(fork);
}

/* All positions before an eviction; afterwards each head's own, the window and the tail among them. */
static void test_kept_positions(void **state) {
  (void)state;
  enum { N_READ = 200, N_MORE = 3 };
  laprox_session *session = make_at(N_READ);
  uint32_t counts[N_HEADS], positions[N_HEADS * (N_READ + N_MORE)];
  laprox_session_kept_positions(session, 1, positions);
  for (uint32_t i = 0; i < 2 * N_READ; i++) assert_int_equal(positions[i], i % N_READ);
  evict_to(session, 50);
  decode_tokens(session, N_MORE);
  laprox_session_kept_per_head(session, counts);
  for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
    const uint32_t *p = positions;
    laprox_session_kept_positions(session, layer, positions);
    for (uint32_t head = 2 * layer; head < 2 * layer + 2; p += counts[head++]) {
      for (uint32_t i = 1; i < counts[head]; i++) assert_true(p[i] > p[i - 1]);
      for (uint32_t i = 0; i < 32 + N_MORE; i++)
        assert_int_equal(p[counts[head] - 1 - i], N_READ + N_MORE - 1 - i);
    }
  }
  laprox_session_destroy(session);
}

/* Forks share what evictions need; one kind does not get in the other's way. */
static void test_kinds_in_turn(void **state) {
  (void)state;
  const laprox_policy policies[] = {{.budget.tokens = 60}, {.budget.tokens = 60, .gqa = LAPROX_GQA_JOINT}};
  laprox_session *alone[2], *document = make_at(300);
  for (int kind = 0; kind < 2; kind++) {
    alone[kind] = make_at(300);
    evict(alone[kind], &policies[kind]);
  }
  for (int i = 0; i < 4; i++) {
    laprox_session *fork = fork_of(document);
    evict(fork, &policies[i % 2]);
    expect_same_kept(fork, alone[i % 2]);
    laprox_session_destroy(fork);
  }
  laprox_session_destroy(alone[0]);
  laprox_session_destroy(alone[1]);
  laprox_session_destroy(document);
}

/* What depends on the weights alone is made once for a model, not again for every session. */
static void test_factors_stay(void **state) {
  (void)state;
  laprox_session *first = make_at(100), *second = make_at(100);
  evict_to(first, 50);
  float *const factors = rig.model->value_factors[0];
  assert_non_null(factors);
  evict_to(second, 50);
  assert_ptr_equal(rig.model->value_factors[0], factors);
  expect_same_kept(first, second);
  laprox_session_destroy(first);
  laprox_session_destroy(second);
}

int main(void) {
  static const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_factors_stay),
      cmocka_unit_test(test_decode_after_prefill),
      cmocka_unit_test(test_chunk_lengths),
      cmocka_unit_test(test_short_prompts),
      cmocka_unit_test(test_keep_logits),
      cmocka_unit_test(test_kept_positions),
      cmocka_unit_test(test_kinds_in_turn),
      cmocka_unit_test(test_turns),
      cmocka_unit_test(test_turns_after_eviction),
      cmocka_unit_test(test_evictions_while_generating),
      cmocka_unit_test(test_determinism),
      cmocka_unit_test(test_windows),
      cmocka_unit_test(test_capture),
      cmocka_unit_test(test_fork),
      cmocka_unit_test(test_fork_alone),
      cmocka_unit_test(test_memory),
      cmocka_unit_test(test_needles),
  };
  return cmocka_run_group_tests_name("session", tests, reading_setup, tear_down);
}
