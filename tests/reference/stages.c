/* stages.c: policies that choose some entries by attention alone and the others by what their values add to it. */
#include "reference/allocate.h"
#include "reference/reference.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool ref_has_stage(laprox_policy_kind kind) {
  return kind == LAPROX_POLICY_CRITICALKV || kind == LAPROX_POLICY_DEFENSIVEKV ||
         kind == LAPROX_POLICY_LAYER_DEFENSIVEKV;
}

/* ---- scores ---- */

/* Sum of |v_i W_h| over the model's dimensions, mean over the group. */
static double projected_size(const ref_cache *cache, uint32_t layer, uint32_t kv_head, size_t i) {
  const size_t d = cache->shape.head_dim, r = cache->shape.n_heads / cache->shape.n_kv_heads;
  const float *value = cache->layers[layer].heads[kv_head].value + i * d;
  double size = 0;
  for (size_t h = kv_head * r; h < (kv_head + 1) * r; h++)
    for (size_t m = 0; m < cache->model_dim; m++) {
      const float *weight = cache->layers[layer].output_weight + (m * cache->shape.n_heads + h) * d;
      double dot = 0;
      for (size_t c = 0; c < d; c++) dot += (double)value[c] * (double)weight[c];
      size += fabs(dot);
    }
  return size / (double)r;
}

/* What is no number becomes 0 and is marked in bad[]. */
static void clean(double *values, size_t n, unsigned char *bad) {
  for (size_t i = 0; i < n; i++) {
    if (isfinite(values[i])) continue;
    values[i] = 0;
    bad[i] = 1;
  }
}

/* Candidates [0, n) of a head, whose first entry is `first`: attention by rows, every query of every head of the group;
   ranks: its sum over the queries, mean over the group; risks: the most of a row after pooling it. */
static void head_attention(const ref_cache *cache, const ref_rules *rules, uint32_t layer, uint32_t kv_head,
                           uint32_t first, size_t n, double *ranks, double *risks) {
  const size_t n_entries = cache->layers[layer].heads[kv_head].n_entries;
  const uint32_t r = cache->shape.n_heads / cache->shape.n_kv_heads;
  double *attention = ref_allocate(rules->window * n_entries, sizeof *attention);
  for (uint32_t h = kv_head * r; h < (kv_head + 1) * r; h++) {
    ref_attention(cache, rules, layer, h, attention);
    for (size_t t = 0; t < rules->window; t++) {
      double *row = attention + t * n_entries + first;
      for (size_t i = 0; i < n; i++) ranks[i] += row[i] / r;
      ref_pool(rules, row, n);
      for (size_t i = 0; i < n; i++) risks[i] = isnan(row[i]) || row[i] > risks[i] ? row[i] : risks[i];
    }
  }
  free(attention);
}

/* Attention's part of the scores, into values[]; what is no number is marked in bad[]. */
static void attention_scores(const ref_cache *cache, const ref_rules *rules, ref_scores *scores,
                             unsigned char *bad) {
  const size_t n_heads = scores->shape.n_kv_heads;
  for (size_t head = 0; head < scores->shape.n_layers * n_heads; head++) {
    const size_t at = scores->offsets[head] + scores->first[head],
                 n = scores->end[head] - scores->first[head];
    double *ranks = scores->ranks + at, *values = scores->values + at, sum = 0;
    head_attention(cache, rules, (uint32_t)(head / n_heads), (uint32_t)(head % n_heads), scores->first[head],
                   n, ranks, values);
    clean(ranks, n, bad + at);
    clean(values, n, bad + at);
    if (rules->kind == LAPROX_POLICY_CRITICALKV) {
      ref_pool(rules, ranks, n);
      memcpy(values, ranks, n * sizeof *values);
      continue;
    }
    for (size_t i = 0; i < n; i++) sum += values[i];
    for (size_t i = 0; i < n; i++) values[i] = fmax(values[i], sum / (double)n);
  }
}

void ref_stage_scores(const ref_cache *cache, const ref_rules *rules, ref_scores *scores) {
  const size_t n_heads = scores->shape.n_kv_heads, n = scores->offsets[scores->shape.n_layers * n_heads];
  double *sizes = ref_allocate(n, sizeof *sizes);
  unsigned char *bad = ref_allocate(n, 1);
  scores->ranks = ref_allocate(n, sizeof *scores->ranks);
  scores->chosen = ref_allocate(n, 1);
  attention_scores(cache, rules, scores, bad);
  for (size_t head = 0; head < scores->shape.n_layers * n_heads; head++)
    for (uint32_t e = scores->first[head]; e < scores->end[head]; e++)
      sizes[scores->offsets[head] + e] =
          projected_size(cache, (uint32_t)(head / n_heads), (uint32_t)(head % n_heads), e);
  for (size_t head = 0; head < scores->shape.n_layers * n_heads; head++)
    for (uint32_t e = scores->first[head]; e < scores->end[head]; e++) {
      const size_t i = scores->offsets[head] + e, layer = head / n_heads;
      double factor = sizes[i], together = 0;
      for (size_t g = 0; g < n_heads && rules->kind != LAPROX_POLICY_CRITICALKV; g++)
        together += sizes[scores->offsets[layer * n_heads + g] + e];
      if (rules->kind != LAPROX_POLICY_CRITICALKV) factor = isfinite(together) ? factor / together : NAN;
      if (rules->kind != LAPROX_POLICY_CRITICALKV && together == 0) factor = 0;
      scores->values[i] *= factor;
      if (isfinite(scores->values[i]) && !bad[i]) continue;
      scores->values[i] = 0;
      scores->n_nonfinite[layer]++;
    }
  free(sizes);
  free(bad);
}

/* ---- the first stage ---- */

typedef struct ranked {
  double rank;
  size_t at;
} ranked;

static int compare(const void *left, const void *right) {
  const ranked *a = left, *b = right;
  if (a->rank != b->rank) return a->rank > b->rank ? -1 : 1;
  return a->at < b->at ? -1 : a->at > b->at;
}

/* Candidates of heads [first, last), best first. */
static ranked *sort_ranks(const ref_scores *scores, size_t first, size_t last, size_t *n) {
  ranked *list = ref_allocate(scores->offsets[last] - scores->offsets[first], sizeof *list);
  *n = 0;
  for (size_t head = first; head < last; head++)
    for (uint32_t e = scores->first[head]; e < scores->end[head]; e++)
      list[(*n)++] = (ranked){scores->ranks[scores->offsets[head] + e], scores->offsets[head] + e};
  qsort(list, *n, sizeof *list, compare);
  return list;
}

static size_t stage_step(const ref_scores *scores, const ref_rules *rules) {
  return rules->kind == LAPROX_POLICY_CRITICALKV && rules->scope == LAPROX_SCOPE_LAYER
             ? scores->shape.n_kv_heads
             : 1;
}

/* How many of the best come before the scores count: half the places; or those that stay below 9/10 of the sum, at most
   the places. */
static size_t stage_places(const ref_rules *rules, const ranked *list, size_t n, size_t places) {
  if (rules->kind == LAPROX_POLICY_CRITICALKV) return places / 2;
  double all = 0, sum = 0;
  size_t k = 0;
  for (size_t i = 0; i < n; i++) all += list[i].rank;
  while (k < n && k < places && sum + list[k].rank < 0.9 * all) sum += list[k++].rank;
  return k;
}

void ref_stage_choose(const ref_rules *rules, uint32_t budget, ref_scores *scores) {
  const size_t n_heads = (size_t)scores->shape.n_layers * scores->shape.n_kv_heads;
  const size_t step = stage_step(scores, rules);
  for (size_t first = 0; first < n_heads; first += step) {
    size_t n;
    ranked *list = sort_ranks(scores, first, first + step, &n);
    const size_t k =
        stage_places(rules, list, n, ref_equal_places(scores, rules, budget, first, first + step));
    for (size_t i = 0; i < k; i++) scores->chosen[list[i].at] = 1;
    free(list);
  }
}

/* One problem's choice: no chosen entry clearly worse than one that is not; as many as there should be, or with a sum
   clearly on the wrong side of 9/10 neither without nor with the next one. */
static const char *check_choice(const ref_rules *rules, const float *got, const ranked *list, size_t n,
                                size_t places, double tolerance, char *message) {
  const double error = n ? tolerance * list[0].rank : 0;
  double worst = INFINITY, best = 0, all = 0, sum = 0;
  size_t k = 0;
  for (size_t i = 0; i < n; i++) {
    const bool chosen = got[list[i].at] == FLT_MAX;
    all += list[i].rank;
    sum += chosen ? list[i].rank : 0;
    k += chosen;
    if (chosen && list[i].rank < worst) worst = list[i].rank;
    if (!chosen && list[i].rank > best) best = list[i].rank;
  }
  const size_t expected = stage_places(rules, list, n, places);
  const bool critical = rules->kind == LAPROX_POLICY_CRITICALKV;
  const bool enough = k == places || k == n || sum + best > (0.9 - tolerance) * all;
  if (worst + 2 * error < best || (critical && k != expected) ||
      (!critical && k != expected && (k > places || !enough || sum > (0.9 + tolerance) * all))) {
    snprintf(message, REF_MESSAGE_BYTES,
             "score number %zu and %zu more: %zu chosen instead of %zu, the worst "
             "%.9g, the best of the others %.9g",
             list[0].at, n, k, expected, worst, best);
    return message;
  }
  return NULL;
}

const char *ref_stage_adopt(const ref_rules *rules, uint32_t budget, const float *got, double tolerance,
                            ref_scores *scores, char *message) {
  const size_t n_heads = (size_t)scores->shape.n_layers * scores->shape.n_kv_heads;
  const size_t step = stage_step(scores, rules);
  const char *complaint = NULL;
  for (size_t first = 0; first < n_heads && !complaint; first += step) {
    size_t n;
    ranked *list = sort_ranks(scores, first, first + step, &n);
    complaint =
        check_choice(rules, got, list, n, ref_equal_places(scores, rules, budget, first, first + step),
                     tolerance, message);
    free(list);
  }
  for (size_t i = 0; i < scores->offsets[n_heads]; i++) scores->chosen[i] = got[i] == FLT_MAX;
  return complaint;
}
