/* test_memory.c: what a long prompt takes in a model of many layers: K and V of what is kept and of one full
 * layer, and all of the device's memory together what the plan said. */
#include "laprox/runtime.h"
#include "support/gpu.h"
#include "support/model_file.h"
#include "vk/vk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODEL "test_memory.gguf"

enum { N_LAYERS = 32, N_KV_HEADS = 2, N_VOCAB = 258, N_TOKENS = 2048, BUDGET = 102 };

static const test_model deep = {.n_layers = N_LAYERS,
                                .n_heads = 4,
                                .n_kv_heads = N_KV_HEADS,
                                .head_dim = 32,
                                .model_dim = 64,
                                .feed_forward_dim = 64,
                                .n_vocab = N_VOCAB,
                                .context_length = 2 * N_TOKENS,
                                .dtype = LAPROX_DTYPE_F16,
                                .seed = 5};

static laprox_model *load_model(test_gpu *gpu) {
  laprox_model *model = NULL;
  const laprox_model_info info = {.path = MODEL};
  assert_true(model_file_write(MODEL, &deep));
  assert_int_equal(laprox_model_load(gpu->device, &info, &model), LAPROX_OK);
  (void)remove(MODEL);
  return model;
}

static void make_tokens(uint32_t *tokens) {
  uint32_t state = 9;
  for (uint32_t i = 0; i < N_TOKENS; i++) {
    state = state * 1664525u + 1013904223u;
    tokens[i] = 2 + (state >> 8) % (N_VOCAB - 2);
  }
}

static void expect_within(double got, double least, double most, const char *what) {
  if (!(got >= least && got <= most)) fail_msg("%s: %.0f is not %.0f to %.0f", what, got, least, most);
}

/* What is kept is spread over layers and heads, not taken evenly: otherwise nothing was ever dropped again.
 */
static void expect_global(const laprox_session *session, uint64_t n_kept) {
  uint32_t kept[N_LAYERS * N_KV_HEADS], least = UINT32_MAX, most = 0;
  uint64_t n = 0;
  laprox_session_kept_per_head(session, kept);
  for (size_t i = 0; i < N_LAYERS * N_KV_HEADS; i++) {
    n += kept[i];
    if (kept[i] < least) least = kept[i];
    if (kept[i] > most) most = kept[i];
  }
  assert_true(n == n_kept && least < most);
}

static void test_deep_model(void **state) {
  test_gpu *gpu = *state;
  static uint32_t tokens[N_TOKENS];
  laprox_context *context = laprox_device_context(gpu->device);
  laprox_model *model = load_model(gpu);
  const laprox_policy policy = {.budget.share = 0.05};
  const laprox_session_info info = {.chunk = 512};
  laprox_session *session = NULL;
  laprox_eviction done;
  make_tokens(tokens);

  laprox_memory_plan plan;
  const laprox_memory_plan_info planned = {
      .session = info, .policy = policy, .n_prompt = N_TOKENS, .layerwise = true};
  assert_int_equal(laprox_plan_memory(model, &planned, &plan), LAPROX_OK);
  assert_int_equal(laprox_session_create(model, &info, &session), LAPROX_OK);
  assert_int_equal(laprox_session_prefill_evict(session, tokens, N_TOKENS, &policy, &done), LAPROX_OK);

  const uint64_t row_bytes = 2 * 32 * 2; /* K and V, f16 */
  const uint64_t full_bytes = (uint64_t)N_LAYERS * N_KV_HEADS * N_TOKENS * row_bytes;
  const uint64_t kept_bytes = (uint64_t)N_LAYERS * N_KV_HEADS * BUDGET * row_bytes;
  const laprox_session_memory memory = laprox_session_get_memory(session);
  assert_true(done.kept == (uint64_t)N_LAYERS * N_KV_HEADS * BUDGET && done.bytes_after == kept_bytes);
  assert_true(memory.kv_full_bytes == full_bytes);
  expect_global(session, done.kept);
  const double kept = (double)kept_bytes, layer = (double)full_bytes / N_LAYERS;
  expect_within((double)memory.kv_bytes, kept, 1.05 * kept, "steady bytes");
  expect_within((double)memory.kv_peak_bytes, layer, 1.05 * (kept + layer), "peak bytes");
  expect_within((double)memory.kv_peak_bytes, layer, 0.1 * (double)full_bytes,
                "peak bytes of the full cache's");

  const double peak = (double)plan.peak_bytes;
  expect_within((double)laprox_context_memory(context).peak_bytes, 0.95 * peak, 1.05 * peak, "all memory");
  expect_within((double)memory.kv_peak_bytes, 0.95 * (double)plan.kv_peak_bytes,
                1.05 * (double)plan.kv_peak_bytes, "peak bytes beside the plan's");
  laprox_session_destroy(session);

  /* Whole tokens are chosen when all layers are there. */
  laprox_memory_plan_info whole = planned;
  laprox_memory_plan at_end;
  whole.policy.scope = LAPROX_SCOPE_TOKEN;
  assert_int_equal(laprox_plan_memory(model, &whole, &plan), LAPROX_OK);
  whole.layerwise = false;
  assert_int_equal(laprox_plan_memory(model, &whole, &at_end), LAPROX_OK);
  assert_true(plan.kv_peak_bytes >= full_bytes && plan.kv_peak_bytes == at_end.kv_peak_bytes);
  assert_true(plan.peak_bytes == at_end.peak_bytes);
  laprox_model_destroy(model);
  assert_int_equal(gpu->n_errors, 0);
}

/* Once a token has been generated, nothing is there that the plan doesn't know. */
static void test_session_alone(void **state) {
  test_gpu *gpu = *state;
  static uint32_t tokens[N_TOKENS];
  laprox_model *model = load_model(gpu);
  const laprox_session_info info = {.chunk = 512};
  const laprox_memory_plan_info planned = {
      .session = info, .policy.kind = LAPROX_POLICY_FULL, .n_prompt = 40, .n_generate = 1};
  laprox_memory_plan plan;
  laprox_session *session = NULL;
  make_tokens(tokens);
  assert_int_equal(laprox_plan_memory(model, &planned, &plan), LAPROX_OK);
  assert_int_equal(laprox_session_create(model, &info, &session), LAPROX_OK);
  assert_int_equal(laprox_session_prefill(session, tokens, 40), LAPROX_OK);
  assert_int_equal(laprox_session_decode(session, 7), LAPROX_OK);
  laprox_context *context = laprox_device_context(gpu->device);
  const uint64_t bytes =
      laprox_context_memory(context).bytes - plan.weight_bytes - laprox_session_get_memory(session).kv_bytes;
  /* others round every buffer up */
  const double slack = context->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU ? 1.0 : 1.05;
  expect_within((double)bytes, (double)plan.activation_bytes, slack * (double)plan.activation_bytes,
                "activations beside the plan's");
  laprox_session_destroy(session);
  laprox_model_destroy(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_deep_model, test_gpu_setup, test_gpu_teardown),
      cmocka_unit_test_setup_teardown(test_session_alone, test_gpu_setup, test_gpu_teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
