#version 450
#extension GL_GOOGLE_include_directive : require
// Copies the kept rows of K or V of a layer that stand in one segment, bit for bit. One workgroup per COMPACT_ROWS rows of
// the destination, whichever heads they are of.
#include "index.glsl"
#include "repeat.glsl"
#include "../evict/layout.glsl"

#ifdef WIDE
#define VECTOR uvec4
#else
#define VECTOR uint
#endif

layout(constant_id = 0) const uint ROW_VECTORS = 32;

#define ROWS_EACH LOCAL_SIZE // each found by an invocation
#define NOWHERE   0xffffffffu

layout(set = 0, binding = 0) readonly buffer Source { VECTOR source[]; };
layout(set = 0, binding = 1) readonly buffer Result { uint result[]; };
layout(set = 0, binding = 2) writeonly buffer Destination { VECTOR destination[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;      // word of the layer's head table in result[]
  uint cu_seqlens; // word of the layer's
  uint indices;
  uint first_head, end_head;
  RowLayout rows;                   // of the source, in vectors
  uint to_row, to_end, to_residual; // rows of the whole model that the destination takes, vectors before them
} push;

shared uint source_rows[ROWS_EACH];

#include "../evict/kept.glsl"
#include "../evict/rows.glsl"

// Where a row of the destination comes from, in vectors of the source binding.
uint find_source(uint row) {
  if (row >= push.to_end) return NOWHERE;
  const uint entry = result[push.indices + row];
  uint head = push.first_head;
  for (uint next = push.first_head + 1; next < push.end_head; next++)
    head += result[push.cu_seqlens + next] <= row ? 1 : 0;
  find_rows(head);
  return has_row(entry) ? row_start(entry) : NOWHERE;
}

#define LOAD(n)                                                                                                      \
  VECTOR held##n;                                                                                                    \
  uint row##n = NOWHERE;                                                                                             \
  if (i + n * LOCAL_SIZE < ROWS_EACH * ROW_VECTORS) row##n = source_rows[(i + n * LOCAL_SIZE) / ROW_VECTORS];        \
  if (row##n != NOWHERE)                                                                                             \
    held##n = source[row##n + (i + n * LOCAL_SIZE) % ROW_VECTORS];
#define STORE(n) if (row##n != NOWHERE) destination[to + i + n * LOCAL_SIZE] = held##n;

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint first = workgroup_index() * ROWS_EACH;
  source_rows[gl_LocalInvocationIndex] = find_source(push.to_row + first + gl_LocalInvocationIndex);
  barrier();
  const uint to = push.to_residual + first * ROW_VECTORS;
  for (uint i = gl_LocalInvocationIndex; i < ROWS_EACH * ROW_VECTORS; i += 8 * LOCAL_SIZE) {
    REPEAT_8(LOAD)
    REPEAT_8(STORE)
  }
}
