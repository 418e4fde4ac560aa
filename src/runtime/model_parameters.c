/* model_parameters.c: what a GGUF file says about its model, checked. */
#include "runtime/model.h"

#include <math.h>
#include <string.h>

static laprox_result fail_value(const laprox_model *model, laprox_result result, const char *key,
                                unsigned long long value, const char *rule) {
  return lpx_fail(&model->host, result, "%s: %s is %llu, %s", lpx_gguf_path(model->file), key, value, rule);
}

static laprox_result check_architecture(const laprox_model *model) {
  lpx_gguf_string name;
  const laprox_result result =
      lpx_gguf_get_string(model->file, "general.architecture", LPX_GGUF_REQUIRED, &name);
  if (result) return result;
  if (name.bytes == 5 && !memcmp(name.data, "llama", 5)) return LAPROX_OK;
  return lpx_fail(&model->host, LAPROX_ERROR_UNSUPPORTED,
                  "%s: architecture \"%.40s\", only \"llama\" is known", lpx_gguf_path(model->file),
                  name.data);
}

static laprox_result read_sizes(laprox_model *model) {
  const struct {
    const char *key;
    uint32_t *out;
  } sizes[] = {
      {"llama.block_count", &model->shape.n_layers},
      {"llama.embedding_length", &model->model_dim},
      {"llama.feed_forward_length", &model->feed_forward_dim},
      {"llama.attention.head_count", &model->shape.n_heads},
      {"llama.context_length", &model->context_length},
  };
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    const laprox_result result = lpx_gguf_get_u32(model->file, sizes[i].key, LPX_GGUF_REQUIRED, sizes[i].out);
    if (result) return result;
    /* The largest products of two of these fit 64 bits, and any buffer of more would be refused anyway. */
    if (!*sizes[i].out || *sizes[i].out >= 1u << 24)
      return fail_value(model, LAPROX_ERROR_FORMAT, sizes[i].key, *sizes[i].out, "must be 1 to 16777215");
  }
  if (model->shape.n_layers > lpx_gguf_count(model->file))
    return fail_value(model, LAPROX_ERROR_FORMAT, "llama.block_count", model->shape.n_layers,
                      "more than the file has tensors");
  if (model->model_dim % 4 || model->feed_forward_dim % 4)
    return fail_value(model, LAPROX_ERROR_UNSUPPORTED,
                      model->model_dim % 4 ? "llama.embedding_length" : "llama.feed_forward_length",
                      model->model_dim % 4 ? model->model_dim : model->feed_forward_dim,
                      "must be a multiple of 4");
  return LAPROX_OK;
}

static laprox_result read_heads(laprox_model *model) {
  laprox_shape *shape = &model->shape;
  shape->n_kv_heads = shape->n_heads;
  laprox_result result =
      lpx_gguf_get_u32(model->file, "llama.attention.head_count_kv", LPX_GGUF_OPTIONAL, &shape->n_kv_heads);
  if (result) return result;
  shape->head_dim = model->model_dim / shape->n_heads;
  result = lpx_gguf_get_u32(model->file, "llama.attention.key_length", LPX_GGUF_OPTIONAL, &shape->head_dim);
  if (result) return result;
  const struct {
    const char *key;
    const char *rule;
  } same[] = {
      {"llama.attention.value_length", "must be the same as llama.attention.key_length"},
      {"llama.rope.dimension_count", "must be the head dimension: partial rotation is not supported"},
  };
  for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
    uint32_t value = shape->head_dim;
    result = lpx_gguf_get_u32(model->file, same[i].key, LPX_GGUF_OPTIONAL, &value);
    if (result) return result;
    if (value != shape->head_dim)
      return fail_value(model, LAPROX_ERROR_UNSUPPORTED, same[i].key, value, same[i].rule);
  }
  uint32_t n_experts = 0;
  result = lpx_gguf_get_u32(model->file, "llama.expert_count", LPX_GGUF_OPTIONAL, &n_experts);
  if (result) return result;
  if (n_experts)
    return fail_value(model, LAPROX_ERROR_UNSUPPORTED, "llama.expert_count", n_experts,
                      "mixtures of experts are not supported");
  return lpx_shape_check(&model->host, shape);
}

static bool is_positive(float value) {
  return value > 0.0f && isfinite(value);
}

static laprox_result read_scaling(laprox_model *model) {
  lpx_gguf_string type = {.data = "none", .bytes = 4};
  laprox_result result =
      lpx_gguf_get_string(model->file, "llama.rope.scaling.type", LPX_GGUF_OPTIONAL, &type);
  if (result) return result;
  model->rope_scale = 1.0f;
  if (type.bytes == 4 && !memcmp(type.data, "none", 4)) return LAPROX_OK;
  if (type.bytes != 6 || memcmp(type.data, "linear", 6) != 0)
    return lpx_fail(&model->host, LAPROX_ERROR_UNSUPPORTED,
                    "%s: llama.rope.scaling.type is \"%.40s\", only \"none\" and \"linear\" are known",
                    lpx_gguf_path(model->file), type.data);
  return lpx_gguf_get_f32(model->file, "llama.rope.scaling.factor", LPX_GGUF_REQUIRED, &model->rope_scale);
}

static laprox_result read_floats(laprox_model *model) {
  model->rope_base = 10000.0f;
  laprox_result result =
      lpx_gguf_get_f32(model->file, "llama.rope.freq_base", LPX_GGUF_OPTIONAL, &model->rope_base);
  if (result) return result;
  result = lpx_gguf_get_f32(model->file, "llama.attention.layer_norm_rms_epsilon", LPX_GGUF_REQUIRED,
                            &model->norm_epsilon);
  if (!result) result = read_scaling(model);
  if (result) return result;
  const struct {
    const char *key;
    float value;
  } checked[] = {{"llama.rope.freq_base", model->rope_base},
                 {"llama.rope.scaling.factor", model->rope_scale},
                 {"llama.attention.layer_norm_rms_epsilon", model->norm_epsilon}};
  for (size_t i = 0; i < sizeof checked / sizeof checked[0]; i++)
    if (!is_positive(checked[i].value))
      return lpx_fail(&model->host, LAPROX_ERROR_FORMAT, "%s: %s is %g, must be positive and finite",
                      lpx_gguf_path(model->file), checked[i].key, (double)checked[i].value);
  return LAPROX_OK;
}

laprox_result lpx_model_read_parameters(laprox_model *model) {
  lpx_gguf_string name = {.data = ""};
  laprox_result result = check_architecture(model);
  if (!result) result = lpx_gguf_get_string(model->file, "general.name", LPX_GGUF_OPTIONAL, &name);
  model->name = name.data;
  if (!result) result = read_sizes(model);
  if (!result) result = read_heads(model);
  if (!result) result = read_floats(model);
  return result;
}

/* The llama-3 factors, n of them, all 1 where the file has none. */
static laprox_result read_factors(laprox_model *model, float *factors, uint32_t n) {
  static const char name[] = "rope_freqs.weight";
  for (uint32_t i = 0; i < n; i++) factors[i] = 1.0f;
  if (!lpx_gguf_find(model->file, name)) return LAPROX_OK;
  const lpx_gguf_tensor *tensor;
  laprox_result result = lpx_gguf_get(model->file, name, &tensor);
  if (result) return result;
  if (tensor->dtype != LAPROX_DTYPE_F32 || tensor->n_elements != n)
    return lpx_fail(&model->host, LAPROX_ERROR_FORMAT, "%s: tensor %s is %llu x %s, must be %u x F32",
                    lpx_gguf_path(model->file), name, (unsigned long long)tensor->n_elements,
                    laprox_dtype_name(tensor->dtype), n);
  result = lpx_gguf_read_all(model->file, tensor, factors);
  if (result) return result;
  for (uint32_t i = 0; i < n; i++)
    if (!is_positive(factors[i]))
      return lpx_fail(&model->host, LAPROX_ERROR_FORMAT,
                      "%s: tensor %s has %g at %u, must be positive and finite", lpx_gguf_path(model->file),
                      name, (double)factors[i], i);
  return LAPROX_OK;
}

laprox_result lpx_model_rope_turns(laprox_model *model) {
  const double two_pi = 6.283185307179586;
  float factors[LPX_MAX_ROPE_TURNS];
  const uint32_t n = model->shape.head_dim / 2;
  const laprox_result result = read_factors(model, factors, n);
  if (result) return result;
  for (uint32_t i = 0; i < n; i++) {
    const double exponent = -2.0 * (double)i / (double)model->shape.head_dim;
    const double radians =
        pow((double)model->rope_base, exponent) / (double)factors[i] / (double)model->rope_scale;
    const double per_position = radians / two_pi;
    /* Whole turns don't matter: positions are whole numbers. */
    model->rope_turns[i] = (uint64_t)((per_position - floor(per_position)) * 18446744073709551616.0);
  }
  return LAPROX_OK;
}
