/* result.c: names of results and element types, and the one way by which messages leave the library. */
#include "core/core.h"

#include <stdarg.h>
#include <stdio.h>

#define MESSAGE_BYTES 512

const char *laprox_result_string(laprox_result result) {
  switch (result) {
  case LAPROX_OK:
    return "ok";
  case LAPROX_ERROR_INVALID_ARGUMENT:
    return "invalid argument";
  case LAPROX_ERROR_OUT_OF_MEMORY:
    return "out of memory";
  case LAPROX_ERROR_OUT_OF_DEVICE_MEMORY:
    return "out of device memory";
  case LAPROX_ERROR_DEVICE_LOST:
    return "device lost";
  case LAPROX_ERROR_VULKAN:
    return "Vulkan call failed";
  case LAPROX_ERROR_UNSUPPORTED:
    return "not supported";
  case LAPROX_ERROR_NO_DEVICE:
    return "no usable device";
  case LAPROX_ERROR_FILE:
    return "file error";
  case LAPROX_ERROR_FORMAT:
    return "damaged or unexpected file content";
  case LAPROX_ERROR_CANCELLED:
    return "cancelled";
  }
  return "unknown result";
}

const char *laprox_dtype_name(laprox_dtype dtype) {
  switch (dtype) {
  case LAPROX_DTYPE_F32:
    return "F32";
  case LAPROX_DTYPE_F16:
    return "F16";
  case LAPROX_DTYPE_BF16:
    return "BF16";
  case LAPROX_DTYPE_Q8_0:
    return "Q8_0";
  case LAPROX_DTYPE_Q4_0:
    return "Q4_0";
  case LAPROX_DTYPE_AUTO:
    break;
  }
  return "?";
}

/* Bytes of the UTF-8 character at `text`, 0 where there is none. Overlong forms pass: nothing is decoded
 * here. */
static size_t character_bytes(const unsigned char *text) {
  size_t n = text[0] < 0x80   ? 1
             : text[0] < 0xc2 ? 0
             : text[0] < 0xe0 ? 2
             : text[0] < 0xf0 ? 3
             : text[0] < 0xf5 ? 4
                              : 0;
  for (size_t i = 1; i < n; i++) {
    if ((text[i] & 0xc0) != 0x80) return 0;
  }
  return n;
}

/* Messages quote names from files and arguments: whatever those hold, one line of UTF-8 arrives. */
static void clean_line(char *line) {
  unsigned char *at = (unsigned char *)line;
  while (*at) {
    size_t n = character_bytes(at);
    if (n == 0 || *at < 0x20 || *at == 0x7f) {
      *at++ = '?';
    } else {
      at += n;
    }
  }
}

LPX_PRINTF(3, 0)
static void emit(const laprox_host *host, laprox_message_level level, const char *format, va_list arguments) {
  char line[MESSAGE_BYTES];
  if (!host || !host->message) return;
  if (vsnprintf(line, sizeof line, format, arguments) < 0) line[0] = '\0';
  clean_line(line);
  host->message(host->message_user, level, line);
}

laprox_result lpx_fail(const laprox_host *host, laprox_result result, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  emit(host, LAPROX_MESSAGE_ERROR, format, arguments);
  va_end(arguments);
  return result;
}

void lpx_warn(const laprox_host *host, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  emit(host, LAPROX_MESSAGE_WARNING, format, arguments);
  va_end(arguments);
}
