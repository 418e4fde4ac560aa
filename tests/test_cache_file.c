/* test_cache_file.c: a saved sequence goes on elsewhere as if nothing had happened, and a file that is not
 * what it should be is refused and leaves nothing behind. */
#include "io/safetensors.h"
#include "laprox/runtime.h"
#include "runtime/session.h"
#include "support/bytes.h"
#include "support/host.h"
#include "support/model_file.h"
#include "support/variants.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODEL   "test_cache_file.gguf"
#define OTHER   "test_cache_file.other.gguf"
#define SAVED   "test_cache_file.safetensors"
#define AGAIN   "test_cache_file.again.safetensors"
#define CAPTURE "test_cache_file.capture.safetensors"

enum { N_LAYERS = 3, N_HEADS = 4, N_KV_HEADS = 2, HEAD_DIM = 32, N_VOCAB = 300, N_ALL_HEADS = 6 };

static const test_model tiny = {.n_layers = N_LAYERS,
                                .n_heads = N_HEADS,
                                .n_kv_heads = N_KV_HEADS,
                                .head_dim = HEAD_DIM,
                                .model_dim = 64,
                                .feed_forward_dim = 96,
                                .n_vocab = N_VOCAB,
                                .context_length = 600,
                                .dtype = LAPROX_DTYPE_F16,
                                .seed = 1};

static struct {
  test_host host;
  laprox_instance *instance;
  laprox_device *device;
  laprox_model *model;
} rig;

static int open_rig(void **state) {
  (void)state;
  test_host_init(&rig.host);
  const laprox_instance_info info = {
      .host = rig.host.host, .validation = test_validation(), .variants_off = test_variants_off()};
  const laprox_model_info model = {.path = MODEL};
  if (!model_file_write(MODEL, &tiny) || laprox_instance_create(&info, &rig.instance) ||
      laprox_device_open(rig.instance, getenv("LAPROX_DEVICE"), &rig.device) ||
      laprox_model_load(rig.device, &model, &rig.model)) {
    print_error("no model for the test: %s\n", rig.host.last_error);
    return -1;
  }
  return 0;
}

static int close_rig(void **state) {
  (void)state;
  laprox_model_destroy(rig.model);
  laprox_device_destroy(rig.device);
  laprox_instance_destroy(rig.instance);
  static const char *const files[] = {MODEL, OTHER, SAVED, AGAIN, CAPTURE};
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) (void)remove(files[i]);
  if (rig.host.n_live) print_error("%ld allocations were left behind\n", rig.host.n_live);
  return rig.host.n_live ? -1 : 0;
}

static uint64_t device_bytes(void) {
  return laprox_context_memory(laprox_device_context(rig.device)).bytes;
}

/* Validation reports by the same way; nothing else may. */
static void expect_no_errors(void) {
  if (rig.host.n_errors) fail_msg("%s", rig.host.last_error);
}

/* ---- sessions ---- */

static laprox_session *make(laprox_model *model, const laprox_session_info *info) {
  laprox_session *session = NULL;
  assert_int_equal(laprox_session_create(model, info, &session), LAPROX_OK);
  return session;
}

static laprox_session *make_default(void) {
  const laprox_session_info info = {0};
  return make(rig.model, &info);
}

static void read_tokens(laprox_session *session, uint32_t n) {
  uint32_t tokens[600], state = laprox_session_n_tokens(session) + 12345;
  for (uint32_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    tokens[i] = 2 + (state >> 8) % (N_VOCAB - 2);
  }
  assert_int_equal(laprox_session_prefill(session, tokens, n), LAPROX_OK);
}

/* The best token is read; it comes back. */
static uint32_t generate(laprox_session *session) {
  laprox_sampler greedy = {0};
  assert_non_null(laprox_session_logits(session));
  const uint32_t token = laprox_sample(&greedy, laprox_session_logits(session), N_VOCAB, NULL);
  assert_int_equal(laprox_session_decode(session, token), LAPROX_OK);
  return token;
}

static void evict(laprox_session *session, const laprox_policy *policy) {
  assert_int_equal(laprox_session_evict(session, policy, NULL), LAPROX_OK);
}

/* Everything that can be asked of two sequences is the same. */
static void expect_same(const laprox_session *a, const laprox_session *b) {
  uint32_t kept_a[N_ALL_HEADS], kept_b[N_ALL_HEADS];
  assert_int_equal(laprox_session_n_tokens(a), laprox_session_n_tokens(b));
  assert_memory_equal(laprox_session_logits(a), laprox_session_logits(b), N_VOCAB * sizeof(float));
  laprox_session_kept_per_head(a, kept_a);
  laprox_session_kept_per_head(b, kept_b);
  assert_memory_equal(kept_a, kept_b, sizeof kept_a);
  for (uint32_t l = 0; l < N_LAYERS; l++)
    for (uint32_t head = 0; head < N_KV_HEADS; head++)
      for (uint32_t i = 0; i < kept_a[l * N_KV_HEADS + head]; i++)
        assert_int_equal(lpx_cache_position(&a->cache, l, head, i),
                         lpx_cache_position(&b->cache, l, head, i));
}

static void expect_same_files(const char *a, const char *b) {
  size_t n_a, n_b;
  void *data_a = read_file(a, &n_a), *data_b = read_file(b, &n_b);
  assert_int_equal(n_a, n_b);
  assert_memory_equal(data_a, data_b, n_a);
  free(data_a);
  free(data_b);
}

/* ---- going on ---- */

typedef struct history {
  laprox_dtype kv_dtype;
  uint32_t n_prompt, n_before; /* tokens read at once, then one by one before the eviction */
  laprox_policy policy;
  uint32_t n_after, n_more; /* one by one after it; at once after those */
  bool layerwise;
} history;

static const history histories[] = {
    {.n_prompt = 200, .policy = {.budget.tokens = 60}, .n_after = 11},
    {.n_prompt = 200, .policy = {.budget.tokens = 60}, .n_after = 11, .kv_dtype = LAPROX_DTYPE_F32},
    {.n_prompt = 200, .policy = {.budget.share = 0.3}},
    {.n_prompt = 300,
     .policy = {.budget.share = 0.2, .sinks = 4, .floor = 3},
     .n_after = 50,
     .layerwise = true},
    {.n_prompt = 150,
     .n_before = 40,
     .policy = {.budget.tokens = 50, .scope = LAPROX_SCOPE_HEAD},
     .n_after = 3},
    {.n_prompt = 100, .policy = {.budget.tokens = 40}, .n_after = 5, .n_more = 60},
    {.n_prompt = 1, .n_before = 3},
    {.n_prompt = 20},
    {.n_prompt = 200, .kv_dtype = LAPROX_DTYPE_F32},
    {.n_prompt = 200, .n_before = 40},
    {.n_before = 70}, /* from nothing, token by token: the tail has room */
    {.n_before = 10},
};

static laprox_session *live_through(const history *h) {
  const laprox_session_info info = {.kv_dtype = h->kv_dtype, .chunk = 64};
  laprox_session *session = make(rig.model, &info);
  if (h->layerwise) {
    uint32_t tokens[600];
    for (uint32_t i = 0; i < h->n_prompt; i++) tokens[i] = 2 + i * i % (N_VOCAB - 2);
    assert_int_equal(laprox_session_prefill_evict(session, tokens, h->n_prompt, &h->policy, NULL), LAPROX_OK);
  } else if (h->n_prompt) {
    read_tokens(session, h->n_prompt);
  } else {
    assert_int_equal(laprox_session_decode(session, 7), LAPROX_OK);
  }
  for (uint32_t i = 0; i < h->n_before; i++) generate(session);
  if (!h->layerwise) evict(session, &h->policy);
  for (uint32_t i = 0; i < h->n_after; i++) generate(session);
  if (h->n_more) read_tokens(session, h->n_more);
  return session;
}

static void go_on(const history *h) {
  laprox_session *session = live_through(h);
  const laprox_session_info info = {.kv_dtype = h->kv_dtype, .chunk = 100};
  laprox_session *loaded = make(rig.model, &info);
  assert_int_equal(laprox_session_save(session, &h->policy, SAVED), LAPROX_OK);
  assert_int_equal(laprox_session_load(loaded, SAVED), LAPROX_OK);
  expect_same(session, loaded);
  assert_int_equal(laprox_session_save(loaded, &h->policy, AGAIN), LAPROX_OK);
  expect_same_files(SAVED, AGAIN);
  /* Long enough for tails to be full, grow and become prefixes. */
  for (int i = 0; i < 80; i++) {
    assert_int_equal(generate(session), generate(loaded));
    assert_memory_equal(laprox_session_logits(session), laprox_session_logits(loaded),
                        N_VOCAB * sizeof(float));
  }
  const laprox_policy next = {.budget.tokens = 45, .sinks = 2};
  evict(session, &next);
  evict(loaded, &next);
  generate(session);
  generate(loaded);
  expect_same(session, loaded);
  laprox_session_destroy(session);
  laprox_session_destroy(loaded);
}

static void test_going_on(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof histories / sizeof *histories; i++) go_on(&histories[i]);
  /* The device has all its pipelines now: nothing more may stay. */
  const uint64_t bytes = device_bytes();
  const long n_live = rig.host.n_live;
  for (size_t i = 0; i < 4; i++) go_on(&histories[i]);
  expect_no_errors();
  assert_true(device_bytes() == bytes);
  assert_int_equal(rig.host.n_live, n_live);
}

/* An eviction right after loading, before any token, needs the saved queries. */
static void test_evicting_at_once(void **state) {
  (void)state;
  static const laprox_policy policies[] = {{.budget.tokens = 44},
                                           {.budget.tokens = 44, .gqa = LAPROX_GQA_JOINT},
                                           {.budget.tokens = 44, .kind = LAPROX_POLICY_SNAPKV, .window = 16}};
  for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
    laprox_session *session = live_through(&histories[i]);
    const laprox_session_info info = {.kv_dtype = histories[i].kv_dtype};
    laprox_session *loaded = make(rig.model, &info);
    assert_int_equal(laprox_session_save(session, NULL, SAVED), LAPROX_OK);
    assert_int_equal(laprox_session_load(loaded, SAVED), LAPROX_OK);
    evict(session, &policies[i]);
    evict(loaded, &policies[i]);
    expect_same(session, loaded);
    laprox_session_destroy(session);
    laprox_session_destroy(loaded);
  }
  expect_no_errors();
}

/* A smaller ring takes the last queries; a larger one must first fill up. */
static void test_other_windows(void **state) {
  (void)state;
  const laprox_session_info small = {.window = 16}, large = {.window = 64};
  const laprox_policy narrow = {.budget.tokens = 60, .window = 16},
                      wide = {.budget.tokens = 120, .window = 64};
  laprox_session *session = make_default(), *shrunk = make(rig.model, &small),
                 *grown = make(rig.model, &large);
  read_tokens(session, 203);
  assert_int_equal(laprox_session_save(session, NULL, SAVED), LAPROX_OK);
  assert_int_equal(laprox_session_load(shrunk, SAVED), LAPROX_OK);
  assert_int_equal(laprox_session_load(grown, SAVED), LAPROX_OK);

  assert_int_equal(laprox_session_evict(grown, &wide, NULL), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(rig.host.n_errors, 1);
  rig.host.n_errors = 0;
  assert_int_equal(laprox_session_save(grown, NULL, AGAIN), LAPROX_OK);
  expect_same_files(SAVED, AGAIN); /* no queries that were never there */
  laprox_session *narrowed = NULL;
  assert_int_equal(laprox_session_fork(grown, &narrowed), LAPROX_OK);
  evict(session, &narrow);
  evict(shrunk, &narrow);
  evict(narrowed, &narrow);
  expect_same(session, shrunk);
  expect_same(session, narrowed);
  for (int i = 0; i < 32; i++) generate(grown);
  evict(grown, &wide);
  laprox_session_destroy(session);
  laprox_session_destroy(shrunk);
  laprox_session_destroy(grown);
  laprox_session_destroy(narrowed);
  expect_no_errors();
}

/* ---- the file ---- */

static void expect_tensor(lpx_safetensors *a, lpx_safetensors *b, const char *name) {
  const lpx_st_tensor *x, *y;
  assert_int_equal(lpx_safetensors_get(a, name, &x), LAPROX_OK);
  assert_int_equal(lpx_safetensors_get(b, name, &y), LAPROX_OK);
  assert_true(x->dtype == y->dtype && x->bytes == y->bytes && x->bytes > 0);
  uint8_t *data_x = malloc((size_t)x->bytes + 1), *data_y = malloc((size_t)y->bytes + 1);
  assert_int_equal(lpx_safetensors_read_all(a, x, data_x), LAPROX_OK);
  assert_int_equal(lpx_safetensors_read_all(b, y, data_y), LAPROX_OK);
  assert_memory_equal(data_x, data_y, (size_t)x->bytes);
  free(data_x);
  free(data_y);
}

/* Of a cache that has everything the file holds what a capture holds, and the lists that evictions write. */
static void test_contents(void **state) {
  (void)state;
  static const char *const names[] = {"layers.0.k", "layers.2.v", "layers.1.q", "layers.2.q"};
  laprox_session *session = make_default();
  lpx_safetensors *saved, *capture;
  read_tokens(session, 100);
  for (int i = 0; i < 7; i++) generate(session);
  const laprox_policy policy = {.budget.share = 0.05, .floor = 3};
  assert_int_equal(laprox_session_save(session, &policy, SAVED), LAPROX_OK);
  assert_int_equal(laprox_session_capture(session, CAPTURE), LAPROX_OK);
  assert_int_equal(lpx_safetensors_open(&rig.host.host, SAVED, &saved), LAPROX_OK);
  assert_int_equal(lpx_safetensors_open(&rig.host.host, CAPTURE, &capture), LAPROX_OK);
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) expect_tensor(saved, capture, names[i]);
  assert_string_equal(lpx_safetensors_metadata(saved, "n_tokens"), "107");
  assert_string_equal(lpx_safetensors_metadata(saved, "n_tail"), "7");
  assert_string_equal(lpx_safetensors_metadata(saved, "kv_dtype"), "F16");
  assert_string_equal(
      lpx_safetensors_metadata(saved, "policy"),
      "policy=laprox budget=5.0000% scope=global window=32 sinks=0 floor=3 pool=avg:7 gqa=mean "
      "normalize=on seed=0");
  lpx_safetensors_close(saved);
  lpx_safetensors_close(capture);

  const laprox_policy some = {.budget.tokens = 50};
  evict(session, &some);
  for (int i = 0; i < 7; i++) generate(session);
  assert_int_equal(laprox_session_save(session, NULL, SAVED), LAPROX_OK);
  assert_int_equal(laprox_session_dump_kept(session, CAPTURE), LAPROX_OK);
  assert_int_equal(lpx_safetensors_open(&rig.host.host, SAVED, &saved), LAPROX_OK);
  assert_int_equal(lpx_safetensors_open(&rig.host.host, CAPTURE, &capture), LAPROX_OK);
  expect_tensor(saved, capture, "layers.1.cu_seqlens");
  expect_tensor(saved, capture, "layers.1.indices");
  assert_null(lpx_safetensors_metadata(saved, "policy"));
  assert_int_equal(lpx_safetensors_count(saved), 5 * N_LAYERS + 1);
  lpx_safetensors_close(saved);
  lpx_safetensors_close(capture);
  laprox_session_destroy(session);
  expect_no_errors();
}

/* ---- refusals ---- */

/* A file of an evicted cache of 200 tokens, 11 of them in the tail; the whole file, to be freed. */
static uint8_t *make_good_file(size_t *n) {
  laprox_session *session = live_through(&histories[0]);
  assert_int_equal(laprox_session_save(session, &histories[0].policy, SAVED), LAPROX_OK);
  laprox_session_destroy(session);
  return read_file(SAVED, n);
}

static void expect_refused(laprox_session *session, const char *path, laprox_result wanted,
                           const char *message) {
  const uint64_t bytes = device_bytes();
  const laprox_result result = laprox_session_load(session, path);
  if (result != wanted || !strstr(rig.host.last_error, message))
    fail_msg("expected %s about %s, not %s: %s", laprox_result_string(wanted), message,
             laprox_result_string(result), rig.host.last_error);
  assert_int_equal(rig.host.n_errors, 1);
  rig.host.n_errors = 0;
  assert_int_equal(laprox_session_n_tokens(session), 0);
  assert_null(laprox_session_logits(session));
  assert_true(laprox_session_get_memory(session).kv_bytes == 0);
  assert_true(device_bytes() == bytes);
}

/* Header text replaced by text of the same length, or words of a tensor by others. */
typedef struct damage {
  const char *find, *replace; /* header; or a tensor's name and NULL */
  uint32_t word;              /* of the tensor */
  int32_t value;              /* what it becomes, see swap */
  bool swap;                  /* it and the next word change places */
  laprox_result result;
  const char *message;
} damage;

static const damage damages[] = {
    {.find = "laprox cache 1", .replace = "laprox cache 2", .message = "'format'"},
    {.find = "\"format\"", .replace = "\"formal\"", .message = "'format' is missing"},
    {.find = "\"model\":\"", .replace = "\"model\":\"g", .message = "another model"},
    {.find = "\"kv_dtype\":\"F16\"", .replace = "\"kv_dtype\":\"F32\"", .message = "'kv_dtype'"},
    {.find = "\"n_tokens\":\"211\"", .replace = "\"n_tokens\":\"212\"", .message = "indices"},
    {.find = "\"n_tokens\":\"211\"", .replace = "\"n_tokens\":\"210\"", .message = "indices"},
    {.find = "\"n_tokens\":\"211\"", .replace = "\"n_tokens\":\"000\"", .message = "'n_tokens' is 0"},
    {.find = "\"n_tokens\":\"211\"",
     .replace = "\"n_tokens\":\"2x1\"",
     .message = "'n_tokens' is not a number"},
    {.find = "\"n_tokens\":\"211\"",
     .replace = "\"n_tokens\":\"-11\"",
     .message = "'n_tokens' is not a number"},
    {.find = "\"n_tokens\":\"211\"",
     .replace = "\"n_tokens\":\"601\"",
     .result = LAPROX_ERROR_UNSUPPORTED,
     .message = "601"},
    {.find = "\"n_tail\":\"11\"", .replace = "\"n_tail\":\"99\"", .message = "cu_seqlens"},
    {.find = "\"n_tail\":\"11\"", .replace = "\"n_tail\":\"\",\"\":\"\"", .message = ""},
    {.find = "\"tail_room\":\"21\"", .replace = "\"tail_room\":\"33\"", .message = "'tail_room' is 33"},
    {.find = "\"window\":\"32\"", .replace = "\"window\":\"00\"", .message = "'window' is 0"},
    {.find = "\"window\":\"32\"", .replace = "\"window\":\"31\"", .message = "layers.0.q"},
    {.find = "\"layers.2.q\"", .replace = "\"layers.2.x\"", .message = "layers.2.q"},
    {.find = "\"layers.1.v\"", .replace = "\"layers.9.v\"", .message = "layers.1.v"},
    {.find = "\"logits\"", .replace = "\"logitz\"", .message = "logits"},
    {.find = "\"layers.0.k\":{\"dtype\":\"F16\"",
     .replace = "\"layers.0.k\":{\"dtype\":\"F32\"",
     .message = "layers.0.k"},
    {.find = "\"layers.1.cu_seqlens\":{\"dtype\":\"I32\"",
     .replace = "\"layers.1.cu_seqlens\":{\"dtype\":\"F32\"",
     .message = "wrong type F32"},
    {.find = "[4,32,32]", .replace = "[2,64,32]", .message = "dimension 0 is 2, must be 4"},
    {.find = "layers.0.cu_seqlens", .word = 0, .value = 1, .message = "layers.0.cu_seqlens"},
    {.find = "layers.0.cu_seqlens", .word = 1, .value = -1, .message = "layers.0.cu_seqlens"},
    {.find = "layers.0.cu_seqlens", .word = 1, .value = 5, .message = "layers.0.cu_seqlens"},
    {.find = "layers.0.cu_seqlens", .word = 1, .value = INT32_MAX, .message = "layers.0.cu_seqlens"},
    {.find = "layers.0.cu_seqlens", .word = 1, .value = INT32_MIN, .message = "layers.0.cu_seqlens"},
    {.find = "layers.2.cu_seqlens", .word = 2, .value = 11, .message = "layers.2.cu_seqlens"},
    {.find = "layers.2.cu_seqlens", .word = 2, .value = 190, .message = "layers.2.indices"},
    {.find = "layers.0.indices", .word = 0, .swap = true, .message = "layers.0.indices"},
    {.find = "layers.2.indices", .word = 9, .swap = true, .message = "layers.2.indices"},
    {.find = "layers.1.indices", .word = 0, .value = -1, .message = "layers.1.indices"},
    {.find = "layers.1.indices", .word = 3, .value = 211, .message = "layers.1.indices"},
};

static size_t find_text(const uint8_t *data, size_t n, const char *text) {
  const size_t length = strlen(text);
  for (size_t i = 0; i + length <= n; i++)
    if (!memcmp(data + i, text, length)) return i;
  fail_msg("the file has no %s", text);
  return 0;
}

static void apply(const damage *d, uint8_t *data, size_t n) {
  if (d->replace) {
    memcpy(data + find_text(data, n, d->find), d->replace, strlen(d->replace));
    return;
  }
  lpx_safetensors *file;
  const lpx_st_tensor *tensor;
  assert_int_equal(lpx_safetensors_open(&rig.host.host, SAVED, &file), LAPROX_OK);
  assert_int_equal(lpx_safetensors_get(file, d->find, &tensor), LAPROX_OK);
  uint8_t *at = data + tensor->offset + 4 * (size_t)d->word, next[4];
  memcpy(next, at + 4, 4);
  if (d->swap) memcpy(at + 4, at, 4);
  for (uint32_t i = 0; i < 4 && !d->swap; i++) next[i] = (uint8_t)((uint32_t)d->value >> 8 * i);
  memcpy(at, next, 4);
  lpx_safetensors_close(file);
}

static void test_damaged_files(void **state) {
  (void)state;
  size_t n;
  uint8_t *good = make_good_file(&n), *data = malloc(n);
  laprox_session *session = make_default();
  for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
    const damage *d = &damages[i];
    memcpy(data, good, n);
    apply(d, data, n);
    write_file(AGAIN, data, n);
    expect_refused(session, AGAIN, d->result ? d->result : LAPROX_ERROR_FORMAT, d->message);
  }
  for (size_t left = 0; left < n; left += n / 23 + 1) {
    write_file(AGAIN, good, left);
    expect_refused(session, AGAIN, LAPROX_ERROR_FORMAT, AGAIN);
  }
  (void)remove(AGAIN);
  expect_refused(session, AGAIN, LAPROX_ERROR_FILE, AGAIN);
  expect_refused(session, MODEL, LAPROX_ERROR_FORMAT, MODEL);

  /* What was refused has done no harm. */
  assert_int_equal(laprox_session_load(session, SAVED), LAPROX_OK);
  generate(session);
  laprox_session_destroy(session);
  free(data);
  free(good);
  expect_no_errors();
}

static laprox_model *load_model(const char *path) {
  laprox_model *model = NULL;
  const laprox_model_info info = {.path = path};
  assert_int_equal(laprox_model_load(rig.device, &info, &model), LAPROX_OK);
  return model;
}

static void expect_refused_by(const char *path) {
  const laprox_session_info info = {0};
  laprox_model *model = load_model(path);
  laprox_session *session = make(model, &info);
  expect_refused(session, SAVED, LAPROX_ERROR_FORMAT, "another model");
  laprox_session_destroy(session);
  laprox_model_destroy(model);
}

static void expect_other_model(const test_model *other) {
  assert_true(model_file_write(OTHER, other));
  expect_refused_by(OTHER);
}

/* Each differs from the saved one's in one thing. */
static void test_other_models(void **state) {
  (void)state;
  size_t n;
  free(make_good_file(&n));
  test_model other = tiny;
  other.seed = 2;
  expect_other_model(&other);
  other = tiny;
  other.dtype = LAPROX_DTYPE_F32;
  expect_other_model(&other);
  other = tiny;
  other.n_layers = 2;
  expect_other_model(&other);
  other = tiny;
  other.n_vocab = 301;
  expect_other_model(&other);
  assert_true(model_file_change(MODEL, OTHER, "llama.rope.freq_base", 0x461c4001));
  expect_refused_by(OTHER);
  uint8_t *data = read_file(MODEL, &n);
  data[find_text(data, n, "filler299") + 5] = 't';
  write_file(OTHER, data, n);
  expect_refused_by(OTHER);
  free(data);
  expect_no_errors();
}

/* Another context length is no other model, as long as the sequence fits. */
static void test_other_context(void **state) {
  (void)state;
  const laprox_session_info info = {0};
  size_t n;
  free(make_good_file(&n));
  static const uint32_t lengths[] = {210, 211, 5000};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    assert_true(model_file_change(MODEL, OTHER, "llama.context_length", lengths[i]));
    laprox_model *model = load_model(OTHER);
    laprox_session *session = make(model, &info);
    if (lengths[i] < 211)
      expect_refused(session, SAVED, LAPROX_ERROR_UNSUPPORTED, "211");
    else
      assert_int_equal(laprox_session_load(session, SAVED), LAPROX_OK);
    laprox_session_destroy(session);
    laprox_model_destroy(model);
  }
  assert_false(model_file_change(MODEL, OTHER, "llama.context_lengt", 1));
  expect_no_errors();
}

static void test_refused_sessions(void **state) {
  (void)state;
  const laprox_session_info wide = {.kv_dtype = LAPROX_DTYPE_F32};
  size_t n;
  free(make_good_file(&n));
  laprox_session *session = make(rig.model, &wide);
  expect_refused(session, SAVED, LAPROX_ERROR_FORMAT, "'kv_dtype'");
  laprox_session_destroy(session);

  session = make_default();
  assert_int_equal(laprox_session_save(session, NULL, AGAIN), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_null(fopen(AGAIN, "rb"));
  read_tokens(session, 20);
  assert_int_equal(laprox_session_load(session, SAVED), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_non_null(strstr(rig.host.last_error, "20"));
  assert_int_equal(laprox_session_n_tokens(session), 20);
  generate(session);
  assert_int_equal(laprox_session_save(session, NULL, "no such folder/x"), LAPROX_ERROR_FILE);
  const laprox_policy bad = {.kind = LAPROX_POLICY_FULL, .floor = 1};
  assert_int_equal(laprox_session_save(session, &bad, AGAIN), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_null(fopen(AGAIN, "rb"));
  assert_int_equal(rig.host.n_errors, 4);
  rig.host.n_errors = 0;
  laprox_session_destroy(session);
}

/* Every allocation of a save and of a load fails once. */
static void test_short_memory(void **state) {
  (void)state;
  size_t n;
  free(make_good_file(&n));
  laprox_session *session = make_default(), *empty = make_default();
  assert_int_equal(laprox_session_load(session, SAVED), LAPROX_OK);
  const long n_live = rig.host.n_live;
  for (int is_load = 0; is_load < 2; is_load++) {
    laprox_result result = LAPROX_ERROR_OUT_OF_MEMORY;
    unsigned n_failed = 0;
    while (result) {
      rig.host.fail_at = rig.host.n_allocated + ++n_failed;
      result = is_load ? laprox_session_load(empty, SAVED) : laprox_session_save(session, NULL, AGAIN);
      rig.host.fail_at = 0;
      if (!result) break;
      assert_int_equal(result, LAPROX_ERROR_OUT_OF_MEMORY);
      assert_int_equal(rig.host.n_errors, 1);
      rig.host.n_errors = 0;
      assert_int_equal(rig.host.n_live, n_live);
      assert_true(laprox_session_get_memory(empty).kv_bytes == 0);
      assert_null(laprox_session_logits(empty));
      assert_null(fopen(AGAIN, "rb"));
    }
    assert_true(n_failed > 10);
    (void)remove(AGAIN);
  }
  assert_int_equal(laprox_session_save(empty, NULL, AGAIN), LAPROX_OK);
  assert_int_equal(laprox_session_save(session, NULL, SAVED), LAPROX_OK);
  expect_same_files(SAVED, AGAIN);
  laprox_session_destroy(session);
  laprox_session_destroy(empty);
  expect_no_errors();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_going_on),      cmocka_unit_test(test_evicting_at_once),
      cmocka_unit_test(test_other_windows), cmocka_unit_test(test_contents),
      cmocka_unit_test(test_damaged_files), cmocka_unit_test(test_other_models),
      cmocka_unit_test(test_other_context), cmocka_unit_test(test_refused_sessions),
      cmocka_unit_test(test_short_memory),
  };
  return cmocka_run_group_tests(tests, open_rig, close_rig);
}
