/* probes.c: the texts of --probe as tokens. */
#include "probes.h"

#include <string.h>

/* Windows have no more queries. */
enum { MAX_PROBE_TOKENS = 256 };

int probes_read(cli *c, probe_list *out) {
  int status = EXIT_DONE;
  *out = (probe_list){0};
  for (uint32_t i = 0; i < c->opt.n_probes && !status; i++) {
    const char *text = c->opt.probes[i];
    cli_prompt *prompt = &out->prompts[out->n++];
    status = cli_tokenize(c, text, strlen(text), false, prompt);
    if (!status && prompt->n > MAX_PROBE_TOKENS)
      status = fail_usage("--probe: a text of %zu tokens; %d at most", prompt->n, MAX_PROBE_TOKENS);
    out->items[i] = (laprox_probe){prompt->tokens, (uint32_t)prompt->n};
    if (prompt->n > out->longest) out->longest = (uint32_t)prompt->n;
  }
  if (status) probes_finish(out);
  return status;
}

void probes_finish(probe_list *probes) {
  for (uint32_t i = 0; i < probes->n; i++) cli_prompt_finish(&probes->prompts[i]);
  *probes = (probe_list){0};
}

laprox_score_info probes_info(const cli *c, const probe_list *probes, const laprox_policy *policy) {
  return (laprox_score_info){
      .policy = *policy, .probes = probes->items, .n_probes = probes->n, .combine = c->opt.combine};
}
