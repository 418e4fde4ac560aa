// What the selection passes share: the key of a score and the arena of counters. Scores are >= 0, so that the bits of
// score / layer sum order as the numbers do; places without a candidate hold -1.
#ifndef SELECT_GLSL
#define SELECT_GLSL

// Words of a selection problem (one for the model, a layer or a head) in selection[].
#define PROBLEM_PREFIX 0 // leading digits of the threshold key found so far; all of it after the last pass
#define PROBLEM_LEFT   1 // how many of the keys that share the prefix are to be taken
#define PROBLEM_K      2 // how many are to be taken in all
#define PROBLEM_WORDS  4
#define HISTOGRAM_BINS 2048

layout(set = 0, binding = 0) buffer Scores { float scores[]; };
layout(set = 0, binding = 1) readonly buffer State { uint state[]; };
#ifndef SELECTION_QUALIFIER
#define SELECTION_QUALIFIER
#endif
layout(set = 0, binding = 2) SELECTION_QUALIFIER buffer Selection { uint selection[]; };
layout(set = 0, binding = 3) buffer Result { uint result[]; };

layout(push_constant) uniform Push {
  uint n_groups;
  uint first_block;       // at which the scores binding begins
  uint first_item;        // run, block or head of workgroup 0
  uint heads;             // word of the model's head table in state[]
  uint block_heads;       // word: head of each block
  uint runs;              // word: (first block, number of blocks) of each run
  uint inverses;          // word: scale of each layer
  uint heads_per_layer;
  uint heads_per_problem;
  uint problems;          // word in selection[]
  uint histograms;
  uint block_counts;      // word: two for each block
  uint block_rows;        // word: one for each block
  uint n_heads;           // of the model
  uint cu_seqlens;        // word in result[]
  uint indices;
  uint shift, bits;       // of the digit
  uint window;
} push;

uint head_word(uint head, uint word) {
  return state[push.heads + head * HEAD_WORDS + word];
}

uint problem_word(uint problem, uint word) {
  return push.problems + problem * PROBLEM_WORDS + word;
}

float layer_scale(uint head) {
  return uintBitsToFloat(state[push.inverses + head / push.heads_per_layer]);
}

// False where there is no candidate.
bool score_key(float score, float scale, out uint key) {
  key = floatBitsToUint(score * scale);
  return score >= 0.0;
}

#endif
