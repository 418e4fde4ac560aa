// What is kept of a layer, in result[]: its head table and each head's ascending entries. The includer has a push with heads,
// cu_seqlens and indices.
#ifndef KEPT_GLSL
#define KEPT_GLSL

uint head_word(uint head, uint word) {
  return result[push.heads + head * HEAD_WORDS + word];
}

// The first kept row of a head, counted from its own first, whose entry is `entry` or behind it.
uint row_of(uint list, uint n_kept, uint entry) {
  uint low = 0, high = n_kept;
  while (low < high) {
    const uint middle = (low + high) / 2;
    if (result[list + middle] < entry) low = middle + 1;
    else high = middle;
  }
  return low;
}

#endif
