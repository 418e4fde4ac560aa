/* tasks_count.c: RULER's tasks without a needle: variables that are traced, words that are counted. */
#include "tasks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- variables ---- */

enum { N_VARIABLES = 5, NAME_LETTERS = 5, NOISE_A_LINE = 5 };

static void make_letters(rng *r, char first, uint32_t n, char *out) {
  for (uint32_t i = 0; i < n; i++) out[i] = (char)(first + (char)rng_below(r, 26));
  out[n] = 0;
}

static bool is_among(const char *name, const char *names, size_t stride, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    if (strcmp(names + i * stride, name) == 0) return true;
  return false;
}

static int ascending(const void *a, const void *b) {
  const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

/* One chain of four hops between lines of noise. */
void build_variables(const task_plan *plan, task_case *out) {
  rng r = plan->r;
  char names[N_VARIABLES][NAME_LETTERS + 1], line[64];
  const uint32_t size = haystack_size(&plan->hay), value = 10000 + rng_below(&r, 90000);
  uint32_t at[N_VARIABLES];
  for (uint32_t i = 0; i < N_VARIABLES; i++) {
    do make_letters(&r, 'A', NAME_LETTERS, names[i]);
    while (is_among(names[i], names[0], sizeof names[0], i));
    at[i] = rng_below(&r, size + 1);
  }
  qsort(at, N_VARIABLES, sizeof *at, ascending);
  text_addf(&out->prompt, "Remember and trace the chain of variable assignments hidden in this text.\n");
  for (uint32_t i = 0, j = 0; i <= size; i++) {
    for (; j < N_VARIABLES && at[j] == i; j++) {
      if (j)
        snprintf(line, sizeof line, "\nVAR %s = VAR %s", names[j], names[j - 1]);
      else
        snprintf(line, sizeof line, "\nVAR %s = %u", names[j], value);
      task_add_needle(out, line, true);
      text_addf(&out->prompt, "\n");
      task_add_answer(out, names[j]);
    }
    if (i == size) break;
    if (i % NOISE_A_LINE == 0) text_addf(&out->prompt, "\n");
    task_add_hay(plan, i, out);
  }
  out->question_at = out->prompt.n;
  text_addf(&out->prompt,
            "\n\nQuestion: Which variables are assigned the value %u in the text? Answer: By the chain of "
            "assignments in "
            "the text, these %u variables are assigned the value %u:",
            value, N_VARIABLES, value);
}

/* ---- words of a list ---- */

enum {
  N_COMMON = 10,
  EXAMPLE_WORDS = 20,
  EXAMPLE_REPEATS = 3,
  LONG_PROMPT = 4096,
  N_PAIRS = N_NOUNS * N_ADJECTIVES
};

/* Word `id`: nouns, adjectives, then pairs of both, so that they do not run out. */
static void write_word(uint32_t id, char out[KEY_BYTES]) {
  if (id < N_NOUNS)
    snprintf(out, KEY_BYTES, "%s", task_nouns[id]);
  else if (id < N_NOUNS + N_ADJECTIVES)
    snprintf(out, KEY_BYTES, "%s", task_adjectives[id - N_NOUNS]);
  else
    snprintf(out, KEY_BYTES, "%s-%s", task_adjectives[(id - N_NOUNS - N_ADJECTIVES) / N_NOUNS % N_ADJECTIVES],
             task_nouns[(id - N_NOUNS - N_ADJECTIVES) % N_NOUNS]);
}

/* A numbered list of N_COMMON words `often` times and n_rare words `seldom` times, in random order. */
static void add_list(rng *r, const uint32_t *common, uint32_t often, const uint32_t *rare, uint32_t n_rare,
                     uint32_t seldom, task_case *out) {
  const uint32_t n = N_COMMON * often + n_rare * seldom;
  uint32_t *items = malloc(n * sizeof *items), used = 0;
  char word[KEY_BYTES];
  out->prompt.failed = out->prompt.failed || !items;
  if (!items) return;
  for (uint32_t i = 0; i < N_COMMON * often; i++) items[used++] = common[i % N_COMMON];
  for (uint32_t i = 0; i < n_rare * seldom; i++) items[used++] = rare[i % n_rare];
  rng_shuffle(r, items, n);
  for (uint32_t i = 0; i < n; i++) {
    write_word(items[i], word);
    text_addf(&out->prompt, " %u. %s", i + 1, word);
  }
  free(items);
}

static void ask_common(task_case *out) {
  text_addf(
      &out->prompt,
      "\nQuestion: What are the 10 most common words in this list? Answer: The 10 most common words are:");
}

/* An example with its answer, then the list; RULER's counts, which are smaller for short prompts. */
void build_common_words(const task_plan *plan, task_case *out) {
  const bool is_long = plan->n_tokens >= LONG_PROMPT;
  const uint32_t often = is_long ? 30 : 6, seldom = is_long ? 3 : 1;
  const uint32_t most = N_NOUNS + N_ADJECTIVES + N_PAIRS - EXAMPLE_WORDS - N_COMMON;
  const uint32_t n_rare = plan->hay.size < most ? plan->hay.size : most;
  const uint32_t n_ids = EXAMPLE_WORDS + N_COMMON + n_rare, n_plain = N_NOUNS + N_ADJECTIVES;
  rng r = plan->r;
  char word[KEY_BYTES];
  uint32_t *ids = malloc((n_ids < n_plain ? n_plain : n_ids) * sizeof *ids);
  out->prompt.failed = out->prompt.failed || !ids;
  if (!ids) return;
  for (uint32_t i = 0; i < n_ids || i < n_plain; i++) ids[i] = i;
  rng_shuffle(&r, ids, n_plain);
  for (int part = 0; part < 2; part++) {
    const uint32_t *common = ids + (part ? EXAMPLE_WORDS : 0);
    text_addf(
        &out->prompt,
        "%sThis is a numbered list of words. Some of them appear more often than others; remember those.\n",
        part ? "\n\n" : "");
    if (part == 0)
      add_list(&r, common, EXAMPLE_REPEATS, common + N_COMMON, EXAMPLE_WORDS - N_COMMON, 1, out);
    else
      add_list(&r, common, often, common + N_COMMON, n_rare, seldom, out);
    out->question_at = out->prompt.n;
    ask_common(out);
    for (uint32_t i = 0; i < N_COMMON; i++) {
      write_word(common[i], word);
      if (part)
        task_add_answer(out, word);
      else
        text_addf(&out->prompt, " %u. %s", i + 1, word);
    }
  }
  free(ids);
}

/* ---- coded words ---- */

enum { CODE_LETTERS = 6, TOKENS_A_CODE = 50, FEWEST_CODES = 5, N_FREQUENT = 3 };

/* How often the word of rank k (from 1) stands among n: Zipf with exponent 2. */
static uint32_t zipf_count(uint32_t n, uint32_t k) {
  const double zeta_2 = 1.6449340668482264;
  return (uint32_t)floor((double)n / ((double)k * k) / zeta_2);
}

/* Coded words; the most frequent one is "...", the answer is the next three. */
void build_frequent_words(const task_plan *plan, task_case *out) {
  rng r = plan->r;
  const uint32_t wanted = plan->n_tokens / TOKENS_A_CODE;
  const uint32_t n_codes = wanted < FEWEST_CODES ? FEWEST_CODES : wanted;
  const uint32_t size = plan->hay.size < FEWEST_CODES * 20 ? FEWEST_CODES * 20 : plan->hay.size;
  char(*codes)[CODE_LETTERS + 1] = malloc(n_codes * sizeof *codes);
  uint32_t *items = malloc(size * sizeof *items), n = 0;
  out->prompt.failed = out->prompt.failed || !codes || !items;
  for (uint32_t k = 0; k < n_codes && codes && items; k++) {
    do make_letters(&r, 'a', CODE_LETTERS, codes[k]);
    while (is_among(codes[k], codes[0], sizeof *codes, k));
    if (k == 0) snprintf(codes[k], sizeof *codes, "...");
    for (uint32_t i = zipf_count(size, k + 1); i && n < size; i--) items[n++] = k;
    if (k && k <= N_FREQUENT) task_add_answer(out, codes[k]);
  }
  if (!out->prompt.failed) {
    rng_shuffle(&r, items, n);
    text_addf(&out->prompt,
              "Read this coded text, count its words, and find the three most frequent ones.\n");
    for (uint32_t i = 0; i < n; i++) text_addf(&out->prompt, " %s", codes[items[i]]);
  }
  free(codes);
  free(items);
  out->question_at = out->prompt.n;
  text_addf(&out->prompt,
            "\nQuestion: Which three words are the most frequent in the coded text, apart from the dots? "
            "Answer: The three most frequent words of the coded text are:");
}
