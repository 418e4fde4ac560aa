/* select.c: which entries survive, by sorting, and whether somebody else's choice agrees. */
#include "reference/allocate.h"
#include "reference/reference.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct candidate {
  double score;
  size_t head; /* layer-major over the model */
  uint32_t entry;
} candidate;

/* Score descending, then layer, head and position ascending. */
static int compare(const void *left, const void *right) {
  const candidate *a = left, *b = right;
  if (a->score != b->score) return a->score > b->score ? -1 : 1;
  if (a->head != b->head) return a->head < b->head ? -1 : 1;
  return a->entry < b->entry ? -1 : a->entry > b->entry;
}

static size_t n_heads_of(const ref_scores *scores) {
  return (size_t)scores->shape.n_layers * scores->shape.n_kv_heads;
}

/* Heads of the model that compete with each other: [first, first + this). Under adakv, once each has its places, none;
   nor with scope token, where scores are those of tokens. */
static size_t heads_per_problem(const ref_scores *scores, const ref_rules *rules) {
  if (rules->scope == LAPROX_SCOPE_TOKEN || rules->scope == LAPROX_SCOPE_HEAD ||
      rules->kind == LAPROX_POLICY_ADAKV)
    return 1;
  return rules->scope == LAPROX_SCOPE_LAYER ? scores->shape.n_kv_heads : n_heads_of(scores);
}

size_t ref_equal_places(const ref_scores *scores, const ref_rules *rules, uint32_t budget, size_t first,
                        size_t last) {
  int64_t places = (int64_t)(last - first) * ((int64_t)budget - rules->window), n_candidates = 0;
  for (size_t head = first; head < last; head++) {
    places -= scores->first[head];
    n_candidates += scores->end[head] - scores->first[head];
  }
  if (places > n_candidates) places = n_candidates;
  return places < 0 ? 0 : (size_t)places;
}

/* Scores as they compete, in values of their own: with scope token, the sums over all heads in every head's place. */
static ref_scores competing_scores(const ref_scores *scores, const ref_rules *rules, uint32_t budget) {
  const size_t n_heads = n_heads_of(scores), n = scores->offsets[n_heads];
  const bool as_they_are = rules->scope != LAPROX_SCOPE_TOKEN || budget == REF_KEEP_ALL;
  ref_scores out = *scores;
  out.values = ref_allocate(n, sizeof *out.values);
  if (as_they_are) memcpy(out.values, scores->values, n * sizeof *out.values);
  for (size_t head = 0; head < n_heads && !as_they_are; head++)
    for (uint32_t entry = scores->first[head]; entry < scores->end[head]; entry++)
      for (size_t other = 0; other < n_heads; other++)
        out.values[scores->offsets[head] + entry] += scores->values[scores->offsets[other] + entry];
  return out;
}

/* What was chosen before the scores counts is above all of them. */
static double score_of(const ref_scores *scores, size_t i) {
  return scores->chosen && scores->chosen[i] ? INFINITY : scores->values[i];
}

/* Marks the survivors among heads [first, last) in `marks`, one byte for each score. */
static void select_problem(const ref_scores *scores, const ref_rules *rules, size_t places, size_t first,
                           size_t last, unsigned char *marks) {
  size_t n = 0, n_kept = 0;
  candidate *list = ref_allocate(scores->offsets[last] - scores->offsets[first], sizeof *list);
  uint32_t *n_of_head = ref_allocate(last - first, sizeof *n_of_head);
  for (size_t head = first; head < last; head++)
    for (uint32_t entry = scores->first[head]; entry < scores->end[head]; entry++)
      list[n++] = (candidate){score_of(scores, scores->offsets[head] + entry), head, entry};
  qsort(list, n, sizeof *list, compare);
  for (size_t i = 0; i < n; i++)
    if (n_of_head[list[i].head - first] < rules->floor) {
      n_of_head[list[i].head - first]++;
      marks[scores->offsets[list[i].head] + list[i].entry] = 1;
      n_kept++;
    }
  for (size_t i = 0; i < n && n_kept < places; i++) {
    unsigned char *mark = &marks[scores->offsets[list[i].head] + list[i].entry];
    if (*mark) continue;
    *mark = 1;
    n_kept++;
  }
  free(list);
  free(n_of_head);
}

static void mark_survivors(const ref_scores *scores, const ref_rules *rules, uint32_t budget,
                           unsigned char *marks) {
  size_t n_heads = n_heads_of(scores), step = heads_per_problem(scores, rules);
  if (budget == REF_KEEP_ALL) {
    memset(marks, 1, scores->offsets[n_heads]);
    return;
  }
  size_t *places = ref_allocate(n_heads, sizeof *places);
  for (size_t first = 0; first < n_heads; first += step)
    places[first] = ref_equal_places(scores, rules, budget, first, first + step);
  if (rules->kind == LAPROX_POLICY_PYRAMIDKV) ref_pyramid_places(scores, rules, budget, places);
  if (rules->kind == LAPROX_POLICY_ADAKV) ref_adakv_places(scores, rules, budget, places);
  for (size_t first = 0; first < n_heads; first += step)
    select_problem(scores, rules, places[first], first, first + step, marks);
  free(places);
}

void ref_select(const ref_scores *scores, const ref_rules *rules, uint32_t budget, ref_kept *out) {
  size_t n_heads = n_heads_of(scores), n = 0, n_entries = 0;
  unsigned char *marks = ref_allocate(scores->offsets[n_heads], 1);
  ref_scores competing = competing_scores(scores, rules, budget);
  mark_survivors(&competing, rules, budget, marks);
  free(competing.values);
  for (size_t head = 0; head < n_heads; head++) n_entries += scores->n_entries[head];
  *out = (ref_kept){n_heads, ref_allocate(n_heads + 1, sizeof(size_t)),
                    ref_allocate(n_entries, sizeof(uint32_t))};
  for (size_t head = 0; head < n_heads; head++) {
    for (uint32_t entry = 0; entry < scores->n_entries[head]; entry++) {
      bool is_candidate = entry >= scores->first[head] && entry < scores->end[head];
      if (!is_candidate || marks[scores->offsets[head] + entry]) out->entries[n++] = entry;
    }
    out->offsets[head + 1] = n;
  }
  free(marks);
}

void ref_kept_finish(ref_kept *kept) {
  free(kept->offsets);
  free(kept->entries);
  *kept = (ref_kept){0};
}

/* ---- checks ---- */

static const char *complain(char *message, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, REF_MESSAGE_BYTES, format, arguments);
  va_end(arguments);
  return message;
}

static double largest_of_head(const ref_scores *scores, size_t head) {
  double largest = 0;
  for (size_t i = scores->offsets[head]; i < scores->offsets[head + 1]; i++)
    if (scores->values[i] > largest) largest = scores->values[i];
  return largest;
}

const char *ref_check_scores(const ref_scores *scores, const float *got, double tolerance,
                             char message[REF_MESSAGE_BYTES]) {
  for (size_t head = 0; head < n_heads_of(scores); head++) {
    double error = tolerance * largest_of_head(scores, head);
    for (size_t i = scores->offsets[head]; i < scores->offsets[head + 1]; i++)
      if (!(scores->chosen && scores->chosen[i]) && !(fabs((double)got[i] - scores->values[i]) <= error))
        return complain(message, "layer %zu head %zu entry %zu: score %.9g, should be %.9g, within %.3g",
                        head / scores->shape.n_kv_heads, head % scores->shape.n_kv_heads,
                        i - scores->offsets[head], (double)got[i], scores->values[i], error);
  }
  return NULL;
}

/* Strictly ascending entries in range, sinks and window among them; sets `marks`. */
static const char *check_head(const ref_scores *scores, const ref_kept *got, size_t head,
                              unsigned char *marks, char *message) {
  size_t n_protected = 0, layer = head / scores->shape.n_kv_heads, h = head % scores->shape.n_kv_heads;
  if (got->offsets[head + 1] < got->offsets[head])
    return complain(message, "layer %zu head %zu: offsets fall", layer, h);
  for (size_t i = got->offsets[head]; i < got->offsets[head + 1]; i++) {
    uint32_t entry = got->entries[i];
    if (entry >= scores->n_entries[head])
      return complain(message, "layer %zu head %zu: entry %u of %u", layer, h, entry,
                      scores->n_entries[head]);
    if (i > got->offsets[head] && entry <= got->entries[i - 1])
      return complain(message, "layer %zu head %zu: entry %u after %u", layer, h, entry, got->entries[i - 1]);
    if (entry >= scores->first[head] && entry < scores->end[head])
      marks[scores->offsets[head] + entry] = 1;
    else
      n_protected++;
  }
  size_t n_expected = scores->first[head] + (size_t)(scores->n_entries[head] - scores->end[head]);
  if (n_protected == n_expected) return NULL;
  return complain(message, "layer %zu head %zu: %zu of %zu sink and window entries kept", layer, h,
                  n_protected, n_expected);
}

/* The worst of the kept and the best of the dropped scores of a head, each moved by its error in its favour.
 */
typedef struct verge {
  double worst_kept, best_dropped;
  uint32_t kept_entry, dropped_entry;
  size_t n_kept, n_candidates;
} verge;

static verge find_verge(const ref_scores *scores, size_t head, double error, const unsigned char *marks) {
  verge found = {.worst_kept = INFINITY, .best_dropped = -INFINITY};
  for (uint32_t entry = scores->first[head]; entry < scores->end[head]; entry++) {
    size_t i = scores->offsets[head] + entry;
    const double score = score_of(scores, i);
    found.n_candidates++;
    found.n_kept += marks[i];
    if (marks[i] && score + error < found.worst_kept) {
      found.worst_kept = score + error;
      found.kept_entry = entry;
    } else if (!marks[i] && score - error > found.best_dropped) {
      found.best_dropped = score - error;
      found.dropped_entry = entry;
    }
  }
  return found;
}

static const char *check_problem(const ref_scores *scores, const ref_rules *rules, size_t first, size_t last,
                                 const double *errors, const unsigned char *marks, char *message) {
  size_t n_kv_heads = scores->shape.n_kv_heads, rival_head = first;
  verge rival = {.best_dropped = -INFINITY};
  for (size_t head = first; head < last; head++) {
    verge own = find_verge(scores, head, errors[head], marks);
    if (own.n_kept < rules->floor && own.n_kept < own.n_candidates)
      return complain(message, "layer %zu head %zu: %zu kept, below the floor of %u", head / n_kv_heads,
                      head % n_kv_heads, own.n_kept, rules->floor);
    if (own.worst_kept < own.best_dropped)
      return complain(message, "layer %zu head %zu: entry %u kept, better entry %u dropped",
                      head / n_kv_heads, head % n_kv_heads, own.kept_entry, own.dropped_entry);
    if (own.best_dropped > rival.best_dropped) {
      rival = own;
      rival_head = head;
    }
  }
  /* A head at its floor need not have won against the other heads. */
  for (size_t head = first; head < last; head++) {
    verge own = find_verge(scores, head, errors[head], marks);
    if (own.n_kept > rules->floor && own.worst_kept < rival.best_dropped)
      return complain(message, "layer %zu head %zu entry %u kept, better layer %zu head %zu entry %u dropped",
                      head / n_kv_heads, head % n_kv_heads, own.kept_entry, rival_head / n_kv_heads,
                      rival_head % n_kv_heads, rival.dropped_entry);
  }
  return NULL;
}

static size_t count_marks(const ref_scores *scores, const unsigned char *marks, size_t first, size_t last) {
  size_t n = 0;
  for (size_t i = scores->offsets[first]; i < scores->offsets[last]; i++) n += marks[i];
  return n;
}

static const char *check_marks(const ref_scores *scores, const ref_rules *rules, const double *errors,
                               const unsigned char *got, const unsigned char *expected, char *message) {
  size_t step = heads_per_problem(scores, rules);
  const char *complaint = NULL;
  for (size_t first = 0; first < n_heads_of(scores) && !complaint; first += step) {
    size_t n_got = count_marks(scores, got, first, first + step);
    size_t n_expected = count_marks(scores, expected, first, first + step);
    if (n_got != n_expected)
      complaint = complain(message, "heads %zu to %zu of the model keep %zu candidates instead of %zu", first,
                           first + step - 1, n_got, n_expected);
    else
      complaint = check_problem(scores, rules, first, first + step, errors, got, message);
  }
  return complaint;
}

/* How far off each head's scores, or with scope token all heads' sums, may be. */
static double *find_errors(const ref_scores *scores, const ref_rules *rules, double tolerance) {
  const size_t n_heads = n_heads_of(scores);
  double *errors = ref_allocate(n_heads, sizeof *errors), sum = 0;
  for (size_t head = 0; head < n_heads; head++)
    sum += errors[head] = tolerance * largest_of_head(scores, head);
  for (size_t head = 0; rules->scope == LAPROX_SCOPE_TOKEN && head < n_heads; head++) errors[head] = sum;
  return errors;
}

/* With scope token: whether all heads keep the same entries. */
static const char *check_same(const ref_scores *scores, const ref_rules *rules, const unsigned char *marks,
                              char *message) {
  const size_t n = scores->offsets[1];
  for (size_t head = 1; rules->scope == LAPROX_SCOPE_TOKEN && head < n_heads_of(scores); head++)
    if (memcmp(marks, marks + scores->offsets[head], n) != 0)
      return complain(message, "head %zu of the model keeps other entries than head 0", head);
  return NULL;
}

const char *ref_check_kept(const ref_scores *scores, const ref_rules *rules, uint32_t budget,
                           double tolerance, const ref_kept *got, size_t *n_different,
                           char message[REF_MESSAGE_BYTES]) {
  size_t n_heads = n_heads_of(scores), n = scores->offsets[n_heads], n_missing = 0, missing = 0;
  unsigned char *marks = ref_allocate(n, 1), *expected = ref_allocate(n, 1);
  const char *complaint = NULL;
  if (got->n_heads != n_heads)
    complaint = complain(message, "%zu heads instead of %zu", got->n_heads, n_heads);
  for (size_t head = 0; head < n_heads && !complaint; head++)
    complaint = check_head(scores, got, head, marks, message);
  ref_scores competing = competing_scores(scores, rules, budget);
  mark_survivors(&competing, rules, budget, expected);
  for (size_t i = 0; i < n; i++)
    if (expected[i] && !marks[i]) {
      if (!n_missing) missing = i;
      n_missing++;
    }
  double *errors = find_errors(scores, rules, tolerance);
  if (!complaint && budget != REF_KEEP_ALL) complaint = check_same(scores, rules, marks, message);
  if (!complaint) complaint = check_marks(&competing, rules, errors, marks, expected, message);
  if (!complaint && n_missing && tolerance == 0)
    complaint = complain(message, "%zu entries of the reference are missing, the first is score number %zu",
                         n_missing, missing);
  if (n_different) *n_different = n_missing;
  free(competing.values);
  free(errors);
  free(marks);
  free(expected);
  return complaint;
}

const char *ref_check_choice(const ref_scores *scores, const float *got, const ref_rules *rules,
                             uint32_t budget, const ref_kept *kept, char message[REF_MESSAGE_BYTES]) {
  const size_t n = scores->offsets[n_heads_of(scores)];
  const double room = rules->scope == LAPROX_SCOPE_TOKEN ? 1e-6 : 0; /* sums over heads are of f32 */
  ref_scores own = *scores;
  own.values = ref_allocate(n, sizeof *own.values);
  for (size_t i = 0; i < n; i++) own.values[i] = (double)got[i];
  const char *complaint = ref_check_kept(&own, rules, budget, room, kept, NULL, message);
  free(own.values);
  return complaint;
}
