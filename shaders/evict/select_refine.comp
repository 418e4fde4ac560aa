#version 450
#extension GL_GOOGLE_include_directive : require
// Counts the last digit of the codes that share the threshold's first two. One workgroup per run.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

shared uint bins[HISTOGRAM_BINS];

void count_word(uint word, uint at) {
  const uint block = first_block + at / BLOCK_MASKS;
  if (one_digit() && word != 0) atomicAdd(bins[0], uint(bitCount(word)));
  while (word != 0 && !one_digit()) {
    const uint bit = uint(findLSB(word));
    word &= word - 1;
    const uint code = entry_code(block, at % BLOCK_MASKS * 32 + bit);
    if (code >> second_shift == threshold) atomicAdd(bins[code & ((1u << second_shift) - 1u)], 1u);
  }
}

#define LOAD_WORD(i)                                                                                                 \
  const uint at##i = word + i * LOCAL_SIZE;                                                                          \
  const uint loaded##i =                                                                                             \
      selection[push.masks_equal + first_block * BLOCK_MASKS + min(at##i, n_blocks * BLOCK_MASKS - 1)];
#define COUNT_WORD(i) count_word(at##i < n_blocks * BLOCK_MASKS ? loaded##i : 0, at##i);

void main() {
  if (workgroup_index() >= push.n_groups) return;
  begin_run(push.first_run + workgroup_index());
  begin_codes();
  for (uint i = gl_LocalInvocationIndex; i < HISTOGRAM_BINS; i += LOCAL_SIZE) bins[i] = 0;
  resolve(1);
  for (uint word = gl_LocalInvocationIndex; word < n_blocks * BLOCK_MASKS; word += 4 * LOCAL_SIZE) {
    REPEAT_4(LOAD_WORD)
    REPEAT_4(COUNT_WORD)
  }
  barrier();
  const uint to = histogram_at(2);
  for (uint i = gl_LocalInvocationIndex; i < HISTOGRAM_BINS; i += LOCAL_SIZE)
    if (bins[i] != 0) atomicAdd(selection[to + i], bins[i]);
}
