/* select.c: exactly K of all scores by radix select, ties by index, and the ordered lists of what is kept.
 * Reduce, then scan: no workgroup ever waits for another one, which Vulkan gives no promise for. */
#include "evict/evict.h"

typedef struct select_push {
  uint32_t n_groups, first_block, first_item, heads, block_heads, runs, inverses, heads_per_layer,
      heads_per_problem;
  uint32_t problems, histograms, block_counts, block_rows, n_heads, cu_seqlens, indices, shift, bits, window;
} select_push;
_Static_assert(sizeof(select_push) == 76, "push constants of shaders/evict/select.glsl");

/* The 31 bits of a key, from the top; 2,048 bins at most. */
static const struct { uint32_t shift, bits; } digits[] = {{20, 11}, {10, 10}, {0, 10}};

laprox_result lpx_select_init(laprox_plan *plan) {
  laprox_context *context = plan->context;
  const uint32_t list = 0, promote = 1;
  laprox_result result = lpx_pipeline_get(context, "select_histogram", 4, NULL, 0, &plan->histogram);
  if (!result) result = lpx_pipeline_get(context, "select_digit", 4, NULL, 0, &plan->digit);
  if (!result) result = lpx_pipeline_get(context, "select_count", 4, NULL, 0, &plan->count);
  if (!result) result = lpx_pipeline_get(context, "select_ties", 4, NULL, 0, &plan->ties);
  if (!result) result = lpx_pipeline_get(context, "select_rows", 4, NULL, 0, &plan->rows);
  if (!result) result = lpx_pipeline_get(context, "select_emit", 4, &list, 1, &plan->emit);
  if (!result) result = lpx_pipeline_get(context, "select_emit", 4, &promote, 1, &plan->promote);
  if (!result) result = lpx_pipeline_get(context, "select_protect", 4, NULL, 0, &plan->protect);
  return result;
}

/* Dispatches over blocks (or, with `selection`, over its runs), as many as a binding of the scores can hold
 * at once. */
static void append_blocks(laprox_binding *binding, const lpx_pipeline *pipeline, select_push *push,
                          laprox_buffer scores, const lpx_selection *selection) {
  const laprox_plan *plan = binding->plan;
  const VkDeviceSize block_bytes = BLOCK_ENTRIES * 4;
  const uint32_t at_once = (uint32_t)(plan->context->max_range / block_bytes);
  const uint32_t *runs = selection ? plan->tables + selection->runs : NULL;
  for (uint32_t block = 0, run = 0, n_blocks; block < plan->n_blocks; block += n_blocks) {
    n_blocks = plan->n_blocks - block < at_once ? plan->n_blocks - block : at_once;
    const uint32_t first_run = run;
    while (runs && run < selection->n_runs && runs[2 * run] < block + n_blocks) run++;
    push->first_block = block;
    push->first_item = runs ? first_run : block;
    const laprox_buffer ranges[] = {lpx_buffer_part(scores, block * block_bytes, n_blocks * block_bytes),
                                    binding->state, binding->select, binding->result};
    lpx_program_dispatch(binding->program, pipeline, ranges, push, sizeof *push,
                         runs ? run - first_run : n_blocks, n_blocks * block_bytes);
  }
  lpx_program_barrier(binding->program);
}

/* Dispatches that do not read the scores; any buffer stands in for them. */
static void append_small(laprox_binding *binding, const lpx_pipeline *pipeline, select_push *push,
                         uint32_t n_groups) {
  const laprox_buffer ranges[] = {binding->state, binding->state, binding->select, binding->result};
  push->first_item = 0;
  lpx_program_dispatch(binding->program, pipeline, ranges, push, sizeof *push, n_groups, n_groups);
  lpx_program_barrier(binding->program);
}

/* Thresholds and ties of all problems of a selection. */
static void append_threshold(laprox_binding *binding, select_push *push, laprox_buffer scores,
                             const lpx_selection *selection) {
  const laprox_plan *plan = binding->plan;
  push->heads_per_problem = selection->heads_per_problem;
  push->runs = selection->runs;
  lpx_program_fill(binding->program,
                   lpx_buffer_part(binding->select, (VkDeviceSize)plan->select.histograms * 4,
                                   (VkDeviceSize)selection->n_problems * HISTOGRAM_BINS * 4),
                   0);
  for (uint32_t problem = 0; problem < selection->n_problems; problem++) {
    const uint32_t words[PROBLEM_WORDS] = {0, selection->k[problem], selection->k[problem], 0};
    lpx_program_update(binding->program,
                       lpx_buffer_part(binding->select, (VkDeviceSize)problem * sizeof words, sizeof words),
                       words, sizeof words);
  }
  lpx_program_barrier(binding->program);
  for (uint32_t pass = 0; pass < 3; pass++) {
    push->shift = digits[pass].shift;
    push->bits = digits[pass].bits;
    append_blocks(binding, &plan->histogram, push, scores, selection);
    append_small(binding, &plan->digit, push, selection->n_problems);
  }
  append_blocks(binding, &plan->count, push, scores, NULL);
  append_small(binding, &plan->ties, push, selection->n_problems);
  lpx_program_mark_step(binding->program);
}

void lpx_select_append(laprox_binding *binding) {
  const laprox_plan *plan = binding->plan;
  select_push push = {.heads = plan->state.heads,
                      .block_heads = plan->state.block_heads,
                      .inverses = plan->state.inverses,
                      .heads_per_layer = plan->shape.n_kv_heads,
                      .problems = plan->select.problems,
                      .histograms = plan->select.histograms,
                      .block_counts = plan->select.block_counts,
                      .block_rows = plan->select.block_rows,
                      .n_heads = plan->n_heads_all,
                      .cu_seqlens = plan->result.cu_seqlens,
                      .indices = plan->result.indices,
                      .window = plan->rules.window};
  laprox_buffer scores = binding->scores;
  const bool marks = lpx_plan_marks_in_selection(plan);
  if ((plan->rules.floor || marks) && plan->n_blocks) {
    lpx_program_copy(binding->program, scores, binding->floor_scores);
    lpx_program_barrier(binding->program);
    scores = binding->floor_scores;
  }
  if (marks) lpx_stage_append_shares(binding);
  if (plan->rules.floor && plan->n_blocks) {
    /* Each head's own best first; then they are made to win among all, in a copy of the scores. */
    append_threshold(binding, &push, scores, &plan->floor_selection);
    append_blocks(binding, &plan->promote, &push, scores, NULL);
  }
  append_threshold(binding, &push, scores, &plan->selection);
  append_small(binding, &plan->rows, &push, 1);
  append_blocks(binding, &plan->emit, &push, scores, NULL);
  append_small(binding, &plan->protect, &push, plan->n_heads_all);
  lpx_program_mark_step(binding->program);
}

laprox_result lpx_select_check(const laprox_plan *plan, const uint32_t *result_words) {
  const uint32_t *cu_seqlens = result_words + plan->result.cu_seqlens;
  const uint32_t *indices = result_words + plan->result.indices;
  bool good = cu_seqlens[0] == 0 && cu_seqlens[plan->n_heads_all] == plan->n_kept;
  for (uint32_t head = 0; head < plan->n_heads_all && good; head++)
    good = cu_seqlens[head] < cu_seqlens[head + 1] && cu_seqlens[head + 1] <= plan->n_kept;
  for (uint32_t head = 0; head < plan->n_heads_all && good; head++) {
    uint32_t least = 0, n_entries = plan->tables[(size_t)head * HEAD_WORDS + HEAD_N_ENTRIES];
    for (uint32_t row = cu_seqlens[head]; row < cu_seqlens[head + 1] && good; row++) {
      good = indices[row] >= least && indices[row] < n_entries;
      least = indices[row] + 1;
    }
  }
  if (good) return LAPROX_OK;
  return lpx_fail(&plan->context->host, LAPROX_ERROR_VULKAN,
                  "%s chose impossible entries: its driver computes wrongly",
                  plan->context->properties.deviceName);
}
