// The layer's, or the model's, head table in state[]. The includer has state[] and push.heads.
#ifndef HEADS_GLSL
#define HEADS_GLSL

uint head_word(uint head, uint word) {
  return state[push.heads + head * HEAD_WORDS + word];
}

#endif
