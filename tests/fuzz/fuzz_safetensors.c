/* fuzz_safetensors.c: opens a safetensors file of any bytes and reads all tensors. */
#include "fuzz/fuzz.h"
#include "io/safetensors.h"

#define PATH "fuzz_safetensors.tmp"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  unsigned n_errors = 0;
  uint64_t total_bytes = 0;
  laprox_host host = {.message = fuzz_count_error, .message_user = &n_errors};
  lpx_safetensors *file;
  fuzz_write(PATH, data, size);
  laprox_result result = lpx_safetensors_open(&host, PATH, &file);
  fuzz_check(result, n_errors);
  if (result != LAPROX_OK) return 0;
  (void)lpx_safetensors_metadata(file, "scale");
  for (size_t i = 0; i < lpx_safetensors_count(file); i++) {
    const lpx_st_tensor *tensor = lpx_safetensors_tensor(file, i);
    total_bytes += tensor->bytes;
    if (total_bytes > size || lpx_safetensors_find(file, tensor->name) != tensor) abort();
    void *to = malloc((size_t)tensor->bytes + 1);
    if (!to || lpx_safetensors_read_all(file, tensor, to) != LAPROX_OK) abort();
    free(to);
  }
  lpx_safetensors_close(file);
  return 0;
}
