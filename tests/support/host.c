#include "support/host.h"

#include <stdio.h>
#include <stdlib.h>

static bool may_allocate(test_host *host) {
  return ++host->n_allocated != host->fail_at;
}

static void *allocate(void *user, size_t size) {
  test_host *host = user;
  void *pointer = may_allocate(host) ? malloc(size) : NULL;
  host->n_live += pointer != NULL;
  return pointer;
}

static void *reallocate(void *user, void *pointer, size_t size) {
  test_host *host = user;
  void *grown = may_allocate(host) ? realloc(pointer, size) : NULL;
  host->n_live += grown && !pointer;
  return grown;
}

static void release(void *user, void *pointer) {
  test_host *host = user;
  host->n_live -= pointer != NULL;
  free(pointer);
}

static void message(void *user, laprox_message_level level, const char *text) {
  test_host *host = user;
  if (level == LAPROX_MESSAGE_ERROR) {
    host->n_errors++;
    snprintf(host->last_error, sizeof host->last_error, "%s", text);
  } else if (level == LAPROX_MESSAGE_WARNING) {
    host->n_warnings++;
  }
}

void test_host_init(test_host *host) {
  *host = (test_host){
      .host = {
          .allocator = {.user = host, .allocate = allocate, .reallocate = reallocate, .release = release},
          .message = message,
          .message_user = host}};
}
