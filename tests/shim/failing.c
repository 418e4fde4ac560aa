#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "shim/failing.h"

#include <cmocka.h>

void failing_arm(test_host *host, failing_source from, unsigned n, VkResult with) {
  shim_reset();
  host->n_allocated = host->n_errors = host->fail_at = 0;
  host->last_error[0] = 0;
  if (from == FAIL_MEMORY) {
    host->fail_at = n;
  } else {
    shim.fail_at = n;
    shim.fail_with = with;
  }
}

VkResult failing_error(unsigned n) {
  static const VkResult errors[] = {VK_ERROR_OUT_OF_HOST_MEMORY, VK_ERROR_OUT_OF_DEVICE_MEMORY,
                                    VK_ERROR_FRAGMENTED_POOL, VK_ERROR_OUT_OF_POOL_MEMORY,
                                    VK_ERROR_MEMORY_MAP_FAILED};
  return errors[n % (sizeof errors / sizeof *errors)];
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
    return LAPROX_ERROR_OUT_OF_DEVICE_MEMORY;
  case VK_ERROR_DEVICE_LOST:
    return LAPROX_ERROR_DEVICE_LOST;
  default:
    return LAPROX_ERROR_VULKAN;
  }
}

static bool may_be_ignored(const char *name) {
  return !strcmp(name, "vkSetDebugUtilsObjectNameEXT") || !strcmp(name, "vkGetQueryPoolResults");
}

bool failing_check(const test_host *host, failing_source from, unsigned n, laprox_result result) {
  laprox_result expected = LAPROX_OK;
  if (from == FAIL_VULKAN && shim.failed && !may_be_ignored(shim.failed))
    expected = expected_result(shim.failed_with);
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
