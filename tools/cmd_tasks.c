/* cmd_tasks.c: `laprox tasks`: prompts with known answers, of a length in the model's own tokens. */
#include "cli.h"
#include "tasks.h"
#include "texts.h"

#include "io/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* In the order of option_family_names. */
static const task_family families[N_FAMILY_NAMES] = {
    {build_single, true, true, HAYSTACK_SENTENCES, 128},
    {build_multikey, true, true, HAYSTACK_SENTENCES, 128},
    {build_multivalue, true, true, HAYSTACK_SENTENCES, 128},
    {build_multiquery, false, true, HAYSTACK_SENTENCES, 128},
    {build_variables, false, false, HAYSTACK_NOISE, 30},
    {build_common_words, false, false, HAYSTACK_NOISE, 120},
    {build_frequent_words, false, false, HAYSTACK_NOISE, 50},
    {build_passkey, true, true, HAYSTACK_NOISE, 128},
};

typedef struct generator {
  cli *c;
  char *own_text; /* of --haystack FILE */
  sentences prose;
  haystack_kind kind;
  bool has_kind;
  task_plan plan;
  task_case made;
  uint32_t n_done, n_all;
} generator;

static const char *family_name(const task_family *family) {
  return option_family_names[family - families];
}

/* As tables call it: with the hay where that is not the usual one. */
static void name_task(const generator *g, const task_family *family, char name[64]) {
  static const char *const hay[] = {"noise", "prose", "needles"};
  const bool is_own = g->own_text != NULL;
  const bool is_usual = !g->has_kind || !family->has_hay || (g->kind == family->hay && !is_own);
  snprintf(name, 64, is_usual ? "%s" : "%s_%s", family_name(family), is_own ? "text" : hay[g->kind]);
}

/* ---- lengths ---- */

static int count_tokens(generator *g, const char *text, size_t n_bytes, bool add_bos, uint32_t *out) {
  uint32_t *tokens = NULL;
  size_t n = 0;
  *out = 0;
  if (!n_bytes && !add_bos) return EXIT_DONE;
  laprox_result result = laprox_model_tokenize(g->c->model, text, n_bytes, add_bos, &tokens, &n);
  laprox_model_release(g->c->model, tokens);
  if (result) return cli_fail(g->c, result);
  *out = (uint32_t)n;
  return EXIT_DONE;
}

/* Builds the prompt with `size` units of hay and counts its tokens. */
static int try_size(generator *g, const task_family *family, uint32_t size, uint32_t *n_tokens) {
  task_case *made = &g->made;
  text_buffer kept = made->prompt;
  text_clear(&kept);
  *made = (task_case){.prompt = kept};
  g->plan.hay.size = size;
  family->build(&g->plan, made);
  if (made->prompt.failed)
    return fail_impossible("out of memory for a prompt of %u tokens", g->plan.n_tokens);
  return count_tokens(g, made->prompt.bytes, made->prompt.n, true, n_tokens);
}

/* The most hay with which a prompt has no more than its tokens: between two sizes the next one tried is where a
 * straight line would meet the limit. */
static int fit_size(generator *g, const task_family *family, uint32_t *n_tokens) {
  const uint32_t limit = g->plan.n_tokens;
  uint32_t low = 0, high = limit + 1, at_low = 0, at_high = 0;
  int status = try_size(g, family, 0, &at_low);
  if (!status && at_low > limit)
    return fail_impossible("%s needs at least %u tokens, and %u were asked for", family_name(family), at_low,
                           limit);
  for (uint32_t next, n = 0; high - low > 1 && !status; n = 0) {
    const double share = at_high ? (double)(limit - at_low) / (double)(at_high - at_low) : 1.0 / 16;
    next = low + (uint32_t)(share * (high - low));
    if (next <= low) next = low + 1;
    if (next >= high) next = high - 1;
    status = try_size(g, family, next, &n);
    if (n <= limit) {
      low = next;
      at_low = n;
    } else {
      high = next;
      at_high = n;
    }
  }
  *n_tokens = at_low;
  g->plan.hay.size = low;
  return status;
}

/* Sentences that fill what is left, the longest that fits first. */
static void choose_fillers(generator *g, uint32_t left) {
  haystack *hay = &g->plan.hay;
  while (hay->n_fillers < MAX_FILLERS) {
    uint32_t best = UINT32_MAX, best_tokens = 0;
    for (uint32_t i = 0; i < hay->from->n; i++) {
      const uint32_t n = hay->from->items[i].n_tokens;
      if (n > left || n <= best_tokens) continue;
      best = i;
      best_tokens = n;
    }
    if (best == UINT32_MAX) return;
    hay->fillers[hay->n_fillers++] = best;
    left -= best_tokens;
  }
}

static int fit(generator *g, const task_family *family, uint32_t *n_tokens) {
  haystack *hay = &g->plan.hay;
  hay->n_fillers = 0;
  int status = fit_size(g, family, n_tokens);
  if (status) return status;
  const uint32_t size = hay->size;
  if (hay->kind == HAYSTACK_SENTENCES) choose_fillers(g, g->plan.n_tokens - *n_tokens);
  for (;;) {
    status = try_size(g, family, size, n_tokens);
    if (status || *n_tokens <= g->plan.n_tokens || !hay->n_fillers) return status;
    hay->n_fillers--;
  }
}

/* ---- lines ---- */

static json_t *needles_json(generator *g, int *status) {
  const task_case *made = &g->made;
  json_t *list = json_array();
  for (uint32_t i = 0; i < made->n_needles && !*status; i++) {
    uint32_t first = 0, end = 0;
    *status = count_tokens(g, made->prompt.bytes, made->needles[i].first, true, &first);
    if (!*status) *status = count_tokens(g, made->prompt.bytes, made->needles[i].end, true, &end);
    json_array_append_new(list, json_pack("[I, I]", (json_int_t)first, (json_int_t)end));
  }
  return list;
}

static int write_line(generator *g, const char *line, lpx_output *to) {
  laprox_result result = lpx_output_write(to, line, strlen(line));
  if (!result) result = lpx_output_write(to, "\n", 1);
  return result ? cli_fail(g->c, result) : EXIT_DONE;
}

static int write_case(generator *g, const task_family *family, uint32_t n_tokens, lpx_output *to) {
  const task_case *made = &g->made;
  const char *question = made->prompt.bytes + made->question_at;
  int status = EXIT_DONE;
  char name[64];
  text_buffer joined = {0};
  name_task(g, family, name);
  json_t *answers = json_array(), *needles = needles_json(g, &status);
  for (uint32_t i = 0; i < made->n_answers; i++) {
    text_addf(&joined, "%s%s", i ? ", " : "", made->answers[i]);
    json_array_append_new(answers, json_string(made->answers[i]));
  }
  json_t *line = json_pack("{s:s, s:o, s:o, s:s, s:o, s:I, s:I, s:I, s:o}", "task", name, "prompt",
                           json_text(made->prompt.bytes, made->prompt.n), "question",
                           json_text(question, made->prompt.n - made->question_at), "answer",
                           joined.bytes ? joined.bytes : "", "answers", answers, "n_tokens",
                           (json_int_t)n_tokens, "length", (json_int_t)g->plan.n_tokens, "index",
                           (json_int_t)g->plan.index, "needle_pos", needles);
  /* The shipped model's wording is followed at once by the answer; RULER's is searched for it. */
  if (line && !g->plan.plain) {
    json_object_set_new(line, "metric", json_string("match_all"));
    json_object_set_new(line, "max_tokens", json_integer(family->max_tokens));
  }
  if (!status && (!line || joined.failed)) status = fail_impossible("out of memory for a line");
  char *written = status ? NULL : json_dumps(line, 0);
  if (!status && !written) status = fail_impossible("out of memory for a line");
  if (!status) status = write_line(g, written, to);
  free(written);
  json_decref(line);
  text_finish(&joined);
  return status;
}

static int make_case(generator *g, const task_family *family, uint32_t length, uint32_t index,
                     lpx_output *to) {
  const options *o = &g->c->opt;
  const uint64_t stream = (uint64_t)(family - families) << 56 | (uint64_t)index << 32 | (uint64_t)length;
  uint32_t n_tokens = 0;
  g->plan.seed = o->sampler.state;
  g->plan.r = rng_make(o->sampler.state, stream);
  rng r = rng_make(o->sampler.state, ~stream);
  g->plan.index = index;
  g->plan.n_tokens = length;
  g->plan.plain = family->has_plain && !o->ruler_wording;
  g->plan.hay = (haystack){.kind = g->has_kind && family->has_hay ? g->kind : family->hay, .from = &g->prose};
  g->plan.hay.start = rng_below(&r, g->prose.n);
  int status = fit(g, family, &n_tokens);
  if (!status) status = write_case(g, family, n_tokens, to);
  g->n_done++;
  if (!status && !progress_step(&g->c->bar, "tasks", (double)g->n_done / g->n_all))
    status = fail_impossible("interrupted");
  return status;
}

static int make_all(generator *g, lpx_output *to) {
  const options *o = &g->c->opt;
  int status = EXIT_DONE;
  g->n_all = o->n_lengths * o->n_families * o->n_prompts;
  for (uint32_t l = 0; l < o->n_lengths; l++)
    for (uint32_t f = 0; f < o->n_families; f++)
      for (uint32_t i = 0; i < o->n_prompts && !status; i++)
        status = make_case(g, &families[o->families[f]], o->lengths[l], i, to);
  return status;
}

/* ---- haystacks ---- */

static int read_haystack(generator *g) {
  const char *given = g->c->opt.haystack;
  const char *words[] = {"noise", "prose", "needles"};
  const haystack_kind kinds[] = {HAYSTACK_NOISE, HAYSTACK_SENTENCES, HAYSTACK_NEEDLES};
  const char *prose = text_prose;
  int status = EXIT_DONE;
  for (int i = 0; i < 3 && given && !g->has_kind; i++) {
    if (strcmp(given, words[i]) != 0) continue;
    g->kind = kinds[i];
    g->has_kind = true;
  }
  if (given && !g->has_kind) {
    status = cli_read_text(given, &g->own_text);
    prose = g->own_text;
    g->kind = HAYSTACK_SENTENCES;
    g->has_kind = true;
  }
  if (!status && !sentences_init(&g->prose, prose, strlen(prose)))
    status = fail_impossible("out of memory for a haystack");
  if (!status && !g->prose.n) status = fail_impossible("%s: no sentence in it", given);
  for (uint32_t i = 0; i < g->prose.n && !status; i++) {
    struct sentence *s = &g->prose.items[i];
    text_buffer spaced = {0};
    text_add(&spaced, " ", 1);
    text_add(&spaced, s->bytes, s->n);
    status = spaced.failed ? fail_impossible("out of memory")
                           : count_tokens(g, spaced.bytes, spaced.n, false, &s->n_tokens);
    text_finish(&spaced);
  }
  return status;
}

static int open_output(cli *c, lpx_output *to) {
  const laprox_result result = lpx_output_open(&c->host, c->opt.output, to);
  return result ? cli_fail(c, result) : EXIT_DONE;
}

int cmd_tasks(cli *c) {
  generator g = {.c = c};
  lpx_output to = {0};
  int status = cli_open_device(c);
  if (!status) status = cli_load_model(c, true);
  if (!status) status = read_haystack(&g);
  if (!status) status = open_output(c, &to);
  if (!status) status = make_all(&g, &to);
  laprox_result result = status ? LAPROX_OK : lpx_output_commit(&to);
  if (result) status = cli_fail(c, result);
  lpx_output_close(&to);
  progress_clear(&c->bar);
  if (!status && c->opt.json)
    status = print_json(json_pack("{s:s, s:I}", "output", c->opt.output, "prompts", (json_int_t)g.n_all));
  text_finish(&g.made.prompt);
  sentences_finish(&g.prose);
  free(g.own_text);
  return status;
}
