/* eval_evict.c: one reading evicted in many ways; a policy scores it once for all its budgets. */
#include "eval.h"

#include <string.h>

static bool is_same_policy(const eval *e, int a, int b) {
  const cell *one = &e->cells[a], *other = &e->cells[b];
  return one->policy.kv_dtype == other->policy.kv_dtype && strcmp(one->policy.text, other->policy.text) == 0;
}

void eval_reading_end(eval_reading *r) {
  laprox_scores_destroy(r->scores);
  r->scores = NULL;
}

/* Makes the scores of a cell's policy where the ones there are don't serve. */
static laprox_result prepare_scores(const eval *e, eval_reading *r, int index) {
  const cell *one = &e->cells[index];
  if (r->scores && is_same_policy(e, r->scored, index) &&
      laprox_scores_serve(r->scores, &one->policy.policy.budget))
    return LAPROX_OK;
  const double start = now_ms();
  eval_reading_end(r);
  laprox_score_info info = {.policy = one->policy.policy};
  if (one->policy.is_probed) info = probes_info(e->c, &e->probes, &info.policy);
  const laprox_result result = laprox_session_score(r->session, &info, &r->scores);
  r->scored = index;
  r->score_ms = now_ms() - start;
  return result;
}

laprox_result eval_evict(const eval *e, eval_reading *r, int index, laprox_session **out, outcome *to) {
  const laprox_policy *policy = &e->cells[index].policy.policy;
  const bool keeps_all = policy->kind == LAPROX_POLICY_FULL;
  laprox_result result = keeps_all ? LAPROX_OK : prepare_scores(e, r, index);
  *out = NULL;
  if (!result) result = laprox_session_fork(r->session, out);
  const double start = now_ms();
  if (!result && !keeps_all) result = laprox_session_evict_scored(*out, r->scores, &policy->budget, NULL);
  if (result) return result;
  const laprox_session_memory memory = laprox_session_get_memory(*out);
  to->evict_ms = keeps_all ? 0 : r->score_ms + now_ms() - start;
  to->kv_bytes = memory.kv_bytes;
  to->kv_full_bytes = memory.kv_full_bytes;
  return LAPROX_OK;
}
