/* capture_file.c: a capture as a safetensors file. */
#include "io/safetensors.h"
#include "support/capture.h"

#include <stdio.h>

#define N_TENSORS 4

static const char *const tensor_names[N_TENSORS] = {"q", "k", "v", "o_proj"};

static const capture_tensor *tensor_of(const capture_cache *capture, size_t layer, size_t i) {
  const capture_layer *from = &capture->layers[layer];
  const capture_tensor *const tensors[N_TENSORS] = {&from->query, &from->key, &from->value,
                                                    &from->output_weight};
  return tensors[i];
}

static laprox_result declare(const capture_cache *capture, lpx_st_writer *writer) {
  laprox_result result = LAPROX_OK;
  char text[64];
  if (capture->options.scale != 0) {
    snprintf(text, sizeof text, "%.17g", capture->options.scale);
    result = lpx_st_writer_metadata(writer, "scale", text);
  }
  for (size_t i = 0; i < (size_t)capture->options.shape.n_layers * N_TENSORS && result == LAPROX_OK; i++) {
    const capture_tensor *tensor = tensor_of(capture, i / N_TENSORS, i % N_TENSORS);
    snprintf(text, sizeof text, "layers.%zu.%s", i / N_TENSORS, tensor_names[i % N_TENSORS]);
    result =
        lpx_st_writer_declare(writer, text, lpx_st_from_dtype(tensor->dtype), tensor->n_dims, tensor->dims);
  }
  return result;
}

laprox_result capture_write(const capture_cache *capture, const laprox_host *host, const char *path) {
  lpx_st_writer *writer = NULL;
  laprox_result result = lpx_st_writer_create(host, path, &writer);
  if (result != LAPROX_OK) return result;
  result = declare(capture, writer);
  for (size_t i = 0; i < (size_t)capture->options.shape.n_layers * N_TENSORS && result == LAPROX_OK; i++) {
    const capture_tensor *tensor = tensor_of(capture, i / N_TENSORS, i % N_TENSORS);
    result = lpx_st_writer_write(writer, tensor->data, tensor->bytes);
  }
  if (result == LAPROX_OK) result = lpx_st_writer_commit(writer);
  lpx_st_writer_destroy(writer);
  return result;
}

static laprox_result read_tensor(lpx_safetensors *file, const char *name, capture_tensor *to) {
  const lpx_st_tensor *tensor = NULL;
  laprox_result result = lpx_safetensors_get(file, name, &tensor);
  if (result != LAPROX_OK) return result;
  const laprox_dtype dtype = lpx_st_to_dtype(tensor->dtype);
  if (tensor->n_elements != to->n_elements || (dtype != to->dtype && dtype != LAPROX_DTYPE_F32))
    return LAPROX_ERROR_FORMAT;
  if (dtype != to->dtype) return lpx_safetensors_read_all(file, tensor, to->values);
  result = lpx_safetensors_read_all(file, tensor, to->data);
  if (result == LAPROX_OK) lpx_to_f32(dtype, to->data, to->n_elements, to->values);
  return result;
}

laprox_result capture_read(capture_cache *capture, const laprox_host *host, const char *path) {
  lpx_safetensors *file = NULL;
  laprox_result result = lpx_safetensors_open(host, path, &file);
  for (size_t i = 0; i < (size_t)capture->options.shape.n_layers * N_TENSORS && result == LAPROX_OK; i++) {
    capture_layer *layer = &capture->layers[i / N_TENSORS];
    capture_tensor *const tensors[N_TENSORS] = {&layer->query, &layer->key, &layer->value,
                                                &layer->output_weight};
    char name[64];
    snprintf(name, sizeof name, "layers.%zu.%s", i / N_TENSORS, tensor_names[i % N_TENSORS]);
    result = read_tensor(file, name, tensors[i % N_TENSORS]);
  }
  lpx_safetensors_close(file);
  return result;
}
