/* fuzz.h: fuzz targets for files that nobody trusts.
 *
 * Each target is a libFuzzer entry point, and with replay.c a test: every file of its corpus, and changed
 * copies of it, always the same ones. To fuzz for real, from the project's root:
 *   clang -fsanitize=fuzzer,address,undefined -D_FILE_OFFSET_BITS=64 -Iinclude -Isrc -Itests \
 *     tests/fuzz/fuzz_gguf.c src/io/[a-z]*.c src/core/[a-z]*.c -ljansson -o fuzz_gguf
 *   ./fuzz_gguf -max_len=4096 NEW_CORPUS tests/fuzz/corpus/gguf
 */
#ifndef FUZZ_FUZZ_H
#define FUZZ_FUZZ_H

#include "laprox/laprox.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void fuzz_count_error(void *user, laprox_message_level level, const char *text) {
  (void)text;
  *(unsigned *)user += level == LAPROX_MESSAGE_ERROR;
}

static inline void fuzz_write(const char *path, const uint8_t *data, size_t size) {
  FILE *stream = fopen(path, "wb");
  if (!stream || fwrite(data, 1, size, stream) != size || fclose(stream) != 0) abort();
}

/* One failure, one message. */
static inline void fuzz_check(laprox_result result, unsigned n_errors) {
  if (n_errors != (result == LAPROX_OK ? 0u : 1u)) abort();
}

#endif
