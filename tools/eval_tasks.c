/* eval_tasks.c: one line of a file of tasks: laprox's own, RULER's, or LongBench's. */
#include "eval.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OWN_TOKENS = 128 };

/* LongBench's data sets: metric and length of the answer are theirs, the wording of the prompts is not. */
typedef struct data_set {
  const char *name;
  metric metric;
  uint32_t max_tokens;
  bool first_line;
  const char *prompt;
} data_set;

#define QUESTION_PROMPT                                                                                      \
  "Read the text and answer the question in a few words.\n\nText: {context}\n\nQuestion: {input}\nAnswer:"
#define SUMMARY_PROMPT                                                                                       \
  "Read the text and write a summary of it in one page.\n\nText: {context}\n\n{input}\nSummary:"
#define EXAMPLES_PROMPT "{context}\n{input}"
#define CODE_PROMPT     "{context}{input}Next line of code:\n"

static const data_set data_sets[] = {
    {"narrativeqa", METRIC_F1, 128, false, QUESTION_PROMPT},
    {"qasper", METRIC_F1, 128, false, QUESTION_PROMPT},
    {"multifieldqa_en", METRIC_F1, 64, false, QUESTION_PROMPT},
    {"hotpotqa", METRIC_F1, 32, false, QUESTION_PROMPT},
    {"2wikimqa", METRIC_F1, 32, false, QUESTION_PROMPT},
    {"musique", METRIC_F1, 32, false, QUESTION_PROMPT},
    {"gov_report", METRIC_ROUGE_L, 512, false, SUMMARY_PROMPT},
    {"qmsum", METRIC_ROUGE_L, 512, false, SUMMARY_PROMPT},
    {"multi_news", METRIC_ROUGE_L, 512, false, SUMMARY_PROMPT},
    {"trec", METRIC_CLASSIFICATION, 64, true, EXAMPLES_PROMPT},
    {"triviaqa", METRIC_F1, 32, true, EXAMPLES_PROMPT},
    {"samsum", METRIC_ROUGE_L, 128, true, EXAMPLES_PROMPT},
    {"passage_retrieval_en", METRIC_RETRIEVAL, 32, false,
     "Below are numbered paragraphs and a summary of one of them.\n\n{context}\n\nSummary: {input}\n\nWhich "
     "paragraph is it? "
     "Answer like \"Paragraph 1\". Answer: "},
    {"passage_count", METRIC_COUNT, 32, false,
     "Below are paragraphs, some of them more than once. How many different ones are "
     "there?\n\n{context}\n\n{input}\nThe "
     "number of different paragraphs is"},
    {"lcc", METRIC_EDIT, 64, false, CODE_PROMPT},
    {"repobench-p", METRIC_EDIT, 64, false, CODE_PROMPT},
};

static int fail_line(const task_place *place, const char *what) {
  return fail_impossible("%s, line %u: %s", place->path, place->number, what);
}

static const char *text_of(const json_t *root, const char *key) {
  return json_string_value(json_object_get(root, key));
}

/* A list of strings as references; NULL: out of memory or something else in it. */
static const char **strings(const json_t *list, size_t *n) {
  *n = json_array_size(list);
  const char **texts = malloc((*n + 1) * sizeof *texts);
  for (size_t i = 0; i < *n && texts; i++) {
    texts[i] = json_string_value(json_array_get(list, i));
    if (texts[i]) continue;
    free(texts);
    return NULL;
  }
  return texts;
}

static bool take_answers(task *t, json_t *list) {
  t->answers.texts = strings(list, &t->answers.n);
  return t->answers.texts && t->answers.n;
}

static void take_number(const json_t *root, const char *key, uint32_t *to) {
  const json_int_t value = json_integer_value(json_object_get(root, key));
  if (value > 0 && value < UINT32_MAX) *to = (uint32_t)value;
}

/* ---- the three kinds ---- */

static int take_own(task *t, const task_place *place) {
  const json_t *prompt = json_object_get(t->root, "prompt");
  const char *name = text_of(t->root, "task"), *answer = text_of(t->root, "answer");
  const char *question = text_of(t->root, "question"), *which = text_of(t->root, "metric");
  if (!name || !json_is_string(prompt) || !answer)
    return fail_line(place, "no task, prompt and answer in it");
  if (which) t->metric = metric_find(which);
  if (t->metric == N_METRICS) return fail_line(place, "unknown metric");
  json_t *answers = which ? json_object_get(t->root, "answers") : NULL;
  json_t *alone = answers ? NULL : json_pack("[s]", answer);
  if (alone) json_object_set_new(t->root, "answer alone", alone);
  if (!take_answers(t, answers ? answers : alone)) return fail_line(place, "answers that are no texts");
  snprintf(t->name, sizeof t->name, "%s", name);
  const char *text = json_string_value(prompt);
  const size_t n = json_string_length(prompt), n_question = question ? strlen(question) : 0;
  if (n_question > n || (n_question && memcmp(text + n - n_question, question, n_question) != 0))
    return fail_line(place, "the prompt does not end with the question");
  if (n == n_question) return fail_line(place, "the prompt is empty");
  text_add(&t->document, text, n - n_question);
  text_add(&t->question, text + n - n_question, n_question);
  return EXIT_DONE;
}

/* The last line is the question; an answer prefix belongs to it. */
static int take_ruler(task *t, const task_place *place) {
  const char *input = text_of(t->root, "input"), *prefix = text_of(t->root, "answer_prefix");
  const char *name = text_of(t->root, "task"), *file = strrchr(place->path, '/');
  if (!input || !*input || !take_answers(t, json_object_get(t->root, "outputs")))
    return fail_line(place, "no input and outputs in it");
  snprintf(t->name, sizeof t->name, "%s", name ? name : file ? file + 1 : place->path);
  t->name[strcspn(t->name, ".")] = 0;
  t->metric = strncmp(t->name, "qa", 2) == 0 ? METRIC_MATCH_PART : METRIC_MATCH_ALL;
  const char *line = strrchr(input, '\n');
  const size_t n = line && line != input ? (size_t)(line - input) : strlen(input);
  text_add(&t->document, input, n);
  text_addf(&t->question, "%s%s", input + n, prefix ? prefix : "");
  return EXIT_DONE;
}

static int fill_template(task *t, const task_place *place, const char *prompt, const char *context,
                         const char *input) {
  const char *at = strstr(prompt, "{context}"), *in = strstr(prompt, "{input}");
  if (!at || (in && in < at)) return fail_line(place, "a template needs {context}, and {input} behind it");
  const char *rest = at + strlen("{context}");
  text_add(&t->document, prompt, (size_t)(at - prompt));
  text_addf(&t->document, "%s", context);
  if (in)
    text_addf(&t->question, "%.*s%s%s", (int)(in - rest), rest, input, in + strlen("{input}"));
  else
    text_addf(&t->question, "%s", rest);
  return EXIT_DONE;
}

static int take_longbench(task *t, const task_place *place) {
  const char *context = text_of(t->root, "context"), *input = text_of(t->root, "input"),
             *name = text_of(t->root, "dataset");
  const data_set *set = NULL;
  if (!context || !*context || !name || !take_answers(t, json_object_get(t->root, "answers")))
    return fail_line(place, "no context, answers and dataset in it");
  for (size_t i = 0; i < sizeof data_sets / sizeof *data_sets; i++)
    if (strcmp(data_sets[i].name, name) == 0) set = &data_sets[i];
  if (!set) return fail_line(place, "no metric is known for its dataset");
  snprintf(t->name, sizeof t->name, "%s", name);
  t->metric = set->metric;
  t->max_tokens = set->max_tokens;
  t->first_line = set->first_line;
  t->may_shorten = true;
  t->answers.classes = strings(json_object_get(t->root, "all_classes"), &t->answers.n_classes);
  return fill_template(t, place, place->prompt_template ? place->prompt_template : set->prompt, context,
                       input ? input : "");
}

int task_init(const char *line, const task_place *place, task *out) {
  json_error_t error;
  *out = (task){.root = json_loads(line, 0, &error), .max_tokens = OWN_TOKENS};
  if (!out->root) return fail_line(place, error.text);
  int status = json_object_get(out->root, "outputs")   ? take_ruler(out, place)
               : json_object_get(out->root, "context") ? take_longbench(out, place)
                                                       : take_own(out, place);
  take_number(out->root, "max_tokens", &out->max_tokens);
  take_number(out->root, "length", &out->length);
  if (out->may_shorten) out->length = 0; /* LongBench's counts words */
  if (!status && (out->document.failed || out->question.failed)) status = fail_impossible("out of memory");
  if (status) task_finish(out);
  return status;
}

void task_finish(task *t) {
  free((void *)t->answers.texts);
  free((void *)t->answers.classes);
  text_finish(&t->document);
  text_finish(&t->question);
  json_decref(t->root);
  *t = (task){0};
}

double task_depth(const json_t *root) {
  const double n = json_number_value(json_object_get(root, "n_tokens"));
  const json_t *first = json_array_get(json_array_get(json_object_get(root, "needle_pos"), 0), 0);
  const double depth = n > 0 && json_is_number(first) ? json_number_value(first) / n : -1;
  return depth >= 0 && depth <= 1 ? depth : -1;
}
