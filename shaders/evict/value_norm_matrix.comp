#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// Projected-value norms on cooperative matrices, times the attention norms, mean over the group: the raw LaProx score. A
// subgroup holds the values of 32 or 64 candidates, the factors' triangles go through shared memory: at once where f16 holds
// them, else in three pieces, each with what the rounding left over. One workgroup per group_items tiles of 64 candidates, which
// are its subgroups' candidates.
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 4) const uint MODE = 0;
layout(constant_id = 5) const uint SIZE = 16; // of a matrix
layout(constant_id = 6) const uint SUBGROUP_SIZE = 32;
layout(local_size_x_id = 7, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 8) const uint N_INVOCATIONS = 128; // the same
layout(constant_id = 9) const uint CANDIDATES = 32;     // of a subgroup

#include "../evict/matrix.glsl"


const uint N_SUBGROUPS = N_INVOCATIONS / SUBGROUP_SIZE;
const uint ROW_MATRICES = CANDIDATES / SIZE;
const uint DEPTH_MATRICES = HEAD_DIM / SIZE;

// What a workgroup stages: 32 elements of every candidate, or triangles.
#define VALUE_DEPTH  32
#define VALUE_STRIDE 10 // in four halves
const uint VALUE_QUADS = N_SUBGROUPS * CANDIDATES * VALUE_STRIDE;
const uint PIECE_BLOCKS = (FACTOR_BLOCKS + 2) / 3;
const uint FACTOR_QUADS = FACTOR_START(PIECE_BLOCKS) * 2 > FACTOR_HALVES ? FACTOR_START(PIECE_BLOCKS) / 2 : FACTOR_HALVES / 4;
const uint STAGED_QUADS = VALUE_QUADS > FACTOR_QUADS ? VALUE_QUADS : FACTOR_QUADS;
const uint LOADS = CANDIDATES * (VALUE_DEPTH / 8) / SUBGROUP_SIZE;
const uint STEPS = (HEAD_DIM + VALUE_DEPTH - 1) / VALUE_DEPTH;

layout(set = 0, binding = 0) readonly buffer Value { uint value[]; };
layout(set = 0, binding = 0) readonly buffer Value4 { uvec4 value4[]; };
layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
layout(set = 0, binding = 2) buffer Work { float work[]; };
layout(set = 0, binding = 2) readonly buffer WorkWords { uint work_words[]; };
layout(set = 0, binding = 2) readonly buffer WorkQuads { f16vec4 work_quads[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;
  uint first_head, end_head;
  uint first_item, end_item; // tiles, in the layer
  uint group_items;
  RowLayout rows; // of V
  uint prepared;
  uint attention;  // word of the attention part in work[]
  uint items_base; // tile that the attention part begins with
  uint raw;        // word of the layer's raw scores in work[]
  uint layer_block;
} push;

uint workgroup_index() {
  return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
}

shared f16vec4 staged[STAGED_QUADS];
shared float exchange[N_SUBGROUPS * SIZE * SIZE];

#define VALUE_MATRIX  coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseA>
#define FACTOR_MATRIX coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseB>
#define SUM_MATRIX    coopmat<float, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseAccumulator>

uint head, first_tile, next_tile, first_entry;

VALUE_MATRIX values[ROW_MATRICES * DEPTH_MATRICES];
SUM_MATRIX squares[ROW_MATRICES];

#include "../evict/items.glsl"

// The head of the tile `first_tile`, and where its tiles end.
void find_head() {
  head = head_of(first_tile, HEAD_FIRST_TILE);
  next_tile = head + 1 < push.end_head ? min(push.end_item, head_word(head + 1, HEAD_FIRST_TILE)) : push.end_item;
  first_entry = head_word(head, HEAD_N_SINKS) + (first_tile - head_word(head, HEAD_FIRST_TILE)) * TILE_ENTRIES;
  find_rows(head);
}

uvec4 load_value(uint row, uint column) {
  const uint entry = first_entry + gl_SubgroupID * CANDIDATES + row;
  if (!has_row(entry) || column >= HEAD_DIM) return uvec4(0);
  const uint at = row_start(entry) + column;
  if (rows_are_wide()) return value4[at >> 3];
  return uvec4(value[at >> 1], value[(at >> 1) + 1], value[(at >> 1) + 2], value[(at >> 1) + 3]);
}

void load_values() {
  const uint base = gl_SubgroupID * CANDIDATES * VALUE_STRIDE;
  uvec4 fetched[STEPS * LOADS];
  UNROLLED for (uint i = 0; i < STEPS * LOADS; i++) {
    const uint n = i % LOADS * SUBGROUP_SIZE + gl_SubgroupInvocationID;
    fetched[i] = load_value(n / (VALUE_DEPTH / 8), i / LOADS * VALUE_DEPTH + n % (VALUE_DEPTH / 8) * 8);
  }
  UNROLLED for (uint step = 0; step < STEPS; step++) {
    barrier();
    UNROLLED for (uint i = 0; i < LOADS; i++) {
      const uint n = i * SUBGROUP_SIZE + gl_SubgroupInvocationID;
      const uint at = base + n / (VALUE_DEPTH / 8) * VALUE_STRIDE + n % (VALUE_DEPTH / 8) * 2;
      const uvec4 words = fetched[step * LOADS + i];
      staged[at] = f16vec4(unpackFloat2x16(words.x), unpackFloat2x16(words.y));
      staged[at + 1] = f16vec4(unpackFloat2x16(words.z), unpackFloat2x16(words.w));
    }
    barrier();
    UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
      UNROLLED for (uint k = 0; k < VALUE_DEPTH / SIZE; k++)
        if (step * (VALUE_DEPTH / SIZE) + k < DEPTH_MATRICES)
          coopMatLoad(values[r * DEPTH_MATRICES + step * (VALUE_DEPTH / SIZE) + k], staged,
                      base + r * SIZE * VALUE_STRIDE + k * SIZE / 4, VALUE_STRIDE,
                      gl_CooperativeMatrixLayoutRowMajor);
  }
}

// Halves [first, end) of a part of the factor.
void stage_factor(uint from, uint first, uint end, uint to) {
  for (uint i = first / 4 + gl_LocalInvocationIndex; i < end / 4; i += N_INVOCATIONS)
    staged[to + i - first / 4] = work_quads[from + i];
}

void multiply(uint block, uint at, inout SUM_MATRIX products[ROW_MATRICES]) {
  UNROLLED for (uint k = block; k < DEPTH_MATRICES; k++) {
    FACTOR_MATRIX b;
    coopMatLoad(b, staged, at + (k - block) * SIZE / 4, FACTOR_STRIDE(block) / 4, gl_CooperativeMatrixLayoutColumnMajor);
    UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
      products[r] = coopMatMulAdd(values[r * DEPTH_MATRICES + k], b, products[r]);
  }
}

// Squares of the products with factor rows of blocks [first, end), which begin at half `start` in every staged part.
void add_blocks(uint first, uint end, uint start, bool two_parts, uint part_quads) {
  UNROLLED for (uint j = 0; j < FACTOR_BLOCKS; j++)
    if (j >= first && j < end) {
      SUM_MATRIX products[ROW_MATRICES];
      UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) products[r] = SUM_MATRIX(0.0);
      const uint at = (FACTOR_START(j) - start) / 4;
      multiply(j, at, products);
      if (two_parts) multiply(j, at + part_quads, products);
      UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
        UNROLLED for (uint e = 0; e < products[r].length(); e++)
          squares[r][e] = fma(products[r][e], products[r][e], squares[r][e]);
    }
}

const uint N_NORMS = SUBGROUP_SIZE < CANDIDATES ? CANDIDATES / SUBGROUP_SIZE : 1; // |R v| of an invocation's candidates
float norms[N_NORMS];

void project(uint group_head) {
  const uint at = push.prepared + (head * GROUP + group_head) * PREPARED_WORDS;
  const uint parts = work_words[at + PREPARED_FACTOR_PARTS], from = (at + PREPARED_FACTOR) / 2;
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) squares[r] = SUM_MATRIX(0.0);
  if (parts == 1) {
    barrier();
    stage_factor(from, 0, FACTOR_HALVES, 0);
    barrier();
    add_blocks(0, FACTOR_BLOCKS, 0, false, 0);
    return;
  }
  for (uint first = 0; first < FACTOR_BLOCKS; first += PIECE_BLOCKS) {
    const uint end = min(first + PIECE_BLOCKS, FACTOR_BLOCKS);
    const uint start = FACTOR_START(first), stop = FACTOR_START(end), quads = (stop - start) / 4;
    barrier();
    stage_factor(from, start, stop, 0);
    stage_factor(from + FACTOR_HALVES / 4, start, stop, quads);
    barrier();
    add_blocks(first, end, start, true, quads);
  }
}

// Row sums of the squares, for the invocation's candidates n x SUBGROUP_SIZE + invocation.
void sum_squares() {
  const uint base = gl_SubgroupID * SIZE * SIZE;
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    subgroupBarrier();
    coopMatStore(squares[r], exchange, base, SIZE, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    UNROLLED for (uint n = 0; n < N_NORMS; n++) {
      const uint row = n * SUBGROUP_SIZE + gl_SubgroupInvocationID - r * SIZE;
      if (row >= SIZE) continue;
      float total = 0.0;
      for (uint x = 0; x < SIZE; x++) total += exchange[base + row * SIZE + x];
      norms[n] = sqrt(total);
    }
  }
}

void write_score(uint row, float score) {
  const uint candidate = gl_SubgroupID * CANDIDATES + row, entry = first_entry + candidate;
  const uint in_head = (first_tile - head_word(head, HEAD_FIRST_TILE)) * TILE_ENTRIES + candidate;
  if (row >= CANDIDATES || first_tile + candidate / TILE_ENTRIES >= next_tile) return;
  if (entry < entries_begin || entry >= entries_end || in_head >= head_word(head, HEAD_N_CANDIDATES)) return;
  const uint block = head_word(head, HEAD_FIRST_BLOCK) - push.layer_block;
  work[push.raw + block * BLOCK_ENTRIES + in_head] = score;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  first_tile = push.first_item + workgroup_index() * push.group_items;
  const uint end = min(first_tile + push.group_items, push.end_item);
  for (; first_tile < end; first_tile = next_tile) {
    find_head();
    next_tile = min(next_tile, end);
    if (first_entry >= entries_end || first_entry + (next_tile - first_tile) * TILE_ENTRIES <= entries_begin) continue;
    load_values();
    float scores[N_NORMS];
    UNROLLED for (uint n = 0; n < N_NORMS; n++) scores[n] = 0.0;
    for (uint group_head = 0; group_head < GROUP; group_head++) {
      project(group_head);
      sum_squares();
      const float factor_scale = work[push.prepared + (head * GROUP + group_head) * PREPARED_WORDS + PREPARED_FACTOR_SCALE];
      UNROLLED for (uint n = 0; n < N_NORMS; n++) {
        const uint candidate = gl_SubgroupID * CANDIDATES + n * SUBGROUP_SIZE + gl_SubgroupInvocationID;
        const uint tile = first_tile + candidate / TILE_ENTRIES - push.items_base;
        if (first_tile + candidate / TILE_ENTRIES < next_tile)
          scores[n] += norms[n] * factor_scale *
                       work[push.attention + (tile * GROUP + group_head) * TILE_ENTRIES + candidate % TILE_ENTRIES];
      }
    }
    UNROLLED for (uint n = 0; n < N_NORMS; n++)
      write_score(n * SUBGROUP_SIZE + gl_SubgroupInvocationID, scores[n] / float(GROUP));
  }
}
