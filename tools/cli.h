/* cli.h: what the subcommands share: the device, the library's messages, prompts, progress and JSON. */
#ifndef TOOLS_CLI_H
#define TOOLS_CLI_H

#include "options.h"
#include "progress.h"

#include <jansson.h>

enum { MAX_WARNINGS = 8 };

/* What the library has said. */
typedef struct messages {
  char error[512]; /* of the first failure */
  char warnings[MAX_WARNINGS][512];
  int n_warnings, n_validation;
} messages;

typedef struct cli {
  options opt;
  messages said;
  progress bar;
  laprox_host host;
  laprox_instance *instance;
  laprox_device *device;
  laprox_model *model;
} cli;

/* Milliseconds of a clock that only goes forward. */
double now_ms(void);
/* A signal has asked the program to end. */
bool interrupted(void);
void catch_interrupts(void);

/* Everything below returns an exit status, after one line on standard error where it is not EXIT_DONE. */

/* Parses and prepares. *go_on is false where help was asked for. */
int cli_init(cli *c, command which, int argc, char **argv);
/* Says what is left to say, and turns validation messages into a failure. */
int cli_finish(cli *c, int status);

/* The library's message for a failed call. */
int cli_fail(cli *c, laprox_result result);
int cli_open_instance(cli *c);
int cli_open_device(cli *c);
int cli_load_model(cli *c, bool without_weights);
void cli_unload_model(cli *c);

/* Tokens of a prompt; release with cli_prompt_finish. */
typedef struct cli_prompt {
  uint32_t *tokens;
  size_t n;
  size_t n_document; /* what an eviction comes after; n where no question follows it */
} cli_prompt;
/* By whichever options it was given, no more than the model reads; none where none was. */
int cli_read_prompt(cli *c, cli_prompt *out);
void cli_prompt_finish(cli_prompt *prompt);
/* Appends a text's tokens. */
int cli_tokenize(cli *c, const char *text, size_t n_bytes, bool add_bos, cli_prompt *out);
/* A text file as a string; free() it. */
int cli_read_text(const char *path, char **text);
/* Fails early on a policy that would fail after minutes of work. */
int cli_check_policy(cli *c, uint32_t *window);
int cli_check_budget(cli *c, uint32_t n_tokens);

/* Prints and releases `root`; NULL is out of memory. */
int print_json(json_t *root);
/* Milliseconds to a microsecond: more digits say nothing. */
json_t *json_ms(double ms);
/* Bytes that need not be UTF-8; what is not becomes U+FFFD. */
json_t *json_text(const char *bytes, size_t n_bytes);
json_t *json_kept(const uint32_t *counts, uint32_t n_layers, uint32_t n_kv_heads);

int cmd_devices(cli *c);
int cmd_run(cli *c);
int cmd_capture(cli *c);
int cmd_evict(cli *c);
int cmd_eval(cli *c);
int cmd_bench(cli *c);
int cmd_tasks(cli *c);
int cmd_report(cli *c);

#endif
