/* bench_compare.c: `laprox bench --compare`: reads what --json has written, which may be anything, and refuses what was
 * not measured on the same shapes. */
#include "bench.h"
#include "bench_page.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- looking things up ---- */

static const char *text(const json_t *object, const char *key) {
  return json_string_value(json_object_get(object, key));
}

double bench_row_ms(const json_t *row, const char *which) {
  return json_number_value(json_object_get(json_object_get(row, "time_us"), which)) * 1e-3;
}

const json_t *bench_find_row(const bench_device *device, const json_t *shape, const char *kernel,
                             const char *variant) {
  const json_t *results = json_object_get(device->root, "results"), *best = NULL;
  for (size_t i = 0; i < json_array_size(results); i++) {
    const json_t *row = json_array_get(results, i);
    if (!json_equal(json_object_get(row, "shape"), shape) || strcmp(text(row, "kernel"), kernel) != 0)
      continue;
    if (variant && strcmp(text(row, "variant"), variant) != 0) continue;
    if (!best || bench_row_ms(row, "median") < bench_row_ms(best, "median")) best = row;
  }
  return best;
}

static const json_t *find_shape(const json_t *list, const json_t *shape) {
  for (size_t i = 0; i < json_array_size(list); i++)
    if (json_equal(json_object_get(json_array_get(list, i), "shape"), shape)) return json_array_get(list, i);
  return NULL;
}

const json_t *bench_find_skipped(const bench_device *device, const json_t *shape) {
  return find_shape(json_object_get(device->root, "skipped"), shape);
}

size_t bench_list_kernels(const bench_comparison *all, const json_t *shape, const char **names) {
  size_t n = 0;
  for (size_t d = 0; d < all->n_devices; d++) {
    const json_t *results = json_object_get(all->devices[d].root, "results");
    for (size_t i = 0; i < json_array_size(results); i++) {
      const json_t *row = json_array_get(results, i);
      size_t k = 0;
      if (!json_equal(json_object_get(row, "shape"), shape)) continue;
      while (k < n && strcmp(names[k], text(row, "kernel")) != 0) k++;
      if (k == n && n < BENCH_MOST_KERNELS) names[n++] = text(row, "kernel");
    }
  }
  return n;
}

/* ---- checking a file ---- */

static bool has_texts(const json_t *object, const char *const *keys) {
  for (; *keys; keys++)
    if (!text(object, *keys)) return false;
  return true;
}

static bool has_numbers(const json_t *object, const char *const *keys) {
  for (; *keys; keys++) {
    const json_t *value = json_object_get(object, *keys);
    const double number = json_number_value(value);
    if (!json_is_number(value) || !isfinite(number) || number < 0) return false;
  }
  return true;
}

static bool is_shape(const json_t *shape) {
  static const char *const texts[] = {"geometry", "policy", "gqa", NULL};
  static const char *const numbers[] = {"n_layers", "n_heads", "n_kv_heads", "head_dim",
                                        "n_tokens", "budget",  NULL};
  return has_texts(shape, texts) && has_numbers(shape, numbers);
}

static bool is_row(const json_t *row) {
  static const char *const texts[] = {"kernel", "variant", NULL};
  static const char *const numbers[] = {"bytes", "flops", "gbps", "share_of_ceiling", NULL};
  static const char *const times[] = {"min", "median", "max", NULL};
  const json_t *time = json_object_get(row, "time_us");
  return has_texts(row, texts) && has_numbers(row, numbers) && has_numbers(time, times) &&
         is_shape(json_object_get(row, "shape")) && json_number_value(json_object_get(time, "min")) > 0;
}

static int check_file(const bench_device *device) {
  static const char *const texts[] = {"device", "driver", "driver_info", "version", NULL};
  static const char *const ceilings[] = {"copy_gbps", "fma_gflops", NULL};
  const json_t *results = json_object_get(device->root, "results");
  if (!has_texts(device->root, texts) || !has_numbers(json_object_get(device->root, "ceilings"), ceilings) ||
      !json_array_size(results))
    return fail_impossible("%s: these are no results of laprox bench", device->path);
  for (size_t i = 0; i < json_array_size(results); i++)
    if (!is_row(json_array_get(results, i)))
      return fail_impossible("%s: result %zu has not all that laprox bench writes", device->path, i);
  const json_t *skipped = json_object_get(device->root, "skipped");
  for (size_t i = 0; i < json_array_size(skipped); i++)
    if (!is_shape(json_object_get(json_array_get(skipped, i), "shape")) ||
        !text(json_array_get(skipped, i), "reason"))
      return fail_impossible("%s: what was skipped can't be read", device->path);
  return EXIT_DONE;
}

static int read_file(const char *path, bench_device *out) {
  json_error_t error;
  out->path = path;
  out->root = json_load_file(path, 0, &error);
  if (!out->root && error.line < 0) return fail_impossible("%s: %s", path, error.text);
  if (!out->root) return fail_impossible("%s, line %d: %s", path, error.line, error.text);
  return check_file(out);
}

/* ---- the same shapes ---- */

static void describe_shape(const json_t *shape, char *out, size_t size) {
  static const char *const keys[] = {"n_layers", "n_heads", "n_kv_heads", "head_dim", "n_tokens", "budget"};
  json_int_t n[6];
  for (int i = 0; i < 6; i++) n[i] = (json_int_t)json_number_value(json_object_get(shape, keys[i]));
  snprintf(out, size,
           "%.64s of %" JSON_INTEGER_FORMAT " layers, %" JSON_INTEGER_FORMAT " heads, %" JSON_INTEGER_FORMAT
           " KV heads of %" JSON_INTEGER_FORMAT ", %" JSON_INTEGER_FORMAT " tokens, %" JSON_INTEGER_FORMAT
           " kept by %.32s, %.32s",
           text(shape, "geometry"), n[0], n[1], n[2], n[3], n[4], n[5], text(shape, "policy"),
           text(shape, "gqa"));
}

/* Every shape of `a` was measured, or at least tried, in `b`. */
static int check_shapes(const bench_device *a, const bench_device *b) {
  const json_t *results = json_object_get(a->root, "results");
  for (size_t i = 0; i < json_array_size(results); i++) {
    const json_t *shape = json_object_get(json_array_get(results, i), "shape");
    char what[256];
    if (find_shape(json_object_get(b->root, "results"), shape) || bench_find_skipped(b, shape)) continue;
    describe_shape(shape, what, sizeof what);
    return fail_impossible("%s and %s are not comparable: only %s has %s", a->path, b->path, a->path, what);
  }
  return EXIT_DONE;
}

static int add_shapes(bench_comparison *all, const json_t *results) {
  for (size_t i = 0; i < json_array_size(results); i++) {
    const json_t *shape = json_object_get(json_array_get(results, i), "shape");
    size_t s = 0;
    while (s < all->n_shapes && !json_equal(all->shapes[s], shape)) s++;
    if (s == BENCH_MOST_SHAPES) return fail_impossible("more than %d shapes", BENCH_MOST_SHAPES);
    if (s == all->n_shapes) all->shapes[all->n_shapes++] = shape;
  }
  return EXIT_DONE;
}

static int check_all(bench_comparison *all) {
  int status = EXIT_DONE;
  for (size_t d = 1; d < all->n_devices && !status; d++) {
    status = check_shapes(&all->devices[0], &all->devices[d]);
    if (!status) status = check_shapes(&all->devices[d], &all->devices[0]);
  }
  for (size_t d = 0; d < all->n_devices && !status; d++)
    status = add_shapes(all, json_object_get(all->devices[d].root, "results"));
  return status;
}

static void label(bench_comparison *all) {
  for (size_t d = 0; d < all->n_devices; d++) {
    const char *name = text(all->devices[d].root, "device");
    const char *slash = strrchr(all->devices[d].path, '/');
    bool twice = false;
    for (size_t other = 0; other < all->n_devices; other++)
      twice = twice || (other != d && !strcmp(text(all->devices[other].root, "device"), name));
    snprintf(all->devices[d].label, sizeof all->devices[d].label, "%.90s%s%.50s%s", name, twice ? " (" : "",
             twice ? (slash ? slash + 1 : all->devices[d].path) : "", twice ? ")" : "");
  }
}

int bench_compare(cli *c) {
  bench_comparison all = {.n_devices = (size_t)c->opt.n_more_inputs + 1};
  if (all.n_devices > BENCH_MOST_DEVICES)
    return fail_usage("--compare: %zu results; the limit is %d", all.n_devices, BENCH_MOST_DEVICES);
  int status = EXIT_DONE;
  for (size_t d = 0; d < all.n_devices && !status; d++)
    status = read_file(d ? c->opt.more_inputs[d - 1] : c->opt.input, &all.devices[d]);
  if (!status) status = check_all(&all);
  if (!status) {
    label(&all);
    const laprox_result result = bench_write_page(&c->host, &all, c->opt.output);
    if (result) status = cli_fail(c, result);
  }
  if (!status && c->opt.json)
    status = print_json(json_pack("{s:I, s:I, s:s}", "devices", (json_int_t)all.n_devices, "shapes",
                                  (json_int_t)all.n_shapes, "page", c->opt.output));
  for (size_t d = 0; d < all.n_devices; d++) json_decref(all.devices[d].root);
  return status;
}
