/* run_plan.c: what a run will take of the device's memory, before it takes any. */
#include "run.h"

#include <stdio.h>

static uint32_t lesser(uint64_t a, uint64_t b) {
  return (uint32_t)(a < b ? a : b);
}

/* One line that says what would help. */
static int refuse(const run *r) {
  const laprox_memory_plan *plan = &r->plan;
  char help[160] = "no prompt would fit";
  if (plan->largest_prompt && plan->largest_budget)
    snprintf(help, sizeof help, "a budget of %u entries at most or a prompt of %u tokens at most would fit",
             plan->largest_budget, plan->largest_prompt);
  else if (plan->largest_budget)
    snprintf(help, sizeof help, "a budget of %u entries at most would fit", plan->largest_budget);
  else if (plan->largest_prompt)
    snprintf(help, sizeof help, "a prompt of %u tokens at most would fit", plan->largest_prompt);
  return fail_impossible("%zu tokens need %llu bytes of device memory, %llu are free: %s", r->prompt.n,
                         (unsigned long long)plan->peak_bytes, (unsigned long long)plan->free_bytes, help);
}

int run_make_plan(run *r) {
  const options *o = &r->c->opt;
  const cli_prompt *prompt = &r->prompt;
  const uint32_t n_question = (uint32_t)(prompt->n - prompt->n_document);
  const laprox_memory_plan_info info = {.session = r->session_info,
                                        .policy = o->policy,
                                        .n_prompt = (uint32_t)prompt->n_document + r->probes.longest,
                                        .n_question = n_question,
                                        .n_generate =
                                            lesser(o->n_predict, r->model.context_length - prompt->n),
                                        .layerwise = !o->oneshot,
                                        .chunk = o->chunk_evict,
                                        .tail = o->tail,
                                        .memory_bytes = o->memory_bytes};
  laprox_result result = laprox_plan_memory(r->c->model, &info, &r->plan);
  if (result) return cli_fail(r->c, result);
  r->is_planned = true;
  if (o->dry_run) {
    int status = run_print_plan(r);
    if (status) return status;
  }
  return r->plan.fits ? EXIT_DONE : refuse(r);
}

static json_t *number(uint64_t value) {
  return json_integer((json_int_t)value);
}

static int print_plan_json(const run *r) {
  const laprox_memory_plan *p = &r->plan;
  json_t *kv = json_pack("{s:o, s:o, s:o}", "full", number(p->kv_full_bytes), "peak",
                         number(p->kv_peak_bytes), "steady", number(p->kv_steady_bytes));
  json_t *plan =
      json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:o, s:o}", "weights", number(p->weight_bytes),
                "hidden", number(p->hidden_bytes), "activations", number(p->activation_bytes), "eviction",
                number(p->eviction_bytes), "kv", kv, "peak", number(p->peak_bytes), "free",
                number(p->free_bytes), "fits", p->fits, "largest_prompt", number(p->largest_prompt),
                "largest_budget", number(p->largest_budget));
  return print_json(json_pack("{s:o, s:o, s:s, s:b, s:s}", "prompt_tokens", number(r->prompt.n), "plan", plan,
                              "prefill", run_prefill_name(r), "approximate", r->c->opt.chunk_evict != 0,
                              "device", laprox_device_name(r->c->device)));
}

static void print_row(const char *name, uint64_t bytes, const char *remark) {
  printf("%-16s %12.2f MiB  %s\n", name, (double)bytes / (1 << 20), remark);
}

int run_print_plan(const run *r) {
  const laprox_memory_plan *p = &r->plan;
  if (r->c->opt.json) return print_plan_json(r);
  printf("%zu tokens, %s, on %s\n", r->prompt.n, run_prefill_words(r), laprox_device_name(r->c->device));
  print_row("weights", p->weight_bytes, "");
  print_row("hidden states", p->hidden_bytes, "while the prompt is read");
  print_row("activations", p->activation_bytes, "");
  print_row("eviction", p->eviction_bytes, "scores, tables, scratch, value factors");
  print_row("KV cache", p->kv_peak_bytes, "at most");
  print_row("", p->kv_steady_bytes, "after the eviction, with the generated tokens");
  print_row("", p->kv_full_bytes, "if nothing were evicted");
  print_row("all at the peak", p->peak_bytes, p->fits ? "which fits" : "which does not fit");
  print_row("free", p->free_bytes, "");
  printf("would fit: prompts of %u tokens at most", p->largest_prompt);
  if (p->largest_budget) printf(", or a budget of %u entries at most", p->largest_budget);
  printf("\n");
  return EXIT_DONE;
}
