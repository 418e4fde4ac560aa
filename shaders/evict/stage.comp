#version 450
#extension GL_GOOGLE_include_directive : require
// A stage before the selection: chosen entries get a mark above every score, so that the selection takes them first.
//   MODE_SHARES: the best of every head, as many as 4/5 of what it wins within its layer and 1/5 of an equal share;
//   one workgroup for all heads of a layer.
//   MODE_HALF: the best of each head, or of all heads together, half as many as there are places; MODE_MASS: the best of
//   each head that stay below 9/10 of the sum of all, at most as many as there are places; one workgroup a head, or one.
// Counters are integers, ties go to the lowest (head, position).
#include "index.glsl"
#include "scan.glsl"
#include "../evict/layout.glsl"

layout(constant_id = 0) const uint MODE = 0;

#define MODE_SHARES 0
#define MODE_HALF   1
#define MODE_MASS   2

layout(set = 0, binding = 0) readonly buffer State { uint state[]; };
layout(set = 0, binding = 1) readonly buffer Ranks { float ranks[]; }; // the layer's, what the stage chooses by
layout(set = 0, binding = 2) buffer Marked { float marked[]; };        // the layer's

layout(push_constant) uniform Push {
  uint n_groups;
  uint heads; // word of the layer's head table in state[]
  uint n_heads;
  uint layer_block;
  uint places; // of the layer, or with `single` of each head, sinks included
  float mark;
  uint single;
} push;

#define N_BINS 2048
#define BINS_EACH (N_BINS / LOCAL_SIZE)
#define ENTRIES_EACH (BLOCK_ENTRIES / LOCAL_SIZE)
#define MAX_HEADS 512

shared uint bins[N_BINS];
shared uint sums[LOCAL_SIZE];
shared uint found_digit, found_above;
shared uint n_above, n_equal;
shared float masses[LOCAL_SIZE];
shared uint head_places[MAX_HEADS], head_rests[MAX_HEADS];

#include "../evict/heads.glsl"

// Where a head's entries begin in ranks[]; those of head + 1 end it.
uint head_begin(uint head) {
  return (head_word(head, HEAD_FIRST_BLOCK) - push.layer_block) * BLOCK_ENTRIES;
}

// The digit at which the number of keys counted from above reaches `wanted`, and how many are above it.
void find_digit(uint wanted) {
  const uint first = gl_LocalInvocationIndex * BINS_EACH;
  uint sum = 0;
  for (uint i = 0; i < BINS_EACH; i++) sum += bins[first + i];
  sums[gl_LocalInvocationIndex] = sum;
  barrier();
  uint above = 0;
  for (uint i = gl_LocalInvocationIndex + 1; i < LOCAL_SIZE; i++) above += sums[i];
  if (wanted > above && wanted <= above + sum) {
    uint digit = BINS_EACH;
    while (true) {
      digit--;
      const uint here = bins[first + digit];
      if (wanted <= above + here) break;
      above += here;
    }
    found_digit = first + digit;
    found_above = above;
  }
  barrier();
}

// The key of the k-th best entry, 1 <= k <= their number, and how many of the entries equal to it are among the k best.
void find_threshold(uint begin, uint end, uint k, out uint threshold, out uint ties) {
  threshold = 0;
  ties = k;
  for (uint pass = 0; pass < 3; pass++) { // 11, 10 and 10 bits of the 31
    const uint bits = pass == 0 ? 11 : 10, shift = 20 - 10 * pass;
    barrier();
    for (uint i = gl_LocalInvocationIndex; i < N_BINS; i += LOCAL_SIZE) bins[i] = 0;
    barrier();
    for (uint i = begin + gl_LocalInvocationIndex; i < end; i += LOCAL_SIZE) {
      const uint key = floatBitsToUint(ranks[i]);
      if (ranks[i] >= 0.0 && key >> (shift + bits) == threshold)
        atomicAdd(bins[key >> shift & ((1u << bits) - 1u)], 1u);
    }
    barrier();
    find_digit(ties);
    threshold = threshold << bits | found_digit;
    ties -= found_above;
  }
}

void count_keys(uint begin, uint end, uint threshold, out uint above, out uint equal) {
  barrier();
  if (gl_LocalInvocationIndex == 0) n_above = 0, n_equal = 0;
  barrier();
  uint my_above = 0, my_equal = 0;
  for (uint i = begin + gl_LocalInvocationIndex; i < end; i += LOCAL_SIZE) {
    const uint key = floatBitsToUint(ranks[i]);
    if (!(ranks[i] >= 0.0)) continue;
    my_above += key > threshold ? 1 : 0;
    my_equal += key == threshold ? 1 : 0;
  }
  atomicAdd(n_above, my_above);
  atomicAdd(n_equal, my_equal);
  barrier();
  above = n_above;
  equal = n_equal;
}

// `begin` is a multiple of BLOCK_ENTRIES.
void mark_best(uint begin, uint end, uint k) {
  if (k == 0) return;
  uint threshold, ties;
  find_threshold(begin, end, k, threshold, ties);
  for (uint block = begin; block < end; block += BLOCK_ENTRIES) {
    const uint first = block + gl_LocalInvocationIndex * ENTRIES_EACH;
    uint equal = 0;
    for (uint i = 0; i < ENTRIES_EACH; i++)
      if (ranks[first + i] >= 0.0 && floatBitsToUint(ranks[first + i]) == threshold) equal++;
    uint total;
    uint before = scan_exclusive(equal, total);
    for (uint i = 0; i < ENTRIES_EACH; i++) {
      const uint key = floatBitsToUint(ranks[first + i]);
      if (!(ranks[first + i] >= 0.0) || key < threshold) continue;
      if (key > threshold || before < ties) marked[first + i] = push.mark;
      if (key == threshold) before++;
    }
    ties -= min(ties, total);
  }
}

// What each head wins among all of the layer, into head_places.
void count_winners() {
  uint threshold, ties;
  find_threshold(0, head_begin(push.n_heads), push.places, threshold, ties);
  for (uint head = 0; head < push.n_heads; head++) {
    uint above, equal;
    count_keys(head_begin(head), head_begin(head + 1), threshold, above, equal);
    const uint taken = min(ties, equal);
    ties -= taken;
    if (gl_LocalInvocationIndex == 0) head_places[head] = above + taken;
  }
}

// Rounded by largest remainder, so that they are as many as before; no head has more than its candidates.
void blend_shares() {
  const uint unit = 5 * push.n_heads; // of the remainders
  uint left = push.places;
  for (uint head = 0; head < push.n_heads; head++) {
    const uint won = head_places[head], n_candidates = head_word(head, HEAD_N_CANDIDATES);
    const uint rest = 4 * (won % 5) * push.n_heads + push.places % unit;
    head_places[head] = min(4 * (won / 5) + push.places / unit + rest / unit, n_candidates);
    head_rests[head] = rest % unit + 1;
    left -= head_places[head];
  }
  for (; left > 0; left--) {
    uint best = push.n_heads, most = 0;
    for (uint head = 0; head < push.n_heads; head++) {
      if (head_places[head] >= head_word(head, HEAD_N_CANDIDATES)) continue;
      if (best < push.n_heads && head_rests[head] <= most) continue;
      best = head;
      most = head_rests[head];
    }
    if (best == push.n_heads) return;
    head_places[best]++;
    head_rests[best] = 0;
  }
}

// The sum of the entries whose key is above `threshold`, by a fixed tree; all of them for no threshold.
float mass_above(uint begin, uint end, uint threshold, bool all) {
  float mass = 0.0;
  for (uint i = begin + gl_LocalInvocationIndex; i < end; i += LOCAL_SIZE)
    if (ranks[i] >= 0.0 && (all || floatBitsToUint(ranks[i]) > threshold)) mass += ranks[i];
  barrier();
  masses[gl_LocalInvocationIndex] = mass;
  for (uint width = LOCAL_SIZE / 2; width > 0; width /= 2) {
    barrier();
    if (gl_LocalInvocationIndex < width) masses[gl_LocalInvocationIndex] += masses[gl_LocalInvocationIndex + width];
  }
  barrier();
  return masses[0];
}

// How many of the best stay below 9/10 of the sum.
uint count_mass(uint begin, uint end) {
  const float wanted = 0.9 * mass_above(begin, end, 0, true);
  uint low = 0, high = 0x7f800000u; // the least key above which there is less than what is wanted
  while (low < high) {
    const uint middle = low + (high - low) / 2;
    if (mass_above(begin, end, middle, false) < wanted) high = middle;
    else low = middle + 1;
  }
  const float before = mass_above(begin, end, low, false), each = uintBitsToFloat(low);
  uint above, equal;
  count_keys(begin, end, low, above, equal);
  uint ties = 0;
  while (ties < equal && before + float(ties + 1) * each < wanted) ties++;
  return above + ties;
}

void mark_stage(uint head, uint end_head) {
  uint n_candidates = 0, places = push.places;
  for (uint h = head; h < end_head; h++) n_candidates += head_word(h, HEAD_N_CANDIDATES);
  if (push.single != 0) places -= min(places, head_word(head, HEAD_N_SINKS));
  places = min(places, n_candidates);
  const uint begin = head_begin(head), end = head_begin(end_head);
  mark_best(begin, end, MODE == MODE_HALF ? places / 2 : min(places, count_mass(begin, end)));
}

void main() {
  if (workgroup_index() >= push.n_groups) return;
  if (MODE != MODE_SHARES) {
    const uint head = workgroup_index();
    mark_stage(push.single != 0 ? head : 0, push.single != 0 ? head + 1 : push.n_heads);
    return;
  }
  uint n_candidates = 0;
  for (uint head = 0; head < push.n_heads; head++) n_candidates += head_word(head, HEAD_N_CANDIDATES);
  if (push.places == 0 || push.places >= n_candidates) return; // none or all are taken anyway
  count_winners();
  barrier();
  if (gl_LocalInvocationIndex == 0) blend_shares();
  barrier();
  for (uint head = 0; head < push.n_heads; head++) {
    mark_best(head_begin(head), head_begin(head + 1), head_places[head]);
    barrier();
  }
}
