/* cmd_eval.c: `laprox eval`: answers tasks under every policy and budget, each prompt read only once. */
#include "eval.h"

#include "core/core.h"
#include "io/file.h"
#include "runtime/fingerprint.h"

#include <stdlib.h>
#include <string.h>

outcome *eval_outcome(const eval *e, uint32_t row, int index) {
  return &e->outcomes[(size_t)row * (size_t)e->n_cells + (size_t)index];
}

laprox_attention_error *eval_layers(const eval *e, uint32_t row, int index) {
  const size_t outcomes = (size_t)(row - e->n_items) * (size_t)e->n_cells + (size_t)index;
  return &e->layers[outcomes * e->model.shape.n_layers];
}

int eval_step(eval *e) {
  e->n_done++;
  const double fraction = (double)e->n_done / (double)e->n_all;
  if (progress_step(&e->c->bar, "eval", fraction) && !interrupted()) return EXIT_DONE;
  progress_clear(&e->c->bar);
  return e->journal ? fail_impossible("interrupted; the same command goes on from %s", e->journal_path)
                    : fail_impossible("interrupted");
}

laprox_result eval_open_session(eval *e, int index, bool keeps_logits, laprox_session **out) {
  const laprox_session_info info = {
      .kv_dtype = e->cells[index].policy.kv_dtype, .window = e->window, .keep_logits = keeps_logits};
  return laprox_session_create(e->c->model, &info, out);
}

/* ---- beginning and end ---- */

static int make_room(eval *e) {
  const size_t n_cells = (size_t)e->n_cells, n_rows = (size_t)e->n_items + e->n_passages;
  const size_t n_heads = (size_t)e->model.shape.n_layers * e->model.shape.n_kv_heads;
  const size_t n_sums = (size_t)e->n_groups * n_cells;
  bool good = true;
  e->outcomes = calloc(n_rows * n_cells, sizeof *e->outcomes);
  e->retentions = calloc(n_sums + 1, sizeof *e->retentions);
  e->maps = calloc(n_cells, sizeof *e->maps);
  e->layers = calloc(e->n_passages * n_cells + 1, e->model.shape.n_layers * sizeof *e->layers);
  good = e->outcomes && e->retentions && e->maps && e->layers;
  for (size_t i = 0; i < n_sums && good; i++) {
    e->retentions[i].heads = calloc(n_heads, sizeof(uint64_t));
    good = e->retentions[i].heads != NULL;
  }
  e->n_all = (uint64_t)e->n_items * n_cells;
  for (size_t i = 0; i < n_cells; i++) e->n_all += e->cells[i].is_twin ? 0 : e->n_passages;
  return good ? EXIT_DONE : fail_impossible("out of memory for %zu answers", n_rows * n_cells);
}

static void finish(eval *e) {
  const size_t n_sums = e->retentions ? (size_t)e->n_groups * (size_t)e->n_cells : 0;
  for (size_t i = 0; i < n_sums; i++) free(e->retentions[i].heads);
  for (int i = 0; i < e->n_cells && e->maps; i++) json_decref(e->maps[i]);
  free(e->retentions);
  free(e->maps);
  free(e->outcomes);
  free(e->layers);
  if (e->c->model) laprox_model_release(e->c->model, e->passages);
  eval_finish_items(e);
  probes_finish(&e->probes);
  eval_journal_close(e);
  free(e);
}

static int write_file(eval *e, const char *path, json_t *root) {
  char *text = root ? json_dumps(root, JSON_REAL_PRECISION(9) | JSON_INDENT(1)) : NULL;
  lpx_output to = {0};
  json_decref(root);
  if (!text) return fail_impossible("out of memory for %s", path);
  laprox_result result = lpx_output_open(&e->c->host, path, &to);
  if (!result) result = lpx_output_write(&to, text, strlen(text));
  if (!result) result = lpx_output_write(&to, "\n", 1);
  if (!result) result = lpx_output_commit(&to);
  lpx_output_close(&to);
  free(text);
  return result ? cli_fail(e->c, result) : EXIT_DONE;
}

static int deliver(eval *e) {
  const options *o = &e->c->opt;
  int status = EXIT_DONE;
  progress_clear(&e->c->bar);
  if (o->timing) status = write_file(e, o->timing, eval_timing(e));
  if (!status && o->output) status = write_file(e, o->output, eval_results(e));
  if (!status) eval_journal_remove(e);
  if (!status && o->json) return print_json(eval_results(e));
  if (!status) eval_print(e);
  return status;
}

/* A probe is the window of what it scores. */
static int check_cell(eval *e, const listed_policy *one) {
  lpx_rules rules;
  laprox_result result = lpx_rules_resolve(&e->c->host, &one->policy, &rules);
  if (result) return cli_fail(e->c, result);
  if (rules.window > e->window) e->window = rules.window;
  if (!one->is_probed) return EXIT_DONE;
  if (one->policy.window) return fail_usage("--policies: %s: the probe is the window", one->text);
  if (!lpx_rules_use_attention(&rules)) return fail_usage("--policies: %s looks at no queries", one->text);
  return EXIT_DONE;
}

/* Policies and budgets that can't be are found before minutes of work. */
static int check_cells(eval *e) {
  int status = EXIT_DONE;
  for (int i = 0; i < e->n_cells && !status; i++) status = check_cell(e, &e->cells[i].policy);
  return status;
}

static int prepare(eval *e) {
  cli *c = e->c;
  int status = eval_make_cells(e);
  if (!status) status = check_cells(e);
  if (!status) status = eval_read_items(e);
  if (!status) status = cli_open_device(c);
  if (!status) status = cli_load_model(c, false);
  if (!status) status = probes_read(c, &e->probes);
  if (status) return status;
  if (e->probes.longest > e->window) e->window = e->probes.longest;
  laprox_model_describe(c->model, &e->model);
  laprox_result result = lpx_model_fingerprint(c->model, &e->fingerprint);
  if (result) return cli_fail(c, result);
  status = eval_read_passages(e);
  if (!status) status = make_room(e);
  return status ? status : eval_journal_open(e);
}

int cmd_eval(cli *c) {
  eval *e = calloc(1, sizeof *e);
  if (!e) return fail_impossible("out of memory");
  e->c = c;
  int status = prepare(e);
  if (!status) status = eval_answer_items(e);
  if (!status) status = eval_compare_passages(e);
  if (!status) status = deliver(e);
  finish(e);
  return status;
}
