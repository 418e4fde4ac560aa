#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// Projected-value norms on cooperative matrices, times the attention norms, mean over the group: the raw LaProx score.
// The factors of up to four query heads stay in registers, each head's in those of PARTS subgroups, and the values of 32
// candidates a step pass by them through shared memory, where the next step's are stored meanwhile. One workgroup per
// group_items tiles of 64 candidates.
//
// Of the factor's rows of matrices, the first has as many as the last lacks: subgroups take them in pairs, so that all have
// as much to do.
#include "repeat.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 4) const uint MODE = 0;
layout(constant_id = 5) const uint SIZE = 16; // of a matrix
layout(constant_id = 6) const uint SUBGROUP_SIZE = 32;
layout(local_size_x_id = 7, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 8) const uint N_INVOCATIONS = 128; // the same
layout(constant_id = 9) const uint PARTS = 2;           // subgroups that share a head
layout(constant_id = 10) const uint HEADS_AT_ONCE = 4;

#include "../evict/matrix.glsl"

#define STEP_ENTRIES 32
#define STEP_BUFFERS 2

const uint HEAD_TILES = (GROUP + HEADS_AT_ONCE - 1) / HEADS_AT_ONCE;
const uint TILE_HEADS = (GROUP + HEAD_TILES - 1) / HEAD_TILES;
const uint N_SUBGROUPS = TILE_HEADS * PARTS;
const uint COLUMN_MATRICES = STEP_ENTRIES / SIZE;
const uint ROW_PAIRS = (FACTOR_BLOCKS + 1) / 2;
const uint PAIRS = (ROW_PAIRS + PARTS - 1) / PARTS; // of a subgroup
const uint PAIR_MATRICES = FACTOR_BLOCKS + 1;

layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
layout(set = 0, binding = 2) buffer Work { float work[]; };
layout(set = 0, binding = 2) readonly buffer WorkWords { uint work_words[]; };
layout(set = 0, binding = 2) readonly buffer WorkHalves { f16vec4 work_halves[]; };

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

#define FACTOR_MATRIX coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseA>
#define VALUE_MATRIX  coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseB>
#define SUM_MATRIX    coopmat<float, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseAccumulator>

uint head, first_tile, next_tile, first_entry;
uint head_tile, part; // part: of the subgroup
uint factor_at;       // four halves in work_halves[], of this subgroup's head
bool two_parts;       // a factor of the group has more digits than f16

FACTOR_MATRIX factor[PAIRS * PAIR_MATRICES];
SUM_MATRIX products[PAIRS * 2 * COLUMN_MATRICES];

#include "../evict/items.glsl"
#include "../evict/step_matrix.glsl"
#include "../evict/column_sums.glsl"

// The head of the tile `first_tile`, and where its tiles end.
void find_head() {
  head = head_of(first_tile, HEAD_FIRST_TILE);
  next_tile = head + 1 < push.end_head ? min(push.end_item, head_word(head + 1, HEAD_FIRST_TILE)) : push.end_item;
  first_entry = head_word(head, HEAD_N_SINKS) + (first_tile - head_word(head, HEAD_FIRST_TILE)) * TILE_ENTRIES;
  find_rows(head);
}

uint prepared_of(uint group_head) {
  return push.prepared + (head * GROUP + min(group_head, GROUP - 1)) * PREPARED_WORDS;
}

bool has_two_parts() {
  uint parts = 1;
  for (uint group_head = 0; group_head < GROUP; group_head++)
    parts = max(parts, work_words[prepared_of(group_head) + PREPARED_FACTOR_PARTS]);
  return parts > 1;
}

// Row of matrices `which` of a pair, and whether there is one. A pair of one row has no second.
#define ROW_OF(pair, which)  ((which) == 0 ? (pair) : FACTOR_BLOCKS - 1 - (pair))
#define HAS_ROW(pair, which) ((pair) < ROW_PAIRS && ((which) == 0 || (pair) < FACTOR_BLOCKS - 1 - (pair)))
// Where a matrix of it is kept.
#define PLACE_OF(q, pair, which, column)                                                                             \
  ((q) * PAIR_MATRICES + ((which) == 0 ? (column) - (pair) : FACTOR_BLOCKS - (pair) + (column) - (FACTOR_BLOCKS - 1 - (pair))))

void load_factor_part(uint of) {
  UNROLLED for (uint q = 0; q < PAIRS; q++)
    UNROLLED for (uint which = 0; which < 2; which++)
      UNROLLED for (uint k = 0; k < FACTOR_BLOCKS; k++) {
        const uint pair = q * PARTS + of, row = ROW_OF(pair, which);
        if (HAS_ROW(pair, which) && k >= row)
          coopMatLoad(factor[PLACE_OF(q, pair, which, k)], work_halves,
                      factor_at + FACTOR_MATRIX_OF(row, k) * SIZE * SIZE / 4, SIZE / 4, gl_CooperativeMatrixLayoutRowMajor);
      }
}

void load_value_matrix(uint at, uint c, uint k, out VALUE_MATRIX b) {
  coopMatLoad(b, staged, at + c * SIZE * ROW_STRIDE + k * SIZE / 8, ROW_STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
}

// What the rounding to f16 left of the factor is read again and again, for there is no room for it.
void multiply_rest(uint of, uint at) {
  UNROLLED for (uint k = 0; k < FACTOR_BLOCKS; k++) {
    VALUE_MATRIX b[COLUMN_MATRICES];
    ONE_AFTER_ANOTHER
    UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) load_value_matrix(at, c, k, b[c]);
    UNROLLED for (uint q = 0; q < PAIRS; q++)
      UNROLLED for (uint which = 0; which < 2; which++) {
        const uint pair = q * PARTS + of, row = ROW_OF(pair, which);
        if (HAS_ROW(pair, which) && k >= row) {
          FACTOR_MATRIX rest;
          coopMatLoad(rest, work_halves, factor_at + (FACTOR_HALVES + FACTOR_MATRIX_OF(row, k) * SIZE * SIZE) / 4, SIZE / 4,
                      gl_CooperativeMatrixLayoutRowMajor);
          UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++)
            products[(q * 2 + which) * COLUMN_MATRICES + c] =
                coopMatMulAdd(rest, b[c], products[(q * 2 + which) * COLUMN_MATRICES + c]);
        }
      }
  }
}

void multiply_part(uint of, uint at) {
  UNROLLED for (uint k = 0; k < FACTOR_BLOCKS; k++)
    UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
      VALUE_MATRIX b;
      load_value_matrix(at, c, k, b);
      UNROLLED for (uint q = 0; q < PAIRS; q++)
        UNROLLED for (uint which = 0; which < 2; which++) {
          const uint pair = q * PARTS + of;
          if (HAS_ROW(pair, which) && k >= ROW_OF(pair, which))
            products[(q * 2 + which) * COLUMN_MATRICES + c] = coopMatMulAdd(
                factor[PLACE_OF(q, pair, which, k)], b, products[(q * 2 + which) * COLUMN_MATRICES + c]);
        }
    }
  if (two_parts) multiply_rest(of, at);

}

void load_factor() {
  two_parts = has_two_parts();
  factor_at = (prepared_of(head_tile * TILE_HEADS + gl_SubgroupID / PARTS) + PREPARED_FACTOR) / 2;
#define LOAD(of) if (of < PARTS && part == of) load_factor_part(of);
  REPEAT_4(LOAD)
}

void multiply(uint at) {
  UNROLLED for (uint i = 0; i < PAIRS * 2 * COLUMN_MATRICES; i++) products[i] = SUM_MATRIX(0.0);
#define MULTIPLY(of) if (of < PARTS && part == of) multiply_part(of, at);
  REPEAT_4(MULTIPLY)
}

// Sums of squares of the columns of this subgroup's products.
void sum_squares(uint step) {
  const uint to = (step % 2 * N_SUBGROUPS + gl_SubgroupID) * STEP_ENTRIES;
  UNROLLED for (uint c = 0; c < COLUMN_MATRICES; c++) {
    SUM_MATRIX squares = SUM_MATRIX(0.0);
    UNROLLED for (uint row = 0; row < PAIRS * 2; row++)
      UNROLLED for (uint e = 0; e < squares.length(); e++)
        squares[e] = fma(products[row * COLUMN_MATRICES + c][e], products[row * COLUMN_MATRICES + c][e], squares[e]);
    sum_columns(squares, to + c * SIZE);
  }
}

// Scores of a step are the work of 32 invocations, each time of others: SCORERS of them, each with SCORES.
const uint SCORERS = N_INVOCATIONS < STEP_ENTRIES ? N_INVOCATIONS : STEP_ENTRIES;
const uint SCORES = (STEP_ENTRIES + SCORERS - 1) / SCORERS;
const uint TURNS = N_INVOCATIONS / SCORERS;
float attention[SCORES * TILE_HEADS]; // of this step, times the factors' scale

bool is_scorer(uint step) {
  return gl_LocalInvocationIndex / SCORERS == step % TURNS;
}

// Read before the products, so that nobody waits for it afterwards.
void fetch_attention(uint step) {
  const uint tile = first_tile + step * STEP_ENTRIES / TILE_ENTRIES - push.items_base;
  UNROLLED for (uint i = 0; i < SCORES; i++)
    UNROLLED for (uint h = 0; h < TILE_HEADS; h++) {
      const uint group_head = head_tile * TILE_HEADS + h;
      const uint column = step * STEP_ENTRIES % TILE_ENTRIES + i * SCORERS + gl_LocalInvocationIndex % SCORERS;
      attention[i * TILE_HEADS + h] = 0.0;
      if (group_head < GROUP && column < TILE_ENTRIES)
        attention[i * TILE_HEADS + h] = work[prepared_of(group_head) + PREPARED_FACTOR_SCALE] *
                                        work[push.attention + (tile * GROUP + group_head) * TILE_ENTRIES + column];
    }
}

void write_scores(uint step) {
  const uint first_candidate = (first_tile - head_word(head, HEAD_FIRST_TILE)) * TILE_ENTRIES + step * STEP_ENTRIES;
  const uint block = head_word(head, HEAD_FIRST_BLOCK) - push.layer_block;
  UNROLLED for (uint i = 0; i < SCORES; i++) {
    const uint column = i * SCORERS + gl_LocalInvocationIndex % SCORERS, in_head = first_candidate + column;
    if (column >= STEP_ENTRIES || !has_row(first_entry + step * STEP_ENTRIES + column) || in_head >= head_word(head, HEAD_N_CANDIDATES)) continue;
    const uint to = push.raw + block * BLOCK_ENTRIES + in_head;
    float score = head_tile == 0 ? 0.0 : work[to];
    UNROLLED for (uint h = 0; h < TILE_HEADS; h++) {
      float square = 0.0;
      UNROLLED for (uint p = 0; p < PARTS; p++)
        square += sums[(step % 2 * N_SUBGROUPS + h * PARTS + p) * STEP_ENTRIES + column];
      score = fma(sqrt(square), attention[i * TILE_HEADS + h], score);
    }
    work[to] = head_tile + 1 == HEAD_TILES ? score / float(GROUP) : score;
  }
}

// Scores of the tiles [first_tile, next_tile) by the query heads of one head tile.
void add_scores() {
  const uint n_steps = (next_tile - first_tile) * (TILE_ENTRIES / STEP_ENTRIES);
  load_factor();
  fetch_step(first_entry);
  store_step(0);
  for (uint step = 0; step < n_steps; step++) {
    const uint at = step % 2 * STEP_OCTETS;
    if (step + 1 < n_steps) fetch_step(first_entry + (step + 1) * STEP_ENTRIES);
    barrier();
    if (step > 0 && is_scorer(step - 1)) write_scores(step - 1);
    if (is_scorer(step)) fetch_attention(step);
    multiply(at);
    if (step + 1 < n_steps) store_step(STEP_OCTETS - at);
    sum_squares(step);
  }
  barrier();
  if (is_scorer(n_steps - 1)) write_scores(n_steps - 1);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  first_tile = push.first_item + workgroup_index() * push.group_items;
  part = gl_SubgroupID % PARTS;
  const uint end = min(first_tile + push.group_items, push.end_item);
  for (; first_tile < end; first_tile = next_tile) {
    find_head();
    next_tile = min(next_tile, end);
    if (first_entry >= entries_end || first_entry + (next_tile - first_tile) * TILE_ENTRIES <= entries_begin) continue;
    for (head_tile = 0; head_tile < HEAD_TILES; head_tile++) add_scores();
  }
}
