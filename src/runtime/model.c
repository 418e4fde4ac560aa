/* model.c: weights on the device, and what callers may ask of a model. */
#include "runtime/model.h"

#include <stdio.h>
#include <string.h>

#define PIECE_BYTES ((size_t)4 << 20) /* of a tensor that the host holds at a time */

/* Loading under way. */
typedef struct loading {
  laprox_model *model;
  const laprox_model_info *info;
  uint8_t *piece;
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

static laprox_result upload_matrix(loading *load, const lpx_gguf_tensor *tensor, lpx_weight *out) {
  laprox_model *model = load->model;
  laprox_result result = lpx_buffer_init(model->device->context, LPX_MEMORY_DEVICE,
                                         (tensor->bytes + 7) & ~(VkDeviceSize)7, tensor->name, &out->buffer);
  for (uint64_t done = 0; !result && done < tensor->bytes;) {
    const uint64_t left = tensor->bytes - done;
    const size_t now = left < PIECE_BYTES ? (size_t)left : PIECE_BYTES;
    result = lpx_gguf_read(model->file, tensor, done, now, load->piece);
    if (result) return result;
    const laprox_buffer to = lpx_buffer_part(lpx_buffer_whole(&out->buffer), done, now);
    result = lpx_queue_upload(model->device->queue, to, load->piece, now);
    if (!result) result = report(load, now);
    done += now;
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

/* n_rows 1: a vector. */
static laprox_result load_weight(loading *load, const char *name, uint32_t n_rows, uint32_t n_columns,
                                 lpx_weight *out) {
  laprox_model *model = load->model;
  const lpx_gguf_tensor *tensor;
  laprox_result result = lpx_gguf_get(model->file, name, &tensor);
  if (!result) result = check_tensor(model, tensor, n_rows, n_columns);
  if (result) return result;
  out->n_rows = n_rows;
  out->n_columns = n_columns;
  out->dtype = n_rows == 1 ? LAPROX_DTYPE_F32 : tensor->dtype;
  result = n_rows == 1 ? upload_vector(load, tensor, out) : upload_matrix(load, tensor, out);
  model->weight_bytes += out->buffer.size;
  return result;
}

static const char *const layer_tensors[LPX_N_LAYER_WEIGHTS] = {
    [LPX_ATTN_NORM] = "attn_norm", [LPX_ATTN_Q] = "attn_q",           [LPX_ATTN_K] = "attn_k",
    [LPX_ATTN_V] = "attn_v",       [LPX_ATTN_OUTPUT] = "attn_output", [LPX_FFN_NORM] = "ffn_norm",
    [LPX_FFN_GATE] = "ffn_gate",   [LPX_FFN_UP] = "ffn_up",           [LPX_FFN_DOWN] = "ffn_down",
};

static void layer_tensor_name(char *name, size_t size, uint32_t layer, lpx_layer_weight weight) {
  (void)snprintf(name, size, "blk.%u.%s.weight", layer, layer_tensors[weight]);
}

static laprox_result load_layer(loading *load, uint32_t layer) {
  laprox_model *model = load->model;
  const laprox_shape *shape = &model->shape;
  const uint32_t dim = model->model_dim, wide = model->feed_forward_dim;
  const uint32_t q_dim = shape->n_heads * shape->head_dim, kv_dim = shape->n_kv_heads * shape->head_dim;
  const uint32_t sizes[LPX_N_LAYER_WEIGHTS][2] = {
      [LPX_ATTN_NORM] = {1, dim},   [LPX_ATTN_Q] = {q_dim, dim},      [LPX_ATTN_K] = {kv_dim, dim},
      [LPX_ATTN_V] = {kv_dim, dim}, [LPX_ATTN_OUTPUT] = {dim, q_dim}, [LPX_FFN_NORM] = {1, dim},
      [LPX_FFN_GATE] = {wide, dim}, [LPX_FFN_UP] = {wide, dim},       [LPX_FFN_DOWN] = {dim, wide},
  };
  for (uint32_t i = 0; i < LPX_N_LAYER_WEIGHTS; i++) {
    char name[64];
    layer_tensor_name(name, sizeof name, layer, (lpx_layer_weight)i);
    const laprox_result result =
        load_weight(load, name, sizes[i][0], sizes[i][1], &model->layers[layer].weights[i]);
    if (result) return result;
  }
  return LAPROX_OK;
}

static bool is_known_tensor(const laprox_model *model, const char *name) {
  static const char *const global[] = {"token_embd.weight", "output_norm.weight", "output.weight",
                                       "rope_freqs.weight"};
  for (size_t i = 0; i < sizeof global / sizeof global[0]; i++)
    if (!strcmp(name, global[i])) return true;
  unsigned layer;
  if (sscanf(name, "blk.%8u.", &layer) != 1 || layer >= model->shape.n_layers) return false;
  for (uint32_t i = 0; i < LPX_N_LAYER_WEIGHTS; i++) {
    char known[64];
    layer_tensor_name(known, sizeof known, layer, (lpx_layer_weight)i);
    if (!strcmp(name, known)) return true;
  }
  return false;
}

/* A tensor that nothing reads (a bias, say) means that the model computes something else. */
static laprox_result check_all_known(loading *load) {
  const laprox_model *model = load->model;
  for (size_t i = 0; i < lpx_gguf_count(model->file); i++) {
    const lpx_gguf_tensor *tensor = lpx_gguf_tensor_at(model->file, i);
    if (!is_known_tensor(model, tensor->name))
      return lpx_fail(&model->host, LAPROX_ERROR_UNSUPPORTED,
                      "%s: tensor %s has no place in a Llama model of %u layers", lpx_gguf_path(model->file),
                      tensor->name, model->shape.n_layers);
    load->bytes_total += tensor->bytes;
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

static laprox_result upload_rope(laprox_model *model) {
  uint64_t turns[128];
  laprox_result result = lpx_model_rope_turns(model, turns);
  if (result) return result;
  const uint32_t n = model->shape.head_dim / 2;
  uint32_t words[256]; /* low, high: the device has no 64-bit integers */
  for (uint32_t i = 0; i < n; i++) {
    words[2 * i] = (uint32_t)turns[i];
    words[2 * i + 1] = (uint32_t)(turns[i] >> 32);
  }
  result = lpx_buffer_init(model->device->context, LPX_MEMORY_DEVICE, n * sizeof turns[0], "rope frequencies",
                           &model->rope_turns);
  if (result) return result;
  return lpx_queue_upload(model->device->queue, lpx_buffer_whole(&model->rope_turns), words,
                          n * sizeof turns[0]);
}

static laprox_result load_weights(loading *load) {
  laprox_model *model = load->model;
  laprox_result result = check_all_known(load);
  if (!result) result = upload_rope(model);
  if (!result)
    result =
        load_weight(load, "token_embd.weight", model->n_vocab, model->model_dim, &model->token_embedding);
  if (!result) result = load_weight(load, "output_norm.weight", 1, model->model_dim, &model->output_norm);
  if (!result && lpx_gguf_find(model->file, "output.weight"))
    result = load_weight(load, "output.weight", model->n_vocab, model->model_dim, &model->output);
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
  if (!result && info->without_weights) result = check_all_known(&load);
  if (result) goto fail;
  if (info->without_weights) {
    model->weight_bytes = load.bytes_total;
    *out = model;
    return LAPROX_OK;
  }
  load.piece = lpx_allocate(host, 1, PIECE_BYTES);
  model->layers = lpx_allocate(host, model->shape.n_layers, sizeof *model->layers);
  if (!load.piece || !model->layers)
    result = lpx_fail_memory(host, "a model's layers");
  else
    result = load_weights(&load);
  lpx_release(host, load.piece);
  if (result) goto fail;
  model->has_weights = true;
  *out = model;
  return LAPROX_OK;
fail:
  laprox_model_destroy(model);
  return result;
}

void laprox_model_destroy(laprox_model *model) {
  if (!model) return;
  laprox_context *context = model->device->context;
  for (uint32_t layer = 0; model->layers && layer < model->shape.n_layers; layer++)
    for (uint32_t i = 0; i < LPX_N_LAYER_WEIGHTS; i++)
      lpx_buffer_finish(context, &model->layers[layer].weights[i].buffer);
  lpx_buffer_finish(context, &model->token_embedding.buffer);
  lpx_buffer_finish(context, &model->output_norm.buffer);
  lpx_buffer_finish(context, &model->output.buffer);
  lpx_buffer_finish(context, &model->rope_turns);
  lpx_tokenizer_destroy(model->tokenizer);
  lpx_gguf_close(model->file);
  lpx_release(&model->host, model->layers);
  lpx_release(&model->host, model);
}

const lpx_weight *lpx_model_output(const laprox_model *model) {
  return model->output.buffer.buffer ? &model->output : &model->token_embedding;
}

laprox_result lpx_model_output_weight_f32(const laprox_model *model, uint32_t layer, float *out) {
  char name[64];
  layer_tensor_name(name, sizeof name, layer, LPX_ATTN_OUTPUT);
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
