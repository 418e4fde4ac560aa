#version 450
#extension GL_GOOGLE_include_directive : require
// Raw scores that need no attention: MODE_RECENCY, later is better; MODE_RANDOM, a hash of seed, layer, head and entry.
// One workgroup per block of scores.
#include "index.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 4) const uint MODE = 0;

#define MODE_RECENCY 0
#define MODE_RANDOM  1

layout(set = 0, binding = 0) readonly buffer State { uint state[]; };
layout(set = 0, binding = 1) writeonly buffer Work { float work[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads, n_heads;
  uint layer_block;
  uint raw;
  uint layer, seed;
} push;

#include "../evict/heads.glsl"

uint mixed(uint x, uint v) {
  x = (x ^ v) * 0x9E3779B1u;
  x ^= x >> 15;
  x *= 0x85EBCA6Bu;
  return x ^ (x >> 13);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint block = push.layer_block + workgroup_index();
  uint head = 0;
  while (head + 1 < push.n_heads && head_word(head + 1, HEAD_FIRST_BLOCK) <= block) head++;
  const uint first = (block - head_word(head, HEAD_FIRST_BLOCK)) * BLOCK_ENTRIES;
  for (uint i = gl_LocalInvocationIndex; i < BLOCK_ENTRIES; i += LOCAL_SIZE) {
    const uint entry = head_word(head, HEAD_N_SINKS) + first + i;
    const uint hash = mixed(mixed(mixed(push.seed, push.layer), head), entry) >> 8;
    const float score = MODE == MODE_RECENCY ? float(entry + 1) : float(hash + 1) / 16777216.0;
    if (first + i < head_word(head, HEAD_N_CANDIDATES)) work[push.raw + workgroup_index() * BLOCK_ENTRIES + i] = score;
  }
}
