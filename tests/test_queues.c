/* test_queues.c: an engine that prefills and attends on one queue while eviction runs on another, with the engine's own
 * semaphores between them, under validation and held against the reference: within a queue, across two of one family, and
 * across families, whose ranges the engine hands over. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "support/flow.h"
#include "support/host.h"

#include <cmocka.h>

#define ARENA_BYTES ((VkDeviceSize)16 << 20)
#define STAGES      (VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT)

enum { ENGINE_LAYERS = 3, N_PARTS = 3, N_SUBMITS = 2 * ENGINE_LAYERS + 3 };

static app_vulkan vulkan;

typedef struct side {
  VkQueue queue;
  uint32_t family;
} side;

typedef struct engine {
  test_host host;
  app_device device;
  laprox_context *context;
  flow f;
  side attends, evicts;
  VkCommandPool pools[N_SUBMITS];
  uint32_t n_submits;
  VkSemaphore written[ENGINE_LAYERS], packed;
} engine;

/* ---- recording and submitting ---- */

/* Takes what stands in a range away, so that it is there only once the engine has written it. */
static laprox_buffer set_aside(app_device *device, laprox_buffer part) {
  const laprox_buffer aside = app_take(device, part.size, 64, 0);
  memcpy(app_mapped(device, aside), app_mapped(device, part), (size_t)part.size);
  memset(app_mapped(device, part), 0xff, (size_t)part.size);
  return aside;
}

static void copy(VkCommandBuffer commands, laprox_buffer from, laprox_buffer to) {
  const VkBufferCopy region = {.srcOffset = from.offset, .dstOffset = to.offset, .size = from.size};
  vkCmdCopyBuffer(commands, from.buffer, to.buffer, 1, &region);
}

static VkCommandBuffer begin(engine *e, const side *here) {
  VkCommandBuffer commands = VK_NULL_HANDLE;
  const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  assert_true(e->n_submits < N_SUBMITS);
  e->pools[e->n_submits++] = app_pool_of(&e->device, here->family, &commands);
  assert_int_equal(vkBeginCommandBuffer(commands, &info), VK_SUCCESS);
  return commands;
}

/* Ranges go from one side's family to the other's: recorded on both sides, the giving one first. The library leaves that
 * to the application. Within a family the semaphore is enough. */
static void hand_over(VkCommandBuffer commands, const side *from, const side *to, bool gives, uint32_t n,
                      const laprox_buffer *parts) {
  VkBufferMemoryBarrier barriers[N_PARTS];
  if (from->family == to->family) return;
  for (uint32_t i = 0; i < n; i++)
    barriers[i] = (VkBufferMemoryBarrier){
        .sType = VK_STRUCTURE_TYPE_BUFFER_MEMORY_BARRIER,
        .srcAccessMask = gives ? VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT : 0,
        .dstAccessMask = gives ? 0 : VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_TRANSFER_READ_BIT,
        .srcQueueFamilyIndex = from->family,
        .dstQueueFamilyIndex = to->family,
        .buffer = parts[i].buffer,
        .offset = parts[i].offset,
        .size = parts[i].size};
  vkCmdPipelineBarrier(commands, STAGES, gives ? VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT : STAGES, 0, 0, NULL, n,
                       barriers, 0, NULL);
}

static void submit(const side *here, VkCommandBuffer commands, VkSemaphore wait, VkSemaphore signal) {
  const VkPipelineStageFlags stages = STAGES;
  const VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                             .waitSemaphoreCount = wait != VK_NULL_HANDLE,
                             .pWaitSemaphores = &wait,
                             .pWaitDstStageMask = &stages,
                             .commandBufferCount = 1,
                             .pCommandBuffers = &commands,
                             .signalSemaphoreCount = signal != VK_NULL_HANDLE,
                             .pSignalSemaphores = &signal};
  app_end(commands);
  assert_int_equal(vkQueueSubmit(here->queue, 1, &info, VK_NULL_HANDLE), VK_SUCCESS);
}

/* ---- the engine's work ---- */

/* Every layer is written by the engine and scored behind it, while the engine goes on with the next one. */
static void prefill(engine *e) {
  laprox_buffer aside[ENGINE_LAYERS][N_PARTS];
  for (uint32_t l = 0; l < ENGINE_LAYERS; l++) {
    laprox_layer_buffers *layer = &e->f.buffers[l];
    const laprox_buffer parts[N_PARTS] = {layer->query, layer->key[0], layer->value[0]};
    for (int i = 0; i < N_PARTS; i++) aside[l][i] = set_aside(&e->device, parts[i]);
  }
  for (uint32_t l = 0; l < ENGINE_LAYERS; l++) {
    laprox_layer_buffers *layer = &e->f.buffers[l];
    const laprox_buffer parts[N_PARTS] = {layer->query, layer->key[0], layer->value[0]};
    uint32_t first, count;
    VkCommandBuffer commands = begin(e, &e->attends);
    for (int i = 0; i < N_PARTS; i++) copy(commands, aside[l][i], parts[i]);
    hand_over(commands, &e->attends, &e->evicts, true, N_PARTS, parts);
    submit(&e->attends, commands, VK_NULL_HANDLE, e->written[l]);
    commands = begin(e, &e->evicts);
    hand_over(commands, &e->attends, &e->evicts, false, N_PARTS, parts);
    laprox_binding_layer_steps(e->f.binding, l, &first, &count);
    assert_int_equal(laprox_cmd_steps(commands, e->f.binding, first, count), LAPROX_OK);
    submit(&e->evicts, commands, e->written[l], VK_NULL_HANDLE);
  }
}

static void select_entries(engine *e) {
  uint32_t first, count;
  VkCommandBuffer commands = begin(e, &e->evicts);
  laprox_binding_layer_steps(e->f.binding, ENGINE_LAYERS, &first, &count);
  assert_int_equal(laprox_cmd_steps(commands, e->f.binding, first, count), LAPROX_OK);
  submit(&e->evicts, commands, VK_NULL_HANDLE, VK_NULL_HANDLE);
  assert_int_equal(vkQueueWaitIdle(e->evicts.queue), VK_SUCCESS);
}

/* A layer's rows are packed on one queue and read on the other. */
static void attend(engine *e) {
  const uint32_t layer = 1, *rows = flow_cu_seqlens(&e->f) + layer * e->f.info.shape.n_kv_heads;
  const VkDeviceSize bytes = (rows[e->f.info.shape.n_kv_heads] - rows[0]) * (VkDeviceSize)128;
  laprox_buffer *key = &e->f.packed_keys[layer], *value = &e->f.packed_values[layer];
  *key = app_take(&e->device, bytes, 64, 0);
  *value = app_take(&e->device, bytes, 64, 0);
  const laprox_buffer read = app_take(&e->device, bytes, 64, 0);
  const laprox_compaction_info info = {.layer = layer,
                                       .source = e->f.buffers[layer],
                                       .result = e->f.result,
                                       .cu_seqlens = flow_cu_seqlens(&e->f),
                                       .key = *key,
                                       .value = *value};
  laprox_compaction *compaction = NULL;
  assert_int_equal(laprox_compaction_create(e->f.plan, &info, &compaction), LAPROX_OK);
  const laprox_buffer packed[] = {*key, *value};
  VkCommandBuffer commands = begin(e, &e->evicts);
  assert_int_equal(laprox_cmd_compact(commands, (const laprox_compaction *const[]){compaction}, 1),
                   LAPROX_OK);
  hand_over(commands, &e->evicts, &e->attends, true, 2, packed);
  submit(&e->evicts, commands, VK_NULL_HANDLE, e->packed);
  commands = begin(e, &e->attends);
  hand_over(commands, &e->evicts, &e->attends, false, 2, packed);
  copy(commands, *value, read);
  submit(&e->attends, commands, e->packed, VK_NULL_HANDLE);
  assert_int_equal(vkQueueWaitIdle(e->attends.queue), VK_SUCCESS);
  assert_memory_equal(app_mapped(&e->device, read), app_mapped(&e->device, *value), (size_t)bytes);
  laprox_compaction_destroy(compaction);
}

static void engine_init(engine *e) {
  flow_options options = {.capture = {{ENGINE_LAYERS, 4, 2, 64},
                                      300,
                                      32,
                                      .dtype = LAPROX_DTYPE_F16,
                                      .pattern = CAPTURE_NEEDLES,
                                      .seed = 1},
                          .policy = {.budget.tokens = 60},
                          .layout = FLOW_TOKEN_ODD};
  *e = (engine){0};
  test_host_init(&e->host);
  app_device_init(&vulkan, ARENA_BYTES, &e->device);
  const laprox_context_info about = app_context_info(&vulkan, &e->device, &e->host.host);
  assert_int_equal(laprox_context_create(&about, &e->context), LAPROX_OK);
  flow_init(&e->f, &options);
  assert_int_equal(flow_prepare(&e->f, &e->device, e->context), LAPROX_OK);
  const VkSemaphoreCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO};
  for (uint32_t l = 0; l <= ENGINE_LAYERS; l++)
    assert_int_equal(
        vkCreateSemaphore(e->device.device, &info, NULL, l < ENGINE_LAYERS ? &e->written[l] : &e->packed),
        VK_SUCCESS);
}

static void engine_finish(engine *e) {
  for (uint32_t l = 0; l < ENGINE_LAYERS; l++) vkDestroySemaphore(e->device.device, e->written[l], NULL);
  vkDestroySemaphore(e->device.device, e->packed, NULL);
  for (uint32_t i = 0; i < e->n_submits; i++) vkDestroyCommandPool(e->device.device, e->pools[i], NULL);
  flow_finish(&e->f);
  laprox_context_destroy(e->context);
  app_device_finish(&e->device);
  assert_int_equal(e->host.n_errors, 0);
  assert_int_equal(e->host.n_live, 0);
}

static void run(engine *e) {
  prefill(e);
  select_entries(e);
  attend(e);
  flow_expect(&e->f);
}

/* ---- which queues ---- */

/* Every device: submits of one queue, with the semaphores between them. */
static void test_one_queue(void **state) {
  (void)state;
  engine e;
  engine_init(&e);
  e.attends = e.evicts = (side){e.device.queue, e.device.family};
  run(&e);
  engine_finish(&e);
}

static void test_two_queues_of_a_family(void **state) {
  (void)state;
  if (vulkan.n_queues < 2) {
    print_message("skipped: two queues of a family: this device has one\n");
    skip();
  }
  engine e;
  engine_init(&e);
  e.attends = (side){e.device.queue, e.device.family};
  e.evicts = (side){e.device.other_queue, e.device.family};
  run(&e);
  engine_finish(&e);
}

/* Both ways, as either may be the one that draws. */
static void test_two_families(void **state) {
  (void)state;
  if (vulkan.other_family == vulkan.family) {
    print_message("skipped: queues of two families: this device has one that computes\n");
    skip();
  }
  for (int swapped = 0; swapped < 2; swapped++) {
    engine e;
    engine_init(&e);
    const side near = {e.device.queue, e.device.family}, far = {e.device.far_queue, e.device.other_family};
    e.attends = swapped ? far : near;
    e.evicts = swapped ? near : far;
    run(&e);
    engine_finish(&e);
  }
}

static int set_up(void **state) {
  (void)state;
  app_vulkan_init(&vulkan);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  return (int)app_vulkan_finish(&vulkan);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_queue),
                                     cmocka_unit_test(test_two_queues_of_a_family),
                                     cmocka_unit_test(test_two_families)};
  return cmocka_run_group_tests_name("queues", tests, set_up, tear_down);
}
