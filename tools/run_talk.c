/* run_talk.c: a conversation: questions from standard input, line by line, on one session. */
#include "run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LINE_BYTES = 16 << 20 };

typedef struct line {
  char *text;
  size_t n, room;
} line;

typedef struct talk {
  run *r;
  cli_prompt next; /* what is to be read next */
  json_t *turns;
  uint32_t n_turns;
} talk;

static int append_character(line *to, int character) {
  if (to->n == to->room) {
    const size_t room = 2 * to->room + 256;
    char *larger = room <= MAX_LINE_BYTES ? realloc(to->text, room) : NULL;
    if (!larger) return fail_impossible("standard input: a line of more than %zu bytes", to->n);
    to->text = larger;
    to->room = room;
  }
  to->text[to->n++] = (char)character;
  return EXIT_DONE;
}

/* The next line that is not empty, without its end; none at the end of the input. */
static int read_line(line *to, bool prompts) {
  int status = EXIT_DONE, character = 0;
  for (to->n = 0; !status && character != EOF && !to->n;) {
    if (prompts) fputs("> ", stderr);
    while (!status && (character = getc(stdin)) != EOF && character != '\n')
      status = append_character(to, character);
    if (to->n && to->text[to->n - 1] == '\r') to->n--;
  }
  if (!status && interrupted()) return fail_impossible("interrupted");
  if (!status && ferror(stdin)) return fail_impossible("standard input: %s", strerror(errno));
  return status;
}

/* Whether so many tokens more make the tail longer than it may be. */
static bool is_too_much(const run *r, size_t n) {
  return r->c->opt.has_budget && laprox_session_n_tail(r->session) + n > r->c->opt.tail;
}

static int read_question(talk *t, const line *question) {
  run *r = t->r;
  const bool before = r->c->opt.evict_before_question;
  const bool is_first = !laprox_session_n_tokens(r->session) && !t->next.n;
  int status = cli_tokenize(r->c, question->text, question->n, is_first, &t->next);
  if (!status && before && is_too_much(r, 0)) status = run_evict(r);
  if (!status) status = run_read(r, t->next.tokens, t->next.n, !before && is_too_much(r, t->next.n));
  return status;
}

static int add_turn(talk *t, const answer *a) {
  t->n_turns++;
  if (!t->turns) return EXIT_DONE;
  json_t *turn = run_turn_json(t->r, a, t->next.n);
  if (turn && json_array_append_new(t->turns, turn) == 0) return EXIT_DONE;
  return fail_impossible("out of memory for the result");
}

/* An answer's last token has not been read; it comes before the next question. */
static int carry_on(talk *t, const answer *a) {
  t->next.n = 0;
  if (a->is_last_read) return EXIT_DONE;
  t->next.tokens[t->next.n++] = a->ids[a->n_ids - 1];
  return EXIT_DONE;
}

static int take_turn(talk *t, const line *question) {
  answer a = {0};
  int status = read_question(t, question);
  if (!status) run_take_stock(t->r);
  if (!status) status = run_answer(t->r, &a);
  if (!status) status = add_turn(t, &a);
  if (!status) status = carry_on(t, &a);
  answer_finish(&a);
  return status;
}

/* Without --evict-before-question a document waits for the first question, so that both are evicted as one.
 */
static int begin(talk *t) {
  run *r = t->r;
  if (r->c->opt.json && !(t->turns = json_array())) return fail_impossible("out of memory for the result");
  if (r->c->opt.evict_before_question && r->prompt.n)
    return run_read(r, r->prompt.tokens, r->prompt.n, r->c->opt.has_budget);
  t->next = r->prompt;
  r->prompt = (cli_prompt){.n = t->next.n};
  return EXIT_DONE;
}

int run_talk(run *r) {
  talk t = {.r = r};
  line question = {0};
  const bool prompts = isatty(STDIN_FILENO) && !r->c->opt.json;
  int status = begin(&t);
  while (!status) {
    status = read_line(&question, prompts);
    if (status || !question.n) break;
    status = take_turn(&t, &question);
  }
  if (!status) {
    status = run_report_talk(r, t.turns, t.n_turns);
    t.turns = NULL;
  }
  json_decref(t.turns);
  cli_prompt_finish(&t.next);
  free(question.text);
  return status;
}
