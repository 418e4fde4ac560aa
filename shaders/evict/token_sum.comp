#version 450
#extension GL_GOOGLE_include_directive : require
// The final scores of tokens, summed over the heads of each layer and then over the layers, in their order, so that the
// sums do not depend on the device. All heads have equally many entries. Places without a candidate keep their -1. One
// workgroup per LOCAL_SIZE tokens.
#include "index.glsl"
#include "../evict/layout.glsl"

layout(set = 0, binding = 0) readonly buffer Scores { float scores[]; }; // of layers from first_layer on
layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
layout(set = 0, binding = 2) buffer Sums { float sums[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint first_layer, n_layers;
  uint heads_per_layer;
  uint head_blocks;
  uint inverses; // word in state[]: scale of each layer
} push;

#define SMALLEST_NORMAL 0x00800000u

// As in the selection, numbers too small to be normal ones are worth nothing.
float term(float score, float scale) {
  precise const float scaled = score * scale;
  return floatBitsToUint(score) < SMALLEST_NORMAL || floatBitsToUint(scaled) < SMALLEST_NORMAL ? 0.0 : scaled;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint token = workgroup_index() * LOCAL_SIZE + gl_LocalInvocationIndex, stride = push.head_blocks * BLOCK_ENTRIES;
  uint at = token;
  if (scores[at] < 0.0) {
    sums[token] = -1.0;
    return;
  }
  precise float sum = push.first_layer == 0 ? 0.0 : sums[token];
  for (uint layer = 0; layer < push.n_layers; layer++) {
    const float scale = uintBitsToFloat(state[push.inverses + push.first_layer + layer]);
    precise float of_layer = 0.0;
    for (uint head = 0; head < push.heads_per_layer; head++, at += stride) of_layer += term(scores[at], scale);
    sum += of_layer;
  }
  sums[token] = sum;
}
