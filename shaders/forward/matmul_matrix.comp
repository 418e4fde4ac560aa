#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// matmul.comp on cooperative matrices: Y[rows, columns] (+)= X[rows, depth] W^T, both operands rounded to f16, sums in f32.
// A workgroup's subgroups share a tile of outputs as a grid of GRID_ROWS x GRID_COLUMNS, ROWS x COLUMNS matrices each.
// Operands go through shared memory in stages. While one is multiplied, the next one is under way in registers, as memory
// has it: what is converted early is waited for before the products. X comes as halves, with zeros behind its rows.

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
layout(constant_id = 11) const uint DEPTH = 32;          // of a stage

layout(push_constant) uniform Push {
  uint n_groups;
  uint first_group;
  uint n_rows, n_columns, depth;
  uint row_units;                   // uvec4s of a row of W
  uint input_stride;                // uvec4s of a row of X, whole stages
  uint output_first, output_stride; // floats
  uint accumulate;
} push;

layout(binding = 0) readonly buffer Input { uvec4 x[]; };
layout(binding = 1) readonly buffer Weight { uvec4 weight[]; };
layout(binding = 1) readonly buffer WeightPairs { uvec2 weight_pairs[]; };
layout(binding = 1) readonly buffer WeightWords { uint weight_words[]; };
layout(binding = 2) buffer Output { float y[]; };

#define WEIGHT_DATA weight
#include "halves.glsl"
#include "weight.glsl"

// Matrices stay in registers where loops over them are written out; drivers that run in software take minutes for that.
#ifdef ROLLED
#define UNROLLED [[dont_unroll]]
#else
#define UNROLLED [[unroll]]
#endif

const uint TILE_ROWS = GRID_ROWS * ROWS * M;
const uint TILE_COLUMNS = GRID_COLUMNS * COLUMNS * N;
const uint OCTETS = DEPTH / 8;
const uint STRIDE = OCTETS + 1; // uvec4s; odd, so that neighbouring rows hit different banks
const uint STAGE = (TILE_ROWS + TILE_COLUMNS) * STRIDE;
const uint X_LOADS = (TILE_ROWS * OCTETS + N_INVOCATIONS - 1) / N_INVOCATIONS;
const uint W_LOADS = (TILE_COLUMNS * OCTETS + N_INVOCATIONS - 1) / N_INVOCATIONS;
const uint EXCHANGE = M * N / 4; // of a subgroup

shared uvec4 staged[STAGE > GRID_ROWS * GRID_COLUMNS * EXCHANGE ? STAGE : GRID_ROWS * GRID_COLUMNS * EXCHANGE];

#define SUM_MATRIX coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>
SUM_MATRIX sums[ROWS * COLUMNS];

uint row0, column0;
uvec4 x_fetched[X_LOADS], w_fetched[W_LOADS];
uint x_first[X_LOADS], w_first[W_LOADS]; // where the rows of these begin

uint workgroup_index() {
  return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
}

// ---- operands ----

// Eight elements of a row of W as they stand in memory; of Q8_0 their bytes, a word with two scales, and which of the two.
uvec4 fetch_octet(uint first, uint octet) {
  if (WEIGHT_TYPE == DTYPE_Q8_0)
    return uvec4(weight_pairs[2 * first + octet], weight_words[4 * first + push.depth / 4 + octet / 8], octet / 4 % 2);
  if (WEIGHT_TYPE == DTYPE_F32) {
    const vec4 low = load_weight(first, push.depth, 2 * octet);
    // A row's last octet may be half of one.
    const vec4 high = octet * 8 + 4 < push.depth ? load_weight(first, push.depth, 2 * octet + 1) : vec4(0.0);
    return uvec4(pack_halves(low), pack_halves(high));
  }
  return weight[first + octet];
}

// The same as eight halves.
uvec4 octet_halves(uvec4 fetched) {
  if (WEIGHT_TYPE == DTYPE_Q8_0) {
    const vec2 scales = unpackHalf2x16(fetched.z);
    const float scale = fetched.w == 0u ? scales.x : scales.y;
    return uvec4(pack_halves(scale * unpack_bytes(fetched.x)), pack_halves(scale * unpack_bytes(fetched.y)));
  }
  if (WEIGHT_TYPE == DTYPE_BF16)
    return uvec4(pack_halves(vec4(unpack_bf16(fetched.x), unpack_bf16(fetched.y))),
                 pack_halves(vec4(unpack_bf16(fetched.z), unpack_bf16(fetched.w))));
  return fetched;
}

// Row of number i of this invocation's octets of a stage, and its place there.
#define ROW_OF(i)   (((i) * N_INVOCATIONS + gl_LocalInvocationIndex) / OCTETS)
#define OCTET_OF(i) (((i) * N_INVOCATIONS + gl_LocalInvocationIndex) % OCTETS)

// Beyond the last row it is that one again: what comes of it is not stored.
void find_rows() {
  UNROLLED for (uint i = 0; i < X_LOADS; i++)
    x_first[i] = min(row0 + ROW_OF(i), push.n_rows - 1u) * push.input_stride + OCTET_OF(i);
  UNROLLED for (uint i = 0; i < W_LOADS; i++) w_first[i] = min(column0 + ROW_OF(i), push.n_columns - 1u) * push.row_units;
}

// The stage at k0, or the last one. Beyond the end of W's rows stands anything: X has zeros there, and no load depends on a
// condition, for it would be waited for where the condition ends.
void fetch(uint k0) {
  const uint first = min(k0 / 8, push.input_stride - OCTETS), last = (push.depth - 1u) / 8;
  UNROLLED for (uint i = 0; i < X_LOADS; i++) x_fetched[i] = x[x_first[i] + first];
  UNROLLED for (uint i = 0; i < W_LOADS; i++) w_fetched[i] = fetch_octet(w_first[i], min(first + OCTET_OF(i), last));
}

void stage() {
  UNROLLED for (uint i = 0; i < X_LOADS; i++)
    if (ROW_OF(i) < TILE_ROWS) staged[ROW_OF(i) * STRIDE + OCTET_OF(i)] = x_fetched[i];
  UNROLLED for (uint i = 0; i < W_LOADS; i++)
    if (ROW_OF(i) < TILE_COLUMNS) staged[(TILE_ROWS + ROW_OF(i)) * STRIDE + OCTET_OF(i)] = octet_halves(w_fetched[i]);
}

// ---- products ----

coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[ROWS];
coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b[COLUMNS];

void load_operands(uint k) {
  const uint x_at = gl_SubgroupID % GRID_ROWS * ROWS * M * STRIDE + k * K / 8;
  const uint w_at = (TILE_ROWS + gl_SubgroupID / GRID_ROWS * COLUMNS * N) * STRIDE + k * K / 8;
  UNROLLED for (uint i = 0; i < ROWS; i++)
    coopMatLoad(a[i], staged, x_at + i * M * STRIDE, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
  UNROLLED for (uint j = 0; j < COLUMNS; j++)
    coopMatLoad(b[j], staged, w_at + j * N * STRIDE, STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
}

void multiply() {
  UNROLLED for (uint j = 0; j < COLUMNS; j++)
    UNROLLED for (uint i = 0; i < ROWS; i++)
      sums[i * COLUMNS + j] = coopMatMulAdd(a[i], b[j], sums[i * COLUMNS + j]);
}

// Through shared memory, as rows and columns end anywhere.
void store() {
  const uint base = gl_SubgroupID * EXCHANGE;
  const uint row = row0 + gl_SubgroupID % GRID_ROWS * ROWS * M;
  const uint column = column0 + gl_SubgroupID / GRID_ROWS * COLUMNS * N;
  UNROLLED for (uint i = 0; i < ROWS * COLUMNS; i++) {
    subgroupBarrier();
    coopMatStore(sums[i], staged, base, N / 4, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    for (uint e = gl_SubgroupInvocationID; e < M * N; e += SUBGROUP_SIZE) {
      const uint to_row = row + i / COLUMNS * M + e / N, to_column = column + i % COLUMNS * N + e % N;
      if (to_row >= push.n_rows || to_column >= push.n_columns) continue;
      const uint at = push.output_first + to_row * push.output_stride + to_column;
      const float sum = uintBitsToFloat(staged[base + e / 4][e % 4]);
      y[at] = push.accumulate != 0u ? y[at] + sum : sum;
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
  find_rows();
  fetch(0);
  stage();
  barrier();
  for (uint k0 = 0; k0 < push.depth; k0 += DEPTH) {
    fetch(k0 + DEPTH);
    UNROLLED for (uint k = 0; k < DEPTH / K; k++) {
      load_operands(k);
      multiply();
    }
    barrier();
    stage();
    barrier();
  }
  store();
}
