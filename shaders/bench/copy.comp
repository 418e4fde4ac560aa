#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
// The device's rate of reading and writing memory: 16 bytes a load, LOADS of them in flight an invocation. `stride` is
// what all workgroups together take at once; with a stride of n_units each invocation goes once.
#include "index.glsl"

layout(constant_id = 0) const uint LOADS = 1;

layout(set = 0, binding = 0) readonly buffer From { uvec4 from[]; };
layout(set = 0, binding = 1) writeonly buffer To { uvec4 to[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint n_units, stride;
} push;

void main() {
  const uint group = workgroup_index();
  if (group >= push.n_groups) return;
  uvec4 held[8];
  for (uint at = group * LOCAL_SIZE * LOADS + gl_LocalInvocationIndex; at < push.n_units; at += push.stride) {
    [[unroll]] for (uint i = 0; i < LOADS; i++) held[i] = from[at + i * LOCAL_SIZE];
    [[unroll]] for (uint i = 0; i < LOADS; i++) to[at + i * LOCAL_SIZE] = held[i];
  }
}
