#version 450
#extension GL_GOOGLE_include_directive : require
// Where the taken entries of each block go: prefix sums over all blocks, and from them cu_seqlens over all heads. One
// workgroup.
#include "index.glsl"
#include "scan.glsl"
#include "../evict/layout.glsl"
#define SELECTION_QUALIFIER coherent // one invocation reads what others wrote
#include "../evict/select.glsl"

#define BLOCKS_EACH 16

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint end = head_word(push.n_heads, HEAD_FIRST_BLOCK);
  uint carry = 0;
  for (uint base = 0; base < end; base += LOCAL_SIZE * BLOCKS_EACH) {
    const uint first = base + gl_LocalInvocationIndex * BLOCKS_EACH;
    uint mine = 0;
    for (uint b = first; b < min(first + BLOCKS_EACH, end); b++) mine += selection[push.block_counts + 2 * b];
    uint total;
    uint row = carry + scan_exclusive(mine, total);
    for (uint b = first; b < min(first + BLOCKS_EACH, end); b++) {
      selection[push.block_rows + b] = row;
      row += selection[push.block_counts + 2 * b];
    }
    carry += total;
  }
  if (gl_LocalInvocationIndex == 0) selection[push.block_rows + end] = carry;
  memoryBarrierBuffer();
  barrier();
  for (uint head = gl_LocalInvocationIndex; head <= push.n_heads; head += LOCAL_SIZE)
    result[push.cu_seqlens + head] =
        selection[push.block_rows + head_word(head, HEAD_FIRST_BLOCK)] + head_word(head, HEAD_PROTECTED);
}
