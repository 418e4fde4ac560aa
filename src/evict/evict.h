/* evict.h: a plan from the inside, and the kernel families that append to a binding's program. */
#ifndef LPX_EVICT_H
#define LPX_EVICT_H

#include "evict/layout.h"
#include "vk/vk.h"

/* Selection problems of one scope: the model's own, and single heads for the floor. */
typedef struct lpx_selection {
  uint32_t heads_per_problem, n_problems;
  uint32_t n_blocks;     /* of scores: the model's, or a head's with scope token */
  uint32_t *k;           /* places of each problem */
  uint32_t runs, n_runs; /* word in state, count */
} lpx_selection;

typedef struct lpx_matrix_workgroup {
  uint32_t parts; /* that a head's operand is divided into */
  uint32_t subgroups;
} lpx_matrix_workgroup;

typedef enum lpx_matrix_kernel {
  LPX_MATRIX_SOFTMAX, /* window_softmax_matrix */
  LPX_MATRIX_NORM,    /* attention_norm_matrix */
  LPX_MATRIX_VALUE,   /* value_norm_matrix */
  LPX_N_MATRIX_KERNELS
} lpx_matrix_kernel;

/* Words in the scratch buffer's ranges. `state` holds tables and small results, `work` what a layer's scoring
   needs, `selection` the counters of the selection. */
typedef struct lpx_state_words {
  uint32_t heads, block_heads, unit, n_table_words; /* tables are [0, n_table_words) */
  uint32_t inverses, block_sums;
  uint32_t softmax, softmax_words; /* as many places as of `work`, each of so many words */
  uint32_t n_words;
} lpx_state_words;

typedef struct lpx_work_words {
  uint32_t partials, anchors, probabilities, unpooled, attention, raw, values, prepared, n_words;
} lpx_work_words;

typedef struct lpx_selection_words {
  uint32_t problems, shares, histograms, masks, block_counts, run_counts, block_rows, ties, n_words;
} lpx_selection_words;

typedef struct lpx_result_words {
  uint32_t counters, heads, cu_seqlens, indices, n_words;
} lpx_result_words;

typedef struct lpx_layer_items {
  uint32_t first_block, n_blocks; /* first_block: in the model */
  uint32_t n_tiles, n_splits;
} lpx_layer_items;

/* From one entry, and from one head, to the next. A head's first row counts entries. */
typedef struct lpx_strides {
  uint64_t entry_bytes, head_bytes;
} lpx_strides;

struct laprox_plan {
  laprox_context *context;
  laprox_shape shape;
  lpx_rules rules;
  laprox_dtype dtype;
  uint32_t group;       /* query heads of a KV head */
  uint32_t n_heads_all; /* n_layers * n_kv_heads */
  uint32_t model_layers, first_layer;
  bool distributed;
  uint32_t layer_offset;
  uint32_t shares[N_SHARES]; /* of a distributed selection, this device's */
  float *layer_scales;       /* first_layer */
  bool retain_scores, keep_mask;
  bool is_scored;         /* all layers, in a pass before: see lpx_plan_create_scored */
  uint32_t scored_window; /* that is protected then */
  uint32_t n_segments;
  lpx_strides strides[LAPROX_MAX_SEGMENTS];
  uint32_t query_rows, query_start;
  uint32_t model_dim; /* of value factors that are projections */
  uint32_t n_queries; /* of the window, which score: its last ones */
  float scale;
  uint32_t budget;
  uint64_t n_kept;

  /* the head table, (n_heads_all + 1) rows, then block_heads, runs and, for scope token, a scale of 1, as they
     stand in state */
  uint32_t *tables;
  lpx_layer_items *layers;
  uint32_t n_blocks, run_blocks;
  uint32_t problems_at_once; /* of a selection, by the histograms there is room for */
  uint32_t strip_tiles;      /* tiles whose attention part is held at once */
  uint64_t step_cost;        /* that a dispatch of scoring should not exceed */
  uint32_t n_places;         /* that layers score in, in turn: as many may run side by side */
  lpx_selection selection, floor_selection;

  lpx_state_words state;
  lpx_work_words work;
  lpx_selection_words select;
  lpx_result_words result;
  VkDeviceSize work_offset, select_offset, own_scores_offset; /* bytes in the scratch buffer; state is at 0 */
  VkDeviceSize work_stride;                                   /* from one place to the next */
  VkDeviceSize scratch_bytes;

  /* Cooperative matrices score this cache: their size, 0 if they don't, and the workgroups. */
  uint32_t matrix_size;
  uint32_t matrix_heads; /* of a workgroup, at most */
  lpx_matrix_workgroup matrix_workgroups[LPX_N_MATRIX_KERNELS];
  bool value_on_matrix; /* the value norms too: not for joint scores and means of attention */

  lpx_pipeline matrix_prepare, window_softmax, window_merge, window_lse, attention_norm, attention_gram,
      value, synthetic, pool, layer_sum, token_sum;
  lpx_pipeline range, histogram, split, refine, count, tell_ties, take_ties, emit, promote, protect;
  lpx_pipeline compact, compact_wide, compact_in_place, compact_across, compact_scores, mask;
  lpx_pipeline stage, entry_score, key_anchor, anchor_merge, head_mean;
  lpx_pipeline pool_before, attention_risk, attention_pool, value_risk;
};

struct laprox_binding {
  const laprox_plan *plan;
  lpx_program *program;
  laprox_layer_buffers *layers;
  laprox_buffer state, select, scores, result;
  laprox_buffer work; /* of the layer that is appended, as is the word of its window's softmax in state */
  uint32_t softmax;
  laprox_buffer own_scores;        /* that the selection goes by where they aren't `scores` themselves */
  uint32_t *layer_steps;           /* first step of each layer, then of the selection */
  laprox_round rounds[MAX_ROUNDS]; /* without counts of steps */
  uint32_t n_rounds;
};

enum { COMPACTION_WRITES = 2, COMPACTION_BUFFERS = COMPACTION_WRITES + 2 * LAPROX_MAX_SEGMENTS };

struct laprox_compaction {
  const laprox_plan *plan;
  lpx_program *program;
  laprox_buffer
      buffers[COMPACTION_BUFFERS]; /* what it writes, then what it reads; in place both are the same */
};

/* A plan that selects alone. Scores of all layers stand in the scores buffer before the first step runs, -1 behind each
   head's, and for policies that choose in two stages what the first one goes by stands likewise in the scratch buffer's
   last range, from own_scores_offset on. info->layer_scales has all layers; first_layer is no matter. `window` entries at the
   end of each head are protected, whatever the policy says: 0 where those that scored are gone. */
laprox_result lpx_plan_create_scored(laprox_context *context, const laprox_plan_info *info, uint32_t window,
                                     laprox_plan **out);

/* laprox_value_factor with the heads' factors made by for_each. */
laprox_result lpx_value_factor(const laprox_host *host, const laprox_shape *shape, laprox_gqa gqa,
                               uint32_t model_dim, const float *output_weight, float *factor,
                               lpx_for_each_fn for_each);

/* Holds a range that an application has given against what is needed; `where` names the struct it stands in.
 */
laprox_result lpx_check_buffer(const laprox_plan *plan, const char *where, const char *what,
                               laprox_buffer buffer, VkDeviceSize bytes, VkDeviceSize alignment);
/* Bytes that a layer's rows in a segment span. */
VkDeviceSize lpx_segment_bytes(const laprox_plan *plan, uint32_t layer, uint32_t segment);

/* The head table's row of head `head` of layer `layer`. */
const uint32_t *lpx_head_row(const laprox_plan *plan, uint32_t layer, uint32_t head);

/* Entries of a segment that share a binding, and which of a layer's items (splits or tiles) they have a part in: all
   entries of some heads or, where one head alone is too long, some of its entries. */
typedef struct lpx_head_group {
  uint32_t segment, first_head, end_head;
  uint32_t begin_entry, end_entry; /* 0 and UINT32_MAX, or else in numbers of the head's entries */
  uint32_t first_item, end_item;
} lpx_head_group;

/* Goes through all segments and their head groups, items cut to [begin, end); `group` is zeroed before the
   first call. item_word: HEAD_FIRST_SPLIT or HEAD_FIRST_TILE. Every split is in one group of a segment; a tile may be in
   two, which see different entries of it. */
bool lpx_head_group_next(const laprox_plan *plan, uint32_t layer, uint32_t item_word, uint32_t begin,
                         uint32_t end, lpx_head_group *group);
/* Whether it holds a part of a head. */
bool lpx_head_group_is_cut(const lpx_head_group *group);
/* The binding for a group, of size 0 where no head has a row in it; its buffer may be missing then. `rows` tells the
   kernel where they stand in it, in elements of such units. */
laprox_buffer lpx_head_group_range(const laprox_plan *plan, uint32_t layer, const lpx_head_group *group,
                                   laprox_buffer whole, lpx_unit unit, lpx_row_layout *rows);

/* A segment as the application describes it; a head's rows and the first of them; the plan's strides; whether bindings
   can hold them. */
laprox_result lpx_segment_check(const laprox_host *host, const laprox_plan_info *info, uint32_t segment);
uint32_t lpx_segment_rows(const laprox_plan_info *info, uint32_t segment, uint32_t layer, uint32_t head,
                          uint32_t *first_row);
void lpx_rows_init(laprox_plan *plan, const laprox_plan_info *info);
laprox_result lpx_rows_check(const laprox_plan *plan);

/* How many items of this cost one dispatch may take. */
uint32_t lpx_items_at_once(const laprox_plan *plan, uint64_t item_cost);

/* Of one entry of K or V. */
VkDeviceSize lpx_plan_row_bytes(const laprox_plan *plan);
/* Of the ranges that K and V are in. */
VkDeviceSize lpx_plan_cache_alignment(const laprox_plan *plan);

/* Whether the policy looks at attention, and at values through the value factor. */
bool lpx_plan_uses_attention(const laprox_plan *plan);
bool lpx_plan_uses_values(const laprox_plan *plan);
/* Whole tokens are chosen, by sums of scores. */
bool lpx_plan_sums_tokens(const laprox_plan *plan);
/* The selection is made together with other devices. */
bool lpx_plan_exchanges(const laprox_plan *plan);

/* Scoring on cooperative matrices (matrix.c): decides whether; words per query head of prepared operands. */
void lpx_matrix_choose(laprox_plan *plan);
/* Workgroups that share the query heads of a KV head in the window's attention. */
uint32_t lpx_matrix_head_tiles(const laprox_plan *plan);
/* Shares that n_items are divided into: as many as keep every processor busy at once; tiles: workgroups that take the same
 * share. */
uint32_t lpx_matrix_n_shares(const laprox_plan *plan, lpx_matrix_kernel kernel, uint32_t n_items,
                             uint32_t tiles);
uint32_t lpx_matrix_prepared_words(const laprox_plan *plan);
laprox_result lpx_matrix_pipeline_get(const laprox_plan *plan, lpx_matrix_kernel kernel, lpx_pipeline *out);
laprox_result lpx_matrix_init(laprox_plan *plan);
/* Queries and factors as the kernels read them; the barrier is the caller's. */
void lpx_matrix_append_operands(laprox_binding *binding, uint32_t layer);

/* Families: pipelines of a plan; commands of a layer. */
laprox_result lpx_attention_norm_init(laprox_plan *plan);
/* Behind the operands on matrices, which may run still. */
void lpx_attention_norm_append_softmax(laprox_binding *binding, uint32_t layer);
/* Tiles [tile, end_tile) of the layer; the attention part in work begins with `tile`. */
void lpx_attention_norm_append(laprox_binding *binding, uint32_t layer, uint32_t tile, uint32_t end_tile);

/* What the values of tiles [tile, end_tile) come to, times the attention part where it is norms by the value factor, into
   the places of raw scores that begin at a word of work. */
laprox_result lpx_value_init(laprox_plan *plan);
void lpx_value_append(laprox_binding *binding, uint32_t layer, uint32_t raw, uint32_t tile,
                      uint32_t end_tile);

laprox_result lpx_reduce_init(laprox_plan *plan);
void lpx_reduce_append_synthetic(laprox_binding *binding, uint32_t layer);
void lpx_reduce_append(laprox_binding *binding, uint32_t layer);
/* Behind all layers, what their scores add up to. */
void lpx_reduce_append_sums(laprox_binding *binding);
/* Scores of tokens, summed over layers and heads, into own_scores. */
void lpx_reduce_append_tokens(laprox_binding *binding);
/* Raw scores of a layer, from a word in work, into its part of scores that begin at `to`; sums of blocks too. The barrier
   is the caller's. */
void lpx_reduce_append_pool(laprox_binding *binding, uint32_t layer, const lpx_pipeline *pipeline,
                            uint32_t raw, laprox_buffer to);

/* Scores beside attention: words that they need in work, and where the anchors stand among them. */
uint64_t lpx_entry_score_words(const laprox_plan *plan, uint64_t n_splits, uint32_t *anchors);
laprox_result lpx_entry_score_init(laprox_plan *plan);
/* Fails where heads of a layer can't be scored together. */
laprox_result lpx_entry_score_check_shared(const laprox_plan *plan);
/* Of a layer whose attention scores, if it has any, are complete. */
void lpx_entry_score_append(laprox_binding *binding, uint32_t layer);

/* Scores by attention and the projections of values; whether that takes the window's probabilities themselves. */
bool lpx_plan_takes_risks(const laprox_plan *plan);
bool lpx_plan_stores_window(const laprox_plan *plan);
laprox_result lpx_risk_init(laprox_plan *plan);
void lpx_risk_append_attention(laprox_binding *binding, uint32_t layer);
void lpx_risk_append(laprox_binding *binding, uint32_t layer);

/* Pools the attention part of tiles [tile, end_tile), which begins with `stored_tile` in work, before it meets values. */
void lpx_reduce_append_before(laprox_binding *binding, uint32_t layer, uint32_t stored_tile, uint32_t tile,
                              uint32_t end_tile);
/* Whether nothing is left to pool when raw scores are complete. */
bool lpx_plan_pools_before(const laprox_plan *plan);

/* Entries chosen when the selection begins: in a copy of the scores that it then goes by; or in the newly scored layers'
   scores themselves, so that they stay chosen when other layers come. */
bool lpx_plan_marks_in_selection(const laprox_plan *plan);
laprox_result lpx_stage_init(laprox_plan *plan);
void lpx_stage_append_shares(laprox_binding *binding);
void lpx_stage_append_layers(laprox_binding *binding);

laprox_result lpx_select_init(laprox_plan *plan);
void lpx_select_append(laprox_binding *binding);
/* A result block that was read back: fails where it is not what a selection can come to. Nothing that a device
   says may lead beyond an array. */
laprox_result lpx_select_check(const laprox_plan *plan, const uint32_t *result_words);

/* One bit an entry, where the application wants it. */
laprox_result lpx_keep_mask_init(laprox_plan *plan);
void lpx_keep_mask_append(laprox_binding *binding, laprox_buffer mask);

laprox_result lpx_compact_init(laprox_plan *plan);
void lpx_compact_append_scores(laprox_binding *binding);

#endif
