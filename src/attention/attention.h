/* attention.h: attention over the cache. Prefill: a chunk of query rows over one stretch after another,
 * tiled, with online softmax. Decode: one query row over up to two segments at once, split into chunks and
 * merged in order.
 *
 * Queries and outputs are f32 [rows, n_heads, head_dim]; K and V rows are f16, f32 or blocks. Logits are scaled by
 * 1 / sqrt(head_dim).
 */
#ifndef LPX_ATTENTION_H
#define LPX_ATTENTION_H

#include "vk/vk.h"

/* Variants of the prefill kernel: by lpx_tile_size, for processors, and on cooperative matrices, which round queries and
 * probabilities to f16. */
typedef enum lpx_prefill_kind {
  LPX_PREFILL_SMALL = LPX_TILES_SMALL,
  LPX_PREFILL_MIDDLE = LPX_TILES_MIDDLE,
  LPX_PREFILL_LARGE = LPX_TILES_LARGE,
  LPX_PREFILL_DIRECT,
  LPX_PREFILL_MATRIX,
  LPX_N_PREFILL_KINDS
} lpx_prefill_kind;

/* Variants of the decode kernel: for any cache, the first with few registers; for rows of f16 in vectors of eight; the
 * same for processors. */
typedef enum lpx_decode_kind {
  LPX_DECODE_SMALL,
  LPX_DECODE_QUADS,
  LPX_DECODE_OCTETS,
  LPX_DECODE_DIRECT,
  LPX_N_DECODE_KINDS
} lpx_decode_kind;

/* Pipelines for one shape and cache type. Zeroed = nothing. */
typedef struct lpx_attention {
  laprox_context *context;
  laprox_shape shape;
  laprox_dtype cache_dtype; /* F16, F32, Q8_0 or Q4_0 */
  lpx_pipeline prefill, lse, decode, merge;
  bool prefill_on_matrix;
  uint32_t prefill_rows;    /* query rows of a workgroup, a row for each of its heads */
  uint32_t prefill_heads;   /* query heads of a KV head that share workgroups: 1 or all */
  uint32_t prefill_parts;   /* workgroups among which the dimensions of the values are divided */
  uint32_t query_heads;     /* from one of prefill's query rows to the next; n_heads unless it is changed */
  uint32_t decode_elements; /* of K or V that a thread loads at once */
} lpx_attention;

/* UNSUPPORTED for another cache type, INVALID_ARGUMENT for an impossible shape. */
laprox_result lpx_attention_init(laprox_context *context, const laprox_shape *shape, laprox_dtype cache_dtype,
                                 lpx_attention *out);

/* Whether there is that variant for the shape and the cache type on this device. Slow ones count. */
bool lpx_prefill_attention_has(const lpx_attention *attention, lpx_prefill_kind kind);
/* Takes another variant than lpx_attention_init has chosen, one that there is. */
laprox_result lpx_prefill_attention_choose(lpx_attention *attention, lpx_prefill_kind kind);

/* The same for decode attention. OCTETS is for f16 and a head_dim that eight divides, DIRECT for what
 * lpx_decode_can_be_direct says. */
laprox_result lpx_decode_attention_choose(lpx_attention *attention, lpx_decode_kind kind);
bool lpx_decode_can_be_direct(const lpx_attention *attention);

/* A stretch of a layer's cache: head g's entries are rows head_first_row[g] … + head_n_rows[g] - 1 of the K
 * and V ranges, head_dim elements each, ascending with g. Zeroed: no entries. Dense segments: see
 * lpx_attention_dense. */
typedef struct lpx_attention_segment {
  laprox_buffer key, value;
  const uint32_t *head_first_row; /* n_kv_heads; NULL: g * head_rows */
  const uint32_t *head_n_rows;    /* n_kv_heads; NULL: n_rows for every head */
  uint32_t head_rows, n_rows;
} lpx_attention_segment;

/* [n_kv_heads, head_rows, head_dim], the first n_rows of every head in use. */
lpx_attention_segment lpx_attention_dense(laprox_buffer key, laprox_buffer value, uint32_t head_rows,
                                          uint32_t n_rows);

/* Bytes of an output of prefill attention over n_rows query rows: the rows, then what the softmax of every
 * row and head has come to. */
VkDeviceSize lpx_prefill_attention_bytes(const laprox_shape *shape, uint32_t n_rows);

/* n_rows query rows over `prefix`, all of which they see, and then over the dense segment `tail`, of which
 * row i sees the first tail->n_rows - n_rows + 1 + i entries. `out` has lpx_prefill_attention_bytes. `query`
 * and `out` are aligned as bindings are. Marks steps; ends without a barrier. */
void lpx_prefill_attention_append(lpx_program *program, const lpx_attention *attention, laprox_buffer query,
                                  uint32_t n_rows, const lpx_attention_segment *prefix,
                                  const lpx_attention_segment *tail, laprox_buffer out);

/* What the scorer takes as laprox_layer_buffers.lse: rows first_row … n_rows - 1 of an `out` that
 * lpx_prefill_attention_append has written go to `ring`, f32 [n_heads, n], from n's ring_row on and then from 0.
 * They are at most n. Both ranges are aligned as bindings are. */
void lpx_prefill_lse_append(lpx_program *program, const lpx_attention *attention, laprox_buffer out,
                            uint32_t n_rows, uint32_t first_row, laprox_buffer ring, uint32_t ring_row);

/* Decode attention keeps its tables and partial results in units of 16 bytes of one buffer. */
#define LPX_DECODE_UNIT_BYTES 16

/* Scratch for heads of at most max_entries entries in both segments together: a table, then partial
 * results. */
VkDeviceSize lpx_decode_attention_scratch_bytes(const laprox_shape *shape, uint32_t max_entries);

/* One query row over all entries of up to two segments; heads without an entry give zeros. Writes its tables
 * into the scratch and has a barrier of its own before it reads anything; ends without one. Nothing that
 * still runs may use the scratch. */
void lpx_decode_attention_append(lpx_program *program, const lpx_attention *attention, laprox_buffer query,
                                 const lpx_attention_segment *segments, uint32_t n_segments,
                                 laprox_buffer scratch, laprox_buffer out);

/* The same in its parts, for callers that prepare the tables of many layers at once or keep layers that do
 * not depend on each other apart. They have no barriers: table before chunks, chunks before merge. */
typedef struct lpx_decode_place {
  laprox_buffer scratch;
  uint32_t table_first, partial_first; /* units */
} lpx_decode_place;

uint32_t lpx_decode_table_units(const laprox_shape *shape);
VkDeviceSize lpx_decode_partial_units(const laprox_shape *shape, uint32_t max_entries);
void lpx_decode_table_append(lpx_program *program, const lpx_attention *attention,
                             const lpx_attention_segment *segments, uint32_t n_segments,
                             lpx_decode_place place);
void lpx_decode_chunks_append(lpx_program *program, const lpx_attention *attention, laprox_buffer query,
                              const lpx_attention_segment *segments, uint32_t n_segments,
                              lpx_decode_place place);
void lpx_decode_merge_append(lpx_program *program, const lpx_attention *attention,
                             const lpx_attention_segment *segments, uint32_t n_segments,
                             lpx_decode_place place, laprox_buffer out);

/* ---- for this room only ---- */

laprox_result lpx_decode_attention_init(lpx_attention *attention);

/* The binding that covers rows [first, first + count) of a segment's K or V, and its first element there. */
laprox_buffer lpx_attention_rows(const lpx_attention *attention, laprox_buffer rows, uint64_t first,
                                 uint64_t count, uint32_t *first_element);
uint64_t lpx_attention_row_bytes(const lpx_attention *attention);
uint32_t lpx_attention_first_row(const lpx_attention_segment *segment, uint32_t head);
uint32_t lpx_attention_n_rows(const lpx_attention_segment *segment, uint32_t head);
/* How many KV heads from `first` on fit one binding; at least 1. */
uint32_t lpx_attention_heads_in_range(const lpx_attention *attention, const lpx_attention_segment *segment,
                                      uint32_t first);
/* 1 / sqrt(head_dim) * log2(e): exponentials are taken to base 2. */
float lpx_attention_scale(const lpx_attention *attention);

#endif
