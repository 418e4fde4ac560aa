/* options.c: the table of options, and the parser that fills `options`. */
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum option_id {
  OPTION_BUDGET = 256,
  OPTION_POLICY,
  OPTION_SCOPE,
  OPTION_WINDOW,
  OPTION_POOL,
  OPTION_GQA,
  OPTION_SINKS,
  OPTION_FLOOR,
  OPTION_NO_NORMALIZE,
  OPTION_POOL_BEFORE,
  OPTION_PROMPT,
  OPTION_FILE,
  OPTION_IDS,
  OPTION_N,
  OPTION_TEMP,
  OPTION_TOP_K,
  OPTION_TOP_P,
  OPTION_SEED,
  OPTION_STOP,
  OPTION_KV,
  OPTION_DUMP_KEPT,
  OPTION_DUMP_LOGITS,
  OPTION_PREFILL,
  OPTION_CHUNK_EVICT,
  OPTION_TAIL,
  OPTION_EVICT_BEFORE_QUESTION,
  OPTION_PROBE,
  OPTION_PROBE_COMBINE,
  OPTION_INTERACTIVE,
  OPTION_SAVE_CACHE,
  OPTION_LOAD_CACHE,
  OPTION_DRY_RUN,
  OPTION_MEMORY,
  OPTION_OUTPUT,
  OPTION_SCORES,
  OPTION_GEOMETRY,
  OPTION_MODEL,
  OPTION_COMPARE,
  OPTION_TASKS,
  OPTION_BUDGETS,
  OPTION_POLICIES,
  OPTION_LIMIT,
  OPTION_QUESTION,
  OPTION_TEMPLATE,
  OPTION_TIMING,
  OPTION_FIDELITY,
  OPTION_TEXT,
  OPTION_TASK,
  OPTION_LENGTHS,
  OPTION_COUNT,
  OPTION_HAYSTACK,
  OPTION_WORDING,
  OPTION_DEVICE,
  OPTION_VARIANTS,
  OPTION_JSON,
  OPTION_VALIDATE,
  OPTION_HELP
} option_id;

#define POLICY(kind) (1u << LAPROX_POLICY_##kind)
#define ALL_POLICIES UINT32_MAX
#define NORMALIZED   (POLICY(LAPROX) | POLICY(SNAPKV))
#define POOLED                                                                                               \
  (NORMALIZED | POLICY(ADAKV) | POLICY(PYRAMIDKV) | POLICY(VATP) | POLICY(CRITICALKV) |                      \
   POLICY(DEFENSIVEKV) | POLICY(LAYER_DEFENSIVEKV))
#define COMPETING (NORMALIZED | POLICY(RANDOM) | POLICY(VATP) | POLICY(KEYDIFF) | POLICY(KNORM))

typedef struct option_spec {
  option_id id;
  char letter; /* 0: none */
  const char *name;
  const char *argument; /* NULL: takes none */
  int commands;
  uint32_t policies; /* 0: no policy option; else the kinds that have it */
  const char *help;
} option_spec;

static const option_spec specs[] = {
    {OPTION_PROMPT, 'p', "prompt", "TEXT", PROMPTED, 0,
     "the prompt; with --file, what follows the file's text"},
    {OPTION_FILE, 'f', "file", "FILE", PROMPTED, 0,
     "the prompt or its beginning from a file, as it stands; - is standard input"},
    {OPTION_IDS, 0, "ids", "1,2,3", PROMPTED, 0, "the prompt as token ids; no BOS is added"},
    {OPTION_OUTPUT, 'o', "output", "FILE", COMMAND_CAPTURE | COMMAND_EVICT, 0,
     "where the result goes (safetensors)"},
    {OPTION_BUDGET, 0, "budget", "5%|512", EVICTING, ALL_POLICIES,
     "cache entries that a (layer, KV head) keeps on average, window included"},
    {OPTION_POLICY, 0, "policy", "NAME", EVICTING, ALL_POLICIES,
     "laprox, snapkv, adakv, pyramidkv, criticalkv, defensivekv, layer-defensivekv, vatp, tova, keydiff, "
     "knorm, "
     "streaming, random or full [laprox]"},
    {OPTION_SCOPE, 0, "scope", "WHERE", EVICTING, COMPETING | POLICY(CRITICALKV),
     "entries compete within the model, a layer or a head: global, layer, head; or whole tokens: token"},
    {OPTION_WINDOW, 0, "window", "N", EVICTING, ALL_POLICIES,
     "last tokens, whose queries score and which all stay [32]"},
    {OPTION_WINDOW, 0, "window", "N", COMMAND_CAPTURE, 0, "last tokens, whose queries are written [32]"},
    {OPTION_POOL, 0, "pool", "7|max:7|1", EVICTING, POOLED,
     "smooth scores over so many neighbours: average, or max: [7; defensivekv: 5, vatp: 1]; 1 = not at all"},
    {OPTION_POOL_BEFORE, 0, "pool-before", NULL, EVICTING, POLICY(LAPROX),
     "smooth attention before it meets the values, not the product; not with --gqa joint"},
    {OPTION_GQA, 0, "gqa", "HOW", EVICTING, POLICY(LAPROX),
     "query heads of a KV head: mean, joint, attention-mean [mean]"},
    {OPTION_SINKS, 0, "sinks", "N", EVICTING, ALL_POLICIES,
     "first tokens that all heads keep [0; streaming: 4, vatp: 20]"},
    {OPTION_FLOOR, 0, "floor", "N", EVICTING, COMPETING,
     "entries of its own that every head keeps at least [0]"},
    {OPTION_NO_NORMALIZE, 0, "no-normalize", NULL, EVICTING, NORMALIZED,
     "do not divide a layer's scores by their sum"},
    {OPTION_SEED, 0, "seed", "N", EVICTING, 0, "for drawn tokens and for --policy random [0]"},
    {OPTION_N, 'n', "n-predict", "N", COMMAND_RUN, 0, "tokens to generate at most [64]"},
    {OPTION_STOP, 0, "stop", "TEXT", COMMAND_RUN, 0, "end before this text"},
    {OPTION_TEMP, 0, "temp", "T", COMMAND_RUN, 0, "temperature; 0 takes the likeliest token [0]"},
    {OPTION_TOP_K, 0, "top-k", "N", COMMAND_RUN, 0, "draw from the N likeliest tokens; 0 = all [0]"},
    {OPTION_TOP_P, 0, "top-p", "P", COMMAND_RUN, 0,
     "draw from the likeliest tokens of this much probability [1]"},
    {OPTION_KV, 0, "kv", "f16|f32|q8_0|q4_0", PROMPTED | COMMAND_EVAL, 0,
     "element type of the KV cache [f16]"},
    {OPTION_PREFILL, 0, "prefill", "HOW", COMMAND_RUN, 0,
     "evict after every layer (layerwise) or at the end (oneshot); the result is the same [layerwise; with "
     "--scope token or --probe oneshot]"},
    {OPTION_CHUNK_EVICT, 0, "chunk-evict", "N", COMMAND_RUN, 0,
     "evict after every N tokens of the prompt: least memory, but approximate"},
    {OPTION_EVICT_BEFORE_QUESTION, 0, "evict-before-question", NULL, COMMAND_RUN, 0,
     "evict the document of --file before --prompt is read"},
    {OPTION_PROBE, 0, "probe", "TEXT", COMMAND_RUN, 0,
     "evict the document of --file by this text's queries, a guess at the question; may be given several "
     "times"},
    {OPTION_PROBE, 0, "probe", "TEXT", COMMAND_EVAL, 0,
     "for policies with +probe, whose documents this text's queries score; may be given several times"},
    {OPTION_PROBE_COMBINE, 0, "probe-combine", "HOW", COMMAND_RUN | COMMAND_EVAL, 0,
     "what becomes of the scores by several probes: mean or max [mean]"},
    {OPTION_TAIL, 0, "tail", "N", COMMAND_RUN, 0,
     "evict again when N entries have come since the last time; otherwise they pile up"},
    {OPTION_INTERACTIVE, 0, "interactive", NULL, COMMAND_RUN, 0,
     "questions from standard input, one a line; each is evicted with all that came before"},
    {OPTION_SAVE_CACHE, 0, "save-cache", "FILE", COMMAND_RUN, 0,
     "write the cache as it is before the first generated token (safetensors)"},
    {OPTION_LOAD_CACHE, 0, "load-cache", "FILE", COMMAND_RUN, 0,
     "begin with a written cache, of the same model; a prompt goes on from there"},
    {OPTION_DRY_RUN, 0, "dry-run", NULL, COMMAND_RUN, 0,
     "only say what memory it would take; exit status 1 where it does not fit"},
    {OPTION_MEMORY, 0, "memory", "BYTES|2GiB", COMMAND_RUN, 0,
     "device memory to do with; what does not fit is refused [what is free]"},
    {OPTION_DUMP_KEPT, 0, "dump-kept", "FILE", COMMAND_RUN, 0, "write the kept positions (safetensors)"},
    {OPTION_DUMP_LOGITS, 0, "dump-logits", "FILE", COMMAND_RUN, 0, "write the prompt's logits (safetensors)"},
    {OPTION_GEOMETRY, 0, "geometry", "A,B", COMMAND_BENCH, 0,
     "llama-3.1-8b, qwen3-8b, qwen2.5-1.5b, phone or all [phone; with --model: none]"},
    {OPTION_LENGTHS, 0, "tokens", "N,M", COMMAND_BENCH, 0, "tokens in the cache [4096; with --model: 1024]"},
    {OPTION_MODEL, 0, "model", "FILE", COMMAND_BENCH, 0, "a GGUF model to read and generate with"},
    {OPTION_COMPARE, 0, "compare", NULL, COMMAND_BENCH, 0,
     "one page of results that --json has written on several devices"},
    {OPTION_OUTPUT, 'o', "output", "FILE", COMMAND_BENCH, 0, "where the page of --compare goes (HTML)"},
    {OPTION_OUTPUT, 'o', "output", "FILE", COMMAND_EVAL, 0,
     "where the results go (JSON); a run that was stopped goes on where it was"},
    {OPTION_OUTPUT, 'o', "output", "FILE", COMMAND_TASKS, 0, "where the prompts go (JSON lines)"},
    {OPTION_OUTPUT, 'o', "output", "FILE", COMMAND_REPORT, 0, "where the page goes (HTML)"},
    {OPTION_TASKS, 0, "tasks", "FILE", COMMAND_EVAL, 0,
     "JSON lines of laprox tasks, RULER or LongBench; may be given several times"},
    {OPTION_BUDGETS, 0, "budgets", "100%,5%", COMMAND_EVAL, 0,
     "budgets, as --budget of run takes them [100%,20%,10%,5%]"},
    {OPTION_POLICIES, 0, "policies", "A,B+gqa=joint", COMMAND_EVAL, 0,
     "policies, options behind them [laprox,snapkv,streaming]"},
    {OPTION_LIMIT, 0, "limit", "N", COMMAND_EVAL, 0, "prompts of each kind of task at most; 0 = all [0]"},
    {OPTION_QUESTION, 0, "question", "WHEN", COMMAND_EVAL, 0,
     "at eviction the question is known, unknown (read afterwards), or both in turn [known]"},
    {OPTION_FIDELITY, 0, "fidelity", "N", COMMAND_EVAL, 0,
     "compare with the full cache on N passages of a text: divergence, agreement, perplexity [0]"},
    {OPTION_LENGTHS, 0, "tokens", "N", COMMAND_EVAL, 0, "tokens of a passage of --fidelity [1024]"},
    {OPTION_TEXT, 0, "text", "FILE", COMMAND_EVAL, 0, "the text for --fidelity [prose of laprox's own]"},
    {OPTION_TEMPLATE, 0, "template", "TEXT", COMMAND_EVAL, 0,
     "prompt of LongBench lines, with {context} and {input} in it"},
    {OPTION_TIMING, 0, "timing", "FILE", COMMAND_EVAL, 0,
     "write how long everything took (JSON), which differs from run to run"},
    {OPTION_TASK, 0, "task", "A,B", COMMAND_TASKS, 0,
     "niah_single, niah_multikey, niah_multivalue, niah_multiquery, vt, cwe, fwe, passkey or all [all]"},
    {OPTION_LENGTHS, 0, "tokens", "N,M", COMMAND_TASKS, 0,
     "tokens of a prompt at most, in the model's own; several lengths are several prompts [1024]"},
    {OPTION_COUNT, 'n', "count", "N", COMMAND_TASKS, 0, "prompts of each task and length [50]"},
    {OPTION_SEED, 0, "seed", "N", COMMAND_TASKS, 0, "other prompts for another seed [0]"},
    {OPTION_HAYSTACK, 0, "haystack", "WHAT", COMMAND_TASKS, 0,
     "around needles: noise, prose (laprox's own), needles, or a text FILE [prose; passkey: noise]"},
    {OPTION_WORDING, 0, "wording", "WHOSE", COMMAND_TASKS, 0,
     "questions in the shipped model's wording where it knows one, or as in RULER: model, ruler [model]"},
    {OPTION_SCORES, 0, "scores", NULL, COMMAND_EVICT, 0, "write the scores too"},
    {OPTION_DEVICE, 0, "device", "N|NAME", ANY & ~COMMAND_DEVICES, 0,
     "Vulkan device by number or part of its name; also LAPROX_DEVICE"},
    {OPTION_VARIANTS, 0, "variants", "LIST", ANY, 0,
     "large_tiles, subgroup, storage16, matrix beside the baseline; all, baseline; also LAPROX_VARIANTS "
     "[all]"},
    {OPTION_VALIDATE, 0, "validate", NULL, ANY, 0, "with the Khronos validation layer"},
    {OPTION_JSON, 0, "json", NULL, ANY, 0, "the result as one JSON object on standard output"},
    {OPTION_HELP, 'h', "help", NULL, ANY, 0, "this text"},
};

enum { N_SPECS = sizeof specs / sizeof *specs };

/* ---- values ---- */

static int need_number(const option_spec *spec, const char *text, uint64_t least, uint64_t most,
                       uint32_t *out) {
  uint64_t value = 0;
  if (!parse_number(text, most, &value) || value < least)
    return fail_usage("--%s: \"%s\" is not a whole number from %llu to %llu", spec->name, text,
                      (unsigned long long)least, (unsigned long long)most);
  *out = (uint32_t)value;
  return EXIT_DONE;
}

static int need_decimal(const option_spec *spec, const char *text, double most, float *out) {
  double value = 0;
  if (!parse_decimal(text, most, &value))
    return fail_usage("--%s: \"%s\" is not a number from 0 to %g", spec->name, text, most);
  *out = (float)value;
  return EXIT_DONE;
}

typedef struct word {
  const char *text;
  int value;
} word;

static const word policy_words[] = {{"laprox", LAPROX_POLICY_LAPROX},
                                    {"snapkv", LAPROX_POLICY_SNAPKV},
                                    {"streaming", LAPROX_POLICY_STREAMING},
                                    {"random", LAPROX_POLICY_RANDOM},
                                    {"full", LAPROX_POLICY_FULL},
                                    {"adakv", LAPROX_POLICY_ADAKV},
                                    {"pyramidkv", LAPROX_POLICY_PYRAMIDKV},
                                    {"vatp", LAPROX_POLICY_VATP},
                                    {"tova", LAPROX_POLICY_TOVA},
                                    {"keydiff", LAPROX_POLICY_KEYDIFF},
                                    {"knorm", LAPROX_POLICY_KNORM},
                                    {"criticalkv", LAPROX_POLICY_CRITICALKV},
                                    {"defensivekv", LAPROX_POLICY_DEFENSIVEKV},
                                    {"layer-defensivekv", LAPROX_POLICY_LAYER_DEFENSIVEKV},
                                    {NULL, 0}};
static const word scope_words[] = {{"global", LAPROX_SCOPE_GLOBAL},
                                   {"layer", LAPROX_SCOPE_LAYER},
                                   {"head", LAPROX_SCOPE_HEAD},
                                   {"token", LAPROX_SCOPE_TOKEN},
                                   {NULL, 0}};
static const word gqa_words[] = {{"mean", LAPROX_GQA_MEAN},
                                 {"joint", LAPROX_GQA_JOINT},
                                 {"attention-mean", LAPROX_GQA_ATTENTION_MEAN},
                                 {NULL, 0}};
static const word prefill_words[] = {{"layerwise", 0}, {"oneshot", 1}, {NULL, 0}};
static const word kv_words[] = {{"f16", LAPROX_DTYPE_F16},
                                {"f32", LAPROX_DTYPE_F32},
                                {"q8_0", LAPROX_DTYPE_Q8_0},
                                {"q4_0", LAPROX_DTYPE_Q4_0},
                                {NULL, 0}};

static const word combine_words[] = {{"mean", LAPROX_COMBINE_MEAN}, {"max", LAPROX_COMBINE_MAX}, {NULL, 0}};
static const word question_words[] = {
    {"known", QUESTION_KNOWN}, {"unknown", QUESTION_UNKNOWN}, {"both", QUESTION_BOTH}, {NULL, 0}};
static const word wording_words[] = {{"model", 0}, {"ruler", 1}, {NULL, 0}};

const char *const option_family_names[N_FAMILY_NAMES] = {
    "niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "passkey"};

static int need_word(const option_spec *spec, const char *text, const word *words, int *out) {
  for (; words->text; words++) {
    if (strcmp(text, words->text) != 0) continue;
    *out = words->value;
    return EXIT_DONE;
  }
  return fail_usage("--%s: unknown value \"%s\"", spec->name, text);
}

static int need_text(const option_spec *spec, const char *text, const char **out) {
  if (!*text && spec->id != OPTION_PROMPT) return fail_usage("--%s: nothing given", spec->name);
  *out = text;
  return EXIT_DONE;
}

/* Bytes, or a number with KiB, MiB, GiB or TiB behind it. */
static int need_bytes(const option_spec *spec, const char *text, uint64_t *out) {
  static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
  const size_t n = strlen(text);
  char number[32];
  for (int i = 0; i < 4 && n > 3 && n < sizeof number; i++) {
    double value = 0;
    const double unit = (double)(UINT64_C(1) << 10 * (i + 1));
    if (strcmp(text + n - 3, units[i]) != 0) continue;
    memcpy(number, text, n - 3);
    number[n - 3] = 0;
    if (!parse_decimal(number, 1e6, &value)) break;
    *out = (uint64_t)(value * unit);
    if (*out) return EXIT_DONE;
  }
  if (parse_number(text, UINT64_MAX, out) && *out) return EXIT_DONE;
  return fail_usage("--%s: \"%s\" is neither a number of bytes nor one such as 512MiB or 2GiB", spec->name,
                    text);
}

/* Calls `add` for each piece between commas. */
static int need_list(const option_spec *spec, const char *text, options *out,
                     int (*add)(const option_spec *, const char *, options *)) {
  int status = EXIT_DONE;
  while (!status) {
    size_t n = strcspn(text, ",");
    char piece[sizeof out->policies[0].text];
    if (n == 0 || n >= sizeof piece)
      return fail_usage("--%s: \"%s\" is not a list such as %s", spec->name, text, spec->argument);
    memcpy(piece, text, n);
    piece[n] = 0;
    status = add(spec, piece, out);
    if (!text[n]) break;
    text += n + 1;
  }
  return status;
}

static int add_budget(const option_spec *spec, const char *text, options *out) {
  if (out->n_budgets == MAX_LISTED) return fail_usage("--%s: more than %d", spec->name, MAX_LISTED);
  listed_budget *to = &out->budgets[out->n_budgets++];
  if (strlen(text) >= sizeof to->text) return fail_usage("--%s: \"%s\" is too long", spec->name, text);
  memcpy(to->text, text, strlen(text) + 1);
  return need_budget(text, &to->amount);
}

static int add_family(const option_spec *spec, const char *text, options *out) {
  const bool all = strcmp(text, "all") == 0;
  const uint32_t before = out->n_families;
  for (uint32_t i = 0; i < N_FAMILY_NAMES && out->n_families < MAX_LISTED; i++)
    if (all || strcmp(text, option_family_names[i]) == 0) out->families[out->n_families++] = i;
  return out->n_families > before ? EXIT_DONE : fail_usage("--%s: unknown value \"%s\"", spec->name, text);
}

static int add_length(const option_spec *spec, const char *text, options *out) {
  if (out->n_lengths == MAX_LISTED) return fail_usage("--%s: more than %d", spec->name, MAX_LISTED);
  return need_number(spec, text, 1, 1u << 24, &out->lengths[out->n_lengths++]);
}

/* ---- parsing ---- */

static int set_policy_option(const option_spec *spec, const char *value, laprox_policy *policy) {
  int picked = 0, status = EXIT_DONE;
  switch (spec->id) {
  case OPTION_BUDGET:
    return need_budget(value, &policy->budget);
  case OPTION_POLICY:
    status = need_word(spec, value, policy_words, &picked);
    policy->kind = (laprox_policy_kind)picked;
    return status;
  case OPTION_SCOPE:
    status = need_word(spec, value, scope_words, &picked);
    policy->scope = (laprox_scope)picked;
    return status;
  case OPTION_GQA:
    status = need_word(spec, value, gqa_words, &picked);
    policy->gqa = (laprox_gqa)picked;
    return status;
  case OPTION_POOL_BEFORE:
    policy->pool_before = LAPROX_SWITCH_ON;
    return EXIT_DONE;
  case OPTION_WINDOW:
    return need_number(spec, value, 1, 256, &policy->window);
  case OPTION_POOL:
    return need_pool(value, policy);
  case OPTION_SINKS:
    status = need_number(spec, value, 0, UINT32_MAX - 1, &policy->sinks);
    if (policy->sinks == 0) policy->sinks = LAPROX_NONE;
    return status;
  case OPTION_FLOOR:
    return need_number(spec, value, 0, UINT32_MAX - 1, &policy->floor);
  default:
    policy->normalize = LAPROX_SWITCH_OFF;
    return EXIT_DONE;
  }
}

/* One option behind a policy's name, such as gqa=joint. */
static int add_policy_option(const char *text, listed_policy *to) {
  const size_t n = strcspn(text, "=");
  const char *value = text[n] ? text + n + 1 : NULL;
  const laprox_policy_kind kind = to->policy.kind;
  if (strcmp(text, "probe") == 0) {
    to->is_probed = true;
    return EXIT_DONE;
  }
  for (int i = 0; i < N_SPECS; i++) {
    const option_spec *spec = &specs[i];
    const bool is_own = (spec->commands & COMMAND_EVICT) && spec->policies && spec->id != OPTION_BUDGET &&
                        spec->id != OPTION_POLICY;
    if (!(is_own || spec->id == OPTION_KV) || strlen(spec->name) != n || strncmp(spec->name, text, n) != 0)
      continue;
    if (!value != !spec->argument)
      return fail_usage("--policies: %s %s a value", spec->name, value ? "takes no" : "needs");
    if (spec->id == OPTION_KV) {
      int picked = 0, status = need_word(spec, value, kv_words, &picked);
      to->kv_dtype = (laprox_dtype)picked;
      return status;
    }
    if (!(spec->policies & (1u << kind)))
      return fail_usage("--policies: policy %s has no option %s", laprox_policy_name(kind), spec->name);
    return set_policy_option(spec, value, &to->policy);
  }
  return fail_usage("--policies: \"%s\" is no option of a policy", text);
}

static int add_policy(const option_spec *spec, const char *text, options *out) {
  char rest[sizeof out->policies[0].text];
  int picked = 0;
  if (out->n_policies == MAX_POLICIES) return fail_usage("--%s: more than %d", spec->name, MAX_POLICIES);
  listed_policy *to = &out->policies[out->n_policies++];
  *to = (listed_policy){0};
  snprintf(to->text, sizeof to->text, "%s", text);
  snprintf(rest, sizeof rest, "%s", text);
  char *next = strchr(rest, '+');
  if (next) *next++ = 0;
  int status = need_word(spec, rest, policy_words, &picked);
  to->policy.kind = (laprox_policy_kind)picked;
  while (!status && next) {
    char *option = next;
    next = strchr(option, '+');
    if (next) *next++ = 0;
    status = add_policy_option(option, to);
  }
  return status;
}

/* What is made or answered by `tasks` and `eval`. */
static int set_task_option(const option_spec *spec, const char *value, options *out) {
  int picked = 0, status = EXIT_DONE;
  switch (spec->id) {
  case OPTION_TASKS:
    if (out->n_tasks == MAX_LISTED) return fail_usage("--%s: more than %d", spec->name, MAX_LISTED);
    return need_text(spec, value, &out->tasks[out->n_tasks++]);
  case OPTION_BUDGETS:
    out->n_budgets = 0;
    return need_list(spec, value, out, add_budget);
  case OPTION_POLICIES:
    out->n_policies = 0;
    return need_list(spec, value, out, add_policy);
  case OPTION_LIMIT:
    return need_number(spec, value, 0, UINT32_MAX, &out->limit);
  case OPTION_QUESTION:
    status = need_word(spec, value, question_words, &picked);
    out->question = (question_mode)picked;
    return status;
  case OPTION_FIDELITY:
    return need_number(spec, value, 0, 4096, &out->n_fidelity);
  case OPTION_TEXT:
    return need_text(spec, value, &out->text);
  case OPTION_TEMPLATE:
    return need_text(spec, value, &out->prompt_template);
  case OPTION_TIMING:
    return need_text(spec, value, &out->timing);
  case OPTION_TASK:
    out->n_families = 0;
    return need_list(spec, value, out, add_family);
  case OPTION_LENGTHS:
    out->n_lengths = 0;
    return need_list(spec, value, out, add_length);
  case OPTION_COUNT:
    return need_number(spec, value, 1, 100000, &out->n_prompts);
  case OPTION_HAYSTACK:
    return need_text(spec, value, &out->haystack);
  default:
    status = need_word(spec, value, wording_words, &picked);
    out->ruler_wording = picked == 1;
    return status;
  }
}

/* How `run` goes about it. */
static int set_run_option(const option_spec *spec, const char *value, options *out) {
  int picked = 0, status = EXIT_DONE;
  switch (spec->id) {
  case OPTION_PREFILL:
    status = need_word(spec, value, prefill_words, &picked);
    out->has_prefill = true;
    out->oneshot = picked == 1;
    return status;
  case OPTION_CHUNK_EVICT:
    return need_number(spec, value, 1, UINT32_MAX - 1, &out->chunk_evict);
  case OPTION_TAIL:
    return need_number(spec, value, 1, UINT32_MAX - 1, &out->tail);
  case OPTION_EVICT_BEFORE_QUESTION:
    out->evict_before_question = true;
    return EXIT_DONE;
  case OPTION_PROBE:
    if (out->n_probes == MAX_LISTED) return fail_usage("--%s: more than %d", spec->name, MAX_LISTED);
    return need_text(spec, value, &out->probes[out->n_probes++]);
  case OPTION_PROBE_COMBINE:
    status = need_word(spec, value, combine_words, &picked);
    out->combine = (laprox_combine)picked;
    return status;
  case OPTION_INTERACTIVE:
    out->interactive = true;
    return EXIT_DONE;
  case OPTION_SAVE_CACHE:
    return need_text(spec, value, &out->save_cache);
  case OPTION_LOAD_CACHE:
    return need_text(spec, value, &out->load_cache);
  case OPTION_MEMORY:
    return need_bytes(spec, value, &out->memory_bytes);
  default:
    out->dry_run = true;
    return EXIT_DONE;
  }
}

static int set_option(const option_spec *spec, const char *value, options *out) {
  int picked = 0, status = EXIT_DONE;
  uint64_t seed = 0;
  switch (spec->id) {
  case OPTION_PROMPT:
    return need_text(spec, value, &out->prompt);
  case OPTION_FILE:
    return need_text(spec, value, &out->prompt_file);
  case OPTION_IDS:
    return need_text(spec, value, &out->ids);
  case OPTION_OUTPUT:
    return need_text(spec, value, &out->output);
  case OPTION_STOP:
    return need_text(spec, value, &out->stop);
  case OPTION_DEVICE:
    return need_text(spec, value, &out->device);
  case OPTION_DUMP_KEPT:
    return need_text(spec, value, &out->dump_kept);
  case OPTION_DUMP_LOGITS:
    return need_text(spec, value, &out->dump_logits);
  case OPTION_N:
    return need_number(spec, value, 0, UINT32_MAX - 1, &out->n_predict);
  case OPTION_TEMP:
    return need_decimal(spec, value, 1000, &out->sampler.temperature);
  case OPTION_TOP_K:
    return need_number(spec, value, 0, UINT32_MAX, &out->sampler.top_k);
  case OPTION_TOP_P:
    return need_decimal(spec, value, 1, &out->sampler.top_p);
  case OPTION_SEED:
    if (!parse_number(value, UINT64_MAX, &seed))
      return fail_usage("--seed: \"%s\" is not a whole number", value);
    out->sampler.state = seed;
    return EXIT_DONE;
  case OPTION_KV:
    status = need_word(spec, value, kv_words, &picked);
    out->kv_dtype = (laprox_dtype)picked;
    return status;
  case OPTION_GEOMETRY:
    return need_text(spec, value, &out->geometry);
  case OPTION_MODEL:
    return need_text(spec, value, &out->model);
  case OPTION_COMPARE:
    out->compare = true;
    return EXIT_DONE;
  case OPTION_PREFILL:
  case OPTION_CHUNK_EVICT:
  case OPTION_TAIL:
  case OPTION_EVICT_BEFORE_QUESTION:
  case OPTION_PROBE:
  case OPTION_PROBE_COMBINE:
  case OPTION_INTERACTIVE:
  case OPTION_SAVE_CACHE:
  case OPTION_LOAD_CACHE:
  case OPTION_DRY_RUN:
  case OPTION_MEMORY:
    return set_run_option(spec, value, out);
  case OPTION_TASKS:
  case OPTION_BUDGETS:
  case OPTION_POLICIES:
  case OPTION_LIMIT:
  case OPTION_QUESTION:
  case OPTION_FIDELITY:
  case OPTION_TEXT:
  case OPTION_TEMPLATE:
  case OPTION_TIMING:
  case OPTION_TASK:
  case OPTION_LENGTHS:
  case OPTION_COUNT:
  case OPTION_HAYSTACK:
  case OPTION_WORDING:
    return set_task_option(spec, value, out);
  case OPTION_SCORES:
    out->scores = true;
    return EXIT_DONE;
  case OPTION_JSON:
    out->json = true;
    return EXIT_DONE;
  case OPTION_VARIANTS:
    return need_variants("--variants", value, &out->variants);
  case OPTION_VALIDATE:
    out->validate = true;
    return EXIT_DONE;
  case OPTION_HELP:
    out->help = true;
    return EXIT_DONE;
  default:
    return set_policy_option(spec, value, &out->policy);
  }
}

/* What getopt_long wants, for one subcommand; flags[i] belongs to specs[indices[i]]. */
typedef struct getopt_tables {
  struct option longs[N_SPECS + 1];
  char shorts[2 * N_SPECS + 2];
} getopt_tables;

/* A long option's value is 1000 + its row, a short one's its letter. */
static void make_tables(command which, getopt_tables *out) {
  size_t n_longs = 0, n_shorts = 0;
  *out = (getopt_tables){0};
  out->shorts[n_shorts++] = ':';
  for (int i = 0; i < N_SPECS; i++) {
    if (!(specs[i].commands & (int)which)) continue;
    out->longs[n_longs++] =
        (struct option){specs[i].name, specs[i].argument ? required_argument : no_argument, NULL, 1000 + i};
    if (!specs[i].letter) continue;
    out->shorts[n_shorts++] = specs[i].letter;
    if (specs[i].argument) out->shorts[n_shorts++] = ':';
  }
}

static int find_spec(command which, int value) {
  if (value >= 1000) return value - 1000;
  for (int i = 0; i < N_SPECS; i++)
    if ((specs[i].commands & (int)which) && specs[i].letter == value) return i;
  return -1;
}

static int check_policy_options(const options *o, const bool *given) {
  laprox_policy_kind kind = o->policy.kind ? o->policy.kind : LAPROX_POLICY_LAPROX;
  for (int i = 0; i < N_SPECS; i++) {
    if (given[i] && specs[i].policies && !(specs[i].policies & (1u << kind)))
      return fail_usage("--%s: policy %s has no such option", specs[i].name, laprox_policy_name(kind));
  }
  return EXIT_DONE;
}

int options_parse(command which, int argc, char **argv, options *out) {
  getopt_tables tables;
  bool given[N_SPECS] = {false};
  *out = (options){.variants = UINT32_MAX,
                   .n_predict = 64,
                   .budgets = {{"100%", {.share = 1}},
                               {"20%", {.share = 0.2}},
                               {"10%", {.share = 0.1}},
                               {"5%", {.share = 0.05}}},
                   .n_budgets = 4,
                   .policies = {{"laprox", {.kind = LAPROX_POLICY_LAPROX}, LAPROX_DTYPE_AUTO, false},
                                {"snapkv", {.kind = LAPROX_POLICY_SNAPKV}, LAPROX_DTYPE_AUTO, false},
                                {"streaming", {.kind = LAPROX_POLICY_STREAMING}, LAPROX_DTYPE_AUTO, false}},
                   .n_policies = 3,
                   .question = QUESTION_KNOWN,
                   .families = {0, 1, 2, 3, 4, 5, 6, 7},
                   .n_families = N_FAMILY_NAMES,
                   .lengths = {1024},
                   .n_lengths = which != COMMAND_BENCH,
                   .n_prompts = 50};
  make_tables(which, &tables);
  opterr = 0;
  for (int c; (c = getopt_long(argc, argv, tables.shorts, tables.longs, NULL)) != -1;) {
    int i = find_spec(which, c);
    if (c == ':') return fail_usage("%s: a value is missing", argv[optind - 1]);
    if (i < 0 || i >= N_SPECS) {
      if (optopt && optopt < 256) return fail_usage("%s: unknown option -%c", argv[0], optopt);
      return fail_usage("%s: unknown option or unwanted value: %s", argv[0], argv[optind - 1]);
    }
    given[i] = true;
    int status = set_option(&specs[i], optarg, out);
    if (status) return status;
    out->has_budget = out->has_budget || specs[i].id == OPTION_BUDGET;
    out->has_policy_options = out->has_policy_options || specs[i].policies != 0;
  }
  if (out->help) return EXIT_DONE;
  for (; optind < argc; optind++) {
    const bool lists = which == COMMAND_REPORT || out->compare;
    const bool takes_none = which == COMMAND_DEVICES || (which == COMMAND_BENCH && !lists);
    const bool is_listed = out->input && lists && out->n_more_inputs < MAX_LISTED;
    if ((out->input && !is_listed) || takes_none)
      return fail_usage("%s: too many arguments: %s", argv[0], argv[optind]);
    if (is_listed)
      out->more_inputs[out->n_more_inputs++] = argv[optind];
    else
      out->input = argv[optind];
  }
  bool seeded = out->policy.kind == LAPROX_POLICY_RANDOM || which != COMMAND_EVICT;
  for (int i = 0; i < N_SPECS; i++)
    if (given[i] && specs[i].id == OPTION_SEED && !seeded)
      return fail_usage("--seed: policy %s has no such option", laprox_policy_name(out->policy.kind));
  int status = check_policy_options(out, given);
  return status ? status : options_check(which, out);
}

/* ---- help ---- */

void options_describe(command which) {
  for (int i = 0; i < N_SPECS; i++) {
    if (!(specs[i].commands & (int)which) || !specs[i].help) continue;
    char left[64], letter[8] = "   ";
    if (specs[i].letter) snprintf(letter, sizeof letter, "-%c,", specs[i].letter);
    snprintf(left, sizeof left, "%s --%s %s", letter, specs[i].name,
             specs[i].argument ? specs[i].argument : "");
    printf("  %-28s %s\n", left, specs[i].help);
  }
}
