/* capture.h: made-up caches with a structure that hurts, in memory and as the files that `laprox evict`
 * reads. */
#ifndef SUPPORT_CAPTURE_H
#define SUPPORT_CAPTURE_H

#include "laprox/laprox.h"
#include "reference/reference.h"

/* What keys and values look like. Heads differ in loudness, so that a global selection is ragged. */
typedef enum capture_pattern {
  CAPTURE_GAUSSIAN = 0,
  CAPTURE_EQUAL, /* one key, value, query and projection for all heads and layers: all scores are the same */
  CAPTURE_HALF_ZERO, /* every other stretch of five entries has values of zero, hence scores of zero */
  CAPTURE_NEEDLES,   /* a few keys in each head that a query of the window looks at */
  CAPTURE_RISING,    /* the same, each so far above those before that f32 can't hold both exponentials */
  CAPTURE_TIES       /* five different entries, repeated in random order */
} capture_pattern;

/* Values that are no numbers, one element each; the middle candidate of a head. */
enum capture_spoil {
  CAPTURE_NAN_KEY = 1,   /* last layer, last KV head: no score of that head is finite */
  CAPTURE_INF_KEY = 2,   /* first layer, first KV head */
  CAPTURE_NAN_VALUE = 4, /* first layer, last KV head: one score is not finite */
  CAPTURE_INF_VALUE = 8  /* last layer, first KV head */
};

typedef struct capture_options {
  laprox_shape shape;
  uint32_t n_tokens, window; /* window: the queries that the capture holds */
  uint32_t model_dim;        /* 0 = 64 */
  laprox_dtype dtype;        /* F32, F16 or BF16, of everything; Q8_0 or Q4_0, of K and V, others F32 */
  double scale;              /* 0 = not given */
  capture_pattern pattern;
  unsigned spoil; /* of capture_spoil */
  uint64_t seed;
} capture_options;

typedef struct capture_tensor {
  laprox_dtype dtype;
  uint32_t n_dims;
  uint64_t dims[3];
  size_t n_elements, bytes;
  void *data;    /* as stored */
  float *values; /* the same, widened */
} capture_tensor;

typedef struct capture_layer {
  capture_tensor query, key, value, output_weight;
} capture_layer;

typedef struct capture_cache {
  capture_options options;
  capture_layer *layers;
  ref_cache cache; /* a view of the layers */
  ref_layer *ref_layers;
  ref_head *ref_heads;
} capture_cache;

/* The same options give the same bytes on every machine of IEEE arithmetic. */
void capture_init(capture_cache *capture, const capture_options *options);
void capture_finish(capture_cache *capture);
/* How far off a score may be where K and V are of this type, as a share of its head's largest. */
double capture_tolerance(laprox_dtype dtype);

/* Same bytes in a file (support/capture_file.c). */
laprox_result capture_write(const capture_cache *capture, const laprox_host *host, const char *path);

/* Replaces what stands in a capture of the same shape by a file's tensors; queries and projections may be F32 there
   whatever the cache's type. */
laprox_result capture_read(capture_cache *capture, const laprox_host *host, const char *path);

/* Deterministic numbers for tests: uniform 64 bits; uniform 0 … 1; about normal. */
uint64_t random_bits(uint64_t *state);
double random_uniform(uint64_t *state);
double random_normal(uint64_t *state);

#endif
