/* options.h: the command line. One table says what options there are; it feeds the parser and the help alike.
 */
#ifndef TOOLS_OPTIONS_H
#define TOOLS_OPTIONS_H

#include "laprox/runtime.h"

/* Promised to scripts. */
enum { EXIT_DONE = 0, EXIT_IMPOSSIBLE = 1, EXIT_USAGE = 2 };

typedef enum command {
  COMMAND_DEVICES = 1 << 0,
  COMMAND_RUN = 1 << 1,
  COMMAND_CAPTURE = 1 << 2,
  COMMAND_EVICT = 1 << 3,
  COMMAND_EVAL = 1 << 4,
  COMMAND_BENCH = 1 << 5,
  COMMAND_TASKS = 1 << 6,
  COMMAND_REPORT = 1 << 7
} command;

enum { MAX_LISTED = 16, MAX_POLICIES = 48 };

/* A budget, and how it was written. */
typedef struct listed_budget {
  char text[32];
  laprox_budget amount;
} listed_budget;

/* A policy with options of its own and the cache it works on, as `laprox+gqa=joint+kv=f32` says it. */
typedef struct listed_policy {
  char text[96];
  laprox_policy policy;
  laprox_dtype kv_dtype; /* AUTO: what --kv says */
  bool is_probed;
} listed_policy;

typedef enum question_mode { QUESTION_KNOWN = 1, QUESTION_UNKNOWN = 2, QUESTION_BOTH = 3 } question_mode;

typedef struct options {
  const char *input;                   /* the file that is not an option */
  const char *more_inputs[MAX_LISTED]; /* of report, and of bench --compare */
  uint32_t n_more_inputs;
  const char *output, *device;
  uint32_t variants; /* mask of laprox_variant; UINT32_MAX: not said */
  bool json, validate, help;

  laprox_policy policy;
  bool has_budget, has_policy_options;
  bool scores;

  const char *prompt, *prompt_file, *ids; /* the file before the prompt; ids alone */
  uint32_t n_predict;
  laprox_sampler sampler;
  laprox_dtype kv_dtype;
  const char *stop, *dump_kept, *dump_logits;

  bool has_prefill, oneshot;
  uint32_t chunk_evict; /* 0: not in chunks */
  uint32_t tail;        /* 0: none given */
  bool evict_before_question, interactive, dry_run;
  const char *probes[MAX_LISTED]; /* texts */
  uint32_t n_probes;
  laprox_combine combine;
  const char *save_cache, *load_cache;
  uint64_t memory_bytes; /* 0: what is free */

  const char *geometry; /* of bench: names with commas; NULL: not said */
  const char *model;
  bool compare;

  const char *tasks[MAX_LISTED]; /* files */
  uint32_t n_tasks;
  listed_budget budgets[MAX_LISTED];
  uint32_t n_budgets;
  listed_policy policies[MAX_POLICIES];
  uint32_t n_policies;
  uint32_t limit;         /* prompts of a kind of task; 0: all */
  question_mode question; /* at eviction */
  const char *prompt_template, *timing;
  uint32_t n_fidelity; /* passages; 0: none */
  const char *text;    /* for them; NULL: laprox's own */

  const char *haystack;
  uint32_t families[MAX_LISTED], n_families; /* of tasks; indices of the names that options_parse knows */
  uint32_t lengths[MAX_LISTED], n_lengths;   /* of tasks and bench; 0 of bench: not said */
  uint32_t n_prompts;
  bool ruler_wording;
} options;

/* What families of tasks are called, in the order of options.families. */
enum { N_FAMILY_NAMES = 8 };
extern const char *const option_family_names[N_FAMILY_NAMES];

/* What else options are for. */
enum {
  EVICTING = COMMAND_RUN | COMMAND_EVICT | COMMAND_BENCH,
  PROMPTED = COMMAND_RUN | COMMAND_CAPTURE,
  ANY = 255
};

/* argv[0] is the subcommand. Returns EXIT_DONE or, after one line on standard error, EXIT_USAGE. */
int options_parse(command which, int argc, char **argv, options *out);
/* Whether the options go together; decides what follows from others. Returns likewise. */
int options_check(command which, options *o);
/* The table's lines for a subcommand, on standard output. */
void options_describe(command which);

/* Whole numbers of decimal digits, nothing before and nothing behind. */
bool parse_number(const char *text, uint64_t most, uint64_t *out);
/* Decimal numbers, also with a point and an exponent. */
bool parse_decimal(const char *text, double most, double *out);
/* "5%" or "512", and "7", "max:7" or "1". Return what the program exits with. */
int need_budget(const char *text, laprox_budget *out);
int need_pool(const char *text, laprox_policy *out);
/* A list of kernel variants; `where` it was given. */
int need_variants(const char *where, const char *text, uint32_t *out);

/* One line "laprox: …" on standard error, whatever the arguments contain. Return what the program exits with.
 */
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
int fail_usage(const char *format, ...);
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
int fail_impossible(const char *format, ...);

#endif
