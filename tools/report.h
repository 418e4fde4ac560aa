/* report.h: what the parts of `laprox report` share: results that were read, and the page that is made of them. */
#ifndef TOOLS_REPORT_H
#define TOOLS_REPORT_H

#include "cli.h"
#include "text_buffer.h"

enum { MAX_ROWS = 65536, MAX_SERIES = 64, MAX_PANES = 64, MAX_NAMES = 64, N_COLOURS = 8 };

/* A policy with its settings: one line in every chart. */
typedef struct report_series {
  const char *settings;
  bool is_full; /* keeps everything */
} report_series;

/* One number of the results. */
typedef struct report_row {
  int series;
  const char *budget, *task;
  bool knows; /* the question */
  uint32_t length, n_tokens;
  uint64_t n;
  double score, low, high;
  double kv_bytes, full_bytes, share; /* share: of the plain full cache's bytes */
  const json_t *depths, *heads, *bins;
} report_row;

typedef struct report {
  json_t *roots[MAX_LISTED + 1];
  int n_roots;
  const char *model, *device;
  report_series series[MAX_SERIES];
  int n_series;
  report_row *rows;
  size_t n_rows, rows_room;
  const json_t *fidelity[MAX_LISTED + 1], *timing[MAX_LISTED + 1], *example;
  int n_fidelity, n_timing;
} report;

/* A chart or table's share of the rows: what is known at eviction, and the length of the prompts. */
typedef struct report_pane {
  bool knows;
  uint32_t length;
} report_pane;

/* report_data.c */
/* Returns an exit status, after one line on standard error where it is not EXIT_DONE. */
int report_read(report *r, const char *path);
/* Once everything has been read. */
void report_compare_bytes(report *r);
void report_finish(report *r);
/* Distinct panes of the rows, in their order. */
int report_panes(const report *r, report_pane panes[MAX_PANES]);
/* Distinct tasks of a pane; with pane NULL of all rows. */
int report_tasks(const report *r, const report_pane *pane, const char *names[MAX_NAMES]);
/* Distinct budgets below the full cache of rows with that knowledge. */
int report_budgets(const report *r, bool knows, const char *names[MAX_NAMES]);
/* Rows of one series and budget of a pane, put together: task NULL is all of them, weighed alike. False: there is none. */
bool report_mean(const report *r, const report_pane *pane, int series, const char *budget, const char *task,
                 report_row *out);
int report_find_series(const report *r, const char *settings);

/* report_chart.c */
/* A point of a line. */
typedef struct chart_point {
  double x, y, low, high;
  char label[160]; /* shown when pointed at */
} chart_point;
typedef struct chart_line {
  int series;
  chart_point points[MAX_LISTED + 1];
  int n;
} chart_line;
typedef struct chart {
  const char *title, *y_name;
  double width, height;
  double x_low, x_high; /* shares of the cache, on a logarithmic scale */
  double y_high;        /* from 0 */
  bool percent;         /* y is a share */
  const chart_line *lines;
  int n_lines;
} chart;
void chart_draw(const chart *c, text_buffer *out);
/* Colour and dash of a series as CSS class names. */
void chart_legend(const report *r, text_buffer *out);

/* report_maps.c */
void maps_depths(const report *r, text_buffer *out);
void maps_retention(const report *r, text_buffer *out);

/* report_page.c */
void page_write(const report *r, text_buffer *out);
/* Text that may hold anything. */
void page_text(text_buffer *out, const char *text);
/* 1234567 as 1.2 MiB. */
void page_bytes(text_buffer *out, double bytes);

#endif
