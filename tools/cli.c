/* cli.c: what the subcommands share. */
#include "cli.h"
#include "cache_directory.h"

#include "core/core.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Prompts beyond this are mistakes. */
#define MAX_PROMPT_BYTES ((size_t)256 << 20)

double now_ms(void) {
  struct timespec t = {0};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* ---- interrupts: long work ends at its next progress call, so that no temporary file stays behind ---- */

static volatile sig_atomic_t stop_wanted;

static void on_interrupt(int number) {
  stop_wanted = 1;
  signal(number, SIG_DFL);
}

bool interrupted(void) {
  return stop_wanted != 0;
}

void catch_interrupts(void) {
  signal(SIGINT, on_interrupt);
  signal(SIGTERM, on_interrupt);
#ifdef SIGPIPE
  /* A reader that has gone away is a failed write, which is reported. */
  signal(SIGPIPE, SIG_IGN);
#endif
}

/* ---- messages ---- */

static void on_message(void *user, laprox_message_level level, const char *text) {
  cli *c = user;
  messages *said = &c->said;
  if (level == LAPROX_MESSAGE_ERROR && strncmp(text, "validation: ", 12) == 0) {
    progress_clear(&c->bar);
    fprintf(stderr, "%s\n", text);
    said->n_validation++;
  } else if (level == LAPROX_MESSAGE_ERROR && !said->error[0]) {
    snprintf(said->error, sizeof said->error, "%s", text);
  } else if (level == LAPROX_MESSAGE_WARNING && said->n_warnings < MAX_WARNINGS) {
    snprintf(said->warnings[said->n_warnings++], sizeof said->warnings[0], "%s", text);
  }
}

int cli_fail(cli *c, laprox_result result) {
  progress_clear(&c->bar);
  if (interrupted()) return fail_impossible("interrupted");
  const char *text = c->said.error[0] ? c->said.error : laprox_result_string(result);
  return result == LAPROX_ERROR_INVALID_ARGUMENT ? fail_usage("%s", text) : fail_impossible("%s", text);
}

/* ---- beginning and end ---- */

int cli_init(cli *c, command which, int argc, char **argv) {
  *c = (cli){0};
  int status = options_parse(which, argc, argv, &c->opt);
  if (status) return status;
  const char *device = getenv("LAPROX_DEVICE");
  if (!c->opt.device && device && *device) c->opt.device = device;
  const char *variants = getenv("LAPROX_VARIANTS");
  if (c->opt.variants == UINT32_MAX && variants && *variants)
    status = need_variants("LAPROX_VARIANTS", variants, &c->opt.variants);
  if (status) return status;
  progress_init(&c->bar, !c->opt.json);
  c->host = (laprox_host){.message = on_message, .message_user = c};
  return EXIT_DONE;
}

int cli_finish(cli *c, int status) {
  progress_clear(&c->bar);
  laprox_model_destroy(c->model);
  laprox_device_destroy(c->device);
  laprox_instance_destroy(c->instance);
  if (status) return status;
  if (c->said.n_validation) return fail_impossible("%d validation messages", c->said.n_validation);
  for (int i = 0; i < c->said.n_warnings; i++) fprintf(stderr, "laprox: note: %s\n", c->said.warnings[i]);
  return EXIT_DONE;
}

int cli_open_instance(cli *c) {
  char directory[1024];
  const laprox_instance_info info = {.host = c->host,
                                     .validation = c->opt.validate,
                                     .variants_off = LAPROX_ALL_VARIANTS & ~c->opt.variants,
                                     .cache_directory = cache_directory(directory, sizeof directory)};
  laprox_result result = laprox_instance_create(&info, &c->instance);
  return result ? cli_fail(c, result) : EXIT_DONE;
}

int cli_open_device(cli *c) {
  int status = cli_open_instance(c);
  if (status) return status;
  laprox_result result = laprox_device_open(c->instance, c->opt.device, &c->device);
  return result ? cli_fail(c, result) : EXIT_DONE;
}

int cli_load_model(cli *c, bool without_weights) {
  const laprox_model_info info = {.path = c->opt.input,
                                  .progress = progress_step,
                                  .progress_user = &c->bar,
                                  .without_weights = without_weights};
  laprox_result result = laprox_model_load(c->device, &info, &c->model);
  progress_clear(&c->bar);
  if (result) (void)cli_fail(c, result);
  /* Whatever is wrong with a model's numbers, the command line was right. */
  return result ? EXIT_IMPOSSIBLE : EXIT_DONE;
}

void cli_unload_model(cli *c) {
  laprox_model_destroy(c->model);
  c->model = NULL;
}

/* ---- prompts ---- */

void cli_prompt_finish(cli_prompt *prompt) {
  free(prompt->tokens);
  *prompt = (cli_prompt){0};
}

static int read_stream(FILE *stream, const char *name, char **text, size_t *n_bytes) {
  size_t room = 0, n = 0;
  char *to = NULL;
  for (;;) {
    if (n == room) {
      room = room ? 2 * room : 65536;
      char *larger = room <= MAX_PROMPT_BYTES ? realloc(to, room) : NULL;
      if (!larger) {
        free(to);
        return fail_impossible("%s: more than %zu bytes of prompt", name, n);
      }
      to = larger;
    }
    size_t got = fread(to + n, 1, room - n, stream);
    if (got == 0) break;
    n += got;
  }
  if (ferror(stream)) {
    free(to);
    return fail_impossible("%s: %s", name, strerror(errno));
  }
  *text = to;
  *n_bytes = n;
  return EXIT_DONE;
}

static int read_prompt_file(const char *path, char **text, size_t *n_bytes) {
  if (strcmp(path, "-") == 0) return read_stream(stdin, "standard input", text, n_bytes);
  FILE *file = fopen(path, "rb");
  if (!file) return fail_impossible("%s: %s", path, strerror(errno));
  int status = read_stream(file, path, text, n_bytes);
  fclose(file);
  return status;
}

static int parse_ids(const char *text, uint32_t **tokens, size_t *count) {
  size_t n = 1;
  for (const char *p = text; *p; p++) n += *p == ',';
  uint32_t *ids = calloc(n, sizeof *ids);
  if (!ids) return fail_impossible("out of memory for %zu token ids", n);
  for (size_t i = 0; i < n; i++) {
    char one[16];
    size_t length = strcspn(text, ",");
    uint64_t id = 0;
    snprintf(one, sizeof one, "%.*s", (int)(length < 15 ? length : 15), text);
    if (!parse_number(one, UINT32_MAX - 1, &id)) {
      free(ids);
      return fail_usage("--ids: \"%s\" is not a token id", one);
    }
    ids[i] = (uint32_t)id;
    text += length + 1;
  }
  *tokens = ids;
  *count = n;
  return EXIT_DONE;
}

int cli_tokenize(cli *c, const char *text, size_t n_bytes, bool add_bos, cli_prompt *out) {
  uint32_t *tokens = NULL;
  size_t n = 0;
  if (n_bytes == 0) return fail_usage("%s", "the prompt is empty");
  laprox_result result = laprox_model_tokenize(c->model, text, n_bytes, add_bos, &tokens, &n);
  if (result) return cli_fail(c, result);
  uint32_t *grown = realloc(out->tokens, (out->n + n + 1) * sizeof *grown);
  if (grown) {
    memcpy(grown + out->n, tokens, n * sizeof *grown);
    out->tokens = grown;
    out->n += n;
  }
  laprox_model_release(c->model, tokens);
  return grown ? EXIT_DONE : fail_impossible("out of memory for %zu tokens", n);
}

int cli_read_text(const char *path, char **text) {
  size_t n_bytes = 0;
  char *bytes = NULL;
  *text = NULL;
  int status = read_prompt_file(path, &bytes, &n_bytes);
  if (status) return status;
  *text = realloc(bytes, n_bytes + 1);
  if (!*text) {
    free(bytes);
    return fail_impossible("out of memory for %s", path);
  }
  (*text)[n_bytes] = 0;
  return EXIT_DONE;
}

/* The file's text, then the prompt's: one text, or two where the first is evicted on its own. */
static int read_texts(cli *c, cli_prompt *out) {
  const options *o = &c->opt;
  const size_t n_question = o->prompt ? strlen(o->prompt) : 0;
  const bool add_bos = !o->load_cache;
  size_t n = 0;
  char *text = NULL;
  int status = o->prompt_file ? read_prompt_file(o->prompt_file, &text, &n) : EXIT_DONE;
  if (!status && o->prompt_file && (!o->prompt || o->evict_before_question)) {
    status = cli_tokenize(c, text, n, add_bos, out);
    out->n_document = out->n;
    if (!status && o->prompt) status = cli_tokenize(c, o->prompt, n_question, false, out);
  } else if (!status) {
    char *whole = realloc(text, n + n_question + 1);
    if (!whole) status = fail_impossible("out of memory for %zu bytes of prompt", n + n_question);
    if (whole) text = whole;
    if (!status) memcpy(text + n, o->prompt, n_question);
    if (!status) status = cli_tokenize(c, text, n + n_question, add_bos, out);
    out->n_document = out->n;
  }
  free(text);
  return status;
}

int cli_read_prompt(cli *c, cli_prompt *out) {
  const options *o = &c->opt;
  int status = EXIT_DONE;
  *out = (cli_prompt){0};
  if (o->ids) {
    status = parse_ids(o->ids, &out->tokens, &out->n);
    out->n_document = out->n;
  } else if (o->prompt || o->prompt_file) {
    status = read_texts(c, out);
  }
  laprox_model_description model;
  laprox_model_describe(c->model, &model);
  if (!status && out->n > model.context_length)
    status = fail_impossible("the prompt has %zu tokens, %s reads %u at most", out->n, c->opt.input,
                             model.context_length);
  if (status) cli_prompt_finish(out);
  return status;
}

/* ---- policies ---- */

int cli_check_policy(cli *c, uint32_t *window) {
  lpx_rules rules;
  laprox_result result = lpx_rules_resolve(&c->host, &c->opt.policy, &rules);
  if (result) return cli_fail(c, result);
  if (window) *window = rules.window;
  return EXIT_DONE;
}

int cli_check_budget(cli *c, uint32_t n_tokens) {
  lpx_rules rules;
  uint32_t budget = 0;
  laprox_result result = lpx_rules_resolve(&c->host, &c->opt.policy, &rules);
  if (!result) result = lpx_budget_resolve(&c->host, &rules, &c->opt.policy.budget, n_tokens, &budget);
  return result ? cli_fail(c, result) : EXIT_DONE;
}

/* ---- JSON ---- */

int print_json(json_t *root) {
  if (!root) return fail_impossible("out of memory for the result");
  int failed = json_dumpf(root, stdout, JSON_REAL_PRECISION(9));
  json_decref(root);
  if (failed || fputc('\n', stdout) == EOF || fflush(stdout) != 0)
    return fail_impossible("standard output: %s", strerror(errno));
  return EXIT_DONE;
}

json_t *json_ms(double ms) {
  return json_real(isfinite(ms) ? round(ms * 1e3) / 1e3 : 0);
}

/* Length of the UTF-8 character at `s`, 0 where there is none. */
static size_t character_bytes(const unsigned char *s, size_t n) {
  static const struct {
    unsigned char low, high, second_low, second_high, bytes;
  } kinds[] = {{0x00, 0x7f, 0, 0xff, 1},    {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
               {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
               {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
  for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
    if (s[0] < kinds[k].low || s[0] > kinds[k].high) continue;
    size_t bytes = kinds[k].bytes;
    if (bytes > n || (bytes > 1 && (s[1] < kinds[k].second_low || s[1] > kinds[k].second_high))) return 0;
    for (size_t i = 2; i < bytes; i++)
      if ((s[i] & 0xc0) != 0x80) return 0;
    return bytes;
  }
  return 0;
}

json_t *json_text(const char *bytes, size_t n_bytes) {
  char *clean = malloc(3 * n_bytes + 1);
  size_t n = 0;
  if (!clean) return NULL;
  for (size_t i = 0; i < n_bytes;) {
    size_t length = character_bytes((const unsigned char *)bytes + i, n_bytes - i);
    memcpy(clean + n, length ? bytes + i : "\xef\xbf\xbd", length ? length : 3);
    n += length ? length : 3;
    i += length ? length : 1;
  }
  json_t *text = json_stringn(clean, n);
  free(clean);
  return text;
}

json_t *json_kept(const uint32_t *counts, uint32_t n_layers, uint32_t n_kv_heads) {
  json_t *layers = json_array();
  for (uint32_t l = 0; l < n_layers; l++) {
    json_t *heads = json_array();
    for (uint32_t g = 0; g < n_kv_heads; g++)
      json_array_append_new(heads, json_integer(counts[(size_t)l * n_kv_heads + g]));
    json_array_append_new(layers, heads);
  }
  return layers;
}
