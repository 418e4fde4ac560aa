/* probes.h: the texts of --probe as tokens. */
#ifndef TOOLS_PROBES_H
#define TOOLS_PROBES_H

#include "cli.h"

typedef struct probe_list {
  cli_prompt prompts[MAX_LISTED];
  laprox_probe items[MAX_LISTED];
  uint32_t n, longest; /* longest: in tokens; 0 without any */
} probe_list;

/* Exit status, after one line on standard error where it is not EXIT_DONE. The model need not have weights. */
int probes_read(cli *c, probe_list *out);
void probes_finish(probe_list *probes);
/* What a policy is scored with. */
laprox_score_info probes_info(const cli *c, const probe_list *probes, const laprox_policy *policy);

#endif
