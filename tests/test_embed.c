/* test_embed.c: eviction inside an application that owns everything, under validation, held against the
 * reference. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/flow.h"
#include "support/host.h"

#include <cmocka.h>
#include <pthread.h>

#define ARENA_BYTES ((VkDeviceSize)16 << 20)

static app_vulkan vulkan;

typedef struct rig {
  app_device device;
  test_host host;
  laprox_context *context;
} rig;

static void rig_init(rig *r) {
  test_host_init(&r->host);
  app_device_init(&vulkan, ARENA_BYTES, &r->device);
  const laprox_context_info info = app_context_info(&vulkan, &r->device, &r->host.host);
  assert_int_equal(laprox_context_create(&info, &r->context), LAPROX_OK);
}

static void rig_finish(rig *r) {
  assert_int_equal(laprox_context_memory(r->context).peak_bytes, 0); /* all memory is the application's */
  laprox_context_destroy(r->context);
  app_device_finish(&r->device);
  assert_int_equal(r->host.n_live, 0);
}

static const flow_options simple = {
    .capture = {{2, 4, 2, 64}, 300, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 1},
    .policy = {.budget.tokens = 60}};

/* ---- against the reference ---- */

typedef struct flow_scenario {
  const char *name;
  flow_options options;
} flow_scenario;

static const flow_scenario scenarios[] = {
    {"one segment, f16",
     {.capture = {{2, 4, 2, 64}, 300, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 2},
      .policy = {.budget.share = 0.2}}},
    {"one segment, bf16, head_dim 20, three heads a group",
     {.capture = {{2, 6, 2, 20}, 133, 32, .dtype = LAPROX_DTYPE_BF16, .seed = 3},
      .policy = {.budget.tokens = 50}}},
    {"one segment, f32, joint, a scale",
     {.capture = {{1, 4, 2, 32}, 200, 32, .dtype = LAPROX_DTYPE_F32, .scale = 0.3, .seed = 4},
      .policy = {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 40}}},
    {"prefix and tail, f16",
     {.capture = {{2, 4, 2, 64}, 700, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 5},
      .policy = {.budget.tokens = 60},
      .tail = 90}},
    {"prefix and tail, a layer without prefix, f32",
     {.capture = {{3, 4, 2, 32}, 650, 32, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 6},
      .policy = {.budget.tokens = 48},
      .tail = 100}},
    {"prefix and tail, a layer without prefix, joint, floor",
     {.capture = {{3, 4, 2, 32}, 260, 16, .dtype = LAPROX_DTYPE_F16, .seed = 7},
      .policy = {.gqa = LAPROX_GQA_JOINT, .window = 16, .floor = 5, .budget.tokens = 40},
      .tail = 60}},
    {"prefix and tail, a layer without prefix, attention-mean, within layers",
     {.capture = {{3, 4, 4, 32}, 260, 16, .dtype = LAPROX_DTYPE_BF16, .seed = 8},
      .policy =
          {.gqa = LAPROX_GQA_ATTENTION_MEAN, .scope = LAPROX_SCOPE_LAYER, .window = 16, .budget.tokens = 40},
      .tail = 60}},
    {"prefix and tail, snapkv",
     {.capture = {{3, 4, 2, 32}, 260, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 9},
      .policy = {.kind = LAPROX_POLICY_SNAPKV, .budget.tokens = 50},
      .tail = 60}},
    {"prefix and tail, streaming",
     {.capture = {{3, 4, 2, 32}, 260, 32, .dtype = LAPROX_DTYPE_F16, .seed = 10},
      .policy = {.kind = LAPROX_POLICY_STREAMING, .budget.tokens = 50},
      .tail = 60}},
    {"one segment, blocks of 8 bits",
     {.capture = {{2, 4, 2, 64}, 300, 32, .dtype = LAPROX_DTYPE_Q8_0, .pattern = CAPTURE_NEEDLES, .seed = 12},
      .policy = {.budget.share = 0.2}}},
    {"prefix and tail, blocks of 4 bits, joint",
     {.capture = {{2, 4, 2, 128}, 260, 32, .dtype = LAPROX_DTYPE_Q4_0, .seed = 13},
      .policy = {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 50},
      .tail = 60}},
    {"the tail is the window",
     {.capture = {{2, 4, 2, 32}, 200, 32, .dtype = LAPROX_DTYPE_F16, .seed = 11},
      .policy = {.budget.tokens = 50},
      .tail = 32}},
};
#define N_SCENARIOS (sizeof scenarios / sizeof *scenarios)

static void test_scenario(void **state) {
  const flow_scenario *scenario = *state;
  rig r;
  flow f;
  rig_init(&r);
  flow_init(&f, &scenario->options);
  assert_int_equal(flow_prepare(&f, &r.device, r.context), LAPROX_OK);
  assert_int_equal(flow_run(&f), LAPROX_OK);
  assert_int_equal(flow_compact(&f), LAPROX_OK);
  flow_expect(&f);
  flow_finish(&f);
  assert_int_equal(r.host.n_errors, 0);
  rig_finish(&r);
}

/* ---- one pass, spread in every way ---- */

static void submit_steps(flow *f, uint32_t first, uint32_t count) {
  app_begin(f->device);
  assert_int_equal(laprox_cmd_steps(f->device->commands, f->binding, first, count), LAPROX_OK);
  app_submit(f->device);
}

static void run_layers(flow *f) {
  uint32_t expected = 0, first, count;
  for (uint32_t l = 0; l <= f->options.capture.shape.n_layers; l++) {
    laprox_binding_layer_steps(f->binding, l, &first, &count);
    assert_int_equal(first, expected);
    assert_true(count > 0);
    submit_steps(f, first, count);
    expected = first + count;
  }
  assert_int_equal(expected, laprox_binding_n_steps(f->binding));
}

static void run_single_steps(flow *f) {
  for (uint32_t step = 0; step < laprox_binding_n_steps(f->binding); step++) {
    assert_true(laprox_binding_step_cost(f->binding, step) > 0);
    submit_steps(f, step, 1);
  }
}

static void run_one_buffer_step_by_step(flow *f) {
  app_begin(f->device);
  for (uint32_t step = 0; step < laprox_binding_n_steps(f->binding); step++)
    assert_int_equal(laprox_cmd_steps(f->device->commands, f->binding, step, 1), LAPROX_OK);
  app_submit(f->device);
}

/* Scores and result block, in memory that the caller frees. */
static unsigned char *snapshot(const flow *f) {
  const size_t n_scores = (size_t)f->scores.size, n_result = (size_t)f->result.size;
  unsigned char *copy = malloc(n_scores + n_result);
  assert_non_null(copy);
  memcpy(copy, app_mapped(f->device, f->scores), n_scores);
  memcpy(copy + n_scores, app_mapped(f->device, f->result), n_result);
  return copy;
}

static void test_spreading(void **state) {
  static const flow_options options = {
      .capture =
          {{3, 16, 2, 128}, 1500, 64, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 20},
      .policy = {.window = 64, .sinks = 2, .floor = 3, .budget.tokens = 100}};
  void (*const ways[])(flow *) = {run_layers, run_single_steps, run_one_buffer_step_by_step};
  (void)state;
  rig r;
  flow f;
  rig_init(&r);
  flow_init(&f, &options);
  assert_int_equal(flow_prepare(&f, &r.device, r.context), LAPROX_OK);
  assert_true(laprox_binding_n_steps(f.binding) > options.capture.shape.n_layers + 1);
  assert_int_equal(flow_run(&f), LAPROX_OK);
  flow_expect(&f);
  unsigned char *first = snapshot(&f);
  for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
    flow_soil(&f);
    ways[i](&f);
    unsigned char *again = snapshot(&f);
    assert_memory_equal(first, again, (size_t)(f.scores.size + f.result.size));
    free(again);
  }
  free(first);
  flow_finish(&f);
  rig_finish(&r);
}

/* Steps of the size that the application asks for: no scoring step costs more, and nothing else changes. */
static void test_small_steps(void **state) {
  static const flow_options options = {
      .capture =
          {{2, 16, 2, 128}, 1500, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 22},
      .policy = {.budget.tokens = 100}};
  const uint64_t limit = UINT64_C(1) << 25;
  uint64_t total = 0; /* of all scoring, by the device's own reckoning */
  unsigned char *results[2];
  uint32_t n_steps[2], first, count;
  (void)state;
  rig r;
  rig_init(&r);
  for (int small = 0; small < 2; small++) {
    flow f;
    flow_init(&f, &options);
    f.info.step_cost = small ? limit : 0;
    r.device.used_bytes = 0;
    assert_int_equal(flow_prepare(&f, &r.device, r.context), LAPROX_OK);
    n_steps[small] = laprox_binding_n_steps(f.binding);
    laprox_binding_layer_steps(f.binding, options.capture.shape.n_layers, &first, &count);
    for (uint32_t step = 0; step < first; step++) {
      const uint64_t cost = laprox_binding_step_cost(f.binding, step);
      if (small) assert_true(cost <= limit);
      if (!small) total += cost;
    }
    run_single_steps(&f);
    flow_expect(&f);
    results[small] = snapshot(&f);
    if (small) assert_memory_equal(results[0], results[1], (size_t)(f.scores.size + f.result.size));
    flow_finish(&f);
  }
  assert_true(n_steps[1] >= total / limit);
  /* Where there are matrices, all of it may be little more than a step. */
  if (total > 32 * limit) assert_true(n_steps[1] > 4 * n_steps[0]);
  free(results[0]);
  free(results[1]);
  rig_finish(&r);
}

/* ---- several of them ---- */

static const flow_options other = {
    .capture = {{1, 6, 2, 96}, 411, 32, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_TIES, .seed = 21},
    .policy = {.scope = LAPROX_SCOPE_LAYER, .pool_width = 1, .budget.tokens = 77}};

static void test_two_plans(void **state) {
  (void)state;
  rig r;
  flow a, b;
  rig_init(&r);
  flow_init(&a, &simple);
  flow_init(&b, &other);
  assert_int_equal(flow_prepare(&a, &r.device, r.context), LAPROX_OK);
  assert_int_equal(flow_prepare(&b, &r.device, r.context), LAPROX_OK);
  const uint32_t n_a = laprox_binding_n_steps(a.binding), n_b = laprox_binding_n_steps(b.binding);
  app_begin(&r.device);
  for (uint32_t step = 0; step < n_a || step < n_b; step++) {
    if (step < n_a) assert_int_equal(laprox_cmd_steps(r.device.commands, a.binding, step, 1), LAPROX_OK);
    if (step < n_b) assert_int_equal(laprox_cmd_steps(r.device.commands, b.binding, step, 1), LAPROX_OK);
  }
  app_submit(&r.device);
  assert_int_equal(flow_compact(&a), LAPROX_OK);
  flow_expect(&a);
  flow_finish(&a); /* the other one must not mind */
  assert_int_equal(flow_compact(&b), LAPROX_OK);
  flow_expect(&b);
  flow_finish(&b);
  rig_finish(&r);
}

static void test_two_devices(void **state) {
  (void)state;
  rig r[2];
  flow f[2];
  for (int i = 0; i < 2; i++) {
    rig_init(&r[i]);
    flow_init(&f[i], i ? &other : &simple);
  }
  for (int i = 0; i < 2; i++) assert_int_equal(flow_prepare(&f[i], &r[i].device, r[i].context), LAPROX_OK);
  for (int i = 0; i < 2; i++) {
    app_begin(&r[i].device);
    assert_int_equal(
        laprox_cmd_steps(r[i].device.commands, f[i].binding, 0, laprox_binding_n_steps(f[i].binding)),
        LAPROX_OK);
    app_end(r[i].device.commands);
    const VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                                 .commandBufferCount = 1,
                                 .pCommandBuffers = &r[i].device.commands};
    assert_int_equal(vkQueueSubmit(r[i].device.queue, 1, &submit, VK_NULL_HANDLE), VK_SUCCESS);
  }
  for (int i = 1; i >= 0; i--) {
    assert_int_equal(vkQueueWaitIdle(r[i].device.queue), VK_SUCCESS);
    assert_int_equal(flow_compact(&f[i]), LAPROX_OK);
    flow_expect(&f[i]);
    flow_finish(&f[i]);
    rig_finish(&r[i]);
  }
}

/* ---- threads ---- */

typedef struct recorder {
  rig *r;
  flow f;
  pthread_barrier_t *start;
  VkCommandPool pool;
  VkCommandBuffer commands;
  laprox_result result;
} recorder;

/* Plans, binds and records, at the same time as the other threads; many times, so that they do meet. */
static void *record(void *argument) {
  recorder *self = argument;
  flow *f = &self->f;
  (void)pthread_barrier_wait(self->start);
  for (int round = 0; round < 20 && !self->result; round++) {
    flow_release(f);
    self->result = flow_plan(f, self->r->context);
    if (!self->result) self->result = flow_bind(f);
    if (self->result) break;
    (void)vkResetCommandPool(self->r->device.device, self->pool, 0);
    const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    (void)vkBeginCommandBuffer(self->commands, &info);
    self->result = laprox_cmd_steps(self->commands, f->binding, 0, laprox_binding_n_steps(f->binding));
    app_end(self->commands);
  }
  return NULL;
}

/* Two devices in one process, each with two threads that plan, bind and record beside each other. */
static void test_threads(void **state) {
  enum { N_DEVICES = 2, N_THREADS = 4 };
  (void)state;
  rig r[N_DEVICES];
  laprox_context *counted[N_DEVICES];
  recorder recorders[N_THREADS];
  pthread_t threads[N_THREADS];
  pthread_barrier_t start;
  assert_int_equal(pthread_barrier_init(&start, NULL, N_THREADS), 0);
  for (int d = 0; d < N_DEVICES; d++) {
    /* The allocator of the test counts without locks, so threads get the C library's. */
    const laprox_host plain = {0};
    rig_init(&r[d]);
    counted[d] = r[d].context;
    const laprox_context_info info = app_context_info(&vulkan, &r[d].device, &plain);
    assert_int_equal(laprox_context_create(&info, &r[d].context), LAPROX_OK);
  }
  for (int i = 0; i < N_THREADS; i++) {
    rig *own = &r[i % N_DEVICES];
    recorders[i] = (recorder){.r = own, .start = &start};
    flow_init(&recorders[i].f, i < N_DEVICES ? &other : &simple);
    assert_int_equal(flow_prepare(&recorders[i].f, &own->device, own->context), LAPROX_OK);
    recorders[i].pool = app_pool(&own->device, &recorders[i].commands);
  }
  for (int i = 0; i < N_THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, record, &recorders[i]), 0);
  for (int i = 0; i < N_THREADS; i++) {
    assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(recorders[i].result, LAPROX_OK);
  }
  for (int d = 0; d < N_DEVICES; d++)
    app_submit_these(&r[d].device, 2,
                     (VkCommandBuffer[]){recorders[d].commands, recorders[d + N_DEVICES].commands});
  for (int i = 0; i < N_THREADS; i++) {
    flow_expect(&recorders[i].f);
    flow_finish(&recorders[i].f);
    vkDestroyCommandPool(recorders[i].r->device.device, recorders[i].pool, NULL);
  }
  for (int d = 0; d < N_DEVICES; d++) {
    laprox_context_destroy(r[d].context);
    r[d].context = counted[d];
    rig_finish(&r[d]);
  }
  (void)pthread_barrier_destroy(&start);
}

/* ---- mistakes ---- */

static void expect_failure(rig *r, laprox_result got, laprox_result expected, const char *word) {
  if (got != expected || r->host.n_errors != 1 || !strstr(r->host.last_error, word))
    fail_msg("result %d instead of %d, %u messages, \"%s\" should mention \"%s\"", got, expected,
             r->host.n_errors, r->host.last_error, word);
  r->host.n_errors = 0;
  r->host.last_error[0] = 0;
}

static void test_bad_context(void **state) {
  (void)state;
  rig r;
  rig_init(&r);
  const laprox_context_info good = app_context_info(&vulkan, &r.device, &r.host.host);
  laprox_context_info bad[4] = {good, good, good, good};
  static const char *const words[4] = {"instance", "physical_device", "device", "get_instance_proc_addr"};
  bad[0].instance = VK_NULL_HANDLE;
  bad[1].physical_device = VK_NULL_HANDLE;
  bad[2].device = VK_NULL_HANDLE;
  bad[3].get_instance_proc_addr = NULL;
  for (int i = 0; i < 4; i++) {
    laprox_context *context = (laprox_context *)&r; /* anything but NULL */
    const laprox_result result = laprox_context_create(&bad[i], &context);
    expect_failure(&r, result, LAPROX_ERROR_INVALID_ARGUMENT, words[i]);
    assert_null(context);
  }
  rig_finish(&r);
}

typedef struct bad_plan {
  const char *word;
  laprox_result expected;
  laprox_plan_info info;
} bad_plan;

static void test_bad_plans(void **state) {
  (void)state;
  static const uint32_t falling[] = {0, 50, 40, 0, 50, 100}, shifted[] = {5, 50, 90, 0, 50, 100};
  static const laprox_segment dense = {.n_entries = 200};
  const bad_plan table[] = {
      {"shape", LAPROX_ERROR_INVALID_ARGUMENT, {.n_segments = 1, .segments = {dense}}},
      {"head_dim", LAPROX_ERROR_UNSUPPORTED, {{2, 4, 2, 30}, .n_segments = 1, .segments = {dense}}},
      {"head_dim", LAPROX_ERROR_UNSUPPORTED, {{2, 4, 2, 260}, .n_segments = 1, .segments = {dense}}},
      {"n_segments", LAPROX_ERROR_INVALID_ARGUMENT, {{2, 4, 2, 32}, .segments = {dense}}},
      {"n_segments", LAPROX_ERROR_INVALID_ARGUMENT, {{2, 4, 2, 32}, .n_segments = 3, .segments = {dense}}},
      {"Q8_0",
       LAPROX_ERROR_UNSUPPORTED,
       {{2, 4, 2, 32}, .cache_dtype = LAPROX_DTYPE_Q8_0, .n_segments = 1, .segments = {dense}}},
      {"query rows",
       LAPROX_ERROR_INVALID_ARGUMENT,
       {{2, 4, 2, 32}, .query_rows = 31, .n_segments = 1, .segments = {dense}}},
      {"head_rows",
       LAPROX_ERROR_INVALID_ARGUMENT,
       {{2, 4, 2, 32}, .n_segments = 1, .segments = {{.n_entries = 200, .head_rows = 199}}}},
      {"rows",
       LAPROX_ERROR_UNSUPPORTED,
       {{2, 32, 32, 32}, .n_segments = 1, .segments = {{.n_entries = 200, .head_rows = 1u << 31}}}},
      {"cu_seqlens",
       LAPROX_ERROR_INVALID_ARGUMENT,
       {{2, 4, 2, 32}, .n_segments = 1, .segments = {{.cu_seqlens = falling}}, .n_tokens = 200}},
      {"cu_seqlens",
       LAPROX_ERROR_INVALID_ARGUMENT,
       {{2, 4, 2, 32}, .n_segments = 1, .segments = {{.cu_seqlens = shifted}}, .n_tokens = 200}},
      {"window",
       LAPROX_ERROR_INVALID_ARGUMENT,
       {{2, 4, 2, 32}, .n_segments = 1, .segments = {{.n_entries = 20}}, .n_tokens = 200}},
      {"maxStorageBufferRange",
       LAPROX_ERROR_UNSUPPORTED,
       {{1, 1, 1, 256}, .n_segments = 1, .segments = {{.n_entries = 1u << 30}}}},
  };
  rig r;
  rig_init(&r);
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
    laprox_plan_info info = table[i].info;
    laprox_plan *plan = (laprox_plan *)&r;
    info.policy.budget.tokens = 60;
    const laprox_result result = laprox_plan_create(r.context, &info, &plan);
    expect_failure(&r, result, table[i].expected, table[i].word);
    assert_null(plan);
  }
  rig_finish(&r);
}

/* Every buffer of a binding, one after the other: missing, a byte short, off its alignment. */
static void spoil_buffer(rig *r, flow *f, laprox_buffer *buffer, const char *name, VkDeviceSize odd) {
  const laprox_buffer good = *buffer;
  const laprox_buffer bad[] = {{VK_NULL_HANDLE, 0, 0},
                               {good.buffer, good.offset, good.size - 4},
                               {good.buffer, good.offset + odd, good.size}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    *buffer = bad[i];
    const laprox_result result = flow_bind(f);
    assert_null(f->binding);
    expect_failure(r, result, LAPROX_ERROR_INVALID_ARGUMENT, name);
  }
  *buffer = good;
}

/* The exact size: what flow_place took may be more than what is needed. */
static void shrink_to_need(flow *f) {
  const laprox_shape *shape = &f->options.capture.shape;
  const laprox_segment *dense = &f->info.segments[0];
  const size_t rows = (size_t)dense->head_rows * (shape->n_kv_heads - 1) + dense->n_entries;
  for (uint32_t l = 0; l < shape->n_layers; l++)
    f->buffers[l].key[0].size = f->buffers[l].value[0].size =
        rows * laprox_dtype_bytes(f->options.capture.dtype, shape->head_dim);
}

static void test_bad_bindings(void **state) {
  (void)state;
  rig r;
  flow f;
  rig_init(&r);
  flow_init(&f, &simple);
  assert_int_equal(flow_plan(&f, r.context), LAPROX_OK);
  flow_place(&f, &r.device);
  shrink_to_need(&f);
  const VkDeviceSize half = f.needs.alignment / 2;
  for (uint32_t l = 0; l < 2; l++) {
    spoil_buffer(&r, &f, &f.buffers[l].query, "query", half);
    spoil_buffer(&r, &f, &f.buffers[l].factor, "factor", half);
    spoil_buffer(&r, &f, &f.buffers[l].key[0], "key", 2);
    spoil_buffer(&r, &f, &f.buffers[l].value[0], "value", 2);
  }
  spoil_buffer(&r, &f, &f.scratch, "scratch", half);
  spoil_buffer(&r, &f, &f.scores, "scores", half);
  spoil_buffer(&r, &f, &f.result, "result", half);
  assert_int_equal(flow_bind(&f), LAPROX_OK); /* and what was spoilt is good again */
  const uint32_t n = laprox_binding_n_steps(f.binding);
  app_begin(&r.device);
  expect_failure(&r, laprox_cmd_steps(r.device.commands, f.binding, n, 1), LAPROX_ERROR_INVALID_ARGUMENT,
                 "steps");
  expect_failure(&r, laprox_cmd_steps(r.device.commands, f.binding, 1, UINT32_MAX),
                 LAPROX_ERROR_INVALID_ARGUMENT, "steps");
  assert_int_equal(laprox_cmd_steps(r.device.commands, f.binding, 0, n), LAPROX_OK);
  app_submit(&r.device);
  assert_int_equal(laprox_binding_step_cost(f.binding, n), 0);
  flow_expect(&f);
  flow_finish(&f);
  rig_finish(&r);
}

static void test_bad_compactions(void **state) {
  (void)state;
  rig r;
  flow f;
  rig_init(&r);
  flow_init(&f, &simple);
  assert_int_equal(flow_prepare(&f, &r.device, r.context), LAPROX_OK);
  assert_int_equal(flow_run(&f), LAPROX_OK);
  shrink_to_need(&f);
  const uint32_t *rows = flow_cu_seqlens(&f);
  const laprox_buffer part = app_take(&r.device, (VkDeviceSize)rows[2] * 128, 64, 0);
  const laprox_compaction_info good = {.source = f.buffers[0],
                                       .result = f.result,
                                       .cu_seqlens = rows,
                                       .key = part,
                                       .value = app_take(&r.device, part.size, 64, 0)};
  laprox_compaction_info info = good;
  laprox_buffer *const buffers[] = {&info.source.key[0], &info.source.value[0], &info.result, &info.key,
                                    &info.value};
  static const char *const names[] = {"source key", "source value", "result", "key", "value"};
  laprox_compaction *compaction = NULL;
  for (size_t b = 0; b < 5; b++) {
    const laprox_buffer own = *buffers[b];
    const VkDeviceSize odd = b == 2 ? f.needs.alignment / 2 : 2;
    const laprox_buffer bad[] = {{VK_NULL_HANDLE, 0, 0},
                                 {own.buffer, own.offset, own.size - 4},
                                 {own.buffer, own.offset + odd, own.size}};
    for (size_t i = 0; i < 3; i++) {
      *buffers[b] = bad[i];
      const laprox_result result = laprox_compaction_create(f.plan, &info, &compaction);
      assert_null(compaction);
      expect_failure(&r, result, LAPROX_ERROR_INVALID_ARGUMENT, names[b]);
    }
    *buffers[b] = own;
  }
  info.layer = 2;
  expect_failure(&r, laprox_compaction_create(f.plan, &info, &compaction), LAPROX_ERROR_INVALID_ARGUMENT,
                 "layer");
  static const uint32_t falling[] = {0, 70, 60, 100, 240};
  info = good;
  info.cu_seqlens = falling;
  expect_failure(&r, laprox_compaction_create(f.plan, &info, &compaction), LAPROX_ERROR_INVALID_ARGUMENT,
                 "cu_seqlens");
  assert_int_equal(laprox_compaction_create(f.plan, &good, &compaction), LAPROX_OK);
  laprox_compaction_destroy(compaction);
  flow_finish(&f);
  rig_finish(&r);
}

static void test_factor_mistakes(void **state) {
  (void)state;
  test_host host;
  test_host_init(&host);
  float weight[2 * 8] = {1, 2, 3, 4}, factor[64];
  const laprox_shape none = {0}, uneven = {1, 3, 2, 4}, good = {1, 2, 1, 4};
  assert_int_equal(laprox_value_factor_bytes(&none, LAPROX_GQA_AUTO), 0);
  assert_int_equal(laprox_value_factor_bytes(&good, LAPROX_GQA_MEAN), 2 * 4 * 4 * sizeof(float));
  assert_int_equal(laprox_value_factor_bytes(&good, LAPROX_GQA_JOINT), 8 * 8 * sizeof(float));
  assert_int_equal(laprox_value_factor(&host.host, &none, LAPROX_GQA_AUTO, 2, weight, factor),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(laprox_value_factor(&host.host, &uneven, LAPROX_GQA_AUTO, 2, weight, factor),
                   LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(host.n_errors, 2);
  assert_int_equal(laprox_value_factor(&host.host, &good, LAPROX_GQA_AUTO, 2, weight, factor), LAPROX_OK);
  host.fail_at = host.n_allocated + 1;
  assert_int_equal(laprox_value_factor(&host.host, &good, LAPROX_GQA_AUTO, 2, weight, factor),
                   LAPROX_ERROR_OUT_OF_MEMORY);
  weight[9] = INFINITY;
  assert_int_equal(laprox_value_factor(&host.host, &good, LAPROX_GQA_AUTO, 2, weight, factor),
                   LAPROX_ERROR_FORMAT);
  assert_non_null(strstr(host.last_error, "[1, 1]"));
  assert_int_equal(host.n_errors, 4);
  assert_int_equal(host.n_live, 0);
}

static void test_keep_everything(void **state) {
  (void)state;
  rig r;
  flow f;
  flow_options options = simple;
  rig_init(&r);
  options.policy.budget.tokens = 300;
  flow_init(&f, &options);
  assert_int_equal(flow_plan(&f, r.context), LAPROX_OK);
  assert_int_equal(f.needs.budget, UINT32_MAX);
  assert_int_equal(f.needs.scratch_bytes, 0);
  expect_failure(&r, flow_bind(&f), LAPROX_ERROR_INVALID_ARGUMENT, "everything");
  flow_finish(&f);
  rig_finish(&r);
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

/* Only the tests of a name, which may have * and ?, where it is given. */
int main(int argc, char **argv) {
  const struct CMUnitTest others[] = {
      cmocka_unit_test(test_spreading),       cmocka_unit_test(test_small_steps),
      cmocka_unit_test(test_two_plans),       cmocka_unit_test(test_two_devices),
      cmocka_unit_test(test_threads),         cmocka_unit_test(test_bad_context),
      cmocka_unit_test(test_bad_plans),       cmocka_unit_test(test_bad_bindings),
      cmocka_unit_test(test_bad_compactions), cmocka_unit_test(test_factor_mistakes),
      cmocka_unit_test(test_keep_everything)};
  enum { N_OTHERS = sizeof others / sizeof *others };
  struct CMUnitTest tests[N_SCENARIOS + N_OTHERS];
  for (size_t i = 0; i < N_SCENARIOS; i++) {
    flow_scenario *scenario = (flow_scenario *)(uintptr_t)&scenarios[i]; /* cmocka's state is not const */
    tests[i] = (struct CMUnitTest){scenario->name, test_scenario, NULL, NULL, scenario};
  }
  memcpy(tests + N_SCENARIOS, others, sizeof others);
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests_name("embed", tests, set_up, tear_down);
}
