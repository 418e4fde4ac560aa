/* bytes.h: builds the bytes of small files by hand, damaged ones too. */
#ifndef TESTS_SUPPORT_BYTES_H
#define TESTS_SUPPORT_BYTES_H

#include <stddef.h>
#include <stdint.h>

typedef struct test_bytes {
  uint8_t data[8192];
  size_t n;
} test_bytes;

void put(test_bytes *bytes, const void *data, size_t n);
/* The n lowest bytes of a number, little-endian. */
void put_number(test_bytes *bytes, uint64_t number, size_t n);
/* A 64-bit length, then the text. */
void put_string(test_bytes *bytes, const char *text);
/* Zeros up to a multiple of n. */
void put_padding(test_bytes *bytes, size_t n);

void write_file(const char *path, const void *data, size_t n);
/* The whole file, to be freed. */
void *read_file(const char *path, size_t *n);

#endif
