// Splits or tiles of a layer's K or V: the heads that they belong to, and where those heads' rows are. The includer has
// state[] and a push with heads, first_head, end_head and rows.
#ifndef ITEMS_GLSL
#define ITEMS_GLSL

#include "../evict/heads.glsl"
#include "../evict/rows.glsl"

// The head of the dispatch that an item is of; word: HEAD_FIRST_TILE or HEAD_FIRST_SPLIT.
uint head_of(uint item, uint word) {
  uint head = push.first_head, end = push.end_head;
  while (head + 1 < end) {
    const uint middle = (head + end) / 2;
    if (head_word(middle, word) <= item) head = middle;
    else end = middle;
  }
  return head;
}

#endif
