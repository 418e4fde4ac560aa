/* cmd_bench.c: `laprox bench`: what the device can do at most, and what the kernels and a model make of it. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
  const char *name;
  laprox_shape shape;
} geometries[] = {
    {"llama-3.1-8b", {32, 32, 8, 128}},
    {"qwen3-8b", {36, 32, 8, 128}},
    {"qwen2.5-1.5b", {28, 12, 2, 128}},
    {"phone", {16, 32, 8, 64}},
};
enum { N_GEOMETRIES = sizeof geometries / sizeof *geometries };

/* Indices of what a list names. */
static int parse_geometries(const char *text, uint32_t *out, size_t *n) {
  for (*n = 0;; text++) {
    const size_t length = strcspn(text, ",");
    const size_t before = *n;
    const bool all = length == 3 && !memcmp(text, "all", 3);
    for (uint32_t i = 0; i < N_GEOMETRIES && *n < MAX_LISTED; i++)
      if (all || (strlen(geometries[i].name) == length && !memcmp(text, geometries[i].name, length)))
        out[(*n)++] = i;
    if (*n == before)
      return fail_usage("--geometry: \"%.*s\" is none of llama-3.1-8b, qwen3-8b, qwen2.5-1.5b, phone, all",
                        (int)length, text);
    text += length;
    if (!*text) return EXIT_DONE;
  }
}

static const laprox_device_description *find_description(cli *c) {
  uint32_t n = 0;
  const laprox_device_description *all = laprox_instance_devices(c->instance, &n);
  const VkPhysicalDeviceProperties *own = &c->device->context->properties;
  for (uint32_t i = 0; i < n; i++)
    if (all[i].usable && all[i].vendor_id == own->vendorID && all[i].device_id == own->deviceID &&
        !strcmp(all[i].name, own->deviceName))
      return &all[i];
  return &all[0];
}

/* Larger than the caches of such devices. */
static laprox_result make_scrub(bench *b) {
  const bool discrete = lpx_is_discrete(b->context);
  VkDeviceSize size = (VkDeviceSize)(discrete ? 256 : 64) << 20;
  while (size > lpx_context_free_bytes(b->context) / 16 && size > 4096) size /= 2;
  return lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, size, "scrub", &b->scrub);
}

static laprox_result run_shape(bench *b, uint32_t geometry, uint32_t n_tokens) {
  bench_shape shape = {.shape = geometries[geometry].shape, .n_tokens = n_tokens};
  lpx_rules rules;
  snprintf(shape.geometry, sizeof shape.geometry, "%s", geometries[geometry].name);
  laprox_result result = lpx_rules_resolve(&b->c->host, &b->policy, &rules);
  if (!result) result = lpx_budget_resolve(&b->c->host, &rules, &b->policy.budget, n_tokens, &shape.budget);
  if (!result && shape.budget == UINT32_MAX)
    return lpx_fail(&b->c->host, LAPROX_ERROR_INVALID_ARGUMENT, "the budget keeps all %u tokens", n_tokens);
  return result ? result : bench_run_kernels(b, &shape);
}

static laprox_result run_kernels(bench *b, const uint32_t *chosen, size_t n) {
  static const uint32_t one_count = 4096;
  const options *o = &b->c->opt;
  const uint32_t *counts = o->n_lengths ? o->lengths : &one_count;
  const uint32_t n_counts = o->n_lengths ? o->n_lengths : 1;
  laprox_result result = LAPROX_OK;
  for (size_t g = 0; g < n && !result; g++)
    for (uint32_t t = 0; t < n_counts && !result; t++) result = run_shape(b, chosen[g], counts[t]);
  return result;
}

static int run_model(bench *b) {
  static const uint32_t one_count = 1024;
  const options *o = &b->c->opt;
  const uint32_t *counts = o->n_lengths ? o->lengths : &one_count;
  b->c->opt.input = o->model;
  int status = cli_load_model(b->c, false);
  for (uint32_t t = 0; t < (o->n_lengths ? o->n_lengths : 1) && !status; t++)
    status = bench_run_model(b, counts[t]);
  return status;
}

static int measure(bench *b) {
  enum { LEAST_TOKENS = 64 };
  uint32_t chosen[MAX_LISTED];
  size_t n = 0;
  const options *o = &b->c->opt;
  const char *names = o->geometry ? o->geometry : o->model ? NULL : "phone";
  for (uint32_t t = 0; t < o->n_lengths; t++)
    if (o->lengths[t] < LEAST_TOKENS)
      return fail_usage("--tokens: %u; bench takes %d and more", o->lengths[t], LEAST_TOKENS);
  int status = names ? parse_geometries(names, chosen, &n) : EXIT_DONE;
  if (!status) status = cli_open_device(b->c);
  if (status) return status;
  b->description = find_description(b->c);
  b->context = b->c->device->context;
  b->queue = b->c->device->queue;
  b->variants = laprox_context_variants(b->context);
  laprox_result result = bench_profile_init(b);
  if (!result) result = make_scrub(b);
  if (!result) result = bench_measure_ceilings(b);
  if (!result) result = run_kernels(b, chosen, n);
  if (result) return cli_fail(b->c, result);
  return o->model ? run_model(b) : EXIT_DONE;
}

int cmd_bench(cli *c) {
  if (c->opt.compare) return bench_compare(c);
  bench b = {.c = c, .policy = c->opt.policy};
  if (!b.policy.budget.tokens && b.policy.budget.share <= 0) b.policy.budget.share = 0.05;
  progress_init(&c->bar, true);
  int status = measure(&b);
  progress_clear(&c->bar);
  if (!status && c->opt.json)
    status = print_json(bench_json(&b));
  else if (!status)
    bench_print(&b);
  if (b.context) {
    bench_profile_finish(&b);
    lpx_buffer_finish(b.context, &b.scrub);
  }
  free(b.results);
  return status;
}
