/* text_buffer.h: text that grows. */
#ifndef TOOLS_TEXT_BUFFER_H
#define TOOLS_TEXT_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

/* Zeroed: empty. */
typedef struct text_buffer {
  char *bytes; /* zero-terminated once anything was added */
  size_t n, room;
  bool failed; /* out of memory; everything later is ignored */
} text_buffer;

void text_add(text_buffer *to, const char *bytes, size_t n);
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
void text_addf(text_buffer *to, const char *format, ...);
void text_clear(text_buffer *to);
void text_finish(text_buffer *to);

#endif
