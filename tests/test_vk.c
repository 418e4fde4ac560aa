/* test_vk.c: the Vulkan layer itself: buffers, transfers, programs, folding of workgroups, timestamps. */
#include "runtime/device.h"
#include "runtime/kernels.h"
#include "runtime/parallel.h"
#include "support/gpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint8_t pattern(size_t i) {
  return (uint8_t)(i * 31 + (i >> 8) * 7 + (i >> 16));
}

/* Sizes around the staging buffer's, and such as are no multiple of a word. */
static void test_transfers(void **state) {
  test_gpu *gpu = *state;
  laprox_context *context = gpu->device->context;
  static const size_t sizes[] = {
      1, 3, 4, 5, 1023, ((size_t)4 << 20) - 1, (size_t)4 << 20, ((size_t)9 << 20) + 3};
  const uint64_t before = laprox_context_memory(context).bytes;
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    lpx_buffer buffer;
    uint8_t *data = malloc(sizes[s]), *back = malloc(sizes[s] + 1);
    assert_true(data && back);
    for (size_t i = 0; i < sizes[s]; i++) data[i] = pattern(i);
    back[sizes[s]] = 0xa5;
    assert_int_equal(lpx_buffer_init(context, LPX_MEMORY_DEVICE, sizes[s], "bytes", &buffer), LAPROX_OK);
    assert_true(laprox_context_memory(context).bytes >= before + sizes[s]);
    assert_int_equal(lpx_queue_upload(gpu->device->queue, lpx_buffer_whole(&buffer), data, sizes[s]),
                     LAPROX_OK);
    assert_int_equal(lpx_queue_download(gpu->device->queue, lpx_buffer_whole(&buffer), back, sizes[s]),
                     LAPROX_OK);
    assert_memory_equal(data, back, sizes[s]);
    assert_int_equal(back[sizes[s]], 0xa5);
    lpx_buffer_finish(context, &buffer);
    assert_true(laprox_context_memory(context).bytes == before);
    free(data);
    free(back);
  }
}

/* Fill, update beyond vkCmdUpdateBuffer's 64 KiB, copy of a part; recorded twice, as steps. */
static void test_programs(void **state) {
  test_gpu *gpu = *state;
  laprox_context *context = gpu->device->context;
  enum { WORDS = 40000 };
  uint32_t *words = malloc(WORDS * sizeof *words), *back = malloc(WORDS * sizeof *back);
  lpx_buffer a, b;
  lpx_program *program = NULL;
  assert_true(words && back);
  for (uint32_t i = 0; i < WORDS; i++) words[i] = i * 2654435761u;
  assert_int_equal(lpx_buffer_init(context, LPX_MEMORY_DEVICE, WORDS * 4, "a", &a), LAPROX_OK);
  assert_int_equal(lpx_buffer_init(context, LPX_MEMORY_DEVICE, WORDS * 4, "b", &b), LAPROX_OK);
  assert_int_equal(lpx_program_create(context, "a test", &program), LAPROX_OK);
  lpx_program_update(program, lpx_buffer_whole(&a), words, WORDS * 4);
  lpx_program_fill(program, lpx_buffer_whole(&b), 0x01020304);
  lpx_program_barrier(program);
  lpx_program_mark_step(program);
  lpx_program_copy(program, lpx_buffer_part(lpx_buffer_whole(&a), 400, 4000),
                   lpx_buffer_part(lpx_buffer_whole(&b), 800, 4000));
  assert_int_equal(lpx_program_finish_building(program), LAPROX_OK);
  assert_int_equal(lpx_program_n_steps(program), 2);
  uint64_t device_ns = 0;
  for (int i = 0; i < 2; i++)
    assert_int_equal(lpx_queue_run(gpu->device->queue, program, &device_ns), LAPROX_OK);
  assert_true(device_ns > 0 && device_ns < UINT64_C(60000000000));
  assert_int_equal(lpx_queue_download(gpu->device->queue, lpx_buffer_whole(&b), back, WORDS * 4), LAPROX_OK);
  for (uint32_t i = 0; i < WORDS; i++)
    assert_int_equal(back[i], i >= 200 && i < 1200 ? words[i - 100] : 0x01020304);
  lpx_program_destroy(program);
  lpx_buffer_finish(context, &a);
  lpx_buffer_finish(context, &b);
  free(words);
  free(back);
}

static void run_swiglu(test_gpu *gpu, uint32_t n, float *out) {
  laprox_context *context = gpu->device->context;
  lpx_kernels kernels;
  lpx_buffer rows;
  lpx_program *program = NULL;
  for (uint32_t i = 0; i < n; i++) out[i] = sinf((float)i);
  assert_int_equal(lpx_kernels_init(context, 0, LAPROX_DTYPE_F16, &kernels), LAPROX_OK);
  assert_int_equal(lpx_buffer_init(context, LPX_MEMORY_DEVICE, n * 8, "gates", &rows), LAPROX_OK);
  const laprox_buffer gates = lpx_buffer_part(lpx_buffer_whole(&rows), 0, n * 4);
  assert_int_equal(lpx_queue_upload(gpu->device->queue, gates, out, n * 4), LAPROX_OK);
  assert_int_equal(lpx_queue_upload(gpu->device->queue,
                                    lpx_buffer_part(lpx_buffer_whole(&rows), n * 4, n * 4), out, n * 4),
                   LAPROX_OK);
  assert_int_equal(lpx_program_create(context, "folding", &program), LAPROX_OK);
  lpx_swiglu_append(program, &kernels, lpx_buffer_whole(&rows), 1, n);
  assert_int_equal(lpx_program_finish_building(program), LAPROX_OK);
  assert_int_equal(lpx_queue_run(gpu->device->queue, program, NULL), LAPROX_OK);
  assert_int_equal(lpx_queue_download(gpu->device->queue, gates, out, n * 4), LAPROX_OK);
  lpx_program_destroy(program);
  lpx_buffer_finish(context, &rows);
}

/* More workgroups than a (pretended) device takes in x go to a second dimension. */
static void test_folding(void **state) {
  test_gpu *gpu = *state;
  enum { N = 20000 };
  float *wide = malloc(N * sizeof *wide), *folded = malloc(N * sizeof *folded);
  assert_true(wide && folded);
  run_swiglu(gpu, N, wide);
  for (uint32_t i = 0; i < N; i++) {
    const double x = (double)sinf((float)i), y = x / (1.0 + exp(-x)) * x;
    assert_true(fabs((double)wide[i] - y) <= 1e-5);
  }
  gpu->device->context->max_groups = 13;
  run_swiglu(gpu, N, folded);
  assert_memory_equal(wide, folded, N * sizeof *wide);
  free(wide);
  free(folded);
}

typedef struct timed_recording {
  const laprox_context *context;
  const lpx_program *program;
  VkQueryPool pool;
  uint32_t n_queries, n;
  const char *names[4];
} timed_recording;

static void record_timed(void *user, VkCommandBuffer command_buffer) {
  timed_recording *r = user;
  if (r->pool) r->context->vk.CmdResetQueryPool(command_buffer, r->pool, 0, r->n_queries);
  r->n = lpx_program_record_timed(r->program, command_buffer, 0, 2, r->pool, r->n_queries, r->names);
}

/* Two copies, one after the other, are one stretch; arithmetic is the next, also in a step of its own. */
static lpx_program *build_stretches(laprox_context *context, lpx_buffer *from, lpx_buffer *to) {
  const uint32_t loads = 1, rounds[] = {8, 1}, n_units = (uint32_t)from->size / 16;
  struct {
    uint32_t n_groups, n_units, stride;
  } copy = {.n_units = n_units, .stride = n_units};
  struct {
    uint32_t n_groups;
    float a, b;
  } arithmetic = {.a = 0.5f};
  const laprox_buffer ranges[] = {lpx_buffer_whole(from), lpx_buffer_whole(to)};
  lpx_pipeline copying, adding;
  lpx_program *program = NULL;
  assert_int_equal(lpx_pipeline_get(context, "bench_copy", 2, &loads, 1, &copying), LAPROX_OK);
  assert_int_equal(lpx_pipeline_get(context, "bench_fma", 1, rounds, 2, &adding), LAPROX_OK);
  assert_string_equal(copying.shader, "bench_copy");
  assert_int_equal(lpx_program_create(context, "stretches", &program), LAPROX_OK);
  for (int i = 0; i < 2; i++) {
    lpx_program_dispatch(program, &copying, ranges, &copy, sizeof copy, n_units / 128, 1);
    lpx_program_barrier(program);
  }
  lpx_program_mark_step(program);
  lpx_program_dispatch(program, &adding, ranges, &arithmetic, sizeof arithmetic, 4, 1);
  assert_int_equal(lpx_program_finish_building(program), LAPROX_OK);
  return program;
}

/* The time of every kernel, and what has been recorded runs. */
static void test_stretches(void **state) {
  test_gpu *gpu = *state;
  laprox_context *context = gpu->device->context;
  enum { BYTES = 65536 };
  uint8_t *data = malloc(BYTES), *back = malloc(BYTES);
  uint64_t ticks[2] = {0};
  lpx_buffer from, to;
  assert_true(data && back);
  for (size_t i = 0; i < BYTES; i++) data[i] = pattern(i);
  assert_int_equal(lpx_buffer_init(context, LPX_MEMORY_DEVICE, BYTES, "from", &from), LAPROX_OK);
  assert_int_equal(lpx_buffer_init(context, LPX_MEMORY_DEVICE, BYTES, "to", &to), LAPROX_OK);
  assert_int_equal(lpx_queue_upload(gpu->device->queue, lpx_buffer_whole(&from), data, BYTES), LAPROX_OK);
  timed_recording r = {.context = context, .program = build_stretches(context, &from, &to), .n_queries = 2};
  const VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                      .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                      .queryCount = 2};
  for (int with_pool = 0; with_pool < 2; with_pool++) {
    if (with_pool)
      assert_int_equal(context->vk.CreateQueryPool(context->device, &info, NULL, &r.pool), VK_SUCCESS);
    assert_int_equal(lpx_queue_record(gpu->device->queue, record_timed, &r, NULL), LAPROX_OK);
    assert_int_equal(r.n, 2);
    assert_string_equal(r.names[0], "bench_copy");
    assert_string_equal(r.names[1], "bench_fma");
  }
  assert_int_equal(context->vk.GetQueryPoolResults(context->device, r.pool, 0, 2, sizeof ticks, ticks, 8,
                                                   VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT),
                   VK_SUCCESS);
  assert_true(ticks[0] > 0 && ticks[1] >= ticks[0]);
  r.n_queries = 1;
  assert_int_equal(lpx_queue_record(gpu->device->queue, record_timed, &r, NULL), LAPROX_OK);
  assert_int_equal(r.n, 1);
  assert_int_equal(lpx_queue_download(gpu->device->queue, lpx_buffer_whole(&to), back, BYTES), LAPROX_OK);
  assert_memory_equal(data, back, BYTES);
  context->vk.DestroyQueryPool(context->device, r.pool, NULL);
  lpx_program_destroy((lpx_program *)(uintptr_t)r.program);
  lpx_buffer_finish(context, &from);
  lpx_buffer_finish(context, &to);
  free(data);
  free(back);
}

/* How much goes into a submit is learnt from how long the last ones took; a GPU may be too fast for this test to say
 * anything. */
static void test_batches(void **state) {
  test_gpu *gpu = *state;
  laprox_context *context = gpu->device->context;
  enum { BYTES = 32 << 20, N_STEPS = 8 };
  lpx_buffer a, b;
  lpx_queue *queue = gpu->device->queue; /* which has run nothing before */
  lpx_program *program = NULL;
  assert_int_equal(lpx_buffer_init(context, LPX_MEMORY_DEVICE, BYTES, "a", &a), LAPROX_OK);
  assert_int_equal(lpx_buffer_init(context, LPX_MEMORY_DEVICE, BYTES, "b", &b), LAPROX_OK);
  assert_int_equal(lpx_program_create(context, "copies", &program), LAPROX_OK);
  for (int i = 0; i < N_STEPS; i++) {
    lpx_program_copy(program, lpx_buffer_whole(&a), lpx_buffer_whole(&b));
    lpx_program_barrier(program);
    lpx_program_mark_step(program);
  }
  assert_int_equal(lpx_program_finish_building(program), LAPROX_OK);
  const uint64_t submit_cost = context->submit_cost;
  context->submit_cost = 1;
  assert_int_equal(lpx_queue_batch(queue, program, 0, N_STEPS), 1);
  const uint64_t start_ns = lpx_now_ns();
  assert_int_equal(lpx_queue_run_steps(queue, program, 0, 1, NULL), LAPROX_OK);
  const uint64_t step_ns = lpx_now_ns() - start_ns;
  const uint32_t n = lpx_queue_batch(queue, program, 0, N_STEPS);
  const uint64_t target_ns = context->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
                                 ? UINT64_C(100000000)
                                 : UINT64_C(50000000);
  if (step_ns > UINT64_C(4000000)) {
    const uint64_t fit =
        target_ns / step_ns; /* and a little more, because step_ns is more than the submit took */
    assert_true(n >= (fit < 1 ? 1 : fit > N_STEPS ? N_STEPS : fit));
    assert_true(n <= 2 * fit + 1);
  }
  context->submit_cost = submit_cost;
  lpx_program_destroy(program);
  lpx_buffer_finish(context, &a);
  lpx_buffer_finish(context, &b);
}

/* What would be recorded, instead of recording it: fills by a letter, barriers by a bar. */
static char recorded[256];

static void VKAPI_CALL note_fill(VkCommandBuffer command_buffer, VkBuffer buffer, VkDeviceSize offset,
                                 VkDeviceSize size, uint32_t letter) {
  (void)command_buffer, (void)buffer, (void)offset, (void)size;
  const size_t n = strlen(recorded);
  assert_true(n + 1 < sizeof recorded);
  recorded[n] = (char)letter;
}

static void VKAPI_CALL note_barrier(VkCommandBuffer command_buffer, VkPipelineStageFlags from,
                                    VkPipelineStageFlags to, VkDependencyFlags flags, uint32_t n_memory,
                                    const VkMemoryBarrier *memory, uint32_t n_buffer,
                                    const VkBufferMemoryBarrier *buffer, uint32_t n_image,
                                    const VkImageMemoryBarrier *image) {
  (void)from, (void)to, (void)flags, (void)memory, (void)n_buffer, (void)buffer, (void)n_image, (void)image;
  assert_int_equal(n_memory, 1);
  note_fill(command_buffer, VK_NULL_HANDLE, 0, 0, '|');
}

static void expect_recorded(const lpx_program *program, uint32_t first, uint32_t count,
                            const char *expected) {
  memset(recorded, 0, sizeof recorded);
  lpx_program_record_bare(program, VK_NULL_HANDLE, first, count);
  assert_string_equal(recorded, expected);
}

/* A section of fills with barriers behind them; '.' ends a step within it. */
static void append_section(lpx_program *program, laprox_buffer to, uint32_t n_beside, const char *letters) {
  lpx_program_begin_section(program, n_beside);
  for (; *letters; letters++) {
    if (*letters == '.') {
      lpx_program_mark_step(program);
      continue;
    }
    lpx_program_fill(program, to, (uint32_t)*letters);
    if (letters[1] == '+')
      letters++;
    else
      lpx_program_barrier(program);
  }
}

/* Sections run side by side as far as they may, evenly spaced, and never more of them than there are places for. */
static void test_sections(void **state) {
  test_gpu *gpu = *state;
  laprox_context *context = gpu->device->context;
  static const struct {
    uint32_t n_beside[5];
    const char *sections[5]; /* '+': no barrier behind the letter before */
    uint32_t first, count;
    const char *expected;
  } cases[] = {
      {{0}, {"ab", "cd"}, 0, 9, "a|b|c|d"},
      {{1, 1, 1}, {"ab", "", "c+d"}, 0, 9, "a|b|cd"},
      {{2, 2, 2}, {"abcd", "ijkl", "pqrs"}, 0, 9, "a|b|ic|jd|pk|ql|r|s"},
      {{2, 2, 2}, {"abcde", "ijklm", "pqrst"}, 0, 9, "a|b|c|id|je|k|pl|qm|r|s|t"},
      {{3, 3, 3, 3}, {"abc", "ijk", "pqr", "xyz"}, 0, 9, "a|ib|pjc|xqk|yr|z"},
      {{2, 2, 2}, {"a", "ijklmn", "p"}, 0, 9, "a|i|j|k|pl|m|n"},
      {{2, 2, 1}, {"ab", "ij", "p"}, 0, 9, "a|ib|j|p"},
      {{1, 2, 2}, {"a", "ij", "pq"}, 0, 9, "a|i|pj|q"},
      {{3, 3, 2}, {"ab", "ij", "pq"}, 0, 9, "a|ib|j|p|q"},
      {{2, 2}, {"ab.cd", "ij.kl"}, 0, 4, "a|b|ic|jd|k|l"},
      {{2, 2}, {"ab.cd", "ij.kl"}, 1, 2, "c|id|j"},
      {{2, 2}, {"ab.cd", "ij.kl"}, 3, 1, "k|l"},
      {{2, 2}, {"ab.cd", "ij.kl"}, 4, 1, ""},
      {{2, 2}, {"ab", "ij"}, 0, 0, ""},
  };
  lpx_buffer buffer;
  const lpx_vk vk = context->vk;
  assert_int_equal(lpx_buffer_init(context, LPX_MEMORY_DEVICE, 4, "a word", &buffer), LAPROX_OK);
  context->vk.CmdFillBuffer = note_fill;
  context->vk.CmdPipelineBarrier = note_barrier;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    lpx_program *program = NULL;
    assert_int_equal(lpx_program_create(context, "sections", &program), LAPROX_OK);
    for (int s = 0; s < 5 && cases[i].sections[s]; s++)
      append_section(program, lpx_buffer_whole(&buffer), cases[i].n_beside[s], cases[i].sections[s]);
    assert_int_equal(lpx_program_finish_building(program), LAPROX_OK);
    expect_recorded(program, cases[i].first, cases[i].count, cases[i].expected);
    lpx_program_destroy(program);
  }
  context->vk = vk;
  lpx_buffer_finish(context, &buffer);
}

/* A program that can't be is refused once, with numbers, however much is appended after. */
static void test_refused(void **state) {
  test_gpu *gpu = *state;
  laprox_context *context = gpu->device->context;
  lpx_kernels kernels;
  lpx_buffer buffer;
  assert_int_equal(lpx_kernels_init(context, 0, LAPROX_DTYPE_F16, &kernels), LAPROX_OK);
  assert_int_equal(lpx_buffer_init(context, LPX_MEMORY_DEVICE, 65536, "small", &buffer), LAPROX_OK);
  context->max_range = 4096;
  for (int which = 0; which < 3; which++) {
    lpx_program *program = NULL;
    laprox_buffer range = lpx_buffer_whole(&buffer);
    if (which == 1) range = (laprox_buffer){0};
    if (which == 2) range = lpx_buffer_part(range, 2, 64);
    const unsigned before = gpu->n_errors;
    uint32_t push[4] = {0};
    assert_int_equal(lpx_program_create(context, "refused", &program), LAPROX_OK);
    const laprox_buffer ranges[] = {range, range};
    for (int i = 0; i < 3; i++)
      lpx_program_dispatch(program, &kernels.swiglu, ranges, push, sizeof push, 1, 1);
    assert_int_equal(lpx_program_finish_building(program), LAPROX_ERROR_UNSUPPORTED);
    assert_int_equal(gpu->n_errors, before + 1);
    assert_non_null(strstr(gpu->last_error, "refused"));
    lpx_program_destroy(program);
  }
  lpx_buffer_finish(context, &buffer);
  lpx_pipeline none;
  assert_int_equal(lpx_pipeline_get(context, "no such shader", 1, NULL, 0, &none),
                   LAPROX_ERROR_INVALID_ARGUMENT);
}

static void count_task(void *user, uint32_t index) {
  atomic_uint *counts = user;
  atomic_fetch_add(&counts[index], 1);
}

static void test_parallel(void **state) {
  (void)state;
  enum { N = 1000 };
  static atomic_uint counts[N + 1];
  for (uint32_t n = 0; n <= N; n = 3 * n + 1) {
    for (uint32_t i = 0; i <= N; i++) atomic_store(&counts[i], 0);
    lpx_parallel_for_each(n, count_task, counts);
    for (uint32_t i = 0; i <= N; i++) assert_int_equal(atomic_load(&counts[i]), i < n);
  }
}

/* What is noted isn't made; what is made ahead is what is found then, each only once. */
static void test_pipelines_ahead(void **state) {
  test_gpu *gpu = *state;
  laprox_context *context = gpu->device->context, noting;
  lpx_pipeline_list list;
  lpx_kernels noted, ahead, again;
  lpx_pipelines_note(context, &list, &noting);
  assert_int_equal(lpx_kernels_init(&noting, 1u << LAPROX_DTYPE_F32, LAPROX_DTYPE_F32, &noted), LAPROX_OK);
  const uint32_t n = list.n;
  assert_true(n >= 6 && !noted.swiglu.pipeline);
  assert_int_equal(lpx_kernels_init(&noting, 1u << LAPROX_DTYPE_F32, LAPROX_DTYPE_F32, &noted), LAPROX_OK);
  assert_int_equal(list.n, n);
  assert_int_equal(lpx_pipelines_compile(context, &list, lpx_parallel_for_each), LAPROX_OK);
  assert_true(!list.n && !list.first);
  lpx_pipelines_note(context, &list, &noting);
  assert_int_equal(lpx_kernels_init(&noting, 1u << LAPROX_DTYPE_F32, LAPROX_DTYPE_F32, &ahead), LAPROX_OK);
  assert_int_equal(list.n, 0);
  assert_true(ahead.swiglu.pipeline && ahead.rope.pipeline && ahead.matmul[LAPROX_DTYPE_F32].pipeline);
  assert_int_equal(lpx_kernels_init(context, 1u << LAPROX_DTYPE_F32, LAPROX_DTYPE_F32, &again), LAPROX_OK);
  assert_true(again.rope.pipeline == ahead.rope.pipeline && again.rope.pipeline != again.swiglu.pipeline);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_transfers, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_programs, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_folding, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_stretches, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_batches, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_sections, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_refused, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test(test_parallel),
      cmocka_unit_test_setup_teardown(test_pipelines_ahead, test_gpu_setup, test_gpu_teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
