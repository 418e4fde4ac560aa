#version 450
#extension GL_GOOGLE_include_directive : require
// Hands the places that are left for keys equal to the threshold to the lowest (layer, head, position): per block the
// number of entries taken, and how many of those are ties. One workgroup per problem.
#include "index.glsl"
#include "scan.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

#define BLOCKS_EACH 16

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint problem = workgroup_index();
  const uint begin = head_word(problem * push.heads_per_problem, HEAD_FIRST_BLOCK);
  const uint end = head_word((problem + 1) * push.heads_per_problem, HEAD_FIRST_BLOCK);
  uint left = selection[problem_word(problem, PROBLEM_LEFT)];
  for (uint base = begin; base < end; base += LOCAL_SIZE * BLOCKS_EACH) {
    const uint first = base + gl_LocalInvocationIndex * BLOCKS_EACH;
    uint mine = 0;
    for (uint b = first; b < min(first + BLOCKS_EACH, end); b++) mine += selection[push.block_counts + 2 * b + 1];
    uint total;
    uint before = scan_exclusive(mine, total);
    for (uint b = first; b < min(first + BLOCKS_EACH, end); b++) {
      const uint equal = selection[push.block_counts + 2 * b + 1];
      const uint quota = before < left ? min(left - before, equal) : 0;
      selection[push.block_counts + 2 * b] += quota;
      selection[push.block_counts + 2 * b + 1] = quota;
      before += equal;
    }
    left = left > total ? left - total : 0;
  }
}
