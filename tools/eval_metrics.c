/* eval_metrics.c: the metrics of RULER and LongBench, from their definitions. Letters beyond ASCII keep their case. */
#include "eval_metrics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const metric_names[N_METRICS] = {"begins", "match_all",      "match_part", "f1",   "rouge_l",
                                             "edit",   "classification", "retrieval",  "count"};

metric metric_find(const char *name) {
  int i = 0;
  while (i < N_METRICS && strcmp(metric_names[i], name) != 0) i++;
  return (metric)i;
}

/* ---- letters and words ---- */

static char lower(char c) {
  return c >= 'A' && c <= 'Z' ? (char)(c + 'a' - 'A') : c;
}

static bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

static bool is_punctuation(char c) {
  return (c > ' ' && c < '0') || (c > '9' && c < 'A') || (c > 'Z' && c < 'a') || (c > 'z' && c < 127);
}

static bool contains(const char *text, const char *part) {
  for (;; text++) {
    size_t i = 0;
    while (part[i] && lower(text[i]) == lower(part[i])) i++;
    if (!part[i]) return true;
    if (!*text) return false;
  }
}

static const char *skip_space(const char *text) {
  while (is_space(*text)) text++;
  return text;
}

typedef struct words {
  char *letters; /* that the items point into */
  char **items;
  size_t n;
} words;

static void words_finish(words *w) {
  free(w->letters);
  free(w->items);
  *w = (words){0};
}

/* Splits at white space. Normalised: small letters, no punctuation, no articles. */
static bool words_init(const char *text, bool normalised, words *out) {
  const size_t n = strlen(text);
  *out = (words){.letters = malloc(2 * n + 2), .items = malloc((n + 1) * sizeof *out->items)};
  if (!out->letters || !out->items) {
    words_finish(out);
    return false;
  }
  for (char *to = out->letters; *(text = skip_space(text));) {
    char *word = to;
    for (; *text && !is_space(*text); text++)
      if (!normalised || !is_punctuation(*text)) *to++ = normalised ? lower(*text) : *text;
    *to++ = 0;
    const bool is_article = strcmp(word, "a") == 0 || strcmp(word, "an") == 0 || strcmp(word, "the") == 0;
    if (!normalised || (*word && !is_article)) out->items[out->n++] = word;
  }
  return true;
}

static double f1(size_t common, size_t n_answer, size_t n_reference) {
  return common ? 2.0 * (double)common / (double)(n_answer + n_reference) : 0;
}

/* ---- one reference ---- */

static int compare_words(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static double words_f1(const char *answer, const char *reference) {
  words a = {0}, b = {0};
  double score = -1;
  if (words_init(answer, true, &a) && words_init(reference, true, &b)) {
    size_t common = 0;
    qsort(a.items, a.n, sizeof *a.items, compare_words);
    qsort(b.items, b.n, sizeof *b.items, compare_words);
    for (size_t i = 0, j = 0; i < a.n && j < b.n;) {
      const int order = strcmp(a.items[i], b.items[j]);
      common += order == 0;
      i += order <= 0;
      j += order >= 0;
    }
    score = f1(common, a.n, b.n);
  }
  words_finish(&a);
  words_finish(&b);
  return score;
}

/* Length of the longest common subsequence, (size_t)-1 without memory. */
static size_t common_subsequence(size_t n, size_t m, bool (*same)(const void *, size_t, const void *, size_t),
                                 const void *a, const void *b) {
  size_t *row = calloc(m + 1, sizeof *row);
  if (!row) return SIZE_MAX;
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0, diagonal = 0, above; j < m; j++) {
      above = row[j + 1];
      row[j + 1] = same(a, i, b, j) ? diagonal + 1 : above > row[j] ? above : row[j];
      diagonal = above;
    }
  const size_t length = row[m];
  free(row);
  return length;
}

static bool same_word(const void *a, size_t i, const void *b, size_t j) {
  return strcmp(((const words *)a)->items[i], ((const words *)b)->items[j]) == 0;
}

static bool same_letter(const void *a, size_t i, const void *b, size_t j) {
  return ((const char *)a)[i] == ((const char *)b)[j];
}

static double rouge_l(const char *answer, const char *reference) {
  words a = {0}, b = {0};
  double score = -1;
  if (words_init(answer, false, &a) && words_init(reference, false, &b)) {
    const size_t common = common_subsequence(a.n, b.n, same_word, &a, &b);
    if (common != SIZE_MAX) score = f1(common, a.n, b.n);
  }
  words_finish(&a);
  words_finish(&b);
  return score;
}

/* The first line that is neither a comment nor a fence around code, as LongBench takes it. */
static const char *code_line(const char *answer, size_t *n) {
  while (*answer == '\n') answer++;
  for (;; answer++) {
    *n = strcspn(answer, "\n");
    bool is_code = true;
    for (size_t i = 0; i < *n; i++)
      if (answer[i] == '`' || answer[i] == '#' || (answer[i] == '/' && i + 1 < *n && answer[i + 1] == '/'))
        is_code = false;
    if (is_code || !answer[*n]) {
      if (!is_code) *n = 0;
      return answer;
    }
    answer += *n;
  }
}

/* Rounded to a hundredth, as the ratio that LongBench takes is. */
static double edit_similarity(const char *answer, const char *reference) {
  size_t n = 0;
  const char *line = code_line(answer, &n);
  const size_t m = strlen(reference), common = common_subsequence(n, m, same_letter, line, reference);
  return common == SIZE_MAX ? -1 : floor(f1(common, n, m) * 100 + 0.5) / 100;
}

static double classification(const char *answer, const char *reference, const references *all) {
  size_t named = 0;
  bool right = false;
  for (size_t i = 0; i < all->n_classes; i++) {
    if (!strstr(answer, all->classes[i])) continue;
    const bool is_it = strcmp(all->classes[i], reference) == 0;
    /* A class whose name is a part of the right one's is not held against it. */
    if (!is_it && strstr(reference, all->classes[i])) continue;
    named++;
    right = right || is_it;
  }
  return right ? 1.0 / (double)named : 0;
}

/* Of the numbers in the answer, the share that is `wanted`, digit for digit. */
static double numbers_right(const char *answer, const char *wanted, size_t n_wanted) {
  size_t n = 0, right = 0;
  while (*answer) {
    size_t digits = 0;
    while (is_digit(answer[digits])) digits++;
    if (digits) {
      n++;
      right += digits == n_wanted && memcmp(answer, wanted, digits) == 0;
      answer += digits;
    } else {
      answer++;
    }
  }
  return n ? (double)right / (double)n : 0;
}

static double retrieval(const char *answer, const char *reference) {
  const char *number = strstr(reference, "Paragraph ");
  size_t n = 0;
  if (!number) return 0;
  number += strlen("Paragraph ");
  while (is_digit(number[n])) n++;
  return n ? numbers_right(answer, number, n) : 0;
}

static double score_one(metric which, const char *answer, const char *reference, const references *all) {
  switch (which) {
  case METRIC_MATCH_ALL:
  case METRIC_MATCH_PART:
    return contains(answer, reference);
  case METRIC_F1:
    return words_f1(answer, reference);
  case METRIC_ROUGE_L:
    return rouge_l(answer, reference);
  case METRIC_EDIT:
    return edit_similarity(answer, reference);
  case METRIC_CLASSIFICATION:
    return classification(answer, reference, all);
  case METRIC_RETRIEVAL:
    return retrieval(answer, reference);
  case METRIC_COUNT:
    return numbers_right(answer, reference, strlen(reference));
  default:
    return strncmp(skip_space(answer), reference, strlen(reference)) == 0;
  }
}

double metric_score(metric which, const char *answer, const references *to) {
  double best = 0, sum = 0;
  for (size_t i = 0; i < to->n; i++) {
    const double score = score_one(which, answer, to->texts[i], to);
    if (score < 0) return score;
    if (score > best) best = score;
    sum += score;
  }
  return which == METRIC_MATCH_ALL && to->n ? sum / (double)to->n : best;
}

bool metric_is_settled(metric which, const char *answer, const references *to) {
  bool open = false;
  if (which == METRIC_MATCH_ALL || which == METRIC_MATCH_PART) return metric_score(which, answer, to) >= 1;
  if (which != METRIC_BEGINS) return false;
  if (metric_score(which, answer, to) >= 1) return true;
  answer = skip_space(answer);
  for (size_t i = 0; i < to->n; i++) open = open || strncmp(answer, to->texts[i], strlen(answer)) == 0;
  return !open;
}

/* ---- means ---- */

void wilson_interval(double mean, uint64_t n, double *low, double *high) {
  const double z = 1.959963984540054, count = (double)n;
  *low = 0;
  *high = 1;
  if (!n) return;
  const double middle = mean + z * z / (2 * count), scale = 1 + z * z / count;
  const double variance = mean * (1 - mean) / count + z * z / (4 * count * count);
  const double reach = z * sqrt(variance > 0 ? variance : 0);
  *low = fmax(0, (middle - reach) / scale);
  *high = fmin(1, (middle + reach) / scale);
}
