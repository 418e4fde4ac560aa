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
void count(uint code, uint digit, uint bit) {
  if (digit == threshold) {
    equal |= 1u << bit;
    atomicAdd(bins[code >> second_shift & ((1u << (first_shift - second_shift)) - 1u)], 1u);
  } else if (digit > threshold) {
    above |= 1u << bit;
  }
}

void count_scores(vec4 four, float scale, uint bit) {
  const bvec4 there = greaterThanEqual(four, vec4(0.0));
  const uvec4 codes = uvec4(score_code(four.x, scale), score_code(four.y, scale), score_code(four.z, scale),
                            score_code(four.w, scale));
  const uvec4 digits = codes >> first_shift;
  if (MODE == MODE_SECOND) {
    if (there.x) count(codes.x, digits.x, bit);
    if (there.y) count(codes.y, digits.y, bit + 1);
    if (there.z) count(codes.z, digits.z, bit + 2);
    if (there.w) count(codes.w, digits.w, bit + 3);
  } else if (all(there) && digits.yzw == digits.xxx) {
    atomicAdd(bins[digits.x], 4u); // equal scores would have all invocations wait for one bin
  } else {
    if (there.x) atomicAdd(bins[digits.x], 1u);
    if (there.y) atomicAdd(bins[digits.y], 1u);
    if (there.z) atomicAdd(bins[digits.z], 1u);
    if (there.w) atomicAdd(bins[digits.w], 1u);
  }
}

#define COUNT_SCORES(i) count_scores(scores##i, run_scales[block + i / 2], 4 * i);

void main() {
  if (workgroup_index() >= push.n_groups) return;
  begin_run(push.first_run + workgroup_index());
  BEGIN_SCORES
  begin_codes();
  for (uint i = gl_LocalInvocationIndex; i < HISTOGRAM_BINS; i += LOCAL_SIZE) bins[i] = 0;
  if (MODE == MODE_SECOND) resolve(0);
  load_scales();
  for (uint block = 0; block < n_blocks; block += GROUP_BLOCKS) {
    above = equal = 0;
    ADVANCE_SCORES(block)
    REPEAT_8(COUNT_SCORES)
    if (MODE == MODE_SECOND) store_masks(block);
  }
  barrier();
  const uint to = histogram_at(MODE);
  for (uint i = gl_LocalInvocationIndex; i < HISTOGRAM_BINS; i += LOCAL_SIZE)
    if (bins[i] != 0) atomicAdd(selection[to + i], bins[i]);
}
