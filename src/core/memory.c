/* memory.c: host memory through the caller's allocator, and size arithmetic that notices overflow. */
#include "core/core.h"

#include <stdlib.h>
#include <string.h>

static void *standard_allocate(void *user, size_t size) {
  (void)user;
  return malloc(size);
}

static void *standard_reallocate(void *user, void *pointer, size_t size) {
  (void)user;
  return realloc(pointer, size);
}

static void standard_release(void *user, void *pointer) {
  (void)user;
  free(pointer);
}

static const laprox_allocator standard_allocator = {
    .allocate = standard_allocate,
    .reallocate = standard_reallocate,
    .release = standard_release,
};

static const laprox_allocator *allocator_of(const laprox_host *host) {
  if (host && host->allocator.allocate && host->allocator.reallocate && host->allocator.release) {
    return &host->allocator;
  }
  return &standard_allocator;
}

laprox_host lpx_host_complete(const laprox_host *from) {
  laprox_host host = {0};
  if (from) host = *from;
  host.allocator = *allocator_of(from);
  return host;
}

bool lpx_multiply(size_t a, size_t b, size_t *out) {
  if (b != 0 && a > SIZE_MAX / b) return false;
  *out = a * b;
  return true;
}

bool lpx_add(size_t a, size_t b, size_t *out) {
  if (a > SIZE_MAX - b) return false;
  *out = a + b;
  return true;
}

void *lpx_allocate(const laprox_host *host, uint64_t count, size_t size) {
  const laprox_allocator *allocator = allocator_of(host);
  size_t bytes;
  if (count > SIZE_MAX || !lpx_multiply((size_t)count, size, &bytes)) return NULL;
  if (bytes == 0) bytes = 1;
  /* calloc leaves large zeroed blocks untouched until they are used */
  if (allocator->allocate == standard_allocate) return calloc(1, bytes);
  void *pointer = allocator->allocate(allocator->user, bytes);
  if (pointer) memset(pointer, 0, bytes);
  return pointer;
}

void *lpx_reallocate(const laprox_host *host, void *pointer, uint64_t count, size_t size) {
  const laprox_allocator *allocator = allocator_of(host);
  size_t bytes;
  if (count > SIZE_MAX || !lpx_multiply((size_t)count, size, &bytes)) return NULL;
  return allocator->reallocate(allocator->user, pointer, bytes ? bytes : 1);
}

void lpx_release(const laprox_host *host, void *pointer) {
  const laprox_allocator *allocator = allocator_of(host);
  if (pointer) allocator->release(allocator->user, pointer);
}

laprox_result lpx_fail_memory(const laprox_host *host, const char *what) {
  return lpx_fail(host, LAPROX_ERROR_OUT_OF_MEMORY, "out of memory for %s", what);
}
