// Masks of the entries above the threshold and at it: bits that an invocation finds in its eight vec4s, put in the order
// of the entries.
#ifndef SELECT_MASKS_GLSL
#define SELECT_MASKS_GLSL

shared uint nibbles_above[LOCAL_SIZE], nibbles_equal[LOCAL_SIZE]; // of each vec4 of an invocation's eight

uint above, equal;

// Every invocation puts a word together from the nibbles of eight.
void store_masks(uint block) {
  const uint t = gl_LocalInvocationIndex, from = t % 16 * 8, nibble = t / 16 * 4;
  barrier();
  nibbles_above[t] = above;
  nibbles_equal[t] = equal;
  barrier();
  uint word_above = 0, word_equal = 0;
  for (uint i = 0; i < 8; i++) {
    word_above |= (nibbles_above[from + i] >> nibble & 15u) << 4 * i;
    word_equal |= (nibbles_equal[from + i] >> nibble & 15u) << 4 * i;
  }
  if (block + t / BLOCK_MASKS >= n_blocks) return;
  const uint at = (first_block + block) * BLOCK_MASKS + t;
  selection[push.masks_above + at] = word_above;
  selection[push.masks_equal + at] = word_equal;
}

#endif
