#version 450
#extension GL_GOOGLE_include_directive : require
// Writes the entries that are kept in any case: sinks before and the window behind a head's taken ones. One workgroup
// per head.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint head = push.first_item + workgroup_index();
  const uint begin = result[push.cu_seqlens + head], end = result[push.cu_seqlens + head + 1];
  for (uint i = gl_LocalInvocationIndex; i < head_word(head, HEAD_N_SINKS); i += LOCAL_SIZE)
    result[push.indices + begin + i] = i;
  const uint window_begin = head_word(head, HEAD_N_ENTRIES) - push.window;
  for (uint i = gl_LocalInvocationIndex; i < push.window; i += LOCAL_SIZE)
    result[push.indices + end - push.window + i] = window_begin + i;
}
