/* bench_kernels.c: every kernel on a cache of one shape, in every variant that the device takes. */
#include "bench_kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- rows ---- */

static bool has_prefix(const char *name, const char *const *prefixes) {
  for (; *prefixes; prefixes++)
    if (!strncmp(name, *prefixes, strlen(*prefixes))) return true;
  return false;
}

static uint32_t needs_of(const char *shader) {
  for (size_t i = 0; i < lpx_n_shaders; i++)
    if (!strcmp(lpx_shaders[i].name, shader)) return lpx_shaders[i].needs;
  return 0;
}

static const char *variant_of(uint32_t needs) {
  for (uint32_t i = LAPROX_N_VARIANTS; i-- > 0;)
    if (needs >> i & 1) return laprox_variant_name(1u << i);
  return "baseline";
}

/* A row for what the shaders of these profiles do that begin with one of the prefixes (NULL: all); NULL where an
 * earlier variant had the very same, or there are none. */
static bench_result *add_row(bench_round *r, const char *kernel, const bench_profile *profile,
                             const char *const *prefixes) {
  char shaders[sizeof r->b->results->shaders] = "";
  uint32_t needs = 0;
  size_t used = 0;
  for (int i = 0; i < profile->n_shaders; i++) {
    const char *name = profile->rows[i].shader;
    if ((prefixes && !has_prefix(name, prefixes)) || used >= sizeof shaders) continue;
    used += (size_t)snprintf(shaders + used, sizeof shaders - used, "%s%s", used ? "," : "", name);
    needs |= needs_of(name);
  }
  if (!used) return NULL;
  const bench_shape *shape = &r->cache->of;
  for (size_t i = 0; i < r->b->n_results; i++) {
    const bench_result *other = &r->b->results[i];
    if (!strcmp(other->kernel, kernel) && !strcmp(other->shaders, shaders) &&
        !strcmp(other->shape.geometry, shape->geometry) && other->shape.n_tokens == shape->n_tokens)
      return NULL;
  }
  bench_result *row = bench_add(r->b, kernel, shape);
  if (!row) return NULL;
  memcpy(row->shaders, shaders, sizeof row->shaders);
  row->variant = variant_of(needs);
  return row;
}

/* ---- what kernels have to move and to compute ---- */

static double query_group(const bench_cache *cache) {
  return (double)cache->of.shape.n_heads / cache->of.shape.n_kv_heads;
}

static double row_bytes(const bench_cache *cache) {
  return (double)bench_cache_row_bytes(cache);
}

/* Passes over K; the column norms of every query head. */
static void count_passes(const bench_cache *cache, double passes, bench_result *row) {
  const double n = (double)bench_cache_entries(cache),
               window = cache->b->policy.window ? cache->b->policy.window : 32;
  row->bytes += n * (passes * row_bytes(cache) + 4 * query_group(cache));
  row->flops += passes * 2 * window * query_group(cache) * n * cache->of.shape.head_dim;
}

static void count_attention(const bench_cache *cache, bench_result *row) {
  count_passes(cache, 2, row);
}

/* One pass over V; the product with an upper triangular factor. */
static void count_values(const bench_cache *cache, bench_result *row) {
  const double n = (double)bench_cache_entries(cache), group = query_group(cache),
               d = cache->of.shape.head_dim;
  row->bytes += n * (row_bytes(cache) + 4 * group + 4);
  row->flops +=
      n * (cache->b->policy.gqa == LAPROX_GQA_JOINT ? group * d * (group * d + 1) : group * d * (d + 1));
}

static void count_pool(const bench_cache *cache, bench_result *row) {
  row->bytes += 8 * (double)bench_cache_entries(cache);
}

/* Three readings of the scores: their range, a histogram, and who is in.  */
static void count_select(const bench_eviction *eviction, bench_result *row) {
  row->bytes += 12 * (double)bench_cache_entries(eviction->cache) + 4 * (double)eviction->needs.n_kept;
}

static void count_compact(const bench_eviction *eviction, bench_result *row) {
  row->bytes += 4 * (double)eviction->needs.n_kept * row_bytes(eviction->cache);
}

/* ---- scoring, kernel by kernel ---- */

static const struct group {
  const char *kernel;
  const char *const prefixes[5];
  void (*count)(const bench_cache *cache, bench_result *row);
} groups[] = {
    {"window attention", {"window_", "attention_norm", "attention_gram"}, count_attention},
    {"value norm", {"value_"}, count_values},
    {"pool and sums", {"pool", "layer_sum", "token_sum", "synthetic"}, count_pool},
};
enum { N_GROUPS = sizeof groups / sizeof *groups };

/* The repetitions' times of those shaders. */
static void fill_timing(const bench_profile *profile, const char *const *prefixes, bench_timing *out) {
  *out = (bench_timing){.n = profile->n_repeats};
  for (int i = 0; i < profile->n_shaders; i++)
    for (int t = 0; t < out->n && has_prefix(profile->rows[i].shader, prefixes); t++)
      out->us[t] += profile->rows[i].us[t];
  for (int t = 0; t < out->n; t++) out->wall_us[t] = out->us[t];
  bench_sort(out);
}

static laprox_result time_score_kernels(bench_round *r, const bench_part *part, const bench_profile *names) {
  bench *b = r->b;
  bench_profile profile;
  const struct group *of[N_GROUPS];
  const size_t first = b->n_results;
  for (size_t g = 0; g < N_GROUPS && b->stamps; g++) {
    bench_result *row = add_row(r, groups[g].kernel, names, groups[g].prefixes);
    if (!row) continue;
    groups[g].count(r->cache, row);
    of[b->n_results - 1 - first] = &groups[g];
  }
  if (b->n_results == first) return LAPROX_OK;
  const laprox_result result = bench_take_profile(b, part, 1, 0, &profile);
  for (size_t i = first; i < b->n_results && !result; i++)
    fill_timing(&profile, of[i - first]->prefixes, &b->results[i].timing);
  return result;
}

static void count_score(const bench_round *r, const bench_profile *names, bench_result *row) {
  for (size_t g = 0; g < N_GROUPS; g++) {
    bool used = false;
    for (int i = 0; i < names->n_shaders; i++)
      used = used || has_prefix(names->rows[i].shader, groups[g].prefixes);
    if (used) groups[g].count(r->cache, row);
  }
}

/* ---- the pass ---- */

/* The parts' own row; `names` receives their shaders, and they have run. */
static laprox_result time_row(bench_round *r, const char *kernel, const bench_part *parts, size_t n_parts,
                              bench_profile *names, bench_result **out) {
  *out = NULL;
  const laprox_result result = bench_take_profile(r->b, parts, n_parts, 1, names);
  if (result) return result;
  *out = add_row(r, kernel, names, NULL);
  return *out ? bench_time(r->b, parts, n_parts, &(*out)->timing) : LAPROX_OK;
}

laprox_result bench_time_program(bench_round *r, const char *kernel, lpx_program *program,
                                 bench_result **out) {
  bench_profile names;
  *out = NULL;
  const laprox_result result = lpx_program_finish_building(program);
  if (result) return result;
  const bench_part part = bench_whole(program);
  return time_row(r, kernel, &part, 1, &names, out);
}

static laprox_result time_pass(bench_round *r, const bench_part *parts, size_t n_parts,
                               const bench_profile *scoring) {
  bench_profile names;
  bench_result *row = NULL;
  const laprox_result result = time_row(r, "pass", parts, n_parts, &names, &row);
  if (!row) return result;
  count_score(r, scoring, row);
  count_select(&r->eviction, row);
  count_compact(&r->eviction, row);
  return result;
}

static laprox_result time_compaction(bench_round *r, const bench_profile *scoring) {
  const uint32_t n_layers = r->cache->of.shape.n_layers;
  bench_profile names;
  bench_result *row = NULL;
  laprox_result result = bench_eviction_pack(&r->eviction);
  bench_part *parts = calloc((size_t)n_layers + 1, sizeof *parts);
  if (!result && !parts) result = lpx_fail_memory(&r->b->context->host, "parts");
  if (!result) {
    parts[0] = bench_whole(r->eviction.binding->program);
    for (uint32_t l = 0; l < n_layers; l++) {
      parts[l + 1] = bench_whole(r->eviction.compactions[l]->program);
      parts[l + 1].at_once = l > 0;
    }
    result = time_row(r, "compact", parts + 1, n_layers, &names, &row);
  }
  if (row) count_compact(&r->eviction, row);
  if (!result) result = time_pass(r, parts, (size_t)n_layers + 1, scoring);
  free(parts);
  return result;
}

/* Steps up to the selection. */
static bench_part scoring_of(const laprox_binding *binding, uint32_t n_layers) {
  bench_part scoring = {.program = binding->program};
  uint32_t n_others;
  laprox_binding_layer_steps(binding, n_layers, &scoring.count, &n_others);
  return scoring;
}

/* Scoring as a prompt's engine has it, which knows the window's softmax sums: one pass over K. */
static laprox_result time_given_sums(bench_round *r) {
  const uint32_t n_layers = r->cache->of.shape.n_layers;
  lpx_buffer lse = {0};
  laprox_binding *binding = NULL;
  bench_profile names;
  bench_result *row = NULL;
  if (!lpx_plan_uses_attention(r->eviction.plan) || !lpx_plan_uses_values(r->eviction.plan)) return LAPROX_OK;
  laprox_result result = bench_eviction_make_lse(&r->eviction, &lse);
  if (!result) result = bench_eviction_bind(&r->eviction, &lse, &binding);
  if (!result) {
    const bench_part scoring = scoring_of(binding, n_layers);
    result = time_row(r, "score, sums given", &scoring, 1, &names, &row);
  }
  if (row) {
    count_passes(r->cache, 1, row);
    count_values(r->cache, row);
    count_pool(r->cache, row);
  }
  laprox_binding_destroy(binding);
  lpx_buffer_finish(r->b->context, &lse);
  return result;
}

static laprox_result time_eviction(bench_round *r) {
  const laprox_binding *binding = r->eviction.binding;
  const bench_part scoring = scoring_of(binding, r->cache->of.shape.n_layers);
  bench_part selection = scoring;
  bench_profile score_names, select_names;
  bench_result *row = NULL;
  laprox_binding_layer_steps(binding, r->cache->of.shape.n_layers, &selection.first, &selection.count);
  laprox_result result = time_row(r, "score", &scoring, 1, &score_names, &row);
  if (row) count_score(r, &score_names, row);
  if (!result) result = time_score_kernels(r, &scoring, &score_names);
  if (!result) result = time_row(r, "select", &selection, 1, &select_names, &row);
  if (!result && row) count_select(&r->eviction, row);
  if (!result) result = time_compaction(r, &score_names);
  return result ? result : time_given_sums(r); /* its scores are others than those that were packed by */
}

/* ---- all variants ---- */

static laprox_result run_variant(bench_round *r) {
  laprox_result result = bench_eviction_init(r->cache, &r->eviction);
  if (!result) result = time_eviction(r);
  if (!result) result = bench_time_decoding(r);
  if (!result) result = bench_time_prompt(r);
  bench_eviction_finish(&r->eviction);
  return result;
}

laprox_result bench_run_kernels(bench *b, const bench_shape *shape) {
  bench_cache cache;
  bench_prompt prompt = {0};
  const char *reason = NULL;
  laprox_result result = bench_cache_init(b, shape, &cache, &reason);
  if (reason) bench_skip(b, shape, reason);
  if (!result && !reason) result = bench_prompt_init(&cache, &prompt);
  uint32_t tried = UINT32_MAX;
  /* From the baseline on, one variant after the other is let in. */
  for (uint32_t mask = 0; mask <= LAPROX_ALL_VARIANTS && !result && !reason; mask = mask << 1 | 1) {
    bench_round r = {.b = b, .cache = &cache, .prompt = &prompt};
    if ((b->variants & mask) == tried) continue;
    tried = b->context->variants = b->variants & mask;
    result = run_variant(&r);
  }
  b->context->variants = b->variants;
  bench_prompt_finish(&cache, &prompt);
  bench_cache_finish(&cache);
  return result;
}
