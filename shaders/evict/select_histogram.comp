#version 450
#extension GL_GOOGLE_include_directive : require
// Counts the next digit of all keys that share the threshold's known digits. One workgroup per run of blocks of one
// selection problem.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

shared uint bins[HISTOGRAM_BINS];

void count_block(uint block, uint prefix) {
  const float scale = layer_scale(state[push.block_heads + block]);
  const uint first = (block - push.first_block) * BLOCK_ENTRIES;
  for (uint i = gl_LocalInvocationIndex; i < BLOCK_ENTRIES; i += LOCAL_SIZE) {
    uint key;
    if (score_key(scores[first + i], scale, key) && key >> (push.shift + push.bits) == prefix)
      atomicAdd(bins[key >> push.shift & ((1u << push.bits) - 1u)], 1u);
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint run = push.runs + 2 * (push.first_item + workgroup_index());
  const uint first = state[run], end = first + state[run + 1];
  const uint problem = state[push.block_heads + first] / push.heads_per_problem;
  const uint prefix = selection[problem_word(problem, PROBLEM_PREFIX)];
  for (uint i = gl_LocalInvocationIndex; i < HISTOGRAM_BINS; i += LOCAL_SIZE) bins[i] = 0;
  barrier();
  for (uint block = first; block < end; block++) count_block(block, prefix);
  barrier();
  for (uint i = gl_LocalInvocationIndex; i < HISTOGRAM_BINS; i += LOCAL_SIZE)
    if (bins[i] != 0) atomicAdd(selection[push.histograms + problem * HISTOGRAM_BINS + i], bins[i]);
}
