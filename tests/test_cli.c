/* test_cli.c: the program as scripts use it. Bad input of every kind ends with exit status 1 or 2 and one
 * line on standard error, and leaves nothing behind; good input gives the promised JSON. */
#define _POSIX_C_SOURCE 200809L
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>
#include <jansson.h>

#include "support/bytes.h"
#include "support/program.h"

static char folder[256], model_path[1024], demo_path[1024];
static const char *program_path;

/* ---- damaged models: the shipped one with some bytes changed ---- */

static uint8_t *shipped;
static size_t shipped_bytes;

/* Where a string of the file stands, its end. */
static size_t behind(const char *text) {
  size_t n = strlen(text);
  for (size_t i = 8; i + n <= shipped_bytes; i++) {
    uint64_t length = 0;
    if (memcmp(shipped + i, text, n) != 0) continue;
    memcpy(&length, shipped + i - 8, 8);
    if (length == n) return i + n;
  }
  fail_msg("the shipped model has no \"%s\"", text);
  return 0;
}

static void write_changed(const char *name, size_t at, const void *bytes, size_t n, size_t size) {
  char path[1024];
  uint8_t old[64];
  assert_true(n <= sizeof old && at + n <= shipped_bytes && size <= shipped_bytes);
  memcpy(old, shipped + at, n);
  memcpy(shipped + at, bytes, n);
  (void)snprintf(path, sizeof path, "%s/%s", folder, name);
  write_file(path, shipped, size);
  memcpy(shipped + at, old, n);
}

static void write_number(const char *name, size_t at, uint64_t number, size_t n) {
  uint8_t bytes[8];
  for (size_t i = 0; i < 8; i++) bytes[i] = (uint8_t)(number >> 8 * i);
  write_changed(name, at, bytes, n, shipped_bytes);
}

static void write_cut(const char *name, size_t size) {
  write_changed(name, 0, shipped, 0, size);
}

/* Behind a tensor's name: dimensions' count (4 bytes), each of 8, then the type (4) and the offset (8). */
static void make_models(void) {
  size_t attention = behind("blk.2.attn_q.weight"), down = behind("blk.1.ffn_down.weight");
  size_t norm = behind("output_norm.weight");
  write_cut("empty.gguf", 0);
  write_cut("cut-3.gguf", 3);
  write_cut("cut-20.gguf", 20);
  write_cut("cut-vocabulary.gguf", 20000);
  write_cut("cut-tensors.gguf", attention + 7);
  write_cut("cut-data.gguf", shipped_bytes - 1000);
  write_changed("magic.gguf", 0, "GGML", 4, shipped_bytes);
  write_number("version.gguf", 4, 77, 4);
  write_number("tensor-count.gguf", 8, UINT64_C(1) << 60, 8);
  write_number("key-count.gguf", 16, UINT64_C(1) << 40, 8);
  write_number("key-length.gguf", 24, UINT64_MAX - 3, 8);
  write_changed("architecture.gguf", behind("general.architecture") + 12, "mamba", 5, shipped_bytes);
  write_changed("tokenizer.gguf", behind("tokenizer.ggml.model") + 12, "bert", 4, shipped_bytes);
  write_changed("pre.gguf", behind("tokenizer.ggml.pre") + 12, "gpt-9", 5, shipped_bytes);
  write_number("bos.gguf", behind("tokenizer.ggml.bos_token_id") + 4, 4000000000u, 4);
  write_number("token-count.gguf", behind("tokenizer.ggml.tokens") + 8, UINT64_C(1) << 50, 8);
  write_number("heads-0.gguf", behind("llama.attention.head_count") + 4, 0, 4);
  write_number("heads-3.gguf", behind("llama.attention.head_count") + 4, 3, 4);
  write_number("heads-many.gguf", behind("llama.attention.head_count") + 4, 4000000000u, 4);
  write_number("layers-0.gguf", behind("llama.block_count") + 4, 0, 4);
  write_number("layers-many.gguf", behind("llama.block_count") + 4, 4294967295u, 4);
  write_number("embedding.gguf", behind("llama.embedding_length") + 4, 255, 4);
  write_changed("missing-tensor.gguf", attention - 6, "notime", 6, shipped_bytes);
  write_number("shape.gguf", down + 4, 256, 8);
  write_number("shape-absurd.gguf", down + 4, UINT64_C(1) << 61, 8);
  write_number("dimensions.gguf", down, 9, 4);
  write_number("quantisation.gguf", down + 4 + 16, 21, 4);
  write_number("type-unknown.gguf", down + 4 + 16, 4242, 4);
  write_number("offset.gguf", norm + 4 + 8 + 4, UINT64_C(1) << 33, 8);
  write_number("offset-odd.gguf", norm + 4 + 8 + 4, 5, 8);
}

/* ---- captures ---- */

#define LAYER(l, q, k, v, o)                                                                                 \
  "\"layers." l ".q\":" q ",\"layers." l ".k\":" k ",\"layers." l ".v\":" v ",\"layers." l ".o_proj\":" o
#define TENSOR(type, shape, from, to)                                                                        \
  "{\"dtype\":\"" type "\",\"shape\":[" shape "],\"data_offsets\":[" from "," to "]}"

/* H 2, G 1, w 8, N 40, d 8, D 16, in f32: q 512, k 1280, v 1280, o 1024 bytes; two layers are 8192. */
#define Q0                  TENSOR("F32", "2,8,8", "0", "512")
#define K0                  TENSOR("F32", "1,40,8", "512", "1792")
#define V0                  TENSOR("F32", "1,40,8", "1792", "3072")
#define O0                  TENSOR("F32", "16,16", "3072", "4096")
#define Q1                  TENSOR("F32", "2,8,8", "4096", "4608")
#define K1                  TENSOR("F32", "1,40,8", "4608", "5888")
#define V1                  TENSOR("F32", "1,40,8", "5888", "7168")
#define O1                  TENSOR("F32", "16,16", "7168", "8192")
#define TWO(layer0, layer1) "{" layer0 "," layer1 "}"
#define GOOD0               LAYER("0", Q0, K0, V0, O0)
#define GOOD1               LAYER("1", Q1, K1, V1, O1)

static const struct {
  const char *name, *header;
} captures[] = {
    {"good.st", TWO(GOOD0, GOOD1)},
    {"nothing.st", "{}"},
    {"not-json.st", "{\"layers.0.q\":"},
    {"no-projection.st", "{\"layers.0.q\":" Q0 ",\"layers.0.k\":" K0 ",\"layers.0.v\":" V0 "}"},
    {"gap.st", TWO(GOOD0, LAYER("2", Q1, K1, V1, O1))},
    {"layers-differ.st", TWO(GOOD0, LAYER("1", Q1, TENSOR("F32", "1,20,16", "4608", "5888"), V1, O1))},
    {"types-differ.st", TWO(GOOD0, LAYER("1", Q1, TENSOR("F16", "1,40,16", "4608", "5888"), V1, O1))},
    {"unknown-type.st", TWO(GOOD0, LAYER("1", Q1, TENSOR("I64", "1,20,8", "4608", "5888"), V1, O1))},
    {"k-v-differ.st", TWO(LAYER("0", Q0, K0, TENSOR("F32", "1,20,16", "1792", "3072"), O0), GOOD1)},
    {"head-dim.st", TWO(LAYER("0", TENSOR("F32", "2,4,16", "0", "512"), K0, V0, O0), GOOD1)},
    {"projection.st", TWO(LAYER("0", Q0, K0, V0, TENSOR("F32", "8,32", "3072", "4096")), GOOD1)},
    {"two-dims.st", TWO(LAYER("0", Q0, TENSOR("F32", "40,8", "512", "1792"), V0, O0), GOOD1)},
    {"zero-dim.st", TWO(LAYER("0", Q0, TENSOR("F32", "0,40,8", "512", "512"), V0, O0), GOOD1)},
    {"size-differs.st", TWO(LAYER("0", Q0, TENSOR("F32", "1,41,8", "512", "1792"), V0, O0), GOOD1)},
    {"beyond-end.st", TWO(GOOD0, LAYER("1", Q1, K1, V1, TENSOR("F32", "16,16", "71680", "72704")))},
    {"overflow.st",
     TWO(LAYER("0", Q0, TENSOR("F32", "4294967296,4294967296,4294967296", "512", "1792"), V0, O0), GOOD1)},
    {"negative.st", TWO(LAYER("0", Q0, TENSOR("F32", "1,-40,8", "512", "1792"), V0, O0), GOOD1)},
};

static void make_captures(void) {
  for (size_t i = 0; i < sizeof captures / sizeof *captures; i++) {
    test_bytes *bytes = calloc(1, sizeof *bytes);
    uint8_t *file = calloc(1, 32768);
    char path[1024];
    assert_true(bytes && file);
    put_string(bytes, captures[i].header);
    memcpy(file, bytes->data, bytes->n);
    (void)snprintf(path, sizeof path, "%s/%s", folder, captures[i].name);
    write_file(path, file, bytes->n + 8192);
    if (i == 0) {
      (void)snprintf(path, sizeof path, "%s/cut.st", folder);
      write_file(path, file, bytes->n + 8000);
      memset(file, 0xff, 8);
      (void)snprintf(path, sizeof path, "%s/header-length.st", folder);
      write_file(path, file, bytes->n + 8192);
    }
    free(file);
    free(bytes);
  }
}

/* ---- the table ---- */

/* MODEL and DEMO in arguments stand for the shipped files; other files are in the working folder. */
typedef struct bad_case {
  int status;
  const char *arguments[14];
  program_output output;
} bad_case;

#define RUN(...)                                                                                             \
  { "run", "MODEL", "-p", "hello", __VA_ARGS__ }
#define EVICT(...)                                                                                           \
  { "evict", "good.st", "-o", "out.st", __VA_ARGS__ }
#define BROKEN_MODEL(name)                                                                                   \
  { 1, {"run", name, "-p", "hello"}, OUTPUT_KEPT }
#define BROKEN_CAPTURE(name)                                                                                 \
  { 1, {"evict", name, "-o", "out.st", "--budget", "50%", "--window", "4"}, OUTPUT_KEPT }

static const bad_case bad_usage[] = {
    {2, {NULL}, OUTPUT_KEPT},
    {2, {"frobnicate"}, OUTPUT_KEPT},
    {2, {"--frobnicate"}, OUTPUT_KEPT},
    {2, {"help", "frobnicate"}, OUTPUT_KEPT},
    {2, {"eval", "MODEL"}, OUTPUT_KEPT},
    {2, {"devices", "too", "much"}, OUTPUT_KEPT},
    {2, {"devices", "--budget", "5%"}, OUTPUT_KEPT},
    {2, {"run"}, OUTPUT_KEPT},
    {2, {"run", "MODEL"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "MODEL", "-p", "x"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "-p"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "-p", ""}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "-f", "empty.gguf"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "-f", "-"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "--ids", ""}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "--ids", "1,,2"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "--ids", "1,2,"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "--ids", "1,x"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "--ids", "1,99999999999999999999"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "--ids", "1,2048"}, OUTPUT_KEPT},
    {2, RUN("--frobnicate"), OUTPUT_KEPT},
    {2, RUN("--two\nlines"), OUTPUT_KEPT},
    {2, RUN("-z"), OUTPUT_KEPT},
    {2, RUN("--json=yes"), OUTPUT_KEPT},
    {2, RUN("--budget", "many"), OUTPUT_KEPT},
    {2, RUN("--budget", ""), OUTPUT_KEPT},
    {2, RUN("--budget", "%"), OUTPUT_KEPT},
    {2, RUN("--budget", "101%"), OUTPUT_KEPT},
    {2, RUN("--budget", "-5%"), OUTPUT_KEPT},
    {2, RUN("--budget", " 5%"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%%"), OUTPUT_KEPT},
    {2, RUN("--budget", "nan%"), OUTPUT_KEPT},
    {2, RUN("--budget", "0x40"), OUTPUT_KEPT},
    {2, RUN("--budget", "0"), OUTPUT_KEPT},
    {2, RUN("--budget", "32"), OUTPUT_KEPT},
    {2, RUN("--budget", "40", "--sinks", "8", "--floor", "1"), OUTPUT_KEPT},
    {2, RUN("-n", "-1"), OUTPUT_KEPT},
    {2, RUN("-n", "3x"), OUTPUT_KEPT},
    {2, RUN("-n", "99999999999"), OUTPUT_KEPT},
    {2, RUN("--temp", "nan"), OUTPUT_KEPT},
    {2, RUN("--temp", "1e999"), OUTPUT_KEPT},
    {2, RUN("--temp", "1,5"), OUTPUT_KEPT},
    {2, RUN("--top-p", "1.5"), OUTPUT_KEPT},
    {2, RUN("--seed", "18446744073709551616"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--window", "0"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--window", "257"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--pool", "4"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--pool", "max:"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--pool", "33"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--scope", "galaxy"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--scope", "token", "--floor", "3"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--scope", "token", "--prefill", "layerwise"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--policy", "criticalkv", "--scope", "token"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--policy", "amnesia"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--policy", "h2o"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--policy", "snapkv", "--gqa", "joint"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--policy", "streaming", "--pool", "7"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--policy", "streaming", "--scope", "layer"), OUTPUT_KEPT},
    {2, RUN("--budget", "5%", "--policy", "random", "--no-normalize"), OUTPUT_KEPT},
    {2, RUN("--floor", "0", "--policy", "full"), OUTPUT_KEPT},
    {2, RUN("--policy", "laprox"), OUTPUT_KEPT},
    {2, RUN("--kv", "f64"), OUTPUT_KEPT},
    {2, RUN("--probe", "text"), OUTPUT_KEPT},
    {2, RUN("--probe", "", "--budget", "64"), OUTPUT_KEPT},
    {2, RUN("--probe", "text", "--budget", "64", "--window", "8"), OUTPUT_KEPT},
    {2, RUN("--probe", "text", "--budget", "64", "--policy", "streaming"), OUTPUT_KEPT},
    {2, RUN("--probe", "text", "--budget", "64", "--probe-combine", "sum"), OUTPUT_KEPT},
    {2, RUN("--probe", "text", "--budget", "64", "--prefill", "layerwise"), OUTPUT_KEPT},
    {2, RUN("--probe", "text", "--budget", "64", "--chunk-evict", "64"), OUTPUT_KEPT},
    {2, RUN("-f", "DEMO", "--probe", "text", "--budget", "64", "--dump-logits", "x.st"), OUTPUT_KEPT},
    {2, RUN("--prefill", "backwards"), OUTPUT_KEPT},
    {2, RUN("--prefill", ""), OUTPUT_KEPT},
    {2, RUN("--tail", "0", "--budget", "64"), OUTPUT_KEPT},
    {2, RUN("--tail", "-1", "--budget", "64"), OUTPUT_KEPT},
    {2, RUN("--tail", "16"), OUTPUT_KEPT},
    {2, RUN("--tail", "16", "--policy", "full"), OUTPUT_KEPT},
    {2, RUN("--chunk-evict", "0", "--budget", "64"), OUTPUT_KEPT},
    {2, RUN("--chunk-evict", "many", "--budget", "64"), OUTPUT_KEPT},
    {2, RUN("--chunk-evict", "64"), OUTPUT_KEPT},
    {2, RUN("--chunk-evict", "64", "--policy", "full"), OUTPUT_KEPT},
    {2, RUN("--chunk-evict", "64", "--budget", "64", "--prefill", "layerwise"), OUTPUT_KEPT},
    {2, RUN("--chunk-evict", "64", "--budget", "64", "--dump-logits", "x.st"), OUTPUT_KEPT},
    {2, RUN("--chunk-evict", "64", "--budget", "20"), OUTPUT_KEPT},
    {2, RUN("--evict-before-question", "--budget", "64"), OUTPUT_KEPT},
    {2, {"run", "MODEL", "-f", "DEMO", "--evict-before-question", "--budget", "64"}, OUTPUT_KEPT},
    {2, RUN("-f", "DEMO", "--evict-before-question"), OUTPUT_KEPT},
    {2, RUN("-f", "DEMO", "--evict-before-question", "--policy", "full"), OUTPUT_KEPT},
    {2, RUN("-f", "empty.gguf", "--evict-before-question", "--budget", "64"), OUTPUT_KEPT},
    {2, {"run", "MODEL", "-f", "DEMO", "-p", "", "--evict-before-question", "--budget", "64"}, OUTPUT_KEPT},
    {2, RUN("-f", "DEMO", "--ids", "1,2"), OUTPUT_KEPT},
    {2, RUN("-f", "DEMO", "--interactive"), OUTPUT_KEPT},
    {2, {"run", "MODEL", "-f", "-", "--interactive"}, OUTPUT_KEPT},
    {2, RUN("--interactive", "--dump-kept", "x.st", "--budget", "64"), OUTPUT_KEPT},
    {2, RUN("--interactive", "--dump-logits", "x.st"), OUTPUT_KEPT},
    {2, RUN("--interactive", "--save-cache", "x.st"), OUTPUT_KEPT},
    {2, {"run", "MODEL", "--interactive", "--dry-run"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "--interactive", "--memory", "1GiB"}, OUTPUT_KEPT},
    {2, {"run", "MODEL", "--interactive", "--tail", "64"}, OUTPUT_KEPT},
    {2, RUN("--memory", "0"), OUTPUT_KEPT},
    {2, RUN("--memory", "2GB"), OUTPUT_KEPT},
    {2, RUN("--memory", "GiB"), OUTPUT_KEPT},
    {2, RUN("--memory", "-1GiB"), OUTPUT_KEPT},
    {2, RUN("--memory", "1e300TiB"), OUTPUT_KEPT},
    {2, RUN("--memory", "0.0000001KiB"), OUTPUT_KEPT},
    {2, RUN("--memory", "99999999999999999999"), OUTPUT_KEPT},
    {2, RUN("--dry-run", "--save-cache", "x.st"), OUTPUT_KEPT},
    {2, RUN("--dry-run", "--load-cache", "good.st"), OUTPUT_KEPT},
    {2, RUN("--dry-run", "--dump-kept", "x.st"), OUTPUT_KEPT},
    {2, RUN("--dry-run", "--dump-logits", "x.st"), OUTPUT_KEPT},
    {2, RUN("--dry-run", "--budget", "20"), OUTPUT_KEPT},
    {2, RUN("--load-cache", "good.st", "--memory", "1GiB"), OUTPUT_KEPT},
    {2, RUN("--load-cache", "good.st", "--dump-logits", "x.st"), OUTPUT_KEPT},
    {2, RUN("--load-cache", ""), OUTPUT_KEPT},
    {2, {"capture", "MODEL", "-p", "x", "-o", "out.st", "--interactive"}, OUTPUT_KEPT},
    {2, {"capture", "MODEL", "-o", "out.st"}, OUTPUT_KEPT},
    {2, {"capture", "MODEL", "-p", "x"}, OUTPUT_KEPT},
    {2, {"capture", "MODEL", "-p", "x", "-o", "out.st", "--budget", "5%"}, OUTPUT_KEPT},
    {2, {"evict", "good.st", "--budget", "5%"}, OUTPUT_KEPT},
    {2, EVICT("--json"), OUTPUT_KEPT},
    {2, EVICT("--budget", "50%", "--window", "9"), OUTPUT_KEPT},
    {2, EVICT("--budget", "50%", "--seed", "3"), OUTPUT_KEPT},
    {2, EVICT("--budget", "50%", "-p", "text"), OUTPUT_KEPT},
};

static const bad_case impossible[] = {
    {1, RUN("--device", "99"), OUTPUT_KEPT},
    {1, RUN("--device", "a device of this name"), OUTPUT_KEPT},
    {1, RUN("-n", "2"), OUTPUT_FULL},
    {1, RUN("-n", "2", "--json"), OUTPUT_FULL},
    {1, RUN("-n", "2"), OUTPUT_CLOSED},
    {1, {"--help"}, OUTPUT_FULL},
    {1, {"devices", "--json"}, OUTPUT_FULL},
    {1, {"run", "no-such-model.gguf", "-p", "x"}, OUTPUT_KEPT},
    {1, {"run", "two\nlines.gguf", "-p", "x"}, OUTPUT_KEPT},
    {1, {"run", ".", "-p", "x"}, OUTPUT_KEPT},
    {1, {"run", "DEMO", "-p", "x"}, OUTPUT_KEPT},
    {1, {"run", "MODEL", "-f", "no-such-prompt.txt"}, OUTPUT_KEPT},
    {1, {"run", "MODEL", "-f", "."}, OUTPUT_KEPT},
    {1, {"run", "MODEL", "-f", "long.txt", "--budget", "5%"}, OUTPUT_KEPT},
    {1, {"capture", "MODEL", "-f", "long.txt", "-o", "out.st"}, OUTPUT_KEPT},
    {1, RUN("--dump-kept", "no-such-folder/kept.st", "-n", "1"), OUTPUT_KEPT},
    {1, RUN("--dump-logits", "occupied", "-n", "1"), OUTPUT_KEPT},
    {1, RUN("--memory", "1MiB"), OUTPUT_KEPT},
    {1, {"run", "MODEL", "-f", "DEMO", "--budget", "5%", "--memory", "12MiB", "--json"}, OUTPUT_KEPT},
    {1, RUN("-f", "long.txt", "--dry-run"), OUTPUT_KEPT},
    {1, RUN("-n", "1", "--dry-run"), OUTPUT_FULL},
    {1, RUN("--save-cache", "no-such-folder/cache.st", "-n", "1"), OUTPUT_KEPT},
    {1, RUN("--save-cache", "occupied", "-n", "1"), OUTPUT_KEPT},
    {1, RUN("--load-cache", "no-such-cache.st"), OUTPUT_KEPT},
    {1, RUN("--load-cache", "good.st"), OUTPUT_KEPT},
    {1, RUN("--load-cache", "cut.st"), OUTPUT_KEPT},
    {1, {"run", "MODEL", "--load-cache", "MODEL"}, OUTPUT_KEPT},
    {1, {"run", "MODEL", "--load-cache", "occupied", "--interactive"}, OUTPUT_KEPT},
    {1, {"capture", "MODEL", "-p", "hello there", "-o", "no-such-folder/out.st"}, OUTPUT_KEPT},
    {1, {"capture", "MODEL", "-p", "hello there", "-o", "occupied"}, OUTPUT_KEPT},
    {1, {"evict", "good.st", "-o", "no-such-folder/out.st", "--budget", "50%"}, OUTPUT_KEPT},
    {1, {"evict", "good.st", "-o", "occupied", "--budget", "50%"}, OUTPUT_KEPT},
    {1, {"evict", "no-such-capture.st", "-o", "out.st", "--budget", "50%"}, OUTPUT_KEPT},
    {1, {"evict", "MODEL", "-o", "out.st", "--budget", "50%"}, OUTPUT_KEPT},
    BROKEN_MODEL("empty.gguf"),
    BROKEN_MODEL("cut-3.gguf"),
    BROKEN_MODEL("cut-20.gguf"),
    BROKEN_MODEL("cut-vocabulary.gguf"),
    BROKEN_MODEL("cut-tensors.gguf"),
    BROKEN_MODEL("cut-data.gguf"),
    BROKEN_MODEL("magic.gguf"),
    BROKEN_MODEL("version.gguf"),
    BROKEN_MODEL("tensor-count.gguf"),
    BROKEN_MODEL("key-count.gguf"),
    BROKEN_MODEL("key-length.gguf"),
    BROKEN_MODEL("architecture.gguf"),
    BROKEN_MODEL("tokenizer.gguf"),
    BROKEN_MODEL("pre.gguf"),
    BROKEN_MODEL("bos.gguf"),
    BROKEN_MODEL("token-count.gguf"),
    BROKEN_MODEL("heads-0.gguf"),
    BROKEN_MODEL("heads-3.gguf"),
    BROKEN_MODEL("heads-many.gguf"),
    BROKEN_MODEL("layers-0.gguf"),
    BROKEN_MODEL("layers-many.gguf"),
    BROKEN_MODEL("embedding.gguf"),
    BROKEN_MODEL("missing-tensor.gguf"),
    BROKEN_MODEL("shape.gguf"),
    BROKEN_MODEL("shape-absurd.gguf"),
    BROKEN_MODEL("dimensions.gguf"),
    BROKEN_MODEL("quantisation.gguf"),
    BROKEN_MODEL("type-unknown.gguf"),
    BROKEN_MODEL("offset.gguf"),
    BROKEN_MODEL("offset-odd.gguf"),
    BROKEN_CAPTURE("cut.st"),
    BROKEN_CAPTURE("header-length.st"),
    BROKEN_CAPTURE("nothing.st"),
    BROKEN_CAPTURE("not-json.st"),
    BROKEN_CAPTURE("no-projection.st"),
    BROKEN_CAPTURE("gap.st"),
    BROKEN_CAPTURE("layers-differ.st"),
    BROKEN_CAPTURE("types-differ.st"),
    BROKEN_CAPTURE("unknown-type.st"),
    BROKEN_CAPTURE("k-v-differ.st"),
    BROKEN_CAPTURE("head-dim.st"),
    BROKEN_CAPTURE("projection.st"),
    BROKEN_CAPTURE("two-dims.st"),
    BROKEN_CAPTURE("zero-dim.st"),
    BROKEN_CAPTURE("size-differs.st"),
    BROKEN_CAPTURE("beyond-end.st"),
    BROKEN_CAPTURE("overflow.st"),
    BROKEN_CAPTURE("negative.st"),
};

static void start(program_run *run, const char *const *arguments, program_output output) {
  const char *all[16] = {program_path};
  for (int i = 0; i < 14 && arguments[i]; i++) {
    all[i + 1] = arguments[i];
    if (strcmp(arguments[i], "MODEL") == 0) all[i + 1] = model_path;
    if (strcmp(arguments[i], "DEMO") == 0) all[i + 1] = demo_path;
  }
  program_start(run, folder, all, output);
}

static void describe(const bad_case *c, char to[512]) {
  size_t n = 0;
  to[0] = 0;
  for (int i = 0; i < 14 && c->arguments[i] && n < 500; i++)
    n += (size_t)snprintf(to + n, 512 - n, " %s", c->arguments[i]);
}

static int check_bad(const bad_case *c) {
  char said[512];
  program_run run;
  char *before = folder_list(folder);
  start(&run, c->arguments, c->output);
  char *after = folder_list(folder);
  const char *newline = strchr(run.err, '\n');
  bool one_line = newline && newline[1] == 0 && run.err_bytes == strlen(run.err);
  bool good = run.status == c->status && one_line && strcmp(before, after) == 0 && run.out_bytes == 0;
  describe(c, said);
  if (!good)
    print_error("laprox%s: exit %d (expected %d), %zu bytes of output%s, said: %s\n", said, run.status,
                c->status, run.out_bytes, strcmp(before, after) == 0 ? "" : ", files left behind", run.err);
  program_finish(&run);
  free(before);
  free(after);
  return !good;
}

static void test_bad_usage(void **state) {
  (void)state;
  int n_failed = 0;
  for (size_t i = 0; i < sizeof bad_usage / sizeof *bad_usage; i++) n_failed += check_bad(&bad_usage[i]);
  assert_int_equal(n_failed, 0);
}

static void test_impossible(void **state) {
  (void)state;
  int n_failed = 0;
  for (size_t i = 0; i < sizeof impossible / sizeof *impossible; i++) n_failed += check_bad(&impossible[i]);
  assert_int_equal(n_failed, 0);
}

/* A failed command leaves what was there. */
static void test_old_output_stays(void **state) {
  (void)state;
  char path[1024];
  size_t n = 0;
  (void)snprintf(path, sizeof path, "%s/old.st", folder);
  write_file(path, "precious", 8);
  const bad_case cases[2] = {{1, {"evict", "cut.st", "-o", "old.st", "--budget", "50%"}, OUTPUT_KEPT},
                             {1, {"capture", "MODEL", "-f", "long.txt", "-o", "old.st"}, OUTPUT_KEPT}};
  for (int i = 0; i < 2; i++) assert_int_equal(check_bad(&cases[i]), 0);
  char *content = read_file(path, &n);
  assert_int_equal(n, 8);
  assert_memory_equal(content, "precious", 8);
  free(content);
}

/* ---- good input ---- */

static json_t *run_json(const char *const *arguments) {
  program_run run;
  start(&run, arguments, OUTPUT_KEPT);
  if (run.status != 0 || run.err_bytes != 0) fail_msg("exit %d, said: %s", run.status, run.err);
  json_error_t error;
  json_t *root = json_loads(run.out, 0, &error);
  if (!root) fail_msg("no JSON: %s: %s", error.text, run.out);
  program_finish(&run);
  return root;
}

static void assert_keys(const json_t *object, const char *keys) {
  char list[512];
  (void)snprintf(list, sizeof list, "%s", keys);
  for (char *key = strtok(list, " "); key; key = strtok(NULL, " "))
    if (!json_object_get(object, key)) fail_msg("the JSON lacks \"%s\"", key);
}

static json_int_t integer_at(const json_t *object, const char *key) {
  return json_integer_value(json_object_get(object, key));
}

static void test_help(void **state) {
  (void)state;
  static const char *const cases[][4] = {{"--help"},
                                         {"-h"},
                                         {"help"},
                                         {"--version"},
                                         {"run", "--help"},
                                         {"evict", "-h"},
                                         {"help", "capture"},
                                         {"devices", "--help"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    program_run run;
    start(&run, cases[i], OUTPUT_KEPT);
    assert_int_equal(run.status, 0);
    assert_int_equal(run.err_bytes, 0);
    assert_non_null(strstr(run.out, "laprox"));
    program_finish(&run);
  }
}

static void test_devices(void **state) {
  (void)state;
  json_t *root = run_json((const char *const[]){"devices", "--json", NULL});
  const json_t *devices = json_object_get(root, "devices");
  assert_true(json_array_size(devices) > 0);
  assert_keys(json_array_get(devices, 0),
              "index name type vendor_id device_id driver driver_info api_version "
              "usable reason heap_bytes limits variants");
  json_decref(root);
}

static void test_run(void **state) {
  (void)state;
  json_t *root = run_json((const char *const[]){"run", "MODEL", "-f", "DEMO", "--budget", "10%", "-n", "8",
                                                "--stop", ".", "--json", NULL});
  assert_keys(root, "prompt_tokens token_ids text kv_bytes kept_per_head time_ms device memory_bytes "
                    "evictions most_entries approximate");
  assert_keys(json_object_get(root, "kv_bytes"), "full kept peak");
  assert_keys(json_object_get(root, "time_ms"), "load prefill evict decode_per_token");
  assert_int_equal(integer_at(root, "prompt_tokens"), 2000);
  assert_string_equal(json_string_value(json_object_get(root, "text")), " 48213");
  const json_t *bytes = json_object_get(root, "kv_bytes"), *layers = json_object_get(root, "kept_per_head");
  /* 2,000 tokens, 4 layers, 2 KV heads of 64, f16, K and V. */
  assert_true(integer_at(bytes, "full") >= 2000 * 4 * 2 * 64 * 2 * 2);
  assert_true(integer_at(bytes, "kept") >= 200 * 4 * 2 * 64 * 2 * 2);
  assert_true(integer_at(bytes, "kept") * 100 <= integer_at(bytes, "full") * 12);
  /* Layer by layer: what is kept, and one of four layers. */
  assert_true(integer_at(bytes, "peak") * 4 >= integer_at(bytes, "full"));
  assert_true(integer_at(bytes, "peak") * 100 <=
              integer_at(bytes, "kept") * 105 + integer_at(bytes, "full") * 27);
  json_int_t kept = 0;
  assert_int_equal(json_array_size(layers), 4);
  for (size_t l = 0; l < 4; l++) {
    assert_int_equal(json_array_size(json_array_get(layers, l)), 2);
    for (size_t g = 0; g < 2; g++) kept += json_integer_value(json_array_get(json_array_get(layers, l), g));
  }
  assert_int_equal(kept, 200 * 4 * 2);
  json_decref(root);
}

static void test_run_blocks(void **state) {
  (void)state;
  static const char *const names[] = {"q8_0", "q4_0"};
  static const json_int_t row_bytes[] = {68, 36};
  for (size_t i = 0; i < 2; i++) {
    json_t *root = run_json((const char *const[]){"run", "MODEL", "-f", "DEMO", "--budget", "10%", "-n", "8",
                                                  "--stop", ".", "--kv", names[i], "--json", NULL});
    assert_string_equal(json_string_value(json_object_get(root, "text")), " 48213");
    const json_t *bytes = json_object_get(root, "kv_bytes");
    /* 2,000 tokens, 4 layers, 2 KV heads, K and V; 8 buffers, each of a whole number of the device's units. */
    const json_int_t full = 2000 * 4 * 2 * 2 * row_bytes[i], kept = 200 * 4 * 2 * 2 * row_bytes[i];
    assert_in_range(integer_at(bytes, "full"), full, full + 8 * 64);
    assert_in_range(integer_at(bytes, "kept"), kept, kept + 8 * 64);
    json_decref(root);
  }
}

/* What is printed for people: the text, and only the text, on standard output. */
static void test_run_text(void **state) {
  (void)state;
  program_run run;
  start(&run, (const char *const[]){"run", "MODEL", "-f", "DEMO", "-n", "12", "--stop", ".", NULL},
        OUTPUT_KEPT);
  assert_int_equal(run.status, 0);
  assert_string_equal(run.out, " 48213\n");
  assert_non_null(strstr(run.err, "KV cache"));
  program_finish(&run);
}

static void test_seed(void **state) {
  (void)state;
  json_t *ids[3];
  static const char *const seeds[3] = {"7", "7", "8"};
  for (int i = 0; i < 3; i++) {
    json_t *root = run_json((const char *const[]){"run", "MODEL", "-p", " The river", "-n", "12", "--temp",
                                                  "1.5", "--seed", seeds[i], "--json", NULL});
    ids[i] = json_deep_copy(json_object_get(root, "token_ids"));
    json_decref(root);
  }
  assert_true(json_equal(ids[0], ids[1]));
  assert_false(json_equal(ids[0], ids[2]));
  for (int i = 0; i < 3; i++) json_decref(ids[i]);
}

/* Text and the same text as ids are one prompt. */
static void test_ids(void **state) {
  (void)state;
  json_t *a = run_json((const char *const[]){"run", "MODEL", "-p", "a", "-n", "4", "--json", NULL});
  json_t *b = run_json((const char *const[]){"run", "MODEL", "--ids", "0,99", "-n", "4", "--json", NULL});
  assert_int_equal(integer_at(a, "prompt_tokens"), 2);
  assert_true(json_equal(json_object_get(a, "token_ids"), json_object_get(b, "token_ids")));
  json_decref(a);
  json_decref(b);
}

static void test_capture_and_evict(void **state) {
  (void)state;
  json_t *root =
      run_json((const char *const[]){"capture", "MODEL", "-f", "DEMO", "-o", "real.st", "--json", NULL});
  assert_int_equal(integer_at(root, "n_tokens"), 2000);
  json_decref(root);
  root = run_json((const char *const[]){"evict", "real.st", "-o", "kept.st", "--budget", "5%", "--scores",
                                        "--json", NULL});
  assert_keys(root, "n_layers n_heads n_kv_heads head_dim n_tokens window budget kept kept_per_head "
                    "nonfinite_scores bytes_before bytes_after device time_ms");
  assert_keys(json_object_get(root, "time_ms"), "upload score select compact download");
  assert_int_equal(integer_at(root, "budget"), 100);
  assert_int_equal(integer_at(root, "kept"), 4 * 2 * 100);
  assert_int_equal(integer_at(root, "window"), 32);
  json_decref(root);
}

/* The capture that the damaged ones are made from is a good one. */
static void test_evict_small(void **state) {
  (void)state;
  json_t *root = run_json((const char *const[]){"evict", "good.st", "-o", "small.st", "--budget", "50%",
                                                "--policy", "snapkv", "--pool", "max:3", "--json", NULL});
  assert_int_equal(integer_at(root, "kept"), 2 * 20);
  assert_int_equal(integer_at(root, "window"), 8);
  assert_int_equal(integer_at(root, "bytes_before"), 2 * 2 * 40 * 8 * 4);
  json_decref(root);
}

static void test_device_by_environment(void **state) {
  (void)state;
  program_run run;
  const char *old = getenv("LAPROX_DEVICE");
  char *kept = old ? strdup(old) : NULL;
  setenv("LAPROX_DEVICE", "a device of this name", 1);
  start(&run, (const char *const[]){"run", "MODEL", "-p", "x", NULL}, OUTPUT_KEPT);
  assert_int_equal(run.status, 1);
  assert_non_null(strstr(run.err, "a device of this name"));
  program_finish(&run);
  if (kept)
    setenv("LAPROX_DEVICE", kept, 1);
  else
    unsetenv("LAPROX_DEVICE");
  free(kept);
}

/* ---- the working folder ---- */

static int set_up(void **state) {
  (void)state;
  const char *data = getenv("LAPROX_TEST_DATA");
  program_path = getenv("LAPROX_PROGRAM");
  if (!data || !program_path) return -1;
  (void)snprintf(model_path, sizeof model_path, "%s/model-f16.gguf", data);
  (void)snprintf(demo_path, sizeof demo_path, "%s/demo.txt", data);
  shipped = read_file(model_path, &shipped_bytes);
  folder_create(folder);
  make_models();
  make_captures();
  char path[1024], word[] = " more words and then some";
  (void)snprintf(path, sizeof path, "%s/long.txt", folder);
  FILE *file = fopen(path, "wb");
  if (!file) return -1;
  for (int i = 0; i < 20000; i++) (void)fputs(word, file);
  (void)fclose(file);
  (void)snprintf(path, sizeof path, "%s/occupied", folder);
  return mkdir(path, 0700);
}

static int tear_down(void **state) {
  (void)state;
  folder_destroy(folder);
  free(shipped);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_help),
      cmocka_unit_test(test_devices),
      cmocka_unit_test(test_bad_usage),
      cmocka_unit_test(test_impossible),
      cmocka_unit_test(test_old_output_stays),
      cmocka_unit_test(test_device_by_environment),
      cmocka_unit_test(test_run),
      cmocka_unit_test(test_run_blocks),
      cmocka_unit_test(test_run_text),
      cmocka_unit_test(test_seed),
      cmocka_unit_test(test_ids),
      cmocka_unit_test(test_evict_small),
      cmocka_unit_test(test_capture_and_evict),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
