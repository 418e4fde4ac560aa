/* flow.h: one eviction as an application does it, over parts of its own buffer, held against the reference.
 */
#ifndef TESTS_SUPPORT_FLOW_H
#define TESTS_SUPPORT_FLOW_H

#include "support/app.h"
#include "support/capture.h"

/* How K and V lie in the application's buffer. */
typedef enum flow_layout {
  FLOW_HEAD_MAJOR = 0,
  FLOW_PADDED,      /* head-major, two elements between rows, the first on 64 bytes */
  FLOW_TOKEN_MAJOR, /* [entry, head, element], on 64 bytes */
  FLOW_TOKEN_ODD,   /* the same with padded rows and entries, anywhere */
  FLOW_INTERLEAVED, /* K and V of an entry side by side, in one buffer a layer */
  FLOW_ONE_BUFFER,  /* [entry, layer, K or V, head, element] for the whole model */
  FLOW_MIXED,       /* token-major where dense, a ragged segment packed head by head, as eviction leaves it */
  FLOW_N_LAYOUTS
} flow_layout;

typedef struct flow_options {
  capture_options capture;
  laprox_policy policy;
  flow_layout layout;
  bool keep_mask;
  uint32_t tail; /* 0: one dense segment. Else two, a ragged prefix and a dense tail of so many entries: heads
               differ in length, some have no prefix, with three layers or more the second has none at all */
} flow_options;

typedef struct flow {
  flow_options options;
  capture_cache capture;
  ref_cache cache; /* what the reference sees */
  ref_layer *ref_layers;
  ref_head *ref_heads;
  uint32_t *cu_seqlens; /* of the prefix, n_layers x (n_kv_heads + 1) */
  laprox_plan_info info;

  app_device *device;
  laprox_plan *plan;
  laprox_requirements needs;
  laprox_result_layout layout;
  laprox_layer_buffers *buffers;
  laprox_buffer one_buffer[LAPROX_MAX_SEGMENTS]; /* of FLOW_ONE_BUFFER */
  laprox_buffer scratch, scores, result, keep_mask;
  laprox_binding *binding;
  laprox_buffer *packed_keys, *packed_values; /* of each layer */
} flow;

/* The host's part: the capture and the plan's description. */
void flow_init(flow *f, const flow_options *options);
void flow_finish(flow *f);

/* Plan, buffers with their contents, binding. On failure nothing of the library's is left. */
laprox_result flow_prepare(flow *f, app_device *device, laprox_context *context);
laprox_result flow_plan(flow *f, laprox_context *context);
void flow_place(flow *f, app_device *device);
laprox_result flow_bind(flow *f);
/* Plan and binding. */
void flow_release(flow *f);

/* Records all steps into the device's command buffer, submits, waits. */
laprox_result flow_run(flow *f);
/* Packs every layer, each into parts of its own. */
laprox_result flow_compact(flow *f);

/* Packs every layer in place; what is in the way of rows that move, and nothing else, may change. */
laprox_result flow_compact_in_place(flow *f);

/* The result block, as the host sees it. */
const uint32_t *flow_cu_seqlens(const flow *f);
const uint32_t *flow_indices(const flow *f);
/* Scores and kept entries against the reference; packed rows against the cache, where there are any. */
void flow_expect(const flow *f);
/* The packed rows and the keep-mask alone. */
void flow_expect_rows(const flow *f);
/* Fills scratch, scores and result with what an earlier user may have left. */
void flow_soil(const flow *f);

#endif
