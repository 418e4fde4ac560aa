/* test_distributed.c: a model's layers on several devices of one process, which choose together: what they keep against
 * what one device with all layers keeps. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "support/app.h"
#include "support/host.h"

#include <cmocka.h>

enum { N_DEVICES = 4, MOST_LAYERS = 6, KV_HEADS = 2, DIM = 8, WINDOW = 4, SINKS = 2 };
#define ARENA_BYTES ((VkDeviceSize)24 << 20)

typedef enum pattern { FROM_KEYS, ALL_EQUAL, TWO_VALUES, ZEROS, MOSTLY_ZERO, LOG_NORMAL, N_PATTERNS } pattern;

typedef struct job {
  const uint32_t *lengths;    /* of each head of each layer */
  uint32_t splits[N_DEVICES]; /* layers of each device; 0 ends */
  laprox_policy policy;
  pattern pattern;
} job;

/* A device with some layers; number 0 has all. */
typedef struct member {
  app_device device;
  test_host host;
  laprox_context *context;
  laprox_plan *plan;
  laprox_binding *binding;
  laprox_requirements needs;
  laprox_result_layout layout;
  laprox_buffer scratch, scores, result;
  uint32_t first_layer, n_layers;
} member;

static app_vulkan vulkan;
static member members[N_DEVICES + 1];

static uint32_t hash(uint32_t layer, uint32_t head, uint32_t entry) {
  uint32_t x = (layer * 64 + head) * 0x9e3779b1u ^ entry * 0x85ebca6bu;
  x = (x ^ x >> 15) * 0x2c1b3c6du;
  return x ^ x >> 13;
}

static float made_score(pattern which, uint32_t layer, uint32_t head, uint32_t i) {
  const uint32_t random = hash(layer, head, i) & 0xffff;
  switch (which) {
  case ALL_EQUAL:
    return 0.25f;
  case TWO_VALUES:
    return random % 16 ? 0.25f : 0.75f;
  case ZEROS:
    return 0.0f;
  case MOSTLY_ZERO:
    return random % 8    ? 0.0f
           : random % 16 ? 1e-42f
                         : ldexpf(1.0f + (float)random / 65536.0f, (int)(random % 100));
  default:
    return expf((float)random / 65536.0f * 20.0f - 10.0f);
  }
}

static uint32_t n_candidates(uint32_t length) {
  return length > WINDOW + SINKS ? length - WINDOW - SINKS : 0;
}

/* Half precision rows: many alike, some not numbers. */
static laprox_buffer make_keys(member *m, const job *j, uint32_t layer) {
  const uint32_t *lengths = j->lengths + (size_t)layer * KV_HEADS;
  uint32_t rows = 0, row = 0;
  for (uint32_t head = 0; head < KV_HEADS; head++) rows += lengths[head];
  const laprox_buffer keys = app_take(&m->device, (VkDeviceSize)rows * DIM * 2, 256, 0);
  uint16_t *to = app_mapped(&m->device, keys);
  for (uint32_t head = 0; head < KV_HEADS; head++)
    for (uint32_t entry = 0; entry < lengths[head]; entry++, row++)
      for (uint32_t k = 0; k < DIM; k++) {
        const uint32_t random = hash(layer, head, entry);
        to[row * DIM + k] = random % 29 ? (uint16_t)(0x3000 + random % 64 * 16 + k) : 0x7e00;
      }
  return keys;
}

static void join(member *m, const job *j, uint32_t first_layer, uint32_t n_layers, uint32_t model_layers) {
  uint32_t cu_seqlens[MOST_LAYERS * (KV_HEADS + 1)] = {0};
  laprox_layer_buffers layers[MOST_LAYERS] = {0};
  m->device.used_bytes = 0;
  m->first_layer = first_layer;
  m->n_layers = n_layers;
  for (uint32_t l = 0; l < n_layers; l++) {
    uint32_t *rows = cu_seqlens + (size_t)l * (KV_HEADS + 1);
    for (uint32_t head = 0; head < KV_HEADS; head++)
      rows[head + 1] = rows[head] + j->lengths[(first_layer + l) * KV_HEADS + head];
    layers[l].key[0] = make_keys(m, j, first_layer + l);
  }
  const laprox_plan_info info = {
      .shape = {.n_layers = n_layers, .n_heads = KV_HEADS, .n_kv_heads = KV_HEADS, .head_dim = DIM},
      .policy = j->policy,
      .cache_dtype = LAPROX_DTYPE_F16,
      .n_segments = 1,
      .n_tokens = 1u << 20,
      .segments = {{.cu_seqlens = cu_seqlens}},
      .distributed = n_layers < model_layers,
      .layer_offset = first_layer,
      .model_layers = model_layers};
  assert_int_equal(laprox_plan_create(m->context, &info, &m->plan), LAPROX_OK);
  laprox_plan_requirements(m->plan, &m->needs);
  laprox_plan_result_layout(m->plan, &m->layout);
  m->scratch = app_take(&m->device, m->needs.scratch_bytes, m->needs.alignment, 0);
  m->scores = app_take(&m->device, m->needs.scores_bytes, m->needs.alignment, 0);
  m->result = app_take(&m->device, m->needs.result_bytes, m->needs.alignment, 0);
  memset(app_mapped(&m->device, m->scratch), 0xa5, (size_t)m->needs.scratch_bytes);
  const laprox_binding_info buffers = {
      .layers = layers, .scratch = m->scratch, .scores = m->scores, .result = m->result};
  assert_int_equal(laprox_binding_create(m->plan, &buffers, &m->binding), LAPROX_OK);
}

static void leave(member *m) {
  laprox_binding_destroy(m->binding);
  laprox_plan_destroy(m->plan);
}

static void run(member *m, uint32_t first, uint32_t count) {
  app_begin(&m->device);
  assert_int_equal(laprox_cmd_steps(m->device.commands, m->binding, first, count), LAPROX_OK);
  app_submit(&m->device);
}

static void score(member *m, const job *j) {
  uint32_t first, count;
  laprox_binding_layer_steps(m->binding, m->n_layers, &first, &count);
  run(m, 0, first);
  for (uint32_t l = 0; l < m->n_layers && j->pattern != FROM_KEYS; l++)
    for (uint32_t head = 0; head < KV_HEADS; head++) {
      const uint32_t layer = m->first_layer + l;
      float *to = (float *)(void *)((char *)app_mapped(&m->device, m->scores) +
                                    laprox_plan_score_offset(m->plan, l, head));
      for (uint32_t i = 0; i < n_candidates(j->lengths[layer * KV_HEADS + head]); i++)
        to[i] = made_score(j->pattern, layer, head, i);
    }
}

/* Round after round on all devices; what the last of them left is there to be summed. */
static void choose(member *all, uint32_t n, uint32_t expected_rounds) {
  const uint32_t n_rounds = laprox_binding_n_rounds(all[0].binding);
  assert_int_equal(n_rounds, expected_rounds);
  for (uint32_t r = 0; r < n_rounds; r++) {
    laprox_round round[N_DEVICES] = {0};
    for (uint32_t d = 0; d < n; d++) {
      laprox_binding_round(all[d].binding, r, &round[d]);
      assert_int_equal(round[d].bytes, round[0].bytes);
      run(&all[d], round[d].first, round[d].count);
    }
    assert_true((r + 1 == n_rounds) == (round[0].bytes == 0));
    for (uint32_t word = 0; word < round[0].bytes / 4; word++) {
      uint32_t sum = 0;
      for (uint32_t d = 0; d < n; d++)
        sum += ((uint32_t *)app_mapped(&all[d].device, all[d].scratch))[round[d].offset / 4 + word];
      for (uint32_t d = 0; d < n; d++)
        ((uint32_t *)app_mapped(&all[d].device, all[d].scratch))[round[d].offset / 4 + word] = sum;
    }
  }
}

static const uint32_t *words_of(const member *m, VkDeviceSize offset) {
  return (const uint32_t *)app_mapped(&m->device, m->result) + offset / 4;
}

static void expect_same(const member *whole, const member *part) {
  const uint32_t *all_rows = words_of(whole, whole->layout.cu_seqlens),
                 *all = words_of(whole, whole->layout.indices);
  const uint32_t *rows = words_of(part, part->layout.cu_seqlens), *own = words_of(part, part->layout.indices);
  const uint32_t offset = part->first_layer * KV_HEADS;
  assert_true(rows[part->n_layers * KV_HEADS] <= part->needs.n_kept);
  for (uint32_t head = 0; head < part->n_layers * KV_HEADS; head++) {
    const uint32_t n = rows[head + 1] - rows[head];
    assert_int_equal(n, all_rows[offset + head + 1] - all_rows[offset + head]);
    assert_memory_equal(own + rows[head], all + all_rows[offset + head], n * sizeof *own);
  }
}

static void run_job(const job *j, uint32_t expected_rounds) {
  uint32_t n = 0, model_layers = 0;
  for (; n < N_DEVICES && j->splits[n]; n++) model_layers += j->splits[n];
  join(&members[0], j, 0, model_layers, model_layers);
  for (uint32_t d = 0, layer = 0; d < n; layer += j->splits[d++])
    join(&members[1 + d], j, layer, j->splits[d], model_layers);
  for (uint32_t d = 0; d <= n; d++) score(&members[d], j);
  choose(&members[0], 1, 1);
  for (int repeat = 0; repeat < 2; repeat++) {
    choose(&members[1], n, expected_rounds);
    for (uint32_t d = 0; d < n; d++) expect_same(&members[0], &members[1 + d]);
  }
  for (uint32_t d = 0; d <= n; d++) leave(&members[d]);
}

/* Some devices have no candidates at all, some heads have one, some many blocks. */
static const uint32_t ragged[MOST_LAYERS * KV_HEADS] = {1029, 6,    4,    6, 2054, 7,
                                                        300,  8198, 5000, 4, 1031, 1030};
static const uint32_t alike[MOST_LAYERS * KV_HEADS] = {700, 700, 700, 700, 700, 700,
                                                       700, 700, 700, 700, 700, 700};
static const uint32_t splits[][N_DEVICES] = {{1, 1}, {1, 3}, {1, 1, 4}, {3, 1, 1, 1}, {5, 1}};
#define N_SPLITS (sizeof splits / sizeof *splits)

static job make_job(size_t split, pattern which, uint32_t budget) {
  job j = {.lengths = split % 2 ? ragged : alike,
           .policy = {.kind = LAPROX_POLICY_KNORM,
                      .scope = LAPROX_SCOPE_GLOBAL,
                      .budget.tokens = budget,
                      .window = WINDOW,
                      .sinks = SINKS},
           .pattern = which};
  memcpy(j.splits, splits[split], sizeof j.splits);
  return j;
}

static void test_patterns(void **state) {
  (void)state;
  for (size_t split = 0; split < N_SPLITS; split++)
    for (pattern which = 0; which < N_PATTERNS; which++) {
      const job j = make_job(split, which, 150 + 40 * (uint32_t)split);
      run_job(&j, 5);
    }
}

/* Nothing but what is protected, one entry more, more than there is. */
static void test_budgets(void **state) {
  (void)state;
  static const uint32_t budgets[] = {WINDOW + SINKS, WINDOW + SINKS + 1, 1500, 1u << 19};
  for (size_t split = 1; split < N_SPLITS; split++)
    for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
      const job j = make_job(split, i % 2 ? ALL_EQUAL : LOG_NORMAL, budgets[i]);
      run_job(&j, 5);
    }
}

static void test_floor(void **state) {
  (void)state;
  for (pattern which = 0; which < N_PATTERNS; which++) {
    job j = make_job(which % N_SPLITS, which, 90);
    j.policy.floor = 40;
    run_job(&j, 5);
  }
}

/* They need no exchange, but they do depend on a layer's place in the model. */
static void test_other_scopes(void **state) {
  (void)state;
  for (laprox_scope scope = LAPROX_SCOPE_GLOBAL; scope <= LAPROX_SCOPE_HEAD; scope++) {
    job j = make_job(2, FROM_KEYS, 200);
    j.policy.kind = LAPROX_POLICY_RANDOM;
    j.policy.scope = scope;
    run_job(&j, scope == LAPROX_SCOPE_GLOBAL ? 5 : 1);
  }
}

static void test_refused(void **state) {
  (void)state;
  const float scales[2] = {1, 1};
  const laprox_plan_info good = {
      .shape = {2, KV_HEADS, KV_HEADS, DIM},
      .policy = {.kind = LAPROX_POLICY_RANDOM, .scope = LAPROX_SCOPE_GLOBAL, .budget.tokens = 50},
      .n_segments = 1,
      .segments = {{.n_entries = 100}},
      .model_layers = 4,
      .distributed = true,
      .layer_offset = 2};
  laprox_plan_info bad[7];
  for (size_t i = 0; i < 7; i++) bad[i] = good;
  bad[0].layer_offset = 3;
  bad[1].distributed = false;
  bad[2].first_layer = 1;
  bad[2].layer_scales = scales;
  bad[3].retain_scores = true;
  bad[4].model_layers = 1;
  bad[5].policy.scope = LAPROX_SCOPE_TOKEN;
  bad[6].model_layers = 40000000; /* times 2 heads, times 18 places */
  bad[6].policy.budget.tokens = 99;
  member *m = &members[0];
  laprox_plan *plan = NULL;
  assert_int_equal(laprox_plan_create(m->context, &good, &plan), LAPROX_OK);
  laprox_plan_destroy(plan);
  for (size_t i = 0; i < 7; i++) {
    const unsigned n_errors = m->host.n_errors;
    assert_int_equal(laprox_plan_create(m->context, &bad[i], &plan),
                     i == 6 ? LAPROX_ERROR_UNSUPPORTED : LAPROX_ERROR_INVALID_ARGUMENT);
    assert_null(plan);
    assert_int_equal(m->host.n_errors, n_errors + 1);
  }
}

static int set_up(void **state) {
  (void)state;
  app_vulkan_init(&vulkan);
  for (member *m = members; m <= members + N_DEVICES; m++) {
    test_host_init(&m->host);
    app_device_init(&vulkan, ARENA_BYTES, &m->device);
    const laprox_context_info info = app_context_info(&vulkan, &m->device, &m->host.host);
    assert_int_equal(laprox_context_create(&info, &m->context), LAPROX_OK);
  }
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  for (member *m = members; m <= members + N_DEVICES; m++) {
    laprox_context_destroy(m->context);
    app_device_finish(&m->device);
    assert_int_equal(m->host.n_live, 0);
  }
  return app_vulkan_finish(&vulkan) != 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_patterns),     cmocka_unit_test(test_budgets), cmocka_unit_test(test_floor),
      cmocka_unit_test(test_other_scopes), cmocka_unit_test(test_refused),
  };
  return cmocka_run_group_tests_name("distributed", tests, set_up, tear_down);
}
