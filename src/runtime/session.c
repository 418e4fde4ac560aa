/* session.c: one sequence: prefill layer by layer, decode, evict. */
#include "runtime/session.h"

#include <string.h>

#define DEFAULT_WINDOW 32
#define DEFAULT_CHUNK  256

static laprox_result run_program(laprox_session *session) {
  laprox_result result = lpx_program_finish_building(session->program);
  if (!result) result = lpx_queue_run(session->device->queue, session->program, NULL);
  lpx_program_reset(session->program);
  return result;
}

/* ---- queries ---- */

uint64_t lpx_session_query_row_bytes(const laprox_session *session) {
  return (VkDeviceSize)session->model->shape.n_heads * session->model->shape.head_dim * sizeof(float);
}

uint64_t lpx_session_lse_bytes(const laprox_shape *shape, uint32_t window) {
  /* Layers begin where bindings may on every device. */
  return ((uint64_t)shape->n_heads * window * sizeof(float) + 255) / 256 * 256;
}

laprox_buffer lpx_session_lse(const laprox_session *session, uint32_t layer) {
  const laprox_shape *shape = &session->model->shape;
  const uint32_t window = session->info.window;
  return lpx_buffer_part(lpx_buffer_whole(&session->queries.lse),
                         layer * lpx_session_lse_bytes(shape, window),
                         (VkDeviceSize)shape->n_heads * window * sizeof(float));
}

laprox_result lpx_session_queries_init(const laprox_session *session, lpx_session_queries *out) {
  const laprox_shape *shape = &session->model->shape;
  const uint32_t window = session->info.window;
  *out = (lpx_session_queries){0};
  out->rings = lpx_allocate(&session->context->host, shape->n_layers, sizeof *out->rings);
  if (!out->rings) return lpx_fail_memory(&session->context->host, "queries");
  laprox_result result =
      lpx_buffer_init(session->context, LPX_MEMORY_DEVICE,
                      shape->n_layers * lpx_session_lse_bytes(shape, window), "softmax sums", &out->lse);
  for (uint32_t l = 0; l < shape->n_layers && !result; l++)
    result = lpx_buffer_init(session->context, LPX_MEMORY_DEVICE,
                             lpx_session_query_row_bytes(session) * window, "queries", &out->rings[l]);
  return result;
}

void lpx_session_queries_finish(laprox_session *session, lpx_session_queries *queries) {
  lpx_session_finish_array(session, queries->rings);
  lpx_buffer_finish(session->context, &queries->lse);
}

laprox_result lpx_session_queries_copy(laprox_session *session, const lpx_session_queries *from,
                                       lpx_session_queries *to) {
  for (uint32_t l = 0; l < session->model->shape.n_layers; l++)
    lpx_program_copy(session->program, lpx_buffer_whole(&from->rings[l]), lpx_buffer_whole(&to->rings[l]));
  lpx_program_copy(session->program, lpx_buffer_whole(&from->lse), lpx_buffer_whole(&to->lse));
  const laprox_result result = run_program(session);
  if (result) return result;
  to->first = from->first;
  to->sums = from->sums;
  return LAPROX_OK;
}

/* ---- creation ---- */

static laprox_result create_shared(laprox_session *session) {
  const laprox_model *model = session->model;
  lpx_session_shared *shared = lpx_allocate(&session->context->host, 1, sizeof *shared);
  if (!shared) return lpx_fail_memory(&session->context->host, "a session");
  shared->n_sharing = 1;
  session->shared = shared;
  const uint32_t n_rows = session->info.keep_logits ? session->info.chunk : 1;
  laprox_result result =
      lpx_buffer_init(session->context, LPX_MEMORY_DEVICE,
                      (VkDeviceSize)n_rows * model->n_vocab * sizeof(float), "logits", &shared->logits);
  if (!result)
    result = lpx_forward_init(model, session->info.kv_dtype, session->info.chunk, model->context_length,
                              &shared->forward);
  return result;
}

void lpx_session_finish_array(laprox_session *session, lpx_buffer *buffers) {
  for (uint32_t l = 0; buffers && l < session->model->shape.n_layers; l++)
    lpx_buffer_finish(session->context, &buffers[l]);
  lpx_release(&session->context->host, buffers);
}

static void release_shared(laprox_session *session) {
  lpx_session_shared *shared = session->shared;
  if (!shared || --shared->n_sharing) return;
  lpx_forward_finish(&shared->forward);
  lpx_buffer_finish(session->context, &shared->logits);
  for (int kind = 0; kind < LPX_N_FACTORS; kind++) lpx_session_finish_array(session, shared->factors[kind]);
  lpx_release(&session->context->host, shared);
}

static laprox_result create_buffers(laprox_session *session) {
  const laprox_model *model = session->model;
  const laprox_host *host = &session->context->host;
  session->logits = lpx_allocate(host, model->n_vocab, sizeof *session->logits);
  session->layers = lpx_allocate(host, model->shape.n_layers, sizeof *session->layers);
  if (!session->logits || !session->layers) return lpx_fail_memory(host, "a session");
  laprox_result result = lpx_replay_create(session->device->queue, "decode", &session->decode);
  if (!result)
    result = lpx_buffer_init(session->context, LPX_MEMORY_DEVICE,
                             (VkDeviceSize)model->model_dim * sizeof(float), "hidden row", &session->row);
  if (!result)
    result = lpx_buffer_init(session->context, LPX_MEMORY_READBACK,
                             (VkDeviceSize)model->n_vocab * sizeof(float), "logits", &session->read_logits);
  return result ? result : lpx_session_queries_init(session, &session->queries);
}

/* A large device has work for more rows at once; on others memory counts, and caches. */
static uint32_t default_chunk(const laprox_context *context) {
  return lpx_is_discrete(context) ? 4 * DEFAULT_CHUNK : DEFAULT_CHUNK;
}

laprox_result lpx_session_info_complete(const laprox_context *context, laprox_session_info *info,
                                        uint32_t head_dim) {
  const laprox_host *host = &context->host;
  if (!info->kv_dtype) info->kv_dtype = LAPROX_DTYPE_F16;
  if (!info->window) info->window = DEFAULT_WINDOW;
  if (!info->chunk) info->chunk = default_chunk(context);
  if (info->kv_dtype == LAPROX_DTYPE_BF16)
    return lpx_fail(host, LAPROX_ERROR_UNSUPPORTED,
                    "laprox_session_info: a cache of type BF16; there are F16, F32, Q8_0 and Q4_0");
  const laprox_result result = lpx_check_cache_dtype(host, "laprox_session_info", info->kv_dtype, head_dim);
  if (result) return result;
  if (info->window > 256)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_session_info: a window of %u tokens; 256 at most", info->window);
  if (info->chunk > 65536)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_session_info: chunks of %u tokens; 65,536 at most", info->chunk);
  return LAPROX_OK;
}

static laprox_session *allocate_session(laprox_model *model, const laprox_session_info *info) {
  laprox_session *session = lpx_allocate(&model->device->context->host, 1, sizeof *session);
  if (!session) return NULL;
  session->model = model;
  session->device = model->device;
  session->context = model->device->context;
  session->info = *info;
  return session;
}

laprox_result laprox_session_create(laprox_model *model, const laprox_session_info *given,
                                    laprox_session **out) {
  *out = NULL;
  const laprox_host *host = &model->device->context->host;
  laprox_session_info info = *given;
  laprox_result result = lpx_session_info_complete(model->device->context, &info, model->shape.head_dim);
  if (!result && !model->has_weights)
    result = lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "a session on a model without weights");
  if (result) return result;
  laprox_session *session = allocate_session(model, &info);
  if (!session) return lpx_fail_memory(host, "a session");
  result = lpx_program_create(session->context, "forward", &session->program);
  if (!result) result = create_shared(session);
  if (!result) result = create_buffers(session);
  if (!result) result = lpx_cache_init(session->device, &model->shape, info.kv_dtype, &session->cache);
  if (result) {
    laprox_session_destroy(session);
    return result;
  }
  *out = session;
  return LAPROX_OK;
}

void laprox_session_destroy(laprox_session *session) {
  if (!session) return;
  const laprox_host *host = &session->context->host;
  lpx_program_destroy(session->program);
  lpx_replay_destroy(session->decode);
  release_shared(session);
  lpx_cache_finish(&session->cache);
  lpx_session_queries_finish(session, &session->queries);
  lpx_buffer_finish(session->context, &session->row);
  lpx_buffer_finish(session->context, &session->read_logits);
  lpx_release(host, session->layers);
  lpx_release(host, session->logits);
  lpx_release(host, session->prompt_logits);
  lpx_release(host, session);
}

static laprox_result copy_state(const laprox_session *from, laprox_session *to) {
  const laprox_result result = lpx_session_queries_copy(to, &from->queries, &to->queries);
  if (result) return result;
  to->has_logits = from->has_logits;
  memcpy(to->logits, from->logits, from->model->n_vocab * sizeof *to->logits);
  return lpx_cache_copy(&from->cache, &to->cache);
}

laprox_result laprox_session_fork(const laprox_session *from, laprox_session **out) {
  *out = NULL;
  laprox_session *session = allocate_session(from->model, &from->info);
  if (!session) return lpx_fail_memory(&from->context->host, "a session");
  session->shared = from->shared;
  session->shared->n_sharing++;
  laprox_result result = lpx_program_create(session->context, "forward", &session->program);
  if (!result) result = create_buffers(session);
  if (!result) result = copy_state(from, session);
  if (result) {
    laprox_session_destroy(session);
    return result;
  }
  *out = session;
  return LAPROX_OK;
}

/* ---- forward ---- */

laprox_result lpx_session_check_tokens(const laprox_session *session, const uint32_t *tokens, size_t count) {
  const laprox_host *host = &session->context->host;
  const laprox_model *model = session->model;
  if (!count) return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "the prompt is empty");
  if (count > model->context_length || session->cache.n_tokens > model->context_length - (uint32_t)count)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "%zu tokens after %u exceed the model's context of %u tokens", count,
                    session->cache.n_tokens, model->context_length);
  for (size_t i = 0; i < count; i++)
    if (tokens[i] >= model->n_vocab)
      return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "token %zu is %u; the vocabulary has %u", i,
                      tokens[i], model->n_vocab);
  return LAPROX_OK;
}

/* A layer for rows [first, first + n_rows) of what is being read; `rows` are their hidden states. */
static lpx_forward_layer layer_step(const laprox_session *session, uint32_t layer, laprox_buffer rows,
                                    uint32_t first, uint32_t n_rows, uint32_t first_kept_query) {
  const lpx_cache_layer *cache = &session->cache.layers[layer];
  const uint32_t window = session->info.window, position = session->cache.n_tokens + first;
  lpx_forward_layer step = {.layer = layer,
                            .n_rows = n_rows,
                            .first_position = position,
                            .hidden = rows,
                            .prefix = lpx_cache_prefix(&session->cache, layer),
                            .key = lpx_buffer_whole(&cache->tail_key),
                            .value = lpx_buffer_whole(&cache->tail_value),
                            .head_rows = cache->tail_capacity,
                            .first_row = session->cache.n_tail + first};
  if (first_kept_query < position + n_rows) {
    const uint32_t from = first_kept_query > position ? first_kept_query : position;
    step.query_first = from - position;
    step.ring = lpx_buffer_whole(&session->queries.rings[layer]);
    step.ring_row = from % window;
    step.lse = lpx_session_lse(session, layer);
  }
  return step;
}

/* Reading that failed may have written queries of tokens that never counted over those of tokens that do. */
static void lose_queries(laprox_session *session, uint32_t count) {
  const uint32_t n_tokens = session->cache.n_tokens, window = session->info.window;
  const uint32_t lost = count < window ? count : window;
  if (n_tokens + lost > session->queries.first + window) session->queries.first = n_tokens + lost - window;
}

laprox_result lpx_session_check_queries(const laprox_session *session, uint32_t window) {
  const uint32_t n_tokens = session->cache.n_tokens;
  const uint32_t first = n_tokens > window ? n_tokens - window : 0;
  if (first >= session->queries.first) return LAPROX_OK;
  return lpx_fail(
      &session->context->host, LAPROX_ERROR_INVALID_ARGUMENT,
      "the queries of the last %u tokens are lost, because reading after them failed: %u tokens more must "
      "be read first",
      window, session->queries.first + window - n_tokens);
}

lpx_session_sums lpx_session_sums_after(const laprox_session *session, uint32_t count) {
  const uint32_t start = session->cache.n_tokens, chunk = session->info.chunk;
  if (!count) return session->queries.sums;
  /* A chunk of one row leaves no sums; for simplicity nothing is said of the others then. */
  if (chunk == 1 || count % chunk == 1) return (lpx_session_sums){0};
  lpx_session_sums sums = {.first = session->queries.sums.end == start ? session->queries.sums.first : start,
                           .last_layer_first = start,
                           .end = start + count};
  if (!session->info.keep_logits) sums.last_layer_first += (count - 1) / chunk * chunk;
  return sums;
}

static laprox_result report_progress(const laprox_session *session, double fraction) {
  const laprox_session_info *info = &session->info;
  if (!info->progress || info->progress(info->progress_user, "prefill", fraction)) return LAPROX_OK;
  return lpx_fail(&session->context->host, LAPROX_ERROR_CANCELLED, "the prefill was cancelled");
}

static laprox_buffer hidden_rows(const laprox_session *session, const lpx_buffer *hidden, uint32_t first,
                                 uint32_t n_rows) {
  const VkDeviceSize row_bytes = (VkDeviceSize)session->model->model_dim * sizeof(float);
  return lpx_buffer_part(lpx_buffer_whole(hidden), first * row_bytes, n_rows * row_bytes);
}

static laprox_result read_layers(laprox_session *session, const uint32_t *tokens, uint32_t count,
                                 const lpx_buffer *hidden, lpx_layerwise *layerwise) {
  const uint32_t n_layers = session->model->shape.n_layers, window = session->info.window;
  const uint32_t total = session->cache.n_tokens + count;
  const uint32_t first_kept_query =
      total - session->cache.n_tokens > window ? total - window : session->cache.n_tokens;
  const lpx_forward *forward = &session->shared->forward;
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < n_layers && !result; l++) {
    if (layerwise) result = lpx_layerwise_begin_layer(layerwise, l);
    for (uint32_t first = 0, end; first < count && !result; first = end) {
      end = count - first < session->info.chunk ? count : first + session->info.chunk;
      const laprox_buffer rows = hidden_rows(session, hidden, first, end - first);
      if (l == 0) lpx_forward_embed_append(session->program, forward, tokens + first, end - first, rows);
      const bool kv_only = l + 1 == n_layers && end < count && !session->info.keep_logits;
      lpx_forward_layer step = layer_step(session, l, rows, first, end - first, first_kept_query);
      step.kv_only = kv_only;
      lpx_forward_layer_append(session->program, forward, &step);
      result = run_program(session);
      if (!result) result = report_progress(session, ((double)l + (double)end / count) / n_layers);
    }
    if (layerwise && !result) result = lpx_layerwise_end_layer(layerwise, l);
  }
  return result;
}

/* Logits of hidden rows [first, first + n_rows) to host memory. */
static laprox_result read_logits(laprox_session *session, laprox_buffer rows, uint32_t n_rows, float *to) {
  const laprox_buffer logits = lpx_buffer_whole(&session->shared->logits);
  lpx_forward_logits_append(session->program, &session->shared->forward, rows, n_rows, logits);
  const laprox_result result = run_program(session);
  if (result) return result;
  return lpx_queue_download(session->device->queue, logits, to,
                            (size_t)n_rows * session->model->n_vocab * sizeof(float));
}

static laprox_result read_prompt_logits(laprox_session *session, const lpx_buffer *hidden, uint32_t count) {
  const laprox_host *host = &session->context->host;
  const uint32_t n_vocab = session->model->n_vocab;
  laprox_result result = LAPROX_OK;
  if (session->info.keep_logits) {
    lpx_release(host, session->prompt_logits);
    session->n_prompt_logits = 0;
    session->prompt_logits = lpx_allocate(host, (size_t)count * n_vocab, sizeof(float));
    if (!session->prompt_logits) return lpx_fail_memory(host, "the prompt's logits");
    for (uint32_t first = 0, n; first < count && !result; first += n) {
      n = count - first < session->info.chunk ? count - first : session->info.chunk;
      result = read_logits(session, hidden_rows(session, hidden, first, n), n,
                           session->prompt_logits + (size_t)first * n_vocab);
    }
    if (!result) session->n_prompt_logits = count;
  }
  if (!result) result = read_logits(session, hidden_rows(session, hidden, count - 1, 1), 1, session->logits);
  return result;
}

laprox_result lpx_session_prefill(laprox_session *session, const uint32_t *tokens, size_t n,
                                  lpx_layerwise *layerwise) {
  laprox_result result = lpx_session_check_tokens(session, tokens, n);
  if (result) return result;
  const uint32_t count = (uint32_t)n;
  lpx_buffer hidden = {0};
  session->has_logits = false;
  if (!layerwise) result = lpx_cache_reserve(&session->cache, count, true);
  if (!result)
    result = lpx_buffer_init(session->context, LPX_MEMORY_DEVICE,
                             (VkDeviceSize)count * session->model->model_dim * sizeof(float), "hidden states",
                             &hidden);
  if (!result) {
    result = read_layers(session, tokens, count, &hidden, layerwise);
    if (!result) result = read_prompt_logits(session, &hidden, count);
    if (result) lose_queries(session, count);
    /* Those of a cache that has been cut are not over what is left of it. */
    session->queries.sums =
        result || layerwise ? (lpx_session_sums){0} : lpx_session_sums_after(session, count);
  }
  lpx_program_reset(session->program);
  lpx_buffer_finish(session->context, &hidden);
  if (result) return result;
  if (layerwise)
    session->cache.n_tokens += count; /* what is kept of them stands in the prefix */
  else
    lpx_cache_advance(&session->cache, count);
  session->has_logits = true;
  return LAPROX_OK;
}

laprox_result laprox_session_prefill(laprox_session *session, const uint32_t *tokens, size_t n) {
  return lpx_session_prefill(session, tokens, n, NULL);
}

/* All of a token in one submit. */
static laprox_result run_token(laprox_session *session, uint32_t token) {
  const lpx_forward *forward = &session->shared->forward;
  const laprox_buffer row = lpx_buffer_whole(&session->row);
  const laprox_buffer logits =
      lpx_buffer_part(lpx_buffer_whole(&session->shared->logits), 0, session->model->n_vocab * sizeof(float));
  lpx_program *program = lpx_replay_begin(session->decode);
  for (uint32_t l = 0; l < session->model->shape.n_layers; l++)
    session->layers[l] = layer_step(session, l, row, 0, 1, session->cache.n_tokens);
  lpx_forward_token_append(program, forward, token, session->layers);
  lpx_forward_logits_append(program, forward, row, 1, logits);
  lpx_program_copy(program, logits, lpx_buffer_whole(&session->read_logits));
  return lpx_replay_run(session->decode);
}

laprox_result laprox_session_decode(laprox_session *session, uint32_t token) {
  laprox_result result = lpx_session_check_tokens(session, &token, 1);
  if (!result) result = lpx_cache_reserve(&session->cache, 1, false);
  if (result) return result;
  session->has_logits = false;
  result = run_token(session, token);
  if (result) {
    lose_queries(session, 1);
    return result;
  }
  memcpy(session->logits, session->read_logits.mapped, session->model->n_vocab * sizeof *session->logits);
  lpx_cache_advance(&session->cache, 1);
  session->has_logits = true;
  return LAPROX_OK;
}

const float *laprox_session_logits(const laprox_session *session) {
  return session->has_logits ? session->logits : NULL;
}

const float *laprox_session_prompt_logits(const laprox_session *session, size_t *count) {
  *count = session->n_prompt_logits;
  return session->prompt_logits;
}

laprox_result laprox_session_keep_logits(laprox_session *session, bool keep) {
  const VkDeviceSize row_bytes = (VkDeviceSize)session->model->n_vocab * sizeof(float);
  if (keep && lpx_buffer_whole(&session->shared->logits).size < session->info.chunk * row_bytes)
    return lpx_fail(&session->context->host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_session_keep_logits: the session was not created with keep_logits");
  session->info.keep_logits = keep;
  return LAPROX_OK;
}

void laprox_session_kept_positions(const laprox_session *session, uint32_t layer, uint32_t *positions) {
  const lpx_cache *cache = &session->cache;
  for (uint32_t head = 0; head < cache->shape.n_kv_heads; head++)
    for (uint32_t i = 0; i < lpx_cache_head_entries(cache, layer, head); i++)
      *positions++ = lpx_cache_position(cache, layer, head, i);
}
