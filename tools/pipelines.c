/* pipelines.c: makes every compute pipeline that a device's kernels need, submits nothing, and prints what the driver's
 * compiler says of each as JSON: registers, spills, shared memory. For tools/matrix.sh, whose drivers mostly have no
 * hardware. The library doesn't know: this is an application whose vkCreateComputePipelines looks twice.
 *
 *   pipelines [DEVICE [PREFIX]]      number of a device, else the first; only kernels whose names begin with PREFIX
 *
 * Exit status 1: some pipeline could not be made. */
#include "attention/attention.h"
#include "runtime/kernels.h"
#include "runtime/loader.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STATISTICS 64

/* One state for the program: Vulkan's functions have no user pointer. */
static struct {
  PFN_vkGetInstanceProcAddr get_instance_proc_addr;
  PFN_vkGetDeviceProcAddr get_device_proc_addr;
  PFN_vkCreateShaderModule create_shader_module;
  PFN_vkCreateComputePipelines create_compute_pipelines;
  PFN_vkGetPipelineExecutablePropertiesKHR get_executables;
  PFN_vkGetPipelineExecutableStatisticsKHR get_statistics; /* NULL: this driver has none */
  VkInstance instance;
  VkPhysicalDevice gpu;
  VkDevice device;
  const char *shader; /* of the last module */
  const char *prefix; /* of the kernels that are asked for */
  bool by_plan;       /* a plan asked for the pipeline, not the list of what is left */
  json_t *pipelines, *failed;
} state;

#define INSTANCE(name) ((PFN_##name)state.get_instance_proc_addr(state.instance, #name))

/* ---- statistics ---- */

static json_t *value_of(const VkPipelineExecutableStatisticKHR *s) {
  switch (s->format) {
  case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR:
    return json_boolean(s->value.b32);
  case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_INT64_KHR:
    return json_integer(s->value.i64);
  case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_UINT64_KHR:
    return json_integer((json_int_t)s->value.u64);
  default:
    return json_real(s->value.f64);
  }
}

/* Of all executables that the driver has made of the pipeline (one for each subgroup width, say). */
static json_t *statistics_of(VkPipeline pipeline) {
  json_t *all = json_array();
  if (!state.get_statistics) return all;
  VkPipelineExecutablePropertiesKHR executables[8];
  uint32_t n = sizeof executables / sizeof *executables;
  for (uint32_t i = 0; i < n; i++)
    executables[i] =
        (VkPipelineExecutablePropertiesKHR){.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR};
  const VkPipelineInfoKHR info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, .pipeline = pipeline};
  if (state.get_executables(state.device, &info, &n, executables) < 0) return all;
  for (uint32_t i = 0; i < n; i++) {
    VkPipelineExecutableStatisticKHR found[MAX_STATISTICS];
    uint32_t count = MAX_STATISTICS;
    for (uint32_t j = 0; j < count; j++)
      found[j] =
          (VkPipelineExecutableStatisticKHR){.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR};
    const VkPipelineExecutableInfoKHR which = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR, .pipeline = pipeline, .executableIndex = i};
    if (state.get_statistics(state.device, &which, &count, found) < 0) continue;
    json_t *one = json_pack("{s:s, s:I}", "executable", executables[i].name, "subgroup_size",
                            (json_int_t)executables[i].subgroupSize);
    for (uint32_t j = 0; j < count; j++) json_object_set_new(one, found[j].name, value_of(&found[j]));
    json_array_append_new(all, one);
  }
  return all;
}

/* ---- between the library and Vulkan ---- */

static VKAPI_ATTR VkResult VKAPI_CALL create_shader_module(VkDevice device,
                                                           const VkShaderModuleCreateInfo *info,
                                                           const VkAllocationCallbacks *allocator,
                                                           VkShaderModule *out) {
  for (size_t i = 0; i < lpx_n_shaders; i++)
    if (lpx_shaders[i].code == info->pCode) state.shader = lpx_shaders[i].name;
  return state.create_shader_module(device, info, allocator, out);
}

static json_t *constants_of(const VkSpecializationInfo *info) {
  json_t *constants = json_array();
  for (uint32_t i = 0; info && i < info->mapEntryCount; i++)
    json_array_append_new(constants, json_integer(((const uint32_t *)info->pData)[i]));
  return constants;
}

static bool is_known(const json_t *wanted) {
  size_t i;
  json_t *one;
  json_array_foreach(
      state.pipelines, i,
      one) if (json_equal(json_object_get(one, "constants"), json_object_get(wanted, "constants")) &&
               json_equal(json_object_get(one, "shader"), json_object_get(wanted, "shader"))) return true;
  return false;
}

/* One that was made already, for another plan or without variants, would come out the same. */
static bool is_wanted(const json_t *pipeline) {
  return !strncmp(state.shader, state.prefix, strlen(state.prefix)) && !is_known(pipeline);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_compute_pipelines(VkDevice device, VkPipelineCache cache,
                                                               uint32_t n,
                                                               const VkComputePipelineCreateInfo *infos,
                                                               const VkAllocationCallbacks *allocator,
                                                               VkPipeline *out) {
  VkComputePipelineCreateInfo info = infos[0];
  json_t *one = json_pack("{s:s, s:o, s:b}", "shader", state.shader, "constants",
                          constants_of(info.stage.pSpecializationInfo), "used", (int)state.by_plan);
  *out = VK_NULL_HANDLE; /* nothing is ever dispatched */
  if (!is_wanted(one)) {
    json_decref(one);
    return VK_SUCCESS;
  }
  if (state.get_statistics) info.flags |= VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR;
  const uint64_t began_ns = lpx_now_ns();
  const VkResult result = state.create_compute_pipelines(device, cache, n, &info, allocator, out);
  const double ms = (double)(lpx_now_ns() - began_ns) * 1e-6;
  fprintf(stderr, "%s: %.0f ms\n", state.shader, ms); /* the last one, where a rig takes too long */
  json_object_set_new(one, "compile_ms", json_real(ms));
  if (result)
    json_object_set_new(one, "error", json_integer(result));
  else
    json_object_set_new(one, "statistics", statistics_of(*out));
  json_array_append_new(result ? state.failed : state.pipelines, one);
  return result;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_proc_addr(VkDevice device, const char *name) {
  if (!strcmp(name, "vkCreateShaderModule")) return (PFN_vkVoidFunction)create_shader_module;
  if (!strcmp(name, "vkCreateComputePipelines")) return (PFN_vkVoidFunction)create_compute_pipelines;
  return state.get_device_proc_addr(device, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_instance_proc_addr(VkInstance instance,
                                                                       const char *name) {
  if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)get_device_proc_addr;
  return state.get_instance_proc_addr(instance, name);
}

/* ---- the kernels of every room, for the shapes of models there are; rare types for the first shape alone ---- */

static const laprox_shape shapes[] = {
    {.n_layers = 2, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128}, /* Llama 3.1 8B, Qwen3 8B */
    {.n_layers = 2, .n_heads = 12, .n_kv_heads = 2, .head_dim = 128}, /* Qwen2.5 1.5B */
    {.n_layers = 2, .n_heads = 32, .n_kv_heads = 8, .head_dim = 64},  /* Llama 3.2 1B */
    {.n_layers = 2, .n_heads = 4, .n_kv_heads = 1, .head_dim = 256},  /* Gemma 3 1B */
    {.n_layers = 2, .n_heads = 32, .n_kv_heads = 32, .head_dim = 80}, /* no multiple of 32, no groups */
};

static void make_plans(laprox_context *context, const laprox_shape *shape) {
  static const laprox_policy policies[] = {{.kind = LAPROX_POLICY_LAPROX, .floor = 8},
                                           {.kind = LAPROX_POLICY_LAPROX, .gqa = LAPROX_GQA_JOINT},
                                           {.kind = LAPROX_POLICY_LAPROX, .gqa = LAPROX_GQA_ATTENTION_MEAN},
                                           {.kind = LAPROX_POLICY_SNAPKV},
                                           {.kind = LAPROX_POLICY_STREAMING, .sinks = 4},
                                           {.kind = LAPROX_POLICY_RANDOM}};
  static const laprox_dtype types[] = {LAPROX_DTYPE_F16, LAPROX_DTYPE_BF16, LAPROX_DTYPE_F32};
  for (size_t p = 0; p < sizeof policies / sizeof *policies; p++)
    for (size_t t = 0; t < (shape == shapes ? sizeof types / sizeof *types : 1); t++) {
      laprox_plan_info info = {.shape = *shape,
                               .policy = policies[p],
                               .cache_dtype = types[t],
                               .n_segments = 1,
                               .segments = {{.n_entries = 4096}},
                               .retain_scores = p == 0};
      laprox_plan *plan = NULL;
      info.policy.budget.share = 0.05;
      (void)laprox_plan_create(context, &info, &plan);
      laprox_plan_destroy(plan);
    }
}

static void make_runtime(laprox_context *context) {
  static const laprox_dtype caches[] = {LAPROX_DTYPE_F16, LAPROX_DTYPE_F32, LAPROX_DTYPE_Q8_0,
                                        LAPROX_DTYPE_Q4_0};
  const uint32_t weights =
      1u << LAPROX_DTYPE_F32 | 1u << LAPROX_DTYPE_F16 | 1u << LAPROX_DTYPE_BF16 | 1u << LAPROX_DTYPE_Q8_0;
  for (size_t c = 0; c < sizeof caches / sizeof *caches; c++) {
    lpx_kernels kernels;
    (void)lpx_kernels_init(context, weights, caches[c], &kernels);
    for (size_t s = 0; s < (c ? 1 : sizeof shapes / sizeof *shapes); s++) {
      lpx_attention attention;
      (void)lpx_attention_init(context, &shapes[s], caches[c], &attention);
    }
  }
}

/* Kernels that processors alone run, which take the compilers of others longest: lavapipe's rows have them. */
static bool is_for_software(const char *shader) {
  return strstr(shader, "_direct") || strstr(shader, "_rolled");
}

/* Kernels that devices with few registers have smaller ones for: compilers would be at work for minutes, to spill. */
static bool is_too_large(const laprox_context *context, const char *shader) {
  char small[80];
  if (lpx_tile_size_of(context) != LPX_TILES_SMALL) return false;
  (void)snprintf(small, sizeof small, "%s_small", shader);
  return lpx_shader_usable(context, small);
}

/* What no plan here asks for, with the constants that stand in the shader: other policies and shapes do. */
static void make_rest(laprox_context *context) {
  for (size_t i = 0; i < lpx_n_shaders; i++) {
    bool known = !lpx_shader_usable(context, lpx_shaders[i].name);
    size_t j;
    json_t *one;
    json_array_foreach(state.pipelines, j, one) if (!strcmp(json_string_value(json_object_get(one, "shader")),
                                                            lpx_shaders[i].name)) known = true;
    const bool default_shape = context->matrix.m == 16 && context->matrix.n == 16 && context->matrix.k == 16;
    if (known || ((lpx_shaders[i].needs & LAPROX_VARIANT_MATRIX) && !default_shape)) continue;
    if (is_for_software(lpx_shaders[i].name) && !lpx_is_software(context)) continue;
    if (is_too_large(context, lpx_shaders[i].name)) continue;
    lpx_pipeline pipeline;
    (void)lpx_pipeline_get(context, lpx_shaders[i].name, LPX_MAX_BINDINGS, NULL, 0, &pipeline);
  }
}

/* ---- the device ---- */

static void on_message(void *user, laprox_message_level level, const char *text) {
  (void)user;
  if (level == LAPROX_MESSAGE_ERROR) fprintf(stderr, "pipelines: %s\n", text);
}

static int give_up(const char *what) {
  fprintf(stderr, "pipelines: %s\n", what);
  return 1;
}

static int open_gpu(unsigned long index) {
  const VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                         .apiVersion = VK_API_VERSION_1_1};
  const VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                     .pApplicationInfo = &application};
  VkPhysicalDevice gpus[16];
  uint32_t n = sizeof gpus / sizeof *gpus;
  state.get_instance_proc_addr = lpx_loader_open();
  if (!state.get_instance_proc_addr) return give_up("no Vulkan loader");
  if (INSTANCE(vkCreateInstance)(&info, NULL, &state.instance)) return give_up("vkCreateInstance failed");
  if (INSTANCE(vkEnumeratePhysicalDevices)(state.instance, &n, gpus) < 0 || index >= n)
    return give_up("no such device");
  state.gpu = gpus[index];
  return 0;
}

static int open_device(laprox_features *features) {
  const float priority = 1.0f;
  const VkDeviceQueueCreateInfo queue = {
      .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueCount = 1, .pQueuePriorities = &priority};
  VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR executable = {
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR,
      .pNext = &features->features,
      .pipelineExecutableInfo = VK_TRUE};
  const bool statistics = lpx_device_offers(state.get_instance_proc_addr, state.instance, state.gpu,
                                            VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME);
  const char *extensions[16];
  uint32_t n = features->n_extensions;
  memcpy(extensions, features->extensions, n * sizeof *extensions);
  if (statistics) extensions[n++] = VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
  const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                   .pNext = statistics ? (const void *)&executable : &features->features,
                                   .queueCreateInfoCount = 1,
                                   .pQueueCreateInfos = &queue,
                                   .enabledExtensionCount = n,
                                   .ppEnabledExtensionNames = extensions};
  if (INSTANCE(vkCreateDevice)(state.gpu, &info, NULL, &state.device))
    return give_up("vkCreateDevice failed");
  state.get_device_proc_addr = INSTANCE(vkGetDeviceProcAddr);
#define DEVICE(name) ((PFN_##name)state.get_device_proc_addr(state.device, #name))
  state.create_shader_module = DEVICE(vkCreateShaderModule);
  state.create_compute_pipelines = DEVICE(vkCreateComputePipelines);
  if (statistics) {
    state.get_executables = DEVICE(vkGetPipelineExecutablePropertiesKHR);
    state.get_statistics = DEVICE(vkGetPipelineExecutableStatisticsKHR);
  }
  return 0;
}

/* Once with every variant and once with the baseline alone. */
static int make_all(const laprox_features *features, json_t *variants) {
  for (int baseline = 0; baseline < 2; baseline++) {
    const laprox_context_info info = {.host.message = on_message,
                                      .instance = state.instance,
                                      .physical_device = state.gpu,
                                      .device = state.device,
                                      .get_instance_proc_addr = get_instance_proc_addr,
                                      .extensions = features->extensions,
                                      .n_extensions = features->n_extensions,
                                      .features = &features->features,
                                      .variants_off = baseline ? LAPROX_ALL_VARIANTS : 0};
    laprox_context *context = NULL;
    if (laprox_context_create(&info, &context)) return 1;
    for (uint32_t i = 0; i < LAPROX_N_VARIANTS && !baseline; i++)
      if (context->variants >> i & 1)
        json_array_append_new(variants, json_string(laprox_variant_name(1u << i)));
    state.by_plan = true;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) make_plans(context, &shapes[s]);
    make_runtime(context);
    state.by_plan = false;
    make_rest(context);
    laprox_context_destroy(context);
  }
  return 0;
}

int main(int argc, char **argv) {
  laprox_features features;
  VkPhysicalDeviceProperties properties;
  state.prefix = argc > 2 ? argv[2] : "";
  if (open_gpu(argc > 1 ? strtoul(argv[1], NULL, 10) : 0)) return 1;
  laprox_features_query(state.get_instance_proc_addr, state.instance, state.gpu, LAPROX_ALL_VARIANTS,
                        &features);
  if (open_device(&features)) return 1;
  INSTANCE(vkGetPhysicalDeviceProperties)(state.gpu, &properties);
  state.pipelines = json_array();
  state.failed = json_array();
  json_t *variants = json_array();
  if (make_all(&features, variants)) return 1;
  const int failed = json_array_size(state.failed) != 0;
  json_t *root =
      json_pack("{s:s, s:I, s:I, s:b, s:o, s:o, s:o}", "device", properties.deviceName, "vendor_id",
                (json_int_t)properties.vendorID, "device_id", (json_int_t)properties.deviceID,
                "has_statistics", (int)(state.get_statistics != NULL), "variants", variants, "pipelines",
                state.pipelines, "failed", state.failed);
  if (!root || json_dumpf(root, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6)) ||
      fputc('\n', stdout) == EOF || fflush(stdout)) /* now: over a pretended kernel, what follows may crash */
    return give_up("standard output");
  json_decref(root);
  DEVICE(vkDestroyDevice)(state.device, NULL);
  INSTANCE(vkDestroyInstance)(state.instance, NULL);
  return failed;
}
