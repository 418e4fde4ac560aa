/* report_maps.c: where needles are found, and what each head keeps, as shaded cells. */
#include "report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { N_DEPTHS = 10, CELL = 30, CELL_HEIGHT = 20 };

/* A cell shaded by a share; its text keeps away from the shade. */
static void draw_cell(double x, double y, double width, double height, double share, const char *text,
                      const char *title, text_buffer *out) {
  share = share > 0 ? fmin(share, 1) : 0;
  text_addf(out,
            "<g><title>%s</title><rect class=\"cell\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>",
            title, x, y, width, height);
  text_addf(
      out,
      "<rect class=\"heat\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill-opacity=\"%.3f\"/>", x,
      y, width, height, share);
  if (*text)
    text_addf(out, "<text class=\"%s\" text-anchor=\"middle\" x=\"%.1f\" y=\"%.1f\">%s</text>",
              share > 0.6 ? "on" : "off", x + width / 2, y + height / 2 + 4, text);
  text_addf(out, "</g>");
}

/* ---- depths ---- */

typedef struct depth_line {
  uint64_t n[N_DEPTHS];
  double score[N_DEPTHS];
  uint64_t all;
} depth_line;

static void add_depths(const report_row *row, depth_line *to) {
  for (size_t i = 0; i < json_array_size(row->depths); i++) {
    const json_t *one = json_array_get(row->depths, i);
    const double depth = json_number_value(json_object_get(one, "depth"));
    const double n = json_number_value(json_object_get(one, "n"));
    if (!(depth >= 0 && depth < 1 && n > 0)) continue;
    const int d = (int)(depth * N_DEPTHS);
    to->n[d] += (uint64_t)n;
    to->all += (uint64_t)n;
    to->score[d] += n * json_number_value(json_object_get(one, "score"));
  }
}

static depth_line find_depths(const report *r, bool knows, uint32_t length, int series, const char *budget) {
  depth_line sum = {.all = 0};
  for (size_t i = 0; i < r->n_rows; i++) {
    const report_row *row = &r->rows[i];
    if (row->knows == knows && row->length == length && row->series == series &&
        strcmp(row->budget, budget) == 0)
      add_depths(row, &sum);
  }
  return sum;
}

static void draw_depths(const depth_line *line, double x, double y, text_buffer *out) {
  for (int d = 0; d < N_DEPTHS; d++) {
    char text[16] = "", title[96] = "no needle at this depth";
    const double score = line->n[d] ? line->score[d] / (double)line->n[d] : 0;
    if (line->n[d]) {
      snprintf(text, sizeof text, "%.0f", 100 * score);
      snprintf(title, sizeof title, "depth %d to %d %%: %.0f %% of %llu", 10 * d, 10 * d + 10, 100 * score,
               (unsigned long long)line->n[d]);
    }
    draw_cell(x + d * CELL, y, CELL - 2, CELL_HEIGHT - 2, score, text, title, out);
  }
}

/* Room for the longest name and a length behind it. */
static int name_width(const report *r) {
  size_t most = 0;
  for (int i = 0; i < r->n_series; i++) {
    const size_t n = strlen(r->series[i].settings);
    most = n > most ? n : most;
  }
  return (int)(most < 60 ? most : 60) * 36 / 5 + 54;
}

/* The first needle's depth from left to right; a line for each policy and length. */
static void depth_map(const report *r, bool knows, const char *budget, text_buffer *out) {
  report_pane panes[MAX_PANES];
  const int n_panes = report_panes(r, panes);
  const int names = name_width(r);
  text_buffer body = {0};
  double y = 24;
  for (int s = 0; s < r->n_series; s++)
    for (int p = 0; p < n_panes; p++) {
      if (panes[p].knows != knows) continue;
      const depth_line line =
          find_depths(r, knows, panes[p].length, s, r->series[s].is_full ? "100%" : budget);
      if (!line.all) continue;
      text_addf(&body, "<text class=\"label\" text-anchor=\"end\" x=\"%d\" y=\"%.1f\">", names - 10, y + 14);
      page_text(&body, r->series[s].settings);
      if (panes[p].length) text_addf(&body, ", %u", panes[p].length);
      text_addf(&body, "</text>");
      draw_depths(&line, names, y, &body);
      y += CELL_HEIGHT;
    }
  if (y > 24) {
    const int width = names + N_DEPTHS * CELL;
    text_addf(
        out,
        "<figure class=\"map\"><figcaption>Budget %s <span class=\"soft\">question %s</span></figcaption>",
        budget, knows ? "known" : "unknown");
    text_addf(out,
              "<svg viewBox=\"0 0 %d %.0f\" style=\"max-width:%dpx\" role=\"img\" aria-label=\"Depths\">",
              width, y + 2, width);
    text_addf(out,
              "<text class=\"axis\" x=\"%d\" y=\"14\">document's beginning</text><text class=\"axis\" "
              "text-anchor=\"end\" "
              "x=\"%d\" y=\"14\">end</text>",
              names, width - 2);
    text_add(out, body.bytes, body.n);
    text_addf(out, "</svg></figure>\n");
  }
  out->failed = out->failed || body.failed;
  text_finish(&body);
}

void maps_depths(const report *r, text_buffer *out) {
  for (int knows = 1; knows >= 0; knows--) {
    const char *budgets[MAX_NAMES];
    const int n = report_budgets(r, knows, budgets);
    for (int b = 0; b < n; b++) depth_map(r, knows, budgets[b], out);
  }
}

/* ---- retention ---- */

enum { HEAD_CELL = 40, MAX_BINS = 64, BARS_HEIGHT = 44, MAP_WIDTH = 300, MAP_ROW = 9 };

typedef struct kept {
  double heads[4096], bins[MAX_BINS], n_tokens;
  size_t n_layers, n_heads, n_bins;
  uint32_t n;
} kept;

static void add_kept(const report_row *row, kept *to) {
  const size_t n_layers = json_array_size(row->heads),
               n_heads = json_array_size(json_array_get(row->heads, 0));
  const size_t n_bins = json_array_size(row->bins);
  if (!n_layers || n_layers * n_heads > 4096 || n_bins > MAX_BINS) return;
  if (to->n && (to->n_layers != n_layers || to->n_heads != n_heads || to->n_bins != n_bins)) return;
  to->n_layers = n_layers;
  to->n_heads = n_heads;
  to->n_bins = n_bins;
  to->n++;
  to->n_tokens += row->n_tokens;
  for (size_t l = 0; l < n_layers; l++)
    for (size_t h = 0; h < n_heads; h++)
      to->heads[l * n_heads + h] += json_number_value(json_array_get(json_array_get(row->heads, l), h));
  for (size_t b = 0; b < n_bins; b++) to->bins[b] += json_number_value(json_array_get(row->bins, b));
}

/* Heads from left to right, layers from top to bottom; half the shade is the mean. */
static double draw_heads(const kept *k, double mean, text_buffer *out) {
  const double width = fmin(HEAD_CELL, MAP_WIDTH / (double)k->n_heads), height = k->n_layers > 16 ? 8 : 16;
  const bool has_text = width >= 30 && height >= 14;
  for (size_t l = 0; l < k->n_layers; l++) {
    if (height >= 14 || l % 4 == 0)
      text_addf(out, "<text class=\"axis\" text-anchor=\"end\" x=\"44\" y=\"%.1f\">layer %zu</text>",
                (double)l * height + height / 2 + 4, l);
    for (size_t h = 0; h < k->n_heads; h++) {
      const double value = k->heads[l * k->n_heads + h] / k->n;
      char text[16] = "", title[96];
      if (has_text) snprintf(text, sizeof text, "%.0f", value);
      snprintf(title, sizeof title, "layer %zu, KV head %zu: %.1f entries", l, h, value);
      draw_cell(50 + (double)h * width, (double)l * height, width - 1.5, height - 1.5, value / (2 * mean),
                text, title, out);
    }
  }
  return (double)k->n_layers * height;
}

static void draw_bars(const kept *k, double y, text_buffer *out) {
  const double width = MAP_WIDTH / (double)k->n_bins;
  double most = 0;
  for (size_t b = 0; b < k->n_bins; b++) most = fmax(most, k->bins[b]);
  text_addf(out, "<text class=\"axis\" text-anchor=\"end\" x=\"44\" y=\"%.1f\">all</text>", y + BARS_HEIGHT);
  for (size_t b = 0; b < k->n_bins && most > 0; b++) {
    const double height = BARS_HEIGHT * k->bins[b] / most;
    text_addf(out,
              "<rect class=\"heat\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>%.1f %% of "
              "what is kept</title></rect>",
              50 + (double)b * width, y + BARS_HEIGHT - height, width - 1, height, 100 * k->bins[b] / k->n);
  }
}

static const json_t *find_map(const report *r, bool knows, int series, const char *budget) {
  const json_t *all = json_object_get(r->example, "policies");
  for (size_t i = 0; i < json_array_size(all); i++) {
    const json_t *one = json_array_get(all, i);
    const char *settings = json_string_value(json_object_get(one, "settings")),
               *question = json_string_value(json_object_get(one, "question")),
               *share = json_string_value(json_object_get(one, "budget"));
    if (settings && question && share && report_find_series(r, settings) == series &&
        strcmp(share, budget) == 0 && (strcmp(question, "known") == 0) == knows)
      return json_object_get(one, "map");
  }
  return NULL;
}

/* One prompt: what each head keeps, from the document's beginning to its end, and where the needles stand. */
static double draw_example(const report *r, const json_t *map, double y, text_buffer *out) {
  const size_t n_rows = json_array_size(map);
  const double n_tokens = json_number_value(json_object_get(r->example, "n_tokens"));
  const json_t *needles = json_object_get(r->example, "needle_pos");
  const double height = n_rows > 16 ? 4 : MAP_ROW;
  if (!n_rows) return y;
  text_addf(out, "<text class=\"axis\" text-anchor=\"end\" x=\"44\" y=\"%.1f\">one</text>", y + 9);
  for (size_t i = 0; i < n_rows; i++) {
    const json_t *row = json_array_get(map, i);
    const double width = MAP_WIDTH / (double)json_array_size(row),
                 full = fmax(1, n_tokens / (double)json_array_size(row));
    text_addf(out, "<rect class=\"cell\" x=\"50\" y=\"%.1f\" width=\"%d\" height=\"%.1f\"/>",
              y + (double)i * height, MAP_WIDTH, height - 1.5);
    for (size_t b = 0; b < json_array_size(row); b++) {
      const double count = json_number_value(json_array_get(row, b));
      if (count > 0)
        text_addf(out,
                  "<rect class=\"heat\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                  "fill-opacity=\"%.2f\"/>",
                  50 + (double)b * width, y + (double)i * height, width, height - 1.5,
                  0.25 + 0.75 * fmin(1, count / full));
    }
  }
  for (size_t i = 0; i < json_array_size(needles) && n_tokens > 0; i++) {
    const double at = json_number_value(json_array_get(json_array_get(needles, i), 0));
    text_addf(out, "<path class=\"needle\" d=\"M%.1f %.1fl-4 7h8z\"><title>a needle</title></path>",
              50 + MAP_WIDTH * fmin(1, at / n_tokens), y + (double)n_rows * height + 1);
  }
  return y + (double)n_rows * height + 9;
}

static void draw_kept(const report *r, bool knows, int series, const char *budget, const kept *k,
                      text_buffer *out) {
  double sum = 0;
  text_buffer body = {0};
  for (size_t i = 0; i < k->n_layers * k->n_heads; i++) sum += k->heads[i] / k->n;
  double y = draw_heads(k, sum > 0 ? sum / (double)(k->n_layers * k->n_heads) : 1, &body) + 8;
  draw_bars(k, y, &body);
  y = draw_example(r, find_map(r, knows, series, budget), y + BARS_HEIGHT + 6, &body);
  text_addf(out, "<figure class=\"map\"><figcaption>");
  page_text(out, r->series[series].settings);
  text_addf(out, "</figcaption>");
  text_addf(out,
            "<svg viewBox=\"0 0 %d %.0f\" style=\"max-width:%dpx\" role=\"img\" aria-label=\"What is kept\">",
            MAP_WIDTH + 56, y + 4, MAP_WIDTH + 56);
  text_add(out, body.bytes, body.n);
  text_addf(out, "</svg></figure>\n");
  out->failed = out->failed || body.failed;
  text_finish(&body);
}

static void retention_of(const report *r, bool knows, const char *budget, text_buffer *out) {
  for (int s = 0; s < r->n_series; s++) {
    kept k = {.n = 0};
    for (size_t i = 0; i < r->n_rows; i++)
      if (r->rows[i].knows == knows && r->rows[i].series == s && !r->series[s].is_full &&
          strcmp(r->rows[i].budget, budget) == 0)
        add_kept(&r->rows[i], &k);
    if (k.n) draw_kept(r, knows, s, budget, &k, out);
  }
}

void maps_retention(const report *r, text_buffer *out) {
  bool is_first = true;
  for (int knows = 1; knows >= 0; knows--) {
    const char *budgets[MAX_NAMES];
    const int n = report_budgets(r, knows, budgets);
    for (int b = n; b-- > 0; is_first = false) {
      text_addf(out, "<details%s><summary>Budget %s, question %s</summary><div class=\"maps even\">\n",
                is_first ? " open" : "", budgets[b], knows ? "known" : "unknown");
      retention_of(r, knows, budgets[b], out);
      text_addf(out, "</div></details>\n");
    }
  }
}
