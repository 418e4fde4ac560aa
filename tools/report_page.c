/* report_page.c: one HTML page without anything from elsewhere. */
#include "report.h"
#include "texts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void page_text(text_buffer *out, const char *text) {
  for (; *text; text++) {
    const char *escaped = *text == '<'   ? "&lt;"
                          : *text == '>' ? "&gt;"
                          : *text == '&' ? "&amp;"
                          : *text == '"' ? "&quot;"
                                         : NULL;
    if (escaped)
      text_addf(out, "%s", escaped);
    else
      text_add(out, text, 1);
  }
}

void page_bytes(text_buffer *out, double bytes) {
  static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  for (; bytes >= 1024 && unit < 4; unit++) bytes /= 1024;
  text_addf(out,
            bytes < 10 && unit    ? "%.2f&nbsp;%s"
            : bytes < 100 && unit ? "%.1f&nbsp;%s"
                                  : "%.0f&nbsp;%s",
            bytes, units[unit]);
}

static const char *known(bool knows) {
  return knows ? "question known at eviction" : "question not known at eviction";
}

/* ---- accuracy ---- */

/* The points of a pane and task, from the smallest share on. */
static int make_lines(const report *r, const report_pane *pane, const char *task,
                      chart_line lines[MAX_SERIES]) {
  const char *budgets[MAX_NAMES];
  const int n_budgets = report_budgets(r, pane->knows, budgets);
  int n = 0;
  for (int s = 0; s < r->n_series; s++) {
    chart_line *line = &lines[n];
    *line = (chart_line){.series = s};
    for (int b = -1; b < n_budgets && line->n <= MAX_LISTED; b++) {
      report_row row;
      const char *budget = b < 0 ? "100%" : budgets[b];
      if (!report_mean(r, pane, s, budget, task, &row)) continue;
      chart_point *p = &line->points[line->n++];
      *p = (chart_point){.x = row.share, .y = row.score, .low = row.low, .high = row.high};
      snprintf(p->label, sizeof p->label, "%.60s, %.20s: %.1f %% (%.1f to %.1f), n = %llu",
               r->series[s].settings, budget, 100 * row.score, 100 * row.low, 100 * row.high,
               (unsigned long long)row.n);
      for (int i = line->n - 1; i && line->points[i].x < line->points[i - 1].x; i--) {
        const chart_point held = line->points[i];
        line->points[i] = line->points[i - 1];
        line->points[i - 1] = held;
      }
    }
    n += line->n > 0;
  }
  return n;
}

/* Somewhat wider than the points. */
static void set_range(chart *c) {
  double low = 1, high = 0.1;
  for (int i = 0; i < c->n_lines; i++)
    for (int k = 0; k < c->lines[i].n; k++) {
      low = fmin(low, c->lines[i].points[k].x);
      high = fmax(high, c->lines[i].points[k].x);
    }
  c->x_low = low / 1.25;
  c->x_high = high * 1.25;
}

static void accuracy(const report *r, const report_pane *pane, text_buffer *out) {
  static const double all_width = 760, all_height = 380, width = 330, height = 240;
  const char *tasks[MAX_NAMES];
  const int n_tasks = report_tasks(r, pane, tasks);
  text_addf(out, "<h3>");
  if (pane->length) text_addf(out, "%u tokens, ", pane->length);
  text_addf(out, "%s</h3>\n<div class=\"charts\">\n", known(pane->knows));
  for (int t = n_tasks > 1 ? -1 : 0; t < n_tasks; t++) {
    chart_line lines[MAX_SERIES];
    chart c = {.title = t < 0 ? "All tasks together" : tasks[t],
               .y_name = "% right",
               .width = t < 0 ? all_width : width,
               .height = t < 0 ? all_height : height,
               .y_high = 1,
               .percent = true,
               .lines = lines};
    c.n_lines = make_lines(r, pane, t < 0 ? NULL : tasks[t], lines);
    set_range(&c);
    text_addf(out, t < 0 ? "<div class=\"wide\">" : "<div>");
    chart_draw(&c, out);
    text_addf(out, "</div>");
  }
  text_addf(out, "</div>\n");
}

/* ---- fidelity ---- */

static double number_of(const json_t *row, const char *key) {
  return json_number_value(json_object_get(row, key));
}

static const char *text_of(const json_t *row, const char *key) {
  const char *text = json_string_value(json_object_get(row, key));
  return text ? text : "";
}

/* To a number whose fifths are short. */
static double round_up(double value) {
  static const double steps[] = {1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10};
  const double power = value > 0 ? pow(10, floor(log10(value))) : 1;
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
    if (value <= steps[i] * power) return steps[i] * power;
  return 10 * power;
}

/* Bytes of the plain full cache, 0: not among the rows. */
static double full_bytes(const json_t *rows) {
  for (size_t i = 0; i < json_array_size(rows); i++)
    if (strcmp(text_of(json_array_get(rows, i), "settings"), "full") == 0)
      return number_of(json_array_get(rows, i), "kv_full_bytes");
  return 0;
}

static void fidelity_chart(const report *r, const json_t *rows, text_buffer *out) {
  chart_line lines[MAX_SERIES] = {{0}};
  chart c = {.title = "Divergence from the full cache",
             .y_name = "KL, nats a token",
             .width = 760,
             .height = 320,
             .lines = lines};
  for (int s = 0; s < r->n_series; s++) {
    chart_line *line = &lines[c.n_lines];
    *line = (chart_line){.series = s};
    for (size_t i = 0; i < json_array_size(rows) && line->n <= MAX_LISTED; i++) {
      const json_t *row = json_array_get(rows, i), *ends = json_object_get(row, "ci95");
      const double plain = full_bytes(rows), full = plain > 0 ? plain : number_of(row, "kv_full_bytes");
      if (report_find_series(r, text_of(row, "settings")) != s || !(full > 0)) continue;
      chart_point *p = &line->points[line->n++];
      *p = (chart_point){number_of(row, "kv_bytes") / full, number_of(row, "kl"),
                         json_number_value(json_array_get(ends, 0)),
                         json_number_value(json_array_get(ends, 1)), ""};
      snprintf(p->label, sizeof p->label, "%.60s, %.20s: %.4f nats", r->series[s].settings,
               text_of(row, "budget"), p->y);
      c.y_high = fmax(c.y_high, fmax(p->high, p->y));
    }
    c.n_lines += line->n > 0;
  }
  c.y_high = round_up(c.y_high);
  set_range(&c);
  text_addf(out, "<div class=\"charts\"><div class=\"wide\">");
  chart_draw(&c, out);
  text_addf(out, "</div></div>");
}

static void fidelity(const report *r, text_buffer *out) {
  text_addf(
      out,
      "<h2>Fidelity</h2><p>The rest of a text is read behind the evicted cache and behind the "
      "full one, and what "
      "they predict is compared token by token. Attention kept is the share that the last queries pay to "
      "entries that are still there, output error |O′ − O| / |O| behind the output projection, both in the "
      "mean "
      "over layers.</p>\n");
  for (int f = 0; f < r->n_fidelity; f++) {
    fidelity_chart(r, r->fidelity[f], out);
    text_addf(out, "<div class=\"scroll\"><table><tr><th>policy<th>budget<th>KV bytes<th>KL, "
                   "nats<th>95&nbsp;%%<th>same best "
                   "token<th>perplexity<th>with all<th>attention kept<th>output error</tr>\n");
    for (size_t i = 0; i < json_array_size(r->fidelity[f]); i++) {
      const json_t *row = json_array_get(r->fidelity[f], i), *ends = json_object_get(row, "ci95");
      text_addf(out, "<tr><td>");
      page_text(out, text_of(row, "settings"));
      text_addf(out, "<td>");
      page_text(out, text_of(row, "budget"));
      text_addf(out, "<td>");
      page_bytes(out, number_of(row, "kv_bytes"));
      text_addf(out, "<td>%.4f<td>%.4f to %.4f<td>%.1f&nbsp;%%<td>%.2f<td>%.2f", number_of(row, "kl"),
                json_number_value(json_array_get(ends, 0)), json_number_value(json_array_get(ends, 1)),
                100 * number_of(row, "top1_agreement"), number_of(row, "perplexity"),
                number_of(row, "perplexity_full"));
      text_addf(out, "<td>%.1f&nbsp;%%<td>%.3f</tr>\n", 100 * number_of(row, "attention_kept"),
                number_of(row, "output_error"));
    }
    text_addf(out, "</table></div>\n");
  }
}

/* ---- probes ---- */

/* What +probe stands for: the texts of the first results that have them. */
static void probes(const report *r, text_buffer *out) {
  int i = 0;
  while (i < r->n_roots && !json_object_get(r->roots[i], "probes")) i++;
  if (i == r->n_roots) return;
  const json_t *all = json_object_get(r->roots[i], "probes"), *texts = json_object_get(all, "texts");
  text_addf(out,
            "<p>+probe: a text was read behind the document, its queries scored the document, and its own "
            "entries were dropped; ");
  if (json_array_size(texts) > 1) text_addf(out, "the %s of the scores by ", text_of(all, "combine"));
  for (size_t t = 0; t < json_array_size(texts); t++) {
    text_addf(out, "%s<q>", t ? ", " : "");
    page_text(out, json_string_value(json_array_get(texts, t)));
    text_addf(out, "</q>");
  }
  text_addf(out, ".</p>\n");
}

/* ---- memory and time ---- */

static double most_of(const json_t *rows, const char *key) {
  double most = 0;
  for (size_t i = 0; i < json_array_size(rows); i++)
    most = fmax(most, number_of(json_array_get(rows, i), key));
  return most;
}

static void meter(double value, double most, text_buffer *out) {
  text_addf(out, "<span class=\"meter\"><i style=\"width:%.1f%%\"></i></span>",
            most > 0 ? 100 * value / most : 0);
}

static void time_rows(const json_t *rows, text_buffer *out) {
  const double most_evict = most_of(rows, "evict_ms"), most_decode = most_of(rows, "decode_per_token_ms");
  text_addf(out, "<div "
                 "class=\"scroll\"><table><tr><th>policy<th>budget<th>question<th>tokens<th>prefill<"
                 "th>evict<th><th>a "
                 "token<th></tr>\n");
  for (size_t i = 0; i < json_array_size(rows); i++) {
    const json_t *row = json_array_get(rows, i);
    static const char *const keys[] = {"settings", "budget", "question"};
    text_addf(out, "<tr>");
    for (int k = 0; k < 3; k++) {
      text_addf(out, "<td>");
      page_text(out, text_of(row, keys[k]));
    }
    text_addf(out, "<td>%.0f<td>%.0f&nbsp;ms<td>%.1f&nbsp;ms<td>", number_of(row, "n_tokens"),
              number_of(row, "prefill_ms"), number_of(row, "evict_ms"));
    meter(number_of(row, "evict_ms"), most_evict, out);
    text_addf(out, "<td>%.2f&nbsp;ms<td>", number_of(row, "decode_per_token_ms"));
    meter(number_of(row, "decode_per_token_ms"), most_decode, out);
    text_addf(out, "</tr>\n");
  }
  text_addf(out, "</table></div>\n");
}

static void times(const report *r, text_buffer *out) {
  text_addf(out, "<h2>Time</h2><p>Means on ");
  page_text(out, r->device ? r->device : "this device");
  text_addf(out, ".</p>\n");
  for (int t = 0; t < r->n_timing; t++) time_rows(r->timing[t], out);
}

/* ---- numbers ---- */

static void numbers_of(const report *r, const report_pane *pane, text_buffer *out) {
  const char *tasks[MAX_NAMES], *budgets[MAX_NAMES];
  const int n_tasks = report_tasks(r, pane, tasks), n_budgets = report_budgets(r, pane->knows, budgets);
  text_addf(out, "<h3>");
  if (pane->length) text_addf(out, "%u tokens, ", pane->length);
  text_addf(out, "%s</h3><div class=\"scroll\"><table><tr><th>policy<th>budget<th>KV memory",
            known(pane->knows));
  for (int t = 0; t < n_tasks; t++) {
    text_addf(out, "<th>");
    page_text(out, tasks[t]);
  }
  text_addf(out, "<th>all</tr>\n");
  for (int s = 0; s < r->n_series; s++)
    for (int b = -1; b < n_budgets; b++) {
      report_row all, one;
      const char *budget = b < 0 ? "100%" : budgets[b];
      if (!report_mean(r, pane, s, budget, NULL, &all)) continue;
      text_addf(out, "<tr><td>");
      page_text(out, r->series[s].settings);
      text_addf(out, "<td>");
      page_text(out, budget);
      text_addf(out, "<td>");
      page_bytes(out, all.kv_bytes);
      text_addf(out, " <span class=\"soft\">%.1f&nbsp;%%</span>", 100 * all.share);
      for (int t = 0; t <= n_tasks; t++) {
        const bool has = t == n_tasks || report_mean(r, pane, s, budget, tasks[t], &one);
        const report_row *row = t == n_tasks ? &all : &one;
        if (has)
          text_addf(out, "<td>%.0f <span class=\"soft\">%.0f&ndash;%.0f</span>", 100 * row->score,
                    100 * row->low, 100 * row->high);
        else
          text_addf(out, "<td>");
      }
      text_addf(out, "</tr>\n");
    }
  text_addf(out, "</table></div>\n");
}

/* ---- the page ---- */

static void head(const report *r, text_buffer *out) {
  const char *name = strrchr(r->model, '/');
  uint64_t n = 0;
  for (size_t i = 0; i < r->n_rows; i++) n = r->rows[i].n > n ? r->rows[i].n : n;
  text_addf(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
                 "content=\"width=device-width,initial-scale=1\"><title>Eviction on ");
  page_text(out, name ? name + 1 : r->model);
  text_addf(out, "</title><style>%s</style></head><body><main>\n<h1>KV-cache eviction on ", text_style);
  page_text(out, name ? name + 1 : r->model);
  text_addf(out, "</h1><p class=\"soft\">");
  if (r->device) page_text(out, r->device);
  if (n) text_addf(out, " &middot; up to %llu prompts a point", (unsigned long long)n);
  text_addf(out, "</p>\n");
  chart_legend(r, out);
}

void page_write(const report *r, text_buffer *out) {
  report_pane panes[MAX_PANES];
  const int n_panes = report_panes(r, panes);
  bool has_depths = false;
  for (size_t i = 0; i < r->n_rows; i++) has_depths = has_depths || json_array_size(r->rows[i].depths) > 0;
  head(r, out);
  if (n_panes)
    text_addf(out, "<h2>Accuracy against memory</h2><p>Share of prompts answered right, with 95&nbsp;%% "
                   "intervals, over the bytes "
                   "of K and V that are left. Policies at the same budget keep the same bytes and are drawn "
                   "side by side.</p>\n");
  probes(r, out);
  for (int p = 0; p < n_panes; p++) accuracy(r, &panes[p], out);
  if (has_depths) {
    text_addf(out, "<h2>Where needles are found</h2><p>Per cent answered right by the depth of the first "
                   "needle; a row for each "
                   "policy and length.</p><div class=\"maps\">\n");
    maps_depths(r, out);
    text_addf(out, "</div>\n");
  }
  if (n_panes) {
    text_addf(out, "<h2>What is kept</h2><p>Above: entries of each KV head on average over all prompts. "
                   "Middle: where in the "
                   "document they stand (&ldquo;all&rdquo;). Below: the first prompt, a row for each head, "
                   "its needles marked "
                   "(&ldquo;one&rdquo;).</p>\n");
    maps_retention(r, out);
  }
  if (r->n_fidelity) fidelity(r, out);
  if (r->n_timing) times(r, out);
  if (n_panes) text_addf(out, "<h2>Numbers</h2><p>Per cent right, 95&nbsp;%% interval behind it.</p>\n");
  for (int p = 0; p < n_panes; p++) numbers_of(r, &panes[p], out);
  text_addf(out, "</main></body></html>\n");
}
