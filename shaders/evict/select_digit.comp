#version 450
#extension GL_GOOGLE_include_directive : require
// Finds the digit of the threshold in a problem's histogram, and clears the histogram for the next pass. One workgroup
// per problem.
#include "index.glsl"
#include "../evict/layout.glsl"
#include "../evict/select.glsl"

#define BINS_EACH (HISTOGRAM_BINS / LOCAL_SIZE)

shared uint sums[LOCAL_SIZE];

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint problem = workgroup_index();
  const uint first = push.histograms + problem * HISTOGRAM_BINS + gl_LocalInvocationIndex * BINS_EACH;
  uint sum = 0;
  for (uint i = 0; i < BINS_EACH; i++) sum += selection[first + i];
  sums[gl_LocalInvocationIndex] = sum;
  barrier();
  // The share of the digit range in which the wanted number is reached from above belongs to one invocation.
  const uint wanted = selection[problem_word(problem, PROBLEM_LEFT)];
  uint above = 0;
  for (uint i = gl_LocalInvocationIndex + 1; i < LOCAL_SIZE; i++) above += sums[i];
  const bool mine = wanted > above && wanted <= above + sum;
  uint digit = BINS_EACH;
  if (mine)
    while (true) {
      digit--;
      const uint here = selection[first + digit];
      if (wanted <= above + here) break;
      above += here;
    }
  for (uint i = 0; i < BINS_EACH; i++) selection[first + i] = 0;
  barrier();
  if (!mine) return;
  const uint prefix = selection[problem_word(problem, PROBLEM_PREFIX)];
  selection[problem_word(problem, PROBLEM_PREFIX)] =
      prefix << push.bits | (gl_LocalInvocationIndex * BINS_EACH + digit);
  selection[problem_word(problem, PROBLEM_LEFT)] = wanted - above;
}
