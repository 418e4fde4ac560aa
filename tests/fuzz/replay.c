/* replay.c: runs a fuzz target over the files named on the command line and over changed copies of each. */
#include "fuzz/fuzz.h"

#include <string.h>

#define N_COPIES  2000
#define MAX_BYTES 65536

static uint32_t next_random(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(*state >> 32);
}

/* Up to four bytes changed, or a piece cut out, or the end cut off. */
static size_t change(uint8_t *data, size_t size, uint64_t *state) {
  size_t at = next_random(state) % size;
  switch (next_random(state) % 8) {
  case 0:
    return at;
  case 1: {
    size_t n = 1 + next_random(state) % (size - at);
    memmove(data + at, data + at + n, size - at - n);
    return size - n;
  }
  default:
    for (uint32_t n = 1 + next_random(state) % 4; n-- > 0; at = next_random(state) % size) {
      data[at] = (uint8_t)next_random(state);
    }
    return size;
  }
}

static int replay(const char *path) {
  static uint8_t original[MAX_BYTES], copy[MAX_BYTES];
  uint64_t state = 1;
  FILE *stream = fopen(path, "rb");
  size_t size = stream ? fread(original, 1, sizeof original, stream) : 0;
  if (stream) fclose(stream);
  if (size == 0) {
    fprintf(stderr, "%s: cannot be read or is empty\n", path);
    return 1;
  }
  LLVMFuzzerTestOneInput(original, size);
  for (int i = 0; i < N_COPIES; i++) {
    memcpy(copy, original, size);
    LLVMFuzzerTestOneInput(copy, change(copy, size, &state));
  }
  return 0;
}

int main(int n_arguments, char **arguments) {
  int failed = n_arguments < 2;
  for (int i = 1; i < n_arguments; i++) failed |= replay(arguments[i]);
  return failed;
}
