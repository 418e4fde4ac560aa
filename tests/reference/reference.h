/* reference.h: the truth that the GPU is held against.
 *
 * LaProx and the other policies in plain C and f64, straight from the formulas: V W_O is materialised, the
 * softmax is a full one, selection is a sort. Slow and obvious on purpose, and it shares no code with the
 * library: only the public types. Caches may be ragged; every head has its own number of entries, and the
 * observation window is the last `window` entries of each. Memory that cannot be had ends the program: this
 * is a test instrument.
 */
#ifndef REFERENCE_H
#define REFERENCE_H

#include "laprox/laprox.h"

/* The budget that keeps everything. */
#define REF_KEEP_ALL UINT32_MAX

/* Cache of one (layer, KV head). f32 holds every f16 and bf16 value exactly. */
typedef struct ref_head {
  uint32_t n_entries;
  const float *key, *value; /* [n_entries, head_dim] */
} ref_head;

typedef struct ref_layer {
  const float *query; /* [n_heads, n_queries, head_dim]; the last `window` of the n_queries rows are used */
  const float *output_weight; /* [model_dim, n_heads * head_dim] */
  const ref_head *heads;      /* n_kv_heads */
} ref_layer;

typedef struct ref_cache {
  laprox_shape shape;
  uint32_t model_dim;
  uint32_t n_queries;
  double scale;            /* 0 = 1 / sqrt(head_dim) */
  const ref_layer *layers; /* n_layers */
  const uint32_t
      *head_sinks; /* protected leading entries of each (layer, KV head); NULL = the policy's sinks */
} ref_cache;

/* A policy with every default decided. */
typedef struct ref_rules {
  laprox_policy_kind kind;
  laprox_scope scope;
  laprox_gqa gqa;
  laprox_pool pool;
  uint32_t pool_width; /* 1 = none */
  bool normalize;
  uint32_t window, sinks, floor, seed;
  bool pool_before; /* attention norms, before they meet values */
  bool sinks_yield; /* to a budget that has no room for them: ref_budget makes them fewer */
} ref_rules;

ref_rules ref_rules_decide(const laprox_policy *policy);
/* Entries per head on average, or REF_KEEP_ALL. */
uint32_t ref_budget(ref_rules *rules, const laprox_budget *budget, uint32_t n_tokens);

/* Scores of all (layer, KV head) pairs, numbered layer-major. Head i has the entries 0 … n_entries[i] - 1;
   those before first[i] are sinks, those from end[i] on are the window, the rest are candidates. The score of
   entry e stands at values[offsets[i] + e], for e < end[i]; a sink's is 0. */
typedef struct ref_scores {
  laprox_shape shape;
  uint32_t *n_entries, *first, *end; /* n_layers * n_kv_heads */
  size_t *offsets;                   /* one more than that */
  double *values;
  uint32_t *n_nonfinite; /* of each layer, before pooling, after the reduction over the group */
  double *sums;          /* of each layer, after pooling, before normalising */
  /* of policies that choose some entries by attention alone before they go by the scores: what they choose by, and
     which ones; NULL for the others */
  double *ranks;
  unsigned char *chosen;
} ref_scores;

/* The geometry alone, all scores 0. */
void ref_scores_init(ref_scores *scores, const ref_cache *cache, const ref_rules *rules);
void ref_scores_finish(ref_scores *scores);
/* The steps of a score, each in place. */
void ref_score_raw(const ref_cache *cache, const ref_rules *rules, ref_scores *scores);
void ref_score_pool(const ref_rules *rules, ref_scores *scores);
/* One row of n numbers, in place. */
void ref_pool(const ref_rules *rules, double *values, size_t n);
void ref_score_normalize(const ref_rules *rules, ref_scores *scores);
/* init and all steps. */
void ref_score(const ref_cache *cache, const ref_rules *rules, ref_scores *scores);

/* beta: |v W_h| of every entry of a head, with V W_h materialised; h is the query head. */
void ref_value_norms(const ref_cache *cache, uint32_t layer, uint32_t h, double *norms);
/* A_h, [window, n_entries] of the query head's KV head. */
void ref_attention(const ref_cache *cache, const ref_rules *rules, uint32_t layer, uint32_t h,
                   double *attention);

/* What survives: entries [offsets[i], offsets[i + 1]) of head i, ascending, sinks and window included. */
typedef struct ref_kept {
  size_t n_heads; /* n_layers * n_kv_heads */
  size_t *offsets;
  uint32_t *entries;
} ref_kept;

void ref_select(const ref_scores *scores, const ref_rules *rules, uint32_t budget, ref_kept *out);
void ref_kept_finish(ref_kept *kept);

/* Scores of all entries of a KV head under the policies that rivals.c knows. */
bool ref_is_rival(laprox_policy_kind kind);
void ref_rival_scores(const ref_cache *cache, const ref_rules *rules, uint32_t layer, uint32_t kv_head,
                      double *values);
/* criticalkv and defensivekv: complete scores, ranks, and entries that are chosen before. */
bool ref_has_stage(laprox_policy_kind kind);
void ref_stage_scores(const ref_cache *cache, const ref_rules *rules, ref_scores *scores);
void ref_stage_choose(const ref_rules *rules, uint32_t budget, ref_scores *scores);
/* Puts others' choice, the entries whose score is FLT_MAX, in the place of the reference's, if it is as good within the
   tolerance: NULL, or `message`. */
const char *ref_stage_adopt(const ref_rules *rules, uint32_t budget, const float *got, double tolerance,
                            ref_scores *scores, char *message);
/* Candidates that each (layer, KV head) keeps under pyramidkv and adakv, by their own formulas (rivals.c). */
void ref_pyramid_places(const ref_scores *scores, const ref_rules *rules, uint32_t budget, size_t *places);
void ref_adakv_places(const ref_scores *scores, const ref_rules *rules, uint32_t budget, size_t *places);
/* Candidates that survive among heads [first, last) where nothing else is said. */
size_t ref_equal_places(const ref_scores *scores, const ref_rules *rules, uint32_t budget, size_t first,
                        size_t last);

/* ---- holding something against the truth: NULL, or `message` filled with the first violation ---- */

#define REF_MESSAGE_BYTES 256

/* `got` has one f32 for each of scores->values. tolerance: share of the head's largest score. */
const char *ref_check_scores(const ref_scores *scores, const float *got, double tolerance,
                             char message[REF_MESSAGE_BYTES]);
/* The right number of entries in each selection problem, strictly ascending, sinks and window among them, and
   a set that some scores lead to which differ from the true ones by at most `tolerance` of the head's
   largest: every kept entry is then at least as good as every dropped one it competed with, give or take both
   their errors. With tolerance 0 the set must be the reference's. *n_different (may be NULL) counts the
   reference's entries that are missing. */
const char *ref_check_kept(const ref_scores *scores, const ref_rules *rules, uint32_t budget,
                           double tolerance, const ref_kept *got, size_t *n_different,
                           char message[REF_MESSAGE_BYTES]);
/* Whether somebody's own scores, `got` as above, lead to exactly their choice: the cut and the ties leave no room. */
const char *ref_check_choice(const ref_scores *scores, const float *got, const ref_rules *rules,
                             uint32_t budget, const ref_kept *kept, char message[REF_MESSAGE_BYTES]);

#endif
