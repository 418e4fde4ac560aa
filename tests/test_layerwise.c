/* test_layerwise.c: a prompt cut after every layer keeps exactly what one eviction at the end keeps, in less
 * memory. */
#include "runtime/session.h"
#include "support/gpu.h"
#include "support/sequence.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_TOKENS = 1700 };

static laprox_model *load_model(test_gpu *gpu) {
  char path[1024];
  laprox_model *model = NULL;
  snprintf(path, sizeof path, "%s/model-f16.gguf", getenv("LAPROX_TEST_DATA"));
  assert_int_equal(laprox_model_load(gpu->device, &(laprox_model_info){.path = path}, &model), LAPROX_OK);
  return model;
}

/* Any tokens will do; some structure makes scores differ. */
static void make_tokens(uint32_t *tokens, uint32_t n, uint32_t seed) {
  uint32_t state = seed * 2654435761u + 1;
  for (uint32_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    tokens[i] = i % 7 == 3 ? tokens[i / 2] : 2 + (state >> 8) % 2000;
  }
}

static uint8_t *download(laprox_session *session, const lpx_buffer *buffer, size_t bytes) {
  uint8_t *data = malloc(bytes);
  assert_non_null(data);
  assert_int_equal(lpx_queue_download(session->device->queue, lpx_buffer_whole(buffer), data, bytes),
                   LAPROX_OK);
  return data;
}

static void compare_rows(laprox_session *a, const lpx_buffer *rows_a, laprox_session *b,
                         const lpx_buffer *rows_b, size_t bytes) {
  uint8_t *data_a = download(a, rows_a, bytes), *data_b = download(b, rows_b, bytes);
  assert_memory_equal(data_a, data_b, bytes);
  free(data_a);
  free(data_b);
}

static void compare_caches(laprox_session *a, laprox_session *b) {
  const uint32_t n_heads = a->cache.shape.n_kv_heads;
  for (uint32_t l = 0; l < a->cache.shape.n_layers; l++) {
    const lpx_cache_layer *x = &a->cache.layers[l], *y = &b->cache.layers[l];
    assert_memory_equal(x->cu_seqlens, y->cu_seqlens, (n_heads + 1) * sizeof *x->cu_seqlens);
    assert_memory_equal(x->positions, y->positions, x->cu_seqlens[n_heads] * sizeof *x->positions);
    const size_t bytes = x->cu_seqlens[n_heads] * (size_t)lpx_cache_row_bytes(&a->cache);
    compare_rows(a, &x->prefix_key, b, &y->prefix_key, bytes);
    compare_rows(a, &x->prefix_value, b, &y->prefix_value, bytes);
    assert_null(x->tail_key.buffer);
  }
}

typedef struct scenario {
  uint32_t n_tokens;
  laprox_policy policy;
} scenario;

static void run_scenario(laprox_model *model, const scenario *s) {
  uint32_t tokens[MAX_TOKENS];
  laprox_session *layerwise = NULL, *one_shot = NULL;
  laprox_eviction gradual, at_once;
  const laprox_session_info info = {.chunk = 512};
  make_tokens(tokens, s->n_tokens, s->n_tokens);
  assert_int_equal(laprox_session_create(model, &info, &layerwise), LAPROX_OK);
  assert_int_equal(laprox_session_create(model, &info, &one_shot), LAPROX_OK);
  assert_int_equal(laprox_session_prefill_evict(layerwise, tokens, s->n_tokens, &s->policy, &gradual),
                   LAPROX_OK);
  assert_int_equal(laprox_session_prefill(one_shot, tokens, s->n_tokens), LAPROX_OK);
  assert_int_equal(laprox_session_evict(one_shot, &s->policy, &at_once), LAPROX_OK);
  assert_true(gradual.kept == at_once.kept);
  assert_true(gradual.bytes_before == at_once.bytes_before && gradual.bytes_after == at_once.bytes_after);
  assert_int_equal(gradual.budget, at_once.budget);
  compare_caches(layerwise, one_shot);
  laprox_model_description d;
  laprox_model_describe(model, &d);
  assert_memory_equal(laprox_session_logits(layerwise), laprox_session_logits(one_shot),
                      d.n_vocab * sizeof(float));

  const laprox_session_memory memory = laprox_session_get_memory(layerwise);
  const double bound = 1.05 * ((double)memory.kv_bytes + (double)memory.kv_full_bytes / d.shape.n_layers);
  if ((double)memory.kv_peak_bytes > bound)
    print_error("%u tokens: peak %llu, bound %.0f\n", s->n_tokens, (unsigned long long)memory.kv_peak_bytes,
                bound);
  assert_true((double)memory.kv_peak_bytes <= bound);
  assert_int_equal(laprox_session_decode(layerwise, 5), LAPROX_OK);
  assert_int_equal(laprox_session_decode(one_shot, 5), LAPROX_OK);
  assert_memory_equal(laprox_session_logits(layerwise), laprox_session_logits(one_shot),
                      d.n_vocab * sizeof(float));
  laprox_session_destroy(layerwise);
  laprox_session_destroy(one_shot);
}

static void test_same_set(void **state) {
  static const scenario scenarios[] = {
      {1500, {.budget.share = 0.025}},
      {801, {.budget.share = 0.05}},
      {511, {.budget.share = 0.10, .gqa = LAPROX_GQA_JOINT}},
      {400, {.budget.share = 0.20}},
      {450, {.budget.share = 0.35, .sinks = 4}},
      {450, {.budget.share = 0.50}},
      {450, {.budget.share = 0.50, .floor = 30, .sinks = 2}},
      {350, {.budget.tokens = 60, .floor = 9}},
      {350, {.budget.tokens = 60, .floor = 20, .sinks = 8}},
      {360, {.budget.share = 0.10, .scope = LAPROX_SCOPE_LAYER, .floor = 5}},
      {360, {.budget.share = 0.30, .scope = LAPROX_SCOPE_LAYER, .sinks = 3}},
      {360, {.budget.share = 0.10, .scope = LAPROX_SCOPE_HEAD}},
      {352, {.budget.share = 0.10, .kind = LAPROX_POLICY_SNAPKV}},
      {352,
       {.budget.share = 0.10,
        .kind = LAPROX_POLICY_SNAPKV,
        .scope = LAPROX_SCOPE_GLOBAL,
        .normalize = LAPROX_SWITCH_ON}},
      {352, {.budget.share = 0.10, .normalize = LAPROX_SWITCH_OFF, .pool = LAPROX_POOL_MAX}},
      {352, {.budget.share = 0.10, .kind = LAPROX_POLICY_STREAMING}},
      {352, {.budget.tokens = 34, .kind = LAPROX_POLICY_STREAMING}},
      {352, {.budget.share = 0.15, .pool_before = LAPROX_SWITCH_ON}},
      {352, {.budget.share = 0.15, .kind = LAPROX_POLICY_CRITICALKV}},
      {352, {.budget.share = 0.15, .kind = LAPROX_POLICY_CRITICALKV, .scope = LAPROX_SCOPE_LAYER}},
      {352, {.budget.share = 0.30, .kind = LAPROX_POLICY_DEFENSIVEKV}},
      {352, {.budget.share = 0.60, .kind = LAPROX_POLICY_LAYER_DEFENSIVEKV}},
      {352, {.budget.share = 0.15, .kind = LAPROX_POLICY_VATP}},
      {352, {.budget.share = 0.10, .kind = LAPROX_POLICY_TOVA}},
      {352, {.budget.share = 0.20, .kind = LAPROX_POLICY_KEYDIFF, .scope = LAPROX_SCOPE_GLOBAL}},
      {352, {.budget.share = 0.10, .kind = LAPROX_POLICY_KNORM, .floor = 2, .scope = LAPROX_SCOPE_LAYER}},
      {352, {.budget.share = 0.20, .kind = LAPROX_POLICY_ADAKV}},
      {352, {.budget.tokens = 61, .kind = LAPROX_POLICY_PYRAMIDKV}},
      {100, {.budget.tokens = 79, .kind = LAPROX_POLICY_PYRAMIDKV, .sinks = 3}},
      {352, {.budget.share = 0.10, .kind = LAPROX_POLICY_RANDOM, .seed = 3}},
      {352, {.budget.share = 0.40, .kind = LAPROX_POLICY_RANDOM, .scope = LAPROX_SCOPE_GLOBAL, .sinks = 5}},
      {352, {.budget.share = 0.97}},
      {40, {.budget.tokens = 36, .gqa = LAPROX_GQA_ATTENTION_MEAN}},
      {34, {.budget.tokens = 33}},
  };
  test_gpu *gpu = *state;
  laprox_model *model = load_model(gpu);
  for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) run_scenario(model, &scenarios[i]);
  laprox_model_destroy(model);
  assert_int_equal(gpu->n_errors, 0);
}

/* ---- captures, and the f64 reference ---- */

typedef struct captured {
  capture_options options;
  laprox_policy policy;
} captured;

static void upload_rows(const test_sequence *sequence, const lpx_buffer *to, const capture_tensor *from,
                        uint32_t n) {
  const size_t row_bytes = from->bytes / (size_t)(from->dims[0] * from->dims[1]);
  for (size_t head = 0; head < from->dims[0]; head++)
    assert_int_equal(
        lpx_queue_upload(sequence->device->queue,
                         lpx_buffer_part(lpx_buffer_whole(to), head * n * row_bytes, n * row_bytes),
                         (const uint8_t *)from->data + head * (size_t)from->dims[1] * row_bytes,
                         n * row_bytes),
        LAPROX_OK);
}

/* The same tokens as the sequence has read, cut after every layer. */
static void read_layerwise(const test_sequence *sequence, const laprox_policy *policy, uint32_t n,
                           lpx_cache *cache) {
  const lpx_cache_eviction eviction = {.policy = policy,
                                       .queries = sequence->queries,
                                       .query_rows = sequence->query_rows,
                                       .query_end = n % sequence->query_rows,
                                       .factors = policy->gqa == LAPROX_GQA_JOINT ? sequence->joint_factors
                                                                                  : sequence->factors,
                                       .scale = (float)sequence->world.options.scale};
  ref_rules rules = ref_rules_decide(policy);
  const uint32_t budget = ref_budget(&rules, &policy->budget, n);
  lpx_layerwise layerwise;
  assert_int_equal(lpx_cache_init(sequence->device, &sequence->cache.shape, sequence->cache.dtype, cache),
                   LAPROX_OK);
  assert_int_equal(lpx_layerwise_init(cache, &eviction, n, budget, &layerwise), LAPROX_OK);
  for (uint32_t l = 0; l < cache->shape.n_layers; l++) {
    assert_int_equal(lpx_layerwise_begin_layer(&layerwise, l), LAPROX_OK);
    upload_rows(sequence, &cache->layers[l].tail_key, &sequence->world.layers[l].key, n);
    upload_rows(sequence, &cache->layers[l].tail_value, &sequence->world.layers[l].value, n);
    assert_int_equal(lpx_layerwise_end_layer(&layerwise, l), LAPROX_OK);
  }
  cache->n_tokens = n;
  lpx_layerwise_finish(&layerwise);
  const double full_layer = 2.0 * cache->shape.n_kv_heads * n * (double)lpx_cache_row_bytes(cache);
  const double kept =
      2.0 * cache->shape.n_layers * cache->shape.n_kv_heads * budget * (double)lpx_cache_row_bytes(cache);
  /* Small buffers are rounded up by the device: a hundred bytes each. */
  assert_true((double)cache->peak_bytes <= 1.05 * (kept + full_layer) + 200.0 * cache->shape.n_layers);
}

static void test_captures(void **state) {
  static const captured captures[] = {
      {{{4, 4, 2, 32},
        640,
        .model_dim = 40,
        .dtype = LAPROX_DTYPE_F16,
        .pattern = CAPTURE_NEEDLES,
        .seed = 41},
       {.budget.tokens = 48}},
      {{{8, 4, 2, 16}, 1400, .model_dim = 24, .dtype = LAPROX_DTYPE_F16, .seed = 42},
       {.budget.share = 0.025}},
      {{{6, 4, 4, 16}, 700, .model_dim = 24, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_TIES, .seed = 43},
       {.budget.share = 0.1, .pool_width = 1}},
      {{{3, 6, 2, 32},
        333,
        .model_dim = 40,
        .dtype = LAPROX_DTYPE_BF16,
        .pattern = CAPTURE_NEEDLES,
        .seed = 44},
       {.budget.share = 0.5, .gqa = LAPROX_GQA_JOINT}},
      {{{5, 2, 2, 32}, 400, .model_dim = 40, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_EQUAL, .seed = 45},
       {.budget.share = 0.3, .sinks = 3}},
      {{{5, 4, 2, 16}, 500, .model_dim = 24, .dtype = LAPROX_DTYPE_F32, .seed = 46},
       {.budget.share = 0.2, .floor = 20, .sinks = 5}},
      {{{4, 4, 2, 16},
        450,
        .model_dim = 24,
        .dtype = LAPROX_DTYPE_F16,
        .pattern = CAPTURE_HALF_ZERO,
        .seed = 47},
       {.budget.share = 0.4, .scope = LAPROX_SCOPE_LAYER, .floor = 7}},
      {{{4, 6, 3, 16}, 300, .model_dim = 24, .dtype = LAPROX_DTYPE_F16, .seed = 48},
       {.budget.share = 0.25, .scope = LAPROX_SCOPE_HEAD, .sinks = 2}},
      {{{4, 4, 2, 16}, 380, .model_dim = 24, .dtype = LAPROX_DTYPE_F32, .seed = 49},
       {.budget.share = 0.15, .kind = LAPROX_POLICY_SNAPKV, .scope = LAPROX_SCOPE_GLOBAL, .floor = 4}},
      {{{4, 4, 2, 16},
        380,
        .model_dim = 24,
        .dtype = LAPROX_DTYPE_F16,
        .spoil = CAPTURE_NAN_VALUE | CAPTURE_INF_KEY,
        .seed = 50},
       {.budget.share = 0.2, .gqa = LAPROX_GQA_ATTENTION_MEAN}},
      {{{7, 2, 1, 16},
        1100,
        .model_dim = 24,
        .dtype = LAPROX_DTYPE_F16,
        .pattern = CAPTURE_NEEDLES,
        .seed = 51},
       {.budget.share = 0.05, .window = 16}},
  };
  test_gpu *gpu = *state;
  for (size_t i = 0; i < sizeof captures / sizeof *captures; i++) {
    test_sequence one_shot, gradual;
    lpx_cache cache;
    const uint32_t n = captures[i].options.n_tokens;
    sequence_init(&one_shot, gpu->device, &captures[i].options, 32, NULL);
    sequence_grow(&one_shot, n);
    read_layerwise(&one_shot, &captures[i].policy, n, &cache);
    sequence_evict(&one_shot, &captures[i].policy, NULL);
    gradual = one_shot;
    gradual.cache = cache;
    sequence_expect_same(&one_shot, &gradual);
    lpx_cache_finish(&cache);
    sequence_finish(&one_shot);
  }
  assert_int_equal(gpu->n_errors, 0);
}

/* Whole tokens are chosen when all layers have been read. */
static void test_whole_tokens(void **state) {
  const scenario s = {300, {.budget.share = 0.2, .scope = LAPROX_SCOPE_TOKEN, .sinks = 2}};
  test_gpu *gpu = *state;
  laprox_model *model = load_model(gpu);
  uint32_t tokens[300];
  laprox_session *in_one = NULL, *one_shot = NULL;
  laprox_eviction done, at_once;
  make_tokens(tokens, s.n_tokens, 5);
  assert_int_equal(laprox_session_create(model, &(laprox_session_info){0}, &in_one), LAPROX_OK);
  assert_int_equal(laprox_session_create(model, &(laprox_session_info){0}, &one_shot), LAPROX_OK);
  assert_int_equal(laprox_session_prefill_evict(in_one, tokens, s.n_tokens, &s.policy, &done), LAPROX_OK);
  assert_int_equal(laprox_session_prefill(one_shot, tokens, s.n_tokens), LAPROX_OK);
  assert_int_equal(laprox_session_evict(one_shot, &s.policy, &at_once), LAPROX_OK);
  assert_int_equal(done.kept, 8 * 60);
  assert_int_equal(at_once.kept, 8 * 60);
  compare_caches(in_one, one_shot);
  laprox_session_destroy(in_one);
  laprox_session_destroy(one_shot);
  laprox_model_destroy(model);
}

/* A budget that keeps everything, later turns, and tokens that can't be read. */
static void test_edges(void **state) {
  test_gpu *gpu = *state;
  laprox_model *model = load_model(gpu);
  uint32_t tokens[256], kept[8], sum = 0;
  laprox_session *session = NULL;
  laprox_eviction done;
  make_tokens(tokens, 256, 1);
  assert_int_equal(laprox_session_create(model, &(laprox_session_info){0}, &session), LAPROX_OK);
  const laprox_policy all = {.kind = LAPROX_POLICY_FULL}, some = {.budget.tokens = 48};
  assert_int_equal(laprox_session_prefill_evict(session, tokens, 30, &some, &done), LAPROX_OK);
  assert_int_equal(done.kept, 8 * 30);
  assert_int_equal(laprox_session_prefill_evict(session, tokens + 30, 70, &some, &done), LAPROX_OK);
  assert_int_equal(done.kept, 8 * 48);
  assert_int_equal(laprox_session_n_tokens(session), 100);
  const laprox_policy together = {.kind = LAPROX_POLICY_TOVA, .budget.tokens = 40};
  assert_int_equal(laprox_session_evict(session, &together, &done), LAPROX_ERROR_UNSUPPORTED);
  const laprox_policy tokens_alike = {.scope = LAPROX_SCOPE_TOKEN, .budget.tokens = 40};
  assert_int_equal(laprox_session_evict(session, &tokens_alike, &done), LAPROX_ERROR_UNSUPPORTED);
  assert_int_equal(laprox_session_prefill_evict(session, tokens + 100, 50, &all, &done), LAPROX_OK);
  laprox_session_kept_per_head(session, kept);
  for (int i = 0; i < 8; i++) sum += kept[i];
  assert_int_equal(sum, 8 * (48 + 50));
  laprox_session_destroy(session);

  assert_int_equal(laprox_session_create(model, &(laprox_session_info){0}, &session), LAPROX_OK);
  tokens[17] = 999999;
  assert_int_equal(laprox_session_prefill_evict(session, tokens, 200, &some, &done),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(laprox_session_get_memory(session).kv_bytes, 0);
  tokens[17] = 9;
  assert_int_equal(laprox_session_prefill_evict(session, tokens, 200, &some, &done), LAPROX_OK);
  assert_int_equal(done.kept, 8 * 48);
  laprox_session_destroy(session);
  laprox_model_destroy(model);
  assert_int_equal(gpu->n_errors, 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_same_set, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_captures, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_whole_tokens, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_edges, test_gpu_setup, test_gpu_teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
