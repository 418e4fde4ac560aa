/* example: laprox in an app that owns its VkDevice. It says in the log (tag "laprox") what evicting a cache of 4,096
 * tokens to 5 % would take; tools/examples/embed.c goes on from there. */
#include <android/log.h>
#include <android/native_activity.h>
#include <laprox/vulkan.h>
#include <vulkan/vulkan.h>

static void say(void *user, laprox_message_level level, const char *text) {
  (void)user;
  __android_log_write(level == LAPROX_MESSAGE_ERROR ? ANDROID_LOG_ERROR : ANDROID_LOG_INFO, "laprox", text);
}

static void plan(laprox_context *context) {
  const laprox_plan_info info = {.shape = {.n_layers = 16, .n_heads = 16, .n_kv_heads = 8, .head_dim = 64},
                                 .policy.budget.share = 0.05,
                                 .n_segments = 1,
                                 .segments = {{.n_entries = 4096}}};
  laprox_plan *eviction = NULL;
  laprox_requirements needs;
  if (laprox_plan_create(context, &info, &eviction)) return;
  laprox_plan_requirements(eviction, &needs);
  __android_log_print(ANDROID_LOG_INFO, "laprox", "%llu of %llu entries stay; %llu bytes of scratch",
                      (unsigned long long)needs.n_kept, 16ull * 8 * 4096,
                      (unsigned long long)needs.scratch_bytes);
  laprox_plan_destroy(eviction);
}

static void use(VkInstance instance, VkPhysicalDevice gpu) {
  const float priority = 1;
  const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                         .queueCount = 1, /* of family 0, which computes on every phone */
                                         .pQueuePriorities = &priority};
  const VkDeviceCreateInfo device_info = {
      .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue};
  laprox_context_info info = {.host.message = say,
                              .instance = instance,
                              .physical_device = gpu,
                              .get_instance_proc_addr = vkGetInstanceProcAddr};
  laprox_context *context = NULL;
  if (vkCreateDevice(gpu, &device_info, NULL, &info.device)) return;
  if (!laprox_context_create(&info, &context)) plan(context);
  laprox_context_destroy(context);
  vkDestroyDevice(info.device, NULL);
}

void ANativeActivity_onCreate(ANativeActivity *activity, void *saved, size_t saved_bytes) {
  (void)activity, (void)saved, (void)saved_bytes;
  const VkApplicationInfo about = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                   .apiVersion = VK_API_VERSION_1_1};
  const VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                     .pApplicationInfo = &about};
  VkInstance instance;
  VkPhysicalDevice gpu;
  uint32_t n_gpus = 1;
  if (vkCreateInstance(&info, NULL, &instance)) return;
  if (vkEnumeratePhysicalDevices(instance, &n_gpus, &gpu) >= 0 && n_gpus) use(instance, gpu);
  vkDestroyInstance(instance, NULL);
}
