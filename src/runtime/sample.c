/* sample.c: the next token from logits: greedy, or temperature, top-k and top-p with a seed. */
#include "laprox/runtime.h"

#include <math.h>

/* A token that is still in the running; the scratch buffer holds them, two floats' room each. */
typedef struct option {
  float logit;
  uint32_t token;
} option;

_Static_assert(sizeof(option) == 2 * sizeof(float), "the scratch of laprox_sample is 2 floats a token");

/* splitmix64: any state is a good one, 0 included. */
static double uniform(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return (double)(z >> 11) * 0x1p-53;
}

static uint32_t greedy(const float *logits, uint32_t n_vocab) {
  uint32_t best = UINT32_MAX;
  for (uint32_t i = 0; i < n_vocab; i++) {
    if (isnan(logits[i])) continue;
    if (best == UINT32_MAX || logits[i] > logits[best]) best = i;
  }
  return best == UINT32_MAX ? 0 : best;
}

static bool better(option a, option b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

/* Sinks options[at] to its place in a heap with the worst of n on top. */
static void sift(option *options, uint32_t n, uint32_t at) {
  option moved = options[at];
  for (;;) {
    uint32_t child = 2 * at + 1;
    if (child >= n) break;
    if (child + 1 < n && better(options[child], options[child + 1])) child++;
    if (!better(moved, options[child])) break;
    options[at] = options[child];
    at = child;
  }
  options[at] = moved;
}

static void make_heap(option *options, uint32_t n) {
  for (uint32_t i = n / 2; i > 0; i--) sift(options, n, i - 1);
}

/* Leaves the best k of n in front, unordered. */
static void keep_best(option *options, uint32_t n, uint32_t k) {
  make_heap(options, k);
  for (uint32_t i = k; i < n; i++) {
    if (!better(options[i], options[0])) continue;
    options[0] = options[i];
    sift(options, k, 0);
  }
}

/* Best first: the worst of a shrinking heap goes to its end. */
static void sort_best_first(option *options, uint32_t n) {
  make_heap(options, n);
  for (uint32_t end = n; end > 1; end--) {
    option worst = options[0];
    options[0] = options[end - 1];
    options[end - 1] = worst;
    sift(options, end - 1, 0);
  }
}

static double weight(option o, double highest, double temperature) {
  return exp(((double)o.logit - highest) / temperature);
}

/* The smallest number of options, best first, whose probabilities reach top_p. */
static uint32_t nucleus(const option *options, uint32_t n, double highest, double temperature, double top_p) {
  double total = 0, sum = 0;
  for (uint32_t i = 0; i < n; i++) total += weight(options[i], highest, temperature);
  for (uint32_t i = 0; i < n; i++) {
    sum += weight(options[i], highest, temperature);
    if (sum >= top_p * total) return i + 1;
  }
  return n;
}

static uint32_t draw(laprox_sampler *sampler, option *options, uint32_t n, double highest) {
  double temperature = (double)sampler->temperature, total = 0, sum = 0;
  double at = uniform(&sampler->state);
  for (uint32_t i = 0; i < n; i++) total += weight(options[i], highest, temperature);
  uint32_t last = options[0].token;
  for (uint32_t i = 0; i < n; i++) {
    double w = weight(options[i], highest, temperature);
    sum += w;
    if (w > 0) last = options[i].token;
    if (at * total < sum) return options[i].token;
  }
  return last;
}

uint32_t laprox_sample(laprox_sampler *sampler, const float *logits, uint32_t n_vocab, float *scratch) {
  uint32_t best = greedy(logits, n_vocab);
  /* An infinite best logit leaves nothing to draw, and NaN settings are no settings. */
  bool drawing = sampler->temperature > 0 && scratch && n_vocab > 0;
  if (!drawing || !isfinite(logits[best])) return best;

  option *options = (option *)(void *)scratch;
  uint32_t n = 0;
  for (uint32_t i = 0; i < n_vocab; i++)
    if (isfinite(logits[i])) options[n++] = (option){logits[i], i};
  if (sampler->top_k > 0 && sampler->top_k < n) {
    keep_best(options, n, sampler->top_k);
    n = sampler->top_k;
  }
  double highest = (double)logits[best];
  if (sampler->top_p > 0 && sampler->top_p < 1) {
    sort_best_first(options, n);
    n = nucleus(options, n, highest, (double)sampler->temperature, (double)sampler->top_p);
  }
  return draw(sampler, options, n, highest);
}
