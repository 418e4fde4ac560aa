/* bench_ceilings.c: what the device can do at most: copying, multiply-adds, matrix products. Several ways each, for no
 * single one is fast everywhere; the best one counts. */
#include "bench.h"

#include <stdlib.h>

/* COPIES in one submit, so that beginning and end count little. */
enum { GROUP_SIZE = 128, UNIT_BYTES = 16, COPIES = 4 };

/* How much work it takes to keep a device of this kind busy for about a millisecond. */
static uint32_t pick(const bench *b, uint32_t discrete, uint32_t other, uint32_t software) {
  const VkPhysicalDeviceType type = b->context->properties.deviceType;
  if (type == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU) return discrete;
  return type == VK_PHYSICAL_DEVICE_TYPE_CPU ? software : other;
}

/* Microseconds of the fastest repetition. */
static laprox_result time_best(bench *b, const lpx_program *program, double *us) {
  bench_timing timing;
  const bench_part part = bench_whole(program);
  const laprox_result result = bench_time(b, &part, 1, &timing);
  *us = timing.n ? timing.us[0] : 0;
  return result;
}

/* ---- copying ---- */

/* loads 0: vkCmdCopyBuffer. n_looping 0: each invocation goes once. */
static const struct copy_form {
  const char *name;
  uint32_t loads, n_looping;
} copy_forms[] = {
    {"vkCmdCopyBuffer", 0, 0},
    {"1 load of 16 bytes an invocation", 1, 0},
    {"2 loads of 16 bytes an invocation", 2, 0},
    {"4 loads of 16 bytes an invocation", 4, 0},
    {"8 loads of 16 bytes an invocation", 8, 0},
    {"4 loads of 16 bytes, 2048 workgroups that loop", 4, 2048},
    {"8 loads of 16 bytes, 2048 workgroups that loop", 8, 2048},
};

/* Large enough that caches and the launch don't count, small enough to be there. A power of two. */
static VkDeviceSize copy_bytes(const bench *b) {
  VkDeviceSize size = (VkDeviceSize)pick(b, 2048, 256, 128) << 20;
  const VkDeviceSize free = lpx_context_free_bytes(b->context);
  while (size > ((VkDeviceSize)1 << 20) && (size > b->context->max_range || size > free / 8)) size /= 2;
  return size;
}

static laprox_result append_copy(bench *b, lpx_program *program, const struct copy_form *form,
                                 const lpx_buffer *from, const lpx_buffer *to) {
  const laprox_buffer ranges[] = {lpx_buffer_whole(from), lpx_buffer_whole(to)};
  if (!form->loads) {
    lpx_program_copy(program, ranges[0], ranges[1]);
    return LAPROX_OK;
  }
  struct {
    uint32_t n_groups, n_units, stride;
  } push = {.n_units = (uint32_t)(from->size / UNIT_BYTES), .stride = UINT32_MAX / 2};
  const uint32_t once = GROUP_SIZE * form->loads;
  uint32_t n_groups = push.n_units / once;
  if (form->n_looping && form->n_looping < n_groups) {
    n_groups = form->n_looping;
    push.stride = n_groups * once;
  }
  lpx_pipeline pipeline;
  const laprox_result result = lpx_pipeline_get(b->context, "bench_copy", 2, &form->loads, 1, &pipeline);
  if (!result) lpx_program_dispatch(program, &pipeline, ranges, &push, sizeof push, n_groups, 2 * from->size);
  return result;
}

static laprox_result time_copy(bench *b, const struct copy_form *form, const lpx_buffer *from,
                               const lpx_buffer *to) {
  lpx_program *program = NULL;
  double us = 0;
  laprox_result result = lpx_program_create(b->context, "copy", &program);
  for (int i = 0; i < COPIES && !result; i++) {
    result = append_copy(b, program, form, from, to);
    lpx_program_barrier(program);
  }
  if (!result) result = lpx_program_finish_building(program);
  if (!result) result = time_best(b, program, &us);
  const double gbps = us > 0 ? COPIES * 2.0 * (double)from->size / (us * 1e3) : 0;
  if (gbps > b->ceilings.copy_gbps) {
    b->ceilings.copy_gbps = gbps;
    b->ceilings.copy_form = form->name;
  }
  lpx_program_destroy(program);
  return result;
}

static laprox_result measure_copy(bench *b) {
  lpx_buffer from = {0}, to = {0};
  const VkDeviceSize size = copy_bytes(b);
  laprox_result result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, size, "copy source", &from);
  if (!result) result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, size, "copy destination", &to);
  for (size_t i = 0; i < sizeof copy_forms / sizeof *copy_forms && !result; i++)
    result = time_copy(b, &copy_forms[i], &from, &to);
  lpx_buffer_finish(b->context, &from);
  lpx_buffer_finish(b->context, &to);
  return result;
}

/* ---- arithmetic ---- */

/* Runs a kernel that does `flops` and raises *gflops to its rate. */
static laprox_result time_arithmetic(bench *b, const lpx_pipeline *pipeline, const laprox_buffer *ranges,
                                     void *push, uint32_t push_bytes, uint32_t n_groups, double flops,
                                     double *gflops) {
  lpx_program *program = NULL;
  double us = 0;
  laprox_result result = lpx_program_create(b->context, "arithmetic", &program);
  if (!result) {
    lpx_program_dispatch(program, pipeline, ranges, push, push_bytes, n_groups, 0);
    result = lpx_program_finish_building(program);
  }
  if (!result) result = time_best(b, program, &us);
  const double rate = us > 0 ? flops / (us * 1e3) : 0;
  if (rate > *gflops) *gflops = rate;
  lpx_program_destroy(program);
  return result;
}

static laprox_result measure_fma(bench *b) {
  const uint32_t n_groups = pick(b, 8192, 1024, 64);
  lpx_buffer out = {0};
  laprox_result result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, 512, "fma", &out);
  for (uint32_t fused = 0; fused < 2 && !result; fused++) {
    const uint32_t constants[] = {pick(b, 4096, 1024, 1024), fused};
    struct {
      uint32_t n_groups;
      float a, b;
    } push = {0, 0.999f, 0.001f};
    const double flops = 2.0 * 16.0 * constants[0] * GROUP_SIZE * n_groups;
    lpx_pipeline pipeline;
    result = lpx_pipeline_get(b->context, "bench_fma", 1, constants, 2, &pipeline);
    const laprox_buffer range = lpx_buffer_whole(&out);
    if (!result)
      result =
          time_arithmetic(b, &pipeline, &range, &push, sizeof push, n_groups, flops, &b->ceilings.fma_gflops);
  }
  lpx_buffer_finish(b->context, &out);
  return result;
}

static laprox_result upload_operands(bench *b, lpx_buffer *out) {
  uint16_t halves[4 * 64 * 64];
  uint32_t state = 3;
  for (size_t i = 0; i < sizeof halves / sizeof *halves; i++) {
    state = state * 1664525u + 1013904223u;
    halves[i] = lpx_f32_to_f16((float)(int32_t)state * 0x1p-33f);
  }
  const laprox_result result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, sizeof halves, "operands", out);
  return result ? result : lpx_queue_upload(b->queue, lpx_buffer_whole(out), halves, sizeof halves);
}

static laprox_result measure_matrix(bench *b) {
  const laprox_context *context = b->context;
  const uint32_t constants[] = {pick(b, 4096, 512, 64), context->matrix.m, context->matrix.n,
                                context->matrix.k};
  const uint32_t n_groups = pick(b, 4096, 512, 16);
  if (!lpx_shader_usable(context, "bench_matrix")) return LAPROX_OK;
  if (context->matrix.m > 64 || context->matrix.n > 64 || context->matrix.k > 64) return LAPROX_OK;
  struct {
    uint32_t n_groups, keep;
  } push = {0, 0};
  lpx_buffer operands = {0}, out = {0};
  lpx_pipeline pipeline;
  laprox_result result = upload_operands(b, &operands);
  if (!result) result = lpx_buffer_init(b->context, LPX_MEMORY_DEVICE, 8 * 64 * 64 * 4, "products", &out);
  if (!result) result = lpx_pipeline_get(b->context, "bench_matrix", 2, constants, 4, &pipeline);
  const double subgroups = (double)n_groups * GROUP_SIZE / context->subgroup_size;
  const double flops = subgroups * 8 * 2.0 * constants[1] * constants[2] * constants[3] * constants[0];
  if (!result)
    result =
        time_arithmetic(b, &pipeline, (laprox_buffer[]){lpx_buffer_whole(&operands), lpx_buffer_whole(&out)},
                        &push, sizeof push, n_groups, flops, &b->ceilings.matrix_gflops);
  lpx_buffer_finish(b->context, &operands);
  lpx_buffer_finish(b->context, &out);
  return result;
}

laprox_result bench_measure_ceilings(bench *b) {
  laprox_result result = measure_copy(b);
  if (!result) result = measure_fma(b);
  return result ? result : measure_matrix(b);
}
