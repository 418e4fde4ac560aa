#include "shim/shim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

shim_state shim;

void shim_reset(void) {
  const long n_live = shim.n_live;
  const uint64_t live_bytes = shim.live_bytes;
  shim = (shim_state){.n_live = n_live, .live_bytes = live_bytes};
}

/* ---- failing ---- */

#define HOST   VK_ERROR_OUT_OF_HOST_MEMORY
#define DEVICE VK_ERROR_OUT_OF_DEVICE_MEMORY
#define LOST   VK_ERROR_DEVICE_LOST
/* What the specification lets every function return that returns a result. */
#define ANY VK_ERROR_UNKNOWN, VK_ERROR_VALIDATION_FAILED_EXT, VK_SUCCESS

/* VK_SUCCESS, or what this call returns instead: one of `results`, which end with VK_SUCCESS. */
static VkResult inject(const char *name, const VkResult *results) {
  unsigned n_choices = 0;
  bool may_be_lost = false;
  for (const VkResult *result = results; *result; result++) {
    may_be_lost |= *result == LOST;
    n_choices += *result != LOST;
  }
  if (shim.lose && !may_be_lost) return VK_SUCCESS;
  if (++shim.n_calls != shim.fail_at) return VK_SUCCESS;
  VkResult chosen = LOST;
  for (unsigned left = shim.fail_choice % n_choices + 1; !shim.lose && left; results++)
    if (*results != LOST) {
      chosen = *results;
      left--;
    }
  shim.failed = name;
  shim.failed_with = chosen;
  shim.n_choices = n_choices;
  return chosen;
}

#define INJECT(name, ...)                                                                                    \
  do {                                                                                                       \
    const VkResult results[] = {__VA_ARGS__, ANY};                                                           \
    const VkResult injected = inject(#name, results);                                                        \
    if (injected) return injected;                                                                           \
  } while (0)

static void violate(const char *format, ...) {
  va_list arguments;
  if (shim.n_violations++) return;
  va_start(arguments, format);
  (void)vsnprintf(shim.violation, sizeof shim.violation, format, arguments);
  va_end(arguments);
}

/* ---- objects ---- */

#define CREATE(Object, Info, ...)                                                                            \
  static VKAPI_ATTR VkResult VKAPI_CALL create_##Object(                                                     \
      VkDevice device, const Info *info, const VkAllocationCallbacks *allocator, Vk##Object *out) {          \
    INJECT(vkCreate##Object, __VA_ARGS__);                                                                   \
    const VkResult result = vkCreate##Object(device, info, allocator, out);                                  \
    shim.n_live += !result;                                                                                  \
    return result;                                                                                           \
  }                                                                                                          \
  static VKAPI_ATTR void VKAPI_CALL destroy_##Object(VkDevice device, Vk##Object object,                     \
                                                     const VkAllocationCallbacks *allocator) {               \
    shim.n_live -= object != VK_NULL_HANDLE;                                                                 \
    vkDestroy##Object(device, object, allocator);                                                            \
  }

CREATE(Buffer, VkBufferCreateInfo, HOST, DEVICE, VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS)
CREATE(CommandPool, VkCommandPoolCreateInfo, HOST, DEVICE)
CREATE(DescriptorPool, VkDescriptorPoolCreateInfo, HOST, DEVICE, VK_ERROR_FRAGMENTATION)
CREATE(Fence, VkFenceCreateInfo, HOST, DEVICE)
CREATE(PipelineCache, VkPipelineCacheCreateInfo, HOST, DEVICE)
CREATE(PipelineLayout, VkPipelineLayoutCreateInfo, HOST, DEVICE)
CREATE(QueryPool, VkQueryPoolCreateInfo, HOST, DEVICE)

static VKAPI_ATTR VkResult VKAPI_CALL create_DescriptorSetLayout(VkDevice device,
                                                                 const VkDescriptorSetLayoutCreateInfo *info,
                                                                 const VkAllocationCallbacks *allocator,
                                                                 VkDescriptorSetLayout *out) {
  INJECT(vkCreateDescriptorSetLayout, HOST, DEVICE);
  if (shim.limits.maxPerStageDescriptorStorageBuffers &&
      info->bindingCount > shim.limits.maxPerStageDescriptorStorageBuffers)
    violate("a set of %u storage buffers", info->bindingCount);
  const VkResult result = vkCreateDescriptorSetLayout(device, info, allocator, out);
  shim.n_live += !result;
  return result;
}

static VKAPI_ATTR void VKAPI_CALL destroy_DescriptorSetLayout(VkDevice device, VkDescriptorSetLayout object,
                                                              const VkAllocationCallbacks *allocator) {
  shim.n_live -= object != VK_NULL_HANDLE;
  vkDestroyDescriptorSetLayout(device, object, allocator);
}

static VKAPI_ATTR void VKAPI_CALL destroy_Pipeline(VkDevice device, VkPipeline object,
                                                   const VkAllocationCallbacks *allocator) {
  shim.n_live -= object != VK_NULL_HANDLE;
  vkDestroyPipeline(device, object, allocator);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_ComputePipelines(VkDevice device, VkPipelineCache cache,
                                                              uint32_t n,
                                                              const VkComputePipelineCreateInfo *infos,
                                                              const VkAllocationCallbacks *allocator,
                                                              VkPipeline *out) {
  INJECT(vkCreateComputePipelines, HOST, DEVICE, VK_ERROR_INVALID_SHADER_NV,
         VK_PIPELINE_COMPILE_REQUIRED_EXT);
  const VkResult result = vkCreateComputePipelines(device, cache, n, infos, allocator, out);
  if (!result) shim.n_live += (long)n;
  return result;
}

/* Workgroup sizes that stand in the code as such: OpExecutionMode LocalSize. */
static void check_local_size(const VkShaderModuleCreateInfo *info) {
  const uint32_t n_words = (uint32_t)(info->codeSize / 4), op_execution_mode = 16, local_size = 17;
  for (uint32_t at = 5, length; at < n_words; at += length) {
    length = info->pCode[at] >> 16;
    if (!length) break;
    if ((info->pCode[at] & 0xffff) != op_execution_mode || info->pCode[at + 2] != local_size) continue;
    const uint32_t size = info->pCode[at + 3] * info->pCode[at + 4] * info->pCode[at + 5];
    if (size > shim.limits.maxComputeWorkGroupInvocations) violate("a workgroup of %u invocations", size);
  }
}

static bool declares(const VkShaderModuleCreateInfo *info, uint32_t capability) {
  const uint32_t n_words = (uint32_t)(info->codeSize / 4), op_capability = 17;
  for (uint32_t at = 5; at + 1 < n_words && (info->pCode[at] & 0xffff) == op_capability; at += 2)
    if (info->pCode[at + 1] == capability) return true;
  return false;
}

static void mistake(uint32_t *code, uint32_t n_words) {
  const uint32_t op_nop = 1 << 16;
  for (uint32_t at = 5, length; at < n_words; at += length) {
    length = code[at] >> 16;
    if (!length) break;
    const uint32_t op = code[at] & 0xffff;
    if (op != shim.mistaken_ops[0] && op != shim.mistaken_ops[1]) continue;
    if (shim.mistaken_for)
      code[at] = length << 16 | shim.mistaken_for;
    else
      for (uint32_t i = 0; i < length; i++) code[at + i] = op_nop;
  }
}

static VKAPI_ATTR VkResult VKAPI_CALL create_ShaderModule(VkDevice device,
                                                          const VkShaderModuleCreateInfo *info,
                                                          const VkAllocationCallbacks *allocator,
                                                          VkShaderModule *out) {
  INJECT(vkCreateShaderModule, HOST, DEVICE, VK_ERROR_INVALID_SHADER_NV);
  if (shim.limits.maxComputeWorkGroupInvocations) check_local_size(info);
  if (shim.refused_capability && declares(info, shim.refused_capability)) return VK_ERROR_INVALID_SHADER_NV;
  VkShaderModuleCreateInfo mistaken = *info;
  uint32_t *code = shim.mistaken_ops[0] ? malloc(info->codeSize) : NULL;
  if (code) {
    memcpy(code, info->pCode, info->codeSize);
    mistake(code, (uint32_t)(info->codeSize / 4));
    mistaken.pCode = code;
  }
  const VkResult result = vkCreateShaderModule(device, &mistaken, allocator, out);
  free(code);
  shim.n_live += !result;
  return result;
}

static VKAPI_ATTR void VKAPI_CALL destroy_ShaderModule(VkDevice device, VkShaderModule object,
                                                       const VkAllocationCallbacks *allocator) {
  shim.n_live -= object != VK_NULL_HANDLE;
  vkDestroyShaderModule(device, object, allocator);
}

/* ---- memory: sizes are remembered in a table, as vkFreeMemory does not say them ---- */

#define MAX_ALLOCATIONS 4096
static struct allocation {
  VkDeviceMemory memory;
  VkDeviceSize bytes;
} allocations[MAX_ALLOCATIONS];

static void count_memory(VkDeviceMemory memory, VkDeviceSize bytes) {
  shim.n_live++;
  for (int i = 0; i < MAX_ALLOCATIONS; i++)
    if (!allocations[i].memory) {
      allocations[i] = (struct allocation){memory, bytes};
      shim.live_bytes += bytes;
      return;
    }
  violate("more than %d allocations", MAX_ALLOCATIONS);
}

static VKAPI_ATTR VkResult VKAPI_CALL allocate_memory(VkDevice device, const VkMemoryAllocateInfo *info,
                                                      const VkAllocationCallbacks *allocator,
                                                      VkDeviceMemory *out) {
  INJECT(vkAllocateMemory, HOST, DEVICE, VK_ERROR_TOO_MANY_OBJECTS, VK_ERROR_INVALID_EXTERNAL_HANDLE,
         VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS);
  const VkResult result = vkAllocateMemory(device, info, allocator, out);
  if (!result) count_memory(*out, info->allocationSize);
  return result;
}

static VKAPI_ATTR void VKAPI_CALL free_memory(VkDevice device, VkDeviceMemory memory,
                                              const VkAllocationCallbacks *allocator) {
  shim.n_live -= memory != VK_NULL_HANDLE;
  for (int i = 0; i < MAX_ALLOCATIONS && memory; i++)
    if (allocations[i].memory == memory) {
      shim.live_bytes -= allocations[i].bytes;
      allocations[i].memory = VK_NULL_HANDLE;
      break;
    }
  vkFreeMemory(device, memory, allocator);
}

/* ---- calls that make nothing, or what goes with its pool ---- */

static VKAPI_ATTR VkResult VKAPI_CALL allocate_command_buffers(VkDevice device,
                                                               const VkCommandBufferAllocateInfo *info,
                                                               VkCommandBuffer *out) {
  INJECT(vkAllocateCommandBuffers, HOST, DEVICE);
  return vkAllocateCommandBuffers(device, info, out);
}

static VKAPI_ATTR VkResult VKAPI_CALL allocate_descriptor_sets(VkDevice device,
                                                               const VkDescriptorSetAllocateInfo *info,
                                                               VkDescriptorSet *out) {
  INJECT(vkAllocateDescriptorSets, HOST, DEVICE, VK_ERROR_FRAGMENTED_POOL, VK_ERROR_OUT_OF_POOL_MEMORY);
  return vkAllocateDescriptorSets(device, info, out);
}

static VKAPI_ATTR VkResult VKAPI_CALL begin_command_buffer(VkCommandBuffer commands,
                                                           const VkCommandBufferBeginInfo *info) {
  INJECT(vkBeginCommandBuffer, HOST, DEVICE);
  return vkBeginCommandBuffer(commands, info);
}

static VKAPI_ATTR VkResult VKAPI_CALL end_command_buffer(VkCommandBuffer commands) {
  INJECT(vkEndCommandBuffer, HOST, DEVICE);
  return vkEndCommandBuffer(commands);
}

static VKAPI_ATTR VkResult VKAPI_CALL bind_buffer_memory(VkDevice device, VkBuffer buffer,
                                                         VkDeviceMemory memory, VkDeviceSize offset) {
  INJECT(vkBindBufferMemory, HOST, DEVICE, VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS);
  return vkBindBufferMemory(device, buffer, memory, offset);
}

static VKAPI_ATTR VkResult VKAPI_CALL get_query_pool_results(VkDevice device, VkQueryPool pool,
                                                             uint32_t first, uint32_t n, size_t bytes,
                                                             void *data, VkDeviceSize stride,
                                                             VkQueryResultFlags flags) {
  INJECT(vkGetQueryPoolResults, HOST, DEVICE, LOST, VK_NOT_READY);
  return vkGetQueryPoolResults(device, pool, first, n, bytes, data, stride, flags);
}

static VKAPI_ATTR VkResult VKAPI_CALL map_memory(VkDevice device, VkDeviceMemory memory, VkDeviceSize offset,
                                                 VkDeviceSize bytes, VkMemoryMapFlags flags, void **out) {
  INJECT(vkMapMemory, HOST, DEVICE, VK_ERROR_MEMORY_MAP_FAILED);
  return vkMapMemory(device, memory, offset, bytes, flags, out);
}

static VKAPI_ATTR VkResult VKAPI_CALL queue_submit(VkQueue queue, uint32_t n, const VkSubmitInfo *infos,
                                                   VkFence fence) {
  INJECT(vkQueueSubmit, HOST, DEVICE, LOST);
  return vkQueueSubmit(queue, n, infos, fence);
}

static VKAPI_ATTR VkResult VKAPI_CALL reset_command_pool(VkDevice device, VkCommandPool pool,
                                                         VkCommandPoolResetFlags flags) {
  INJECT(vkResetCommandPool, DEVICE);
  return vkResetCommandPool(device, pool, flags);
}

static VKAPI_ATTR VkResult VKAPI_CALL reset_descriptor_pool(VkDevice device, VkDescriptorPool pool,
                                                            VkDescriptorPoolResetFlags flags) {
  INJECT(vkResetDescriptorPool, HOST, DEVICE);
  return vkResetDescriptorPool(device, pool, flags);
}

static VKAPI_ATTR VkResult VKAPI_CALL reset_fences(VkDevice device, uint32_t n, const VkFence *fences) {
  INJECT(vkResetFences, DEVICE);
  return vkResetFences(device, n, fences);
}

/* A lost device has no work any more; after other errors the work goes on, and the library has to mind. */
static VKAPI_ATTR VkResult VKAPI_CALL wait_for_fences(VkDevice device, uint32_t n, const VkFence *fences,
                                                      VkBool32 all, uint64_t timeout_ns) {
  static const VkResult results[] = {HOST, DEVICE, LOST, VK_TIMEOUT, ANY};
  const VkResult injected = inject("vkWaitForFences", results);
  if (injected && injected != LOST) return injected;
  const VkResult result = vkWaitForFences(device, n, fences, all, timeout_ns);
  return injected ? injected : result;
}

static VKAPI_ATTR VkResult VKAPI_CALL queue_wait_idle(VkQueue queue) {
  static const VkResult results[] = {HOST, DEVICE, LOST, ANY};
  const VkResult injected = inject("vkQueueWaitIdle", results);
  const VkResult result = vkQueueWaitIdle(queue);
  return injected ? injected : result;
}

static VKAPI_ATTR VkResult VKAPI_CALL set_object_name(VkDevice device,
                                                      const VkDebugUtilsObjectNameInfoEXT *info) {
  INJECT(vkSetDebugUtilsObjectNameEXT, HOST, DEVICE);
  return vkSetDebugUtilsObjectNameEXT(device, info);
}

/* ---- before there is a device ---- */

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *allocator,
                                                      VkInstance *out) {
  INJECT(vkCreateInstance, HOST, DEVICE, VK_ERROR_INITIALIZATION_FAILED, VK_ERROR_LAYER_NOT_PRESENT,
         VK_ERROR_EXTENSION_NOT_PRESENT, VK_ERROR_INCOMPATIBLE_DRIVER);
  const VkResult result = vkCreateInstance(info, allocator, out);
  shim.n_live += !result;
  return result;
}

static VKAPI_ATTR void VKAPI_CALL destroy_instance(VkInstance instance,
                                                   const VkAllocationCallbacks *allocator) {
  shim.n_live -= instance != VK_NULL_HANDLE;
  vkDestroyInstance(instance, allocator);
}

/* What is incomplete is there nevertheless, but not all of it. */
static VKAPI_ATTR VkResult VKAPI_CALL enumerate_devices(VkInstance instance, uint32_t *n,
                                                        VkPhysicalDevice *out) {
  static const VkResult results[] = {HOST, DEVICE, VK_ERROR_INITIALIZATION_FAILED, ANY};
  static const VkResult with_data[] = {HOST, DEVICE, VK_ERROR_INITIALIZATION_FAILED, VK_INCOMPLETE, ANY};
  const VkResult injected = inject("vkEnumeratePhysicalDevices", out ? with_data : results);
  if (injected < 0) return injected;
  const VkResult result = vkEnumeratePhysicalDevices(instance, n, out);
  return injected ? injected : result;
}

static VKAPI_ATTR VkResult VKAPI_CALL enumerate_extensions(VkPhysicalDevice gpu, const char *layer,
                                                           uint32_t *n, VkExtensionProperties *out) {
  static const VkResult results[] = {HOST, DEVICE, VK_ERROR_LAYER_NOT_PRESENT, ANY};
  static const VkResult with_data[] = {HOST, DEVICE, VK_ERROR_LAYER_NOT_PRESENT, VK_INCOMPLETE, ANY};
  const VkResult injected = inject("vkEnumerateDeviceExtensionProperties", out ? with_data : results);
  if (injected < 0) return injected;
  const VkResult result = vkEnumerateDeviceExtensionProperties(gpu, layer, n, out);
  return injected ? injected : result;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice gpu, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *allocator, VkDevice *out) {
  INJECT(vkCreateDevice, HOST, DEVICE, LOST, VK_ERROR_INITIALIZATION_FAILED, VK_ERROR_EXTENSION_NOT_PRESENT,
         VK_ERROR_FEATURE_NOT_PRESENT, VK_ERROR_TOO_MANY_OBJECTS);
  const VkResult result = vkCreateDevice(gpu, info, allocator, out);
  shim.n_live += !result;
  return result;
}

static VKAPI_ATTR void VKAPI_CALL destroy_device(VkDevice device, const VkAllocationCallbacks *allocator) {
  shim.n_live -= device != VK_NULL_HANDLE;
  vkDestroyDevice(device, allocator);
}

static VKAPI_ATTR VkResult VKAPI_CALL get_pipeline_cache_data(VkDevice device, VkPipelineCache cache,
                                                              size_t *n, void *out) {
  INJECT(vkGetPipelineCacheData, HOST, DEVICE, VK_INCOMPLETE);
  return vkGetPipelineCacheData(device, cache, n, out);
}

/* ---- limits ---- */

static void lower(VkPhysicalDeviceLimits *limits) {
  if (shim.small_limits) {
    limits->maxComputeWorkGroupInvocations = 128;
    limits->maxComputeWorkGroupSize[0] = limits->maxComputeWorkGroupSize[1] = 128;
    limits->maxComputeWorkGroupSize[2] = 64;
    limits->maxComputeSharedMemorySize = 16384;
    limits->maxStorageBufferRange = UINT32_C(1) << 27;
    limits->maxPerStageDescriptorStorageBuffers = limits->maxDescriptorSetStorageBuffers = 4;
    for (int i = 0; i < 3; i++) limits->maxComputeWorkGroupCount[i] = 65535;
    limits->minStorageBufferOffsetAlignment = 256;
    limits->maxPushConstantsSize = 128;
  }
  if (shim.max_range) limits->maxStorageBufferRange = (uint32_t)shim.max_range;
  if (shim.small_limits || shim.max_range) shim.limits = *limits;
}

static void rename_device(VkPhysicalDeviceProperties *out) {
  if (!shim.alias.vendor) return;
  out->vendorID = shim.alias.vendor;
  out->deviceID = shim.alias.device;
  out->deviceType = shim.alias.type;
}

static VKAPI_ATTR void VKAPI_CALL get_properties(VkPhysicalDevice gpu, VkPhysicalDeviceProperties *out) {
  vkGetPhysicalDeviceProperties(gpu, out);
  lower(&out->limits);
  rename_device(out);
}

static VKAPI_ATTR void VKAPI_CALL get_properties2(VkPhysicalDevice gpu, VkPhysicalDeviceProperties2 *out) {
  vkGetPhysicalDeviceProperties2(gpu, out);
  lower(&out->properties.limits);
  rename_device(&out->properties);
  VkBaseOutStructure *at = out->pNext;
  while (at && at->sType != VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES) at = at->pNext;
  if (at && shim.alias.vendor)
    ((VkPhysicalDeviceDriverProperties *)at)->driverID = (VkDriverId)shim.alias.driver;
}

static VKAPI_ATTR void VKAPI_CALL cmd_dispatch(VkCommandBuffer commands, uint32_t x, uint32_t y, uint32_t z) {
  const uint32_t *most = shim.limits.maxComputeWorkGroupCount;
  if (most[0] && (x > most[0] || y > most[1] || z > most[2])) violate("a dispatch of %u x %u x %u", x, y, z);
  vkCmdDispatch(commands, x, y, z);
}

static VKAPI_ATTR void VKAPI_CALL cmd_push_constants(VkCommandBuffer commands, VkPipelineLayout layout,
                                                     VkShaderStageFlags stages, uint32_t offset,
                                                     uint32_t bytes, const void *data) {
  if (shim.limits.maxPushConstantsSize && offset + bytes > shim.limits.maxPushConstantsSize)
    violate("%u bytes of push constants", offset + bytes);
  vkCmdPushConstants(commands, layout, stages, offset, bytes, data);
}

static VKAPI_ATTR void VKAPI_CALL update_descriptor_sets(VkDevice device, uint32_t n,
                                                         const VkWriteDescriptorSet *writes,
                                                         uint32_t n_copies,
                                                         const VkCopyDescriptorSet *copies) {
  const VkPhysicalDeviceLimits *limits = &shim.limits;
  for (uint32_t i = 0; i < n && limits->maxStorageBufferRange; i++) {
    const VkDescriptorBufferInfo *range = writes[i].pBufferInfo;
    if (range->range > limits->maxStorageBufferRange ||
        range->offset % limits->minStorageBufferOffsetAlignment)
      violate("a binding of %llu bytes at %llu", (unsigned long long)range->range,
              (unsigned long long)range->offset);
  }
  vkUpdateDescriptorSets(device, n, writes, n_copies, copies);
}

/* ---- the way in ---- */

#define OBJECT(name)                                                                                         \
  {"vkCreate" #name, (PFN_vkVoidFunction)create_##name}, {                                                   \
    "vkDestroy" #name, (PFN_vkVoidFunction)destroy_##name                                                    \
  }

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_proc_addr(VkDevice device, const char *name);

static const struct replacement {
  const char *name;
  PFN_vkVoidFunction function;
} replacements[] = {
    OBJECT(Buffer),
    OBJECT(CommandPool),
    OBJECT(DescriptorPool),
    OBJECT(DescriptorSetLayout),
    OBJECT(Fence),
    OBJECT(PipelineCache),
    OBJECT(PipelineLayout),
    OBJECT(QueryPool),
    OBJECT(ShaderModule),
    {"vkCreateComputePipelines", (PFN_vkVoidFunction)create_ComputePipelines},
    {"vkDestroyPipeline", (PFN_vkVoidFunction)destroy_Pipeline},
    {"vkAllocateMemory", (PFN_vkVoidFunction)allocate_memory},
    {"vkFreeMemory", (PFN_vkVoidFunction)free_memory},
    {"vkAllocateCommandBuffers", (PFN_vkVoidFunction)allocate_command_buffers},
    {"vkAllocateDescriptorSets", (PFN_vkVoidFunction)allocate_descriptor_sets},
    {"vkBeginCommandBuffer", (PFN_vkVoidFunction)begin_command_buffer},
    {"vkEndCommandBuffer", (PFN_vkVoidFunction)end_command_buffer},
    {"vkBindBufferMemory", (PFN_vkVoidFunction)bind_buffer_memory},
    {"vkGetQueryPoolResults", (PFN_vkVoidFunction)get_query_pool_results},
    {"vkMapMemory", (PFN_vkVoidFunction)map_memory},
    {"vkQueueSubmit", (PFN_vkVoidFunction)queue_submit},
    {"vkResetCommandPool", (PFN_vkVoidFunction)reset_command_pool},
    {"vkCreateInstance", (PFN_vkVoidFunction)create_instance},
    {"vkDestroyInstance", (PFN_vkVoidFunction)destroy_instance},
    {"vkEnumeratePhysicalDevices", (PFN_vkVoidFunction)enumerate_devices},
    {"vkEnumerateDeviceExtensionProperties", (PFN_vkVoidFunction)enumerate_extensions},
    {"vkCreateDevice", (PFN_vkVoidFunction)create_device},
    {"vkDestroyDevice", (PFN_vkVoidFunction)destroy_device},
    {"vkGetPipelineCacheData", (PFN_vkVoidFunction)get_pipeline_cache_data},
    {"vkResetDescriptorPool", (PFN_vkVoidFunction)reset_descriptor_pool},
    {"vkResetFences", (PFN_vkVoidFunction)reset_fences},
    {"vkWaitForFences", (PFN_vkVoidFunction)wait_for_fences},
    {"vkQueueWaitIdle", (PFN_vkVoidFunction)queue_wait_idle},
    {"vkGetPhysicalDeviceProperties", (PFN_vkVoidFunction)get_properties},
    {"vkGetPhysicalDeviceProperties2", (PFN_vkVoidFunction)get_properties2},
    {"vkCmdDispatch", (PFN_vkVoidFunction)cmd_dispatch},
    {"vkCmdPushConstants", (PFN_vkVoidFunction)cmd_push_constants},
    {"vkUpdateDescriptorSets", (PFN_vkVoidFunction)update_descriptor_sets},
    {"vkGetDeviceProcAddr", (PFN_vkVoidFunction)get_device_proc_addr},
    {"vkSetDebugUtilsObjectNameEXT", (PFN_vkVoidFunction)set_object_name},
};

static PFN_vkVoidFunction replace(const char *name, PFN_vkVoidFunction real) {
  if (shim.hidden && !strcmp(name, shim.hidden)) return NULL;
  for (size_t i = 0; i < sizeof replacements / sizeof *replacements && real; i++)
    if (!strcmp(name, replacements[i].name)) return replacements[i].function;
  return real;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_proc_addr(VkDevice device, const char *name) {
  return replace(name, vkGetDeviceProcAddr(device, name));
}

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL shim_get_instance_proc_addr(VkInstance instance, const char *name) {
  return replace(name, vkGetInstanceProcAddr(instance, name));
}
