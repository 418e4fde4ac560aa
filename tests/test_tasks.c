/* test_tasks.c: `laprox tasks` as a user runs it. POSIX. */
#define _POSIX_C_SOURCE 200809L
#include "support/tool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static json_int_t number(const json_t *row, const char *key) {
  assert_true(json_is_integer(json_object_get(row, key)));
  return json_integer_value(json_object_get(row, key));
}

static const char *string(const json_t *line, const char *key) {
  assert_true(json_is_string(json_object_get(line, key)));
  return json_string_value(json_object_get(line, key));
}

/* Lines of a file as JSON. */
static json_t *read_lines(const char *name) {
  char *text = tool_read_file(name);
  json_t *lines = json_array();
  assert_non_null(text);
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    json_t *root = json_loads(line, 0, NULL);
    assert_non_null(root);
    json_array_append_new(lines, root);
  }
  free(text);
  return lines;
}

static void check_needles(const json_t *needles, json_int_t n) {
  json_int_t last = 0;
  for (size_t i = 0; i < json_array_size(needles); i++) {
    const json_t *span = json_array_get(needles, i);
    const json_int_t begin = json_integer_value(json_array_get(span, 0)),
                     end = json_integer_value(json_array_get(span, 1));
    assert_true(begin >= last && end > begin + 8 && end < n);
    last = end;
  }
}

static void check_line(const json_t *line) {
  const char *prompt = string(line, "prompt"), *question = string(line, "question");
  const json_int_t n = number(line, "n_tokens"), length = number(line, "length");
  const json_t *answers = json_object_get(line, "answers");
  const size_t n_document = strlen(prompt) - strlen(question);
  /* Hay comes in sentences, which fillers of prose make up for; other hay in lines of a few tokens. */
  assert_in_range(n, length - (strstr(string(line, "task"), "niah") ? 12 : 20), length);
  assert_true(strlen(question) > 20 && strlen(prompt) > strlen(question));
  assert_string_equal(prompt + n_document, question);
  assert_true(json_array_size(answers) > 0);
  char *document = strdup(prompt);
  assert_non_null(document);
  document[n_document] = 0;
  for (size_t i = 0; i < json_array_size(answers); i++)
    assert_non_null(strstr(document, json_string_value(json_array_get(answers, i))));
  free(document);
  check_needles(json_object_get(line, "needle_pos"), n);
}

/* All families, in two lengths; RULER's wording names its needles, the shipped model's its own. */
static void test_tasks(void **state) {
  (void)state;
  static const size_t n_answers[] = {1, 1, 2, 4, 5, 10, 3, 1};
  json_t *said = tool_run_json((const char *const[]){"tasks", "MODEL", "-o", "all.jsonl", "--tokens",
                                                     "700,1500", "-n", "2", "--json", NULL});
  assert_int_equal(number(said, "prompts"), 32);
  json_decref(said);
  json_t *lines = read_lines("all.jsonl");
  assert_int_equal(json_array_size(lines), 32);
  for (size_t i = 0; i < 32; i++) {
    const json_t *line = json_array_get(lines, i);
    check_line(line);
    assert_int_equal(number(line, "length"), i < 16 ? 700 : 1500);
    assert_int_equal(number(line, "index"), i % 2);
    assert_int_equal(json_array_size(json_object_get(line, "answers")), n_answers[i / 2 % 8]);
  }
  assert_non_null(strstr(string(json_array_get(lines, 0), "question"), "Answer:"));
  assert_null(json_object_get(json_array_get(lines, 0), "metric"));
  assert_string_equal(string(json_array_get(lines, 6), "metric"), "match_all");
  assert_non_null(
      strstr(string(json_array_get(lines, 6), "prompt"), "One of the special magic numbers for "));
  assert_string_not_equal(string(json_array_get(lines, 0), "prompt"),
                          string(json_array_get(lines, 1), "prompt"));
  json_decref(lines);
}

static size_t count(const char *text, const char *part) {
  size_t n = 0;
  for (; (text = strstr(text, part)); text++) n++;
  return n;
}

/* The 10 words that cwe asks for stand 30 times each in the list, all others 3 times at most; and fwe's three are the
 * most frequent but for the dots, in their order. */
static void test_counted_words(void **state) {
  (void)state;
  program_run result = tool_run((const char *const[]){"tasks", "MODEL", "-o", "counted.jsonl", "--task",
                                                      "cwe,fwe", "--tokens", "4096", "-n", "1", NULL});
  assert_int_equal(result.status, 0);
  program_finish(&result);
  json_t *lines = read_lines("counted.jsonl");
  const char *list = strstr(string(json_array_get(lines, 0), "prompt"), "\n\nThis is a numbered list");
  assert_non_null(list);
  const json_t *words = json_object_get(json_array_get(lines, 0), "answers");
  char wanted[80];
  for (size_t i = 0; i < 10; i++) {
    snprintf(wanted, sizeof wanted, ". %s ", json_string_value(json_array_get(words, i)));
    assert_in_range(count(list, wanted), 29, 30); /* the last word of the list has a line end behind it */
  }
  const char *codes = string(json_array_get(lines, 1), "prompt");
  const json_t *frequent = json_object_get(json_array_get(lines, 1), "answers");
  size_t last = count(codes, " ... ");
  for (size_t i = 0; i < 3; i++) {
    const size_t n = count(codes, json_string_value(json_array_get(frequent, i)));
    assert_true(n > 0 && n < last);
    last = n;
  }
  json_decref(lines);
}

/* The same seed gives the same file, another one another. */
static void test_seeds(void **state) {
  (void)state;
  static const char *const seeds[] = {"7", "7", "8"};
  char *texts[3];
  for (int i = 0; i < 3; i++) {
    program_run result =
        tool_run((const char *const[]){"tasks", "MODEL", "-o", "seeded.jsonl", "--task", "niah_single,fwe",
                                       "--tokens", "700", "-n", "2", "--seed", seeds[i], NULL});
    assert_int_equal(result.status, 0);
    program_finish(&result);
    texts[i] = tool_read_file("seeded.jsonl");
    assert_non_null(texts[i]);
  }
  assert_string_equal(texts[0], texts[1]);
  assert_string_not_equal(texts[0], texts[2]);
  for (int i = 0; i < 3; i++) free(texts[i]);
}

static json_t *one_task(const char *haystack) {
  program_run result = tool_run((const char *const[]){"tasks", "MODEL", "-o", "hay.jsonl", "--task",
                                                      "niah_multikey", "--tokens", "600", "-n", "1",
                                                      "--wording", "ruler", "--haystack", haystack, NULL});
  if (result.status) print_error("%s", result.err);
  assert_int_equal(result.status, 0);
  program_finish(&result);
  json_t *lines = read_lines("hay.jsonl");
  assert_int_equal(json_array_size(lines), 1);
  return lines;
}

static void test_haystacks(void **state) {
  (void)state;
  static const char needle[] = "One of the special magic numbers for ",
                    own[] = "Mr. Vole counted nine ducks.";
  tool_write_file("own.txt", "Mr. Vole counted nine ducks. Was one of them a goose?\n");
  json_t *noise = one_task("noise"), *needles = one_task("needles"), *file = one_task("own.txt");
  assert_string_equal(string(json_array_get(noise, 0), "task"), "niah_multikey_noise");
  assert_string_equal(string(json_array_get(needles, 0), "task"), "niah_multikey_needles");
  assert_string_equal(string(json_array_get(file, 0), "task"), "niah_multikey_text");
  const char *prompt = string(json_array_get(noise, 0), "prompt");
  assert_int_equal(count(prompt, needle), 4);
  assert_true(count(prompt, "The grass is green.") > 10);
  assert_true(count(string(json_array_get(needles, 0), "prompt"), needle) > 15);
  prompt = string(json_array_get(file, 0), "prompt");
  assert_int_equal(count(prompt, needle), 4);
  assert_true(count(prompt, own) > 10);
  assert_int_equal(count(prompt, " Vole"), count(prompt, " Mr. Vole"));
  json_decref(noise);
  json_decref(needles);
  json_decref(file);
}

static void test_impossible_tasks(void **state) {
  (void)state;
  tool_expect_failure(
      1, "at least",
      (const char *const[]){"tasks", "MODEL", "-o", "short.jsonl", "--task", "cwe", "--tokens", "100", NULL});
  assert_null(tool_read_file("short.jsonl"));
  tool_expect_failure(
      1, "none.txt",
      (const char *const[]){"tasks", "MODEL", "-o", "short.jsonl", "--haystack", "none.txt", NULL});
  tool_expect_failure(2, "niah_all",
                      (const char *const[]){"tasks", "MODEL", "-o", "x", "--task", "niah_all", NULL});
  tool_expect_failure(2, "output", (const char *const[]){"tasks", "MODEL", NULL});
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_tasks),     cmocka_unit_test(test_counted_words),    cmocka_unit_test(test_seeds),
      cmocka_unit_test(test_haystacks), cmocka_unit_test(test_impossible_tasks),
  };
  return cmocka_run_group_tests(tests, tool_set_up, tool_tear_down);
}
