/* tool.h: subcommands of the program as a user runs them, in a folder of their own. POSIX. */
#ifndef TESTS_SUPPORT_TOOL_H
#define TESTS_SUPPORT_TOOL_H

#include "support/program.h"

#include <jansson.h>

enum { MAX_ARGUMENTS = 40 };

extern char tool_folder[256];

/* For cmocka's group. */
int tool_set_up(void **state);
int tool_tear_down(void **state);

/* In all that follow NULL ends the arguments, which begin with the subcommand, and "MODEL" stands for the shipped one. */
/* The program before them. */
void tool_arguments(const char *const *arguments, const char *all[MAX_ARGUMENTS]);
program_run tool_run(const char *const *arguments);
/* Expects success and one JSON object. */
json_t *tool_run_json(const char *const *arguments);
/* Expects an exit status, one line with `part` in it, and nothing on standard output. */
void tool_expect_failure(int status, const char *part, const char *const *arguments);

void tool_write_file(const char *name, const char *text);
/* To be freed; NULL where there is no such file. */
char *tool_read_file(const char *name);

#endif
