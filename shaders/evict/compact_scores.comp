#version 450
#extension GL_GOOGLE_include_directive : require
// Moves the scores of a layer's kept candidates to the front of their head's, so that a later selection over more layers
// can go on with them. One workgroup per head.
#include "index.glsl"
#include "../evict/layout.glsl"

layout(set = 0, binding = 0) coherent buffer Scores { float scores[]; }; // the layer's
layout(set = 0, binding = 1) readonly buffer Result { uint result[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads;      // word of the layer's head table in result[]
  uint cu_seqlens; // word of the layer's
  uint indices;
  uint layer_block;
  uint window;
} push;

#include "../evict/kept.glsl"

shared uint barrier_keeper;

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint head = workgroup_index(), n_sinks = head_word(head, HEAD_N_SINKS);
  const uint list = push.indices + result[push.cu_seqlens + head] + n_sinks;
  const uint n_kept = result[push.cu_seqlens + head + 1] - result[push.cu_seqlens + head] - n_sinks - push.window;
  const uint base = (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES;
  if (gl_LocalInvocationIndex == 0) barrier_keeper = n_kept;
  barrier();
  for (uint first = 0; first < barrier_keeper; first += LOCAL_SIZE) {
    const uint i = first + gl_LocalInvocationIndex;
    const float held = scores[base + result[list + min(i, n_kept - 1)] - n_sinks]; // in an if, V3DV's compiler never ends
    memoryBarrierBuffer();
    barrier();
    if (i < n_kept) scores[base + i] = held;
    memoryBarrierBuffer();
    barrier();
  }
}
