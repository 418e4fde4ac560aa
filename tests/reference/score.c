/* score.c: from queries, keys and values to one score for each candidate. */
#include "reference/allocate.h"
#include "reference/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void *ref_allocate(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (!memory) abort();
  return memory;
}

static uint32_t smaller(uint32_t a, uint32_t b) {
  return a < b ? a : b;
}

static bool is_attention_policy(laprox_policy_kind kind) {
  return kind == LAPROX_POLICY_LAPROX || kind == LAPROX_POLICY_SNAPKV || kind == LAPROX_POLICY_ADAKV ||
         kind == LAPROX_POLICY_PYRAMIDKV;
}

ref_rules ref_rules_decide(const laprox_policy *policy) {
  ref_rules rules = {.kind = policy->kind,
                     .scope = policy->scope,
                     .gqa = policy->gqa,
                     .pool = policy->pool,
                     .pool_width = policy->pool_width,
                     .window = policy->window,
                     .sinks = policy->sinks,
                     .floor = policy->floor,
                     .seed = policy->seed,
                     .pool_before = policy->pool_before == LAPROX_SWITCH_ON,
                     .sinks_yield = policy->sinks == 0};
  if (!rules.kind) rules.kind = LAPROX_POLICY_LAPROX;
  if (!rules.scope)
    rules.scope = rules.kind == LAPROX_POLICY_LAPROX || rules.kind == LAPROX_POLICY_LAYER_DEFENSIVEKV
                      ? LAPROX_SCOPE_GLOBAL
                  : rules.kind == LAPROX_POLICY_ADAKV || rules.kind == LAPROX_POLICY_DEFENSIVEKV
                      ? LAPROX_SCOPE_LAYER
                      : LAPROX_SCOPE_HEAD;
  if (!rules.gqa) rules.gqa = LAPROX_GQA_MEAN;
  if (!rules.pool) rules.pool = LAPROX_POOL_AVERAGE;
  if (!rules.pool_width)
    rules.pool_width = ref_has_stage(rules.kind) && rules.kind != LAPROX_POLICY_CRITICALKV ? 5 : 7;
  if (!policy->pool_width && ref_is_rival(rules.kind)) rules.pool_width = 1;
  if (rules.pool_width == LAPROX_NONE ||
      !(is_attention_policy(rules.kind) || ref_is_rival(rules.kind) || ref_has_stage(rules.kind)))
    rules.pool_width = 1;
  rules.normalize = policy->normalize == LAPROX_SWITCH_ON ||
                    (policy->normalize == LAPROX_SWITCH_AUTO && rules.kind == LAPROX_POLICY_LAPROX);
  if (!rules.window) rules.window = 32;
  if (rules.sinks == LAPROX_NONE)
    rules.sinks = 0;
  else if (!rules.sinks && rules.kind == LAPROX_POLICY_STREAMING)
    rules.sinks = 4;
  else if (!rules.sinks && rules.kind == LAPROX_POLICY_VATP)
    rules.sinks = 20;
  if (rules.floor == LAPROX_NONE) rules.floor = 0;
  return rules;
}

uint32_t ref_budget(ref_rules *rules, const laprox_budget *budget, uint32_t n_tokens) {
  uint32_t least = rules->window + (rules->sinks_yield ? 0 : rules->sinks) + rules->floor;
  uint32_t b = budget->tokens;
  if (least < rules->window + 1) least = rules->window + 1;
  if (rules->kind == LAPROX_POLICY_FULL || (budget->tokens == 0 && budget->share == 0)) return REF_KEEP_ALL;
  if (!b) b = (uint32_t)floor(budget->share * n_tokens + 0.5);
  if (b < least) b = least;
  const uint32_t room = b - rules->window - rules->floor;
  if (rules->sinks_yield)
    rules->sinks = smaller(rules->sinks, rules->kind == LAPROX_POLICY_VATP ? room / 2 : room);
  return b >= n_tokens || n_tokens <= rules->window ? REF_KEEP_ALL : b;
}

void ref_scores_init(ref_scores *scores, const ref_cache *cache, const ref_rules *rules) {
  size_t n_kv_heads = cache->shape.n_kv_heads, n = cache->shape.n_layers * n_kv_heads;
  *scores = (ref_scores){.shape = cache->shape};
  scores->n_entries = ref_allocate(n, sizeof(uint32_t));
  scores->first = ref_allocate(n, sizeof(uint32_t));
  scores->end = ref_allocate(n, sizeof(uint32_t));
  scores->offsets = ref_allocate(n + 1, sizeof(size_t));
  scores->n_nonfinite = ref_allocate(cache->shape.n_layers, sizeof(uint32_t));
  scores->sums = ref_allocate(cache->shape.n_layers, sizeof(double));
  for (size_t i = 0; i < n; i++) {
    uint32_t entries = cache->layers[i / n_kv_heads].heads[i % n_kv_heads].n_entries;
    scores->n_entries[i] = entries;
    scores->end[i] = entries > rules->window ? entries - rules->window : 0;
    scores->first[i] = smaller(cache->head_sinks ? cache->head_sinks[i] : rules->sinks, scores->end[i]);
    scores->offsets[i + 1] = scores->offsets[i] + scores->end[i];
  }
  scores->values = ref_allocate(scores->offsets[n], sizeof(double));
}

void ref_scores_finish(ref_scores *scores) {
  free(scores->n_entries);
  free(scores->first);
  free(scores->end);
  free(scores->offsets);
  free(scores->values);
  free(scores->n_nonfinite);
  free(scores->sums);
  free(scores->ranks);
  free(scores->chosen);
  *scores = (ref_scores){0};
}

/* ---- the two factors ---- */

static const ref_head *head_of(const ref_cache *cache, uint32_t layer, uint32_t h) {
  return &cache->layers[layer].heads[h / (cache->shape.n_heads / cache->shape.n_kv_heads)];
}

/* x[0 … n-1] becomes exp(x) / sum of exp. A NaN or an infinity among them spoils the whole row, as it must.
 */
static void softmax(double *x, size_t n) {
  double largest = -INFINITY, sum = 0;
  for (size_t i = 0; i < n; i++)
    if (x[i] > largest) largest = x[i];
  for (size_t i = 0; i < n; i++) sum += x[i] = exp(x[i] - largest);
  for (size_t i = 0; i < n; i++) x[i] /= sum;
}

void ref_attention(const ref_cache *cache, const ref_rules *rules, uint32_t layer, uint32_t h,
                   double *attention) {
  const ref_head *head = head_of(cache, layer, h);
  size_t d = cache->shape.head_dim, w = rules->window, n = head->n_entries;
  double scale = cache->scale != 0 ? cache->scale : 1 / sqrt((double)d);
  const float *queries =
      cache->layers[layer].query + (h * (size_t)cache->n_queries + cache->n_queries - w) * d;

  memset(attention, 0, w * n * sizeof *attention);
  for (size_t t = 0; t < w; t++) {
    size_t n_visible = n - w + t + 1;
    double *row = attention + t * n;
    for (size_t i = 0; i < n_visible; i++) {
      double dot = 0;
      for (size_t c = 0; c < d; c++) dot += (double)queries[t * d + c] * (double)head->key[i * d + c];
      row[i] = dot * scale;
    }
    softmax(row, n_visible);
  }
}

/* Row i of V W_h: model_dim numbers. */
static void project_value(const ref_cache *cache, uint32_t layer, uint32_t h, size_t i, double *out) {
  const ref_head *head = head_of(cache, layer, h);
  size_t d = cache->shape.head_dim, columns = cache->shape.n_heads * d;
  for (size_t m = 0; m < cache->model_dim; m++) {
    const float *weight = cache->layers[layer].output_weight + m * columns + h * d;
    out[m] = 0;
    for (size_t c = 0; c < d; c++) out[m] += (double)head->value[i * d + c] * (double)weight[c];
  }
}

static double norm(const double *x, size_t n, size_t stride) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += x[i * stride] * x[i * stride];
  return sqrt(sum);
}

void ref_value_norms(const ref_cache *cache, uint32_t layer, uint32_t h, double *norms) {
  double *projected = ref_allocate(cache->model_dim, sizeof *projected);
  for (size_t i = 0; i < head_of(cache, layer, h)->n_entries; i++) {
    project_value(cache, layer, h, i, projected);
    norms[i] = norm(projected, cache->model_dim, 1);
  }
  free(projected);
}

/* ---- one score for each candidate of a KV head, from the r attention matrices of its query heads ---- */

typedef struct head_group {
  const ref_cache *cache;
  uint32_t layer, first_head, n_heads; /* the r query heads */
  size_t n, w;                         /* entries, window */
  double **attention;                  /* r x [w, n] */
  double **norms;                      /* r x [n] */
  double **columns; /* r x [n]: norms of attention columns; with gqa attention-mean the first alone */
} head_group;

/* (1/r) sum over h of |A_h[:, i]| |v_i W_h| */
static double score_mean(const head_group *group, size_t i) {
  double sum = 0;
  for (uint32_t j = 0; j < group->n_heads; j++) sum += group->columns[j][i] * group->norms[j][i];
  return sum / group->n_heads;
}

/* |mean over h of A_h[:, i]| times the mean over h of |v_i W_h| */
static double score_attention_mean(const head_group *group, size_t i) {
  double norms = 0;
  for (uint32_t j = 0; j < group->n_heads; j++) norms += group->norms[j][i] / group->n_heads;
  return group->columns[0][i] * norms;
}

static double mean_column(const head_group *group, size_t i) {
  double squares = 0;
  for (size_t t = 0; t < group->w; t++) {
    double mean = 0;
    for (uint32_t j = 0; j < group->n_heads; j++)
      mean += group->attention[j][t * group->n + i] / group->n_heads;
    squares += mean * mean;
  }
  return sqrt(squares);
}

/* Norms of attention columns, those of candidates [first, end) pooled if they are to be. What is no number counts as 0
   for its neighbours and remains none. */
static void fill_columns(head_group *group, const ref_rules *rules, size_t first, size_t end) {
  for (uint32_t j = 0; j < group->n_heads; j++) {
    double *column = group->columns[j] = ref_allocate(group->n, sizeof *column);
    unsigned char *bad = ref_allocate(group->n, 1);
    for (size_t i = 0; i < group->n; i++) {
      column[i] = rules->gqa == LAPROX_GQA_ATTENTION_MEAN ? mean_column(group, i)
                                                          : norm(group->attention[j] + i, group->w, group->n);
      if (!isfinite(column[i])) bad[i] = 1;
      if (bad[i] && rules->pool_before) column[i] = 0;
    }
    if (rules->pool_before) ref_pool(rules, column + first, end - first);
    for (size_t i = 0; i < group->n; i++)
      if (bad[i]) column[i] = NAN;
    free(bad);
  }
}

/* |sum over h of A_h[:, i] (x) (v_i W_h)|_F, element by element of the window x model_dim matrix */
static double score_joint(const head_group *group, size_t i) {
  size_t n_dims = group->cache->model_dim;
  double *projected = ref_allocate(group->n_heads * n_dims, sizeof *projected), squares = 0;
  for (uint32_t j = 0; j < group->n_heads; j++)
    project_value(group->cache, group->layer, group->first_head + j, i, projected + j * n_dims);
  for (size_t t = 0; t < group->w; t++)
    for (size_t m = 0; m < n_dims; m++) {
      double element = 0;
      for (uint32_t j = 0; j < group->n_heads; j++)
        element += group->attention[j][t * group->n + i] * projected[j * n_dims + m];
      squares += element * element;
    }
  free(projected);
  return sqrt(squares);
}

/* Mean over the group of the attention that the window pays in all. */
static double score_snapkv(const head_group *group, size_t i) {
  double sum = 0;
  for (uint32_t j = 0; j < group->n_heads; j++)
    for (size_t t = 0; t < group->w; t++) sum += group->attention[j][t * group->n + i];
  return sum / group->n_heads;
}

static double score_random(uint32_t seed, uint32_t layer, uint32_t head, uint32_t entry) {
  uint32_t words[3] = {layer, head, entry}, x = seed;
  for (int i = 0; i < 3; i++) {
    x = (x ^ words[i]) * 0x9E3779B1u;
    x ^= x >> 15;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
  }
  return ((x >> 8) + 1) / 16777216.0;
}

static double score_entry(const head_group *group, const ref_rules *rules, uint32_t kv_head, uint32_t i) {
  switch (rules->kind) {
  case LAPROX_POLICY_SNAPKV:
  case LAPROX_POLICY_ADAKV:
  case LAPROX_POLICY_PYRAMIDKV:
    return score_snapkv(group, i);
  case LAPROX_POLICY_STREAMING:
    return (double)i + 1;
  case LAPROX_POLICY_RANDOM:
    return score_random(rules->seed, group->layer, kv_head, i);
  case LAPROX_POLICY_FULL:
    return 0;
  default:
    break;
  }
  if (rules->gqa == LAPROX_GQA_JOINT) return score_joint(group, i);
  return rules->gqa == LAPROX_GQA_ATTENTION_MEAN ? score_attention_mean(group, i) : score_mean(group, i);
}

static void group_init(head_group *group, const ref_cache *cache, const ref_rules *rules, uint32_t layer,
                       uint32_t kv_head) {
  uint32_t r = cache->shape.n_heads / cache->shape.n_kv_heads;
  *group = (head_group){cache,
                        layer,
                        kv_head * r,
                        r,
                        cache->layers[layer].heads[kv_head].n_entries,
                        rules->window,
                        ref_allocate(r, sizeof(double *)),
                        ref_allocate(r, sizeof(double *)),
                        ref_allocate(r, sizeof(double *))};
  if (!is_attention_policy(rules->kind)) return;
  for (uint32_t j = 0; j < r; j++) {
    group->attention[j] = ref_allocate(group->w * group->n, sizeof(double));
    ref_attention(cache, rules, layer, group->first_head + j, group->attention[j]);
    if (rules->kind != LAPROX_POLICY_LAPROX) continue;
    group->norms[j] = ref_allocate(group->n, sizeof(double));
    ref_value_norms(cache, layer, group->first_head + j, group->norms[j]);
  }
}

static void group_finish(head_group *group) {
  for (uint32_t j = 0; j < group->n_heads; j++) {
    free(group->attention[j]);
    free(group->norms[j]);
    free(group->columns[j]);
  }
  free(group->attention);
  free(group->norms);
  free(group->columns);
}

void ref_score_raw(const ref_cache *cache, const ref_rules *rules, ref_scores *scores) {
  for (uint32_t layer = 0; layer < cache->shape.n_layers; layer++)
    for (uint32_t kv_head = 0; kv_head < cache->shape.n_kv_heads; kv_head++) {
      size_t head = (size_t)layer * cache->shape.n_kv_heads + kv_head;
      double *values = scores->values + scores->offsets[head];
      head_group group;
      double *rival = NULL;
      if (scores->first[head] == scores->end[head]) continue;
      group_init(&group, cache, rules, layer, kv_head);
      if (rules->kind == LAPROX_POLICY_LAPROX && rules->gqa != LAPROX_GQA_JOINT)
        fill_columns(&group, rules, scores->first[head], scores->end[head]);
      if (ref_is_rival(rules->kind)) {
        rival = ref_allocate(scores->n_entries[head], sizeof *rival);
        ref_rival_scores(cache, rules, layer, kv_head, rival);
      }
      for (uint32_t i = scores->first[head]; i < scores->end[head]; i++) {
        values[i] = rival ? rival[i] : score_entry(&group, rules, kv_head, i);
        if (isfinite(values[i])) continue;
        values[i] = 0;
        scores->n_nonfinite[layer]++;
      }
      free(rival);
      group_finish(&group);
    }
}

/* ---- pooling, normalising ---- */

/* One pooled score out of the n of a head's candidates. */
static double pool(const ref_rules *rules, const double *values, int64_t n, int64_t i) {
  int64_t half = rules->pool_width / 2;
  double sum = 0, largest = 0;
  for (int64_t j = i - half; j <= i + half; j++) {
    if (j < 0 || j >= n) continue;
    sum += values[j];
    if (values[j] > largest) largest = values[j];
  }
  return rules->pool == LAPROX_POOL_MAX ? largest : sum / rules->pool_width;
}

void ref_pool(const ref_rules *rules, double *values, size_t n) {
  double *pooled = ref_allocate(n, sizeof *pooled);
  for (size_t i = 0; i < n; i++) pooled[i] = pool(rules, values, (int64_t)n, (int64_t)i);
  memcpy(values, pooled, n * sizeof *values);
  free(pooled);
}

void ref_score_pool(const ref_rules *rules, ref_scores *scores) {
  if (rules->pool_before) return;
  for (size_t head = 0; head < (size_t)scores->shape.n_layers * scores->shape.n_kv_heads; head++) {
    double *values = scores->values + scores->offsets[head] + scores->first[head];
    size_t n = scores->end[head] - scores->first[head];
    ref_pool(rules, values, n);
  }
}

void ref_score_normalize(const ref_rules *rules, ref_scores *scores) {
  size_t n_heads = scores->shape.n_kv_heads;
  for (size_t layer = 0; layer < scores->shape.n_layers; layer++) {
    size_t begin = scores->offsets[layer * n_heads], end = scores->offsets[(layer + 1) * n_heads];
    scores->sums[layer] = 0;
    for (size_t i = begin; i < end; i++) scores->sums[layer] += scores->values[i];
    if (!rules->normalize || !(scores->sums[layer] > 0)) continue;
    for (size_t i = begin; i < end; i++) scores->values[i] /= scores->sums[layer];
  }
}

void ref_score(const ref_cache *cache, const ref_rules *rules, ref_scores *scores) {
  ref_scores_init(scores, cache, rules);
  if (ref_has_stage(rules->kind)) {
    ref_stage_scores(cache, rules, scores);
    return;
  }
  ref_score_raw(cache, rules, scores);
  ref_score_pool(rules, scores);
  ref_score_normalize(rules, scores);
}
