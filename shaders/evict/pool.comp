#version 450
#extension GL_GOOGLE_include_directive : require
// Smooths the raw scores of a layer along positions, counts the ones that are no numbers (they are worth 0), and sums
// each block by a fixed tree, so that the sum does not depend on the device's subgroups. Places behind a head's last
// candidate receive -1, which no selection takes. One workgroup per block.
#include "index.glsl"
#include "finite.glsl"
#include "repeat.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint WIDTH = 7; // odd, at most 31
layout(constant_id = 1) const uint MODE = 0;

#define MODE_AVERAGE 0
#define MODE_MAX     1

layout(set = 0, binding = 0) readonly buffer Work { float work[]; };
layout(set = 0, binding = 1) buffer State { uint state[]; };
layout(set = 0, binding = 2) writeonly buffer Scores { float scores[]; }; // the layer's

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads, n_heads;
  uint layer_block;
  uint raw;
  uint block_sums; // word in state[]: sum of each of the model's blocks, and how many there are no numbers
} push;

const uint HALO = WIDTH / 2;
shared float window[BLOCK_ENTRIES + 30];
shared uint head_first_block, head_candidates; // of the block's head
shared vec2 tree[LOCAL_SIZE];                  // sum of scores, and how many are no numbers

float n_nonfinite = 0.0; // that this invocation has found

#include "../evict/heads.glsl"

// The heads' rows are read at once, each by an invocation of its own: a search would wait for one after the other.
void find_head(uint block) {
  for (uint head = gl_LocalInvocationIndex; head < push.n_heads; head += LOCAL_SIZE) {
    const uint begin = head_word(head, HEAD_FIRST_BLOCK), end = head_word(head + 1, HEAD_FIRST_BLOCK);
    const uint n_candidates = head_word(head, HEAD_N_CANDIDATES);
    if (block < begin || block >= end) continue;
    head_first_block = begin;
    head_candidates = n_candidates;
  }
}

// Place i of the window, whichever head's score that is: heads' blocks stand one behind the other. Beyond the layer's,
// anything.
float load_raw(uint i) {
  const uint at = workgroup_index() * BLOCK_ENTRIES + i - HALO; // wraps below 0 and is then beyond the last one
  return work[push.raw + min(at, push.n_groups * BLOCK_ENTRIES - 1)];
}

void put(uint i, float value, uint first, bool counts) {
  const bool inside = first + i - HALO < head_candidates; // wraps, too
  const bool is_number = is_finite(value);
  window[i] = inside && is_number ? value : 0.0;
  if (inside && !is_number && counts) n_nonfinite++;
}

#define LOAD(n) const float value##n = load_raw(HALO + gl_LocalInvocationIndex + n * LOCAL_SIZE);
#define PUT(n)  put(HALO + gl_LocalInvocationIndex + n * LOCAL_SIZE, value##n, first, true);

// Leaves the first of the block's candidates. All that is read is on its way before anything waits for it.
void load_window(uint block, out uint first) {
  const uint beside = gl_LocalInvocationIndex + (gl_LocalInvocationIndex < HALO ? 0 : BLOCK_ENTRIES);
  REPEAT_8(LOAD)
  const float value_beside = load_raw(beside);
  find_head(block);
  barrier();
  first = (block - head_first_block) * BLOCK_ENTRIES;
  REPEAT_8(PUT)
  if (gl_LocalInvocationIndex < 2 * HALO) put(beside, value_beside, first, false);
  barrier();
}

float pooled(uint i) {
  float total = 0.0;
  for (uint k = 0; k < WIDTH; k++) total = MODE == MODE_MAX ? max(total, window[i + k]) : total + window[i + k];
  return MODE == MODE_MAX || WIDTH == 1 ? total : total / float(WIDTH);
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  const uint block = push.layer_block + workgroup_index();
  uint first;
  load_window(block, first);

  float sum = 0.0;
  for (uint i = gl_LocalInvocationIndex; i < BLOCK_ENTRIES; i += LOCAL_SIZE) {
    const bool inside = first + i < head_candidates;
    const float score = inside ? pooled(i) : -1.0;
    scores[workgroup_index() * BLOCK_ENTRIES + i] = score;
    if (inside) sum += score;
  }
  tree[gl_LocalInvocationIndex] = vec2(sum, n_nonfinite);
  // Two levels of the tree at once.
  for (uint width = LOCAL_SIZE / 4; width > 1; width /= 4) {
    barrier();
    const uint i = gl_LocalInvocationIndex;
    if (i < width) tree[i] = (tree[i] + tree[i + 2 * width]) + (tree[i + width] + tree[i + 3 * width]);
  }
  barrier();
  if (gl_LocalInvocationIndex == 0) {
    const vec2 total = tree[0] + tree[1];
    state[push.block_sums + 2 * block] = floatBitsToUint(total.x);
    state[push.block_sums + 2 * block + 1] = floatBitsToUint(total.y);
  }
}
