#include "support/model_file.h"

#include "core/core.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { U32 = 4, I32 = 5, F32 = 6, STRING = 8, ARRAY = 9 }; /* types of metadata */
enum { ALIGNMENT = 32, N_CONTROL = 2, NAME_BYTES = 64 };

typedef struct output {
  FILE *stream;
  uint64_t n; /* bytes so far */
  uint64_t state;
  uint32_t n_pairs; /* metadata still to come, as the header promised */
} output;

typedef struct tensor {
  char name[NAME_BYTES];
  uint32_t n_columns, n_rows; /* n_rows 0: a norm's vector */
  uint64_t offset;
} tensor;

static void put(output *out, const void *data, size_t n) {
  out->n += fwrite(data, 1, n, out->stream);
}

static void put_number(output *out, uint64_t number, uint32_t n_bytes) {
  for (uint32_t i = 0; i < n_bytes; i++) {
    const uint8_t byte = (uint8_t)(number >> 8 * i);
    put(out, &byte, 1);
  }
}

static void put_float(output *out, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  put_number(out, bits, 4);
}

static void put_text(output *out, const char *text) {
  put_number(out, strlen(text), 8);
  put(out, text, strlen(text));
}

static void put_padding(output *out) {
  while (out->n % ALIGNMENT && !ferror(out->stream)) put_number(out, 0, 1);
}

/* ---- metadata ---- */

static void put_key(output *out, const char *key, uint32_t type) {
  put_text(out, key);
  put_number(out, type, 4);
  out->n_pairs--;
}

static void put_u32_pair(output *out, const char *key, uint32_t value) {
  put_key(out, key, U32);
  put_number(out, value, 4);
}

static void put_text_pair(output *out, const char *key, const char *value) {
  put_key(out, key, STRING);
  put_text(out, value);
}

/* A byte as GPT-2's vocabulary spells it: printable ones as they are, the others from U+0100 on. */
static void spell_byte(uint32_t byte, char text[4]) {
  uint32_t code = byte, n_unprintable = 0;
  for (uint32_t b = 0; b <= byte; b++) {
    const bool printable = (b > 32 && b < 127) || (b > 160 && b != 173);
    if (b == byte && !printable) code = 256 + n_unprintable;
    n_unprintable += !printable;
  }
  (void)memset(text, 0, 4);
  if (code < 128) {
    text[0] = (char)code;
    return;
  }
  text[0] = (char)(0xc0 | code >> 6);
  text[1] = (char)(0x80 | (code & 63));
}

static void put_vocabulary(output *out, uint32_t n_vocab) {
  put_text_pair(out, "tokenizer.ggml.model", "gpt2");
  put_text_pair(out, "tokenizer.ggml.pre", "default");
  put_u32_pair(out, "tokenizer.ggml.bos_token_id", 0);
  put_u32_pair(out, "tokenizer.ggml.eos_token_id", 1);
  put_key(out, "tokenizer.ggml.tokens", ARRAY);
  put_number(out, STRING, 4);
  put_number(out, n_vocab, 8);
  for (uint32_t i = 0; i < n_vocab; i++) {
    char text[24];
    if (i < N_CONTROL)
      (void)snprintf(text, sizeof text, i ? "</s>" : "<s>");
    else if (i < N_CONTROL + 256)
      spell_byte(i - N_CONTROL, text);
    else
      (void)snprintf(text, sizeof text, "filler%u", i);
    put_text(out, text);
  }
  put_key(out, "tokenizer.ggml.token_type", ARRAY);
  put_number(out, I32, 4);
  put_number(out, n_vocab, 8);
  for (uint32_t i = 0; i < n_vocab; i++) put_number(out, i < N_CONTROL ? 3 : 1, 4);
  put_key(out, "tokenizer.ggml.merges", ARRAY); /* llama.cpp refuses a file without */
  put_number(out, STRING, 4);
  put_number(out, 0, 8);
}

enum { N_PAIRS = 19 };

static void put_metadata(output *out, const test_model *model) {
  out->n_pairs = N_PAIRS;
  put_text_pair(out, "general.architecture", "llama");
  put_text_pair(out, "general.name", "random weights");
  put_u32_pair(out, "llama.block_count", model->n_layers);
  put_u32_pair(out, "llama.context_length", model->context_length);
  put_u32_pair(out, "llama.embedding_length", model->model_dim);
  put_u32_pair(out, "llama.feed_forward_length", model->feed_forward_dim);
  put_u32_pair(out, "llama.attention.head_count", model->n_heads);
  put_u32_pair(out, "llama.attention.head_count_kv", model->n_kv_heads);
  put_u32_pair(out, "llama.attention.key_length", model->head_dim);
  put_u32_pair(out, "llama.attention.value_length", model->head_dim);
  put_key(out, "llama.rope.freq_base", F32);
  put_float(out, 10000.0f);
  put_key(out, "llama.attention.layer_norm_rms_epsilon", F32);
  put_float(out, 1e-5f);
  put_vocabulary(out, model->n_vocab);
}

/* ---- tensors ---- */

static size_t tensor_bytes(const tensor *t, laprox_dtype dtype) {
  if (!t->n_rows) return t->n_columns * sizeof(float);
  return laprox_dtype_bytes(dtype, (size_t)t->n_columns * t->n_rows);
}

static uint32_t ggml_type(laprox_dtype dtype) {
  return dtype == LAPROX_DTYPE_F32 ? 0 : dtype == LAPROX_DTYPE_F16 ? 1 : 8;
}

enum { N_LAYER_TENSORS = 9 };

/* Returns how many there are. */
static size_t list_tensors(const test_model *model, tensor *tensors) {
  const uint32_t dim = model->model_dim, wide = model->feed_forward_dim;
  const uint32_t q_dim = model->n_heads * model->head_dim, kv_dim = model->n_kv_heads * model->head_dim;
  const struct {
    const char *name;
    uint32_t n_columns, n_rows;
  } layer[N_LAYER_TENSORS] = {
      {"attn_norm", dim, 0},   {"attn_q", dim, q_dim},      {"attn_k", dim, kv_dim},
      {"attn_v", dim, kv_dim}, {"attn_output", q_dim, dim}, {"ffn_norm", dim, 0},
      {"ffn_gate", dim, wide}, {"ffn_up", dim, wide},       {"ffn_down", wide, dim},
  };
  size_t n = 0;
  tensors[n++] = (tensor){.name = "token_embd.weight", .n_columns = dim, .n_rows = model->n_vocab};
  tensors[n++] = (tensor){.name = "output_norm.weight", .n_columns = dim};
  for (uint32_t l = 0; l < model->n_layers; l++)
    for (uint32_t i = 0; i < N_LAYER_TENSORS; i++) {
      tensors[n] = (tensor){.n_columns = layer[i].n_columns, .n_rows = layer[i].n_rows};
      (void)snprintf(tensors[n++].name, NAME_BYTES, "blk.%u.%s.weight", l, layer[i].name);
    }
  uint64_t offset = 0;
  for (size_t i = 0; i < n; i++) {
    tensors[i].offset = offset;
    offset += (tensor_bytes(&tensors[i], model->dtype) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }
  return n;
}

static void put_description(output *out, const tensor *t, laprox_dtype dtype) {
  put_text(out, t->name);
  put_number(out, t->n_rows ? 2 : 1, 4);
  put_number(out, t->n_columns, 8);
  if (t->n_rows) put_number(out, t->n_rows, 8);
  put_number(out, t->n_rows ? ggml_type(dtype) : 0, 4);
  put_number(out, t->offset, 8);
}

/* -1 … 1 */
static float draw(output *out) {
  out->state += UINT64_C(0x9e3779b97f4a7c15);
  uint64_t mixed = out->state;
  mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
  return (float)(mixed >> 40) / 8388608.0f - 1.0f;
}

static void put_q8_block(output *out, const float values[32]) {
  float largest = 0.0f;
  for (int i = 0; i < 32; i++) largest = fmaxf(largest, fabsf(values[i]));
  const uint16_t scale = lpx_f32_to_f16(largest / 127.0f);
  const float step = lpx_f16_to_f32(scale);
  put_number(out, scale, 2);
  for (int i = 0; i < 32; i++) {
    const float level = step > 0.0f ? roundf(values[i] / step) : 0.0f;
    put_number(out, (uint8_t)(int8_t)fmaxf(-127.0f, fminf(127.0f, level)), 1);
  }
}

/* Matrices keep the size of what they multiply; embeddings differ more than rows of a layer do. */
static void put_data(output *out, const tensor *t, laprox_dtype dtype) {
  const bool is_embedding = !strcmp(t->name, "token_embd.weight");
  const float size = is_embedding ? 1.0f : sqrtf(3.0f / (float)t->n_columns);
  float block[32];
  size_t in_block = 0;
  for (uint32_t i = 0; !t->n_rows && i < t->n_columns; i++) put_float(out, 1.0f);
  for (uint64_t i = 0; i < (uint64_t)t->n_columns * t->n_rows && !ferror(out->stream); i++) {
    const float value = size * draw(out);
    if (dtype == LAPROX_DTYPE_F32) put_float(out, value);
    if (dtype == LAPROX_DTYPE_F16) put_number(out, lpx_f32_to_f16(value), 2);
    if (dtype != LAPROX_DTYPE_Q8_0) continue;
    block[in_block++] = value;
    if (in_block == 32) put_q8_block(out, block);
    in_block %= 32;
  }
  put_padding(out);
}

static bool complain(const char *path, const char *problem) {
  (void)fprintf(stderr, "%s: %s\n", path, problem);
  return false;
}

static bool put_model(output *out, const test_model *model) {
  tensor *tensors = calloc(2 + (size_t)model->n_layers * N_LAYER_TENSORS, sizeof *tensors);
  if (!tensors) return false;
  const size_t n = list_tensors(model, tensors);
  put(out, "GGUF", 4);
  put_number(out, 3, 4);
  put_number(out, n, 8);
  put_number(out, N_PAIRS, 8);
  put_metadata(out, model);
  for (size_t i = 0; i < n; i++) put_description(out, &tensors[i], model->dtype);
  put_padding(out);
  for (size_t i = 0; i < n; i++) put_data(out, &tensors[i], model->dtype);
  free(tensors);
  return out->n_pairs == 0;
}

bool model_file_write(const char *path, const test_model *model) {
  output out = {.stream = fopen(path, "wb"), .state = model->seed};
  if (!out.stream) return complain(path, strerror(errno));
  const bool complete = put_model(&out, model), written = !ferror(out.stream);
  if (fclose(out.stream) || !written || !complete) return complain(path, "could not be written");
  return true;
}

/* ---- changed copies ---- */

static uint8_t *read_whole(const char *path, size_t *n) {
  FILE *stream = fopen(path, "rb");
  uint8_t *data = NULL;
  long size = -1;
  if (stream && !fseek(stream, 0, SEEK_END)) size = ftell(stream);
  if (size > 0) data = malloc((size_t)size);
  *n = data ? (size_t)size : 0;
  if (data) {
    rewind(stream);
    if (fread(data, 1, *n, stream) != *n) {
      free(data);
      data = NULL;
    }
  }
  if (stream) (void)fclose(stream);
  return data;
}

/* The number behind the key's length, text and type. */
static uint8_t *find_number(uint8_t *data, size_t n, const char *key) {
  const size_t length = strlen(key);
  char pattern[8 + 64] = {(char)length};
  if (length > 64) return NULL;
  memcpy(pattern + 8, key, length);
  for (size_t i = 0; i + 8 + length + 8 <= n; i++) {
    const uint8_t *type = data + i + 8 + length;
    if (memcmp(data + i, pattern, 8 + length) == 0 && (type[0] == U32 || type[0] == I32 || type[0] == F32))
      return data + i + 8 + length + 4;
  }
  return NULL;
}

bool model_file_change(const char *from, const char *to, const char *key, uint32_t value) {
  size_t n;
  uint8_t *data = read_whole(from, &n), *number = data ? find_number(data, n, key) : NULL;
  bool done = false;
  if (number) {
    for (uint32_t i = 0; i < 4; i++) number[i] = (uint8_t)(value >> 8 * i);
    FILE *stream = fopen(to, "wb");
    done = stream && fwrite(data, 1, n, stream) == n;
    if (stream && fclose(stream)) done = false;
  }
  free(data);
  return done || complain(number ? to : from, number ? "could not be written" : "no such file or metadata");
}
