#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "shim/failing.h"

#include <cmocka.h>

void failing_arm(test_host *host, failing_source from, unsigned n, unsigned choice) {
  shim_reset();
  host->n_allocated = host->n_errors = host->n_warnings = host->fail_at = 0;
  host->last_error[0] = 0;
  if (from == FAIL_MEMORY) {
    host->fail_at = n;
  } else {
    shim.fail_at = n;
    shim.fail_choice = choice;
  }
}

void failing_arm_loss(test_host *host, unsigned n) {
  failing_arm(host, FAIL_VULKAN, n, 0);
  shim.lose = true;
}

bool failing_has_struck(const test_host *host, failing_source from) {
  return from == FAIL_VULKAN ? shim.failed != NULL : host->fail_at && host->n_allocated >= host->fail_at;
}

static laprox_result expected_result(VkResult injected) {
  switch (injected) {
  case VK_ERROR_OUT_OF_HOST_MEMORY:
    return LAPROX_ERROR_OUT_OF_MEMORY;
  case VK_ERROR_OUT_OF_DEVICE_MEMORY:
  case VK_ERROR_FRAGMENTED_POOL:
  case VK_ERROR_OUT_OF_POOL_MEMORY:
  case VK_ERROR_TOO_MANY_OBJECTS:
  case VK_ERROR_FRAGMENTATION:
    return LAPROX_ERROR_OUT_OF_DEVICE_MEMORY;
  case VK_ERROR_DEVICE_LOST:
    return LAPROX_ERROR_DEVICE_LOST;
  default:
    return LAPROX_ERROR_VULKAN;
  }
}

/* Names, times, extensions and kept pipelines are worth nothing to those who can't have them. */
static bool may_be_ignored(const char *name) {
  static const char *const names[] = {"vkSetDebugUtilsObjectNameEXT", "vkGetQueryPoolResults",
                                      "vkEnumerateDeviceExtensionProperties", "vkCreatePipelineCache",
                                      "vkGetPipelineCacheData"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(name, names[i])) return true;
  return false;
}

/* In the self-test, a failure that doesn't come from want of memory speaks against the kernel that is tried: a variant is
 * given up with a warning, and without the baseline the device is of no use. */
static laprox_result by_self_test(const test_host *host, laprox_result result, laprox_result expected) {
  if (expected != LAPROX_ERROR_VULKAN) return expected;
  const bool failed = !strncmp(host->last_error, "self-test of ", 13);
  const bool fits =
      result == LAPROX_ERROR_UNSUPPORTED ? failed : !result && host->n_warnings && !host->n_errors;
  return fits ? result : expected;
}

bool failing_check(const test_host *host, failing_source from, unsigned n, laprox_result result) {
  laprox_result expected = LAPROX_OK;
  if (from == FAIL_VULKAN && shim.failed && !may_be_ignored(shim.failed))
    expected = by_self_test(host, result, expected_result(shim.failed_with));
  if (from == FAIL_MEMORY && failing_has_struck(host, from)) expected = LAPROX_ERROR_OUT_OF_MEMORY;
  if (result != expected || host->n_errors != (expected ? 1u : 0u))
    fail_msg("failure %u (%s: %d): result %d instead of %d, %u messages, \"%s\"", n,
             shim.failed ? shim.failed : "memory", shim.failed_with, result, expected, host->n_errors,
             host->last_error);
  return result != LAPROX_OK;
}

void failing_expect_nothing_left(const test_host *host) {
  assert_int_equal(shim.n_live, 0);
  assert_int_equal(shim.live_bytes, 0);
  assert_int_equal(host->n_live, 0);
}
