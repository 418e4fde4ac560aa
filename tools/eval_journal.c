/* eval_journal.c: outcomes as JSON lines beside the results, so that a run that was killed goes on where it was. A line
 * that was being written then is no JSON object, and its cell is done again. */
#include "eval.h"
#include "file_lock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER_VERSION = 2 };

/* ---- what a run is ---- */

static json_t *hash_json(uint64_t hash) {
  char text[24];
  snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
  return json_string(text);
}

/* Two runs with the same header have the same outcomes. */
static json_t *make_header(const eval *e) {
  json_t *tasks = json_array(), *cells = json_array();
  for (uint32_t i = 0; i < e->c->opt.n_tasks; i++) json_array_append_new(tasks, hash_json(e->text_hashes[i]));
  for (int i = 0; i < e->n_cells; i++) {
    const cell *one = &e->cells[i];
    json_array_append_new(cells, json_pack("[s, s, s, i]", one->policy.text, one->budget,
                                           one->knows ? "known" : "unknown", (int)one->policy.kv_dtype));
  }
  json_t *probes = eval_probes(e);
  return json_pack(
      "{s:i, s:s, s:s, s:o, s:s, s:o, s:o, s:o, s:i, s:I, s:I, s:o}", "journal", HEADER_VERSION, "version",
      LAPROX_VERSION, "device", laprox_device_name(e->c->device), "model", hash_json(e->fingerprint),
      "template", e->c->opt.prompt_template ? e->c->opt.prompt_template : "", "tasks", tasks, "policies",
      cells, "probes", probes, "limit", (int)e->c->opt.limit, "passages", (json_int_t)e->n_passages,
      "passage tokens", (json_int_t)e->passage_tokens, "text", hash_json(e->passage_hash));
}

/* The key in which two headers differ; NULL: none. */
static const char *find_difference(json_t *wanted, json_t *found) {
  const char *key;
  json_t *value;
  json_object_foreach(wanted, key, value) {
    if (!json_equal(value, json_object_get(found, key))) return key;
  }
  return NULL;
}

/* ---- outcomes ---- */

static bool take_counts(const json_t *list, size_t n, uint32_t *to) {
  if (json_array_size(list) != n) return false;
  for (size_t i = 0; i < n; i++) to[i] = (uint32_t)json_integer_value(json_array_get(list, i));
  return true;
}

/* Of a passage: [share of attention, error] of every layer. */
static json_t *layers_json(const eval *e, uint32_t row, int index) {
  const laprox_attention_error *layers = eval_layers(e, row, index);
  json_t *list = json_array();
  for (uint32_t l = 0; l < e->model.shape.n_layers; l++)
    json_array_append_new(list, json_pack("[f, f]", layers[l].mass, layers[l].output));
  return list;
}

static bool take_layers(const json_t *list, const eval *e, uint32_t row, int index) {
  if (row < e->n_items) return true;
  laprox_attention_error *to = eval_layers(e, row, index);
  if (json_array_size(list) != e->model.shape.n_layers) return false;
  for (uint32_t l = 0; l < e->model.shape.n_layers; l++) {
    const json_t *one = json_array_get(list, l);
    to[l].mass = json_number_value(json_array_get(one, 0));
    to[l].output = json_number_value(json_array_get(one, 1));
  }
  return true;
}

static json_t *counts_json(const uint32_t *counts, size_t n) {
  json_t *list = json_array();
  for (size_t i = 0; i < n; i++) json_array_append_new(list, json_integer(counts[i]));
  return list;
}

void eval_retain(eval *e, uint32_t row, int index, const uint32_t *kept, const uint32_t *bins) {
  if (row >= e->n_items) return;
  const size_t n_heads = (size_t)e->model.shape.n_layers * e->model.shape.n_kv_heads;
  retention *to = &e->retentions[(size_t)e->items[row].group * (size_t)e->n_cells + (size_t)index];
  to->n++;
  for (size_t i = 0; i < n_heads; i++) to->heads[i] += kept[i];
  for (size_t i = 0; i < N_BINS; i++) to->bins[i] += bins[i];
}

static void take_map(eval *e, int index, const json_t *map) {
  if (!map || e->maps[index]) return;
  e->maps[index] = json_deep_copy(map);
}

/* One line of an earlier run. */
static void take_line(eval *e, const json_t *line) {
  json_int_t row = -1, index = -1, n_tokens = 0, n_decoded = 0, kv_bytes = 0, kv_full_bytes = 0;
  json_t *kept = NULL, *bins = NULL;
  outcome out = {.is_done = true};
  if (json_unpack((json_t *)(uintptr_t)line,
                  "{s:I, s:I, s:F, s:F, s:F, s:F, s:I, s:I, s:I, s:I, s:F, s:F, s:F, s:o, s:o}", "row", &row,
                  "cell", &index, "score", &out.score, "agreement", &out.agreement, "nll", &out.nll,
                  "full_nll", &out.full_nll, "n_tokens", &n_tokens, "n_decoded", &n_decoded, "kv_bytes",
                  &kv_bytes, "kv_full_bytes", &kv_full_bytes, "prefill_ms", &out.prefill_ms, "evict_ms",
                  &out.evict_ms, "decode_ms", &out.decode_ms, "kept", &kept, "bins", &bins) != 0)
    return;
  const size_t n_heads = (size_t)e->model.shape.n_layers * e->model.shape.n_kv_heads;
  uint32_t positions[N_BINS], *heads = malloc(n_heads * sizeof *heads);
  if (heads && row >= 0 && row < (json_int_t)e->n_items + e->n_passages && index >= 0 && index < e->n_cells &&
      take_counts(kept, n_heads, heads) && take_counts(bins, N_BINS, positions) &&
      take_layers(json_object_get(line, "layers"), e, (uint32_t)row, (int)index)) {
    outcome *to = eval_outcome(e, (uint32_t)row, (int)index);
    out.n_tokens = (uint32_t)n_tokens;
    out.n_decoded = (uint32_t)n_decoded;
    out.kv_bytes = (uint64_t)kv_bytes;
    out.kv_full_bytes = (uint64_t)kv_full_bytes;
    if (!to->is_done) {
      *to = out;
      eval_retain(e, (uint32_t)row, (int)index, heads, positions);
      take_map(e, (int)index, json_object_get(line, "map"));
      e->n_done++;
    }
  }
  free(heads);
}

/* ---- the file ---- */

static int write_line(eval *e, json_t *line) {
  const bool good = line && json_dumpf(line, e->journal, JSON_REAL_PRECISION(17) | JSON_COMPACT) == 0 &&
                    fputc('\n', e->journal) != EOF && fflush(e->journal) == 0;
  json_decref(line);
  return good ? EXIT_DONE : fail_impossible("%s: %s", e->journal_path, strerror(errno ? errno : ENOMEM));
}

static int take_lines(eval *e, char *text, json_t *header) {
  bool is_first = true;
  for (char *line = text, *end; *line; line = end) {
    end = line + strcspn(line, "\n");
    if (*end) *end++ = 0;
    json_t *root = json_loads(line, 0, NULL);
    const char *difference = root && is_first ? find_difference(header, root) : NULL;
    if (difference) {
      int status = fail_impossible("%s is of a run with other %s; remove it, or choose another --output",
                                   e->journal_path, difference);
      json_decref(root);
      return status;
    }
    if (root && !is_first) take_line(e, root);
    is_first = is_first && !root;
    json_decref(root);
  }
  return EXIT_DONE;
}

static int take_over(eval *e, json_t *header) {
  char *text = NULL;
  int status = cli_read_text(e->journal_path, &text);
  if (!status) status = take_lines(e, text, header);
  free(text);
  e->n_resumed = e->n_done;
  return status;
}

int eval_journal_open(eval *e) {
  const char *output = e->c->opt.output;
  if (!output) return EXIT_DONE;
  const size_t n = strlen(output);
  json_t *header = make_header(e);
  e->journal_path = malloc(n + sizeof ".partial");
  if (!header || !e->journal_path) {
    json_decref(header);
    return fail_impossible("out of memory for the journal");
  }
  memcpy(e->journal_path, output, n);
  memcpy(e->journal_path + n, ".partial", sizeof ".partial");
  int status = EXIT_DONE;
  e->journal = fopen(e->journal_path, "ab");
  if (!e->journal)
    status = fail_impossible("%s: %s", e->journal_path, strerror(errno));
  else if (!file_lock(e->journal))
    status = fail_impossible("%s: another run is writing it; choose another --output", e->journal_path);
  if (!status) status = take_over(e, header);
  /* An earlier run may have been stopped in the middle of a line. */
  if (!status && fputc('\n', e->journal) == EOF)
    status = fail_impossible("%s: %s", e->journal_path, strerror(errno));
  if (!status) return write_line(e, header);
  json_decref(header);
  return status;
}

int eval_journal_add(eval *e, uint32_t row, int index, const uint32_t *kept, const uint32_t *bins,
                     const json_t *map) {
  const outcome *o = eval_outcome(e, row, index);
  const size_t n_heads = (size_t)e->model.shape.n_layers * e->model.shape.n_kv_heads;
  eval_retain(e, row, index, kept, bins);
  take_map(e, index, map);
  if (!e->journal) return EXIT_DONE;
  json_t *line = json_pack("{s:I, s:i, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:o}",
                           "row", (json_int_t)row, "cell", index, "score", o->score, "agreement",
                           o->agreement, "nll", o->nll, "full_nll", o->full_nll, "n_tokens",
                           (json_int_t)o->n_tokens, "n_decoded", (json_int_t)o->n_decoded, "kv_bytes",
                           (json_int_t)o->kv_bytes, "kv_full_bytes", (json_int_t)o->kv_full_bytes,
                           "prefill_ms", o->prefill_ms, "evict_ms", o->evict_ms, "decode_ms", o->decode_ms,
                           "kept", counts_json(kept, n_heads), "bins", counts_json(bins, N_BINS));
  if (line && row >= e->n_items) json_object_set_new(line, "layers", layers_json(e, row, index));
  if (line && map) json_object_set_new(line, "map", json_deep_copy(map));
  return write_line(e, line);
}

void eval_journal_close(eval *e) {
  if (e->journal) fclose(e->journal);
  e->journal = NULL;
  free(e->journal_path);
  e->journal_path = NULL;
}

void eval_journal_remove(eval *e) {
  if (!e->journal) return;
  fclose(e->journal);
  e->journal = NULL;
  remove(e->journal_path);
}
