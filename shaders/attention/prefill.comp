// Attention of a chunk of query rows over one stretch of the cache, with online softmax: a workgroup takes QUERIES rows
// of one query head and walks over the keys in tiles of 64. Scores live in registers, 8 x 4 (ROWS x 4) a thread;
// probabilities pass through shared memory 16 keys at a time.
//
// Over two stretches (ragged prefix, dense tail) the kernel runs twice: the first run leaves maximum and sum of every
// row behind the output, the second one carries on from there.
//
// A variant takes head dimensions up to 64 x COLUMNS, ROWS x 16 x COLUMNS vec4 of output in registers.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "index.glsl"
#include "dtype.glsl"

layout(constant_id = 0) const uint CACHE_TYPE = 2;
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint GROUP = 2; // query heads a KV head

layout(push_constant) uniform Push {
  uint n_groups;
  uint first_group;
  uint n_rows;
  uint n_heads;              // of the model
  uint first_head;           // of this dispatch, a multiple of GROUP
  uint head_rows;            // cache rows from one KV head to the next
  uint first_entry;          // cache row of entry 0 of the dispatch's first KV head
  uint n_visible;            // entries that row 0 sees
  uint causal;               // row i sees i entries more
  uint key_first, value_first; // elements
  uint state_first;          // vec4s: (maximum, sum) of [n_rows, n_heads]
  uint carry, keep;          // go on from a state, leave one
  float scale;               // of the logits, times log2(e)
} push;

layout(binding = 0) readonly buffer Query { vec4 query[]; };
layout(binding = 1) readonly buffer Key { uint key[]; };
layout(binding = 2) readonly buffer Value { uint value[]; };
layout(binding = 3) buffer Output { vec4 result[]; };

#define QUERIES (8 * ROWS)
#define KEYS    64
#define STRIDE  5  // vec4s of a row of 16 floats: the fifth keeps threads off each other's banks
#define SLICE   (COLUMNS < 2 ? 16 : 32) // vec4 columns of V that are in shared memory at once
#define LOWEST  -1.0e38

const uint QUADS = HEAD_DIM / 4;

// Queries and keys of 16 dimensions, or values of 16 keys.
shared vec4 tile[(QUERIES + KEYS) * STRIDE > 16 * SLICE ? (QUERIES + KEYS) * STRIDE : 16 * SLICE];
// Row maxima and sums [16][QUERIES / 4], or probabilities of 16 keys.
shared vec4 exchange[QUERIES * STRIDE];

float score[ROWS][4];
vec4 sum[ROWS][COLUMNS];
float row_max[ROWS], row_sum[ROWS];

void stage_queries_and_keys(uint row0, uint head, uint key0, uint limit, uint head_entry, uint quad0) {
  const uint t = gl_LocalInvocationID.x;
  const uint quad = quad0 + (t & 3u);
  [[unroll]] for (uint i = 0; i < QUERIES / 32; i++) {
    const uint row = i * 32u + (t >> 2);
    vec4 q = vec4(0.0);
    if (row0 + row < push.n_rows && quad < QUADS)
      q = query[((row0 + row) * push.n_heads + head) * QUADS + quad] * push.scale;
    tile[row * STRIDE + (t & 3u)] = q;
  }
  [[unroll]] for (uint i = 0; i < KEYS / 32; i++) {
    const uint slot = i * 32u + (t >> 2);
    // A thread's four keys are neighbours; in shared memory they are 16 rows apart.
    const uint entry = key0 + (slot & 15u) * 4u + (slot >> 4);
    vec4 k = vec4(0.0);
    if (entry < limit && quad < QUADS)
      k = LOAD_VEC4(key, CACHE_TYPE, push.key_first + ((head_entry + entry) * QUADS + quad) * 4u);
    tile[(QUERIES + slot) * STRIDE + (t & 3u)] = k;
  }
}

void compute_scores(uint tx, uint ty) {
  [[dont_unroll]] for (uint k = 0; k < 4; k++) {
    vec4 q[ROWS];
    [[unroll]] for (uint i = 0; i < ROWS; i++) q[i] = tile[(ty + 8u * i) * STRIDE + k];
    [[unroll]] for (uint j = 0; j < 4; j++) {
      const vec4 b = tile[(QUERIES + 16u * j + tx) * STRIDE + k];
      [[unroll]] for (uint i = 0; i < ROWS; i++)
        score[i][j] = fma(q[i].x, b.x, fma(q[i].y, b.y, fma(q[i].z, b.z, fma(q[i].w, b.w, score[i][j]))));
    }
  }
}

// Scores to probabilities; brings maximum, sum and output of every row up to date.
void update_softmax(uint tx, uint ty, uint row0, uint key0) {
  uint n_seen[ROWS];
  float largest[ROWS];
  [[unroll]] for (uint i = 0; i < ROWS; i++) {
    n_seen[i] = push.n_visible + (push.causal != 0u ? row0 + ty + 8u * i : 0u);
    largest[i] = LOWEST;
    [[unroll]] for (uint j = 0; j < 4; j++)
      if (key0 + tx * 4u + j < n_seen[i]) largest[i] = max(largest[i], score[i][j]);
  }
  [[unroll]] for (uint i = 0; i < ROWS; i += 4)
    exchange[tx * (QUERIES / 4) + ty * (ROWS / 4) + i / 4] =
        vec4(largest[i], largest[i + 1], largest[i + 2], largest[i + 3]);
  barrier();
  [[unroll]] for (uint i = 0; i < ROWS; i += 4) {
    vec4 all = vec4(LOWEST);
    for (uint other = 0; other < 16; other++)
      all = max(all, exchange[other * (QUERIES / 4) + ty * (ROWS / 4) + i / 4]);
    [[unroll]] for (uint n = 0; n < 4; n++) largest[i + n] = max(row_max[i + n], all[n]);
  }
  [[unroll]] for (uint i = 0; i < ROWS; i++) {
    const float shrink = exp2(row_max[i] - largest[i]);
    row_max[i] = largest[i];
    float added = 0.0;
    [[unroll]] for (uint j = 0; j < 4; j++) {
      const bool seen = key0 + tx * 4u + j < n_seen[i];
      score[i][j] = seen ? exp2(score[i][j] - largest[i]) : 0.0;
      added += score[i][j];
    }
    row_sum[i] = row_sum[i] * shrink + added;
    [[unroll]] for (uint n = 0; n < COLUMNS; n++) sum[i][n] *= shrink;
  }
}

void stage_values(uint key0, uint limit, uint head_entry, uint column0) {
  [[unroll]] for (uint i = 0; i < 16 * SLICE / LOCAL_SIZE; i++) {
    const uint at = i * LOCAL_SIZE + gl_LocalInvocationID.x;
    const uint entry = key0 + at / SLICE;
    const uint quad = column0 + at % SLICE;
    vec4 v = vec4(0.0); // never stale memory: zero times NaN is NaN
    if (entry < limit && quad < QUADS)
      v = LOAD_VEC4(value, CACHE_TYPE, push.value_first + ((head_entry + entry) * QUADS + quad) * 4u);
    tile[at] = v;
  }
}

// Adds what 16 keys contribute to SLICE vec4 columns from the slice'th on.
void accumulate(uint tx, uint ty, uint slice) {
  [[dont_unroll]] for (uint k = 0; k < 4; k++) {
    vec4 p[ROWS];
    [[unroll]] for (uint i = 0; i < ROWS; i++) p[i] = exchange[(ty + 8u * i) * STRIDE + k];
    [[unroll]] for (uint n = 0; n < SLICE / 16; n++) {
      const uint at = k * 4u * SLICE + n * 16u + tx;
      const vec4 v0 = tile[at], v1 = tile[at + SLICE], v2 = tile[at + 2 * SLICE], v3 = tile[at + 3 * SLICE];
      [[unroll]] for (uint i = 0; i < ROWS; i++) {
        const uint column = slice * (SLICE / 16) + n;
        vec4 s = sum[i][column];
        s = fma(vec4(p[i].x), v0, s);
        s = fma(vec4(p[i].y), v1, s);
        s = fma(vec4(p[i].z), v2, s);
        sum[i][column] = fma(vec4(p[i].w), v3, s);
      }
    }
  }
}

void add_values(uint tx, uint ty, uint key0, uint limit, uint head_entry) {
  for (uint part = 0; part < 4; part++) {
    if (key0 + part * 16u >= limit) break;
    barrier();
    if (tx >> 2 == part)
      [[unroll]] for (uint i = 0; i < ROWS; i++)
        exchange[(ty + 8u * i) * STRIDE + (tx & 3u)] = vec4(score[i][0], score[i][1], score[i][2], score[i][3]);
    [[unroll]] for (uint slice = 0; slice < COLUMNS * 16 / SLICE; slice++) {
      if (slice > 0) barrier();
      stage_values(key0 + part * 16u, limit, head_entry, slice * SLICE);
      barrier();
      accumulate(tx, ty, slice);
    }
  }
}

void begin(uint tx, uint ty, uint row0, uint head) {
  [[unroll]] for (uint i = 0; i < ROWS; i++) {
    row_max[i] = LOWEST;
    row_sum[i] = 0.0;
    [[unroll]] for (uint n = 0; n < COLUMNS; n++) sum[i][n] = vec4(0.0);
    const uint row = row0 + ty + 8u * i;
    if (push.carry != 0u && row < push.n_rows) {
      const vec4 state = result[push.state_first + row * push.n_heads + head];
      row_max[i] = state.x;
      row_sum[i] = tx == 0u ? state.y : 0.0;
      [[unroll]] for (uint n = 0; n < COLUMNS; n++)
        if (n * 16u + tx < QUADS)
          sum[i][n] = result[(row * push.n_heads + head) * QUADS + n * 16u + tx] * state.y;
    }
  }
}

void finish(uint tx, uint ty, uint row0, uint head) {
  barrier();
  [[unroll]] for (uint i = 0; i < ROWS; i += 4)
    exchange[tx * (QUERIES / 4) + ty * (ROWS / 4) + i / 4] =
        vec4(row_sum[i], row_sum[i + 1], row_sum[i + 2], row_sum[i + 3]);
  barrier();
  [[unroll]] for (uint i = 0; i < ROWS; i += 4) {
    vec4 total = vec4(0.0);
    for (uint other = 0; other < 16; other++)
      total += exchange[other * (QUERIES / 4) + ty * (ROWS / 4) + i / 4];
    [[unroll]] for (uint n = 0; n < 4; n++) row_sum[i + n] = total[n];
  }
  [[unroll]] for (uint i = 0; i < ROWS; i++) {
    const uint row = row0 + ty + 8u * i;
    const float factor = row_sum[i] > 0.0 ? 1.0 / row_sum[i] : 0.0;
    if (row < push.n_rows) {
      [[unroll]] for (uint n = 0; n < COLUMNS; n++)
        if (n * 16u + tx < QUADS)
          result[(row * push.n_heads + head) * QUADS + n * 16u + tx] = sum[i][n] * factor;
      if (push.keep != 0u && tx == 0u)
        result[push.state_first + row * push.n_heads + head] = vec4(row_max[i], row_sum[i], 0.0, 0.0);
    }
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint group = push.first_group + workgroup_index();
  const uint n_tiles = (push.n_rows + QUERIES - 1) / QUERIES;
  const uint row0 = group % n_tiles * QUERIES;
  const uint kv_head = group / n_tiles / GROUP;
  const uint head = push.first_head + group / n_tiles;
  const uint head_entry = push.first_entry + kv_head * push.head_rows;
  const uint last_row = min(row0 + QUERIES, push.n_rows) - 1u;
  const uint limit = push.n_visible + (push.causal != 0u ? last_row : 0u);
  const uint tx = gl_LocalInvocationID.x & 15u;
  const uint ty = gl_LocalInvocationID.x >> 4;

  begin(tx, ty, row0, head);
  for (uint key0 = 0; key0 < limit; key0 += KEYS) {
    [[unroll]] for (uint i = 0; i < ROWS; i++)
      [[unroll]] for (uint j = 0; j < 4; j++) score[i][j] = 0.0;
    [[dont_unroll]] for (uint quad0 = 0; quad0 < QUADS; quad0 += 4) {
      barrier();
      stage_queries_and_keys(row0, head, key0, limit, head_entry, quad0);
      barrier();
      compute_scores(tx, ty);
    }
    update_softmax(tx, ty, row0, key0);
    add_values(tx, ty, key0, limit, head_entry);
  }
  finish(tx, ty, row0, head);
}
