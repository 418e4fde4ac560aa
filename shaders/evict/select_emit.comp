#version 450
#extension GL_GOOGLE_include_directive : require
// MODE_LIST: writes the taken entries of a block, in their order. MODE_PROMOTE: makes their scores infinite, so that a
// wider selection takes them first (the floor). One workgroup per block.
#include "index.glsl"
#include "scan.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

layout(constant_id = 0) const uint MODE = 0;

#define MODE_LIST    0
#define MODE_PROMOTE 1
#define ENTRIES_EACH (BLOCK_ENTRIES / LOCAL_SIZE)

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint block = push.first_item + workgroup_index();
  const uint head = state[push.block_heads + block];
  const uint threshold = selection[problem_word(head / push.heads_per_problem, PROBLEM_PREFIX)];
  const bool any = selection[problem_word(head / push.heads_per_problem, PROBLEM_K)] != 0;
  const uint quota = selection[push.block_counts + 2 * block + 1];
  const float scale = layer_scale(head);
  const uint first = gl_LocalInvocationIndex * ENTRIES_EACH;
  const uint at = (block - push.first_block) * BLOCK_ENTRIES + first;
  uint above = 0, equal = 0; // bits
  for (uint i = 0; i < ENTRIES_EACH; i++) {
    uint key;
    if (!score_key(scores[at + i], scale, key) || !any) continue;
    above |= (key > threshold ? 1u : 0u) << i;
    equal |= (key == threshold ? 1u : 0u) << i;
  }
  uint total; // counts up to 1024 fit 16 bits each
  const uint before = scan_exclusive(bitCount(above) | bitCount(equal) << 16, total);
  const uint before_above = before & 0xffffu;
  uint before_equal = before >> 16;
  const uint first_block = head_word(head, HEAD_FIRST_BLOCK);
  uint out_row = before_above + min(before_equal, quota);
  if (MODE == MODE_LIST)
    out_row += result[push.cu_seqlens + head] + head_word(head, HEAD_N_SINKS) + selection[push.block_rows + block] -
               selection[push.block_rows + first_block];
  const uint entry = head_word(head, HEAD_N_SINKS) + (block - first_block) * BLOCK_ENTRIES + first;
  for (uint i = 0; i < ENTRIES_EACH; i++) {
    const bool tie = (equal >> i & 1u) != 0;
    const bool take = (above >> i & 1u) != 0 || (tie && before_equal < quota);
    if (tie) before_equal++;
    if (!take) continue;
    if (MODE == MODE_LIST) result[push.indices + out_row++] = entry + i;
    else scores[at + i] = uintBitsToFloat(0x7f800000u);
  }
}
