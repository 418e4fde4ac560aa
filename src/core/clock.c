/* clock.c: wall time for reports. */
#ifndef _WIN32
#define _POSIX_C_SOURCE 200809L
#endif
#include "core/core.h"

#include <time.h>

uint64_t lpx_now_ns(void) {
  struct timespec now;
  if (clock_gettime(CLOCK_MONOTONIC, &now)) return 0;
  return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}
