/* run_talk.c: a conversation: questions from standard input, line by line, on one session. */
#include "run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LINE_BYTES = 16 << 20 };

typedef struct talk {
  run *r;
  char *line;
  size_t n_line, line_room;
  cli_prompt next; /* what is to be read next */
  json_t *turns;
  uint32_t n_turns;
} talk;

static int append_character(talk *t, int character) {
  if (t->n_line == t->line_room) {
    const size_t room = 2 * t->line_room + 256;
    char *larger = room <= MAX_LINE_BYTES ? realloc(t->line, room) : NULL;
    if (!larger) return fail_impossible("standard input: a line of more than %zu bytes", t->n_line);
    t->line = larger;
    t->line_room = room;
  }
  t->line[t->n_line++] = (char)character;
  return EXIT_DONE;
}

/* The next line that is not empty, without its end; *at_end where there is none. */
static int read_line(talk *t, bool *at_end) {
  int status = EXIT_DONE, character = 0;
  *at_end = false;
  for (t->n_line = 0; !status && !(t->n_line && character == '\n');) {
    if (t->n_line == 0 && isatty(STDIN_FILENO) && !t->r->c->opt.json) fputs("> ", stderr);
    while (!status && (character = getc(stdin)) != EOF && character != '\n')
      status = append_character(t, character);
    if (t->n_line && t->line[t->n_line - 1] == '\r') t->n_line--;
    if (character == EOF) break;
  }
  if (!status && interrupted()) return fail_impossible("interrupted");
  if (!status && ferror(stdin)) return fail_impossible("standard input: %s", strerror(errno));
  *at_end = t->n_line == 0;
  return status;
}

/* Whether so many tokens more make the tail longer than it may be. */
static bool is_too_much(const run *r, size_t n) {
  return r->c->opt.has_budget && laprox_session_n_tail(r->session) + n > r->c->opt.tail;
}

static int read_question(talk *t) {
  run *r = t->r;
  const bool before = r->c->opt.evict_before_question;
  const bool is_first = !laprox_session_n_tokens(r->session) && !t->next.n;
  int status = cli_tokenize(r->c, t->line, t->n_line, is_first, &t->next);
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

static int take_turn(talk *t) {
  answer a = {0};
  int status = read_question(t);
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
  bool at_end = false;
  int status = begin(&t);
  while (!status && !at_end) {
    status = read_line(&t, &at_end);
    if (!status && !at_end) status = take_turn(&t);
  }
  if (!status) {
    status = run_report_talk(r, t.turns, t.n_turns);
    t.turns = NULL;
  }
  json_decref(t.turns);
  cli_prompt_finish(&t.next);
  free(t.line);
  return status;
}
