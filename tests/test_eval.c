/* test_eval.c: `laprox eval` as a user runs it, to its end and stopped at any moment. POSIX. */
#define _DEFAULT_SOURCE
#include "support/tool.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* The first n shipped prompts of about 512 tokens with one needle, and an empty line. */
static void write_tasks(const char *name, int n) {
  static char lines[1 << 16];
  char path[1024];
  size_t used = 0;
  snprintf(path, sizeof path, "%s/prompts/needle_512.jsonl", getenv("LAPROX_TEST_DATA"));
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  while (n > 0) {
    assert_non_null(fgets(lines + used, (int)(sizeof lines - used - 1), file));
    if (!strstr(lines + used, "\"single\"")) continue;
    used += strlen(lines + used);
    n--;
  }
  memcpy(lines + used, "\n", 2);
  fclose(file);
  tool_write_file(name, lines);
}

static json_int_t number(const json_t *row, const char *key) {
  assert_true(json_is_integer(json_object_get(row, key)));
  return json_integer_value(json_object_get(row, key));
}

static void test_eval(void **state) {
  (void)state;
  write_tasks("tasks.jsonl", 3);
  json_t *root =
      tool_run_json((const char *const[]){"eval", "MODEL", "--tasks", "tasks.jsonl", "--budgets", "100%,10%",
                                          "--policies", "laprox,streaming", "--json", NULL});
  const json_t *results = json_object_get(root, "results");
  static const char *const policies[] = {"full", "laprox", "streaming"};
  static const char *const budgets[] = {"100%", "10%", "10%"};
  assert_int_equal(json_array_size(results), 3);
  for (size_t i = 0; i < 3; i++) {
    const json_t *row = json_array_get(results, i);
    assert_string_equal(json_string_value(json_object_get(row, "policy")), policies[i]);
    assert_string_equal(json_string_value(json_object_get(row, "budget")), budgets[i]);
    assert_string_equal(json_string_value(json_object_get(row, "task")), "single");
    assert_int_equal(number(row, "n"), 3);
    assert_in_range(number(row, "n_tokens"), 450, 512);
    assert_int_equal(number(row, "kv_bytes") > 500000, i == 0);
    if (i < 2) assert_int_equal(number(row, "correct"), 3);
    if (i == 2) assert_in_range(number(row, "correct"), 0, 1);
  }
  json_decref(root);
  root = tool_run_json((const char *const[]){"eval", "MODEL", "--tasks", "tasks.jsonl", "--budgets", "100%",
                                             "--limit", "1", "--json", NULL});
  assert_int_equal(number(json_array_get(json_object_get(root, "results"), 0), "n"), 1);
  json_decref(root);
}

static void test_bad_tasks(void **state) {
  (void)state;
  tool_write_file("broken.jsonl", "\n{\"task\": \"single\", \"prompt\": \n");
  tool_write_file("empty.jsonl", "{\"task\": \"single\", \"prompt\": \"a\"}\n");
  tool_write_file("typed.jsonl", "{\"task\": \"single\", \"prompt\": 7, \"answer\": \"b\"}\n");
  tool_expect_failure(1, "broken.jsonl, line 2",
                      (const char *const[]){"eval", "MODEL", "--tasks", "broken.jsonl", NULL});
  tool_expect_failure(1, "empty.jsonl, line 1",
                      (const char *const[]){"eval", "MODEL", "--tasks", "empty.jsonl", NULL});
  tool_expect_failure(1, "typed.jsonl, line 1",
                      (const char *const[]){"eval", "MODEL", "--tasks", "typed.jsonl", NULL});
  tool_expect_failure(1, "none.jsonl", (const char *const[]){"eval", "MODEL", "--tasks", "none.jsonl", NULL});
  tool_expect_failure(2, "tasks", (const char *const[]){"eval", "MODEL", NULL});
  tool_expect_failure(
      2, "best", (const char *const[]){"eval", "MODEL", "--tasks", "x", "--policies", "laprox,best", NULL});
  tool_expect_failure(2, "list",
                      (const char *const[]){"eval", "MODEL", "--tasks", "x", "--budgets", "5%,,", NULL});
  tool_expect_failure(2, "ten",
                      (const char *const[]){"eval", "MODEL", "--tasks", "x", "--budgets", "ten", NULL});
}

static double real(const json_t *row, const char *key) {
  assert_true(json_is_number(json_object_get(row, key)));
  return json_number_value(json_object_get(row, key));
}

static const char *string(const json_t *row, const char *key) {
  assert_true(json_is_string(json_object_get(row, key)));
  return json_string_value(json_object_get(row, key));
}

/* ---- the question known and unknown, policies with settings ---- */

static void make_tasks(const char *name, const char *families, const char *n_tokens, const char *n) {
  program_run result = tool_run((const char *const[]){"tasks", "MODEL", "-o", name, "--task", families,
                                                      "--tokens", n_tokens, "-n", n, NULL});
  assert_int_equal(result.status, 0);
  program_finish(&result);
}

static double sum(const json_t *list) {
  double all = 0;
  size_t i;
  json_t *value;
  json_array_foreach(list, i, value) all += json_is_array(value) ? sum(value) : json_number_value(value);
  return all;
}

static void check_row(const json_t *row, bool known, bool full, bool is_q8_0) {
  const json_t *ends = json_object_get(row, "ci95");
  const double score = real(row, "score");
  assert_string_equal(string(row, "settings"), full      ? "full"
                                               : is_q8_0 ? "laprox+gqa=joint+kv=q8_0"
                                                         : "laprox");
  assert_string_equal(string(row, "question"), known ? "known" : "unknown");
  assert_int_equal(number(row, "length"), 400);
  assert_in_range(number(row, "n_tokens"), 397, 400);
  if (known || full) assert_int_equal(number(row, "correct"), 2);
  assert_true(fabs(score - (double)number(row, "correct") / 2) < 1e-6);
  assert_true(json_number_value(json_array_get(ends, 0)) <= score);
  assert_true(json_number_value(json_array_get(ends, 1)) >= score);
  /* 8 buffers, each of a whole number of the device's units. */
  const int64_t bytes = 8 * 50 * 2 * (is_q8_0 ? 68 : 64 * 2);
  if (!full) assert_in_range(number(row, "kv_bytes"), bytes, bytes + 8 * 64);
  if (!full) assert_true(fabs(sum(json_object_get(row, "kept_per_head")) - 400) < 1e-3);
  assert_true(fabs(sum(json_object_get(row, "kept_by_position")) - 1) < 1e-4);
  assert_true(json_array_size(json_object_get(row, "depths")) > 0);
}

static void test_questions(void **state) {
  (void)state;
  make_tasks("single.jsonl", "niah_single", "400", "2");
  json_t *root = tool_run_json((const char *const[]){
      "eval", "MODEL", "--tasks", "single.jsonl", "--question", "both", "--budgets", "100%,50", "--policies",
      "laprox,laprox+gqa=joint+kv=q8_0", "-o", "both.json", "--timing", "times.json", "--json", NULL});
  const json_t *results = json_object_get(root, "results");
  assert_int_equal(json_array_size(results), 6);
  for (size_t i = 0; i < 6; i++) check_row(json_array_get(results, i), i < 3, i % 3 == 0, i % 3 == 2);
  const json_t *maps = json_object_get(json_object_get(root, "example"), "policies");
  assert_int_equal(json_array_size(maps), 6);
  assert_true(sum(json_object_get(json_array_get(maps, 1), "map")) == 400);
  json_decref(root);
  char *timing = tool_read_file("times.json");
  assert_non_null(timing);
  assert_non_null(strstr(timing, "decode_per_token_ms"));
  free(timing);
  write_tasks("bare.jsonl", 1);
  tool_expect_failure(
      1, "no question",
      (const char *const[]){"eval", "MODEL", "--tasks", "bare.jsonl", "--question", "unknown", NULL});
  tool_expect_failure(
      2, "gqa",
      (const char *const[]){"eval", "MODEL", "--tasks", "x", "--policies", "snapkv+gqa=joint", NULL});
  tool_expect_failure(
      2, "needs a value",
      (const char *const[]){"eval", "MODEL", "--tasks", "x", "--policies", "laprox+window", NULL});
}

/* Cells of documents that a text's queries score. */
static void test_probes(void **state) {
  (void)state;
  make_tasks("probed.jsonl", "niah_single", "300", "2");
  json_t *root = tool_run_json(
      (const char *const[]){"eval", "MODEL", "--tasks", "probed.jsonl", "--question", "both", "--budgets",
                            "20%", "--policies", "laprox,laprox+probe,snapkv+probe", "--probe",
                            " What is the secret number of the tree? Answer:", "--probe", " The access code",
                            "--probe-combine", "max", "--json", NULL});
  static const char *const settings[] = {"laprox", "laprox", "laprox+probe", "snapkv+probe"};
  const json_t *results = json_object_get(root, "results");
  assert_int_equal(json_array_size(results), 4);
  for (size_t i = 0; i < 4; i++) {
    const json_t *row = json_array_get(results, i);
    assert_string_equal(string(row, "settings"), settings[i]);
    assert_string_equal(string(row, "question"), i ? "unknown" : "known");
    /* all budgets have equal bytes, whatever is protected; the document is shorter than the prompt */
    if (i) assert_int_equal(number(row, "kv_bytes"), number(json_array_get(results, 1), "kv_bytes"));
  }
  /* nothing is protected, so that the end of a document without an answer in it is not kept whole */
  const json_t *bins = json_object_get(json_array_get(results, 2), "kept_by_position");
  const json_t *protected_bins = json_object_get(json_array_get(results, 1), "kept_by_position");
  assert_true(json_number_value(json_array_get(bins, 31)) <
              json_number_value(json_array_get(protected_bins, 31)));
  const json_t *probes = json_object_get(root, "probes");
  assert_string_equal(string(probes, "combine"), "max");
  assert_int_equal(json_array_size(json_object_get(probes, "texts")), 2);
  json_decref(root);
#define REFUSED(...)                                                                                         \
  tool_expect_failure(2, "probe", (const char *const[]){"eval", "MODEL", "--tasks", "x", __VA_ARGS__, NULL})
  REFUSED("--probe", "a", "--question", "unknown");
  REFUSED("--policies", "laprox+probe", "--question", "unknown");
  REFUSED("--policies", "laprox+probe", "--probe", "a");
  REFUSED("--policies", "laprox+probe+window=8", "--probe", "a", "--question", "unknown");
  REFUSED("--policies", "streaming+probe", "--probe", "a", "--question", "unknown");
#undef REFUSED
}

/* ---- files of others ---- */

/* A shipped prompt in RULER's and in LongBench's layout. */
static void test_layouts(void **state) {
  (void)state;
  make_tasks("one.jsonl", "niah_single", "300", "1");
  char *line = tool_read_file("one.jsonl");
  json_t *root = json_loads(line, 0, NULL);
  assert_non_null(root);
  const char *prompt = string(root, "prompt"), *question = string(root, "question");
  char *document = strdup(prompt);
  assert_non_null(document);
  document[strlen(prompt) - strlen(question)] = 0;
  json_t *ruler = json_pack("{s:s, s:[s, s], s:i}", "input", prompt, "outputs", string(root, "answer"),
                            "absent", "max_tokens", 8);
  json_t *bench = json_pack("{s:s, s:s, s:[s], s:s, s:n}", "context", document, "input", question + 1,
                            "answers", string(root, "answer"), "dataset", "triviaqa", "all_classes");
  char *first = json_dumps(ruler, 0), *second = json_dumps(bench, 0);
  tool_write_file("niah_single_1.jsonl", first);
  tool_write_file("triviaqa.jsonl", second);
  json_t *out = tool_run_json((const char *const[]){
      "eval", "MODEL", "--tasks", "niah_single_1.jsonl", "--tasks", "triviaqa.jsonl", "--template",
      "{context}\n{input}", "--question", "unknown", "--budgets", "100%", "--json", NULL});
  const json_t *one = json_array_get(json_object_get(out, "results"), 0),
               *other = json_array_get(json_object_get(out, "results"), 1);
  assert_string_equal(string(one, "task"), "niah_single_1");
  assert_string_equal(string(one, "metric"), "match_all");
  assert_true(real(one, "score") == 0.5);
  assert_string_equal(string(other, "task"), "triviaqa");
  assert_string_equal(string(other, "metric"), "f1");
  assert_true(real(other, "score") > 0);
  json_decref(out);
  json_decref(ruler);
  json_decref(bench);
  json_decref(root);
  free(first);
  free(second);
  free(document);
  free(line);
}

/* ---- fidelity ---- */

static void test_fidelity(void **state) {
  (void)state;
  json_t *root =
      tool_run_json((const char *const[]){"eval", "MODEL", "--fidelity", "2", "--tokens", "200", "--budgets",
                                          "100%,40%,20%", "--policies", "laprox,streaming", "--json", NULL});
  const json_t *rows = json_object_get(root, "fidelity");
  assert_int_equal(json_array_size(rows), 5);
  for (size_t i = 0; i < 5; i++) {
    const json_t *row = json_array_get(rows, i);
    const double kl = real(row, "kl"), same = real(row, "top1_agreement");
    const double all = real(row, "perplexity_full"), some = real(row, "perplexity");
    const double mass = real(row, "attention_kept"), error = real(row, "output_error");
    assert_int_equal(json_array_size(json_object_get(row, "attention_kept_by_layer")), 4);
    assert_int_equal(json_array_size(json_object_get(row, "output_error_by_layer")), 4);
    assert_true(i ? mass > 0.1 && mass < 0.999 && error > 1e-3 && error < 2 : mass == 1 && error == 0);
    assert_int_equal(number(row, "n"), 2);
    assert_true(all > 1 && some > 1);
    if (i == 0)
      assert_true(kl == 0 && same == 1 && all == some);
    else
      assert_true(kl > 0 && kl < 5 && same > 0.2 && same <= 1 && all != some);
  }
  for (size_t i = 1; i < 5; i += 2) {
    const json_t *more = json_array_get(rows, i), *fewer = json_array_get(rows, i + 1);
    assert_true(real(more, "kl") < real(fewer, "kl"));
    assert_true(real(more, "attention_kept") > real(fewer, "attention_kept"));
    assert_true(real(more, "output_error") < real(fewer, "output_error"));
  }
  json_decref(root);
  tool_expect_failure(2, "tokens",
                      (const char *const[]){"eval", "MODEL", "--fidelity", "1", "--tokens", "5000", NULL});
}

/* ---- stopped and started again ---- */

enum { POLICIES_AT = 9, N_ROWS = 3, N_CELLS = 6, N_OUTCOMES = 15 };

static const char *const resumable[] = {
    "eval",       "MODEL",     "--tasks",  "two.jsonl",  "--question",
    "both",       "--budgets", "100%,40",  "--policies", "laprox,snapkv+kv=f32",
    "--fidelity", "1",         "--tokens", "100",        "-o",
    "out.json",   NULL};

/* Outcomes in the journal, each of them once. */
static size_t count_outcomes(void) {
  char *text = tool_read_file("out.json.partial"), *rest = NULL;
  bool seen[N_ROWS][N_CELLS] = {{false}};
  size_t n = 0;
  for (char *line = text ? strtok_r(text, "\n", &rest) : NULL; line; line = strtok_r(NULL, "\n", &rest)) {
    json_t *root = json_loads(line, 0, NULL);
    const json_t *row = json_object_get(root, "row"), *cell = json_object_get(root, "cell");
    if (row && cell) {
      bool *one = &seen[json_integer_value(row)][json_integer_value(cell)];
      assert_false(*one);
      *one = true;
      n++;
    }
    json_decref(root);
  }
  free(text);
  return n;
}

/* Starts the run and sends it `number` once there are n outcomes. */
static int stop_after(size_t n, int number) {
  const char *all[MAX_ARGUMENTS];
  int status = 0;
  tool_arguments(resumable, all);
  const pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    if (chdir(tool_folder) != 0 || !freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))
      _exit(126);
    execv(all[0], (char *const *)(uintptr_t)all);
    _exit(126);
  }
  while (count_outcomes() < n) {
    assert_int_equal(waitpid(child, &status, WNOHANG), 0);
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  kill(child, number);
  assert_int_equal(waitpid(child, &status, 0), child);
  return status;
}

static void run_to_end(void) {
  program_run result = tool_run(resumable);
  if (result.status) print_error("%s", result.err);
  assert_int_equal(result.status, 0);
  program_finish(&result);
  assert_null(tool_read_file("out.json.partial"));
}

/* As a kill in the middle of a line leaves it. */
static void tear_last_line(void) {
  char *journal = tool_read_file("out.json.partial");
  assert_non_null(journal);
  journal[strlen(journal) - 30] = 0;
  tool_write_file("out.json.partial", journal);
  free(journal);
}

static void test_stopped(void **state) {
  (void)state;
  char path[512];
  make_tasks("two.jsonl", "niah_single", "200", "2");
  run_to_end();
  char *undisturbed = tool_read_file("out.json");
  assert_non_null(undisturbed);
  snprintf(path, sizeof path, "%s/out.json", tool_folder);
  assert_int_equal(remove(path), 0);

  size_t before = 0;
  for (size_t n = 0; n < N_OUTCOMES; n += 2) {
    const int status = stop_after(n, n == 4 ? SIGTERM : SIGKILL);
    if (n == 4) assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    if (n != 4) assert_true(WIFSIGNALED(status));
    assert_true(count_outcomes() >= before && count_outcomes() >= n);
    assert_null(tool_read_file("out.json"));
    before = count_outcomes();
    if (n != 6) continue;
    tear_last_line();
    assert_int_equal(count_outcomes(), before - 1);
    before--;
  }
  const char *other[sizeof resumable / sizeof *resumable];
  memcpy(other, resumable, sizeof other);
  other[POLICIES_AT] = "laprox,streaming";
  tool_expect_failure(1, "other policies", other);
  assert_int_equal(count_outcomes(), before);

  run_to_end();
  char *resumed = tool_read_file("out.json");
  assert_non_null(resumed);
  assert_string_equal(resumed, undisturbed);
  free(resumed);
  free(undisturbed);
}

/* Somebody else has the journal, which only the system's lock says. */
static void test_locked(void **state) {
  (void)state;
  char path[512];
  write_tasks("locked.jsonl", 1);
  const char *const arguments[] = {"eval", "MODEL",       "--tasks", "locked.jsonl", "--budgets", "100%",
                                   "-o",   "locked.json", NULL};
  snprintf(path, sizeof path, "%s/locked.json.partial", tool_folder);
  FILE *journal = fopen(path, "ab");
  assert_non_null(journal);
  assert_int_equal(flock(fileno(journal), LOCK_EX), 0);
  tool_expect_failure(1, "another run", arguments);
  assert_null(tool_read_file("locked.json"));
  fclose(journal);
  program_run result = tool_run(arguments);
  assert_int_equal(result.status, 0);
  program_finish(&result);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_eval),    cmocka_unit_test(test_bad_tasks), cmocka_unit_test(test_questions),
      cmocka_unit_test(test_probes),  cmocka_unit_test(test_layouts),   cmocka_unit_test(test_fidelity),
      cmocka_unit_test(test_stopped), cmocka_unit_test(test_locked),
  };
  return cmocka_run_group_tests(tests, tool_set_up, tool_tear_down);
}
