/* test_layout.c: K and V as applications have them. Wherever the entries stand, and however many bindings they take, the
 * scores are the same to the bit, and so is what is kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shim/failing.h"
#include "support/flow.h"

#include "evict/evict.h"

#include <cmocka.h>

#define ARENA_BYTES ((VkDeviceSize)24 << 20)

static app_vulkan vulkan;
static app_device device;
static test_host host;
static laprox_context *context;

/* ---- results of one run ---- */

typedef struct outcome {
  uint32_t matrix_size; /* of the plan */
  size_t score_bytes, kept_bytes;
  unsigned char *scores, *kept; /* kept: counters, then all from cu_seqlens on */
} outcome;

static outcome outcome_of(const flow *f) {
  outcome out = {.matrix_size = f->plan->matrix_size, .score_bytes = (size_t)f->scores.size};
  const unsigned char *result = app_mapped(f->device, f->result);
  const size_t counters = (size_t)f->options.capture.shape.n_layers * 8;
  const size_t lists = (size_t)(f->result.size - f->layout.cu_seqlens);
  out.kept_bytes = counters + lists;
  out.scores = malloc(out.score_bytes);
  out.kept = malloc(out.kept_bytes);
  assert_true(out.scores && out.kept);
  memcpy(out.scores, app_mapped(f->device, f->scores), out.score_bytes);
  memcpy(out.kept, result + f->layout.counters, counters);
  memcpy(out.kept + counters, result + f->layout.cu_seqlens, lists);
  return out;
}

static void outcome_finish(outcome *out) {
  free(out->scores);
  free(out->kept);
}

static void expect_same(const outcome *left, const outcome *right) {
  assert_int_equal(left->score_bytes, right->score_bytes);
  assert_int_equal(left->kept_bytes, right->kept_bytes);
  assert_memory_equal(left->scores, right->scores, left->score_bytes);
  assert_memory_equal(left->kept, right->kept, left->kept_bytes);
}

static void limit_ranges(VkDeviceSize bytes) {
  context->max_range = bytes;
  shim.limits.maxStorageBufferRange = (uint32_t)bytes;
}

static void start(flow *f, const flow_options *options) {
  device.used_bytes = 0;
  flow_init(f, options);
  if (flow_prepare(f, &device, context)) fail_msg("%s", host.last_error);
}

static outcome run(const flow_options *options, bool truth) {
  flow f;
  start(&f, options);
  assert_int_equal(flow_run(&f), LAPROX_OK);
  assert_int_equal(flow_compact(&f), LAPROX_OK);
  if (truth)
    flow_expect(&f);
  else
    flow_expect_rows(&f);
  const outcome out = outcome_of(&f);
  if (!options->tail) assert_int_equal(flow_compact_in_place(&f), LAPROX_OK);
  flow_finish(&f);
  if (shim.n_violations) fail_msg("%u violations, the first: %s", shim.n_violations, shim.violation);
  return out;
}

/* ---- operands of matrices in parts ---- */

/* As where an invocation holds more of a matrix; without matrices once more the same. */
static void test_wide_operands(void **state) {
  static const flow_options cases[] = {
      {.capture =
           {{2, 4, 1, 128}, 700, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 94},
       .policy = {.budget.tokens = 70}},
      {.capture =
           {{2, 10, 2, 64}, 531, 20, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 95},
       .policy = {.window = 20, .sinks = 3, .budget.tokens = 60}},
      {.capture = {{1, 2, 2, 16}, 300, 32, .dtype = LAPROX_DTYPE_F16, .seed = 96},
       .policy = {.budget.tokens = 50}}};
  (void)state;
  const bool wide = context->wide_operands;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    context->wide_operands = !wide;
    outcome out = run(&cases[i], true);
    outcome_finish(&out);
  }
  context->wide_operands = wide;
}

/* ---- logits that leave all before them behind ---- */

static void test_rising_logits(void **state) {
  static const flow_options cases[] = {
      {.capture = {{1, 4, 1, 128}, 700, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_RISING, .seed = 97},
       .policy = {.budget.tokens = 70}},
      {.capture = {{2, 4, 2, 64}, 531, 20, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_RISING, .seed = 98},
       .policy = {.window = 20, .sinks = 3, .budget.tokens = 60}}};
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    outcome out = run(&cases[i], true);
    outcome_finish(&out);
  }
}

/* ---- every layout ---- */

typedef struct layout_case {
  const char *name;
  flow_options options;
} layout_case;

static const layout_case layouts[] = {
    {"f16",
     {.capture = {{2, 4, 2, 64}, 300, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 70},
      .keep_mask = true,
      .policy = {.sinks = 2, .floor = 3, .budget.tokens = 70}}},
    {"bf16, three heads a group, head_dim 20",
     {.capture = {{2, 9, 3, 20}, 133, 32, .dtype = LAPROX_DTYPE_BF16, .seed = 71},
      .policy = {.scope = LAPROX_SCOPE_LAYER, .budget.tokens = 50}}},
    {"f32, joint, ragged prefix and dense tail",
     {.capture = {{3, 4, 2, 32}, 360, 32, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 72},
      .keep_mask = true,
      .policy = {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 60},
      .tail = 90}},
    {"bf16, attention-mean, ragged prefix and dense tail",
     {.capture = {{2, 4, 2, 32}, 300, 16, .dtype = LAPROX_DTYPE_BF16, .pattern = CAPTURE_TIES, .seed = 73},
      .policy = {.gqa = LAPROX_GQA_ATTENTION_MEAN,
                 .window = 16,
                 .pool_before = LAPROX_SWITCH_ON,
                 .budget.tokens = 60},
      .tail = 70}},
};
#define N_LAYOUTS (sizeof layouts / sizeof *layouts)

static void test_layouts(void **state) {
  const layout_case *c = *state;
  flow_options options = c->options;
  outcome first = run(&options, true);
  for (int layout = 1; layout < FLOW_N_LAYOUTS; layout++) {
    options.layout = (flow_layout)layout;
    outcome other = run(&options, false);
    expect_same(&first, &other);
    outcome_finish(&other);
  }
  outcome_finish(&first);
}

/* ---- heads longer than a binding ---- */

typedef struct cut_case {
  const char *name;
  flow_options options;
  VkDeviceSize range; /* what a binding may hold, less than a head of the cache */
} cut_case;

/* Windows of 16 and small groups keep what else is bound small. */
#define CUT_CAPTURE(dtype_, seed_)                                                                           \
  { {2, 4, 2, 32}, 1700, 16, .dtype = dtype_, .pattern = CAPTURE_NEEDLES, .seed = seed_ }

static const cut_case cuts[] = {
    {"laprox, token-major, tiles across the cuts",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_F16, 80),
      .layout = FLOW_TOKEN_MAJOR,
      .policy = {.window = 16, .sinks = 3, .budget.tokens = 100}},
     80 << 10},
    {"laprox, token-major, with room for matrices",
     {.capture = {{1, 4, 2, 32}, 5000, 16, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 91},
      .keep_mask = true,
      .layout = FLOW_TOKEN_MAJOR,
      .policy = {.window = 16, .budget.tokens = 100}},
     170 << 10},
    {"laprox, head-major, most is kept",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_F32, 81), .policy = {.window = 16, .budget.tokens = 1500}},
     100 << 10},
    {"laprox, token-major, padded, ragged prefix and dense tail",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_F16, 82),
      .keep_mask = true,
      .layout = FLOW_TOKEN_ODD,
      .policy = {.window = 16, .budget.tokens = 300},
      .tail = 900},
     80 << 10},
    {"laprox, joint, interleaved",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_BF16, 83),
      .layout = FLOW_INTERLEAVED,
      .policy = {.gqa = LAPROX_GQA_JOINT, .window = 16, .sinks = 1, .budget.tokens = 100}},
     150 << 10},
    {"snapkv, one buffer",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_F16, 84),
      .layout = FLOW_ONE_BUFFER,
      .policy = {.kind = LAPROX_POLICY_SNAPKV, .window = 16, .budget.tokens = 100}},
     270 << 10},
    {"keydiff, ragged prefix and dense tail",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_F16, 85),
      .layout = FLOW_TOKEN_MAJOR,
      .policy = {.kind = LAPROX_POLICY_KEYDIFF, .window = 16, .budget.tokens = 100},
      .tail = 800},
     80 << 10},
    {"vatp, token-major",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_F16, 86),
      .layout = FLOW_TOKEN_MAJOR,
      .policy = {.kind = LAPROX_POLICY_VATP, .window = 16, .budget.tokens = 100}},
     80 << 10},
    {"tova, token-major",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_F16, 87),
      .layout = FLOW_TOKEN_MAJOR,
      .policy = {.kind = LAPROX_POLICY_TOVA, .window = 16, .budget.tokens = 100}},
     80 << 10},
    {"knorm, token-major",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_F16, 88),
      .layout = FLOW_TOKEN_MAJOR,
      .policy = {.kind = LAPROX_POLICY_KNORM, .window = 16, .budget.tokens = 100}},
     80 << 10},
    {"defensivekv, token-major",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_F16, 89),
      .layout = FLOW_TOKEN_MAJOR,
      .policy = {.kind = LAPROX_POLICY_DEFENSIVEKV, .window = 16, .budget.tokens = 100}},
     80 << 10},
    {"criticalkv, token-major",
     {.capture = CUT_CAPTURE(LAPROX_DTYPE_F16, 90),
      .layout = FLOW_TOKEN_MAJOR,
      .policy = {.kind = LAPROX_POLICY_CRITICALKV, .window = 16, .budget.tokens = 100}},
     80 << 10},
    {"laprox, token-major, blocks of 8 bits",
     {.capture =
          {{1, 4, 2, 64}, 1800, 16, .dtype = LAPROX_DTYPE_Q8_0, .pattern = CAPTURE_NEEDLES, .seed = 92},
      .layout = FLOW_TOKEN_MAJOR,
      .policy = {.window = 16, .budget.tokens = 100}},
     80 << 10},
    {"defensivekv, token-major, blocks of 4 bits",
     {.capture =
          {{1, 4, 2, 64}, 1800, 16, .dtype = LAPROX_DTYPE_Q4_0, .pattern = CAPTURE_NEEDLES, .seed = 93},
      .layout = FLOW_TOKEN_MAJOR,
      .policy = {.kind = LAPROX_POLICY_DEFENSIVEKV, .window = 16, .budget.tokens = 100}},
     80 << 10},
};
#define N_CUTS (sizeof cuts / sizeof *cuts)

/* Small ranges may have no room for the operands of the kernels on matrices, which the reference alone then judges. */
static void test_cuts(void **state) {
  const cut_case *c = *state;
  flow_options options = c->options;
  options.layout = FLOW_HEAD_MAJOR;
  const VkDeviceSize whole = context->max_range;
  const bool truth = !ref_has_stage(options.policy.kind);
  outcome first = run(&options, truth);
  limit_ranges(c->range);
  outcome cut = run(&c->options, truth);
  limit_ranges(whole);
  if (first.matrix_size == cut.matrix_size) expect_same(&first, &cut);
  outcome_finish(&first);
  outcome_finish(&cut);
}

static void expect_failure(laprox_result got, laprox_result expected, const char *word) {
  if (got != expected || host.n_errors != 1 || !strstr(host.last_error, word))
    fail_msg("result %d instead of %d, %u messages, \"%s\" should mention \"%s\"", got, expected,
             host.n_errors, host.last_error, word);
  host.n_errors = 0;
}

/* 512 entries are the least. */
static void test_cut_too_small(void **state) {
  (void)state;
  flow f;
  const VkDeviceSize whole = context->max_range;
  limit_ranges(80 << 10);
  flow_options options = cuts[0].options;
  options.layout = FLOW_ONE_BUFFER;
  flow_init(&f, &options);
  expect_failure(flow_plan(&f, context), LAPROX_ERROR_UNSUPPORTED, "512 entries");
  flow_finish(&f);
  limit_ranges(whole);
}

/* ---- entries farther apart than 32 bits can say ---- */

/* Where a kernel looks for an entry's row, in bytes of the buffer: rows.glsl in words of 32 bits, as there. */
static uint64_t looked_for(const laprox_plan *plan, const lpx_row_layout *rows, laprox_buffer range,
                           uint32_t head, uint32_t entry) {
  const uint32_t *row = lpx_head_row(plan, 0, head);
  const uint32_t first = rows->segment ? row[HEAD_ROWS] : 0;
  const uint32_t element = head * rows->head_stride +
                           (row[HEAD_ROW + 2 * rows->segment] + entry - first) * rows->entry_stride -
                           rows->origin;
  return range.offset + (uint64_t)element * 2;
}

static void test_far_heads(void **state) {
  (void)state;
  const uint64_t head_stride = (UINT64_C(1) << 34) + 192, offset = 4;
  const uint32_t entry_stride = 1u << 21, n_entries = 3000, n_heads = 3;
  const laprox_plan_info info = {
      .shape = {1, 6, n_heads, 64},
      .policy.budget.tokens = 60,
      .n_segments = 1,
      .segments = {{.n_entries = n_entries, .entry_stride = entry_stride, .head_stride = head_stride}}};
  const laprox_buffer whole = {(VkBuffer)(uintptr_t)1, offset, UINT64_MAX / 2};
  const VkDeviceSize limit = context->max_range;
  laprox_plan *plan = NULL;
  context->max_range = UINT32_MAX; /* 1,024 entries */
  assert_int_equal(laprox_plan_create(context, &info, &plan), LAPROX_OK);
  assert_int_equal(lpx_segment_bytes(plan, 0, 0),
                   (2 * head_stride + (uint64_t)(n_entries - 1) * entry_stride + 64) * 2);
  lpx_head_group group = {0};
  unsigned n_groups = 0;
  for (uint32_t next = 0; lpx_head_group_next(plan, 0, HEAD_FIRST_SPLIT, 0, 18, &group); n_groups++) {
    lpx_row_layout rows;
    const laprox_buffer range =
        lpx_head_group_range(plan, 0, &group, whole, lpx_dtype_unit(plan->dtype), &rows);
    const uint32_t head = group.first_head, begin = group.begin_entry;
    const uint32_t end = group.end_entry < n_entries ? group.end_entry : n_entries;
    assert_int_equal(group.end_head, head + 1);
    assert_true(range.size <= UINT32_MAX && range.offset % context->range_alignment == 0);
    assert_int_equal(looked_for(plan, &rows, range, head, begin),
                     offset + (head * head_stride + (uint64_t)begin * entry_stride) * 2);
    assert_int_equal(looked_for(plan, &rows, range, head, end - 1) + 128, range.offset + range.size);
    assert_int_equal(group.first_item, next);
    next = group.end_item;
  }
  assert_int_equal(group.end_item, 18);
  assert_int_equal(n_groups, 9);
  context->max_range = limit;
  laprox_plan_destroy(plan);
}

/* ---- mistakes ---- */

static void test_bad_strides(void **state) {
  (void)state;
  static const struct {
    const char *word;
    laprox_dtype dtype;
    laprox_segment segment;
  } table[] = {
      {"entry_stride 60", LAPROX_DTYPE_F16, {.n_entries = 200, .entry_stride = 60}},
      {"entry_stride 65", LAPROX_DTYPE_F16, {.n_entries = 200, .entry_stride = 65}},
      {"entry_stride 4294967294", LAPROX_DTYPE_F16, {.n_entries = 200, .entry_stride = UINT32_MAX - 1}},
      {"head_stride 63", LAPROX_DTYPE_F32, {.n_entries = 200, .head_stride = 63}},
      {"head_stride 67", LAPROX_DTYPE_BF16, {.n_entries = 200, .head_stride = 67}},
      {"head_stride 18446744073709551614",
       LAPROX_DTYPE_F32,
       {.n_entries = 200, .head_stride = UINT64_MAX - 1}},
      {"head_rows", LAPROX_DTYPE_F16, {.n_entries = 200, .head_rows = 200, .head_stride = 64}},
  };
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
    const laprox_plan_info info = {.shape = {1, 4, 2, 64},
                                   .policy.budget.tokens = 60,
                                   .cache_dtype = table[i].dtype,
                                   .n_segments = 1,
                                   .segments = {table[i].segment}};
    laprox_plan *plan = NULL;
    expect_failure(laprox_plan_create(context, &info, &plan), LAPROX_ERROR_INVALID_ARGUMENT, table[i].word);
    assert_null(plan);
  }
}

/* A layer's last entry needs no padding behind it, and everything before it must be there. */
static void test_exact_ranges(void **state) {
  (void)state;
  for (int layout = 0; layout < FLOW_N_LAYOUTS; layout++) {
    flow f;
    flow_options options = layouts[0].options;
    options.layout = (flow_layout)layout;
    start(&f, &options);
    const laprox_segment *part = &f.info.segments[0];
    const uint64_t stride = part->entry_stride ? part->entry_stride : 64;
    const uint64_t row = part->head_stride ? 0 : part->head_rows;
    laprox_buffer *value = &f.buffers[1].value[0];
    value->size = ((row + part->n_entries - 1) * stride + part->head_stride + 64) * 2;
    flow_release(&f);
    assert_int_equal(flow_plan(&f, context), LAPROX_OK);
    assert_int_equal(flow_bind(&f), LAPROX_OK);
    laprox_binding_destroy(f.binding);
    value->size -= 4;
    expect_failure(flow_bind(&f), LAPROX_ERROR_INVALID_ARGUMENT, "value is too small");
    flow_finish(&f);
  }
}

static void test_keep_mask_mistakes(void **state) {
  (void)state;
  flow f;
  start(&f, &layouts[0].options);
  const laprox_buffer good = f.keep_mask;
  const laprox_buffer bad[] = {{VK_NULL_HANDLE, 0, 0},
                               {good.buffer, good.offset, good.size - 4},
                               {good.buffer, good.offset + 2, good.size}};
  laprox_binding_destroy(f.binding);
  for (size_t i = 0; i < 3; i++) {
    f.keep_mask = bad[i];
    expect_failure(flow_bind(&f), LAPROX_ERROR_INVALID_ARGUMENT, "keep_mask");
  }
  flow_finish(&f);
}

/* What a policy has no use for need not be there. */
static void test_missing_buffers(void **state) {
  (void)state;
  static const struct {
    laprox_policy_kind kind;
    bool query, key, value; /* needed */
  } table[] = {{LAPROX_POLICY_SNAPKV, true, true, false},   {LAPROX_POLICY_KNORM, false, true, false},
               {LAPROX_POLICY_KEYDIFF, false, true, false}, {LAPROX_POLICY_TOVA, true, true, false},
               {LAPROX_POLICY_VATP, true, true, true},      {LAPROX_POLICY_STREAMING, false, false, false}};
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
    flow f;
    flow_options options = layouts[0].options;
    options.policy = (laprox_policy){.kind = table[i].kind, .budget.tokens = 70};
    options.keep_mask = false;
    outcome first = run(&options, false);
    start(&f, &options);
    laprox_binding_destroy(f.binding);
    for (uint32_t l = 0; l < options.capture.shape.n_layers; l++) {
      laprox_layer_buffers *layer = &f.buffers[l];
      if (!table[i].query) layer->query = (laprox_buffer){0};
      if (!table[i].key) layer->key[0] = (laprox_buffer){0};
      if (!table[i].value) layer->value[0] = (laprox_buffer){0};
    }
    assert_int_equal(flow_bind(&f), LAPROX_OK);
    assert_int_equal(flow_run(&f), LAPROX_OK);
    outcome other = outcome_of(&f);
    expect_same(&first, &other);
    if (table[i].value) {
      laprox_binding_destroy(f.binding);
      f.buffers[1].value[0] = (laprox_buffer){0};
      expect_failure(flow_bind(&f), LAPROX_ERROR_INVALID_ARGUMENT, "value is missing");
    }
    outcome_finish(&first);
    outcome_finish(&other);
    flow_finish(&f);
  }
}

static int set_up(void **state) {
  (void)state;
  app_vulkan_init(&vulkan);
  app_device_init(&vulkan, ARENA_BYTES, &device);
  test_host_init(&host);
  failing_arm(&host, FAIL_VULKAN, 0, 0);
  shim.max_range = (VkDeviceSize)1 << 27;
  laprox_context_info info = app_context_info(&vulkan, &device, &host.host);
  info.get_instance_proc_addr = shim_get_instance_proc_addr;
  return laprox_context_create(&info, &context);
}

static int tear_down(void **state) {
  (void)state;
  laprox_context_destroy(context);
  failing_expect_nothing_left(&host);
  app_device_finish(&device);
  return (int)app_vulkan_finish(&vulkan);
}

/* An argument names the one test to run. */
int main(int argc, char **argv) {
  const struct CMUnitTest others[] = {
      cmocka_unit_test(test_cut_too_small),      cmocka_unit_test(test_missing_buffers),
      cmocka_unit_test(test_far_heads),          cmocka_unit_test(test_bad_strides),
      cmocka_unit_test(test_keep_mask_mistakes), cmocka_unit_test(test_exact_ranges),
      cmocka_unit_test(test_wide_operands),      cmocka_unit_test(test_rising_logits)};
  enum { N_OTHERS = sizeof others / sizeof *others };
  struct CMUnitTest tests[N_LAYOUTS + N_CUTS + N_OTHERS];
  for (size_t i = 0; i < N_LAYOUTS; i++) /* cmocka's state is not const */
    tests[i] = (struct CMUnitTest){layouts[i].name, test_layouts, NULL, NULL, (void *)(uintptr_t)&layouts[i]};
  for (size_t i = 0; i < N_CUTS; i++)
    tests[N_LAYOUTS + i] =
        (struct CMUnitTest){cuts[i].name, test_cuts, NULL, NULL, (void *)(uintptr_t)&cuts[i]};
  memcpy(tests + N_LAYOUTS + N_CUTS, others, sizeof others);
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests_name("layout", tests, set_up, tear_down);
}
