/* model.h: a Llama model on a device: hyperparameters, weights in the types of their file, tokenizer. */
#ifndef LPX_RUNTIME_MODEL_H
#define LPX_RUNTIME_MODEL_H

#include "io/gguf.h"
#include "runtime/device.h"
#include "runtime/kernels.h"
#include "runtime/tokenizer.h"

typedef struct lpx_model_layer {
  lpx_weight attention_norm, feed_forward_norm;
  lpx_matrix projections; /* Q, K, V */
  lpx_matrix attention_output;
  lpx_matrix gate_up, down;
} lpx_model_layer;

#define LPX_MAX_ROPE_TURNS 128 /* half the largest head_dim */

struct laprox_model {
  laprox_device *device;
  laprox_host host;
  lpx_gguf *file; /* stays open: names, and weights that the host wants back */
  const char *name;
  lpx_tokenizer *tokenizer;
  laprox_shape shape;
  uint32_t model_dim, feed_forward_dim, n_vocab, context_length;
  float norm_epsilon, rope_base, rope_scale; /* rope_scale: frequencies are divided by it */
  bool has_weights;
  uint64_t weight_bytes; /* on the device, or what they would take */
  lpx_weight output_norm;
  lpx_matrix token_embedding;
  lpx_matrix output;                       /* empty where the token embedding serves as output too */
  uint64_t rope_turns[LPX_MAX_ROPE_TURNS]; /* head_dim / 2: turns per position as 64-bit fractions of one */
  lpx_model_layer *layers;                 /* shape.n_layers */
  /* Value factors of all layers, of query heads and of whole groups (joint); each NULL before a session needs it */
  float *value_factors[2];
};

/* [n_vocab, model_dim]. */
const lpx_matrix *lpx_model_output(const laprox_model *model);

/* The output projection of a layer, [model_dim, n_heads * head_dim] f32, read from the file again. */
laprox_result lpx_model_output_weight_f32(const laprox_model *model, uint32_t layer, float *out);

/* A layer's value factor, f32 as laprox_value_factor writes it. Those of all layers are made at the first call and stay
 * with the model. */
laprox_result lpx_model_value_factor(laprox_model *model, uint32_t layer, laprox_gqa gqa, const float **out);

/* ---- for this room only ---- */

/* Hyperparameters and rope frequencies from the file's metadata. model_weights.c calls them before any
 * upload. */
laprox_result lpx_model_read_parameters(laprox_model *model);
laprox_result lpx_model_rope_turns(laprox_model *model);

#endif
