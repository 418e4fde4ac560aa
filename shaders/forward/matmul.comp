// Y[rows, columns] (+)= X[rows, depth] W^T with W [columns, depth]: 64 x 128 outputs a workgroup, ROWS x 8 a thread; half
// as many rows for devices with few registers, which multiply two elements of them at a time. Both operands go through
// shared memory as f32; a row takes five vec4 there for four of data, so that neighbouring threads hit different banks.
//
// Variant DIRECT reads both from their buffers: for processors that run shaders in software, where shared memory is
// memory like any other and a barrier costs more than it saves. With SUBGROUP, whose subgroups have at most 16 threads and
// so one row of threads each, the compiler knows that all of them read the same of X.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifdef SUBGROUP
#extension GL_KHR_shader_subgroup_ballot : require
#endif
#include "index.glsl"
#include "repeat.glsl"

layout(constant_id = 0) const uint WEIGHT_TYPE = 2;

layout(push_constant) uniform Push {
  uint n_groups;
  uint first_group;
  uint n_rows, n_columns, depth;
  uint row_units;                   // uvec4s of a row of W
  uint input_stride;                // vec4s
  uint output_first, output_stride; // floats
  uint accumulate;
} push;

layout(binding = 0) readonly buffer Input { vec4 x[]; };
layout(binding = 1) readonly buffer Weight { uvec4 weight[]; };
layout(binding = 2) buffer Output { float y[]; };

#define WEIGHT_DATA weight
#include "weight.glsl"

#ifdef FEW_REGISTERS
#define ROWS        4
#define REPEAT_ROWS REPEAT_4
#define EACH_ROW    EACH_4
#define OPERAND     vec2
#define PARTS       2 // of four elements
#define PUT(tile, at, four)                                                                                          \
  tile[0][at] = (four).xy;                                                                                           \
  tile[1][at] = (four).zw;
#define MULTIPLY(j, i) sum[i][j] = fma(a##i.x, b.x, fma(a##i.y, b.y, sum[i][j]));
#else
#define ROWS        8
#define REPEAT_ROWS REPEAT_8
#define EACH_ROW    EACH_8
#define OPERAND     vec4
#define PARTS       1
#define PUT(tile, at, four) tile[0][at] = four;
#define MULTIPLY(j, i)                                                                                               \
  sum[i][j] = fma(a##i.x, b.x, fma(a##i.y, b.y, fma(a##i.z, b.z, fma(a##i.w, b.w, sum[i][j]))));
#endif

#define TILE_ROWS    (8 * ROWS)
#define TILE_COLUMNS 128
#define STRIDE       5

#ifndef DIRECT
shared OPERAND x_tile[PARTS][TILE_ROWS * STRIDE];
shared OPERAND w_tile[PARTS][TILE_COLUMNS * STRIDE];

// Rows and columns beyond the last repeat it and are not stored; beyond the depth are zeros, in place of what is loaded:
// what a branch may load takes registers in all of the loops around it, with some compilers.
void stage(uint row0, uint column0, uint quad0) {
  const uint t = gl_LocalInvocationID.x;
  const uint quad = min(quad0 + (t & 3u), (push.depth >> 2) - 1u);
  const bvec4 inside = bvec4(quad == quad0 + (t & 3u));
  [[unroll]] for (uint i = 0; i < TILE_ROWS / 32; i++) {
    const uint row = i * 32u + (t >> 2);
    const vec4 value = x[min(row0 + row, push.n_rows - 1u) * push.input_stride + quad];
    PUT(x_tile, row * STRIDE + (t & 3u), mix(vec4(0.0), value, inside))
  }
  [[unroll]] for (uint i = 0; i < TILE_COLUMNS / 32; i++) {
    const uint column = i * 32u + (t >> 2);
    const uint first = min(column0 + column, push.n_columns - 1u) * push.row_units;
    const vec4 value = load_weight(first, push.depth, quad);
    PUT(w_tile, column * STRIDE + (t & 3u), mix(vec4(0.0), value, inside))
  }
}
#endif

#define CLEAR(i, j) sum[i][j] = 0.0;
#define CLEAR_ROW(i) EACH_8(CLEAR, i)
#ifdef DIRECT
#define ROW(i) (ty * ROWS + i) // rows that are far apart fall into the same set of a processor's cache
// Rows and columns beyond the last repeat it and are not stored.
#define X_FIRST(i) const uint x_first##i = min(row0 + ROW(i), push.n_rows - 1u) * push.input_stride;
#define W_FIRST(j) const uint w_first##j = min(column0 + tx + 16u * j, push.n_columns - 1u) * push.row_units;
#define LOAD_X(i) x[x_first##i + k]
#define LOAD_W(j) load_weight(w_first##j, push.depth, k)
#else
#define ROW(i) (ty + 8u * i)
#define LOAD_X(i) x_tile[part][ROW(i) * STRIDE + k]
#define LOAD_W(j) w_tile[part][(tx + 16u * j) * STRIDE + k]
#endif
#define LOAD(i) const OPERAND a##i = LOAD_X(i);
#define MULTIPLY_COLUMN(j)                                                                                           \
  {                                                                                                                  \
    const OPERAND b = LOAD_W(j);                                                                                     \
    EACH_ROW(MULTIPLY, j)                                                                                            \
  }
#if defined(DIRECT) || defined(FEW_REGISTERS)
#define THREAD_X(t) (t & 15u)
#define THREAD_Y(t) WHOLE_ROW(t >> 4)
#else // neighbours in pairs read the same column, pairs side by side the same row: NVIDIA serves half a subgroup at once then
#define THREAD_X(t) (t >> 1 & 7u | t >> 2 & 8u)
#define THREAD_Y(t) (t & 1u | t >> 3 & 2u | t >> 4 & 4u)
#endif
#ifdef SUBGROUP
#define WHOLE_ROW(row) subgroupBroadcastFirst(row)
#else
#define WHOLE_ROW(row) (row)
#endif
#define STORE(i, j) store(row0 + ROW(i), column0 + tx + 16u * j, sum[i][j]);
#define STORE_ROW(i) EACH_8(STORE, i)

void store(uint row, uint column, float value) {
  if (row >= push.n_rows || column >= push.n_columns) return;
  const uint at = push.output_first + row * push.output_stride + column;
  y[at] = push.accumulate != 0u ? y[at] + value : value;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint group = push.first_group + workgroup_index();
  const uint n_row_tiles = (push.n_rows + TILE_ROWS - 1) / TILE_ROWS;
  const uint row0 = group % n_row_tiles * TILE_ROWS;
  const uint column0 = group / n_row_tiles * TILE_COLUMNS;
  const uint t = gl_LocalInvocationID.x, tx = THREAD_X(t), ty = THREAD_Y(t);
  float sum[ROWS][8];
  REPEAT_ROWS(CLEAR_ROW)
#ifdef DIRECT
  if (row0 + ROW(0u) >= push.n_rows) return; // a question of a few tokens fills a quarter of a tile
  REPEAT_ROWS(X_FIRST)
  REPEAT_8(W_FIRST)
  for (uint k = 0; k < push.depth >> 2; k++) {
    REPEAT_ROWS(LOAD)
    REPEAT_8(MULTIPLY_COLUMN)
  }
#else
  for (uint quad0 = 0; quad0 < push.depth >> 2; quad0 += 4) {
    barrier();
    stage(row0, column0, quad0);
    barrier();
    [[dont_unroll]] for (uint i = 0; i < 4 * PARTS; i++) {
      const uint k = i / PARTS, part = PARTS - 1u - i % PARTS; // the last first, as in a product of all four elements
      REPEAT_ROWS(LOAD)
      REPEAT_8(MULTIPLY_COLUMN)
    }
  }
#endif
  REPEAT_ROWS(STORE_ROW)
}
