/* prefill.c: pipelines of the attention kernels, segments as bindings, and attention over chunks of a prompt.
 */
#include "attention/attention.h"

#include <math.h>

/* A dispatch does about this much, or what the device's others do, so that none is long. */
#define DISPATCH_COST (UINT64_C(1) << 30)

typedef struct prefill_push {
  uint32_t n_groups;
  uint32_t first_group;
  uint32_t n_rows, n_heads, query_heads, first_head;
  uint32_t head_rows;
  uint32_t n_visible, causal;
  uint32_t key_first, value_first;
  uint32_t state_first, carry;
  float scale;
} prefill_push;
_Static_assert(sizeof(prefill_push) == 56, "prefill.comp reads 14 words");

typedef struct lse_push {
  uint32_t n_groups, n_items, n_heads, state_first, ring_rows, ring_row;
} lse_push;
_Static_assert(sizeof(lse_push) == 24, "lse.comp reads 6 words");

static laprox_result check(laprox_context *context, const laprox_shape *shape, laprox_dtype cache_dtype) {
  if (cache_dtype == LAPROX_DTYPE_BF16)
    return lpx_fail(&context->host, LAPROX_ERROR_UNSUPPORTED, "attention over a cache of BF16");
  const laprox_result result = lpx_shape_check(&context->host, shape);
  return result ? result : lpx_check_cache_dtype(&context->host, "attention", cache_dtype, shape->head_dim);
}

/* ---- on cooperative matrices ---- */

/* What a workgroup takes: subgroups, each with a matrix of query rows, and keys at once. */
typedef struct matrix_tile {
  uint32_t n_subgroups, n_keys;
} matrix_tile;

enum { MAX_MATRIX_DIM = 128 };

/* Shared memory of prefill_matrix.comp. */
static uint32_t matrix_bytes(const lpx_attention *attention, const matrix_tile *tile) {
  const uint32_t rows = attention->context->matrix.m;
  const uint32_t probabilities = rows * (tile->n_keys * 2 + 16), matrix = rows * rows * 4;
  return 4 * tile->n_keys * (attention->shape.head_dim * 2 + 16) +
         tile->n_subgroups * ((probabilities > matrix ? probabilities : matrix) + 2 * rows * 4);
}

/* Devices that run shaders in software compile loops, not the same written out. */
static const char *matrix_shader(const laprox_context *context) {
  return lpx_is_software(context) ? "attention_prefill_matrix_rolled" : "attention_prefill_matrix";
}

/* The first tile that fits. Few subgroups, as a chunk of a prompt has few rows for a large device. */
static bool has_matrix(const lpx_attention *attention, matrix_tile *tile) {
  static const matrix_tile tiles[] = {{8, 32}, {4, 32}, {8, 16}, {4, 16}, {2, 16}};
  const laprox_context *context = attention->context;
  const uint32_t d = attention->shape.head_dim;
  if (attention->cache_dtype != LAPROX_DTYPE_F16 || d % 16 || d > MAX_MATRIX_DIM ||
      !lpx_has_square_matrices(context) || !context->matrix.half_sums ||
      !lpx_shader_usable(context, matrix_shader(context)))
    return false;
  for (size_t i = 0; i < sizeof tiles / sizeof *tiles; i++) {
    *tile = tiles[i];
    if (lpx_workgroup_fits(context, tile->n_subgroups, matrix_bytes(attention, tile))) return true;
  }
  return false;
}

static laprox_result choose_matrix(lpx_attention *attention) {
  const laprox_context *context = attention->context;
  const laprox_shape *shape = &attention->shape;
  matrix_tile tile;
  if (!has_matrix(attention, &tile))
    return lpx_fail(&context->host, LAPROX_ERROR_UNSUPPORTED,
                    "attention of prompts on matrices of %u x %u x %u, heads of %u", context->matrix.m,
                    context->matrix.n, context->matrix.k, shape->head_dim);
  const uint32_t n_invocations = tile.n_subgroups * context->subgroup_size;
  const uint32_t constants[] = {shape->head_dim,        shape->n_heads / shape->n_kv_heads,
                                context->matrix.m,      tile.n_keys,
                                context->subgroup_size, n_invocations,
                                n_invocations};
  attention->prefill_rows = tile.n_subgroups * context->matrix.m;
  attention->prefill_heads = shape->n_heads / shape->n_kv_heads;
  attention->prefill_on_matrix = true;
  attention->prefill_parts = 1;
  return lpx_pipeline_get(attention->context, matrix_shader(context), 4, constants, 7, &attention->prefill);
}

/* ---- variants ---- */

bool lpx_prefill_attention_has(const lpx_attention *attention, lpx_prefill_kind kind) {
  matrix_tile tile;
  if (kind == LPX_PREFILL_MATRIX) return has_matrix(attention, &tile);
  return kind != LPX_PREFILL_LARGE || lpx_large_tiles(attention->context);
}

laprox_result lpx_prefill_attention_choose(lpx_attention *attention, lpx_prefill_kind kind) {
  /* what a workgroup takes; head dimensions up to 64, 128 and 256 */
  static const struct {
    const char *shader;
    uint32_t n_rows, n_dims;
  } kernels[LPX_PREFILL_MATRIX][3] = {
      [LPX_PREFILL_SMALL] = {{"attention_prefill_64_small", 16, 64},
                             {"attention_prefill_128_small", 16, 128},
                             {"attention_prefill_128_small", 16, 128}},
      [LPX_PREFILL_MIDDLE] = {{"attention_prefill_64", 32, 64},
                              {"attention_prefill_128", 32, 128},
                              {"attention_prefill_128", 32, 128}},
      [LPX_PREFILL_LARGE] = {{"attention_prefill_64_large", 64, 64},
                             {"attention_prefill_128_large", 64, 128},
                             {"attention_prefill_256_large", 32, 256}},
      [LPX_PREFILL_DIRECT] = {{"attention_prefill_64_direct", 64, 64},
                              {"attention_prefill_128_direct", 64, 128},
                              {"attention_prefill_256_direct", 32, 256}},
  };
  if (kind == LPX_PREFILL_MATRIX) return choose_matrix(attention);
  const laprox_shape *shape = &attention->shape;
  const uint32_t size = shape->head_dim <= 64 ? 0 : shape->head_dim <= 128 ? 1 : 2;
  const uint32_t n_dims = kernels[kind][size].n_dims;
  const uint32_t constants[] = {(uint32_t)attention->cache_dtype, shape->head_dim,
                                shape->n_heads / shape->n_kv_heads};
  attention->prefill_rows = kernels[kind][size].n_rows;
  attention->prefill_heads = 1;
  attention->prefill_on_matrix = false;
  attention->prefill_parts = (shape->head_dim + n_dims - 1) / n_dims;
  return lpx_pipeline_get(attention->context, kernels[kind][size].shader, 4, constants, 3,
                          &attention->prefill);
}

/* The fastest. */
static lpx_prefill_kind best_kind(const lpx_attention *attention) {
  const laprox_context *context = attention->context;
  if (lpx_matrices_pay(context) && lpx_prefill_attention_has(attention, LPX_PREFILL_MATRIX))
    return LPX_PREFILL_MATRIX;
  if (lpx_is_software(context)) return LPX_PREFILL_DIRECT;
  return (lpx_prefill_kind)lpx_tile_size_of(context);
}

laprox_result lpx_attention_init(laprox_context *context, const laprox_shape *shape, laprox_dtype cache_dtype,
                                 lpx_attention *out) {
  *out = (lpx_attention){
      .context = context, .shape = *shape, .cache_dtype = cache_dtype, .query_heads = shape->n_heads};
  laprox_result result = check(context, shape, cache_dtype);
  if (result) return result;
  result = lpx_prefill_attention_choose(out, best_kind(out));
  if (!result) result = lpx_pipeline_get(context, "attention_lse", 2, NULL, 0, &out->lse);
  return result ? result : lpx_decode_attention_init(out);
}

lpx_attention_segment lpx_attention_dense(laprox_buffer key, laprox_buffer value, uint32_t head_rows,
                                          uint32_t n_rows) {
  return (lpx_attention_segment){.key = key, .value = value, .head_rows = head_rows, .n_rows = n_rows};
}

uint32_t lpx_attention_first_row(const lpx_attention_segment *segment, uint32_t head) {
  return segment->head_first_row ? segment->head_first_row[head] : head * segment->head_rows;
}

uint32_t lpx_attention_n_rows(const lpx_attention_segment *segment, uint32_t head) {
  return segment->head_n_rows ? segment->head_n_rows[head] : segment->n_rows;
}

laprox_buffer lpx_attention_rows(const lpx_attention *attention, laprox_buffer rows, uint64_t first,
                                 uint64_t count, uint32_t *first_element) {
  const uint64_t row_bytes = lpx_attention_row_bytes(attention);
  /* A head without entries still needs something to be bound. */
  return lpx_buffer_aligned_units(attention->context, lpx_dtype_unit(attention->cache_dtype), rows,
                                  count ? first * row_bytes : 0, (count ? count : 1) * row_bytes,
                                  first_element);
}

uint64_t lpx_attention_row_bytes(const lpx_attention *attention) {
  return laprox_dtype_bytes(attention->cache_dtype, attention->shape.head_dim);
}

uint32_t lpx_attention_heads_in_range(const lpx_attention *attention, const lpx_attention_segment *segment,
                                      uint32_t first) {
  const uint64_t row_bytes = lpx_attention_row_bytes(attention);
  const uint64_t room = lpx_buffer_units_room(attention->context, lpx_dtype_unit(attention->cache_dtype));
  const uint32_t begin = lpx_attention_first_row(segment, first);
  uint32_t n = 1;
  while (first + n < attention->shape.n_kv_heads) {
    const uint64_t end =
        (uint64_t)lpx_attention_first_row(segment, first + n) + lpx_attention_n_rows(segment, first + n);
    if ((end - begin) * row_bytes > room) break;
    n++;
  }
  return n;
}

float lpx_attention_scale(const lpx_attention *attention) {
  return (float)(1.4426950408889634 / sqrt((double)attention->shape.head_dim));
}

static VkDeviceSize rows_bytes(const laprox_shape *shape, uint32_t n_rows) {
  return (VkDeviceSize)n_rows * shape->n_heads * shape->head_dim * sizeof(float);
}

VkDeviceSize lpx_prefill_attention_bytes(const laprox_shape *shape, uint32_t n_rows) {
  return rows_bytes(shape, n_rows) + (VkDeviceSize)n_rows * shape->n_heads * 4 * sizeof(float);
}

/* Dispatches the groups of n_kv_heads heads in pieces of bounded cost. */
static void append_pieces(lpx_program *program, const lpx_attention *attention, const laprox_buffer *ranges,
                          prefill_push *push, uint32_t n_kv_heads) {
  const laprox_shape *shape = &attention->shape;
  const uint64_t n_rows = (uint64_t)push->n_rows * attention->prefill_heads;
  const uint64_t n_tiles = (n_rows + attention->prefill_rows - 1) / attention->prefill_rows;
  const uint64_t n_groups = n_tiles * attention->prefill_parts * n_kv_heads *
                            (shape->n_heads / shape->n_kv_heads / attention->prefill_heads);
  const uint64_t seen = (uint64_t)push->n_visible + (push->causal ? push->n_rows / 2 : 0);
  const uint64_t group_dims = shape->head_dim + shape->head_dim / attention->prefill_parts;
  const uint64_t group_cost = 2 * seen * attention->prefill_rows * group_dims /
                                  (attention->prefill_on_matrix ? LPX_MATRIX_FLOPS : 1) +
                              1;
  const uint64_t cost = attention->context->dispatch_cost;
  const uint64_t piece = (cost > DISPATCH_COST ? cost : DISPATCH_COST) / group_cost + 1;
  for (uint64_t first = 0; first < n_groups; first += piece) {
    const uint64_t now = n_groups - first < piece ? n_groups - first : piece;
    push->first_group = (uint32_t)first;
    lpx_program_dispatch(program, &attention->prefill, ranges, push, sizeof *push, now, now * group_cost);
    lpx_program_mark_step(program);
  }
}

static void append_segment(lpx_program *program, const lpx_attention *attention, prefill_push push,
                           laprox_buffer query, const lpx_attention_segment *segment, laprox_buffer out) {
  const laprox_shape *shape = &attention->shape;
  const bool ragged = segment->head_n_rows != NULL;
  for (uint32_t head = 0, n; head < shape->n_kv_heads; head += n) {
    n = ragged ? 1 : lpx_attention_heads_in_range(attention, segment, head);
    const uint64_t first = lpx_attention_first_row(segment, head);
    const uint64_t count = (uint64_t)lpx_attention_first_row(segment, head + n - 1) +
                           lpx_attention_n_rows(segment, head + n - 1) - first;
    const laprox_buffer ranges[] = {
        query, lpx_attention_rows(attention, segment->key, first, count, &push.key_first),
        lpx_attention_rows(attention, segment->value, first, count, &push.value_first), out};
    push.first_head = head * (shape->n_heads / shape->n_kv_heads);
    push.head_rows = segment->head_rows;
    if (ragged) push.n_visible = segment->head_n_rows[head];
    append_pieces(program, attention, ranges, &push, n);
  }
}

static bool is_empty(const lpx_attention_segment *segment, uint32_t n_heads) {
  for (uint32_t head = 0; head < n_heads; head++)
    if (lpx_attention_n_rows(segment, head)) return false;
  return true;
}

void lpx_prefill_attention_append(lpx_program *program, const lpx_attention *attention, laprox_buffer query,
                                  uint32_t n_rows, const lpx_attention_segment *prefix,
                                  const lpx_attention_segment *tail, laprox_buffer out) {
  const laprox_shape *shape = &attention->shape;
  prefill_push push = {.n_rows = n_rows,
                       .n_heads = shape->n_heads,
                       .query_heads = attention->query_heads,
                       .state_first = (uint32_t)(rows_bytes(shape, n_rows) / 16),
                       .scale = lpx_attention_scale(attention)};
  query.size = ((VkDeviceSize)(n_rows - 1) * attention->query_heads + shape->n_heads) * shape->head_dim *
               sizeof(float);
  if (prefix && !is_empty(prefix, shape->n_kv_heads)) {
    push.n_visible = prefix->n_rows;
    append_segment(program, attention, push, query, prefix, out);
    lpx_program_barrier(program);
    push.carry = 1;
  }
  push.causal = 1;
  push.n_visible = tail->n_rows - n_rows + 1;
  append_segment(program, attention, push, query, tail, out);
}

void lpx_prefill_lse_append(lpx_program *program, const lpx_attention *attention, laprox_buffer out,
                            uint32_t n_rows, uint32_t first_row, laprox_buffer ring, uint32_t ring_row) {
  const laprox_shape *shape = &attention->shape;
  const uint32_t n_items = (n_rows - first_row) * shape->n_heads;
  const VkDeviceSize output_bytes = rows_bytes(shape, n_rows);
  lse_push push = {.n_items = n_items,
                   .n_heads = shape->n_heads,
                   .state_first = (uint32_t)(output_bytes / 16) + first_row * shape->n_heads,
                   .ring_rows = (uint32_t)(ring.size / sizeof(float) / shape->n_heads),
                   .ring_row = ring_row};
  out.size = lpx_prefill_attention_bytes(shape, n_rows);
  lpx_program_dispatch(program, &attention->lse, (laprox_buffer[]){out, ring}, &push, sizeof push,
                       ((uint64_t)n_items + 127) / 128, n_items);
}
