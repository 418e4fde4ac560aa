#include "app.h"
#include "instance.h"

#include <stdio.h>
#include <stdlib.h>

enum { MODEL_DIM = 128, NO_LAYER = 77 };

void must(int result, const char *what) {
  if (!result) return;
  (void)fprintf(stderr, "%s failed (%d)\n", what, result);
  exit(1);
}

static void print_message(void *user, laprox_message_level level, const char *text) {
  (void)level;
  (void)fprintf(user, "%s\n", text);
}

/* A family that computes; for a second queue, one more of it or of another family, else the same again. */
static void create_device(app *a) {
  const float priorities[2] = {1, 1};
  uint32_t n_gpus = 1, n_families = 16, second = 0;
  VkQueueFamilyProperties families[16];
  must(vkEnumeratePhysicalDevices(a->instance, &n_gpus, &a->gpu) < 0 || !n_gpus, "looking for a device");
  vkGetPhysicalDeviceQueueFamilyProperties(a->gpu, &n_families, families);
  while (a->family[0] < n_families && !(families[a->family[0]].queueFlags & VK_QUEUE_COMPUTE_BIT))
    a->family[0]++;
  must(a->family[0] == n_families, "looking for a queue that computes");
  a->family[1] = a->family[0];
  if (families[a->family[0]].queueCount > 1) second = 1;
  for (uint32_t f = a->family[0] + 1; f < n_families && !second && a->family[1] == a->family[0]; f++)
    if (families[f].queueFlags & VK_QUEUE_COMPUTE_BIT) a->family[1] = f;
  const VkDeviceQueueCreateInfo queues[2] = {{.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                              .queueFamilyIndex = a->family[0],
                                              .queueCount = 1 + second,
                                              .pQueuePriorities = priorities},
                                             {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                              .queueFamilyIndex = a->family[1],
                                              .queueCount = 1,
                                              .pQueuePriorities = priorities}};
  const VkDeviceCreateInfo device = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                     .queueCreateInfoCount = 1 + (a->family[1] != a->family[0]),
                                     .pQueueCreateInfos = queues};
  must(vkCreateDevice(a->gpu, &device, NULL, &a->device), "vkCreateDevice");
  vkGetDeviceQueue(a->device, a->family[0], 0, &a->queue[0]);
  vkGetDeviceQueue(a->device, a->family[1], second, &a->queue[1]);
}

static void create_memory(app *a, int mapped, VkBuffer *out) {
  const VkMemoryPropertyFlags wanted =
      mapped ? VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
             : VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
  const bool shared = a->family[0] != a->family[1];
  const VkBufferCreateInfo buffer = {
      .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
      .size = a->arena_bytes,
      .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
               VK_BUFFER_USAGE_TRANSFER_DST_BIT,
      .sharingMode = shared ? VK_SHARING_MODE_CONCURRENT : VK_SHARING_MODE_EXCLUSIVE,
      .queueFamilyIndexCount = shared ? 2 : 0,
      .pQueueFamilyIndices = a->family};
  must(vkCreateBuffer(a->device, &buffer, NULL, out), "vkCreateBuffer");
  VkPhysicalDeviceMemoryProperties types;
  VkMemoryRequirements needs;
  vkGetPhysicalDeviceMemoryProperties(a->gpu, &types);
  vkGetBufferMemoryRequirements(a->device, *out, &needs);
  VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = needs.size};
  while (info.memoryTypeIndex < types.memoryTypeCount &&
         (!(needs.memoryTypeBits >> info.memoryTypeIndex & 1) ||
          (types.memoryTypes[info.memoryTypeIndex].propertyFlags & wanted) != wanted))
    info.memoryTypeIndex++;
  must(info.memoryTypeIndex == types.memoryTypeCount, "looking for memory");
  must(vkAllocateMemory(a->device, &info, NULL, &a->memory[mapped]), "vkAllocateMemory");
  must(vkBindBufferMemory(a->device, *out, a->memory[mapped], 0), "vkBindBufferMemory");
  if (mapped)
    must(vkMapMemory(a->device, a->memory[mapped], 0, VK_WHOLE_SIZE, 0, (void **)&a->mapped), "vkMapMemory");
}

void app_open(app *a, bool validate, VkDeviceSize arena_bytes) {
  *a = (app){.arena_bytes = arena_bytes, .alignment = 256};
  must(volkInitialize(), "looking for a Vulkan loader");
  const VkResult result = instance_create(validate ? &a->n_findings : NULL, &a->instance, &a->messenger);
  if (result == VK_ERROR_LAYER_NOT_PRESENT) exit(NO_LAYER);
  must(result, "vkCreateInstance");
  create_device(a);
  create_memory(a, 0, &a->arena);
  create_memory(a, 1, &a->host);
}

void app_close(app *a) {
  vkDestroyBuffer(a->device, a->arena, NULL);
  vkDestroyBuffer(a->device, a->host, NULL);
  vkFreeMemory(a->device, a->memory[0], NULL);
  vkFreeMemory(a->device, a->memory[1], NULL);
  vkDestroyDevice(a->device, NULL);
  instance_destroy(a->instance, a->messenger);
}

laprox_context_info app_context_info(const app *a) {
  return (laprox_context_info){.host = {.message = print_message, .message_user = stderr},
                               .instance = a->instance,
                               .physical_device = a->gpu,
                               .device = a->device,
                               .debug_utils = a->messenger != VK_NULL_HANDLE,
                               .get_instance_proc_addr = vkGetInstanceProcAddr};
}

laprox_buffer app_take(app *a, VkDeviceSize bytes, float **host) {
  const laprox_buffer part = {a->arena, a->used_bytes, bytes};
  a->used_bytes += (bytes + a->alignment - 1) / a->alignment * a->alignment;
  must(a->used_bytes > a->arena_bytes, "taking a part of the arena");
  if (host) *host = (float *)(void *)(a->mapped + part.offset);
  return part;
}

/* Every tensor is louder than the last, so that heads differ. */
static void fill(float *values, size_t n, uint32_t *tensor) {
  const float loudness = 1 + 0.02f * (float)*tensor;
  uint32_t state = ++*tensor * 2654435761u;
  for (size_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    values[i] = loudness * ((float)(state >> 8) / 8388608.0f - 1);
  }
}

void app_fill_layer(app *a, const laprox_shape *shape, uint32_t number, uint32_t n_tokens,
                    const laprox_requirements *needs, laprox_layer_buffers *layer) {
  const size_t head = (size_t)n_tokens * shape->head_dim;
  const size_t n_weights = (size_t)MODEL_DIM * shape->n_heads * shape->head_dim;
  uint32_t tensor = number * (2 + 2 * shape->n_kv_heads);
  float *query, *key, *value, *factor, *weight = malloc(n_weights * sizeof *weight);
  must(!weight, "allocating weights");
  a->alignment = needs->alignment > a->alignment ? needs->alignment : a->alignment;
  layer->query = app_take(a, needs->query_bytes, &query);
  layer->key[0] = app_take(a, shape->n_kv_heads * head * sizeof(float), &key);
  layer->value[0] = app_take(a, shape->n_kv_heads * head * sizeof(float), &value);
  layer->factor = app_take(a, needs->factor_bytes, &factor);
  fill(query, (size_t)needs->query_bytes / sizeof(float), &tensor);
  fill(weight, n_weights, &tensor);
  for (size_t g = 0; g < shape->n_kv_heads; g++) {
    fill(key + g * head, head, &tensor);
    fill(value + g * head, head, &tensor);
  }
  must(laprox_value_factor(NULL, shape, LAPROX_GQA_AUTO, MODEL_DIM, weight, factor), "laprox_value_factor");
  free(weight);
}

void app_commands_create(const app *a, int queue, app_commands *out) {
  const VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                        .queueFamilyIndex = a->family[queue]};
  const VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
  out->a = a;
  out->queue = a->queue[queue];
  must(vkCreateCommandPool(a->device, &pool, NULL, &out->pool), "vkCreateCommandPool");
  const VkCommandBufferAllocateInfo buffer = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                              .commandPool = out->pool,
                                              .commandBufferCount = 1};
  must(vkAllocateCommandBuffers(a->device, &buffer, &out->buffer), "vkAllocateCommandBuffers");
  must(vkCreateFence(a->device, &fence, NULL, &out->fence), "vkCreateFence");
}

void app_commands_destroy(app_commands *c) {
  vkDestroyFence(c->a->device, c->fence, NULL);
  vkDestroyCommandPool(c->a->device, c->pool, NULL);
}

void app_begin(const app_commands *c) {
  const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  must(vkResetCommandPool(c->a->device, c->pool, 0), "vkResetCommandPool");
  must(vkBeginCommandBuffer(c->buffer, &info), "vkBeginCommandBuffer");
}

void app_copy(const app_commands *c, VkBuffer from, VkBuffer to, laprox_buffer part) {
  const VkBufferCopy region = {part.offset, part.offset, part.size};
  vkCmdCopyBuffer(c->buffer, from, to, 1, &region);
}

void app_end(const app_commands *c) {
  const VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                   .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                                   .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
  vkCmdPipelineBarrier(c->buffer, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier,
                       0, NULL, 0, NULL);
  must(vkEndCommandBuffer(c->buffer), "vkEndCommandBuffer");
}

void app_wait(const app_commands *c) {
  must(vkWaitForFences(c->a->device, 1, &c->fence, VK_TRUE, UINT64_MAX), "vkWaitForFences");
  must(vkResetFences(c->a->device, 1, &c->fence), "vkResetFences");
}

void app_run(const app_commands *c) {
  const VkSubmitInfo info = {
      .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &c->buffer};
  app_end(c);
  must(vkQueueSubmit(c->queue, 1, &info, c->fence), "vkQueueSubmit");
  app_wait(c);
}
