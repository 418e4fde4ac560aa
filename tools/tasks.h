/* tasks.h: what the parts of `laprox tasks` share: random numbers, growing text, haystacks, and families of tasks. */
#ifndef TOOLS_TASKS_H
#define TOOLS_TASKS_H

#include "text_buffer.h"

#include <stddef.h>
#include <stdint.h>

/* ---- random numbers: the same everywhere for the same seed ---- */

typedef struct rng {
  uint64_t state;
} rng;

/* A stream of its own for each (seed, stream). */
rng rng_make(uint64_t seed, uint64_t stream);
/* 0 … n - 1 */
uint32_t rng_below(rng *r, uint32_t n);
void rng_shuffle(rng *r, uint32_t *items, uint32_t n);

/* ---- words ---- */

enum { N_NOUNS = 147, N_ADJECTIVES = 35, N_NOISE = 5, KEY_BYTES = 64 };
extern const char *const task_nouns[N_NOUNS], *const task_adjectives[N_ADJECTIVES];

/* Sentences that say nothing: the shipped model's, and RULER's. */
extern const char *const task_noise[N_NOISE], *const ruler_noise[N_NOISE];

/* ---- haystacks ---- */

typedef enum haystack_kind { HAYSTACK_NOISE, HAYSTACK_SENTENCES, HAYSTACK_NEEDLES } haystack_kind;

/* Sentences of a text; they point into it. */
typedef struct sentences {
  struct sentence {
    const char *bytes;
    size_t n;
    uint32_t n_tokens; /* with a space before it */
  } * items;
  uint32_t n;
} sentences;

/* Splits after . ! or ? and what closes a quotation, and at line ends. False: out of memory. */
bool sentences_init(sentences *out, const char *bytes, size_t n);
void sentences_finish(sentences *s);

enum { MAX_FILLERS = 8 };

/* The hay of one prompt: `size` sentences from `start` on, and fillers that bring it nearer to its length. */
typedef struct haystack {
  haystack_kind kind;
  const sentences *from;
  uint32_t start, size;
  uint32_t fillers[MAX_FILLERS], n_fillers;
} haystack;

/* ---- families ---- */

enum { MAX_NEEDLES = 16, MAX_ANSWERS = 16, ANSWER_BYTES = 64 };

/* One prompt as it is being made. */
typedef struct task_case {
  text_buffer prompt;
  size_t question_at; /* where the text after the document begins */
  struct {
    size_t first, end; /* bytes of the needles that answer */
  } needles[MAX_NEEDLES];
  uint32_t n_needles;
  char answers[MAX_ANSWERS][ANSWER_BYTES];
  uint32_t n_answers;
  const char *attribute; /* what false needles must look like, and what they must not be about */
  char asked[MAX_NEEDLES][KEY_BYTES];
  uint32_t n_asked;
} task_case;

/* What a prompt is made from; the same for every size that is tried. */
typedef struct task_plan {
  uint64_t seed;
  rng r; /* the prompt's own; copied by each building */
  haystack hay;
  uint32_t index, n_tokens; /* which prompt of its kind, and how long it is to be */
  bool plain;               /* the shipped model's wording, where a family has one */
} task_plan;

typedef struct task_family {
  void (*build)(const task_plan *plan, task_case *out);
  bool has_plain; /* the shipped model knows a wording of its own */
  bool has_hay;   /* of the user's choice */
  haystack_kind hay;
  uint32_t max_tokens; /* of an answer, as in RULER */
} task_family;

/* tasks_needle.c */
void build_single(const task_plan *plan, task_case *out);
void build_multikey(const task_plan *plan, task_case *out);
void build_multivalue(const task_plan *plan, task_case *out);
void build_multiquery(const task_plan *plan, task_case *out);
void build_passkey(const task_plan *plan, task_case *out);

/* tasks_count.c */
void build_variables(const task_plan *plan, task_case *out);
void build_common_words(const task_plan *plan, task_case *out);
void build_frequent_words(const task_plan *plan, task_case *out);

/* Adds a needle; `answers`: its place is remembered. */
void task_add_needle(task_case *out, const char *needle, bool answers);
void task_add_answer(task_case *out, const char *answer);
/* Adds sentence i < haystack_size of the hay, a space before it. */
void task_add_hay(const task_plan *plan, uint32_t i, task_case *out);
uint32_t haystack_size(const haystack *hay);

#endif
