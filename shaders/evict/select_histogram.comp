#version 450
#extension GL_GOOGLE_include_directive : require
// Counts digits of codes. MODE_FIRST: the first digit of all. MODE_SECOND: the second of those that share the
// threshold's first; masks say which those are, and which are above, so that later passes look at nothing else. One
// workgroup per run.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"
#include "../evict/select_masks.glsl"

layout(constant_id = 0) const uint MODE = 0;

#define MODE_FIRST  0
#define MODE_SECOND 1

shared uint bins[HISTOGRAM_BINS];
void count(float score, float scale, uint bit) {
  if (!(score >= 0.0)) return;
  const uint code = score_code(score, scale), digit = code >> first_shift;
  if (MODE == MODE_FIRST) {
    atomicAdd(bins[digit], 1u);
  } else if (digit == threshold) {
    equal |= 1u << bit;
    atomicAdd(bins[code >> second_shift & ((1u << (first_shift - second_shift)) - 1u)], 1u);
  } else if (digit > threshold) {
    above |= 1u << bit;
  }
}

#define COUNT_SCORES(i)                                                                                              \
  {                                                                                                                  \
    const float scale = run_scales[block + i / 2];                                                                   \
    count(scores##i.x, scale, 4 * i);                                                                                \
    count(scores##i.y, scale, 4 * i + 1);                                                                            \
    count(scores##i.z, scale, 4 * i + 2);                                                                            \
    count(scores##i.w, scale, 4 * i + 3);                                                                            \
  }

void main() {
  if (workgroup_index() >= push.n_groups) return;
  begin_run(push.first_run + workgroup_index());
  begin_codes();
  for (uint i = gl_LocalInvocationIndex; i < HISTOGRAM_BINS; i += LOCAL_SIZE) bins[i] = 0;
  if (MODE == MODE_SECOND) resolve(0);
  load_scales();
  for (uint block = 0; block < n_blocks; block += GROUP_BLOCKS) {
    above = equal = 0;
    REPEAT_8(LOAD_SCORES)
    REPEAT_8(COUNT_SCORES)
    if (MODE == MODE_SECOND) store_masks(block);
  }
  barrier();
  const uint to = push.histograms + (problem * 3 + MODE) * HISTOGRAM_BINS;
  for (uint i = gl_LocalInvocationIndex; i < HISTOGRAM_BINS; i += LOCAL_SIZE)
    if (bins[i] != 0) atomicAdd(selection[to + i], bins[i]);
}
