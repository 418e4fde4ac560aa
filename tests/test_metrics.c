/* test_metrics.c: scores of answers and their intervals, against cases computed by hand. */
#include "../tools/eval_metrics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 4 };

typedef struct example {
  metric which;
  const char *answer;
  const char *references[MOST]; /* NULL ends them */
  double score;
} example;

static references make(const char *const *texts) {
  references to = {.texts = texts};
  while (to.n < MOST && texts[to.n]) to.n++;
  return to;
}

static void expect(const example *e) {
  const references to = make(e->references);
  const double score = metric_score(e->which, e->answer, &to);
  if (fabs(score - e->score) > 1e-12)
    fail_msg("%s of \"%s\": %.15g, and it is %.15g", metric_names[e->which], e->answer, score, e->score);
}

static void test_scores(void **state) {
  (void)state;
  static const example examples[] = {
      {METRIC_BEGINS, " \n48213. The rest", {"48213"}, 1},
      {METRIC_BEGINS, "4821", {"48213"}, 0},
      {METRIC_BEGINS, "is 48213", {"48213"}, 0},
      {METRIC_BEGINS, "no", {"yes", "no"}, 1},
      {METRIC_MATCH_ALL, "They are 12 and 34.", {"12", "34", "56"}, 2.0 / 3},
      {METRIC_MATCH_ALL, "The FALCON", {"falcon"}, 1},
      {METRIC_MATCH_ALL, "", {"falcon"}, 0},
      {METRIC_MATCH_PART, "They are 12 and 34.", {"56", "34"}, 1},
      {METRIC_MATCH_PART, "They are 12 and 34.", {"56"}, 0},
      /* cat sat on mat; cat on mat: 3 in common of 4 and 3 */
      {METRIC_F1, "The cat sat on a mat.", {"Cat, on the mat"}, 6.0 / 7},
      /* b b c and b c c have one b and one c in common */
      {METRIC_F1, "b b c", {"c b c"}, 2.0 / 3},
      {METRIC_F1, "x", {"y", "x y"}, 2.0 / 3},
      {METRIC_F1, "don't", {"dont"}, 1},
      {METRIC_F1, "the a an", {"the"}, 0},
      /* the … sat: 2 of 3 and 4 words */
      {METRIC_ROUGE_L, "the cat sat", {"the dog sat down"}, 4.0 / 7},
      {METRIC_ROUGE_L, "b a", {"a b"}, 0.5},
      {METRIC_ROUGE_L, "", {"a b"}, 0},
      /* "x = 1" and "x = 2" have 4 of 5 letters in common */
      {METRIC_EDIT, "\n```python\n# x is\n// so\nx = 1\ny = 2", {"x = 2"}, 0.8},
      {METRIC_EDIT, "abc", {"abd"}, 0.67},
      {METRIC_EDIT, "# nothing", {"abd"}, 0},
      {METRIC_RETRIEVAL, "Paragraph 12, or 3", {"Paragraph 12"}, 0.5},
      {METRIC_RETRIEVAL, "Paragraph 112", {"Paragraph 12"}, 0},
      {METRIC_RETRIEVAL, "I can't say", {"Paragraph 12"}, 0},
      {METRIC_COUNT, "There are 5, yes 5, or 6", {"5"}, 2.0 / 3},
      {METRIC_COUNT, "fifty", {"5"}, 0},
  };
  for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) expect(&examples[i]);
}

static void test_classes(void **state) {
  (void)state;
  static const char *const classes[] = {"Disease", "Disease and medicine", "Animal", "Colour"};
  static const char *const right[] = {"Disease and medicine"}, *const simple[] = {"Animal"};
  references to = {right, 1, classes, 4};
  assert_true(metric_score(METRIC_CLASSIFICATION, "Disease and medicine", &to) == 1);
  assert_true(metric_score(METRIC_CLASSIFICATION, "Disease and medicine or Animal", &to) == 0.5);
  assert_true(metric_score(METRIC_CLASSIFICATION, "Disease", &to) == 0);
  to.texts = simple;
  assert_true(metric_score(METRIC_CLASSIFICATION, "Animal, Colour, Disease", &to) == 1.0 / 3);
}

/* An answer is cut off only where nothing that follows could change its score. */
static void test_settled(void **state) {
  (void)state;
  static const struct {
    metric which;
    const char *answer;
    bool settled;
  } cases[] = {{METRIC_BEGINS, "", false},           {METRIC_BEGINS, " ", false},
               {METRIC_BEGINS, " 48", false},        {METRIC_BEGINS, " 47", true},
               {METRIC_BEGINS, " 48213", true},      {METRIC_MATCH_ALL, "48213", false},
               {METRIC_MATCH_ALL, "77 48213", true}, {METRIC_MATCH_PART, "x77", true},
               {METRIC_MATCH_PART, "x", false},      {METRIC_F1, "48213 77", false},
               {METRIC_COUNT, "77", false}};
  static const char *const texts[] = {"48213", "77"};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const references to = {.texts = texts, .n = cases[i].which == METRIC_BEGINS ? 1 : 2};
    if (metric_is_settled(cases[i].which, cases[i].answer, &to) != cases[i].settled)
      fail_msg("%s of \"%s\"", metric_names[cases[i].which], cases[i].answer);
  }
}

static void test_names(void **state) {
  (void)state;
  for (int i = 0; i < N_METRICS; i++) assert_int_equal(metric_find(metric_names[i]), i);
  assert_int_equal(metric_find("best"), N_METRICS);
}

/* Bounds from (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), worked out apart. */
static void test_intervals(void **state) {
  (void)state;
  static const struct {
    double mean;
    uint64_t n;
    double low, high;
  } cases[] = {{0.8, 10, 0.490162, 0.943318},
               {0, 10, 0, 0.277533},
               {1, 3, 0.438503, 1},
               {0.5, 100, 0.403832, 0.596168},
               {0.3, 0, 0, 1}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    double low = -1, high = -1;
    wilson_interval(cases[i].mean, cases[i].n, &low, &high);
    assert_true(fabs(low - cases[i].low) < 1e-6 && fabs(high - cases[i].high) < 1e-6);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_scores), cmocka_unit_test(test_classes),   cmocka_unit_test(test_settled),
      cmocka_unit_test(test_names),  cmocka_unit_test(test_intervals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
