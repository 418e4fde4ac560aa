/* session_cache_file.c: a sequence's state saved to safetensors, and loaded from a file that nobody trusts.
 */
#include "io/safetensors.h"
#include "runtime/fingerprint.h"
#include "runtime/session.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FORMAT      "laprox cache 1"
#define PIECE_BYTES ((size_t)1 << 20) /* of K or V that the host holds at a time */
#define MAX_WINDOW  256

static void layer_name(char name[64], uint32_t layer, const char *what) {
  (void)snprintf(name, 64, "layers.%u.%s", layer, what);
}

/* Attention adds up prefix and tail separately, so the same bits need the same two parts; and where nothing
 * has been evicted, a full tail becomes the prefix when it grows, so its room counts too. */
static uint32_t most_room(uint32_t n_tail) {
  return n_tail / 4 > 32 ? n_tail / 4 : 32;
}

/* ---- saving ---- */

static const char *scope_name(laprox_scope scope) {
  static const char *const names[] = {"auto", "global", "layer", "head", "token"};
  return names[scope];
}

static const char *gqa_name(laprox_gqa gqa) {
  static const char *const names[] = {"auto", "mean", "joint", "attention-mean"};
  return names[gqa];
}

/* Every AUTO decided. Shares in integers: printf's decimal point depends on the locale. */
static laprox_result describe_policy(const laprox_host *host, const laprox_policy *policy, char *text,
                                     size_t size) {
  lpx_rules rules;
  char budget[48] = "all";
  const laprox_result result = lpx_rules_resolve(host, policy, &rules);
  if (result) return result;
  if (!(policy->budget.share >= 0.0 && policy->budget.share <= 1.0))
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "budget share %g is not 0 to 1",
                    policy->budget.share);
  const uint64_t millionths = (uint64_t)(policy->budget.share * 1e6 + 0.5);
  if (policy->budget.tokens)
    (void)snprintf(budget, sizeof budget, "%u", policy->budget.tokens);
  else if (millionths)
    (void)snprintf(budget, sizeof budget, "%" PRIu64 ".%04" PRIu64 "%%", millionths / 10000,
                   millionths % 10000);
  (void)snprintf(
      text, size,
      "policy=%s budget=%s scope=%s window=%u sinks=%u floor=%u pool=%s:%u%s gqa=%s normalize=%s seed=%u",
      laprox_policy_name(rules.kind), budget, scope_name(rules.scope), rules.window, rules.sinks, rules.floor,
      rules.pool == LAPROX_POOL_MAX ? "max" : "avg", rules.pool_width,
      rules.pool_before ? " pool_before=on" : "", gqa_name(rules.gqa), rules.normalize ? "on" : "off",
      rules.seed);
  return LAPROX_OK;
}

/* Queries that the rings still hold, those of the last tokens. */
static uint32_t n_queries(const laprox_session *session) {
  const uint32_t n_tokens = session->cache.n_tokens, window = session->info.window;
  const uint32_t first = n_tokens > window ? n_tokens - window : 0;
  return n_tokens - (first > session->queries.first ? first : session->queries.first);
}

static laprox_result save_number(lpx_st_writer *writer, const char *key, uint32_t number) {
  char text[16];
  (void)snprintf(text, sizeof text, "%u", number);
  return lpx_st_writer_metadata(writer, key, text);
}

static laprox_result save_metadata(const laprox_session *session, const laprox_policy *policy,
                                   lpx_st_writer *writer) {
  const lpx_cache *cache = &session->cache;
  char text[256];
  uint64_t fingerprint;
  laprox_result result = lpx_model_fingerprint(session->model, &fingerprint);
  if (result) return result;
  (void)snprintf(text, sizeof text, "%016" PRIx64, fingerprint);
  result = lpx_st_writer_metadata(writer, "format", FORMAT);
  if (!result) result = lpx_st_writer_metadata(writer, "model", text);
  if (!result) result = lpx_st_writer_metadata(writer, "kv_dtype", laprox_dtype_name(cache->dtype));
  if (!result) result = save_number(writer, "n_tokens", cache->n_tokens);
  if (!result) result = save_number(writer, "n_tail", cache->n_tail);
  const uint32_t room = cache->n_tail ? cache->layers[0].tail_capacity - cache->n_tail : 0;
  const uint32_t most = most_room(cache->n_tail);
  if (!result) result = save_number(writer, "tail_room", room < most ? room : most);
  if (!result) result = save_number(writer, "window", n_queries(session));
  if (!result && policy) result = describe_policy(&session->context->host, policy, text, sizeof text);
  if (!result && policy) result = lpx_st_writer_metadata(writer, "policy", text);
  return result;
}

static laprox_result declare(const laprox_session *session, lpx_st_writer *writer) {
  const laprox_shape *shape = &session->cache.shape;
  uint64_t n_columns;
  const lpx_st_dtype dtype = lpx_cache_file_row(&session->cache, &n_columns);
  const uint64_t q[] = {shape->n_heads, n_queries(session), shape->head_dim};
  const uint64_t n_vocab = session->model->n_vocab;
  char name[64];
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < shape->n_layers && !result; l++) {
    uint64_t rows[] = {0, n_columns};
    for (uint32_t head = 0; head < shape->n_kv_heads; head++)
      rows[0] += lpx_cache_head_entries(&session->cache, l, head);
    layer_name(name, l, "k");
    result = lpx_st_writer_declare(writer, name, dtype, 2, rows);
    layer_name(name, l, "v");
    if (!result) result = lpx_st_writer_declare(writer, name, dtype, 2, rows);
    if (!result) result = lpx_cache_declare_lists(&session->cache, l, writer);
    layer_name(name, l, "q");
    if (!result) result = lpx_st_writer_declare(writer, name, LPX_ST_F32, 3, q);
  }
  return result ? result : lpx_st_writer_declare(writer, "logits", LPX_ST_F32, 1, &n_vocab);
}

static laprox_result save_range(const laprox_session *session, laprox_buffer range, uint8_t *piece,
                                lpx_st_writer *writer) {
  laprox_result result = LAPROX_OK;
  for (uint64_t done = 0, now; done < range.size && !result; done += now) {
    now = range.size - done < PIECE_BYTES ? range.size - done : PIECE_BYTES;
    result =
        lpx_queue_download(session->device->queue, lpx_buffer_part(range, done, now), piece, (size_t)now);
    if (!result) result = lpx_st_writer_write(writer, piece, (size_t)now);
  }
  return result;
}

static laprox_result save_rows(const laprox_session *session, uint32_t layer, bool is_value, uint8_t *piece,
                               lpx_st_writer *writer) {
  laprox_result result = LAPROX_OK;
  for (uint32_t head = 0; head < session->cache.shape.n_kv_heads; head++) {
    laprox_buffer parts[LPX_CACHE_PARTS];
    lpx_cache_find_rows(&session->cache, layer, head, is_value, parts);
    for (uint32_t i = 0; i < LPX_CACHE_PARTS && !result; i++)
      result = save_range(session, parts[i], piece, writer);
  }
  return result;
}

static laprox_result save_data(const laprox_session *session, lpx_st_writer *writer) {
  const laprox_host *host = &session->context->host;
  uint8_t *piece = lpx_allocate(host, PIECE_BYTES, 1);
  if (!piece) return lpx_fail_memory(host, "a cache to be saved");
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < session->cache.shape.n_layers && !result; l++) {
    result = save_rows(session, l, false, piece, writer);
    if (!result) result = save_rows(session, l, true, piece, writer);
    if (!result) result = lpx_cache_write_lists(&session->cache, l, writer);
    if (!result) result = lpx_session_write_queries(session, writer, l, n_queries(session));
  }
  lpx_release(host, piece);
  if (result) return result;
  return lpx_st_writer_write(writer, session->logits, session->model->n_vocab * sizeof *session->logits);
}

laprox_result laprox_session_save(const laprox_session *session, const laprox_policy *policy,
                                  const char *path) {
  const laprox_host *host = &session->context->host;
  if (!session->has_logits)
    return lpx_fail(
        host, LAPROX_ERROR_INVALID_ARGUMENT,
        "%s: nothing to be saved: the sequence has no logits, because nothing has been read or the "
        "last reading failed",
        path);
  lpx_st_writer *writer = NULL;
  laprox_result result = lpx_st_writer_create(host, path, &writer);
  if (!result) result = save_metadata(session, policy, writer);
  if (!result) result = declare(session, writer);
  if (!result) result = save_data(session, writer);
  if (!result) result = lpx_st_writer_commit(writer);
  lpx_st_writer_destroy(writer);
  return result;
}

/* ---- loading: what the file says ---- */

typedef struct loading {
  laprox_session *session;
  const laprox_host *host;
  lpx_safetensors *file;
  const char *path;
  uint32_t n_tokens, n_tail, tail_room, window;
  uint8_t *piece;
} loading;

static laprox_result read_text(const loading *load, const char *key, const char **out) {
  *out = lpx_safetensors_metadata(load->file, key);
  if (*out) return LAPROX_OK;
  return lpx_fail(load->host, LAPROX_ERROR_FORMAT, "%s: metadata '%s' is missing", load->path, key);
}

static laprox_result read_number(const loading *load, const char *key, uint32_t least, uint32_t most,
                                 uint32_t *out) {
  const char *text;
  uint64_t number = 0;
  size_t n = 0;
  const laprox_result result = read_text(load, key, &text);
  if (result) return result;
  for (; n < 10 && text[n] >= '0' && text[n] <= '9'; n++) number = number * 10 + (uint64_t)(text[n] - '0');
  if (n == 0 || text[n])
    return lpx_fail(load->host, LAPROX_ERROR_FORMAT, "%s: metadata '%s' is not a number", load->path, key);
  if (number < least || number > most)
    return lpx_fail(load->host, LAPROX_ERROR_FORMAT, "%s: metadata '%s' is %" PRIu64 ", must be %u to %u",
                    load->path, key, number, least, most);
  *out = (uint32_t)number;
  return LAPROX_OK;
}

static laprox_result check_model(const loading *load) {
  uint64_t fingerprint;
  char own[24];
  const char *text;
  laprox_result result = read_text(load, "format", &text);
  if (result) return result;
  if (strcmp(text, FORMAT) != 0)
    return lpx_fail(load->host, LAPROX_ERROR_FORMAT, "%s: metadata 'format' is not \"" FORMAT "\"",
                    load->path);
  result = read_text(load, "model", &text);
  if (!result) result = lpx_model_fingerprint(load->session->model, &fingerprint);
  if (result) return result;
  (void)snprintf(own, sizeof own, "%016" PRIx64, fingerprint);
  if (strcmp(text, own) != 0)
    return lpx_fail(load->host, LAPROX_ERROR_FORMAT,
                    "%s: the cache of another model: its fingerprint is not %s, that of %s", load->path, own,
                    lpx_gguf_path(load->session->model->file));
  return LAPROX_OK;
}

static laprox_result read_metadata(loading *load) {
  const laprox_session *session = load->session;
  const char *dtype, *own = laprox_dtype_name(session->cache.dtype);
  laprox_result result = check_model(load);
  if (!result) result = read_text(load, "kv_dtype", &dtype);
  if (!result && strcmp(dtype, own) != 0)
    result = lpx_fail(load->host, LAPROX_ERROR_FORMAT,
                      "%s: metadata 'kv_dtype' is not %s, the session's type", load->path, own);
  if (!result) result = read_number(load, "n_tokens", 1, INT32_MAX, &load->n_tokens);
  if (!result && load->n_tokens > session->model->context_length)
    result = lpx_fail(load->host, LAPROX_ERROR_UNSUPPORTED,
                      "%s: a sequence of %u tokens; the model's context is %u", load->path, load->n_tokens,
                      session->model->context_length);
  if (!result) result = read_number(load, "n_tail", 0, load->n_tokens, &load->n_tail);
  if (!result)
    result = read_number(load, "tail_room", 0, load->n_tail ? most_room(load->n_tail) : 0, &load->tail_room);
  const uint32_t most = load->n_tokens < MAX_WINDOW ? load->n_tokens : MAX_WINDOW;
  return result ? result : read_number(load, "window", 1, most, &load->window);
}

/* A tensor that is what it must be. */
static laprox_result find_tensor(const loading *load, const char *name, lpx_st_dtype dtype, uint32_t n_dims,
                                 const uint64_t *dims, const lpx_st_tensor **out) {
  laprox_result result = lpx_safetensors_get(load->file, name, out);
  if (result) return result;
  if ((*out)->dtype != dtype)
    return lpx_fail(load->host, LAPROX_ERROR_FORMAT, "%s: tensor '%s' has the wrong type %s", load->path,
                    name, (*out)->dtype_name);
  if ((*out)->n_dims != n_dims)
    return lpx_fail(load->host, LAPROX_ERROR_FORMAT, "%s: tensor '%s' has %u dimensions, must be %u",
                    load->path, name, (*out)->n_dims, n_dims);
  for (uint32_t i = 0; i < n_dims; i++)
    if ((*out)->dims[i] != dims[i])
      return lpx_fail(load->host, LAPROX_ERROR_FORMAT,
                      "%s: tensor '%s': dimension %u is %" PRIu64 ", must be %" PRIu64, load->path, name, i,
                      (*out)->dims[i], dims[i]);
  return LAPROX_OK;
}

static laprox_result read_tensor(const loading *load, const char *name, lpx_st_dtype dtype, uint32_t n_dims,
                                 const uint64_t *dims, void *to) {
  const lpx_st_tensor *tensor;
  const laprox_result result = find_tensor(load, name, dtype, n_dims, dims, &tensor);
  return result ? result : lpx_safetensors_read_all(load->file, tensor, to);
}

/* ---- loading: which entries there are ---- */

/* Entries of every head ascend, and end with the tail's, which are those of the last tokens. */
static laprox_result check_positions(const loading *load, uint32_t layer, uint32_t head,
                                     const int32_t *positions, size_t n) {
  int64_t previous = -1;
  for (size_t i = 0; i < n; i++) {
    if (positions[i] <= previous || positions[i] >= (int64_t)load->n_tokens)
      return lpx_fail(
          load->host, LAPROX_ERROR_FORMAT,
          "%s: tensor 'layers.%u.indices': position %d of entry %zu of KV head %u must be %" PRId64 " to %u",
          load->path, layer, positions[i], i, head, previous + 1, load->n_tokens - 1);
    previous = positions[i];
  }
  const uint32_t n_last = load->n_tail ? load->n_tail : 1;
  if (positions[n - n_last] == (int64_t)load->n_tokens - n_last && previous == (int64_t)load->n_tokens - 1)
    return LAPROX_OK;
  return lpx_fail(load->host, LAPROX_ERROR_FORMAT,
                  "%s: tensor 'layers.%u.indices': KV head %u lacks some of the last %u of %u tokens",
                  load->path, layer, head, n_last, load->n_tokens);
}

/* Every layer has a prefix or none has, as in any cache: attention asks the first layer. */
static laprox_result read_offsets(const loading *load, uint32_t layer) {
  const lpx_cache *cache = &load->session->cache;
  lpx_cache_layer *to = &cache->layers[layer];
  const uint64_t n = (uint64_t)cache->shape.n_kv_heads + 1;
  char name[64];
  layer_name(name, layer, "cu_seqlens");
  int32_t *offsets = lpx_allocate(load->host, (size_t)n, sizeof *offsets);
  if (!offsets) return lpx_fail_memory(load->host, name);
  laprox_result result = read_tensor(load, name, LPX_ST_I32, 1, &n, offsets);
  const uint32_t most = load->n_tokens, least = load->n_tail < most ? load->n_tail + 1 : most;
  for (uint32_t head = 0; head + 1 < n && !result; head++) {
    const int64_t rows = (int64_t)offsets[head + 1] - offsets[head];
    if (offsets[0] || rows < least || rows > most) {
      result = lpx_fail(load->host, LAPROX_ERROR_FORMAT,
                        "%s: tensor '%s': KV head %u is from %d to %d: heads begin at 0 and have %u to %u "
                        "entries",
                        load->path, name, head, offsets[head], offsets[head + 1], least, most);
      break;
    }
    to->head_rows[head] = (uint32_t)rows - load->n_tail;
    to->cu_seqlens[head + 1] = to->cu_seqlens[head] + to->head_rows[head];
  }
  lpx_release(load->host, offsets);
  return result;
}

static uint64_t layer_rows(const loading *load, uint32_t layer) {
  const lpx_cache *cache = &load->session->cache;
  const uint64_t n_heads = cache->shape.n_kv_heads;
  return cache->layers[layer].cu_seqlens[n_heads] + n_heads * load->n_tail;
}

/* Positions of the prefix are kept only where some are missing. */
static laprox_result keep_positions(const loading *load, uint32_t layer, const int32_t *positions) {
  const lpx_cache *cache = &load->session->cache;
  lpx_cache_layer *to = &cache->layers[layer];
  const uint32_t n_heads = cache->shape.n_kv_heads, in_prefix = to->cu_seqlens[n_heads];
  if (in_prefix == (uint64_t)n_heads * (load->n_tokens - load->n_tail)) return LAPROX_OK;
  to->positions = lpx_allocate(load->host, in_prefix, sizeof *to->positions);
  if (!to->positions) return lpx_fail_memory(load->host, "positions");
  for (uint32_t head = 0; head < n_heads; head++) {
    for (uint32_t row = 0; row < to->head_rows[head]; row++)
      to->positions[to->cu_seqlens[head] + row] = (uint32_t)positions[row];
    positions += to->head_rows[head] + load->n_tail;
  }
  return LAPROX_OK;
}

static laprox_result read_lists(const loading *load, uint32_t layer) {
  const lpx_cache *cache = &load->session->cache;
  const lpx_cache_layer *to = &cache->layers[layer];
  char name[64];
  laprox_result result = read_offsets(load, layer);
  if (result) return result;
  const uint64_t n = layer_rows(load, layer);
  const lpx_st_tensor *tensor;
  layer_name(name, layer, "indices");
  result = find_tensor(load, name, LPX_ST_I32, 1, &n, &tensor);
  if (result) return result;
  int32_t *positions = lpx_allocate(load->host, (size_t)n, sizeof *positions);
  if (!positions) return lpx_fail_memory(load->host, name);
  result = lpx_safetensors_read_all(load->file, tensor, positions);
  const int32_t *own = positions;
  for (uint32_t head = 0; head < cache->shape.n_kv_heads && !result; head++) {
    const uint32_t n_entries = to->head_rows[head] + load->n_tail;
    result = check_positions(load, layer, head, own, n_entries);
    own += n_entries;
  }
  if (!result) result = keep_positions(load, layer, positions);
  lpx_release(load->host, positions);
  return result;
}

/* ---- loading: rows and queries ---- */

static laprox_result allocate_rows(const loading *load, uint32_t layer) {
  const lpx_cache *cache = &load->session->cache;
  laprox_context *context = load->session->context;
  lpx_cache_layer *to = &cache->layers[layer];
  const uint32_t n_heads = cache->shape.n_kv_heads;
  const uint64_t row_bytes = lpx_cache_row_bytes(cache), prefix_bytes = to->cu_seqlens[n_heads] * row_bytes;
  laprox_result result = LAPROX_OK;
  if (prefix_bytes) {
    result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, prefix_bytes, "loaded K", &to->prefix_key);
    if (!result)
      result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, prefix_bytes, "loaded V", &to->prefix_value);
  }
  if (!load->n_tail || result) return result;
  const uint32_t capacity = load->n_tail + load->tail_room;
  const uint64_t tail_bytes = row_bytes * n_heads * capacity;
  result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, tail_bytes, "KV cache", &to->tail_key);
  if (!result) result = lpx_buffer_init(context, LPX_MEMORY_DEVICE, tail_bytes, "KV cache", &to->tail_value);
  if (!result) to->tail_capacity = capacity;
  return result;
}

static laprox_result load_range(const loading *load, const lpx_st_tensor *tensor, uint64_t offset,
                                laprox_buffer range) {
  laprox_result result = LAPROX_OK;
  for (uint64_t done = 0, now; done < range.size && !result; done += now) {
    now = range.size - done < PIECE_BYTES ? range.size - done : PIECE_BYTES;
    result = lpx_safetensors_read(load->file, tensor, offset + done, (size_t)now, load->piece);
    if (!result)
      result = lpx_queue_upload(load->session->device->queue, lpx_buffer_part(range, done, now), load->piece,
                                (size_t)now);
  }
  return result;
}

static laprox_result load_rows(const loading *load, uint32_t layer, bool is_value) {
  const lpx_cache *cache = &load->session->cache;
  uint64_t dims[] = {layer_rows(load, layer), 0};
  const lpx_st_dtype dtype = lpx_cache_file_row(cache, &dims[1]);
  const lpx_st_tensor *tensor;
  char name[64];
  layer_name(name, layer, is_value ? "v" : "k");
  laprox_result result = find_tensor(load, name, dtype, 2, dims, &tensor);
  uint64_t offset = 0;
  for (uint32_t head = 0; head < cache->shape.n_kv_heads; head++) {
    laprox_buffer parts[LPX_CACHE_PARTS];
    lpx_cache_find_rows(cache, layer, head, is_value, parts);
    for (uint32_t i = 0; i < LPX_CACHE_PARTS && !result; i++) {
      result = load_range(load, tensor, offset, parts[i]);
      offset += parts[i].size;
    }
  }
  return result;
}

/* From head by head to the ring's order; of more queries than the ring has rows, the last ones. */
static laprox_result load_queries(const loading *load, uint32_t layer) {
  const laprox_session *session = load->session;
  const size_t n_heads = session->cache.shape.n_heads, d = session->cache.shape.head_dim;
  const uint64_t dims[] = {n_heads, load->window, d};
  const size_t ring_rows = session->info.window;
  char name[64];
  layer_name(name, layer, "q");
  float *heads = lpx_allocate(load->host, load->window * n_heads, d * sizeof *heads),
        *ring = lpx_allocate(load->host, ring_rows * n_heads, d * sizeof *ring);
  laprox_result result = heads && ring ? LAPROX_OK : lpx_fail_memory(load->host, "queries");
  if (!result) result = read_tensor(load, name, LPX_ST_F32, 3, dims, heads);
  for (size_t t = 0; t < load->window && !result; t++) {
    const size_t row = (load->n_tokens - load->window + t) % ring_rows;
    for (size_t head = 0; head < n_heads; head++)
      memcpy(ring + (row * n_heads + head) * d, heads + (head * load->window + t) * d, d * sizeof *ring);
  }
  if (!result)
    result = lpx_queue_upload(session->device->queue, lpx_buffer_whole(&session->queries.rings[layer]), ring,
                              ring_rows * n_heads * d * sizeof *ring);
  lpx_release(load->host, heads);
  lpx_release(load->host, ring);
  return result;
}

static laprox_result load_layers(const loading *load) {
  lpx_cache *cache = &load->session->cache;
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < cache->shape.n_layers && !result; l++) {
    result = read_lists(load, l);
    if (!result) result = allocate_rows(load, l);
    lpx_cache_count_bytes(cache);
    if (!result) result = load_rows(load, l, false);
    if (!result) result = load_rows(load, l, true);
    if (!result) result = load_queries(load, l);
  }
  return result;
}

static laprox_result load_session(loading *load) {
  laprox_session *session = load->session;
  const uint64_t n_vocab = session->model->n_vocab;
  laprox_result result = read_metadata(load);
  if (result) return result;
  load->piece = lpx_allocate(load->host, PIECE_BYTES, 1);
  if (!load->piece) return lpx_fail_memory(load->host, "a cache to be loaded");
  lpx_cache_clear(&session->cache); /* a reading that failed may have left room for its tokens */
  session->cache.n_tail = load->n_tail;
  result = load_layers(load);
  if (!result) result = read_tensor(load, "logits", LPX_ST_F32, 1, &n_vocab, session->logits);
  lpx_release(load->host, load->piece);
  if (result) {
    lpx_cache_clear(&session->cache);
    return result;
  }
  const uint32_t n_held = load->window < session->info.window ? load->window : session->info.window;
  session->cache.n_tokens = load->n_tokens;
  session->queries.first = load->n_tokens - n_held;
  session->queries.sums = (lpx_session_sums){0};
  session->has_logits = true;
  return LAPROX_OK;
}

laprox_result laprox_session_load(laprox_session *session, const char *path) {
  loading load = {.session = session, .host = &session->context->host, .path = path};
  if (session->cache.n_tokens)
    return lpx_fail(load.host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "%s: to be loaded into a session that has read %u tokens", path, session->cache.n_tokens);
  laprox_result result = lpx_safetensors_open(load.host, path, &load.file);
  if (!result) result = load_session(&load);
  lpx_safetensors_close(load.file);
  return result;
}
