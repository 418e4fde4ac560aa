/* app.h: an application that owns its Vulkan: an instance with validation, devices, one big buffer that it
 * hands out in parts, and a command buffer that it submits itself. What goes wrong on its own side fails the
 * test. */
#ifndef TESTS_SUPPORT_APP_H
#define TESTS_SUPPORT_APP_H

#include <volk.h>

#include "laprox/vulkan.h"

typedef struct app_vulkan {
  VkInstance instance;
  VkDebugUtilsMessengerEXT messenger;
  VkPhysicalDevice gpu;
  uint32_t family;
  uint32_t n_queues;     /* of the family, at most 2 */
  uint32_t other_family; /* another one that computes; the same where there is none */
  unsigned n_validation; /* messages of the validation layer */
} app_vulkan;

/* Picks the device that LAPROX_DEVICE names by number, else the first. */
void app_vulkan_init(app_vulkan *app);
/* The number of validation messages. */
unsigned app_vulkan_finish(app_vulkan *app);

typedef struct app_device {
  VkPhysicalDevice gpu;
  VkDevice device;
  VkQueue queue, other_queue; /* the same where the family has only one */
  VkQueue far_queue;          /* of the other family, if there is one */
  uint32_t family, other_family;
  VkCommandPool pool;
  VkCommandBuffer commands;
  laprox_features features; /* what the device was created with */
  VkBuffer arena;           /* host-visible: the host writes and reads it in place */
  VkDeviceMemory memory;
  VkDeviceSize arena_bytes, used_bytes;
  unsigned char *mapped;
} app_device;

void app_device_init(const app_vulkan *app, VkDeviceSize arena_bytes, app_device *out);
void app_device_finish(app_device *device);
laprox_context_info app_context_info(const app_vulkan *app, const app_device *device,
                                     const laprox_host *host);

/* A part of the arena that begins `odd` bytes after a multiple of `alignment`. */
laprox_buffer app_take(app_device *device, VkDeviceSize bytes, VkDeviceSize alignment, VkDeviceSize odd);
/* Where the host sees it. */
void *app_mapped(const app_device *device, laprox_buffer part);

void app_begin(app_device *device);
/* Ends, submits and waits, with a barrier in front that shows the host what was written. */
void app_submit(app_device *device);
/* Another command buffer, for a thread or a submit of its own. */
VkCommandPool app_pool(const app_device *device, VkCommandBuffer *commands);
VkCommandPool app_pool_of(const app_device *device, uint32_t family, VkCommandBuffer *commands);
void app_end(VkCommandBuffer commands);
void app_submit_these(app_device *device, uint32_t n, const VkCommandBuffer *commands);

#endif
