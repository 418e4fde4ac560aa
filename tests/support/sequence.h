/* sequence.h: a made-up sequence whose cache grows and is evicted again and again, with the f64 reference
 * beside it. */
#ifndef TESTS_SUPPORT_SEQUENCE_H
#define TESTS_SUPPORT_SEQUENCE_H

#include "runtime/cache.h"
#include "support/capture.h"

typedef struct test_sequence {
  capture_cache world; /* K, V and queries of all tokens there will ever be */
  laprox_device *device;
  lpx_cache cache;
  uint32_t query_rows;
  lpx_buffer *queries, *factors, *joint_factors; /* of each layer */
} test_sequence;

/* options->window is ignored: every token has a query. query_rows: rows of the query rings. head_gains (may
   be NULL): for each KV head a factor on the output projection of its group, so that heads compete unequally.
 */
void sequence_init(test_sequence *sequence, laprox_device *device, const capture_options *options,
                   uint32_t query_rows, const float *head_gains);
void sequence_finish(test_sequence *sequence);

/* Reads n more tokens. */
void sequence_grow(test_sequence *sequence, uint32_t n);

/* What the cache holds: true positions of each (layer, KV head), ascending. Free with ref_kept_finish. */
ref_kept sequence_positions(const test_sequence *sequence);
/* 2 * (rows of all heads) * row bytes. */
uint64_t sequence_data_bytes(const test_sequence *sequence);

/* Evicts and returns what the library says, nothing checked. `scores` may be NULL. */
laprox_result sequence_try_evict(test_sequence *sequence, const laprox_policy *policy, float **scores,
                                 laprox_eviction *out);
/* Evicts and holds everything against the reference: scores, kept positions, rows bit for bit, counts, bytes.
   `out` may be NULL. */
void sequence_evict(test_sequence *sequence, const laprox_policy *policy, laprox_eviction *out);

/* Both hold the same positions and the same bits. */
void sequence_expect_same(const test_sequence *left, const test_sequence *right);
/* Holds K and V of every position it lists, bit for bit. */
void sequence_expect_rows(const test_sequence *sequence);

#endif
