/* The shipped model as a whole: logits and continuations against the stored reference, and files that say
 * something else than they should. */
#include "runtime/model.h"
#include "support/gpu.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N_LOGITS     64 /* last positions that the reference has */
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const char *data_path(const char *name) {
  static char path[4096];
  const char *directory = getenv("LAPROX_TEST_DATA");
  assert_non_null(directory);
  (void)snprintf(path, sizeof path, "%s/%s", directory, name);
  return path;
}

static uint32_t *read_ids(const json_t *array, size_t *count) {
  *count = json_array_size(array);
  uint32_t *ids = malloc((*count + 1) * sizeof *ids);
  for (size_t i = 0; i < *count; i++) ids[i] = (uint32_t)json_integer_value(json_array_get(array, i));
  return ids;
}

/* The numbers of an .npy file stand at its end. */
static float *read_logits(const char *name, size_t n) {
  float *logits = malloc(n * sizeof *logits);
  FILE *file = fopen(data_path(name), "rb");
  assert_non_null(file);
  assert_int_equal(fseek(file, -(long)(n * sizeof *logits), SEEK_END), 0);
  assert_int_equal(fread(logits, sizeof *logits, n, file), n);
  (void)fclose(file);
  return logits;
}

/* Within `share` of the largest logit's magnitude. */
static void compare_logits(const float *got, const float *want, size_t n, double share) {
  double largest = 0.0, worst = 0.0;
  for (size_t i = 0; i < n; i++) {
    largest = fmax(largest, fabs((double)want[i]));
    const double error = fabs((double)got[i] - (double)want[i]);
    if (!(error <= worst)) worst = error; /* a NaN stays */
  }
  if (!(worst <= share * largest))
    fail_msg("logits differ by %g of at most %g: more than %g", worst, largest, share);
}

typedef struct reference_case {
  const char *prompt;
  size_t n_pieces; /* the prompt is read in so many prefills */
  uint32_t chunk;
} reference_case;

static void run_reference(laprox_model *model, const reference_case *c, laprox_dtype kv_dtype, double share) {
  char name[64];
  (void)snprintf(name, sizeof name, "reference/prompt_%s.json", c->prompt);
  json_t *root = json_load_file(data_path(name), 0, NULL);
  assert_non_null(root);
  size_t n_ids, n_greedy, n_kept;
  uint32_t *ids = read_ids(json_object_get(root, "ids"), &n_ids);
  uint32_t *greedy = read_ids(json_object_get(root, "greedy_ids"), &n_greedy);
  assert_int_equal(n_greedy, 16);
  json_decref(root);
  laprox_model_description about;
  laprox_model_describe(model, &about);
  (void)snprintf(name, sizeof name, "reference/logits_%s.npy", c->prompt);
  float *want = read_logits(name, (size_t)N_LOGITS * about.n_vocab);

  laprox_session *session;
  const laprox_session_info info = {.kv_dtype = kv_dtype, .chunk = c->chunk, .keep_logits = true};
  assert_int_equal(laprox_session_create(model, &info, &session), LAPROX_OK);
  size_t done = 0, now = 0;
  for (size_t piece = 1; piece <= c->n_pieces; piece++, done += now) {
    now = n_ids * piece / c->n_pieces - done;
    assert_int_equal(laprox_session_prefill(session, ids + done, now), LAPROX_OK);
  }
  const float *logits = laprox_session_prompt_logits(session, &n_kept);
  const size_t n = n_kept < N_LOGITS ? n_kept : N_LOGITS;
  assert_true(n > 0);
  compare_logits(logits + (n_kept - n) * about.n_vocab, want + (N_LOGITS - n) * about.n_vocab,
                 n * about.n_vocab, share);
  laprox_sampler sampler = {0};
  for (size_t i = 0; i < n_greedy; i++) {
    const uint32_t token = laprox_sample(&sampler, laprox_session_logits(session), about.n_vocab, NULL);
    assert_int_equal(token, greedy[i]);
    assert_int_equal(laprox_session_decode(session, token), LAPROX_OK);
  }
  laprox_session_destroy(session);
  free(ids);
  free(greedy);
  free(want);
}

static const reference_case reference_cases[] = {
    {"120", 1, 0}, {"120", 3, 7}, {"500", 1, 100}, {"500", 2, 0}, {"1500", 1, 0}};

static laprox_model *load(test_gpu *gpu, const char *name) {
  laprox_model *model;
  const laprox_model_info info = {.path = data_path(name)};
  assert_int_equal(laprox_model_load(gpu->device, &info, &model), LAPROX_OK);
  return model;
}

static void test_f16(void **state) {
  laprox_model *model = load(*state, "model-f16.gguf");
  for (size_t i = 0; i < COUNT(reference_cases); i++)
    run_reference(model, &reference_cases[i], LAPROX_DTYPE_F16, 0.01);
  laprox_model_destroy(model);
}

static void test_f32(void **state) {
  laprox_model *model = load(*state, "model-f32.gguf");
  for (size_t i = 0; i < COUNT(reference_cases); i++)
    run_reference(model, &reference_cases[i], LAPROX_DTYPE_F32, 0.001);
  laprox_model_destroy(model);
}

static void test_describe(void **state) {
  laprox_model *model = load(*state, "model-f16.gguf");
  laprox_model_description about;
  laprox_model_describe(model, &about);
  assert_int_equal(about.shape.n_layers, 4);
  assert_int_equal(about.shape.n_heads, 4);
  assert_int_equal(about.shape.n_kv_heads, 2);
  assert_int_equal(about.shape.head_dim, 64);
  assert_int_equal(about.model_dim, 256);
  assert_int_equal(about.feed_forward_dim, 512);
  assert_int_equal(about.n_vocab, 2048);
  assert_int_equal(about.context_length, 4096);
  assert_int_equal(about.bos, 0);
  assert_int_equal(about.eos, 1);
  assert_string_equal(about.architecture, "llama");
  assert_string_equal(about.name, "needle-llama-tiny");
  assert_true(about.weight_bytes > 5700000 && about.weight_bytes < 5900000);
  laprox_model_destroy(model);
}

/* The output projection comes back as the file has it: f16 and f32 files hold the same model. */
static void test_output_weight(void **state) {
  laprox_model *half = load(*state, "model-f16.gguf"), *full = load(*state, "model-f32.gguf");
  enum { N = 256 * 256 };
  float *a = malloc(N * sizeof *a), *b = malloc(N * sizeof *b);
  for (uint32_t layer = 0; layer < 4; layer++) {
    assert_int_equal(lpx_model_output_weight_f32(half, layer, a), LAPROX_OK);
    assert_int_equal(lpx_model_output_weight_f32(full, layer, b), LAPROX_OK);
    for (size_t i = 0; i < N; i++) assert_true(a[i] == lpx_f16_to_f32(lpx_f32_to_f16(b[i])));
  }
  free(a);
  free(b);
  laprox_model_destroy(half);
  laprox_model_destroy(full);
}

static bool cancel(void *user, const char *what, double fraction) {
  (void)what;
  assert_true(fraction > 0.0 && fraction <= 1.0);
  return ++*(int *)user < 3;
}

static void test_cancel(void **state) {
  test_gpu *gpu = *state;
  int n_calls = 0;
  laprox_model *model = (laprox_model *)&n_calls;
  const laprox_model_info info = {
      .path = data_path("model-f16.gguf"), .progress = cancel, .progress_user = &n_calls};
  assert_int_equal(laprox_model_load(gpu->device, &info, &model), LAPROX_ERROR_CANCELLED);
  assert_null(model);
  assert_int_equal(n_calls, 3);
}

/* A copy of the model with one place changed. */
typedef struct damage {
  const char *find; /* text in the file */
  const char *
      replace; /* same length, or NULL: the 32-bit value that follows the text and its type becomes `value` */
  uint32_t value;
  laprox_result result;
  const char *message; /* a part of it */
} damage;

static const damage damages[] = {
    {"general.architecture", "general.architectura", 0, LAPROX_ERROR_FORMAT, "general.architecture"},
    {"\5\0\0\0\0\0\0\0llama", "\5\0\0\0\0\0\0\0lemma", 0, LAPROX_ERROR_UNSUPPORTED, "lemma"},
    {"llama.block_count", NULL, 5, LAPROX_ERROR_FORMAT, "blk.4.attn_norm.weight"},
    {"llama.block_count", NULL, 3, LAPROX_ERROR_UNSUPPORTED, "blk.3."},
    {"llama.block_count", NULL, 0, LAPROX_ERROR_FORMAT, "llama.block_count"},
    {"llama.block_count", NULL, 16000000, LAPROX_ERROR_FORMAT, "llama.block_count"},
    {"llama.block_count", NULL, UINT32_MAX, LAPROX_ERROR_FORMAT, "llama.block_count"},
    {"llama.embedding_length", NULL, 260, LAPROX_ERROR_FORMAT, "token_embd.weight"},
    {"llama.embedding_length", NULL, 254, LAPROX_ERROR_UNSUPPORTED, "llama.embedding_length"},
    {"llama.feed_forward_length", NULL, 516, LAPROX_ERROR_FORMAT, "blk.0.ffn_gate.weight"},
    {"llama.feed_forward_length", NULL, 511, LAPROX_ERROR_UNSUPPORTED, "llama.feed_forward_length"},
    {"llama.context_length", NULL, 0, LAPROX_ERROR_FORMAT, "llama.context_length"},
    {"llama.attention.head_count", NULL, 8, LAPROX_ERROR_FORMAT, "blk.0.attn_q.weight"},
    {"llama.attention.head_count", NULL, 0, LAPROX_ERROR_FORMAT, "llama.attention.head_count"},
    {"llama.attention.head_count_kv", NULL, 4, LAPROX_ERROR_FORMAT, "blk.0.attn_k.weight"},
    {"llama.attention.value_length", NULL, 32, LAPROX_ERROR_UNSUPPORTED, "llama.attention.value_length"},
    {"llama.rope.dimension_count", NULL, 32, LAPROX_ERROR_UNSUPPORTED, "llama.rope.dimension_count"},
    {"llama.rope.freq_base", NULL, 0, LAPROX_ERROR_FORMAT, "llama.rope.freq_base"},
    {"llama.rope.freq_base", NULL, 0x7fc00000, LAPROX_ERROR_FORMAT, "llama.rope.freq_base"},
    {"llama.attention.layer_norm_rms_epsilon", NULL, 0xbf800000, LAPROX_ERROR_FORMAT, "rms_epsilon"},
    {"blk.2.ffn_up.weight", "blk.2.ffn_uq.weight", 0, LAPROX_ERROR_UNSUPPORTED, "blk.2.ffn_uq.weight"},
    {"blk.1.attn_q.weight", "blk.9.attn_q.weight", 0, LAPROX_ERROR_UNSUPPORTED, "blk.9.attn_q.weight"},
    {"token_embd.weight", "rope_freqs.weight", 0, LAPROX_ERROR_FORMAT, "token_embd.weight"},
    {"token_embd.weight", "token_embe.weight", 0, LAPROX_ERROR_FORMAT, "token_embd.weight"},
};

static uint8_t *read_file(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  *bytes = (size_t)ftell(file);
  rewind(file);
  uint8_t *data = malloc(*bytes);
  assert_non_null(data);
  assert_int_equal(fread(data, 1, *bytes, file), *bytes);
  (void)fclose(file);
  return data;
}

static size_t find(const uint8_t *data, size_t bytes, const char *text, size_t length) {
  for (size_t i = 0; i + length < bytes; i++)
    if (!memcmp(data + i, text, length)) return i;
  fail_msg("%s is not in the model", text);
  return 0;
}

/* Names of KV keys are followed by others that they begin: the length in front tells them apart. */
static void apply(const damage *d, uint8_t *data, size_t bytes) {
  if (d->replace) {
    /* The text may begin with a length, which holds zero bytes. */
    const size_t length = d->find[0] < ' ' ? 13 : strlen(d->find);
    memcpy(data + find(data, bytes, d->find, length), d->replace, length);
    return;
  }
  const size_t length = strlen(d->find);
  char pattern[72] = {(char)length};
  memcpy(pattern + 8, d->find, length);
  uint8_t *value = data + find(data, bytes, pattern, length + 8) + length + 8 + 4;
  for (int i = 0; i < 4; i++) value[i] = (uint8_t)(d->value >> 8 * i);
}

static void expect_failure(test_gpu *gpu, const uint8_t *data, size_t bytes, laprox_result result,
                           const char *message) {
  static const char path[] = "test_model.damaged.gguf";
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, bytes, file), bytes);
  assert_int_equal(fclose(file), 0);
  const unsigned before = gpu->n_errors;
  laprox_model *model;
  const laprox_model_info info = {.path = path};
  const laprox_result got = laprox_model_load(gpu->device, &info, &model);
  (void)remove(path);
  if (got != result || !strstr(gpu->last_error, message))
    fail_msg("expected %s about %s, not %s: %s", laprox_result_string(result), message,
             laprox_result_string(got), gpu->last_error);
  assert_null(model);
  assert_int_equal(gpu->n_errors, before + 1);
}

static void test_damaged_files(void **state) {
  test_gpu *gpu = *state;
  const uint64_t memory = laprox_context_memory(laprox_device_context(gpu->device)).bytes;
  size_t bytes;
  uint8_t *original = read_file(data_path("model-f16.gguf"), &bytes), *data = malloc(bytes);
  assert_non_null(data);
  for (size_t i = 0; i < COUNT(damages); i++) {
    memcpy(data, original, bytes);
    apply(&damages[i], data, bytes);
    expect_failure(gpu, data, bytes, damages[i].result, damages[i].message);
  }
  expect_failure(gpu, original, bytes / 2, LAPROX_ERROR_FORMAT, "test_model.damaged.gguf");
  expect_failure(gpu, original, 10, LAPROX_ERROR_FORMAT, "test_model.damaged.gguf");
  free(data);
  free(original);
  assert_int_equal(laprox_context_memory(laprox_device_context(gpu->device)).bytes, memory);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_describe),      cmocka_unit_test(test_f16),
      cmocka_unit_test(test_f32),           cmocka_unit_test(test_cancel),
      cmocka_unit_test(test_output_weight), cmocka_unit_test(test_damaged_files),
  };
  return cmocka_run_group_tests(tests, test_gpu_setup, test_gpu_teardown);
}
