/* eval_cells.c: all combinations of policies, budgets and what is known at eviction. */
#include "eval.h"

#include <stdio.h>
#include <string.h>

static int add_cell(eval *e, const listed_policy *policy, const listed_budget *budget, bool knows,
                    bool is_twin) {
  if (e->n_cells == MAX_CELLS)
    return fail_usage("more than %d combinations of policies, budgets and questions", MAX_CELLS);
  cell *to = &e->cells[e->n_cells++];
  *to = (cell){.policy = *policy, .knows = knows, .is_twin = is_twin && !policy->is_probed};
  to->policy.policy.budget = budget->amount;
  if (!to->policy.kv_dtype) to->policy.kv_dtype = e->c->opt.kv_dtype;
  snprintf(to->budget, sizeof to->budget, "%s", budget->text);
  return EXIT_DONE;
}

/* Policies that keep everything stand there once, first: the budget is no matter to them. */
static int add_cells(eval *e, bool knows, bool is_twin) {
  const options *o = &e->c->opt;
  static const listed_policy full = {.text = "full", .policy = {.kind = LAPROX_POLICY_FULL}};
  static const listed_budget all = {.text = "100%", .amount = {.share = 1}};
  bool wants_full = false, has_full = false;
  int status = EXIT_DONE;
  for (uint32_t b = 0; b < o->n_budgets; b++) wants_full = wants_full || o->budgets[b].amount.share >= 1.0;
  for (uint32_t p = 0; p < o->n_policies; p++) has_full = has_full || !strcmp(o->policies[p].text, full.text);
  if (wants_full && !has_full) status = add_cell(e, &full, &all, knows, is_twin);
  for (uint32_t p = 0; p < o->n_policies && !status; p++)
    if (o->policies[p].policy.kind == LAPROX_POLICY_FULL)
      status = add_cell(e, &o->policies[p], &all, knows, is_twin);
  for (uint32_t p = 0; p < o->n_policies; p++)
    for (uint32_t b = 0; b < o->n_budgets && !status && !(knows && o->policies[p].is_probed); b++)
      if (o->policies[p].policy.kind != LAPROX_POLICY_FULL && o->budgets[b].amount.share < 1.0)
        status = add_cell(e, &o->policies[p], &o->budgets[b], knows, is_twin);
  return status;
}

int eval_make_cells(eval *e) {
  const question_mode when = e->c->opt.question;
  int status = EXIT_DONE;
  if (when & QUESTION_KNOWN) status = add_cells(e, true, false);
  if (!status && (when & QUESTION_UNKNOWN)) status = add_cells(e, false, when == QUESTION_BOTH);
  if (!status && !e->n_cells) status = fail_usage("no policy with a budget below 100 %% to try");
  return status;
}
