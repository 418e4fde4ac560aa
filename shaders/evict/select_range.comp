#version 450
#extension GL_GOOGLE_include_directive : require
// The least and the largest key of each problem, but zero and infinity. One workgroup per run.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

shared uint lows[LOCAL_SIZE], highs[LOCAL_SIZE];

uint low = NONE, high = 0u;

// Without a branch: SwiftShader's compiler has no end where 32 of them follow each other.
void add(float score, float scale) {
  const uint any = score_key(score, scale);
  const uint key = score >= 0.0 ? any : 0u;
  low = min(low, key - 1u < INFINITE - 1u ? key : NONE);
  high = max(high, key < INFINITE ? key : 0u);
}

#define ADD_SCORES(i)                                                                                                \
  {                                                                                                                  \
    const float scale = run_scales[block + i / 2];                                                                   \
    add(scores##i.x, scale);                                                                                         \
    add(scores##i.y, scale);                                                                                         \
    add(scores##i.z, scale);                                                                                         \
    add(scores##i.w, scale);                                                                                         \
  }

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint t = gl_LocalInvocationIndex;
  begin_run(push.first_run + workgroup_index());
  BEGIN_SCORES
  load_scales();
  for (uint block = 0; block < n_blocks; block += GROUP_BLOCKS) {
    ADVANCE_SCORES(block)
    REPEAT_8(ADD_SCORES)
  }
  lows[t] = low;
  highs[t] = high;
  barrier();
  if (t < SCAN_GROUPS)
    for (uint i = t + SCAN_GROUPS; i < LOCAL_SIZE; i += SCAN_GROUPS) {
      low = min(low, lows[i]);
      high = max(high, highs[i]);
    }
  lows[t] = low;
  highs[t] = high;
  barrier();
  if (t != 0) return;
  for (uint i = 1; i < SCAN_GROUPS; i++) {
    low = min(low, lows[i]);
    high = max(high, highs[i]);
  }
  if (low > high) return;
  atomicMin(selection[problem_words + PROBLEM_LOW], low);
  atomicMax(selection[problem_words + PROBLEM_HIGH], high);
}
