/* eval_results.c: outcomes added up, as JSON and as a table. Nothing here depends on how often a run was interrupted. */
#include "eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_DEPTHS = 10 };

/* Outcomes of a group under a cell. */
typedef struct total {
  uint64_t n, right, n_tokens, n_decoded;
  uint64_t kv_bytes, kv_full_bytes;
  double score, squares;
  double agreement, nll, full_nll;
  double prefill_ms, evict_ms, decode_ms;
  struct {
    uint64_t n;
    double score;
  } depths[N_DEPTHS];
} total;

static void add(total *to, const outcome *o, double depth) {
  to->n++;
  to->right += o->score >= 1;
  to->n_tokens += o->n_tokens;
  to->n_decoded += o->n_decoded;
  to->kv_bytes += o->kv_bytes;
  to->kv_full_bytes += o->kv_full_bytes;
  to->score += o->score;
  to->squares += o->score * o->score;
  to->agreement += o->agreement;
  to->nll += o->nll;
  to->full_nll += o->full_nll;
  to->prefill_ms += o->prefill_ms;
  to->evict_ms += o->evict_ms;
  to->decode_ms += o->decode_ms;
  if (depth < 0) return;
  const int d = depth < 1 ? (int)(depth * N_DEPTHS) : N_DEPTHS - 1;
  to->depths[d].n++;
  to->depths[d].score += o->score;
}

static total add_group(const eval *e, int group, int index) {
  total sum = {0};
  for (uint32_t i = 0; i < e->n_items; i++)
    if (e->items[i].group == group) add(&sum, eval_outcome(e, i, index), e->items[i].depth);
  return sum;
}

static total add_passages(const eval *e, int index) {
  total sum = {0};
  for (uint32_t i = 0; i < e->n_passages; i++) add(&sum, eval_outcome(e, e->n_items + i, index), -1);
  return sum;
}

static double share(double part, uint64_t n) {
  return n ? part / (double)n : 0;
}

static json_int_t mean(uint64_t sum, uint64_t n) {
  return (json_int_t)(n ? sum / n : 0);
}

/* Six decimals: more say nothing. */
static json_t *rounded(double value) {
  return json_real(isfinite(value) ? round(value * 1e6) / 1e6 : 0);
}

/* ---- JSON ---- */

static json_t *cell_json(const cell *one) {
  return json_pack("{s:s, s:s, s:s, s:s}", "policy", laprox_policy_name(one->policy.policy.kind), "settings",
                   one->policy.text, "budget", one->budget, "question", one->knows ? "known" : "unknown");
}

static json_t *depths_json(const total *sum) {
  json_t *list = json_array();
  for (int d = 0; d < N_DEPTHS; d++)
    if (sum->depths[d].n)
      json_array_append_new(list, json_pack("{s:f, s:I, s:o}", "depth", (d + 0.5) / N_DEPTHS, "n",
                                            (json_int_t)sum->depths[d].n, "score",
                                            rounded(share(sum->depths[d].score, sum->depths[d].n))));
  return list;
}

static void add_retention(json_t *row, const eval *e, int group, int index) {
  const retention *r = &e->retentions[(size_t)group * (size_t)e->n_cells + (size_t)index];
  const laprox_shape *shape = &e->model.shape;
  json_t *layers = json_array(), *bins = json_array();
  uint64_t all = 0;
  for (uint32_t l = 0; l < shape->n_layers; l++) {
    json_t *heads = json_array();
    for (uint32_t g = 0; g < shape->n_kv_heads; g++)
      json_array_append_new(heads, rounded(share((double)r->heads[l * shape->n_kv_heads + g], r->n)));
    json_array_append_new(layers, heads);
  }
  for (int b = 0; b < N_BINS; b++) all += r->bins[b];
  for (int b = 0; b < N_BINS; b++) json_array_append_new(bins, rounded(share((double)r->bins[b], all)));
  json_object_set_new(row, "kept_per_head", layers);
  json_object_set_new(row, "kept_by_position", bins);
}

static json_t *result_json(const eval *e, int group, int index) {
  const total sum = add_group(e, group, index);
  const task_group *about = &e->groups[group];
  double low = 0, high = 1;
  json_t *row = cell_json(&e->cells[index]);
  wilson_interval(share(sum.score, sum.n), sum.n, &low, &high);
  json_t *numbers = json_pack(
      "{s:s, s:I, s:I, s:I, s:I, s:s, s:o, s:[o, o], s:I, s:I, s:o}", "task", about->task, "length",
      (json_int_t)about->length, "n_tokens", mean(sum.n_tokens, sum.n), "n", (json_int_t)sum.n, "correct",
      (json_int_t)sum.right, "metric", metric_names[about->metric], "score", rounded(share(sum.score, sum.n)),
      "ci95", rounded(low), rounded(high), "kv_bytes", mean(sum.kv_bytes, sum.n), "kv_full_bytes",
      mean(sum.kv_full_bytes, sum.n), "depths", depths_json(&sum));
  if (!row || !numbers || json_object_update(row, numbers) != 0) {
    json_decref(row);
    row = NULL;
  }
  json_decref(numbers);
  if (row) add_retention(row, e, group, index);
  return row;
}

/* Of each layer, mean over the passages, and of all layers. */
static void add_attention(json_t *row, const eval *e, int index) {
  const uint32_t n_layers = e->model.shape.n_layers;
  json_t *masses = json_array(), *errors = json_array();
  double mass_sum = 0, error_sum = 0;
  for (uint32_t l = 0; l < n_layers; l++) {
    double mass = 0, error = 0;
    for (uint32_t p = 0; p < e->n_passages; p++) {
      const laprox_attention_error *one = &eval_layers(e, e->n_items + p, index)[l];
      mass += one->mass;
      error += one->output;
    }
    json_array_append_new(masses, rounded(share(mass, e->n_passages)));
    json_array_append_new(errors, rounded(share(error, e->n_passages)));
    mass_sum += share(mass, e->n_passages);
    error_sum += share(error, e->n_passages);
  }
  json_object_set_new(row, "attention_kept", rounded(share(mass_sum, n_layers)));
  json_object_set_new(row, "output_error", rounded(share(error_sum, n_layers)));
  json_object_set_new(row, "attention_kept_by_layer", masses);
  json_object_set_new(row, "output_error_by_layer", errors);
}

/* A mean and 1.96 standard errors to both sides of it. */
static json_t *fidelity_json(const eval *e, int index) {
  const total sum = add_passages(e, index);
  const double n = (double)sum.n, kl = share(sum.score, sum.n);
  const double variance = sum.n > 1 ? (sum.squares - n * kl * kl) / (n - 1) : 0;
  const double reach = variance > 0 ? 1.96 * sqrt(variance / n) : 0;
  json_t *row = cell_json(&e->cells[index]);
  json_t *numbers = json_pack(
      "{s:I, s:I, s:o, s:[o, o], s:o, s:o, s:o, s:I, s:I}", "n", (json_int_t)sum.n, "n_tokens",
      mean(sum.n_tokens, sum.n), "kl", rounded(kl), "ci95", rounded(fmax(0, kl - reach)), rounded(kl + reach),
      "top1_agreement", rounded(share(sum.agreement, sum.n)), "perplexity",
      rounded(exp(share(sum.nll, sum.n))), "perplexity_full", rounded(exp(share(sum.full_nll, sum.n))),
      "kv_bytes", mean(sum.kv_bytes, sum.n), "kv_full_bytes", mean(sum.kv_full_bytes, sum.n));
  if (row && numbers) json_object_update(row, numbers);
  if (row) add_attention(row, e, index);
  json_object_del(row, "question");
  json_decref(numbers);
  return row;
}

static json_t *example_json(const eval *e) {
  if (!e->n_items) return NULL;
  const task_group *group = &e->groups[e->items[0].group];
  json_t *maps = json_array(), *line = json_loads(e->items[0].line, 0, NULL);
  json_t *needles = json_object_get(line, "needle_pos");
  for (int i = 0; i < e->n_cells; i++) {
    json_t *one = cell_json(&e->cells[i]);
    if (e->maps[i]) json_object_set(one, "map", e->maps[i]);
    json_array_append_new(maps, one);
  }
  json_t *example =
      json_pack("{s:s, s:I, s:I, s:O, s:o}", "task", group->task, "length", (json_int_t)group->length,
                "n_tokens", (json_int_t)eval_outcome(e, 0, 0)->n_tokens, "needle_pos",
                needles ? needles : json_null(), "policies", maps);
  json_decref(line);
  return example;
}

json_t *eval_probes(const eval *e) {
  const options *o = &e->c->opt;
  json_t *texts = json_array();
  for (uint32_t i = 0; i < o->n_probes; i++)
    json_array_append_new(texts, json_text(o->probes[i], strlen(o->probes[i])));
  return json_pack("{s:o, s:s}", "texts", texts, "combine",
                   o->combine == LAPROX_COMBINE_MAX ? "max" : "mean");
}

json_t *eval_results(const eval *e) {
  const options *o = &e->c->opt;
  const laprox_shape *shape = &e->model.shape;
  json_t *results = json_array(), *fidelity = json_array(), *files = json_array();
  for (uint32_t i = 0; i < o->n_tasks; i++) json_array_append_new(files, json_string(o->tasks[i]));
  for (int i = 0; i < e->n_cells; i++)
    for (int g = 0; g < e->n_groups; g++) json_array_append_new(results, result_json(e, g, i));
  for (int i = 0; i < e->n_cells && e->n_passages; i++)
    if (!e->cells[i].is_twin) json_array_append_new(fidelity, fidelity_json(e, i));
  json_t *root =
      json_pack("{s:s, s:o, s:s, s:{s:I, s:I, s:I, s:I}, s:o, s:o}", "model", o->input, "tasks", files,
                "device", laprox_device_name(e->c->device), "shape", "n_layers", (json_int_t)shape->n_layers,
                "n_heads", (json_int_t)shape->n_heads, "n_kv_heads", (json_int_t)shape->n_kv_heads,
                "head_dim", (json_int_t)shape->head_dim, "results", results, "fidelity", fidelity);
  json_t *example = example_json(e);
  if (root && example) json_object_set_new(root, "example", example);
  if (root && o->n_probes) json_object_set_new(root, "probes", eval_probes(e));
  return root;
}

/* All tasks of one length together. */
static json_t *timing_json(const eval *e, uint32_t length, int index) {
  total sum = {0};
  for (uint32_t i = 0; i < e->n_items; i++)
    if (e->groups[e->items[i].group].length == length) add(&sum, eval_outcome(e, i, index), -1);
  json_t *row = cell_json(&e->cells[index]);
  json_t *numbers =
      json_pack("{s:I, s:I, s:I, s:o, s:o, s:o}", "length", (json_int_t)length, "n_tokens",
                mean(sum.n_tokens, sum.n), "n", (json_int_t)sum.n, "prefill_ms",
                json_ms(share(sum.prefill_ms, sum.n)), "evict_ms", json_ms(share(sum.evict_ms, sum.n)),
                "decode_per_token_ms", json_ms(share(sum.decode_ms, sum.n_decoded)));
  if (row && numbers) json_object_update(row, numbers);
  json_decref(numbers);
  return row;
}

json_t *eval_timing(const eval *e) {
  json_t *rows = json_array();
  for (int g = 0; g < e->n_groups; g++) {
    int before = 0;
    while (e->groups[before].length != e->groups[g].length) before++;
    for (int i = 0; i < e->n_cells && before == g; i++)
      json_array_append_new(rows, timing_json(e, e->groups[g].length, i));
  }
  return json_pack("{s:s, s:s, s:o}", "model", e->c->opt.input, "device", laprox_device_name(e->c->device),
                   "timing", rows);
}

/* ---- for people ---- */

static void print_groups(const eval *e) {
  printf("%-28s %-7s %-8s %10s", "policy", "budget", "question", "KV bytes");
  for (int g = 0; g < e->n_groups; g++) {
    char name[96];
    const task_group *group = &e->groups[g];
    snprintf(name, sizeof name, group->length ? "%s %u" : "%s", group->task, group->length);
    printf(" %20.20s", name);
  }
  printf("\n");
  for (int i = 0; i < e->n_cells; i++) {
    uint64_t bytes = 0, n = 0;
    for (int g = 0; g < e->n_groups; g++) {
      const total sum = add_group(e, g, i);
      bytes += sum.kv_bytes;
      n += sum.n;
    }
    printf("%-28s %-7s %-8s %10lld", e->cells[i].policy.text, e->cells[i].budget,
           e->cells[i].knows ? "known" : "unknown", (long long)mean(bytes, n));
    for (int g = 0; g < e->n_groups; g++) {
      const total sum = add_group(e, g, i);
      double low = 0, high = 0;
      char text[48];
      wilson_interval(share(sum.score, sum.n), sum.n, &low, &high);
      snprintf(text, sizeof text, "%.0f %% (%.0f-%.0f)", 100 * share(sum.score, sum.n), 100 * low,
               100 * high);
      printf(" %20s", text);
    }
    printf("\n");
  }
  printf("%-56s", "prompts / mean tokens");
  for (int g = 0; g < e->n_groups; g++) {
    const total sum = add_group(e, g, 0);
    char text[48];
    snprintf(text, sizeof text, "%llu / %lld", (unsigned long long)sum.n,
             (long long)mean(sum.n_tokens, sum.n));
    printf(" %20s", text);
  }
  printf("\n");
}

void eval_print(const eval *e) {
  if (e->n_items) print_groups(e);
  if (!e->n_passages) return;
  printf("%-28s %-7s %10s %10s %12s %12s %12s\n", "policy", "budget", "KV bytes", "KL (nats)", "same token",
         "perplexity", "with all");
  for (int i = 0; i < e->n_cells; i++) {
    const total sum = add_passages(e, i);
    if (e->cells[i].is_twin) continue;
    printf("%-28s %-7s %10lld %10.4f %10.1f %% %12.3f %12.3f\n", e->cells[i].policy.text, e->cells[i].budget,
           (long long)mean(sum.kv_bytes, sum.n), share(sum.score, sum.n), 100 * share(sum.agreement, sum.n),
           exp(share(sum.nll, sum.n)), exp(share(sum.full_nll, sum.n)));
  }
}
