/* test_softmax_sums.c: the sums that the attention of a prompt leaves for the scorer: what they are, when they are used, and
 * that they change nothing but the time it takes. */
#include "support/reading.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* ---- what they are ---- */

static float *download(const laprox_session *session, laprox_buffer range) {
  float *data = malloc((size_t)range.size + 1);
  assert_non_null(data);
  if (range.size)
    assert_int_equal(lpx_queue_download(session->device->queue, range, data, (size_t)range.size), LAPROX_OK);
  return data;
}

typedef struct layer_data {
  const lpx_cache *cache;
  const lpx_cache_layer *layer;
  float *prefix, *tail, *queries, *lse;
} layer_data;

/* Key `entry` of a KV head in an f32 cache. */
static const float *key_row(const layer_data *data, uint32_t head, uint32_t entry) {
  const size_t d = data->cache->shape.head_dim, in_prefix = data->layer->head_rows[head];
  if (entry < in_prefix) return data->prefix + (data->layer->cu_seqlens[head] + entry) * d;
  return data->tail + (head * (size_t)data->layer->tail_capacity + entry - in_prefix) * d;
}

/* Over the first `seen` entries of the head's cache. */
static double sum_of(const layer_data *data, uint32_t head, uint32_t ring_row, uint32_t seen) {
  const laprox_shape *shape = &data->cache->shape;
  const size_t d = shape->head_dim;
  const float *query = data->queries + ((size_t)ring_row * shape->n_heads + head) * d;
  double sum = 0.0;
  for (uint32_t i = 0; i < seen; i++) {
    const float *key = key_row(data, head / (shape->n_heads / shape->n_kv_heads), i);
    double logit = 0.0;
    for (size_t x = 0; x < d; x++) logit += (double)query[x] * (double)key[x];
    sum += exp(logit / sqrt((double)d));
  }
  return log(sum);
}

/* Of the last `count` tokens, in layers below n_layers. */
static void expect_sums(const laprox_session *session, uint32_t n_layers, uint32_t count) {
  const lpx_cache *cache = &session->cache;
  const uint32_t window = session->info.window, group = cache->shape.n_heads / cache->shape.n_kv_heads;
  for (uint32_t l = 0; l < n_layers; l++) {
    const lpx_cache_layer *layer = &cache->layers[l];
    layer_data data = {.cache = cache,
                       .layer = layer,
                       .prefix = download(session, lpx_buffer_whole(&layer->prefix_key)),
                       .tail = download(session, lpx_buffer_whole(&layer->tail_key)),
                       .queries = download(session, lpx_buffer_whole(&session->queries.rings[l])),
                       .lse = download(session, lpx_session_lse(session, l))};
    for (uint32_t head = 0; head < cache->shape.n_heads; head++)
      for (uint32_t i = 0; i < count; i++) {
        const uint32_t row = (cache->n_tokens - count + i) % window;
        const uint32_t seen = lpx_cache_head_entries(cache, l, head / group) - count + 1 + i;
        const double want = sum_of(&data, head, row, seen), got = (double)data.lse[head * window + row];
        if (!(fabs(got - want) <= 1e-5))
          fail_msg("layer %u, head %u, %u from the end: %.7f instead of %.7f", l, head, count - i, got, want);
      }
    free(data.prefix);
    free(data.tail);
    free(data.queries);
    free(data.lse);
  }
}

static void test_values(void **state) {
  (void)state;
  const laprox_session_info info = {.kv_dtype = LAPROX_DTYPE_F32, .chunk = 64, .window = 24};
  laprox_session *session = make_with(&info);
  read_tokens(session, 220);
  expect_sums(session, N_LAYERS, 24);
  read_tokens(session, 9); /* the window's first queries are those of the turn before */
  expect_sums(session, N_LAYERS - 1, 24);
  evict(session, &(laprox_policy){.budget.tokens = 60, .window = 24});
  read_tokens(session, 70);
  expect_sums(session, N_LAYERS - 1, 24);
  expect_sums(session, N_LAYERS, 6);
  laprox_session_destroy(session);
}

/* ---- when they are used ---- */

/* Makes one KV head of a layer look as if its queries hardly saw their keys. */
static void spoil(const laprox_session *session, uint32_t layer) {
  const laprox_buffer range = lpx_session_lse(session, layer);
  float *lse = download(session, range);
  const laprox_shape *shape = &session->model->shape;
  for (size_t i = 0; i < shape->n_heads / shape->n_kv_heads * session->info.window; i++) lse[i] += 6.0f;
  assert_int_equal(lpx_queue_upload(session->device->queue, range, lse, (size_t)range.size), LAPROX_OK);
  free(lse);
}

static void expect_used(const laprox_session *session, uint32_t layer, bool used) {
  uint32_t plain_kept[N_HEADS], spoiled_kept[N_HEADS];
  laprox_session *plain = fork_of(session), *spoiled = fork_of(session);
  const uint32_t budget = laprox_session_n_tokens(session) / 4;
  const uint32_t n_kv_heads = session->model->shape.n_kv_heads;
  spoil(spoiled, layer);
  evict_to(plain, budget > 40 ? budget : 40);
  evict_to(spoiled, budget > 40 ? budget : 40);
  laprox_session_kept_per_head(plain, plain_kept);
  laprox_session_kept_per_head(spoiled, spoiled_kept);
  if (!used) expect_same_kept(plain, spoiled);
  if (used) assert_true(spoiled_kept[layer * n_kv_heads] < plain_kept[layer * n_kv_heads]);
  laprox_session_destroy(plain);
  laprox_session_destroy(spoiled);
}

static void test_use(void **state) {
  (void)state;
  static const struct {
    uint32_t n_tokens, then, chunk;
    bool keep_logits, in_layers, in_last;
  } cases[] = {
      {300, 0, 256, false, true, true},  {134, 0, 64, false, true, false},  {134, 0, 64, true, true, true},
      {129, 0, 64, false, false, false}, {100, 10, 64, false, true, false}, {100, 40, 64, false, true, true},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const laprox_session_info info = {.chunk = cases[i].chunk, .keep_logits = cases[i].keep_logits};
    laprox_session *session = make_with(&info);
    read_tokens(session, cases[i].n_tokens);
    if (cases[i].then) read_tokens(session, cases[i].then);
    expect_used(session, 0, cases[i].in_layers);
    expect_used(session, N_LAYERS - 1, cases[i].in_last);
    laprox_session_destroy(session);
  }
}

/* After another eviction, and where tokens were generated, the sums are not those of the cache as it is. */
static void test_stale(void **state) {
  (void)state;
  laprox_session *session = make_at(300);
  laprox_session *generating = fork_of(session);
  decode_tokens(generating, 1);
  expect_used(generating, 0, false);
  read_tokens(generating, 31);
  expect_used(generating, 0, false);
  read_tokens(generating, 2);
  expect_used(generating, 0, true);
  evict_to(session, 120);
  expect_used(session, 0, false);
  read_tokens(session, 20);
  expect_used(session, 0, false);
  read_tokens(session, 20);
  expect_used(session, 0, true);
  laprox_session_destroy(session);
  laprox_session_destroy(generating);
}

/* ---- what they change ---- */

static void test_same_kept(void **state) {
  (void)state;
  static const laprox_policy_kind policies[] = {LAPROX_POLICY_LAPROX, LAPROX_POLICY_SNAPKV,
                                                LAPROX_POLICY_CRITICALKV, LAPROX_POLICY_TOVA};
  const laprox_session_info info = {.kv_dtype = LAPROX_DTYPE_F32};
  laprox_session *session = make_with(&info);
  read_tokens(session, 420);
  for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
    const laprox_policy policy = {.kind = policies[i], .budget.share = 0.25};
    laprox_session *given = fork_of(session), *own = fork_of(session);
    assert_true(given->queries.sums.end == 420);
    own->queries.sums = (lpx_session_sums){0};
    evict(given, &policy);
    evict(own, &policy);
    expect_same_kept(given, own);
    laprox_session_destroy(given);
    laprox_session_destroy(own);
  }
  laprox_session_destroy(session);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_values), cmocka_unit_test(test_use),
                                     cmocka_unit_test(test_stale), cmocka_unit_test(test_same_kept)};
  return cmocka_run_group_tests_name("softmax sums", tests, reading_setup, reading_teardown);
}
