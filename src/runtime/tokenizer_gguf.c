/* tokenizer_gguf.c: the tokenizer that a GGUF file describes. */
#include "runtime/tokenizer.h"

#include "io/gguf.h"

static lpx_text as_text(lpx_gguf_string string) {
  return (lpx_text){string.data, string.bytes};
}

/* Everything but the arrays. */
static laprox_result read_fields(const lpx_gguf *file, lpx_tokenizer_info *info) {
  lpx_gguf_string model = {0}, pre = {0};
  info->bos = info->eos = LAPROX_NONE;
  laprox_result result = lpx_gguf_get_string(file, "tokenizer.ggml.model", LPX_GGUF_REQUIRED, &model);
  if (!result) result = lpx_gguf_get_string(file, "tokenizer.ggml.pre", LPX_GGUF_OPTIONAL, &pre);
  if (!result) result = lpx_gguf_get_u32(file, "tokenizer.ggml.bos_token_id", LPX_GGUF_OPTIONAL, &info->bos);
  if (!result) result = lpx_gguf_get_u32(file, "tokenizer.ggml.eos_token_id", LPX_GGUF_OPTIONAL, &info->eos);
  if (!result && lpx_gguf_has(file, "tokenizer.ggml.add_bos_token")) {
    bool add_bos = false;
    result = lpx_gguf_get_bool(file, "tokenizer.ggml.add_bos_token", LPX_GGUF_REQUIRED, &add_bos);
    info->add_bos = add_bos ? LAPROX_SWITCH_ON : LAPROX_SWITCH_OFF;
  }
  info->model = as_text(model);
  info->pre = as_text(pre);
  return result;
}

static laprox_result read_types(const laprox_host *host, const lpx_gguf *file, lpx_tokenizer_info *info) {
  size_t n_types = 0;
  laprox_result result =
      lpx_gguf_get_i32s(file, "tokenizer.ggml.token_type", LPX_GGUF_OPTIONAL, &info->types, &n_types);
  if (!result && info->types && n_types != info->n_tokens)
    return lpx_fail(host, LAPROX_ERROR_FORMAT, "%s: tokenizer.ggml.token_type has %zu entries for %zu tokens",
                    lpx_gguf_path(file), n_types, info->n_tokens);
  return result;
}

laprox_result lpx_tokenizer_read(const laprox_host *host, const struct lpx_gguf *file, lpx_tokenizer **out) {
  lpx_tokenizer_info info = {0};
  const lpx_gguf_string *tokens = NULL, *merges = NULL;
  lpx_text *texts = NULL;
  size_t n_texts = 0;
  *out = NULL;
  laprox_result result = read_fields(file, &info);
  if (!result)
    result = lpx_gguf_get_strings(file, "tokenizer.ggml.tokens", LPX_GGUF_REQUIRED, &tokens, &info.n_tokens);
  if (!result)
    result = lpx_gguf_get_strings(file, "tokenizer.ggml.merges", LPX_GGUF_OPTIONAL, &merges, &info.n_merges);
  if (!result) result = read_types(host, file, &info);
  if (result) return result;
  if (lpx_add(info.n_tokens, info.n_merges, &n_texts)) texts = lpx_allocate(host, n_texts, sizeof *texts);
  if (!texts) return lpx_fail_memory(host, "vocabulary");
  for (size_t i = 0; i < info.n_tokens; i++) texts[i] = as_text(tokens[i]);
  for (size_t i = 0; i < info.n_merges; i++) texts[info.n_tokens + i] = as_text(merges[i]);
  info.tokens = texts;
  info.merges = texts + info.n_tokens;
  result = lpx_tokenizer_create(host, &info, out);
  lpx_release(host, texts);
  return result;
}
