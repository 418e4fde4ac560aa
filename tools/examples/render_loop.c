/* render_loop [--validate] [--frames N]: eviction beside a render loop. One thread draws a frame every 1/60 s; another
 * evicts, on the same queue where the device has one, a few steps a frame: as many as fit into ALLOWANCE_NS by their
 * cost. When a layer's kept rows are packed, a frame waits for the evictor's semaphore and reads them, as attention
 * would. Pictures and rows are checked. */
#define _POSIX_C_SOURCE 200809L
#include "app.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  LAYERS = 3,
  HEADS = 8,
  KV_HEADS = 2,
  DIM = 64,
  TOKENS = 1500,
  ROUNDS = 2,
  SIDE = 256,
  ARENA = 32 << 20
};
#define FRAME_NS     INT64_C(16666667)
#define ALLOWANCE_NS INT64_C(4000000)
#define STEP_COST    (UINT64_C(1) << 24) /* a frame waits for one step at most, so steps are small */

/* What the two threads share. `lock` guards all of it but the queues, which have a lock of their own. */
typedef struct loop {
  app a;
  pthread_mutex_t queue_lock, lock;
  pthread_cond_t changed;
  unsigned n_frames; /* submitted so far */
  bool evicted;      /* all rounds are done */
  VkSemaphore packed;
  const laprox_buffer *waiting; /* K rows that `packed` has been submitted for, until a frame has read them */

  /* the evictor's */
  laprox_context *context;
  laprox_plan *plan;
  laprox_binding *binding;
  laprox_requirements needs;
  laprox_result_layout layout;
  laprox_layer_buffers layers[LAYERS];
  laprox_buffer result, packed_keys[LAYERS], packed_values[LAYERS];
  float *host_result;
  app_commands commands;
  uint64_t cost_done;
  int64_t ns_done;
  unsigned n_submits;
} loop;

static int64_t now_ns(void) {
  struct timespec time;
  must(clock_gettime(CLOCK_MONOTONIC, &time), "clock_gettime");
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Vulkan leaves a queue to one thread at a time, and whose turn it is to the application. */
static void submit(loop *s, const app_commands *c, VkSemaphore wait, VkSemaphore signal) {
  const VkPipelineStageFlags stage = VK_PIPELINE_STAGE_TRANSFER_BIT;
  const VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                             .waitSemaphoreCount = wait != VK_NULL_HANDLE,
                             .pWaitSemaphores = &wait,
                             .pWaitDstStageMask = &stage,
                             .commandBufferCount = 1,
                             .pCommandBuffers = &c->buffer,
                             .signalSemaphoreCount = signal != VK_NULL_HANDLE,
                             .pSignalSemaphores = &signal};
  (void)pthread_mutex_lock(&s->queue_lock);
  must(vkQueueSubmit(c->queue, 1, &info, c->fence), "vkQueueSubmit");
  (void)pthread_mutex_unlock(&s->queue_lock);
}

/* ---- the evicting thread ---- */

static void await_frame(loop *s) {
  (void)pthread_mutex_lock(&s->lock);
  for (const unsigned last = s->n_frames; s->n_frames == last;)
    (void)pthread_cond_wait(&s->changed, &s->lock);
  (void)pthread_mutex_unlock(&s->lock);
}

/* As many steps as the allowance buys at the speed seen so far, but one at least. */
static uint32_t affordable_steps(const loop *s, uint32_t first, uint64_t *cost) {
  const double allowed = s->ns_done ? (double)s->cost_done / (double)s->ns_done * (double)ALLOWANCE_NS : 0;
  uint32_t n = 0;
  *cost = 0;
  do *cost += laprox_binding_step_cost(s->binding, first + n++);
  while (first + n < laprox_binding_n_steps(s->binding) &&
         (double)(*cost + laprox_binding_step_cost(s->binding, first + n)) <= allowed);
  return n;
}

static void run_steps(loop *s) {
  uint64_t cost;
  const uint32_t n_steps = laprox_binding_n_steps(s->binding);
  for (uint32_t step = 0, n; step < n_steps; step += n) {
    n = affordable_steps(s, step, &cost);
    await_frame(s);
    app_begin(&s->commands);
    must(laprox_cmd_steps(s->commands.buffer, s->binding, step, n), "laprox_cmd_steps");
    if (step + n == n_steps) app_copy(&s->commands, s->a.arena, s->a.host, s->result);
    app_end(&s->commands);
    const int64_t begin = now_ns();
    submit(s, &s->commands, VK_NULL_HANDLE, VK_NULL_HANDLE);
    app_wait(&s->commands);
    s->ns_done += now_ns() - begin;
    s->cost_done += cost;
    s->n_submits++;
  }
}

/* One layer; the frame that reads it is told by the semaphore, and the host by the fence that it may be forgotten. */
static void pack(loop *s, uint32_t layer, const uint32_t *cu_seqlens) {
  const VkDeviceSize bytes =
      (VkDeviceSize)(cu_seqlens[(layer + 1) * KV_HEADS] - cu_seqlens[layer * KV_HEADS]) * DIM * sizeof(float);
  const laprox_compaction_info info = {
      .layer = layer,
      .source = s->layers[layer],
      .result = s->result,
      .cu_seqlens = cu_seqlens,
      .key = {s->packed_keys[layer].buffer, s->packed_keys[layer].offset, bytes},
      .value = {s->packed_values[layer].buffer, s->packed_values[layer].offset, bytes}};
  laprox_compaction *compaction = NULL;
  must(laprox_compaction_create(s->plan, &info, &compaction), "laprox_compaction_create");
  await_frame(s);
  app_begin(&s->commands);
  must(laprox_cmd_compact(s->commands.buffer, (const laprox_compaction *const[]){compaction}, 1),
       "laprox_cmd_compact");
  app_end(&s->commands);
  submit(s, &s->commands, VK_NULL_HANDLE, s->packed);
  s->n_submits++;
  (void)pthread_mutex_lock(&s->lock);
  s->waiting = &info.key;
  while (s->waiting) (void)pthread_cond_wait(&s->changed, &s->lock);
  (void)pthread_mutex_unlock(&s->lock);
  app_wait(&s->commands);
  laprox_compaction_destroy(compaction);
}

/* The frame has brought the packed keys to the host: they must be the cache's at the kept positions. */
static void check_keys(const loop *s, uint32_t layer, const uint32_t *cu_seqlens, const uint32_t *indices) {
  const char *packed = s->a.mapped + s->packed_keys[layer].offset;
  const char *keys = s->a.mapped + s->layers[layer].key[0].offset;
  const size_t row_bytes = DIM * sizeof(float);
  for (size_t g = 0; g < KV_HEADS; g++)
    for (uint32_t row = cu_seqlens[layer * KV_HEADS + g]; row < cu_seqlens[layer * KV_HEADS + g + 1];
         row++, packed += row_bytes)
      must(memcmp(packed, keys + (g * TOKENS + indices[row]) * row_bytes, row_bytes),
           "comparing packed keys");
}

static void *evict(void *argument) {
  loop *s = argument;
  const size_t n_result = (size_t)(s->layout.indices + s->needs.n_kept * sizeof(uint32_t));
  char *first = malloc(n_result), *again = malloc(n_result);
  must(!first || !again, "allocating memory for a result");
  for (int round = 0; round < ROUNDS; round++) {
    run_steps(s);
    memcpy(round ? again : first, s->host_result, n_result);
    must(round && memcmp(first, again, n_result), "evicting to the same result again");
    const uint32_t *cu_seqlens = (const uint32_t *)(const void *)(first + s->layout.cu_seqlens);
    for (uint32_t l = 0; l < LAYERS; l++) {
      pack(s, l, cu_seqlens);
      check_keys(s, l, cu_seqlens, (const uint32_t *)(const void *)(first + s->layout.indices));
    }
  }
  free(first);
  free(again);
  (void)pthread_mutex_lock(&s->lock);
  s->evicted = true;
  (void)pthread_mutex_unlock(&s->lock);
  return NULL;
}

static void prepare(loop *s) {
  const laprox_plan_info info = {.shape = {LAYERS, HEADS, KV_HEADS, DIM},
                                 .policy.budget.share = 0.2,
                                 .cache_dtype = LAPROX_DTYPE_F32,
                                 .n_segments = 1,
                                 .segments = {{.n_entries = TOKENS}},
                                 .step_cost = STEP_COST};
  const laprox_context_info device = app_context_info(&s->a);
  must(laprox_context_create(&device, &s->context), "laprox_context_create");
  must(laprox_plan_create(s->context, &info, &s->plan), "laprox_plan_create");
  laprox_plan_requirements(s->plan, &s->needs);
  laprox_plan_result_layout(s->plan, &s->layout);
  for (uint32_t l = 0; l < LAYERS; l++)
    app_fill_layer(&s->a, &info.shape, l, TOKENS, &s->needs, &s->layers[l]);
  const laprox_buffer uploads = {s->a.host, 0, s->a.used_bytes};
  s->result = app_take(&s->a, s->needs.result_bytes, &s->host_result);
  const laprox_binding_info buffers = {.layers = s->layers,
                                       .scratch = app_take(&s->a, s->needs.scratch_bytes, NULL),
                                       .scores = app_take(&s->a, s->needs.scores_bytes, NULL),
                                       .result = s->result};
  must(laprox_binding_create(s->plan, &buffers, &s->binding), "laprox_binding_create");
  for (uint32_t l = 0; l < LAYERS; l++) { /* no layer can keep more than it has */
    s->packed_keys[l] = app_take(&s->a, s->layers[l].key[0].size, NULL);
    s->packed_values[l] = app_take(&s->a, s->layers[l].value[0].size, NULL);
  }
  app_commands_create(&s->a, 1, &s->commands);
  app_begin(&s->commands);
  app_copy(&s->commands, s->a.host, s->a.arena, uploads);
  app_run(&s->commands);
}

/* ---- the drawing thread ---- */

typedef struct picture {
  VkImage image;
  VkDeviceMemory memory;
  laprox_buffer pixels;
  float *host_pixels;
} picture;

static void create_picture(app *a, picture *p) {
  const VkImageCreateInfo info = {.sType = VK_STRUCTURE_TYPE_IMAGE_CREATE_INFO,
                                  .imageType = VK_IMAGE_TYPE_2D,
                                  .format = VK_FORMAT_R8G8B8A8_UNORM,
                                  .extent = {SIDE, SIDE, 1},
                                  .mipLevels = 1,
                                  .arrayLayers = 1,
                                  .samples = VK_SAMPLE_COUNT_1_BIT,
                                  .usage = VK_IMAGE_USAGE_TRANSFER_DST_BIT | VK_IMAGE_USAGE_TRANSFER_SRC_BIT};
  VkMemoryRequirements needs;
  must(vkCreateImage(a->device, &info, NULL, &p->image), "vkCreateImage");
  vkGetImageMemoryRequirements(a->device, p->image, &needs);
  VkMemoryAllocateInfo memory = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                 .allocationSize = needs.size};
  while (!(needs.memoryTypeBits >> memory.memoryTypeIndex & 1)) memory.memoryTypeIndex++;
  must(vkAllocateMemory(a->device, &memory, NULL, &p->memory), "vkAllocateMemory");
  must(vkBindImageMemory(a->device, p->image, p->memory, 0), "vkBindImageMemory");
  p->pixels = app_take(a, (VkDeviceSize)SIDE * SIDE * 4, &p->host_pixels);
}

static void transition(VkCommandBuffer commands, VkImage image, VkImageLayout from, VkImageLayout to) {
  const bool drawn = to == VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL;
  const VkImageMemoryBarrier barrier = {.sType = VK_STRUCTURE_TYPE_IMAGE_MEMORY_BARRIER,
                                        .srcAccessMask = drawn ? VK_ACCESS_TRANSFER_WRITE_BIT : 0,
                                        .dstAccessMask = drawn ? VK_ACCESS_TRANSFER_READ_BIT
                                                               : VK_ACCESS_TRANSFER_WRITE_BIT,
                                        .oldLayout = from,
                                        .newLayout = to,
                                        .srcQueueFamilyIndex = VK_QUEUE_FAMILY_IGNORED,
                                        .dstQueueFamilyIndex = VK_QUEUE_FAMILY_IGNORED,
                                        .image = image,
                                        .subresourceRange = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1}};
  vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 0, NULL,
                       0, NULL, 1, &barrier);
}

/* Fills the picture with the frame's colour and copies it to where the host sees it. */
static void draw(const loop *s, const app_commands *c, const picture *p, unsigned frame) {
  const VkClearColorValue colour = {.float32 = {(float)(frame % 256) / 255, 0, 0, 1}};
  const VkImageSubresourceRange all = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 1, 0, 1};
  const VkBufferImageCopy region = {.bufferOffset = p->pixels.offset,
                                    .imageSubresource = {VK_IMAGE_ASPECT_COLOR_BIT, 0, 0, 1},
                                    .imageExtent = {SIDE, SIDE, 1}};
  transition(c->buffer, p->image, VK_IMAGE_LAYOUT_UNDEFINED, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL);
  vkCmdClearColorImage(c->buffer, p->image, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL, &colour, 1, &all);
  transition(c->buffer, p->image, VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL);
  vkCmdCopyImageToBuffer(c->buffer, p->image, VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL, s->a.host, 1, &region);
}

/* One frame, with the packed rows of a layer where there are any. Returns what it took. */
static int64_t draw_frame(loop *s, const app_commands *c, const picture *p, unsigned frame) {
  const int64_t begin = now_ns();
  (void)pthread_mutex_lock(&s->lock);
  const laprox_buffer *rows = s->waiting;
  (void)pthread_mutex_unlock(&s->lock);
  app_begin(c);
  draw(s, c, p, frame);
  if (rows) app_copy(c, s->a.arena, s->a.host, *rows);
  app_end(c);
  submit(s, c, rows ? s->packed : VK_NULL_HANDLE, VK_NULL_HANDLE);
  (void)pthread_mutex_lock(&s->lock);
  s->n_frames++;
  (void)pthread_cond_broadcast(&s->changed);
  (void)pthread_mutex_unlock(&s->lock);
  app_wait(c);
  const int64_t taken = now_ns() - begin;
  must(*(const unsigned char *)(const void *)p->host_pixels != frame % 256, "drawing the right colour");
  if (rows) {
    (void)pthread_mutex_lock(&s->lock);
    s->waiting = NULL;
    (void)pthread_cond_broadcast(&s->changed);
    (void)pthread_mutex_unlock(&s->lock);
  }
  return taken;
}

static int compare(const void *a, const void *b) {
  const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

static void show(const char *what, int64_t *ns, unsigned n) {
  unsigned n_late = 0;
  for (unsigned i = 0; i < n; i++) n_late += ns[i] > FRAME_NS;
  qsort(ns, n, sizeof *ns, compare);
  const int64_t median_ns = ns[n / 2], longest_ns = ns[n - 1];
  (void)printf("%s: %u frames, %.2f ms each (median), %.2f the longest, %u late\n", what, n,
               (double)median_ns * 1e-6, (double)longest_ns * 1e-6, n_late);
}

/* Frames at a steady rate, `least` of them and on until all is evicted. */
static void draw_frames(loop *s, const app_commands *c, const picture *p, const char *what, unsigned least) {
  enum { MOST = 4096 };
  static int64_t ns[MOST];
  unsigned n = 0;
  bool evicted = false;
  for (int64_t taken = 0; n < MOST && (n < least || !evicted); n++) {
    const struct timespec rest = {.tv_nsec = taken < FRAME_NS ? (long)(FRAME_NS - taken) : 0};
    (void)nanosleep(&rest, NULL);
    ns[n] = taken = draw_frame(s, c, p, s->n_frames);
    (void)pthread_mutex_lock(&s->lock);
    evicted = s->evicted;
    (void)pthread_mutex_unlock(&s->lock);
  }
  must(!evicted, "evicting within so many frames");
  show(what, ns, n);
}

int main(int argc, char **argv) {
  static loop s = {.queue_lock = PTHREAD_MUTEX_INITIALIZER,
                   .lock = PTHREAD_MUTEX_INITIALIZER,
                   .changed = PTHREAD_COND_INITIALIZER};
  const VkSemaphoreCreateInfo semaphore = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO};
  bool validate = false;
  unsigned n_frames = 60;
  app_commands c;
  picture p = {0};
  pthread_t evictor;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--validate")) validate = true;
    if (!strcmp(argv[i], "--frames") && i + 1 < argc) n_frames = (unsigned)strtoul(argv[i + 1], NULL, 10);
  }
  app_open(&s.a, validate, ARENA);
  must(vkCreateSemaphore(s.a.device, &semaphore, NULL, &s.packed), "vkCreateSemaphore");
  create_picture(&s.a, &p);
  app_commands_create(&s.a, 0, &c);
  s.evicted = true;
  draw_frames(&s, &c, &p, "alone", n_frames);
  prepare(&s);
  s.evicted = false;
  must(pthread_create(&evictor, NULL, evict, &s), "pthread_create");
  draw_frames(&s, &c, &p, "while evicting", n_frames);
  (void)pthread_join(evictor, NULL);
  (void)printf("%u evictions of %u layers in %u submits, on %s queue\n", ROUNDS, LAYERS, s.n_submits,
               s.a.queue[0] == s.a.queue[1] ? "the frames'" : "another");
  laprox_binding_destroy(s.binding);
  laprox_plan_destroy(s.plan);
  laprox_context_destroy(s.context);
  app_commands_destroy(&s.commands);
  app_commands_destroy(&c);
  vkDestroySemaphore(s.a.device, s.packed, NULL);
  vkDestroyImage(s.a.device, p.image, NULL);
  vkFreeMemory(s.a.device, p.memory, NULL);
  app_close(&s.a);
  return s.a.n_findings != 0;
}
