/* values.c: strict numbers, and the one line that says what went wrong. */
#include "options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- messages ---- */

static int print_line(int status, const char *format, va_list arguments) {
  char line[1024];
  vsnprintf(line, sizeof line, format, arguments);
  for (char *c = line; *c; c++)
    if ((unsigned char)*c < 32 || *c == 127) *c = '?';
  fprintf(stderr, "laprox: %s\n", line);
  return status;
}

int fail_usage(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int status = print_line(EXIT_USAGE, format, arguments);
  va_end(arguments);
  return status;
}

int fail_impossible(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int status = print_line(EXIT_IMPOSSIBLE, format, arguments);
  va_end(arguments);
  return status;
}

/* ---- values ---- */

bool parse_number(const char *text, uint64_t most, uint64_t *out) {
  uint64_t value = 0;
  if (!*text) return false;
  for (const char *c = text; *c; c++) {
    if (*c < '0' || *c > '9') return false;
    uint64_t digit = (uint64_t)(*c - '0');
    if (digit > most || value > (most - digit) / 10) return false;
    value = value * 10 + digit;
  }
  *out = value;
  return true;
}

bool parse_decimal(const char *text, double most, double *out) {
  char *end = NULL;
  /* strtod alone would take "nan", "0x10", " 1" and "-1". */
  if (!*text || *text == '+' || *text == '-' || strspn(text, "0123456789.eE+-") != strlen(text)) return false;
  errno = 0;
  double value = strtod(text, &end);
  if (*end || end == text || !(value >= 0 && value <= most)) return false;
  *out = value;
  return true;
}
