/* run_report.c: what `laprox run` says at the end. */
#include "run.h"

#include <stdio.h>

static double per_token_ms(const run *r) {
  return r->n_decoded ? r->decode_ms / r->n_decoded : 0;
}

static json_t *number(uint64_t value) {
  return json_integer((json_int_t)value);
}

static json_t *ids_json(const answer *a) {
  json_t *ids = json_array();
  for (uint32_t i = 0; i < a->n_ids; i++) json_array_append_new(ids, json_integer(a->ids[i]));
  return ids;
}

static json_t *kv_json(const run *r) {
  const laprox_session_memory now = laprox_session_get_memory(r->session);
  return json_pack("{s:o, s:o, s:o, s:o}", "full", number(r->memory.kv_full_bytes), "kept",
                   number(r->memory.kv_bytes), "peak", number(now.kv_peak_bytes), "at_end",
                   number(now.kv_bytes));
}

static json_t *memory_json(const run *r) {
  const laprox_memory_use use = laprox_context_memory(laprox_device_context(r->c->device));
  return json_pack("{s:o, s:o}", "peak", number(use.peak_bytes), "planned",
                   r->is_planned ? number(r->plan.peak_bytes) : json_null());
}

/* What a run and a conversation have in common. */
static json_t *common_json(const run *r) {
  const options *o = &r->c->opt;
  return json_pack("{s:o, s:o, s:s, s:s, s:b, s:o, s:o, s:f, s:o, s:{s:o, s:o, s:o, s:o}, s:s}",
                   "prompt_tokens", number(r->prompt.n), "loaded_tokens", number(r->n_loaded), "policy",
                   o->has_budget ? laprox_policy_name(o->policy.kind) : "full", "prefill",
                   run_prefill_name(r), "approximate", o->chunk_evict != 0, "evictions",
                   number(r->n_evictions), "nonfinite_scores", number(r->nonfinite_scores), "most_entries",
                   r->most_entries, "memory_bytes", memory_json(r), "time_ms", "load", json_ms(r->load_ms),
                   "prefill", json_ms(r->prefill_ms), "evict", json_ms(r->evict_ms), "decode_per_token",
                   json_ms(per_token_ms(r)), "device", laprox_device_name(r->c->device));
}

json_t *run_turn_json(run *r, const answer *a, size_t n_prompt) {
  return json_pack("{s:o, s:o, s:o, s:s, s:f, s:o}", "prompt_tokens", number(n_prompt), "token_ids",
                   ids_json(a), "text", json_text(a->text ? a->text : "", a->n_text), "stopped", a->stopped,
                   "entries_at_end", run_count_entries(r), "kv_bytes", kv_json(r));
}

static void print_common(const run *r) {
  const double mib = 1 << 20;
  double full = (double)r->memory.kv_full_bytes, kept = (double)r->memory.kv_bytes;
  double peak = (double)laprox_session_get_memory(r->session).kv_peak_bytes;
  const laprox_memory_use use = laprox_context_memory(laprox_device_context(r->c->device));
  fprintf(stderr, "read      %s\n", run_prefill_words(r));
  fprintf(stderr, "KV cache  %.2f MiB full, %.2f MiB kept (%.1f %%), %.2f MiB at the peak\n", full / mib,
          kept / mib, full > 0 ? 100 * kept / full : 0, peak / mib);
  fprintf(stderr, "memory    %.2f MiB at the peak", (double)use.peak_bytes / mib);
  if (r->is_planned) fprintf(stderr, ", %.2f MiB planned", (double)r->plan.peak_bytes / mib);
  fprintf(stderr, "\ntime      load %.0f ms, prefill %.0f ms, evict %.1f ms, %.2f ms a token\n", r->load_ms,
          r->prefill_ms, r->evict_ms, per_token_ms(r));
  fprintf(stderr, "device    %s\n", laprox_device_name(r->c->device));
}

int run_report(run *r, const answer *a) {
  const laprox_shape *shape = &r->model.shape;
  if (!r->c->opt.json) {
    fprintf(stderr, "\nprompt    %zu tokens", r->prompt.n);
    if (r->n_loaded) fprintf(stderr, " after %u loaded", r->n_loaded);
    fprintf(stderr, ", then %u generated (%s)\n", a->n_ids, a->stopped);
    print_common(r);
    return EXIT_DONE;
  }
  json_t *kept = json_kept(r->kept, shape->n_layers, shape->n_kv_heads);
  json_t *root = common_json(r), *turn = run_turn_json(r, a, r->prompt.n);
  bool failed = !root || !turn || json_object_update(root, turn) != 0;
  failed = json_object_set_new(root, "kept_per_head", kept) != 0 || failed;
  json_decref(turn);
  if (!failed) return print_json(root);
  json_decref(root);
  return print_json(NULL);
}

int run_report_talk(run *r, json_t *turns, uint32_t n_turns) {
  run_take_stock(r);
  if (!r->c->opt.json) {
    fprintf(stderr, "\nprompt    %u tokens in %u turn%s\n", laprox_session_n_tokens(r->session), n_turns,
            n_turns == 1 ? "" : "s");
    print_common(r);
    return EXIT_DONE;
  }
  json_t *root = common_json(r);
  if (!root || json_object_set_new(root, "turns", turns) != 0) {
    json_decref(root);
    root = NULL;
  }
  return print_json(root);
}
