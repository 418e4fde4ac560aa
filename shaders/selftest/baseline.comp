#version 450
#extension GL_GOOGLE_include_directive : require
// What every kernel counts on, in little, against the host's answers: one workgroup per question, but all of them add
// to the global counters. src/vk/selftest.c has the sizes.
#include "index.glsl"
#include "scan.glsl"

#define N_WORDS     256 // of packed f16
#define N_BINS      16
#define ROUNDS      4
#define ROW_WORDS   16
#define LANES       (LOCAL_SIZE / ROW_WORDS)
#define N_KEPT      96

layout(set = 0, binding = 0) readonly buffer In {
  uint halves[N_WORDS];
  uint values[LOCAL_SIZE * ROUNDS];
  uint kept[N_KEPT]; // rows, ascending
};
layout(set = 0, binding = 1) coherent buffer Out {
  uint floats[2 * N_WORDS];
  uint sums[LOCAL_SIZE];
  uint shared_bins[N_BINS];
  uint global_bins[N_BINS];
  uint rows[];
};

layout(push_constant) uniform Push { uint n_groups; } push;

shared uint bins[N_BINS];

void unpack() {
  for (uint i = gl_LocalInvocationIndex; i < N_WORDS; i += LOCAL_SIZE) {
    const vec2 both = unpackHalf2x16(halves[i]);
    floats[2 * i] = floatBitsToUint(both.x);
    floats[2 * i + 1] = floatBitsToUint(both.y);
  }
}

void scan() {
  uint total;
  const uint sum = scan_exclusive(values[gl_LocalInvocationIndex], total);
  sums[gl_LocalInvocationIndex] = sum ^ total;
}

void count() {
  if (gl_LocalInvocationIndex < N_BINS) bins[gl_LocalInvocationIndex] = 0;
  barrier();
  for (uint i = gl_LocalInvocationIndex; i < LOCAL_SIZE * ROUNDS; i += LOCAL_SIZE)
    atomicAdd(bins[values[i] % N_BINS], values[i]);
  barrier();
  if (gl_LocalInvocationIndex < N_BINS) shared_bins[gl_LocalInvocationIndex] = bins[gl_LocalInvocationIndex];
}

// As compact_in_place.comp moves rows, a few of them at a time.
void move() {
  const uint word = gl_LocalInvocationIndex % ROW_WORDS;
  const uint lane = gl_LocalInvocationIndex / ROW_WORDS;
  for (uint first = 0; first < N_KEPT; first += LANES) {
    const uint held = rows[kept[first + lane] * ROW_WORDS + word];
    memoryBarrierBuffer();
    barrier();
    rows[(first + lane) * ROW_WORDS + word] = held;
    memoryBarrierBuffer();
    barrier();
  }
}

void main() {
  const uint group = workgroup_index();
  if (group >= push.n_groups) return;
  for (uint i = gl_LocalInvocationIndex; i < LOCAL_SIZE * ROUNDS; i += LOCAL_SIZE)
    atomicAdd(global_bins[values[i] % N_BINS], values[i] + group);
  if (group == 0) unpack();
  if (group == 1) scan();
  if (group == 2) count();
  if (group == 3) move();
}
