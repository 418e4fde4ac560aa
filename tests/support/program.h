/* program.h: runs a program as a user does, and sees what it prints and leaves behind. POSIX. */
#ifndef TESTS_SUPPORT_PROGRAM_H
#define TESTS_SUPPORT_PROGRAM_H

#include <stdbool.h>
#include <stddef.h>

typedef enum program_output {
  OUTPUT_KEPT = 0,
  OUTPUT_FULL,  /* standard output is a device that is full */
  OUTPUT_CLOSED /* there is no standard output */
} program_output;

typedef struct program_run {
  int status; /* -1: ended by a signal */
  char *out, *err;
  size_t out_bytes, err_bytes;
} program_run;

/* arguments[0] is the program; NULL ends them. Runs in `folder`, with standard input empty. */
void program_start(program_run *run, const char *folder, const char *const *arguments, program_output output);
/* The same with a text on standard input, and standard output kept. */
void program_start_reading(program_run *run, const char *folder, const char *const *arguments,
                           const char *input);
void program_finish(program_run *run);

/* A new folder under the system's place for temporary files. */
void folder_create(char path[256]);
/* Names in it, sorted, each followed by a newline; to be freed. */
char *folder_list(const char *path);
/* Removes it with the files in it. */
void folder_destroy(const char *path);

#endif
