/* llama MODEL.gguf PROMPT.txt [SHARE]: llama.cpp reads a prompt and generates, laprox says which positions of its KV cache
 * to keep: SHARE of them (0.3). Queries, keys and values are taken from the graph by llama.cpp's evaluation callback,
 * scored on a device of our own, and what is worth least is removed by its memory API. Its cells hold a position for
 * all layers and heads, so whole positions are ranked. The answer is computed from what is left alone: the prompt's
 * last token is read again. */
#include "app.h"

#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 32, BATCH = 512, N_ANSWER = 12, MAX_LAYERS = 128, ARENA_BYTES = 512 << 20 };

/* What the prompt leaves of each layer, where the host and then the device have it. */
typedef struct capture {
  laprox_shape shape;
  uint32_t model_dim, n_tokens;
  uint32_t first, n_batch; /* the tokens that are being read */
  float *query[MAX_LAYERS], *key[MAX_LAYERS], *value[MAX_LAYERS];
  float *weights; /* output projections */
  float *queries; /* of one batch */
  bool is_complete[MAX_LAYERS];
} capture;

/* ---- out of llama.cpp's graph ---- */

typedef enum part { NOTHING, QUERY, KEY, VALUE, OUTPUT } part;

/* Queries and keys bear their names before and after their rotation. The output projection is a weight, so it is taken
 * from the product that it is in. */
static part part_of(const struct ggml_tensor *tensor, uint32_t *layer) {
  part found = NOTHING;
  if (tensor->op == GGML_OP_ROPE && sscanf(tensor->name, "Qcur-%u", layer) == 1) found = QUERY;
  if (tensor->op == GGML_OP_ROPE && sscanf(tensor->name, "Kcur-%u", layer) == 1) found = KEY;
  if (sscanf(tensor->name, "Vcur-%u", layer) == 1) found = VALUE;
  char name[GGML_MAX_NAME];
  if (tensor->op == GGML_OP_MUL_MAT && sscanf(tensor->src[0]->name, "blk.%u.", layer) == 1) {
    (void)snprintf(name, sizeof name, "blk.%u.attn_output.weight", *layer);
    if (!strcmp(tensor->src[0]->name, name)) found = OUTPUT;
  }
  return found && *layer < MAX_LAYERS ? found : NOTHING;
}

/* The rows of this batch, token by token, as they are wanted too. */
static void take_rows(const capture *c, const struct ggml_tensor *tensor, uint32_t n_heads, float *rows) {
  const size_t row = (size_t)n_heads * c->shape.head_dim, n_bytes = c->n_batch * row * sizeof *rows;
  must(tensor->type != GGML_TYPE_F32 || ggml_nbytes(tensor) != n_bytes || !ggml_is_contiguous(tensor),
       tensor->name);
  ggml_backend_tensor_get(tensor, rows, 0, n_bytes);
}

/* Into the ring of the last queries. */
static void take_queries(const capture *c, const struct ggml_tensor *tensor, float *ring) {
  const size_t row = (size_t)c->shape.n_heads * c->shape.head_dim;
  take_rows(c, tensor, c->shape.n_heads, c->queries);
  for (uint32_t t = 0; t < c->n_batch; t++)
    memcpy(ring + (c->first + t) % WINDOW * row, c->queries + t * row, row * sizeof *ring);
}

static size_t weights_of_layer(const capture *c) {
  return (size_t)c->model_dim * c->shape.n_heads * c->shape.head_dim;
}

static void take_weight(const capture *c, const struct ggml_tensor *tensor, float *weight) {
  const ggml_to_float_t to_float = ggml_get_type_traits(tensor->type)->to_float;
  const size_t n = weights_of_layer(c);
  void *bytes = malloc(ggml_nbytes(tensor));
  must(!bytes || (size_t)ggml_nelements(tensor) != n || (tensor->type != GGML_TYPE_F32 && !to_float),
       tensor->name);
  ggml_backend_tensor_get(tensor, bytes, 0, ggml_nbytes(tensor));
  if (tensor->type == GGML_TYPE_F32)
    memcpy(weight, bytes, n * sizeof *weight);
  else
    to_float(bytes, weight, (int64_t)n);
  free(bytes);
}

/* Called twice for every node: whether it is wanted, and when it has been computed. */
static bool on_node(struct ggml_tensor *tensor, bool ask, void *user) {
  capture *c = user;
  uint32_t layer = 0;
  const part found = part_of(tensor, &layer);
  if (ask || !found) return found != NOTHING;
  if (layer >= c->shape.n_layers || c->first >= c->n_tokens) return true; /* tokens of the answer */
  if (found == QUERY) take_queries(c, tensor, c->query[layer]);
  const size_t done = (size_t)c->first * c->shape.n_kv_heads * c->shape.head_dim;
  if (found == KEY) take_rows(c, tensor, c->shape.n_kv_heads, c->key[layer] + done);
  if (found == VALUE) take_rows(c, tensor, c->shape.n_kv_heads, c->value[layer] + done);
  if (found == OUTPUT && !c->is_complete[layer]) {
    take_weight(c, tensor->src[0], c->weights + layer * weights_of_layer(c));
    c->is_complete[layer] = true;
  }
  return true;
}

static void read_tokens(struct llama_context *context, capture *c, llama_token *tokens) {
  for (c->first = 0; c->first < c->n_tokens; c->first += c->n_batch) {
    c->n_batch = c->n_tokens - c->first < BATCH ? c->n_tokens - c->first : BATCH;
    must(llama_decode(context, llama_batch_get_one(tokens + c->first, (int32_t)c->n_batch)), "llama_decode");
  }
  for (uint32_t l = 0; l < c->shape.n_layers; l++) must(!c->is_complete[l], "finding attention in the graph");
}

/* ---- scoring ---- */

/* One layer's buffers, as the plan needs them; the factor follows when the weights are known. */
static void place_layer(app *a, capture *c, const laprox_requirements *needs, uint32_t l,
                        laprox_layer_buffers *out, float **factor) {
  const VkDeviceSize bytes =
      (VkDeviceSize)c->n_tokens * c->shape.n_kv_heads * c->shape.head_dim * sizeof(float);
  out->query = app_take(a, needs->query_bytes, &c->query[l]);
  out->key[0] = app_take(a, bytes, &c->key[l]);
  out->value[0] = app_take(a, bytes, &c->value[l]);
  out->factor = app_take(a, needs->factor_bytes, factor);
}

static void run(app *a, const laprox_binding *binding, laprox_buffer uploads, laprox_buffer result) {
  app_commands commands;
  app_commands_create(a, 0, &commands);
  app_begin(&commands);
  app_copy(&commands, a->host, a->arena, uploads);
  must(laprox_cmd_steps(commands.buffer, binding, 0, laprox_binding_n_steps(binding)), "laprox_cmd_steps");
  app_copy(&commands, a->arena, a->host, result);
  app_run(&commands);
  app_commands_destroy(&commands);
}

/* What all layers and heads can do without, read back as ranges of positions; the caller frees them. */
static laprox_range *removed_ranges(const laprox_plan *plan, const void *result, uint32_t *n) {
  must(laprox_removed_ranges(plan, result, NULL, n), "laprox_removed_ranges");
  laprox_range *ranges = calloc(*n + 1, sizeof *ranges);
  must(!ranges, "allocating ranges");
  must(laprox_removed_ranges(plan, result, ranges, n), "laprox_removed_ranges");
  return ranges;
}

static laprox_range *read_and_score(struct llama_context *llama, capture *c, llama_token *tokens,
                                    double share, uint32_t *n_ranges) {
  app a;
  laprox_context *context = NULL;
  laprox_plan *plan = NULL;
  laprox_binding *binding = NULL;
  laprox_requirements needs;
  laprox_layer_buffers layers[MAX_LAYERS] = {0};
  float *factors[MAX_LAYERS], *result;
  const laprox_shape *shape = &c->shape;
  const laprox_plan_info info = {
      .shape = *shape,
      .policy = {.scope = LAPROX_SCOPE_TOKEN, .window = WINDOW, .budget.share = share},
      .cache_dtype = LAPROX_DTYPE_F32,
      .n_segments = 1,
      .segments = {{.n_entries = c->n_tokens,
                    .entry_stride = shape->n_kv_heads * shape->head_dim,
                    .head_stride = shape->head_dim}},
      .query_start = c->n_tokens % WINDOW};
  app_open(&a, false, ARENA_BYTES);
  const laprox_context_info device = app_context_info(&a);
  must(laprox_context_create(&device, &context), "laprox_context_create");
  must(laprox_plan_create(context, &info, &plan), "laprox_plan_create");
  laprox_plan_requirements(plan, &needs);
  must(needs.budget == UINT32_MAX, "finding something to remove");
  a.alignment = needs.alignment;
  for (uint32_t l = 0; l < shape->n_layers; l++) place_layer(&a, c, &needs, l, &layers[l], &factors[l]);
  const laprox_buffer uploads = {a.host, 0, a.used_bytes};
  const laprox_binding_info buffers = {.layers = layers,
                                       .scratch = app_take(&a, needs.scratch_bytes, NULL),
                                       .scores = app_take(&a, needs.scores_bytes, NULL),
                                       .result = app_take(&a, needs.result_bytes, &result)};
  must(laprox_binding_create(plan, &buffers, &binding), "laprox_binding_create");
  read_tokens(llama, c, tokens);
  for (uint32_t l = 0; l < shape->n_layers; l++)
    must(laprox_value_factor(NULL, shape, LAPROX_GQA_AUTO, c->model_dim, c->weights + l * weights_of_layer(c),
                             factors[l]),
         "laprox_value_factor");
  run(&a, binding, uploads, buffers.result);
  laprox_range *ranges = removed_ranges(plan, result, n_ranges);
  laprox_binding_destroy(binding);
  laprox_plan_destroy(plan);
  laprox_context_destroy(context);
  app_close(&a);
  return ranges;
}

/* ---- llama.cpp again ---- */

/* Cells are free then for later tokens; positions stay as they were. Returns how many are gone. */
static uint32_t forget(struct llama_context *llama, const laprox_range *ranges, uint32_t n) {
  uint32_t n_gone = 0;
  for (uint32_t i = 0; i < n; i++) {
    must(!llama_memory_seq_rm(llama_get_memory(llama), 0, (llama_pos)ranges[i].first,
                              (llama_pos)ranges[i].end),
         "llama_memory_seq_rm");
    n_gone += ranges[i].end - ranges[i].first;
  }
  return n_gone;
}

static llama_token best(struct llama_context *llama, int32_t n_vocab) {
  const float *logits = llama_get_logits_ith(llama, -1);
  llama_token token = 0;
  for (llama_token i = 1; i < n_vocab; i++)
    if (logits[i] > logits[token]) token = i;
  return token;
}

static void answer(struct llama_context *llama, const struct llama_vocab *vocab, llama_token token,
                   uint32_t position) {
  must(!llama_memory_seq_rm(llama_get_memory(llama), 0, (llama_pos)position, -1), "llama_memory_seq_rm");
  for (int i = 0; i < N_ANSWER; i++) {
    char text[64];
    must(llama_decode(llama, llama_batch_get_one(&token, 1)), "llama_decode");
    token = best(llama, llama_vocab_n_tokens(vocab));
    const int32_t n = llama_token_to_piece(vocab, token, text, sizeof text, 0, false);
    must(n < 0, "llama_token_to_piece");
    (void)printf("%.*s", (int)n, text);
  }
  (void)printf("\n");
}

static void be_silent(enum ggml_log_level level, const char *text, void *user) {
  (void)user;
  if (level == GGML_LOG_LEVEL_ERROR) (void)fputs(text, stderr);
}

static llama_token *tokenize(const struct llama_vocab *vocab, const char *path, uint32_t *n_tokens) {
  static char text[1 << 20];
  FILE *file = fopen(path, "rb");
  must(!file, path);
  const size_t n_bytes = fread(text, 1, sizeof text, file);
  (void)fclose(file);
  llama_token *tokens = calloc(n_bytes + 1, sizeof *tokens);
  must(!tokens, "allocating tokens");
  const int32_t n = llama_tokenize(vocab, text, (int32_t)n_bytes, tokens, (int32_t)n_bytes + 1, true, false);
  must(n <= WINDOW + 1, "reading a prompt longer than the window");
  *n_tokens = (uint32_t)n;
  return tokens;
}

int main(int argc, char **argv) {
  if (argc < 3) return (void)fprintf(stderr, "usage: llama MODEL.gguf PROMPT.txt [SHARE]\n"), 2;
  const double share = argc > 3 ? strtod(argv[3], NULL) : 0.3;
  llama_log_set(be_silent, NULL);
  ggml_backend_load_all();
  llama_backend_init();
  struct llama_model_params loading = llama_model_default_params();
  loading.use_extra_bufts = false; /* weights laid out anew for the processor can't be read back */
  struct llama_model *model = llama_model_load_from_file(argv[1], loading);
  must(!model, argv[1]);
  const struct llama_vocab *vocab = llama_model_get_vocab(model);
  capture c = {.model_dim = (uint32_t)llama_model_n_embd(model)};
  llama_token *tokens = tokenize(vocab, argv[2], &c.n_tokens);
  c.shape = (laprox_shape){(uint32_t)llama_model_n_layer(model), (uint32_t)llama_model_n_head(model),
                           (uint32_t)llama_model_n_head_kv(model),
                           c.model_dim / (uint32_t)llama_model_n_head(model)};
  must(c.shape.n_layers > MAX_LAYERS, "holding so many layers");
  c.queries = malloc((size_t)BATCH * c.model_dim * sizeof *c.queries);
  c.weights = malloc(c.shape.n_layers * weights_of_layer(&c) * sizeof *c.weights);
  must(!c.queries || !c.weights, "allocating memory");
  struct llama_context_params params = llama_context_default_params();
  params.n_ctx = c.n_tokens + N_ANSWER;
  params.n_batch = params.n_ubatch = BATCH;
  params.cb_eval = on_node;
  params.cb_eval_user_data = &c;
  struct llama_context *llama = llama_init_from_model(model, params);
  must(!llama, "llama_init_from_model");

  uint32_t n_ranges = 0;
  laprox_range *ranges = read_and_score(llama, &c, tokens, share, &n_ranges);
  const uint32_t n_gone = forget(llama, ranges, n_ranges);
  (void)printf("%u of %u positions removed:", n_gone, c.n_tokens);
  answer(llama, vocab, tokens[c.n_tokens - 1], c.n_tokens - 1);
  free(ranges);
  free(c.queries);
  free(c.weights);
  free(tokens);
  llama_free(llama);
  llama_model_free(model);
  llama_backend_free();
  return 0;
}
