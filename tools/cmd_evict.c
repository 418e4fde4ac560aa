/* cmd_evict.c: `laprox evict`: the method over a captured cache. */
#include "cli.h"

#include <stdio.h>

static json_t *report_json(const cli *c, const laprox_evict_file_report *r) {
  const laprox_eviction *e = &r->eviction;
  uint32_t budget = e->budget < r->n_tokens ? e->budget : r->n_tokens;
  return json_pack(
      "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:I, s:o, s:I, s:I, s:I, s:s, s:{s:o, s:o, s:o, s:o, s:o}}",
      "n_layers", (json_int_t)r->shape.n_layers, "n_heads", (json_int_t)r->shape.n_heads, "n_kv_heads",
      (json_int_t)r->shape.n_kv_heads, "head_dim", (json_int_t)r->shape.head_dim, "n_tokens",
      (json_int_t)r->n_tokens, "window", (json_int_t)r->window, "budget", (json_int_t)budget, "policy",
      laprox_policy_name(c->opt.policy.kind), "kept", (json_int_t)e->kept, "kept_per_head",
      json_kept(r->kept_per_head, r->shape.n_layers, r->shape.n_kv_heads), "nonfinite_scores",
      (json_int_t)e->nonfinite_scores, "bytes_before", (json_int_t)e->bytes_before, "bytes_after",
      (json_int_t)e->bytes_after, "device", laprox_device_name(c->device), "time_ms", "upload",
      json_ms(r->upload_ms), "score", json_ms(e->score_ms), "select", json_ms(e->select_ms), "compact",
      json_ms(e->compact_ms), "download", json_ms(r->download_ms));
}

static int report(const cli *c, const laprox_evict_file_report *r) {
  const laprox_eviction *e = &r->eviction;
  if (c->opt.json) return print_json(report_json(c, r));
  uint64_t all = (uint64_t)r->shape.n_layers * r->shape.n_kv_heads * r->n_tokens;
  fprintf(stderr, "kept %llu of %llu entries (%.1f %%), %.2f of %.2f MiB: %s\n", (unsigned long long)e->kept,
          (unsigned long long)all, all ? 100.0 * (double)e->kept / (double)all : 0.0,
          (double)e->bytes_after / (1 << 20), (double)e->bytes_before / (1 << 20), c->opt.output);
  if (e->nonfinite_scores)
    fprintf(stderr, "%llu scores were not finite and counted as 0\n",
            (unsigned long long)e->nonfinite_scores);
  fprintf(stderr, "upload %.1f ms, score %.1f ms, select %.1f ms, compact %.1f ms, download %.1f ms on %s\n",
          r->upload_ms, e->score_ms, e->select_ms, e->compact_ms, r->download_ms,
          laprox_device_name(c->device));
  return EXIT_DONE;
}

int cmd_evict(cli *c) {
  int status = cli_check_policy(c, NULL);
  if (!status) status = cli_open_device(c);
  if (status) return status;
  laprox_evict_file_report r = {0};
  const laprox_evict_file_info info = {.input = c->opt.input,
                                       .output = c->opt.output,
                                       .policy = c->opt.policy,
                                       .scores = c->opt.scores,
                                       .progress = progress_step,
                                       .progress_user = &c->bar};
  laprox_result result = laprox_evict_file(c->device, &info, &r);
  progress_clear(&c->bar);
  status = result ? cli_fail(c, result) : report(c, &r);
  laprox_evict_file_report_finish(c->device, &r);
  return status;
}
