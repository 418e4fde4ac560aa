#include "support/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void put(test_bytes *bytes, const void *data, size_t n) {
  assert_true(n <= sizeof bytes->data - bytes->n);
  memcpy(bytes->data + bytes->n, data, n);
  bytes->n += n;
}

void put_number(test_bytes *bytes, uint64_t number, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint8_t byte = (uint8_t)(number >> 8 * i);
    put(bytes, &byte, 1);
  }
}

void put_string(test_bytes *bytes, const char *text) {
  put_number(bytes, strlen(text), 8);
  put(bytes, text, strlen(text));
}

void put_padding(test_bytes *bytes, size_t n) {
  while (bytes->n % n != 0) put_number(bytes, 0, 1);
}

void write_file(const char *path, const void *data, size_t n) {
  FILE *stream = fopen(path, "wb");
  assert_non_null(stream);
  assert_int_equal(fwrite(data, 1, n, stream), n);
  assert_int_equal(fclose(stream), 0);
}

void *read_file(const char *path, size_t *n) {
  FILE *stream = fopen(path, "rb");
  assert_non_null(stream);
  assert_int_equal(fseek(stream, 0, SEEK_END), 0);
  *n = (size_t)ftell(stream);
  rewind(stream);
  void *data = malloc(*n + 1);
  assert_non_null(data);
  assert_int_equal(fread(data, 1, *n, stream), *n);
  fclose(stream);
  return data;
}
