/* select.c: exactly K of all scores by radix select, ties by index, and the ordered lists of what is kept.
 * Reduce, then scan: no workgroup ever waits for another one, which Vulkan gives no promise for. */
#include "evict/evict.h"

#include <string.h>

typedef struct select_push {
  uint32_t n_groups, first_block, first_run, heads, block_heads, runs, run_blocks, inverses, heads_per_layer;
  uint32_t problems, histograms, masks_above, masks_equal, block_counts, run_counts, block_rows, n_heads,
      cu_seqlens, indices, window, pass, first_problem, shares, ties, layer_offset;
} select_push;
_Static_assert(sizeof(select_push) == 100, "push constants of shaders/evict/select.glsl");

enum {
  GROUP_BLOCKS = 4, /* that a workgroup of select_emit.comp takes */
  N_PLAIN_PASSES = 8
};

laprox_result lpx_select_init(laprox_plan *plan) {
  laprox_context *context = plan->context;
  const uint32_t first = 0, second = 1, list = 0, promote = 1, known = context->avoid_atomics;
  laprox_result result = LAPROX_OK;
  if (context->avoid_atomics) {
    result = lpx_pipeline_get(context, "select_plain", 4, &first, 1, &plan->histogram);
    if (!result) result = lpx_pipeline_get(context, "select_plain", 4, &second, 1, &plan->split);
  } else {
    result = lpx_pipeline_get(context, "select_range", 4, NULL, 0, &plan->range);
    const bool small = lpx_tile_size_of(context) == LPX_TILES_SMALL;
    const char *histogram = small ? "select_histogram_small" : "select_histogram";
    if (!result) result = lpx_pipeline_get(context, histogram, 4, &first, 1, &plan->histogram);
    if (!result) result = lpx_pipeline_get(context, histogram, 4, &second, 1, &plan->split);
    if (!result) result = lpx_pipeline_get(context, "select_refine", 4, NULL, 0, &plan->refine);
  }
  const uint32_t tell = 0, take = 1;
  if (!result && lpx_plan_exchanges(plan)) {
    if (context->avoid_atomics)
      return lpx_fail(&context->host, LAPROX_ERROR_UNSUPPORTED,
                      "a distributed selection takes atomics, which compute wrongly on %s",
                      context->properties.deviceName);
    result = lpx_pipeline_get(context, "select_ties", 4, &tell, 1, &plan->tell_ties);
    if (!result) result = lpx_pipeline_get(context, "select_ties", 4, &take, 1, &plan->take_ties);
  }
  if (!result) result = lpx_pipeline_get(context, "select_count", 4, &known, 1, &plan->count);
  if (!result) result = lpx_pipeline_get(context, "select_emit", 4, &list, 1, &plan->emit);
  if (!result && plan->rules.floor)
    result = lpx_pipeline_get(context, "select_emit", 4, &promote, 1, &plan->promote);
  const uint32_t shared = lpx_plan_sums_tokens(plan);
  if (!result) result = lpx_pipeline_get(context, "select_protect", 4, &shared, 1, &plan->protect);
  return result;
}

/* Dispatches over the runs of problems [push->first_problem, end_problem), as many as a binding of the scores
   can hold at once. */
static void append_runs(laprox_binding *binding, const lpx_pipeline *pipeline, select_push *push,
                        laprox_buffer scores, const lpx_selection *selection, uint32_t end_problem,
                        uint32_t groups_per_run) {
  const laprox_plan *plan = binding->plan;
  const VkDeviceSize block_bytes = BLOCK_ENTRIES * 4;
  const uint32_t at_once = (uint32_t)(plan->context->max_range / block_bytes);
  const uint32_t *runs = plan->tables + selection->runs;
  for (uint32_t block = 0, run = 0, n_blocks; block < selection->n_blocks; block += n_blocks) {
    n_blocks = selection->n_blocks - block < at_once ? selection->n_blocks - block : at_once;
    while (run < selection->n_runs && runs[RUN_WORDS * run + RUN_PROBLEM] < push->first_problem) run++;
    const uint32_t first_run = run;
    while (run < selection->n_runs && runs[RUN_WORDS * run] < block + n_blocks &&
           runs[RUN_WORDS * run + RUN_PROBLEM] < end_problem)
      run++;
    push->first_block = block;
    push->first_run = first_run;
    const laprox_buffer ranges[] = {lpx_buffer_part(scores, block * block_bytes, n_blocks * block_bytes),
                                    binding->state, binding->select, binding->result};
    lpx_program_dispatch(binding->program, pipeline, ranges, push, sizeof *push,
                         (uint64_t)(run - first_run) * groups_per_run, n_blocks * block_bytes);
  }
  lpx_program_barrier(binding->program);
}

/* The model's selection, on several devices. */
static bool is_exchanged(const laprox_plan *plan, const lpx_selection *selection) {
  return lpx_plan_exchanges(plan) && selection == &plan->selection;
}

/* What a problem begins with. Without atomics its keys are their own codes; on several devices too, which saves a round
   for the range. */
static void fill_problem(const laprox_plan *plan, const lpx_selection *selection, uint32_t problem,
                         uint32_t base, uint32_t *run, uint32_t words[PROBLEM_WORDS]) {
  const uint32_t *runs = plan->tables + selection->runs, first = *run;
  while (*run < selection->n_runs && runs[RUN_WORDS * *run + RUN_PROBLEM] == problem) ++*run;
  memset(words, 0, PROBLEM_WORDS * sizeof *words);
  words[PROBLEM_K] = selection->k[problem];
  words[PROBLEM_BASE] = base;
  const bool whole_range = plan->context->avoid_atomics || is_exchanged(plan, selection);
  words[PROBLEM_LOW] = whole_range ? 1 : UINT32_MAX;
  words[PROBLEM_HIGH] = whole_range ? 0x7f7fffff : 0;
  words[PROBLEM_RUNS] = *run - first;
}

static void append_problems(laprox_binding *binding, const lpx_selection *selection) {
  enum { BATCH = 64 };
  const laprox_plan *plan = binding->plan;
  uint32_t words[BATCH][PROBLEM_WORDS], base = 0, run = 0;
  for (uint32_t first = 0; first < selection->n_problems; first += BATCH) {
    const uint32_t n = selection->n_problems - first < BATCH ? selection->n_problems - first : BATCH;
    for (uint32_t i = 0; i < n; i++) {
      fill_problem(plan, selection, first + i, base, &run, words[i]);
      base += is_exchanged(plan, selection) ? 0 : selection->k[first + i]; /* else not known before the end */
    }
    lpx_program_update(binding->program,
                       lpx_buffer_part(binding->select, (VkDeviceSize)first * sizeof words[0],
                                       (VkDeviceSize)n * sizeof words[0]),
                       words, n * sizeof words[0]);
  }
  lpx_program_update(
      binding->program,
      lpx_buffer_part(binding->select, ((VkDeviceSize)plan->select.block_rows + selection->n_blocks) * 4, 4),
      &base, sizeof base);
}

static void clear(laprox_binding *binding, uint32_t word, uint32_t n_words) {
  lpx_program_fill(binding->program,
                   lpx_buffer_part(binding->select, (VkDeviceSize)word * 4, (VkDeviceSize)n_words * 4), 0);
}

/* Counters that devices add up end a round. */
static void end_round(laprox_binding *binding, uint32_t word, uint32_t n_words) {
  laprox_round *round = &binding->rounds[binding->n_rounds++];
  round->offset = binding->plan->select_offset + (VkDeviceSize)word * 4;
  round->bytes = (VkDeviceSize)n_words * 4;
  lpx_program_mark_step(binding->program);
  round[1].first = lpx_program_n_steps(binding->program);
}

static void append_ties(laprox_binding *binding, const lpx_pipeline *pipeline, select_push *push) {
  const laprox_buffer ranges[] = {binding->state, binding->state, binding->select, binding->result};
  lpx_program_dispatch(binding->program, pipeline, ranges, push, sizeof *push, 1,
                       binding->plan->selection.n_runs);
  lpx_program_barrier(binding->program);
}

/* The model's threshold over several devices. Digits are those of all devices' scores; of the entries at the threshold
   this device takes what devices with earlier layers leave over. */
static void append_exchange(laprox_binding *binding, select_push *push, laprox_buffer scores) {
  const laprox_plan *plan = binding->plan;
  const lpx_selection *selection = &plan->selection;
  push->runs = selection->runs;
  push->shares = plan->select.shares;
  push->ties = plan->select.ties;
  push->layer_offset = plan->layer_offset;
  append_problems(binding, selection);
  lpx_program_update(
      binding->program,
      lpx_buffer_part(binding->select, (VkDeviceSize)plan->select.shares * 4, sizeof plan->shares),
      plan->shares, sizeof plan->shares);
  clear(binding, plan->select.histograms, N_DIGITS * HISTOGRAM_BINS);
  clear(binding, plan->select.ties, plan->model_layers);
  lpx_program_barrier(binding->program);
  append_runs(binding, &plan->histogram, push, scores, selection, 1, 1);
  end_round(binding, plan->select.shares, N_SHARES + HISTOGRAM_BINS);
  append_runs(binding, &plan->split, push, scores, selection, 1, 1);
  end_round(binding, plan->select.histograms + HISTOGRAM_BINS, HISTOGRAM_BINS);
  append_runs(binding, &plan->refine, push, scores, selection, 1, 1);
  end_round(binding, plan->select.histograms + 2 * HISTOGRAM_BINS, HISTOGRAM_BINS);
  append_runs(binding, &plan->count, push, scores, selection, 1, 1);
  append_ties(binding, &plan->tell_ties, push);
  end_round(binding, plan->select.ties, plan->model_layers);
  append_ties(binding, &plan->take_ties, push);
}

/* Thresholds and counts of problems [push->first_problem, end). */
static void append_passes(laprox_binding *binding, select_push *push, laprox_buffer scores,
                          const lpx_selection *selection, uint32_t end) {
  const laprox_plan *plan = binding->plan;
  if (plan->context->avoid_atomics) {
    for (push->pass = 0; push->pass < N_PLAIN_PASSES; push->pass++)
      append_runs(binding, &plan->histogram, push, scores, selection, end, 1);
    append_runs(binding, &plan->split, push, scores, selection, end, 1);
  } else {
    append_runs(binding, &plan->range, push, scores, selection, end, 1);
    append_runs(binding, &plan->histogram, push, scores, selection, end, 1);
    append_runs(binding, &plan->split, push, scores, selection, end, 1);
    append_runs(binding, &plan->refine, push, scores, selection, end, 1);
  }
  append_runs(binding, &plan->count, push, scores, selection, end, 1);
}

/* The same of all problems of a selection, as many at a time as there are histograms for. */
static void append_threshold(laprox_binding *binding, select_push *push, laprox_buffer scores,
                             const lpx_selection *selection) {
  const laprox_plan *plan = binding->plan;
  push->runs = selection->runs;
  append_problems(binding, selection);
  for (uint32_t first = 0, n; first < selection->n_problems; first += n) {
    n = selection->n_problems - first < plan->problems_at_once ? selection->n_problems - first
                                                               : plan->problems_at_once;
    if (!plan->context->avoid_atomics) clear(binding, plan->select.histograms, n * N_DIGITS * HISTOGRAM_BINS);
    lpx_program_barrier(binding->program);
    push->first_problem = first;
    append_passes(binding, push, scores, selection, first + n);
  }
  push->first_problem = 0;
  lpx_program_mark_step(binding->program);
}

void lpx_select_append(laprox_binding *binding) {
  const laprox_plan *plan = binding->plan;
  select_push push = {.heads = plan->state.heads,
                      .block_heads = plan->state.block_heads,
                      .run_blocks = plan->run_blocks,
                      .inverses = plan->state.inverses,
                      .heads_per_layer = plan->shape.n_kv_heads,
                      .problems = plan->select.problems,
                      .histograms = plan->select.histograms,
                      .masks_above = plan->select.masks,
                      .masks_equal = plan->select.masks + plan->selection.n_blocks * (BLOCK_ENTRIES / 32),
                      .block_counts = plan->select.block_counts,
                      .run_counts = plan->select.run_counts,
                      .block_rows = plan->select.block_rows,
                      .n_heads = plan->n_heads_all,
                      .cu_seqlens = plan->result.cu_seqlens,
                      .indices = plan->result.indices,
                      .window = plan->rules.window};
  const uint32_t groups_per_run = plan->run_blocks / GROUP_BLOCKS;
  binding->rounds[0].first = lpx_program_n_steps(binding->program);
  laprox_buffer scores = binding->scores;
  const bool marks = lpx_plan_marks_in_selection(plan);
  lpx_stage_append_layers(binding);
  if ((plan->rules.floor || marks) && plan->n_blocks) {
    lpx_program_copy(binding->program, scores, binding->own_scores);
    lpx_program_barrier(binding->program);
    scores = binding->own_scores;
  }
  if (marks) lpx_stage_append_shares(binding);
  if (lpx_plan_sums_tokens(plan)) {
    lpx_reduce_append_tokens(binding);
    scores = binding->own_scores;
    push.inverses = plan->state.unit; /* block_head / heads_per_layer is 0: all blocks are of head 0 */
  }
  if (plan->rules.floor && plan->n_blocks) {
    /* Each head's own best first; then they are made to win among all, in a copy of the scores. */
    append_threshold(binding, &push, scores, &plan->floor_selection);
    append_runs(binding, &plan->promote, &push, scores, &plan->floor_selection, UINT32_MAX, groups_per_run);
  }
  if (lpx_plan_exchanges(plan))
    append_exchange(binding, &push, scores);
  else
    append_threshold(binding, &push, scores, &plan->selection);
  append_runs(binding, &plan->emit, &push, scores, &plan->selection, UINT32_MAX, groups_per_run);
  /* It does not read the scores; any buffer stands in for them. */
  const laprox_buffer ranges[] = {binding->state, binding->state, binding->select, binding->result};
  lpx_program_dispatch(binding->program, &plan->protect, ranges, &push, sizeof push, plan->n_heads_all,
                       plan->n_heads_all);
  lpx_program_barrier(binding->program);
  lpx_program_mark_step(binding->program);
  binding->n_rounds++;
}

laprox_result lpx_select_check(const laprox_plan *plan, const uint32_t *result_words) {
  const uint32_t *cu_seqlens = result_words + plan->result.cu_seqlens;
  const uint32_t *indices = result_words + plan->result.indices;
  const uint32_t n_kept = cu_seqlens[plan->n_heads_all];
  bool good =
      cu_seqlens[0] == 0 && (lpx_plan_exchanges(plan) ? n_kept <= plan->n_kept : n_kept == plan->n_kept);
  for (uint32_t head = 0; head < plan->n_heads_all && good; head++)
    good = cu_seqlens[head] <= cu_seqlens[head + 1] && cu_seqlens[head + 1] <= plan->n_kept &&
           cu_seqlens[head + 1] - cu_seqlens[head] >= plan->rules.window;
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

laprox_result laprox_removed_ranges(const laprox_plan *plan, const void *result, laprox_range *ranges,
                                    uint32_t *n_ranges) {
  const laprox_host *host = &plan->context->host;
  const uint32_t room = ranges ? *n_ranges : UINT32_MAX;
  *n_ranges = 0;
  if (plan->budget == UINT32_MAX || !lpx_plan_sums_tokens(plan))
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "laprox_removed_ranges: the plan %s",
                    plan->budget == UINT32_MAX ? "keeps everything" : "is not of scope token");
  const laprox_result checked = lpx_select_check(plan, result);
  if (checked) return checked;
  const uint32_t *words = result, *indices = words + plan->result.indices;
  const uint32_t n_kept = words[plan->result.cu_seqlens + 1];
  uint32_t next = 0, n = 0;
  for (uint32_t row = 0; row < n_kept; next = indices[row++] + 1) {
    if (indices[row] == next) continue;
    if (ranges && n < room) ranges[n] = (laprox_range){.first = next, .end = indices[row]};
    n++;
  }
  if (n > room)
    return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "laprox_removed_ranges: room for %u ranges, there are %u", room, n);
  *n_ranges = n;
  return LAPROX_OK;
}
