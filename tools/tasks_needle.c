/* tasks_needle.c: facts in a haystack and a question about them. */
#include "tasks.h"

#include <stdio.h>
#include <string.h>

/* RULER's rules for its own wording; the shipped model was trained on the other numbers. */
enum { N_DEPTHS = 40, RULER_KEYS = 4, PLAIN_KEYS = 8, PLAIN_DIGITS = 5, RULER_DIGITS = 7 };

static const char *const attributes[] = {"secret number", "access code", "magic number", "account number"};

typedef struct fact {
  char key[KEY_BYTES], value[ANSWER_BYTES], needle[256];
  bool answers;
} fact;

/* ---- parts ---- */

void task_add_needle(task_case *out, const char *needle, bool answers) {
  const size_t first = out->prompt.n;
  text_add(&out->prompt, needle, strlen(needle));
  if (!answers || out->n_needles == MAX_NEEDLES) return;
  out->needles[out->n_needles].first = first;
  out->needles[out->n_needles++].end = out->prompt.n;
}

void task_add_answer(task_case *out, const char *answer) {
  if (out->n_answers < MAX_ANSWERS) snprintf(out->answers[out->n_answers++], ANSWER_BYTES, "%s", answer);
}

static void make_value(rng *r, uint32_t n_digits, char value[ANSWER_BYTES]) {
  for (uint32_t i = 0; i < n_digits; i++) value[i] = (char)('0' + rng_below(r, 10));
  /* RULER's numbers have no leading zero. */
  if (n_digits == RULER_DIGITS && value[0] == '0') value[0] = (char)('1' + rng_below(r, 9));
  value[n_digits] = 0;
}

static void make_key(rng *r, bool plain, char key[KEY_BYTES]) {
  const char *noun = task_nouns[rng_below(r, N_NOUNS)],
             *adjective = task_adjectives[rng_below(r, N_ADJECTIVES)];
  if (plain && rng_below(r, 2))
    snprintf(key, KEY_BYTES, "%s", noun);
  else
    snprintf(key, KEY_BYTES, plain ? "%s %s" : "%s-%s", adjective, noun);
}

/* Keys that differ from those before. */
static void make_keys(rng *r, bool plain, fact *facts, uint32_t n) {
  for (uint32_t i = 0, j; i < n; i++) do {
      make_key(r, plain, facts[i].key);
      for (j = 0; j < i && strcmp(facts[j].key, facts[i].key) != 0; j++) continue;
    } while (j < i);
}

static void write_needle(rng *r, bool plain, const char *attribute, fact *f) {
  static const char *const openings[] = {"The", "Remember that the", "Note: the"};
  if (plain)
    snprintf(f->needle, sizeof f->needle, " %s %s of the %.63s is %.63s.", openings[rng_below(r, 3)],
             attribute, f->key, f->value);
  else
    snprintf(f->needle, sizeof f->needle, " One of the special magic numbers for %.63s is: %.63s.", f->key,
             f->value);
}

/* ---- hay ---- */

uint32_t haystack_size(const haystack *hay) {
  return hay->size + hay->n_fillers;
}

/* A needle like those that answer, about something that is not asked for. */
static void add_false_needle(const task_plan *plan, uint32_t i, task_case *out) {
  rng r = rng_make(plan->r.state, UINT64_C(1) << 32 | i);
  fact f;
  uint32_t j;
  do {
    make_key(&r, plan->plain, f.key);
    for (j = 0; j < out->n_asked && strcmp(out->asked[j], f.key) != 0; j++) continue;
  } while (j < out->n_asked);
  make_value(&r, plan->plain ? PLAIN_DIGITS : RULER_DIGITS, f.value);
  write_needle(&r, plan->plain, out->attribute, &f);
  text_add(&out->prompt, f.needle, strlen(f.needle));
}

void task_add_hay(const task_plan *plan, uint32_t i, task_case *out) {
  const haystack *hay = &plan->hay;
  if (hay->kind == HAYSTACK_NEEDLES) {
    add_false_needle(plan, i, out);
  } else if (hay->kind == HAYSTACK_NOISE) {
    text_addf(&out->prompt, " %s", (plan->plain ? task_noise : ruler_noise)[(hay->start + i) % N_NOISE]);
  } else {
    const struct sentence *s =
        &hay->from->items[i < hay->size ? (hay->start + i) % hay->from->n : hay->fillers[i - hay->size]];
    text_add(&out->prompt, " ", 1);
    text_add(&out->prompt, s->bytes, s->n);
  }
}

/* Before which sentence each of n needles stands, ascending. In prose a single one goes through all depths from prompt
 * to prompt, in an order that the seed alone decides. */
static void place(const task_plan *plan, rng *r, uint32_t n, uint32_t *at) {
  const uint32_t size = haystack_size(&plan->hay);
  uint32_t depths[N_DEPTHS];
  if (plan->hay.kind != HAYSTACK_SENTENCES) {
    for (uint32_t i = 0; i < n; i++) at[i] = rng_below(r, size + 1);
  } else {
    for (uint32_t i = 0; i < N_DEPTHS; i++) depths[i] = i;
    rng of_all = rng_make(plan->seed, UINT64_MAX);
    rng_shuffle(n == 1 ? &of_all : r, depths, N_DEPTHS);
    for (uint32_t i = 0; i < n; i++)
      at[i] =
          (uint32_t)((uint64_t)size * depths[(i + (n == 1 ? plan->index : 0)) % N_DEPTHS] / (N_DEPTHS - 1));
  }
  for (uint32_t i = 1; i < n; i++)
    for (uint32_t j = i; j && at[j] < at[j - 1]; j--) {
      const uint32_t held = at[j];
      at[j] = at[j - 1];
      at[j - 1] = held;
    }
}

/* The hay with the needles in it, in the order that `order` gives; the answers come in that of the text. */
static void write_document(const task_plan *plan, rng *r, const fact *facts, uint32_t n, task_case *out) {
  uint32_t at[MAX_NEEDLES], order[MAX_NEEDLES];
  const uint32_t size = haystack_size(&plan->hay);
  for (uint32_t i = 0; i < n; i++) order[i] = i;
  rng_shuffle(r, order, n);
  place(plan, r, n, at);
  for (uint32_t i = 0, j = 0; i <= size; i++) {
    for (; j < n && at[j] == i; j++) {
      const fact *f = &facts[order[j]];
      task_add_needle(out, f->needle, f->answers);
      if (f->answers) task_add_answer(out, f->value);
    }
    if (i < size) task_add_hay(plan, i, out);
  }
}

/* ---- families ---- */

static void begin_ruler(task_case *out, bool many) {
  text_addf(&out->prompt, many ? "Some special magic numbers are hidden in this text. Remember them: there "
                                 "will be a question about "
                                 "them.\n"
                               : "A special magic number is hidden in this text. Remember it: there will be "
                                 "a question about it.\n");
}

static void ask_ruler(task_case *out, bool many, const char *keys) {
  out->question_at = out->prompt.n;
  text_addf(&out->prompt,
            many ? "\nWhat are all the special magic numbers for %s in the text? The special magic numbers "
                   "for %s in the "
                   "text are"
                 : "\nWhat is the special magic number for %s in the text? The special magic number for %s "
                   "in the text is",
            keys, keys);
}

/* n facts, each of `n_values` keys' own; the first `n_asked` keys are asked for. */
static void build_facts(const task_plan *plan, uint32_t n_keys, uint32_t n_values, uint32_t n_asked,
                        task_case *out) {
  rng r = plan->r;
  fact facts[MAX_NEEDLES];
  const char *attribute = attributes[rng_below(&r, 4)];
  const uint32_t n = n_keys * n_values;
  const bool many = n_values * n_asked > 1;
  char keys[4 * KEY_BYTES] = "";
  make_keys(&r, plan->plain, facts, n_keys);
  out->attribute = attribute;
  for (; out->n_asked < n_asked; out->n_asked++)
    memcpy(out->asked[out->n_asked], facts[out->n_asked].key, KEY_BYTES);
  for (uint32_t i = 0; i < n; i++) {
    if (i >= n_keys) memcpy(facts[i].key, facts[i % n_keys].key, KEY_BYTES);
    make_value(&r, plan->plain ? PLAIN_DIGITS : RULER_DIGITS, facts[i].value);
    write_needle(&r, plan->plain, attribute, &facts[i]);
    facts[i].answers = i % n_keys < n_asked;
  }
  for (uint32_t i = 0, used = 0; i < n_asked; i++)
    used += (uint32_t)snprintf(keys + used, sizeof keys - used, "%s%.*s",
                               i == 0             ? ""
                               : i + 1 == n_asked ? " and "
                                                  : ", ",
                               KEY_BYTES - 1, facts[i].key);
  if (!plan->plain) begin_ruler(out, many);
  write_document(plan, &r, facts, n, out);
  if (!plan->plain) {
    ask_ruler(out, many, keys);
    return;
  }
  out->question_at = out->prompt.n;
  text_addf(&out->prompt,
            many ? "\nQuestion: What are all the %ss of the %s? Answer:"
                 : "\nQuestion: What is the %s of the %s? Answer:",
            attribute, keys);
}

void build_single(const task_plan *plan, task_case *out) {
  build_facts(plan, 1, 1, 1, out);
}

void build_multikey(const task_plan *plan, task_case *out) {
  build_facts(plan, plan->plain ? PLAIN_KEYS : RULER_KEYS, 1, 1, out);
}

void build_multivalue(const task_plan *plan, task_case *out) {
  build_facts(plan, plan->plain ? 2 : 1, plan->plain ? 2 : RULER_KEYS, 1, out);
}

void build_multiquery(const task_plan *plan, task_case *out) {
  build_facts(plan, RULER_KEYS, 1, RULER_KEYS, out);
}

void build_passkey(const task_plan *plan, task_case *out) {
  rng r = plan->r;
  fact f = {.answers = true};
  make_value(&r, PLAIN_DIGITS, f.value);
  snprintf(f.needle, sizeof f.needle, " The pass key is %s. Remember it. %s is the pass key.", f.value,
           f.value);
  write_document(plan, &r, &f, 1, out);
  out->question_at = out->prompt.n;
  text_addf(&out->prompt, "\nQuestion: What is the pass key? Answer:");
}
