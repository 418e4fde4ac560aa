#version 450
#extension GL_GOOGLE_include_directive : require
// Smooths the raw scores of a layer along positions, counts the ones that are no numbers (they are worth 0), and sums
// each block by a fixed tree, so that the sum does not depend on the device's subgroups. Places behind a head's last
// candidate receive -1, which no selection takes. One workgroup per block.
#include "index.glsl"
#include "finite.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint WIDTH = 7; // odd, at most 31
layout(constant_id = 1) const uint MODE = 0;

#define MODE_AVERAGE 0
#define MODE_MAX     1

layout(set = 0, binding = 0) buffer Work { float work[]; };
layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
layout(set = 0, binding = 2) writeonly buffer Scores { float scores[]; }; // the layer's

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads, n_heads;
  uint layer_block;
  uint raw;
  uint block_sums; // word in work[]: sum of each of the model's blocks, and how many there are no numbers
} push;

const uint HALO = WIDTH / 2;
shared float window[BLOCK_ENTRIES + 30];
shared float tree[LOCAL_SIZE];
shared uint count_tree[LOCAL_SIZE];

uint n_nonfinite = 0; // that this invocation has found

#include "../evict/heads.glsl"

void load_window(uint head_raw, uint first, uint n_candidates) {
  for (uint i = gl_LocalInvocationIndex; i < BLOCK_ENTRIES + 2 * HALO; i += LOCAL_SIZE) {
    const uint at = first + i - HALO; // wraps below 0 and is then beyond n_candidates
    float value = at < n_candidates ? work[head_raw + at] : 0.0;
    if (!is_finite(value)) {
      value = 0.0;
      if (i >= HALO && i < HALO + BLOCK_ENTRIES) n_nonfinite++;
    }
    window[i] = value;
  }
}

float pooled(uint i) {
  float total = 0.0;
  for (uint k = 0; k < WIDTH; k++) total = MODE == MODE_MAX ? max(total, window[i + k]) : total + window[i + k];
  return MODE == MODE_MAX || WIDTH == 1 ? total : total / float(WIDTH);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint block = push.layer_block + workgroup_index();
  uint head = 0;
  while (head + 1 < push.n_heads && head_word(head + 1, HEAD_FIRST_BLOCK) <= block) head++;
  const uint first = (block - head_word(head, HEAD_FIRST_BLOCK)) * BLOCK_ENTRIES;
  const uint n_candidates = head_word(head, HEAD_N_CANDIDATES);
  const uint head_raw = push.raw + (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES;
  load_window(head_raw, first, n_candidates);
  barrier();

  float sum = 0.0;
  for (uint i = gl_LocalInvocationIndex; i < BLOCK_ENTRIES; i += LOCAL_SIZE) {
    const bool inside = first + i < n_candidates;
    const float score = inside ? pooled(i) : -1.0;
    scores[workgroup_index() * BLOCK_ENTRIES + i] = score;
    if (inside) sum += score;
  }
  tree[gl_LocalInvocationIndex] = sum;
  count_tree[gl_LocalInvocationIndex] = n_nonfinite;
  for (uint width = LOCAL_SIZE / 2; width > 0; width /= 2) {
    barrier();
    if (gl_LocalInvocationIndex < width) {
      tree[gl_LocalInvocationIndex] += tree[gl_LocalInvocationIndex + width];
      count_tree[gl_LocalInvocationIndex] += count_tree[gl_LocalInvocationIndex + width];
    }
  }
  if (gl_LocalInvocationIndex == 0) {
    work[push.block_sums + 2 * block] = tree[0];
    work[push.block_sums + 2 * block + 1] = float(count_tree[0]);
  }
}
