/* factor.c: value factors on the host, in f64: Gram matrix and a Cholesky factorisation that bears singular
 * ones. */
#include "evict/evict.h"

#include <float.h>
#include <math.h>
#include <string.h>

size_t laprox_value_factor_bytes(const laprox_shape *shape, laprox_gqa gqa) {
  if (!shape->n_kv_heads || shape->n_heads < shape->n_kv_heads) return 0;
  const size_t group = shape->n_heads / shape->n_kv_heads, d = shape->head_dim;
  const size_t heads_together = gqa == LAPROX_GQA_JOINT ? group : 1;
  return shape->n_heads / heads_together * (heads_together * d) * (heads_together * d) * sizeof(float);
}

/* gram[i][j] = sum over model dimensions of W[.][column + i] W[.][column + j], upper half. Four rows of W at a time, so
   that the sums go through the caches a quarter as often. */
static void gram_matrix(const float *weight, uint32_t model_dim, size_t row_length, size_t column, size_t n,
                        double *gram) {
  memset(gram, 0, n * n * sizeof *gram);
  uint32_t row = 0;
  for (; row + 4 <= model_dim; row += 4) {
    const float *w = weight + row * row_length + column;
    const float *w1 = w + row_length, *w2 = w1 + row_length, *w3 = w2 + row_length;
    for (size_t i = 0; i < n; i++) {
      const double a = w[i], b = w1[i], c = w2[i], d = w3[i];
      double *sums = gram + i * n;
      for (size_t j = i; j < n; j++) sums[j] += (a * w[j] + b * w1[j]) + (c * w2[j] + d * w3[j]);
    }
  }
  for (; row < model_dim; row++) {
    const float *w = weight + row * row_length + column;
    for (size_t i = 0; i < n; i++) {
      const double wi = w[i];
      for (size_t j = i; j < n; j++) gram[i * n + j] += wi * w[j];
    }
  }
}

/* In place: gram = R^T R, R upper triangular. A pivot that is zero up to rounding belongs to a direction that
   the matrix does not see; its row is zero. */
static void cholesky(double *gram, size_t n) {
  double largest = 0.0;
  for (size_t i = 0; i < n; i++) largest = fmax(largest, gram[i * n + i]);
  const double tiny = largest * (double)n * DBL_EPSILON;
  for (size_t i = 0; i < n; i++) {
    double *row = gram + i * n;
    const double pivot = row[i];
    if (!(pivot > tiny)) {
      memset(row + i, 0, (n - i) * sizeof *row);
      continue;
    }
    const double root = sqrt(pivot);
    for (size_t j = i; j < n; j++) row[j] /= root;
    for (size_t k = i + 1; k < n; k++)
      for (size_t j = k; j < n; j++) gram[k * n + j] -= row[k] * row[j];
  }
}

typedef struct factorisation {
  const float *weight;
  float *factor;
  double *grams;
  uint32_t model_dim;
  size_t row_length, n;
} factorisation;

static void factorise_block(void *user, uint32_t index) {
  const factorisation *f = user;
  const size_t n = f->n;
  double *gram = f->grams + index * n * n;
  float *factor = f->factor + index * n * n;
  gram_matrix(f->weight, f->model_dim, f->row_length, index * n, n, gram);
  cholesky(gram, n);
  for (size_t i = 0; i < n * n; i++) factor[i] = i / n > i % n ? 0.0f : (float)gram[i];
}

laprox_result lpx_value_factor(const laprox_host *host, const laprox_shape *shape, laprox_gqa gqa,
                               uint32_t model_dim, const float *output_weight, float *factor,
                               lpx_for_each_fn for_each) {
  const laprox_result result = lpx_shape_check(host, shape);
  if (result) return result;
  const size_t row_length = (size_t)shape->n_heads * shape->head_dim;
  for (size_t i = 0; i < row_length * model_dim; i++)
    if (!isfinite(output_weight[i]))
      return lpx_fail(host, LAPROX_ERROR_FORMAT, "output projection: element [%zu, %zu] is not finite",
                      i / row_length, i % row_length);
  const size_t group = shape->n_heads / shape->n_kv_heads;
  const size_t n = (gqa == LAPROX_GQA_JOINT ? group : 1) * shape->head_dim, n_blocks = row_length / n;
  factorisation f = {.weight = output_weight,
                     .factor = factor,
                     .grams = lpx_allocate(host, n_blocks * n, n * sizeof *f.grams),
                     .model_dim = model_dim,
                     .row_length = row_length,
                     .n = n};
  if (!f.grams) return lpx_fail_memory(host, "a value factor");
  for_each((uint32_t)n_blocks, factorise_block, &f);
  lpx_release(host, f.grams);
  return LAPROX_OK;
}

static void one_after_another(uint32_t n, lpx_task_fn task, void *user) {
  for (uint32_t i = 0; i < n; i++) task(user, i);
}

laprox_result laprox_value_factor(const laprox_host *given, const laprox_shape *shape, laprox_gqa gqa,
                                  uint32_t model_dim, const float *output_weight, float *factor) {
  const laprox_host host = lpx_host_complete(given);
  return lpx_value_factor(&host, shape, gqa, model_dim, output_weight, factor, one_after_another);
}
