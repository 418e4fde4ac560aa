/* tasks_text.c: random numbers and sentences. */
#include "tasks.h"

#include <stdlib.h>
#include <string.h>

/* ---- random numbers ---- */

/* splitmix64: small, and the same on every machine. */
static uint64_t rng_next(rng *r) {
  uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

rng rng_make(uint64_t seed, uint64_t stream) {
  rng r = {seed};
  r.state = rng_next(&r) ^ stream;
  r.state = rng_next(&r);
  return r;
}

uint32_t rng_below(rng *r, uint32_t n) {
  return n ? (uint32_t)(((rng_next(r) >> 32) * n) >> 32) : 0;
}

void rng_shuffle(rng *r, uint32_t *items, uint32_t n) {
  for (uint32_t i = n; i > 1; i--) {
    const uint32_t j = rng_below(r, i), held = items[i - 1];
    items[i - 1] = items[j];
    items[j] = held;
  }
}

/* ---- sentences ---- */

static bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* "Mr." and the like: a capital and at most two letters more before the point. */
static bool is_abbreviation(const char *bytes, size_t from, size_t point) {
  size_t first = point;
  while (first > from && !is_space(bytes[first - 1]) && point - first < 4) first--;
  return point - first < 4 && point > first && bytes[first] >= 'A' && bytes[first] <= 'Z' &&
         bytes[point] == '.';
}

/* Where the sentence that begins at `from` ends. */
static size_t sentence_end(const char *bytes, size_t from, size_t n) {
  for (size_t i = from; i < n; i++) {
    if (bytes[i] == '\n' || bytes[i] == '\r') return i;
    if (!strchr(".!?", bytes[i]) || is_abbreviation(bytes, from, i)) continue;
    size_t end = i + 1;
    while (end < n && strchr("\"')", bytes[end])) end++;
    if (end == n || is_space(bytes[end])) return end;
  }
  return n;
}

bool sentences_init(sentences *out, const char *bytes, size_t n) {
  uint32_t room = 0;
  *out = (sentences){0};
  for (size_t i = 0, end; i < n; i = end) {
    end = i + 1;
    if (is_space(bytes[i]) || !bytes[i]) continue;
    end = sentence_end(bytes, i, n);
    if (out->n == room) {
      room = room ? 2 * room : 256;
      void *larger = realloc(out->items, room * sizeof *out->items);
      if (!larger) {
        sentences_finish(out);
        return false;
      }
      out->items = larger;
    }
    out->items[out->n++] = (struct sentence){.bytes = bytes + i, .n = end - i};
  }
  return true;
}

void sentences_finish(sentences *s) {
  free(s->items);
  *s = (sentences){0};
}
