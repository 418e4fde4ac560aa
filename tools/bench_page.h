/* bench_page.h: results of several devices, read and checked, and the page that is made of them. */
#ifndef TOOLS_BENCH_PAGE_H
#define TOOLS_BENCH_PAGE_H

#include "cli.h"

/* Colours that can be told apart. */
enum { BENCH_MOST_DEVICES = 8, BENCH_MOST_SHAPES = 64, BENCH_MOST_KERNELS = 32 };

typedef struct bench_device {
  const char *path;
  json_t *root;
  char label[160]; /* the device's name; with the file's where two are the same */
} bench_device;

typedef struct bench_comparison {
  bench_device devices[BENCH_MOST_DEVICES];
  size_t n_devices;
  const json_t *shapes[BENCH_MOST_SHAPES]; /* what all of them were measured on, in the first one's order */
  size_t n_shapes;
} bench_comparison;

/* A result's time in milliseconds: "min", "median" or "max". */
double bench_row_ms(const json_t *row, const char *which);
/* The fastest variant of a kernel on a shape, or a variant by name; NULL: there is none. */
const json_t *bench_find_row(const bench_device *device, const json_t *shape, const char *kernel,
                             const char *variant);
const json_t *bench_find_skipped(const bench_device *device, const json_t *shape);
/* Kernels that any device has for a shape, in the order of the first one; returns how many. */
size_t bench_list_kernels(const bench_comparison *all, const json_t *shape, const char **names);

/* Writes the page beside `path` and renames it. */
laprox_result bench_write_page(const laprox_host *host, const bench_comparison *all, const char *path);

#endif
