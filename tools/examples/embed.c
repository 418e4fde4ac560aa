/* embed: eviction inside an application that owns its instance, device, queue, buffers and command buffer (app.c).
 * The library plans, records and never submits. K and V are made up; a real application has them already. */
#include "app.h"

#include <stdio.h>

enum { LAYERS = 2, HEADS = 8, KV_HEADS = 2, DIM = 64, TOKENS = 1000, ARENA = 16 << 20 };

/* Packs what a layer keeps into buffers of their own, and shows it. */
static void compact_layer(app *a, const app_commands *c, const laprox_plan *plan, laprox_compaction_info info,
                          const uint32_t *indices) {
  const uint32_t *rows = info.cu_seqlens + (size_t)info.layer * KV_HEADS;
  const VkDeviceSize bytes = (VkDeviceSize)(rows[KV_HEADS] - rows[0]) * DIM * sizeof(float);
  float *key, *value;
  laprox_compaction *compaction = NULL;
  info.key = app_take(a, bytes, &key);
  info.value = app_take(a, bytes, &value);
  must(laprox_compaction_create(plan, &info, &compaction), "laprox_compaction_create");
  app_begin(c);
  must(laprox_cmd_compact(c->buffer, compaction), "laprox_cmd_compact");
  app_copy(c, a->arena, a->host, info.key);
  app_copy(c, a->arena, a->host, info.value);
  app_run(c);
  laprox_compaction_destroy(compaction);
  for (uint32_t g = 0; g < KV_HEADS; g++) {
    const uint32_t *kept = indices + rows[g], n = rows[g + 1] - rows[g];
    (void)printf("layer %u, KV head %u keeps %3u of %d:", info.layer, g, n, TOKENS);
    for (uint32_t i = 0; i < 8 && i < n; i++) (void)printf(" %u", kept[i]);
    (void)printf(" …; K of the first begins with %g\n", (double)key[(size_t)(rows[g] - rows[0]) * DIM]);
  }
}

static void evict(app *a, const app_commands *c, laprox_context *context) {
  const laprox_plan_info plan_info = {.shape = {LAYERS, HEADS, KV_HEADS, DIM},
                                      .policy.budget.share = 0.1,
                                      .cache_dtype = LAPROX_DTYPE_F32,
                                      .n_segments = 1,
                                      .segments = {{.n_entries = TOKENS}}};
  laprox_plan *plan = NULL;
  laprox_binding *binding = NULL;
  laprox_requirements needs;
  laprox_result_layout layout;
  laprox_layer_buffers layers[LAYERS] = {0};
  must(laprox_plan_create(context, &plan_info, &plan), "laprox_plan_create");
  laprox_plan_requirements(plan, &needs);
  laprox_plan_result_layout(plan, &layout);
  for (uint32_t l = 0; l < LAYERS; l++) app_fill_layer(a, &plan_info.shape, l, TOKENS, &needs, &layers[l]);
  const laprox_buffer uploads = {a->host, 0, a->used_bytes};
  float *host_result;
  const laprox_binding_info buffers = {.layers = layers,
                                       .scratch = app_take(a, needs.scratch_bytes, NULL),
                                       .scores = app_take(a, needs.scores_bytes, NULL),
                                       .result = app_take(a, needs.result_bytes, &host_result)};
  must(laprox_binding_create(plan, &buffers, &binding), "laprox_binding_create");

  /* One command buffer: the application's copies around the library's steps, whose barriers cover both sides. */
  app_begin(c);
  app_copy(c, a->host, a->arena, uploads);
  must(laprox_cmd_steps(c->buffer, binding, 0, laprox_binding_n_steps(binding)), "laprox_cmd_steps");
  app_copy(c, a->arena, a->host, buffers.result);
  app_run(c);

  const uint32_t *cu_seqlens = (uint32_t *)(void *)((char *)host_result + layout.cu_seqlens);
  const uint32_t *indices = (uint32_t *)(void *)((char *)host_result + layout.indices);
  for (uint32_t l = 0; l < LAYERS; l++)
    compact_layer(a, c, plan,
                  (laprox_compaction_info){
                      .layer = l, .source = layers[l], .result = buffers.result, .cu_seqlens = cu_seqlens},
                  indices);
  (void)printf("%llu entries in all\n", (unsigned long long)needs.n_kept);
  laprox_binding_destroy(binding);
  laprox_plan_destroy(plan);
}

int main(void) {
  app a;
  app_commands c;
  laprox_context *context = NULL;
  app_open(&a, false, ARENA);
  app_commands_create(&a, 0, &c);
  const laprox_context_info info = app_context_info(&a);
  must(laprox_context_create(&info, &context), "laprox_context_create");
  evict(&a, &c, context);
  laprox_context_destroy(context);
  app_commands_destroy(&c);
  app_close(&a);
  return 0;
}
