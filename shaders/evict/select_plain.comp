#version 450
#extension GL_GOOGLE_include_directive : require
// The selection's threshold without atomics, for devices on which they fail: eight digits of four bits, counted in
// registers. MODE_COUNT: the next digit of the keys that share the threshold's first. MODE_MASKS: the masks of the keys
// above the whole threshold and equal to it. One workgroup per run.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"
#include "../evict/select_masks.glsl"

layout(constant_id = 0) const uint MODE = 0;

#define MODE_COUNT 0
#define MODE_MASKS 1
#define DIGIT_BITS 4
#define DIGITS     16
#define LAST_PASS  7u

shared uint sums[DIGITS * LOCAL_SIZE];

// Of each run the counts of two passes, by turns.
uint counts_at(uint index, uint pass) {
  return push.histograms + (2 * index + (pass & 1u)) * DIGITS;
}

// The threshold's digits after `pass`: for this workgroup, and by one for the next.
void resolve_plain(uint pass) {
  const uint t = gl_LocalInvocationIndex, digit = t % DIGITS;
  const uint end = first_run + selection[problem_words + PROBLEM_RUNS];
  uint sum = 0;
  for (uint i = first_run + t / DIGITS; i < end; i += LOCAL_SIZE / DIGITS) sum += selection[counts_at(i, pass) + digit];
  sums[t] = sum;
  barrier();
  const uint stages = problem_words + PROBLEM_STAGES, last = stages + 2 * (~pass & 1u);
  threshold = pass == 0 ? 0 : selection[last];
  left = selection[pass == 0 ? problem_words + PROBLEM_K : last + 1];
  uint found = NONE;
  for (uint d = DIGITS; d-- > 0 && found == NONE && left != 0;) {
    uint here = 0;
    for (uint i = d; i < LOCAL_SIZE; i += DIGITS) here += sums[i];
    if (left <= here) found = d;
    else left -= here;
  }
  threshold = found == NONE ? NONE : threshold << DIGIT_BITS | found;
  barrier();
  if (run != first_run || t != 0) return;
  const uint to = stages + (pass == LAST_PASS ? 4u : 2 * (pass & 1u));
  selection[to] = threshold;
  selection[to + 1] = left;
}

uint count0 = 0, count1 = 0, count2 = 0, count3 = 0, count4 = 0, count5 = 0, count6 = 0, count7 = 0;
uint count8 = 0, count9 = 0, count10 = 0, count11 = 0, count12 = 0, count13 = 0, count14 = 0, count15 = 0;

#define EACH_DIGIT(F) REPEAT_8(F) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
#define COUNT_DIGIT(d) count##d += digit == d ? 1u : 0u;
#define STORE_DIGIT(d) sums[d * LOCAL_SIZE + gl_LocalInvocationIndex] = count##d;

void add(float score, float scale, uint bit) {
  if (!(score >= 0.0)) return;
  const uint key = score_key(score, scale);
  if (MODE == MODE_MASKS) {
    above |= (key > threshold ? 1u : 0u) << bit;
    equal |= (key == threshold ? 1u : 0u) << bit;
    return;
  }
  const uint shift = 28u - DIGIT_BITS * push.pass;
  if (push.pass != 0 && key >> (shift + DIGIT_BITS) != threshold) return;
  const uint digit = key >> shift & (DIGITS - 1u);
  EACH_DIGIT(COUNT_DIGIT)
}

#define ADD_SCORES(i)                                                                                                \
  {                                                                                                                  \
    const float scale = run_scales[block + i / 2];                                                                   \
    add(scores##i.x, scale, 4 * i);                                                                                  \
    add(scores##i.y, scale, 4 * i + 1);                                                                              \
    add(scores##i.z, scale, 4 * i + 2);                                                                              \
    add(scores##i.w, scale, 4 * i + 3);                                                                              \
  }

void store_counts() {
  barrier();
  EACH_DIGIT(STORE_DIGIT)
  barrier();
  const uint digit = gl_LocalInvocationIndex;
  if (digit >= DIGITS) return;
  uint sum = 0;
  for (uint i = 0; i < LOCAL_SIZE; i++) sum += sums[digit * LOCAL_SIZE + i];
  selection[counts_at(run, push.pass) + digit] = sum;
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  begin_run(push.first_run + workgroup_index());
  BEGIN_SCORES
  if (push.pass != 0) resolve_plain(push.pass - 1);
  load_scales();
  for (uint block = 0; block < n_blocks; block += GROUP_BLOCKS) {
    above = equal = 0;
    ADVANCE_SCORES(block)
    REPEAT_8(ADD_SCORES)
    if (MODE == MODE_MASKS) store_masks(block);
  }
  if (MODE == MODE_COUNT) store_counts();
}
