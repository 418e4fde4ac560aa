#version 450
#extension GL_GOOGLE_include_directive : require
// Where each head's entries begin, and what it keeps in any case: sinks before and the window behind the taken ones. One
// workgroup per head.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

uint head_begin(uint head) {
  return selection[push.block_rows + head_word(head, HEAD_FIRST_BLOCK)] + head_word(head, HEAD_PROTECTED);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint head = workgroup_index(), begin = head_begin(head), end = head_begin(head + 1);
  if (gl_LocalInvocationIndex == 0) result[push.cu_seqlens + head] = begin;
  if (gl_LocalInvocationIndex == 1 && head + 1 == push.n_heads) result[push.cu_seqlens + push.n_heads] = end;
  for (uint i = gl_LocalInvocationIndex; i < head_word(head, HEAD_N_SINKS); i += LOCAL_SIZE)
    result[push.indices + begin + i] = i;
  const uint window_begin = head_word(head, HEAD_N_ENTRIES) - push.window;
  for (uint i = gl_LocalInvocationIndex; i < push.window; i += LOCAL_SIZE)
    result[push.indices + end - push.window + i] = window_begin + i;
}
