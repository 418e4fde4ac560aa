/* rivals.c: what other policies do differently, each straight from its paper's formula. */
#include "reference/allocate.h"
#include "reference/reference.h"

#include <math.h>
#include <stdlib.h>

bool ref_is_rival(laprox_policy_kind kind) {
  return kind == LAPROX_POLICY_VATP || kind == LAPROX_POLICY_TOVA || kind == LAPROX_POLICY_KEYDIFF ||
         kind == LAPROX_POLICY_KNORM;
}

/* ---- scores ---- */

/* values[i] += weight * the attention that query heads [h, h_end) pay to entry i in window queries [t, w). */
static void add_attention(const ref_cache *cache, const ref_rules *rules, uint32_t layer, uint32_t h,
                          uint32_t h_end, uint32_t t, double weight, size_t n, double *values) {
  double *attention = ref_allocate(rules->window * n, sizeof *attention);
  for (; h < h_end; h++) {
    ref_attention(cache, rules, layer, h, attention);
    for (size_t at = t * n; at < rules->window * n; at++) values[at % n] += weight * attention[at];
  }
  free(attention);
}

/* Sum over the queries, mean over the group. */
static void window_attention(const ref_cache *cache, const ref_rules *rules, uint32_t layer, uint32_t kv_head,
                             size_t n, double *values) {
  const uint32_t r = cache->shape.n_heads / cache->shape.n_kv_heads;
  add_attention(cache, rules, layer, kv_head * r, (kv_head + 1) * r, 0, 1.0 / r, n, values);
}

static double length(const float *x, size_t d) {
  double sum = 0;
  for (size_t c = 0; c < d; c++) sum += (double)x[c] * (double)x[c];
  return sqrt(sum);
}

static void key_differences(const ref_head *head, size_t d, double *values) {
  double *anchor = ref_allocate(d, sizeof *anchor), size = 0;
  for (size_t i = 0; i < head->n_entries; i++) {
    const double own = length(head->key + i * d, d);
    for (size_t c = 0; c < d && own != 0; c++) anchor[c] += (double)head->key[i * d + c] / own;
  }
  for (size_t c = 0; c < d; c++) size += anchor[c] * anchor[c];
  for (size_t i = 0; i < head->n_entries; i++) {
    const double scale = length(head->key + i * d, d) * sqrt(size);
    double dot = 0;
    for (size_t c = 0; c < d; c++) dot += (double)head->key[i * d + c] * anchor[c];
    values[i] = 1 - (scale != 0 ? dot / scale : 0);
  }
  free(anchor);
}

void ref_rival_scores(const ref_cache *cache, const ref_rules *rules, uint32_t layer, uint32_t kv_head,
                      double *values) {
  const ref_head *head = &cache->layers[layer].heads[kv_head];
  const size_t n = head->n_entries, d = cache->shape.head_dim;
  if (rules->kind == LAPROX_POLICY_KEYDIFF) key_differences(head, d, values);
  if (rules->kind == LAPROX_POLICY_KNORM)
    for (size_t i = 0; i < n; i++) values[i] = 1 / (1 + length(head->key + i * d, d));
  if (rules->kind == LAPROX_POLICY_TOVA)
    for (uint32_t h = 0; h < cache->shape.n_heads; h++)
      add_attention(cache, rules, layer, h, h + 1, rules->window - 1, 1.0 / cache->shape.n_heads, n, values);
  if (rules->kind == LAPROX_POLICY_VATP) {
    window_attention(cache, rules, layer, kv_head, n, values);
    for (size_t i = 0; i < n; i++) {
      double size = 0;
      for (size_t c = 0; c < d; c++) size += fabs((double)head->value[i * d + c]);
      values[i] *= size;
    }
  }
}

/* ---- places ---- */

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
