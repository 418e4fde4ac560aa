/* host.h: a laprox_host that counts messages and memory, and fails an allocation on request. */
#ifndef TESTS_SUPPORT_HOST_H
#define TESTS_SUPPORT_HOST_H

#include "laprox/laprox.h"

typedef struct test_host {
  laprox_host host; /* its user pointers point into this struct: do not copy it */
  unsigned n_errors, n_warnings;
  char last_error[512];
  long n_live;          /* allocations not released */
  unsigned n_allocated; /* allocations so far, reallocations included */
  unsigned fail_at;     /* the allocation, counted from 1, that returns NULL; 0 = none */
} test_host;

void test_host_init(test_host *host);

#endif
