#version 450
#extension GL_GOOGLE_include_directive : require
// Copies the kept rows of K or V of a layer that stand in one segment, bit for bit. One workgroup per 32 rows of a head.
#include "index.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint ROW_WORDS = 32;

#define ROWS_EACH 32

layout(set = 0, binding = 0) readonly buffer Source { uint source[]; };
layout(set = 0, binding = 1) readonly buffer Result { uint result[]; };
layout(set = 0, binding = 2) writeonly buffer Destination { uint destination[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;      // word of the layer's head table in result[]
  uint cu_seqlens; // word of the layer's
  uint indices;
  uint first_head, end_head;
  uint segment;
  uint source_row, source_residual; // row at which the source binding begins, words before it
  uint to_row, to_residual;         // the same of the destination, in rows of the whole model
} push;

uint head_word(uint head, uint word) {
  return result[push.heads + head * HEAD_WORDS + word];
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  uint head = push.first_head, group = workgroup_index();
  uint begin = result[push.cu_seqlens + head], end = result[push.cu_seqlens + head + 1];
  while (head + 1 < push.end_head && group >= (end - begin + ROWS_EACH - 1) / ROWS_EACH) {
    group -= (end - begin + ROWS_EACH - 1) / ROWS_EACH;
    head++;
    begin = end;
    end = result[push.cu_seqlens + head + 1];
  }
  const uint entries_begin = push.segment == 0 ? 0 : head_word(head, HEAD_ROWS);
  const uint entries_end = entries_begin + head_word(head, HEAD_ROWS + 2 * push.segment);
  const uint base_row = head_word(head, HEAD_ROW + 2 * push.segment) - push.source_row;
  const uint first = begin + group * ROWS_EACH;
  for (uint i = gl_LocalInvocationIndex; i < ROWS_EACH * ROW_WORDS; i += LOCAL_SIZE) {
    const uint row = first + i / ROW_WORDS, word = i % ROW_WORDS;
    if (row >= end) break;
    const uint entry = result[push.indices + row];
    if (entry < entries_begin || entry >= entries_end) continue;
    destination[push.to_residual + (row - push.to_row) * ROW_WORDS + word] =
        source[push.source_residual + (base_row + entry - entries_begin) * ROW_WORDS + word];
  }
}
