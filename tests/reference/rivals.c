/* rivals.c: what other policies do differently, each straight from its paper's formula. */
#include "reference/allocate.h"
#include "reference/reference.h"

#include <math.h>
#include <stdlib.h>

/* Rounds shares[i] / divisor down and gives what is left, one each, to the largest remainders, the first ones among
   equals. No share exceeds most[i]; what it had more goes on to the next. */
static void round_shares(const int64_t *shares, int64_t divisor, const int64_t *most, int64_t left, size_t n,
                         size_t *out) {
  int64_t *rests = ref_allocate(n, sizeof *rests);
  for (size_t i = 0; i < n; i++) {
    const int64_t whole = shares[i] / divisor;
    rests[i] = shares[i] % divisor;
    out[i] = (size_t)(whole < most[i] ? whole : most[i]);
    left -= (int64_t)out[i];
  }
  while (left-- > 0) {
    size_t best = n;
    for (size_t i = 0; i < n; i++)
      if ((int64_t)out[i] < most[i] && (best == n || rests[i] > rests[best])) best = i;
    if (best == n) break;
    out[best]++;
    rests[best] = -1;
  }
  free(rests);
}

/* Places p a head on average: 2 p - p / 20 in the first layer, p / 20 in the last, a straight line between; if the
   first layer has not so many, all it has, and the line the other way round its middle. */
void ref_pyramid_places(const ref_scores *scores, const ref_rules *rules, uint32_t budget, size_t *places) {
  const size_t n_layers = scores->shape.n_layers, n_heads = scores->shape.n_kv_heads;
  const int64_t mean = (int64_t)budget - rules->window, steps = n_layers > 1 ? (int64_t)n_layers - 1 : 1;
  int64_t most = 0;
  for (size_t i = 0; i < n_layers * n_heads; i++) most = scores->end[i] > most ? scores->end[i] : most;
  double last = (double)mean / 20, first = 2 * (double)mean - last;
  if (first > (double)most) {
    first = (double)most;
    last = 2 * (double)mean - first;
  }
  if (n_layers == 1) first = (double)mean;
  int64_t *shares = ref_allocate(n_layers, sizeof *shares), *limits = ref_allocate(n_layers, sizeof *limits);
  size_t *rounded = ref_allocate(n_layers, sizeof *rounded);
  for (size_t l = 0; l < n_layers; l++) {
    shares[l] = llround((first - (double)l * (first - last) / (double)steps) * 20 * (double)steps);
    limits[l] = most;
  }
  round_shares(shares, 20 * steps, limits, mean * (int64_t)n_layers, n_layers, rounded);
  for (size_t i = 0; i < n_layers * n_heads; i++) {
    const size_t own = rounded[i / n_heads], candidates = scores->end[i] - scores->first[i];
    places[i] = own > scores->first[i] ? own - scores->first[i] : 0;
    if (places[i] > candidates) places[i] = candidates;
  }
  free(shares);
  free(limits);
  free(rounded);
}

/* How many of a layer's `n` best scores belong to each of its heads: the n-th best is found by counting, for every
   score, how many come before it. */
static void count_winners(const ref_scores *scores, size_t first, size_t last, size_t n, int64_t *won) {
  const size_t begin = scores->offsets[first], end = scores->offsets[last];
  for (size_t head = first; head < last; head++)
    for (uint32_t e = scores->first[head]; e < scores->end[head]; e++) {
      const size_t at = scores->offsets[head] + e;
      size_t before = 0;
      for (size_t other = first, i = begin; i < end; i++) {
        while (i >= scores->offsets[other + 1]) other++;
        if (i - scores->offsets[other] < scores->first[other]) continue;
        before +=
            scores->values[i] > scores->values[at] || (scores->values[i] == scores->values[at] && i < at);
      }
      won[head - first] += before < n;
    }
}

/* 4/5 of what a head wins within its layer and 1/5 of an equal share. */
void ref_adakv_places(const ref_scores *scores, const ref_rules *rules, uint32_t budget, size_t *places) {
  const size_t n_heads = scores->shape.n_kv_heads;
  int64_t *won = ref_allocate(n_heads, sizeof *won), *most = ref_allocate(n_heads, sizeof *most);
  for (size_t layer = 0; layer < scores->shape.n_layers; layer++) {
    const size_t first = layer * n_heads;
    const size_t n = ref_equal_places(scores, rules, budget, first, first + n_heads);
    for (size_t g = 0; g < n_heads; g++) {
      won[g] = 0;
      most[g] = scores->end[first + g] - scores->first[first + g];
    }
    count_winners(scores, first, first + n_heads, n, won);
    for (size_t g = 0; g < n_heads; g++) won[g] = 4 * won[g] * (int64_t)n_heads + (int64_t)n;
    round_shares(won, 5 * (int64_t)n_heads, most, (int64_t)n, n_heads, places + first);
  }
  free(won);
  free(most);
}
