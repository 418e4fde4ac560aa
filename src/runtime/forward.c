/* forward.c: activations, and the order in which a layer's kernels run. */
#include "runtime/forward.h"

#include <stddef.h>
#include <string.h>

typedef struct activation {
  size_t member; /* of lpx_forward */
  VkDeviceSize bytes;
  const char *name;
} activation;

enum { N_ACTIVATIONS = 10 };

static void list_activations(const laprox_model *model, uint32_t chunk, uint32_t max_entries,
                             activation list[N_ACTIVATIONS]) {
  const laprox_shape *shape = &model->shape;
  const VkDeviceSize row = sizeof(float) * (VkDeviceSize)chunk;
  const VkDeviceSize q_bytes = row * shape->n_heads * shape->head_dim;
  const VkDeviceSize kv_bytes = row * shape->n_kv_heads * shape->head_dim;
  const VkDeviceSize wide_bytes = row * model->feed_forward_dim;
  const activation all[N_ACTIVATIONS] = {
      {offsetof(lpx_forward, ids), row, "token ids"},
      {offsetof(lpx_forward, norm), row * model->model_dim, "normalised rows"},
      {offsetof(lpx_forward, query_projected), q_bytes, "projected queries"},
      {offsetof(lpx_forward, key_projected), kv_bytes, "projected keys"},
      {offsetof(lpx_forward, value_projected), kv_bytes, "projected values"},
      {offsetof(lpx_forward, query), q_bytes, "queries"},
      {offsetof(lpx_forward, attended), lpx_prefill_attention_bytes(shape, chunk), "attention output"},
      {offsetof(lpx_forward, gate), wide_bytes, "feed-forward gate"},
      {offsetof(lpx_forward, up), wide_bytes, "feed-forward up"},
      {offsetof(lpx_forward, scratch), lpx_decode_attention_scratch_bytes(shape, max_entries),
       "attention scratch"},
  };
  memcpy(list, all, sizeof all);
}

static lpx_buffer *activation_buffer(lpx_forward *forward, const activation *wanted) {
  return (lpx_buffer *)(void *)((char *)forward + wanted->member);
}

static laprox_result init_activations(lpx_forward *forward) {
  activation list[N_ACTIVATIONS];
  list_activations(forward->model, forward->chunk, forward->max_entries, list);
  for (size_t i = 0; i < N_ACTIVATIONS; i++) {
    const laprox_result result = lpx_buffer_init(forward->context, LPX_MEMORY_DEVICE, list[i].bytes,
                                                 list[i].name, activation_buffer(forward, &list[i]));
    if (result) return result;
  }
  return LAPROX_OK;
}

uint64_t lpx_forward_bytes(const laprox_model *model, uint32_t chunk, uint32_t max_entries) {
  activation list[N_ACTIVATIONS];
  uint64_t bytes = 0;
  list_activations(model, chunk, max_entries, list);
  for (size_t i = 0; i < N_ACTIVATIONS; i++) bytes += list[i].bytes;
  return bytes;
}

static uint32_t weight_dtypes(const laprox_model *model) {
  uint32_t mask = 1u << model->token_embedding.dtype | 1u << lpx_model_output(model)->dtype;
  for (uint32_t layer = 0; layer < model->shape.n_layers; layer++)
    for (uint32_t i = 0; i < LPX_N_LAYER_WEIGHTS; i++) mask |= 1u << model->layers[layer].weights[i].dtype;
  return mask;
}

laprox_result lpx_forward_init(const laprox_model *model, laprox_dtype cache_dtype, uint32_t chunk,
                               uint32_t max_entries, lpx_forward *out) {
  laprox_context *context = model->device->context;
  *out = (lpx_forward){.model = model, .context = context, .chunk = chunk, .max_entries = max_entries};
  laprox_result result = lpx_attention_init(context, &model->shape, cache_dtype, &out->attention);
  if (!result) result = lpx_kernels_init(context, weight_dtypes(model), cache_dtype, &out->kernels);
  if (!result) result = init_activations(out);
  if (result) lpx_forward_finish(out);
  return result;
}

void lpx_forward_finish(lpx_forward *forward) {
  if (!forward->context) return;
  activation list[N_ACTIVATIONS];
  list_activations(forward->model, forward->chunk, forward->max_entries, list);
  for (size_t i = 0; i < N_ACTIVATIONS; i++)
    lpx_buffer_finish(forward->context, activation_buffer(forward, &list[i]));
  *forward = (lpx_forward){0};
}

void lpx_forward_embed_append(lpx_program *program, const lpx_forward *forward, const uint32_t *tokens,
                              uint32_t n_tokens, laprox_buffer hidden) {
  const laprox_buffer ids = lpx_buffer_part(lpx_buffer_whole(&forward->ids), 0, n_tokens * sizeof *tokens);
  lpx_program_barrier(program);
  lpx_program_update(program, ids, tokens, n_tokens * sizeof *tokens);
  lpx_program_barrier(program);
  lpx_embed_append(program, &forward->kernels, &forward->model->token_embedding, ids, n_tokens, hidden);
  lpx_program_barrier(program);
  lpx_program_mark_step(program);
}

/* Ends a phase of a layer: what follows may read what it wrote. */
static void end_phase(lpx_program *program) {
  lpx_program_barrier(program);
  lpx_program_mark_step(program);
}

/* Normalises, projects, rotates and stores. */
static void append_projections(lpx_program *program, const lpx_forward *forward,
                               const lpx_forward_layer *layer, bool with_query) {
  const laprox_model *model = forward->model;
  const lpx_kernels *kernels = &forward->kernels;
  const lpx_weight *weights = model->layers[layer->layer].weights;
  const laprox_buffer norm = lpx_buffer_whole(&forward->norm);
  const uint32_t n = layer->n_rows;
  lpx_norm_append(program, kernels, &weights[LPX_ATTN_NORM], model->norm_epsilon, layer->hidden, n, norm);
  end_phase(program);
  const laprox_buffer q = lpx_buffer_whole(&forward->query_projected);
  const laprox_buffer k = lpx_buffer_whole(&forward->key_projected);
  const laprox_buffer v = lpx_buffer_whole(&forward->value_projected);
  if (with_query) lpx_matmul_append(program, kernels, &weights[LPX_ATTN_Q], norm, n, q, false);
  lpx_matmul_append(program, kernels, &weights[LPX_ATTN_K], norm, n, k, false);
  lpx_matmul_append(program, kernels, &weights[LPX_ATTN_V], norm, n, v, false);
  end_phase(program);
  lpx_head_rows rows = {.source = q,
                        .n_rows = n,
                        .n_heads = model->shape.n_heads,
                        .head_dim = model->shape.head_dim,
                        .turns = lpx_buffer_whole(&model->rope_turns),
                        .first_position = layer->first_position,
                        .rotate = true};
  if (with_query) lpx_rotate_append(program, kernels, &rows, lpx_buffer_whole(&forward->query));
  rows.source = k;
  rows.n_heads = model->shape.n_kv_heads;
  lpx_store_append(program, kernels, &rows, layer->key, layer->head_rows, layer->first_row);
  rows.source = v;
  rows.rotate = false;
  lpx_store_append(program, kernels, &rows, layer->value, layer->head_rows, layer->first_row);
  end_phase(program);
}

static void append_query_copy(lpx_program *program, const lpx_forward *forward,
                              const lpx_forward_layer *layer) {
  const VkDeviceSize row_bytes =
      (VkDeviceSize)forward->model->shape.n_heads * forward->model->shape.head_dim * sizeof(float);
  const VkDeviceSize there = (layer->n_rows - layer->query_first) * row_bytes;
  laprox_buffer to = layer->query_out;
  if (to.size > there) to.size = there;
  lpx_program_copy(
      program, lpx_buffer_part(lpx_buffer_whole(&forward->query), layer->query_first * row_bytes, to.size),
      to);
}

static void append_attention(lpx_program *program, const lpx_forward *forward,
                             const lpx_forward_layer *layer) {
  const lpx_attention_segment tail =
      lpx_attention_dense(layer->key, layer->value, layer->head_rows, layer->first_row + layer->n_rows);
  const laprox_buffer query = lpx_buffer_whole(&forward->query);
  const laprox_buffer out = lpx_buffer_whole(&forward->attended);
  if (layer->n_rows > 1) {
    lpx_prefill_attention_append(program, &forward->attention, query, layer->n_rows, &layer->prefix, &tail,
                                 out);
  } else {
    const lpx_attention_segment segments[] = {layer->prefix, tail};
    lpx_decode_attention_append(program, &forward->attention, query, segments, 2,
                                lpx_buffer_whole(&forward->scratch), out);
  }
  end_phase(program);
  lpx_matmul_append(program, &forward->kernels,
                    &forward->model->layers[layer->layer].weights[LPX_ATTN_OUTPUT], out, layer->n_rows,
                    layer->hidden, true);
  end_phase(program);
}

static void append_feed_forward(lpx_program *program, const lpx_forward *forward,
                                const lpx_forward_layer *layer) {
  const laprox_model *model = forward->model;
  const lpx_kernels *kernels = &forward->kernels;
  const lpx_weight *weights = model->layers[layer->layer].weights;
  const laprox_buffer norm = lpx_buffer_whole(&forward->norm);
  const laprox_buffer gate = lpx_buffer_whole(&forward->gate), up = lpx_buffer_whole(&forward->up);
  const uint32_t n = layer->n_rows;
  lpx_norm_append(program, kernels, &weights[LPX_FFN_NORM], model->norm_epsilon, layer->hidden, n, norm);
  end_phase(program);
  lpx_matmul_append(program, kernels, &weights[LPX_FFN_GATE], norm, n, gate, false);
  lpx_matmul_append(program, kernels, &weights[LPX_FFN_UP], norm, n, up, false);
  end_phase(program);
  lpx_swiglu_append(program, kernels, gate, up, (uint64_t)n * model->feed_forward_dim);
  end_phase(program);
  lpx_matmul_append(program, kernels, &weights[LPX_FFN_DOWN], gate, n, layer->hidden, true);
  end_phase(program);
}

void lpx_forward_layer_append(lpx_program *program, const lpx_forward *forward,
                              const lpx_forward_layer *layer) {
  const bool copy_query = layer->query_out.size > 0 && layer->query_first < layer->n_rows;
  lpx_program_barrier(program);
  append_projections(program, forward, layer, copy_query || !layer->kv_only);
  if (copy_query) append_query_copy(program, forward, layer);
  if (!layer->kv_only) {
    append_attention(program, forward, layer);
    append_feed_forward(program, forward, layer);
  }
  lpx_program_barrier(program);
}

void lpx_forward_logits_append(lpx_program *program, const lpx_forward *forward, laprox_buffer hidden,
                               uint32_t n_rows, laprox_buffer logits) {
  const laprox_model *model = forward->model;
  const laprox_buffer norm = lpx_buffer_whole(&forward->norm);
  lpx_program_barrier(program);
  lpx_norm_append(program, &forward->kernels, &model->output_norm, model->norm_epsilon, hidden, n_rows, norm);
  end_phase(program);
  lpx_matmul_append(program, &forward->kernels, lpx_model_output(model), norm, n_rows, logits, false);
  end_phase(program);
}
