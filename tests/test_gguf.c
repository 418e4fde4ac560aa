/* test_gguf.c: the shipped model, hand-made files with every type, and damaged ones that fail with one
 * message. */
#include <errno.h>
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/gguf.h"
#include "support/bytes.h"
#include "support/host.h"

#define PATH "test_gguf.gguf"

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

static const size_t type_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

/* ---- building files ---- */

static void put_header(test_bytes *bytes, uint32_t version, uint64_t n_tensors, uint64_t n_values) {
  put(bytes, "GGUF", 4);
  put_number(bytes, version, 4);
  put_number(bytes, n_tensors, 8);
  put_number(bytes, n_values, 8);
}

static void put_value(test_bytes *bytes, const char *key, uint32_t type, uint64_t bits) {
  put_string(bytes, key);
  put_number(bytes, type, 4);
  put_number(bytes, bits, type_bytes[type]);
}

static void put_text(test_bytes *bytes, const char *key, const char *text) {
  put_string(bytes, key);
  put_number(bytes, STRING, 4);
  put_string(bytes, text);
}

static void put_array(test_bytes *bytes, const char *key, uint32_t element_type, uint64_t count) {
  put_string(bytes, key);
  put_number(bytes, ARRAY, 4);
  put_number(bytes, element_type, 4);
  put_number(bytes, count, 8);
}

static void put_tensor(test_bytes *bytes, const char *name, uint32_t n_dims, const uint64_t *dims,
                       uint32_t type, uint64_t offset) {
  put_string(bytes, name);
  put_number(bytes, n_dims, 4);
  for (uint32_t i = 0; i < n_dims; i++) put_number(bytes, dims[i], 8);
  put_number(bytes, type, 4);
  put_number(bytes, offset, 8);
}

static uint64_t f32_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static uint64_t f64_bits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* A little of everything: 12 values, 3 tensors, 32 + 8 + 68 bytes of data. */
static void build_example(test_bytes *bytes, uint32_t version) {
  bytes->n = 0;
  put_header(bytes, version, 3, 12);
  put_text(bytes, "name", "a\xff");
  put_value(bytes, "u8", U8, 200);
  put_value(bytes, "i8", I8, 0xff);
  put_value(bytes, "i16", I16, 0x8000);
  put_value(bytes, "u32", U32, UINT32_MAX);
  put_value(bytes, "i64", I64, (uint64_t)INT64_MIN);
  put_value(bytes, "u64", U64, UINT64_MAX);
  put_value(bytes, "f32", F32, f32_bits(0.5f));
  put_value(bytes, "true", BOOL, 1);
  put_array(bytes, "words", STRING, 3);
  put_string(bytes, "one");
  put_string(bytes, "");
  put_string(bytes, "three");
  put_array(bytes, "types", I32, 2);
  put_number(bytes, 1, 4);
  put_number(bytes, UINT32_MAX, 4);
  put_array(bytes, "scores", F32, 1);
  put_number(bytes, f32_bits(-2.5f), 4);
  put_tensor(bytes, "w.f32", 2, (uint64_t[]){4, 2}, 0, 0);
  put_tensor(bytes, "w.f16", 1, (uint64_t[]){4}, 1, 32);
  put_tensor(bytes, "w.q8", 2, (uint64_t[]){32, 2}, 8, 64);
  put_padding(bytes, 32);
  for (int i = 0; i < 8; i++) put_number(bytes, f32_bits((float)i), 4);
  put_number(bytes, 0x40003c00, 8);
  put_padding(bytes, 32);
  for (int i = 0; i < 68; i++) put_number(bytes, (uint64_t)i, 1);
}

static void save(const test_bytes *bytes) {
  write_file(PATH, bytes->data, bytes->n);
}

static lpx_gguf *open_ok(test_host *host, const char *path) {
  lpx_gguf *file;
  test_host_init(host);
  if (lpx_gguf_open(&host->host, path, &file) != LAPROX_OK) fail_msg("%s", host->last_error);
  assert_int_equal(host->n_errors, 0);
  return file;
}

static void close_clean(test_host *host, lpx_gguf *file) {
  lpx_gguf_close(file);
  assert_int_equal(host->n_live, 0);
}

static void expect_refused(laprox_result expected, const char *text) {
  test_host host;
  test_host_init(&host);
  lpx_gguf *file = (lpx_gguf *)&host;
  laprox_result result = lpx_gguf_open(&host.host, PATH, &file);
  if (result != expected) fail_msg("result %d, not %d: %s", (int)result, (int)expected, host.last_error);
  assert_null(file);
  assert_int_equal(host.n_errors, 1);
  assert_non_null(strstr(host.last_error, PATH));
  if (!strstr(host.last_error, text)) fail_msg("'%s' is not in: %s", text, host.last_error);
  assert_int_equal(host.n_live, 0);
}

/* ---- good files ---- */

static void expect_u32(const lpx_gguf *file, const char *key, uint32_t expected) {
  uint32_t value = ~expected;
  assert_int_equal(lpx_gguf_get_u32(file, key, LPX_GGUF_REQUIRED, &value), LAPROX_OK);
  assert_int_equal(value, expected);
}

static void the_shipped_model(void **state) {
  (void)state;
  test_host host;
  char path[1024];
  snprintf(path, sizeof path, "%s/model-f16.gguf", getenv("LAPROX_TEST_DATA"));
  lpx_gguf *file = open_ok(&host, path);
  lpx_gguf_string text;
  const lpx_gguf_string *words;
  const int32_t *types;
  const lpx_gguf_tensor *tensor;
  size_t count;
  float number;
  bool flag;
  expect_u32(file, "llama.block_count", 4);
  expect_u32(file, "llama.embedding_length", 256);
  expect_u32(file, "llama.feed_forward_length", 512);
  expect_u32(file, "llama.attention.head_count", 4);
  expect_u32(file, "llama.attention.head_count_kv", 2);
  expect_u32(file, "llama.attention.key_length", 64);
  expect_u32(file, "llama.context_length", 4096);
  expect_u32(file, "llama.vocab_size", 2048);
  assert_int_equal(lpx_gguf_get_f32(file, "llama.rope.freq_base", LPX_GGUF_REQUIRED, &number), LAPROX_OK);
  assert_true(number == 100000.0f);
  assert_int_equal(lpx_gguf_get_bool(file, "tokenizer.ggml.add_bos_token", LPX_GGUF_REQUIRED, &flag),
                   LAPROX_OK);
  assert_true(flag);
  assert_int_equal(lpx_gguf_get_string(file, "general.architecture", LPX_GGUF_REQUIRED, &text), LAPROX_OK);
  assert_string_equal(text.data, "llama");
  assert_int_equal(text.bytes, 5);
  assert_int_equal(lpx_gguf_get_strings(file, "tokenizer.ggml.tokens", LPX_GGUF_REQUIRED, &words, &count),
                   LAPROX_OK);
  assert_int_equal(count, 2048);
  for (size_t i = 0; i < count; i++) assert_int_equal(strlen(words[i].data), words[i].bytes);
  assert_int_equal(lpx_gguf_get_strings(file, "tokenizer.ggml.merges", LPX_GGUF_REQUIRED, &words, &count),
                   LAPROX_OK);
  assert_int_equal(count, 1790);
  assert_non_null(strchr(words[1789].data, ' '));
  assert_int_equal(lpx_gguf_get_i32s(file, "tokenizer.ggml.token_type", LPX_GGUF_REQUIRED, &types, &count),
                   LAPROX_OK);
  assert_int_equal(count, 2048);

  assert_int_equal(lpx_gguf_count(file), 38);
  assert_int_equal(lpx_gguf_get(file, "blk.3.ffn_down.weight", &tensor), LAPROX_OK);
  assert_int_equal(tensor->dtype, LAPROX_DTYPE_F16);
  assert_int_equal(tensor->n_dims, 2);
  assert_int_equal(tensor->dims[0], 512);
  assert_int_equal(tensor->dims[1], 256);
  assert_int_equal(tensor->bytes, 512 * 256 * 2);
  assert_null(lpx_gguf_find(file, "output.weight")); /* tied */
  close_clean(&host, file);
}

/* The same weights in two files of two types: the f16 file holds the f32 file's values, rounded. */
static void both_shipped_models_agree(void **state) {
  (void)state;
  test_host host[2];
  lpx_gguf *file[2];
  const lpx_gguf_tensor *tensor;
  static uint16_t rounded[256 * 128];
  static float exact[256 * 128];
  for (int i = 0; i < 2; i++) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", getenv("LAPROX_TEST_DATA"), i ? "model-f32.gguf" : "model-f16.gguf");
    file[i] = open_ok(&host[i], path);
    assert_int_equal(lpx_gguf_get(file[i], "blk.2.attn_v.weight", &tensor), LAPROX_OK);
    assert_int_equal(tensor->n_elements, 256 * 128);
    assert_int_equal(lpx_gguf_read_all(file[i], tensor, i ? (void *)exact : (void *)rounded), LAPROX_OK);
  }
  for (size_t i = 0; i < 256 * 128; i++) {
    float value = lpx_f16_to_f32(rounded[i]);
    assert_true(fabsf(value - exact[i]) <= fabsf(exact[i]) * 0x1p-11f + 0x1p-25f);
  }
  for (int i = 0; i < 2; i++) close_clean(&host[i], file[i]);
}

static void integers(const lpx_gguf *file, test_host *host) {
  uint32_t u32 = 5;
  int32_t i32 = 5;
  uint64_t u64 = 5;
  expect_u32(file, "u8", 200);
  expect_u32(file, "u32", UINT32_MAX);
  assert_int_equal(lpx_gguf_get_i32(file, "i8", LPX_GGUF_REQUIRED, &i32), LAPROX_OK);
  assert_int_equal(i32, -1);
  assert_int_equal(lpx_gguf_get_i32(file, "i16", LPX_GGUF_REQUIRED, &i32), LAPROX_OK);
  assert_int_equal(i32, -32768);
  assert_int_equal(lpx_gguf_get_u64(file, "u64", LPX_GGUF_REQUIRED, &u64), LAPROX_OK);
  assert_true(u64 == UINT64_MAX);
  assert_int_equal(host->n_errors, 0);
  assert_int_equal(lpx_gguf_get_u32(file, "u64", LPX_GGUF_REQUIRED, &u32), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_u32(file, "i8", LPX_GGUF_REQUIRED, &u32), LAPROX_ERROR_FORMAT);
  assert_non_null(strstr(host->last_error, "is -1,"));
  assert_int_equal(lpx_gguf_get_u64(file, "i64", LPX_GGUF_OPTIONAL, &u64), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_i32(file, "u32", LPX_GGUF_OPTIONAL, &i32), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_i32(file, "i64", LPX_GGUF_OPTIONAL, &i32), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_u32(file, "f32", LPX_GGUF_OPTIONAL, &u32), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_u32(file, "name", LPX_GGUF_OPTIONAL, &u32), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_u32(file, "types", LPX_GGUF_OPTIONAL, &u32), LAPROX_ERROR_FORMAT);
  assert_non_null(strstr(host->last_error, "an array of i32"));
  assert_int_equal(host->n_errors, 8);
  assert_int_equal(lpx_gguf_get_u32(file, "nothing", LPX_GGUF_OPTIONAL, &u32), LAPROX_OK);
  assert_int_equal(host->n_errors, 8);
  assert_int_equal(lpx_gguf_get_u32(file, "nothing", LPX_GGUF_REQUIRED, &u32), LAPROX_ERROR_FORMAT);
  assert_non_null(strstr(host->last_error, "'nothing' is missing"));
  assert_int_equal(u32, 5);
}

static void other_values(const lpx_gguf *file, test_host *host) {
  unsigned n_errors = host->n_errors;
  float f32 = 0;
  bool flag = false;
  lpx_gguf_string text = {0};
  const lpx_gguf_string *words = NULL;
  const int32_t *types = NULL;
  const float *scores = NULL;
  size_t count = 0;
  assert_true(lpx_gguf_has(file, "f32"));
  assert_false(lpx_gguf_has(file, "f3"));
  assert_int_equal(lpx_gguf_get_f32(file, "f32", LPX_GGUF_REQUIRED, &f32), LAPROX_OK);
  assert_true(f32 == 0.5f);
  assert_int_equal(lpx_gguf_get_bool(file, "true", LPX_GGUF_REQUIRED, &flag), LAPROX_OK);
  assert_true(flag);
  assert_int_equal(lpx_gguf_get_string(file, "name", LPX_GGUF_REQUIRED, &text), LAPROX_OK);
  assert_int_equal(text.bytes, 2);
  assert_string_equal(text.data, "a\xff");
  assert_int_equal(lpx_gguf_get_strings(file, "words", LPX_GGUF_REQUIRED, &words, &count), LAPROX_OK);
  assert_int_equal(count, 3);
  assert_string_equal(words[0].data, "one");
  assert_int_equal(words[1].bytes, 0);
  assert_string_equal(words[2].data, "three");
  assert_int_equal(lpx_gguf_get_i32s(file, "types", LPX_GGUF_REQUIRED, &types, &count), LAPROX_OK);
  assert_int_equal(count, 2);
  assert_int_equal(types[1], -1);
  assert_int_equal(lpx_gguf_get_f32s(file, "scores", LPX_GGUF_REQUIRED, &scores, &count), LAPROX_OK);
  assert_true(count == 1 && scores[0] == -2.5f);
  assert_int_equal(host->n_errors, n_errors);
  assert_int_equal(lpx_gguf_get_strings(file, "types", LPX_GGUF_OPTIONAL, &words, &count),
                   LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_i32s(file, "scores", LPX_GGUF_OPTIONAL, &types, &count), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_f32s(file, "f32", LPX_GGUF_OPTIONAL, &scores, &count), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_f32(file, "u32", LPX_GGUF_OPTIONAL, &f32), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_bool(file, "u8", LPX_GGUF_OPTIONAL, &flag), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_string(file, "u8", LPX_GGUF_OPTIONAL, &text), LAPROX_ERROR_FORMAT);
  assert_int_equal(host->n_errors, n_errors + 6);
  assert_int_equal(lpx_gguf_get_strings(file, "nothing", LPX_GGUF_OPTIONAL, &words, &count), LAPROX_OK);
  assert_int_equal(lpx_gguf_get_f32(file, "nothing", LPX_GGUF_OPTIONAL, &f32), LAPROX_OK);
  assert_int_equal(lpx_gguf_get_bool(file, "nothing", LPX_GGUF_OPTIONAL, &flag), LAPROX_OK);
  assert_int_equal(lpx_gguf_get_string(file, "nothing", LPX_GGUF_OPTIONAL, &text), LAPROX_OK);
  assert_int_equal(lpx_gguf_get_i32s(file, "nothing", LPX_GGUF_OPTIONAL, &types, &count), LAPROX_OK);
  assert_int_equal(lpx_gguf_get_f32s(file, "nothing", LPX_GGUF_OPTIONAL, &scores, &count), LAPROX_OK);
  assert_true(f32 == 0.5f && flag && text.bytes == 2);
  assert_int_equal(host->n_errors, n_errors + 6);
  assert_int_equal(count, 1);
}

static void data(lpx_gguf *file, test_host *host) {
  unsigned n_errors = host->n_errors;
  const lpx_gguf_tensor *tensor;
  float numbers[8];
  uint8_t raw[68];
  assert_int_equal(lpx_gguf_count(file), 3);
  assert_string_equal(lpx_gguf_tensor_at(file, 0)->name, "w.f16");
  assert_string_equal(lpx_gguf_tensor_at(file, 2)->name, "w.q8");
  assert_null(lpx_gguf_tensor_at(file, 3));
  assert_int_equal(lpx_gguf_get(file, "w.f32", &tensor), LAPROX_OK);
  assert_true(tensor->dims[0] == 4 && tensor->dims[1] == 2 && tensor->dims[2] == 1 && tensor->dims[3] == 1);
  assert_int_equal(lpx_gguf_read_all(file, tensor, numbers), LAPROX_OK);
  for (int i = 0; i < 8; i++) assert_true(numbers[i] == (float)i);
  assert_int_equal(lpx_gguf_read(file, tensor, 20, 12, numbers), LAPROX_OK);
  assert_true(numbers[0] == 5.0f && numbers[3] == 3.0f);
  assert_int_equal(lpx_gguf_read(file, tensor, 20, 13, numbers), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(lpx_gguf_read(file, tensor, UINT64_MAX, 2, numbers), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(lpx_gguf_get(file, "w.q8", &tensor), LAPROX_OK);
  assert_int_equal(tensor->dtype, LAPROX_DTYPE_Q8_0);
  assert_int_equal(tensor->bytes, 68);
  assert_int_equal(lpx_gguf_read_all(file, tensor, raw), LAPROX_OK);
  for (int i = 0; i < 68; i++) assert_int_equal(raw[i], i);
  assert_int_equal(lpx_gguf_get(file, "w", &tensor), LAPROX_ERROR_FORMAT);
  assert_null(tensor);
  assert_int_equal(host->n_errors, n_errors + 3);
}

static void every_type_in_both_versions(void **state) {
  (void)state;
  for (uint32_t version = 2; version <= 3; version++) {
    test_host host;
    test_bytes bytes;
    build_example(&bytes, version);
    save(&bytes);
    lpx_gguf *file = open_ok(&host, PATH);
    assert_string_equal(lpx_gguf_path(file), PATH);
    integers(file, &host);
    other_values(file, &host);
    data(file, &host);
    close_clean(&host, file);
  }
}

static void floats_must_be_finite(void **state) {
  (void)state;
  test_host host;
  test_bytes bytes = {.n = 0};
  float value = 3;
  put_header(&bytes, 3, 0, 5);
  put_value(&bytes, "nan", F32, f32_bits(NAN));
  put_value(&bytes, "inf", F32, f32_bits(-INFINITY));
  put_value(&bytes, "large", F64, f64_bits(1e39));
  put_value(&bytes, "fine", F64, f64_bits(0.25));
  put_value(&bytes, "most", F32, f32_bits(FLT_MAX));
  save(&bytes);
  lpx_gguf *file = open_ok(&host, PATH);
  assert_int_equal(lpx_gguf_get_f32(file, "nan", LPX_GGUF_REQUIRED, &value), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_f32(file, "inf", LPX_GGUF_REQUIRED, &value), LAPROX_ERROR_FORMAT);
  assert_int_equal(lpx_gguf_get_f32(file, "large", LPX_GGUF_REQUIRED, &value), LAPROX_ERROR_FORMAT);
  assert_true(value == 3);
  assert_int_equal(lpx_gguf_get_f32(file, "fine", LPX_GGUF_REQUIRED, &value), LAPROX_OK);
  assert_true(value == 0.25f);
  assert_int_equal(lpx_gguf_get_f32(file, "most", LPX_GGUF_REQUIRED, &value), LAPROX_OK);
  assert_int_equal(host.n_errors, 3);
  close_clean(&host, file);
}

static void unknown_quantisation_fails_when_used(void **state) {
  (void)state;
  test_host host;
  test_bytes bytes = {.n = 0};
  const lpx_gguf_tensor *tensor;
  put_header(&bytes, 3, 3, 0);
  put_tensor(&bytes, "k", 1, (uint64_t[]){256}, 12, 0);
  put_tensor(&bytes, "x", 1, (uint64_t[]){256}, 4000, 0);
  put_tensor(&bytes, "b", 1, (uint64_t[]){2}, 30, 32);
  put_padding(&bytes, 32);
  for (int i = 0; i < 36; i++) put_number(&bytes, 1, 1);
  save(&bytes);
  lpx_gguf *file = open_ok(&host, PATH);
  assert_int_equal(lpx_gguf_get(file, "b", &tensor), LAPROX_OK);
  assert_int_equal(tensor->dtype, LAPROX_DTYPE_BF16);
  assert_int_equal(lpx_gguf_get(file, "k", &tensor), LAPROX_ERROR_UNSUPPORTED);
  assert_null(tensor);
  assert_non_null(strstr(host.last_error, "'k': unknown quantisation Q4_K (type 12)"));
  assert_int_equal(lpx_gguf_get(file, "x", &tensor), LAPROX_ERROR_UNSUPPORTED);
  assert_non_null(strstr(host.last_error, "type 4000"));
  assert_int_equal(host.n_errors, 2);
  assert_string_equal(lpx_ggml_type_name(14), "Q6_K");
  assert_string_equal(lpx_ggml_type_name(4), "?");
  assert_string_equal(lpx_ggml_type_name(39), "MXFP4");
  assert_string_equal(lpx_ggml_type_name(40), "?");
  assert_string_equal(lpx_ggml_type_name(UINT32_MAX), "?");
  close_clean(&host, file);
}

static void alignment_is_the_files_own(void **state) {
  (void)state;
  test_host host;
  test_bytes bytes = {.n = 0};
  const lpx_gguf_tensor *tensor;
  uint32_t read = 0;
  put_header(&bytes, 3, 1, 1);
  put_value(&bytes, "general.alignment", U32, 256);
  put_tensor(&bytes, "a", 0, NULL, 0, 256);
  put_padding(&bytes, 256);
  put_number(&bytes, 0, 1);
  put_padding(&bytes, 256);
  put_number(&bytes, 0x12345678, 4);
  save(&bytes);
  lpx_gguf *file = open_ok(&host, PATH);
  assert_int_equal(lpx_gguf_get(file, "a", &tensor), LAPROX_OK);
  assert_int_equal(tensor->n_elements, 1); /* a scalar */
  assert_int_equal(tensor->offset, 512);
  assert_int_equal(lpx_gguf_read_all(file, tensor, &read), LAPROX_OK);
  assert_int_equal(read, 0x12345678);
  close_clean(&host, file);
}

/* A tensor list that ends at a multiple of the alignment needs no padding. */
static void data_may_follow_at_once(void **state) {
  (void)state;
  test_host host;
  test_bytes bytes = {.n = 0};
  const lpx_gguf_tensor *tensor;
  put_header(&bytes, 3, 1, 0);
  put_tensor(&bytes, "8 bytes.", 1, (uint64_t[]){1}, 0, 0);
  assert_int_equal(bytes.n, 64);
  put_number(&bytes, 5, 4);
  save(&bytes);
  lpx_gguf *file = open_ok(&host, PATH);
  assert_int_equal(lpx_gguf_get(file, "8 bytes.", &tensor), LAPROX_OK);
  assert_int_equal(tensor->offset, 64);
  close_clean(&host, file);
}

/* ---- damaged files ---- */

static void wrong_beginnings(void **state) {
  (void)state;
  static const struct {
    const char *magic;
    uint32_t version;
    uint64_t n_tensors, n_values;
    laprox_result expected;
    const char *text;
  } cases[] = {
      {"GGML", 3, 0, 0, LAPROX_ERROR_FORMAT, "not a GGUF file"},
      {"gguf", 3, 0, 0, LAPROX_ERROR_FORMAT, "67 67 75 66"},
      {"GGUF", 0, 0, 0, LAPROX_ERROR_UNSUPPORTED, "version 0"},
      {"GGUF", 1, 0, 0, LAPROX_ERROR_UNSUPPORTED, "version 1,"},
      {"GGUF", 4, 0, 0, LAPROX_ERROR_UNSUPPORTED, "version 4,"},
      {"GGUF", 0x03000000, 0, 0, LAPROX_ERROR_UNSUPPORTED, "big-endian"},
      {"GGUF", 3, 1, 0, LAPROX_ERROR_FORMAT, "number of tensors"},
      {"GGUF", 3, UINT64_MAX, 0, LAPROX_ERROR_FORMAT, "number of tensors"},
      {"GGUF", 3, 0, 1, LAPROX_ERROR_FORMAT, "number of metadata"},
      {"GGUF", 3, 0, 1ull << 60, LAPROX_ERROR_FORMAT, "number of metadata"},
      {"GGUF", 3, 0, UINT64_MAX, LAPROX_ERROR_FORMAT, "number of metadata"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    test_bytes bytes = {.n = 0};
    put_header(&bytes, cases[i].version, cases[i].n_tensors, cases[i].n_values);
    memcpy(bytes.data, cases[i].magic, 4);
    save(&bytes);
    expect_refused(cases[i].expected, cases[i].text);
  }
}

/* What follows the header: one key with a value of `type`, then `number` in `n` bytes, then 64 bytes of
 * zeros. */
static void damaged_metadata(void **state) {
  (void)state;
  static const struct {
    uint64_t key_bytes;
    const char *key;
    uint32_t type, element_type;
    uint64_t number;
    size_t n;
    const char *text;
  } cases[] = {
      {0, "", U32, 0, 0, 4, "empty"},
      {UINT64_MAX, "key", U32, 0, 0, 4, "key: 18446744073709551615"},
      {1000, "key", U32, 0, 0, 4, "key: 1000"},
      {3, "k\0y", U32, 0, 0, 4, "zero byte"},
      {3, "key", 13, 0, 0, 4, "unknown type 13"},
      {3, "key", UINT32_MAX, 0, 0, 4, "unknown type"},
      {3, "key", BOOL, 0, 2, 1, "bool of value 2"},
      {3, "key", STRING, 0, 65, 8, "key: 65"},
      {3, "key", STRING, 0, UINT64_MAX, 8, "key: "},
      {3, "key", STRING, 0, INT64_MAX, 8, "key: "},
      {3, "key", ARRAY, ARRAY, 1, 8, "unknown type 9"},
      {3, "key", ARRAY, 13, 1, 8, "unknown type 13"},
      {3, "key", ARRAY, U64, 9, 8, "key: 9"},
      {3, "key", ARRAY, U64, 1ull << 61, 8, "key: "},
      {3, "key", ARRAY, U8, UINT64_MAX, 8, "key: "},
      {3, "key", ARRAY, F32, 1ull << 62, 8, "key: "},
      {3, "key", ARRAY, STRING, 9, 8, "key: "},
      {3, "key", ARRAY, STRING, UINT64_MAX / 8, 8, "key: "},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    test_bytes bytes = {.n = 0};
    put_header(&bytes, 3, 0, 1);
    put_number(&bytes, cases[i].key_bytes, 8);
    put(&bytes, cases[i].key, cases[i].key_bytes == 0 ? 0 : 3);
    put_number(&bytes, cases[i].type, 4);
    if (cases[i].type == ARRAY) put_number(&bytes, cases[i].element_type, 4);
    put_number(&bytes, cases[i].number, cases[i].n);
    for (int j = 0; j < 8; j++) put_number(&bytes, 0, 8);
    save(&bytes);
    expect_refused(LAPROX_ERROR_FORMAT, cases[i].text);
  }
}

static void values_that_contradict(void **state) {
  (void)state;
  test_bytes bytes = {.n = 0};
  put_header(&bytes, 3, 0, 3);
  put_value(&bytes, "a", U32, 1);
  put_value(&bytes, "b", U32, 1);
  put_value(&bytes, "a", U8, 1);
  save(&bytes);
  expect_refused(LAPROX_ERROR_FORMAT, "'a' occurs twice");
  static const struct {
    uint32_t type;
    uint64_t bits;
    const char *text;
  } cases[] = {
      {U32, 0, "power of two"},    {U32, 33, "power of two"},    {U32, UINT32_MAX, "power of two"},
      {U64, 1ull << 32, "limits"}, {F32, 0x42000000, "integer"}, {I32, 0xffffffe0, "-32"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    bytes.n = 0;
    put_header(&bytes, 3, 0, 1);
    put_value(&bytes, "general.alignment", cases[i].type, cases[i].bits);
    save(&bytes);
    expect_refused(LAPROX_ERROR_FORMAT, cases[i].text);
  }
}

/* A tensor 'a' beside a good one 'b' of 32 bytes at 0; 128 bytes of data. */
static void damaged_tensors(void **state) {
  (void)state;
  static const struct {
    const char *name;
    uint32_t n_dims;
    uint64_t dims[5];
    uint32_t type;
    uint64_t offset;
    const char *text;
  } cases[] = {
      {"", 1, {4}, 0, 32, "empty"},
      {"b", 1, {4}, 0, 32, "twice"},
      {"a", 5, {1, 1, 1, 1, 1}, 0, 32, "more than 4"},
      {"a", UINT32_MAX, {1}, 0, 32, "more than 4"},
      {"a", 2, {4, 0}, 0, 32, "dimension of 0"},
      {"a", 2, {1ull << 32, 1ull << 32}, 0, 32, "64 bits"},
      {"a", 4, {1ull << 16, 1ull << 16, 1ull << 16, 1ull << 16}, 0, 32, "64 bits"},
      {"a", 1, {(1ull << 62) + 1}, 0, 32, "too many"},
      {"a", 1, {UINT64_MAX}, 12, 128 + 32, "end of the file"},
      {"a", 1, {25}, 0, 32, "end of the file"},
      {"a", 1, {1}, 0, 128, "end of the file"},
      {"a", 1, {1}, 0, UINT64_MAX - 31, "end of the file"},
      {"a", 1, {4}, 0, 33, "not aligned"},
      {"a", 1, {4}, 0, 0, "overlaps"},
      {"a", 1, {33}, 8, 32, "multiple of 32"},
      {"a", 2, {16, 4}, 8, 32, "multiple of 32"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    test_bytes bytes = {.n = 0};
    uint32_t n_dims = cases[i].n_dims > 5 ? 1 : cases[i].n_dims;
    put_header(&bytes, 3, 2, 0);
    put_tensor(&bytes, "b", 1, (uint64_t[]){8}, 0, 0);
    put_string(&bytes, cases[i].name);
    put_number(&bytes, cases[i].n_dims, 4);
    for (uint32_t j = 0; j < n_dims; j++) put_number(&bytes, cases[i].dims[j], 8);
    put_number(&bytes, cases[i].type, 4);
    put_number(&bytes, cases[i].offset, 8);
    put_padding(&bytes, 32);
    for (int j = 0; j < 16; j++) put_number(&bytes, 0, 8);
    save(&bytes);
    expect_refused(LAPROX_ERROR_FORMAT, cases[i].text);
  }
}

/* Every beginning of a good file is a bad file. */
static void truncated_anywhere(void **state) {
  (void)state;
  test_bytes bytes;
  build_example(&bytes, 3);
  for (size_t i = 0; i < bytes.n; i++) {
    write_file(PATH, bytes.data, i);
    expect_refused(LAPROX_ERROR_FORMAT, "");
  }
}

/* One wrong byte anywhere: read or refused with one message, under the sanitizers without a fault. */
static void any_byte_changed(void **state) {
  (void)state;
  static const uint8_t changes[] = {0x01, 0x10, 0x80, 0xff};
  test_bytes bytes;
  size_t n_refused = 0;
  build_example(&bytes, 3);
  for (size_t i = 0; i < bytes.n * sizeof changes; i++) {
    test_host host;
    lpx_gguf *file;
    test_host_init(&host);
    bytes.data[i / sizeof changes] ^= changes[i % sizeof changes];
    save(&bytes);
    bytes.data[i / sizeof changes] ^= changes[i % sizeof changes];
    laprox_result result = lpx_gguf_open(&host.host, PATH, &file);
    assert_int_equal(host.n_errors, result == LAPROX_OK ? 0 : 1);
    n_refused += result != LAPROX_OK;
    lpx_gguf_close(file);
    assert_int_equal(host.n_live, 0);
  }
  assert_true(n_refused > 500);
}

static void memory_that_runs_out(void **state) {
  (void)state;
  test_bytes bytes;
  unsigned n_failures = 0;
  build_example(&bytes, 3);
  save(&bytes);
  for (laprox_result result = LAPROX_ERROR_OUT_OF_MEMORY; result != LAPROX_OK; n_failures++) {
    test_host host;
    lpx_gguf *file;
    test_host_init(&host);
    host.fail_at = n_failures + 1;
    result = lpx_gguf_open(&host.host, PATH, &file);
    if (result != LAPROX_OK) assert_int_equal(result, LAPROX_ERROR_OUT_OF_MEMORY);
    assert_int_equal(host.n_errors, result == LAPROX_OK ? 0 : 1);
    lpx_gguf_close(file);
    assert_int_equal(host.n_live, 0);
  }
  assert_true(n_failures > 20);
}

static void files_that_cannot_be_read(void **state) {
  (void)state;
  test_host host;
  lpx_gguf *file;
  test_host_init(&host);
  assert_int_equal(lpx_gguf_open(&host.host, "no-such-file", &file), LAPROX_ERROR_FILE);
  assert_non_null(strstr(host.last_error, strerror(ENOENT)));
  assert_int_equal(lpx_gguf_open(&host.host, ".", &file), LAPROX_ERROR_FILE);
  assert_null(file);
  assert_int_equal(host.n_errors, 2);
  assert_int_equal(host.n_live, 0);
  lpx_gguf_close(NULL);
}

static int clean_up(void **state) {
  (void)state;
  remove(PATH);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_shipped_model),
      cmocka_unit_test(both_shipped_models_agree),
      cmocka_unit_test(every_type_in_both_versions),
      cmocka_unit_test(floats_must_be_finite),
      cmocka_unit_test(unknown_quantisation_fails_when_used),
      cmocka_unit_test(alignment_is_the_files_own),
      cmocka_unit_test(data_may_follow_at_once),
      cmocka_unit_test(wrong_beginnings),
      cmocka_unit_test(damaged_metadata),
      cmocka_unit_test(values_that_contradict),
      cmocka_unit_test(damaged_tensors),
      cmocka_unit_test(truncated_anywhere),
      cmocka_unit_test(any_byte_changed),
      cmocka_unit_test(memory_that_runs_out),
      cmocka_unit_test(files_that_cannot_be_read),
  };
  return cmocka_run_group_tests(tests, clean_up, clean_up);
}
