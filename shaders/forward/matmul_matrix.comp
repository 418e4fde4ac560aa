#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// matmul.comp on cooperative matrices: Y[rows, columns] (+)= X[rows, depth] W^T, both operands rounded to f16, sums in f32.
// A workgroup's subgroups share a tile of outputs as a grid of GRID_ROWS x GRID_COLUMNS, ROWS x COLUMNS matrices each.
// Operands go through shared memory in two stages: while one is multiplied, the next one is under way in registers.

layout(constant_id = 0) const uint WEIGHT_TYPE = 2;
layout(constant_id = 1) const uint M = 16; // of a matrix
layout(constant_id = 2) const uint N = 16;
layout(constant_id = 3) const uint K = 16;
layout(constant_id = 4) const uint ROWS = 4;
layout(constant_id = 5) const uint COLUMNS = 2;
layout(constant_id = 6) const uint GRID_ROWS = 2;
layout(constant_id = 7) const uint GRID_COLUMNS = 4;
layout(constant_id = 8) const uint SUBGROUP_SIZE = 32;
layout(local_size_x_id = 9, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 10) const uint N_INVOCATIONS = 256; // the same

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

// Matrices stay in registers where loops over them are written out; drivers that run in software take minutes for that.
#ifdef ROLLED
#define UNROLLED [[dont_unroll]]
#else
#define UNROLLED [[unroll]]
#endif

#define DEPTH  32 // of a stage
#define STRIDE 10 // four halves each: two more than needed, so that rows begin in different banks

const uint TILE_ROWS = GRID_ROWS * ROWS * M;
const uint TILE_COLUMNS = GRID_COLUMNS * COLUMNS * N;
const uint STAGE = (TILE_ROWS + TILE_COLUMNS) * STRIDE;
const uint X_LOADS = TILE_ROWS * (DEPTH / 4) / N_INVOCATIONS;
const uint W_LOADS = TILE_COLUMNS * (DEPTH / 8) / N_INVOCATIONS;

shared f16vec4 staged[2 * STAGE];
shared float exchange[GRID_ROWS * GRID_COLUMNS * M * N];

#define SUM_MATRIX coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>
SUM_MATRIX sums[ROWS * COLUMNS];

uint row0, column0;
vec4 x_fetched[X_LOADS];
f16vec4 w_fetched[2 * W_LOADS];

uint workgroup_index() {
  return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
}

// The row's four elements of 8 * octet, and the next four.
void load_octet(uint first, uint octet, out f16vec4 low, out f16vec4 high) {
  if (WEIGHT_TYPE == DTYPE_F16) {
    const uvec4 words = weight[first + octet];
    low = f16vec4(unpackFloat2x16(words.x), unpackFloat2x16(words.y));
    high = f16vec4(unpackFloat2x16(words.z), unpackFloat2x16(words.w));
  } else {
    low = f16vec4(load_weight(first, push.depth, 2 * octet));
    high = f16vec4(load_weight(first, push.depth, 2 * octet + 1));
  }
}

void fetch(uint k0) {
  UNROLLED for (uint i = 0; i < X_LOADS; i++) {
    const uint at = i * N_INVOCATIONS + gl_LocalInvocationIndex;
    const uint row = row0 + at / (DEPTH / 4), quad = k0 / 4 + at % (DEPTH / 4);
    x_fetched[i] = vec4(0.0);
    if (row < push.n_rows && quad < push.depth / 4) x_fetched[i] = x[row * push.input_stride + quad];
  }
  UNROLLED for (uint i = 0; i < W_LOADS; i++) {
    const uint at = i * N_INVOCATIONS + gl_LocalInvocationIndex;
    const uint column = column0 + at / (DEPTH / 8), octet = k0 / 8 + at % (DEPTH / 8);
    w_fetched[2 * i] = f16vec4(0.0);
    w_fetched[2 * i + 1] = f16vec4(0.0);
    if (column < push.n_columns && octet * 8 < push.depth)
      load_octet(column * push.row_units, octet, w_fetched[2 * i], w_fetched[2 * i + 1]);
  }
}

void stage(uint base) {
  UNROLLED for (uint i = 0; i < X_LOADS; i++) {
    const uint at = i * N_INVOCATIONS + gl_LocalInvocationIndex;
    staged[base + at / (DEPTH / 4) * STRIDE + at % (DEPTH / 4)] = f16vec4(clamp(x_fetched[i], -65504.0, 65504.0));
  }
  UNROLLED for (uint i = 0; i < W_LOADS; i++) {
    const uint at = i * N_INVOCATIONS + gl_LocalInvocationIndex;
    const uint to = base + (TILE_ROWS + at / (DEPTH / 8)) * STRIDE + at % (DEPTH / 8) * 2;
    staged[to] = w_fetched[2 * i];
    staged[to + 1] = w_fetched[2 * i + 1];
  }
}

void multiply(uint base) {
  const uint x_first = base + gl_SubgroupID % GRID_ROWS * ROWS * M * STRIDE;
  const uint w_first = base + (TILE_ROWS + gl_SubgroupID / GRID_ROWS * COLUMNS * N) * STRIDE;
  UNROLLED for (uint k = 0; k < DEPTH / K; k++) {
    coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[ROWS];
    UNROLLED for (uint i = 0; i < ROWS; i++)
      coopMatLoad(a[i], staged, x_first + i * M * STRIDE + k * K / 4, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
    UNROLLED for (uint j = 0; j < COLUMNS; j++) {
      coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b;
      coopMatLoad(b, staged, w_first + j * N * STRIDE + k * K / 4, STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
      UNROLLED for (uint i = 0; i < ROWS; i++)
        sums[i * COLUMNS + j] = coopMatMulAdd(a[i], b, sums[i * COLUMNS + j]);
    }
  }
}

// Through shared memory, as rows and columns end anywhere.
void store() {
  const uint base = gl_SubgroupID * M * N;
  const uint row = row0 + gl_SubgroupID % GRID_ROWS * ROWS * M;
  const uint column = column0 + gl_SubgroupID / GRID_ROWS * COLUMNS * N;
  UNROLLED for (uint i = 0; i < ROWS * COLUMNS; i++) {
    subgroupBarrier();
    coopMatStore(sums[i], exchange, base, N, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    for (uint e = gl_SubgroupInvocationID; e < M * N; e += SUBGROUP_SIZE) {
      const uint to_row = row + i / COLUMNS * M + e / N, to_column = column + i % COLUMNS * N + e % N;
      if (to_row >= push.n_rows || to_column >= push.n_columns) continue;
      const uint at = push.output_first + to_row * push.output_stride + to_column;
      y[at] = push.accumulate != 0u ? y[at] + exchange[base + e] : exchange[base + e];
    }
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint group = push.first_group + workgroup_index();
  const uint n_row_tiles = (push.n_rows + TILE_ROWS - 1) / TILE_ROWS;
  row0 = group % n_row_tiles * TILE_ROWS;
  column0 = group / n_row_tiles * TILE_COLUMNS;
  UNROLLED for (uint i = 0; i < ROWS * COLUMNS; i++) sums[i] = SUM_MATRIX(0.0);
  uint now = 0;
  fetch(0);
  stage(0);
  barrier();
  for (uint k0 = 0; k0 < push.depth; k0 += DEPTH) {
    const bool more = k0 + DEPTH < push.depth;
    if (more) fetch(k0 + DEPTH);
    multiply(now);
    now = STAGE - now;
    if (more) stage(now);
    barrier();
  }
  store();
}
