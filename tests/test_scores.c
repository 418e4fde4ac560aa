/* test_scores.c: scores apart from budgets, on the shipped model: the sets of evictions that score themselves; probes
 * held against the f64 reference, and nothing of them left behind. */
#include "core/core.h"
#include "support/capture.h"
#include "support/reading.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CAPTURE "test_scores_capture.safetensors"

enum { N = 300, PROBE = 24 };

static laprox_scores *score_with(laprox_session *session, const laprox_score_info *info) {
  laprox_scores *scores = NULL;
  assert_int_equal(laprox_session_score(session, info, &scores), LAPROX_OK);
  assert_non_null(scores);
  return scores;
}

/* ---- budgets ---- */

static const laprox_policy policies[] = {
    {0},
    {.gqa = LAPROX_GQA_JOINT, .floor = 2},
    {.scope = LAPROX_SCOPE_HEAD, .sinks = 3, .window = 20},
    {.kind = LAPROX_POLICY_SNAPKV, .scope = LAPROX_SCOPE_GLOBAL},
    {.kind = LAPROX_POLICY_ADAKV},
    {.kind = LAPROX_POLICY_PYRAMIDKV},
    {.kind = LAPROX_POLICY_CRITICALKV},
    {.kind = LAPROX_POLICY_CRITICALKV, .scope = LAPROX_SCOPE_LAYER},
    {.kind = LAPROX_POLICY_VATP},
    {.kind = LAPROX_POLICY_KEYDIFF},
    {.kind = LAPROX_POLICY_STREAMING},
    {.kind = LAPROX_POLICY_RANDOM, .seed = 5},
    /* of equal heads only */
    {.kind = LAPROX_POLICY_TOVA},
    {.kind = LAPROX_POLICY_DEFENSIVEKV},
    {.kind = LAPROX_POLICY_LAYER_DEFENSIVEKV},
};
enum { N_POLICIES = sizeof policies / sizeof *policies, N_FOR_ANY = N_POLICIES - 3 };

/* One scoring for all budgets that it serves: as if each had been scored on its own. */
static void expect_budgets(laprox_session *session, const laprox_policy *policy) {
  static const uint32_t budgets[] = {250, 120, 60, 40, 37, 1000};
  laprox_score_info info = {.policy = *policy};
  laprox_scores *scores = score_with(session, &info);
  for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
    const laprox_budget budget = {.tokens = budgets[i]};
    laprox_session *direct = fork_of(session), *scored = fork_of(session);
    laprox_eviction one, other;
    info.policy.budget = budget;
    const bool serves = laprox_scores_serve(scores, &budget);
    if (policy->kind != LAPROX_POLICY_VATP && policy->kind != LAPROX_POLICY_STREAMING) assert_true(serves);
    if (!serves) {
      if (budgets[i] < 250)
        assert_int_equal(laprox_session_evict_scored(scored, scores, &budget, NULL),
                         LAPROX_ERROR_INVALID_ARGUMENT);
      laprox_scores_destroy(scores);
      scores = score_with(session, &info);
    }
    assert_int_equal(laprox_session_evict(direct, &info.policy, &one), LAPROX_OK);
    assert_int_equal(laprox_session_evict_scored(scored, scores, &budget, &other), LAPROX_OK);
    assert_int_equal(one.kept, other.kept);
    assert_int_equal(one.bytes_after, other.bytes_after);
    assert_int_equal(laprox_session_get_memory(direct).kv_bytes, laprox_session_get_memory(scored).kv_bytes);
    expect_same_kept(direct, scored);
    decode_tokens(direct, 1);
    decode_tokens(scored, 1);
    expect_same_logits(direct, scored);
    laprox_session_destroy(direct);
    laprox_session_destroy(scored);
  }
  laprox_scores_destroy(scores);
}

static void test_budgets(void **state) {
  (void)state;
  laprox_session *session = make_at(N);
  for (size_t i = 0; i < N_POLICIES; i++) expect_budgets(session, &policies[i]);
  laprox_session_destroy(session);
}

/* A ragged prefix and a tail. */
static void test_budgets_again(void **state) {
  (void)state;
  laprox_session *session = make_at(N);
  evict_to(session, 90);
  read_tokens(session, 60);
  for (size_t i = 0; i < N_FOR_ANY; i += 3) expect_budgets(session, &policies[i]);
  laprox_session_destroy(session);
}

/* A text no longer than the window is kept as a whole, scored or not. */
static void test_short_text(void **state) {
  (void)state;
  const laprox_budget half = {.share = 0.5};
  const laprox_score_info info = {0};
  laprox_session *session = make_at(20);
  laprox_scores *scores = score_with(session, &info);
  laprox_eviction out;
  assert_true(laprox_scores_serve(scores, &half));
  assert_int_equal(laprox_session_evict_scored(session, scores, &half, &out), LAPROX_OK);
  assert_int_equal(count_kept(session), 20 * N_HEADS);
  laprox_scores_destroy(scores);
  laprox_session_destroy(session);
}

/* ---- probes ---- */

/* A session of half precision as the reference's cache. */
static void read_session(laprox_session *session, capture_cache *out) {
  laprox_model_description about;
  laprox_model_describe(rig.model, &about);
  const capture_options options = {.shape = about.shape,
                                   .n_tokens = (uint32_t)laprox_session_n_tokens(session),
                                   .window = PROBE,
                                   .model_dim = about.model_dim,
                                   .dtype = LAPROX_DTYPE_F16};
  assert_int_equal(laprox_session_capture(session, CAPTURE), LAPROX_OK);
  capture_init(out, &options);
  assert_int_equal(capture_read(out, &session->context->host, CAPTURE), LAPROX_OK);
}

/* The document and a probe behind it. */
static void read_probed(const uint32_t *probe, capture_cache *out) {
  const laprox_session_info info = {.window = PROBE};
  laprox_session *session = make_with(&info);
  read_tokens(session, N);
  assert_int_equal(laprox_session_prefill(session, probe, PROBE), LAPROX_OK);
  read_session(session, out);
  laprox_session_destroy(session);
}

/* What is kept of the document, and the probe, which the reference's window is. */
static ref_kept kept_with_probe(const laprox_session *session) {
  uint32_t counts[N_HEADS], positions[N_HEADS * N];
  ref_kept kept = {.n_heads = N_HEADS, .offsets = calloc(N_HEADS + 1, sizeof *kept.offsets)};
  kept.entries = calloc((size_t)N_HEADS * (N + PROBE), sizeof *kept.entries);
  assert_true(kept.offsets && kept.entries);
  laprox_session_kept_per_head(session, counts);
  size_t n = 0;
  for (uint32_t l = 0, head = 0; l < N_LAYERS; l++) {
    const uint32_t *from = positions;
    laprox_session_kept_positions(session, l, positions);
    for (uint32_t g = 0; g < N_HEADS / N_LAYERS; g++, head++) {
      for (uint32_t i = 0; i < counts[head]; i++) {
        assert_true(*from < N);
        kept.entries[n++] = *from++;
      }
      for (uint32_t i = 0; i < PROBE; i++) kept.entries[n++] = N + i;
      kept.offsets[head + 1] = n;
    }
  }
  return kept;
}

/* The probes' own scores, averaged or maximised. */
static void combine_scores(const capture_cache *worlds, size_t n, const ref_rules *rules,
                           laprox_combine combine, ref_scores *out) {
  ref_score(&worlds[0].cache, rules, out);
  for (size_t w = 1; w < n; w++) {
    ref_scores more;
    ref_score(&worlds[w].cache, rules, &more);
    for (size_t i = 0; i < out->offsets[N_HEADS]; i++)
      if (combine != LAPROX_COMBINE_MAX)
        out->values[i] += more.values[i];
      else if (more.values[i] > out->values[i])
        out->values[i] = more.values[i];
    ref_scores_finish(&more);
  }
}

static void expect_probed(laprox_session *session, const laprox_score_info *info,
                          const capture_cache *worlds) {
  static const uint32_t budgets[] = {5, 40, 120};
  char message[REF_MESSAGE_BYTES];
  laprox_policy policy = info->policy;
  laprox_scores *scores = score_with(session, info);
  ref_scores truth;
  policy.window = PROBE;
  ref_rules rules = ref_rules_decide(&policy);
  combine_scores(worlds, info->n_probes, &rules, info->combine, &truth);
  for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
    const laprox_budget budget = {.tokens = budgets[i]};
    laprox_session *evicted = fork_of(session);
    laprox_eviction out;
    assert_true(laprox_scores_serve(scores, &budget));
    assert_int_equal(laprox_session_evict_scored(evicted, scores, &budget, &out), LAPROX_OK);
    assert_int_equal(out.kept, budgets[i] * N_HEADS);
    assert_int_equal(count_kept(evicted), out.kept);
    assert_int_equal(laprox_session_n_tokens(evicted), N);
    ref_kept kept = kept_with_probe(evicted);
    const char *complaint = ref_check_kept(&truth, &rules, budgets[i] + PROBE, 1e-3, &kept, NULL, message);
    if (complaint) fail_msg("budget %u: %s", budgets[i], complaint);
    ref_kept_finish(&kept);
    laprox_session_destroy(evicted);
  }
  ref_scores_finish(&truth);
  laprox_scores_destroy(scores);
}

static void test_probes(void **state) {
  (void)state;
  static const laprox_policy tried[] = {{0},
                                        {.gqa = LAPROX_GQA_JOINT, .sinks = 2},
                                        {.kind = LAPROX_POLICY_SNAPKV},
                                        {.kind = LAPROX_POLICY_TOVA}};
  capture_cache worlds[2];
  const laprox_probe probes[] = {{rig.tokens + 500, PROBE}, {rig.tokens + 900, PROBE}};
  for (int i = 0; i < 2; i++) read_probed(probes[i].tokens, &worlds[i]);
  laprox_session *session = make_at(N);
  for (size_t i = 0; i < sizeof tried / sizeof *tried; i++) {
    laprox_score_info info = {.policy = tried[i], .probes = probes, .n_probes = 1};
    expect_probed(session, &info, worlds);
    info.n_probes = 2;
    expect_probed(session, &info, worlds);
    info.combine = LAPROX_COMBINE_MAX;
    expect_probed(session, &info, worlds);
  }
  laprox_session_destroy(session);
  for (int i = 0; i < 2; i++) capture_finish(&worlds[i]);
}

/* Whether scores of a probe serve a budget is whether an eviction to it takes them; none of the budget is a window's. */
static void test_probed_sinks(void **state) {
  (void)state;
  static const uint32_t budgets[] = {5, 24, 36, 60, 70, 120};
  const laprox_probe probe = {rig.tokens + 500, PROBE};
  laprox_score_info info = {.policy.kind = LAPROX_POLICY_VATP, .probes = &probe, .n_probes = 1};
  laprox_session *session = make_at(N);
  for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
    info.policy.budget.tokens = budgets[i];
    laprox_scores *scores = score_with(session, &info);
    assert_true(laprox_scores_serve(scores, &info.policy.budget));
    for (size_t j = 0; j < sizeof budgets / sizeof *budgets; j++) {
      const laprox_budget budget = {.tokens = budgets[j]};
      laprox_session *evicted = fork_of(session);
      assert_int_equal(laprox_session_evict_scored(evicted, scores, &budget, NULL),
                       laprox_scores_serve(scores, &budget) ? LAPROX_OK : LAPROX_ERROR_INVALID_ARGUMENT);
      laprox_session_destroy(evicted);
    }
    laprox_scores_destroy(scores);
  }
  laprox_session_destroy(session);
}

/* K, V, queries and logits are those of a session that never was probed, and so is its memory. */
static void test_nothing_left(void **state) {
  (void)state;
  const laprox_probe probes[] = {{rig.tokens + 500, PROBE}, {rig.tokens + 700, 7}};
  const laprox_score_info info = {.probes = probes, .n_probes = 2};
  laprox_session *session = make_at(N), *untouched = fork_of(session);
  laprox_scores *scores = score_with(session, &info); /* makes the value factors, which stay */
  laprox_scores_destroy(scores);
  const uint64_t bytes = device_bytes();
  scores = score_with(session, &info);
  laprox_scores_destroy(scores);
  assert_int_equal(device_bytes(), bytes);
  for (int turn = 0; turn < 3; turn++) {
    assert_int_equal(laprox_session_n_tokens(session), laprox_session_n_tokens(untouched));
    assert_int_equal(laprox_session_get_memory(session).kv_bytes,
                     laprox_session_get_memory(untouched).kv_bytes);
    expect_same_logits(session, untouched);
    expect_near_queries(session, untouched, 0);
    expect_same_kept(session, untouched);
    if (turn == 0) {
      evict_to(session, 80);
      evict_to(untouched, 80);
    } else {
      read_tokens(session, 40);
      read_tokens(untouched, 40);
      scores = score_with(session, &info);
      laprox_scores_destroy(scores);
    }
  }
  laprox_session_destroy(session);
  laprox_session_destroy(untouched);
}

/* A failure somewhere in the middle leaves the session as it was, too. */
static void test_context_full(void **state) {
  (void)state;
  laprox_model_description about;
  laprox_model_describe(rig.model, &about);
  const laprox_probe probe = {rig.tokens, PROBE};
  const laprox_score_info info = {.probes = &probe, .n_probes = 1};
  laprox_scores *scores = NULL;
  laprox_session *session = make();
  uint32_t *tokens = malloc(about.context_length * sizeof *tokens);
  assert_non_null(tokens);
  for (uint32_t i = 0; i < about.context_length; i++) tokens[i] = rig.tokens[i % rig.n_tokens];
  assert_int_equal(laprox_session_prefill(session, tokens, about.context_length - PROBE + 1), LAPROX_OK);
  laprox_session *untouched = fork_of(session);
  assert_int_equal(laprox_session_score(session, &info, &scores), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_null(scores);
  expect_same_logits(session, untouched);
  expect_near_queries(session, untouched, 0);
  evict_to(session, 60);
  evict_to(untouched, 60);
  expect_same_kept(session, untouched);
  laprox_session_destroy(session);
  laprox_session_destroy(untouched);
  free(tokens);
}

static void test_refusals(void **state) {
  (void)state;
  const laprox_probe probe = {rig.tokens, PROBE}, longer = {rig.tokens, 33}, none = {rig.tokens, 0};
  const laprox_score_info cases[] = {
      {.probes = &longer, .n_probes = 1},
      {.probes = &none, .n_probes = 1},
      {.policy.window = 16, .probes = &probe, .n_probes = 1},
      {.policy.kind = LAPROX_POLICY_KNORM, .probes = &probe, .n_probes = 1},
      {.policy.kind = LAPROX_POLICY_STREAMING, .probes = &probe, .n_probes = 1},
      {.policy.kind = LAPROX_POLICY_KNORM, .policy.pool_width = 3}};
  laprox_session *session = make_at(N);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    laprox_scores *scores = NULL;
    assert_int_equal(laprox_session_score(session, &cases[i], &scores), LAPROX_ERROR_INVALID_ARGUMENT);
    assert_null(scores);
  }
  const laprox_score_info info = {0};
  laprox_scores *scores = score_with(session, &info);
  read_tokens(session, 1);
  assert_int_equal(laprox_session_evict_scored(session, scores, &(laprox_budget){.tokens = 50}, NULL),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  laprox_scores_destroy(scores);
  laprox_scores_destroy(NULL);
  laprox_session_destroy(session);
}

/* ---- what is lost ---- */

/* By the reference's attention over the whole cache. */
static laprox_attention_error expected_error(const capture_cache *world, const laprox_session *evicted,
                                             uint32_t layer) {
  const ref_layer *from = &world->ref_layers[layer];
  const laprox_shape *shape = &world->cache.shape;
  const size_t d = shape->head_dim, width = shape->n_heads * d, group = shape->n_heads / shape->n_kv_heads;
  const ref_rules rules = {.window = PROBE};
  static double attention[PROBE * N], difference[PROBE * 256], output[PROBE * 256];
  uint32_t counts[N_HEADS], positions[N_HEADS * N];
  laprox_attention_error out = {0};
  assert_true(width <= 256);
  memset(difference, 0, sizeof difference);
  memset(output, 0, sizeof output);
  laprox_session_kept_per_head(evicted, counts);
  laprox_session_kept_positions(evicted, layer, positions);
  for (size_t h = 0; h < shape->n_heads; h++) {
    const size_t g = h / group;
    const uint32_t *own = positions;
    for (size_t before = 0; before < g; before++) own += counts[layer * shape->n_kv_heads + before];
    const uint32_t n = counts[layer * shape->n_kv_heads + g];
    ref_attention(&world->cache, &rules, layer, (uint32_t)h, attention);
    for (size_t t = 0; t < PROBE; t++) {
      double left = 0;
      for (uint32_t i = 0; i < n; i++) left += attention[t * N + own[i]];
      out.mass += left / (PROBE * shape->n_heads);
      for (size_t x = 0; x < d; x++) {
        double *to = &output[t * width + h * d + x], some = 0;
        for (size_t i = 0; i < N; i++) *to += attention[t * N + i] * (double)from->heads[g].value[i * d + x];
        for (uint32_t i = 0; i < n; i++)
          some += attention[t * N + own[i]] / left * (double)from->heads[g].value[own[i] * d + x];
        difference[t * width + h * d + x] = some - *to;
      }
    }
  }
  double error = 0, norm = 0;
  for (size_t t = 0; t < PROBE; t++)
    for (size_t row = 0; row < world->cache.model_dim; row++) {
      double one = 0, all = 0;
      for (size_t i = 0; i < width; i++) {
        one += (double)from->output_weight[row * width + i] * difference[t * width + i];
        all += (double)from->output_weight[row * width + i] * output[t * width + i];
      }
      error += one * one;
      norm += all * all;
    }
  out.output = sqrt(error / norm);
  return out;
}

static void test_compare(void **state) {
  (void)state;
  const laprox_session_info info = {.window = PROBE};
  laprox_session *session = make_with(&info), *evicted, *other;
  laprox_attention_error layers[N_LAYERS];
  capture_cache world;
  read_tokens(session, N - 60);
  evicted = fork_of(session);
  const laprox_policy policy = {.budget.tokens = 50, .window = PROBE};
  evict(evicted, &policy);
  other = fork_of(evicted);
  read_tokens(evicted, 60);
  assert_int_equal(laprox_session_compare(session, other, layers), LAPROX_OK);
  decode_tokens(session, 60); /* the full cache in two pieces */
  read_session(session, &world);
  assert_int_equal(laprox_session_compare(session, session, layers), LAPROX_OK);
  for (uint32_t l = 0; l < N_LAYERS; l++) assert_true(layers[l].mass == 1 && layers[l].output == 0);
  assert_int_equal(laprox_session_compare(session, evicted, layers), LAPROX_OK);
  for (uint32_t l = 0; l < N_LAYERS; l++) {
    const laprox_attention_error expected = expected_error(&world, evicted, l);
    assert_true(expected.mass < 0.999 && expected.output > 1e-3);
    assert_true(fabs(layers[l].mass - expected.mass) < 1e-6);
    assert_true(fabs(layers[l].output - expected.output) < 1e-5 * expected.output);
  }
  assert_int_equal(laprox_session_compare(evicted, session, layers), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(laprox_session_compare(session, other, layers), LAPROX_ERROR_INVALID_ARGUMENT);
  laprox_session_destroy(session);
  laprox_session_destroy(evicted);
  laprox_session_destroy(other);
  capture_finish(&world);
}

static int finish(void **state) {
  remove(CAPTURE);
  return reading_teardown(state);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_budgets),      cmocka_unit_test(test_budgets_again),
      cmocka_unit_test(test_short_text),   cmocka_unit_test(test_probes),
      cmocka_unit_test(test_probed_sinks), cmocka_unit_test(test_nothing_left),
      cmocka_unit_test(test_context_full), cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_compare),
  };
  return cmocka_run_group_tests(tests, reading_setup, finish);
}
