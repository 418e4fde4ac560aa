/* test_conversation.c: the program over a whole task on the shipped model: the plan and what is really taken,
 * the same set layer by layer and at the end, tails and chunks that stay bounded, conversations that can be
 * repeated, caches that are saved and go on. */
#define _POSIX_C_SOURCE 200809L
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "support/bytes.h"
#include "support/model_file.h"
#include "support/program.h"

enum { N_LAYERS = 4, N_HEADS = 8, ENTRY_BYTES = 2 * 64 * 2 }; /* K and V of a head, f16 */
enum { MAX_TOKENS = 2500, MAX_ARGUMENTS = 24 };

static char folder[256], model_path[1024], other_path[1024], demo_path[1024], ids[3][MAX_TOKENS * 6];
static const char *program_path;

static const uint32_t lengths[3] = {500, 1200, MAX_TOKENS};

/* ---- running ---- */

static void run(program_run *to, const char *const *arguments, const char *input) {
  const char *all[MAX_ARGUMENTS + 2] = {program_path};
  for (int i = 0; i < MAX_ARGUMENTS && arguments[i]; i++) {
    all[i + 1] = arguments[i];
    if (strcmp(arguments[i], "MODEL") == 0) all[i + 1] = model_path;
    if (strcmp(arguments[i], "OTHER") == 0) all[i + 1] = other_path;
    if (strcmp(arguments[i], "DEMO") == 0) all[i + 1] = demo_path;
  }
  program_start_reading(to, folder, all, input);
}

static json_t *parse(const char *text) {
  json_error_t error;
  json_t *root = json_loads(text, 0, &error);
  if (!root) fail_msg("no JSON: %s: %s", error.text, text);
  return root;
}

static json_t *run_json(const char *const *arguments, const char *input) {
  program_run done;
  run(&done, arguments, input);
  if (done.status != 0 || done.err_bytes != 0) fail_msg("exit %d, said: %s", done.status, done.err);
  json_t *root = parse(done.out);
  program_finish(&done);
  return root;
}

/* Ends with exit status 1 and one line that holds `said`. */
static void expect_refusal(const char *const *arguments, const char *input, const char *said) {
  program_run done;
  run(&done, arguments, input);
  const char *newline = strchr(done.err, '\n');
  if (done.status != 1 || !newline || newline[1] || !strstr(done.err, said) || done.out_bytes)
    fail_msg("exit %d, %zu bytes of output, said: %s", done.status, done.out_bytes, done.err);
  program_finish(&done);
}

#define RUN(input, ...) run_json((const char *const[]){"run", "MODEL", "--json", __VA_ARGS__, NULL}, input)

static const json_t *at(const json_t *object, const char *path) {
  char names[128];
  (void)snprintf(names, sizeof names, "%s", path);
  for (char *name = strtok(names, "."); name; name = strtok(NULL, ".")) {
    object = json_object_get(object, name);
    if (!object) fail_msg("the JSON lacks \"%s\"", path);
  }
  return object;
}

static double number_at(const json_t *object, const char *path) {
  assert_true(json_is_number(at(object, path)));
  return json_number_value(at(object, path));
}

static const char *text_at(const json_t *object, const char *path) {
  assert_true(json_is_string(at(object, path)));
  return json_string_value(at(object, path));
}

static void expect_within(double got, double least, double most, const char *what) {
  if (!(got >= least && got <= most)) fail_msg("%s: %.1f is not %.1f to %.1f", what, got, least, most);
}

static void expect_near(double got, double expected, const char *what) {
  expect_within(got, 0.95 * expected, 1.05 * expected, what);
}

static void expect_same_files(const char *left, const char *right) {
  char path[1024];
  size_t n_left = 0, n_right = 0;
  (void)snprintf(path, sizeof path, "%s/%s", folder, left);
  char *a = read_file(path, &n_left);
  (void)snprintf(path, sizeof path, "%s/%s", folder, right);
  char *b = read_file(path, &n_right);
  assert_int_equal(n_left, n_right);
  assert_memory_equal(a, b, n_left);
  free(a);
  free(b);
}

/* ---- plans ---- */

static const char *const ways[][4] = {{"--budget", "5%", "--prefill", "layerwise"},
                                      {"--budget", "5%", "--prefill", "oneshot"},
                                      {"--budget", "5%", "--chunk-evict", "256"},
                                      {"--kv", "f16", "--policy", "full"}};

static json_t *expect_plan_kept(const char *prompt, const char *const way[4], const char *kept) {
  json_t *plan = RUN("", "--ids", prompt, "-n", "40", way[0], way[1], way[2], way[3], "--dry-run");
  json_t *done = RUN("", "--ids", prompt, "-n", "40", way[0], way[1], way[2], way[3], "--dump-kept", kept);
  const char *peak = "memory_bytes.peak";
  assert_true(json_is_true(at(plan, "plan.fits")));
  assert_true(number_at(done, "memory_bytes.planned") == number_at(plan, "plan.peak"));
  expect_near(number_at(done, peak), number_at(plan, "plan.peak"), peak);
  expect_near(number_at(done, "kv_bytes.peak"), number_at(plan, "plan.kv.peak"), "kv_bytes.peak");
  expect_near(number_at(done, "kv_bytes.full"), number_at(plan, "plan.kv.full"), "kv_bytes.full");
  if (!strcmp(text_at(done, "stopped"), "length"))
    expect_near(number_at(done, "kv_bytes.at_end"), number_at(plan, "plan.kv.steady"), "kv_bytes.at_end");
  json_decref(plan);
  return done;
}

/* Whichever way a prompt is read, the plan is what is taken. */
static void test_plans(void **state) {
  (void)state;
  for (size_t i = 0; i < 3; i++) {
    static const char *const kept[4] = {"layerwise.st", "oneshot.st", "chunks.st", "full.st"};
    json_t *done[4];
    for (size_t w = 0; w < 4; w++) done[w] = expect_plan_kept(ids[i], ways[w], kept[w]);
    expect_same_files(kept[0], kept[1]);
    assert_true(json_equal(at(done[0], "token_ids"), at(done[1], "token_ids")));
    assert_string_equal(text_at(done[0], "text"), text_at(done[1], "text"));
    assert_true(number_at(done[0], "memory_bytes.peak") < number_at(done[1], "memory_bytes.peak"));
    for (size_t w = 0; w < 4; w++) json_decref(done[w]);
  }
}

static void expect_fit(const char *prompt, const char *budget, const char *memory, bool fits) {
  program_run done;
  run(&done,
      (const char *const[]){"run", "MODEL", "--json", "--ids", prompt, "-n", "8", "--budget", budget,
                            "--memory", memory, "--dry-run", NULL},
      "");
  if (done.status != !fits) fail_msg("budget %s: exit %d, said: %s", budget, done.status, done.err);
  json_t *plan = parse(done.out);
  assert_true(json_is_true(at(plan, "plan.fits")) == fits);
  json_decref(plan);
  program_finish(&done);
}

/* The advice of a refusal is right: so much fits, and one more does not. */
static void test_largest(void **state) {
  (void)state;
  char budget[16], memory[32], refusal[96], prompt[sizeof ids[0]];
  program_run done;
  /* What a budget of 150 takes, in half KiB, is too little for twice that. */
  json_t *less = RUN("", "--ids", ids[1], "-n", "8", "--budget", "150", "--dry-run");
  const unsigned n_halves = (unsigned)(number_at(less, "plan.peak") / 512) + 1;
  (void)snprintf(memory, sizeof memory, "%.1fKiB", n_halves * 0.5);
  (void)snprintf(refusal, sizeof refusal, " bytes of device memory, %u are free", n_halves * 512);
  json_decref(less);
  run(&done,
      (const char *const[]){"run", "MODEL", "--json", "--ids", ids[1], "-n", "8", "--budget", "300",
                            "--memory", memory, "--dry-run", NULL},
      "");
  assert_int_equal(done.status, 1);
  assert_non_null(strstr(done.err, "entries at most or a prompt of"));
  json_t *plan = parse(done.out);
  const int most_entries = (int)number_at(plan, "plan.largest_budget");
  const size_t most_tokens = (size_t)number_at(plan, "plan.largest_prompt");
  assert_true(number_at(plan, "plan.free") == n_halves * 512.0);
  expect_within(most_entries, 150, 299, "largest_budget");
  expect_within((double)most_tokens, 33, 1199, "largest_prompt");
  json_decref(plan);
  program_finish(&done);
  for (int more = 0; more < 2; more++) {
    (void)snprintf(budget, sizeof budget, "%d", most_entries + more);
    expect_fit(ids[1], budget, memory, !more);
    /* All ids have four digits and a comma. */
    (void)snprintf(prompt, sizeof prompt, "%.*s", (int)(5 * (most_tokens + (size_t)more) - 1), ids[1]);
    expect_fit(prompt, "300", memory, !more);
  }
  expect_refusal((const char *const[]){"run", "MODEL", "--ids", ids[1], "-n", "8", "--budget", "300",
                                       "--memory", memory, NULL},
                 "", refusal);
}

/* ---- bounds ---- */

static void test_tail(void **state) {
  (void)state;
  json_t *bounded = RUN("", "--ids", ids[0], "--budget", "64", "--tail", "16", "-n", "60");
  json_t *free_tail = RUN("", "--ids", ids[0], "--budget", "64", "-n", "60");
  assert_int_equal(json_array_size(at(bounded, "token_ids")), 60);
  assert_true(number_at(bounded, "most_entries") == 64 + 16);
  assert_true(number_at(bounded, "evictions") == 1 + 3);
  assert_true(number_at(free_tail, "most_entries") == 64 + 59);
  assert_true(number_at(free_tail, "evictions") == 1);
  json_decref(bounded);
  json_decref(free_tail);
}

/* What a chunk adds, what was kept before it, and its copy while it is packed. */
static void test_chunks(void **state) {
  (void)state;
  json_t *done = RUN("", "--ids", ids[1], "--budget", "5%", "--chunk-evict", "100", "-n", "4");
  assert_true(json_is_true(at(done, "approximate")));
  assert_string_equal(text_at(done, "prefill"), "chunks");
  assert_true(number_at(done, "kv_bytes.kept") == 60.0 * N_HEADS * ENTRY_BYTES);
  expect_within(number_at(done, "kv_bytes.peak"), 160.0 * N_HEADS * ENTRY_BYTES,
                220.0 * N_HEADS * ENTRY_BYTES, "kv_bytes.peak");
  json_decref(done);
  done = RUN("", "--ids", ids[0], "--budget", "5%", "-n", "4");
  assert_true(json_is_false(at(done, "approximate")));
  json_decref(done);
}

/* ---- conversations ---- */

#define TEN_QUESTIONS                                                                                        \
  "Question: What is the secret number of the rusty lantern? Answer:\n"                                      \
  " Question: Where does the river go? Answer:\n"                                                            \
  "\n"                                                                                                       \
  " Question: What did the astronomer do on clear nights? Answer:\n"                                         \
  " Who?\r\n"                                                                                                \
  " Question: What is the secret number of the rusty lantern? Answer:\n"                                     \
  " And after the fair?\n"                                                                                   \
  " So it is.\n"                                                                                             \
  " Question: How many letters did it take? Answer:\n"                                                       \
  " Once more, the lantern's number?\n"                                                                      \
  " Goodbye"

/* Entries never exceed the budget, the tail and the turn that is being read. */
static void check_turns(const json_t *root, double budget, double tail) {
  const json_t *turns = at(root, "turns");
  double longest = 0;
  assert_int_equal(json_array_size(turns), 10);
  for (size_t i = 0; i < 10; i++) {
    const json_t *turn = json_array_get(turns, i);
    const double n = number_at(turn, "prompt_tokens"), entries = number_at(turn, "entries_at_end");
    assert_int_equal(json_array_size(at(turn, "token_ids")), 6);
    expect_within(entries, budget, budget + tail, "entries_at_end");
    /* Buffers have some room for tokens to come. */
    expect_within(number_at(turn, "kv_bytes.at_end"), entries * N_HEADS * ENTRY_BYTES,
                  (budget + tail + 32) * N_HEADS * ENTRY_BYTES, "kv_bytes.at_end");
    if (i && n > longest) longest = n;
  }
  expect_within(number_at(root, "most_entries"), budget, budget + tail + longest, "most_entries");
}

static json_t *talk(const char *more) {
  return RUN(TEN_QUESTIONS, "--interactive", "-f", "document.txt", "--budget", "96", "--tail", "24", "-n",
             "6", more);
}

static void test_ten_turns(void **state) {
  (void)state;
  json_t *first = talk("--json"), *again = talk("--json");
  check_turns(first, 96, 24);
  assert_true(number_at(first, "evictions") >= 5);
  assert_true(json_equal(at(first, "turns"), at(again, "turns")));
  json_decref(first);
  json_decref(again);
  first = talk("--evict-before-question");
  check_turns(first, 96, 24);
  const json_t *turn = json_array_get(at(first, "turns"), 0);
  /* The first question stands behind the document's budget, whole. */
  assert_true(number_at(turn, "entries_at_end") == 96 + number_at(turn, "prompt_tokens") + 5);
  json_decref(first);
}

/* Without a tail every turn is evicted; without a budget none is. */
static void test_turns_without_bounds(void **state) {
  (void)state;
  static const char two[] = " Where is the lantern?\n And the river?\n";
  json_t *done = RUN(two, "--interactive", "-f", "document.txt", "--budget", "80", "-n", "4");
  assert_int_equal(json_array_size(at(done, "turns")), 2);
  assert_true(number_at(done, "evictions") == 2);
  for (size_t i = 0; i < 2; i++)
    assert_true(number_at(json_array_get(at(done, "turns"), i), "entries_at_end") == 80 + 3);
  json_decref(done);
  done = RUN(two, "--interactive", "-n", "4");
  assert_true(number_at(done, "evictions") == 0);
  const json_t *turns = at(done, "turns");
  double n = 0;
  for (size_t i = 0; i < 2; i++) n += number_at(json_array_get(turns, i), "prompt_tokens") + 3;
  assert_true(number_at(json_array_get(turns, 1), "entries_at_end") == n);
  json_decref(done);
  done = RUN("", "--interactive", "-f", "document.txt");
  assert_int_equal(json_array_size(at(done, "turns")), 0);
  json_decref(done);
}

/* For people: answers, and nothing else, on standard output. */
static void test_talk_text(void **state) {
  (void)state;
  program_run done;
  run(&done,
      (const char *const[]){"run", "MODEL", "--interactive", "-f", "DEMO", "--budget", "10%", "-n", "8",
                            "--stop", ".", NULL},
      "\n");
  assert_int_equal(done.status, 0);
  assert_int_equal(done.out_bytes, 0);
  program_finish(&done);
  json_t *doc = RUN("", "-f", "DEMO", "--budget", "10%", "-n", "0", "--save-cache", "demo.cache");
  json_decref(doc);
  run(&done,
      (const char *const[]){"run", "MODEL", "--load-cache", "demo.cache", "--interactive", "-n", "8",
                            "--stop", ".", NULL},
      " 48213. Question: What is the secret number of the rusty lantern? Answer:\n");
  assert_int_equal(done.status, 0);
  assert_string_equal(done.out, " 48213\n");
  assert_non_null(strstr(done.err, "1 turn\n"));
  program_finish(&done);
}

static void test_context_is_full(void **state) {
  (void)state;
  static const char document[] = "For every letter of this document of some eighty there is a token.";
  const char *const small[] = {"run", "small.gguf", "-p",     document, "--interactive", "--budget", "40",
                               "-n",  "8",          "--json", NULL};
  expect_refusal(small, "What?\nWhy is it that a question can be too long?\n",
                 "small.gguf reads 100 at most");
}

/* ---- saved caches ---- */

static void test_saved_cache(void **state) {
  (void)state;
  static const char more[] = " The river went back to being";
  json_t *straight =
      RUN("", "-f", "document.txt", "--budget", "64", "-n", "24", "--save-cache", "kept.cache");
  json_t *loaded = RUN("", "--load-cache", "kept.cache", "-n", "24");
  assert_true(json_equal(at(straight, "token_ids"), at(loaded, "token_ids")));
  assert_true(json_equal(at(straight, "kept_per_head"), at(loaded, "kept_per_head")));
  assert_true(number_at(loaded, "prompt_tokens") == 0);
  assert_true(number_at(loaded, "loaded_tokens") == number_at(straight, "prompt_tokens"));
  json_decref(straight);
  json_decref(loaded);
  straight =
      RUN("", "-f", "document.txt", "-p", more, "--evict-before-question", "--budget", "64", "-n", "24");
  loaded = RUN("", "--load-cache", "kept.cache", "-p", more, "-n", "24");
  assert_true(json_equal(at(straight, "token_ids"), at(loaded, "token_ids")));
  assert_true(number_at(straight, "most_entries") == number_at(loaded, "most_entries"));
  json_decref(straight);
  json_decref(loaded);
  /* The same tail, evicted again at the same moments. */
  straight = RUN("", "-f", "document.txt", "--budget", "64", "--tail", "10", "-n", "24");
  loaded = RUN("", "--load-cache", "kept.cache", "--budget", "64", "--tail", "10", "-n", "24");
  assert_true(json_equal(at(straight, "token_ids"), at(loaded, "token_ids")));
  assert_true(number_at(straight, "evictions") == number_at(loaded, "evictions") + 1);
  json_decref(straight);
  json_decref(loaded);
  expect_refusal((const char *const[]){"run", "OTHER", "--load-cache", "kept.cache", NULL}, "",
                 "kept.cache: the cache of another model");
}

/* A file and a prompt are one text, unless the eviction comes between them. */
static void test_two_texts(void **state) {
  (void)state;
  char path[1024];
  size_t n = 0;
  (void)snprintf(path, sizeof path, "%s/document.txt", folder);
  char *document = read_file(path, &n);
  char *both = calloc(n + 64, 1);
  assert_non_null(both);
  memcpy(both, document, n);
  (void)snprintf(both + n, 64, " Who was it?");
  json_t *joined = RUN("", "-p", both, "--budget", "64", "-n", "6");
  json_t *apart = RUN("", "-f", "document.txt", "-p", " Who was it?", "--budget", "64", "-n", "6");
  assert_true(json_equal(at(joined, "token_ids"), at(apart, "token_ids")));
  assert_true(json_equal(at(joined, "kept_per_head"), at(apart, "kept_per_head")));
  json_decref(apart);
  apart = RUN("", "-f", "document.txt", "-p", " Who was it?", "--budget", "64", "-n", "6",
              "--evict-before-question");
  assert_false(json_equal(at(joined, "kept_per_head"), at(apart, "kept_per_head")));
  expect_within(number_at(apart, "entries_at_end"), 64 + 3 + 5, 64 + 6 + 5, "entries_at_end");
  json_decref(joined);
  json_decref(apart);
  free(document);
  free(both);
}

/* ---- the working folder ---- */

static void make_ids(void) {
  uint32_t random = 7;
  for (size_t i = 0; i < 3; i++) {
    char *end = ids[i];
    for (uint32_t t = 0; t < lengths[i]; t++) {
      random = random * 1664525u + 1013904223u;
      end += sprintf(end, "%s%u", t ? "," : "", 1000 + (random >> 8) % 1000);
    }
  }
}

static int set_up(void **state) {
  (void)state;
  static const test_model small = {.n_layers = 2,
                                   .n_heads = 2,
                                   .n_kv_heads = 1,
                                   .head_dim = 16,
                                   .model_dim = 32,
                                   .feed_forward_dim = 32,
                                   .n_vocab = 258,
                                   .context_length = 100,
                                   .dtype = LAPROX_DTYPE_F16,
                                   .seed = 3};
  const char *data = getenv("LAPROX_TEST_DATA");
  program_path = getenv("LAPROX_PROGRAM");
  if (!data || !program_path) return -1;
  (void)snprintf(model_path, sizeof model_path, "%s/model-f16.gguf", data);
  (void)snprintf(other_path, sizeof other_path, "%s/model-f32.gguf", data);
  (void)snprintf(demo_path, sizeof demo_path, "%s/demo.txt", data);
  make_ids();
  folder_create(folder);
  char path[1024];
  size_t n = 0;
  char *demo = read_file(demo_path, &n);
  (void)snprintf(path, sizeof path, "%s/document.txt", folder);
  write_file(path, demo, n < 1200 ? n : 1200);
  free(demo);
  (void)snprintf(path, sizeof path, "%s/small.gguf", folder);
  return model_file_write(path, &small) ? 0 : -1;
}

static int tear_down(void **state) {
  (void)state;
  folder_destroy(folder);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_plans),       cmocka_unit_test(test_largest),
      cmocka_unit_test(test_tail),        cmocka_unit_test(test_chunks),
      cmocka_unit_test(test_ten_turns),   cmocka_unit_test(test_turns_without_bounds),
      cmocka_unit_test(test_talk_text),   cmocka_unit_test(test_context_is_full),
      cmocka_unit_test(test_saved_cache), cmocka_unit_test(test_two_texts),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
