/* failing.h: one call or allocation that fails, and what the library must make of it. */
#ifndef TESTS_FAILING_H
#define TESTS_FAILING_H

#include "shim/shim.h"
#include "support/host.h"

typedef enum failing_source { FAIL_VULKAN, FAIL_MEMORY } failing_source;

/* Lets call or allocation n, counted from now, fail; 0 = none. A call fails in one of the ways that it has, which leave
 * the device alive: shim.n_choices of them. */
void failing_arm(test_host *host, failing_source from, unsigned n, unsigned choice);
/* Call n of those that may find the device lost does so. */
void failing_arm_loss(test_host *host, unsigned n);
/* Whether the failure has happened. */
bool failing_has_struck(const test_host *host, failing_source from);
/* Fails the test unless `result` and the messages are what the failure must come to. True where the call
 * failed; false where it did not have to: names and times of objects are worth nothing to those who can't
 * have them. */
bool failing_check(const test_host *host, failing_source from, unsigned n, laprox_result result);
/* No Vulkan object, no device memory, no host memory. */
void failing_expect_nothing_left(const test_host *host);

#endif
