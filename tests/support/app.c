#include "support/app.h"
#include "../tools/examples/instance.h"
#include "support/variants.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Memory and devices that a test needs to begin with: without them there is no test. */
static void must(int result, const char *what) {
  if (!result) return;
  (void)fprintf(stderr, "the test's own application: %s: %d\n", what, result);
  abort();
}

void app_vulkan_init(app_vulkan *app) {
  const char *selector = getenv("LAPROX_DEVICE");
  VkPhysicalDevice gpus[16];
  VkQueueFamilyProperties families[16];
  uint32_t n_gpus = 16, n_families = 16;
  *app = (app_vulkan){0};
  must(volkInitialize(), "looking for a Vulkan loader");
  must(instance_create(test_validation() ? &app->n_validation : NULL, &app->instance, &app->messenger),
       "vkCreateInstance");
  must(vkEnumeratePhysicalDevices(app->instance, &n_gpus, gpus) < 0 || !n_gpus, "looking for a device");
  const unsigned long wanted = selector ? strtoul(selector, NULL, 10) : 0;
  app->gpu = gpus[wanted < n_gpus ? wanted : 0];
  vkGetPhysicalDeviceQueueFamilyProperties(app->gpu, &n_families, families);
  while (app->family < n_families && !(families[app->family].queueFlags & VK_QUEUE_COMPUTE_BIT))
    app->family++;
  must(app->family == n_families, "looking for a queue that computes");
  app->n_queues = families[app->family].queueCount > 1 ? 2 : 1;
  app->other_family = app->family;
  for (uint32_t f = app->family + 1; f < n_families; f++)
    if (families[f].queueFlags & VK_QUEUE_COMPUTE_BIT) app->other_family = f;
}

unsigned app_vulkan_finish(app_vulkan *app) {
  instance_destroy(app->instance, app->messenger);
  return app->n_validation;
}

static void create_arena(app_device *device) {
  const VkMemoryPropertyFlags wanted =
      VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  const VkBufferCreateInfo buffer = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                     .size = device->arena_bytes,
                                     .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
                                              VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                              VK_BUFFER_USAGE_TRANSFER_DST_BIT};
  must(vkCreateBuffer(device->device, &buffer, NULL, &device->arena), "vkCreateBuffer");
  VkPhysicalDeviceMemoryProperties types;
  VkMemoryRequirements needs;
  vkGetPhysicalDeviceMemoryProperties(device->gpu, &types);
  vkGetBufferMemoryRequirements(device->device, device->arena, &needs);
  VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = needs.size};
  while (info.memoryTypeIndex < types.memoryTypeCount &&
         (!(needs.memoryTypeBits >> info.memoryTypeIndex & 1) ||
          (types.memoryTypes[info.memoryTypeIndex].propertyFlags & wanted) != wanted))
    info.memoryTypeIndex++;
  must(info.memoryTypeIndex == types.memoryTypeCount, "looking for memory");
  must(vkAllocateMemory(device->device, &info, NULL, &device->memory), "vkAllocateMemory");
  must(vkBindBufferMemory(device->device, device->arena, device->memory, 0), "vkBindBufferMemory");
  void *mapped = NULL;
  must(vkMapMemory(device->device, device->memory, 0, VK_WHOLE_SIZE, 0, &mapped), "vkMapMemory");
  device->mapped = mapped;
}

void app_device_init(const app_vulkan *app, VkDeviceSize arena_bytes, app_device *out) {
  const float priorities[] = {1, 1};
  *out = (app_device){
      .gpu = app->gpu, .family = app->family, .other_family = app->other_family, .arena_bytes = arena_bytes};
  const VkDeviceQueueCreateInfo queues[] = {{.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                             .queueFamilyIndex = app->family,
                                             .queueCount = app->n_queues,
                                             .pQueuePriorities = priorities},
                                            {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                             .queueFamilyIndex = app->other_family,
                                             .queueCount = 1,
                                             .pQueuePriorities = priorities}};
  laprox_features_query(vkGetInstanceProcAddr, app->instance, app->gpu,
                        LAPROX_ALL_VARIANTS & ~test_variants_off(), &out->features);
  const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                   .pNext = &out->features.features,
                                   .queueCreateInfoCount = app->other_family == app->family ? 1 : 2,
                                   .pQueueCreateInfos = queues,
                                   .enabledExtensionCount = out->features.n_extensions,
                                   .ppEnabledExtensionNames = out->features.extensions};
  must(vkCreateDevice(app->gpu, &info, NULL, &out->device), "vkCreateDevice");
  vkGetDeviceQueue(out->device, app->family, 0, &out->queue);
  vkGetDeviceQueue(out->device, app->family, app->n_queues - 1, &out->other_queue);
  vkGetDeviceQueue(out->device, app->other_family, 0, &out->far_queue);
  out->pool = app_pool(out, &out->commands);
  create_arena(out);
}

void app_device_finish(app_device *device) {
  (void)vkDeviceWaitIdle(device->device);
  vkDestroyBuffer(device->device, device->arena, NULL);
  vkFreeMemory(device->device, device->memory, NULL);
  vkDestroyCommandPool(device->device, device->pool, NULL);
  vkDestroyDevice(device->device, NULL);
}

laprox_context_info app_context_info(const app_vulkan *app, const app_device *device,
                                     const laprox_host *host) {
  return (laprox_context_info){.host = *host,
                               .instance = app->instance,
                               .physical_device = device->gpu,
                               .device = device->device,
                               .get_instance_proc_addr = vkGetInstanceProcAddr,
                               .debug_utils = app->messenger != VK_NULL_HANDLE,
                               .extensions = device->features.extensions,
                               .n_extensions = device->features.n_extensions,
                               .features = &device->features.features,
                               .variants_off = test_variants_off()};
}

laprox_buffer app_take(app_device *device, VkDeviceSize bytes, VkDeviceSize alignment, VkDeviceSize odd) {
  const VkDeviceSize offset = (device->used_bytes + alignment - 1) / alignment * alignment + odd;
  device->used_bytes = offset + bytes;
  must(device->used_bytes > device->arena_bytes, "the arena is too small");
  return (laprox_buffer){device->arena, offset, bytes};
}

void *app_mapped(const app_device *device, laprox_buffer part) {
  return device->mapped + part.offset;
}

VkCommandPool app_pool_of(const app_device *device, uint32_t family, VkCommandBuffer *commands) {
  VkCommandPool pool = VK_NULL_HANDLE;
  const VkCommandPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                        .queueFamilyIndex = family};
  must(vkCreateCommandPool(device->device, &info, NULL, &pool), "vkCreateCommandPool");
  const VkCommandBufferAllocateInfo buffers = {
      .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO, .commandPool = pool, .commandBufferCount = 1};
  must(vkAllocateCommandBuffers(device->device, &buffers, commands), "vkAllocateCommandBuffers");
  return pool;
}

VkCommandPool app_pool(const app_device *device, VkCommandBuffer *commands) {
  return app_pool_of(device, device->family, commands);
}

static void begin(VkCommandBuffer commands) {
  const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  must(vkBeginCommandBuffer(commands, &info), "vkBeginCommandBuffer");
}

void app_begin(app_device *device) {
  must(vkResetCommandPool(device->device, device->pool, 0), "vkResetCommandPool");
  begin(device->commands);
}

void app_end(VkCommandBuffer commands) {
  const VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                   .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
                                   .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
  vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                       VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, NULL, 0, NULL);
  must(vkEndCommandBuffer(commands), "vkEndCommandBuffer");
}

void app_submit_these(app_device *device, uint32_t n, const VkCommandBuffer *commands) {
  const VkSubmitInfo info = {
      .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = n, .pCommandBuffers = commands};
  must(vkQueueSubmit(device->queue, 1, &info, VK_NULL_HANDLE), "vkQueueSubmit");
  must(vkQueueWaitIdle(device->queue), "vkQueueWaitIdle");
}

void app_submit(app_device *device) {
  app_end(device->commands);
  app_submit_these(device, 1, &device->commands);
}
