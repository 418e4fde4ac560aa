/* fuzz_gguf.c: opens a GGUF file of any bytes, asks for all that a model needs, reads all tensors. */
#include "fuzz/fuzz.h"
#include "io/gguf.h"

#define PATH "fuzz_gguf.tmp"

static void read_metadata(const lpx_gguf *file) {
  lpx_gguf_string text;
  const lpx_gguf_string *texts;
  const int32_t *i32s;
  const float *f32s;
  uint64_t u64;
  int32_t i32;
  float f32;
  bool flag;
  size_t count;
  static const char *const keys[] = {"name", "u8", "i8", "u64", "f32", "true", "words", "types", "scores"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
    lpx_gguf_get_u64(file, keys[i], LPX_GGUF_OPTIONAL, &u64);
    lpx_gguf_get_i32(file, keys[i], LPX_GGUF_OPTIONAL, &i32);
    lpx_gguf_get_f32(file, keys[i], LPX_GGUF_OPTIONAL, &f32);
    lpx_gguf_get_bool(file, keys[i], LPX_GGUF_OPTIONAL, &flag);
    lpx_gguf_get_string(file, keys[i], LPX_GGUF_OPTIONAL, &text);
    lpx_gguf_get_i32s(file, keys[i], LPX_GGUF_OPTIONAL, &i32s, &count);
    lpx_gguf_get_f32s(file, keys[i], LPX_GGUF_OPTIONAL, &f32s, &count);
    count = 0;
    if (lpx_gguf_get_strings(file, keys[i], LPX_GGUF_OPTIONAL, &texts, &count) != LAPROX_OK) continue;
    for (size_t j = 0; j < count; j++) {
      if (texts[j].data[texts[j].bytes] != '\0') abort();
    }
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  unsigned n_errors = 0;
  laprox_host host = {.message = fuzz_count_error, .message_user = &n_errors};
  lpx_gguf *file;
  fuzz_write(PATH, data, size);
  laprox_result result = lpx_gguf_open(&host, PATH, &file);
  fuzz_check(result, n_errors);
  if (result != LAPROX_OK) return 0;
  read_metadata(file);
  for (size_t i = 0; i < lpx_gguf_count(file); i++) {
    const lpx_gguf_tensor *tensor = lpx_gguf_tensor_at(file, i);
    if (tensor->bytes > size || lpx_gguf_find(file, tensor->name) != tensor) abort();
    void *to = malloc((size_t)tensor->bytes + 1);
    if (!to || lpx_gguf_read_all(file, tensor, to) != LAPROX_OK) abort();
    free(to);
  }
  lpx_gguf_close(file);
  return 0;
}
