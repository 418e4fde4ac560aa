/* device.h: instances and devices that the runtime makes itself. */
#ifndef LPX_RUNTIME_DEVICE_H
#define LPX_RUNTIME_DEVICE_H

#include "laprox/runtime.h"
#include "runtime/pipeline_file.h"
#include "vk/vk.h"

struct laprox_device {
  laprox_context *context;
  lpx_queue *queue;
  lpx_pipeline_file pipelines;        /* of devices that are owned */
  VkDevice owned;                     /* null for imported devices */
  PFN_vkDestroyDevice destroy_device; /* with it */
};

#endif
