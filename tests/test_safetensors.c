/* test_safetensors.c: what is written is read back; damaged headers fail with one message; nothing is left
 * behind. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/safetensors.h"
#include "support/bytes.h"
#include "support/host.h"

#define PATH      "test_safetensors.safetensors"
#define TEMPORARY PATH ".tmp-000"

static bool exists(const char *path) {
  FILE *stream = fopen(path, "rb");
  if (stream) fclose(stream);
  return stream != NULL;
}

/* Length, header text, then n zero bytes of data. */
static void write_st(const char *header, size_t n_data) {
  test_bytes bytes = {.n = 0};
  put_string(&bytes, header);
  for (size_t i = 0; i < n_data; i++) put_number(&bytes, 0, 1);
  write_file(PATH, bytes.data, bytes.n);
}

static void expect_open(test_host *host, laprox_result expected, const char *text) {
  lpx_safetensors *file = (lpx_safetensors *)host;
  laprox_result result = lpx_safetensors_open(&host->host, PATH, &file);
  if (result != expected) fail_msg("result %d, not %d: %s", (int)result, (int)expected, host->last_error);
  assert_int_equal(host->n_errors, result == LAPROX_OK ? 0 : 1);
  if (result != LAPROX_OK) {
    assert_null(file);
    assert_non_null(strstr(host->last_error, PATH));
    if (!strstr(host->last_error, text)) fail_msg("'%s' is not in: %s", text, host->last_error);
  }
  lpx_safetensors_close(file);
  assert_int_equal(host->n_live, 0);
}

static void write_example(test_host *host) {
  const float a[6] = {1, 2, 3, 4, 5, 6};
  const uint16_t b[3] = {0x3c00, 0x4000, 0xffff};
  const int32_t c[2] = {-1, 7};
  lpx_st_writer *writer;
  assert_int_equal(lpx_st_writer_create(&host->host, PATH, &writer), LAPROX_OK);
  assert_int_equal(lpx_st_writer_metadata(writer, "scale", "0.125"), LAPROX_OK);
  assert_int_equal(lpx_st_writer_declare(writer, "z.a", LPX_ST_F32, 2, (uint64_t[]){2, 3}), LAPROX_OK);
  assert_int_equal(lpx_st_writer_declare(writer, "none", LPX_ST_F16, 2, (uint64_t[]){0, 64}), LAPROX_OK);
  assert_int_equal(lpx_st_writer_declare(writer, "b", LPX_ST_BF16, 1, (uint64_t[]){3}), LAPROX_OK);
  assert_int_equal(lpx_st_writer_declare(writer, "c", LPX_ST_I32, 1, (uint64_t[]){2}), LAPROX_OK);
  assert_int_equal(lpx_st_writer_write(writer, a, 10), LAPROX_OK);
  assert_int_equal(lpx_st_writer_write(writer, (const char *)a + 10, 14), LAPROX_OK);
  assert_int_equal(lpx_st_writer_write(writer, b, sizeof b), LAPROX_OK);
  assert_int_equal(lpx_st_writer_write(writer, c, sizeof c), LAPROX_OK);
  assert_int_equal(lpx_st_writer_commit(writer), LAPROX_OK);
  lpx_st_writer_destroy(writer);
  assert_int_equal(host->n_errors, 0);
  assert_int_equal(host->n_live, 0);
}

static void what_is_written_is_read(void **state) {
  (void)state;
  test_host host;
  lpx_safetensors *file;
  const lpx_st_tensor *tensor;
  float a[6];
  uint16_t b[3];
  int32_t c[2];
  test_host_init(&host);
  write_example(&host);
  assert_int_equal(lpx_safetensors_open(&host.host, PATH, &file), LAPROX_OK);
  assert_string_equal(lpx_safetensors_path(file), PATH);
  assert_int_equal(lpx_safetensors_count(file), 4);
  assert_string_equal(lpx_safetensors_tensor(file, 0)->name, "b");
  assert_string_equal(lpx_safetensors_tensor(file, 3)->name, "z.a");
  assert_null(lpx_safetensors_tensor(file, 4));
  assert_string_equal(lpx_safetensors_metadata(file, "scale"), "0.125");
  assert_null(lpx_safetensors_metadata(file, "scales"));

  assert_int_equal(lpx_safetensors_get(file, "z.a", &tensor), LAPROX_OK);
  assert_int_equal(tensor->dtype, LPX_ST_F32);
  assert_int_equal(tensor->n_dims, 2);
  assert_int_equal(tensor->dims[0], 2);
  assert_int_equal(tensor->dims[1], 3);
  assert_int_equal(tensor->n_elements, 6);
  assert_int_equal(tensor->offset % 8, 0);
  assert_int_equal(lpx_safetensors_read_all(file, tensor, a), LAPROX_OK);
  for (int i = 0; i < 6; i++) assert_true(a[i] == (float)(i + 1));
  assert_int_equal(lpx_safetensors_read(file, tensor, 8, 4, a), LAPROX_OK);
  assert_true(a[0] == 3.0f && a[1] == 2.0f);
  assert_int_equal(lpx_safetensors_read(file, tensor, 21, 4, a), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(lpx_safetensors_read(file, tensor, UINT64_MAX, 4, a), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(host.n_errors, 2);

  assert_int_equal(lpx_safetensors_get(file, "b", &tensor), LAPROX_OK);
  assert_int_equal(lpx_safetensors_read_all(file, tensor, b), LAPROX_OK);
  assert_int_equal(b[2], 0xffff);
  assert_int_equal(lpx_safetensors_get(file, "c", &tensor), LAPROX_OK);
  assert_int_equal(lpx_safetensors_read_all(file, tensor, c), LAPROX_OK);
  assert_int_equal(c[0], -1);
  assert_int_equal(lpx_safetensors_get(file, "none", &tensor), LAPROX_OK);
  assert_int_equal(tensor->bytes, 0);

  assert_int_equal(lpx_safetensors_get(file, "d", &tensor), LAPROX_ERROR_FORMAT);
  assert_null(tensor);
  assert_non_null(strstr(host.last_error, "'d'"));
  assert_null(lpx_safetensors_find(file, "d"));
  assert_int_equal(host.n_errors, 3);
  lpx_safetensors_close(file);
  assert_int_equal(host.n_live, 0);
}

static void equal_calls_give_equal_bytes(void **state) {
  (void)state;
  test_host host;
  size_t n_first, n_second;
  test_host_init(&host);
  write_example(&host);
  void *first = read_file(PATH, &n_first);
  write_example(&host);
  void *second = read_file(PATH, &n_second);
  assert_int_equal(n_first, n_second);
  assert_memory_equal(first, second, n_first);
  free(first);
  free(second);
  assert_false(exists(TEMPORARY));
}

static void damaged_headers(void **state) {
  (void)state;
  static const struct {
    const char *header;
    size_t n_data;
    laprox_result expected;
    const char *text;
  } cases[] = {
      {"{}", 0, LAPROX_OK, ""},
      {"{}     ", 0, LAPROX_OK, ""},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, LAPROX_OK, ""},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"more\":1}}", 8, LAPROX_OK, ""},
      {"{\"a\":{\"dtype\":\"XYZ\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, LAPROX_OK, ""},
      {"", 0, LAPROX_ERROR_FORMAT, "header"},
      {"{", 0, LAPROX_ERROR_FORMAT, "header"},
      {"[]", 0, LAPROX_ERROR_FORMAT, "object"},
      {"{} {}", 0, LAPROX_ERROR_FORMAT, "header"},
      {"{}", 1, LAPROX_ERROR_FORMAT, "bytes"},
      {"{\"a\":5}", 0, LAPROX_ERROR_FORMAT, "'a'"},
      {"{\"a\":{}}", 0, LAPROX_ERROR_FORMAT, "'shape'"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, LAPROX_ERROR_FORMAT, "data_offsets"},
      {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, LAPROX_ERROR_FORMAT, "dtype"},
      {"{\"a\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, LAPROX_ERROR_FORMAT, "dtype"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4, LAPROX_ERROR_FORMAT,
       "data_offsets"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]}}", 4, LAPROX_ERROR_FORMAT,
       "data_offsets"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, LAPROX_ERROR_FORMAT, "4 to 0"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, LAPROX_ERROR_FORMAT,
       "data_offsets"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3, LAPROX_ERROR_FORMAT, "0 to 4"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, LAPROX_ERROR_FORMAT, "end at"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]}}", 5, LAPROX_ERROR_FORMAT,
       "begins at 1"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, LAPROX_ERROR_FORMAT,
       "2 elements"},
      {"{\"a\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, LAPROX_ERROR_FORMAT, "F16"},
      {"{\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, LAPROX_ERROR_FORMAT, "I64"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, LAPROX_ERROR_FORMAT,
       "dimension"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4, LAPROX_ERROR_FORMAT,
       "dimension"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, LAPROX_ERROR_FORMAT, "'shape'"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
       LAPROX_ERROR_UNSUPPORTED, "9 dimensions"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 4,
       LAPROX_ERROR_FORMAT, "64 bits"},
      /* times 4 it would be 4 again */
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,4]}}", 4,
       LAPROX_ERROR_FORMAT, "elements"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,99999999999999999999]}}", 4,
       LAPROX_ERROR_FORMAT, "header"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"F32\",\"shape\":["
       "1],"
       "\"data_offsets\":[4,8]}}",
       8, LAPROX_ERROR_FORMAT, "header"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":["
       "1],"
       "\"data_offsets\":[2,6]}}",
       6, LAPROX_ERROR_FORMAT, "'b'"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":["
       "1],"
       "\"data_offsets\":[0,4]}}",
       4, LAPROX_ERROR_FORMAT, "begins at 0"},
      {"{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]},\"a\":{\"dtype\":\"F32\",\"shape\":["
       "1],"
       "\"data_offsets\":[0,4]}}",
       12, LAPROX_ERROR_FORMAT, "'b'"},
      {"{\"__metadata__\":5}", 0, LAPROX_ERROR_FORMAT, "__metadata__"},
      {"{\"__metadata__\":{\"scale\":0.5}}", 0, LAPROX_ERROR_FORMAT, "'scale'"},
      {"{\"a\xff\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, LAPROX_ERROR_FORMAT,
       "header"},
      {"{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, LAPROX_ERROR_FORMAT,
       "header"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    test_host host;
    test_host_init(&host);
    write_st(cases[i].header, cases[i].n_data);
    expect_open(&host, cases[i].expected, cases[i].text);
  }
}

static void absurd_header_lengths(void **state) {
  (void)state;
  const uint64_t lengths[] = {3, 100, 16u << 20, (16u << 20) + 1, INT64_MAX, UINT64_MAX, UINT64_MAX - 7};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    test_host host;
    test_bytes bytes = {.n = 0};
    test_host_init(&host);
    put_number(&bytes, lengths[i], 8);
    put(&bytes, "{}", 2);
    write_file(PATH, bytes.data, bytes.n);
    expect_open(&host, LAPROX_ERROR_FORMAT, "header");
  }
}

static void unknown_types_fail_when_used(void **state) {
  (void)state;
  test_host host;
  lpx_safetensors *file;
  const lpx_st_tensor *tensor;
  test_host_init(&host);
  write_st("{\"a\":{\"dtype\":\"F8_E4M3_OF_A_LONG_KIND\",\"shape\":[2],\"data_offsets\":[0,3]},"
           "\"b\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[3,4]}}",
           4);
  assert_int_equal(lpx_safetensors_open(&host.host, PATH, &file), LAPROX_OK);
  assert_non_null(lpx_safetensors_find(file, "a"));
  assert_int_equal(lpx_safetensors_get(file, "a", &tensor), LAPROX_ERROR_UNSUPPORTED);
  assert_non_null(strstr(host.last_error, "F8_E4M3_OF_A_LO"));
  assert_int_equal(lpx_safetensors_get(file, "b", &tensor), LAPROX_ERROR_UNSUPPORTED);
  assert_int_equal(host.n_errors, 2);
  lpx_safetensors_close(file);
}

/* Every beginning of a good file is a bad file. */
static void truncated_anywhere(void **state) {
  (void)state;
  test_host host;
  size_t n;
  test_host_init(&host);
  write_example(&host);
  uint8_t *bytes = read_file(PATH, &n);
  for (size_t i = 0; i < n; i++) {
    test_host_init(&host);
    write_file(PATH, bytes, i);
    expect_open(&host, LAPROX_ERROR_FORMAT, "");
  }
  free(bytes);
}

/* One wrong byte anywhere: read or refused with one message, under the sanitizers without a fault. */
static void any_byte_changed(void **state) {
  (void)state;
  static const uint8_t changes[] = {0x01, 0x80, 0xff};
  test_host host;
  size_t n, n_refused = 0;
  test_host_init(&host);
  write_example(&host);
  uint8_t *bytes = read_file(PATH, &n);
  for (size_t i = 0; i < n * sizeof changes; i++) {
    lpx_safetensors *file;
    test_host_init(&host);
    bytes[i / sizeof changes] ^= changes[i % sizeof changes];
    write_file(PATH, bytes, n);
    bytes[i / sizeof changes] ^= changes[i % sizeof changes];
    laprox_result result = lpx_safetensors_open(&host.host, PATH, &file);
    assert_int_equal(host.n_errors, result == LAPROX_OK ? 0 : 1);
    n_refused += result != LAPROX_OK;
    lpx_safetensors_close(file);
    assert_int_equal(host.n_live, 0);
  }
  assert_true(n_refused > 300);
  free(bytes);
}

static void memory_that_runs_out(void **state) {
  (void)state;
  test_host host;
  test_host_init(&host);
  write_example(&host);
  laprox_result result = LAPROX_ERROR_OUT_OF_MEMORY;
  unsigned n_failures = 0;
  for (; result != LAPROX_OK; n_failures++) {
    lpx_safetensors *file;
    test_host_init(&host);
    host.fail_at = n_failures + 1;
    result = lpx_safetensors_open(&host.host, PATH, &file);
    if (result != LAPROX_OK) assert_int_equal(result, LAPROX_ERROR_OUT_OF_MEMORY);
    assert_int_equal(host.n_errors, result == LAPROX_OK ? 0 : 1);
    lpx_safetensors_close(file);
    assert_int_equal(host.n_live, 0);
  }
  assert_true(n_failures > 3);
  for (unsigned i = 1; i <= 3; i++) {
    lpx_st_writer *writer;
    test_host_init(&host);
    host.fail_at = i;
    assert_int_equal(lpx_st_writer_create(&host.host, PATH, &writer), LAPROX_ERROR_OUT_OF_MEMORY);
    assert_null(writer);
    assert_int_equal(host.n_errors, 1);
    assert_int_equal(host.n_live, 0);
    assert_false(exists(TEMPORARY));
  }
}

static void files_that_cannot_be_read(void **state) {
  (void)state;
  test_host host;
  lpx_safetensors *file;
  test_host_init(&host);
  assert_int_equal(lpx_safetensors_open(&host.host, "no-such-file", &file), LAPROX_ERROR_FILE);
  assert_non_null(strstr(host.last_error, "no-such-file"));
  assert_non_null(strstr(host.last_error, strerror(ENOENT)));
  assert_int_equal(lpx_safetensors_open(&host.host, ".", &file), LAPROX_ERROR_FILE);
  assert_int_equal(host.n_errors, 2);
  assert_null(file);
  assert_int_equal(host.n_live, 0);
}

static void places_that_cannot_be_written(void **state) {
  (void)state;
#ifdef _WIN32 /* no device has such a name there, and under Wine the file would be the machine's own */
  static const char *const paths[] = {"no-such-folder/a.safetensors", ".", ""};
#else
  static const char *const paths[] = {"no-such-folder/a.safetensors", ".", "/dev/null", ""};
#endif
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
    test_host host;
    lpx_st_writer *writer;
    test_host_init(&host);
    laprox_result result = lpx_st_writer_create(&host.host, paths[i], &writer);
    assert_int_equal(result, LAPROX_ERROR_FILE);
    assert_int_equal(host.n_errors, 1);
    assert_non_null(strstr(host.last_error, paths[i]));
    assert_null(writer);
    assert_int_equal(host.n_live, 0);
  }
}

static lpx_st_writer *begin(test_host *host) {
  lpx_st_writer *writer;
  test_host_init(host);
  assert_int_equal(lpx_st_writer_create(&host->host, PATH, &writer), LAPROX_OK);
  assert_int_equal(lpx_st_writer_declare(writer, "a", LPX_ST_F32, 1, (uint64_t[]){2}), LAPROX_OK);
  return writer;
}

/* Ends a writer that must not have succeeded: the old file stands, the temporary one is gone. */
static void end(test_host *host, lpx_st_writer *writer) {
  unsigned n_errors = host->n_errors;
  assert_int_not_equal(lpx_st_writer_commit(writer), LAPROX_OK);
  assert_int_equal(host->n_errors, n_errors + 1);
  lpx_st_writer_destroy(writer);
  assert_int_equal(host->n_live, 0);
  assert_false(exists(TEMPORARY));
  size_t n;
  char *old = read_file(PATH, &n);
  assert_int_equal(n, 3);
  assert_memory_equal(old, "old", 3);
  free(old);
}

static void misused_writers_leave_the_old_file(void **state) {
  (void)state;
  const uint8_t data[16] = {0};
  test_host host;
  write_file(PATH, "old", 3);

  lpx_st_writer *writer = begin(&host);
  end(&host, writer); /* no data at all */

  writer = begin(&host);
  assert_int_equal(lpx_st_writer_write(writer, data, 7), LAPROX_OK);
  end(&host, writer); /* too little */

  writer = begin(&host);
  assert_int_equal(lpx_st_writer_write(writer, data, 9), LAPROX_ERROR_INVALID_ARGUMENT);
  end(&host, writer);

  writer = begin(&host);
  assert_int_equal(lpx_st_writer_declare(writer, "a", LPX_ST_F32, 0, NULL), LAPROX_ERROR_INVALID_ARGUMENT);
  end(&host, writer);

  writer = begin(&host);
  assert_int_equal(lpx_st_writer_declare(writer, "__metadata__", LPX_ST_F32, 0, NULL),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  end(&host, writer);

  writer = begin(&host);
  assert_int_equal(lpx_st_writer_declare(writer, "b", LPX_ST_UNKNOWN, 0, NULL),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  end(&host, writer);

  writer = begin(&host);
  assert_int_equal(lpx_st_writer_declare(writer, "b", LPX_ST_F32, 2, (uint64_t[]){1ull << 40, 1ull << 40}),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  end(&host, writer);

  writer = begin(&host);
  assert_int_equal(lpx_st_writer_declare(writer, "b", LPX_ST_F32, 1, (uint64_t[]){1ull << 61}),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  end(&host, writer);

  writer = begin(&host);
  assert_int_equal(lpx_st_writer_declare(writer, "b\xff", LPX_ST_F32, 0, NULL),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  end(&host, writer);

  writer = begin(&host);
  assert_int_equal(lpx_st_writer_write(writer, data, 8), LAPROX_OK);
  assert_int_equal(lpx_st_writer_declare(writer, "b", LPX_ST_F32, 0, NULL), LAPROX_ERROR_INVALID_ARGUMENT);
  end(&host, writer);

  writer = begin(&host);
  assert_int_equal(lpx_st_writer_metadata(writer, "k", "1"), LAPROX_OK);
  assert_int_equal(lpx_st_writer_metadata(writer, "k", "2"), LAPROX_ERROR_INVALID_ARGUMENT);
  end(&host, writer);
}

/* A temporary file that an interrupted program left is neither used nor removed. */
static void a_stale_temporary_file_is_left_alone(void **state) {
  (void)state;
  test_host host;
  test_host_init(&host);
  write_file(TEMPORARY, "x", 1);
  write_example(&host);
  assert_true(exists(TEMPORARY));
  assert_false(exists(PATH ".tmp-001"));
  remove(TEMPORARY);
  test_host_init(&host);
  expect_open(&host, LAPROX_OK, "");
}

static void an_empty_file_is_complete(void **state) {
  (void)state;
  test_host host;
  lpx_st_writer *writer;
  test_host_init(&host);
  assert_int_equal(lpx_st_writer_create(&host.host, PATH, &writer), LAPROX_OK);
  assert_int_equal(lpx_st_writer_commit(writer), LAPROX_OK);
  assert_int_equal(lpx_st_writer_commit(writer), LAPROX_ERROR_INVALID_ARGUMENT);
  lpx_st_writer_destroy(writer);
  test_host_init(&host);
  expect_open(&host, LAPROX_OK, "");
}

static int clean_up(void **state) {
  (void)state;
  remove(PATH);
  remove(TEMPORARY);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_is_written_is_read),
      cmocka_unit_test(equal_calls_give_equal_bytes),
      cmocka_unit_test(damaged_headers),
      cmocka_unit_test(absurd_header_lengths),
      cmocka_unit_test(unknown_types_fail_when_used),
      cmocka_unit_test(truncated_anywhere),
      cmocka_unit_test(any_byte_changed),
      cmocka_unit_test(memory_that_runs_out),
      cmocka_unit_test(files_that_cannot_be_read),
      cmocka_unit_test(places_that_cannot_be_written),
      cmocka_unit_test(misused_writers_leave_the_old_file),
      cmocka_unit_test(a_stale_temporary_file_is_left_alone),
      cmocka_unit_test(an_empty_file_is_complete),
  };
  return cmocka_run_group_tests(tests, clean_up, clean_up);
}
