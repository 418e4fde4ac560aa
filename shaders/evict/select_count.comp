#version 450
#extension GL_GOOGLE_include_directive : require
// Per block: how many keys are above the threshold and how many equal it. One workgroup per block.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

shared uint n_above, n_equal;

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint block = push.first_item + workgroup_index();
  const uint head = state[push.block_heads + block];
  const uint problem = head / push.heads_per_problem;
  const uint threshold = selection[problem_word(problem, PROBLEM_PREFIX)];
  const bool any = selection[problem_word(problem, PROBLEM_K)] != 0;
  const float scale = layer_scale(head);
  const uint first = (block - push.first_block) * BLOCK_ENTRIES;
  if (gl_LocalInvocationIndex == 0) n_above = 0, n_equal = 0;
  barrier();
  uint above = 0, equal = 0;
  for (uint i = gl_LocalInvocationIndex; i < BLOCK_ENTRIES; i += LOCAL_SIZE) {
    uint key;
    if (!score_key(scores[first + i], scale, key) || !any) continue;
    above += key > threshold ? 1 : 0;
    equal += key == threshold ? 1 : 0;
  }
  atomicAdd(n_above, above);
  atomicAdd(n_equal, equal);
  barrier();
  if (gl_LocalInvocationIndex != 0) return;
  selection[push.block_counts + 2 * block] = n_above;
  selection[push.block_counts + 2 * block + 1] = n_equal;
}
