/* cmd_eval.c: `laprox eval`: answers tasks under every policy and budget, each prompt read only once. */
#include "cli.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CELLS = 64, MAX_FAMILIES = 64, MAX_ANSWER_TOKENS = 128 };

/* A policy at a budget. */
typedef struct cell {
  laprox_policy policy;
  char budget[32]; /* as it was given */
} cell;

/* A kind of task, as the file names it. */
typedef struct family {
  char name[64];
  uint32_t n, n_tokens; /* prompts, and their tokens together */
  uint32_t correct[MAX_CELLS];
  uint64_t kv_bytes[MAX_CELLS];
} family;

typedef struct eval {
  cli *c;
  laprox_model_description model;
  cell cells[MAX_CELLS];
  int n_cells;
  family families[MAX_FAMILIES];
  int n_families;
  uint32_t n_done, n_tasks;
} eval;

/* ---- cells ---- */

static int add_cell(eval *e, laprox_policy_kind kind, const char *budget, laprox_budget amount) {
  if (e->n_cells == MAX_CELLS)
    return fail_usage("more than %d combinations of policies and budgets", MAX_CELLS);
  cell *to = &e->cells[e->n_cells++];
  to->policy = (laprox_policy){.kind = kind, .budget = amount};
  snprintf(to->budget, sizeof to->budget, "%s", budget);
  return EXIT_DONE;
}

/* All combinations; a full cache is the same under every policy and stands there once, first. */
static int make_cells(eval *e) {
  const options *o = &e->c->opt;
  int status = EXIT_DONE;
  for (uint32_t b = 0; b < o->n_budgets && !e->n_cells; b++)
    if (o->budgets[b].amount.share >= 1.0)
      status = add_cell(e, LAPROX_POLICY_FULL, o->budgets[b].text, o->budgets[b].amount);
  for (uint32_t p = 0; p < o->n_policies && !status; p++)
    for (uint32_t b = 0; b < o->n_budgets && !status; b++)
      if (o->policies[p].policy.kind != LAPROX_POLICY_FULL && o->budgets[b].amount.share < 1.0)
        status = add_cell(e, o->policies[p].policy.kind, o->budgets[b].text, o->budgets[b].amount);
  return status;
}

static family *find_family(eval *e, const char *name) {
  for (int i = 0; i < e->n_families; i++)
    if (!strcmp(e->families[i].name, name)) return &e->families[i];
  if (e->n_families == MAX_FAMILIES) return NULL;
  family *added = &e->families[e->n_families++];
  snprintf(added->name, sizeof added->name, "%s", name);
  return added;
}

/* ---- answers ---- */

/* Whether the trimmed continuation begins with the answer: 1 yes, 0 no, -1 not to be told yet. */
static int judge(const char *text, size_t n, const char *answer) {
  while (n && (*text == ' ' || *text == '\n' || *text == '\t' || *text == '\r')) text++, n--;
  size_t wanted = strlen(answer), common = n < wanted ? n : wanted;
  if (memcmp(text, answer, common) != 0) return 0;
  return n >= wanted ? 1 : -1;
}

static laprox_result answer(eval *e, laprox_session *session, const char *expected, bool *right) {
  uint32_t tokens[MAX_ANSWER_TOKENS];
  laprox_sampler greedy = {0};
  *right = false;
  for (size_t n = 0; n < MAX_ANSWER_TOKENS;) {
    tokens[n] = laprox_sample(&greedy, laprox_session_logits(session), e->model.n_vocab, NULL);
    if (tokens[n++] == e->model.eos) return LAPROX_OK;
    char *text = NULL;
    size_t n_bytes = 0;
    laprox_result result = laprox_model_detokenize(e->c->model, tokens, n, &text, &n_bytes);
    if (result) return result;
    int verdict = judge(text, n_bytes, expected);
    laprox_model_release(e->c->model, text);
    *right = verdict == 1;
    if (verdict >= 0 || laprox_session_n_tokens(session) >= e->model.context_length) return LAPROX_OK;
    result = laprox_session_decode(session, tokens[n - 1]);
    if (result) return result;
  }
  return LAPROX_OK;
}

static laprox_result try_cell(eval *e, const laprox_session *document, int index, family *task,
                              const char *expected) {
  laprox_session *session = NULL;
  bool right = false;
  laprox_result result = laprox_session_fork(document, &session);
  if (!result) result = laprox_session_evict(session, &e->cells[index].policy, NULL);
  if (!result) task->kv_bytes[index] += laprox_session_get_memory(session).kv_bytes;
  if (!result) result = answer(e, session, expected, &right);
  laprox_session_destroy(session);
  task->correct[index] += right;
  return result;
}

static laprox_result try_task(eval *e, family *task, const char *prompt, size_t n_bytes,
                              const char *expected) {
  uint32_t *tokens = NULL;
  size_t n_tokens = 0;
  laprox_session *session = NULL;
  laprox_result result = laprox_model_tokenize(e->c->model, prompt, n_bytes, true, &tokens, &n_tokens);
  const laprox_session_info info = {.kv_dtype = e->c->opt.kv_dtype};
  if (!result) result = laprox_session_create(e->c->model, &info, &session);
  if (!result) result = laprox_session_prefill(session, tokens, n_tokens);
  laprox_model_release(e->c->model, tokens);
  for (int i = 0; i < e->n_cells && !result; i++) result = try_cell(e, session, i, task, expected);
  laprox_session_destroy(session);
  task->n++;
  task->n_tokens += (uint32_t)n_tokens;
  return result;
}

/* ---- tasks ---- */

static int try_line(eval *e, const char *line, size_t number) {
  const char *path = e->c->opt.tasks[0], *name = NULL, *expected = NULL;
  json_error_t error;
  json_t *prompt = NULL, *root = json_loads(line, 0, &error);
  int status = EXIT_DONE;
  if (!root) return fail_impossible("%s, line %zu: %s", path, number, error.text);
  if (json_unpack(root, "{s:s, s:o, s:s}", "task", &name, "prompt", &prompt, "answer", &expected) ||
      !json_is_string(prompt)) {
    status = fail_impossible("%s, line %zu: no task, prompt and answer in it", path, number);
  } else {
    family *task = find_family(e, name);
    if (!task)
      status = fail_impossible("%s, line %zu: more than %d kinds of tasks", path, number, MAX_FAMILIES);
    else if (!e->c->opt.limit || task->n < e->c->opt.limit) {
      laprox_result result =
          try_task(e, task, json_string_value(prompt), json_string_length(prompt), expected);
      if (result) status = cli_fail(e->c, result);
    }
  }
  json_decref(root);
  e->n_done++;
  if (!status && (!progress_step(&e->c->bar, "eval", (double)e->n_done / e->n_tasks) || interrupted()))
    status = fail_impossible("interrupted");
  return status;
}

static int try_lines(eval *e, char *text) {
  int status = EXIT_DONE;
  for (const char *c = text; *c; c++) e->n_tasks += *c == '\n';
  size_t number = 1;
  for (char *line = text, *end; *line && !status; line = end, number++) {
    end = line + strcspn(line, "\n");
    if (*end) *end++ = 0;
    if (line[strspn(line, " \t\r")]) status = try_line(e, line, number);
  }
  return status;
}

/* ---- report ---- */

static json_t *results_json(const eval *e) {
  json_t *results = json_array();
  for (int i = 0; i < e->n_cells && results; i++)
    for (int f = 0; f < e->n_families; f++) {
      const family *task = &e->families[f];
      uint32_t n = task->n ? task->n : 1;
      json_array_append_new(results, json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "policy",
                                               laprox_policy_name(e->cells[i].policy.kind), "budget",
                                               e->cells[i].budget, "task", task->name, "n_tokens",
                                               (json_int_t)(task->n_tokens / n), "n", (json_int_t)task->n,
                                               "correct", (json_int_t)task->correct[i], "kv_bytes",
                                               (json_int_t)(task->kv_bytes[i] / n)));
    }
  return json_pack("{s:s, s:s, s:s, s:o}", "model", e->c->opt.input, "tasks", e->c->opt.tasks[0], "device",
                   laprox_device_name(e->c->device), "results", results);
}

static void print_table(const eval *e) {
  printf("%-10s %-7s %10s", "policy", "budget", "KV bytes");
  for (int f = 0; f < e->n_families; f++) printf(" %12.12s", e->families[f].name);
  printf("\n");
  for (int i = 0; i < e->n_cells; i++) {
    uint64_t bytes = 0;
    for (int f = 0; f < e->n_families; f++)
      bytes += e->families[f].kv_bytes[i] / (e->families[f].n ? e->families[f].n : 1);
    printf("%-10s %-7s %10llu", laprox_policy_name(e->cells[i].policy.kind), e->cells[i].budget,
           (unsigned long long)(bytes / (uint64_t)(e->n_families ? e->n_families : 1)));
    for (int f = 0; f < e->n_families; f++) {
      const family *task = &e->families[f];
      printf(" %10.0f %%", 100.0 * task->correct[i] / (task->n ? task->n : 1));
    }
    printf("\n");
  }
  printf("%-29s", "prompts / mean tokens");
  for (int f = 0; f < e->n_families; f++) {
    char count[32];
    const family *task = &e->families[f];
    snprintf(count, sizeof count, "%u / %u", task->n, task->n_tokens / (task->n ? task->n : 1));
    printf(" %12s", count);
  }
  printf("\n");
}

int cmd_eval(cli *c) {
  eval *e = calloc(1, sizeof *e);
  char *text = NULL;
  if (!e) return fail_impossible("out of memory");
  e->c = c;
  int status = make_cells(e);
  if (!status) status = cli_read_text(c->opt.tasks[0], &text);
  if (!status) status = cli_open_device(c);
  if (!status) status = cli_load_model(c, false);
  if (!status) {
    laprox_model_describe(c->model, &e->model);
    status = try_lines(e, text);
  }
  progress_clear(&c->bar);
  if (!status && c->opt.json)
    status = print_json(results_json(e));
  else if (!status)
    print_table(e);
  free(text);
  free(e);
  return status;
}
