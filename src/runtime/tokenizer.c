/* tokenizer.c: vocabulary, merges and pre-tokeniser of byte-level BPE; text to tokens and back. */
#include "runtime/tokenizer.h"

#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define MAX_STAGES 4
#define NO_SYMBOL  UINT32_MAX

/* A pre-tokeniser: each pattern cuts the pieces that the one before has left, matches and gaps alike. */
typedef struct pre_kind {
  const char *names[5];
  const char *patterns[MAX_STAGES];
  bool add_bos;     /* where the file doesn't say */
  bool whole_words; /* a word that is a token is that token, whatever the merges say */
} pre_kind;

#define CONTRACTIONS     "'s|'t|'re|'ve|'m|'ll|'d"
#define ANY_CONTRACTIONS "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
#define GPT2             CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)"
#define LLAMA3(digits)                                                                                       \
  ANY_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                                                  \
                   "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const pre_kind pre_kinds[] = {
    {.names = {"gpt-2", "gpt2"}, .patterns = {GPT2 "|\\s+"}},
    {.names = {"default"}, .patterns = {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {.names = {"llama-bpe", "llama3", "llama-v3"},
     .patterns = {LLAMA3("\\p{N}{1,3}")},
     .add_bos = true,
     .whole_words = true},
    {.names = {"qwen2"}, .patterns = {LLAMA3("\\p{N}")}},
};

typedef struct pair_slot {
  uint32_t left, right; /* left = NO_SYMBOL: free */
  uint32_t rank, merged;
} pair_slot;

struct lpx_tokenizer {
  laprox_host host;
  const pre_kind *pre;
  pcre2_general_context *memory;
  pcre2_code *stages[MAX_STAGES];
  uint32_t n_stages;

  uint32_t n_tokens, bos, eos;
  bool add_bos;
  char *bytes;       /* what the tokens stand for, one after the other */
  size_t *offsets;   /* n_tokens + 1, into bytes */
  uint8_t *types;    /* n_tokens */
  uint32_t *by_text; /* ids by what they stand for, NO_SYMBOL = free */
  size_t text_mask;
  pair_slot *pairs;
  size_t pair_mask;
  uint32_t by_byte[256]; /* NO_SYMBOL: no such token */
};

/* ---- the byte-level alphabet: every byte as a printable character ---- */

static bool stands_for_itself(uint32_t c) {
  return (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255);
}

/* Code points 0 … 323 to bytes, -1 where a code point is not in the alphabet. */
static void make_alphabet(int16_t byte_of[324]) {
  int16_t next = 256;
  for (int i = 0; i < 324; i++) byte_of[i] = -1;
  for (int16_t b = 0; b < 256; b++) {
    if (stands_for_itself((uint32_t)b))
      byte_of[b] = b;
    else
      byte_of[next++] = b;
  }
}

/* Length of the valid UTF-8 character at `text`, 0 where there is none. */
static size_t character_bytes(const char *text, size_t n_bytes) {
  const uint8_t *t = (const uint8_t *)text;
  if (t[0] < 0x80) return 1;
  size_t n = t[0] >= 0xf0 ? 4 : t[0] >= 0xe0 ? 3 : 2;
  if (t[0] < 0xc2 || t[0] > 0xf4 || n > n_bytes) return 0;
  for (size_t i = 1; i < n; i++)
    if ((t[i] & 0xc0) != 0x80) return 0;
  bool overlong = (t[0] == 0xe0 && t[1] < 0xa0) || (t[0] == 0xf0 && t[1] < 0x90);
  bool surrogate = t[0] == 0xed && t[1] > 0x9f;
  bool beyond = t[0] == 0xf4 && t[1] > 0x8f;
  return overlong || surrogate || beyond ? 0 : n;
}

/* Writes what a token's text stands for, at most text.n_bytes bytes; characters outside the alphabet stand
   for themselves. */
static size_t from_alphabet(const int16_t byte_of[324], lpx_text text, char *to) {
  size_t n = 0;
  for (size_t i = 0; i < text.n_bytes;) {
    const char *at = text.bytes + i;
    size_t length = character_bytes(at, text.n_bytes - i);
    uint32_t code = (uint8_t)at[0];
    if (length == 2) code = ((code & 0x1f) << 6) | ((uint8_t)at[1] & 0x3f);
    if (length == 0)
      length = 1;
    else if (length <= 2 && code < 324 && byte_of[code] >= 0) {
      to[n++] = (char)byte_of[code];
      i += length;
      continue;
    }
    memcpy(to + n, at, length);
    n += length;
    i += length;
  }
  return n;
}

/* ---- hash maps: open addressing, at most half full ---- */

static bool map_slots(size_t entries, size_t *out) {
  size_t slots = 16;
  while (slots / 2 < entries) {
    if (!lpx_multiply(slots, 2, &slots)) return false;
  }
  *out = slots;
  return true;
}

static size_t hash_bytes(const char *bytes, size_t n) {
  uint64_t h = 0xcbf29ce484222325u;
  for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)bytes[i]) * 0x100000001b3u;
  return (size_t)(h ^ (h >> 32));
}

static size_t hash_pair(uint32_t left, uint32_t right) {
  uint64_t h = (((uint64_t)left << 32) | right) * 0x9e3779b97f4a7c15u;
  h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9u;
  return (size_t)(h ^ (h >> 32));
}

/* The slot that holds the text or, failing that, the free one where it belongs. */
static uint32_t *text_slot(const lpx_tokenizer *t, const char *bytes, size_t n) {
  size_t i = hash_bytes(bytes, n) & t->text_mask;
  for (;; i = (i + 1) & t->text_mask) {
    uint32_t id = t->by_text[i];
    if (id == NO_SYMBOL) return &t->by_text[i];
    size_t length = t->offsets[id + 1] - t->offsets[id];
    if (length == n && memcmp(t->bytes + t->offsets[id], bytes, n) == 0) return &t->by_text[i];
  }
}

static pair_slot *find_pair(const lpx_tokenizer *t, uint32_t left, uint32_t right) {
  size_t i = hash_pair(left, right) & t->pair_mask;
  for (;; i = (i + 1) & t->pair_mask) {
    pair_slot *slot = &t->pairs[i];
    if (slot->left == NO_SYMBOL || (slot->left == left && slot->right == right)) return slot;
  }
}

/* ---- making one ---- */

static bool text_is(lpx_text text, const char *string) {
  return text.n_bytes == strlen(string) && memcmp(text.bytes, string, text.n_bytes) == 0;
}

/* A file's string for a message: clipped, and nothing that could break the line. */
static const char *printable(lpx_text text, char to[48]) {
  size_t n = text.n_bytes < 47 ? text.n_bytes : 47;
  for (size_t i = 0; i < n; i++) to[i] = text.bytes[i] >= 32 && text.bytes[i] < 127 ? text.bytes[i] : '?';
  to[n] = 0;
  return to;
}

static void *pcre2_allocate(size_t size, void *host) {
  return lpx_allocate(host, 1, size);
}

static void pcre2_release(void *pointer, void *host) {
  lpx_release(host, pointer);
}

static laprox_result compile_patterns(lpx_tokenizer *t, lpx_text pre) {
  char name[48];
  lpx_text wanted = pre.n_bytes ? pre : (lpx_text){"default", 7};
  for (size_t k = 0; k < sizeof pre_kinds / sizeof *pre_kinds && !t->pre; k++)
    for (size_t n = 0; n < 5 && pre_kinds[k].names[n]; n++)
      if (text_is(wanted, pre_kinds[k].names[n])) t->pre = &pre_kinds[k];
  if (!t->pre)
    return lpx_fail(
        &t->host, LAPROX_ERROR_UNSUPPORTED,
        "tokenizer.ggml.pre: unknown pre-tokeniser \"%s\" (known: gpt-2, default, llama-bpe, qwen2)",
        printable(wanted, name));
  t->memory = pcre2_general_context_create(pcre2_allocate, pcre2_release, &t->host);
  if (!t->memory) return lpx_fail_memory(&t->host, "pre-tokeniser");
  pcre2_compile_context *context = pcre2_compile_context_create(t->memory);
  if (!context) return lpx_fail_memory(&t->host, "pre-tokeniser");
  int error = 0;
  for (; t->n_stages < MAX_STAGES && t->pre->patterns[t->n_stages]; t->n_stages++) {
    PCRE2_SIZE where = 0;
    PCRE2_SPTR pattern = (PCRE2_SPTR)t->pre->patterns[t->n_stages];
    t->stages[t->n_stages] =
        pcre2_compile(pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error, &where, context);
    if (!t->stages[t->n_stages]) break;
    error = 0;
  }
  pcre2_compile_context_free(context);
  if (error == PCRE2_ERROR_HEAP_FAILED) return lpx_fail_memory(&t->host, "pre-tokeniser");
  if (error)
    return lpx_fail(&t->host, LAPROX_ERROR_UNSUPPORTED,
                    "pre-tokeniser %s: PCRE2 error %d (Unicode support is needed)", t->pre->names[0], error);
  return LAPROX_OK;
}

static laprox_result copy_types(lpx_tokenizer *t, const lpx_tokenizer_info *info) {
  for (size_t i = 0; i < info->n_tokens; i++) {
    int32_t type = info->types ? info->types[i] : LPX_TOKEN_NORMAL;
    if (type < 0 || type > LPX_TOKEN_BYTE)
      return lpx_fail(&t->host, LAPROX_ERROR_FORMAT,
                      "tokenizer.ggml.token_type: token %zu has unknown type %d", i, (int)type);
    t->types[i] = (uint8_t)type;
  }
  const uint32_t special[2] = {info->bos, info->eos};
  for (int i = 0; i < 2; i++) {
    if (special[i] == LAPROX_NONE) continue;
    if (special[i] >= info->n_tokens)
      return lpx_fail(&t->host, LAPROX_ERROR_FORMAT,
                      "tokenizer.ggml.%s_token_id: %u is outside the vocabulary of %zu", i ? "eos" : "bos",
                      special[i], info->n_tokens);
    t->types[special[i]] = LPX_TOKEN_CONTROL;
  }
  t->bos = info->bos;
  t->eos = info->eos;
  bool wanted = info->add_bos == LAPROX_SWITCH_AUTO ? t->pre->add_bos : info->add_bos == LAPROX_SWITCH_ON;
  t->add_bos = wanted && t->bos != LAPROX_NONE;
  return LAPROX_OK;
}

static bool is_plain(uint8_t type) {
  return type != LPX_TOKEN_CONTROL && type != LPX_TOKEN_USER_DEFINED && type != LPX_TOKEN_UNKNOWN;
}

/* Of several tokens with the same text the first counts, plain ones before special ones. */
static void index_tokens(lpx_tokenizer *t) {
  for (int pass = 0; pass < 2; pass++) {
    for (uint32_t id = 0; id < t->n_tokens; id++) {
      size_t n = t->offsets[id + 1] - t->offsets[id];
      if (n == 0 || is_plain(t->types[id]) != (pass == 0)) continue;
      uint32_t *slot = text_slot(t, t->bytes + t->offsets[id], n);
      if (*slot == NO_SYMBOL) *slot = id;
    }
  }
  for (int b = 0; b < 256; b++) {
    char byte = (char)b;
    t->by_byte[b] = *text_slot(t, &byte, 1);
  }
}

static laprox_result copy_tokens(lpx_tokenizer *t, const lpx_tokenizer_info *info) {
  size_t total = 0, slots = 0;
  if (info->n_tokens == 0 || info->n_tokens >= NO_SYMBOL)
    return lpx_fail(&t->host, LAPROX_ERROR_FORMAT, "tokenizer.ggml.tokens: %zu tokens", info->n_tokens);
  bool sized = map_slots(info->n_tokens, &slots);
  for (size_t i = 0; i < info->n_tokens; i++)
    sized = sized && lpx_add(total, info->tokens[i].n_bytes, &total);
  if (!sized)
    return lpx_fail(&t->host, LAPROX_ERROR_FORMAT, "tokenizer.ggml.tokens: %zu tokens", info->n_tokens);
  t->n_tokens = (uint32_t)info->n_tokens;
  t->bytes = lpx_allocate(&t->host, total, 1);
  t->offsets = lpx_allocate(&t->host, info->n_tokens + 1, sizeof *t->offsets);
  t->types = lpx_allocate(&t->host, info->n_tokens, sizeof *t->types);
  t->by_text = lpx_allocate(&t->host, slots, sizeof *t->by_text);
  if (!t->bytes || !t->offsets || !t->types || !t->by_text) return lpx_fail_memory(&t->host, "vocabulary");
  t->text_mask = slots - 1;
  for (size_t i = 0; i < slots; i++) t->by_text[i] = NO_SYMBOL;
  laprox_result result = copy_types(t, info);
  if (result) return result;

  int16_t alphabet[324];
  make_alphabet(alphabet);
  for (size_t i = 0; i < info->n_tokens; i++) {
    lpx_text token = info->tokens[i];
    char *to = t->bytes + t->offsets[i];
    size_t n = token.n_bytes;
    if (is_plain(t->types[i]))
      n = from_alphabet(alphabet, token, to);
    else if (n)
      memcpy(to, token.bytes, n);
    t->offsets[i + 1] = t->offsets[i] + n;
  }
  index_tokens(t);
  return LAPROX_OK;
}

/* The ids of "left right" and of what they make together, all of which must be tokens. */
static laprox_result read_merge(const lpx_tokenizer *t, size_t index, lpx_text merge, char *buffer,
                                uint32_t ids[3]) {
  int16_t alphabet[324];
  const char *space = merge.n_bytes > 1 ? memchr(merge.bytes + 1, ' ', merge.n_bytes - 1) : NULL;
  if (!space || space + 1 == merge.bytes + merge.n_bytes)
    return lpx_fail(&t->host, LAPROX_ERROR_FORMAT, "tokenizer.ggml.merges: merge %zu is not two words",
                    index);
  make_alphabet(alphabet);
  lpx_text left = {merge.bytes, (size_t)(space - merge.bytes)};
  lpx_text right = {space + 1, merge.n_bytes - left.n_bytes - 1};
  size_t n_left = from_alphabet(alphabet, left, buffer);
  size_t n_right = from_alphabet(alphabet, right, buffer + n_left);
  ids[0] = *text_slot(t, buffer, n_left);
  ids[1] = *text_slot(t, buffer + n_left, n_right);
  ids[2] = *text_slot(t, buffer, n_left + n_right);
  if (ids[0] == NO_SYMBOL || ids[1] == NO_SYMBOL || ids[2] == NO_SYMBOL)
    return lpx_fail(&t->host, LAPROX_ERROR_FORMAT,
                    "tokenizer.ggml.merges: merge %zu names or makes a token that the vocabulary lacks",
                    index);
  return LAPROX_OK;
}

static laprox_result copy_merges(lpx_tokenizer *t, const lpx_tokenizer_info *info) {
  size_t slots = 0, longest = 0;
  if (info->n_merges >= NO_SYMBOL || !map_slots(info->n_merges, &slots))
    return lpx_fail(&t->host, LAPROX_ERROR_FORMAT, "tokenizer.ggml.merges: %zu merges", info->n_merges);
  for (size_t i = 0; i < info->n_merges; i++)
    if (info->merges[i].n_bytes > longest) longest = info->merges[i].n_bytes;
  t->pairs = lpx_allocate(&t->host, slots, sizeof *t->pairs);
  char *buffer = lpx_allocate(&t->host, longest, 1);
  laprox_result result = t->pairs && buffer ? LAPROX_OK : lpx_fail_memory(&t->host, "merges");
  if (t->pairs) {
    t->pair_mask = slots - 1;
    for (size_t i = 0; i < slots; i++) t->pairs[i].left = NO_SYMBOL;
  }
  for (size_t i = 0; i < info->n_merges && !result; i++) {
    uint32_t ids[3] = {0};
    result = read_merge(t, i, info->merges[i], buffer, ids);
    if (result) break;
    pair_slot *slot = find_pair(t, ids[0], ids[1]);
    if (slot->left == NO_SYMBOL) *slot = (pair_slot){ids[0], ids[1], (uint32_t)i, ids[2]};
  }
  lpx_release(&t->host, buffer);
  return result;
}

laprox_result lpx_tokenizer_create(const laprox_host *host, const lpx_tokenizer_info *info,
                                   lpx_tokenizer **out) {
  char name[48];
  *out = NULL;
  if (!text_is(info->model, "gpt2"))
    return lpx_fail(host, LAPROX_ERROR_UNSUPPORTED,
                    "tokenizer.ggml.model: \"%s\" is not supported (only \"gpt2\", byte-level BPE)",
                    printable(info->model, name));
  lpx_tokenizer *t = lpx_allocate(host, 1, sizeof *t);
  if (!t) return lpx_fail_memory(host, "tokenizer");
  t->host = lpx_host_complete(host);
  laprox_result result = compile_patterns(t, info->pre);
  if (!result) result = copy_tokens(t, info);
  if (!result) result = copy_merges(t, info);
  if (result)
    lpx_tokenizer_destroy(t);
  else
    *out = t;
  return result;
}

void lpx_tokenizer_destroy(lpx_tokenizer *tokenizer) {
  if (!tokenizer) return;
  for (int i = 0; i < MAX_STAGES; i++) pcre2_code_free(tokenizer->stages[i]);
  pcre2_general_context_free(tokenizer->memory);
  lpx_release(&tokenizer->host, tokenizer->pairs);
  lpx_release(&tokenizer->host, tokenizer->by_text);
  lpx_release(&tokenizer->host, tokenizer->types);
  lpx_release(&tokenizer->host, tokenizer->offsets);
  lpx_release(&tokenizer->host, tokenizer->bytes);
  laprox_host host = tokenizer->host;
  lpx_release(&host, tokenizer);
}

uint32_t lpx_tokenizer_n_tokens(const lpx_tokenizer *tokenizer) {
  return tokenizer->n_tokens;
}

uint32_t lpx_tokenizer_bos(const lpx_tokenizer *tokenizer) {
  return tokenizer->bos;
}

uint32_t lpx_tokenizer_eos(const lpx_tokenizer *tokenizer) {
  return tokenizer->eos;
}

/* ---- text to tokens ---- */

/* A symbol of the word at hand, in a list that shrinks from both neighbours' sides as symbols merge. */
typedef struct symbol {
  uint32_t id, previous, next; /* NO_SYMBOL: merged away / none */
} symbol;

typedef struct candidate {
  uint32_t rank, at;          /* of the left symbol */
  uint32_t left, right, into; /* ids, to tell whether the pair still stands */
} candidate;

typedef struct encoder {
  const lpx_tokenizer *tokenizer;
  pcre2_match_data *match;
  pcre2_match_context *limits;
  uint32_t *tokens; /* room for one token a byte and BOS */
  size_t n_tokens;
  symbol *symbols;
  size_t symbol_room;
  candidate *heap; /* 3 for a symbol: one pair each at first, two new ones after each merge */
  size_t n_heap;
} encoder;

static bool more_urgent(const candidate *a, const candidate *b) {
  return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(encoder *e, candidate c) {
  size_t i = e->n_heap++;
  while (i > 0 && more_urgent(&c, &e->heap[(i - 1) / 2])) {
    e->heap[i] = e->heap[(i - 1) / 2];
    i = (i - 1) / 2;
  }
  e->heap[i] = c;
}

static candidate heap_pop(encoder *e) {
  candidate top = e->heap[0], last = e->heap[--e->n_heap];
  size_t i = 0;
  for (;;) {
    size_t child = 2 * i + 1;
    if (child >= e->n_heap) break;
    if (child + 1 < e->n_heap && more_urgent(&e->heap[child + 1], &e->heap[child])) child++;
    if (!more_urgent(&e->heap[child], &last)) break;
    e->heap[i] = e->heap[child];
    i = child;
  }
  e->heap[i] = last;
  return top;
}

static void push_pair(encoder *e, uint32_t at) {
  const symbol *left = &e->symbols[at];
  if (left->next == NO_SYMBOL) return;
  uint32_t right = e->symbols[left->next].id;
  const pair_slot *pair = find_pair(e->tokenizer, left->id, right);
  if (pair->left == NO_SYMBOL) return;
  heap_push(e, (candidate){pair->rank, at, left->id, right, pair->merged});
}

static void merge_symbols(encoder *e) {
  while (e->n_heap > 0) {
    candidate c = heap_pop(e);
    symbol *left = &e->symbols[c.at];
    if (left->id != c.left || left->next == NO_SYMBOL || e->symbols[left->next].id != c.right) continue;
    symbol *right = &e->symbols[left->next];
    left->id = c.into;
    left->next = right->next;
    right->id = NO_SYMBOL;
    if (left->next != NO_SYMBOL) e->symbols[left->next].previous = c.at;
    if (left->previous != NO_SYMBOL) push_pair(e, left->previous);
    push_pair(e, c.at);
  }
}

static laprox_result reserve_symbols(encoder *e, size_t n) {
  const laprox_host *host = &e->tokenizer->host;
  if (n <= e->symbol_room) return LAPROX_OK;
  size_t room = n + n / 2 + 64;
  symbol *symbols = lpx_reallocate(host, e->symbols, room, sizeof *symbols);
  if (symbols) e->symbols = symbols;
  candidate *heap = lpx_reallocate(host, e->heap, 3 * room, sizeof *heap);
  if (heap) e->heap = heap;
  if (!symbols || !heap) return lpx_fail_memory(host, "tokens of the prompt");
  e->symbol_room = room;
  return LAPROX_OK;
}

static laprox_result encode_word(encoder *e, const char *word, size_t n) {
  const lpx_tokenizer *t = e->tokenizer;
  if (t->pre->whole_words) {
    uint32_t id = *text_slot(t, word, n);
    if (id != NO_SYMBOL && is_plain(t->types[id])) {
      e->tokens[e->n_tokens++] = id;
      return LAPROX_OK;
    }
  }
  laprox_result result = reserve_symbols(e, n);
  if (result) return result;
  for (size_t i = 0; i < n; i++) {
    uint32_t id = t->by_byte[(uint8_t)word[i]];
    if (id == NO_SYMBOL)
      return lpx_fail(&t->host, LAPROX_ERROR_UNSUPPORTED,
                      "the text contains byte 0x%02x, for which the vocabulary has no token",
                      (uint8_t)word[i]);
    e->symbols[i] = (symbol){id, i ? (uint32_t)i - 1 : NO_SYMBOL, i + 1 < n ? (uint32_t)i + 1 : NO_SYMBOL};
  }
  e->n_heap = 0;
  for (size_t i = 0; i < n; i++) push_pair(e, (uint32_t)i);
  merge_symbols(e);
  for (uint32_t i = 0; i != NO_SYMBOL; i = e->symbols[i].next) e->tokens[e->n_tokens++] = e->symbols[i].id;
  return LAPROX_OK;
}

/* Cuts a piece of valid UTF-8 by the pattern of a stage; the last stage's pieces are words. */
static laprox_result split(encoder *e, uint32_t stage, const char *text, size_t n) {
  const lpx_tokenizer *t = e->tokenizer;
  if (n == 0) return LAPROX_OK;
  if (stage == t->n_stages || stage >= MAX_STAGES) return encode_word(e, text, n);
  for (size_t at = 0; at < n;) {
    int found =
        pcre2_match(t->stages[stage], (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK, e->match, e->limits);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH)
      return lpx_fail(
          &t->host, found == PCRE2_ERROR_NOMEMORY ? LAPROX_ERROR_OUT_OF_MEMORY : LAPROX_ERROR_UNSUPPORTED,
          "pre-tokeniser %s: PCRE2 error %d at byte %zu of a text of %zu", t->pre->names[0], found, at, n);
    size_t first = n, end = n;
    if (found > 0) {
      /* Deeper stages use the same match data, so read it before going down. */
      const PCRE2_SIZE *span = pcre2_get_ovector_pointer(e->match);
      bool empty = span[0] == span[1];
      first = empty ? n : span[0];
      end = empty ? n : span[1];
    }
    laprox_result result = split(e, stage + 1, text + at, first - at);
    if (!result && end > first) result = split(e, stage + 1, text + first, end - first);
    if (result) return result;
    at = end;
  }
  return LAPROX_OK;
}

static laprox_result encode_text(encoder *e, const char *text, size_t n) {
  for (size_t at = 0; at < n;) {
    size_t valid = at, length = 0;
    while (valid < n && (length = character_bytes(text + valid, n - valid)) > 0) valid += length;
    size_t end = valid;
    while (end < n && character_bytes(text + end, n - end) == 0) end++;
    laprox_result result = split(e, 0, text + at, valid - at);
    if (!result && end > valid) result = encode_word(e, text + valid, end - valid);
    if (result) return result;
    at = end;
  }
  return LAPROX_OK;
}

laprox_result lpx_tokenizer_encode(const lpx_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                   bool add_bos, uint32_t **tokens, size_t *count) {
  const laprox_host *host = &tokenizer->host;
  encoder e = {.tokenizer = tokenizer};
  laprox_result result = LAPROX_OK;
  *tokens = NULL;
  *count = 0;
  if (n_bytes >= NO_SYMBOL / 4)
    return lpx_fail(host, LAPROX_ERROR_UNSUPPORTED, "a text of %zu bytes is too long (limit %u)", n_bytes,
                    NO_SYMBOL / 4 - 1);
  e.tokens = lpx_allocate(host, n_bytes + 1, sizeof *e.tokens);
  e.match = pcre2_match_data_create(1, tokenizer->memory);
  e.limits = pcre2_match_context_create(tokenizer->memory);
  if (!e.tokens || !e.match || !e.limits) result = lpx_fail_memory(host, "tokens of the prompt");
  if (!result) {
    /* The patterns backtrack over a run of white space at most once: long runs need steps, not depth. */
    pcre2_set_match_limit(e.limits, UINT32_MAX);
    if (add_bos && tokenizer->add_bos) e.tokens[e.n_tokens++] = tokenizer->bos;
    result = encode_text(&e, text, n_bytes);
  }
  pcre2_match_context_free(e.limits);
  pcre2_match_data_free(e.match);
  lpx_release(host, e.heap);
  lpx_release(host, e.symbols);
  if (result) {
    lpx_release(host, e.tokens);
    return result;
  }
  uint32_t *exact = lpx_reallocate(host, e.tokens, e.n_tokens + 1, sizeof *exact);
  *tokens = exact ? exact : e.tokens;
  *count = e.n_tokens;
  return LAPROX_OK;
}

/* ---- tokens to text ---- */

laprox_result lpx_tokenizer_decode(const lpx_tokenizer *tokenizer, const uint32_t *tokens, size_t count,
                                   char **text, size_t *n_bytes) {
  const laprox_host *host = &tokenizer->host;
  const size_t *offsets = tokenizer->offsets;
  size_t total = 1;
  *text = NULL;
  *n_bytes = 0;
  for (size_t i = 0; i < count; i++) {
    if (tokens[i] >= tokenizer->n_tokens)
      return lpx_fail(host, LAPROX_ERROR_INVALID_ARGUMENT, "token %zu is %u, outside the vocabulary of %u", i,
                      tokens[i], tokenizer->n_tokens);
    if (!lpx_add(total, offsets[tokens[i] + 1] - offsets[tokens[i]], &total))
      return lpx_fail_memory(host, "text");
  }
  char *to = lpx_allocate(host, total, 1);
  if (!to) return lpx_fail_memory(host, "text");
  size_t n = 0;
  for (size_t i = 0; i < count; i++) {
    if (tokenizer->types[tokens[i]] == LPX_TOKEN_CONTROL) continue;
    size_t length = offsets[tokens[i] + 1] - offsets[tokens[i]];
    memcpy(to + n, tokenizer->bytes + offsets[tokens[i]], length);
    n += length;
  }
  to[n] = 0;
  *text = to;
  *n_bytes = n;
  return LAPROX_OK;
}
