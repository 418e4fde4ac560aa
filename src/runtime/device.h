/* device.h: instances and devices that the runtime makes itself. */
#ifndef LPX_RUNTIME_DEVICE_H
#define LPX_RUNTIME_DEVICE_H

#include "laprox/runtime.h"
#include "vk/vk.h"

struct laprox_device {
  laprox_context *context;
  lpx_queue *queue;
  VkDevice owned;                     /* null for imported devices */
  PFN_vkDestroyDevice destroy_device; /* with it */
};

#endif
