/* eval.h: what the parts of `laprox eval` share: tasks from files, cells, answers with their journal, results. */
#ifndef TOOLS_EVAL_H
#define TOOLS_EVAL_H

#include "cli.h"
#include "eval_metrics.h"
#include "probes.h"
#include "text_buffer.h"

enum { MAX_CELLS = 512, MAX_GROUPS = 256, N_BINS = 32, MAX_MAP_ROWS = 64, MAP_BINS = 64 };

/* ---- tasks ---- */

/* One line of a file of tasks. */
typedef struct task_item {
  char *line; /* as it stands in the file; parsed while it is being answered */
  uint32_t file, number;
  int group;
  double depth; /* of the first needle, 0 … 1; negative: none */
} task_item;

/* Items that are counted together. */
typedef struct task_group {
  char task[64];
  uint32_t length; /* as the file says; 0: it does not */
  metric metric;
} task_group;

/* An item, parsed. */
typedef struct task {
  json_t *root;
  char name[64];
  text_buffer document, question; /* the question may be empty */
  references answers;
  metric metric;
  uint32_t max_tokens, length;
  bool first_line;  /* only the answer's first line counts */
  bool may_shorten; /* a document too long for the model loses its middle, as in LongBench */
} task;

/* Where a task stands, for messages. */
typedef struct task_place {
  const char *path, *prompt_template;
  uint32_t number;
} task_place;

/* Both return an exit status, after one line on standard error where it is not EXIT_DONE. */
int task_init(const char *line, const task_place *place, task *out);
void task_finish(task *t);
/* Depth of the first needle of a line's JSON; negative: none. */
double task_depth(const json_t *root);

/* ---- cells ---- */

/* A policy at a budget, evicting before or after the question is known. */
typedef struct cell {
  listed_policy policy; /* its text and cache type; its budget is the cell's */
  char budget[32];      /* as it was given */
  bool knows;
  bool is_twin; /* differs from an earlier cell only in `knows` */
} cell;

/* ---- answers ---- */

/* What one cell made of one item, or of one passage of the fidelity text. */
typedef struct outcome {
  bool is_done;
  double score;                    /* of a passage: mean divergence from the full cache, nats a token */
  double agreement, nll, full_nll; /* of a passage: share of equal best tokens; nats a token */
  uint32_t n_tokens, n_decoded;
  uint64_t kv_bytes, kv_full_bytes;
  double prefill_ms, evict_ms, decode_ms;
} outcome;

/* What eviction left, added up over the items of a group. */
typedef struct retention {
  uint64_t n;
  uint64_t bins[N_BINS]; /* entries by position, all heads together */
  uint64_t *heads;       /* n_layers * n_kv_heads */
} retention;

typedef struct eval {
  cli *c;
  laprox_model_description model;
  uint64_t fingerprint;
  cell cells[MAX_CELLS];
  int n_cells;
  uint32_t window; /* of the policy that looks at most queries, or the longest probe */
  probe_list probes;
  task_group groups[MAX_GROUPS];
  int n_groups;
  task_item *items;
  uint32_t n_items, items_room;
  char *texts[MAX_LISTED]; /* of the files of tasks */
  uint64_t text_hashes[MAX_LISTED];

  uint32_t *passages; /* tokens of the fidelity text */
  size_t n_passage_tokens;
  uint32_t n_passages, passage_tokens;
  uint64_t passage_hash;

  outcome *outcomes;              /* [n_items + n_passages][n_cells] */
  retention *retentions;          /* [n_groups][n_cells] */
  laprox_attention_error *layers; /* [n_passages][n_cells][n_layers] */
  json_t **maps;                  /* [n_cells], of the first item; NULL: none */
  FILE *journal;
  char *journal_path;
  uint64_t n_done, n_all, n_resumed;
} eval;

/* Every int below is an exit status, after one line on standard error where it is not EXIT_DONE. */

/* Outcome of item or, behind the items, passage `row`. */
outcome *eval_outcome(const eval *e, uint32_t row, int index);
/* Layers of a passage's outcome; `row` as there. */
laprox_attention_error *eval_layers(const eval *e, uint32_t row, int index);
/* Counts a finished outcome into progress; false where the program is asked to end. */
int eval_step(eval *e);
/* The session of a row's cache type; reads nothing. */
laprox_result eval_open_session(eval *e, int index, bool keeps_logits, laprox_session **out);

/* eval_cells.c */
int eval_make_cells(eval *e);

/* eval_items.c */
int eval_read_items(eval *e);
void eval_finish_items(eval *e);

/* eval_evict.c */
/* A text that has been read, and the scores that the last cell went by. */
typedef struct eval_reading {
  laprox_session *session;
  laprox_scores *scores;
  int scored; /* the cell that they were made for */
  double score_ms;
} eval_reading;
/* A fork, evicted as a cell says; what the outcome has of it. */
laprox_result eval_evict(const eval *e, eval_reading *r, int index, laprox_session **out, outcome *to);
/* Releases the scores; the session stays its owner's. */
void eval_reading_end(eval_reading *r);

/* eval_answer.c */
int eval_answer_items(eval *e);

/* eval_fidelity.c */
int eval_read_passages(eval *e);
int eval_compare_passages(eval *e);

/* eval_journal.c */
/* Takes over what an earlier run has written beside --output; without --output there is no journal. */
int eval_journal_open(eval *e);
/* Remembers an outcome. `kept`: entries of each head; `bins`: by position; `map`: of the first item, else NULL. */
int eval_journal_add(eval *e, uint32_t row, int index, const uint32_t *kept, const uint32_t *bins,
                     const json_t *map);
/* The results are in place: it is not needed any more. */
void eval_journal_remove(eval *e);
void eval_journal_close(eval *e);
/* Adds what eviction left to the group's sums. */
void eval_retain(eval *e, uint32_t row, int index, const uint32_t *kept, const uint32_t *bins);

/* eval_results.c */
/* How documents are probed: texts, and how their scores are combined. */
json_t *eval_probes(const eval *e);
json_t *eval_results(const eval *e);
json_t *eval_timing(const eval *e);
void eval_print(const eval *e);

#endif
