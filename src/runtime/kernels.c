/* kernels.c: push structs, grids, costs and the splitting of ranges for the forward pass's kernels. */
#include "runtime/kernels.h"

/* A dispatch does about this much, so that none is long: see SUBMIT_COST of the queue. */
#define DISPATCH_COST (UINT64_C(1) << 30)

/* Parts of a matrix begin at multiples of this many rows, so that they are aligned whatever the row length.
 */
#define PART_ROWS 256

#define TILE_ROWS      64 /* of matmul.comp */
#define TILE_COLUMNS   128
#define MATVEC_LANES   8 /* threads of matvec.comp that share outputs */
#define MATVEC_COLUMNS (128 / MATVEC_LANES * 4)
#define FEW_LANES      16 /* threads of a row of rmsnorm.comp where there are several rows */

typedef struct embed_push {
  uint32_t n_groups, dim, slice_first, slice_rows, output_first;
} embed_push;
_Static_assert(sizeof(embed_push) == 20, "embed.comp reads 5 words");

typedef struct norm_push {
  uint32_t n_groups, n_rows, dim, input_first;
  float epsilon;
} norm_push;
_Static_assert(sizeof(norm_push) == 20, "rmsnorm.comp reads 5 words");

typedef struct matmul_push {
  uint32_t n_groups, first_group;
  uint32_t n_rows, n_columns, depth;
  uint32_t output_first, output_stride, accumulate;
} matmul_push;
_Static_assert(sizeof(matmul_push) == 32, "matmul.comp and matvec.comp read 8 words");

typedef struct swiglu_push {
  uint32_t n_groups, n_quads;
} swiglu_push;

typedef struct rope_push {
  uint32_t n_groups, n_items, n_heads, first_head, n_dispatch_heads, head_dim;
  uint32_t first_position, rotate;
  uint32_t first_row, row_stride, head_stride, output_first;
} rope_push;
_Static_assert(sizeof(rope_push) == 48, "rope.comp reads 12 words");

laprox_result lpx_kernels_init(laprox_context *context, uint32_t dtypes, laprox_dtype cache_dtype,
                               lpx_kernels *out) {
  *out = (lpx_kernels){.context = context, .cache_dtype = cache_dtype};
  laprox_result result = LAPROX_OK;
  const char *matmul =
      context->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU ? "matmul_direct" : "matmul";
  const uint32_t lanes = MATVEC_LANES;
  for (uint32_t dtype = 1; dtype < LPX_N_DTYPES && !result; dtype++) {
    if (!(dtypes >> dtype & 1)) continue;
    result = lpx_pipeline_get(context, "embed", 3, &dtype, 1, &out->embed[dtype]);
    if (!result) result = lpx_pipeline_get(context, matmul, 3, &dtype, 1, &out->matmul[dtype]);
    if (!result)
      result = lpx_pipeline_get(context, "matvec", 3, (uint32_t[]){dtype, lanes}, 2, &out->matvec[dtype]);
  }
  const uint32_t plain = LAPROX_DTYPE_F32, cache = (uint32_t)cache_dtype;
  const uint32_t few = FEW_LANES, all = 128;
  if (!result) result = lpx_pipeline_get(context, "rmsnorm", 3, &few, 1, &out->norm);
  if (!result) result = lpx_pipeline_get(context, "rmsnorm", 3, &all, 1, &out->norm_single);
  if (!result) result = lpx_pipeline_get(context, "swiglu", 2, NULL, 0, &out->swiglu);
  if (!result) result = lpx_pipeline_get(context, "rope", 3, &plain, 1, &out->rotate);
  if (!result) result = lpx_pipeline_get(context, "rope", 3, &cache, 1, &out->store);
  return result;
}

static VkDeviceSize floats(uint64_t rows, uint64_t columns) {
  return rows * columns * sizeof(float);
}

static uint64_t divide_up(uint64_t a, uint64_t b) {
  return a / b + (a % b != 0);
}

/* How many rows of a weight fit one binding: all, or a multiple of PART_ROWS. */
static uint32_t rows_in_range(const laprox_context *context, const lpx_weight *weight) {
  const uint64_t row_bytes = laprox_dtype_bytes(weight->dtype, weight->n_columns);
  const uint64_t fit = (context->max_range - context->range_alignment) / row_bytes;
  if (fit >= weight->n_rows) return weight->n_rows;
  return fit < PART_ROWS ? PART_ROWS : (uint32_t)(fit / PART_ROWS * PART_ROWS);
}

/* Rows [first, first + count) of a weight, to the end of the last pair of words. */
static laprox_buffer weight_rows(const lpx_weight *weight, uint32_t first, uint32_t count) {
  const VkDeviceSize row_bytes = laprox_dtype_bytes(weight->dtype, weight->n_columns);
  return lpx_buffer_part(lpx_buffer_whole(&weight->buffer), first * row_bytes,
                         (count * row_bytes + 7) & ~(VkDeviceSize)7);
}

void lpx_embed_append(lpx_program *program, const lpx_kernels *kernels, const lpx_weight *table,
                      laprox_buffer ids, uint32_t n_tokens, laprox_buffer out) {
  const uint32_t most = rows_in_range(kernels->context, table);
  VkDeviceSize residual;
  const laprox_buffer to =
      lpx_buffer_aligned_part(kernels->context, out, 0, floats(n_tokens, table->n_columns), &residual);
  ids.size = n_tokens * sizeof(uint32_t);
  for (uint32_t first = 0; first < table->n_rows; first += most) {
    const uint32_t now = table->n_rows - first < most ? table->n_rows - first : most;
    embed_push push = {.dim = table->n_columns,
                       .slice_first = first,
                       .slice_rows = now,
                       .output_first = (uint32_t)(residual / 16)};
    lpx_program_dispatch(program, &kernels->embed[table->dtype],
                         (laprox_buffer[]){ids, weight_rows(table, first, now), to}, &push, sizeof push,
                         n_tokens, floats(n_tokens, table->n_columns));
  }
}

void lpx_norm_append(lpx_program *program, const lpx_kernels *kernels, const lpx_weight *weight,
                     float epsilon, laprox_buffer in, uint32_t n_rows, laprox_buffer out) {
  const VkDeviceSize bytes = floats(n_rows, weight->n_columns);
  VkDeviceSize residual;
  const laprox_buffer from = lpx_buffer_aligned_part(kernels->context, in, 0, bytes, &residual);
  norm_push push = {.n_rows = n_rows,
                    .dim = weight->n_columns,
                    .input_first = (uint32_t)(residual / 16),
                    .epsilon = epsilon};
  lpx_program_dispatch(
      program, n_rows == 1 ? &kernels->norm_single : &kernels->norm,
      (laprox_buffer[]){from, lpx_buffer_whole(&weight->buffer), lpx_buffer_part(out, 0, bytes)}, &push,
      sizeof push, n_rows == 1 ? 1 : divide_up(n_rows, 128 / FEW_LANES), bytes);
}

/* One part of the weight for rows that fit one binding of the output. */
static void append_part(lpx_program *program, const lpx_kernels *kernels, const lpx_weight *weight,
                        const laprox_buffer *ranges, matmul_push *push) {
  const bool single = push->n_rows == 1;
  const uint64_t n_groups =
      single ? divide_up(push->n_columns, MATVEC_COLUMNS)
             : divide_up(push->n_rows, TILE_ROWS) * divide_up(push->n_columns, TILE_COLUMNS);
  const uint64_t group_cost =
      2 * (uint64_t)push->depth * (single ? MATVEC_COLUMNS : TILE_ROWS * TILE_COLUMNS);
  const uint64_t piece = DISPATCH_COST / group_cost + 1;
  for (uint64_t first = 0; first < n_groups; first += piece) {
    const uint64_t now = n_groups - first < piece ? n_groups - first : piece;
    push->first_group = (uint32_t)first;
    if (first) lpx_program_mark_step(program);
    lpx_program_dispatch(program, single ? &kernels->matvec[weight->dtype] : &kernels->matmul[weight->dtype],
                         ranges, push, sizeof *push, now, now * group_cost);
  }
}

void lpx_matmul_append(lpx_program *program, const lpx_kernels *kernels, const lpx_weight *weight,
                       laprox_buffer in, uint32_t n_rows, laprox_buffer out, bool accumulate) {
  const laprox_context *context = kernels->context;
  const uint32_t most = rows_in_range(context, weight);
  /* A whole number of tiles keeps the input's parts aligned. */
  const uint32_t widest = weight->n_rows > weight->n_columns ? weight->n_rows : weight->n_columns;
  const uint64_t fit = (context->max_range - context->range_alignment) / floats(TILE_ROWS, widest);
  const uint64_t row_step = (fit ? fit : 1) * TILE_ROWS;
  for (uint64_t row = 0; row < n_rows; row += row_step) {
    const uint64_t rows = n_rows - row < row_step ? n_rows - row : row_step;
    VkDeviceSize residual;
    const laprox_buffer to = lpx_buffer_aligned_part(context, out, floats(row, weight->n_rows),
                                                     floats(rows, weight->n_rows), &residual);
    const laprox_buffer from =
        lpx_buffer_part(in, floats(row, weight->n_columns), floats(rows, weight->n_columns));
    for (uint32_t first = 0; first < weight->n_rows; first += most) {
      const uint32_t now = weight->n_rows - first < most ? weight->n_rows - first : most;
      matmul_push push = {.n_rows = (uint32_t)rows,
                          .n_columns = now,
                          .depth = weight->n_columns,
                          .output_first = (uint32_t)(residual / sizeof(float)) + first,
                          .output_stride = weight->n_rows,
                          .accumulate = accumulate};
      append_part(program, kernels, weight, (laprox_buffer[]){from, weight_rows(weight, first, now), to},
                  &push);
    }
  }
}

void lpx_swiglu_append(lpx_program *program, const lpx_kernels *kernels, laprox_buffer gate, laprox_buffer up,
                       uint64_t n) {
  swiglu_push push = {.n_quads = (uint32_t)(n / 4)};
  gate.size = up.size = n * sizeof(float);
  lpx_program_dispatch(program, &kernels->swiglu, (laprox_buffer[]){gate, up}, &push, sizeof push,
                       divide_up(n, 4 * 4 * 128), n * 8);
}

static void append_heads(lpx_program *program, const lpx_pipeline *pipeline, const lpx_head_rows *rows,
                         laprox_buffer to, rope_push *push) {
  const uint64_t items = (uint64_t)rows->n_rows * push->n_dispatch_heads * (rows->head_dim / 4);
  push->n_items = (uint32_t)items;
  push->n_heads = rows->n_heads;
  push->head_dim = rows->head_dim;
  push->first_position = rows->first_position;
  push->rotate = rows->rotate;
  laprox_buffer source = rows->source, turns = rows->turns;
  source.size = floats((uint64_t)rows->n_rows * rows->n_heads, rows->head_dim);
  turns.size = (VkDeviceSize)rows->head_dim * 4;
  lpx_program_dispatch(program, pipeline, (laprox_buffer[]){source, turns, to}, push, sizeof *push,
                       divide_up(items, 128), items * 32);
}

void lpx_rotate_append(lpx_program *program, const lpx_kernels *kernels, const lpx_head_rows *rows,
                       laprox_buffer out) {
  rope_push push = {.n_dispatch_heads = rows->n_heads, .row_stride = rows->n_heads, .head_stride = 1};
  out.size = floats((uint64_t)rows->n_rows * rows->n_heads, rows->head_dim);
  append_heads(program, &kernels->rotate, rows, out, &push);
}

void lpx_store_append(lpx_program *program, const lpx_kernels *kernels, const lpx_head_rows *rows,
                      laprox_buffer cache, uint32_t head_rows, uint32_t first_row) {
  const laprox_context *context = kernels->context;
  const uint64_t row_bytes = laprox_dtype_bytes(kernels->cache_dtype, rows->head_dim);
  const uint64_t fit = (context->max_range - context->range_alignment) / (head_rows * row_bytes);
  const uint32_t most = fit < 1 ? 1 : fit > rows->n_heads ? rows->n_heads : (uint32_t)fit;
  for (uint32_t head = 0; head < rows->n_heads; head += most) {
    const uint32_t now = rows->n_heads - head < most ? rows->n_heads - head : most;
    const uint64_t begin = (uint64_t)head * head_rows + first_row;
    const uint64_t span = (uint64_t)(now - 1) * head_rows + rows->n_rows;
    VkDeviceSize residual;
    const laprox_buffer to =
        lpx_buffer_aligned_part(context, cache, begin * row_bytes, span * row_bytes, &residual);
    rope_push push = {.first_head = head,
                      .n_dispatch_heads = now,
                      .row_stride = 1,
                      .head_stride = head_rows,
                      .output_first = (uint32_t)(residual / 4)};
    append_heads(program, &kernels->store, rows, to, &push);
  }
}
