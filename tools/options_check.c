/* options_check.c: which options go together. */
#include "options.h"

#include <string.h>

/* --file and --prompt are one prompt; --ids another. */
static int check_prompt(const options *o) {
  if (o->ids && (o->prompt || o->prompt_file))
    return fail_usage("give the prompt as text (--file, --prompt) or as --ids, not as both");
  if (!o->ids && !o->prompt && !o->prompt_file && !o->interactive && !o->load_cache)
    return fail_usage("give the prompt by --prompt, --file, both, or --ids");
  return EXIT_DONE;
}

/* Pairs of which one makes the other pointless. */
static int check_pairs(const options *o) {
  const struct {
    bool first, second;
    const char *names;
  } pairs[] = {
      {o->has_prefill, o->chunk_evict != 0, "--prefill and --chunk-evict"},
      {o->dump_logits != NULL, o->chunk_evict != 0, "--dump-logits and --chunk-evict"},
      {o->dump_logits != NULL, o->evict_before_question, "--dump-logits and --evict-before-question"},
      {o->dump_logits != NULL, o->n_probes && o->prompt && o->prompt_file,
       "--dump-logits and --probe with --file and --prompt"},
      {o->n_probes != 0, o->interactive, "--probe and --interactive"},
      {o->n_probes != 0, o->chunk_evict != 0, "--probe and --chunk-evict"},
      {o->n_probes != 0, o->has_prefill && !o->oneshot, "--probe and --prefill layerwise"},
      {o->n_probes != 0, o->policy.window != 0, "--probe and --window"},
      {o->dump_logits != NULL, o->load_cache != NULL, "--dump-logits and --load-cache"},
      {o->dump_logits != NULL, o->interactive, "--dump-logits and --interactive"},
      {o->dump_kept != NULL, o->interactive, "--dump-kept and --interactive"},
      {o->save_cache != NULL, o->interactive, "--save-cache and --interactive"},
      {o->dump_logits != NULL, o->dry_run, "--dump-logits and --dry-run"},
      {o->dump_kept != NULL, o->dry_run, "--dump-kept and --dry-run"},
      {o->save_cache != NULL, o->dry_run, "--save-cache and --dry-run"},
      {o->load_cache != NULL, o->dry_run, "--load-cache and --dry-run"},
      {o->load_cache != NULL, o->memory_bytes != 0, "--load-cache and --memory"},
  };
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
    if (pairs[i].first && pairs[i].second) return fail_usage("%s do not go together", pairs[i].names);
  return EXIT_DONE;
}

static int check_run(const options *o) {
  const char *evicting = o->tail                    ? "--tail"
                         : o->chunk_evict           ? "--chunk-evict"
                         : o->evict_before_question ? "--evict-before-question"
                         : o->n_probes              ? "--probe"
                                                    : NULL;
  const bool keeps_all = o->policy.kind == LAPROX_POLICY_FULL;
  const bool no_prompt = !o->prompt && !o->prompt_file && !o->ids;
  if (evicting && keeps_all) return fail_usage("%s: policy full evicts nothing", evicting);
  if ((evicting || o->has_policy_options) && !o->has_budget && !keeps_all)
    return fail_usage("how much is to be kept? (--budget 5%%)");
  if (o->evict_before_question && !o->interactive && !(o->prompt && o->prompt_file))
    return fail_usage("--evict-before-question: give the document by --file and the question by --prompt");
  if (o->interactive && o->prompt && o->prompt_file)
    return fail_usage("--interactive: questions come from standard input; give --file or --prompt, not both");
  if (o->interactive && o->prompt_file && strcmp(o->prompt_file, "-") == 0)
    return fail_usage("--interactive: questions come from standard input, the document can't");
  if (o->policy.scope == LAPROX_SCOPE_TOKEN && o->has_prefill && !o->oneshot)
    return fail_usage(
        "--prefill layerwise: --scope token needs the scores of all layers (--prefill oneshot)");
  if (o->interactive && no_prompt && (o->dry_run || o->memory_bytes))
    return fail_usage("--%s: there is no prompt to plan for", o->dry_run ? "dry-run" : "memory");
  return check_pairs(o);
}

/* Probes are for policies that say so, and those for questions that are not known. */
static int check_eval(const options *o) {
  bool any = false;
  for (uint32_t i = 0; i < o->n_policies; i++) any = any || o->policies[i].is_probed;
  if (any && !o->n_probes) return fail_usage("--policies: +probe takes a text (--probe TEXT)");
  if (!any && o->n_probes) return fail_usage("--probe: no policy takes it (--policies laprox+probe)");
  if (any && !(o->question & QUESTION_UNKNOWN))
    return fail_usage("--probe: only for questions that are not known (--question unknown or both)");
  return o->n_tasks || o->n_fidelity ? EXIT_DONE : fail_usage("which tasks? (--tasks FILE)");
}

static int check_bench(const options *o) {
  if (!o->compare) return o->output ? fail_usage("--output: only --compare writes a page") : EXIT_DONE;
  if (!o->n_more_inputs) return fail_usage("--compare: give two results or more");
  if (o->geometry || o->n_lengths || o->model)
    return fail_usage("--compare: nothing is measured; --geometry, --tokens and --model say what");
  return o->output ? EXIT_DONE : fail_usage("where to? (--output FILE)");
}

int options_check(command which, options *o) {
  if (!(which & (COMMAND_DEVICES | COMMAND_BENCH)) && !o->input)
    return fail_usage("which %s? (see --help)", which == COMMAND_EVICT    ? "capture"
                                                : which == COMMAND_REPORT ? "results"
                                                                          : "model");
  int status = which & PROMPTED ? check_prompt(o) : EXIT_DONE;
  if (!status && which == COMMAND_RUN) status = check_run(o);
  if (which == COMMAND_BENCH) status = check_bench(o);
  if (status) return status;
  if (o->policy.scope == LAPROX_SCOPE_TOKEN || o->n_probes) o->oneshot = true;
  if (o->n_probes && o->prompt && o->prompt_file) o->evict_before_question = true;
  if ((which & (COMMAND_CAPTURE | COMMAND_EVICT | COMMAND_TASKS | COMMAND_REPORT)) && !o->output)
    return fail_usage("where to? (--output FILE)");
  if (which == COMMAND_EVAL) status = check_eval(o);
  if (status) return status;
  if (which == COMMAND_EVICT && !o->has_budget && o->policy.kind != LAPROX_POLICY_FULL)
    return fail_usage("how much is to be kept? (--budget 5%%)");
  if ((which & EVICTING) && o->policy.kind == LAPROX_POLICY_RANDOM) {
    if (o->sampler.state > UINT32_MAX)
      return fail_usage("--seed: the limit for --policy random is %u", UINT32_MAX);
    o->policy.seed = (uint32_t)o->sampler.state;
  }
  return EXIT_DONE;
}
