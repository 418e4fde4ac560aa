/* model.c: weights on the device, and what callers may ask of a model. */
#include "runtime/model.h"
#include "evict/evict.h"
#include "runtime/parallel.h"

#include <stdio.h>
#include <string.h>

#define PIECE_BYTES ((size_t)4 << 20) /* of a tensor that the host holds at a time */

/* Loading under way. */
typedef struct loading {
  laprox_model *model;
  const laprox_model_info *info;
  uint8_t *piece, *packed; /* rows as the file has them, and as the device takes them */
  uint64_t bytes_done, bytes_total;
} loading;

static laprox_result report(loading *load, size_t bytes) {
  load->bytes_done += bytes;
  if (!load->info->progress) return LAPROX_OK;
  const double fraction = (double)load->bytes_done / (double)(load->bytes_total ? load->bytes_total : 1);
  if (load->info->progress(load->info->progress_user, "load", fraction < 1.0 ? fraction : 1.0))
    return LAPROX_OK;
  return lpx_fail(&load->model->host, LAPROX_ERROR_CANCELLED, "loading %s was cancelled", load->info->path);
}

static laprox_result check_tensor(const laprox_model *model, const lpx_gguf_tensor *tensor, uint32_t n_rows,
                                  uint32_t n_columns) {
  if (tensor->dims[0] != n_columns || tensor->dims[1] != n_rows || tensor->dims[2] != 1 ||
      tensor->dims[3] != 1)
    return lpx_fail(&model->host, LAPROX_ERROR_FORMAT,
                    "%s: tensor %s is [%llu, %llu, %llu, %llu], must be [%u, %u]", lpx_gguf_path(model->file),
                    tensor->name, (unsigned long long)tensor->dims[0], (unsigned long long)tensor->dims[1],
                    (unsigned long long)tensor->dims[2], (unsigned long long)tensor->dims[3], n_columns,
                    n_rows);
  if (tensor->dtype == LAPROX_DTYPE_Q8_0 && n_columns % 32)
    return lpx_fail(&model->host, LAPROX_ERROR_FORMAT,
                    "%s: tensor %s is Q8_0 with rows of %u, must be a multiple of 32",
                    lpx_gguf_path(model->file), tensor->name, n_columns);
  return LAPROX_OK;
}

/* Rows of a tensor to those of `out` from row `first` on. */
static laprox_result upload_rows(loading *load, const lpx_gguf_tensor *tensor, uint32_t n_rows,
                                 lpx_weight *out, uint32_t first) {
  laprox_model *model = load->model;
  const uint64_t row_bytes = lpx_weight_row_bytes(out->dtype, out->n_columns);
  const uint64_t file_row_bytes = tensor->bytes / n_rows;
  const uint32_t most = (uint32_t)(PIECE_BYTES / row_bytes);
  if (!most || file_row_bytes > row_bytes)
    return lpx_fail(&model->host, LAPROX_ERROR_UNSUPPORTED, "%s: tensor %s has rows of %llu bytes, limit %zu",
                    lpx_gguf_path(model->file), tensor->name, (unsigned long long)file_row_bytes,
                    PIECE_BYTES);
  laprox_result result = LAPROX_OK;
  for (uint32_t row = 0, now; row < n_rows && !result; row += now) {
    now = n_rows - row < most ? n_rows - row : most;
    const size_t bytes = (size_t)(now * row_bytes), file_bytes = (size_t)(now * file_row_bytes);
    result = lpx_gguf_read(model->file, tensor, row * file_row_bytes, file_bytes, load->piece);
    if (result) return result;
    lpx_weight_pack(out->dtype, out->n_columns, now, load->piece, load->packed);
    result =
        lpx_queue_upload(model->device->queue,
                         lpx_buffer_part(lpx_buffer_whole(&out->buffer), (first + row) * row_bytes, bytes),
                         load->packed, bytes);
    if (!result) result = report(load, file_bytes);
  }
  return result;
}

static laprox_result upload_vector(loading *load, const lpx_gguf_tensor *tensor, lpx_weight *out) {
  laprox_model *model = load->model;
  const size_t n = out->n_columns;
  laprox_result result = lpx_buffer_init(model->device->context, LPX_MEMORY_DEVICE, n * sizeof(float),
                                         tensor->name, &out->buffer);
  if (result) return result;
  uint8_t *raw = lpx_allocate(&model->host, 1, (size_t)tensor->bytes);
  float *values = lpx_allocate(&model->host, n, sizeof *values);
  if (!raw || !values)
    result = lpx_fail_memory(&model->host, tensor->name);
  else
    result = lpx_gguf_read_all(model->file, tensor, raw);
  if (!result) {
    lpx_to_f32(tensor->dtype, raw, n, values);
    result =
        lpx_queue_upload(model->device->queue, lpx_buffer_whole(&out->buffer), values, n * sizeof *values);
  }
  lpx_release(&model->host, raw);
  lpx_release(&model->host, values);
  return result ? result : report(load, (size_t)tensor->bytes);
}

static laprox_result load_vector(loading *load, const char *name, uint32_t n, lpx_weight *out) {
  laprox_model *model = load->model;
  const lpx_gguf_tensor *tensor;
  laprox_result result = lpx_gguf_get(model->file, name, &tensor);
  if (!result) result = check_tensor(model, tensor, 1, n);
  if (result) return result;
  *out = (lpx_weight){.dtype = LAPROX_DTYPE_F32, .n_rows = 1, .n_columns = n};
  result = upload_vector(load, tensor, out);
  model->weight_bytes += out->buffer.size;
  return result;
}

/* One tensor of a matrix. */
typedef struct matrix_part {
  const char *name;
  uint32_t n_rows;
} matrix_part;

/* Tensors of one type become one part. */
static laprox_result load_matrix(loading *load, const matrix_part *tensors, uint32_t n, uint32_t n_columns,
                                 lpx_matrix *out) {
  laprox_model *model = load->model;
  const lpx_gguf_tensor *found[LPX_MAX_PARTS];
  bool same = true;
  laprox_result result = LAPROX_OK;
  out->n_columns = n_columns;
  for (uint32_t i = 0; i < n; i++) {
    result = lpx_gguf_get(model->file, tensors[i].name, &found[i]);
    if (!result) result = check_tensor(model, found[i], tensors[i].n_rows, n_columns);
    if (result) return result;
    same = same && found[i]->dtype == found[0]->dtype;
    out->n_rows += tensors[i].n_rows;
  }
  out->n_parts = same ? 1 : n;
  for (uint32_t i = 0, row = 0; i < n && !result; i++) {
    lpx_weight *part = &out->parts[same ? 0 : i];
    if (!same || !i) {
      *part = (lpx_weight){
          .dtype = found[i]->dtype, .n_rows = same ? out->n_rows : tensors[i].n_rows, .n_columns = n_columns};
      result = lpx_buffer_init(model->device->context, LPX_MEMORY_DEVICE,
                               part->n_rows * lpx_weight_row_bytes(part->dtype, n_columns), tensors[i].name,
                               &part->buffer);
      model->weight_bytes += part->buffer.size;
    }
    if (!result) result = upload_rows(load, found[i], tensors[i].n_rows, part, same ? row : 0);
    row += tensors[i].n_rows;
  }
  return result;
}

enum { N_LAYER_TENSORS = 9 };
static const char *const layer_tensors[N_LAYER_TENSORS] = {
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"};
enum { OUTPUT_TENSOR = 4 };

static void layer_tensor_name(char *name, size_t size, uint32_t layer, size_t which) {
  (void)snprintf(name, size, "blk.%u.%s.weight", layer, layer_tensors[which]);
}

static laprox_result load_layer(loading *load, uint32_t layer) {
  laprox_model *model = load->model;
  const laprox_shape *shape = &model->shape;
  const uint32_t dim = model->model_dim, wide = model->feed_forward_dim;
  const uint32_t q_dim = shape->n_heads * shape->head_dim, kv_dim = shape->n_kv_heads * shape->head_dim;
  lpx_model_layer *out = &model->layers[layer];
  char names[N_LAYER_TENSORS][64];
  for (size_t i = 0; i < N_LAYER_TENSORS; i++) layer_tensor_name(names[i], sizeof names[i], layer, i);
  const matrix_part projections[] = {{names[1], q_dim}, {names[2], kv_dim}, {names[3], kv_dim}};
  const matrix_part gate_up[] = {{names[6], wide}, {names[7], wide}};
  laprox_result result = load_vector(load, names[0], dim, &out->attention_norm);
  if (!result) result = load_matrix(load, projections, 3, dim, &out->projections);
  if (!result) result = load_matrix(load, &(matrix_part){names[4], dim}, 1, q_dim, &out->attention_output);
  if (!result) result = load_vector(load, names[5], dim, &out->feed_forward_norm);
  if (!result) result = load_matrix(load, gate_up, 2, dim, &out->gate_up);
  if (!result) result = load_matrix(load, &(matrix_part){names[8], dim}, 1, wide, &out->down);
  return result;
}

static bool is_known_tensor(const laprox_model *model, const char *name) {
  static const char *const global[] = {"token_embd.weight", "output_norm.weight", "output.weight",
                                       "rope_freqs.weight"};
  for (size_t i = 0; i < sizeof global / sizeof global[0]; i++)
    if (!strcmp(name, global[i])) return true;
  unsigned layer;
  if (sscanf(name, "blk.%8u.", &layer) != 1 || layer >= model->shape.n_layers) return false;
  for (size_t i = 0; i < N_LAYER_TENSORS; i++) {
    char known[64];
    layer_tensor_name(known, sizeof known, layer, i);
    if (!strcmp(name, known)) return true;
  }
  return false;
}

/* A tensor that nothing reads (a bias, say) means that the model computes something else. */
static laprox_result check_all_known(loading *load, uint64_t *device_bytes) {
  const laprox_model *model = load->model;
  for (size_t i = 0; i < lpx_gguf_count(model->file); i++) {
    const lpx_gguf_tensor *tensor = lpx_gguf_tensor_at(model->file, i);
    if (!is_known_tensor(model, tensor->name))
      return lpx_fail(&model->host, LAPROX_ERROR_UNSUPPORTED,
                      "%s: tensor %s has no place in a Llama model of %u layers", lpx_gguf_path(model->file),
                      tensor->name, model->shape.n_layers);
    load->bytes_total += tensor->bytes;
    *device_bytes += tensor->dims[1] == 1
                         ? tensor->dims[0] * sizeof(float)
                         : tensor->dims[1] * lpx_weight_row_bytes(tensor->dtype, (uint32_t)tensor->dims[0]);
  }
  return LAPROX_OK;
}

static laprox_result read_vocabulary(laprox_model *model) {
  laprox_result result = lpx_tokenizer_read(&model->host, model->file, &model->tokenizer);
  if (result) return result;
  const lpx_gguf_tensor *tensor;
  result = lpx_gguf_get(model->file, "token_embd.weight", &tensor);
  if (result) return result;
  model->n_vocab = lpx_tokenizer_n_tokens(model->tokenizer);
  if (tensor->dims[1] == model->n_vocab) return LAPROX_OK;
  return lpx_fail(&model->host, LAPROX_ERROR_FORMAT,
                  "%s: tensor token_embd.weight has %llu rows, the tokenizer %u tokens",
                  lpx_gguf_path(model->file), (unsigned long long)tensor->dims[1], model->n_vocab);
}

static laprox_result load_weights(loading *load) {
  laprox_model *model = load->model;
  uint64_t device_bytes = 0;
  laprox_result result = check_all_known(load, &device_bytes);
  if (!result) result = lpx_model_rope_turns(model);
  const uint32_t dim = model->model_dim;
  if (!result)
    result = load_matrix(load, &(matrix_part){"token_embd.weight", model->n_vocab}, 1, dim,
                         &model->token_embedding);
  if (!result) result = load_vector(load, "output_norm.weight", dim, &model->output_norm);
  if (!result && lpx_gguf_find(model->file, "output.weight"))
    result = load_matrix(load, &(matrix_part){"output.weight", model->n_vocab}, 1, dim, &model->output);
  for (uint32_t layer = 0; !result && layer < model->shape.n_layers; layer++)
    result = load_layer(load, layer);
  return result;
}

laprox_result laprox_model_load(laprox_device *device, const laprox_model_info *info, laprox_model **out) {
  *out = NULL;
  const laprox_host *host = &device->context->host;
  if (!info->path) return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "laprox_model_load: no path");
  laprox_model *model = lpx_allocate(host, 1, sizeof *model);
  if (!model) return lpx_fail_memory(host, "a model");
  model->device = device;
  model->host = *host;
  loading load = {.model = model, .info = info};
  laprox_result result = lpx_gguf_open(host, info->path, &model->file);
  if (!result) result = lpx_model_read_parameters(model);
  if (!result) result = read_vocabulary(model);
  if (!result && info->without_weights) result = check_all_known(&load, &model->weight_bytes);
  if (result) goto fail;
  if (info->without_weights) {
    *out = model;
    return LAPROX_OK;
  }
  load.piece = lpx_allocate(host, 1, PIECE_BYTES);
  load.packed = lpx_allocate(host, 1, PIECE_BYTES);
  model->layers = lpx_allocate(host, model->shape.n_layers, sizeof *model->layers);
  if (!load.piece || !load.packed || !model->layers)
    result = lpx_fail_memory(host, "a model's layers");
  else
    result = load_weights(&load);
  lpx_release(host, load.piece);
  lpx_release(host, load.packed);
  if (result) goto fail;
  model->has_weights = true;
  *out = model;
  return LAPROX_OK;
fail:
  laprox_model_destroy(model);
  return result;
}

static void finish_matrix(laprox_context *context, lpx_matrix *matrix) {
  for (uint32_t i = 0; i < LPX_MAX_PARTS; i++) lpx_buffer_finish(context, &matrix->parts[i].buffer);
}

static laprox_result make_value_factors(const laprox_model *model, laprox_gqa gqa, size_t bytes, float *to) {
  const laprox_shape *shape = &model->shape;
  float *weight =
      lpx_allocate(&model->host, model->model_dim, (size_t)shape->n_heads * shape->head_dim * sizeof *weight);
  laprox_result result = weight ? LAPROX_OK : lpx_fail_memory(&model->host, "an output projection");
  for (uint32_t l = 0; l < shape->n_layers && !result; l++) {
    result = lpx_model_output_weight_f32(model, l, weight);
    if (!result)
      result = lpx_value_factor(&model->host, shape, gqa, model->model_dim, weight,
                                to + l * (bytes / sizeof *to), lpx_parallel_for_each);
  }
  lpx_release(&model->host, weight);
  return result;
}

laprox_result lpx_model_value_factor(laprox_model *model, uint32_t layer, laprox_gqa gqa, const float **out) {
  const size_t bytes = laprox_value_factor_bytes(&model->shape, gqa);
  float **slot = &model->value_factors[gqa == LAPROX_GQA_JOINT];
  laprox_result result = LAPROX_OK;
  if (!*slot) {
    *slot = lpx_allocate(&model->host, model->shape.n_layers, bytes);
    result =
        *slot ? make_value_factors(model, gqa, bytes, *slot) : lpx_fail_memory(&model->host, "value factors");
  }
  if (result) {
    lpx_release(&model->host, *slot);
    *slot = NULL;
    return result;
  }
  *out = *slot + layer * (bytes / sizeof **slot);
  return LAPROX_OK;
}

void laprox_model_destroy(laprox_model *model) {
  if (!model) return;
  laprox_context *context = model->device->context;
  for (uint32_t l = 0; model->layers && l < model->shape.n_layers; l++) {
    lpx_model_layer *layer = &model->layers[l];
    lpx_buffer_finish(context, &layer->attention_norm.buffer);
    lpx_buffer_finish(context, &layer->feed_forward_norm.buffer);
    finish_matrix(context, &layer->projections);
    finish_matrix(context, &layer->attention_output);
    finish_matrix(context, &layer->gate_up);
    finish_matrix(context, &layer->down);
  }
  finish_matrix(context, &model->token_embedding);
  finish_matrix(context, &model->output);
  lpx_buffer_finish(context, &model->output_norm.buffer);
  lpx_tokenizer_destroy(model->tokenizer);
  lpx_gguf_close(model->file);
  lpx_release(&model->host, model->layers);
  for (int i = 0; i < 2; i++) lpx_release(&model->host, model->value_factors[i]);
  lpx_release(&model->host, model);
}

const lpx_matrix *lpx_model_output(const laprox_model *model) {
  return model->output.n_parts ? &model->output : &model->token_embedding;
}

laprox_result lpx_model_output_weight_f32(const laprox_model *model, uint32_t layer, float *out) {
  char name[64];
  layer_tensor_name(name, sizeof name, layer, OUTPUT_TENSOR);
  const lpx_gguf_tensor *tensor;
  laprox_result result = lpx_gguf_get(model->file, name, &tensor);
  if (result) return result;
  uint8_t *raw = lpx_allocate(&model->host, 1, (size_t)tensor->bytes);
  if (!raw) return lpx_fail_memory(&model->host, name);
  result = lpx_gguf_read_all(model->file, tensor, raw);
  if (!result) lpx_to_f32(tensor->dtype, raw, (size_t)tensor->n_elements, out);
  lpx_release(&model->host, raw);
  return result;
}

void laprox_model_describe(const laprox_model *model, laprox_model_description *out) {
  *out = (laprox_model_description){.shape = model->shape,
                                    .model_dim = model->model_dim,
                                    .feed_forward_dim = model->feed_forward_dim,
                                    .n_vocab = model->n_vocab,
                                    .context_length = model->context_length,
                                    .bos = lpx_tokenizer_bos(model->tokenizer),
                                    .eos = lpx_tokenizer_eos(model->tokenizer),
                                    .weight_bytes = model->weight_bytes,
                                    .architecture = "llama",
                                    .name = model->name};
}

laprox_result laprox_model_tokenize(const laprox_model *model, const char *text, size_t bytes, bool add_bos,
                                    uint32_t **tokens, size_t *count) {
  return lpx_tokenizer_encode(model->tokenizer, text, bytes, add_bos, tokens, count);
}

laprox_result laprox_model_detokenize(const laprox_model *model, const uint32_t *tokens, size_t count,
                                      char **text, size_t *bytes) {
  return lpx_tokenizer_decode(model->tokenizer, tokens, count, text, bytes);
}

void laprox_model_release(const laprox_model *model, void *pointer) {
  lpx_release(&model->host, pointer);
}
