/* reading.h: sessions on the shipped model that read the demonstration's document, and comparisons of them.
 */
#ifndef TESTS_SUPPORT_READING_H
#define TESTS_SUPPORT_READING_H

#include "runtime/session.h"
#include "support/gpu.h"

enum { N_LAYERS = 4, N_HEADS = 8 /* KV heads of all layers */ };

typedef struct test_reading {
  test_gpu *gpu;
  laprox_model *model;
  uint32_t *tokens; /* of the document */
  size_t n_tokens;
  uint32_t n_vocab;
  uint64_t bytes; /* device memory with nothing but the model */
} test_reading;
extern test_reading rig;

/* For cmocka's group. */
int reading_setup(void **state);
int reading_teardown(void **state);

/* A file of the test data. */
char *data_path(char path[512], const char *name);
uint64_t device_bytes(void);

laprox_session *make_with(const laprox_session_info *info);
laprox_session *make(void);
laprox_session *make_at(size_t n_tokens);
laprox_session *fork_of(const laprox_session *session);
/* The next n tokens of the document, at once and one by one. */
void read_tokens(laprox_session *session, size_t n);
void decode_tokens(laprox_session *session, size_t n);
void evict(laprox_session *session, const laprox_policy *policy);
void evict_to(laprox_session *session, uint32_t n_entries);
uint64_t count_kept(const laprox_session *session);
uint32_t best_token(const laprox_session *session);

/* Tolerances are shares of the largest number. */
void expect_near(const float *left, const float *right, double tolerance);
void expect_same_logits(const laprox_session *left, const laprox_session *right);
void expect_same_kept(const laprox_session *left, const laprox_session *right);
/* The queries of the last window tokens; a ring that was never full holds anything elsewhere. */
void expect_near_queries(const laprox_session *left, const laprox_session *right, double tolerance);

#endif
