/* features.c: optional features: which ones a device has, and which variants of the kernels follow from those that an
   application has enabled. */
#include "vk/vk.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const variant_names[LAPROX_N_VARIANTS] = {"large_tiles", "subgroup", "storage16",
                                                             "matrix"};

const char *laprox_variant_name(uint32_t variant) {
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
    if (variant == 1u << i) return variant_names[i];
  return NULL;
}

bool laprox_variants_parse(const char *names, uint32_t *variants) {
  *variants = 0;
  for (const char *name = names;; name++) {
    const size_t length = strcspn(name, ",");
    uint32_t found = 0;
    for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
      if (strlen(variant_names[i]) == length && !memcmp(name, variant_names[i], length)) found = 1u << i;
    if (length == 3 && !memcmp(name, "all", 3)) found = LAPROX_ALL_VARIANTS;
    if (!found && !(length == 8 && !memcmp(name, "baseline", 8))) return false;
    if (found == LAPROX_VARIANT_MATRIX) found |= LAPROX_VARIANT_STORAGE16;
    *variants |= found;
    name += length;
    if (!*name) return true;
  }
}

/* ---- what a device offers ---- */

typedef struct extension_list {
  const VkExtensionProperties *properties;
  uint32_t count;
} extension_list;

static bool offers(const extension_list *list, const char *name) {
  for (uint32_t i = 0; i < list->count; i++)
    if (!strcmp(list->properties[i].extensionName, name)) return true;
  return false;
}

bool lpx_device_offers(PFN_vkGetInstanceProcAddr get_instance_proc_addr, VkInstance instance,
                       VkPhysicalDevice physical_device, const char *extension) {
  PFN_vkEnumerateDeviceExtensionProperties enumerate =
      (PFN_vkEnumerateDeviceExtensionProperties)get_instance_proc_addr(
          instance, "vkEnumerateDeviceExtensionProperties");
  VkExtensionProperties found[320]; /* 83 kB: some threads have a stack of 128 */
  extension_list list = {.properties = found, .count = sizeof found / sizeof *found};
  return enumerate && enumerate(physical_device, NULL, &list.count, found) >= 0 && offers(&list, extension);
}

static void enable(laprox_features *out, const char *extension) {
  out->extensions[out->n_extensions++] = extension;
}

static void link_feature(laprox_features *out, void *feature) {
  VkBaseOutStructure *base = feature;
  base->pNext = out->features.pNext;
  out->features.pNext = feature;
}

/* Extensions by name even where a newer Vulkan has them in its core: the application may have asked for 1.1. */
static void choose(const extension_list *list, uint32_t variants, laprox_features *out) {
  out->features = (VkPhysicalDeviceFeatures2){.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
  out->storage16.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES;
  out->float16.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES;
  out->memory_model.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES;
  out->subgroup_size.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES;
  out->cooperative_matrix.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR;
  if (offers(list, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME)) enable(out, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
  if ((variants & (LAPROX_VARIANT_SUBGROUP | LAPROX_VARIANT_MATRIX)) &&
      offers(list, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME)) {
    enable(out, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME);
    link_feature(out, &out->subgroup_size);
  }
  if (!(variants & LAPROX_VARIANT_STORAGE16) || !offers(list, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME))
    return;
  enable(out, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME);
  link_feature(out, &out->storage16);
  link_feature(out, &out->float16);
  if (!(variants & LAPROX_VARIANT_MATRIX) || !offers(list, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME) ||
      !offers(list, VK_KHR_VULKAN_MEMORY_MODEL_EXTENSION_NAME))
    return;
  enable(out, VK_KHR_VULKAN_MEMORY_MODEL_EXTENSION_NAME);
  enable(out, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME);
  link_feature(out, &out->memory_model);
  link_feature(out, &out->cooperative_matrix);
}

/* The query sets every feature that the structs of the chain have; we want these alone. */
static void keep_wanted(laprox_features *out) {
  out->features.features = (VkPhysicalDeviceFeatures){0};
  out->storage16.uniformAndStorageBuffer16BitAccess = VK_FALSE;
  out->storage16.storagePushConstant16 = VK_FALSE;
  out->storage16.storageInputOutput16 = VK_FALSE;
  out->float16.shaderInt8 = VK_FALSE;
  out->memory_model.vulkanMemoryModelAvailabilityVisibilityChains = VK_FALSE;
  out->cooperative_matrix.cooperativeMatrixRobustBufferAccess = VK_FALSE;
}

void laprox_features_query(PFN_vkGetInstanceProcAddr get_instance_proc_addr, VkInstance instance,
                           VkPhysicalDevice physical_device, uint32_t variants, laprox_features *out) {
  *out = (laprox_features){.features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2}};
#define FUNCTION(name) PFN_vk##name name = (PFN_vk##name)get_instance_proc_addr(instance, "vk" #name)
  FUNCTION(GetPhysicalDeviceProperties);
  FUNCTION(GetPhysicalDeviceFeatures2);
  FUNCTION(EnumerateDeviceExtensionProperties);
#undef FUNCTION
  if (!GetPhysicalDeviceProperties || !GetPhysicalDeviceFeatures2 || !EnumerateDeviceExtensionProperties)
    return;
  VkPhysicalDeviceProperties properties;
  GetPhysicalDeviceProperties(physical_device, &properties);
  if (properties.apiVersion < VK_API_VERSION_1_1) return;
  VkExtensionProperties found[512];
  extension_list list = {.properties = found, .count = sizeof found / sizeof *found};
  if (EnumerateDeviceExtensionProperties(physical_device, NULL, &list.count, found) < 0) return;
  choose(&list, variants, out);
  GetPhysicalDeviceFeatures2(physical_device, &out->features);
  keep_wanted(out);
}

/* ---- what a context may use ---- */

static const void *find_struct(const laprox_context_info *info, VkStructureType type) {
  const VkBaseInStructure *at = info->features ? info->features->pNext : NULL;
  while (at && at->sType != type) at = at->pNext;
  return at;
}

static bool is_listed(const laprox_context_info *info, const char *extension) {
  for (uint32_t i = 0; info->extensions && i < info->n_extensions; i++)
    if (!strcmp(info->extensions[i], extension)) return true;
  return false;
}

typedef struct enabled {
  bool storage16, float16, memory_model, subgroup_size, full_subgroups, matrix;
} enabled;

/* Features by extension, or by the struct of the core version that has taken them up. */
static enabled read_enabled(const laprox_context_info *info) {
  enabled on = {0};
#define READ(member, struct_name, struct_type, field)                                                        \
  do {                                                                                                       \
    const struct_name *found =                                                                               \
        find_struct(info, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_##struct_type##_FEATURES);                       \
    if (found && found->field) on.member = true;                                                             \
  } while (0)
  READ(storage16, VkPhysicalDevice16BitStorageFeatures, 16BIT_STORAGE, storageBuffer16BitAccess);
  READ(storage16, VkPhysicalDeviceVulkan11Features, VULKAN_1_1, storageBuffer16BitAccess);
  READ(float16, VkPhysicalDeviceShaderFloat16Int8Features, SHADER_FLOAT16_INT8, shaderFloat16);
  READ(float16, VkPhysicalDeviceVulkan12Features, VULKAN_1_2, shaderFloat16);
  READ(memory_model, VkPhysicalDeviceVulkanMemoryModelFeatures, VULKAN_MEMORY_MODEL, vulkanMemoryModel);
  READ(memory_model, VkPhysicalDeviceVulkan12Features, VULKAN_1_2, vulkanMemoryModel);
  READ(subgroup_size, VkPhysicalDeviceSubgroupSizeControlFeatures, SUBGROUP_SIZE_CONTROL,
       subgroupSizeControl);
  READ(subgroup_size, VkPhysicalDeviceVulkan13Features, VULKAN_1_3, subgroupSizeControl);
  READ(full_subgroups, VkPhysicalDeviceSubgroupSizeControlFeatures, SUBGROUP_SIZE_CONTROL,
       computeFullSubgroups);
  READ(full_subgroups, VkPhysicalDeviceVulkan13Features, VULKAN_1_3, computeFullSubgroups);
#undef READ
  typedef struct matrix_features {
    VkStructureType sType;
    const void *pNext;
    VkBool32 cooperativeMatrix;
  } matrix_features;
  const matrix_features *matrix =
      find_struct(info, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR);
  on.matrix =
      matrix && matrix->cooperativeMatrix && is_listed(info, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME);
  return on;
}

/* A size that can be required of every compute pipeline: a power of two of which a workgroup of 128 has a whole
   number. Reported sizes alone have been wrong. */
static bool can_pin_subgroups(laprox_context *context, bool size_control) {
  VkPhysicalDeviceSubgroupSizeControlProperties control = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES};
  VkPhysicalDeviceSubgroupProperties subgroup = {.sType =
                                                     VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES,
                                                 .pNext = size_control ? &control : NULL};
  VkPhysicalDeviceProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                     .pNext = &subgroup};
  context->vk.GetPhysicalDeviceProperties2(context->physical_device, &all);
  const uint32_t size = subgroup.subgroupSize;
  const VkSubgroupFeatureFlags wanted = VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_VOTE_BIT |
                                        VK_SUBGROUP_FEATURE_BALLOT_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
  context->subgroup_size = size;
  return size_control && size >= 4 && size <= 128 && !(size & (size - 1)) &&
         size >= control.minSubgroupSize && size <= control.maxSubgroupSize &&
         (control.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT) &&
         (subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) &&
         (subgroup.supportedOperations & wanted) == wanted &&
         control.maxComputeWorkgroupSubgroups >= 128 / size;
}

/* What shares out its workgroups; 0 where the driver doesn't say. */
static uint32_t count_processors(const laprox_context *context,
                                 PFN_vkGetInstanceProcAddr get_instance_proc_addr) {
  VkPhysicalDeviceShaderSMBuiltinsPropertiesNV processors = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_SM_BUILTINS_PROPERTIES_NV};
  VkPhysicalDeviceProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                     .pNext = &processors};
  if (!lpx_device_offers(get_instance_proc_addr, context->instance, context->physical_device,
                         VK_NV_SHADER_SM_BUILTINS_EXTENSION_NAME))
    return 0;
  context->vk.GetPhysicalDeviceProperties2(context->physical_device, &all);
  return processors.shaderSMCount;
}

static bool better_matrix(const VkCooperativeMatrixPropertiesKHR *a,
                          const VkCooperativeMatrixPropertiesKHR *b) {
  const bool a_square = a->MSize == 16 && a->NSize == 16 && a->KSize == 16;
  const bool b_square = b->MSize == 16 && b->NSize == 16 && b->KSize == 16;
  if (a_square != b_square) return a_square;
  return a->MSize * a->NSize * a->KSize > b->MSize * b->NSize * b->KSize;
}

static bool multiplies_halves(const VkCooperativeMatrixPropertiesKHR *p, uint32_t sum_type) {
  return (uint32_t)p->AType == VK_COMPONENT_TYPE_FLOAT16_KHR &&
         (uint32_t)p->BType == VK_COMPONENT_TYPE_FLOAT16_KHR && (uint32_t)p->CType == sum_type &&
         (uint32_t)p->ResultType == sum_type && (uint32_t)p->scope == VK_SCOPE_SUBGROUP_KHR;
}

/* Sizes that divide the kernels' tiles, f16 in and f32 out; 16 x 16 x 16 where there is one. */
static bool find_matrix(laprox_context *context, PFN_vkGetInstanceProcAddr get_instance_proc_addr) {
  PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR get =
      (PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)get_instance_proc_addr(
          context->instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
  VkCooperativeMatrixPropertiesKHR found[64], best = {0};
  uint32_t count = sizeof found / sizeof *found;
  for (uint32_t i = 0; i < count; i++)
    found[i] =
        (VkCooperativeMatrixPropertiesKHR){.sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR};
  if (!get || get(context->physical_device, &count, found) < 0) return false;
  for (uint32_t i = 0; i < count; i++) {
    const VkCooperativeMatrixPropertiesKHR *p = &found[i];
    if (!multiplies_halves(p, VK_COMPONENT_TYPE_FLOAT32_KHR)) continue;
    if (!p->MSize || !p->NSize || !p->KSize || 16 % p->MSize || 16 % p->NSize || 16 % p->KSize) continue;
    if (!best.MSize || better_matrix(p, &best)) best = *p;
  }
  context->matrix.m = best.MSize;
  context->matrix.n = best.NSize;
  context->matrix.k = best.KSize;
  for (uint32_t i = 0; i < count; i++)
    if (found[i].MSize == best.MSize && found[i].NSize == best.NSize && found[i].KSize == best.KSize &&
        multiplies_halves(&found[i], VK_COMPONENT_TYPE_FLOAT16_KHR))
      context->matrix.half_sums = true;
  return best.MSize != 0;
}

void lpx_variant_drop(laprox_context *context, uint32_t variant, const char *format, ...) {
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
    if (variant == 1u << i && !context->variant_reasons[i][0]) {
      va_list arguments;
      va_start(arguments, format);
      (void)vsnprintf(context->variant_reasons[i], LPX_REASON_BYTES, format, arguments);
      va_end(arguments);
    }
  context->variants &= ~variant;
  if (variant == LAPROX_VARIANT_STORAGE16)
    lpx_variant_drop(context, LAPROX_VARIANT_MATRIX, "needs storage16");
}

void lpx_features_read(laprox_context *context, const laprox_context_info *info) {
  const enabled on = read_enabled(info);
  context->has_memory_budget = is_listed(info, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
  context->variants = LAPROX_ALL_VARIANTS;
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
    if (info->variants_off >> i & 1) lpx_variant_drop(context, 1u << i, "left out as asked");
  if (!can_pin_subgroups(context, on.subgroup_size && on.full_subgroups)) {
    lpx_variant_drop(context, LAPROX_VARIANT_SUBGROUP,
                     "no shuffles, ballots and full subgroups of one size, or not enabled");
    lpx_variant_drop(context, LAPROX_VARIANT_MATRIX, "no full subgroups of one size, or not enabled");
  }
  context->wide_operands = context->subgroup_size > 32;
  if (!on.storage16 || !on.float16)
    lpx_variant_drop(context, LAPROX_VARIANT_STORAGE16,
                     "no 16-bit storage buffers with f16 arithmetic, or not enabled");
  if (!on.memory_model || !on.matrix)
    lpx_variant_drop(context, LAPROX_VARIANT_MATRIX,
                     "no cooperative matrices with Vulkan's memory model, or not enabled");
  lpx_quirks_apply(context, info->get_instance_proc_addr);
  context->n_processors = count_processors(context, info->get_instance_proc_addr);
  /* one driver crashes here, so only where they would be used */
  if ((context->variants & LAPROX_VARIANT_MATRIX) && !find_matrix(context, info->get_instance_proc_addr))
    lpx_variant_drop(context, LAPROX_VARIANT_MATRIX, "no cooperative matrices of f16 with f32 sums");
}
