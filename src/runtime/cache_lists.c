/* cache_lists.c: which entries a cache holds, as tensors of a file. */
#include "runtime/cache.h"

#include <stdio.h>

static uint32_t layer_rows(const lpx_cache *cache, uint32_t layer) {
  return cache->layers[layer].cu_seqlens[cache->shape.n_kv_heads] + cache->n_tail * cache->shape.n_kv_heads;
}

lpx_st_dtype lpx_cache_file_row(const lpx_cache *cache, uint64_t *n_columns) {
  const bool blocks = lpx_dtype_is_blocks(cache->dtype);
  *n_columns = blocks ? lpx_cache_row_bytes(cache) : cache->shape.head_dim;
  return blocks ? LPX_ST_U8 : lpx_st_from_dtype(cache->dtype);
}

laprox_result lpx_cache_declare_lists(const lpx_cache *cache, uint32_t layer, lpx_st_writer *writer) {
  const uint64_t n_offsets = (uint64_t)cache->shape.n_kv_heads + 1, n_rows = layer_rows(cache, layer);
  char name[64];
  (void)snprintf(name, sizeof name, "layers.%u.cu_seqlens", layer);
  const laprox_result result = lpx_st_writer_declare(writer, name, LPX_ST_I32, 1, &n_offsets);
  if (result) return result;
  (void)snprintf(name, sizeof name, "layers.%u.indices", layer);
  return lpx_st_writer_declare(writer, name, LPX_ST_I32, 1, &n_rows);
}

laprox_result lpx_cache_write_lists(const lpx_cache *cache, uint32_t layer, lpx_st_writer *writer) {
  const laprox_host *host = &cache->device->context->host;
  const size_t n_heads = cache->shape.n_kv_heads, n = n_heads + 1 + layer_rows(cache, layer);
  int32_t *words = lpx_allocate(host, n, sizeof *words);
  if (!words) return lpx_fail_memory(host, "a list of kept entries");
  int32_t *position = words + n_heads + 1;
  for (uint32_t head = 0; head < n_heads; head++) {
    const uint32_t n_entries = lpx_cache_head_entries(cache, layer, head);
    words[head + 1] = words[head] + (int32_t)n_entries;
    for (uint32_t i = 0; i < n_entries; i++) *position++ = (int32_t)lpx_cache_position(cache, layer, head, i);
  }
  const laprox_result result = lpx_st_writer_write(writer, words, n * sizeof *words);
  lpx_release(host, words);
  return result;
}
