#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_vote : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_shuffle : require
// Subgroups of the size that was asked for, full and in the order of invocations; shuffles and ballots.
#include "index.glsl"

layout(constant_id = 0) const uint SIZE = 32;

layout(set = 0, binding = 0) readonly buffer In { uint values[LOCAL_SIZE]; };
layout(set = 0, binding = 1) writeonly buffer Out {
  uint places[LOCAL_SIZE];
  uint shuffled[LOCAL_SIZE];
  uint shuffled_floats[LOCAL_SIZE];
  uint ballots[LOCAL_SIZE];
  uint votes[LOCAL_SIZE];
};

layout(push_constant) uniform Push { uint n_groups; } push;

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint me = gl_LocalInvocationIndex, value = values[me];
  places[me] = gl_SubgroupSize << 16 | gl_SubgroupID * SIZE + gl_SubgroupInvocationID;

  uint folded = subgroupShuffle(value, (gl_SubgroupInvocationID * 5 + 3) % SIZE);
  for (uint mask = 1; mask < SIZE; mask *= 2) folded = folded * 31 + subgroupShuffleXor(value, mask);
  shuffled[me] = folded;
  const float number = float(value % 1000u);
  shuffled_floats[me] = uint(number) + 1000 * uint(subgroupShuffleXor(number, SIZE / 2));

  const uvec4 ballot = subgroupBallot((value & 1) != 0);
  ballots[me] = subgroupBallotExclusiveBitCount(ballot) << 16 | subgroupBallotBitCount(ballot) << 8 |
                uint(subgroupBallotBitExtract(ballot, gl_SubgroupInvocationID));
  votes[me] = uint(subgroupAny(value % 64u == 0)) << 1 | uint(subgroupAll(value % 64u != 1));
}
