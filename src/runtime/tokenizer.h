/* tokenizer.h: byte-level BPE as GGUF files carry it (`tokenizer.ggml.model` = "gpt2"). Knows nothing of
 * files.
 *
 * Text is cut into words by the regular expressions of a pre-tokeniser (`tokenizer.ggml.pre`), a word's bytes
 * become one token each, and neighbours are merged in the order of the merge table. Any bytes can be encoded;
 * those that are not UTF-8 are words of their own.
 */
#ifndef LPX_TOKENIZER_H
#define LPX_TOKENIZER_H

#include "core/core.h"

/* Bytes of a file; not zero-terminated. */
typedef struct lpx_text {
  const char *bytes;
  size_t n_bytes;
} lpx_text;

/* `tokenizer.ggml.token_type`. */
enum {
  LPX_TOKEN_NORMAL = 1,
  LPX_TOKEN_UNKNOWN = 2,
  LPX_TOKEN_CONTROL = 3,
  LPX_TOKEN_USER_DEFINED = 4,
  LPX_TOKEN_UNUSED = 5,
  LPX_TOKEN_BYTE = 6
};

/* Everything is copied. */
typedef struct lpx_tokenizer_info {
  lpx_text model;         /* only "gpt2" */
  lpx_text pre;           /* empty: "default" */
  const lpx_text *tokens; /* the vocabulary by id, in the byte-level alphabet */
  size_t n_tokens;
  const lpx_text *merges; /* "left right", the most urgent first */
  size_t n_merges;
  const int32_t *types;  /* n_tokens, or NULL: all normal but bos and eos */
  uint32_t bos, eos;     /* LAPROX_NONE where there is none */
  laprox_switch add_bos; /* AUTO: what models of this `pre` kind do */
} lpx_tokenizer_info;

/* Immutable once made, usable from all threads if the host's allocator is. */
typedef struct lpx_tokenizer lpx_tokenizer;

/* Fails with UNSUPPORTED for another model or an unknown pre kind, with FORMAT for tables that contradict
 * themselves. */
laprox_result lpx_tokenizer_create(const laprox_host *host, const lpx_tokenizer_info *info,
                                   lpx_tokenizer **out);
void lpx_tokenizer_destroy(lpx_tokenizer *tokenizer);

/* The same from the metadata of a GGUF file (tokenizer.ggml.*). */
struct lpx_gguf;
laprox_result lpx_tokenizer_read(const laprox_host *host, const struct lpx_gguf *file, lpx_tokenizer **out);
uint32_t lpx_tokenizer_n_tokens(const lpx_tokenizer *tokenizer);
/* LAPROX_NONE where there is none. */
uint32_t lpx_tokenizer_bos(const lpx_tokenizer *tokenizer);
uint32_t lpx_tokenizer_eos(const lpx_tokenizer *tokenizer);

/* BOS comes first where the model wants one and `add_bos`. *tokens is released with lpx_release. */
laprox_result lpx_tokenizer_encode(const lpx_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                   bool add_bos, uint32_t **tokens, size_t *count);
/* Zero-terminated, released with lpx_release. Control tokens give nothing; a token outside the vocabulary is
   an INVALID_ARGUMENT. */
laprox_result lpx_tokenizer_decode(const lpx_tokenizer *tokenizer, const uint32_t *tokens, size_t count,
                                   char **text, size_t *n_bytes);

#endif
