/* tool.c: the program in a folder of its own. */
#include "support/tool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

char tool_folder[256];
static char model[1024];

int tool_set_up(void **state) {
  (void)state;
  folder_create(tool_folder);
  return snprintf(model, sizeof model, "%s/model-f16.gguf", getenv("LAPROX_TEST_DATA")) < 0;
}

int tool_tear_down(void **state) {
  (void)state;
  folder_destroy(tool_folder);
  return 0;
}

void tool_arguments(const char *const *arguments, const char *all[MAX_ARGUMENTS]) {
  size_t n = 0;
  all[n++] = getenv("LAPROX_PROGRAM");
  for (; *arguments; arguments++) {
    assert_true(n + 1 < MAX_ARGUMENTS);
    all[n++] = strcmp(*arguments, "MODEL") ? *arguments : model;
  }
  all[n] = NULL;
}

program_run tool_run(const char *const *arguments) {
  const char *all[MAX_ARGUMENTS];
  tool_arguments(arguments, all);
  program_run result;
  program_start(&result, tool_folder, all, OUTPUT_KEPT);
  return result;
}

json_t *tool_run_json(const char *const *arguments) {
  program_run result = tool_run(arguments);
  if (result.status) print_error("%s", result.err);
  assert_int_equal(result.status, 0);
  json_t *root = json_loads(result.out, 0, NULL);
  assert_non_null(root);
  program_finish(&result);
  return root;
}

void tool_expect_failure(int status, const char *part, const char *const *arguments) {
  program_run result = tool_run(arguments);
  assert_int_equal(result.status, status);
  assert_non_null(strstr(result.err, part));
  assert_int_equal(strcspn(result.err, "\n") + 1, result.err_bytes);
  assert_int_equal(result.out_bytes, 0);
  program_finish(&result);
}

void tool_write_file(const char *name, const char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", tool_folder, name);
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_true(fputs(text, file) >= 0);
  assert_int_equal(fclose(file), 0);
}

char *tool_read_file(const char *name) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", tool_folder, name);
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  size_t n = 0, room = 1 << 16;
  char *text = malloc(room);
  assert_non_null(text);
  for (size_t got; (got = fread(text + n, 1, room - n - 1, file)) > 0;) {
    n += got;
    if (n + 1 < room) continue;
    room *= 2;
    text = realloc(text, room);
    assert_non_null(text);
  }
  fclose(file);
  text[n] = 0;
  return text;
}
