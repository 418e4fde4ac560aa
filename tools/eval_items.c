/* eval_items.c: files of tasks as a list of items, and the groups that they are counted in. */
#include "eval.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* FNV-1a: tells one file of tasks from another when a run goes on. */
static uint64_t hash(const char *text) {
  uint64_t h = UINT64_C(0xcbf29ce484222325);
  for (; *text; text++) h = (h ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
  return h;
}

static int find_group(eval *e, const task *t) {
  for (int i = 0; i < e->n_groups; i++)
    if (!strcmp(e->groups[i].task, t->name) && e->groups[i].length == t->length) return i;
  if (e->n_groups == MAX_GROUPS) return -1;
  task_group *added = &e->groups[e->n_groups];
  *added = (task_group){.length = t->length, .metric = t->metric};
  memcpy(added->task, t->name, sizeof added->task);
  return e->n_groups++;
}

static int add_item(eval *e, uint32_t file, char *line, uint32_t number, uint32_t *counts) {
  const task_place place = {e->c->opt.tasks[file], e->c->opt.prompt_template, number};
  const uint32_t limit = e->c->opt.limit;
  task t;
  int status = task_init(line, &place, &t);
  if (status) return status;
  const int group = find_group(e, &t);
  if (group < 0)
    status = fail_impossible("%s, line %u: more than %d kinds of tasks", place.path, number, MAX_GROUPS);
  if (!status && !t.question.n && (e->c->opt.question & QUESTION_UNKNOWN))
    status = fail_impossible("%s, line %u: no question in it that could be unknown", place.path, number);
  if (!status && e->n_items == e->items_room) {
    const uint32_t room = e->items_room ? 2 * e->items_room : 256;
    task_item *larger = realloc(e->items, room * sizeof *larger);
    if (larger) {
      e->items = larger;
      e->items_room = room;
    } else {
      status = fail_impossible("out of memory for %u tasks", room);
    }
  }
  if (!status && (!limit || counts[group] < limit)) {
    e->items[e->n_items++] = (task_item){line, file, number, group, task_depth(t.root)};
    counts[group]++;
  }
  task_finish(&t);
  return status;
}

int eval_read_items(eval *e) {
  const options *o = &e->c->opt;
  uint32_t counts[MAX_GROUPS] = {0};
  int status = EXIT_DONE;
  for (uint32_t file = 0; file < o->n_tasks && !status; file++) {
    status = cli_read_text(o->tasks[file], &e->texts[file]);
    if (status) break;
    e->text_hashes[file] = hash(e->texts[file]);
    uint32_t number = 1;
    for (char *line = e->texts[file], *end; *line && !status; line = end, number++) {
      end = line + strcspn(line, "\n");
      if (*end) *end++ = 0;
      if (line[strspn(line, " \t\r")]) status = add_item(e, file, line, number, counts);
    }
  }
  if (!status && o->n_tasks && !e->n_items) status = fail_impossible("%s: no task in it", o->tasks[0]);
  return status;
}

void eval_finish_items(eval *e) {
  for (uint32_t i = 0; i < MAX_LISTED; i++) free(e->texts[i]);
  free(e->items);
}
