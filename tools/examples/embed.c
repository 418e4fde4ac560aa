/* embed: eviction in an application's own device, buffer and command buffer, all in one file. The library plans and
 * records; it submits nothing. K and V are made up here: a real application has them already. */
#include <volk.h>

#include <laprox/vulkan.h>

#include <stdio.h>
#include <stdlib.h>

enum {
  LAYERS = 2,
  HEADS = 8,
  KV_HEADS = 2,
  DIM = 64,
  MODEL_DIM = 128,
  TOKENS = 1000,
  BUFFER_BYTES = 8 << 20
};

/* Vulkan's results and the library's are 0 where all went well. */
#define MUST(call)                                                                                           \
  if (call) exit(((void)fprintf(stderr, "failed: %s\n", #call), 1))

static VkInstance instance;
static VkPhysicalDevice gpu;
static VkDevice device;
static uint32_t family;
static VkBuffer buffer; /* one for everything, and in sight of the host, to be short */
static VkDeviceMemory memory;
static float *mapped;

static void create_device(void) {
  uint32_t n_gpus = 1, n_families = 16;
  VkQueueFamilyProperties families[16];
  const VkApplicationInfo about = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                   .apiVersion = VK_API_VERSION_1_1};
  const VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                     .pApplicationInfo = &about};
  MUST(volkInitialize());
  MUST(vkCreateInstance(&info, NULL, &instance));
  volkLoadInstance(instance);
  MUST(vkEnumeratePhysicalDevices(instance, &n_gpus, &gpu) < 0 || !n_gpus);
  vkGetPhysicalDeviceQueueFamilyProperties(gpu, &n_families, families);
  while (family < n_families && !(families[family].queueFlags & VK_QUEUE_COMPUTE_BIT)) family++;
  MUST(family == n_families);
  const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                         .queueFamilyIndex = family,
                                         .queueCount = 1,
                                         .pQueuePriorities = (float[]){1}};
  const VkDeviceCreateInfo own = {
      .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue};
  MUST(vkCreateDevice(gpu, &own, NULL, &device));
}

static void create_buffer(void) {
  const VkFlags wanted = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  const VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                   .size = BUFFER_BYTES,
                                   .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
                                            VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                            VK_BUFFER_USAGE_TRANSFER_DST_BIT};
  VkMemoryAllocateInfo own = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO};
  VkPhysicalDeviceMemoryProperties all;
  VkMemoryRequirements needs;
  MUST(vkCreateBuffer(device, &info, NULL, &buffer));
  vkGetBufferMemoryRequirements(device, buffer, &needs);
  vkGetPhysicalDeviceMemoryProperties(gpu, &all);
  for (uint32_t i = 0; i < all.memoryTypeCount; i++) /* Vulkan promises that there is one */
    if (needs.memoryTypeBits >> i & 1 && (all.memoryTypes[i].propertyFlags & wanted) == wanted)
      own.memoryTypeIndex = i;
  own.allocationSize = needs.size;
  MUST(vkAllocateMemory(device, &own, NULL, &memory));
  MUST(vkBindBufferMemory(device, buffer, memory, 0));
  MUST(vkMapMemory(device, memory, 0, VK_WHOLE_SIZE, 0, (void **)&mapped));
}

/* A part of the buffer, with random numbers in it. */
static laprox_buffer take(VkDeviceSize bytes) {
  static VkDeviceSize used;
  const laprox_buffer part = {buffer, used, bytes};
  used += (bytes + 255) / 256 * 256; /* no device asks for more */
  MUST(used > BUFFER_BYTES);
  for (VkDeviceSize i = part.offset / 4; i < used / 4; i++) mapped[i] = (float)(rand() % 2001) / 1000.0f - 1;
  return part;
}

static laprox_layer_buffers take_layer(const laprox_shape *shape, const laprox_requirements *needs) {
  const VkDeviceSize cache_bytes = (VkDeviceSize)KV_HEADS * TOKENS * DIM * sizeof(float);
  const laprox_layer_buffers layer = {.query = take(needs->query_bytes),
                                      .key = {take(cache_bytes)},
                                      .value = {take(cache_bytes)},
                                      .factor = take(needs->factor_bytes)};
  static float weight[MODEL_DIM * HEADS * DIM]; /* the output projection */
  for (size_t i = 0; i < sizeof weight / sizeof *weight; i++)
    weight[i] = (float)(rand() % 2001) / 1000.0f - 1;
  MUST(
      laprox_value_factor(NULL, shape, LAPROX_GQA_AUTO, MODEL_DIM, weight, mapped + layer.factor.offset / 4));
  return layer;
}

/* Records the barrier that the library leaves to the application, submits, and waits. */
static void run(VkCommandBuffer commands) {
  const VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                   .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
                                   .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
  const VkSubmitInfo info = {
      .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
  VkQueue queue;
  vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                       VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, NULL, 0, NULL);
  MUST(vkEndCommandBuffer(commands));
  vkGetDeviceQueue(device, family, 0, &queue);
  MUST(vkQueueSubmit(queue, 1, &info, VK_NULL_HANDLE));
  MUST(vkQueueWaitIdle(queue));
}

static void evict(VkCommandBuffer commands, laprox_context *context) {
  const laprox_plan_info cache = {.shape = {LAYERS, HEADS, KV_HEADS, DIM},
                                  .policy.budget.share = 0.1,
                                  .cache_dtype = LAPROX_DTYPE_F32,
                                  .n_segments = 1,
                                  .segments = {{.n_entries = TOKENS}}};
  laprox_plan *plan;
  laprox_binding *binding;
  laprox_requirements needs;
  laprox_result_layout layout;
  laprox_layer_buffers layers[LAYERS];
  MUST(laprox_plan_create(context, &cache, &plan));
  laprox_plan_requirements(plan, &needs);
  laprox_plan_result_layout(plan, &layout);
  for (int l = 0; l < LAYERS; l++) layers[l] = take_layer(&cache.shape, &needs);
  const laprox_binding_info buffers = {.layers = layers,
                                       .scratch = take(needs.scratch_bytes),
                                       .scores = take(needs.scores_bytes),
                                       .result = take(needs.result_bytes)};
  MUST(laprox_binding_create(plan, &buffers, &binding));
  MUST(laprox_cmd_steps(commands, binding, 0, laprox_binding_n_steps(binding)));
  run(commands);
  const uint32_t *rows =
      (const uint32_t *)(const void *)mapped + (buffers.result.offset + layout.cu_seqlens) / 4;
  for (uint32_t i = 0; i < LAYERS * KV_HEADS; i++)
    (void)printf("layer %u, KV head %u keeps %u of %d\n", i / KV_HEADS, i % KV_HEADS, rows[i + 1] - rows[i],
                 TOKENS);
  (void)printf("%u entries in all\n", rows[LAYERS * KV_HEADS]);
  laprox_binding_destroy(binding);
  laprox_plan_destroy(plan);
}

int main(void) {
  laprox_context *context;
  VkCommandPool pool;
  VkCommandBuffer commands;
  create_device();
  create_buffer();
  const VkCommandPoolCreateInfo pool_info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                             .queueFamilyIndex = family};
  MUST(vkCreateCommandPool(device, &pool_info, NULL, &pool));
  const VkCommandBufferAllocateInfo commands_info = {
      .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO, .commandPool = pool, .commandBufferCount = 1};
  MUST(vkAllocateCommandBuffers(device, &commands_info, &commands));
  const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  MUST(vkBeginCommandBuffer(commands, &begin));
  const laprox_context_info info = {.instance = instance,
                                    .physical_device = gpu,
                                    .device = device,
                                    .get_instance_proc_addr = vkGetInstanceProcAddr};
  MUST(laprox_context_create(&info, &context));
  evict(commands, context);
  laprox_context_destroy(context);
  vkDestroyCommandPool(device, pool, NULL);
  vkDestroyBuffer(device, buffer, NULL);
  vkFreeMemory(device, memory, NULL);
  vkDestroyDevice(device, NULL);
  vkDestroyInstance(instance, NULL);
  return 0;
}
