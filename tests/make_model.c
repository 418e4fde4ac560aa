/* make_model.c: model files for scripts: a shipped one with a number changed, or random weights of any shape.
 */
#include "support/model_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int usage(void) {
  (void)fputs("usage: make_model change IN.gguf OUT.gguf KEY NUMBER\n"
              "       make_model random OUT.gguf LAYERS HEADS KV_HEADS HEAD_DIM MODEL_DIM FEED_FORWARD_DIM "
              "VOCAB CONTEXT\n",
              stderr);
  return 2;
}

static bool read_number(const char *text, uint32_t *out) {
  char *end;
  const unsigned long number = strtoul(text, &end, 10);
  *out = (uint32_t)number;
  return end != text && !*end && number <= UINT32_MAX;
}

static int write_random(char **arguments) {
  test_model model = {.dtype = LAPROX_DTYPE_F16, .seed = 1};
  uint32_t *const numbers[] = {&model.n_layers, &model.n_heads,       &model.n_kv_heads,
                               &model.head_dim, &model.model_dim,     &model.feed_forward_dim,
                               &model.n_vocab,  &model.context_length};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (!read_number(arguments[1 + i], numbers[i])) return usage();
  return model_file_write(arguments[0], &model) ? 0 : 1;
}

int main(int argc, char **argv) {
  uint32_t number;
  if (argc == 11 && !strcmp(argv[1], "random")) return write_random(argv + 2);
  if (argc != 6 || strcmp(argv[1], "change") != 0 || !read_number(argv[5], &number)) return usage();
  return model_file_change(argv[2], argv[3], argv[4], number) ? 0 : 1;
}
