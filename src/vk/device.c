/* device.c: importing a VkDevice, its limits, and the objects that every pipeline shares. */
#include "vk/vk.h"

static const char *vk_result_name(VkResult result) {
  switch (result) {
  case VK_ERROR_OUT_OF_HOST_MEMORY:
    return "VK_ERROR_OUT_OF_HOST_MEMORY";
  case VK_ERROR_OUT_OF_DEVICE_MEMORY:
    return "VK_ERROR_OUT_OF_DEVICE_MEMORY";
  case VK_ERROR_INITIALIZATION_FAILED:
    return "VK_ERROR_INITIALIZATION_FAILED";
  case VK_ERROR_DEVICE_LOST:
    return "VK_ERROR_DEVICE_LOST";
  case VK_ERROR_MEMORY_MAP_FAILED:
    return "VK_ERROR_MEMORY_MAP_FAILED";
  case VK_ERROR_LAYER_NOT_PRESENT:
    return "VK_ERROR_LAYER_NOT_PRESENT";
  case VK_ERROR_EXTENSION_NOT_PRESENT:
    return "VK_ERROR_EXTENSION_NOT_PRESENT";
  case VK_ERROR_FEATURE_NOT_PRESENT:
    return "VK_ERROR_FEATURE_NOT_PRESENT";
  case VK_ERROR_INCOMPATIBLE_DRIVER:
    return "VK_ERROR_INCOMPATIBLE_DRIVER";
  case VK_ERROR_TOO_MANY_OBJECTS:
    return "VK_ERROR_TOO_MANY_OBJECTS";
  case VK_ERROR_FRAGMENTED_POOL:
    return "VK_ERROR_FRAGMENTED_POOL";
  case VK_ERROR_OUT_OF_POOL_MEMORY:
    return "VK_ERROR_OUT_OF_POOL_MEMORY";
  case VK_ERROR_FRAGMENTATION_EXT:
    return "VK_ERROR_FRAGMENTATION";
  case VK_ERROR_INVALID_EXTERNAL_HANDLE:
    return "VK_ERROR_INVALID_EXTERNAL_HANDLE";
  case VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS_KHR:
    return "VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS";
  case VK_ERROR_INVALID_SHADER_NV:
    return "VK_ERROR_INVALID_SHADER_NV";
  case VK_ERROR_VALIDATION_FAILED_EXT:
    return "VK_ERROR_VALIDATION_FAILED";
  case VK_ERROR_UNKNOWN:
    return "VK_ERROR_UNKNOWN";
  case VK_TIMEOUT:
    return "VK_TIMEOUT";
  case VK_NOT_READY:
    return "VK_NOT_READY";
  case VK_INCOMPLETE:
    return "VK_INCOMPLETE";
  default:
    return "VkResult";
  }
}

laprox_result lpx_vk_error(const laprox_host *host, VkResult result, const char *what) {
  laprox_result ours = LAPROX_ERROR_VULKAN;
  if (result == VK_ERROR_OUT_OF_HOST_MEMORY) ours = LAPROX_ERROR_OUT_OF_MEMORY;
  if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_POOL_MEMORY ||
      result == VK_ERROR_TOO_MANY_OBJECTS || result == VK_ERROR_FRAGMENTED_POOL ||
      result == VK_ERROR_FRAGMENTATION_EXT)
    ours = LAPROX_ERROR_OUT_OF_DEVICE_MEMORY;
  if (result == VK_ERROR_DEVICE_LOST) ours = LAPROX_ERROR_DEVICE_LOST;
  return lpx_fail(host, ours, "%s: %s (%d)", what, vk_result_name(result), (int)result);
}

laprox_result lpx_vk_result(laprox_context *context, VkResult result, const char *what) {
  if (result == VK_SUCCESS) return LAPROX_OK;
  if (result == VK_ERROR_DEVICE_LOST) atomic_store(&context->lost, true);
  return lpx_vk_error(&context->host, result, what);
}

laprox_result lpx_vk_check_lost(const laprox_context *context) {
  laprox_context *mutable = (laprox_context *)(uintptr_t)context; /* C11 atomic_load takes no const object */
  if (!atomic_load(&mutable->lost)) return LAPROX_OK;
  return lpx_fail(&context->host, LAPROX_ERROR_DEVICE_LOST, "device %s is lost",
                  context->properties.deviceName);
}

void lpx_vk_name(const laprox_context *context, VkObjectType type, uint64_t handle, const char *name) {
  if (!context->has_debug_utils || !handle) return;
  const VkDebugUtilsObjectNameInfoEXT info = {.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_OBJECT_NAME_INFO_EXT,
                                              .objectType = type,
                                              .objectHandle = handle,
                                              .pObjectName = name};
  (void)context->vk.SetDebugUtilsObjectNameEXT(context->device,
                                               &info); /* a name that can't be set harms nobody */
}

/* One set layout and one pipeline layout for each number of storage buffers: kernels differ in nothing else.
 */
static laprox_result create_layouts(laprox_context *context) {
  VkDescriptorSetLayoutBinding bindings[LPX_MAX_BINDINGS];
  for (uint32_t i = 0; i < LPX_MAX_BINDINGS; i++)
    bindings[i] = (VkDescriptorSetLayoutBinding){.binding = i,
                                                 .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                                 .descriptorCount = 1,
                                                 .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
  for (uint32_t n = 1; n <= LPX_MAX_BINDINGS; n++) {
    const VkDescriptorSetLayoutCreateInfo set = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
                                                 .bindingCount = n,
                                                 .pBindings = bindings};
    laprox_result result = lpx_vk_result(
        context, context->vk.CreateDescriptorSetLayout(context->device, &set, NULL, &context->set_layouts[n]),
        "vkCreateDescriptorSetLayout");
    if (result) return result;
    const VkPushConstantRange push = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = LPX_MAX_PUSH};
    const VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                               .setLayoutCount = 1,
                                               .pSetLayouts = &context->set_layouts[n],
                                               .pushConstantRangeCount = 1,
                                               .pPushConstantRanges = &push};
    result = lpx_vk_result(
        context,
        context->vk.CreatePipelineLayout(context->device, &layout, NULL, &context->pipeline_layouts[n]),
        "vkCreatePipelineLayout");
    if (result) return result;
  }
  return LAPROX_OK;
}

/* Drivers of newer devices report ranges that do not fit 32-bit indices; larger ones are of no use to us. */
static void read_limits(laprox_context *context) {
  context->vk.GetPhysicalDeviceProperties(context->physical_device, &context->properties);
  context->vk.GetPhysicalDeviceMemoryProperties(context->physical_device, &context->memory);
  const VkPhysicalDeviceLimits *limits = &context->properties.limits;
  context->max_range = limits->maxStorageBufferRange & ~(VkDeviceSize)3;
  context->range_alignment = limits->minStorageBufferOffsetAlignment;
  if (context->range_alignment < 16) context->range_alignment = 16; /* of the widest loads */
  context->max_groups = limits->maxComputeWorkGroupCount[0];
  if (context->max_groups > 65535) context->max_groups = 65535;
  const bool discrete = lpx_is_discrete(context);
  context->dispatch_cost = discrete ? UINT64_C(1) << 34 : UINT64_C(1) << 29;
  context->submit_cost = discrete ? UINT64_C(1) << 37 : UINT64_C(1) << 30;
}

static laprox_result check_info(const laprox_host *host, const laprox_context_info *info) {
  const char *missing = NULL;
  if (!info->get_instance_proc_addr) missing = "get_instance_proc_addr";
  if (!info->device) missing = "device";
  if (!info->physical_device) missing = "physical_device";
  if (!info->instance) missing = "instance";
  if (missing)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "laprox_context_info: %s is missing", missing);
  return LAPROX_OK;
}

laprox_result laprox_context_create(const laprox_context_info *info, laprox_context **out) {
  *out = NULL;
  const laprox_host host = lpx_host_complete(&info->host);
  laprox_result result = check_info(&host, info);
  if (result) return result;
  laprox_context *context = lpx_allocate(&host, 1, sizeof *context);
  if (!context) return lpx_fail_memory(&host, "a context");
  context->host = host;
  context->instance = info->instance;
  context->physical_device = info->physical_device;
  context->device = info->device;
  context->pipeline_cache = info->pipeline_cache;
  const char *absent = lpx_vk_load(&context->vk, info->get_instance_proc_addr, info->instance, info->device);
  if (absent) {
    result = lpx_fail(&host, LAPROX_ERROR_UNSUPPORTED,
                      "the Vulkan instance or device has no %s (Vulkan 1.1 is required)", absent);
    lpx_release(&host, context);
    return result;
  }
  read_limits(context);
  if (context->properties.apiVersion < VK_API_VERSION_1_1) {
    result = lpx_fail(&host, LAPROX_ERROR_UNSUPPORTED, "device %s has Vulkan %u.%u, but 1.1 is required",
                      context->properties.deviceName, VK_API_VERSION_MAJOR(context->properties.apiVersion),
                      VK_API_VERSION_MINOR(context->properties.apiVersion));
    lpx_release(&host, context);
    return result;
  }
  context->has_debug_utils = info->debug_utils && context->vk.SetDebugUtilsObjectNameEXT;
  lpx_features_read(context, info);
  result = create_layouts(context);
  if (result) {
    laprox_context_destroy(context);
    return result;
  }
  *out = context;
  return LAPROX_OK;
}

void laprox_context_destroy(laprox_context *context) {
  if (!context) return;
  lpx_pipelines_destroy(context);
  for (uint32_t n = 1; n <= LPX_MAX_BINDINGS; n++) {
    context->vk.DestroyPipelineLayout(context->device, context->pipeline_layouts[n], NULL);
    context->vk.DestroyDescriptorSetLayout(context->device, context->set_layouts[n], NULL);
  }
  const laprox_host host = context->host;
  lpx_release(&host, context);
}

uint32_t laprox_context_variants(const laprox_context *context) {
  return context->variants;
}

const char *laprox_context_variant_reason(const laprox_context *context, uint32_t variant) {
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
    if (variant == 1u << i) return context->variant_reasons[i];
  return NULL;
}

laprox_memory_use laprox_context_memory(const laprox_context *context) {
  laprox_context *mutable = (laprox_context *)(uintptr_t)context; /* C11 atomic_load takes no const object */
  return (laprox_memory_use){.bytes = atomic_load(&mutable->bytes),
                             .peak_bytes = atomic_load(&mutable->peak_bytes)};
}
