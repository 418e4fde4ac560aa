/* test_tokenizer.c: the shipped model's tokenizer against its reference ids, pre-tokenisers on Unicode with a
 * small vocabulary, hostile tables, and words long enough to hurt. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <jansson.h>

#include "io/gguf.h"
#include "runtime/tokenizer.h"

/* ---- a host that counts messages and memory, and fails when told to ---- */

typedef struct surroundings {
  laprox_host host;
  int n_messages;
  char last[512];
  long live, fail_at; /* fail_at: allocations until one fails, negative: never */
} surroundings;

static void *test_reallocate(void *user, void *pointer, size_t size) {
  surroundings *s = user;
  if (s->fail_at == 0) return NULL;
  if (s->fail_at > 0) s->fail_at--;
  void *out = realloc(pointer, size);
  if (out && !pointer) s->live++;
  return out;
}

static void *test_allocate(void *user, size_t size) {
  return test_reallocate(user, NULL, size);
}

static void test_release(void *user, void *pointer) {
  surroundings *s = user;
  if (pointer) s->live--;
  free(pointer);
}

static void on_message(void *user, laprox_message_level level, const char *text) {
  surroundings *s = user;
  assert_int_equal(level, LAPROX_MESSAGE_ERROR);
  s->n_messages++;
  snprintf(s->last, sizeof s->last, "%s", text);
}

static void surroundings_init(surroundings *s) {
  *s = (surroundings){.fail_at = -1};
  s->host = (laprox_host){{s, test_allocate, test_reallocate, test_release}, on_message, s};
}

/* ---- the shipped model ---- */

static lpx_tokenizer *shipped;

static const char *data_path(const char *name, char to[1024]) {
  const char *folder = getenv("LAPROX_TEST_DATA");
  snprintf(to, 1024, "%s/%s", folder ? folder : "tests/data", name);
  return to;
}

static int load_shipped(void **state) {
  (void)state;
  char path[1024];
  lpx_gguf *file = NULL;
  if (lpx_gguf_open(NULL, data_path("model-f16.gguf", path), &file)) return -1;
  laprox_result result = lpx_tokenizer_read(NULL, file, &shipped);
  lpx_gguf_close(file);
  return result ? -1 : 0;
}

static int unload_shipped(void **state) {
  (void)state;
  lpx_tokenizer_destroy(shipped);
  return 0;
}

typedef struct example {
  const char *text;
  size_t n;
  uint32_t ids[40];
} example;

/* By the tokenizer that the model was trained with. */
static const example examples[] = {
    {"", 0, {0}},
    {"a", 1, {99}},
    {" ", 1, {34}},
    {"  ", 2, {34, 34}},
    {"   two", 3, {34, 34, 1089}},
    {"Hello, world!", 6, {74, 383, 113, 46, 1458, 35}},
    {"The secret number of the falcon is 48213.",
     14,
     {521, 544, 366, 275, 261, 990, 281, 34, 54, 58, 52, 51, 53, 48}},
    {"I'm sure they're not what we've said; he'd think it'll be Bob's.",
     22,
     {75, 41,  111,  1487, 462, 1278, 386, 650, 393,  1794, 511,
      61, 315, 1807, 1126, 335, 1580, 319, 419, 1227, 449,  48}},
    {"Don't CAN'T 'tis", 11, {70, 270, 775, 506, 67, 80, 41, 86, 1462, 118, 267}},
    {"0123456789", 10, {50, 51, 52, 53, 54, 55, 56, 57, 58, 59}},
    {" 00 1 22 333 4444", 17, {34, 50, 50, 34, 51, 34, 52, 52, 34, 53, 53, 53, 34, 54, 54, 54, 54}},
    {"abc123def", 8, {442, 101, 51, 52, 53, 102, 103, 104}},
    {"line one\nline two\r\n\r\nline three\n",
     15,
     {110, 510, 582, 12, 110, 510, 1089, 15, 12, 15, 12, 110, 510, 1259, 12}},
    {"trailing spaces   ", 8, {307, 1624, 300, 436, 1846, 34, 34, 34}},
    {"tab\tand\t\ttabs", 9, {118, 442, 11, 437, 11, 11, 118, 442, 117}},
    {"   \n   x", 8, {34, 34, 34, 12, 34, 34, 34, 122}},
    {"\n\n\n", 3, {12, 12, 12}},
    {"a_b __init__ snake_case", 14, {99, 97, 100, 34, 97, 97, 264, 286, 97, 97, 921, 97, 101, 1247}},
    {"x=y+z*(a-b)/c;", 14, {122, 63, 123, 45, 124, 44, 42, 99, 47, 100, 43, 49, 101, 61}},
    {"...!!!???", 9, {48, 48, 48, 35, 35, 35, 65, 65, 65}},
    {"\"quoted\" 'single'", 10, {36, 517, 301, 310, 36, 1462, 117, 300, 277, 41}},
    {"http://example.org/a?b=c&d=1", 23, {441, 118, 114, 60, 49,  49, 103, 122, 398, 435, 48, 288,
                                          105, 49,  99,  65, 100, 63, 101, 40,  102, 63,  51}},
    {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 33, {99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
                                               99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
                                               99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99}},
    {"Question: What is the pass key? Answer:", 10, {371, 60, 359, 281, 261, 354, 369, 65, 370, 60}},
    {" Remember that the access code of the rusty lantern is 00000.",
     17,
     {427, 323, 261, 556, 541, 275, 261, 935, 867, 281, 34, 50, 50, 50, 50, 50, 48}},
    {"MixedCASEWords andMoreOfThem",
     17,
     {79, 1400, 310, 69, 67, 85, 71, 89, 1030, 117, 292, 79, 416, 81, 104, 521, 111}},
    {"<s></s>", 7, {62, 117, 64, 62, 49, 117, 64}},
};

static void test_examples(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
    const example *x = &examples[i];
    uint32_t *ids = NULL;
    size_t n = 0, n_bytes = 0;
    char *text = NULL;
    assert_int_equal(lpx_tokenizer_encode(shipped, x->text, strlen(x->text), false, &ids, &n), LAPROX_OK);
    if (n != x->n || memcmp(ids, x->ids, n * sizeof *ids) != 0) fail_msg("\"%s\": other tokens", x->text);
    assert_int_equal(lpx_tokenizer_decode(shipped, ids, n, &text, &n_bytes), LAPROX_OK);
    assert_int_equal(n_bytes, strlen(x->text));
    assert_string_equal(text, x->text);
    lpx_release(NULL, ids);
    lpx_release(NULL, text);
  }
}

static void test_reference_prompts(void **state) {
  (void)state;
  static const char *const names[3] = {"reference/prompt_120.json", "reference/prompt_500.json",
                                       "reference/prompt_1500.json"};
  for (int i = 0; i < 3; i++) {
    char path[1024];
    json_t *root = json_load_file(data_path(names[i], path), 0, NULL);
    assert_non_null(root);
    const json_t *prompt = json_object_get(root, "prompt"), *expected = json_object_get(root, "ids");
    uint32_t *ids = NULL;
    size_t n = 0;
    assert_int_equal(
        lpx_tokenizer_encode(shipped, json_string_value(prompt), json_string_length(prompt), true, &ids, &n),
        LAPROX_OK);
    assert_int_equal(n, json_array_size(expected));
    for (size_t k = 0; k < n; k++) assert_int_equal(ids[k], json_integer_value(json_array_get(expected, k)));
    lpx_release(NULL, ids);
    json_decref(root);
  }
}

static void test_prompt_lengths(void **state) {
  (void)state;
  char path[1024];
  FILE *file = fopen(data_path("prompts/needle_1024.jsonl", path), "rb");
  int n_prompts = 0;
  assert_non_null(file);
  for (json_t *root; (root = json_loadf(file, JSON_DISABLE_EOF_CHECK, NULL)); json_decref(root)) {
    const json_t *prompt = json_object_get(root, "prompt");
    uint32_t *ids = NULL;
    size_t n = 0;
    assert_int_equal(
        lpx_tokenizer_encode(shipped, json_string_value(prompt), json_string_length(prompt), true, &ids, &n),
        LAPROX_OK);
    assert_int_equal(n, json_integer_value(json_object_get(root, "n_tokens")));
    assert_int_equal(ids[0], lpx_tokenizer_bos(shipped));
    lpx_release(NULL, ids);
    n_prompts++;
  }
  fclose(file);
  assert_int_equal(n_prompts, 200);
}

static void test_special_tokens(void **state) {
  (void)state;
  const uint32_t ids[4] = {0, 99, 1, 99}, outside[2] = {99, 2048};
  char *text = NULL;
  size_t n = 0;
  assert_int_equal(lpx_tokenizer_n_tokens(shipped), 2048);
  assert_int_equal(lpx_tokenizer_bos(shipped), 0);
  assert_int_equal(lpx_tokenizer_eos(shipped), 1);
  assert_int_equal(lpx_tokenizer_decode(shipped, ids, 4, &text, &n), LAPROX_OK);
  assert_int_equal(n, 2);
  assert_string_equal(text, "aa");
  lpx_release(NULL, text);
  assert_int_equal(lpx_tokenizer_decode(shipped, outside, 2, &text, &n), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_null(text);
}

/* ---- a small vocabulary: token b is byte b, token 256 + i is what merge i makes ---- */

typedef struct small {
  char texts[600][80], pairs[64][80];
  lpx_text tokens[600], merges[64];
  int32_t types[600];
  lpx_tokenizer_info info;
} small;

/* A byte as the character that stands for it in GGUF files. */
static size_t letter(uint8_t byte, char *to) {
  uint32_t code = byte;
  if (byte <= 32)
    code = 256u + byte;
  else if (byte >= 127 && byte <= 160)
    code = 289u + byte - 127u;
  else if (byte == 173)
    code = 323;
  if (code < 128) {
    to[0] = (char)code;
    return 1;
  }
  to[0] = (char)(0xc0 | (code >> 6));
  to[1] = (char)(0x80 | (code & 0x3f));
  return 2;
}

static size_t spell(const char *bytes, size_t n, char *to) {
  size_t length = 0;
  for (size_t i = 0; i < n; i++) length += letter((uint8_t)bytes[i], to + length);
  return length;
}

static void small_init(small *s, const char *pre) {
  memset(s, 0, sizeof *s);
  for (int b = 0; b < 256; b++) {
    s->tokens[b] = (lpx_text){s->texts[b], letter((uint8_t)b, s->texts[b])};
    s->types[b] = LPX_TOKEN_NORMAL;
  }
  s->info = (lpx_tokenizer_info){.model = {"gpt2", 4},
                                 .pre = {pre, strlen(pre)},
                                 .tokens = s->tokens,
                                 .n_tokens = 256,
                                 .merges = s->merges,
                                 .types = s->types,
                                 .bos = LAPROX_NONE,
                                 .eos = LAPROX_NONE};
}

static void small_add_token(small *s, const char *bytes, size_t n) {
  size_t i = s->info.n_tokens++;
  s->tokens[i] = (lpx_text){s->texts[i], spell(bytes, n, s->texts[i])};
  s->types[i] = LPX_TOKEN_NORMAL;
}

static void small_add_merge(small *s, const char *left, size_t n_left, const char *right, size_t n_right) {
  size_t i = s->info.n_merges++;
  size_t n = spell(left, n_left, s->pairs[i]);
  s->pairs[i][n++] = ' ';
  n += spell(right, n_right, s->pairs[i] + n);
  s->merges[i] = (lpx_text){s->pairs[i], n};
  char both[64];
  memcpy(both, left, n_left);
  memcpy(both + n_left, right, n_right);
  small_add_token(s, both, n_left + n_right);
}

static void small_add_pair(small *s, const char *two) {
  small_add_merge(s, two, 1, two + 1, 1);
}

static lpx_tokenizer *small_create(const small *s) {
  lpx_tokenizer *tokenizer = NULL;
  assert_int_equal(lpx_tokenizer_create(NULL, &s->info, &tokenizer), LAPROX_OK);
  return tokenizer;
}

static void assert_tokens(const lpx_tokenizer *t, const char *text, size_t n_bytes, const uint32_t *expected,
                          size_t n) {
  uint32_t *ids = NULL;
  size_t count = 0, n_back = 0;
  char *back = NULL;
  assert_int_equal(lpx_tokenizer_encode(t, text, n_bytes, false, &ids, &count), LAPROX_OK);
  if (expected) {
    if (count != n) fail_msg("\"%s\": %zu tokens, expected %zu", text, count, n);
    for (size_t i = 0; i < n; i++)
      if (ids[i] != expected[i])
        fail_msg("\"%s\": token %zu is %u, expected %u", text, i, ids[i], expected[i]);
  }
  assert_int_equal(lpx_tokenizer_decode(t, ids, count, &back, &n_back), LAPROX_OK);
  assert_int_equal(n_back, n_bytes);
  if (n_bytes) assert_memory_equal(back, text, n_bytes);
  lpx_release(NULL, ids);
  lpx_release(NULL, back);
}

static void test_merge_order(void **state) {
  (void)state;
  small s;
  small_init(&s, "gpt-2");
  small_add_pair(&s, "bc"); /* 256 */
  small_add_pair(&s, "ab"); /* 257 */
  small_add_pair(&s, "xx"); /* 258 */
  small_add_merge(&s, "xx", 2, "xx", 2);
  small_add_merge(&s, "ab", 2, "bc", 2);
  lpx_tokenizer *t = small_create(&s);
  assert_tokens(t, "abc", 3, (uint32_t[]){'a', 256}, 2);
  assert_tokens(t, "abbc", 4, (uint32_t[]){260}, 1);
  assert_tokens(t, "xxx", 3, (uint32_t[]){258, 'x'}, 2);
  assert_tokens(t, "xxxxxxx", 7, (uint32_t[]){259, 258, 'x'}, 3);
  lpx_tokenizer_destroy(t);
}

/* Merges that only happen where the two bytes stand in one word. */
static void test_pre_kinds(void **state) {
  (void)state;
  static const struct {
    const char *pre, *pair, *text;
    bool together;
  } cases[] = {
      {"gpt-2", "34", "1234", true},
      {"default", "34", "1234", false},
      {"llama-bpe", "34", "1234", false},
      {"llama-bpe", "23", "1234", true},
      {"llama3", "34", "1234", false},
      {"qwen2", "23", "1234", false},
      {"gpt-2", " 3", " 3", true},
      {"default", " 3", " 3", false},
      {"qwen2", " 3", " 3", false},
      {"gpt-2", "n'", "don't", false},
      {"gpt-2", "'t", "don't", true},
      {"gpt-2", "'T", "DON'T", false},
      {"qwen2", "'T", "DON'T", true},
      {"llama-bpe", "'R", "WE'RE", true},
      {"gpt-2", ".\n", "a.\nb", false},
      {"llama-bpe", ".\n", "a.\nb", true},
      {"qwen2", "\n\n", "a\n\nb", true},
      {"gpt-2", "  ", "a   b", true},
      {"gpt-2", "  ", "a  b", false},
      {"llama-bpe", "\ta", "\ta", true},
      {"gpt-2", "\ta", "\ta", false},
      {"default", "a!", "a!", false},
      {"default", " !", " !", false},
      {"gpt-2", " !", " !", true},
      {"gpt-2", "\xc3\xa9", "caf\xc3\xa9", true},
      {"gpt-2", "f\xc3", "caf\xc3\xa9", true},                         /* letters beyond ASCII are letters */
      {"gpt-2", "\xa0\xc3", "\xc2\xa0\xc3\xa9", false},                /* no-break space is space */
      {"qwen2", "\xa0\xc3", "\xc2\xa0\xc3\xa9", true},                 /* which may lead a word there */
      {"gpt-2", "\xa1\xd9", "\xd9\xa1\xd9\xa2", true},                 /* Arabic digits are digits */
      {"qwen2", "\xa1\xd9", "\xd9\xa1\xd9\xa2", false},                /* each on its own */
      {"gpt-2", "\xa5\xe6", "\xe6\x97\xa5\xe6\x9c\xac", true},         /* two ideographs, one word */
      {"gpt-2", "\xa5\xef", "\xe6\x97\xa5\xef\xbc\x8c", false},        /* ideograph, full-width comma */
      {"gpt-2", "\x80\xf0", "\xf0\x9f\x98\x80\xf0\x9f\x98\x80", true}, /* two emoji */
      {"llama3", "a\xf0", "a\xf0\x9f\x98\x80", false},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    small s;
    small_init(&s, cases[i].pre);
    small_add_pair(&s, cases[i].pair);
    lpx_tokenizer *t = small_create(&s);
    uint32_t *ids = NULL;
    size_t n = 0;
    bool together = false;
    assert_int_equal(lpx_tokenizer_encode(t, cases[i].text, strlen(cases[i].text), false, &ids, &n),
                     LAPROX_OK);
    for (size_t k = 0; k < n; k++) together = together || ids[k] == 256;
    if (together != cases[i].together)
      fail_msg("case %zu: %s must %skeep the pair of \"%s\" together", i, cases[i].pre,
               cases[i].together ? "" : "not ", cases[i].text);
    lpx_release(NULL, ids);
    lpx_tokenizer_destroy(t);
  }
}

static void test_whole_words(void **state) {
  (void)state;
  static const char *const kinds[2] = {"llama-bpe", "gpt-2"};
  for (int i = 0; i < 2; i++) {
    small s;
    small_init(&s, kinds[i]);
    small_add_token(&s, " hi", 3);
    small_add_token(&s, "no", 2);
    s.types[257] = LPX_TOKEN_CONTROL;
    lpx_tokenizer *t = small_create(&s);
    const uint32_t whole[1] = {256}, bytes[3] = {' ', 'h', 'i'};
    assert_tokens(t, " hi", 3, i == 0 ? whole : bytes, i == 0 ? 1 : 3);
    assert_tokens(t, "no", 2, (uint32_t[]){'n', 'o'}, 2);
    lpx_tokenizer_destroy(t);
  }
}

static void test_invalid_utf8(void **state) {
  (void)state;
  static const struct {
    const char *bytes;
    size_t n;
  } cases[] = {
      {"\xff\xfe\x80", 3},
      {"a\xc3", 2},
      {"\xe6\x97", 2},
      {"\xed\xa0\x80 surrogate", 13},
      {"\xc0\xaf", 2},
      {"\xf4\x90\x80\x80", 4},
      {"\xf8\x88\x80\x80\x80", 5},
      {"a\0b", 3},
      {"\0", 1},
      {"\xe0\x80\x80", 3},
      {"\xf0\x80\x80\x80", 4},
      {" \xff \xff ", 5},
  };
  static const char *const kinds[4] = {"gpt-2", "default", "llama3", "qwen2"};
  for (int k = 0; k < 4; k++) {
    small s;
    small_init(&s, kinds[k]);
    lpx_tokenizer *t = small_create(&s);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
      uint32_t expected[16];
      for (size_t b = 0; b < cases[i].n; b++) expected[b] = (uint8_t)cases[i].bytes[b];
      assert_tokens(t, cases[i].bytes, cases[i].n, expected, cases[i].n);
    }
    /* Bytes of no sense in particular come back as they were. */
    char noise[4096];
    uint32_t x = 12345;
    for (size_t i = 0; i < sizeof noise; i++) noise[i] = (char)((x = x * 1664525u + 1013904223u) >> 24);
    assert_tokens(t, noise, sizeof noise, NULL, 0);
    lpx_tokenizer_destroy(t);
  }
}

/* Quadratic work on words of this length would take minutes. */
static void test_long_words(void **state) {
  (void)state;
  enum { N = 1 << 20 };
  char *text = malloc(N);
  assert_non_null(text);
  small s;
  small_init(&s, "gpt-2");
  char run[32];
  memset(run, 'a', sizeof run);
  for (size_t n = 1; n <= 8; n *= 2) small_add_merge(&s, run, n, run, n);
  lpx_tokenizer *t = small_create(&s);
  static const char kinds[4] = {'a', ' ', '\n', '!'};
  clock_t start = clock();
  for (int k = 0; k < 4; k++) {
    uint32_t *ids = NULL;
    size_t n = 0;
    memset(text, kinds[k], N);
    assert_int_equal(lpx_tokenizer_encode(t, text, N, false, &ids, &n), LAPROX_OK);
    assert_int_equal(n, kinds[k] == 'a' ? N / 16 : N);
    lpx_release(NULL, ids);
  }
  assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 60);
  lpx_tokenizer_destroy(t);
  free(text);
}

/* ---- tables that contradict themselves ---- */

typedef enum damage {
  OTHER_MODEL,
  UNKNOWN_PRE,
  NO_TOKENS,
  BOS_OUTSIDE,
  EOS_OUTSIDE,
  BAD_TYPE,
  MERGE_WITHOUT_SPACE,
  MERGE_ONE_SIDED,
  MERGE_EMPTY,
  MERGE_OF_STRANGERS,
  MERGE_INTO_NOTHING,
  N_DAMAGES
} damage;

static laprox_result damage_small(small *s, damage d) {
  static char mess[] = "uh\noh";
  switch (d) {
  case OTHER_MODEL:
    s->info.model = (lpx_text){"llama", 5};
    return LAPROX_ERROR_UNSUPPORTED;
  case UNKNOWN_PRE:
    s->info.pre = (lpx_text){mess, 5};
    return LAPROX_ERROR_UNSUPPORTED;
  case NO_TOKENS:
    s->info.n_tokens = 0;
    break;
  case BOS_OUTSIDE:
    s->info.bos = 257;
    break;
  case EOS_OUTSIDE:
    s->info.eos = 1000000;
    break;
  case BAD_TYPE:
    s->types[3] = 77;
    break;
  case MERGE_WITHOUT_SPACE:
    s->merges[0] = (lpx_text){"ab", 2};
    break;
  case MERGE_ONE_SIDED:
    s->merges[0] = (lpx_text){"a ", 2};
    break;
  case MERGE_EMPTY:
    s->merges[0] = (lpx_text){"", 0};
    break;
  case MERGE_OF_STRANGERS:
    s->merges[0] = (lpx_text){"abc d", 5};
    break;
  case MERGE_INTO_NOTHING:
    s->merges[0] = (lpx_text){"a c", 3};
    break;
  case N_DAMAGES:
    break;
  }
  return LAPROX_ERROR_FORMAT;
}

static void test_bad_tables(void **state) {
  (void)state;
  for (int d = 0; d < N_DAMAGES; d++) {
    small s;
    surroundings around;
    lpx_tokenizer *t = NULL;
    small_init(&s, "gpt-2");
    small_add_pair(&s, "ab");
    surroundings_init(&around);
    laprox_result expected = damage_small(&s, (damage)d);
    laprox_result result = lpx_tokenizer_create(&around.host, &s.info, &t);
    if (result != expected) fail_msg("damage %d: result %d, expected %d", d, (int)result, (int)expected);
    assert_null(t);
    assert_int_equal(around.n_messages, 1);
    assert_int_equal(around.live, 0);
    assert_null(strchr(around.last, '\n'));
  }
}

static void test_tolerated_tables(void **state) {
  (void)state;
  small s;
  small_init(&s, "");
  small_add_pair(&s, "ab");      /* 256 */
  small_add_token(&s, "ab", 2);  /* 257: twice the same */
  small_add_token(&s, "", 0);    /* 258: nothing */
  small_add_token(&s, "x y", 3); /* 259: as written */
  s.types[259] = LPX_TOKEN_USER_DEFINED;
  s.tokens[259] = (lpx_text){"x y", 3};
  s.info.bos = 5;
  s.info.add_bos = LAPROX_SWITCH_ON;
  lpx_tokenizer *t = small_create(&s);
  assert_tokens(t, "abab", 4, (uint32_t[]){256, 256}, 2);
  uint32_t *ids = NULL;
  size_t n = 0;
  char *text = NULL;
  assert_int_equal(lpx_tokenizer_encode(t, "", 0, true, &ids, &n), LAPROX_OK);
  assert_int_equal(n, 1);
  assert_int_equal(ids[0], 5);
  lpx_release(NULL, ids);
  assert_int_equal(lpx_tokenizer_decode(t, (uint32_t[]){5, 257, 258, 259}, 4, &text, &n), LAPROX_OK);
  assert_string_equal(text, "abx y");
  lpx_release(NULL, text);
  lpx_tokenizer_destroy(t);
}

static void test_missing_byte(void **state) {
  (void)state;
  small s;
  surroundings around;
  lpx_tokenizer *t = NULL;
  uint32_t *ids = NULL;
  size_t n = 0;
  small_init(&s, "gpt-2");
  s.tokens['q'] = (lpx_text){"zz", 2};
  surroundings_init(&around);
  assert_int_equal(lpx_tokenizer_create(&around.host, &s.info, &t), LAPROX_OK);
  assert_int_equal(lpx_tokenizer_encode(t, "a quay", 6, false, &ids, &n), LAPROX_ERROR_UNSUPPORTED);
  assert_null(ids);
  assert_int_equal(around.n_messages, 1);
  lpx_tokenizer_destroy(t);
  assert_int_equal(around.live, 0);
}

static laprox_result make_and_use(surroundings *around, const small *s) {
  lpx_tokenizer *t = NULL;
  uint32_t *ids = NULL;
  size_t n = 0, n_bytes = 0;
  char *text = NULL;
  laprox_result result = lpx_tokenizer_create(&around->host, &s->info, &t);
  if (!result) result = lpx_tokenizer_encode(t, "some words, 12 of them", 22, true, &ids, &n);
  if (!result) result = lpx_tokenizer_decode(t, ids, n, &text, &n_bytes);
  lpx_release(&around->host, text);
  lpx_release(&around->host, ids);
  lpx_tokenizer_destroy(t);
  return result;
}

static void test_out_of_memory(void **state) {
  (void)state;
  small s;
  small_init(&s, "default");
  small_add_pair(&s, "om");
  int n_failures = 0;
  for (long at = 0; at < 1000; at++) {
    surroundings around;
    surroundings_init(&around);
    around.fail_at = at;
    laprox_result result = make_and_use(&around, &s);
    assert_int_equal(around.live, 0);
    if (result) {
      n_failures++;
      assert_int_equal(result, LAPROX_ERROR_OUT_OF_MEMORY);
      assert_int_equal(around.n_messages, 1);
    } else {
      assert_int_equal(around.n_messages, 0);
      if (around.fail_at > 0) break;
    }
  }
  assert_true(n_failures > 10);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_examples),         cmocka_unit_test(test_reference_prompts),
      cmocka_unit_test(test_prompt_lengths),   cmocka_unit_test(test_special_tokens),
      cmocka_unit_test(test_merge_order),      cmocka_unit_test(test_pre_kinds),
      cmocka_unit_test(test_whole_words),      cmocka_unit_test(test_invalid_utf8),
      cmocka_unit_test(test_long_words),       cmocka_unit_test(test_bad_tables),
      cmocka_unit_test(test_tolerated_tables), cmocka_unit_test(test_missing_byte),
      cmocka_unit_test(test_out_of_memory),
  };
  return cmocka_run_group_tests(tests, load_shipped, unload_shipped);
}
