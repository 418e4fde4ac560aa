/* cmd_run.c: `laprox run`: plan, prefill, evict, generate. */
#include "run.h"

#include <stdlib.h>

/* Logits of every position are asked for up to here; beyond, those of the last. */
enum { MAX_LOGIT_ROWS = 4096 };

/* Files that are written before the first token is generated. */
static laprox_result write_files(const run *r) {
  const options *o = &r->c->opt;
  const laprox_policy *policy = o->has_budget ? &o->policy : NULL;
  laprox_result result = LAPROX_OK;
  if (o->dump_logits) result = laprox_session_dump_logits(r->session, o->dump_logits);
  if (!result && o->dump_kept) result = laprox_session_dump_kept(r->session, o->dump_kept);
  if (!result && o->save_cache) result = laprox_session_save(r->session, policy, o->save_cache);
  return result;
}

/* The document, which is evicted, and the question, if it is one of its own. */
static int read_prompt(run *r) {
  const cli_prompt *prompt = &r->prompt;
  const bool evicts = r->c->opt.has_budget;
  const size_t n_question = prompt->n - prompt->n_document;
  if (!prompt->n) return evicts ? run_evict_prompt(r) : EXIT_DONE;
  int status = run_read(r, prompt->tokens, prompt->n_document, evicts);
  if (!status && n_question) status = run_read(r, prompt->tokens + prompt->n_document, n_question, false);
  return status;
}

static int run_once(run *r) {
  answer a = {0};
  int status = read_prompt(r);
  if (status) return status;
  run_take_stock(r);
  laprox_result result = write_files(r);
  if (result) return cli_fail(r->c, result);
  status = run_answer(r, &a);
  if (!status) status = run_report(r, &a);
  answer_finish(&a);
  return status;
}

/* Before any weight is loaded: what is to be read, and whether it fits. */
static int prepare(run *r, uint32_t window) {
  const options *o = &r->c->opt;
  int status = cli_load_model(r->c, true);
  if (status) return status;
  laprox_model_describe(r->c->model, &r->model);
  status = cli_read_prompt(r->c, &r->prompt);
  if (!status) status = probes_read(r->c, &r->probes);
  if (r->probes.longest > window) window = r->probes.longest;
  if (!status) status = cli_check_budget(r->c, (uint32_t)r->prompt.n_document);
  r->session_info = (laprox_session_info){.kv_dtype = o->kv_dtype,
                                          .window = window,
                                          .keep_logits = o->dump_logits && r->prompt.n <= MAX_LOGIT_ROWS,
                                          .progress = progress_step,
                                          .progress_user = &r->c->bar};
  if (!status && r->prompt.n && !o->load_cache) status = run_make_plan(r);
  cli_unload_model(r->c);
  return status;
}

int cmd_run(cli *c) {
  run r = {.c = c};
  uint32_t window = 0;
  int status = cli_check_policy(c, &window);
  if (!status) status = cli_open_device(c);
  if (!status) status = prepare(&r, window);
  if (!status && !c->opt.dry_run) {
    double start = now_ms();
    status = cli_load_model(c, false);
    r.load_ms = now_ms() - start;
    if (!status) status = run_open(&r);
    if (!status) status = c->opt.interactive ? run_talk(&r) : run_once(&r);
  }
  laprox_session_destroy(r.session);
  cli_prompt_finish(&r.prompt);
  probes_finish(&r.probes);
  free(r.kept);
  return status;
}
