/* report_chart.c: lines over the share of the cache that is kept, as SVG. */
#include "report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LEFT = 46, RIGHT = 14, TOP = 14, BOTTOM = 42, MARKER = 4 };

static double x_of(const chart *c, double share) {
  const double inside = c->width - LEFT - RIGHT;
  return LEFT + inside * (log(share) - log(c->x_low)) / (log(c->x_high) - log(c->x_low));
}

static double y_of(const chart *c, double value) {
  const double inside = c->height - TOP - BOTTOM;
  return TOP + inside * (1 - fmin(value, c->y_high) / c->y_high);
}

/* Lines that stand at the same share are drawn next to each other, so that their intervals can be told apart. */
static double nudge(const chart *c, int line) {
  const double step = c->n_lines > 1 ? fmin(5, 0.06 * c->width / (c->n_lines - 1)) : 0;
  return (line - (c->n_lines - 1) / 2.0) * step;
}

static void draw_grid(const chart *c, text_buffer *out) {
  static const double shares[] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 1};
  const int n_steps = c->percent ? 4 : 5;
  for (int i = 0; i <= n_steps; i++) {
    const double value = c->y_high * i / n_steps, y = y_of(c, value);
    text_addf(out, "<path class=\"grid\" d=\"M%d %.1fH%.1f\"/>", LEFT, y, c->width - RIGHT);
    text_addf(out,
              c->percent ? "<text class=\"axis\" text-anchor=\"end\" x=\"%d\" y=\"%.1f\">%.0f</text>"
                         : "<text class=\"axis\" text-anchor=\"end\" x=\"%d\" y=\"%.1f\">%.3g</text>",
              LEFT - 7, y + 4, c->percent ? 100 * value : value);
  }
  double last = -1e9;
  for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
    if (shares[i] < c->x_low || shares[i] > c->x_high) continue;
    const double x = x_of(c, shares[i]);
    text_addf(out, "<path class=\"grid\" d=\"M%.1f %dV%.1f\"/>", x, TOP, c->height - BOTTOM);
    if (x - last < 34) continue;
    text_addf(out, "<text class=\"axis\" text-anchor=\"middle\" x=\"%.1f\" y=\"%.1f\">%g</text>", x,
              c->height - BOTTOM + 17, 100 * shares[i]);
    last = x;
  }
  text_addf(out,
            "<text class=\"axis\" text-anchor=\"middle\" x=\"%.1f\" y=\"%.1f\">KV bytes kept, %% of the full "
            "cache</text>",
            (LEFT + c->width - RIGHT) / 2, c->height - 7);
}

static void draw_marker(int series, double x, double y, text_buffer *out) {
  const int m = MARKER;
  switch (series / N_COLOURS % 3) {
  case 0:
    text_addf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\"/>", x, y, m);
    return;
  case 1:
    text_addf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"%d\"/>", x - m + 0.5, y - m + 0.5,
              2 * m - 1, 2 * m - 1);
    return;
  default:
    text_addf(out, "<path d=\"M%.1f %.1fl%d %dh%dz\"/>", x, y - m - 1, m + 1, 2 * m, -2 * (m + 1));
  }
}

static void draw_line(const chart *c, int index, text_buffer *out) {
  const chart_line *line = &c->lines[index];
  const double dx = nudge(c, index);
  text_addf(out, "<g class=\"s%d d%d\">", line->series % N_COLOURS, line->series / N_COLOURS % 3);
  if (line->n > 1) {
    text_addf(out, "<path class=\"line\" d=\"");
    for (int i = 0; i < line->n; i++)
      text_addf(out, "%c%.1f %.1f", i ? 'L' : 'M', x_of(c, line->points[i].x) + dx,
                y_of(c, line->points[i].y));
    text_addf(out, "\"/>");
  }
  /* A full cache: what the others are held against. */
  if (line->n == 1 && line->points[0].x > 0.9)
    text_addf(out, "<path class=\"reference\" d=\"M%d %.1fH%.1f\"/>", LEFT, y_of(c, line->points[0].y),
              c->width - RIGHT);
  for (int i = 0; i < line->n; i++) {
    const chart_point *p = &line->points[i];
    const double x = x_of(c, p->x) + dx;
    text_addf(out, "<g><title>");
    page_text(out, p->label);
    text_addf(out, "</title><path class=\"bar\" d=\"M%.1f %.1fV%.1f\"/>", x, y_of(c, p->low),
              y_of(c, p->high));
    draw_marker(line->series, x, y_of(c, p->y), out);
    text_addf(out, "</g>");
  }
  text_addf(out, "</g>");
}

void chart_draw(const chart *c, text_buffer *out) {
  text_addf(out, "<figure class=\"chart\"><figcaption>");
  page_text(out, c->title);
  text_addf(out, " <span class=\"soft\">%s</span></figcaption>", c->y_name);
  text_addf(out, "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", c->width, c->height);
  page_text(out, c->title);
  text_addf(out, "\">");
  draw_grid(c, out);
  for (int i = 0; i < c->n_lines; i++) draw_line(c, i, out);
  text_addf(out, "</svg></figure>\n");
}

void chart_legend(const report *r, text_buffer *out) {
  text_addf(out, "<ul class=\"legend\">");
  for (int i = 0; i < r->n_series; i++) {
    text_addf(out,
              "<li><svg viewBox=\"0 0 26 12\" width=\"26\" height=\"12\" aria-hidden=\"true\"><g class=\"s%d "
              "d%d\"><path class=\"line\" d=\"M1 6H25\"/>",
              i % N_COLOURS, i / N_COLOURS % 3);
    draw_marker(i, 13, 6, out);
    text_addf(out, "</g></svg>");
    page_text(out, r->series[i].settings);
    text_addf(out, "</li>");
  }
  text_addf(out, "</ul>\n");
}
