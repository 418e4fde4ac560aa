/* test_report.c: `laprox report` on made-up results, and its page in Chromium where there is one. POSIX. */
#define _POSIX_C_SOURCE 200809L
#include "support/tool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- made-up results ---- */

static const char *const settings[] = {
    "full",   "laprox",  "laprox+gqa=joint",    "laprox+no-normalize+pool=max:7",
    "snapkv", "adakv",   "pyramidkv",           "streaming",
    "random", "keydiff", "<i>tova</i> & \"co\""};
static const char *const budgets[] = {"40%", "20%", "10%", "5%", "2.5%"};
static const double shares[] = {0.4, 0.2, 0.1, 0.05, 0.025};
static const char *const tasks[] = {"niah_single", "niah_multikey", "niah_multivalue", "passkey"};
enum { N_SETTINGS = 11, N_BUDGETS = 5, N_TASKS = 4, N_LAYERS = 4, N_HEADS = 2, N_BINS = 32, MAP_BINS = 64 };

static json_t *repeated(int n, double value, int *wave) {
  json_t *list = json_array();
  for (int i = 0; i < n; i++) json_array_append_new(list, json_real(value * (1 + (++*wave * 7 % 5) / 10.0)));
  return list;
}

static json_t *about(int s, int b, bool known) {
  return json_pack("{s:s, s:s, s:s, s:s}", "policy", s ? "laprox" : "full", "settings", settings[s], "budget",
                   s ? budgets[b] : "100%", "question", known ? "known" : "unknown");
}

static json_t *make_result(int s, int b, bool known, int task, int length) {
  int wave = s + b;
  const double full = 2048.0 * length, share = s ? shares[b] : 1,
               score = s ? (s * 13 + b * 29 + task * 7) % 101 / 100.0 : 1;
  json_t *row = about(s, b, known), *layers = json_array(), *depths = json_array();
  for (int l = 0; l < N_LAYERS; l++) json_array_append_new(layers, repeated(N_HEADS, share * length, &wave));
  for (int d = 0; d < 10; d++)
    json_array_append_new(depths,
                          json_pack("{s:f, s:i, s:f}", "depth", (d + 0.5) / 10, "n", 5, "score", score));
  json_t *rest =
      json_pack("{s:s, s:i, s:i, s:i, s:f, s:[f, f], s:f, s:f, s:o, s:o, s:o}", "task", tasks[task], "length",
                length, "n_tokens", length, "n", 50, "score", score, "ci95", score > 0.1 ? score - 0.1 : 0,
                score < 0.9 ? score + 0.1 : 1, "kv_bytes", share * full, "kv_full_bytes", full, "depths",
                depths, "kept_per_head", layers, "kept_by_position", repeated(N_BINS, 1.0 / N_BINS, &wave));
  json_object_update(row, rest);
  json_decref(rest);
  return row;
}

static json_t *make_example(void) {
  json_t *policies = json_array();
  for (int s = 0; s < N_SETTINGS; s++)
    for (int b = 0; b < (s ? N_BUDGETS : 1); b++) {
      int wave = 0;
      json_t *one = about(s, b, true), *map = json_array();
      for (int i = 0; i < N_LAYERS * N_HEADS; i++)
        json_array_append_new(map, repeated(MAP_BINS, 1 + s % 8, &wave));
      json_object_set_new(one, "map", map);
      json_array_append_new(policies, one);
    }
  return json_pack("{s:s, s:i, s:i, s:[[i, i]], s:o}", "task", tasks[0], "length", 512, "n_tokens", 512,
                   "needle_pos", 100, 115, "policies", policies);
}

static void write_results(const char *name, const char *model) {
  json_t *results = json_array(), *fidelity = json_array();
  for (int known = 1; known >= 0; known--)
    for (int s = 0; s < N_SETTINGS; s++)
      for (int b = 0; b < (s ? N_BUDGETS : 1); b++)
        for (int i = 0; i < 2 * N_TASKS; i++)
          json_array_append_new(results, make_result(s, b, known, i / 2, i % 2 ? 2048 : 512));
  for (int s = 0; s < N_SETTINGS; s++)
    for (int b = 0; b < (s ? N_BUDGETS : 1); b++) {
      json_t *row = about(s, b, true);
      json_object_update_new(row, json_pack("{s:i, s:f, s:[f, f], s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "n", 8,
                                            "kl", 0.01 * s * b, "ci95", 0.008 * s * b, 0.012 * s * b,
                                            "top1_agreement", 0.9, "attention_kept", 0.875, "output_error",
                                            0.0625, "perplexity", 31.0, "perplexity_full", 30.0, "kv_bytes",
                                            1e6 * (s ? shares[b] : 1), "kv_full_bytes", 1e6));
      json_array_append_new(fidelity, row);
    }
  json_t *root =
      json_pack("{s:s, s:[s], s:s, s:{s:[s, s], s:s}, s:o, s:o, s:o}", "model", model, "tasks", "tasks.jsonl",
                "device", "A device with <brackets>", "probes", "texts", "Which <one>?", "What?", "combine",
                "max", "results", results, "fidelity", fidelity, "example", make_example());
  char *text = json_dumps(root, 0);
  assert_non_null(text);
  tool_write_file(name, text);
  free(text);
  json_decref(root);
}

static void write_times(const char *name) {
  json_t *rows = json_array();
  for (int s = 0; s < N_SETTINGS; s++) {
    json_t *row = about(s, 0, true);
    json_object_update_new(row, json_pack("{s:s, s:i, s:i, s:f, s:f, s:f}", "task", tasks[0], "n_tokens", 512,
                                          "n", 50, "prefill_ms", 600.0, "evict_ms", 4.0 * s,
                                          "decode_per_token_ms", 3.0));
    json_array_append_new(rows, row);
  }
  json_t *root = json_pack("{s:s, s:s, s:o}", "model", "model.gguf", "device", "A device", "timing", rows);
  char *text = json_dumps(root, 0);
  assert_non_null(text);
  tool_write_file(name, text);
  free(text);
  json_decref(root);
}

static char *make_page(void) {
  write_results("results.json", "model.gguf");
  write_times("times.json");
  json_t *said = tool_run_json(
      (const char *const[]){"report", "results.json", "times.json", "-o", "page.html", "--json", NULL});
  assert_int_equal(json_integer_value(json_object_get(said, "pages")), 1);
  json_decref(said);
  char *page = tool_read_file("page.html");
  assert_non_null(page);
  return page;
}

/* ---- what is in it ---- */

static size_t count(const char *text, const char *part) {
  size_t n = 0;
  for (; (text = strstr(text, part)); text += strlen(part)) n++;
  return n;
}

static void test_page(void **state) {
  (void)state;
  static const char *const parts[] = {"Accuracy against memory",
                                      "Where needles are found",
                                      "What is kept",
                                      "Fidelity",
                                      "87.5&nbsp;%<td>0.062",
                                      "the max of the scores by <q>Which &lt;one&gt;?</q>, <q>What?</q>.",
                                      "Time",
                                      "Numbers",
                                      "prefers-color-scheme:dark",
                                      "A device with &lt;brackets&gt;",
                                      "&lt;i&gt;tova&lt;/i&gt; &amp; &quot;co&quot;",
                                      "512 tokens, question known",
                                      "2048 tokens, question not known"};
  static const char *const unwanted[] = {
      "<i>tova", "http:", "https:", "src=", "nan", "inf\"", "@import", "url("};
  char *page = make_page();
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    if (!strstr(page, parts[i])) fail_msg("no \"%s\" in the page", parts[i]);
  for (size_t i = 0; i < sizeof unwanted / sizeof *unwanted; i++)
    if (strstr(page, unwanted[i])) fail_msg("\"%s\" is in the page", unwanted[i]);
  /* two lengths, known and not: each all tasks and one by one; and the fidelity */
  assert_int_equal(count(page, "<figure class=\"chart\">"), 4 * (1 + N_TASKS) + 1);
  /* a line with a point for each budget, for each series in each chart */
  assert_int_equal(count(page, "class=\"bar\""),
                   (4 * (1 + N_TASKS) + 1) * (1 + (N_SETTINGS - 1) * N_BUDGETS));
  assert_int_equal(count(page, "<figure class=\"map\">"), 2 * N_BUDGETS + 2 * (N_SETTINGS - 1) * N_BUDGETS);
  assert_int_equal(count(page, "class=\"needle\""), (N_SETTINGS - 1) * N_BUDGETS);
  /* policy, 10 % of 512, on niah_single: as make_result says */
  assert_non_null(strstr(page, "laprox, 10%: 71.0 % ("));
  free(page);
}

static void test_refusals(void **state) {
  (void)state;
  write_results("results.json", "model.gguf");
  write_results("other.json", "other.gguf");
  tool_write_file("broken.json", "{\"model\": ");
  tool_write_file("empty.json", "{\"model\": \"model.gguf\", \"results\": []}");
  tool_write_file("odd.json", "{\"model\": \"m\", \"results\": [{\"policy\": \"x\", \"score\": 7}]}");
  tool_write_file("list.json", "[1]");
  tool_expect_failure(
      1, "not comparable",
      (const char *const[]){"report", "results.json", "other.json", "-o", "never.html", NULL});
  static const char *const bad[] = {"broken.json", "empty.json", "odd.json", "list.json", "absent.json"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    tool_expect_failure(1, bad[i], (const char *const[]){"report", bad[i], "-o", "never.html", NULL});
  assert_null(tool_read_file("never.html"));
  tool_expect_failure(2, "output", (const char *const[]){"report", "results.json", NULL});
  tool_expect_failure(2, "results", (const char *const[]){"report", "-o", "never.html", NULL});
}

/* ---- how it looks ---- */

static bool find_browser(char path[512]) {
  static const char *const names[] = {"chromium", "chromium-browser", "google-chrome"};
  const char *from = getenv("PATH");
  for (; from && *from; from += strcspn(from, ":"), from += *from == ':')
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
      snprintf(path, 512, "%.*s/%s", (int)strcspn(from, ":"), from, names[i]);
      if (access(path, X_OK) == 0) return true;
    }
  return false;
}

/* Texts of a drawing that cover each other or stand out of it, figures that do, and a page wider than its window. */
static const char check[] =
    "<pre id=verdict></pre><script>"
    "document.querySelectorAll('details').forEach(d=>d.open=true);"
    "const "
    "bad=[],hit=(a,b)=>Math.min(a.right,b.right)-Math.max(a.left,b.left)>1&&Math.min(a.bottom,b.bottom)-Math."
    "max(a.top,b.top)>1;"
    "const box=e=>e.getBoundingClientRect();let n=0;"
    "document.querySelectorAll('figure svg').forEach(s=>{const f=box(s),t=[...s.querySelectorAll('text')];"
    "if(f.width<100||f.height<30)bad.push('small drawing');"
    "t.forEach((e,i)=>{const r=box(e);n++;"
    "if(r.width<1||r.left<f.left-1||r.right>f.right+1||r.top<f.top-1||r.bottom>f.bottom+1)bad.push('outside: "
    "'+e.textContent);"
    "for(let k=i+1;k<t.length;k++)if(hit(r,box(t[k])))bad.push('over each other: '+e.textContent+' / "
    "'+t[k].textContent)})});"
    "const g=[...document.querySelectorAll('figure,h2,h3,p,table,summary')].map(box);"
    "g.forEach((r,i)=>{for(let k=i+1;k<g.length;k++)if(hit(r,g[k]))bad.push('blocks over each other: '+i+' "
    "'+k)});"
    "if(document.documentElement.scrollWidth>innerWidth+1)bad.push('wider than the window');"
    "const c=getComputedStyle(document.body);"
    "document.getElementById('verdict').textContent='VERDICT '+n+' texts, '+c.backgroundColor+' under "
    "'+c.color+', '+bad.length+' faults: '"
    "+bad.slice(0,5).join('; ')+' END'</script>";

static void look(const char *browser, const char *size, const char *scheme, const char *background) {
  char page[512], window[64], profile[512], verdict[600] = "";
  snprintf(page, sizeof page, "file://%s/checked.html", tool_folder);
  snprintf(profile, sizeof profile, "--user-data-dir=%s-profile", tool_folder);
  snprintf(window, sizeof window, "--window-size=%s", size);
  const char *arguments[] = {browser,
                             "--headless",
                             "--no-sandbox",
                             "--disable-gpu",
                             "--disable-dev-shm-usage",
                             "--no-first-run",
                             profile,
                             window,
                             scheme,
                             "--dump-dom",
                             page,
                             NULL};
  program_run result;
  program_start(&result, tool_folder, arguments, OUTPUT_KEPT);
  /* The script's own text has the word, too; what it says comes before it. */
  const char *said = strstr(result.out, ">VERDICT ");
  const char *end = said ? strstr(said, " END") : NULL;
  if (end) snprintf(verdict, sizeof verdict, "%.*s", (int)(end - said - 1), said + 1);
  if (!end) print_error("%s\n", result.err);
  if (!strstr(verdict, " 0 faults: ")) fail_msg("%s, %s: %s", size, scheme, verdict);
  if (!strstr(verdict, background)) fail_msg("%s, %s: %s", size, scheme, verdict);
  program_finish(&result);
}

static void test_in_browser(void **state) {
  (void)state;
  char browser[512], clean[600];
  if (!find_browser(browser)) {
    print_message("no Chromium: the page was not looked at\n");
    skip();
  }
  char *page = make_page(), *end = strstr(page, "</main>");
  assert_non_null(end);
  char *checked = malloc(strlen(page) + sizeof check);
  assert_non_null(checked);
  sprintf(checked, "%.*s%s%s", (int)(end - page), page, check, end);
  tool_write_file("checked.html", checked);
  look(browser, "1300,900", "--blink-settings=preferredColorScheme=1", "rgb(251, 251, 250)");
  look(browser, "700,900", "--blink-settings=preferredColorScheme=0", "rgb(20, 22, 26)");
  snprintf(clean, sizeof clean, "rm -rf '%s-profile'", tool_folder);
  assert_int_equal(system(clean), 0);
  free(checked);
  free(page);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_page),
      cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_in_browser),
  };
  return cmocka_run_group_tests(tests, tool_set_up, tool_tear_down);
}
