/* session_compare.c: what an eviction does to attention, worked out plainly on the host. */
#include "runtime/session.h"

#include <math.h>
#include <string.h>

typedef struct comparison {
  const laprox_session *full, *evicted;
  const laprox_host *host;
  uint32_t n_tokens, n_queries;
  float *key, *value;          /* of the full cache, [n_kv_heads, n_tokens, head_dim] */
  float *query;                /* [window, n_heads, head_dim], as the ring has them */
  float *weight;               /* [model_dim, n_heads * head_dim] */
  bool *kept;                  /* [n_kv_heads, n_tokens] */
  double *shares;              /* of one query, n_tokens */
  double *output, *difference; /* of one query, n_heads * head_dim */
  double mass, error, norm;    /* sums over the layer's queries */
} comparison;

static laprox_result allocate(comparison *c) {
  const laprox_model *model = c->full->model;
  const laprox_shape *shape = &model->shape;
  const uint64_t rows = (uint64_t)shape->n_kv_heads * c->n_tokens,
                 width = (uint64_t)shape->n_heads * shape->head_dim;
  c->key = lpx_allocate(c->host, rows, shape->head_dim * sizeof *c->key);
  c->value = lpx_allocate(c->host, rows, shape->head_dim * sizeof *c->value);
  c->query = lpx_allocate(c->host, lpx_session_query_row_bytes(c->full) * c->full->info.window, 1);
  c->weight = lpx_allocate(c->host, width * model->model_dim, sizeof *c->weight);
  c->kept = lpx_allocate(c->host, rows, sizeof *c->kept);
  c->shares = lpx_allocate(c->host, c->n_tokens, sizeof *c->shares);
  c->output = lpx_allocate(c->host, width, sizeof *c->output);
  c->difference = lpx_allocate(c->host, width, sizeof *c->difference);
  const bool good = c->key && c->value && c->query && c->weight && c->kept && c->shares && c->output;
  return good && c->difference ? LAPROX_OK : lpx_fail_memory(c->host, "a comparison");
}

static void finish(comparison *c) {
  void *const memory[] = {c->key,  c->value,  c->query,  c->weight,
                          c->kept, c->shares, c->output, c->difference};
  for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) lpx_release(c->host, memory[i]);
}

/* ---- a layer's numbers ---- */

/* K or V of the full cache. */
static laprox_result read_rows(const comparison *c, uint32_t layer, bool is_value, float *to) {
  const lpx_cache *cache = &c->full->cache;
  const size_t n = (size_t)c->n_tokens * cache->shape.head_dim;
  uint8_t *rows = lpx_allocate(c->host, c->n_tokens, (size_t)lpx_cache_row_bytes(cache));
  if (!rows) return lpx_fail_memory(c->host, "a comparison");
  laprox_result result = LAPROX_OK;
  for (uint32_t head = 0; head < cache->shape.n_kv_heads && !result; head++) {
    result = lpx_cache_read_rows(cache, layer, head, is_value, rows);
    if (!result) lpx_to_f32(cache->dtype, rows, n, to + head * n);
  }
  lpx_release(c->host, rows);
  return result;
}

static laprox_result read_layer(comparison *c, uint32_t layer) {
  const laprox_session *full = c->full;
  const lpx_cache *evicted = &c->evicted->cache;
  laprox_result result = read_rows(c, layer, false, c->key);
  if (!result) result = read_rows(c, layer, true, c->value);
  if (!result)
    result = lpx_queue_download(full->device->queue, lpx_buffer_whole(&full->queries.rings[layer]), c->query,
                                (size_t)lpx_session_query_row_bytes(full) * full->info.window);
  if (!result) result = lpx_model_output_weight_f32(full->model, layer, c->weight);
  const uint32_t n_heads = evicted->shape.n_kv_heads;
  memset(c->kept, 0, (size_t)n_heads * c->n_tokens * sizeof *c->kept);
  for (uint32_t head = 0; head < n_heads; head++)
    for (uint32_t i = 0; i < lpx_cache_head_entries(evicted, layer, head); i++)
      c->kept[(size_t)head * c->n_tokens + lpx_cache_position(evicted, layer, head, i)] = true;
  return result;
}

/* ---- attention ---- */

/* One query of one head: its attention to the n entries it sees, and what is left of it. */
static void attend(comparison *c, const float *query, uint32_t head, uint32_t n, double *output,
                   double *difference) {
  const laprox_shape *shape = &c->full->model->shape;
  const size_t d = shape->head_dim, first = (size_t)head * c->n_tokens;
  double most = -INFINITY, all = 0, left = 0;
  for (uint32_t i = 0; i < n; i++) {
    double sum = 0;
    for (size_t x = 0; x < d; x++) sum += (double)query[x] * (double)c->key[(first + i) * d + x];
    c->shares[i] = sum / sqrt((double)d);
    if (c->shares[i] > most) most = c->shares[i];
  }
  for (uint32_t i = 0; i < n; i++) {
    c->shares[i] = exp(c->shares[i] - most);
    all += c->shares[i];
    if (c->kept[first + i]) left += c->shares[i];
  }
  memset(output, 0, d * sizeof *output);
  memset(difference, 0, d * sizeof *difference);
  for (uint32_t i = 0; i < n; i++) {
    const double share = c->shares[i] / all, other = c->kept[first + i] && left > 0 ? c->shares[i] / left : 0;
    const float *value = c->value + (first + i) * d;
    for (size_t x = 0; x < d; x++) {
      output[x] += share * (double)value[x];
      difference[x] += (other - share) * (double)value[x];
    }
  }
  c->mass += left / all;
}

/* |W x|², in the layer's output. */
static double projected(const comparison *c, const double *x, size_t width) {
  double sum = 0;
  for (uint32_t row = 0; row < c->full->model->model_dim; row++) {
    double dot = 0;
    for (size_t i = 0; i < width; i++) dot += (double)c->weight[row * width + i] * x[i];
    sum += dot * dot;
  }
  return sum;
}

static void compare_layer(comparison *c) {
  const laprox_shape *shape = &c->full->model->shape;
  const uint32_t window = c->full->info.window, group = shape->n_heads / shape->n_kv_heads;
  const size_t d = shape->head_dim, width = shape->n_heads * d;
  c->mass = c->error = c->norm = 0;
  for (uint32_t t = 0; t < c->n_queries; t++) {
    const uint32_t position = c->n_tokens - c->n_queries + t;
    const float *query = c->query + position % window * width;
    for (uint32_t head = 0; head < shape->n_heads; head++)
      attend(c, query + head * d, head / group, position + 1, c->output + head * d, c->difference + head * d);
    c->norm += projected(c, c->output, width);
    c->error += projected(c, c->difference, width);
  }
}

/* ---- all layers ---- */

static laprox_result check(const comparison *c) {
  const lpx_cache *full = &c->full->cache;
  if (!lpx_cache_is_whole(full))
    return lpx_fail(c->host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_session_compare: the first session does not hold all of its tokens any more");
  if (c->full->model != c->evicted->model || full->n_tokens != c->evicted->cache.n_tokens || !full->n_tokens)
    return lpx_fail(c->host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_session_compare: sessions of %u and %u tokens", full->n_tokens,
                    c->evicted->cache.n_tokens);
  return lpx_session_check_queries(c->full, c->n_queries);
}

laprox_result laprox_session_compare(const laprox_session *full, const laprox_session *evicted,
                                     laprox_attention_error *layers) {
  const uint32_t n_tokens = full->cache.n_tokens, window = full->info.window;
  comparison c = {.full = full,
                  .evicted = evicted,
                  .host = &full->context->host,
                  .n_tokens = n_tokens,
                  .n_queries = window < n_tokens ? window : n_tokens};
  laprox_result result = check(&c);
  if (!result) result = allocate(&c);
  for (uint32_t l = 0; l < full->model->shape.n_layers && !result; l++) {
    result = read_layer(&c, l);
    if (result) break;
    compare_layer(&c);
    layers[l].mass = c.mass / ((double)c.n_queries * full->model->shape.n_heads);
    layers[l].output = c.norm > 0 ? sqrt(c.error / c.norm) : 0;
  }
  finish(&c);
  return result;
}
