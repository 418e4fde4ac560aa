/* program.c: fork, exec, wait, and look. */
#define _POSIX_C_SOURCE 200809L
#include "support/program.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { EXEC_FAILED = 126 };

/* The standard streams of the program to be. */
typedef struct streams {
  int in, out, err;
} streams;

static _Noreturn void become(const char *folder, const char *const *arguments, program_output output,
                             streams s) {
  int full = open("/dev/full", O_WRONLY);
  if (s.in < 0 || full < 0 || chdir(folder) != 0) _exit(EXEC_FAILED);
  dup2(s.in, 0);
  dup2(output == OUTPUT_FULL ? full : s.out, 1);
  dup2(s.err, 2);
  for (int i = 3; i < 64; i++) close(i);
  if (output == OUTPUT_CLOSED) close(1);
  execv(arguments[0], (char *const *)(uintptr_t)arguments);
  _exit(EXEC_FAILED);
}

static char *whole(FILE *file, size_t *n_bytes) {
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  long n = ftell(file);
  assert_true(n >= 0);
  rewind(file);
  char *text = calloc((size_t)n + 1, 1);
  assert_non_null(text);
  assert_int_equal(fread(text, 1, (size_t)n, file), n);
  *n_bytes = (size_t)n;
  return text;
}

static void start(program_run *run, const char *folder, const char *const *arguments, program_output output,
                  int in) {
  FILE *out = tmpfile(), *err = tmpfile();
  assert_true(out && err);
  *run = (program_run){.status = -1};
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) become(folder, arguments, output, (streams){in, fileno(out), fileno(err)});
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  if (WIFEXITED(status)) run->status = WEXITSTATUS(status);
  assert_int_not_equal(run->status, EXEC_FAILED);
  run->out = whole(out, &run->out_bytes);
  run->err = whole(err, &run->err_bytes);
  fclose(out);
  fclose(err);
}

void program_start(program_run *run, const char *folder, const char *const *arguments,
                   program_output output) {
  int none = open("/dev/null", O_RDONLY);
  start(run, folder, arguments, output, none);
  close(none);
}

void program_start_reading(program_run *run, const char *folder, const char *const *arguments,
                           const char *input) {
  FILE *in = tmpfile();
  assert_non_null(in);
  assert_true(fputs(input, in) >= 0);
  assert_int_equal(fflush(in), 0);
  rewind(in);
  start(run, folder, arguments, OUTPUT_KEPT, fileno(in));
  fclose(in);
}

void program_finish(program_run *run) {
  free(run->out);
  free(run->err);
  *run = (program_run){0};
}

void folder_create(char path[256]) {
  const char *place = getenv("TMPDIR");
  (void)snprintf(path, 256, "%s/laprox-test-XXXXXX", place && *place ? place : "/tmp");
  assert_non_null(mkdtemp(path));
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

char *folder_list(const char *path) {
  char *names[256], *list = NULL;
  size_t n = 0, n_bytes = 1;
  DIR *folder = opendir(path);
  assert_non_null(folder);
  for (struct dirent *entry; (entry = readdir(folder));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    assert_true(n < 256);
    names[n] = strdup(entry->d_name);
    assert_non_null(names[n]);
    n_bytes += strlen(names[n++]) + 1;
  }
  closedir(folder);
  qsort(names, n, sizeof *names, by_name);
  list = calloc(n_bytes, 1);
  assert_non_null(list);
  char *end = list;
  for (size_t i = 0; i < n; i++) {
    end += sprintf(end, "%s\n", names[i]);
    free(names[i]);
  }
  return list;
}

void folder_destroy(const char *path) {
  char *list = folder_list(path);
  for (char *name = strtok(list, "\n"); name; name = strtok(NULL, "\n")) {
    char file[1024];
    (void)snprintf(file, sizeof file, "%s/%s", path, name);
    if (unlink(file) != 0) rmdir(file);
  }
  free(list);
  rmdir(path);
}
