/* values.c: strict numbers, and the one line that says what went wrong. */
#include "options.h"

#include <errno.h>
#include <float.h>
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

int need_budget(const char *text, laprox_budget *out) {
  size_t n = strlen(text);
  char share[32];
  double percent = 0;
  uint64_t tokens = 0;
  *out = (laprox_budget){0};
  if (n > 0 && n < sizeof share && text[n - 1] == '%') {
    memcpy(share, text, n - 1);
    share[n - 1] = 0;
    if (parse_decimal(share, 100, &percent)) {
      /* 0 % is the least budget there is, while a share of 0 would mean "none given". */
      out->share = percent > 0 ? percent / 100 : DBL_MIN;
      return EXIT_DONE;
    }
  } else if (parse_number(text, UINT32_MAX - 1, &tokens) && tokens > 0) {
    out->tokens = (uint32_t)tokens;
    return EXIT_DONE;
  }
  return fail_usage("--budget: \"%s\" is neither a share such as 5%% nor a number of tokens such as 512",
                    text);
}

int need_pool(const char *text, laprox_policy *out) {
  const char *width = text;
  uint64_t value = 0;
  laprox_pool pool = LAPROX_POOL_AVERAGE;
  if (strncmp(text, "avg:", 4) == 0) width = text + 4;
  if (strncmp(text, "max:", 4) == 0) {
    width = text + 4;
    pool = LAPROX_POOL_MAX;
  }
  if (!parse_number(width, 31, &value) || value % 2 == 0)
    return fail_usage("--pool: \"%s\" is not 7, avg:7, max:7 or 1 (an odd width up to 31)", text);
  out->pool = pool;
  out->pool_width = (uint32_t)value;
  return EXIT_DONE;
}

int need_variants(const char *where, const char *text, uint32_t *out) {
  if (laprox_variants_parse(text, out)) return EXIT_DONE;
  return fail_usage("%s: \"%s\" is not a list of large_tiles, subgroup, storage16, matrix, all, baseline",
                    where, text);
}
