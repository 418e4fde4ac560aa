/* selftest.c: small kernels whose answers the host knows. Drivers have been seen that create a pipeline and then
   compute something else, so that no property says what may be used. */
#include "vk/vk.h"

#include <stdio.h>
#include <string.h>

#define LOCAL_SIZE 128
#define MAX_WORDS  4096 /* of a tier's input, and of its output */
#define MAX_PARTS  5

/* ---- random input, the same every time ---- */

static uint32_t next_random(uint32_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  *state ^= *state << 5;
  return *state;
}

/* A whole number of -limit … limit. */
static int random_integer(uint32_t *state, int limit) {
  return (int)(next_random(state) % (uint32_t)(2 * limit + 1)) - limit;
}

static uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static uint32_t pack_halves(float low, float high) {
  return (uint32_t)lpx_f32_to_f16(high) << 16 | lpx_f32_to_f16(low);
}

/* ---- one tier: what goes in, and what must come out ---- */

typedef struct question {
  uint32_t constants[3];
  uint32_t n_constants, n_groups;
  uint32_t n_in, n_out; /* words */
  struct {
    const char *name;
    uint32_t n_words;
    bool atomics;     /* a device whose atomics fail can still be used */
  } parts[MAX_PARTS]; /* of the output, in its order */
  uint32_t in[MAX_WORDS], out[MAX_WORDS], expected[MAX_WORDS]; /* out: what is there before */
} question;

static uint32_t *add_part(question *q, const char *name, uint32_t n_words) {
  uint32_t i = 0;
  while (q->parts[i].name) i++;
  q->parts[i].name = name;
  q->parts[i].n_words = n_words;
  q->n_out += n_words;
  return q->expected + q->n_out - n_words;
}

/* shaders/selftest/baseline.comp */
enum {
  N_HALF_WORDS = 256,
  N_BINS = 16,
  N_VALUES = 4 * LOCAL_SIZE,
  ROW_WORDS = 16,
  N_KEPT = 96,
  N_ROWS = 128
};

static void ask_rows(question *q, uint32_t *state) {
  uint32_t *expected = add_part(q, "rows moved in place", N_ROWS * ROW_WORDS);
  uint32_t *rows = q->out + q->n_out - N_ROWS * ROW_WORDS;
  uint32_t *kept = q->in + N_HALF_WORDS + N_VALUES;
  for (uint32_t i = 0; i < N_ROWS * ROW_WORDS; i++) expected[i] = rows[i] = next_random(state);
  for (uint32_t i = 0; i < N_KEPT; i++) {
    kept[i] = i + i / 3; /* every fourth row is dropped: each chunk writes what the one before has read */
    memcpy(expected + (size_t)i * ROW_WORDS, rows + (size_t)kept[i] * ROW_WORDS, ROW_WORDS * sizeof *rows);
  }
}

static void ask_baseline(const laprox_context *context, question *q, uint32_t *state) {
  (void)context;
  q->n_groups = 4;
  q->n_in = N_HALF_WORDS + N_VALUES + N_KEPT;
  uint32_t *values = q->in + N_HALF_WORDS;
  uint32_t *floats = add_part(q, "unpacked f16", 2 * N_HALF_WORDS);
  for (uint32_t i = 0; i < 2 * N_HALF_WORDS; i++) {
    /* no subnormal numbers, which drivers may take for 0, and no NaN */
    const uint16_t half = (uint16_t)(next_random(state) % 0x7800 + 0x400 + (next_random(state) & 0x8000));
    q->in[i / 2] |= (uint32_t)half << (i % 2 * 16);
    floats[i] = float_bits(lpx_f16_to_f32(half));
  }
  for (uint32_t i = 0; i < N_VALUES; i++) values[i] = next_random(state) % 1000;
  uint32_t *sums = add_part(q, "prefix sums in shared memory", LOCAL_SIZE), total = 0;
  for (uint32_t i = 0; i < LOCAL_SIZE; i++) total += values[i];
  for (uint32_t i = 0, sum = 0; i < LOCAL_SIZE; sum += values[i++]) sums[i] = sum ^ total;
  uint32_t *shared_bins = add_part(q, "shared atomics", N_BINS);
  uint32_t *global_bins = add_part(q, "global atomics", N_BINS);
  q->parts[2].atomics = q->parts[3].atomics = true;
  for (uint32_t i = 0; i < N_VALUES; i++) {
    shared_bins[values[i] % N_BINS] += values[i];
    global_bins[values[i] % N_BINS] += q->n_groups * values[i] + q->n_groups * (q->n_groups - 1) / 2;
  }
  ask_rows(q, state);
}

static void ask_subgroup(const laprox_context *context, question *q, uint32_t *state) {
  const uint32_t size = context->subgroup_size;
  q->n_groups = q->n_constants = 1;
  q->constants[0] = size;
  q->n_in = LOCAL_SIZE;
  for (uint32_t i = 0; i < LOCAL_SIZE; i++) q->in[i] = next_random(state) >> 8;
  uint32_t *places = add_part(q, "size and order of subgroups", LOCAL_SIZE);
  uint32_t *shuffled = add_part(q, "shuffles", LOCAL_SIZE);
  uint32_t *shuffled_floats = add_part(q, "shuffles of floats", LOCAL_SIZE);
  uint32_t *ballots = add_part(q, "ballots", LOCAL_SIZE);
  uint32_t *votes = add_part(q, "votes", LOCAL_SIZE);
  for (uint32_t i = 0; i < LOCAL_SIZE; i++) {
    const uint32_t lane = i % size, *all = q->in + i - lane;
    uint32_t n_before = 0, n_odd = 0, any = 0, none = 1;
    places[i] = size << 16 | i;
    shuffled[i] = all[(lane * 5 + 3) % size];
    for (uint32_t mask = 1; mask < size; mask *= 2) shuffled[i] = shuffled[i] * 31 + all[lane ^ mask];
    shuffled_floats[i] = all[lane] % 1000 + 1000 * (all[lane ^ size / 2] % 1000);
    for (uint32_t j = 0; j < size; j++) {
      n_odd += all[j] & 1;
      n_before += j < lane ? all[j] & 1 : 0;
      any |= all[j] % 64 == 0;
      none &= all[j] % 64 != 1;
    }
    ballots[i] = n_before << 16 | n_odd << 8 | (all[lane] & 1);
    votes[i] = any << 1 | none;
  }
}

static void ask_storage16(const laprox_context *context, question *q, uint32_t *state) {
  (void)context;
  enum { N_SINGLES = 2 * LOCAL_SIZE, N_QUADS = LOCAL_SIZE };
  float singles[N_SINGLES], quads[N_QUADS][4], sums[4];
  q->n_groups = 1;
  q->n_in = N_SINGLES / 2 + 2 * N_QUADS;
  uint32_t *moved = add_part(q, "16-bit loads and stores", N_SINGLES / 2);
  uint32_t *added = add_part(q, "f16 arithmetic", 2 * N_QUADS);
  uint32_t *widened = add_part(q, "f16 to f32 and back", N_SINGLES / 2);
  for (uint32_t i = 0; i < N_SINGLES; i++) singles[i] = (float)random_integer(state, 1000);
  for (uint32_t i = 0; i < N_QUADS; i++)
    for (uint32_t j = 0; j < 4; j++) quads[i][j] = (float)random_integer(state, 30);
  for (uint32_t i = 0; i < N_SINGLES; i += 2) {
    q->in[i / 2] = pack_halves(singles[i], singles[i + 1]);
    moved[i / 2] = pack_halves(singles[N_SINGLES - 1 - i], singles[N_SINGLES - 2 - i]);
    widened[i / 2] = pack_halves(singles[i] * 0.5f + quads[i % LOCAL_SIZE][0],
                                 singles[i + 1] * 0.5f + quads[(i + 1) % LOCAL_SIZE][0]);
  }
  for (uint32_t i = 0; i < N_QUADS; i++) {
    for (uint32_t j = 0; j < 4; j++) sums[j] = (quads[i][j] + quads[N_QUADS - 1 - i][j]) * quads[i][3 - j];
    for (uint32_t j = 0; j < 4; j += 2) {
      q->in[N_SINGLES / 2 + 2 * i + j / 2] = pack_halves(quads[i][j], quads[i][j + 1]);
      added[2 * i + j / 2] = pack_halves(sums[j], sums[j + 1]);
    }
  }
}

enum { MAX_SUBGROUPS = 4, MAX_TILE = 16 * 16 }; /* shaders/selftest/matrix.comp */

static void ask_matrix(const laprox_context *context, question *q, uint32_t *state) {
  const uint32_t m = context->matrix.m, n = context->matrix.n, k = context->matrix.k;
  const uint32_t all_subgroups = LOCAL_SIZE / context->subgroup_size;
  const uint32_t n_subgroups = all_subgroups < MAX_SUBGROUPS ? all_subgroups : MAX_SUBGROUPS;
  const uint32_t n_right = 2 * n * k, n_halves = n_right + n_subgroups * 2 * m * k;
  float values[2 * (1 + MAX_SUBGROUPS) * MAX_TILE] = {0};
  q->n_groups = 1;
  q->n_constants = 3;
  q->constants[0] = m;
  q->constants[1] = n;
  q->constants[2] = k;
  q->n_in = n_halves / 2;
  for (uint32_t i = 0; i < n_halves; i++) values[i] = (float)random_integer(state, 4);
  for (uint32_t i = 0; i < n_halves; i += 2) q->in[i / 2] = pack_halves(values[i], values[i + 1]);
  uint32_t *products = add_part(q, "matrix products", n_subgroups * m * n);
  uint32_t *squares = add_part(q, "arithmetic on matrices", n_subgroups * m * n);
  for (uint32_t i = 0; i < n_subgroups * m * n; i++) {
    const uint32_t subgroup = i / (m * n), row = i / n % m, column = i % n;
    float sum = 0.0f;
    for (uint32_t t = 0; t < 2 * k; t++)
      sum += values[n_right + ((subgroup * 2 + t / k) * m + row) * k + t % k] *
             values[(t / k * n + column) * k + t % k];
    products[i] = float_bits(sum);
    squares[i] = float_bits(sum * sum + (float)subgroup);
  }
}

static const struct tier {
  const char *shader;
  uint32_t variant; /* 0: the baseline */
  void (*ask)(const laprox_context *context, question *q, uint32_t *state);
} tiers[] = {
    {"selftest_baseline", 0, ask_baseline},
    {"selftest_subgroup", LAPROX_VARIANT_SUBGROUP, ask_subgroup},
    {"selftest_storage16", LAPROX_VARIANT_STORAGE16, ask_storage16},
    {"selftest_matrix", LAPROX_VARIANT_MATRIX, ask_matrix},
};

/* ---- asking ---- */

/* Takes a message instead of the application: what a variant fails by is no error of the application's call. */
static void catch_message(void *user, laprox_message_level level, const char *text) {
  char *reason = user;
  if (level == LAPROX_MESSAGE_ERROR) (void)snprintf(reason, LPX_REASON_BYTES, "%s", text);
}

/* Input and output in memory of the device, where the kernels have theirs; one submit. */
static laprox_result answer(lpx_queue *queue, const char *shader, question *q, const lpx_buffer *host,
                            const lpx_buffer *device) {
  laprox_context *context = lpx_queue_context(queue);
  const VkDeviceSize half = host->size / 2, n_in = (VkDeviceSize)q->n_in * 4,
                     n_out = (VkDeviceSize)q->n_out * 4;
  uint32_t *in = host->mapped, *out = in + half / 4, push = 0;
  const laprox_buffer from = lpx_buffer_whole(host), to = lpx_buffer_whole(device);
  lpx_pipeline pipeline;
  lpx_program *program = NULL;
  memcpy(in, q->in, (size_t)n_in);
  memcpy(out, q->out, (size_t)n_out);
  laprox_result result = lpx_pipeline_get(context, shader, 2, q->constants, q->n_constants, &pipeline);
  if (!result) result = lpx_program_create(context, "self-test", &program);
  if (result) return result;
  lpx_program_copy(program, lpx_buffer_part(from, 0, n_in), lpx_buffer_part(to, 0, n_in));
  lpx_program_copy(program, lpx_buffer_part(from, half, n_out), lpx_buffer_part(to, half, n_out));
  lpx_program_barrier(program);
  const laprox_buffer ranges[] = {lpx_buffer_part(to, 0, n_in), lpx_buffer_part(to, half, n_out)};
  lpx_program_dispatch(program, &pipeline, ranges, &push, sizeof push, q->n_groups, q->n_groups);
  lpx_program_barrier(program);
  lpx_program_copy(program, lpx_buffer_part(to, half, n_out), lpx_buffer_part(from, half, n_out));
  result = lpx_program_finish_building(program);
  if (!result) result = lpx_queue_run(queue, program, NULL);
  if (!result) memcpy(q->out, out, (size_t)n_out);
  lpx_program_destroy(program);
  return result;
}

/* The first difference, among the answers that atomics give or among the others, as a text. */
static void check(const question *q, bool atomics, char reason[LPX_REASON_BYTES]) {
  reason[0] = 0;
  for (uint32_t part = 0, first = 0; part < MAX_PARTS && q->parts[part].name;
       first += q->parts[part++].n_words)
    for (uint32_t i = first; i < first + q->parts[part].n_words && q->parts[part].atomics == atomics; i++) {
      if (q->out[i] == q->expected[i]) continue;
      (void)snprintf(reason, LPX_REASON_BYTES, "%s: word %u is 0x%x, not 0x%x", q->parts[part].name,
                     i - first, q->out[i], q->expected[i]);
      return;
    }
}

/* OK with an empty reason: passed; OK with a reason: answers wrongly or makes no pipeline of it; else what has
   nothing to do with the kernel. */
static laprox_result try_tier(lpx_queue *queue, const struct tier *tier, question *q, const lpx_buffer *host,
                              const lpx_buffer *device, char reason[LPX_REASON_BYTES]) {
  laprox_context *context = lpx_queue_context(queue);
  uint32_t state = 0x9e3779b9u;
  reason[0] = 0;
  *q = (question){0};
  if (!lpx_shader_usable(context, tier->shader)) {
    (void)snprintf(reason, LPX_REASON_BYTES, "this build has no such kernels");
    return LAPROX_OK;
  }
  tier->ask(context, q, &state);
  laprox_result result = answer(queue, tier->shader, q, host, device);
  if (result == LAPROX_ERROR_VULKAN || result == LAPROX_ERROR_UNSUPPORTED) return LAPROX_OK;
  if (!result) check(q, false, reason);
  return result;
}

static laprox_result try_all(lpx_queue *queue, question *q, const laprox_host *application,
                             char reason[LPX_REASON_BYTES]) {
  laprox_context *context = lpx_queue_context(queue);
  lpx_buffer host, device = {0};
  laprox_result result =
      lpx_buffer_init(context, LPX_MEMORY_READBACK, sizeof q->in + sizeof q->out, "self-test", &host);
  if (!result)
    result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, sizeof q->in + sizeof q->out, "self-test", &device);
  for (size_t i = 0; i < sizeof tiers / sizeof *tiers && !result; i++) {
    const struct tier *tier = &tiers[i];
    if (tier->variant & ~context->variants) continue;
    result = try_tier(queue, tier, q, &host, &device, reason);
    if (!result && !tier->variant && !reason[0]) {
      check(q, true, reason);
      context->avoid_atomics = reason[0];
      if (reason[0])
        lpx_warn(application, "selecting without atomics on %s: %s", context->properties.deviceName, reason);
      continue;
    }
    if (result || !reason[0]) continue;
    if (!tier->variant) {
      result = LAPROX_ERROR_UNSUPPORTED;
    } else {
      lpx_variant_drop(context, tier->variant, "self-test: %s", reason);
      lpx_warn(application, "%s kernels are off on %s: %s", laprox_variant_name(tier->variant),
               context->properties.deviceName, reason);
    }
  }
  lpx_buffer_finish(context, &device);
  lpx_buffer_finish(context, &host);
  return result;
}

laprox_result lpx_self_test(lpx_queue *queue) {
  laprox_context *context = lpx_queue_context(queue);
  const laprox_host application = context->host;
  char reason[LPX_REASON_BYTES] = "";
  question *q = lpx_allocate(&application, 1, sizeof *q);
  if (!q) return lpx_fail_memory(&application, "the self-test");
  context->host.message = catch_message;
  context->host.message_user = reason;
  const laprox_result result = try_all(queue, q, &application, reason);
  context->host = application;
  lpx_release(&application, q);
  if (result)
    return lpx_fail(&application, result, "self-test of %s: %s", context->properties.deviceName, reason);
  return LAPROX_OK;
}

laprox_result laprox_context_self_test(laprox_context *context, VkQueue queue, uint32_t queue_family) {
  lpx_queue *own = NULL;
  if (!queue)
    return lpx_fail(&context->host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_context_self_test: queue is missing");
  laprox_result result = lpx_queue_create(context, queue, queue_family, &own);
  if (!result) result = lpx_self_test(own);
  lpx_queue_destroy(own);
  return result;
}
