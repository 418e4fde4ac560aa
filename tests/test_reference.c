/* test_reference.c: the truth itself, against numbers worked out by hand, identities and brute force. */
#include "io/safetensors.h"
#include "reference/reference.h"
#include "support/capture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX_HEADS   4
#define MAX_ENTRIES 16

/* ---- tiny caches with head_dim 1 and model_dim 1, where everything can be done by hand ---- */

typedef struct tiny_cache {
  float query[8], weight[4], key[MAX_ENTRIES], value[MAX_ENTRIES];
  ref_head head;
  ref_layer layer;
  ref_cache cache;
} tiny_cache;

/* One layer, one KV head, n_heads query heads, all queries 0: attention is uniform over what is visible. */
static void tiny_init(tiny_cache *tiny, uint32_t n_heads, uint32_t n_entries, uint32_t window) {
  memset(tiny, 0, sizeof *tiny);
  tiny->head = (ref_head){n_entries, tiny->key, tiny->value};
  tiny->layer = (ref_layer){tiny->query, tiny->weight, &tiny->head};
  tiny->cache = (ref_cache){{1, n_heads, 1, 1}, 1, window, 1, &tiny->layer, NULL};
  for (int i = 0; i < 4; i++) tiny->weight[i] = 1;
  for (int i = 0; i < MAX_ENTRIES; i++) tiny->value[i] = 1;
}

static laprox_policy plain_policy(laprox_policy_kind kind, uint32_t window) {
  return (laprox_policy){.kind = kind, .window = window, .pool_width = 1, .normalize = LAPROX_SWITCH_OFF};
}

static void expect_scores(const ref_cache *cache, const laprox_policy *policy, const double *expected,
                          size_t n) {
  ref_rules rules = ref_rules_decide(policy);
  ref_scores scores;
  ref_score(cache, &rules, &scores);
  assert_int_equal(scores.offsets[cache->shape.n_layers * cache->shape.n_kv_heads], n);
  for (size_t i = 0; i < n; i++)
    if (fabs(scores.values[i] - expected[i]) > 1e-12)
      fail_msg("score %zu is %.15g, should be %.15g", i, scores.values[i], expected[i]);
  ref_scores_finish(&scores);
}

static void test_two_tokens(void **state) {
  laprox_policy policy = plain_policy(LAPROX_POLICY_LAPROX, 1);
  tiny_cache tiny;
  (void)state;
  tiny_init(&tiny, 1, 2, 1);
  tiny.value[0] = -3;
  tiny.weight[0] = 2;
  expect_scores(&tiny.cache, &policy, (double[]){3}, 1); /* 1/2 · |-3 · 2| */
  tiny.query[0] = 1;
  tiny.key[0] = (float)log(3);
  expect_scores(&tiny.cache, &policy, (double[]){6 / (1 + exp(-(double)tiny.key[0]))}, 1);
  tiny.cache.scale = 2;
  expect_scores(&tiny.cache, &policy, (double[]){6 / (1 + exp(-2 * (double)tiny.key[0]))}, 1);
}

static void test_causal_window(void **state) {
  laprox_policy laprox = plain_policy(LAPROX_POLICY_LAPROX, 2),
                snapkv = plain_policy(LAPROX_POLICY_SNAPKV, 2);
  tiny_cache tiny;
  (void)state;
  tiny_init(&tiny, 1, 3, 2);
  /* query 0 sees two entries, query 1 all three */
  expect_scores(&tiny.cache, &laprox, (double[]){sqrt(1 / 4.0 + 1 / 9.0)}, 1);
  expect_scores(&tiny.cache, &snapkv, (double[]){5 / 6.0}, 1);
}

static void test_last_queries_count(void **state) {
  laprox_policy policy = plain_policy(LAPROX_POLICY_LAPROX, 1);
  tiny_cache tiny;
  (void)state;
  tiny_init(&tiny, 1, 3, 2); /* the capture holds two queries, the policy's window is one */
  tiny.query[0] = 100;
  tiny.key[0] = 1;
  expect_scores(&tiny.cache, &policy, (double[]){1 / 3.0, 1 / 3.0}, 2);
}

static void test_groups(void **state) {
  laprox_policy policy = plain_policy(LAPROX_POLICY_LAPROX, 1);
  tiny_cache tiny;
  (void)state;
  tiny_init(&tiny, 2, 2, 1);
  /* head 0 attends 1/2, head 1 sigmoid(2) */
  double a = 0.5, b = 1 / (1 + exp(-2));
  tiny.query[1] = 2;
  tiny.key[0] = 1;
  tiny.weight[0] = 3;
  tiny.weight[1] = -1;
  expect_scores(&tiny.cache, &policy, (double[]){(3 * a + b) / 2}, 1);
  policy.gqa = LAPROX_GQA_JOINT;
  expect_scores(&tiny.cache, &policy, (double[]){fabs(3 * a - b)}, 1);
  policy.gqa = LAPROX_GQA_ATTENTION_MEAN;
  expect_scores(&tiny.cache, &policy, (double[]){(a + b) / 2 * 2}, 1);
  policy = plain_policy(LAPROX_POLICY_SNAPKV, 1);
  expect_scores(&tiny.cache, &policy, (double[]){(a + b) / 2}, 1);
}

static void test_pooling(void **state) {
  laprox_policy policy = plain_policy(LAPROX_POLICY_LAPROX, 1);
  tiny_cache tiny;
  (void)state;
  tiny_init(&tiny, 1, 5, 1);
  for (int i = 0; i < 4; i++) tiny.value[i] = (float)(5 * (i + 1)); /* raw scores 1 2 3 4 */
  policy.pool_width = 3;
  expect_scores(&tiny.cache, &policy, (double[]){1, 2, 3, 7 / 3.0}, 4);
  policy.sinks = 1;
  expect_scores(&tiny.cache, &policy, (double[]){0, 5 / 3.0, 3, 7 / 3.0}, 4);
  policy.normalize = LAPROX_SWITCH_ON;
  expect_scores(&tiny.cache, &policy, (double[]){0, 5 / 21.0, 9 / 21.0, 7 / 21.0}, 4);
  policy.pool = LAPROX_POOL_MAX;
  expect_scores(&tiny.cache, &policy, (double[]){0, 3 / 11.0, 4 / 11.0, 4 / 11.0}, 4);
  uint32_t sinks[1] = {2};
  tiny.cache.head_sinks = sinks;
  expect_scores(&tiny.cache, &policy, (double[]){0, 0, 0.5, 0.5}, 4);
  policy = plain_policy(LAPROX_POLICY_LAPROX, 1);
  policy.pool_width = 0; /* 7 */
  tiny.cache.head_sinks = NULL;
  expect_scores(&tiny.cache, &policy, (double[]){10 / 7.0, 10 / 7.0, 10 / 7.0, 10 / 7.0}, 4);
}

static void test_streaming_and_random(void **state) {
  laprox_policy policy = {.kind = LAPROX_POLICY_STREAMING, .window = 1};
  tiny_cache tiny;
  (void)state;
  tiny_init(&tiny, 1, 7, 1);
  expect_scores(&tiny.cache, &policy, (double[]){0, 0, 0, 0, 5, 6}, 6); /* four sinks */
  policy = (laprox_policy){.kind = LAPROX_POLICY_RANDOM, .window = 1, .seed = 7};
  ref_rules rules = ref_rules_decide(&policy);
  ref_scores scores;
  ref_score(&tiny.cache, &rules, &scores);
  /* worked out in another language */
  const double golden[3] = {5173577, 1879779, 10861986};
  for (int i = 0; i < 3; i++) assert_true(scores.values[i] * 16777216 == golden[i]);
  ref_scores_finish(&scores);
}

/* ---- values that are no numbers ---- */

static void test_nonfinite_value(void **state) {
  laprox_policy policy = plain_policy(LAPROX_POLICY_LAPROX, 1);
  ref_rules rules = ref_rules_decide(&policy);
  ref_scores scores;
  tiny_cache tiny;
  (void)state;
  tiny_init(&tiny, 1, 5, 1);
  tiny.value[1] = NAN;
  tiny.value[2] = -INFINITY;
  ref_score(&tiny.cache, &rules, &scores);
  assert_int_equal(scores.n_nonfinite[0], 2);
  ref_scores_finish(&scores);
  expect_scores(&tiny.cache, &policy, (double[]){0.2, 0, 0, 0.2}, 4);
  policy.pool_width = 3;
  policy.normalize = LAPROX_SWITCH_ON;
  expect_scores(&tiny.cache, &policy, (double[]){0.25, 0.25, 0.25, 0.25}, 4);
}

static void test_nonfinite_key(void **state) {
  capture_options options = {{2, 4, 2, 8},    21, 4, 0, LAPROX_DTYPE_F32, 0, CAPTURE_GAUSSIAN,
                             CAPTURE_NAN_KEY, 3};
  laprox_policy policy = {.window = 4};
  ref_rules rules = ref_rules_decide(&policy);
  ref_scores scores;
  capture_cache capture;
  (void)state;
  capture_init(&capture, &options);
  ref_score(&capture.cache, &rules, &scores);
  assert_int_equal(scores.n_nonfinite[0], 0);
  assert_int_equal(scores.n_nonfinite[1], 17); /* the whole head */
  for (size_t i = scores.offsets[3]; i < scores.offsets[4]; i++) assert_true(scores.values[i] == 0);
  for (size_t i = scores.offsets[0]; i < scores.offsets[3]; i++) assert_true(scores.values[i] > 0);
  ref_scores_finish(&scores);
  capture_finish(&capture);
}

/* ---- identities on larger caches ---- */

static void raw_scores(const ref_cache *cache, laprox_gqa gqa, uint32_t window, ref_scores *scores) {
  laprox_policy policy = plain_policy(LAPROX_POLICY_LAPROX, window);
  policy.gqa = gqa;
  ref_rules rules = ref_rules_decide(&policy);
  ref_score(cache, &rules, scores);
}

static void expect_same_scores(const ref_cache *cache, laprox_gqa a, laprox_gqa b, uint32_t window,
                               double factor) {
  ref_scores left, right;
  raw_scores(cache, a, window, &left);
  raw_scores(cache, b, window, &right);
  size_t n = left.offsets[(size_t)cache->shape.n_layers * cache->shape.n_kv_heads];
  assert_true(n > 0);
  for (size_t i = 0; i < n; i++)
    assert_true(fabs(factor * left.values[i] - right.values[i]) <= 1e-12 * right.values[i]);
  ref_scores_finish(&left);
  ref_scores_finish(&right);
}

static void test_group_identities(void **state) {
  capture_options single = {{2, 3, 3, 8}, 40, 5, 0, LAPROX_DTYPE_F32, 0, CAPTURE_NEEDLES, 0, 11};
  capture_options equal = {{1, 4, 1, 8}, 40, 5, 0, LAPROX_DTYPE_F32, 0, CAPTURE_EQUAL, 0, 12};
  capture_cache capture;
  (void)state;
  capture_init(&capture, &single);
  expect_same_scores(&capture.cache, LAPROX_GQA_JOINT, LAPROX_GQA_MEAN, 5, 1);
  expect_same_scores(&capture.cache, LAPROX_GQA_ATTENTION_MEAN, LAPROX_GQA_MEAN, 5, 1);
  capture_finish(&capture);
  capture_init(&capture, &equal); /* four times the same head: joint is four times the mean */
  expect_same_scores(&capture.cache, LAPROX_GQA_MEAN, LAPROX_GQA_JOINT, 5, 4);
  expect_same_scores(&capture.cache, LAPROX_GQA_ATTENTION_MEAN, LAPROX_GQA_MEAN, 5, 1);
  capture_finish(&capture);
}

/* v_a W_a W_bᵀ v_bᵀ by the d x d product of the weights. */
static double gram_form(const ref_cache *cache, const float *value, size_t a, size_t b) {
  size_t d = cache->shape.head_dim, columns = cache->shape.n_heads * d;
  double sum = 0;
  for (size_t x = 0; x < d; x++)
    for (size_t y = 0; y < d; y++) {
      double gram = 0;
      for (size_t m = 0; m < cache->model_dim; m++) {
        const float *row = cache->layers[0].output_weight + m * columns;
        gram += (double)row[a * d + x] * (double)row[b * d + y];
      }
      sum += (double)value[x] * gram * (double)value[y];
    }
  return sum;
}

static void test_gram(void **state) {
  capture_options options = {{1, 3, 1, 12}, 20, 4, 7, LAPROX_DTYPE_BF16, 0, CAPTURE_GAUSSIAN, 0, 21};
  capture_cache capture;
  double norms[3][20], attention[3][4 * 20];
  (void)state;
  capture_init(&capture, &options); /* head_dim over model_dim: the Gram matrix is singular */
  laprox_policy policy = plain_policy(LAPROX_POLICY_LAPROX, 4);
  ref_rules rules = ref_rules_decide(&policy);
  ref_scores joint;
  raw_scores(&capture.cache, LAPROX_GQA_JOINT, 4, &joint);
  for (uint32_t h = 0; h < 3; h++) {
    ref_value_norms(&capture.cache, 0, h, norms[h]);
    ref_attention(&capture.cache, &rules, 0, h, attention[h]);
  }
  for (size_t i = 0; i < 16; i++) {
    const float *value = capture.ref_heads[0].value + i * 12;
    double square = 0;
    for (size_t a = 0; a < 3; a++) {
      assert_true(fabs(norms[a][i] - sqrt(gram_form(&capture.cache, value, a, a))) < 1e-10);
      for (size_t b = 0; b < 3; b++) {
        double inner = 0;
        for (size_t t = 0; t < 4; t++) inner += attention[a][t * 20 + i] * attention[b][t * 20 + i];
        square += inner * gram_form(&capture.cache, value, a, b);
      }
    }
    assert_true(fabs(sqrt(square) - joint.values[i]) < 1e-10);
  }
  ref_scores_finish(&joint);
  capture_finish(&capture);
}

static void test_attention_rows(void **state) {
  capture_options options = {{1, 2, 1, 16}, 30, 6, 0, LAPROX_DTYPE_F16, 0.4, CAPTURE_NEEDLES, 0, 5};
  laprox_policy policy = {.window = 6};
  ref_rules rules = ref_rules_decide(&policy);
  capture_cache capture;
  double attention[6 * 30];
  (void)state;
  capture_init(&capture, &options);
  ref_attention(&capture.cache, &rules, 0, 1, attention);
  for (size_t t = 0; t < 6; t++) {
    double sum = 0;
    for (size_t i = 0; i < 30; i++) {
      sum += attention[t * 30 + i];
      assert_true(i <= 24 + t ? attention[t * 30 + i] > 0 : attention[t * 30 + i] == 0);
    }
    assert_true(fabs(sum - 1) < 1e-12);
  }
  capture_finish(&capture);
}

/* A ragged cache scores like dense ones of each head alone. */
static void test_ragged(void **state) {
  capture_options options = {{1, 4, 2, 8}, 50, 6, 0, LAPROX_DTYPE_F32, 0, CAPTURE_NEEDLES, 0, 31};
  laprox_policy policy = {.window = 6};
  ref_rules rules = ref_rules_decide(&policy);
  capture_cache capture;
  ref_scores ragged, dense;
  ref_kept kept;
  (void)state;
  capture_init(&capture, &options);
  capture.ref_heads[1].n_entries = 23;
  ref_score(&capture.cache, &rules, &ragged);
  assert_int_equal(ragged.offsets[1], 44);
  assert_int_equal(ragged.offsets[2], 44 + 17);
  capture.ref_heads[0].n_entries = 23;
  ref_score(&capture.cache, &rules, &dense);
  for (size_t i = 0; i < 17; i++) /* only the layer's sum differs */
    assert_true(fabs(ragged.values[44 + i] * ragged.sums[0] - dense.values[17 + i] * dense.sums[0]) < 1e-12);
  ref_select(&ragged, &rules, 20, &kept);
  assert_int_equal(kept.offsets[2], 40);
  assert_int_equal(kept.entries[kept.offsets[1] - 1], 49);
  assert_int_equal(kept.entries[kept.offsets[2] - 1], 22);
  ref_kept_finish(&kept);
  ref_scores_finish(&ragged);
  ref_scores_finish(&dense);
  capture_finish(&capture);
}

/* ---- selection ---- */

/* Scores out of nowhere: n_layers x n_kv_heads heads of `n` candidates and a window of 2, in caller's arrays.
 */
typedef struct made_up {
  uint32_t n_entries[MAX_HEADS], first[MAX_HEADS], end[MAX_HEADS];
  size_t offsets[MAX_HEADS + 1];
  double values[MAX_HEADS * MAX_ENTRIES];
  ref_scores scores;
  ref_rules rules;
} made_up;

static void made_up_init(made_up *it, uint32_t n_layers, uint32_t n_kv_heads, uint32_t n, uint32_t sinks) {
  memset(it, 0, sizeof *it);
  for (size_t i = 0; i < (size_t)n_layers * n_kv_heads; i++) {
    it->n_entries[i] = n + 2;
    it->first[i] = sinks;
    it->end[i] = n;
    it->offsets[i + 1] = it->offsets[i] + n;
  }
  it->scores = (ref_scores){{n_layers, n_kv_heads, n_kv_heads, 4},
                            it->n_entries,
                            it->first,
                            it->end,
                            it->offsets,
                            it->values,
                            NULL,
                            NULL,
                            NULL,
                            NULL};
  it->rules = (ref_rules){.scope = LAPROX_SCOPE_GLOBAL, .window = 2, .sinks = sinks};
}

static void expect_kept(const made_up *it, uint32_t budget, const uint32_t *expected, size_t n) {
  ref_kept kept;
  char message[REF_MESSAGE_BYTES];
  ref_select(&it->scores, &it->rules, budget, &kept);
  assert_int_equal(kept.offsets[kept.n_heads], n);
  assert_memory_equal(kept.entries, expected, n * sizeof *expected);
  assert_null(ref_check_kept(&it->scores, &it->rules, budget, 0, &kept, NULL, message));
  ref_kept_finish(&kept);
}

static void test_select_by_hand(void **state) {
  made_up it;
  (void)state;
  made_up_init(&it, 2, 1, 4, 0);
  memcpy(it.values, (double[]){9, 8, 7, 1, 6, 2, 5, 0}, 8 * sizeof(double));
  expect_kept(&it, 4, (uint32_t[]){0, 1, 2, 4, 5, 0, 4, 5}, 8);
  it.rules.scope = LAPROX_SCOPE_LAYER;
  expect_kept(&it, 4, (uint32_t[]){0, 1, 4, 5, 0, 2, 4, 5}, 8);
  it.rules.scope = LAPROX_SCOPE_HEAD;
  expect_kept(&it, 3, (uint32_t[]){0, 4, 5, 0, 4, 5}, 6);
  it.rules.scope = LAPROX_SCOPE_TOKEN; /* sums 15, 10, 12, 1 */
  expect_kept(&it, 4, (uint32_t[]){0, 2, 4, 5, 0, 2, 4, 5}, 8);
  it.rules.scope = LAPROX_SCOPE_GLOBAL;
  it.rules.floor = 2; /* the second head's best two come first */
  expect_kept(&it, 4, (uint32_t[]){0, 1, 4, 5, 0, 2, 4, 5}, 8);
  it.rules.floor = 0;
  expect_kept(&it, REF_KEEP_ALL, (uint32_t[]){0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}, 12);
  expect_kept(&it, 2, (uint32_t[]){4, 5, 4, 5}, 4);
  expect_kept(&it, 9, (uint32_t[]){0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}, 12);
}

static void test_select_ties(void **state) {
  made_up it;
  (void)state;
  made_up_init(&it, 2, 1, 4, 0);
  for (int i = 0; i < 8; i++) it.values[i] = 1;
  expect_kept(&it, 4, (uint32_t[]){0, 1, 2, 3, 4, 5, 4, 5}, 8); /* lowest layer, then lowest position */
  it.values[7] = 2;
  expect_kept(&it, 4, (uint32_t[]){0, 1, 2, 4, 5, 3, 4, 5}, 8);
  it.rules.scope = LAPROX_SCOPE_HEAD;
  expect_kept(&it, 4, (uint32_t[]){0, 1, 4, 5, 0, 3, 4, 5}, 8);
}

static void test_select_sinks(void **state) {
  made_up it;
  (void)state;
  made_up_init(&it, 1, 2, 4, 1);
  memcpy(it.values, (double[]){0, 1, 2, 3, 0, 4, 5, 6}, 8 * sizeof(double));
  expect_kept(&it, 4, (uint32_t[]){0, 4, 5, 0, 2, 3, 4, 5},
              8); /* 2 heads x (4 - 2) less 2 sinks are 2 candidates */
}

/* The best of all subsets of the right size that respect the floor; ties go to earlier candidates by a small
 * bonus. */
static uint32_t best_subset(const double *values, uint32_t per_head, uint32_t n, uint32_t places,
                            uint32_t floor_each) {
  uint32_t best = 0;
  double best_sum = -1;
  for (uint32_t subset = 0; subset < 1u << n; subset++) {
    uint32_t size = 0, of_head[MAX_HEADS] = {0};
    double sum = 0;
    bool valid = true;
    for (uint32_t i = 0; i < n; i++)
      if (subset >> i & 1) {
        sum += values[i] + ldexp(1, -10 - (int)i);
        of_head[i / per_head]++;
        size++;
      }
    for (uint32_t head = 0; head < n / per_head; head++) valid = valid && of_head[head] >= floor_each;
    if (!valid || size != places || sum <= best_sum) continue;
    best_sum = sum;
    best = subset;
  }
  return best;
}

static void test_select_brute_force(void **state) {
  uint64_t random = 99;
  (void)state;
  for (int round = 0; round < 60; round++) {
    made_up it;
    uint32_t budget = 2 + (uint32_t)(random_bits(&random) % 5), expected[MAX_HEADS * MAX_ENTRIES], n = 0;
    made_up_init(&it, 1, 3, 4, 0);
    it.rules.floor = (uint32_t)(random_bits(&random) % 2);
    if (budget < 2 + it.rules.floor) budget = 2 + it.rules.floor;
    for (int i = 0; i < 12; i++) it.values[i] = (double)(random_bits(&random) % 6); /* many ties */
    uint32_t subset = best_subset(it.values, 4, 12, 3 * (budget - 2), it.rules.floor);
    for (uint32_t head = 0; head < 3; head++)
      for (uint32_t entry = 0; entry < 6; entry++)
        if (entry >= 4 || subset >> (head * 4 + entry) & 1) expected[n++] = entry;
    expect_kept(&it, budget, expected, n);
  }
}

/* ---- the checks must find what is wrong ---- */

static void expect_complaint(const made_up *it, uint32_t budget, double tolerance, const uint32_t *entries,
                             const size_t *offsets, const char *about) {
  char message[REF_MESSAGE_BYTES];
  uint32_t copy[MAX_HEADS * MAX_ENTRIES];
  size_t offsets_copy[3];
  memcpy(offsets_copy, offsets, sizeof offsets_copy);
  memcpy(copy, entries, offsets[2] * sizeof *copy);
  ref_kept kept = {2, offsets_copy, copy};
  const char *complaint = ref_check_kept(&it->scores, &it->rules, budget, tolerance, &kept, NULL, message);
  if (!about) {
    if (complaint) fail_msg("%s", complaint);
  } else if (!complaint || !strstr(complaint, about))
    fail_msg("\"%s\" does not mention \"%s\"", complaint ? complaint : "(no complaint)", about);
}

static void test_check_kept(void **state) {
  made_up it;
  size_t even[3] = {0, 4, 8}, uneven[3] = {0, 5, 8}, less[3] = {0, 4, 7};
  (void)state;
  made_up_init(&it, 2, 1, 4, 0);
  memcpy(it.values, (double[]){100, 80, 60, 1, 61, 20, 50, 0},
         8 * sizeof(double)); /* cut between 61 and 60 */
  expect_complaint(&it, 4, 0, (uint32_t[]){0, 1, 2, 4, 5, 0, 4, 5}, uneven, NULL);
  expect_complaint(&it, 4, 0, (uint32_t[]){0, 1, 4, 5, 0, 2, 4, 5}, even, "dropped");
  expect_complaint(&it, 4, 0.01, (uint32_t[]){0, 1, 4, 5, 0, 2, 4, 5}, even, "entry 2 kept");
  expect_complaint(&it, 4, 0.1, (uint32_t[]){0, 1, 4, 5, 0, 2, 4, 5}, even,
                   NULL); /* 50 + 6.1 against 60 - 10 */
  expect_complaint(&it, 4, 0.1, (uint32_t[]){0, 1, 4, 5, 0, 1, 4, 5}, even, "dropped");
  expect_complaint(&it, 4, 0, (uint32_t[]){0, 1, 2, 4, 0, 2, 4, 5}, even, "window");
  expect_complaint(&it, 4, 0, (uint32_t[]){0, 1, 5, 4, 0, 2, 4, 5}, even, "after");
  expect_complaint(&it, 4, 0, (uint32_t[]){0, 1, 4, 5, 2, 4, 6}, less, "entry 6 of 6");
  expect_complaint(&it, 4, 0, (uint32_t[]){0, 1, 4, 5, 0, 4, 5}, less, "instead of");
  it.rules.floor = 2;
  expect_complaint(&it, 4, 0, (uint32_t[]){0, 1, 4, 5, 0, 2, 4, 5}, even, NULL);
  expect_complaint(&it, 4, 0, (uint32_t[]){0, 1, 2, 4, 5, 0, 4, 5}, uneven, "floor");
  it.rules.floor = 0;
  it.values[0] = it.values[1] = it.values[2] = it.values[3] = 60;
  it.values[4] = 60; /* a tie broken the wrong way: position 3 instead of the first ones */
  expect_complaint(&it, 4, 0, (uint32_t[]){0, 1, 3, 4, 5, 0, 4, 5}, uneven, "missing");
  expect_complaint(&it, 4, 1e-9, (uint32_t[]){0, 1, 3, 4, 5, 0, 4, 5}, uneven, NULL);
}

static void test_check_scores(void **state) {
  made_up it;
  char message[REF_MESSAGE_BYTES];
  float got[8] = {100, 80, 60, 1, 6, 2, 5, 0};
  (void)state;
  made_up_init(&it, 2, 1, 4, 0);
  for (int i = 0; i < 8; i++) it.values[i] = (double)got[i];
  assert_null(ref_check_scores(&it.scores, got, 0, message));
  got[3] += 0.09f; /* of the head's largest, less than 0.001 */
  assert_null(ref_check_scores(&it.scores, got, 1e-3, message));
  got[7] += 0.09f;
  assert_non_null(ref_check_scores(&it.scores, got, 1e-3, message));
  assert_non_null(strstr(message, "layer 1 head 0 entry 3"));
  got[7] = NAN;
  assert_non_null(ref_check_scores(&it.scores, got, 1e-3, message));
}

static void test_budget(void **state) {
  laprox_policy policy = {.window = 32, .sinks = 2, .floor = 3};
  ref_rules rules = ref_rules_decide(&policy);
  (void)state;
  assert_int_equal(ref_budget(&rules, &(laprox_budget){0, 0}, 1000), REF_KEEP_ALL);
  assert_int_equal(ref_budget(&rules, &(laprox_budget){0, 0.05}, 1010), 51); /* 50.5, rounded to nearest */
  assert_int_equal(ref_budget(&rules, &(laprox_budget){0, 1e-9}, 1000), 37);
  assert_int_equal(ref_budget(&rules, &(laprox_budget){0, 1}, 1000), REF_KEEP_ALL);
  assert_int_equal(ref_budget(&rules, &(laprox_budget){1000, 0}, 1000), REF_KEEP_ALL);
  assert_int_equal(ref_budget(&rules, &(laprox_budget){999, 0}, 1000), 999);
  assert_int_equal(ref_budget(&rules, &(laprox_budget){0, 0.5}, 32), REF_KEEP_ALL);
}

/* ---- the captures are what they say ---- */

static void test_captures(void **state) {
  capture_options options = {{2, 2, 2, 8}, 40, 4, 0, LAPROX_DTYPE_F16, 0, CAPTURE_EQUAL, 0, 77};
  capture_cache one, two;
  ref_scores scores;
  (void)state;
  capture_init(&one, &options);
  capture_init(&two, &options);
  assert_memory_equal(one.layers[1].key.data, two.layers[1].key.data, one.layers[1].key.bytes);
  raw_scores(&one.cache, LAPROX_GQA_MEAN, 4, &scores);
  for (size_t i = 0; i < scores.offsets[4]; i++)
    assert_true(scores.values[i] > 0 && scores.values[i] == scores.values[0]);
  ref_scores_finish(&scores);
  capture_finish(&one);
  capture_finish(&two);
  options.pattern = CAPTURE_HALF_ZERO;
  capture_init(&one, &options);
  raw_scores(&one.cache, LAPROX_GQA_JOINT, 4, &scores);
  for (size_t i = 0; i < 36; i++) assert_int_equal(scores.values[i] == 0, i / 5 % 2);
  ref_scores_finish(&scores);
  capture_finish(&one);
}

static void test_capture_file(void **state) {
  const char *path = "test_reference_capture.safetensors";
  capture_options options = {{2, 4, 2, 8}, 21, 4, 10, LAPROX_DTYPE_BF16, 0.25, CAPTURE_GAUSSIAN, 15, 8};
  capture_cache capture;
  lpx_safetensors *file = NULL;
  const lpx_st_tensor *tensor = NULL;
  unsigned char data[2 * 2 * 21 * 8];
  (void)state;
  capture_init(&capture, &options);
  assert_int_equal(capture_write(&capture, NULL, path), LAPROX_OK);
  assert_int_equal(lpx_safetensors_open(NULL, path, &file), LAPROX_OK);
  assert_int_equal(lpx_safetensors_count(file), 8);
  assert_true(strtod(lpx_safetensors_metadata(file, "scale"), NULL) == 0.25);
  tensor = lpx_safetensors_find(file, "layers.1.v");
  assert_non_null(tensor);
  assert_int_equal(tensor->dtype, LPX_ST_BF16);
  assert_int_equal(tensor->dims[0], 2);
  assert_int_equal(tensor->dims[1], 21);
  assert_int_equal(tensor->dims[2], 8);
  assert_int_equal(lpx_safetensors_read_all(file, tensor, data), LAPROX_OK);
  assert_memory_equal(data, capture.layers[1].value.data, sizeof data);
  lpx_safetensors_close(file);
  capture_finish(&capture);
  remove(path);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_two_tokens),
      cmocka_unit_test(test_causal_window),
      cmocka_unit_test(test_last_queries_count),
      cmocka_unit_test(test_groups),
      cmocka_unit_test(test_pooling),
      cmocka_unit_test(test_streaming_and_random),
      cmocka_unit_test(test_nonfinite_value),
      cmocka_unit_test(test_nonfinite_key),
      cmocka_unit_test(test_group_identities),
      cmocka_unit_test(test_gram),
      cmocka_unit_test(test_attention_rows),
      cmocka_unit_test(test_ragged),
      cmocka_unit_test(test_select_by_hand),
      cmocka_unit_test(test_select_ties),
      cmocka_unit_test(test_select_sinks),
      cmocka_unit_test(test_select_brute_force),
      cmocka_unit_test(test_check_kept),
      cmocka_unit_test(test_check_scores),
      cmocka_unit_test(test_budget),
      cmocka_unit_test(test_captures),
      cmocka_unit_test(test_capture_file),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
