/* shim.h: a Vulkan that lies. It stands between the library and the real vkGetInstanceProcAddr: counts what
 * is created and destroyed, makes one call fail, lowers limits to Vulkan's minimum and sees whether they are
 * kept to.
 *
 * One state for the whole program, because Vulkan's functions have no user pointer; for one thread, but for the
 * creation of pipelines. */
#ifndef TESTS_SHIM_H
#define TESTS_SHIM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <volk.h>

typedef struct shim_state {
  /* what to do */
  unsigned fail_at; /* the fallible call, counted from 1, that fails; 0 = none */
  /* with which of the n_choices results that the specification gives this function, a lost device apart; taken modulo
     their number */
  unsigned fail_choice;
  bool lose;              /* it says that the device is lost; only calls are counted that may find that */
  const char *hidden;     /* a function that this Vulkan doesn't have */
  bool small_limits;      /* Vulkan's guaranteed minimum */
  VkDeviceSize max_range; /* of a storage buffer binding; 0 = by the above */
  /* a compiler that takes SPIR-V instructions for another one with the same operands (0: for nothing at all),
     and one that refuses shaders that declare a capability; 0 = an honest one */
  uint32_t mistaken_ops[2], mistaken_for, refused_capability;
  /* another device: as it calls itself; vendor 0 = as it is */
  struct {
    uint32_t vendor, device, driver; /* VkDriverId */
    VkPhysicalDeviceType type;
  } alias;

  /* what has been seen */
  atomic_uint n_calls; /* fallible calls */
  const char *failed;  /* the function that was made to fail */
  VkResult failed_with;
  unsigned n_choices;
  atomic_long n_live;    /* objects and memory that were created and not destroyed */
  uint64_t live_bytes;   /* of device memory */
  unsigned n_violations; /* of the limits */
  char violation[160];   /* the first one */
  VkPhysicalDeviceLimits limits;
} shim_state;

extern shim_state shim;

/* Forgets everything; what is live stays live. */
void shim_reset(void);
VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL shim_get_instance_proc_addr(VkInstance instance, const char *name);

#endif
