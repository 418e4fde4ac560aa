#version 450
#extension GL_GOOGLE_include_directive : require
// Moves the kept rows of K or V of a layer to the front of their head's own rows. Kept rows ascend, so that a chunk of
// rows only overwrites rows that it, or chunks before it, have read. One workgroup per head and 64 bytes of a row.
//
// Of a head that takes several bindings, a dispatch moves the rows that stand in one of them and belong into one. ACROSS:
// these are two, so that nothing that is read is overwritten.
#include "index.glsl"
#include "repeat.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint ROW_WORDS = 32;

#define SLICE_WORDS 16
#define LANES       (LOCAL_SIZE / SLICE_WORDS) // rows side by side
#define ROWS_EACH   4

layout(set = 0, binding = 0) coherent buffer Rows { uint rows[]; };
layout(set = 0, binding = 1) readonly buffer Result { uint result[]; };
#ifdef ACROSS
layout(set = 0, binding = 2) writeonly buffer Destination { uint to_rows[]; };
#define DESTINATION to_rows
#else
#define DESTINATION rows
#endif

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;      // word of the layer's head table in result[]
  uint cu_seqlens; // word of the layer's
  uint indices;
  uint first_head;
  RowLayout rows;  // in words
  uint to_begin, to_end; // rows of every head that the destination takes
  uint to_origin;        // of the destination, as rows.origin
} push;

#include "../evict/kept.glsl"
#include "../evict/rows.glsl"

#define ROW(i) (first + lane + i * LANES)
#define READ_ROW(i)                                                                                                  \
  uint held##i;                                                                                                      \
  if (ROW(i) < end && word < ROW_WORDS) held##i = rows[row_start(result[list + ROW(i)]) + word];
#define WRITE_ROW(i)                                                                                                 \
  if (ROW(i) < end && word < ROW_WORDS) DESTINATION[to + ROW(i) * push.rows.entry_stride + word] = held##i;

shared uint barrier_keeper; // some drivers drop the barrier of a shader without shared memory

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint n_slices = (ROW_WORDS + SLICE_WORDS - 1) / SLICE_WORDS;
  const uint head = push.first_head + workgroup_index() / n_slices;
  const uint word = workgroup_index() % n_slices * SLICE_WORDS + gl_LocalInvocationIndex % SLICE_WORDS;
  const uint lane = gl_LocalInvocationIndex / SLICE_WORDS;
  const uint list = push.indices + result[push.cu_seqlens + head];
  const uint n_kept = result[push.cu_seqlens + head + 1] - result[push.cu_seqlens + head];
  find_rows(head);
  const uint begin = max(row_of(list, n_kept, entries_begin), push.to_begin);
  const uint end = min(row_of(list, n_kept, entries_end), push.to_end);
  const uint to = head * push.rows.head_stride + head_word(head, HEAD_ROW) * push.rows.entry_stride - push.to_origin;
  if (gl_LocalInvocationIndex == 0) barrier_keeper = end;
  barrier();
  for (uint first = begin; first < barrier_keeper; first += LANES * ROWS_EACH) {
    REPEAT_4(READ_ROW)
    memoryBarrierBuffer();
    barrier();
    REPEAT_4(WRITE_ROW)
    memoryBarrierBuffer();
    barrier();
  }
}
