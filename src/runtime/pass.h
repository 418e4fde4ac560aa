/* pass.h: a plan with buffers of its own, bound and ready to run: what one-shot and layer-by-layer eviction share. */
#ifndef LPX_RUNTIME_PASS_H
#define LPX_RUNTIME_PASS_H

#include "evict/evict.h"

typedef struct lpx_pass {
  laprox_plan *plan;
  laprox_requirements needs;
  laprox_binding *binding;
  lpx_buffer scratch, scores, result;
  uint32_t *result_words; /* the result block, once it has been read back */
} lpx_pass;

/* The plan alone; its requirements are known then. `window`: NULL, or of a plan that only selects. A zeroed pass is empty. */
laprox_result lpx_pass_init(laprox_context *context, const laprox_plan_info *info, const uint32_t *window,
                            lpx_pass *out);
/* Buffers and steps over the layers' own buffers. */
laprox_result lpx_pass_bind(laprox_context *context, const laprox_layer_buffers *layers, lpx_pass *pass);
/* The result block, checked. */
laprox_result lpx_pass_read_result(lpx_queue *queue, lpx_pass *pass);
void lpx_pass_finish(laprox_context *context, lpx_pass *pass);

#endif
