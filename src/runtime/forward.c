/* forward.c: activations, and the order in which a layer's kernels run. */
#include "runtime/forward.h"
#include "runtime/parallel.h"

#include <stddef.h>
#include <string.h>

typedef struct activation {
  size_t member; /* of lpx_forward */
  VkDeviceSize bytes;
  const char *name;
} activation;

enum { N_ACTIVATIONS = 7 };

static uint32_t projected_dim(const laprox_shape *shape) {
  return (shape->n_heads + 2 * shape->n_kv_heads) * shape->head_dim;
}

static VkDeviceSize scratch_bytes(const laprox_shape *shape, uint32_t max_entries) {
  return (shape->n_layers * (VkDeviceSize)lpx_decode_table_units(shape) +
          lpx_decode_partial_units(shape, max_entries)) *
         LPX_DECODE_UNIT_BYTES;
}

/* The longest input of a layer's products as halves. */
static VkDeviceSize halves_bytes(const laprox_model *model, laprox_dtype cache_dtype, uint32_t chunk) {
  const uint32_t dims[] = {model->model_dim, model->feed_forward_dim,
                           model->shape.n_heads * model->shape.head_dim};
  uint32_t longest = 0;
  for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
    if (dims[i] > longest) longest = dims[i];
  return lpx_kernels_want_matrix(model->device->context, cache_dtype)
             ? lpx_linear_halves_bytes(chunk, longest)
             : 0;
}

/* Those of 0 bytes there are not. */
static void list_activations(const laprox_model *model, laprox_dtype cache_dtype, uint32_t chunk,
                             uint32_t max_entries, activation list[N_ACTIVATIONS]) {
  const laprox_shape *shape = &model->shape;
  const VkDeviceSize row = sizeof(float) * (VkDeviceSize)chunk;
  const activation all[N_ACTIVATIONS] = {
      {offsetof(lpx_forward, ids), row, "token ids"},
      {offsetof(lpx_forward, norm), row * model->model_dim, "normalised rows"},
      {offsetof(lpx_forward, projected), lpx_rope_header_bytes(shape) + row * projected_dim(shape),
       "projections"},
      {offsetof(lpx_forward, attended), lpx_prefill_attention_bytes(shape, chunk), "attention output"},
      {offsetof(lpx_forward, gate_up), row * 2 * model->feed_forward_dim, "feed-forward gates"},
      {offsetof(lpx_forward, halves), halves_bytes(model, cache_dtype, chunk), "rounded rows"},
      {offsetof(lpx_forward, scratch), scratch_bytes(shape, max_entries), "attention scratch"},
  };
  memcpy(list, all, sizeof all);
}

static lpx_buffer *activation_buffer(lpx_forward *forward, const activation *wanted) {
  return (lpx_buffer *)(void *)((char *)forward + wanted->member);
}

static laprox_result init_activations(lpx_forward *forward) {
  activation list[N_ACTIVATIONS];
  list_activations(forward->model, forward->attention.cache_dtype, forward->chunk, forward->max_entries,
                   list);
  for (size_t i = 0; i < N_ACTIVATIONS; i++) {
    if (!list[i].bytes) continue;
    const laprox_result result = lpx_buffer_init(forward->context, LPX_MEMORY_DEVICE, list[i].bytes,
                                                 list[i].name, activation_buffer(forward, &list[i]));
    if (result) return result;
  }
  return LAPROX_OK;
}

uint64_t lpx_forward_bytes(const laprox_model *model, laprox_dtype cache_dtype, uint32_t chunk,
                           uint32_t max_entries) {
  activation list[N_ACTIVATIONS];
  uint64_t bytes = 0;
  list_activations(model, cache_dtype, chunk, max_entries, list);
  for (size_t i = 0; i < N_ACTIVATIONS; i++) bytes += list[i].bytes;
  return bytes;
}

static uint32_t matrix_dtypes(const lpx_matrix *matrix) {
  uint32_t mask = 0;
  for (uint32_t i = 0; i < matrix->n_parts; i++) mask |= 1u << matrix->parts[i].dtype;
  return mask;
}

static uint32_t weight_dtypes(const laprox_model *model) {
  uint32_t mask = matrix_dtypes(&model->token_embedding) | matrix_dtypes(&model->output);
  for (uint32_t l = 0; l < model->shape.n_layers; l++) {
    const lpx_model_layer *layer = &model->layers[l];
    mask |= matrix_dtypes(&layer->projections) | matrix_dtypes(&layer->attention_output) |
            matrix_dtypes(&layer->gate_up) | matrix_dtypes(&layer->down);
  }
  return mask;
}

/* The frequencies behind the state: the device has no 64-bit integers, so low and high words. */
static laprox_result upload_frequencies(lpx_forward *forward) {
  uint32_t words[2 * LPX_MAX_ROPE_TURNS];
  const uint32_t n = forward->model->shape.head_dim / 2;
  for (uint32_t i = 0; i < n; i++) {
    words[2 * i] = (uint32_t)forward->model->rope_turns[i];
    words[2 * i + 1] = (uint32_t)(forward->model->rope_turns[i] >> 32);
  }
  return lpx_queue_upload(
      forward->model->device->queue,
      lpx_buffer_part(lpx_buffer_whole(&forward->projected), sizeof(lpx_token_state), n * 2 * sizeof *words),
      words, n * 2 * sizeof *words);
}

static laprox_result init_pipelines(laprox_context *context, laprox_dtype cache_dtype, lpx_forward *forward) {
  const laprox_model *model = forward->model;
  const laprox_result result = lpx_attention_init(context, &model->shape, cache_dtype, &forward->attention);
  return result ? result : lpx_kernels_init(context, weight_dtypes(model), cache_dtype, &forward->kernels);
}

/* In parallel, as compilers take a second for all of them. */
static laprox_result compile_pipelines(const lpx_forward *forward, laprox_dtype cache_dtype) {
  lpx_forward noted = *forward;
  lpx_pipeline_list list;
  laprox_context noting;
  lpx_pipelines_note(forward->context, &list, &noting);
  laprox_result result = init_pipelines(&noting, cache_dtype, &noted);
  if (!result) result = lpx_pipelines_compile(forward->context, &list, lpx_parallel_for_each);
  lpx_pipeline_list_release(&forward->context->host, &list);
  return result;
}

laprox_result lpx_forward_init(const laprox_model *model, laprox_dtype cache_dtype, uint32_t chunk,
                               uint32_t max_entries, lpx_forward *out) {
  laprox_context *context = model->device->context;
  *out = (lpx_forward){.model = model, .context = context, .chunk = chunk, .max_entries = max_entries};
  laprox_result result = compile_pipelines(out, cache_dtype);
  if (!result) result = init_pipelines(context, cache_dtype, out);
  if (!result) result = init_activations(out);
  if (!result) result = upload_frequencies(out);
  if (result) lpx_forward_finish(out);
  out->attention.query_heads = model->shape.n_heads + 2 * model->shape.n_kv_heads;
  return result;
}

void lpx_forward_finish(lpx_forward *forward) {
  if (!forward->context) return;
  activation list[N_ACTIVATIONS];
  list_activations(forward->model, forward->attention.cache_dtype, forward->chunk, forward->max_entries,
                   list);
  for (size_t i = 0; i < N_ACTIVATIONS; i++)
    lpx_buffer_finish(forward->context, activation_buffer(forward, &list[i]));
  *forward = (lpx_forward){0};
}

static void append_embedding(lpx_program *program, const lpx_forward *forward, laprox_buffer ids,
                             uint32_t n_tokens, laprox_buffer hidden) {
  lpx_embed_append(program, &forward->kernels, &forward->model->token_embedding.parts[0], ids, n_tokens,
                   hidden);
  lpx_program_barrier(program);
  lpx_program_mark_step(program);
}

void lpx_forward_embed_append(lpx_program *program, const lpx_forward *forward, const uint32_t *tokens,
                              uint32_t n_tokens, laprox_buffer hidden) {
  const laprox_buffer ids = lpx_buffer_part(lpx_buffer_whole(&forward->ids), 0, n_tokens * sizeof *tokens);
  lpx_program_barrier(program);
  lpx_program_update(program, ids, tokens, n_tokens * sizeof *tokens);
  lpx_program_barrier(program);
  append_embedding(program, forward, ids, n_tokens, hidden);
}

/* Ends a phase of a layer: what follows may read what it wrote. */
static void end_phase(lpx_program *program) {
  lpx_program_barrier(program);
  lpx_program_mark_step(program);
}

/* ---- a layer ---- */

typedef struct segments {
  lpx_attention_segment both[2]; /* prefix and tail */
} segments;

static segments layer_segments(const lpx_forward_layer *layer) {
  return (segments){{layer->prefix, lpx_attention_dense(layer->key, layer->value, layer->head_rows,
                                                        layer->first_row + layer->n_rows)}};
}

static lpx_decode_place decode_place(const lpx_forward *forward, uint32_t layer) {
  const laprox_shape *shape = &forward->model->shape;
  const uint32_t units = lpx_decode_table_units(shape);
  return (lpx_decode_place){.scratch = lpx_buffer_whole(&forward->scratch),
                            .table_first = layer * units,
                            .partial_first = shape->n_layers * units};
}

static lpx_token_state token_state(const lpx_forward_layer *layer, uint32_t token) {
  return (lpx_token_state){.token = token,
                           .position = layer->first_position,
                           .tail_row = layer->first_row,
                           .ring_row = layer->ring_row};
}

/* Rows in front of which a norm stands: a single one is normalised in the product. */
static void append_normed_product(lpx_program *program, const lpx_forward *forward,
                                  const lpx_forward_layer *layer, const lpx_weight *weight,
                                  lpx_linear product) {
  const float epsilon = forward->model->norm_epsilon;
  product.n_rows = layer->n_rows;
  product.in = layer->hidden;
  product.halves = lpx_buffer_whole(&forward->halves);
  if (layer->n_rows == 1) {
    product.norm = weight;
    product.epsilon = epsilon;
  } else {
    product.in = lpx_buffer_whole(&forward->norm);
    lpx_norm_append(program, &forward->kernels, weight, epsilon, layer->hidden, layer->n_rows, product.in);
    end_phase(program);
  }
  lpx_linear_append(program, &forward->kernels, &product);
  end_phase(program);
}

/* Normalises, projects, rotates and stores. A single row's state stands in the header already. */
static void append_projections(lpx_program *program, const lpx_forward *forward,
                               const lpx_forward_layer *layer) {
  const laprox_model *model = forward->model;
  const lpx_model_layer *weights = &model->layers[layer->layer];
  const laprox_buffer projected = lpx_buffer_whole(&forward->projected);
  const VkDeviceSize header = lpx_rope_header_bytes(&model->shape);
  const lpx_token_state state = token_state(layer, 0);
  append_normed_product(program, forward, layer, &weights->attention_norm,
                        (lpx_linear){.matrix = &weights->projections,
                                     .out = lpx_buffer_part(projected, header, projected.size - header)});
  const lpx_rope rope = {.shape = &model->shape,
                         .rows = projected,
                         .n_rows = layer->n_rows,
                         .with_queries = layer->ring.size || !layer->kv_only,
                         .state = layer->n_rows == 1 ? NULL : &state,
                         .key = layer->key,
                         .value = layer->value,
                         .head_rows = layer->head_rows,
                         .ring = layer->ring,
                         .query_first = layer->query_first};
  lpx_rope_append(program, &forward->kernels, &rope);
  end_phase(program);
}

static void append_attention(lpx_program *program, const lpx_forward *forward,
                             const lpx_forward_layer *layer) {
  const segments stretches = layer_segments(layer);
  const laprox_buffer projected = lpx_buffer_whole(&forward->projected);
  const VkDeviceSize header = lpx_rope_header_bytes(&forward->model->shape);
  const laprox_buffer query = lpx_buffer_part(projected, header, projected.size - header);
  const laprox_buffer out = lpx_buffer_whole(&forward->attended);
  if (layer->n_rows > 1) {
    lpx_prefill_attention_append(program, &forward->attention, query, layer->n_rows, &stretches.both[0],
                                 &stretches.both[1], out);
    if (layer->lse.size) {
      lpx_program_barrier(program);
      lpx_prefill_lse_append(program, &forward->attention, out, layer->n_rows, layer->query_first, layer->lse,
                             layer->ring_row);
    }
  } else {
    const lpx_decode_place place = decode_place(forward, layer->layer);
    lpx_decode_chunks_append(program, &forward->attention, query, stretches.both, 2, place);
    lpx_program_barrier(program);
    lpx_decode_merge_append(program, &forward->attention, stretches.both, 2, place, out);
  }
  end_phase(program);
  const lpx_linear product = {.matrix = &forward->model->layers[layer->layer].attention_output,
                              .in = out,
                              .n_rows = layer->n_rows,
                              .out = layer->hidden,
                              .halves = lpx_buffer_whole(&forward->halves),
                              .accumulate = true};
  lpx_linear_append(program, &forward->kernels, &product);
  end_phase(program);
}

static void append_feed_forward(lpx_program *program, const lpx_forward *forward,
                                const lpx_forward_layer *layer) {
  const lpx_kernels *kernels = &forward->kernels;
  const lpx_model_layer *weights = &forward->model->layers[layer->layer];
  const uint32_t wide = forward->model->feed_forward_dim;
  const laprox_buffer gates = lpx_buffer_whole(&forward->gate_up);
  const bool gated = layer->n_rows == 1 && lpx_linear_can_gate(kernels, &weights->gate_up);
  append_normed_product(program, forward, layer, &weights->feed_forward_norm,
                        (lpx_linear){.matrix = &weights->gate_up, .out = gates, .gated = gated});
  if (!gated) {
    lpx_swiglu_append(program, kernels, gates, layer->n_rows, wide);
    end_phase(program);
  }
  const lpx_linear product = {.matrix = &weights->down,
                              .in = gates,
                              .input_stride = gated ? 0 : 2 * wide,
                              .n_rows = layer->n_rows,
                              .out = layer->hidden,
                              .halves = lpx_buffer_whole(&forward->halves),
                              .accumulate = true};
  lpx_linear_append(program, kernels, &product);
  end_phase(program);
}

static void append_phases(lpx_program *program, const lpx_forward *forward, const lpx_forward_layer *layer) {
  append_projections(program, forward, layer);
  if (!layer->kv_only) {
    append_attention(program, forward, layer);
    append_feed_forward(program, forward, layer);
  }
}

/* What single rows of layers [first, first + n) find prepared: their state and the tables of attention. */
static void append_state(lpx_program *program, const lpx_forward *forward, uint32_t token,
                         const lpx_forward_layer *layers, uint32_t n) {
  const lpx_token_state state = token_state(layers, token);
  lpx_program_barrier(program);
  lpx_program_update(program, lpx_buffer_part(lpx_buffer_whole(&forward->projected), 0, sizeof state), &state,
                     sizeof state);
  for (uint32_t i = 0; i < n; i++) {
    const segments stretches = layer_segments(&layers[i]);
    lpx_decode_table_append(program, &forward->attention, stretches.both, 2,
                            decode_place(forward, layers[i].layer));
  }
  lpx_program_barrier(program);
}

uint64_t lpx_forward_token_update_bytes(const laprox_shape *shape) {
  return sizeof(lpx_token_state) +
         shape->n_layers * (uint64_t)lpx_decode_table_units(shape) * LPX_DECODE_UNIT_BYTES;
}

void lpx_forward_layer_append(lpx_program *program, const lpx_forward *forward,
                              const lpx_forward_layer *layer) {
  if (layer->n_rows == 1) append_state(program, forward, 0, layer, 1);
  lpx_program_barrier(program);
  append_phases(program, forward, layer);
}

void lpx_forward_token_append(lpx_program *program, const lpx_forward *forward, uint32_t token,
                              const lpx_forward_layer *layers) {
  append_state(program, forward, token, layers, forward->model->shape.n_layers);
  append_embedding(
      program, forward,
      lpx_buffer_part(lpx_buffer_whole(&forward->projected), offsetof(lpx_token_state, token), sizeof token),
      1, layers->hidden);
  for (uint32_t l = 0; l < forward->model->shape.n_layers; l++) append_phases(program, forward, &layers[l]);
}

void lpx_forward_logits_append(lpx_program *program, const lpx_forward *forward, laprox_buffer hidden,
                               uint32_t n_rows, laprox_buffer logits) {
  const laprox_model *model = forward->model;
  const lpx_forward_layer rows = {.hidden = hidden, .n_rows = n_rows};
  lpx_program_barrier(program);
  append_normed_product(program, forward, &rows, &model->output_norm,
                        (lpx_linear){.matrix = lpx_model_output(model), .out = logits});
}
