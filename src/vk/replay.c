/* replay.c: programs whose recorded command buffers serve many runs. */
#include "vk/vk.h"

struct lpx_replay {
  lpx_queue *queue;
  laprox_context *context;
  lpx_program *next, *recorded;
  bool is_recorded; /* the command buffers are those of `recorded` */
  lpx_buffer updates;
  VkCommandPool pool;
  VkCommandBuffer *command_buffers;
  VkSubmitInfo *batches;
  uint32_t n_batches, batches_capacity;
};

laprox_result lpx_replay_create(lpx_queue *queue, const char *name, lpx_replay **out) {
  laprox_context *context = lpx_queue_context(queue);
  *out = NULL;
  lpx_replay *replay = lpx_allocate(&context->host, 1, sizeof *replay);
  if (!replay) return lpx_fail_memory(&context->host, name);
  replay->queue = queue;
  replay->context = context;
  const VkCommandPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                        .queueFamilyIndex = lpx_queue_family(queue)};
  laprox_result result = lpx_program_create(context, name, &replay->next);
  if (!result) result = lpx_program_create(context, name, &replay->recorded);
  if (!result)
    result =
        lpx_vk_result(context, context->vk.CreateCommandPool(context->device, &info, NULL, &replay->pool),
                      "vkCreateCommandPool");
  if (result) {
    lpx_replay_destroy(replay);
    return result;
  }
  *out = replay;
  return LAPROX_OK;
}

void lpx_replay_destroy(lpx_replay *replay) {
  if (!replay) return;
  laprox_context *context = replay->context;
  if (replay->pool) context->vk.DestroyCommandPool(context->device, replay->pool, NULL);
  lpx_program_destroy(replay->next);
  lpx_program_destroy(replay->recorded);
  lpx_buffer_finish(context, &replay->updates);
  lpx_release(&context->host, replay->command_buffers);
  lpx_release(&context->host, replay->batches);
  lpx_release(&context->host, replay);
}

lpx_program *lpx_replay_begin(lpx_replay *replay) {
  lpx_program_reset(replay->next);
  return replay->next;
}

static laprox_result reserve_updates(lpx_replay *replay) {
  const VkDeviceSize bytes = lpx_program_update_bytes(replay->recorded);
  if (replay->updates.size < bytes) {
    lpx_buffer_finish(replay->context, &replay->updates);
    const laprox_result result =
        lpx_buffer_init(replay->context, LPX_MEMORY_UPLOAD, bytes, "updates", &replay->updates);
    if (result) return result;
  }
  lpx_program_set_update_source(replay->recorded, lpx_buffer_whole(&replay->updates));
  return LAPROX_OK;
}

static laprox_result reserve_batches(lpx_replay *replay) {
  laprox_context *context = replay->context;
  const uint32_t n_steps = lpx_program_n_steps(replay->recorded);
  replay->n_batches = 0;
  for (uint32_t first = 0; first < n_steps; replay->n_batches++)
    first += lpx_queue_batch(replay->queue, replay->recorded, first, n_steps);
  if (replay->n_batches <= replay->batches_capacity) return LAPROX_OK;
  VkCommandBuffer *buffers = lpx_reallocate(&context->host, replay->command_buffers, replay->n_batches,
                                            sizeof *replay->command_buffers);
  if (!buffers) return lpx_fail_memory(&context->host, "command buffers");
  replay->command_buffers = buffers;
  VkSubmitInfo *batches =
      lpx_reallocate(&context->host, replay->batches, replay->n_batches, sizeof *replay->batches);
  if (!batches) return lpx_fail_memory(&context->host, "command buffers");
  replay->batches = batches;
  const uint32_t more = replay->n_batches - replay->batches_capacity;
  const VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                            .commandPool = replay->pool,
                                            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                            .commandBufferCount = more};
  const laprox_result result =
      lpx_vk_result(context,
                    context->vk.AllocateCommandBuffers(context->device, &info,
                                                       replay->command_buffers + replay->batches_capacity),
                    "vkAllocateCommandBuffers");
  if (!result) replay->batches_capacity = replay->n_batches;
  return result;
}

static laprox_result record_batches(lpx_replay *replay) {
  laprox_context *context = replay->context;
  const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  const uint32_t n_steps = lpx_program_n_steps(replay->recorded);
  laprox_result result = lpx_vk_result(
      context, context->vk.ResetCommandPool(context->device, replay->pool, 0), "vkResetCommandPool");
  for (uint32_t i = 0, first = 0, count; i < replay->n_batches && !result; i++, first += count) {
    count = lpx_queue_batch(replay->queue, replay->recorded, first, n_steps);
    result = lpx_vk_result(context, context->vk.BeginCommandBuffer(replay->command_buffers[i], &info),
                           "vkBeginCommandBuffer");
    if (result) break;
    lpx_program_record(replay->recorded, replay->command_buffers[i], first, count);
    result = lpx_queue_end(replay->queue, replay->command_buffers[i]);
    replay->batches[i] = (VkSubmitInfo){.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                                        .commandBufferCount = 1,
                                        .pCommandBuffers = &replay->command_buffers[i]};
  }
  return result;
}

laprox_result lpx_replay_run(lpx_replay *replay) {
  laprox_result result = lpx_vk_check_lost(replay->context);
  if (result) return result;
  if (!replay->is_recorded || !lpx_program_same(replay->next, replay->recorded)) {
    lpx_program *other = replay->recorded;
    replay->recorded = replay->next;
    replay->next = other;
    replay->is_recorded = false;
    result = lpx_program_finish_building(replay->recorded);
    if (!result) result = reserve_updates(replay);
    if (!result) result = reserve_batches(replay);
    if (!result) result = record_batches(replay);
    if (result) return result;
    lpx_program_write_updates(replay->recorded, replay->updates.mapped);
    replay->is_recorded = true;
  } else {
    lpx_program_write_updates(replay->next, replay->updates.mapped);
  }
  result = lpx_queue_submit(replay->queue, replay->batches, replay->n_batches, "vkQueueSubmit");
  if (result) replay->is_recorded = false;
  return result;
}
