// What the selection passes share: runs of blocks, codes of scores and the arena of counters. A score counts by the bits
// of score / layer sum, which order as the numbers do, counted from the problem's smallest: zero and infinity have codes
// of their own below and above all others. Places without a candidate hold -1.
#ifndef SELECT_GLSL
#define SELECT_GLSL

#include "repeat.glsl"
#include "scan.glsl"

// Words of a selection problem (one for the model, a layer or a head) in selection[].
#define PROBLEM_K      0 // how many are to be taken
#define PROBLEM_BASE   1 // taken of all problems before
#define PROBLEM_LOW    2 // least and largest key but zero and infinity
#define PROBLEM_HIGH   3
#define PROBLEM_RUNS   4
#define PROBLEM_STAGES 5 // of each pass: leading digits of the threshold, and how many of the codes that share them to take
#define PROBLEM_WORDS  11
#define HISTOGRAM_BINS 2048
#define RUN_WORDS      4

#define FIRST_BITS 11 // of the first digit; the others share the rest
#define NONE       0xffffffffu
#define INFINITE   0x7f800000u

#define MOST_RUN_BLOCKS 128
#define BLOCK_VEC4S     (BLOCK_ENTRIES / 4)
#define BLOCK_MASKS     (BLOCK_ENTRIES / 32)
#define GROUP_BLOCKS    4 // that a workgroup takes at a time: a word of a mask for each invocation

layout(set = 0, binding = 0) buffer Scores { vec4 scores[]; };
layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
layout(set = 0, binding = 2) buffer Selection { uint selection[]; };
layout(set = 0, binding = 3) buffer Result { uint result[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint first_block;       // at which the scores binding begins
  uint first_run;         // of workgroup 0
  uint heads;             // word of the model's head table in state[]
  uint block_heads;       // word: head of each block
  uint runs;              // word: (first block, blocks, first run of the same problem, problem) of each run
  uint run_blocks;        // of a whole run, a power of two
  uint inverses;          // word: scale of each layer
  uint heads_per_layer;
  uint problems;          // word in selection[]
  uint histograms;        // word: three for each problem from first_problem on
  uint masks_above;       // word: a bit for each entry whose first digit is above the threshold's
  uint masks_equal;       // word: a bit for each whose first digit equals it
  uint block_counts;      // word: above and equal, for each block
  uint run_counts;        // word: the same for each run
  uint block_rows;        // word: taken before each block
  uint n_heads;           // of the model
  uint cu_seqlens;        // word in result[]
  uint indices;
  uint window;
  uint pass;              // of select_plain.comp
  uint first_problem;     // that has histograms
  uint shares;            // word of places and candidates of several devices' model, where its selection is one; else 0
  uint ties;              // word: how many are at the threshold, of the device at the number of its first layer
  uint layer_offset;
} push;

#include "../evict/heads.glsl"

uint run, first_block, n_blocks, first_run, problem, problem_words;

uint block_head(uint block) {
  return state[push.block_heads + block];
}

float block_scale(uint block) {
  return uintBitsToFloat(state[push.inverses + block_head(block) / push.heads_per_layer]);
}

void begin_run(uint index) {
  run = index;
  first_block = state[push.runs + RUN_WORDS * run];
  n_blocks = state[push.runs + RUN_WORDS * run + 1];
  first_run = state[push.runs + RUN_WORDS * run + 2];
  problem = state[push.runs + RUN_WORDS * run + 3];
  problem_words = push.problems + problem * PROBLEM_WORDS;
}

#define SMALLEST_NORMAL 0x00800000u

// Numbers too small to be normal ones are worth nothing: some devices, and some compilers, take them for zero.
uint score_key(float score, float scale) {
  const uint key = floatBitsToUint(score * scale) & 0x7fffffffu;
  return (floatBitsToUint(score) & 0x7fffffffu) < SMALLEST_NORMAL || key < SMALLEST_NORMAL ? 0u : key;
}

// ---- codes ----

uint low_key, infinite_code, second_shift, first_shift;

void begin_codes() {
  low_key = selection[problem_words + PROBLEM_LOW];
  uint high_key = selection[problem_words + PROBLEM_HIGH];
  if (low_key > high_key) low_key = high_key = 1u; // there are none but zeros and infinities
  infinite_code = high_key - low_key + 2u;
  const uint bits = uint(findMSB(infinite_code)) + 1u;
  first_shift = bits > FIRST_BITS ? bits - FIRST_BITS : 0u;
  second_shift = first_shift / 2u;
}

uint score_code(float score, float scale) {
  const uint key = score_key(score, scale);
  return key == 0u ? 0u : key >= INFINITE ? infinite_code : key - low_key + 1u;
}

// The first digit is all of a code where few values are, such as scores that are all equal.
bool one_digit() {
  return first_shift == 0;
}

uint entry_code(uint block, uint entry) {
  const uint at = (block - push.first_block) * BLOCK_ENTRIES + entry;
  return score_code(scores[at >> 2][at & 3u], block_scale(block));
}

// ---- the threshold, digit by digit ----

shared uint found_digit, found_left;
uint threshold, left; // leading digits so far, how many of those that share them are to be taken

#define BINS_EACH (HISTOGRAM_BINS / LOCAL_SIZE)
#define EACH_BIN(F) F(15) F(14) F(13) F(12) F(11) F(10) F(9) F(8) F(7) F(6) F(5) F(4) F(3) F(2) F(1) F(0)
#define LOAD_BIN(i) const uint bin##i = selection[first + i];
#define ADD_BIN(i) sum += bin##i;
#define FIND_BIN(i)                                                                                                  \
  if (wanted > above && wanted <= above + bin##i) {                                                                  \
    found_digit = gl_LocalInvocationIndex * BINS_EACH + i;                                                           \
    found_left = wanted - above;                                                                                     \
  }                                                                                                                  \
  above += bin##i;

uint histogram_at(uint pass) {
  return push.histograms + ((problem - push.first_problem) * 3 + pass) * HISTOGRAM_BINS;
}

// The digit at which `wanted` is reached from above in histogram `pass` of the problem.
void find_digit(uint pass, uint wanted) {
  const uint first =
      histogram_at(pass) + gl_LocalInvocationIndex * BINS_EACH;
  uint sum = 0, total;
  EACH_BIN(LOAD_BIN)
  EACH_BIN(ADD_BIN)
  if (gl_LocalInvocationIndex == 0) found_digit = NONE, found_left = 0;
  uint above = scan_exclusive(sum, total);
  above = total - above - sum;
  EACH_BIN(FIND_BIN)
  barrier();
}

// How many are to be taken in all.
uint wanted_in_all() {
  if (push.shares == 0) return selection[problem_words + PROBLEM_K];
  const int places = int(selection[push.shares]);
  return min(uint(max(places, 0)), selection[push.shares + 1]);
}

// After a pass's histogram: its digit joins those of the pass before, for this pass and, by one workgroup, for the next.
void resolve(uint pass) {
  uint stage = problem_words + PROBLEM_STAGES + 2 * pass;
  const uint wanted = pass == 0 ? wanted_in_all() : selection[stage - 1];
  const uint digits = pass == 0 ? 0 : selection[stage - 2];
  find_digit(pass, wanted);
  const uint bits = pass == 1 ? first_shift - second_shift : second_shift;
  left = found_left;
  threshold = found_digit == NONE ? NONE : pass == 0 ? found_digit : digits << bits | found_digit;
  if (run == first_run && gl_LocalInvocationIndex == 0) {
    selection[stage] = threshold;
    selection[stage + 1] = left;
  }
}

// The whole threshold and its ties.
void load_threshold() {
  threshold = selection[problem_words + PROBLEM_STAGES + 4];
  left = selection[problem_words + PROBLEM_STAGES + 5];
}

// ---- reading scores ----

// Eight vec4s an invocation of the GROUP_BLOCKS blocks from `block` of the run on, while those before them are counted.
// Nothing branches around a load, or each would wait for the one before; blocks beyond the last stand for no scores.
// Devices with FEW_REGISTERS load them when they are needed.
#define DECLARE_SCORES(i) vec4 scores##i, next##i;
#define LOAD_NEXT(block, i)                                                                                          \
  next##i = scores[(first_block - push.first_block + min((block) + i / 2, n_blocks - 1)) * BLOCK_VEC4S +             \
                   i % 2 * LOCAL_SIZE + gl_LocalInvocationIndex];
#define TAKE_NEXT(block, i) scores##i = (block) + i / 2 < n_blocks ? next##i : vec4(-1.0);
#ifdef FEW_REGISTERS
#define BEGIN_SCORES REPEAT_8(DECLARE_SCORES)
#define ADVANCE_SCORES(block)                                                                                        \
  EACH_8(LOAD_NEXT, block)                                                                                           \
  EACH_8(TAKE_NEXT, block)
#else
#define BEGIN_SCORES                                                                                                 \
  REPEAT_8(DECLARE_SCORES)                                                                                           \
  EACH_8(LOAD_NEXT, 0)
#define ADVANCE_SCORES(block)                                                                                        \
  EACH_8(TAKE_NEXT, block)                                                                                           \
  EACH_8(LOAD_NEXT, block + GROUP_BLOCKS)
#endif

shared float run_scales[MOST_RUN_BLOCKS + GROUP_BLOCKS];

void load_scales() {
  for (uint i = gl_LocalInvocationIndex; i < n_blocks; i += LOCAL_SIZE) run_scales[i] = block_scale(first_block + i);
  barrier();
}

#endif
