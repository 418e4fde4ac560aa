/* clock.c: wall time for reports. */
#ifndef _WIN32
#define _POSIX_C_SOURCE 200809L
#endif
#include "core/core.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <time.h>
#endif

#define SECOND_NS UINT64_C(1000000000)

uint64_t lpx_now_ns(void) {
#ifdef _WIN32
  LARGE_INTEGER now, per_second;
  if (!QueryPerformanceCounter(&now) || !QueryPerformanceFrequency(&per_second)) return 0;
  const uint64_t ticks = (uint64_t)now.QuadPart, rate = (uint64_t)per_second.QuadPart;
  return ticks / rate * SECOND_NS + ticks % rate * SECOND_NS / rate;
#else
  struct timespec now;
  if (clock_gettime(CLOCK_MONOTONIC, &now)) return 0;
  return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
#endif
}
