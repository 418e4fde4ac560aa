#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_vote : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
// prefill.comp on cooperative matrices, over a cache of f16. The query heads of a KV head are packed: row p of the kernel
// is query row p / GROUP of head p % GROUP. A subgroup has SIZE of them, with queries and output in its registers; the
// workgroup's subgroups share keys and values, which pass through shared memory in tiles. While the probabilities of one
// tile are found, and its values added, the next one's keys are multiplied, and what comes after these is under way in
// registers.
//
// Queries, with the scale of the logits, and probabilities are rounded to f16, as keys and values are.
//
// Elements of a matrix are spread over the subgroup in an unknown way, so that a row's maximum costs a detour through
// shared memory. It is taken rarely: exponents are relative to a level LEAST below a maximum, which the next ones may exceed
// by ROOM, for f16 has exponents to spare. Sums are kept element by element until the end.
#include "repeat.glsl"
#include "split.glsl"

layout(constant_id = 0) const uint HEAD_DIM = 64;
layout(constant_id = 1) const uint GROUP = 2;       // query heads a KV head
layout(constant_id = 2) const uint SIZE = 16;       // of a matrix
layout(constant_id = 3) const uint KEYS = 32;       // of a tile
layout(constant_id = 4) const uint SUBGROUP_SIZE = 32;
layout(local_size_x_id = 5, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 6) const uint N_INVOCATIONS = 128; // the same

layout(push_constant) uniform Push { // as in prefill.comp
  uint n_groups;
  uint first_group;
  uint n_rows;
  uint n_heads;
  uint query_heads;
  uint first_head;
  uint head_rows;
  uint n_visible;
  uint causal;
  uint key_first, value_first;
  uint state_first;
  uint carry;
  float scale;
} push;

layout(binding = 0) readonly buffer Query { vec4 query[]; };
layout(binding = 1) readonly buffer Key { uvec4 key[]; };
layout(binding = 2) readonly buffer Value { uvec4 value[]; };
layout(binding = 3) buffer Output { vec4 result[]; };

// Matrices stay in registers where loops over them are written out; drivers that run in software take minutes for that.
#ifdef ROLLED
#define UNROLLED [[dont_unroll]]
#define MATRICES DEPTH // of a row of queries or values
#define EACH_DEPTH(F) [[dont_unroll]] for (uint k = 0; k < DEPTH; k++) { F(k) }
#else
#define UNROLLED [[unroll]]
#define MATRICES 8
#define EACH_DEPTH(F) REPEAT_8(F)
#endif

#define LOWEST         -1.0e38
#define MINUS_INFINITY uintBitsToFloat(0xff800000u)
#define LEAST          7.0  // powers of two: a row's largest probability is no less when its level is set,
#define ROOM           15.0 // and no more later

const uint N_SUBGROUPS = N_INVOCATIONS / SUBGROUP_SIZE;
const uint DEPTH = HEAD_DIM / SIZE;
const uint COLUMNS = KEYS / SIZE;
const uint QUADS = HEAD_DIM / 4;
const uint OCTETS = HEAD_DIM / 8;
const uint SIZE_QUADS = SIZE / 4;
// In uvec4s; odd, so that neighbouring rows hit different banks.
const uint STRIDE = OCTETS + 1;
const uint P_STRIDE = KEYS / 8 + 1;
const uint Q_STRIDE = SIZE / 8 + 1;
const uint MATRIX = SIZE * SIZE_QUADS; // of f32
const uint EXCHANGE = SIZE * P_STRIDE > MATRIX ? SIZE * P_STRIDE : MATRIX;
const uint LOADS = (KEYS * OCTETS + N_INVOCATIONS - 1) / N_INVOCATIONS; // an invocation's of a tile

const uint TILE = KEYS * STRIDE;
shared uvec4 key_tiles[2 * TILE];
shared uvec4 value_tiles[2 * TILE];
shared uvec4 exchange[N_SUBGROUPS * EXCHANGE]; // a subgroup's probabilities, or what else it passes around
shared float row_level[N_SUBGROUPS * SIZE], row_factor[N_SUBGROUPS * SIZE];

#define A_MATRIX    coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseA>
#define B_MATRIX    coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseB>
#define SUM_MATRIX  coopmat<float, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseAccumulator>
#define HALF_MATRIX coopmat<float16_t, gl_ScopeSubgroup, SIZE, SIZE, gl_MatrixUseAccumulator>
#define ROW_MAJOR    gl_CooperativeMatrixLayoutRowMajor
#define COLUMN_MAJOR gl_CooperativeMatrixLayoutColumnMajor

A_MATRIX queries[MATRICES];
SUM_MATRIX logits[COLUMNS], next_logits[COLUMNS]; // of a tile and the one after it
SUM_MATRIX sums[MATRICES]; // of the values
SUM_MATRIX level;          // of a row, in all its elements
SUM_MATRIX total;          // of an element
uvec4 fetched_keys[LOADS], fetched_values[LOADS];
uint key_at[LOADS], value_at[LOADS]; // where they stand in the KV head's first entry

uint n_packed;                     // rows of the KV head
uint first_head, head_entry;       // of the KV head
uint first_row;                    // of the subgroup
uint own_row;                      // place of its first row in row_level[]
uint base, lane;                   // place in exchange[]; in the subgroup
uint limit, seen_by_all;           // entries that some row of the workgroup and every row of the subgroup sees
float scale;                       // of the logits, a power of two

// Between what a subgroup's invocations write and read. Subgroups come here at different times; Mesa's llvmpipe takes any
// control barrier for one of the workgroup, and its subgroups are vectors, which need none.
void join() {
#ifdef ROLLED
  subgroupMemoryBarrierShared();
#else
  subgroupBarrier();
#endif
}

uint workgroup_index() {
  return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
}

uint visible(uint row) {
  return push.n_visible + (push.causal != 0u ? min(row, n_packed - 1u) / GROUP : 0u);
}

// ---- queries ----

vec4 load_query(uint row, uint quad) {
  if (row >= n_packed) return vec4(0.0);
  return query[(row / GROUP * push.query_heads + first_head + row % GROUP) * QUADS + quad] * push.scale;
}

// Of the power of two that the subgroup's queries are divided by.
uint find_exponent() {
  uint largest = 0;
  for (uint i = lane; i < SIZE * QUADS; i += SUBGROUP_SIZE) {
    const vec4 q = load_query(first_row + i / QUADS, i % QUADS);
    [[unroll]] for (uint e = 0; e < 4; e++)
      if (is_finite(q[e])) largest = max(largest, floatBitsToUint(abs(q[e])));
  }
  exchange[base + lane / 4][lane % 4] = largest;
  join();
  for (uint i = 0; i < SUBGROUP_SIZE / 4; i++) {
    const uvec4 others = exchange[base + i];
    largest = max(largest, max(max(others.x, others.y), max(others.z, others.w)));
  }
  join();
  return exponent_for(largest);
}

void write_half_quad(uint at, uint half_quad, vec4 numbers) {
  const uvec2 halves = uvec2(packHalf2x16(numbers.xy), packHalf2x16(numbers.zw));
  if (half_quad == 0u) exchange[at].xy = halves;
  else exchange[at].zw = halves;
}

// A matrix of queries, from element k * SIZE on.
void stage_query(uint k, float factor) {
  join();
  for (uint i = lane; i < MATRIX; i += SUBGROUP_SIZE) {
    const uint row = i / SIZE_QUADS, quad = i % SIZE_QUADS;
    write_half_quad(base + row * Q_STRIDE + quad / 2, quad % 2, load_query(first_row + row, k * SIZE_QUADS + quad) * factor);
  }
  join();
}

#define LOAD_QUERY(k)                                                                                                \
  if (k < DEPTH) {                                                                                                   \
    stage_query(k, factor);                                                                                          \
    coopMatLoad(queries[k], exchange, base, Q_STRIDE, ROW_MAJOR);                                                    \
  }

void load_queries() {
  const uint exponent = find_exponent();
  const float factor = uintBitsToFloat((254u - exponent) << 23);
  scale = uintBitsToFloat(exponent << 23);
  EACH_DEPTH(LOAD_QUERY)
  join();
}

// ---- tiles ----

void find_places() {
  UNROLLED for (uint i = 0; i < LOADS; i++) {
    const uint n = i * N_INVOCATIONS + gl_LocalInvocationIndex, at = head_entry * OCTETS + n % OCTETS;
    key_at[i] = push.key_first / 8 + at;
    value_at[i] = push.value_first / 8 + at;
  }
}

// Beyond the last entry it is that one again, which some row sees: what comes of it is hidden.
#define FETCH(fetched, buffer, first)                                                                                \
  UNROLLED for (uint i = 0; i < LOADS; i++) {                                                                        \
    const uint n = i * N_INVOCATIONS + gl_LocalInvocationIndex;                                                      \
    const uint entry = min(key0 + n / OCTETS, limit - 1u);                                                           \
    fetched[i] = buffer[first[i] + entry * OCTETS];                                                                  \
  }

// Conditions keep a compiler from delaying the loads until they are needed.
void fetch_keys(uint key0) {
  if (key0 < limit)
    FETCH(fetched_keys, key, key_at)
}

void fetch_values(uint key0) {
  if (key0 < limit)
    FETCH(fetched_values, value, value_at)
}

#define STORE(buffer, fetched)                                                                                       \
  UNROLLED for (uint i = 0; i < LOADS; i++) {                                                                        \
    const uint n = i * N_INVOCATIONS + gl_LocalInvocationIndex;                                                      \
    if (n < KEYS * OCTETS) buffer[tile * TILE + n / OCTETS * STRIDE + n % OCTETS] = fetched[i];                      \
  }

void store_keys(uint tile) {
  STORE(key_tiles, fetched_keys)
}

void store_values(uint tile) {
  STORE(value_tiles, fetched_values)
}

// ---- scores ----

// Products that follow one another have different sums: each waits for its sum.
#define MULTIPLY(k)                                                                                                  \
  if (k < DEPTH) {                                                                                                   \
    B_MATRIX b[COLUMNS];                                                                                             \
    UNROLLED for (uint c = 0; c < COLUMNS; c++)                                                                      \
      coopMatLoad(b[c], key_tiles, tile * TILE + c * SIZE * STRIDE + k * SIZE / 8, STRIDE, COLUMN_MAJOR);            \
    UNROLLED for (uint c = 0; c < COLUMNS; c++) next_logits[c] = coopMatMulAdd(queries[k], b[c], next_logits[c]);    \
  }

void multiply(uint tile) {
  UNROLLED for (uint c = 0; c < COLUMNS; c++) next_logits[c] = SUM_MATRIX(0.0);
  EACH_DEPTH(MULTIPLY)
}

// Takes out what a row doesn't see.
void hide(uint key0) {
  UNROLLED for (uint c = 0; c < COLUMNS; c++) {
    join();
    for (uint i = lane; i < MATRIX; i += SUBGROUP_SIZE) {
      const uint n = visible(first_row + i / SIZE_QUADS), entry = key0 + c * SIZE + i % SIZE_QUADS * 4;
      exchange[base + i] = uvec4(lessThan(uvec4(entry, entry + 1, entry + 2, entry + 3), uvec4(n))) * 0x3f800000u;
    }
    join();
    SUM_MATRIX seen;
    coopMatLoad(seen, exchange, base, SIZE_QUADS, ROW_MAJOR);
    UNROLLED for (uint e = 0; e < seen.length(); e++)
      if (seen[e] == 0.0) logits[c][e] = MINUS_INFINITY;
  }
  join();
}

// ---- softmax ----

#define SCALE_SUM(k)                                                                                                 \
  if (k < DEPTH) UNROLLED for (uint e = 0; e < factor.length(); e++) sums[k][e] *= factor[e];

// The same number in all elements of a row. Columns may be one and the same.
void spread_rows(bool factors, out SUM_MATRIX rows) {
  if (factors) coopMatLoad(rows, row_factor, own_row, 0, COLUMN_MAJOR);
  else coopMatLoad(rows, row_level, own_row, 0, COLUMN_MAJOR);
}

// Brings the rows' levels up to date, and what is relative to them.
void raise() {
  SUM_MATRIX factor = logits[0];
  UNROLLED for (uint c = 1; c < COLUMNS; c++)
    UNROLLED for (uint e = 0; e < factor.length(); e++) factor[e] = max(factor[e], logits[c][e]);
  join();
  coopMatStore(factor, exchange, base, SIZE_QUADS, ROW_MAJOR);
  join();
  for (uint row = lane; row < SIZE; row += SUBGROUP_SIZE) {
    const float old = row_level[own_row + row];
    float highest = old;
    for (uint i = 0; i < SIZE_QUADS; i++) {
      const vec4 four = uintBitsToFloat(exchange[base + row * SIZE_QUADS + i]) * scale - LEAST;
      highest = max(highest, max(max(four.x, four.y), max(four.z, four.w)));
    }
    row_level[own_row + row] = highest;
    row_factor[own_row + row] = exp2(old - highest);
  }
  join();
  spread_rows(false, level);
  spread_rows(true, factor);
  UNROLLED for (uint e = 0; e < factor.length(); e++) total[e] *= factor[e];
  EACH_DEPTH(SCALE_SUM)
}

// Not after raise(): the scale's products are exact.
bool is_above() {
  float most = -ROOM;
  UNROLLED for (uint c = 0; c < COLUMNS; c++)
    UNROLLED for (uint e = 0; e < level.length(); e++) most = max(most, fma(logits[c][e], scale, -level[e]));
  return subgroupAny(most > ROOM);
}

// Logits to probabilities, which go to exchange[].
void exponentiate() {
  UNROLLED for (uint c = 0; c < COLUMNS; c++) {
    HALF_MATRIX halves;
    UNROLLED for (uint e = 0; e < level.length(); e++) {
      const float p = exp2(fma(logits[c][e], scale, -level[e]));
      total[e] += p;
      halves[e] = float16_t(p);
    }
    coopMatStore(halves, exchange, base + c * SIZE / 8, P_STRIDE, ROW_MAJOR);
  }
  join();
}

// Of a strip of values.
#define ADD_VALUES(k)                                                                                                \
  if (k < DEPTH) {                                                                                                   \
    B_MATRIX b;                                                                                                      \
    coopMatLoad(b, value_tiles, tile * TILE + c * SIZE * STRIDE + k * SIZE / 8, STRIDE, ROW_MAJOR);                  \
    sums[k] = coopMatMulAdd(probabilities, b, sums[k]);                                                              \
  }

void add_values(uint tile) {
  UNROLLED for (uint c = 0; c < COLUMNS; c++) {
    A_MATRIX probabilities;
    coopMatLoad(probabilities, exchange, base + c * SIZE / 8, P_STRIDE, ROW_MAJOR);
    EACH_DEPTH(ADD_VALUES)
  }
}

// ---- rows ----

uint result_row(uint row) {
  return row / GROUP * push.n_heads + first_head + row % GROUP;
}

// (level, sum) that a row goes on from.
vec2 carried(uint row) {
  if (push.carry == 0u || row >= n_packed) return vec2(LOWEST, 0.0);
  return result[push.state_first + result_row(row)].xy;
}

#define CARRY_SUM(k)                                                                                                 \
  if (k < DEPTH) {                                                                                                   \
    for (uint i = lane; i < MATRIX; i += SUBGROUP_SIZE) {                                                 \
      const uint row = first_row + i / SIZE_QUADS;                                                                   \
      vec4 four = vec4(0.0);                                                                                         \
      if (row < n_packed)                                                                                            \
        four = result[result_row(row) * QUADS + k * SIZE_QUADS + i % SIZE_QUADS] * carried(row).y;                   \
      exchange[base + i] = floatBitsToUint(four);                                                                    \
    }                                                                                                                \
    join();                                                                                                          \
    coopMatLoad(sums[k], exchange, base, SIZE_QUADS, ROW_MAJOR);                                                     \
    join();                                                                                                          \
  }

#define CLEAR_SUM(k)                                                                                                 \
  if (k < DEPTH) sums[k] = SUM_MATRIX(0.0);

void begin_rows() {
  for (uint row = lane; row < SIZE; row += SUBGROUP_SIZE) row_level[own_row + row] = carried(first_row + row).x;
  for (uint i = lane; i < MATRIX; i += SUBGROUP_SIZE) {
    const float sum = i % SIZE_QUADS == 0 ? carried(first_row + i / SIZE_QUADS).y : 0.0;
    exchange[base + i] = uvec4(floatBitsToUint(sum), 0, 0, 0);
  }
  join();
  spread_rows(false, level);
  coopMatLoad(total, exchange, base, SIZE_QUADS, ROW_MAJOR);
  join();
  EACH_DEPTH(CLEAR_SUM)
  if (push.carry == 0u) return;
  EACH_DEPTH(CARRY_SUM)
}

// Leaves levels and sums behind the output, and the factors of its rows.
void end_softmax() {
  join();
  coopMatStore(total, exchange, base, SIZE_QUADS, ROW_MAJOR);
  join();
  for (uint i = lane; i < SIZE; i += SUBGROUP_SIZE) {
    const uint row = first_row + i;
    vec4 four = vec4(0.0);
    for (uint q = 0; q < SIZE_QUADS; q++) four += uintBitsToFloat(exchange[base + i * SIZE_QUADS + q]);
    const vec2 state = vec2(row_level[own_row + i], four.x + four.y + four.z + four.w);
    row_factor[own_row + i] = state.y > 0.0 ? 1.0 / state.y : 0.0;
    if (row < n_packed) result[push.state_first + result_row(row)] = vec4(state, state);
  }
  join();
}

#define STORE_SUM(k)                                                                                                 \
  if (k < DEPTH) {                                                                                                   \
    coopMatStore(sums[k], exchange, base, SIZE_QUADS, ROW_MAJOR);                                                    \
    join();                                                                                                          \
    for (uint i = lane; i < MATRIX; i += SUBGROUP_SIZE) {                                                 \
      const uint place = i / SIZE_QUADS, row = first_row + place;                                                    \
      if (row < n_packed)                                                                                            \
        result[result_row(row) * QUADS + k * SIZE_QUADS + i % SIZE_QUADS] =                                          \
            uintBitsToFloat(exchange[base + i]) * row_factor[own_row + place];                                     \
    }                                                                                                                \
    join();                                                                                                          \
  }

void store_rows() {
  end_softmax();
  EACH_DEPTH(STORE_SUM)
}

// Finds the workgroup's rows, the last ones first: they take longest.
void find_rows() {
  const uint group = push.first_group + workgroup_index();
  n_packed = push.n_rows * GROUP;
  const uint tile_rows = N_SUBGROUPS * SIZE, n_tiles = (n_packed + tile_rows - 1) / tile_rows;
  const uint row0 = (n_tiles - 1 - group % n_tiles) * tile_rows;
  first_head = push.first_head + group / n_tiles * GROUP;
  head_entry = group / n_tiles * push.head_rows;
  first_row = row0 + gl_SubgroupID * SIZE;
  limit = visible(row0 + tile_rows - 1);
  seen_by_all = visible(first_row);
  own_row = gl_SubgroupID * SIZE;
  lane = gl_SubgroupInvocationID;
  base = gl_SubgroupID * EXCHANGE;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  find_rows();
  load_queries();
  begin_rows();
  find_places();
  fetch_keys(0);
  fetch_values(0);
  store_keys(0);
  store_values(0);
  fetch_keys(KEYS);
  store_keys(1);
  fetch_keys(2 * KEYS);
  fetch_values(KEYS);
  barrier();
  multiply(0);
  for (uint key0 = 0, tile = 0; key0 < limit; key0 += KEYS, tile ^= 1u) {
    barrier();
    store_keys(tile);
    store_values(tile ^ 1u);
    fetch_keys(key0 + 3 * KEYS);
    fetch_values(key0 + 2 * KEYS);
    UNROLLED for (uint c = 0; c < COLUMNS; c++) logits[c] = next_logits[c];
    if (key0 + KEYS > seen_by_all) hide(key0);
    [[dont_unroll]] while (is_above()) raise();
    multiply(tile ^ 1u);
    exponentiate();
    add_values(tile);
  }
  store_rows();
}
