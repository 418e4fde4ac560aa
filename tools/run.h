/* run.h: what the parts of `laprox run` share: a session with its reports, the plan before it, answers. */
#ifndef TOOLS_RUN_H
#define TOOLS_RUN_H

#include "cli.h"
#include "probes.h"

typedef struct run {
  cli *c;
  laprox_model_description model;
  laprox_session_info session_info;
  laprox_session *session;
  cli_prompt prompt; /* in a conversation, the document */
  probe_list probes;
  bool is_planned;
  laprox_memory_plan plan;

  uint32_t n_loaded; /* tokens that a saved cache had read */
  uint32_t n_evictions;
  uint64_t nonfinite_scores;
  laprox_session_memory memory; /* when the prompt has been read and evicted */
  uint32_t *kept;               /* and the entries of every head then */
  uint32_t *counts;             /* the same, now; its memory is kept's */
  double most_entries;          /* of a head on average, after each reading and eviction */
  double load_ms, prefill_ms, evict_ms, decode_ms;
  uint32_t n_decoded;
} run;

/* What was generated in one go. */
typedef struct answer {
  uint32_t *ids;
  uint32_t n_ids;
  bool is_last_read; /* the last token has been read, too */
  char *text;
  size_t n_text, text_room, n_shown;
  const char *stopped; /* why */
} answer;

/* Those that return an int: an exit status, after one line on standard error where it is not EXIT_DONE. */

/* run_plan.c */
/* Says whether it fits; refuses where it does not. The model may be without weights. */
int run_make_plan(run *r);
int run_print_plan(const run *r);

/* run_session.c */
/* How the prompt is read, as JSON has it and in words. */
const char *run_prefill_name(const run *r);
const char *run_prefill_words(const run *r);
/* Makes the session, with a saved cache in it if one is given. */
int run_open(run *r);
/* Reads, and evicts afterwards (or while it reads) if wanted. */
int run_read(run *r, const uint32_t *tokens, size_t n, bool evicts);
int run_evict(run *r);
/* The prompt: by the queries of probes where there are any. */
int run_evict_prompt(run *r);
/* Entries of a head on average, which most_entries remembers. */
double run_count_entries(run *r);
/* Counts what is there before the first generated token. */
void run_take_stock(run *r);

/* run_answer.c */
/* Generates, and prints the text as it comes unless JSON is wanted. */
int run_answer(run *r, answer *a);
void answer_finish(answer *a);

/* run_talk.c */
int run_talk(run *r);

/* run_report.c */
int run_report(run *r, const answer *a);
json_t *run_turn_json(run *r, const answer *a, size_t n_prompt);
int run_report_talk(run *r, json_t *turns, uint32_t n_turns);

#endif
