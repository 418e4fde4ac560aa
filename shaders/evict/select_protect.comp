#version 450
#extension GL_GOOGLE_include_directive : require
// Where each head's entries begin, and what it keeps in any case: sinks before and the window behind the taken ones. With
// SHARED the taken ones of head 0 are those of all. One workgroup per head.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

layout(constant_id = 0) const bool SHARED = false;

uint n_shared; // entries that head 0 has taken

uint head_begin(uint head) {
  if (SHARED) return head * n_shared + head_word(head, HEAD_PROTECTED);
  return selection[push.block_rows + head_word(head, HEAD_FIRST_BLOCK)] + head_word(head, HEAD_PROTECTED);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  n_shared = SHARED ? selection[push.problems + PROBLEM_K] : 0;
  const uint head = workgroup_index(), begin = head_begin(head), end = head_begin(head + 1);
  if (gl_LocalInvocationIndex == 0) result[push.cu_seqlens + head] = begin;
  if (gl_LocalInvocationIndex == 1 && head + 1 == push.n_heads) result[push.cu_seqlens + push.n_heads] = end;
  const uint n_sinks = head_word(head, HEAD_N_SINKS);
  for (uint i = gl_LocalInvocationIndex; i < n_sinks; i += LOCAL_SIZE) result[push.indices + begin + i] = i;
  for (uint i = gl_LocalInvocationIndex; i < (head > 0 ? n_shared : 0); i += LOCAL_SIZE)
    result[push.indices + begin + n_sinks + i] = result[push.indices + n_sinks + i];
  const uint window_begin = head_word(head, HEAD_N_ENTRIES) - push.window;
  for (uint i = gl_LocalInvocationIndex; i < push.window; i += LOCAL_SIZE)
    result[push.indices + end - push.window + i] = window_begin + i;
}
