/* report_data.c: reads what eval has written, which may be anything, and looks things up in it. */
#include "report.h"

#include "eval_metrics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *text_of(const json_t *object, const char *key) {
  return json_string_value(json_object_get(object, key));
}

static double number_of(const json_t *object, const char *key) {
  return json_number_value(json_object_get(object, key));
}

static uint32_t count_of(const json_t *object, const char *key) {
  const double value = number_of(object, key);
  return value > 0 && value < 4e9 ? (uint32_t)value : 0;
}

/* ---- reading ---- */

static int add_series(report *r, const json_t *row) {
  const char *settings = text_of(row, "settings"), *policy = text_of(row, "policy");
  if (!settings) settings = policy;
  if (!settings || !policy) return -1;
  const int found = report_find_series(r, settings);
  if (found >= 0 || r->n_series == MAX_SERIES) return found;
  r->series[r->n_series] = (report_series){settings, strcmp(policy, "full") == 0};
  return r->n_series++;
}

int report_find_series(const report *r, const char *settings) {
  for (int i = 0; i < r->n_series; i++)
    if (strcmp(r->series[i].settings, settings) == 0) return i;
  return -1;
}

static bool is_share(double value) {
  return value >= 0 && value <= 1;
}

static bool take_row(report *r, const json_t *from) {
  const char *question = text_of(from, "question");
  const json_t *ends = json_object_get(from, "ci95");
  const double full = number_of(from, "kv_full_bytes");
  report_row row = {.series = add_series(r, from),
                    .budget = text_of(from, "budget"),
                    .task = text_of(from, "task"),
                    .knows = !question || strcmp(question, "known") == 0,
                    .length = count_of(from, "length"),
                    .n_tokens = count_of(from, "n_tokens"),
                    .n = count_of(from, "n"),
                    .score = number_of(from, "score"),
                    .low = json_number_value(json_array_get(ends, 0)),
                    .high = json_number_value(json_array_get(ends, 1)),
                    .kv_bytes = number_of(from, "kv_bytes"),
                    .depths = json_object_get(from, "depths"),
                    .heads = json_object_get(from, "kept_per_head"),
                    .bins = json_object_get(from, "kept_by_position")};
  row.full_bytes = full;
  if (row.series < 0 || !row.budget || !row.task || !row.n || !is_share(row.score) || !is_share(row.low) ||
      !is_share(row.high) || !(row.kv_bytes > 0 && full > 0) || r->n_rows == MAX_ROWS)
    return false;
  if (r->n_rows == r->rows_room) {
    const size_t room = r->rows_room ? 2 * r->rows_room : 256;
    report_row *larger = realloc(r->rows, room * sizeof *larger);
    if (!larger) return false;
    r->rows = larger;
    r->rows_room = room;
  }
  r->rows[r->n_rows++] = row;
  return true;
}

static int take_rows(report *r, const json_t *root, const char *path) {
  const json_t *results = json_object_get(root, "results"), *fidelity = json_object_get(root, "fidelity");
  for (size_t i = 0; i < json_array_size(results); i++)
    if (!take_row(r, json_array_get(results, i)))
      return fail_impossible("%s: results[%zu] is no result of eval", path, i);
  for (size_t i = 0; i < json_array_size(fidelity); i++)
    if (add_series(r, json_array_get(fidelity, i)) < 0)
      return fail_impossible("%s: fidelity[%zu] is no result of eval", path, i);
  if (json_array_size(fidelity)) r->fidelity[r->n_fidelity++] = fidelity;
  if (!r->example) r->example = json_object_get(root, "example");
  return EXIT_DONE;
}

int report_read(report *r, const char *path) {
  json_error_t error;
  json_t *root = json_load_file(path, 0, &error);
  if (!root) return fail_impossible("%s: %s", path, error.text);
  r->roots[r->n_roots++] = root;
  const char *model = text_of(root, "model"), *device = text_of(root, "device");
  const json_t *timing = json_object_get(root, "timing");
  if (!model || (!json_is_array(json_object_get(root, "results")) && !json_is_array(timing)))
    return fail_impossible("%s: neither results nor timing of eval", path);
  if (r->model && strcmp(r->model, model) != 0)
    return fail_impossible("%s is about %s, and another file about %s: not comparable", path, model,
                           r->model);
  r->model = model;
  if (device && !r->device) r->device = device;
  if (json_array_size(timing)) r->timing[r->n_timing++] = timing;
  return take_rows(r, root, path);
}

/* Caches of another type are measured against the plain full one, where there is one: bytes are bytes. */
void report_compare_bytes(report *r) {
  const int full = report_find_series(r, "full");
  for (size_t i = 0; i < r->n_rows; i++) {
    report_row *row = &r->rows[i];
    double bytes = row->full_bytes;
    for (size_t k = 0; k < r->n_rows; k++)
      if (r->rows[k].series == full && r->rows[k].knows == row->knows && r->rows[k].length == row->length &&
          strcmp(r->rows[k].task, row->task) == 0)
        bytes = r->rows[k].full_bytes;
    row->share = row->kv_bytes / bytes;
  }
}

void report_finish(report *r) {
  for (int i = 0; i < r->n_roots; i++) json_decref(r->roots[i]);
  free(r->rows);
}

/* ---- looking up ---- */

int report_panes(const report *r, report_pane panes[MAX_PANES]) {
  int n = 0;
  for (size_t i = 0; i < r->n_rows; i++) {
    const report_row *row = &r->rows[i];
    int k = 0;
    while (k < n && (panes[k].knows != row->knows || panes[k].length != row->length)) k++;
    if (k == n && n < MAX_PANES) panes[n++] = (report_pane){row->knows, row->length};
  }
  return n;
}

static bool is_in(const report_row *row, const report_pane *pane) {
  return !pane || (row->knows == pane->knows && row->length == pane->length);
}

static int add_name(const char *name, const char *names[MAX_NAMES], int n) {
  for (int i = 0; i < n; i++)
    if (strcmp(names[i], name) == 0) return n;
  if (n < MAX_NAMES) names[n++] = name;
  return n;
}

int report_tasks(const report *r, const report_pane *pane, const char *names[MAX_NAMES]) {
  int n = 0;
  for (size_t i = 0; i < r->n_rows; i++)
    if (is_in(&r->rows[i], pane)) n = add_name(r->rows[i].task, names, n);
  return n;
}

int report_budgets(const report *r, bool knows, const char *names[MAX_NAMES]) {
  int n = 0;
  for (size_t i = 0; i < r->n_rows; i++)
    if (r->rows[i].knows == knows && !r->series[r->rows[i].series].is_full)
      n = add_name(r->rows[i].budget, names, n);
  return n;
}

bool report_mean(const report *r, const report_pane *pane, int series, const char *budget, const char *task,
                 report_row *out) {
  uint32_t n_rows = 0;
  report_row sum = {.series = series, .budget = budget, .task = task};
  for (size_t i = 0; i < r->n_rows; i++) {
    const report_row *row = &r->rows[i];
    if (!is_in(row, pane) || row->series != series || strcmp(row->budget, budget) != 0) continue;
    if (task && strcmp(row->task, task) != 0) continue;
    n_rows++;
    sum.n += row->n;
    sum.score += row->score;
    sum.kv_bytes += row->kv_bytes;
    sum.share += row->share;
    if (!sum.n_tokens) sum.n_tokens = row->n_tokens;
  }
  if (!n_rows) return false;
  sum.score /= n_rows;
  sum.kv_bytes /= n_rows;
  sum.share /= n_rows;
  wilson_interval(sum.score, sum.n, &sum.low, &sum.high);
  *out = sum;
  return true;
}
