#version 450
#extension GL_GOOGLE_include_directive : require
// How many codes of each block, and of the run, are above the threshold and how many equal it. One workgroup per run.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

layout(constant_id = 0) const bool KNOWN = false; // the threshold: there are no histograms

shared uint counts[LOCAL_SIZE]; // above, and equal from bit 16 on

// Of a word of the masks.
uint count_word(uint word) {
  const uint at = first_block * BLOCK_MASKS + word;
  uint n_above = uint(bitCount(selection[push.masks_above + at])), n_equal = 0;
  uint equal = selection[push.masks_equal + at];
  if (one_digit()) n_equal = uint(bitCount(equal));
  while (equal != 0 && !one_digit()) {
    const uint bit = uint(findLSB(equal));
    equal &= equal - 1;
    const uint code = entry_code(first_block + word / BLOCK_MASKS, word % BLOCK_MASKS * 32 + bit);
    n_above += code > threshold ? 1 : 0;
    n_equal += code == threshold ? 1 : 0;
  }
  return n_above | n_equal << 16;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint t = gl_LocalInvocationIndex;
  begin_run(push.first_run + workgroup_index());
  begin_codes();
  if (KNOWN)
    load_threshold();
  else
    resolve(2);
  // So many invocations share a block; the words of each lie LOCAL_SIZE / run_blocks apart.
  const uint sharing = LOCAL_SIZE / push.run_blocks, block = t / sharing;
  uint mine = 0;
  if (block < n_blocks)
    for (uint i = t % sharing; i < BLOCK_MASKS; i += sharing) mine += count_word(block * BLOCK_MASKS + i);
  counts[t] = mine;
  barrier();
  uvec2 sum = uvec2(0);
  if (t < n_blocks) {
    for (uint i = 0; i < sharing; i++) sum += uvec2(counts[t * sharing + i] & 0xffffu, counts[t * sharing + i] >> 16);
    selection[push.block_counts + 2 * (first_block + t)] = sum.x;
    selection[push.block_counts + 2 * (first_block + t) + 1] = sum.y;
  }
  uint n_above, n_equal;
  scan_exclusive(sum.x, n_above);
  scan_exclusive(sum.y, n_equal);
  if (t != 0) return;
  selection[push.run_counts + 2 * run] = n_above;
  selection[push.run_counts + 2 * run + 1] = n_equal;
}
