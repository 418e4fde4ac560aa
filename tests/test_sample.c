/* test_sample.c: greedy choice, the drawn distribution, determinism and logits that are no numbers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "laprox/runtime.h"

#define N_DRAWS 200000

static float scratch[2 * 64];

static void count_draws(laprox_sampler sampler, const float *logits, uint32_t n, uint32_t *counts) {
  for (uint32_t i = 0; i < n; i++) counts[i] = 0;
  for (int i = 0; i < N_DRAWS; i++) {
    uint32_t token = laprox_sample(&sampler, logits, n, scratch);
    assert_true(token < n);
    counts[token]++;
  }
}

/* Within five standard deviations of what the probabilities say. */
static void assert_distribution(const uint32_t *counts, const double *probabilities, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    double mean = N_DRAWS * probabilities[i];
    double deviation = sqrt(mean * (1 - probabilities[i]));
    if (fabs(counts[i] - mean) > 5 * deviation + 1e-9)
      fail_msg("token %u: drawn %u times, expected %.1f +- %.1f", i, counts[i], mean, deviation);
  }
}

static void softmax(const float *logits, uint32_t n, double temperature, double *out) {
  double sum = 0;
  for (uint32_t i = 0; i < n; i++) sum += out[i] = exp((double)logits[i] / temperature);
  for (uint32_t i = 0; i < n; i++) out[i] /= sum;
}

static const float logits8[8] = {0.5f, -1.0f, 2.0f, 1.0f, 2.5f, -3.0f, 0.0f, 1.5f};

static void test_greedy(void **state) {
  (void)state;
  laprox_sampler sampler = {0};
  assert_int_equal(laprox_sample(&sampler, logits8, 8, NULL), 4);
  const float ties[5] = {1, 3, 2, 3, 3};
  assert_int_equal(laprox_sample(&sampler, ties, 5, NULL), 1);
  /* Greedy, whatever the other fields say, and the seed is left alone. */
  laprox_sampler odd = {.temperature = 0, .top_k = 1, .top_p = 0.5f, .state = 7};
  assert_int_equal(laprox_sample(&odd, logits8, 8, scratch), 4);
  assert_int_equal(odd.state, 7);
}

static void test_temperature(void **state) {
  (void)state;
  const float temperatures[3] = {0.5f, 1.0f, 2.0f};
  for (int t = 0; t < 3; t++) {
    uint32_t counts[8];
    double expected[8];
    softmax(logits8, 8, (double)temperatures[t], expected);
    count_draws((laprox_sampler){.temperature = temperatures[t], .state = 42}, logits8, 8, counts);
    assert_distribution(counts, expected, 8);
  }
}

static void test_top_k(void **state) {
  (void)state;
  /* The best three are 4, 2 and 7. */
  uint32_t counts[8];
  double expected[8], all[8];
  softmax(logits8, 8, 1, all);
  double sum = all[4] + all[2] + all[7];
  for (int i = 0; i < 8; i++) expected[i] = i == 4 || i == 2 || i == 7 ? all[i] / sum : 0;
  count_draws((laprox_sampler){.temperature = 1, .top_k = 3, .state = 1}, logits8, 8, counts);
  assert_distribution(counts, expected, 8);
  /* More than there are is all; of equals the lower token stays. */
  count_draws((laprox_sampler){.temperature = 1, .top_k = 100, .state = 1}, logits8, 8, counts);
  assert_distribution(counts, all, 8);
  const float ties[4] = {1, 2, 2, 2};
  count_draws((laprox_sampler){.temperature = 1, .top_k = 2, .state = 1}, ties, 4, counts);
  const double halves[4] = {0, 0.5, 0.5, 0};
  assert_distribution(counts, halves, 4);
}

static void test_top_p(void **state) {
  (void)state;
  /* 0.5, 0.3, 0.15, 0.05: a nucleus of 0.7 takes the first two, one of 0.85 the first three. */
  const float logits[4] = {logf(0.05f), logf(0.5f), logf(0.15f), logf(0.3f)};
  uint32_t counts[4];
  const double two[4] = {0, 0.5 / 0.8, 0, 0.3 / 0.8};
  count_draws((laprox_sampler){.temperature = 1, .top_p = 0.7f, .state = 9}, logits, 4, counts);
  assert_distribution(counts, two, 4);
  const double three[4] = {0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95};
  count_draws((laprox_sampler){.temperature = 1, .top_p = 0.85f, .state = 9}, logits, 4, counts);
  assert_distribution(counts, three, 4);
  /* A nucleus smaller than the best token is that token. */
  const double one[4] = {0, 1, 0, 0};
  count_draws((laprox_sampler){.temperature = 1, .top_p = 1e-6f, .state = 9}, logits, 4, counts);
  assert_distribution(counts, one, 4);
  /* After top-k 3 the shares are those of the three, so 0.5 / 0.95 alone reaches 0.52. */
  count_draws((laprox_sampler){.temperature = 1, .top_k = 3, .top_p = 0.52f, .state = 9}, logits, 4, counts);
  assert_distribution(counts, one, 4);
}

static void test_determinism(void **state) {
  (void)state;
  laprox_sampler a = {.temperature = 1, .top_p = 0.9f, .state = 1234}, b = a;
  laprox_sampler c = {.temperature = 1, .top_p = 0.9f, .state = 1235};
  int differ = 0;
  for (int i = 0; i < 1000; i++) {
    uint32_t x = laprox_sample(&a, logits8, 8, scratch);
    assert_int_equal(x, laprox_sample(&b, logits8, 8, scratch));
    differ += x != laprox_sample(&c, logits8, 8, scratch);
  }
  assert_true(differ > 100);
  assert_true(a.state != 1234 && a.state == b.state);
}

static void test_nonfinite(void **state) {
  (void)state;
  laprox_sampler sampler = {.temperature = 1, .state = 3}, cold = {0};
  const float some[4] = {NAN, 1, -INFINITY, 1};
  uint32_t counts[4];
  const double halves[4] = {0, 0.5, 0, 0.5};
  count_draws(sampler, some, 4, counts);
  assert_distribution(counts, halves, 4);
  assert_int_equal(laprox_sample(&cold, some, 4, NULL), 1);
  const float infinite[3] = {1, INFINITY, 2};
  assert_int_equal(laprox_sample(&sampler, infinite, 3, scratch), 1);
  assert_int_equal(laprox_sample(&cold, infinite, 3, NULL), 1);
  const float none[3] = {NAN, NAN, NAN};
  assert_int_equal(laprox_sample(&sampler, none, 3, scratch), 0);
  assert_int_equal(laprox_sample(&cold, none, 3, NULL), 0);
  const float nothing[2] = {-INFINITY, -INFINITY};
  assert_int_equal(laprox_sample(&sampler, nothing, 2, scratch), 0);
  sampler.temperature = NAN;
  assert_int_equal(laprox_sample(&sampler, logits8, 8, scratch), 4);
  sampler = (laprox_sampler){.temperature = 1e-30f, .top_p = NAN, .state = 3};
  assert_int_equal(laprox_sample(&sampler, logits8, 8, scratch), 4);
  sampler.temperature = INFINITY;
  assert_true(laprox_sample(&sampler, logits8, 8, scratch) < 8);
}

static void test_large_vocabulary(void **state) {
  (void)state;
  enum { N = 5000 };
  static float logits[N], room[2 * N];
  /* Scattered so that the order of arrival is no order of size. */
  for (uint32_t i = 0; i < N; i++) logits[i] = (float)(i * 7919u % N) / (float)N * 4;
  laprox_sampler sampler = {.temperature = 1, .top_k = 10, .state = 5};
  bool seen[N] = {false};
  for (int i = 0; i < 2000; i++) {
    uint32_t token = laprox_sample(&sampler, logits, N, room);
    assert_true(token < N && token * 7919u % N >= N - 10);
    seen[token] = true;
  }
  int distinct = 0;
  for (int i = 0; i < N; i++) distinct += seen[i];
  assert_int_equal(distinct, 10);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_greedy),
      cmocka_unit_test(test_temperature),
      cmocka_unit_test(test_top_k),
      cmocka_unit_test(test_top_p),
      cmocka_unit_test(test_determinism),
      cmocka_unit_test(test_nonfinite),
      cmocka_unit_test(test_large_vocabulary),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
