/* submit.c: a queue of our own: bounded submits, waiting, timestamps, staging. */
#include "vk/vk.h"

#include <string.h>

#define STAGING_BYTES ((VkDeviceSize)4 << 20)

#define SHORT_SUBMIT_NS  50e6    /* of integrated, mobile and software devices */
#define LONG_SUBMIT_NS   100e6   /* of discrete ones */
#define SHORTEST_TOLD_NS 2000000 /* shorter submits say more about submitting than about the device */
#define MAX_SUBMIT_COST  1e15

struct lpx_queue {
  laprox_context *context;
  VkQueue queue;
  uint32_t family;
  VkCommandPool command_pool;
  VkCommandBuffer command_buffer;
  VkFence fence;
  VkQueryPool timestamps; /* two; null where the queue has none */
  uint64_t timestamp_mask;
  double flops_per_ns; /* of the last submits, rather the slow ones; 0: none has been long enough to tell */
  lpx_buffer staging;  /* readback memory: cached where there is such, and writable too */
};

static laprox_result create_command_buffer(lpx_queue *queue, uint32_t family) {
  laprox_context *context = queue->context;
  const VkCommandPoolCreateInfo pool_info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                             .flags = VK_COMMAND_POOL_CREATE_TRANSIENT_BIT,
                                             .queueFamilyIndex = family};
  laprox_result result = lpx_vk_result(
      context, context->vk.CreateCommandPool(context->device, &pool_info, NULL, &queue->command_pool),
      "vkCreateCommandPool");
  if (result) return result;
  const VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                            .commandPool = queue->command_pool,
                                            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                            .commandBufferCount = 1};
  result = lpx_vk_result(context,
                         context->vk.AllocateCommandBuffers(context->device, &info, &queue->command_buffer),
                         "vkAllocateCommandBuffers");
  if (result) return result;
  const VkFenceCreateInfo fence_info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
  return lpx_vk_result(context, context->vk.CreateFence(context->device, &fence_info, NULL, &queue->fence),
                       "vkCreateFence");
}

static laprox_result create_timestamps(lpx_queue *queue, uint32_t family) {
  laprox_context *context = queue->context;
  VkQueueFamilyProperties families[32];
  uint32_t n_families = 32;
  context->vk.GetPhysicalDeviceQueueFamilyProperties(context->physical_device, &n_families, families);
  if (family >= n_families) return LAPROX_OK;
  const uint32_t bits = families[family].timestampValidBits;
  if (!bits || context->properties.limits.timestampPeriod <= 0.0f) return LAPROX_OK;
  queue->timestamp_mask = bits >= 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
  const VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                      .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                      .queryCount = 2};
  return lpx_vk_result(context, context->vk.CreateQueryPool(context->device, &info, NULL, &queue->timestamps),
                       "vkCreateQueryPool");
}

laprox_result lpx_queue_create(laprox_context *context, VkQueue handle, uint32_t family, lpx_queue **out) {
  *out = NULL;
  lpx_queue *queue = lpx_allocate(&context->host, 1, sizeof *queue);
  if (!queue) return lpx_fail_memory(&context->host, "a queue");
  queue->context = context;
  queue->queue = handle;
  queue->family = family;
  laprox_result result = create_command_buffer(queue, family);
  if (!result) result = create_timestamps(queue, family);
  if (!result)
    result = lpx_buffer_init(context, LPX_MEMORY_READBACK, STAGING_BYTES, "staging", &queue->staging);
  if (result) {
    lpx_queue_destroy(queue);
    return result;
  }
  *out = queue;
  return LAPROX_OK;
}

void lpx_queue_destroy(lpx_queue *queue) {
  if (!queue) return;
  laprox_context *context = queue->context;
  lpx_buffer_finish(context, &queue->staging);
  if (queue->timestamps) context->vk.DestroyQueryPool(context->device, queue->timestamps, NULL);
  if (queue->fence) context->vk.DestroyFence(context->device, queue->fence, NULL);
  if (queue->command_pool) context->vk.DestroyCommandPool(context->device, queue->command_pool, NULL);
  lpx_release(&context->host, queue);
}

laprox_context *lpx_queue_context(const lpx_queue *queue) {
  return queue->context;
}

uint32_t lpx_queue_family(const lpx_queue *queue) {
  return queue->family;
}

uint64_t lpx_queue_bytes(const lpx_queue *queue) {
  return queue->staging.allocated;
}

static laprox_result begin(lpx_queue *queue) {
  laprox_context *context = queue->context;
  laprox_result result = lpx_vk_check_lost(context);
  if (result) return result;
  result = lpx_vk_result(context, context->vk.ResetCommandPool(context->device, queue->command_pool, 0),
                         "vkResetCommandPool");
  if (result) return result;
  const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                         .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
  return lpx_vk_result(context, context->vk.BeginCommandBuffer(queue->command_buffer, &info),
                       "vkBeginCommandBuffer");
}

laprox_result lpx_queue_end(lpx_queue *queue, VkCommandBuffer command_buffer) {
  laprox_context *context = queue->context;
  /* Makes device writes visible to mapped memory. */
  const VkMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                   .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT | VK_ACCESS_SHADER_WRITE_BIT,
                                   .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
  context->vk.CmdPipelineBarrier(command_buffer,
                                 VK_PIPELINE_STAGE_TRANSFER_BIT | VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                                 VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, NULL, 0, NULL);
  return lpx_vk_result(context, context->vk.EndCommandBuffer(command_buffer), "vkEndCommandBuffer");
}

laprox_result lpx_queue_submit(lpx_queue *queue, const VkSubmitInfo *batches, uint32_t n_batches,
                               const char *what) {
  laprox_context *context = queue->context;
  /* Before, not after: whatever an earlier failure has left, the fence is good now. */
  laprox_result result =
      lpx_vk_result(context, context->vk.ResetFences(context->device, 1, &queue->fence), "vkResetFences");
  if (result) return result;
  result =
      lpx_vk_result(context, context->vk.QueueSubmit(queue->queue, n_batches, batches, queue->fence), what);
  if (result) return result;
  const VkResult waited = context->vk.WaitForFences(context->device, 1, &queue->fence, VK_TRUE, UINT64_MAX);
  /* The caller will free or write what the device may still be using. */
  if (waited) (void)context->vk.QueueWaitIdle(queue->queue);
  return lpx_vk_result(context, waited, what);
}

static laprox_result submit_and_wait(lpx_queue *queue, const char *what) {
  const laprox_result result = lpx_queue_end(queue, queue->command_buffer);
  const VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                             .commandBufferCount = 1,
                             .pCommandBuffers = &queue->command_buffer};
  return result ? result : lpx_queue_submit(queue, &info, 1, what);
}

static void add_device_time(const lpx_queue *queue, uint64_t *device_ns) {
  uint64_t ticks[2];
  const VkResult result =
      queue->context->vk.GetQueryPoolResults(queue->context->device, queue->timestamps, 0, 2, sizeof ticks,
                                             ticks, sizeof ticks[0], VK_QUERY_RESULT_64_BIT);
  if (result) return; /* a driver without an answer leaves the time out; nothing depends on it */
  const uint64_t passed = (ticks[1] - ticks[0]) & queue->timestamp_mask;
  *device_ns += (uint64_t)((double)passed * (double)queue->context->properties.limits.timestampPeriod);
}

laprox_result lpx_queue_record(lpx_queue *queue, lpx_record_fn record, void *user, uint64_t *device_ns) {
  const laprox_context *context = queue->context;
  const bool timed = device_ns && queue->timestamps;
  laprox_result result = begin(queue);
  if (result) return result;
  if (timed) {
    context->vk.CmdResetQueryPool(queue->command_buffer, queue->timestamps, 0, 2);
    context->vk.CmdWriteTimestamp(queue->command_buffer, VK_PIPELINE_STAGE_TOP_OF_PIPE_BIT, queue->timestamps,
                                  0);
  }
  record(user, queue->command_buffer);
  if (timed)
    context->vk.CmdWriteTimestamp(queue->command_buffer, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT,
                                  queue->timestamps, 1);
  result = submit_and_wait(queue, "vkQueueSubmit");
  if (!result && timed) add_device_time(queue, device_ns);
  return result;
}

typedef struct steps {
  const lpx_program *program;
  uint32_t first, count;
} steps;

static void record_steps(void *user, VkCommandBuffer command_buffer) {
  const steps *part = user;
  lpx_program_record(part->program, command_buffer, part->first, part->count);
}

/* What a submit may cost so that it takes as long as it should: watchdogs and a desktop's compositor wait for
 * it. Before anything is known, the context's guess. */
static uint64_t submit_limit(const lpx_queue *queue) {
  const bool discrete = lpx_is_discrete(queue->context);
  if (queue->flops_per_ns <= 0.0) return queue->context->submit_cost;
  const double limit = queue->flops_per_ns * (discrete ? LONG_SUBMIT_NS : SHORT_SUBMIT_NS);
  return limit < MAX_SUBMIT_COST ? (uint64_t)limit : (uint64_t)MAX_SUBMIT_COST;
}

/* Slowness is believed at once, speed by and by. Small submits may have compiled a pipeline first. */
static void learn(lpx_queue *queue, uint64_t cost, uint64_t ns) {
  if (ns < SHORTEST_TOLD_NS || cost < queue->context->submit_cost / 16 || !cost) return;
  const double rate = (double)cost / (double)ns;
  if (queue->flops_per_ns <= 0.0 || rate < queue->flops_per_ns)
    queue->flops_per_ns = rate;
  else
    queue->flops_per_ns += (rate - queue->flops_per_ns) / 8.0;
}

static uint64_t steps_cost(const lpx_program *program, uint32_t first, uint32_t count) {
  uint64_t cost = 0;
  for (uint32_t i = first; i < first + count; i++) cost += lpx_program_step_cost(program, i);
  return cost;
}

uint32_t lpx_queue_batch(const lpx_queue *queue, const lpx_program *program, uint32_t first, uint32_t end) {
  const uint64_t limit = submit_limit(queue);
  uint64_t cost = lpx_program_step_cost(program, first);
  uint32_t count = 1;
  while (first + count < end) {
    cost += lpx_program_step_cost(program, first + count);
    if (cost > limit) break;
    count++;
  }
  return count;
}

laprox_result lpx_queue_run_some(lpx_queue *queue, const lpx_program *program, uint32_t first, uint32_t end,
                                 uint32_t *count, uint64_t *device_ns) {
  *count = lpx_queue_batch(queue, program, first, end);
  const uint64_t start_ns = lpx_now_ns();
  const laprox_result result =
      lpx_queue_record(queue, record_steps, &(steps){program, first, *count}, device_ns);
  learn(queue, steps_cost(program, first, *count), lpx_now_ns() - start_ns);
  return result;
}

laprox_result lpx_queue_run_steps(lpx_queue *queue, const lpx_program *program, uint32_t begin_step,
                                  uint32_t n_steps, uint64_t *device_ns) {
  const uint32_t end = begin_step + n_steps;
  laprox_result result = LAPROX_OK;
  for (uint32_t first = begin_step, count; first < end && !result; first += count)
    result = lpx_queue_run_some(queue, program, first, end, &count, device_ns);
  return result;
}

laprox_result lpx_queue_run(lpx_queue *queue, const lpx_program *program, uint64_t *device_ns) {
  return lpx_queue_run_steps(queue, program, 0, lpx_program_n_steps(program), device_ns);
}

/* Moves bytes through the staging buffer in pieces; `data` is read for uploads and written for downloads. */
static laprox_result transfer(lpx_queue *queue, laprox_buffer range, uint8_t *data, size_t bytes,
                              bool upload) {
  laprox_context *context = queue->context;
  for (size_t done = 0; done < bytes;) {
    const size_t now = bytes - done < STAGING_BYTES ? bytes - done : (size_t)STAGING_BYTES;
    VkBufferCopy region = {.srcOffset = range.offset + done, .size = (now + 3) & ~(size_t)3};
    VkBuffer from = range.buffer, to = queue->staging.buffer;
    if (upload) {
      memcpy(queue->staging.mapped, data + done, now);
      region = (VkBufferCopy){.dstOffset = range.offset + done, .size = region.size};
      from = queue->staging.buffer;
      to = range.buffer;
    }
    laprox_result result = begin(queue);
    if (result) return result;
    context->vk.CmdCopyBuffer(queue->command_buffer, from, to, 1, &region);
    result = submit_and_wait(queue, upload ? "an upload" : "a download");
    if (result) return result;
    if (!upload) memcpy(data + done, queue->staging.mapped, now);
    done += now;
  }
  return LAPROX_OK;
}

laprox_result lpx_queue_upload(lpx_queue *queue, laprox_buffer to, const void *data, size_t bytes) {
  return transfer(queue, to, (uint8_t *)(uintptr_t)data, bytes, true);
}

laprox_result lpx_queue_download(lpx_queue *queue, laprox_buffer from, void *data, size_t bytes) {
  return transfer(queue, from, data, bytes, false);
}
