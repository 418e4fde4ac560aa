/* text_buffer.c: text that grows. */
#include "text_buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool make_room(text_buffer *to, size_t n) {
  if (to->n + n + 1 <= to->room) return true;
  const size_t room = 2 * (to->n + n + 1);
  char *larger = realloc(to->bytes, room);
  if (!larger) return false;
  to->bytes = larger;
  to->room = room;
  return true;
}

void text_add(text_buffer *to, const char *bytes, size_t n) {
  to->failed = to->failed || !make_room(to, n);
  if (to->failed) return;
  if (n) memcpy(to->bytes + to->n, bytes, n);
  to->n += n;
  to->bytes[to->n] = 0;
}

void text_addf(text_buffer *to, const char *format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  const int n = vsnprintf(NULL, 0, format, arguments);
  to->failed = to->failed || n < 0 || !make_room(to, (size_t)n);
  if (!to->failed) {
    vsnprintf(to->bytes + to->n, (size_t)n + 1, format, again);
    to->n += (size_t)n;
  }
  va_end(again);
  va_end(arguments);
}

void text_clear(text_buffer *to) {
  to->n = 0;
  if (to->bytes) to->bytes[0] = 0;
}

void text_finish(text_buffer *to) {
  free(to->bytes);
  *to = (text_buffer){0};
}
