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
