/* bench_page.c: one HTML page without anything from elsewhere: figures of several devices as charts (SVG) and tables. */
#include "bench_page.h"

#include "io/file.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The first failure sticks, so that nothing in between needs a check. */
typedef struct page {
  lpx_output output;
  laprox_result failure;
} page;

static void put(page *p, const char *format, ...) LPX_PRINTF(2, 3);
static void put(page *p, const char *format, ...) {
  char piece[1024];
  va_list arguments;
  va_start(arguments, format);
  const int n = vsnprintf(piece, sizeof piece, format, arguments);
  va_end(arguments);
  if (!p->failure && n > 0)
    p->failure = lpx_output_write(&p->output, piece, (size_t)n < sizeof piece ? (size_t)n : sizeof piece - 1);
}

/* A text that may hold anything. */
static void put_text(page *p, const char *text) {
  for (; *text; text++) {
    const char *escaped = *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : *text == '&' ? "&amp;" : NULL;
    if (*text == '"') escaped = "&quot;";
    put(p, escaped ? "%s" : "%.1s", escaped ? escaped : text);
  }
}

static double number(const json_t *object, const char *key) {
  return json_number_value(json_object_get(object, key));
}

/* So many decimals, and commas between thousands. */
static void format_decimals(double value, int decimals, char out[32]) {
  char plain[32];
  size_t n = 0;
  snprintf(plain, sizeof plain, "%.*f", decimals, value);
  const size_t whole = strcspn(plain, ".");
  for (size_t i = 0; plain[i] && n < 30; i++) {
    if (i && i < whole && (whole - i) % 3 == 0) out[n++] = ',';
    out[n++] = plain[i];
  }
  out[n] = 0;
}

/* Three digits that count. */
static void put_number(page *p, double value) {
  char text[32];
  const int decimals = value >= 100 || value <= 0 ? 0
                       : value >= 10              ? 1
                       : value >= 1               ? 2
                       : value >= 0.1             ? 3
                                                  : 4;
  format_decimals(value, decimals, text);
  put(p, "%s", text);
}

static void put_count(page *p, const json_t *object, const char *key, const char *behind) {
  char text[32];
  format_decimals(number(object, key), 0, text);
  put(p, "%s%s", text, behind);
}

/* ---- the head ---- */

static const char *const style[] = {
    ":root{--page:#fbfbfa;--card:#fff;--ink:#16181d;--soft:#5b6070;--line:#dcdee3;--grid:#eceef1}",
    ":root{--c0:#2a78d6;--c1:#d95926;--c2:#12875b;--c3:#8a5fd0}",
    ":root{--c4:#b87a00;--c5:#c8447f;--c6:#0f8fa3;--c7:#6b7280}",
    "@media(prefers-color-scheme:dark){",
    ":root{--page:#14161a;--card:#1c1f25;--ink:#eceef2;--soft:#a3a9b7;--line:#353a44;--grid:#2a2e36}",
    ":root{--c0:#5b9df0;--c1:#f08050;--c2:#3fbf8d;--c3:#b08ff0}",
    ":root{--c4:#dba632;--c5:#ec7fb0;--c6:#4cc3d6;--c7:#9aa1af}}",
    "*{box-sizing:border-box}",
    "body{margin:0;background:var(--page);color:var(--ink)}",
    "body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}",
    "main{max-width:1240px;margin:0 auto;padding:28px 20px 60px}",
    "h1{font-size:25px;margin:0 0 4px}h2{font-size:18px;margin:40px 0 2px}",
    "p{margin:2px 0 12px;color:var(--soft);max-width:75ch}",
    ".charts{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}",
    "figure,.scroll{background:var(--card);border:1px solid var(--line);border-radius:8px}",
    "figure{margin:0;padding:14px 16px}",
    "figcaption{font-weight:600;margin-bottom:6px}figcaption span{font-weight:400;color:var(--soft)}",
    "svg{display:block;width:100%;height:auto}svg text{font-size:12px;fill:var(--ink)}",
    "svg .soft{fill:var(--soft);font-size:11px}svg .grid{stroke:var(--grid)}",
    ".scroll{overflow-x:auto;margin-top:16px}",
    "table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}",
    "th,td{padding:6px 10px;text-align:right;white-space:nowrap;border-top:1px solid var(--grid)}",
    "thead tr:first-child th{border-top:0}th{font-weight:600}",
    "thead th{color:var(--soft);font-weight:500}thead th.device{color:var(--ink);font-weight:600}",
    "th.device,th.left,th:first-child,td.name{text-align:left}",
    "th.part,td.part{border-left:1px solid var(--line)}",
    ".legend{display:flex;flex-wrap:wrap;gap:4px 22px;margin:10px 0 14px;padding:0;list-style:none}",
    ".key{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px}",
};

static void put_head(page *p, const bench_comparison *all) {
  put(p,
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n<title>laprox bench: %zu "
      "devices</title>\n<style>\n",
      all->n_devices);
  for (size_t i = 0; i < sizeof style / sizeof *style; i++) put(p, "%s\n", style[i]);
  for (int i = 0; i < BENCH_MOST_DEVICES; i++)
    put(p, ".c%d{fill:var(--c%d);stroke:var(--c%d);background:var(--c%d)}\n", i, i, i, i);
  put(p, "</style></head>\n<body><main>\n<h1>Cache eviction on %zu devices</h1>\n", all->n_devices);
  put(p, "<p>Measured by <code>laprox bench</code>. Every time is the median of several repetitions with "
         "cold caches; "
         "a share of the ceiling is measured against what the same device copies or computes at most.</p>\n");
}

static void put_key(page *p, size_t device) {
  put(p, "<span class=\"key c%zu\"></span>", device);
}

static void put_legend(page *p, const bench_comparison *all) {
  put(p, "<ul class=\"legend\">");
  for (size_t d = 0; d < all->n_devices; d++) {
    put(p, "<li>");
    put_key(p, d);
    put_text(p, all->devices[d].label);
    put(p, "</li>");
  }
  put(p, "</ul>\n");
}

/* ---- devices ---- */

static void put_variants(page *p, const json_t *variants) {
  put(p, "baseline");
  for (size_t i = 0; i < json_array_size(variants); i++) {
    const char *name = json_string_value(json_array_get(variants, i));
    if (!name) continue;
    put(p, ", ");
    put_text(p, name);
  }
}

static void put_cell_text(page *p, const char *text) {
  put(p, "<td class=\"name\">");
  put_text(p, text);
  put(p, "</td>");
}

static void put_devices(page *p, const bench_comparison *all) {
  put(p, "<div class=\"scroll\"><table><thead><tr><th>device</th><th class=\"left\">driver</th><th "
         "class=\"left\">kernels</th><th>copy GB/s</th><th>f32 Tflop/s</th><th>f16 matrices Tflop/s</th>"
         "<th>laprox</th></tr></thead><tbody>\n");
  for (size_t d = 0; d < all->n_devices; d++) {
    const json_t *root = all->devices[d].root, *ceilings = json_object_get(root, "ceilings");
    const json_t *matrix = json_object_get(ceilings, "matrix_gflops");
    put(p, "<tr><td class=\"name\">");
    put_key(p, d);
    put_text(p, all->devices[d].label);
    put(p, "</td>");
    put_cell_text(p, json_string_value(json_object_get(root, "driver_info")));
    put(p, "<td class=\"name\">");
    put_variants(p, json_object_get(root, "variants"));
    put(p, "</td><td>");
    put_number(p, number(ceilings, "copy_gbps"));
    put(p, "</td><td>");
    put_number(p, number(ceilings, "fma_gflops") * 1e-3);
    put(p, "</td><td>");
    if (json_is_number(matrix))
      put_number(p, json_number_value(matrix) * 1e-3);
    else
      put(p, "–");
    put(p, "</td><td>");
    put_text(p, json_string_value(json_object_get(root, "version")));
    put(p, "</td></tr>\n");
  }
  put(p, "</tbody></table></div>\n");
}

/* ---- charts ---- */

enum { WIDTH = 560, LEFT = 118, RIGHT = 62, LANE = 16, ROW_GAP = 14, TOP = 8, BOTTOM = 24 };

typedef struct chart {
  page *p;
  const bench_comparison *all;
  const json_t *shape;
  const char *kernels[BENCH_MOST_KERNELS];
  size_t n_kernels;
  int first_decade, last_decade; /* of milliseconds */
  double largest_share;          /* the right end of that axis */
} chart;

static double row_height(const chart *c) {
  return (double)(c->all->n_devices * LANE + ROW_GAP);
}

static double plot_bottom(const chart *c) {
  return TOP + row_height(c) * (double)c->n_kernels;
}

static double plot_width(void) {
  return WIDTH - LEFT - RIGHT;
}

static double time_x(const chart *c, double ms) {
  return LEFT + plot_width() * (log10(ms) - c->first_decade) / (c->last_decade - c->first_decade);
}

static void find_ranges(chart *c) {
  double least = INFINITY, most = 0;
  c->largest_share = 1;
  for (size_t k = 0; k < c->n_kernels; k++)
    for (size_t d = 0; d < c->all->n_devices; d++) {
      const json_t *row = bench_find_row(&c->all->devices[d], c->shape, c->kernels[k], NULL);
      if (!row) continue;
      least = fmin(least, bench_row_ms(row, "min"));
      most = fmax(most, bench_row_ms(row, "max"));
      c->largest_share = fmax(c->largest_share, ceil(number(row, "share_of_ceiling") * 4) / 4);
    }
  c->first_decade = (int)floor(log10(least));
  c->last_decade = (int)ceil(log10(most));
  if (c->last_decade <= c->first_decade) c->last_decade = c->first_decade + 1;
}

static void put_grid_line(const chart *c, double x, const char *label) {
  put(c->p, "<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%.1f\"/>", x, TOP, x,
      plot_bottom(c));
  put(c->p, "<text class=\"soft\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", x,
      plot_bottom(c) + 16, label);
}

static void begin_chart(const chart *c, const char *caption, const char *unit) {
  put(c->p,
      "<figure><figcaption>%s <span>%s</span></figcaption>\n<svg viewBox=\"0 0 %d %.0f\" role=\"img\" "
      "aria-label=\"%s\">\n",
      caption, unit, WIDTH, plot_bottom(c) + BOTTOM, caption);
}

static void put_row_labels(const chart *c) {
  for (size_t k = 0; k < c->n_kernels; k++) {
    const double top = TOP + row_height(c) * (double)k;
    put(c->p, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", LEFT - 10, top + row_height(c) / 2 + 4);
    put_text(c->p, c->kernels[k]);
    put(c->p, "</text>\n");
    if (k) put(c->p, "<line class=\"grid\" x1=\"0\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>\n", top, WIDTH, top);
  }
}

static double lane_y(const chart *c, size_t kernel, size_t device) {
  return TOP + row_height(c) * (double)kernel + ROW_GAP / 2.0 + LANE * ((double)device + 0.5);
}

/* What a pointer that rests on a mark reads. */
static void put_title(const chart *c, size_t device, const json_t *row) {
  page *p = c->p;
  put(p, "<title>");
  put_text(p, c->all->devices[device].label);
  put(p, ", ");
  put_text(p, json_string_value(json_object_get(row, "kernel")));
  put(p, ", ");
  put_text(p, json_string_value(json_object_get(row, "variant")));
  put(p, ": ");
  put_number(p, bench_row_ms(row, "median"));
  put(p, " ms (");
  put_number(p, bench_row_ms(row, "min"));
  put(p, " to ");
  put_number(p, bench_row_ms(row, "max"));
  put(p, "), ");
  put_number(p, number(row, "gbps"));
  put(p, " GB/s, %.0f %% of the ceiling</title>", 100 * number(row, "share_of_ceiling"));
}

static void put_time_mark(const chart *c, size_t kernel, size_t device, const json_t *row) {
  const double y = lane_y(c, kernel, device), x = time_x(c, bench_row_ms(row, "median"));
  put(c->p, "<g>");
  put_title(c, device, row);
  put(c->p, "<line class=\"c%zu\" stroke-width=\"2\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>",
      device, time_x(c, bench_row_ms(row, "min")), y, time_x(c, bench_row_ms(row, "max")), y);
  put(c->p, "<circle class=\"c%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\"/>", device, x, y);
  put(c->p, "<text x=\"%.1f\" y=\"%.1f\">", fmax(x, time_x(c, bench_row_ms(row, "max"))) + 9, y + 4);
  put_number(c->p, bench_row_ms(row, "median"));
  put(c->p, "</text></g>\n");
}

static void put_share_mark(const chart *c, size_t kernel, size_t device, const json_t *row) {
  const double y = lane_y(c, kernel, device), share = number(row, "share_of_ceiling");
  const double width = fmax(plot_width() * share / c->largest_share, 1);
  put(c->p, "<g>");
  put_title(c, device, row);
  put(c->p,
      "<rect class=\"c%zu\" stroke=\"none\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" rx=\"2\"/>",
      device, LEFT, y - LANE / 2.0 + 1, width, LANE - 2);
  put(c->p, "<text x=\"%.1f\" y=\"%.1f\">%.*f %%</text></g>\n", LEFT + width + 7, y + 4,
      share < 0.0995 ? 1 : 0, 100 * share);
}

static void put_marks(const chart *c, void (*put_mark)(const chart *, size_t, size_t, const json_t *)) {
  for (size_t k = 0; k < c->n_kernels; k++)
    for (size_t d = 0; d < c->all->n_devices; d++) {
      const json_t *row = bench_find_row(&c->all->devices[d], c->shape, c->kernels[k], NULL);
      if (row) put_mark(c, k, d, row);
    }
  put(c->p, "</svg></figure>\n");
}

static void put_charts(const chart *c) {
  char text[32];
  put(c->p, "<div class=\"charts\">\n");
  begin_chart(c, "Time", "milliseconds, logarithmic");
  put_row_labels(c);
  const int step = (c->last_decade - c->first_decade) / 7 + 1;
  for (int decade = c->first_decade; decade <= c->last_decade; decade += step) {
    snprintf(text, sizeof text, "%.*f", decade < 0 ? -decade : 0, pow(10, decade));
    put_grid_line(c, time_x(c, pow(10, decade)), text);
  }
  put_marks(c, put_time_mark);
  begin_chart(c, "Share of the ceiling", "of what the device copies or computes at most");
  put_row_labels(c);
  for (int quarter = 0; quarter <= (int)(c->largest_share * 4 + 0.5); quarter++) {
    snprintf(text, sizeof text, "%d %%", 25 * quarter);
    put_grid_line(c, LEFT + plot_width() * 0.25 * quarter / c->largest_share, text);
  }
  put_marks(c, put_share_mark);
  put(c->p, "</div>\n");
}

/* ---- the table of a shape ---- */

static void put_cells(page *p, const json_t *row) {
  if (!row) {
    put(p, "<td class=\"part\">–</td><td>–</td><td>–</td>");
    return;
  }
  put(p, "<td class=\"part\">");
  put_number(p, bench_row_ms(row, "median"));
  put(p, "</td><td>");
  put_number(p, number(row, "gbps"));
  put(p, "</td><td>%.0f %%</td>", 100 * number(row, "share_of_ceiling"));
}

static void put_table_head(page *p, const bench_comparison *all) {
  put(p, "<div class=\"scroll\"><table><thead><tr><th></th><th></th>");
  for (size_t d = 0; d < all->n_devices; d++) {
    put(p, "<th class=\"device part\" colspan=\"3\">");
    put_key(p, d);
    put_text(p, all->devices[d].label);
    put(p, "</th>");
  }
  put(p, "</tr><tr><th>kernel</th><th class=\"left\">variant</th>");
  for (size_t d = 0; d < all->n_devices; d++)
    put(p, "<th class=\"part\">ms</th><th>GB/s</th><th>ceiling</th>");
  put(p, "</tr></thead><tbody>\n");
}

static void put_table(const chart *c) {
  const char *variants[LAPROX_N_VARIANTS + 2] = {"baseline"};
  const bench_comparison *all = c->all;
  page *p = c->p;
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++) variants[i + 1] = laprox_variant_name(1u << i);
  variants[LAPROX_N_VARIANTS + 1] = "all";
  put_table_head(p, all);
  for (size_t k = 0; k < c->n_kernels; k++)
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++) {
      const json_t *rows[BENCH_MOST_DEVICES] = {NULL};
      bool any = false;
      for (size_t d = 0; d < all->n_devices; d++) {
        rows[d] = bench_find_row(&all->devices[d], c->shape, c->kernels[k], variants[v]);
        any = any || rows[d];
      }
      if (!any) continue;
      put(p, "<tr>");
      put_cell_text(p, c->kernels[k]);
      put_cell_text(p, variants[v]);
      for (size_t d = 0; d < all->n_devices; d++) put_cells(p, rows[d]);
      put(p, "</tr>\n");
    }
  put(p, "</tbody></table></div>\n");
}

static void put_shape(page *p, const bench_comparison *all, const json_t *shape) {
  chart c = {.p = p, .all = all, .shape = shape};
  c.n_kernels = bench_list_kernels(all, shape, c.kernels);
  put(p, "<section><h2>");
  put_text(p, json_string_value(json_object_get(shape, "geometry")));
  put(p, ", ");
  put_count(p, shape, "n_tokens", " tokens</h2>\n<p>");
  put_count(p, shape, "n_layers", " layers, ");
  put_count(p, shape, "n_heads", " query heads, ");
  put_count(p, shape, "n_kv_heads", " KV heads of ");
  put_count(p, shape, "head_dim", "; ");
  put_count(p, shape, "budget", " entries a head kept by ");
  put_text(p, json_string_value(json_object_get(shape, "policy")));
  put(p, ". The charts show each device's fastest variant.</p>\n");
  for (size_t d = 0; d < all->n_devices; d++) {
    const json_t *skipped = bench_find_skipped(&all->devices[d], shape);
    if (!skipped) continue;
    put(p, "<p>");
    put_text(p, all->devices[d].label);
    put(p, ": not measured, ");
    put_text(p, json_string_value(json_object_get(skipped, "reason")));
    put(p, ".</p>\n");
  }
  find_ranges(&c);
  put_legend(p, all);
  put_charts(&c);
  put_table(&c);
  put(p, "</section>\n");
}

laprox_result bench_write_page(const laprox_host *host, const bench_comparison *all, const char *path) {
  page p = {0};
  const laprox_host complete = lpx_host_complete(host);
  p.failure = lpx_output_open(&complete, path, &p.output);
  if (p.failure) return p.failure;
  put_head(&p, all);
  put_devices(&p, all);
  for (size_t s = 0; s < all->n_shapes; s++) put_shape(&p, all, all->shapes[s]);
  put(&p, "</main></body></html>\n");
  if (!p.failure) p.failure = lpx_output_commit(&p.output);
  lpx_output_close(&p.output);
  return p.failure;
}
