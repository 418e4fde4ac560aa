/* evict_file.c: a policy over a captured cache, file to file. */
#include "evict/evict.h"
#include "io/safetensors.h"
#include "runtime/cache.h"
#include "runtime/parallel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct capture {
  laprox_device *device;
  laprox_context *context;
  const laprox_host *host;
  const laprox_evict_file_info *info;
  lpx_safetensors *file;
  laprox_shape shape;
  uint32_t n_tokens, window, model_dim;
  laprox_dtype dtype; /* of K and V */
  float scale;
  laprox_policy policy;
  lpx_cache cache;
  lpx_buffer *queries, *factors;
  float *scores;
} capture;

static laprox_result fail_shape(const capture *c, const lpx_st_tensor *tensor, const char *wanted) {
  char dims[128] = "";
  size_t used = 0;
  for (uint32_t i = 0; i < tensor->n_dims && used < sizeof dims; i++)
    used += (size_t)snprintf(dims + used, sizeof dims - used, "%s%llu", i ? ", " : "",
                             (unsigned long long)tensor->dims[i]);
  return lpx_fail(c->host, LAPROX_ERROR_FORMAT, "%s: tensor %s is %s [%s]; expected %s",
                  lpx_safetensors_path(c->file), tensor->name, tensor->dtype_name, dims, wanted);
}

/* layers.{layer}.{name}, of a type that caches have. */
static laprox_result find(const capture *c, uint32_t layer, const char *name, const lpx_st_tensor **out) {
  char full[64];
  (void)snprintf(full, sizeof full, "layers.%u.%s", layer, name);
  const laprox_result result = lpx_safetensors_get(c->file, full, out);
  if (result) return result;
  if (lpx_st_to_dtype((*out)->dtype) == LAPROX_DTYPE_AUTO) return fail_shape(c, *out, "F32, F16 or BF16");
  return LAPROX_OK;
}

static bool small(const lpx_st_tensor *tensor) {
  for (uint32_t i = 0; i < tensor->n_dims; i++)
    if (tensor->dims[i] == 0 || tensor->dims[i] > INT32_MAX) return false;
  return true;
}

/* The shape of the whole from layer 0. */
static laprox_result read_shape(capture *c) {
  const lpx_st_tensor *q, *k, *o;
  laprox_result result = find(c, 0, "q", &q);
  if (!result) result = find(c, 0, "k", &k);
  if (!result) result = find(c, 0, "o_proj", &o);
  if (result) return result;
  if (q->n_dims != 3 || !small(q)) return fail_shape(c, q, "[heads, window, head_dim]");
  if (k->n_dims != 3 || !small(k)) return fail_shape(c, k, "[KV heads, tokens, head_dim]");
  if (o->n_dims != 2 || !small(o)) return fail_shape(c, o, "[model_dim, heads * head_dim]");
  uint32_t n_layers = 0;
  for (size_t i = 0; i < lpx_safetensors_count(c->file); i++) {
    unsigned layer = 0;
    if (sscanf(lpx_safetensors_tensor(c->file, i)->name, "layers.%u.", &layer) == 1 && layer < 65536 &&
        layer >= n_layers)
      n_layers = layer + 1;
  }
  c->shape = (laprox_shape){.n_layers = n_layers,
                            .n_heads = (uint32_t)q->dims[0],
                            .n_kv_heads = (uint32_t)k->dims[0],
                            .head_dim = (uint32_t)k->dims[2]};
  c->window = (uint32_t)q->dims[1];
  c->n_tokens = (uint32_t)k->dims[1];
  c->model_dim = (uint32_t)o->dims[0];
  c->dtype = lpx_st_to_dtype(k->dtype);
  return lpx_shape_check(c->host, &c->shape);
}

static laprox_result check_tensor(const capture *c, uint32_t layer, const char *name, uint32_t n_dims,
                                  const uint64_t *dims, laprox_dtype dtype) {
  const lpx_st_tensor *tensor;
  const laprox_result result = find(c, layer, name, &tensor);
  if (result) return result;
  bool same = tensor->n_dims == n_dims && (!dtype || lpx_st_to_dtype(tensor->dtype) == dtype);
  for (uint32_t i = 0; i < n_dims && same; i++) same = tensor->dims[i] == dims[i];
  if (same) return LAPROX_OK;
  char wanted[128];
  if (n_dims == 3)
    (void)snprintf(wanted, sizeof wanted, "[%llu, %llu, %llu]%s%s, as in layer 0",
                   (unsigned long long)dims[0], (unsigned long long)dims[1], (unsigned long long)dims[2],
                   dtype ? " " : "", dtype ? laprox_dtype_name(dtype) : "");
  else
    (void)snprintf(wanted, sizeof wanted, "[%llu, %llu]", (unsigned long long)dims[0],
                   (unsigned long long)dims[1]);
  return fail_shape(c, tensor, wanted);
}

static laprox_result check_layers(const capture *c) {
  const laprox_shape *s = &c->shape;
  const uint64_t q[] = {s->n_heads, c->window, s->head_dim}, kv[] = {s->n_kv_heads, c->n_tokens, s->head_dim};
  const uint64_t o[] = {c->model_dim, (uint64_t)s->n_heads * s->head_dim};
  laprox_result result = LAPROX_OK;
  for (uint32_t l = 0; l < s->n_layers && !result; l++) {
    result = check_tensor(c, l, "q", 3, q, LAPROX_DTYPE_AUTO);
    if (!result) result = check_tensor(c, l, "k", 3, kv, c->dtype);
    if (!result) result = check_tensor(c, l, "v", 3, kv, c->dtype);
    if (!result) result = check_tensor(c, l, "o_proj", 2, o, LAPROX_DTYPE_AUTO);
  }
  return result;
}

static laprox_result read_scale(capture *c) {
  const char *text = lpx_safetensors_metadata(c->file, "scale");
  if (!text) return LAPROX_OK;
  char *end = NULL;
  c->scale = strtof(text, &end);
  if (end != text && !*end && isfinite(c->scale) && c->scale > 0.0f) return LAPROX_OK;
  return lpx_fail(c->host, LAPROX_ERROR_FORMAT, "%s: metadata scale \"%.40s\" is not a number above 0",
                  lpx_safetensors_path(c->file), text);
}

static laprox_result decide_window(capture *c) {
  c->policy = c->info->policy;
  if (!c->policy.window) c->policy.window = c->window;
  if (c->policy.window <= c->window) return LAPROX_OK;
  return lpx_fail(c->host, LAPROX_ERROR_INVALID_ARGUMENT,
                  "a window of %u tokens, but %s holds the queries of %u", c->policy.window,
                  lpx_safetensors_path(c->file), c->window);
}

/* A tensor as f32; *out belongs to the caller. */
static laprox_result read_f32(const capture *c, uint32_t layer, const char *name, float **out) {
  *out = NULL;
  const lpx_st_tensor *tensor;
  laprox_result result = find(c, layer, name, &tensor);
  if (result) return result;
  uint8_t *raw = lpx_allocate(c->host, tensor->bytes, 1);
  float *values = lpx_allocate(c->host, tensor->n_elements, sizeof *values);
  result =
      raw && values ? lpx_safetensors_read_all(c->file, tensor, raw) : lpx_fail_memory(c->host, tensor->name);
  if (!result) lpx_to_f32(lpx_st_to_dtype(tensor->dtype), raw, (size_t)tensor->n_elements, values);
  lpx_release(c->host, raw);
  if (result)
    lpx_release(c->host, values);
  else
    *out = values;
  return result;
}

static laprox_result upload_f32(const capture *c, const float *values, size_t bytes, const char *name,
                                lpx_buffer *out) {
  const laprox_result result = lpx_buffer_init(c->context, LPX_MEMORY_DEVICE, bytes, name, out);
  return result ? result : lpx_queue_upload(c->device->queue, lpx_buffer_whole(out), values, bytes);
}

/* Files hold queries head by head, the kernels read them token by token. */
static laprox_result upload_queries(capture *c, uint32_t layer) {
  float *q = NULL;
  laprox_result result = read_f32(c, layer, "q", &q);
  if (result) return result;
  const size_t n_heads = c->shape.n_heads, window = c->window, d = c->shape.head_dim;
  float *rows = lpx_allocate(c->host, n_heads * window * d, sizeof *rows);
  if (!rows) result = lpx_fail_memory(c->host, "queries");
  for (size_t head = 0; head < n_heads && rows; head++)
    for (size_t t = 0; t < window; t++)
      memcpy(rows + (t * n_heads + head) * d, q + (head * window + t) * d, d * sizeof *rows);
  if (!result)
    result = upload_f32(c, rows, n_heads * window * d * sizeof *rows, "queries", &c->queries[layer]);
  lpx_release(c->host, rows);
  lpx_release(c->host, q);
  return result;
}

static laprox_result upload_factor(capture *c, uint32_t layer, lpx_factor kind) {
  float *weight = NULL;
  laprox_result result = read_f32(c, layer, "o_proj", &weight);
  if (result) return result;
  if (kind == LPX_FACTOR_PROJECTION) {
    const size_t n = (size_t)c->model_dim * c->shape.n_heads * c->shape.head_dim;
    result = upload_f32(c, weight, n * sizeof *weight, "output projection", &c->factors[layer]);
    lpx_release(c->host, weight);
    return result;
  }
  const size_t bytes = laprox_value_factor_bytes(&c->shape, c->policy.gqa);
  float *factor = lpx_allocate(c->host, bytes, 1);
  result = factor ? lpx_value_factor(c->host, &c->shape, c->policy.gqa, c->model_dim, weight, factor,
                                     lpx_parallel_for_each)
                  : lpx_fail_memory(c->host, "a value factor");
  if (!result) result = upload_f32(c, factor, bytes, "value factor", &c->factors[layer]);
  lpx_release(c->host, factor);
  lpx_release(c->host, weight);
  return result;
}

static laprox_result upload_rows(capture *c, uint32_t layer, const char *name, lpx_buffer *to) {
  const lpx_st_tensor *tensor;
  laprox_result result = find(c, layer, name, &tensor);
  if (result) return result;
  uint8_t *raw = lpx_allocate(c->host, tensor->bytes, 1);
  if (!raw) return lpx_fail_memory(c->host, tensor->name);
  result = lpx_safetensors_read_all(c->file, tensor, raw);
  if (!result) result = lpx_queue_upload(c->device->queue, lpx_buffer_whole(to), raw, (size_t)tensor->bytes);
  lpx_release(c->host, raw);
  return result;
}

static laprox_result step(const capture *c, const char *what, uint32_t done, uint32_t all) {
  if (!c->info->progress || c->info->progress(c->info->progress_user, what, (double)done / all))
    return LAPROX_OK;
  return lpx_fail(c->host, LAPROX_ERROR_CANCELLED, "%s was cancelled", what);
}

static laprox_result upload(capture *c) {
  const uint32_t n_layers = c->shape.n_layers;
  lpx_rules rules;
  laprox_result result = lpx_rules_resolve(c->host, &c->policy, &rules);
  if (result) return result;
  const bool values = lpx_rules_factor(&rules), attention = lpx_rules_use_attention(&rules);
  result = lpx_cache_init(c->device, &c->shape, c->dtype, &c->cache);
  if (!result) result = lpx_cache_reserve(&c->cache, c->n_tokens, true);
  if (!result && attention) c->queries = lpx_allocate(c->host, n_layers, sizeof *c->queries);
  if (!result && values) c->factors = lpx_allocate(c->host, n_layers, sizeof *c->factors);
  if (!result && ((attention && !c->queries) || (values && !c->factors)))
    result = lpx_fail_memory(c->host, "a capture");
  for (uint32_t l = 0; l < n_layers && !result; l++) {
    result = upload_rows(c, l, "k", &c->cache.layers[l].tail_key);
    if (!result) result = upload_rows(c, l, "v", &c->cache.layers[l].tail_value);
    if (!result && attention) result = upload_queries(c, l);
    if (!result && values) result = upload_factor(c, l, lpx_rules_factor(&rules));
    if (!result) result = step(c, "upload", l + 1, n_layers);
  }
  if (!result) lpx_cache_advance(&c->cache, c->n_tokens);
  return result;
}

static laprox_result open_capture(capture *c) {
  laprox_result result = lpx_safetensors_open(c->host, c->info->input, &c->file);
  if (!result) result = read_shape(c);
  if (!result) result = check_layers(c);
  if (!result) result = read_scale(c);
  if (!result) result = decide_window(c);
  return result;
}

/* ---- output ---- */

static uint32_t layer_rows(const capture *c, uint32_t layer) {
  uint32_t n = 0;
  for (uint32_t head = 0; head < c->shape.n_kv_heads; head++)
    n += lpx_cache_head_entries(&c->cache, layer, head);
  return n;
}

static laprox_result declare(const capture *c, lpx_st_writer *writer, uint32_t layer, const char *name,
                             lpx_st_dtype dtype, uint32_t n_dims, const uint64_t *dims) {
  char full[64];
  (void)snprintf(full, sizeof full, "layers.%u.%s", layer, name);
  (void)c;
  return lpx_st_writer_declare(writer, full, dtype, n_dims, dims);
}

static laprox_result declare_layer(const capture *c, lpx_st_writer *writer, uint32_t layer) {
  const lpx_st_dtype dtype = lpx_st_from_dtype(c->dtype);
  const uint64_t rows[] = {layer_rows(c, layer), c->shape.head_dim};
  const uint64_t candidates = c->n_tokens > c->policy.window ? c->n_tokens - c->policy.window : 0;
  const uint64_t scores[] = {c->shape.n_kv_heads, candidates};
  laprox_result result = lpx_cache_declare_lists(&c->cache, layer, writer);
  if (!result) result = declare(c, writer, layer, "k", dtype, 2, rows);
  if (!result) result = declare(c, writer, layer, "v", dtype, 2, rows);
  if (!result && c->scores) result = declare(c, writer, layer, "scores", LPX_ST_F32, 2, scores);
  return result;
}

/* Rows of K or V; where everything was kept they are still the tail, as dense as the input was. */
static laprox_result write_rows(const capture *c, lpx_st_writer *writer, uint32_t layer,
                                const lpx_buffer *prefix, const lpx_buffer *tail) {
  const uint64_t bytes = layer_rows(c, layer) * lpx_cache_row_bytes(&c->cache);
  uint8_t *raw = lpx_allocate(c->host, bytes, 1);
  if (!raw) return lpx_fail_memory(c->host, "a layer");
  laprox_result result = lpx_queue_download(
      c->device->queue, lpx_buffer_whole(prefix->buffer ? prefix : tail), raw, (size_t)bytes);
  if (!result) result = lpx_st_writer_write(writer, raw, (size_t)bytes);
  lpx_release(c->host, raw);
  return result;
}

/* Sinks are no candidates; their columns hold 0. */
static laprox_result write_scores(const capture *c, lpx_st_writer *writer, uint32_t layer, uint32_t n_sinks) {
  const size_t n_columns = c->n_tokens - c->policy.window, n_candidates = n_columns - n_sinks;
  float *row = lpx_allocate(c->host, n_columns, sizeof *row);
  if (!row) return lpx_fail_memory(c->host, "scores");
  laprox_result result = LAPROX_OK;
  for (uint32_t head = 0; head < c->shape.n_kv_heads && !result; head++) {
    const size_t at = ((size_t)layer * c->shape.n_kv_heads + head) * n_candidates;
    memcpy(row + n_sinks, c->scores + at, n_candidates * sizeof *row);
    result = lpx_st_writer_write(writer, row, n_columns * sizeof *row);
  }
  lpx_release(c->host, row);
  return result;
}

static laprox_result write_layer(const capture *c, lpx_st_writer *writer, uint32_t layer, uint32_t n_sinks) {
  const lpx_cache_layer *from = &c->cache.layers[layer];
  laprox_result result = lpx_cache_write_lists(&c->cache, layer, writer);
  if (!result) result = write_rows(c, writer, layer, &from->prefix_key, &from->tail_key);
  if (!result) result = write_rows(c, writer, layer, &from->prefix_value, &from->tail_value);
  if (!result && c->scores) result = write_scores(c, writer, layer, n_sinks);
  return result;
}

static laprox_result write_output(const capture *c, uint32_t budget, lpx_st_writer *writer) {
  lpx_rules rules;
  laprox_result result = lpx_rules_resolve(c->host, &c->policy, &rules);
  lpx_rules_fit(&rules, budget);
  if (!result) result = lpx_st_writer_metadata(writer, "policy", laprox_policy_name(rules.kind));
  for (uint32_t l = 0; l < c->shape.n_layers && !result; l++) result = declare_layer(c, writer, l);
  for (uint32_t l = 0; l < c->shape.n_layers && !result; l++) {
    const uint32_t room = c->n_tokens - rules.window;
    result = write_layer(c, writer, l, rules.sinks < room ? rules.sinks : room);
    if (!result) result = step(c, "write", l + 1, c->shape.n_layers);
  }
  return result ? result : lpx_st_writer_commit(writer);
}

static laprox_result run(capture *c, laprox_evict_file_report *out) {
  lpx_st_writer *writer = NULL;
  laprox_result result = open_capture(c);
  if (!result) result = lpx_st_writer_create(c->host, c->info->output, &writer);
  const uint64_t start_ns = lpx_now_ns();
  if (!result) result = upload(c);
  out->upload_ms = (double)(lpx_now_ns() - start_ns) * 1e-6;
  const lpx_cache_eviction eviction = {.policy = &c->policy,
                                       .queries = c->queries,
                                       .query_rows = c->window,
                                       .query_end = 0,
                                       .factors = c->factors,
                                       .model_dim = c->model_dim,
                                       .scale = c->scale,
                                       .progress = c->info->progress,
                                       .progress_user = c->info->progress_user,
                                       .scores = c->info->scores ? &c->scores : NULL};
  if (!result) result = lpx_cache_evict(&c->cache, &eviction, &out->eviction);
  const uint64_t write_ns = lpx_now_ns();
  if (!result) result = write_output(c, out->eviction.budget, writer);
  out->download_ms = (double)(lpx_now_ns() - write_ns) * 1e-6;
  lpx_st_writer_destroy(writer);
  return result;
}

static laprox_result fill_report(const capture *c, laprox_evict_file_report *out) {
  out->shape = c->shape;
  out->n_tokens = c->n_tokens;
  out->window = c->policy.window;
  const uint32_t n_heads = c->shape.n_kv_heads;
  out->kept_per_head = lpx_allocate(c->host, c->shape.n_layers, n_heads * sizeof *out->kept_per_head);
  if (!out->kept_per_head) return lpx_fail_memory(c->host, "a report");
  for (uint32_t l = 0; l < c->shape.n_layers; l++)
    for (uint32_t head = 0; head < n_heads; head++)
      out->kept_per_head[l * n_heads + head] = lpx_cache_head_entries(&c->cache, l, head);
  return LAPROX_OK;
}

laprox_result laprox_evict_file(laprox_device *device, const laprox_evict_file_info *info,
                                laprox_evict_file_report *out) {
  *out = (laprox_evict_file_report){0};
  capture c = {.device = device, .context = device->context, .host = &device->context->host, .info = info};
  if (!info->input || !info->output)
    return lpx_fail(c.host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_evict_file_info: input or output is missing");
  laprox_result result = run(&c, out);
  if (!result) result = fill_report(&c, out);
  for (uint32_t l = 0; l < c.shape.n_layers; l++) {
    if (c.queries) lpx_buffer_finish(c.context, &c.queries[l]);
    if (c.factors) lpx_buffer_finish(c.context, &c.factors[l]);
  }
  lpx_release(c.host, c.queries);
  lpx_release(c.host, c.factors);
  lpx_release(c.host, c.scores);
  lpx_cache_finish(&c.cache);
  lpx_safetensors_close(c.file);
  if (result) laprox_evict_file_report_finish(device, out);
  return result;
}

void laprox_evict_file_report_finish(laprox_device *device, laprox_evict_file_report *report) {
  lpx_release(&device->context->host, report->kept_per_head);
  *report = (laprox_evict_file_report){0};
}
