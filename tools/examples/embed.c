/* embed: eviction inside an application that owns its instance, device, queue, buffers and command buffer.
 * The library plans, records and never submits. K and V are made up; a real application has them already. */
#include <volk.h>

#include <laprox/vulkan.h>
#include <stdio.h>
#include <stdlib.h>

enum { LAYERS = 2, HEADS = 8, KV_HEADS = 2, DIM = 64, MODEL_DIM = 128, TOKENS = 1000, ARENA = 16 << 20 };

/* The application's Vulkan: one device, one queue, one arena that the device reads and one that the host
 * maps. */
typedef struct app {
  VkInstance instance;
  VkPhysicalDevice gpu;
  VkDevice device;
  uint32_t family;
  VkQueue queue;
  VkCommandPool pool;
  VkCommandBuffer commands;
  laprox_buffer arena, host; /* `offset` is what has been handed out */
  VkDeviceMemory memory[2];
  char *mapped;
  VkDeviceSize alignment;
} app;

static void must(int result, const char *what) {
  if (!result) return;
  (void)fprintf(stderr, "embed: %s failed (%d)\n", what, result);
  exit(1);
}

static void print_message(void *user, laprox_message_level level, const char *text) {
  (void)level;
  (void)fprintf(user, "%s\n", text);
}

static void open_device(app *a) {
  const float priority = 1;
  uint32_t n_gpus = 1, n_families = 16;
  VkQueueFamilyProperties families[16];
  must(volkInitialize(), "looking for a Vulkan loader");
  const VkApplicationInfo about = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                   .apiVersion = VK_API_VERSION_1_1};
  const VkInstanceCreateInfo instance = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                         .pApplicationInfo = &about};
  must(vkCreateInstance(&instance, NULL, &a->instance), "vkCreateInstance");
  volkLoadInstance(a->instance);
  must(vkEnumeratePhysicalDevices(a->instance, &n_gpus, &a->gpu) < 0 || !n_gpus, "looking for a device");
  vkGetPhysicalDeviceQueueFamilyProperties(a->gpu, &n_families, families);
  while (a->family < n_families && !(families[a->family].queueFlags & VK_QUEUE_COMPUTE_BIT)) a->family++;
  must(a->family == n_families, "looking for a queue that computes");
  const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                         .queueFamilyIndex = a->family,
                                         .queueCount = 1,
                                         .pQueuePriorities = &priority};
  const VkDeviceCreateInfo device = {
      .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue};
  must(vkCreateDevice(a->gpu, &device, NULL, &a->device), "vkCreateDevice");
  vkGetDeviceQueue(a->device, a->family, 0, &a->queue);
  const VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                        .queueFamilyIndex = a->family};
  must(vkCreateCommandPool(a->device, &pool, NULL, &a->pool), "vkCreateCommandPool");
  const VkCommandBufferAllocateInfo commands = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                .commandPool = a->pool,
                                                .commandBufferCount = 1};
  must(vkAllocateCommandBuffers(a->device, &commands, &a->commands), "vkAllocateCommandBuffers");
}

static void make_arena(app *a, int mapped, laprox_buffer *out) {
  const VkMemoryPropertyFlags wanted =
      mapped ? VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
             : VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
  const VkBufferUsageFlags usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                   VK_BUFFER_USAGE_TRANSFER_DST_BIT;
  const VkBufferCreateInfo buffer = {
      .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO, .size = ARENA, .usage = usage};
  must(vkCreateBuffer(a->device, &buffer, NULL, &out->buffer), "vkCreateBuffer");
  VkPhysicalDeviceMemoryProperties types;
  VkMemoryRequirements needs;
  vkGetPhysicalDeviceMemoryProperties(a->gpu, &types);
  vkGetBufferMemoryRequirements(a->device, out->buffer, &needs);
  VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .allocationSize = needs.size};
  while (info.memoryTypeIndex < types.memoryTypeCount &&
         (!(needs.memoryTypeBits >> info.memoryTypeIndex & 1) ||
          (types.memoryTypes[info.memoryTypeIndex].propertyFlags & wanted) != wanted))
    info.memoryTypeIndex++;
  must(info.memoryTypeIndex == types.memoryTypeCount, "looking for memory");
  must(vkAllocateMemory(a->device, &info, NULL, &a->memory[mapped]), "vkAllocateMemory");
  must(vkBindBufferMemory(a->device, out->buffer, a->memory[mapped], 0), "vkBindBufferMemory");
  if (mapped)
    must(vkMapMemory(a->device, a->memory[mapped], 0, ARENA, 0, (void **)&a->mapped), "vkMapMemory");
}

/* A part of the device's arena; the same part of the host's arena is its staging memory. */
static laprox_buffer take(app *a, VkDeviceSize bytes, float **host) {
  const laprox_buffer part = {a->arena.buffer, a->arena.offset, bytes};
  a->arena.offset += (bytes + a->alignment - 1) / a->alignment * a->alignment;
  must(a->arena.offset > ARENA, "taking a part of the arena");
  if (host) *host = (float *)(void *)(a->mapped + part.offset);
  return part;
}

/* Made-up tensors; every call is louder than the last, so that heads differ. */
static void fill(float *values, size_t n) {
  static unsigned state = 1, calls;
  const float loudness = 1 + 0.02f * (float)calls++;
  for (size_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    values[i] = loudness * ((float)(state >> 8) / 8388608.0f - 1);
  }
}

static void copy(app *a, VkBuffer from, VkBuffer to, laprox_buffer part) {
  const VkBufferCopy region = {part.offset, part.offset, part.size};
  vkCmdCopyBuffer(a->commands, from, to, 1, &region);
}

static void begin(app *a) {
  const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  must(vkResetCommandPool(a->device, a->pool, 0), "vkResetCommandPool");
  must(vkBeginCommandBuffer(a->commands, &info), "vkBeginCommandBuffer");
}

/* Submits and waits, after a barrier that the library leaves to the application: copies before host reads. */
static void finish(app *a) {
  const VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                   .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                                   .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
  const VkSubmitInfo submit = {
      .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &a->commands};
  vkCmdPipelineBarrier(a->commands, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0, 1,
                       &barrier, 0, NULL, 0, NULL);
  must(vkEndCommandBuffer(a->commands), "vkEndCommandBuffer");
  must(vkQueueSubmit(a->queue, 1, &submit, VK_NULL_HANDLE), "vkQueueSubmit");
  must(vkQueueWaitIdle(a->queue), "vkQueueWaitIdle");
}

/* What the forward pass would leave on the device: queries, keys, values; and the factor, once per model. */
static void fill_layer(app *a, const laprox_shape *shape, const laprox_requirements *needs,
                       laprox_layer_buffers *layer) {
  static float weight[MODEL_DIM * HEADS * DIM];
  const size_t head = (size_t)TOKENS * DIM;
  float *query, *key, *value, *factor;
  layer->query = take(a, needs->query_bytes, &query);
  layer->key[0] = take(a, KV_HEADS * head * sizeof(float), &key);
  layer->value[0] = take(a, KV_HEADS * head * sizeof(float), &value);
  layer->factor = take(a, needs->factor_bytes, &factor);
  fill(query, (size_t)needs->query_bytes / sizeof(float));
  fill(weight, sizeof weight / sizeof *weight);
  for (size_t g = 0; g < KV_HEADS; g++) {
    fill(key + g * head, head);
    fill(value + g * head, head);
  }
  must(laprox_value_factor(NULL, shape, LAPROX_GQA_AUTO, MODEL_DIM, weight, factor), "laprox_value_factor");
}

/* Packs what a layer keeps into buffers of their own, and shows it. */
static void compact_layer(app *a, const laprox_plan *plan, laprox_compaction_info info,
                          const uint32_t *indices) {
  const uint32_t *rows = info.cu_seqlens + (size_t)info.layer * KV_HEADS;
  const VkDeviceSize bytes = (VkDeviceSize)(rows[KV_HEADS] - rows[0]) * DIM * sizeof(float);
  float *key, *value;
  laprox_compaction *compaction = NULL;
  info.key = take(a, bytes, &key);
  info.value = take(a, bytes, &value);
  must(laprox_compaction_create(plan, &info, &compaction), "laprox_compaction_create");
  begin(a);
  must(laprox_cmd_compact(a->commands, compaction), "laprox_cmd_compact");
  copy(a, a->arena.buffer, a->host.buffer, info.key);
  copy(a, a->arena.buffer, a->host.buffer, info.value);
  finish(a);
  laprox_compaction_destroy(compaction);
  for (uint32_t g = 0; g < KV_HEADS; g++) {
    const uint32_t *kept = indices + rows[g], n = rows[g + 1] - rows[g];
    (void)printf("layer %u, KV head %u keeps %3u of %d:", info.layer, g, n, TOKENS);
    for (uint32_t i = 0; i < 8 && i < n; i++) (void)printf(" %u", kept[i]);
    (void)printf(" …; K of the first begins with %g\n", (double)key[(size_t)(rows[g] - rows[0]) * DIM]);
  }
}

static void evict(app *a, laprox_context *context) {
  const laprox_plan_info plan_info = {.shape = {LAYERS, HEADS, KV_HEADS, DIM},
                                      .policy.budget.share = 0.1,
                                      .cache_dtype = LAPROX_DTYPE_F32,
                                      .n_segments = 1,
                                      .segments = {{.n_entries = TOKENS}}};
  laprox_plan *plan = NULL;
  laprox_binding *binding = NULL;
  laprox_requirements needs;
  laprox_result_layout layout;
  laprox_layer_buffers layers[LAYERS] = {0};
  must(laprox_plan_create(context, &plan_info, &plan), "laprox_plan_create");
  laprox_plan_requirements(plan, &needs);
  laprox_plan_result_layout(plan, &layout);
  a->alignment = needs.alignment;
  for (uint32_t l = 0; l < LAYERS; l++) fill_layer(a, &plan_info.shape, &needs, &layers[l]);
  const laprox_buffer uploads = {a->host.buffer, 0, a->arena.offset};
  float *host_result;
  const laprox_binding_info buffers = {.layers = layers,
                                       .scratch = take(a, needs.scratch_bytes, NULL),
                                       .scores = take(a, needs.scores_bytes, NULL),
                                       .result = take(a, needs.result_bytes, &host_result)};
  must(laprox_binding_create(plan, &buffers, &binding), "laprox_binding_create");

  /* One command buffer: the application's copies around the library's steps, whose barriers cover both sides.
   */
  begin(a);
  copy(a, a->host.buffer, a->arena.buffer, uploads);
  must(laprox_cmd_steps(a->commands, binding, 0, laprox_binding_n_steps(binding)), "laprox_cmd_steps");
  copy(a, a->arena.buffer, a->host.buffer, buffers.result);
  finish(a);

  const uint32_t *cu_seqlens = (uint32_t *)(void *)((char *)host_result + layout.cu_seqlens);
  const uint32_t *indices = (uint32_t *)(void *)((char *)host_result + layout.indices);
  for (uint32_t l = 0; l < LAYERS; l++)
    compact_layer(a, plan,
                  (laprox_compaction_info){
                      .layer = l, .source = layers[l], .result = buffers.result, .cu_seqlens = cu_seqlens},
                  indices);
  (void)printf("%llu entries in all\n", (unsigned long long)needs.n_kept);
  laprox_binding_destroy(binding);
  laprox_plan_destroy(plan);
}

int main(void) {
  app a = {0};
  open_device(&a);
  make_arena(&a, 0, &a.arena);
  make_arena(&a, 1, &a.host);
  const laprox_context_info info = {.host = {.message = print_message, .message_user = stderr},
                                    .instance = a.instance,
                                    .physical_device = a.gpu,
                                    .device = a.device,
                                    .get_instance_proc_addr = vkGetInstanceProcAddr};
  laprox_context *context = NULL;
  must(laprox_context_create(&info, &context), "laprox_context_create");
  evict(&a, context);
  laprox_context_destroy(context);
  vkDestroyBuffer(a.device, a.arena.buffer, NULL);
  vkDestroyBuffer(a.device, a.host.buffer, NULL);
  vkFreeMemory(a.device, a.memory[0], NULL);
  vkFreeMemory(a.device, a.memory[1], NULL);
  vkDestroyCommandPool(a.device, a.pool, NULL);
  vkDestroyDevice(a.device, NULL);
  vkDestroyInstance(a.instance, NULL);
  return 0;
}
