#version 450
#extension GL_GOOGLE_include_directive : require
// MODE_LIST: writes the taken entries, in their order. MODE_PROMOTE: makes their scores infinite, so that a wider
// selection takes them first (the floor). Of the entries at the threshold the first are taken. One workgroup per
// GROUP_BLOCKS blocks of a run.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

layout(constant_id = 0) const uint MODE = 0;

#define MODE_LIST    0
#define MODE_PROMOTE 1

shared uvec2 sums[LOCAL_SIZE], group_sums[SCAN_GROUPS];

// Above and equal of the problem's blocks before `block` of the run.
uvec2 count_before(uint block) {
  const uint t = gl_LocalInvocationIndex;
  uvec2 sum = uvec2(0);
  for (uint i = first_run + t; i < run; i += LOCAL_SIZE)
    sum += uvec2(selection[push.run_counts + 2 * i], selection[push.run_counts + 2 * i + 1]);
  for (uint i = first_block + t; i < first_block + block; i += LOCAL_SIZE)
    sum += uvec2(selection[push.block_counts + 2 * i], selection[push.block_counts + 2 * i + 1]);
  sums[t] = sum;
  barrier();
  if (t < SCAN_GROUPS)
    for (uint i = t + SCAN_GROUPS; i < LOCAL_SIZE; i += SCAN_GROUPS) sum += sums[i];
  if (t < SCAN_GROUPS) group_sums[t] = sum;
  barrier();
  sum = group_sums[0];
  for (uint i = 1; i < SCAN_GROUPS; i++) sum += group_sums[i];
  return sum;
}

void load_masks(uint block, uint at, out uint above, out uint equal) {
  above = selection[push.masks_above + first_block * BLOCK_MASKS + at];
  uint undecided = selection[push.masks_equal + first_block * BLOCK_MASKS + at];
  equal = one_digit() ? undecided : 0;
  while (undecided != 0 && !one_digit()) {
    const uint bit = uint(findLSB(undecided));
    undecided &= undecided - 1;
    const uint code = entry_code(block, at % BLOCK_MASKS * 32 + bit);
    above |= (code > threshold ? 1u : 0u) << bit;
    equal |= (code == threshold ? 1u : 0u) << bit;
  }
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint t = gl_LocalInvocationIndex, groups = push.run_blocks / GROUP_BLOCKS;
  begin_run(push.first_run + workgroup_index() / groups);
  const uint first = workgroup_index() % groups * GROUP_BLOCKS;
  if (first >= n_blocks) return;
  begin_codes();
  load_threshold();
  const uint at = first * BLOCK_MASKS + t, block = first_block + at / BLOCK_MASKS;
  uint above = 0, equal = 0;
  if (at < n_blocks * BLOCK_MASKS) load_masks(block, at, above, equal);
  const uvec2 base = count_before(first);
  uint total;
  const uint before = scan_exclusive(uint(bitCount(above)) | uint(bitCount(equal)) << 16, total);
  uint n_equal = base.y + (before >> 16);
  uint row = base.x + (before & 0xffffu) + min(n_equal, left);
  if (at >= n_blocks * BLOCK_MASKS) return;
  row += selection[problem_words + PROBLEM_BASE];
  if (t % BLOCK_MASKS == 0) selection[push.block_rows + block] = row;
  const uint head = block_head(block), n_sinks = head_word(head, HEAD_N_SINKS);
  const uint in_block = at % BLOCK_MASKS * 32;
  const uint entry = n_sinks + (block - head_word(head, HEAD_FIRST_BLOCK)) * BLOCK_ENTRIES + in_block;
  row += push.indices + head_word(head, HEAD_PROTECTED) + n_sinks;
  for (uint both = above | equal; both != 0; both &= both - 1) {
    const uint bit = uint(findLSB(both));
    if ((equal >> bit & 1u) != 0 && n_equal++ >= left) continue;
    if (MODE == MODE_LIST) {
      result[row++] = entry + bit;
    } else {
      const uint place = (block - push.first_block) * BLOCK_ENTRIES + in_block + bit;
      scores[place >> 2][place & 3u] = uintBitsToFloat(INFINITE);
    }
  }
}
