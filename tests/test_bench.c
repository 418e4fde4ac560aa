/* test_bench.c: `laprox bench` as a user runs it: what it measures and counts, and the page that compares devices. POSIX. */
#include "support/program.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

static char folder[256], model[1024];

static int set_up(void **state) {
  (void)state;
  folder_create(folder);
  return snprintf(model, sizeof model, "%s/model-f16.gguf", getenv("LAPROX_TEST_DATA")) < 0;
}

static int tear_down(void **state) {
  (void)state;
  folder_destroy(folder);
  return 0;
}

/* NULL ends the arguments; "MODEL" stands for the shipped one. */
static program_run run(const char *const *arguments) {
  const char *all[32] = {getenv("LAPROX_PROGRAM"), "bench"};
  size_t n = 2;
  for (; *arguments; arguments++) all[n++] = strcmp(*arguments, "MODEL") ? *arguments : model;
  program_run result;
  program_start(&result, folder, all, OUTPUT_KEPT);
  return result;
}

static json_t *run_json(const char *const *arguments) {
  program_run result = run(arguments);
  if (result.status) print_error("%s", result.err);
  assert_int_equal(result.status, 0);
  json_t *root = json_loads(result.out, 0, NULL);
  assert_non_null(root);
  program_finish(&result);
  return root;
}

static void expect_failure(int status, const char *part, const char *second, const char *const *arguments) {
  program_run result = run(arguments);
  if (result.status != status || !strstr(result.err, part)) print_error("%d: %s", result.status, result.err);
  assert_int_equal(result.status, status);
  assert_non_null(strstr(result.err, part));
  assert_non_null(strstr(result.err, second));
  assert_int_equal(strcspn(result.err, "\n") + 1, result.err_bytes);
  assert_int_equal(result.out_bytes, 0);
  program_finish(&result);
}

static double real(const json_t *object, const char *key) {
  assert_true(json_is_number(json_object_get(object, key)));
  return json_number_value(json_object_get(object, key));
}

static const char *text(const json_t *object, const char *key) {
  assert_true(json_is_string(json_object_get(object, key)));
  return json_string_value(json_object_get(object, key));
}

static const json_t *find(const json_t *root, const char *kernel, const char *variant) {
  const json_t *results = json_object_get(root, "results");
  for (size_t i = 0; i < json_array_size(results); i++) {
    const json_t *row = json_array_get(results, i);
    if (!strcmp(text(row, "kernel"), kernel) && (!variant || !strcmp(text(row, "variant"), variant)))
      return row;
  }
  return NULL;
}

/* ---- measuring ---- */

static void check_row(const json_t *root, const json_t *row) {
  const json_t *time = json_object_get(row, "time_us"), *ceilings = json_object_get(root, "ceilings");
  const double least = real(time, "min"), median = real(time, "median"), most = real(time, "max");
  assert_true(least > 0 && median >= least && most >= median && real(row, "repeats") >= 1);
  const double gbps = real(row, "bytes") / (median * 1e3), gflops = real(row, "flops") / (median * 1e3);
  assert_true(fabs(real(row, "gbps") - gbps) <= 1e-6 * gbps);
  double share = fmax(gbps / real(ceilings, "copy_gbps"), gflops / real(ceilings, "fma_gflops"));
  if (strcmp(text(row, "variant"), "matrix") && strcmp(text(row, "variant"), "all"))
    assert_true(fabs(real(row, "share_of_ceiling") - share) <= 1e-6 * share);
}

/* 16 layers, 32 heads, 8 KV heads of 64, 80 tokens, 40 kept, windows of 32. */
static void check_counts(const json_t *root) {
  const double n = 16 * 8 * 80, kept = 16 * 8 * 40, row_bytes = 64 * 2, width = 32 * 64, wide = 4 * width;
  const double attention = n * (2 * row_bytes + 4 * 4), values = n * (row_bytes + 4 * 4 + 4), pooling = 8 * n;
  const struct {
    const char *kernel;
    double bytes, flops;
  } expected[] = {
      {"window attention", attention, 2 * 2 * 32 * 4 * n * 64},
      {"value norm", values, n * 4 * 64 * 65},
      {"pool and sums", pooling, 0},
      {"score", attention + values + pooling, 2 * 2 * 32 * 4 * n * 64 + n * 4 * 64 * 65},
      {"score, sums given", attention - n * row_bytes + values + pooling,
       2 * 32 * 4 * n * 64 + n * 4 * 64 * 65},
      {"select", 12 * n + 4 * kept, 0},
      {"compact", 4 * kept * row_bytes, 0},
      {"pass", attention + values + pooling + 12 * n + 4 * kept + 4 * kept * row_bytes,
       2 * 2 * 32 * 4 * n * 64 + n * 4 * 64 * 65},
      {"decode, full", 2 * n * row_bytes, 4 * n * 64 * 4},
      {"decode, evicted", 2 * kept * row_bytes, 4 * kept * 64 * 4},
      {"full, at once", 2 * n * row_bytes, 4 * n * 64 * 4},
      {"evicted, at once", 2 * kept * row_bytes, 4 * kept * 64 * 4},
      {"prompt attention", 2 * 80 * 8 * row_bytes + 8 * 80 * width, 4 * 80 * 40.5 * width},
      {"prompt by f16", 2 * wide * width + 4 * 80 * (wide + width), 2 * 80 * wide * width},
      {"token by f16", 2 * wide * width + 4 * (wide + width), 2 * wide * width},
      {"prompt by q8_0", 34 * wide * width / 32 + 4 * 80 * (wide + width), 2 * 80 * wide * width},
      {"token by q8_0", 34 * wide * width / 32 + 4 * (wide + width), 2 * wide * width},
  };
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
    const json_t *row = find(root, expected[i].kernel, "baseline");
    assert_non_null(row);
    assert_true(real(row, "bytes") == expected[i].bytes);
    assert_true(real(row, "flops") == expected[i].flops);
  }
}

static void test_kernels(void **state) {
  (void)state;
  json_t *root = run_json(
      (const char *const[]){"--geometry", "phone", "--tokens", "80", "--budget", "40", "--json", NULL});
  const json_t *results = json_object_get(root, "results"), *ceilings = json_object_get(root, "ceilings");
  assert_true(real(ceilings, "copy_gbps") > 0 && real(ceilings, "fma_gflops") > 0);
  assert_true(strlen(text(root, "device")) && strlen(text(root, "driver")) && strlen(text(root, "version")));
  assert_int_equal(json_array_size(json_object_get(root, "skipped")), 0);
  for (size_t i = 0; i < json_array_size(results); i++) {
    const json_t *row = json_array_get(results, i), *shape = json_object_get(row, "shape");
    check_row(root, row);
    assert_string_equal(text(shape, "geometry"), "phone");
    assert_true(real(shape, "n_tokens") == 80 && real(shape, "budget") == 40 &&
                real(shape, "n_layers") == 16);
    /* No two rows with the same shaders. */
    for (size_t j = 0; j < i; j++) {
      const json_t *other = json_array_get(results, j);
      assert_false(!strcmp(text(row, "kernel"), text(other, "kernel")) &&
                   !strcmp(text(row, "shaders"), text(other, "shaders")));
    }
  }
  check_counts(root);
  json_decref(root);
}

/* Shapes are all pairs; a shape without room in memory is named, not measured. */
static void test_lists(void **state) {
  (void)state;
  json_t *root = run_json((const char *const[]){"--geometry", "phone,llama-3.1-8b", "--tokens", "64,16777216",
                                                "--budget", "40", "--policy", "streaming", "--variants",
                                                "baseline", "--json", NULL});
  const json_t *results = json_object_get(root, "results"), *skipped = json_object_get(root, "skipped");
  size_t n_phone = 0, n_llama = 0;
  for (size_t i = 0; i < json_array_size(results); i++) {
    const json_t *row = json_array_get(results, i), *shape = json_object_get(row, "shape");
    n_phone += !strcmp(text(shape, "geometry"), "phone");
    n_llama += !strcmp(text(shape, "geometry"), "llama-3.1-8b");
    assert_true(real(shape, "n_tokens") == 64);
    assert_string_equal(text(row, "variant"), "baseline");
    assert_string_equal(text(shape, "policy"), "streaming");
  }
  assert_true(n_phone > 0 && n_phone == n_llama);
  assert_null(find(root, "window attention", NULL));
  assert_int_equal(json_array_size(skipped), 2);
  assert_non_null(strstr(text(json_array_get(skipped, 0), "reason"), "memory"));
  json_decref(root);
}

static void test_model(void **state) {
  (void)state;
  json_t *root =
      run_json((const char *const[]){"--model", "MODEL", "--tokens", "96", "--budget", "40", "--json", NULL});
  assert_int_equal(json_array_size(json_object_get(root, "results")), 4);
  const json_t *reading = find(root, "prefill", NULL), *full = find(root, "generate, full", NULL),
               *evicted = find(root, "generate, evicted", NULL);
  assert_non_null(find(root, "evict", NULL));
  assert_true(reading && full && evicted);
  assert_true(strstr(text(reading, "shaders"), "attention_prefill") &&
              strstr(text(reading, "shaders"), "matmul"));
  const double seconds = real(json_object_get(reading, "time_us"), "median") * 1e-6;
  assert_true(fabs(real(reading, "tokens_per_s") * seconds - 96) < 1e-3);
  assert_true(real(full, "bytes") > real(evicted, "bytes"));
  assert_true(real(json_object_get(evicted, "shape"), "budget") == 40);
  json_decref(root);
}

static void test_usage(void **state) {
  (void)state;
  expect_failure(2, "tablet", "phone", (const char *const[]){"--geometry", "tablet", NULL});
  expect_failure(2, "keeps all", "80", (const char *const[]){"--tokens", "80", "--budget", "100%", NULL});
  expect_failure(2, "63", "64", (const char *const[]){"--tokens", "63", NULL});
  expect_failure(2, "too many", "a.json", (const char *const[]){"a.json", NULL});
  expect_failure(2, "--output", "", (const char *const[]){"-o", "x.html", NULL});
  expect_failure(2, "two results", "", (const char *const[]){"--compare", "a.json", "-o", "x.html", NULL});
  expect_failure(2, "--output", "where", (const char *const[]){"--compare", "a.json", "b.json", NULL});
  expect_failure(
      2, "--tokens", "measured",
      (const char *const[]){"--compare", "a.json", "b.json", "--tokens", "80", "-o", "x.html", NULL});
}

/* ---- comparing: files made here, so that the numbers on the page are known ---- */

typedef struct made_row {
  const char *kernel, *variant;
  double ms;
} made_row;

static json_t *make_shape(int n_tokens) {
  return json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:s}", "geometry", "phone", "n_layers", 16,
                   "n_heads", 32, "n_kv_heads", 8, "head_dim", 64, "n_tokens", n_tokens, "budget", 1234,
                   "policy", "laprox", "gqa", "mean");
}

static json_t *make_results(const char *device, int n_tokens, const made_row *rows) {
  json_t *results = json_array();
  for (; rows->kernel; rows++)
    json_array_append_new(
        results, json_pack("{s:s, s:s, s:o, s:f, s:f, s:{s:f, s:f, s:f}, s:f, s:f}", "kernel", rows->kernel,
                           "variant", rows->variant, "shape", make_shape(n_tokens), "bytes", 1e9, "flops",
                           0.0, "time_us", "min", rows->ms * 900, "median", rows->ms * 1000, "max",
                           rows->ms * 1100, "gbps", 1e3 / rows->ms, "share_of_ceiling", 0.345));
  return json_pack("{s:s, s:s, s:s, s:s, s:[s], s:{s:f, s:f, s:n}, s:o, s:[]}", "device", device, "driver",
                   "d", "driver_info", "driver 1.2.3", "version", "9.8.7", "variants", "matrix", "ceilings",
                   "copy_gbps", 4321.0, "fma_gflops", 65432.0, "matrix_gflops", "results", results,
                   "skipped");
}

static void write_results(const char *name, json_t *root) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  assert_non_null(root);
  assert_int_equal(json_dump_file(root, path, 0), 0);
  json_decref(root);
}

static char *read_page(const char *name) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  char *page = calloc(1, 1 << 20);
  assert_non_null(page);
  assert_true(fread(page, 1, (1 << 20) - 1, file) > 1000);
  fclose(file);
  return page;
}

static size_t count(const char *page, const char *part) {
  size_t n = 0;
  for (; (page = strstr(page, part)); page++) n++;
  return n;
}

static void test_page(void **state) {
  (void)state;
  write_results("fast.json", make_results("GPU <one> & \"co\"", 4096,
                                          (const made_row[]){{"select", "baseline", 7.25},
                                                             {"select", "matrix", 2.5},
                                                             {"compact", "baseline", 0.0625},
                                                             {0}}));
  write_results(
      "slow.json",
      make_results("GPU two", 4096,
                   (const made_row[]){{"select", "baseline", 3120}, {"compact", "baseline", 41.5}, {0}}));
  json_t *root = run_json(
      (const char *const[]){"--compare", "fast.json", "slow.json", "-o", "page.html", "--json", NULL});
  assert_true(real(root, "devices") == 2 && real(root, "shapes") == 1);
  json_decref(root);
  char *page = read_page("page.html");
  /* Names, as text; numbers of both devices; two charts with a mark for each kernel's fastest variant. */
  assert_null(strstr(page, "<one>"));
  static const char *const parts[] = {"GPU &lt;one&gt; &amp; &quot;co&quot;",
                                      "GPU two",
                                      "driver 1.2.3",
                                      "9.8.7",
                                      "4,321",
                                      "65.4",
                                      "4,096 tokens",
                                      "1,234",
                                      "<td class=\"part\">7.25</td>",
                                      "<td class=\"part\">2.50</td>",
                                      "<td class=\"part\">3,120</td>",
                                      "<td class=\"part\">0.0625</td>",
                                      "<td class=\"part\">41.5</td>",
                                      "<td>34 %</td>",
                                      "prefers-color-scheme"};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    if (!strstr(page, parts[i])) print_error("%s\n", parts[i]);
    assert_non_null(strstr(page, parts[i]));
  }
  assert_int_equal(count(page, "<svg"), 2);
  assert_int_equal(count(page, "</svg>"), 2);
  assert_int_equal(count(page, "<circle"), 4);
  assert_int_equal(count(page, "<rect"), 4);
  assert_int_equal(count(page, "<tr"), 3 + 2 + 3);
  assert_int_equal(count(page, "<tr"), count(page, "</tr>"));
  assert_int_equal(count(page, "<table"), count(page, "</table>"));
  /* Nothing from elsewhere. */
  assert_null(strstr(page, "http"));
  assert_null(strstr(page, "<script"));
  assert_null(strstr(page, "nan"));
  free(page);
}

static void test_refusals(void **state) {
  (void)state;
  const made_row rows[] = {{"select", "baseline", 1}, {0}};
  write_results("four.json", make_results("GPU", 4096, rows));
  write_results("eight.json", make_results("GPU", 8192, rows));
  expect_failure(1, "four.json and eight.json are not comparable", "4096 tokens",
                 (const char *const[]){"--compare", "four.json", "eight.json", "-o", "none.html", NULL});
  /* A shape that a device had no memory for is no difference. */
  json_t *both = make_results("GPU", 4096, rows);
  json_array_append_new(json_object_get(both, "skipped"),
                        json_pack("{s:o, s:s}", "shape", make_shape(8192), "reason", "too little <memory>"));
  write_results("both.json", both);
  json_t *large = make_results("GPU", 8192, rows);
  json_array_append_new(json_object_get(large, "skipped"),
                        json_pack("{s:o, s:s}", "shape", make_shape(4096), "reason", "too much"));
  write_results("large.json", large);
  json_decref(run_json(
      (const char *const[]){"--compare", "both.json", "large.json", "-o", "skipped.html", "--json", NULL}));
  char *page = read_page("skipped.html");
  assert_non_null(strstr(page, "too little &lt;memory&gt;"));
  assert_non_null(strstr(page, "GPU (both.json)")); /* two devices of one name are told apart */
  free(page);
}

static void test_damaged(void **state) {
  (void)state;
  const made_row rows[] = {{"select", "baseline", 1}, {0}};
  write_results("good.json", make_results("GPU", 4096, rows));
  write_results("list.json", json_pack("[i]", 1));
  json_t *zero = make_results("GPU", 4096, rows);
  json_object_set_new(json_object_get(json_array_get(json_object_get(zero, "results"), 0), "time_us"), "min",
                      json_integer(0));
  write_results("zero.json", zero);
  json_t *nameless = make_results("GPU", 4096, rows);
  json_object_del(json_array_get(json_object_get(nameless, "results"), 0), "kernel");
  write_results("nameless.json", nameless);
  static const char *const bad[] = {"list.json", "zero.json", "nameless.json", "absent.json"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    expect_failure(1, bad[i], "",
                   (const char *const[]){"--compare", "good.json", bad[i], "-o", "none.html", NULL});
  char *names = folder_list(folder);
  assert_null(strstr(names, "none.html"));
  free(names);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_kernels), cmocka_unit_test(test_lists), cmocka_unit_test(test_model),
      cmocka_unit_test(test_usage),   cmocka_unit_test(test_page),  cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_damaged),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
