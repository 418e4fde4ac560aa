/* bench_measure.c: repetitions of steps with cold caches, by the device's own clock. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

enum { LEAST_REPEATS = 3, MOST_BATCHED = 64, N_STAMPS = 2048 };
/* Short kernels are repeated until so much time has been measured. */
static const double enough_us = 2e5;

bench_part bench_whole(const lpx_program *program) {
  return (bench_part){.program = program, .count = lpx_program_n_steps(program)};
}

static int compare_doubles(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

void bench_sort(bench_timing *timing) {
  qsort(timing->us, (size_t)timing->n, sizeof timing->us[0], compare_doubles);
  qsort(timing->wall_us, (size_t)timing->n, sizeof timing->wall_us[0], compare_doubles);
}

double bench_median_us(const bench_timing *timing) {
  return timing->n ? timing->us[timing->n / 2] : 0;
}

/* ---- submits ---- */

/* What one submit takes. */
typedef struct batch {
  const bench *b;
  bench_part parts[MOST_BATCHED];
  size_t n;
  uint64_t cost;
} batch;

/* Where the next one begins. */
typedef struct cursor {
  const bench_part *parts;
  size_t n_parts, part;
  uint32_t step;
} cursor;

/* Whole steps up to the cost that a submit may have; at least one. */
static bool next_batch(cursor *at, size_t most, uint64_t room, batch *out) {
  uint64_t cost = 0;
  out->n = 0;
  while (at->part < at->n_parts && out->n < most) {
    const bench_part *part = &at->parts[at->part];
    bench_part taken = {.program = part->program, .first = part->first + at->step, .at_once = part->at_once};
    while (at->step < part->count) {
      const uint64_t next = lpx_program_step_cost(part->program, part->first + at->step);
      if (cost && cost + next > room) break;
      cost += next ? next : 1;
      taken.count++;
      at->step++;
    }
    if (taken.count) out->parts[out->n++] = taken;
    if (at->step < part->count) break;
    at->part++;
    at->step = 0;
  }
  out->cost = cost;
  return out->n > 0;
}

static void record_batch(void *user, VkCommandBuffer command_buffer) {
  const batch *now = user;
  for (size_t i = 0; i < now->n; i++) {
    const bench_part *part = &now->parts[i];
    if (!i || !part->at_once) lpx_record_barrier(now->b->context, command_buffer);
    lpx_program_record_bare(part->program, command_buffer, part->first, part->count);
  }
  lpx_record_barrier(now->b->context, command_buffer);
}

static void record_scrub(void *user, VkCommandBuffer command_buffer) {
  const bench *b = user;
  b->context->vk.CmdFillBuffer(command_buffer, b->scrub.buffer, 0, b->scrub.size, 0x3c003c00);
}

/* What is measured must not find its data in a cache. */
static laprox_result scrub(bench *b) {
  if (interrupted()) return LAPROX_ERROR_CANCELLED;
  return b->scrub.buffer ? lpx_queue_record(b->queue, record_scrub, b, NULL) : LAPROX_OK;
}

/* In submits that cost at most `*room`, which becomes what the device does in the time that one may take. */
static laprox_result run_once(bench *b, const bench_part *parts, size_t n_parts, uint64_t *room, double *us,
                              double *wall_us) {
  cursor at = {.parts = parts, .n_parts = n_parts};
  batch now = {.b = b};
  uint64_t ns = 0, cost = 0;
  laprox_result result = scrub(b);
  const double start = now_ms();
  while (!result && next_batch(&at, MOST_BATCHED, *room, &now)) {
    result = lpx_queue_record(b->queue, record_batch, &now, &ns);
    cost += now.cost;
  }
  *wall_us = (now_ms() - start) * 1e3;
  *us = ns ? (double)ns * 1e-3 : *wall_us;
  const double submit_us = lpx_is_discrete(b->context) ? 1e5 : 2e4, possible = (double)cost * submit_us / *us;
  if (possible > (double)*room) *room = (uint64_t)possible;
  return result;
}

/* Once, and on a device with clocks of its own for so long that an idle one has come up to them. */
static laprox_result warm_up(bench *b, const bench_part *parts, size_t n_parts, uint64_t *room) {
  const double enough = lpx_is_discrete(b->context) ? 4e5 : 0;
  double us, wall_us, sum = 0;
  laprox_result result;
  do {
    result = run_once(b, parts, n_parts, room, &us, &wall_us);
    sum += wall_us;
  } while (!result && sum < enough);
  return result;
}

laprox_result bench_time(bench *b, const bench_part *parts, size_t n_parts, bench_timing *out) {
  double sum = 0;
  uint64_t room = b->context->submit_cost;
  *out = (bench_timing){0};
  laprox_result result = warm_up(b, parts, n_parts, &room);
  while (!result && out->n < BENCH_REPEATS && (out->n < LEAST_REPEATS || sum < enough_us)) {
    result = run_once(b, parts, n_parts, &room, &out->us[out->n], &out->wall_us[out->n]);
    sum += out->wall_us[out->n];
    out->n += !result;
  }
  bench_sort(out);
  return result;
}

/* ---- profiles ---- */

typedef struct profiled {
  const bench *b;
  bench_part part;
  const char *names[N_STAMPS];
  uint32_t n;
} profiled;

/* The last query is the beginning. */
static void record_profiled(void *user, VkCommandBuffer command_buffer) {
  profiled *now = user;
  const lpx_vk *vk = &now->b->context->vk;
  if (now->b->stamps) {
    vk->CmdResetQueryPool(command_buffer, now->b->stamps, 0, N_STAMPS + 1);
    vk->CmdWriteTimestamp(command_buffer, VK_PIPELINE_STAGE_TOP_OF_PIPE_BIT, now->b->stamps, N_STAMPS);
  }
  now->n = lpx_program_record_timed(now->part.program, command_buffer, now->part.first, now->part.count,
                                    now->b->stamps, N_STAMPS, now->names);
}

static double *find_row(bench_profile *profile, const char *shader) {
  int i = 0;
  while (i < profile->n_shaders && profile->rows[i].shader != shader) i++;
  if (i == profile->n_shaders && i < BENCH_SHADERS - 1) profile->n_shaders++;
  profile->rows[i].shader = shader;
  return &profile->rows[i].us[profile->n_repeats];
}

static laprox_result read_stamps(bench *b, const profiled *now, bench_profile *out) {
  uint64_t ticks[N_STAMPS] = {0}, last = 0;
  const lpx_vk *vk = &b->context->vk;
  const VkQueryResultFlags flags = VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT;
  VkResult result = VK_SUCCESS;
  if (b->stamps)
    result = vk->GetQueryPoolResults(b->context->device, b->stamps, N_STAMPS, 1, sizeof last, &last,
                                     sizeof last, flags);
  if (!result && b->stamps && now->n)
    result = vk->GetQueryPoolResults(b->context->device, b->stamps, 0, now->n, now->n * sizeof ticks[0],
                                     ticks, sizeof ticks[0], flags);
  if (result) return lpx_vk_result(b->context, result, "vkGetQueryPoolResults");
  const double period = (double)b->context->properties.limits.timestampPeriod * 1e-3;
  for (uint32_t i = 0; i < now->n; i++) {
    *find_row(out, now->names[i]) += ticks[i] > last ? (double)(ticks[i] - last) * period : 0;
    last = ticks[i];
  }
  return LAPROX_OK;
}

static laprox_result profile_once(bench *b, const bench_part *parts, size_t n_parts, bench_profile *out) {
  cursor at = {.parts = parts, .n_parts = n_parts};
  profiled now = {.b = b};
  batch one;
  laprox_result result = scrub(b);
  while (!result && next_batch(&at, 1, b->context->submit_cost, &one)) {
    now.part = one.parts[0];
    result = lpx_queue_record(b->queue, record_profiled, &now, NULL);
    if (!result) result = read_stamps(b, &now, out);
  }
  return result;
}

laprox_result bench_profile_init(bench *b) {
  const laprox_context *context = b->context;
  if (b->description->timestamp_period_ns <= 0.0f) return LAPROX_OK;
  const VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                      .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                      .queryCount = N_STAMPS + 1};
  return lpx_vk_result(b->context, context->vk.CreateQueryPool(context->device, &info, NULL, &b->stamps),
                       "vkCreateQueryPool");
}

void bench_profile_finish(bench *b) {
  if (b->stamps) b->context->vk.DestroyQueryPool(b->context->device, b->stamps, NULL);
}

laprox_result bench_take_profile(bench *b, const bench_part *parts, size_t n_parts, int n_repeats,
                                 bench_profile *out) {
  laprox_result result = LAPROX_OK;
  double sum = 0;
  *out = (bench_profile){0};
  if (!b->stamps) n_repeats = 1;
  while (!result && out->n_repeats < BENCH_REPEATS &&
         (n_repeats ? out->n_repeats < n_repeats : out->n_repeats < LEAST_REPEATS || sum < enough_us)) {
    result = profile_once(b, parts, n_parts, out);
    for (int i = 0; i < out->n_shaders; i++) sum += out->rows[i].us[out->n_repeats];
    out->n_repeats += !result;
  }
  return result;
}
