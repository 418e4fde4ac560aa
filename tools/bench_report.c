/* bench_report.c: the results of `laprox bench` as a table and as JSON. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bench_result *bench_add(bench *b, const char *kernel, const bench_shape *shape) {
  bench_result *grown = realloc(b->results, (b->n_results + 1) * sizeof *grown);
  if (!grown) {
    (void)lpx_fail_memory(&b->context->host, "results");
    return NULL;
  }
  b->results = grown;
  grown[b->n_results] = (bench_result){.kernel = kernel, .variant = "baseline", .shape = *shape};
  char what[64];
  snprintf(what, sizeof what, "%.40s, %u", shape->geometry, shape->n_tokens);
  progress_clear(&b->c->bar);
  if (b->c->bar.visible) fprintf(stderr, "%s: %s\n", what, kernel);
  return &b->results[b->n_results++];
}

void bench_skip(bench *b, const bench_shape *shape, const char *reason) {
  if (b->n_skipped == sizeof b->skipped / sizeof b->skipped[0]) return;
  b->skipped[b->n_skipped].shape = *shape;
  snprintf(b->skipped[b->n_skipped++].reason, sizeof b->skipped[0].reason, "%s", reason);
  progress_clear(&b->c->bar);
  fprintf(stderr, "laprox: note: %s, %u tokens: skipped, %s\n", shape->geometry, shape->n_tokens, reason);
}

/* ---- figures ---- */

static double gbps(const bench_result *row) {
  const double us = bench_median_us(&row->timing);
  return us > 0 ? row->bytes / (us * 1e3) : 0;
}

static double gflops(const bench_result *row) {
  const double us = bench_median_us(&row->timing);
  return us > 0 ? row->flops / (us * 1e3) : 0;
}

/* The larger of the shares of bandwidth and of arithmetic; with matrices, of the matrices' rate. */
static double share_of_ceiling(const bench *b, const bench_result *row) {
  const bool matrices = b->ceilings.matrix_gflops > b->ceilings.fma_gflops &&
                        (!strcmp(row->variant, "matrix") || !strcmp(row->variant, "all"));
  const double rate = matrices ? b->ceilings.matrix_gflops : b->ceilings.fma_gflops;
  const double memory = b->ceilings.copy_gbps > 0 ? gbps(row) / b->ceilings.copy_gbps : 0;
  const double arithmetic = rate > 0 ? gflops(row) / rate : 0;
  return memory > arithmetic ? memory : arithmetic;
}

/* ---- JSON ---- */

static json_t *shape_json(const bench *b, const bench_shape *shape) {
  return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "geometry", shape->geometry, "n_layers",
                   (json_int_t)shape->shape.n_layers, "n_heads", (json_int_t)shape->shape.n_heads,
                   "n_kv_heads", (json_int_t)shape->shape.n_kv_heads, "head_dim",
                   (json_int_t)shape->shape.head_dim, "n_tokens", (json_int_t)shape->n_tokens, "budget",
                   (json_int_t)shape->budget, "policy",
                   laprox_policy_name(b->policy.kind ? b->policy.kind : LAPROX_POLICY_LAPROX), "gqa",
                   b->policy.gqa == LAPROX_GQA_JOINT            ? "joint"
                   : b->policy.gqa == LAPROX_GQA_ATTENTION_MEAN ? "attention-mean"
                                                                : "mean");
}

static json_t *row_json(const bench *b, const bench_result *row) {
  const bench_timing *t = &row->timing;
  const int last = t->n ? t->n - 1 : 0;
  json_t *out =
      json_pack("{s:s, s:s, s:s, s:o, s:f, s:f, s:{s:f, s:f, s:f}, s:f, s:i, s:s, s:f, s:f, s:f}", "kernel",
                row->kernel, "variant", row->variant, "shaders", row->shaders, "shape",
                shape_json(b, &row->shape), "bytes", row->bytes, "flops", row->flops, "time_us", "min",
                t->us[0], "median", bench_median_us(t), "max", t->us[last], "wall_us", t->wall_us[t->n / 2],
                "repeats", t->n, "clock", row->on_host || !b->stamps ? "host" : "device", "gbps", gbps(row),
                "gflops", gflops(row), "share_of_ceiling", share_of_ceiling(b, row));
  if (out && row->n_units > 0 && bench_median_us(t) > 0)
    json_object_set_new(out, "tokens_per_s", json_real(row->n_units / (bench_median_us(t) * 1e-6)));
  return out;
}

json_t *bench_json(const bench *b) {
  json_t *results = json_array(), *skipped = json_array(), *variants = json_array();
  for (size_t i = 0; i < b->n_results; i++) json_array_append_new(results, row_json(b, &b->results[i]));
  for (size_t i = 0; i < b->n_skipped; i++)
    json_array_append_new(skipped, json_pack("{s:o, s:s}", "shape", shape_json(b, &b->skipped[i].shape),
                                             "reason", b->skipped[i].reason));
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
    if (b->variants >> i & 1) json_array_append_new(variants, json_string(laprox_variant_name(1u << i)));
  const laprox_device_description *d = b->description;
  const bench_ceilings *c = &b->ceilings;
  return json_pack("{s:s, s:s, s:s, s:s, s:s, s:o, s:{s:f, s:f, s:o, s:s}, s:o, s:o}", "device", d->name,
                   "type", d->type, "driver", d->driver, "driver_info", d->driver_info, "version",
                   LAPROX_VERSION, "variants", variants, "ceilings", "copy_gbps", c->copy_gbps, "fma_gflops",
                   c->fma_gflops, "matrix_gflops",
                   c->matrix_gflops > 0 ? json_real(c->matrix_gflops) : json_null(), "copy_form",
                   c->copy_form ? c->copy_form : "", "results", results, "skipped", skipped);
}

/* ---- the table ---- */

static bool same_shape(const bench_shape *a, const bench_shape *b) {
  return !strcmp(a->geometry, b->geometry) && a->n_tokens == b->n_tokens && a->budget == b->budget;
}

static void print_row(const bench *b, const bench_result *row) {
  const bench_timing *t = &row->timing;
  printf("%-18s %-10s %11.3f %11.3f %11.3f %9.1f %9.0f %7.0f %%", row->kernel, row->variant,
         bench_median_us(t) * 1e-3, t->us[0] * 1e-3, t->us[t->n ? t->n - 1 : 0] * 1e-3, gbps(row),
         gflops(row), 100 * share_of_ceiling(b, row));
  if (row->n_units > 0 && bench_median_us(t) > 0)
    printf("   %.1f tokens/s", row->n_units / (bench_median_us(t) * 1e-6));
  printf("\n");
}

void bench_print(const bench *b) {
  const laprox_device_description *d = b->description;
  printf("%s, %s %s, laprox %s\n", d->name, d->driver, d->driver_info, LAPROX_VERSION);
  printf("ceilings: copy %.1f GB/s (%s), f32 multiply-add %.0f Gflop/s", b->ceilings.copy_gbps,
         b->ceilings.copy_form ? b->ceilings.copy_form : "none", b->ceilings.fma_gflops);
  if (b->ceilings.matrix_gflops > 0)
    printf(", f16 matrices %ux%ux%u %.0f Gflop/s", b->context->matrix.m, b->context->matrix.n,
           b->context->matrix.k, b->ceilings.matrix_gflops);
  printf("\n");
  for (size_t i = 0; i < b->n_results; i++) {
    const bench_result *row = &b->results[i];
    if (!i || !same_shape(&row->shape, &row[-1].shape)) {
      printf("\n%s, %u tokens", row->shape.geometry, row->shape.n_tokens);
      if (row->shape.budget) printf(", %u entries a head kept", row->shape.budget);
      printf("\n%-18s %-10s %11s %11s %11s %9s %9s %9s\n", "kernel", "variant", "median ms", "min", "max",
             "GB/s", "Gflop/s", "ceiling");
    }
    print_row(b, row);
  }
}
