/* session_files.c: captures, kept entries and logits as safetensors. */
#include "io/safetensors.h"
#include "runtime/session.h"

#include <stdio.h>
#include <string.h>

static laprox_result declare(lpx_st_writer *writer, uint32_t layer, const char *name, lpx_st_dtype dtype,
                             uint32_t n_dims, const uint64_t *dims) {
  char full[64];
  (void)snprintf(full, sizeof full, "layers.%u.%s", layer, name);
  return lpx_st_writer_declare(writer, full, dtype, n_dims, dims);
}

/* ---- captures ---- */

static uint32_t capture_window(const laprox_session *session) {
  return session->info.window < session->cache.n_tokens ? session->info.window : session->cache.n_tokens;
}

static laprox_result declare_capture(const laprox_session *session, lpx_st_writer *writer) {
  const laprox_shape *shape = &session->cache.shape;
  const uint64_t q[] = {shape->n_heads, capture_window(session), shape->head_dim};
  const uint64_t kv[] = {shape->n_kv_heads, session->cache.n_tokens, shape->head_dim};
  const uint64_t o[] = {session->model->model_dim, (uint64_t)shape->n_heads * shape->head_dim};
  const laprox_dtype own = session->cache.dtype;
  const lpx_st_dtype dtype = lpx_dtype_is_blocks(own) ? LPX_ST_F32 : lpx_st_from_dtype(own);
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < shape->n_layers && !result; l++) {
    result = declare(writer, l, "q", LPX_ST_F32, 3, q);
    if (!result) result = declare(writer, l, "k", dtype, 3, kv);
    if (!result) result = declare(writer, l, "v", dtype, 3, kv);
    if (!result) result = declare(writer, l, "o_proj", LPX_ST_F32, 2, o);
  }
  return result;
}

laprox_result lpx_session_write_queries(const laprox_session *session, lpx_st_writer *writer, uint32_t layer,
                                        uint32_t window) {
  const laprox_host *host = &session->context->host;
  const size_t n_heads = session->cache.shape.n_heads, d = session->cache.shape.head_dim;
  const size_t ring_rows = session->info.window, n = ring_rows * n_heads * d;
  float *ring = lpx_allocate(host, n, sizeof *ring),
        *head_rows = lpx_allocate(host, window * d, sizeof *head_rows);
  laprox_result result = ring && head_rows ? LAPROX_OK : lpx_fail_memory(host, "queries");
  if (!result)
    result = lpx_queue_download(session->device->queue, lpx_buffer_whole(&session->queries.rings[layer]),
                                ring, n * sizeof *ring);
  for (size_t head = 0; head < n_heads && !result; head++) {
    for (size_t t = 0; t < window; t++) {
      const size_t row = (session->cache.n_tokens - window + t) % ring_rows;
      memcpy(head_rows + t * d, ring + (row * n_heads + head) * d, d * sizeof *ring);
    }
    result = lpx_st_writer_write(writer, head_rows, window * d * sizeof *head_rows);
  }
  lpx_release(host, ring);
  lpx_release(host, head_rows);
  return result;
}

/* Rows as the cache holds them; blocks as what they stand for. */
static laprox_result write_head(const laprox_session *session, lpx_st_writer *writer, const uint8_t *rows,
                                size_t bytes) {
  const lpx_cache *cache = &session->cache;
  if (!lpx_dtype_is_blocks(cache->dtype)) return lpx_st_writer_write(writer, rows, bytes);
  const laprox_host *host = &session->context->host;
  const size_t n = bytes / (size_t)lpx_cache_row_bytes(cache) * cache->shape.head_dim;
  float *values = lpx_allocate(host, n, sizeof *values);
  if (!values) return lpx_fail_memory(host, "a capture");
  lpx_to_f32(cache->dtype, rows, n, values);
  const laprox_result result = lpx_st_writer_write(writer, values, n * sizeof *values);
  lpx_release(host, values);
  return result;
}

/* K or V of a cache that has never been evicted. */
static laprox_result write_rows(const laprox_session *session, lpx_st_writer *writer, uint32_t layer,
                                bool is_value) {
  const lpx_cache *cache = &session->cache;
  const size_t row_bytes = (size_t)lpx_cache_row_bytes(cache);
  uint8_t *rows = lpx_allocate(&session->context->host, cache->n_tokens, row_bytes);
  if (!rows) return lpx_fail_memory(&session->context->host, "a capture");
  laprox_result result = LAPROX_OK;
  for (uint32_t head = 0; head < cache->shape.n_kv_heads && !result; head++) {
    result = lpx_cache_read_rows(cache, layer, head, is_value, rows);
    if (!result) result = write_head(session, writer, rows, cache->n_tokens * row_bytes);
  }
  lpx_release(&session->context->host, rows);
  return result;
}

static laprox_result write_output_weight(const laprox_session *session, lpx_st_writer *writer,
                                         uint32_t layer) {
  const laprox_shape *shape = &session->cache.shape;
  const size_t n = (size_t)session->model->model_dim * shape->n_heads * shape->head_dim;
  float *weight = lpx_allocate(&session->context->host, n, sizeof *weight);
  if (!weight) return lpx_fail_memory(&session->context->host, "an output projection");
  laprox_result result = lpx_model_output_weight_f32(session->model, layer, weight);
  if (!result) result = lpx_st_writer_write(writer, weight, n * sizeof *weight);
  lpx_release(&session->context->host, weight);
  return result;
}

static laprox_result check_capture(const laprox_session *session) {
  const laprox_host *host = &session->context->host;
  if (!session->cache.n_tokens)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "a capture of a session that has read nothing");
  if (!lpx_cache_is_whole(&session->cache))
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "a capture of a cache that has been evicted");
  return lpx_session_check_queries(session, capture_window(session));
}

laprox_result laprox_session_capture(const laprox_session *session, const char *path) {
  lpx_st_writer *writer = NULL;
  laprox_result result = check_capture(session);
  if (!result) result = lpx_st_writer_create(&session->context->host, path, &writer);
  if (!result) result = declare_capture(session, writer);
  for (uint32_t l = 0; l < session->cache.shape.n_layers && !result; l++) {
    result = lpx_session_write_queries(session, writer, l, capture_window(session));
    if (!result) result = write_rows(session, writer, l, false);
    if (!result) result = write_rows(session, writer, l, true);
    if (!result) result = write_output_weight(session, writer, l);
  }
  if (!result) result = lpx_st_writer_commit(writer);
  lpx_st_writer_destroy(writer);
  return result;
}

/* ---- kept entries ---- */

laprox_result laprox_session_dump_kept(const laprox_session *session, const char *path) {
  lpx_st_writer *writer = NULL;
  laprox_result result = lpx_st_writer_create(&session->context->host, path, &writer);
  for (uint32_t l = 0; l < session->cache.shape.n_layers && !result; l++)
    result = lpx_cache_declare_lists(&session->cache, l, writer);
  for (uint32_t l = 0; l < session->cache.shape.n_layers && !result; l++)
    result = lpx_cache_write_lists(&session->cache, l, writer);
  if (!result) result = lpx_st_writer_commit(writer);
  lpx_st_writer_destroy(writer);
  return result;
}

/* ---- logits ---- */

laprox_result laprox_session_dump_logits(const laprox_session *session, const char *path) {
  const bool all = session->n_prompt_logits;
  const float *logits = all ? session->prompt_logits : session->logits;
  const uint64_t dims[] = {all ? session->n_prompt_logits : 1, session->model->n_vocab};
  if (!session->has_logits)
    return lpx_fail(&session->context->host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "logits of a session that has read nothing");
  lpx_st_writer *writer = NULL;
  laprox_result result = lpx_st_writer_create(&session->context->host, path, &writer);
  if (!result) result = lpx_st_writer_declare(writer, "logits", LPX_ST_F32, 2, dims);
  if (!result) result = lpx_st_writer_write(writer, logits, (size_t)(dims[0] * dims[1]) * sizeof *logits);
  if (!result) result = lpx_st_writer_commit(writer);
  lpx_st_writer_destroy(writer);
  return result;
}
