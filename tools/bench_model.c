/* bench_model.c: a model reads a prompt, evicts, and generates, timed as a user would see it. */
#include "bench.h"

#include "runtime/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_GENERATED = 16, READ_REPEATS = 3, SHORT_PROMPT = 48 };

typedef struct model_bench {
  bench *b;
  laprox_model_description model;
  bench_shape shape;
  uint32_t *tokens;
  laprox_session *session;
  uint64_t kept; /* entries of the evicted cache */
} model_bench;

static double n_layer_weights(const model_bench *m) {
  const laprox_shape *shape = &m->model.shape;
  const double dim = m->model.model_dim, attention = (double)shape->n_heads * shape->head_dim;
  const double kv = (double)shape->n_kv_heads * shape->head_dim;
  return shape->n_layers * dim * (2 * attention + 2 * kv + 3.0 * m->model.feed_forward_dim);
}

static bench_result *add_row(model_bench *m, const char *kernel, double n_units) {
  bench_result *row = bench_add(m->b, kernel, &m->shape);
  if (!row) return NULL;
  row->variant = m->b->variants ? "all" : "baseline";
  row->n_units = n_units;
  row->on_host = true;
  return row;
}

static void note(bench_result *row, double ms) {
  const int i = row->timing.n++;
  row->timing.us[i] = row->timing.wall_us[i] = ms * 1e3;
}

static laprox_result new_session(model_bench *m, uint32_t n_tokens) {
  const laprox_session_info info = {.window = m->b->policy.window};
  laprox_session_destroy(m->session);
  m->session = NULL;
  if (interrupted()) return LAPROX_ERROR_CANCELLED;
  const laprox_result result = laprox_session_create(m->b->c->model, &info, &m->session);
  return result ? result : laprox_session_prefill(m->session, m->tokens, n_tokens);
}

static void name_shader(bench_result *row, const char *shader) {
  const size_t used = strlen(row->shaders);
  if (shader && !strstr(row->shaders, shader))
    snprintf(row->shaders + used, sizeof row->shaders - used, "%s%s", used ? "," : "", shader);
}

/* What attends and multiplies in a prompt, which is nearly all of the time. */
static void name_reading_shaders(const model_bench *m, bench_result *row) {
  const lpx_forward *forward = &m->session->shared->forward;
  name_shader(row, forward->attention.prefill.shader);
  for (uint32_t dtype = 0; dtype < LPX_N_DTYPES; dtype++) {
    const char *on_matrices = forward->kernels.matmul_matrix[dtype][0].shader;
    name_shader(row, on_matrices ? on_matrices : forward->kernels.matmul[dtype].shader);
  }
}

/* Leaves a session that has read the prompt. */
static laprox_result time_reading(model_bench *m) {
  const double n = m->shape.n_tokens, vocabulary = (double)m->model.n_vocab * m->model.model_dim;
  bench_result *row = add_row(m, "prefill", n);
  if (!row) return LAPROX_ERROR_OUT_OF_MEMORY;
  const laprox_shape *shape = &m->model.shape;
  row->flops = 2 * n * n_layer_weights(m) + 2 * vocabulary +
               2 * n * n * shape->n_layers * shape->n_heads * shape->head_dim;
  laprox_result result = new_session(m, SHORT_PROMPT < m->shape.n_tokens ? SHORT_PROMPT : m->shape.n_tokens);
  for (int i = 0; i < READ_REPEATS && !result; i++) {
    const double start = now_ms();
    result = new_session(m, m->shape.n_tokens);
    note(row, now_ms() - start);
  }
  if (!result) name_reading_shaders(m, row);
  bench_sort(&row->timing);
  return result;
}

static laprox_result time_generating(model_bench *m, const char *kernel, double n_entries) {
  bench_result *row = add_row(m, kernel, 1);
  if (!row) return LAPROX_ERROR_OUT_OF_MEMORY;
  const laprox_shape *shape = &m->model.shape;
  row->bytes = (double)m->model.weight_bytes + n_entries * shape->head_dim * 4;
  row->flops = 2 * n_layer_weights(m) + 2 * (double)m->model.n_vocab * m->model.model_dim +
               4 * n_entries * shape->head_dim * shape->n_heads / shape->n_kv_heads;
  laprox_result result = laprox_session_decode(m->session, m->tokens[0]);
  for (int i = 0; i < N_GENERATED && !result; i++) {
    const double start = now_ms();
    result = laprox_session_decode(m->session, m->tokens[i]);
    note(row, now_ms() - start);
  }
  bench_sort(&row->timing);
  return result;
}

static laprox_result time_eviction(model_bench *m) {
  laprox_eviction done = {0};
  bench_result *row = add_row(m, "evict", m->shape.n_tokens);
  if (!row) return LAPROX_ERROR_OUT_OF_MEMORY;
  const double start = now_ms();
  const laprox_result result = laprox_session_evict(m->session, &m->b->policy, &done);
  note(row, now_ms() - start);
  m->kept = done.kept;
  return result;
}

static laprox_result run(model_bench *m) {
  const laprox_shape *shape = &m->model.shape;
  const double all = (double)shape->n_layers * shape->n_kv_heads * m->shape.n_tokens;
  laprox_result result = time_reading(m);
  if (!result) result = time_generating(m, "generate, full", all);
  /* the first eviction compiles its kernels */
  if (!result) result = laprox_session_evict(m->session, &m->b->policy, NULL);
  if (!result) result = new_session(m, m->shape.n_tokens);
  if (!result) result = time_eviction(m);
  return result ? result : time_generating(m, "generate, evicted", (double)m->kept);
}

int bench_run_model(bench *b, uint32_t n_tokens) {
  model_bench m = {.b = b};
  laprox_model_describe(b->c->model, &m.model);
  m.shape = (bench_shape){.shape = m.model.shape, .n_tokens = n_tokens};
  snprintf(m.shape.geometry, sizeof m.shape.geometry, "model %s", m.model.name);
  if (n_tokens + N_GENERATED + 1 > m.model.context_length) {
    bench_skip(b, &m.shape, "the model reads no prompt that long");
    return EXIT_DONE;
  }
  m.tokens = malloc((n_tokens > N_GENERATED ? n_tokens : N_GENERATED) * sizeof *m.tokens);
  if (!m.tokens) return fail_impossible("out of memory");
  uint32_t state = 5;
  for (uint32_t i = 0; i < n_tokens || i < N_GENERATED; i++) {
    state = state * 1664525u + 1013904223u;
    m.tokens[i] = (uint32_t)((uint64_t)state * m.model.n_vocab >> 32);
  }
  lpx_rules rules;
  laprox_result result = lpx_rules_resolve(&b->c->host, &b->policy, &rules);
  if (!result) result = lpx_budget_resolve(&b->c->host, &rules, &b->policy.budget, n_tokens, &m.shape.budget);
  if (!result && m.shape.budget == UINT32_MAX)
    result = lpx_fail(&b->c->host, LAPROX_ERROR_INVALID_ARGUMENT, "the budget keeps all %u tokens", n_tokens);
  if (!result) result = run(&m);
  laprox_session_destroy(m.session);
  free(m.tokens);
  return result ? cli_fail(b->c, result) : EXIT_DONE;
}
