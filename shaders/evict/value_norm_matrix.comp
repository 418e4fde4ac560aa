#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// Projected-value norms on cooperative matrices, times the attention norms, mean over the group: the raw LaProx score.
// Every subgroup keeps the values of some candidates in registers, and the factors of the group's query heads pass by through
// shared memory: while one is multiplied with, the next is on its way, and so are the values of the next candidates. One
// workgroup per group_items tiles.
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 5) const uint SIZE = 16; // of a matrix
layout(constant_id = 6) const uint SUBGROUP_SIZE = 32;
layout(local_size_x_id = 7, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 8) const uint N_INVOCATIONS = 128; // the same
layout(constant_id = 9) const uint CANDIDATES = 32;     // of a subgroup

#include "../evict/matrix.glsl"

const uint N_SUBGROUPS = N_INVOCATIONS / SUBGROUP_SIZE;
const uint TILES_AT_ONCE = N_SUBGROUPS * CANDIDATES / TILE_ENTRIES;
const uint ROW_MATRICES = CANDIDATES / SIZE;
const uint SCORES = SUBGROUP_SIZE < CANDIDATES ? CANDIDATES / SUBGROUP_SIZE : 1; // of an invocation

layout(set = 0, binding = 0) readonly buffer Rows { uint row_words[]; };
layout(set = 0, binding = 0) readonly buffer Rows4 { uvec4 row_octets[]; };
layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
layout(set = 0, binding = 2) buffer Work { float work[]; };
layout(set = 0, binding = 2) readonly buffer WorkWords { uint work_words[]; };
layout(set = 0, binding = 2) readonly buffer WorkOctets { uvec4 work_octets[]; };

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

#define VALUE_MATRIX  coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseA>
#define FACTOR_MATRIX coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseB>
#define SUM_MATRIX    coopmat<float, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseAccumulator>

// Two factors, or both parts of one; before them, strips of values: SIZE rows of every subgroup.
const uint FACTOR_OCTETS = FACTOR_HALVES / 8;
const uint ROW_LOADS = HEAD_DIM / 8;       // of 16 bytes
const uint STRIP_STRIDE = ROW_LOADS + 1;   // neighbouring rows hit different banks
const uint STRIP_OCTETS = SIZE * STRIP_STRIDE;
const uint STRIPS_OCTETS = N_SUBGROUPS * STRIP_OCTETS;
shared uvec4 staged[STRIPS_OCTETS < 2 * FACTOR_OCTETS ? 2 * FACTOR_OCTETS : STRIPS_OCTETS];

// Of a subgroup: a matrix, line after line, each with room behind that keeps them in different banks.
const uint LINE_QUADS = SIZE / 4 + 1;
const uint EXCHANGE_QUADS = SIZE * LINE_QUADS;
shared vec4 exchange[N_SUBGROUPS * EXCHANGE_QUADS];

uint head, first_tile, next_tile;
uint sinks, head_tile, n_candidates; // of the KV head; its first tile
uint scores_at;                      // word of its scores in work[]
uint first_candidate;                // of this subgroup

VALUE_MATRIX values[ROW_MATRICES * FACTOR_BLOCKS];
SUM_MATRIX squares[ROW_MATRICES];
float score[SCORES], attention[SCORES], factor_scale; // the latter of the query head that is multiplied with

#include "../evict/items.glsl"

// The head of the tile `first_tile`, and where its tiles end.
void find_head() {
  head = head_of(first_tile, HEAD_FIRST_TILE);
  head_tile = head_word(head, HEAD_FIRST_TILE);
  next_tile = head + 1 < push.end_head ? min(push.end_item, head_word(head + 1, HEAD_FIRST_TILE)) : push.end_item;
  sinks = head_word(head, HEAD_N_SINKS);
  n_candidates = head_word(head, HEAD_N_CANDIDATES);
  scores_at = push.raw + (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES;
  find_rows(head);
}

// Whether a row of the head's tiles [first, end) is in the binding.
bool has_tiles(uint first, uint end) {
  return has_rows(sinks + (first - head_tile) * TILE_ENTRIES, sinks + (end - head_tile) * TILE_ENTRIES);
}

// Of this subgroup, where a workgroup's tiles begin with that one.
uint candidate_at(uint tile) {
  return (tile - head_tile) * TILE_ENTRIES + gl_SubgroupID * CANDIDATES;
}

// ---- values ----

const uint STRIP_LOADS = (SIZE * ROW_LOADS + SUBGROUP_SIZE - 1) / SUBGROUP_SIZE; // an invocation's

#define STRIP_ROW(i)    (((i) * SUBGROUP_SIZE + gl_SubgroupInvocationID) / ROW_LOADS)
#define STRIP_OCTET(i)  (((i) * SUBGROUP_SIZE + gl_SubgroupInvocationID) % ROW_LOADS)
#define IS_OF_STRIP(i)  ((i) * SUBGROUP_SIZE + gl_SubgroupInvocationID < SIZE * ROW_LOADS)

uvec4 fetched_rows[ROW_MATRICES * STRIP_LOADS];

// Where a row stands of those fetched; beyond the binding's rows it is the nearest of them.
uint fetched_row(uint tile, uint r, uint i) {
  return row_start(clamp(sinks + candidate_at(tile) + r * SIZE + STRIP_ROW(i), entries_begin, entries_end - 1));
}

// No load depends on a condition, for it would be waited for where the condition ends.
void fetch_values(uint tile) {
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    UNROLLED for (uint i = 0; i < STRIP_LOADS; i++)
      fetched_rows[r * STRIP_LOADS + i] = row_octets[fetched_row(tile, r, i) / 8 + STRIP_OCTET(i)];
}

// The same of rows that don't begin at 16 bytes.
void fetch_words(uint tile) {
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    UNROLLED for (uint i = 0; i < STRIP_LOADS; i++) {
      const uint at = fetched_row(tile, r, i) / 2 + STRIP_OCTET(i) * 4;
      fetched_rows[r * STRIP_LOADS + i] = uvec4(row_words[at], row_words[at + 1], row_words[at + 2], row_words[at + 3]);
    }
}

void load_values() {
  const uint strip = gl_SubgroupID * STRIP_OCTETS;
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    UNROLLED for (uint i = 0; i < STRIP_LOADS; i++)
      if (IS_OF_STRIP(i)) staged[strip + STRIP_ROW(i) * STRIP_STRIDE + STRIP_OCTET(i)] = fetched_rows[r * STRIP_LOADS + i];
    subgroupBarrier();
    UNROLLED for (uint k = 0; k < FACTOR_BLOCKS; k++)
      coopMatLoad(values[r * FACTOR_BLOCKS + k], staged, strip + k * SIZE / 8, STRIP_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
  }
}

// ---- factors ----

const uint FACTOR_LOADS = (FACTOR_OCTETS + N_INVOCATIONS - 1) / N_INVOCATIONS; // of a part, an invocation's

uvec4 fetched_factor[FACTOR_LOADS];

uint prepared_of(uint group_head) {
  return push.prepared + (head * GROUP + group_head) * PREPARED_WORDS;
}

// Whether a factor of the group has more digits than f16.
bool has_two_parts() {
  uint parts = 1;
  for (uint group_head = 0; group_head < GROUP; group_head++)
    parts = max(parts, work_words[prepared_of(group_head) + PREPARED_FACTOR_PARTS]);
  return parts > 1;
}

void fetch_factor(uint group_head, uint part) {
  const uint at = (prepared_of(group_head) + PREPARED_FACTOR) / 4 + part * FACTOR_OCTETS;
  UNROLLED for (uint i = 0; i < FACTOR_LOADS; i++) {
    const uint octet = min(i * N_INVOCATIONS + gl_LocalInvocationIndex, FACTOR_OCTETS - 1);
    fetched_factor[i] = work_octets[at + octet];
  }
}

void store_factor(uint place) {
  UNROLLED for (uint i = 0; i < FACTOR_LOADS; i++) {
    const uint octet = i * N_INVOCATIONS + gl_LocalInvocationIndex;
    if (octet < FACTOR_OCTETS) staged[place % 2 * FACTOR_OCTETS + octet] = fetched_factor[i];
  }
}

void add_products(uint place, uint n, uint k, inout SUM_MATRIX products[ROW_MATRICES]) {
  FACTOR_MATRIX b;
  coopMatLoad(b, staged, place % 2 * FACTOR_OCTETS + FACTOR_MATRIX_OF(n, k) * SIZE / 8, FACTOR_LINE / 8,
              gl_CooperativeMatrixLayoutColumnMajor);
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
    products[r] = coopMatMulAdd(values[r * FACTOR_BLOCKS + k], b, products[r]);
}

// Squares of the products with a factor, added up matrix by matrix.
void multiply(uint place, bool two_parts) {
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) squares[r] = SUM_MATRIX(0.0);
  UNROLLED for (uint n = 0; n < FACTOR_BLOCKS; n++) {
    SUM_MATRIX products[ROW_MATRICES];
    UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) products[r] = SUM_MATRIX(0.0);
    UNROLLED for (uint k = n; k < FACTOR_BLOCKS; k++) add_products(place, n, k, products);
    if (two_parts)
      UNROLLED for (uint k = n; k < FACTOR_BLOCKS; k++) add_products(place + 1, n, k, products);
    UNROLLED for (uint r = 0; r < ROW_MATRICES; r++)
      UNROLLED for (uint e = 0; e < squares[r].length(); e++)
        squares[r][e] = fma(products[r][e], products[r][e], squares[r][e]);
  }
}

// ---- scores ----

// Candidate number i of this invocation, of the subgroup's.
uint column_of(uint i) {
  return i * SUBGROUP_SIZE + gl_SubgroupInvocationID;
}

bool is_scored(uint i) {
  const uint column = column_of(i), candidate = first_candidate + column;
  return column < CANDIDATES && head_tile + candidate / TILE_ENTRIES < next_tile && candidate < n_candidates && has_row(sinks + candidate);
}

// Of candidates that are none, anything.
void fetch_attention(uint group_head) {
  factor_scale = work[prepared_of(group_head) + PREPARED_FACTOR_SCALE];
  UNROLLED for (uint i = 0; i < SCORES; i++) {
    const uint candidate = first_candidate + column_of(i);
    const uint tile = min(head_tile + candidate / TILE_ENTRIES, next_tile - 1) - push.items_base;
    attention[i] = work[push.attention + (tile * GROUP + group_head) * TILE_ENTRIES + candidate % TILE_ENTRIES];
  }
}

// Sums along the rows go through shared memory, for nobody knows which invocation has what of a matrix.
void add_scores() {
  const uint at = gl_SubgroupID * EXCHANGE_QUADS;
  float square[SCORES];
  UNROLLED for (uint r = 0; r < ROW_MATRICES; r++) {
    subgroupBarrier();
    coopMatStore(squares[r], exchange, at, LINE_QUADS, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    UNROLLED for (uint i = 0; i < SCORES; i++) {
      vec4 total = vec4(0.0);
      UNROLLED for (uint q = 0; q < SIZE / 4; q++) total += exchange[at + column_of(i) % SIZE * LINE_QUADS + q];
      if (r == 0 || column_of(i) / SIZE == r) square[i] = (total.x + total.y) + (total.z + total.w);
    }
  }
  UNROLLED for (uint i = 0; i < SCORES; i++) score[i] = fma(sqrt(square[i]), factor_scale * attention[i], score[i]);
}

void write_scores() {
  UNROLLED for (uint i = 0; i < SCORES; i++)
    if (is_scored(i)) work[scores_at + first_candidate + column_of(i)] = score[i] / float(GROUP);
}

// Scores of TILES_AT_ONCE tiles from that one on. Their values and the first factor have been fetched; fetches those of the
// next tiles, or once more the last.
void score_tiles(uint tile, bool two_parts) {
  first_candidate = candidate_at(tile);
  UNROLLED for (uint i = 0; i < SCORES; i++) score[i] = 0.0;
  if (!rows_are_wide()) fetch_words(tile);
  barrier();
  load_values();
  barrier();
  store_factor(0);
  fetch_values(min(tile + TILES_AT_ONCE, next_tile - 1));
  for (uint group_head = 0; group_head < GROUP; group_head++) {
    fetch_attention(group_head);
    if (two_parts) {
      fetch_factor(group_head, 1);
      store_factor(group_head + 1);
      barrier();
      multiply(group_head, true);
      barrier();
      fetch_factor((group_head + 1) % GROUP, 0);
    } else {
      fetch_factor((group_head + 1) % GROUP, 0);
      barrier();
      multiply(group_head, false);
    }
    add_scores();
    if (group_head + 1 < GROUP) store_factor(group_head + 1);
  }
  write_scores();
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  first_tile = push.first_item + workgroup_index() * push.group_items;
  const uint end = min(first_tile + push.group_items, push.end_item);
  for (; first_tile < end; first_tile = next_tile) {
    find_head();
    next_tile = min(next_tile, end);
    if (!has_tiles(first_tile, next_tile)) continue;
    const bool two_parts = has_two_parts();
    fetch_values(first_tile);
    fetch_factor(0, 0);
    for (uint tile = first_tile; tile < next_tile; tile += TILES_AT_ONCE) score_tiles(tile, two_parts);
  }
}
