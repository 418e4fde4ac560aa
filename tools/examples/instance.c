#include "instance.h"

#include <stdbool.h>
#include <stdio.h>

static VKAPI_ATTR VkBool32 VKAPI_CALL on_finding(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                 VkDebugUtilsMessageTypeFlagsEXT types,
                                                 const VkDebugUtilsMessengerCallbackDataEXT *data,
                                                 void *user) {
  (void)severity;
  (void)types;
  unsigned *n_findings = user;
  ++*n_findings;
  (void)fprintf(stderr, "validation: %s\n", data->pMessage);
  return VK_FALSE;
}

VkResult instance_create(unsigned *n_findings, VkInstance *instance, VkDebugUtilsMessengerEXT *messenger) {
  const bool validate = n_findings != NULL;
  const VkApplicationInfo about = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                   .apiVersion = VK_API_VERSION_1_1};
  const VkValidationFeatureEnableEXT synchronisation =
      VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
  const VkValidationFeaturesEXT features = {.sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT,
                                            .enabledValidationFeatureCount = 1,
                                            .pEnabledValidationFeatures = &synchronisation};
  const char *layer = "VK_LAYER_KHRONOS_validation", *extension = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
  const VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                     .pNext = validate ? &features : NULL,
                                     .pApplicationInfo = &about,
                                     .enabledLayerCount = validate,
                                     .ppEnabledLayerNames = &layer,
                                     .enabledExtensionCount = validate,
                                     .ppEnabledExtensionNames = &extension};
  const VkDebugUtilsMessengerCreateInfoEXT findings = {
      .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
      .messageSeverity =
          VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT,
      .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT,
      .pfnUserCallback = on_finding,
      .pUserData = n_findings};
  *messenger = VK_NULL_HANDLE;
  const VkResult result = vkCreateInstance(&info, NULL, instance);
  if (result) return result;
  volkLoadInstance(*instance);
  return validate ? vkCreateDebugUtilsMessengerEXT(*instance, &findings, NULL, messenger) : VK_SUCCESS;
}

void instance_destroy(VkInstance instance, VkDebugUtilsMessengerEXT messenger) {
  if (messenger) vkDestroyDebugUtilsMessengerEXT(instance, messenger, NULL);
  vkDestroyInstance(instance, NULL);
}
