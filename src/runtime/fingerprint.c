/* fingerprint.c: a hash over a model's parameters and samples of its weights. */
#include "runtime/fingerprint.h"

#include <string.h>

/* Of both ends of a tensor: training changes weights everywhere, and files of many gigabytes are not read
 * whole. */
#define SAMPLE_BYTES 4096

#define FNV_START UINT64_C(0xcbf29ce484222325)
#define FNV_PRIME UINT64_C(0x100000001b3)

static void hash_bytes(uint64_t *hash, const void *data, size_t n) {
  const uint8_t *bytes = data;
  for (size_t i = 0; i < n; i++) *hash = (*hash ^ bytes[i]) * FNV_PRIME;
}

/* Little-endian everywhere. */
static void hash_number(uint64_t *hash, uint64_t number) {
  for (uint32_t i = 0; i < 8; i++) {
    const uint8_t byte = (uint8_t)(number >> 8 * i);
    hash_bytes(hash, &byte, 1);
  }
}

static void hash_float(uint64_t *hash, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  hash_number(hash, bits);
}

/* With its length, so that neighbours can't trade bytes. */
static void hash_text(uint64_t *hash, const char *text, size_t n) {
  hash_number(hash, n);
  hash_bytes(hash, text, n);
}

static void hash_parameters(const laprox_model *model, uint64_t *hash) {
  const uint32_t numbers[] = {model->shape.n_layers, model->shape.n_heads, model->shape.n_kv_heads,
                              model->shape.head_dim, model->model_dim,     model->feed_forward_dim,
                              model->n_vocab};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) hash_number(hash, numbers[i]);
  hash_float(hash, model->norm_epsilon);
  hash_float(hash, model->rope_base);
  hash_float(hash, model->rope_scale);
}

/* The same ids must stand for the same text. */
static laprox_result hash_vocabulary(const laprox_model *model, uint64_t *hash) {
  const lpx_gguf_string *tokens = NULL;
  size_t n = 0;
  const laprox_result result =
      lpx_gguf_get_strings(model->file, "tokenizer.ggml.tokens", LPX_GGUF_REQUIRED, &tokens, &n);
  for (size_t i = 0; i < n && !result; i++) hash_text(hash, tokens[i].data, tokens[i].bytes);
  return result;
}

static laprox_result hash_tensor(const laprox_model *model, const lpx_gguf_tensor *tensor, uint64_t *hash) {
  uint8_t sample[SAMPLE_BYTES];
  const size_t n = tensor->bytes < sizeof sample ? (size_t)tensor->bytes : sizeof sample;
  hash_text(hash, tensor->name, strlen(tensor->name));
  hash_number(hash, tensor->ggml_type);
  for (uint32_t i = 0; i < LPX_GGUF_MAX_DIMS; i++) hash_number(hash, tensor->dims[i]);
  laprox_result result = lpx_gguf_read(model->file, tensor, 0, n, sample);
  if (result) return result;
  hash_bytes(hash, sample, n);
  result = lpx_gguf_read(model->file, tensor, tensor->bytes - n, n, sample);
  if (!result) hash_bytes(hash, sample, n);
  return result;
}

laprox_result lpx_model_fingerprint(const laprox_model *model, uint64_t *out) {
  uint64_t hash = FNV_START;
  hash_parameters(model, &hash);
  laprox_result result = hash_vocabulary(model, &hash);
  for (size_t i = 0; i < lpx_gguf_count(model->file) && !result; i++)
    result = hash_tensor(model, lpx_gguf_tensor_at(model->file, i), &hash);
  *out = hash;
  return result;
}
