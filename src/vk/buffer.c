/* buffer.c: buffers with memory of their own. Never suballocated: giving memory back is what the project is
 * for. */
#include "vk/vk.h"

#include <stdio.h>

static void count_allocation(laprox_context *context, VkDeviceSize size) {
  const uint64_t now = atomic_fetch_add(&context->bytes, size) + size;
  uint64_t peak = atomic_load(&context->peak_bytes);
  while (now > peak && !atomic_compare_exchange_weak(&context->peak_bytes, &peak, now)) {
  }
}

/* The first type with the wanted properties, wishes before needs; UINT32_MAX where there is none. */
static uint32_t find_memory_type(const laprox_context *context, uint32_t allowed, lpx_memory kind) {
  const VkMemoryPropertyFlags host =
      VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  const VkMemoryPropertyFlags wishes[][2] = {
      [LPX_MEMORY_DEVICE] = {VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0},
      [LPX_MEMORY_UPLOAD] = {host, host},
      [LPX_MEMORY_READBACK] = {host | VK_MEMORY_PROPERTY_HOST_CACHED_BIT, host},
  };
  for (int wish = 0; wish < 2; wish++)
    for (uint32_t i = 0; i < context->memory.memoryTypeCount; i++) {
      const VkMemoryPropertyFlags flags = wishes[kind][wish];
      if ((allowed >> i & 1) && (context->memory.memoryTypes[i].propertyFlags & flags) == flags) return i;
    }
  return UINT32_MAX;
}

static laprox_result bind_memory(laprox_context *context, lpx_memory kind, const char *name,
                                 lpx_buffer *buffer) {
  VkMemoryRequirements needs;
  context->vk.GetBufferMemoryRequirements(context->device, buffer->buffer, &needs);
  const uint32_t type = find_memory_type(context, needs.memoryTypeBits, kind);
  if (type == UINT32_MAX)
    return lpx_fail(&context->host, LAPROX_ERROR_UNSUPPORTED, "%s: the device has no memory type for it",
                    name);
  const VkMemoryAllocateInfo info = {
      .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = needs.size, .memoryTypeIndex = type};
  const VkResult result = context->vk.AllocateMemory(context->device, &info, NULL, &buffer->memory);
  if (result) {
    char what[128];
    (void)snprintf(what, sizeof what, "%s: %llu bytes of device memory", name,
                   (unsigned long long)needs.size);
    return lpx_vk_result(context, result, what);
  }
  buffer->allocated = needs.size;
  count_allocation(context, needs.size);
  laprox_result ours =
      lpx_vk_result(context, context->vk.BindBufferMemory(context->device, buffer->buffer, buffer->memory, 0),
                    "vkBindBufferMemory");
  if (ours || kind == LPX_MEMORY_DEVICE) return ours;
  return lpx_vk_result(
      context, context->vk.MapMemory(context->device, buffer->memory, 0, VK_WHOLE_SIZE, 0, &buffer->mapped),
      "vkMapMemory");
}

laprox_result lpx_buffer_init(laprox_context *context, lpx_memory memory, VkDeviceSize size, const char *name,
                              lpx_buffer *out) {
  *out = (lpx_buffer){.size = size ? (size + 3) & ~(VkDeviceSize)3 : 4};
  const VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                   .size = out->size,
                                   .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
                                            VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                            VK_BUFFER_USAGE_TRANSFER_DST_BIT,
                                   .sharingMode = VK_SHARING_MODE_EXCLUSIVE};
  laprox_result result = lpx_vk_check_lost(context);
  if (result) {
    *out = (lpx_buffer){0};
    return result;
  }
  result = lpx_vk_result(context, context->vk.CreateBuffer(context->device, &info, NULL, &out->buffer),
                         "vkCreateBuffer");
  if (!result) result = bind_memory(context, memory, name, out);
  if (result) {
    lpx_buffer_finish(context, out);
    return result;
  }
  lpx_vk_name(context, VK_OBJECT_TYPE_BUFFER, (uint64_t)out->buffer, name);
  lpx_vk_name(context, VK_OBJECT_TYPE_DEVICE_MEMORY, (uint64_t)out->memory, name);
  return LAPROX_OK;
}

void lpx_buffer_finish(laprox_context *context, lpx_buffer *buffer) {
  if (buffer->buffer) context->vk.DestroyBuffer(context->device, buffer->buffer, NULL);
  if (buffer->memory) {
    context->vk.FreeMemory(context->device, buffer->memory, NULL);
    atomic_fetch_sub(&context->bytes, buffer->allocated);
  }
  *buffer = (lpx_buffer){0};
}

laprox_buffer lpx_buffer_whole(const lpx_buffer *buffer) {
  return (laprox_buffer){.buffer = buffer->buffer, .size = buffer->size};
}

laprox_buffer lpx_buffer_part(laprox_buffer whole, VkDeviceSize offset, VkDeviceSize size) {
  return (laprox_buffer){.buffer = whole.buffer, .offset = whole.offset + offset, .size = size};
}

laprox_buffer lpx_buffer_aligned_part(const laprox_context *context, laprox_buffer whole, VkDeviceSize offset,
                                      VkDeviceSize size, VkDeviceSize *residual) {
  const VkDeviceSize begin = whole.offset + offset;
  *residual = begin % context->range_alignment;
  return (laprox_buffer){.buffer = whole.buffer, .offset = begin - *residual, .size = size + *residual};
}

laprox_buffer lpx_buffer_aligned_units(const laprox_context *context, lpx_unit unit, laprox_buffer whole,
                                       VkDeviceSize offset, VkDeviceSize size, uint32_t *residual) {
  VkDeviceSize before = (whole.offset + offset) % context->range_alignment;
  while (before % unit.bytes && before + context->range_alignment <= offset)
    before += context->range_alignment;
  *residual = (uint32_t)(before / unit.bytes * unit.elements);
  return (laprox_buffer){
      .buffer = whole.buffer, .offset = whole.offset + offset - before, .size = size + before};
}

VkDeviceSize lpx_buffer_units_room(const laprox_context *context, lpx_unit unit) {
  /* A multiple of the alignment that is one of the unit, too, is reached in so many steps. */
  const VkDeviceSize n_steps = unit.elements == 1 ? 1 : unit.bytes / 4;
  const VkDeviceSize countable = UINT64_C(0xffffffff) / unit.elements * unit.bytes;
  return (countable < context->max_range ? countable : context->max_range) -
         n_steps * context->range_alignment;
}

uint64_t lpx_context_free_bytes(laprox_context *context) {
  VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
  VkPhysicalDeviceMemoryProperties2 properties = {.sType =
                                                      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                                  .pNext = context->has_memory_budget ? &budget : NULL};
  context->vk.GetPhysicalDeviceMemoryProperties2(context->physical_device, &properties);
  const uint32_t type = find_memory_type(context, UINT32_MAX, LPX_MEMORY_DEVICE);
  if (type == UINT32_MAX) return 0;
  const uint32_t heap = context->memory.memoryTypes[type].heapIndex;
  const uint64_t size =
      context->has_memory_budget ? budget.heapBudget[heap] : context->memory.memoryHeaps[heap].size;
  const uint64_t used = context->has_memory_budget ? budget.heapUsage[heap] : atomic_load(&context->bytes);
  return size > used ? size - used : 0;
}
