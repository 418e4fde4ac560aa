#version 450
#extension GL_GOOGLE_include_directive : require
// One model on several devices: entries at the threshold go to those of the earliest layers. MODE_TELL: how many this
// device has. MODE_TAKE: how many of them it takes, once all have told, and how many it takes in all. One workgroup.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

layout(constant_id = 0) const uint MODE = 0;

#define MODE_TELL 0
#define MODE_TAKE 1

shared uvec2 sums[LOCAL_SIZE];

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint t = gl_LocalInvocationIndex, n_runs = selection[push.problems + PROBLEM_RUNS];
  uvec2 sum = uvec2(0); // above and equal
  for (uint i = t; i < n_runs; i += LOCAL_SIZE)
    sum += uvec2(selection[push.run_counts + 2 * i], selection[push.run_counts + 2 * i + 1]);
  sums[t] = sum;
  barrier();
  if (t != 0) return;
  for (uint i = 1; i < LOCAL_SIZE; i++) sum += sums[i];
  if (MODE == MODE_TELL) {
    selection[push.ties + push.layer_offset] = sum.y;
    return;
  }
  uint before = 0;
  for (uint i = 0; i < push.layer_offset; i++) before += selection[push.ties + i];
  problem_words = push.problems;
  load_threshold();
  const uint mine = min(left - min(left, before), sum.y);
  selection[problem_words + PROBLEM_STAGES + 5] = mine;
  selection[push.block_rows + head_word(push.n_heads, HEAD_FIRST_BLOCK)] = sum.x + mine;
}
