// Attention of a chunk of query rows over one stretch of the cache, with online softmax: a workgroup takes QUERIES rows
// of one query head and walks over the keys in tiles of 64. Scores live in registers, ROWS x 4 a thread; probabilities
// pass through shared memory.
//
// It leaves maximum and sum of every row behind the output. Over two stretches (ragged prefix, dense tail) it runs
// twice: the second run carries on from what the first one has left.
//
// A thread has ROWS x COLUMNS vec4 of output in registers, so that a workgroup has 64 x COLUMNS dimensions of the
// values; longer heads take several, each with the same scores. With two rows, for devices with few registers, it takes
// operands in smaller pieces. Variants DIRECT read queries, keys and values from their buffers, for processors that run
// shaders in software: see matmul.comp.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "index.glsl"
#include "repeat.glsl"
#include "weight.glsl"

layout(constant_id = 0) const uint CACHE_TYPE = 2;
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint GROUP = 2; // query heads a KV head

layout(push_constant) uniform Push {
  uint n_groups;
  uint first_group;
  uint n_rows;
  uint n_heads;                // of the model
  uint query_heads;            // from one query row to the next
  uint first_head;             // of this dispatch, a multiple of GROUP
  uint head_rows;              // cache rows from one KV head to the next
  uint n_visible;              // entries that row 0 sees
  uint causal;                 // row i sees i entries more
  uint key_first, value_first; // elements: entry 0 of the dispatch's first KV head
  uint state_first;            // vec4s of [n_rows, n_heads]: (maximum, sum) after the first run, and after the last
  uint carry;                  // go on from a state
  float scale;                 // of the logits, times log2(e)
} push;

layout(binding = 0) readonly buffer Query { vec4 query[]; };
layout(binding = 1) readonly buffer Key { uvec2 key[]; };
layout(binding = 2) readonly buffer Value { uvec2 value[]; };
layout(binding = 3) buffer Output { vec4 result[]; };

#define QUERIES (8 * ROWS)
#define KEYS    64
#define LOWEST  -1.0e38

#if ROWS == 8
#define REPEAT_ROWS REPEAT_8
#define EACH_ROW    EACH_8
#elif ROWS == 2
#define REPEAT_ROWS REPEAT_2
#define EACH_ROW    EACH_2
#else
#define REPEAT_ROWS REPEAT_4
#define EACH_ROW    EACH_4
#endif
#if ROWS == 8 || COLUMNS == 4
#define ROLLED
#else
#define ROLLED [[dont_unroll]] // unrolled, the loads take registers
#endif
#if COLUMNS == 1
#define EACH_COLUMN EACH_1
#elif COLUMNS == 2
#define EACH_COLUMN EACH_2
#else
#define EACH_COLUMN EACH_4
#endif

const uint QUADS = HEAD_DIM / 4;
const uint COLUMN_PARTS = (QUADS + 16 * COLUMNS - 1) / (16 * COLUMNS);

#ifdef DIRECT
#define PARTS  1  // in which a tile's probabilities pass through shared memory
#define STRIDE 16 // vec4s of a row of probabilities
#define PLACE(i) (ty * ROWS + i) // a thread's rows among QUERIES: neighbours share pages and cache sets least
#else
#define PLACE(i) (ty + 8u * i)
#define TILE_STRIDE 5 // one more than needed, so that neighbouring threads hit different banks
#if ROWS == 8 || COLUMNS == 4
#define PARTS  4
#define STRIDE 5
#else
#define PARTS  1 // the scores leave the registers at once
#define STRIDE 16
#endif
#define SLICE  (COLUMNS < 2 ? 16 : 32) // vec4 columns of V that are in shared memory at once
// Queries and keys of 16 dimensions, or values of 16 keys.
shared vec4 tile[(QUERIES + KEYS) * TILE_STRIDE > 16 * SLICE ? (QUERIES + KEYS) * TILE_STRIDE : 16 * SLICE];
#endif
// Row maxima and sums [16][QUERIES / 4], or probabilities [QUERIES][KEYS / PARTS].
shared vec4 exchange[QUERIES * STRIDE > 4 * QUERIES ? QUERIES * STRIDE : 4 * QUERIES];

vec4 score[ROWS]; // of four neighbouring keys
vec4 sum[ROWS][COLUMNS];
// A number of each of the thread's rows: row i's is [i / 4][i % 4].
#if ROWS == 2
#define ROW_VECTOR  vec2
#define ROW_VECTORS 1
#else
#define ROW_VECTOR  vec4
#define ROW_VECTORS (ROWS / 4)
#endif
ROW_VECTOR row_max[ROW_VECTORS], row_sum[ROW_VECTORS];
uint tx, ty, row0, head, head_entry;
uint first_quad; // of the workgroup's part of the values

#define ROW(i)  (row0 + PLACE(i))
#define QUAD(n) (first_quad + n * 16u + tx)

vec4 load_key(uint entry, uint quad) {
  return LOAD_QUAD(key, CACHE_TYPE, push.key_first + ((head_entry + entry) * QUADS + quad) * 4u);
}

vec4 load_value(uint entry, uint quad) {
  return LOAD_QUAD(value, CACHE_TYPE, push.value_first + ((head_entry + entry) * QUADS + quad) * 4u);
}

// ---- scores ----

#if ROWS == 2
#define OPERAND           vec2
#define HALVES            2 // of four elements
#define TAKE(at)          vec2(tile[at][component], tile[at][component + 1u])
#define MULTIPLY(q, k, s) fma(q.x, k.x, fma(q.y, k.y, s))
#else
#define OPERAND           vec4
#define HALVES            1
#define TAKE(at)          tile[at]
#define MULTIPLY(q, k, s) fma(q.x, k.x, fma(q.y, k.y, fma(q.z, k.z, fma(q.w, k.w, s))))
#endif
#define CLEAR_SCORE(i) score[i] = vec4(0.0);
#define ADD_SCORE(i)                                                                                                 \
  {                                                                                                                  \
    const OPERAND q = LOAD_QUERY(i);                                                                                 \
    score[i] = vec4(MULTIPLY(q, k0, score[i].x), MULTIPLY(q, k1, score[i].y), MULTIPLY(q, k2, score[i].z),           \
                    MULTIPLY(q, k3, score[i].w));                                                                    \
  }

#ifdef DIRECT
// Rows and keys beyond the last repeat it; the rows are not stored, the keys not seen.
#define QUERY_FIRST(i) const uint first##i = (min(ROW(i), push.n_rows - 1u) * push.query_heads + head) * QUADS;
#define LOAD_QUERY(i)  query[first##i + quad]

void compute_scores(uint key0, uint limit) {
  const uint last = limit - 1u, entry = key0 + tx * 4u;
  REPEAT_ROWS(QUERY_FIRST)
  for (uint quad = 0; quad < QUADS; quad++) {
    const vec4 k0 = load_key(min(entry, last), quad), k1 = load_key(min(entry + 1u, last), quad);
    const vec4 k2 = load_key(min(entry + 2u, last), quad), k3 = load_key(min(entry + 3u, last), quad);
    REPEAT_ROWS(ADD_SCORE)
  }
}
#else
#define LOAD_QUERY(i) TAKE(PLACE(i) * TILE_STRIDE + k)

// Rows and keys beyond the last repeat it; the rows are not stored, the keys not seen. Beyond the dimensions are zeros,
// in place of what is loaded: what a branch may load takes registers in all of the loops around it, with some compilers.
void stage_queries_and_keys(uint key0, uint limit, uint quad0) {
  const uint t = gl_LocalInvocationID.x;
  const uint quad = min(quad0 + (t & 3u), QUADS - 1u);
  const bvec4 inside = bvec4(quad == quad0 + (t & 3u));
  [[unroll]] for (uint i = 0; i < (QUERIES + 31) / 32; i++) {
    const uint row = i * 32u + (t >> 2);
    if (row >= QUERIES) break;
    const vec4 q = query[(min(row0 + row, push.n_rows - 1u) * push.query_heads + head) * QUADS + quad];
    tile[row * TILE_STRIDE + (t & 3u)] = mix(vec4(0.0), q, inside);
  }
  [[unroll]] for (uint i = 0; i < KEYS / 32; i++) {
    const uint slot = i * 32u + (t >> 2);
    // A thread's four keys are neighbours; in shared memory they are 16 rows apart.
    const uint entry = key0 + (slot & 15u) * 4u + (slot >> 4);
    tile[(QUERIES + slot) * TILE_STRIDE + (t & 3u)] = mix(vec4(0.0), load_key(min(entry, limit - 1u), quad), inside);
  }
}

void compute_scores(uint key0, uint limit) {
  [[dont_unroll]] for (uint quad0 = 0; quad0 < QUADS; quad0 += 4) {
    barrier();
    stage_queries_and_keys(key0, limit, quad0);
    barrier();
    [[dont_unroll]] for (uint i = 0; i < 4 * HALVES; i++) {
      const uint k = i / HALVES, component = 2u * (HALVES - 1u - i % HALVES); // the last first, as in MULTIPLY
      const uint at = (QUERIES + tx) * TILE_STRIDE + k;
      const OPERAND k0 = TAKE(at), k1 = TAKE(at + 16 * TILE_STRIDE);
      const OPERAND k2 = TAKE(at + 32 * TILE_STRIDE), k3 = TAKE(at + 48 * TILE_STRIDE);
      REPEAT_ROWS(ADD_SCORE)
    }
  }
}
#endif

// ---- softmax ----

float largest(vec4 v) {
  return max(max(v.x, v.y), max(v.z, v.w));
}

bvec4 seen(uint first, uint row) {
  const uint n = push.n_visible + (push.causal != 0u ? row : 0u);
  return lessThan(uvec4(first, first + 1u, first + 2u, first + 3u), uvec4(n));
}

#define FIND_MAX(i)                                                                                                  \
  score[i] = mix(vec4(LOWEST), score[i] * push.scale, seen(first, ROW(i)));                                          \
  top[i / 4][i % 4] = max(row_max[i / 4][i % 4], largest(score[i]));
#define SCALE(i, n) sum[i][n] *= shrink[i / 4][i % 4];
#define EXPONENTIATE(i)                                                                                              \
  score[i] = mix(vec4(0.0), exp2(score[i] - row_max[i / 4][i % 4]), notEqual(score[i], vec4(LOWEST)));               \
  added[i / 4][i % 4] = score[i].x + score[i].y + score[i].z + score[i].w;                                           \
  EACH_COLUMN(SCALE, i)

// The numbers of the thread's rows in exchange[], by the 16 threads that share them.
#if ROWS == 2
#define TAKE_ROWS(x, n) exchange[(x) * 8 + ty].xy
void put_rows(ROW_VECTOR rows[ROW_VECTORS]) {
  TAKE_ROWS(tx, 0) = rows[0];
}
#else
#define TAKE_ROWS(x, n) exchange[(x) * (QUERIES / 4) + ty * ROW_VECTORS + n]
void put_rows(ROW_VECTOR rows[ROW_VECTORS]) {
  TAKE_ROWS(tx, 0) = rows[0];
#if ROWS == 8
  TAKE_ROWS(tx, 1) = rows[1];
#endif
}
#endif

// Scores to probabilities; brings maximum, sum and output of every row up to date.
void update_softmax(uint key0) {
  const uint first = key0 + tx * 4u;
  ROW_VECTOR top[ROW_VECTORS], shrink[ROW_VECTORS], added[ROW_VECTORS];
  REPEAT_ROWS(FIND_MAX)
  put_rows(top);
  barrier();
  ROLLED for (uint other = 0; other < 16; other++) {
    top[0] = max(top[0], TAKE_ROWS(other, 0));
#if ROWS == 8
    top[1] = max(top[1], TAKE_ROWS(other, 1));
#endif
  }
#define UPDATE(i)                                                                                                    \
  shrink[i] = exp2(row_max[i] - top[i]);                                                                             \
  row_max[i] = top[i];
  UPDATE(0)
#if ROWS == 8
  UPDATE(1)
#endif
  REPEAT_ROWS(EXPONENTIATE)
  row_sum[0] = row_sum[0] * shrink[0] + added[0];
#if ROWS == 8
  row_sum[1] = row_sum[1] * shrink[1] + added[1];
#endif
}

// ---- values ----

#define STORE_PROBABILITY(i) exchange[PLACE(i) * STRIDE + tx % (16 / PARTS)] = score[i];
#if ROWS == 2
#define STAGE_VALUES [[dont_unroll]]
#define STEPS        16 // an entry each, the last of four first, as in the sum of four
#define LOAD_PROBABILITY(i)                                                                                          \
  const float p##i = exchange[PLACE(0) * STRIDE + first_place + (k >> 2) + i * 8u * STRIDE][~k & 3u];
#define ADD_VALUE(n, i) sum[i][n] = fma(vec4(p##i), v, sum[i][n]);
#else
#define STAGE_VALUES [[unroll]]
#define STEPS        4
#define LOAD_PROBABILITY(i)  const vec4 p##i = exchange[PLACE(i) * STRIDE + first_place + k];
#define ADD_VALUE(n, i)                                                                                              \
  sum[i][n] = fma(vec4(p##i.x), v0, fma(vec4(p##i.y), v1, fma(vec4(p##i.z), v2, fma(vec4(p##i.w), v3, sum[i][n]))));
#endif

#ifdef DIRECT
#define ADD_COLUMN(n)                                                                                                \
  {                                                                                                                  \
    const uint quad = min(QUAD(n), QUADS - 1u); /* columns beyond the last repeat it and are not stored */           \
    const vec4 v0 = load_value(min(entry, last), quad), v1 = load_value(min(entry + 1u, last), quad);                \
    const vec4 v2 = load_value(min(entry + 2u, last), quad), v3 = load_value(min(entry + 3u, last), quad);           \
    EACH_ROW(ADD_VALUE, n)                                                                                           \
  }

void add_values(uint key0, uint limit) {
  const uint last = limit - 1u, first_place = 0;
  barrier();
  REPEAT_ROWS(STORE_PROBABILITY)
  barrier();
  [[dont_unroll]] for (uint k = 0; k < KEYS / 4; k++) {
    const uint entry = key0 + k * 4u;
    REPEAT_ROWS(LOAD_PROBABILITY)
    ADD_COLUMN(0)
#if COLUMNS > 1
    ADD_COLUMN(1)
#endif
#if COLUMNS > 2
    ADD_COLUMN(2)
    ADD_COLUMN(3)
#endif
  }
  barrier();
}
#else
// Beyond the last entry it again, with probability zero; never stale memory: zero times NaN is NaN.
void stage_values(uint key0, uint limit, uint quad0) {
  STAGE_VALUES for (uint i = 0; i < 16 * SLICE / LOCAL_SIZE; i++) {
    const uint at = i * LOCAL_SIZE + gl_LocalInvocationID.x;
    tile[at] = load_value(min(key0 + at / SLICE, limit - 1u), min(quad0 + at % SLICE, QUADS - 1u));
  }
}

// Columns n of V, found at place `slot` of the slice in shared memory.
#if ROWS == 2
#define ADD_COLUMN(n, slot)                                                                                          \
  {                                                                                                                  \
    const vec4 v = tile[(k ^ 3u) * SLICE + slot * 16u + tx];                                                         \
    EACH_ROW(ADD_VALUE, n)                                                                                           \
  }
#else
#define ADD_COLUMN(n, slot)                                                                                          \
  {                                                                                                                  \
    const uint at = k * 4u * SLICE + slot * 16u + tx;                                                                \
    const vec4 v0 = tile[at], v1 = tile[at + SLICE], v2 = tile[at + 2 * SLICE], v3 = tile[at + 3 * SLICE];           \
    EACH_ROW(ADD_VALUE, n)                                                                                           \
  }
#endif

void add_values(uint key0, uint limit) {
  const uint n_parts = min((limit - key0 + 15u) / 16u, 4u);
#if PARTS == 1
  barrier();
  REPEAT_ROWS(STORE_PROBABILITY)
#endif
  [[dont_unroll]] for (uint part = 0; part < n_parts; part++) {
    const uint first = key0 + part * 16u, first_place = part % (4 / PARTS) * 4u;
    barrier();
#if PARTS == 4
    if (tx / 4u == part) {
      REPEAT_ROWS(STORE_PROBABILITY)
    }
#endif
    stage_values(first, limit, first_quad);
    barrier();
    [[dont_unroll]] for (uint k = 0; k < STEPS; k++) {
      REPEAT_ROWS(LOAD_PROBABILITY)
      ADD_COLUMN(0, 0)
#if COLUMNS > 1
      ADD_COLUMN(1, 1)
#endif
    }
#if COLUMNS > 2
    barrier();
    stage_values(first, limit, first_quad + SLICE);
    barrier();
    [[dont_unroll]] for (uint k = 0; k < STEPS; k++) {
      REPEAT_ROWS(LOAD_PROBABILITY)
      ADD_COLUMN(2, 0)
      ADD_COLUMN(3, 1)
    }
#endif
  }
}
#endif

// ---- rows ----

#define CLEAR(i, n) sum[i][n] = vec4(0.0);
#define CLEAR_ROW(i)                                                                                                 \
  row_max[i / 4][i % 4] = LOWEST;                                                                                    \
  row_sum[i / 4][i % 4] = 0.0;                                                                                       \
  EACH_COLUMN(CLEAR, i)

#define CARRY(i, n)                                                                                                  \
  if (QUAD(n) < QUADS) sum[i][n] = result[(ROW(i) * push.n_heads + head) * QUADS + QUAD(n)] * state.y;
#define CARRY_ROW(i)                                                                                                 \
  if (ROW(i) < push.n_rows) {                                                                                        \
    const vec2 state = result[push.state_first + ROW(i) * push.n_heads + head].xy;                                   \
    row_max[i / 4][i % 4] = state.x;                                                                                 \
    row_sum[i / 4][i % 4] = tx == 0u ? state.y : 0.0;                                                                \
    EACH_COLUMN(CARRY, i)                                                                                            \
  }

#define STORE(i, n)                                                                                                  \
  if (QUAD(n) < QUADS) result[(ROW(i) * push.n_heads + head) * QUADS + QUAD(n)] = sum[i][n] * factor;
#define STORE_ROW(i)                                                                                                 \
  if (ROW(i) < push.n_rows) {                                                                                        \
    const float total = row_sum[i / 4][i % 4];                                                                       \
    const float factor = total > 0.0 ? 1.0 / total : 0.0;                                                            \
    EACH_COLUMN(STORE, i)                                                                                            \
    if (QUAD(0u) == 0u) {                                                                                            \
      const uint at = push.state_first + ROW(i) * push.n_heads + head;                                               \
      const vec2 state = vec2(row_max[i / 4][i % 4], total);                                                         \
      if (push.carry == 0u) result[at].xy = state; /* else another part may still have to read it */                 \
      result[at].zw = state;                                                                                         \
    }                                                                                                                \
  }

// Adds the sums that a row's 16 threads have.
void total_sums() {
  barrier();
  put_rows(row_sum);
  barrier();
  row_sum[0] = ROW_VECTOR(0.0);
#if ROWS == 8
  row_sum[1] = ROW_VECTOR(0.0);
#endif
  ROLLED for (uint other = 0; other < 16; other++) {
    row_sum[0] += TAKE_ROWS(other, 0);
#if ROWS == 8
    row_sum[1] += TAKE_ROWS(other, 1);
#endif
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint part = push.first_group + workgroup_index(), group = part / COLUMN_PARTS;
  first_quad = part % COLUMN_PARTS * 16 * COLUMNS;
  const uint n_tiles = (push.n_rows + QUERIES - 1) / QUERIES;
  row0 = group % n_tiles * QUERIES;
  head = push.first_head + group / n_tiles;
  head_entry = group / n_tiles / GROUP * push.head_rows;
  tx = gl_LocalInvocationID.x & 15u;
  ty = gl_LocalInvocationID.x >> 4;
  const uint last_row = min(row0 + QUERIES, push.n_rows) - 1u;
  const uint limit = push.n_visible + (push.causal != 0u ? last_row : 0u);

  REPEAT_ROWS(CLEAR_ROW)
  if (push.carry != 0u) {
    REPEAT_ROWS(CARRY_ROW)
  }
  for (uint key0 = 0; key0 < limit; key0 += KEYS) {
    REPEAT_ROWS(CLEAR_SCORE)
    compute_scores(key0, limit);
    update_softmax(key0);
    add_values(key0, limit);
  }
  total_sums();
  REPEAT_ROWS(STORE_ROW)
}
