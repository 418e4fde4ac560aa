/* test_tasks.c: `laprox eval` as a user runs it. POSIX. */
#include "support/program.h"

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
  const char *all[32] = {getenv("LAPROX_PROGRAM")};
  size_t n = 1;
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

static void expect_failure(int status, const char *part, const char *const *arguments) {
  program_run result = run(arguments);
  assert_int_equal(result.status, status);
  assert_non_null(strstr(result.err, part));
  assert_int_equal(strcspn(result.err, "\n") + 1, result.err_bytes);
  assert_int_equal(result.out_bytes, 0);
  program_finish(&result);
}

static void write_file(const char *name, const char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_true(fputs(text, file) >= 0);
  assert_int_equal(fclose(file), 0);
}

/* The first n shipped prompts of about 512 tokens with one needle, and an empty line. */
static void write_tasks(const char *name, int n) {
  static char lines[1 << 16];
  char path[1024];
  size_t used = 0;
  snprintf(path, sizeof path, "%s/prompts/needle_512.jsonl", getenv("LAPROX_TEST_DATA"));
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  while (n > 0) {
    assert_non_null(fgets(lines + used, (int)(sizeof lines - used - 1), file));
    if (!strstr(lines + used, "\"single\"")) continue;
    used += strlen(lines + used);
    n--;
  }
  memcpy(lines + used, "\n", 2);
  fclose(file);
  write_file(name, lines);
}

static json_int_t number(const json_t *row, const char *key) {
  assert_true(json_is_integer(json_object_get(row, key)));
  return json_integer_value(json_object_get(row, key));
}

static void test_eval(void **state) {
  (void)state;
  write_tasks("tasks.jsonl", 3);
  json_t *root =
      run_json((const char *const[]){"eval", "MODEL", "--tasks", "tasks.jsonl", "--budgets", "100%,10%",
                                     "--policies", "laprox,streaming", "--json", NULL});
  const json_t *results = json_object_get(root, "results");
  static const char *const policies[] = {"full", "laprox", "streaming"};
  static const char *const budgets[] = {"100%", "10%", "10%"};
  assert_int_equal(json_array_size(results), 3);
  for (size_t i = 0; i < 3; i++) {
    const json_t *row = json_array_get(results, i);
    assert_string_equal(json_string_value(json_object_get(row, "policy")), policies[i]);
    assert_string_equal(json_string_value(json_object_get(row, "budget")), budgets[i]);
    assert_string_equal(json_string_value(json_object_get(row, "task")), "single");
    assert_int_equal(number(row, "n"), 3);
    assert_in_range(number(row, "n_tokens"), 450, 512);
    assert_int_equal(number(row, "kv_bytes") > 500000, i == 0);
    if (i < 2) assert_int_equal(number(row, "correct"), 3);
    if (i == 2) assert_in_range(number(row, "correct"), 0, 1);
  }
  json_decref(root);
  root = run_json((const char *const[]){"eval", "MODEL", "--tasks", "tasks.jsonl", "--budgets", "100%",
                                        "--limit", "1", "--json", NULL});
  assert_int_equal(number(json_array_get(json_object_get(root, "results"), 0), "n"), 1);
  json_decref(root);
}

static void test_bad_tasks(void **state) {
  (void)state;
  write_file("broken.jsonl", "\n{\"task\": \"single\", \"prompt\": \n");
  write_file("empty.jsonl", "{\"task\": \"single\", \"prompt\": \"a\"}\n");
  write_file("typed.jsonl", "{\"task\": \"single\", \"prompt\": 7, \"answer\": \"b\"}\n");
  expect_failure(1, "broken.jsonl, line 2",
                 (const char *const[]){"eval", "MODEL", "--tasks", "broken.jsonl", NULL});
  expect_failure(1, "empty.jsonl, line 1",
                 (const char *const[]){"eval", "MODEL", "--tasks", "empty.jsonl", NULL});
  expect_failure(1, "typed.jsonl, line 1",
                 (const char *const[]){"eval", "MODEL", "--tasks", "typed.jsonl", NULL});
  expect_failure(1, "none.jsonl", (const char *const[]){"eval", "MODEL", "--tasks", "none.jsonl", NULL});
  expect_failure(2, "tasks", (const char *const[]){"eval", "MODEL", NULL});
  expect_failure(2, "best",
                 (const char *const[]){"eval", "MODEL", "--tasks", "x", "--policies", "laprox,best", NULL});
  expect_failure(2, "list",
                 (const char *const[]){"eval", "MODEL", "--tasks", "x", "--budgets", "5%,,", NULL});
  expect_failure(2, "ten", (const char *const[]){"eval", "MODEL", "--tasks", "x", "--budgets", "ten", NULL});
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_eval),
      cmocka_unit_test(test_bad_tasks),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
