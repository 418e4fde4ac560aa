/* device.c: instances, the list of devices, opening one, importing one. */
#include "runtime/device.h"
#include "io/file.h"
#include "runtime/loader.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct laprox_instance {
  laprox_host host;
  PFN_vkGetInstanceProcAddr get_instance_proc_addr;
  VkInstance instance;
  VkDebugUtilsMessengerEXT messenger;
  bool has_debug_utils;
  uint32_t n_devices;
  VkPhysicalDevice *physical_devices;
  laprox_device_description *descriptions;
  uint32_t *families;    /* queue family of each device; UINT32_MAX: none */
  char *cache_directory; /* NULL: none */
  uint32_t variants_off;
};

/* A function of the instance, called through a pointer of the right type. */
#define INSTANCE_FUNCTION(instance, name)                                                                    \
  ((PFN_##name)(instance)->get_instance_proc_addr((instance)->instance, #name))

static VKAPI_ATTR VkBool32 VKAPI_CALL on_validation(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                    VkDebugUtilsMessageTypeFlagsEXT types,
                                                    const VkDebugUtilsMessengerCallbackDataEXT *data,
                                                    void *user) {
  (void)severity;
  (void)types;
  const laprox_host *host = user;
  (void)lpx_fail(host, LAPROX_ERROR_VULKAN, "validation: %.440s", data->pMessage);
  return VK_FALSE;
}

static VkDebugUtilsMessengerCreateInfoEXT messenger_info(laprox_host *host) {
  return (VkDebugUtilsMessengerCreateInfoEXT){
      .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
      .messageSeverity =
          VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT,
      .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT,
      .pfnUserCallback = on_validation,
      .pUserData = host};
}

static laprox_result create_vk_instance(laprox_instance *instance, bool validation) {
  PFN_vkCreateInstance create =
      (PFN_vkCreateInstance)instance->get_instance_proc_addr(NULL, "vkCreateInstance");
  const VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                         .pApplicationName = "laprox",
                                         .pEngineName = "laprox",
                                         .apiVersion = VK_API_VERSION_1_1};
  const VkValidationFeatureEnableEXT enable = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
  const VkDebugUtilsMessengerCreateInfoEXT messenger = messenger_info(&instance->host);
  const VkValidationFeaturesEXT features = {.sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT,
                                            .pNext = &messenger,
                                            .enabledValidationFeatureCount = 1,
                                            .pEnabledValidationFeatures = &enable};
  const char *layer = "VK_LAYER_KHRONOS_validation";
  const char *extension = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
  VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                               .pApplicationInfo = &application};
  if (validation) {
    info.pNext = &features;
    info.enabledLayerCount = info.enabledExtensionCount = 1;
    info.ppEnabledLayerNames = &layer;
    info.ppEnabledExtensionNames = &extension;
  }
  const VkResult result = create(&info, NULL, &instance->instance);
  if (result == VK_ERROR_LAYER_NOT_PRESENT && validation)
    return lpx_fail(&instance->host, LAPROX_ERROR_UNSUPPORTED, "the Vulkan layer %s is not installed", layer);
  if (result == VK_ERROR_INCOMPATIBLE_DRIVER || result == VK_ERROR_INITIALIZATION_FAILED)
    return lpx_fail(&instance->host, LAPROX_ERROR_NO_DEVICE,
                    "vkCreateInstance failed (VkResult %d): is a Vulkan driver installed?", (int)result);
  if (result) return lpx_vk_error(&instance->host, result, "vkCreateInstance");
  instance->has_debug_utils = validation;
  if (!validation) return LAPROX_OK;
  const VkResult made = INSTANCE_FUNCTION(instance, vkCreateDebugUtilsMessengerEXT)(
      instance->instance, &messenger, NULL, &instance->messenger);
  return made ? lpx_vk_error(&instance->host, made, "vkCreateDebugUtilsMessengerEXT") : LAPROX_OK;
}

static const char *type_name(VkPhysicalDeviceType type) {
  switch (type) {
  case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
    return "discrete";
  case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
    return "integrated";
  case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
    return "virtual";
  case VK_PHYSICAL_DEVICE_TYPE_CPU:
    return "software";
  default:
    return "other";
  }
}

static bool has_extension(const laprox_instance *instance, VkPhysicalDevice device, const char *wanted) {
  uint32_t count = 0;
  PFN_vkEnumerateDeviceExtensionProperties enumerate =
      INSTANCE_FUNCTION(instance, vkEnumerateDeviceExtensionProperties);
  if (enumerate(device, NULL, &count, NULL) || !count) return false;
  VkExtensionProperties *found = lpx_allocate(&instance->host, count, sizeof *found);
  bool has = false;
  if (found && enumerate(device, NULL, &count, found) >= 0)
    for (uint32_t i = 0; i < count && !has; i++) has = !strcmp(found[i].extensionName, wanted);
  lpx_release(&instance->host, found);
  return has;
}

/* The family to compute on: one that does graphics too is the most tested path of every driver. */
static uint32_t find_family(const laprox_instance *instance, VkPhysicalDevice device, bool *timestamps) {
  VkQueueFamilyProperties families[32];
  uint32_t count = 32, best = UINT32_MAX;
  INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceQueueFamilyProperties)(device, &count, families);
  for (uint32_t i = count; i-- > 0;) {
    if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT)) continue;
    const bool graphics = families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT;
    if (best == UINT32_MAX || graphics || !(families[best].queueFlags & VK_QUEUE_GRAPHICS_BIT)) best = i;
  }
  *timestamps = best != UINT32_MAX && families[best].timestampValidBits;
  return best;
}

static void judge(laprox_device_description *description) {
  const char *problem = NULL;
  if (description->api_version < VK_API_VERSION_1_1)
    problem = "Vulkan 1.1 is required";
  else if (description->max_compute_invocations < 128)
    problem = "fewer than 128 invocations a workgroup";
  else if (description->max_compute_shared_bytes < 16384)
    problem = "less than 16 KiB of shared memory";
  else if (description->max_storage_buffers < 4)
    problem = "fewer than 4 storage buffers a stage";
  description->usable = !problem;
  if (problem) (void)snprintf(description->reason, sizeof description->reason, "%s", problem);
}

static void describe_properties(const laprox_instance *instance, VkPhysicalDevice device,
                                laprox_device_description *description) {
  VkPhysicalDeviceProperties basic;
  INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceProperties)(device, &basic);
  VkPhysicalDeviceSubgroupProperties subgroup = {.sType =
                                                     VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES};
  VkPhysicalDeviceDriverPropertiesKHR driver = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES_KHR, .pNext = &subgroup};
  VkPhysicalDeviceProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                     .pNext = &subgroup};
  const bool has_driver = has_extension(instance, device, VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME);
  if (has_driver) all.pNext = &driver;
  if (basic.apiVersion >= VK_API_VERSION_1_1)
    INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceProperties2)(device, &all);
  (void)snprintf(description->name, sizeof description->name, "%s", basic.deviceName);
  (void)snprintf(description->driver, sizeof description->driver, "%s",
                 has_driver ? driver.driverName : "unknown");
  if (has_driver)
    (void)snprintf(description->driver_info, sizeof description->driver_info, "%s", driver.driverInfo);
  else
    (void)snprintf(description->driver_info, sizeof description->driver_info, "version 0x%x",
                   basic.driverVersion);
  description->type = type_name(basic.deviceType);
  description->vendor_id = basic.vendorID;
  description->device_id = basic.deviceID;
  description->api_version = basic.apiVersion;
  description->max_compute_invocations = basic.limits.maxComputeWorkGroupInvocations;
  description->max_compute_shared_bytes = basic.limits.maxComputeSharedMemorySize;
  description->max_push_constant_bytes = basic.limits.maxPushConstantsSize;
  description->max_storage_buffers = basic.limits.maxPerStageDescriptorStorageBuffers;
  description->max_workgroup_count_x = basic.limits.maxComputeWorkGroupCount[0];
  description->subgroup_size = subgroup.subgroupSize;
  description->max_storage_buffer_range = basic.limits.maxStorageBufferRange;
  description->min_storage_buffer_alignment = basic.limits.minStorageBufferOffsetAlignment;
  description->max_allocations = basic.limits.maxMemoryAllocationCount;
  description->timestamp_period_ns = basic.limits.timestampPeriod;
}

static void describe(laprox_instance *instance, uint32_t index) {
  const VkPhysicalDevice device = instance->physical_devices[index];
  laprox_device_description *description = &instance->descriptions[index];
  description->index = index;
  describe_properties(instance, device, description);
  VkPhysicalDeviceMemoryProperties memory;
  INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceMemoryProperties)(device, &memory);
  for (uint32_t i = 0; i < memory.memoryHeapCount; i++)
    if (memory.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT)
      description->heap_bytes += memory.memoryHeaps[i].size;
  judge(description);
  bool timestamps = false;
  instance->families[index] = find_family(instance, device, &timestamps);
  if (!timestamps) description->timestamp_period_ns = 0.0f;
  if (instance->families[index] == UINT32_MAX && description->usable) {
    description->usable = false;
    (void)snprintf(description->reason, sizeof description->reason, "no queue that computes");
  }
}

static laprox_result list_devices(laprox_instance *instance) {
  PFN_vkEnumeratePhysicalDevices enumerate = INSTANCE_FUNCTION(instance, vkEnumeratePhysicalDevices);
  uint32_t count = 0;
  VkResult result = enumerate(instance->instance, &count, NULL);
  if (result) return lpx_vk_error(&instance->host, result, "vkEnumeratePhysicalDevices");
  instance->physical_devices = lpx_allocate(&instance->host, count, sizeof *instance->physical_devices);
  instance->descriptions = lpx_allocate(&instance->host, count, sizeof *instance->descriptions);
  instance->families = lpx_allocate(&instance->host, count, sizeof *instance->families);
  if (!instance->physical_devices || !instance->descriptions || !instance->families)
    return lpx_fail_memory(&instance->host, "the list of devices");
  result = enumerate(instance->instance, &count, instance->physical_devices);
  if (result < 0) return lpx_vk_error(&instance->host, result, "vkEnumeratePhysicalDevices");
  instance->n_devices = count;
  for (uint32_t i = 0; i < count; i++) describe(instance, i);
  return LAPROX_OK;
}

laprox_result laprox_instance_create(const laprox_instance_info *info, laprox_instance **out) {
  *out = NULL;
  const laprox_host host = lpx_host_complete(&info->host);
  laprox_instance *instance = lpx_allocate(&host, 1, sizeof *instance);
  if (!instance) return lpx_fail_memory(&host, "an instance");
  instance->host = host;
  instance->variants_off = info->variants_off;
  laprox_result result = LAPROX_OK;
  if (info->cache_directory) {
    instance->cache_directory = lpx_copy_string(&host, info->cache_directory);
    if (!instance->cache_directory) result = lpx_fail_memory(&host, "an instance");
  }
  instance->get_instance_proc_addr = lpx_loader_open();
  if (!result && !instance->get_instance_proc_addr)
    result = lpx_fail(&host, LAPROX_ERROR_NO_DEVICE, "no Vulkan loader (libvulkan) on this system");
  if (!result) result = create_vk_instance(instance, info->validation);
  if (!result) result = list_devices(instance);
  if (result) {
    laprox_instance_destroy(instance);
    return result;
  }
  *out = instance;
  return LAPROX_OK;
}

void laprox_instance_destroy(laprox_instance *instance) {
  if (!instance) return;
  if (instance->messenger) INSTANCE_FUNCTION(instance, vkDestroyDebugUtilsMessengerEXT)
  (instance->instance, instance->messenger, NULL);
  if (instance->instance) INSTANCE_FUNCTION(instance, vkDestroyInstance)(instance->instance, NULL);
  lpx_release(&instance->host, instance->physical_devices);
  lpx_release(&instance->host, instance->descriptions);
  lpx_release(&instance->host, instance->families);
  lpx_release(&instance->host, instance->cache_directory);
  const laprox_host host = instance->host;
  lpx_release(&host, instance);
}

const laprox_device_description *laprox_instance_devices(const laprox_instance *instance, uint32_t *count) {
  *count = instance->n_devices;
  return instance->descriptions;
}

static int rank(const laprox_device_description *description) {
  static const char *const order[] = {"other", "software", "virtual", "integrated", "discrete"};
  if (!description->usable) return -1;
  for (int i = 4; i > 0; i--)
    if (!strcmp(description->type, order[i])) return i;
  return 0;
}

static bool contains_ignoring_case(const char *text, const char *part) {
  for (; *text; text++) {
    size_t i = 0;
    while (part[i] && tolower((unsigned char)text[i]) == tolower((unsigned char)part[i])) i++;
    if (!part[i]) return true;
  }
  return !*part;
}

/* The number a selector stands for; UINT32_MAX where it is no number. */
static uint32_t selector_index(const char *selector) {
  char *end = NULL;
  if (!isdigit((unsigned char)*selector)) return UINT32_MAX;
  const unsigned long value = strtoul(selector, &end, 10);
  return *end || value >= UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

static uint32_t choose(const laprox_instance *instance, const char *selector) {
  uint32_t best = UINT32_MAX;
  const uint32_t wanted = selector ? selector_index(selector) : UINT32_MAX;
  for (uint32_t i = 0; i < instance->n_devices; i++) {
    const laprox_device_description *candidate = &instance->descriptions[i];
    if (wanted != UINT32_MAX ? i != wanted : selector && !contains_ignoring_case(candidate->name, selector))
      continue;
    if (best == UINT32_MAX || rank(candidate) > rank(&instance->descriptions[best])) best = i;
  }
  return best;
}

static laprox_result fail_no_device(const laprox_instance *instance, const char *selector) {
  char names[320] = "none";
  size_t used = 0;
  for (uint32_t i = 0; i < instance->n_devices && used < sizeof names; i++)
    used += (size_t)snprintf(names + used, sizeof names - used, "%s%u: %s", i ? ", " : "", i,
                             instance->descriptions[i].name);
  return lpx_fail(&instance->host, LAPROX_ERROR_NO_DEVICE, "no Vulkan device %s%s; there are: %s",
                  selector ? "matches " : "at all", selector ? selector : "", names);
}

static laprox_result create_vk_device(const laprox_instance *instance, uint32_t index,
                                      const laprox_features *features, VkDevice *out) {
  const float priority = 1.0f;
  const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                         .queueFamilyIndex = instance->families[index],
                                         .queueCount = 1,
                                         .pQueuePriorities = &priority};
  const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                   .pNext = &features->features,
                                   .queueCreateInfoCount = 1,
                                   .pQueueCreateInfos = &queue,
                                   .enabledExtensionCount = features->n_extensions,
                                   .ppEnabledExtensionNames = features->extensions};
  char what[sizeof instance->descriptions->name + 32];
  (void)snprintf(what, sizeof what, "vkCreateDevice on %s", instance->descriptions[index].name);
  const VkResult result =
      INSTANCE_FUNCTION(instance, vkCreateDevice)(instance->physical_devices[index], &info, NULL, out);
  return result ? lpx_vk_error(&instance->host, result, what) : LAPROX_OK;
}

laprox_result laprox_device_open(laprox_instance *instance, const char *selector, laprox_device **out) {
  *out = NULL;
  const uint32_t index = choose(instance, selector);
  if (index == UINT32_MAX) return fail_no_device(instance, selector);
  const laprox_device_description *description = &instance->descriptions[index];
  if (!description->usable)
    return lpx_fail(&instance->host, LAPROX_ERROR_NO_DEVICE, "device %s can't be used: %s", description->name,
                    description->reason);
  const VkPhysicalDevice physical = instance->physical_devices[index];
  laprox_features features;
  laprox_features_query(instance->get_instance_proc_addr, instance->instance, physical,
                        LAPROX_ALL_VARIANTS & ~instance->variants_off, &features);
  VkDevice device = VK_NULL_HANDLE;
  laprox_result result = create_vk_device(instance, index, &features, &device);
  if (result) return result;
  PFN_vkGetDeviceProcAddr get_device_proc_addr = INSTANCE_FUNCTION(instance, vkGetDeviceProcAddr);
  PFN_vkDestroyDevice destroy_device = (PFN_vkDestroyDevice)get_device_proc_addr(device, "vkDestroyDevice");
  PFN_vkGetDeviceQueue get_queue = (PFN_vkGetDeviceQueue)get_device_proc_addr(device, "vkGetDeviceQueue");
  laprox_device_import_info import = {.context = {.host = instance->host,
                                                  .instance = instance->instance,
                                                  .physical_device = physical,
                                                  .device = device,
                                                  .get_instance_proc_addr = instance->get_instance_proc_addr,
                                                  .debug_utils = instance->has_debug_utils,
                                                  .extensions = features.extensions,
                                                  .n_extensions = features.n_extensions,
                                                  .features = &features.features,
                                                  .variants_off = instance->variants_off},
                                      .queue_family = instance->families[index]};
  get_queue(device, import.queue_family, 0, &import.queue);
  VkPhysicalDeviceProperties properties;
  INSTANCE_FUNCTION(instance, vkGetPhysicalDeviceProperties)(physical, &properties);
  lpx_pipeline_file pipelines;
  lpx_pipeline_file_open(&instance->host, instance->cache_directory, &properties, device,
                         get_device_proc_addr, &pipelines);
  import.context.pipeline_cache = pipelines.cache;
  result = laprox_device_import(&import, out);
  if (result) {
    lpx_pipeline_file_close(&pipelines, &properties);
    destroy_device(device, NULL);
    return result;
  }
  (*out)->pipelines = pipelines;
  (*out)->owned = device;
  (*out)->destroy_device = destroy_device;
  return LAPROX_OK;
}

laprox_result laprox_device_import(const laprox_device_import_info *info, laprox_device **out) {
  *out = NULL;
  const laprox_host host = lpx_host_complete(&info->context.host);
  if (!info->queue)
    return lpx_fail(&host, LAPROX_ERROR_INVALID_ARGUMENT, "laprox_device_import_info: queue is missing");
  laprox_device *device = lpx_allocate(&host, 1, sizeof *device);
  if (!device) return lpx_fail_memory(&host, "a device");
  laprox_result result = laprox_context_create(&info->context, &device->context);
  if (!result) result = lpx_queue_create(device->context, info->queue, info->queue_family, &device->queue);
  if (!result) result = lpx_self_test(device->queue);
  if (result) {
    lpx_queue_destroy(device->queue);
    laprox_context_destroy(device->context);
    lpx_release(&host, device);
    return result;
  }
  *out = device;
  return LAPROX_OK;
}

void laprox_device_destroy(laprox_device *device) {
  if (!device) return;
  const laprox_host host = device->context->host;
  const VkPhysicalDeviceProperties properties = device->context->properties;
  lpx_queue_destroy(device->queue);
  laprox_context_destroy(device->context);
  lpx_pipeline_file_close(&device->pipelines, &properties);
  if (device->owned) device->destroy_device(device->owned, NULL);
  lpx_release(&host, device);
}

laprox_context *laprox_device_context(laprox_device *device) {
  return device->context;
}

const char *laprox_device_name(const laprox_device *device) {
  return device->context->properties.deviceName;
}
