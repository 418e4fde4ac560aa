/* pass.c: plan, buffers and result of one eviction. */
#include "runtime/pass.h"
#include "runtime/parallel.h"

/* In parallel, as compilers take a second for all of them. */
static laprox_result compile_pipelines(laprox_context *context, const laprox_plan_info *info) {
  lpx_pipeline_list list;
  laprox_context noting;
  laprox_plan *noted = NULL;
  lpx_pipelines_note(context, &list, &noting);
  laprox_result result = laprox_plan_create(&noting, info, &noted);
  laprox_plan_destroy(noted);
  if (!result) result = lpx_pipelines_compile(context, &list, lpx_parallel_for_each);
  lpx_pipeline_list_release(&context->host, &list);
  return result;
}

laprox_result lpx_pass_init(laprox_context *context, const laprox_plan_info *info, const uint32_t *window,
                            lpx_pass *out) {
  laprox_result result = LAPROX_OK;
  if (window) {
    /* its pipelines are there since the plan that scored */
    result = lpx_plan_create_scored(context, info, *window, &out->plan);
  } else {
    result = compile_pipelines(context, info);
    if (!result) result = laprox_plan_create(context, info, &out->plan);
  }
  if (!result) laprox_plan_requirements(out->plan, &out->needs);
  return result;
}

laprox_result lpx_pass_bind(laprox_context *context, const laprox_layer_buffers *layers, lpx_pass *pass) {
  const laprox_requirements *needs = &pass->needs;
  laprox_result result =
      lpx_buffer_init(context, LPX_MEMORY_DEVICE, needs->scratch_bytes, "eviction scratch", &pass->scratch);
  if (!result)
    result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, needs->scores_bytes, "scores", &pass->scores);
  if (!result)
    result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, needs->result_bytes, "kept entries", &pass->result);
  if (result) return result;
  const laprox_binding_info info = {.layers = layers,
                                    .scratch = lpx_buffer_whole(&pass->scratch),
                                    .scores = lpx_buffer_whole(&pass->scores),
                                    .result = lpx_buffer_whole(&pass->result)};
  return laprox_binding_create(pass->plan, &info, &pass->binding);
}

laprox_result lpx_pass_read_result(lpx_queue *queue, lpx_pass *pass) {
  const laprox_host *host = &pass->plan->context->host;
  pass->result_words = lpx_allocate(host, pass->needs.result_bytes, 1);
  if (!pass->result_words) return lpx_fail_memory(host, "the kept entries");
  const laprox_result result = lpx_queue_download(queue, lpx_buffer_whole(&pass->result), pass->result_words,
                                                  (size_t)pass->needs.result_bytes);
  return result ? result : lpx_select_check(pass->plan, pass->result_words);
}

void lpx_pass_finish(laprox_context *context, lpx_pass *pass) {
  laprox_binding_destroy(pass->binding);
  laprox_plan_destroy(pass->plan);
  lpx_buffer_finish(context, &pass->scratch);
  lpx_buffer_finish(context, &pass->scores);
  lpx_buffer_finish(context, &pass->result);
  lpx_release(&context->host, pass->result_words);
  *pass = (lpx_pass){0};
}
