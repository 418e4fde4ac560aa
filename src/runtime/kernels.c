/* kernels.c: push structs, grids, costs and the splitting of ranges for the forward pass's kernels. */
#include "runtime/kernels.h"

#include <string.h>

/* Parts of a matrix begin at multiples of this many rows, so that they are aligned whatever the row length.
 */
#define PART_ROWS 256

#define FEW_LANES 16 /* threads of a row of rmsnorm.comp where there are several rows */

typedef struct embed_push {
  uint32_t n_groups, dim, row_units, slice_first, slice_rows, output_first;
} embed_push;
_Static_assert(sizeof(embed_push) == 24, "embed.comp reads 6 words");

typedef struct norm_push {
  uint32_t n_groups, n_rows, dim, input_first;
  float epsilon;
} norm_push;
_Static_assert(sizeof(norm_push) == 20, "rmsnorm.comp reads 5 words");

typedef struct matmul_push {
  uint32_t n_groups, first_group;
  uint32_t n_rows, n_columns, depth;
  uint32_t row_units, input_stride;
  uint32_t output_first, output_stride, accumulate;
  float epsilon;
} matmul_push;
_Static_assert(sizeof(matmul_push) == 44, "matmul.comp reads 10 words, matvec.comp 11 with a norm");

typedef struct halve_push {
  uint32_t n_groups, n_rows, row_quads, input_stride, row_octets;
} halve_push;
_Static_assert(sizeof(halve_push) == 20, "halve.comp reads 5 words");

typedef struct swiglu_push {
  uint32_t n_groups, n_quads, row_quads;
} swiglu_push;

typedef struct rope_push {
  uint32_t n_groups, n_items, n_heads, n_kv_heads;
  uint32_t n_dispatch_heads, first_kv_head, n_dispatch_kv_heads, head_dim;
  uint32_t first_row_quad, use_state, first_position, first_row;
  uint32_t head_rows, key_first, value_first;
  uint32_t ring_row, query_first, ring_rows;
} rope_push;
_Static_assert(sizeof(rope_push) == 72, "rope.comp reads 18 words");

/* ---- weights ---- */

static uint64_t round_up(uint64_t n, uint64_t step) {
  return (n + step - 1) / step * step;
}

uint64_t lpx_weight_row_bytes(laprox_dtype dtype, uint32_t n_columns) {
  if (dtype != LAPROX_DTYPE_Q8_0) return round_up(laprox_dtype_bytes(dtype, n_columns), 16);
  return n_columns + round_up(n_columns / 32 * sizeof(uint16_t), 16);
}

void lpx_weight_pack(laprox_dtype dtype, uint32_t n_columns, uint32_t n_rows, const uint8_t *from,
                     uint8_t *to) {
  const size_t from_bytes = (size_t)laprox_dtype_bytes(dtype, n_columns);
  const size_t to_bytes = (size_t)lpx_weight_row_bytes(dtype, n_columns);
  for (uint32_t row = 0; row < n_rows; row++, from += from_bytes, to += to_bytes) {
    size_t done = from_bytes;
    if (dtype == LAPROX_DTYPE_Q8_0)
      for (uint32_t block = 0; block < n_columns / 32; block++) {
        memcpy(to + (size_t)block * 32, from + (size_t)block * 34 + 2, 32);
        memcpy(to + n_columns + (size_t)block * 2, from + (size_t)block * 34, 2);
      }
    else
      memcpy(to, from, done);
    memset(to + done, 0, to_bytes - done);
  }
}

/* ---- pipelines ---- */

/* Threads that share outputs, and how many these are: few and many where a workgroup runs on one core, which
 * has shuffles for little but barriers for much; elsewhere as keeps most of the device busy (measured). */
static laprox_result init_matvec(lpx_kernels *kernels, uint32_t dtype) {
  laprox_context *context = kernels->context;
  const bool software = lpx_is_software(context);
  const bool subgroup = software && lpx_shader_usable(context, "matvec_subgroup");
  uint32_t lanes = software ? 8 : 128;
  if (subgroup && context->subgroup_size < lanes) lanes = context->subgroup_size;
  const uint32_t each = software ? 8 : 4;
  const uint32_t plain[] = {dtype, lanes, each, 0}, gated[] = {dtype, lanes, each, 1};
  const char *normed = subgroup ? "matvec_norm_subgroup" : "matvec_norm";
  lpx_matvec *out = &kernels->matvec[dtype];
  kernels->matvec_columns = 128 / lanes * each;
  laprox_result result =
      lpx_pipeline_get(context, subgroup ? "matvec_subgroup" : "matvec", 3, plain, 4, &out->plain);
  if (!result) result = lpx_pipeline_get(context, normed, 4, plain, 4, &out->normed);
  if (!result) result = lpx_pipeline_get(context, normed, 4, gated, 4, &out->gated);
  return result;
}

/* Matrices of a subgroup, and subgroups of a workgroup, by rows and columns. */
typedef struct matrix_grid {
  uint32_t rows, columns, grid_rows, grid_columns;
} matrix_grid;

/* Elements of a row that are in shared memory at once; more where there are registers for the next ones. Rows of halves are
   a multiple of both long. */
enum { FEW_AT_ONCE = 32, MANY_AT_ONCE = 48, HALVES_STEP = 96 };

static uint32_t matrix_depth(const laprox_context *context) {
  return lpx_large_tiles(context) ? MANY_AT_ONCE : FEW_AT_ONCE;
}

/* With matrices of 16 x 16, 128 rows by 256 columns, and 128, 64 and 32 rows by 128. The lowest has work for 256 threads.
   Where registers are few, 64 rows by 64 columns alone: four sums a subgroup spill on Intel (Xe2), two don't. */
static matrix_grid choose_grid(const laprox_context *context, uint32_t tile) {
  static const matrix_grid grids[LPX_N_MATRIX_TILES] = {
      {4, 4, 2, 4}, {4, 2, 2, 4}, {2, 2, 2, 4}, {2, 1, 1, 8}};
  matrix_grid grid = grids[tile];
  if (!lpx_large_tiles(context))
    grid = tile + 1 == LPX_N_MATRIX_TILES ? (matrix_grid){2, 1, 2, 4} : (matrix_grid){0};
  if (context->subgroup_size > 32 && tile + 1 == LPX_N_MATRIX_TILES) {
    grid.columns *= 2;
    grid.grid_columns /= 2;
  }
  return grid;
}

static bool matrix_fits(const laprox_context *context, const lpx_tile *tile, uint32_t n_subgroups) {
  const uint32_t staged = (tile->rows + tile->columns) * (matrix_depth(context) * 2 + 16),
                 exchanged = n_subgroups * context->matrix.m * context->matrix.n * 4;
  return n_subgroups && lpx_workgroup_fits(context, n_subgroups, staged > exchanged ? staged : exchanged);
}

static const char *matrix_shader(const laprox_context *context) {
  return lpx_is_software(context) ? "matmul_matrix_rolled" : "matmul_matrix";
}

static bool can_use_matrix(const laprox_context *context) {
  return lpx_shader_usable(context, matrix_shader(context)) && context->matrix.k % 8 == 0 &&
         matrix_depth(context) % context->matrix.k == 0;
}

laprox_result lpx_kernels_use_matrix(lpx_kernels *kernels, laprox_dtype dtype) {
  laprox_context *context = kernels->context;
  const uint32_t m = context->matrix.m, n = context->matrix.n, k = context->matrix.k;
  if (!can_use_matrix(context))
    return lpx_fail(&context->host, LAPROX_ERROR_UNSUPPORTED, "matrices of %u x %u x %u for products", m, n,
                    k);
  laprox_result result = lpx_pipeline_get(context, "halve", 2, NULL, 0, &kernels->halve);
  for (uint32_t i = 0; i < LPX_N_MATRIX_TILES && !result; i++) {
    const matrix_grid grid = choose_grid(context, i);
    const uint32_t n_subgroups = grid.grid_rows * grid.grid_columns;
    const uint32_t n_invocations = n_subgroups * context->subgroup_size;
    const lpx_tile tile = {grid.rows * grid.grid_rows * m, grid.columns * grid.grid_columns * n};
    if (!matrix_fits(context, &tile, n_subgroups)) continue;
    const uint32_t constants[] = {(uint32_t)dtype,
                                  m,
                                  n,
                                  k,
                                  grid.rows,
                                  grid.columns,
                                  grid.grid_rows,
                                  grid.grid_columns,
                                  context->subgroup_size,
                                  n_invocations,
                                  n_invocations,
                                  matrix_depth(context)};
    kernels->matrix_tiles[i] = tile;
    result = lpx_pipeline_get(context, matrix_shader(context), 3, constants, 12,
                              &kernels->matmul_matrix[dtype][i]);
  }
  return result;
}

/* Everything beside a cache of F32 keeps its digits. */
bool lpx_kernels_want_matrix(const laprox_context *context, laprox_dtype cache_dtype) {
  return cache_dtype != LAPROX_DTYPE_F32 && can_use_matrix(context) && lpx_matrices_pay(context);
}

laprox_result lpx_kernels_init(laprox_context *context, uint32_t dtypes, laprox_dtype cache_dtype,
                               lpx_kernels *out) {
  const bool software = lpx_is_software(context);
  const bool small = !software && lpx_tile_size_of(context) == LPX_TILES_SMALL;
  *out = (lpx_kernels){.context = context, .cache_dtype = cache_dtype, .matmul_tile = {small ? 32 : 64, 128}};
  laprox_result result = LAPROX_OK;
  const bool subgroup =
      software && lpx_shader_usable(context, "matmul_direct_subgroup") && context->subgroup_size <= 16;
  const char *matmul = subgroup   ? "matmul_direct_subgroup"
                       : software ? "matmul_direct"
                       : small    ? "matmul_small"
                                  : "matmul";
  for (uint32_t dtype = 1; dtype < LPX_N_DTYPES && !result; dtype++) {
    if (!(dtypes >> dtype & 1)) continue;
    result = lpx_pipeline_get(context, "embed", 3, &dtype, 1, &out->embed[dtype]);
    if (!result) result = lpx_pipeline_get(context, matmul, 3, &dtype, 1, &out->matmul[dtype]);
    if (!result && dtype != LAPROX_DTYPE_F32 && lpx_kernels_want_matrix(context, cache_dtype))
      result = lpx_kernels_use_matrix(out, (laprox_dtype)dtype);
    if (!result) result = init_matvec(out, dtype);
  }
  const uint32_t cache = (uint32_t)cache_dtype, few = FEW_LANES, all = 128;
  if (!result) result = lpx_pipeline_get(context, "rmsnorm", 3, &few, 1, &out->norm);
  if (!result) result = lpx_pipeline_get(context, "rmsnorm", 3, &all, 1, &out->norm_single);
  if (!result) result = lpx_pipeline_get(context, "swiglu", 1, NULL, 0, &out->swiglu);
  const char *rope = lpx_dtype_is_blocks(cache_dtype) ? "rope_blocks" : "rope";
  if (!result) result = lpx_pipeline_get(context, rope, 4, &cache, 1, &out->rope);
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
  const uint64_t row_bytes = lpx_weight_row_bytes(weight->dtype, weight->n_columns);
  const uint64_t fit = (context->max_range - context->range_alignment) / row_bytes;
  if (fit >= weight->n_rows) return weight->n_rows;
  return fit < PART_ROWS ? PART_ROWS : (uint32_t)(fit / PART_ROWS * PART_ROWS);
}

static laprox_buffer weight_rows(const lpx_weight *weight, uint32_t first, uint32_t count) {
  const VkDeviceSize row_bytes = lpx_weight_row_bytes(weight->dtype, weight->n_columns);
  return lpx_buffer_part(lpx_buffer_whole(&weight->buffer), first * row_bytes, count * row_bytes);
}

static uint32_t row_units(const lpx_weight *weight) {
  return (uint32_t)(lpx_weight_row_bytes(weight->dtype, weight->n_columns) / 16);
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
                       .row_units = row_units(table),
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

/* ---- products ---- */

/* Several dispatches, where one would be long. */
static void append_pieces(lpx_program *program, const laprox_context *context, const lpx_pipeline *pipeline,
                          const laprox_buffer *ranges, matmul_push *push, uint64_t n_groups,
                          uint64_t group_cost) {
  const uint64_t piece = context->dispatch_cost / group_cost + 1;
  for (uint64_t first = 0; first < n_groups; first += piece) {
    const uint64_t now = n_groups - first < piece ? n_groups - first : piece;
    push->first_group = (uint32_t)first;
    if (first) lpx_program_mark_step(program);
    lpx_program_dispatch(program, pipeline, ranges, push, sizeof *push, now, now * group_cost);
  }
}

/* Rows [first, first + count) of a part for a single row of input. A gated part is never split: its gates and
 * values must be in one binding. */
static void append_single(lpx_program *program, const lpx_kernels *kernels, const lpx_linear *product,
                          const lpx_weight *part, const laprox_buffer *ranges, matmul_push *push) {
  const lpx_matvec *family = &kernels->matvec[part->dtype];
  const lpx_pipeline *pipeline = product->gated  ? &family->gated
                                 : product->norm ? &family->normed
                                                 : &family->plain;
  const uint32_t outputs = kernels->matvec_columns / (product->gated ? 2 : 1);
  push->epsilon = product->epsilon;
  append_pieces(program, kernels->context, pipeline, ranges, push, divide_up(push->n_columns, outputs),
                2 * (uint64_t)push->depth * kernels->matvec_columns);
}

/* The largest tile that leaves few rows empty and enough workgroups for a large device, else the smallest there is;
 * LPX_N_MATRIX_TILES where matrices are of no use. */
static uint32_t choose_tile(const lpx_kernels *kernels, laprox_dtype dtype, uint32_t n_rows,
                            uint32_t n_columns) {
  enum { ENOUGH_COLUMNS = 192 * 128 }; /* of all workgroups */
  uint32_t chosen = LPX_N_MATRIX_TILES;
  for (uint32_t i = 0; i < LPX_N_MATRIX_TILES; i++) {
    const lpx_tile *tile = &kernels->matrix_tiles[i];
    if (!kernels->matmul_matrix[dtype][i].pipeline) continue;
    chosen = i;
    if (n_rows > tile->rows / 2 &&
        divide_up(n_rows, tile->rows) * divide_up(n_columns, tile->columns) * tile->columns >= ENOUGH_COLUMNS)
      break;
  }
  return chosen;
}

static bool is_on_matrix(const lpx_kernels *kernels, laprox_dtype dtype) {
  return choose_tile(kernels, dtype, 1, 1) < LPX_N_MATRIX_TILES;
}

static void append_tiles(lpx_program *program, const lpx_kernels *kernels, laprox_dtype dtype,
                         const laprox_buffer *ranges, matmul_push *push) {
  const uint32_t i = choose_tile(kernels, dtype, push->n_rows, push->n_columns);
  const bool on_matrix = i < LPX_N_MATRIX_TILES;
  const lpx_tile tile = on_matrix ? kernels->matrix_tiles[i] : kernels->matmul_tile;
  append_pieces(program, kernels->context,
                on_matrix ? &kernels->matmul_matrix[dtype][i] : &kernels->matmul[dtype], ranges, push,
                divide_up(push->n_rows, tile.rows) * divide_up(push->n_columns, tile.columns),
                2 * (uint64_t)push->depth * tile.rows * tile.columns / (on_matrix ? LPX_MATRIX_FLOPS : 1));
}

/* ---- input of products on matrices ---- */

static uint32_t octets_of_row(uint32_t n_columns) {
  return (uint32_t)round_up(n_columns, HALVES_STEP) / 8;
}

uint64_t lpx_linear_halves_bytes(uint32_t n_rows, uint32_t n_columns) {
  return (uint64_t)n_rows * octets_of_row(n_columns) * 16;
}

static bool takes_halves(const lpx_kernels *kernels, const lpx_linear *product) {
  bool takes = false;
  for (uint32_t i = 0; i < product->matrix->n_parts; i++)
    takes = takes || is_on_matrix(kernels, product->matrix->parts[i].dtype);
  return takes && product->n_rows > 1;
}

/* Rounds rows of input; what was there before may still be read. */
static laprox_buffer append_halves(lpx_program *program, const lpx_kernels *kernels,
                                   const lpx_linear *product, laprox_buffer from, const matmul_push *push) {
  const uint32_t n_columns = product->matrix->n_columns;
  halve_push halve = {.n_rows = push->n_rows,
                      .row_quads = n_columns / 4,
                      .input_stride = push->input_stride,
                      .row_octets = octets_of_row(n_columns)};
  const uint64_t n_octets = (uint64_t)push->n_rows * halve.row_octets;
  const laprox_buffer halves = lpx_buffer_part(product->halves, 0, n_octets * 16);
  lpx_program_barrier(program);
  lpx_program_dispatch(program, &kernels->halve, (laprox_buffer[]){from, halves}, &halve, sizeof halve,
                       divide_up(n_octets, 4 * 128), n_octets * 8);
  lpx_program_barrier(program);
  return halves;
}

/* One part of the matrix for rows that fit one binding of input and output. */
static void append_part(lpx_program *program, const lpx_kernels *kernels, const lpx_linear *product,
                        const lpx_weight *part, uint32_t part_first, laprox_buffer from, laprox_buffer halves,
                        laprox_buffer to, matmul_push push) {
  const laprox_context *context = kernels->context;
  const uint32_t most = rows_in_range(context, part);
  const uint32_t output_first = push.output_first;
  push.depth = part->n_columns;
  push.row_units = row_units(part);
  if (product->n_rows > 1 && is_on_matrix(kernels, part->dtype)) {
    from = halves;
    push.input_stride = octets_of_row(part->n_columns);
  }
  for (uint32_t first = 0; first < part->n_rows; first += most) {
    const uint32_t now = part->n_rows - first < most ? part->n_rows - first : most;
    const laprox_buffer ranges[] = {from, weight_rows(part, first, now), to,
                                    product->norm ? lpx_buffer_whole(&product->norm->buffer) : to};
    push.n_columns = product->gated ? now / 2 : now;
    push.output_first = output_first + part_first + first;
    if (product->n_rows == 1)
      append_single(program, kernels, product, part, ranges, &push);
    else
      append_tiles(program, kernels, part->dtype, ranges, &push);
  }
}

bool lpx_linear_can_gate(const lpx_kernels *kernels, const lpx_matrix *matrix) {
  return matrix->n_parts == 1 && rows_in_range(kernels->context, &matrix->parts[0]) == matrix->n_rows;
}

void lpx_linear_append(lpx_program *program, const lpx_kernels *kernels, const lpx_linear *product) {
  const laprox_context *context = kernels->context;
  const lpx_matrix *matrix = product->matrix;
  const uint32_t stride = product->input_stride ? product->input_stride : matrix->n_columns;
  const uint32_t n_outputs = product->gated ? matrix->n_rows / 2 : matrix->n_rows;
  /* A whole number of tiles keeps the input's parts aligned. */
  const uint32_t halves_width = octets_of_row(matrix->n_columns) * 4, /* floats */
      wider = n_outputs > stride ? n_outputs : stride;
  const uint32_t widest = wider > halves_width ? wider : halves_width;
  const uint32_t tile_rows = kernels->matmul_tile.rows;
  const uint64_t fit = (context->max_range - context->range_alignment) / floats(tile_rows, widest);
  const uint64_t row_step = (fit ? fit : 1) * tile_rows;
  for (uint64_t row = 0; row < product->n_rows; row += row_step) {
    const uint64_t rows = product->n_rows - row < row_step ? product->n_rows - row : row_step;
    VkDeviceSize residual;
    const laprox_buffer to = lpx_buffer_aligned_part(context, product->out, floats(row, n_outputs),
                                                     floats(rows, n_outputs), &residual);
    const laprox_buffer from = lpx_buffer_part(product->in, floats(row, stride),
                                               floats(rows - 1, stride) + floats(1, matrix->n_columns));
    const matmul_push push = {.n_rows = (uint32_t)rows,
                              .input_stride = stride / 4,
                              .output_first = (uint32_t)(residual / sizeof(float)),
                              .output_stride = n_outputs,
                              .accumulate = product->accumulate};
    const laprox_buffer halves = takes_halves(kernels, product)
                                     ? append_halves(program, kernels, product, from, &push)
                                     : (laprox_buffer){0};
    uint32_t part_first = 0;
    for (uint32_t i = 0; i < matrix->n_parts; i++) {
      append_part(program, kernels, product, &matrix->parts[i], part_first, from, halves, to, push);
      part_first += matrix->parts[i].n_rows;
    }
  }
}

void lpx_swiglu_append(lpx_program *program, const lpx_kernels *kernels, laprox_buffer rows, uint32_t n_rows,
                       uint32_t n_gates) {
  const uint64_t n = (uint64_t)n_rows * n_gates;
  swiglu_push push = {.n_quads = (uint32_t)(n / 4), .row_quads = n_gates / 4};
  rows.size = 2 * n * sizeof(float);
  lpx_program_dispatch(program, &kernels->swiglu, &rows, &push, sizeof push, divide_up(n, 4 * 4 * 128),
                       n * 8);
}

/* ---- rows of heads ---- */

VkDeviceSize lpx_rope_header_bytes(const laprox_shape *shape) {
  /* Rows begin where bindings may on every device. */
  return round_up(sizeof(lpx_token_state) + shape->head_dim / 2 * sizeof(uint64_t), 256);
}

/* How many heads of the tail fit one binding; at least 1. */
static uint32_t heads_in_range(const lpx_kernels *kernels, const lpx_rope *rope) {
  const uint64_t row_bytes = laprox_dtype_bytes(kernels->cache_dtype, rope->shape->head_dim);
  const uint64_t room = lpx_buffer_units_room(kernels->context, lpx_dtype_unit(kernels->cache_dtype));
  const uint64_t fit = room / (rope->head_rows * row_bytes);
  return fit < 1 ? 1 : fit > rope->shape->n_kv_heads ? rope->shape->n_kv_heads : (uint32_t)fit;
}

static laprox_buffer tail_heads(const lpx_kernels *kernels, const lpx_rope *rope, laprox_buffer tail,
                                uint32_t first, uint32_t count, uint32_t *first_word) {
  const uint64_t head_bytes =
      rope->head_rows * (uint64_t)laprox_dtype_bytes(kernels->cache_dtype, rope->shape->head_dim);
  VkDeviceSize residual;
  const laprox_buffer part =
      lpx_buffer_aligned_part(kernels->context, tail, first * head_bytes, count * head_bytes, &residual);
  *first_word = (uint32_t)(residual / 4);
  return part;
}

void lpx_rope_append(lpx_program *program, const lpx_kernels *kernels, const lpx_rope *rope) {
  const laprox_shape *shape = rope->shape;
  const VkDeviceSize header = lpx_rope_header_bytes(shape);
  const uint32_t most = heads_in_range(kernels, rope);
  rope_push push = {.n_heads = shape->n_heads,
                    .n_kv_heads = shape->n_kv_heads,
                    .head_dim = shape->head_dim,
                    .first_row_quad = (uint32_t)(header / 16),
                    .use_state = !rope->state,
                    .head_rows = rope->head_rows,
                    .query_first = rope->ring.size ? rope->query_first : UINT32_MAX,
                    .ring_rows = (uint32_t)(rope->ring.size / floats(shape->n_heads, shape->head_dim))};
  if (rope->state) {
    push.first_position = rope->state->position;
    push.first_row = rope->state->tail_row;
    push.ring_row = rope->state->ring_row;
  }
  laprox_buffer rows = rope->rows, ring = rope->ring;
  rows.size =
      header + floats((uint64_t)rope->n_rows * (shape->n_heads + 2 * shape->n_kv_heads), shape->head_dim);
  if (!ring.size) ring = rows;
  for (uint32_t head = 0; head < shape->n_kv_heads; head += most) {
    const uint32_t now = shape->n_kv_heads - head < most ? shape->n_kv_heads - head : most;
    push.first_kv_head = head;
    push.n_dispatch_kv_heads = now;
    push.n_dispatch_heads = 2 * now + (head || !rope->with_queries ? 0 : shape->n_heads);
    const uint64_t items = (uint64_t)rope->n_rows * push.n_dispatch_heads * (shape->head_dim / 4);
    push.n_items = (uint32_t)items;
    const laprox_buffer ranges[] = {rows, tail_heads(kernels, rope, rope->key, head, now, &push.key_first),
                                    tail_heads(kernels, rope, rope->value, head, now, &push.value_first),
                                    ring};
    lpx_program_dispatch(program, &kernels->rope, ranges, &push, sizeof push, divide_up(items, 128),
                         items * 32);
  }
}
