/* capture.c: made-up caches in memory. */
#include "support/capture.h"
#include "core/core.h"
#include "reference/allocate.h"
#include "support/encode.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_MODEL_DIM 64
#define N_NEEDLES         3
#define N_PROTOTYPES      5
#define HALF_ZERO_STRETCH 5
#define NEEDLE_LOGIT      7.0
#define RISING_STRETCH    90
#define RISING_LOGIT      100.0 /* exp of it is more than f32 holds */

uint64_t random_bits(uint64_t *state) {
  uint64_t x = *state += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

double random_uniform(uint64_t *state) {
  return (double)(random_bits(state) >> 11) * 0x1p-53;
}

/* A sum of uniforms, and no logarithm or sine, whose last bits differ between C libraries. */
double random_normal(uint64_t *state) {
  double sum = -6;
  for (int i = 0; i < 12; i++) sum += random_uniform(state);
  return sum;
}

/* ---- tensors ---- */

static void tensor_init(capture_tensor *tensor, laprox_dtype dtype, uint32_t n_dims, uint64_t d0, uint64_t d1,
                        uint64_t d2) {
  *tensor = (capture_tensor){.dtype = dtype, .n_dims = n_dims, .dims = {d0, d1, d2}};
  tensor->n_elements = (size_t)(d0 * d1 * (n_dims == 3 ? d2 : 1));
  tensor->bytes = laprox_dtype_bytes(dtype, tensor->n_elements);
  tensor->data = ref_allocate(tensor->bytes, 1);
  tensor->values = ref_allocate(tensor->n_elements, sizeof(float));
}

static void tensor_finish(capture_tensor *tensor) {
  free(tensor->data);
  free(tensor->values);
}

/* Rounds the values to the tensor's type. */
static void tensor_store(capture_tensor *tensor) {
  encode_values(tensor->dtype, tensor->values, tensor->n_elements, tensor->data);
}

static void fill_normal(float *values, size_t n, double deviation, uint64_t *state) {
  for (size_t i = 0; i < n; i++) values[i] = (float)(deviation * random_normal(state));
}

/* ---- patterns, one KV head at a time ---- */

static void repeat_row(float *rows, size_t n_rows, size_t d) {
  for (size_t i = 1; i < n_rows; i++) memcpy(rows + i * d, rows, d * sizeof *rows);
}

static void fill_ties(float *key, float *value, size_t n, size_t d, uint64_t *state) {
  for (size_t i = N_PROTOTYPES; i < n; i++) {
    size_t prototype = (size_t)(random_bits(state) % N_PROTOTYPES);
    memcpy(key + i * d, key + prototype * d, d * sizeof *key);
    memcpy(value + i * d, value + prototype * d, d * sizeof *value);
  }
}

/* A key that has this logit. */
static void plant_needle(float *row, const float *query, size_t d, double scale, double logit) {
  double square = 0;
  for (size_t c = 0; c < d; c++) square += (double)query[c] * (double)query[c];
  for (size_t c = 0; c < d; c++) row[c] = (float)(logit / (square * scale) * (double)query[c]);
}

static void plant_needles(float *key, const float *query, size_t n, size_t d, double scale, uint64_t *state) {
  for (int needle = 0; needle < N_NEEDLES; needle++)
    plant_needle(key + (size_t)(random_bits(state) % n) * d, query, d, scale, NEEDLE_LOGIT);
}

static void plant_rising(float *key, const float *query, size_t n, size_t d, double scale) {
  double logit = 0;
  for (size_t i = RISING_STRETCH - 1; i < n; i += RISING_STRETCH)
    plant_needle(key + i * d, query, d, scale, logit += RISING_LOGIT);
}

static void fill_head(const capture_options *options, float *key, float *value, const float *query,
                      uint64_t *state) {
  size_t n = options->n_tokens, d = options->shape.head_dim;
  double scale = options->scale != 0 ? options->scale : 1 / sqrt((double)d);
  double loudness = 0.1 + 2 * random_uniform(state);
  fill_normal(key, n * d, 1, state);
  fill_normal(value, n * d, loudness, state);
  switch (options->pattern) {
  case CAPTURE_GAUSSIAN:
    break;
  case CAPTURE_EQUAL:
    repeat_row(key, n, d);
    repeat_row(value, n, d);
    break;
  case CAPTURE_HALF_ZERO:
    for (size_t i = 0; i < n; i++)
      if (i / HALF_ZERO_STRETCH % 2) memset(value + i * d, 0, d * sizeof *value);
    break;
  case CAPTURE_NEEDLES:
    plant_needles(key, query, n, d, scale, state);
    break;
  case CAPTURE_RISING:
    plant_rising(key, query, n, d, scale);
    break;
  case CAPTURE_TIES:
    fill_ties(key, value, n, d, state);
    break;
  }
}

/* The same block of columns for every query head. */
static void repeat_projection(float *weight, size_t n_rows, size_t n_heads, size_t d) {
  for (size_t m = 0; m < n_rows; m++) repeat_row(weight + m * n_heads * d, n_heads, d);
}

static void fill_layer(const capture_options *options, capture_layer *layer, size_t model_dim,
                       uint64_t *state) {
  const laprox_shape *shape = &options->shape;
  size_t d = shape->head_dim, head_size = options->n_tokens * d, query_size = options->window * d;
  size_t group_size = shape->n_heads / shape->n_kv_heads * query_size;
  bool equal = options->pattern == CAPTURE_EQUAL;
  fill_normal(layer->query.values, layer->query.n_elements, 1.5, state);
  fill_normal(layer->output_weight.values, layer->output_weight.n_elements, 1 / sqrt((double)model_dim),
              state);
  for (size_t g = 0; g < shape->n_kv_heads; g++)
    fill_head(options, layer->key.values + g * head_size, layer->value.values + g * head_size,
              layer->query.values + g * group_size, state);
  if (!equal) return;
  repeat_row(layer->key.values, shape->n_kv_heads, head_size);
  repeat_row(layer->value.values, shape->n_kv_heads, head_size);
  repeat_row(layer->query.values, shape->n_heads, query_size);
  repeat_projection(layer->output_weight.values, model_dim, shape->n_heads, d);
}

/* Element 1 of the middle candidate of a head. */
static void spoil(const capture_cache *capture, const capture_tensor *tensor, size_t kv_head, float with) {
  size_t n = capture->options.n_tokens, w = capture->options.window, d = capture->options.shape.head_dim;
  size_t entry = n > w ? (n - w) / 2 : 0;
  tensor->values[(kv_head * n + entry) * d + 1] = with;
}

static void spoil_layers(const capture_cache *capture) {
  unsigned spoils = capture->options.spoil;
  size_t last = capture->options.shape.n_kv_heads - 1;
  const capture_layer *first_layer = capture->layers,
                      *last_layer = capture->layers + capture->options.shape.n_layers - 1;
  if (spoils & CAPTURE_NAN_KEY) spoil(capture, &last_layer->key, last, NAN);
  if (spoils & CAPTURE_INF_KEY) spoil(capture, &first_layer->key, 0, INFINITY);
  if (spoils & CAPTURE_NAN_VALUE) spoil(capture, &first_layer->value, last, NAN);
  if (spoils & CAPTURE_INF_VALUE) spoil(capture, &last_layer->value, 0, -INFINITY);
}

/* ---- the whole ---- */

static void store_layers(capture_cache *capture) {
  const laprox_shape *shape = &capture->options.shape;
  size_t head_size = (size_t)capture->options.n_tokens * shape->head_dim;
  for (size_t l = 0; l < shape->n_layers; l++) {
    capture_layer *layer = &capture->layers[l];
    ref_head *heads = capture->ref_heads + l * shape->n_kv_heads;
    tensor_store(&layer->query);
    tensor_store(&layer->key);
    tensor_store(&layer->value);
    tensor_store(&layer->output_weight);
    for (size_t g = 0; g < shape->n_kv_heads; g++)
      heads[g] = (ref_head){capture->options.n_tokens, layer->key.values + g * head_size,
                            layer->value.values + g * head_size};
    capture->ref_layers[l] = (ref_layer){layer->query.values, layer->output_weight.values, heads};
  }
}

double capture_tolerance(laprox_dtype dtype) {
  return dtype == LAPROX_DTYPE_F32 || lpx_dtype_is_blocks(dtype) ? 1e-5 : 1e-3;
}

void capture_init(capture_cache *capture, const capture_options *options) {
  const laprox_shape *shape = &options->shape;
  uint32_t d = shape->head_dim, model_dim = options->model_dim ? options->model_dim : DEFAULT_MODEL_DIM;
  uint64_t state = options->seed;
  const laprox_dtype other = lpx_dtype_is_blocks(options->dtype) ? LAPROX_DTYPE_F32 : options->dtype;
  *capture = (capture_cache){.options = *options};
  capture->layers = ref_allocate(shape->n_layers, sizeof *capture->layers);
  capture->ref_layers = ref_allocate(shape->n_layers, sizeof *capture->ref_layers);
  capture->ref_heads = ref_allocate((size_t)shape->n_layers * shape->n_kv_heads, sizeof *capture->ref_heads);
  for (size_t l = 0; l < shape->n_layers; l++) {
    capture_layer *layer = &capture->layers[l];
    tensor_init(&layer->query, other, 3, shape->n_heads, options->window, d);
    tensor_init(&layer->key, options->dtype, 3, shape->n_kv_heads, options->n_tokens, d);
    tensor_init(&layer->value, options->dtype, 3, shape->n_kv_heads, options->n_tokens, d);
    tensor_init(&layer->output_weight, other, 2, model_dim, (uint64_t)shape->n_heads * d, 0);
    if (options->pattern == CAPTURE_EQUAL) state = options->seed;
    fill_layer(options, layer, model_dim, &state);
  }
  spoil_layers(capture);
  store_layers(capture);
  capture->cache = (ref_cache){*shape, model_dim, options->window, options->scale, capture->ref_layers, NULL};
}

void capture_finish(capture_cache *capture) {
  for (size_t l = 0; l < capture->options.shape.n_layers; l++) {
    tensor_finish(&capture->layers[l].query);
    tensor_finish(&capture->layers[l].key);
    tensor_finish(&capture->layers[l].value);
    tensor_finish(&capture->layers[l].output_weight);
  }
  free(capture->layers);
  free(capture->ref_layers);
  free(capture->ref_heads);
  *capture = (capture_cache){0};
}
