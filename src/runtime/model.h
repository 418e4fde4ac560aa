/* model.h: a Llama model on a device: hyperparameters, weights in the types of their file, tokenizer. */
#ifndef LPX_RUNTIME_MODEL_H
#define LPX_RUNTIME_MODEL_H

#include "io/gguf.h"
#include "runtime/device.h"
#include "runtime/kernels.h"
#include "runtime/tokenizer.h"

typedef enum lpx_layer_weight {
  LPX_ATTN_NORM,
  LPX_ATTN_Q,
  LPX_ATTN_K,
  LPX_ATTN_V,
  LPX_ATTN_OUTPUT,
  LPX_FFN_NORM,
  LPX_FFN_GATE,
  LPX_FFN_UP,
  LPX_FFN_DOWN,
  LPX_N_LAYER_WEIGHTS
} lpx_layer_weight;

typedef struct lpx_model_layer {
  lpx_weight weights[LPX_N_LAYER_WEIGHTS];
} lpx_model_layer;

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
  lpx_weight token_embedding, output_norm;
  lpx_weight output;       /* empty where the token embedding serves as output too */
  lpx_buffer rope_turns;   /* head_dim / 2 frequencies: turns per position as 64-bit fractions of a turn */
  lpx_model_layer *layers; /* shape.n_layers */
};

/* [n_vocab, model_dim]. */
const lpx_weight *lpx_model_output(const laprox_model *model);

/* The output projection of a layer, [model_dim, n_heads * head_dim] f32, read from the file again. */
laprox_result lpx_model_output_weight_f32(const laprox_model *model, uint32_t layer, float *out);

/* ---- for this room only ---- */

/* Hyperparameters and rope frequencies from the file's metadata. model_weights.c calls them before any
 * upload. */
laprox_result lpx_model_read_parameters(laprox_model *model);
laprox_result lpx_model_rope_turns(laprox_model *model, uint64_t *turns);

#endif
