/* plan.c: from shapes and a policy to tables, sizes and pipelines. */
#include "evict/evict.h"

#include <math.h>
#include <string.h>

/* Bytes of the places that layers score in. */
#define PLACES_BYTES (UINT64_C(256) << 20)
/* Bytes of stored probabilities or attention norms that a strip of tiles may take. */
#define STRIP_BYTES (UINT64_C(32) << 20)

const uint32_t *lpx_head_row(const laprox_plan *plan, uint32_t layer, uint32_t head) {
  return plan->tables + (size_t)(layer * plan->shape.n_kv_heads + head) * HEAD_WORDS;
}

bool lpx_plan_uses_attention(const laprox_plan *plan) {
  return lpx_rules_use_attention(&plan->rules);
}

bool lpx_plan_pools_before(const laprox_plan *plan) {
  return lpx_plan_takes_risks(plan) || plan->rules.pool_before;
}

bool lpx_plan_uses_values(const laprox_plan *plan) {
  return plan->rules.kind == LAPROX_POLICY_LAPROX;
}

bool lpx_plan_sums_tokens(const laprox_plan *plan) {
  return plan->rules.scope == LAPROX_SCOPE_TOKEN;
}

bool lpx_plan_exchanges(const laprox_plan *plan) {
  return plan->distributed && plan->rules.scope == LAPROX_SCOPE_GLOBAL;
}

static uint32_t divide_up(uint32_t a, uint32_t b) {
  return a / b + (a % b != 0);
}

VkDeviceSize lpx_plan_row_bytes(const laprox_plan *plan) {
  return laprox_dtype_bytes(plan->dtype, plan->shape.head_dim);
}

VkDeviceSize lpx_plan_cache_alignment(const laprox_plan *plan) {
  return lpx_dtype_is_blocks(plan->dtype) ? plan->context->range_alignment : 4;
}

/* ---- tables ---- */

/* Fills one head's row except the running numbers; fails where the head can't hold window and sinks. */
static laprox_result fill_head(const laprox_plan *plan, const laprox_plan_info *info, uint32_t layer,
                               uint32_t head, uint32_t *row) {
  const laprox_host *host = &plan->context->host;
  uint64_t n_entries = 0;
  for (uint32_t s = 0; s < plan->n_segments; s++) {
    row[HEAD_ROWS + 2 * s] = lpx_segment_rows(info, s, layer, head, &row[HEAD_ROW + 2 * s]);
    n_entries += row[HEAD_ROWS + 2 * s];
  }
  const uint32_t *sinks = info->head_sinks;
  row[HEAD_N_SINKS] = sinks ? sinks[layer * plan->shape.n_kv_heads + head] : plan->rules.sinks;
  if (n_entries > INT32_MAX || n_entries < (uint64_t)plan->rules.window)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "layer %u, KV head %u has %llu entries; a plan takes from window (%u) to %d", layer, head,
                    (unsigned long long)n_entries, plan->rules.window, INT32_MAX);
  const uint32_t free_entries = (uint32_t)n_entries - plan->rules.window;
  if (row[HEAD_N_SINKS] > free_entries) row[HEAD_N_SINKS] = free_entries;
  row[HEAD_N_ENTRIES] = (uint32_t)n_entries;
  row[HEAD_N_CANDIDATES] = free_entries - row[HEAD_N_SINKS];
  return LAPROX_OK;
}

static laprox_result fill_heads(laprox_plan *plan, const laprox_plan_info *info) {
  uint64_t blocks = 0, protected_rows = 0, mask_words = 0;
  uint32_t *row = plan->tables;
  for (uint32_t layer = 0; layer < plan->shape.n_layers; layer++) {
    lpx_layer_items *items = &plan->layers[layer];
    items->first_block = (uint32_t)blocks;
    for (uint32_t head = 0; head < plan->shape.n_kv_heads; head++, row += HEAD_WORDS) {
      const laprox_result result = fill_head(plan, info, layer, head, row);
      if (result) return result;
      row[HEAD_FIRST_BLOCK] = (uint32_t)blocks;
      row[HEAD_FIRST_TILE] = items->n_tiles;
      row[HEAD_FIRST_SPLIT] = items->n_splits;
      row[HEAD_PROTECTED] = (uint32_t)protected_rows;
      row[HEAD_MASK] = (uint32_t)mask_words;
      mask_words += divide_up(row[HEAD_N_ENTRIES], 32);
      blocks += divide_up(row[HEAD_N_CANDIDATES], BLOCK_ENTRIES);
      items->n_tiles += divide_up(row[HEAD_N_CANDIDATES], TILE_ENTRIES);
      items->n_splits += divide_up(row[HEAD_N_ENTRIES], SPLIT_ENTRIES);
      protected_rows += row[HEAD_N_SINKS] + plan->rules.window;
    }
    items->n_blocks = (uint32_t)blocks - items->first_block;
    if (blocks > (UINT64_C(1) << 31) / BLOCK_ENTRIES || protected_rows > INT32_MAX)
      return lpx_fail(&plan->context->host, LAPROX_ERROR_UNSUPPORTED,
                      "layers 0 to %u hold %llu candidates and %llu protected entries; the limit is 2^31",
                      layer, (unsigned long long)(blocks * BLOCK_ENTRIES),
                      (unsigned long long)protected_rows);
  }
  row[HEAD_FIRST_BLOCK] = plan->n_blocks = (uint32_t)blocks;
  row[HEAD_PROTECTED] = (uint32_t)protected_rows;
  row[HEAD_MASK] = (uint32_t)mask_words;
  return LAPROX_OK;
}

/* So many blocks a run that there is a workgroup for every part of the device, and not many more. */
static uint32_t choose_run_blocks(const laprox_plan *plan) {
  const uint32_t n_wanted = lpx_is_discrete(plan->context) ? 512 : lpx_is_software(plan->context) ? 16 : 128;
  uint32_t blocks = MIN_RUN_BLOCKS;
  while (blocks < MAX_RUN_BLOCKS && plan->selection.n_blocks / blocks > n_wanted) blocks *= 2;
  return blocks;
}

/* Runs of blocks: within a problem, and within what one binding of the scores can hold. */
static void fill_runs(const laprox_plan *plan, lpx_selection *selection, const uint32_t *block_heads,
                      uint32_t *out) {
  const uint32_t binding_blocks = (uint32_t)(plan->context->max_range / (BLOCK_ENTRIES * 4));
  uint32_t first_run = 0, last_problem = UINT32_MAX;
  selection->n_runs = 0;
  for (uint32_t block = 0, count; block < selection->n_blocks; block += count) {
    const uint32_t problem = block_heads[block] / selection->heads_per_problem;
    for (count = 1; count < plan->run_blocks && block + count < selection->n_blocks; count++)
      if (block_heads[block + count] / selection->heads_per_problem != problem ||
          (block + count) % binding_blocks == 0)
        break;
    if (problem != last_problem) first_run = selection->n_runs;
    last_problem = problem;
    const uint32_t words[RUN_WORDS] = {block, count, first_run, problem};
    memcpy(out + (size_t)RUN_WORDS * selection->n_runs++, words, sizeof words);
  }
}

/* Places that heads of layers still to come will fill in any case: their sinks and floors. They are as long
   as the heads of the newest layer. */
static uint64_t reserved_places(const laprox_plan *plan) {
  const uint32_t *newest = plan->tables + (size_t)(plan->n_heads_all - 1) * HEAD_WORDS;
  const uint32_t candidates = newest[HEAD_N_CANDIDATES], floor = plan->rules.floor;
  const uint64_t heads = (uint64_t)(plan->model_layers - plan->shape.n_layers) * plan->shape.n_kv_heads;
  return heads * (newest[HEAD_N_SINKS] + (floor < candidates ? floor : candidates));
}

static uint32_t longest_head(const laprox_plan *plan) {
  uint32_t most = 0;
  for (uint32_t head = 0; head < plan->n_heads_all; head++) {
    const uint32_t n_entries = plan->tables[(size_t)head * HEAD_WORDS + HEAD_N_ENTRIES];
    if (n_entries > most) most = n_entries;
  }
  return most;
}

/* The places of each problem: budget times heads, less what is protected, at most the candidates there are.
 */
static laprox_result fill_problems(laprox_plan *plan, lpx_selection *selection, uint32_t heads_per_problem,
                                   uint32_t places_a_head, bool less_sinks) {
  const bool tokens = lpx_plan_sums_tokens(plan);
  selection->heads_per_problem = heads_per_problem;
  selection->n_problems = tokens ? 1 : plan->n_heads_all / heads_per_problem;
  selection->n_blocks = tokens ? lpx_head_row(plan, 0, 1)[HEAD_FIRST_BLOCK] : plan->n_blocks;
  selection->k = lpx_allocate(&plan->context->host, selection->n_problems, sizeof *selection->k);
  if (!selection->k) return lpx_fail_memory(&plan->context->host, "a plan");
  for (uint32_t problem = 0; problem < selection->n_problems; problem++) {
    uint64_t candidates = 0, sinks = 0;
    for (uint32_t i = 0; i < heads_per_problem; i++) {
      const uint32_t *row = plan->tables + (size_t)(problem * heads_per_problem + i) * HEAD_WORDS;
      candidates += row[HEAD_N_CANDIDATES];
      sinks += less_sinks ? row[HEAD_N_SINKS] : 0;
    }
    uint64_t places = (uint64_t)heads_per_problem * places_a_head;
    if (less_sinks && plan->rules.kind == LAPROX_POLICY_PYRAMIDKV)
      places = lpx_pyramid_places(plan->model_layers, plan->layer_offset + problem / plan->shape.n_kv_heads,
                                  places_a_head, longest_head(plan) - plan->rules.window);
    if (less_sinks && plan->rules.scope == LAPROX_SCOPE_GLOBAL) {
      plan->shares[0] = (uint32_t)(places - sinks); /* wraps; the sum over the model does not */
      plan->shares[1] = (uint32_t)candidates;
      places = (uint64_t)plan->model_layers * plan->shape.n_kv_heads * places_a_head;
      sinks = plan->distributed ? 0 : sinks + reserved_places(plan);
    }
    const uint64_t left = places > sinks ? places - sinks : 0;
    selection->k[problem] = (uint32_t)(left < candidates ? left : candidates);
  }
  return LAPROX_OK;
}

/* Counters of the whole model are of 32 bits. */
static laprox_result check_distributed(const laprox_plan *plan) {
  const uint64_t n_heads = (uint64_t)plan->model_layers * plan->shape.n_kv_heads;
  const uint64_t places = n_heads * (plan->budget - plan->rules.window),
                 entries = n_heads * longest_head(plan);
  if (!lpx_plan_exchanges(plan) || (places <= INT32_MAX && entries <= UINT32_MAX)) return LAPROX_OK;
  return lpx_fail(&plan->context->host, LAPROX_ERROR_UNSUPPORTED,
                  "a model of %llu places and %llu entries on several devices; the limits are 2^31 - 1 and "
                  "2^32 - 1",
                  (unsigned long long)places, (unsigned long long)entries);
}

/* Entry i of every head must be the same token's. */
static laprox_result check_tokens(const laprox_plan *plan) {
  const laprox_host *host = &plan->context->host;
  if (!lpx_plan_sums_tokens(plan)) return LAPROX_OK;
  if (plan->model_layers != plan->shape.n_layers)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_plan_info: scope token needs the scores of all %u layers, not of %u",
                    plan->model_layers, plan->shape.n_layers);
  const uint32_t *first = lpx_head_row(plan, 0, 0);
  for (uint32_t i = 1; i < plan->n_heads_all; i++) {
    const uint32_t *row = first + (size_t)i * HEAD_WORDS;
    if (row[HEAD_N_ENTRIES] == first[HEAD_N_ENTRIES] && row[HEAD_N_SINKS] == first[HEAD_N_SINKS]) continue;
    return lpx_fail(host, LAPROX_ERROR_UNSUPPORTED,
                    "scope token: layer %u, KV head %u has %u entries and %u sinks, KV head 0 of layer 0 %u "
                    "and %u; all must have as many",
                    i / plan->shape.n_kv_heads, i % plan->shape.n_kv_heads, row[HEAD_N_ENTRIES],
                    row[HEAD_N_SINKS], first[HEAD_N_ENTRIES], first[HEAD_N_SINKS]);
  }
  return LAPROX_OK;
}

static laprox_result fill_tables(laprox_plan *plan, const laprox_plan_info *info) {
  const laprox_host *host = &plan->context->host;
  const uint32_t head_words = (plan->n_heads_all + 1) * HEAD_WORDS;
  plan->layers = lpx_allocate(host, plan->shape.n_layers, sizeof *plan->layers);
  plan->tables = lpx_allocate(host, head_words, sizeof *plan->tables);
  if (!plan->layers || !plan->tables) return lpx_fail_memory(host, "a plan");
  laprox_result result = fill_heads(plan, info);
  if (!result) result = check_tokens(plan);
  if (!result) result = check_distributed(plan);
  const lpx_rules *rules = &plan->rules;
  if (!result)
    result = fill_problems(plan, &plan->selection, lpx_heads_per_problem(rules, &plan->shape),
                           plan->budget - rules->window, true);
  if (!result) result = fill_problems(plan, &plan->floor_selection, 1, rules->floor, false);
  if (result) return result;
  plan->n_kept = plan->tables[(size_t)plan->n_heads_all * HEAD_WORDS + HEAD_PROTECTED];
  const uint32_t n_takers = lpx_plan_sums_tokens(plan) ? plan->n_heads_all : 1;
  for (uint32_t i = 0; i < plan->selection.n_problems; i++)
    plan->n_kept += (uint64_t)plan->selection.k[i] * n_takers;

  /* At most one run a block, for both scopes. */
  const size_t capacity = (size_t)head_words + (size_t)plan->n_blocks * (1 + 2 * RUN_WORDS) + 1;
  uint32_t *grown = lpx_reallocate(host, plan->tables, capacity, sizeof *grown);
  if (!grown) return lpx_fail_memory(host, "a plan");
  plan->tables = grown;
  plan->state.block_heads = head_words;
  uint32_t *block_heads = grown + head_words;
  for (uint32_t head = 0; head < plan->n_heads_all; head++) {
    const uint32_t *row = grown + (size_t)head * HEAD_WORDS;
    for (uint32_t b = row[HEAD_FIRST_BLOCK]; b < row[HEAD_WORDS + HEAD_FIRST_BLOCK]; b++)
      block_heads[b] = head;
  }
  plan->run_blocks = choose_run_blocks(plan);
  plan->selection.runs = head_words + plan->n_blocks;
  fill_runs(plan, &plan->selection, block_heads, grown + plan->selection.runs);
  plan->floor_selection.runs = plan->selection.runs + RUN_WORDS * plan->selection.n_runs;
  if (rules->floor) fill_runs(plan, &plan->floor_selection, block_heads, grown + plan->floor_selection.runs);
  plan->state.n_table_words = plan->floor_selection.runs + RUN_WORDS * plan->floor_selection.n_runs;
  if (lpx_plan_sums_tokens(plan)) {
    const float one = 1.0f;
    plan->state.unit = plan->state.n_table_words++;
    memcpy(plan->tables + plan->state.unit, &one, sizeof one);
  }
  return LAPROX_OK;
}

/* ---- sizes ---- */

static VkDeviceSize align(const laprox_plan *plan, VkDeviceSize bytes) {
  const VkDeviceSize to = plan->context->range_alignment;
  return (bytes + to - 1) / to * to;
}

static uint64_t tile_attention_words(const laprox_plan *plan) {
  const uint64_t group = plan->group;
  if (plan->rules.gqa == LAPROX_GQA_JOINT) return group * (group + 1) / 2 * TILE_ENTRIES;
  return (plan->rules.gqa == LAPROX_GQA_ATTENTION_MEAN ? 1 : group) * TILE_ENTRIES;
}

static uint64_t tile_probability_words(const laprox_plan *plan) {
  if (plan->rules.gqa == LAPROX_GQA_MEAN) return 0;
  return (uint64_t)plan->group * plan->rules.window * TILE_ENTRIES;
}

static laprox_result check_range(const laprox_plan *plan, const char *what, uint64_t bytes) {
  if (bytes <= plan->context->max_range) return LAPROX_OK;
  return lpx_fail(&plan->context->host, LAPROX_ERROR_UNSUPPORTED,
                  "%s takes %llu bytes, the device's maxStorageBufferRange is %llu", what,
                  (unsigned long long)bytes, (unsigned long long)plan->context->max_range);
}

static laprox_result size_work(laprox_plan *plan) {
  if (plan->is_scored) return LAPROX_OK;
  uint64_t max_tiles = 0, max_splits = 0, max_blocks = 0;
  for (uint32_t layer = 0; layer < plan->shape.n_layers; layer++) {
    const lpx_layer_items *items = &plan->layers[layer];
    if (items->n_tiles > max_tiles) max_tiles = items->n_tiles;
    if (items->n_splits > max_splits) max_splits = items->n_splits;
    if (items->n_blocks > max_blocks) max_blocks = items->n_blocks;
  }
  uint64_t words = 0, attention = 0, unpooled = 0, probabilities = 0;
  if (lpx_plan_uses_attention(plan))
    words = max_splits * plan->n_segments * plan->group * plan->n_queries * 2;
  else
    words = lpx_entry_score_words(plan, max_splits, &plan->work.anchors);
  const uint64_t prepared = (uint64_t)lpx_matrix_prepared_words(plan) * plan->shape.n_heads;
  const uint64_t values = lpx_plan_takes_risks(plan) ? max_blocks * BLOCK_ENTRIES : 0;
  const uint64_t others = words + values + max_blocks * BLOCK_ENTRIES + prepared + 3;
  const uint64_t most = plan->context->max_range / 4;
  const uint64_t room = others > most ? 0 : most - others;
  if (lpx_plan_uses_values(plan)) {
    attention = tile_attention_words(plan), probabilities = tile_probability_words(plan);
    unpooled = plan->rules.pool_before ? attention : 0;
  } else if (lpx_plan_stores_window(plan)) {
    probabilities = (uint64_t)plan->group * plan->n_queries * TILE_ENTRIES;
  }
  const uint64_t beside =
      unpooled || lpx_plan_stores_window(plan) ? 2 : 0; /* tiles in which neighbours are */
  if (attention + probabilities) {
    uint64_t tiles =
        (room < STRIP_BYTES / 4 ? room : STRIP_BYTES / 4) / (attention + unpooled + probabilities);
    tiles = tiles > beside ? tiles - beside : 0;
    if (tiles > max_tiles) tiles = max_tiles;
    if (!tiles) tiles = 1;
    plan->strip_tiles = (uint32_t)tiles;
  } else {
    plan->strip_tiles = (uint32_t)(max_tiles ? max_tiles : 1);
  }
  const uint64_t starts[] = {words,
                             probabilities * (plan->strip_tiles + beside),
                             unpooled * (plan->strip_tiles + beside),
                             attention * plan->strip_tiles,
                             max_blocks * BLOCK_ENTRIES,
                             values};
  uint64_t ends[6], at = 0;
  for (int i = 0; i < 6; i++) ends[i] = at += starts[i];
  const uint64_t prepared_at = (at + 3) / 4 * 4; /* loads of 16 bytes */
  if (prepared) at = prepared_at + prepared;
  const laprox_result result = check_range(plan, "the scoring of a layer", at * 4);
  if (result) return result;
  plan->work = (lpx_work_words){.anchors = plan->work.anchors,
                                .probabilities = (uint32_t)ends[0],
                                .unpooled = (uint32_t)ends[1],
                                .attention = (uint32_t)ends[2],
                                .raw = (uint32_t)ends[3],
                                .values = (uint32_t)ends[4],
                                .prepared = (uint32_t)prepared_at,
                                .n_words = (uint32_t)at};
  return LAPROX_OK;
}

static VkDeviceSize factor_bytes(const laprox_plan *plan) {
  switch (lpx_rules_factor(&plan->rules)) {
  case LPX_FACTOR_TRIANGLE:
    return laprox_value_factor_bytes(&plan->shape, plan->rules.gqa);
  case LPX_FACTOR_PROJECTION:
    return (VkDeviceSize)plan->model_dim * plan->shape.n_heads * plan->shape.head_dim * 4;
  case LPX_FACTOR_NONE:
    break;
  }
  return 0;
}

/* As many as a layer on matrices has dispatches one after the other, each of another layer then. Where they are short, a
   device has little to do between one and the next. */
static uint32_t choose_places(const laprox_plan *plan) {
  enum { MOST_PLACES = 6 };
  const laprox_context *context = plan->context;
  const uint64_t bytes = (uint64_t)plan->work.n_words * 4,
                 n_layers = plan->shape.n_layers - plan->first_layer;
  if (!plan->matrix_size || !n_layers || !(lpx_is_discrete(context) || lpx_is_software(context))) return 1;
  uint64_t n = n_layers < MOST_PLACES ? n_layers : MOST_PLACES;
  if (n > PLACES_BYTES / bytes) n = PLACES_BYTES / bytes;
  return n ? (uint32_t)n : 1;
}

static laprox_result size_buffers(laprox_plan *plan) {
  laprox_result result = size_work(plan);
  if (result) return result;
  plan->n_places = choose_places(plan);
  const uint32_t n_heads = plan->shape.n_heads, heads = plan->n_heads_all;
  plan->state.inverses = plan->state.n_table_words;
  plan->state.block_sums = plan->state.inverses + plan->shape.n_layers;
  plan->state.softmax = plan->state.block_sums + 2 * plan->n_blocks;
  plan->state.softmax_words = n_heads * plan->rules.window * 2;
  plan->state.n_words = plan->state.softmax + plan->n_places * plan->state.softmax_words;
  uint64_t problems = plan->selection.n_problems;
  if (plan->rules.floor) problems = heads;
  const uint32_t mask_words = BLOCK_ENTRIES / 32, n_blocks = plan->selection.n_blocks;
  const uint32_t n_runs = plan->selection.n_runs + plan->floor_selection.n_runs;
  const uint32_t n_shares = lpx_plan_exchanges(plan) ? N_SHARES : 0;
  const uint64_t other_words = problems * PROBLEM_WORDS + n_shares +
                               (uint64_t)n_blocks * (2 * mask_words + 2 + 2 + 1) + 1 +
                               (n_shares ? plan->model_layers : 0);
  const uint64_t most = plan->context->max_range / 4, room = most > other_words ? most - other_words : 0;
  const uint64_t fit = room / (N_DIGITS * HISTOGRAM_BINS);
  plan->problems_at_once = fit < 1 ? 1 : (uint32_t)(fit < problems ? fit : problems);
  const uint64_t histogram_words = plan->context->avoid_atomics
                                       ? (uint64_t)n_runs * PLAIN_COUNTS
                                       : (uint64_t)plan->problems_at_once * N_DIGITS * HISTOGRAM_BINS;
  const uint64_t select_words = other_words + histogram_words;
  const uint64_t result_words =
      (uint64_t)plan->shape.n_layers * 2 + (uint64_t)(heads + 1) * (HEAD_WORDS + 1) + plan->n_kept;
  result = check_range(plan, "the selection", select_words * 4);
  if (!result) result = check_range(plan, "the result block", result_words * 4);
  if (!result)
    result = check_range(plan, "a layer's query ring",
                         (uint64_t)plan->query_rows * n_heads * plan->shape.head_dim * 4);
  if (!result) result = check_range(plan, "a layer's value factor", factor_bytes(plan));
  if (result) return result;
  plan->select = (lpx_selection_words){.shares = (uint32_t)problems * PROBLEM_WORDS,
                                       .histograms = (uint32_t)problems * PROBLEM_WORDS + n_shares,
                                       .n_words = (uint32_t)select_words};
  plan->select.masks = plan->select.histograms + (uint32_t)histogram_words;
  plan->select.block_counts = plan->select.masks + 2 * mask_words * n_blocks;
  plan->select.run_counts = plan->select.block_counts + 2 * n_blocks;
  plan->select.block_rows = plan->select.run_counts + 2 * n_blocks; /* at most one run a block */
  plan->select.ties = plan->select.block_rows + n_blocks + 1;
  plan->result = (lpx_result_words){.heads = plan->shape.n_layers * 2, .n_words = (uint32_t)result_words};
  plan->result.cu_seqlens = plan->result.heads + (heads + 1) * HEAD_WORDS;
  plan->result.indices = plan->result.cu_seqlens + heads + 1;
  plan->work_offset = align(plan, (VkDeviceSize)plan->state.n_words * 4);
  plan->work_stride = align(plan, (VkDeviceSize)plan->work.n_words * 4);
  plan->select_offset = plan->work_offset + plan->n_places * plan->work_stride;
  plan->own_scores_offset = plan->select_offset + align(plan, (VkDeviceSize)plan->select.n_words * 4);
  plan->scratch_bytes = plan->own_scores_offset;
  if (plan->rules.floor || lpx_plan_marks_in_selection(plan) || lpx_plan_takes_risks(plan))
    plan->scratch_bytes += (VkDeviceSize)plan->n_blocks * BLOCK_ENTRIES * 4;
  if (lpx_plan_sums_tokens(plan)) plan->scratch_bytes += (VkDeviceSize)n_blocks * BLOCK_ENTRIES * 4;
  return LAPROX_OK;
}

uint32_t lpx_items_at_once(const laprox_plan *plan, uint64_t item_cost) {
  const uint64_t fit = plan->step_cost / item_cost;
  return fit < 1 ? 1 : fit > INT32_MAX ? INT32_MAX : (uint32_t)fit;
}

/* ---- creation ---- */

static laprox_result check_info(laprox_context *context, const laprox_plan_info *info,
                                const lpx_rules *rules) {
  const laprox_host *host = &context->host;
  laprox_result result = lpx_shape_check(host, &info->shape);
  if (result) return result;
  if (info->n_segments < 1 || info->n_segments > LAPROX_MAX_SEGMENTS)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "laprox_plan_info: n_segments is %u, not 1 or 2",
                    info->n_segments);
  if (info->cache_dtype)
    result = lpx_check_cache_dtype(host, "laprox_plan_info", info->cache_dtype, info->shape.head_dim);
  if (result) return result;
  if (info->query_rows && info->query_rows < rules->window)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "laprox_plan_info: %u query rows for a window of %u",
                    info->query_rows, rules->window);
  if (!info->model_dim && lpx_rules_factor(rules) == LPX_FACTOR_PROJECTION)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_plan_info: policy %s needs the model's dimension, but model_dim is 0",
                    laprox_policy_name(rules->kind));
  if (!isfinite(info->scale) || info->scale < 0.0f)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "laprox_plan_info: scale is %g",
                    (double)info->scale);
  for (uint32_t s = 0; s < info->n_segments && !result; s++) result = lpx_segment_check(host, info, s);
  return result;
}

static uint32_t default_n_tokens(const laprox_plan_info *info) {
  uint32_t row, n = 0;
  for (uint32_t s = 0; s < info->n_segments; s++) n += lpx_segment_rows(info, s, 0, 0, &row);
  return n;
}

static laprox_result create_scoring_pipelines(laprox_plan *plan) {
  laprox_result result = LAPROX_OK;
  if (plan->matrix_size) result = lpx_matrix_init(plan);
  if (!result && lpx_plan_uses_attention(plan)) result = lpx_attention_norm_init(plan);
  if (!result && lpx_plan_uses_values(plan)) result = lpx_value_init(plan);
  if (!result) result = lpx_entry_score_init(plan);
  if (!result) result = lpx_risk_init(plan);
  return result;
}

static laprox_result create_pipelines(laprox_plan *plan) {
  laprox_result result = plan->is_scored ? LAPROX_OK : create_scoring_pipelines(plan);
  if (!result) result = lpx_reduce_init(plan);
  if (!result) result = lpx_stage_init(plan);
  if (!result) result = lpx_select_init(plan);
  if (!result) result = lpx_keep_mask_init(plan);
  if (!result) result = lpx_compact_init(plan);
  return result;
}

static laprox_result fill_running(laprox_plan *plan, const laprox_plan_info *info) {
  const laprox_host *host = &plan->context->host;
  plan->model_layers = info->model_layers ? info->model_layers : info->shape.n_layers;
  plan->first_layer = plan->is_scored ? info->shape.n_layers : info->first_layer;
  plan->retain_scores = info->retain_scores;
  plan->keep_mask = info->keep_mask;
  plan->step_cost = plan->context->dispatch_cost;
  if (info->step_cost && info->step_cost < plan->step_cost) plan->step_cost = info->step_cost;
  if (plan->model_layers < info->shape.n_layers || plan->first_layer > info->shape.n_layers ||
      (plan->first_layer && !info->layer_scales))
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_plan_info: %u layers of %u, the first %u scored before%s", info->shape.n_layers,
                    plan->model_layers, plan->first_layer,
                    info->layer_scales ? "" : ", without layer_scales");
  plan->distributed = info->distributed;
  plan->layer_offset = info->layer_offset;
  if (info->distributed ? plan->layer_offset > plan->model_layers - info->shape.n_layers : plan->layer_offset)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_plan_info: %u layers from layer_offset %u on, of %u%s", info->shape.n_layers,
                    plan->layer_offset, plan->model_layers, info->distributed ? "" : ", not distributed");
  if (info->distributed && (plan->first_layer || plan->retain_scores))
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_plan_info: distributed, but with %s: a selection goes on over layers or devices",
                    plan->first_layer ? "first_layer" : "retain_scores");
  if (!plan->first_layer) return LAPROX_OK;
  plan->layer_scales = lpx_allocate(host, plan->first_layer, sizeof *plan->layer_scales);
  if (!plan->layer_scales) return lpx_fail_memory(host, "a plan");
  memcpy(plan->layer_scales, info->layer_scales, plan->first_layer * sizeof *plan->layer_scales);
  return LAPROX_OK;
}

static laprox_result build(laprox_plan *plan, const laprox_plan_info *info) {
  laprox_context *context = plan->context;
  laprox_result result = lpx_rules_resolve(&context->host, &info->policy, &plan->rules);
  if (plan->is_scored) plan->rules.window = plan->scored_window;
  if (!result) result = check_info(context, info, &plan->rules);
  if (result) return result;
  plan->shape = info->shape;
  plan->dtype = info->cache_dtype ? info->cache_dtype : LAPROX_DTYPE_F16;
  plan->group = info->shape.n_heads / info->shape.n_kv_heads;
  result = fill_running(plan, info);
  if (result) return result;
  plan->n_heads_all = info->shape.n_layers * info->shape.n_kv_heads;
  const laprox_segment *last = &info->segments[1];
  plan->n_segments = info->n_segments == 2 && !last->cu_seqlens && !last->n_entries ? 1 : info->n_segments;
  plan->query_rows = info->query_rows ? info->query_rows : plan->rules.window;
  plan->model_dim = info->model_dim;
  plan->n_queries = plan->rules.kind == LAPROX_POLICY_TOVA ? 1 : plan->rules.window;
  if (!plan->is_scored)
    plan->query_start = (info->query_start + plan->rules.window - plan->n_queries) % plan->query_rows;
  plan->scale = info->scale != 0.0f ? info->scale : 1.0f / sqrtf((float)info->shape.head_dim);
  const uint32_t n_tokens = info->n_tokens ? info->n_tokens : default_n_tokens(info);
  result = lpx_budget_resolve(&context->host, &plan->rules, &info->policy.budget, n_tokens, &plan->budget);
  if (result || plan->budget == UINT32_MAX) return result;
  lpx_rules_fit(&plan->rules, plan->budget);
  result = fill_tables(plan, info);
  lpx_rows_init(plan, info);
  if (!result) result = lpx_rows_check(plan);
  lpx_matrix_choose(plan);
  if (!result) result = size_buffers(plan);
  if (!result) result = create_pipelines(plan);
  return result;
}

static laprox_result create(laprox_context *context, const laprox_plan_info *info, const uint32_t *window,
                            laprox_plan **out) {
  *out = NULL;
  laprox_result result = lpx_vk_check_lost(context);
  if (result) return result;
  laprox_plan *plan = lpx_allocate(&context->host, 1, sizeof *plan);
  if (!plan) return lpx_fail_memory(&context->host, "a plan");
  plan->context = context;
  plan->is_scored = window != NULL;
  if (window) plan->scored_window = *window;
  result = build(plan, info);
  if (result) {
    laprox_plan_destroy(plan);
    return result;
  }
  *out = plan;
  return LAPROX_OK;
}

laprox_result laprox_plan_create(laprox_context *context, const laprox_plan_info *info, laprox_plan **out) {
  return create(context, info, NULL, out);
}

laprox_result lpx_plan_create_scored(laprox_context *context, const laprox_plan_info *info, uint32_t window,
                                     laprox_plan **out) {
  return create(context, info, &window, out);
}

void laprox_plan_destroy(laprox_plan *plan) {
  if (!plan) return;
  const laprox_host *host = &plan->context->host;
  lpx_release(host, plan->tables);
  lpx_release(host, plan->layers);
  lpx_release(host, plan->layer_scales);
  lpx_release(host, plan->selection.k);
  lpx_release(host, plan->floor_selection.k);
  lpx_release(host, plan);
}

void laprox_plan_requirements(const laprox_plan *plan, laprox_requirements *out) {
  *out = (laprox_requirements){.alignment = plan->context->range_alignment, .budget = plan->budget};
  if (plan->budget == UINT32_MAX) return;
  out->scratch_bytes = plan->scratch_bytes;
  out->scores_bytes = (VkDeviceSize)plan->n_blocks * BLOCK_ENTRIES * 4;
  out->result_bytes = (VkDeviceSize)plan->result.n_words * 4;
  out->query_bytes = (VkDeviceSize)plan->query_rows * plan->shape.n_heads * plan->shape.head_dim * 4;
  out->factor_bytes = factor_bytes(plan);
  if (plan->keep_mask)
    out->keep_mask_bytes = (VkDeviceSize)lpx_head_row(plan, plan->shape.n_layers, 0)[HEAD_MASK] * 4;
  out->n_kept = plan->n_kept;
}

VkDeviceSize laprox_plan_score_offset(const laprox_plan *plan, uint32_t layer, uint32_t head) {
  return (VkDeviceSize)lpx_head_row(plan, layer, head)[HEAD_FIRST_BLOCK] * BLOCK_ENTRIES * 4;
}

VkDeviceSize laprox_plan_keep_mask_offset(const laprox_plan *plan, uint32_t layer, uint32_t head) {
  if (plan->budget == UINT32_MAX) return 0;
  return (VkDeviceSize)lpx_head_row(plan, layer, head)[HEAD_MASK] * 4;
}

void laprox_plan_result_layout(const laprox_plan *plan, laprox_result_layout *out) {
  *out = (laprox_result_layout){.counters = (VkDeviceSize)plan->result.counters * 4,
                                .cu_seqlens = (VkDeviceSize)plan->result.cu_seqlens * 4,
                                .indices = (VkDeviceSize)plan->result.indices * 4};
}
