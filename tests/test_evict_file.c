/* test_evict_file.c: whole evictions of captures, made-up and real ones, on the device, held against the f64
 * reference.
 *
 * LAPROX_DEVICE chooses the device. The validation layer is on, and a word from it fails the test;
 * LAPROX_TEST_VALIDATION=0 runs without, for machines that have no such layer. */
#include "io/safetensors.h"
#include "laprox/runtime.h"
#include "reference/reference.h"
#include "support/capture.h"
#include "support/variants.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define INPUT        "test_evict_file_input.safetensors"
#define OUTPUT       "test_evict_file_output.safetensors"
#define OUTPUT_AGAIN "test_evict_file_output_again.safetensors"

typedef struct evict_case {
  const char *name;
  capture_options capture;
  laprox_policy policy;
} evict_case;

#define REAL(n, type)                                                                                        \
  { .shape = {4, 4, 2, 64}, .n_tokens = n, .window = 32, .model_dim = 256, .dtype = type }

/* Shapes are n_layers, n_heads, n_kv_heads, head_dim. */
static const evict_case scenarios[] = {
    {"defaults, f16, needles",
     {{3, 4, 2, 64}, 203, 32, 96, LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 1},
     {.budget.share = 0.3}},
    {"one query head for each KV head, head_dim 32, odd length, f32",
     {{2, 3, 3, 32}, 131, 32, 64, LAPROX_DTYPE_F32, .seed = 2},
     {.budget.share = 0.4}},
    {"groups of 3, head_dim 80, bf16",
     {{2, 6, 2, 80}, 157, 32, 72, LAPROX_DTYPE_BF16, .pattern = CAPTURE_NEEDLES, .seed = 3},
     {.budget.tokens = 48}},
    {"groups of 7, head_dim 96, f16, joint",
     {{1, 7, 1, 96}, 99, 32, 64, LAPROX_DTYPE_F16, .seed = 4},
     {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 40}},
    {"groups of 8, head_dim 128, f16",
     {{1, 16, 2, 128}, 140, 32, 130, LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 5},
     {.budget.tokens = 45}},
    {"groups of 8, head_dim 128, f32, joint",
     {{1, 8, 1, 128}, 121, 32, 64, LAPROX_DTYPE_F32, .seed = 6},
     {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 50}},
    {"groups of 4, head_dim 256 above model_dim, f32",
     {{1, 4, 1, 256}, 75, 32, 60, LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 7},
     {.budget.tokens = 44}},
    {"head_dim 64 above model_dim, f16",
     {{2, 4, 2, 64}, 171, 32, 40, LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 31},
     {.budget.tokens = 44}},
    {"head_dim 4",
     {{2, 4, 4, 4}, 260, 16, 8, LAPROX_DTYPE_F16, .seed = 8},
     {.window = 16, .budget.share = 0.5}},
    {"as many tokens as the window",
     {{2, 2, 1, 32}, 32, 32, .dtype = LAPROX_DTYPE_F16},
     {.budget.tokens = 33}},
    {"fewer tokens than the window",
     {{1, 2, 1, 32}, 17, 32, .dtype = LAPROX_DTYPE_F32},
     {.budget.share = 0.5}},
    {"one token more than the window",
     {{2, 2, 2, 32}, 33, 32, .dtype = LAPROX_DTYPE_BF16, .seed = 9},
     {.budget.share = 0.1}},
    {"two tokens more than the window, one of them kept",
     {{2, 2, 2, 32}, 34, 32, .dtype = LAPROX_DTYPE_F32, .seed = 10},
     {.budget.tokens = 33, .pool_width = 1}},
    {"all scores equal, no pooling",
     {{3, 4, 2, 32}, 301, 32, 40, LAPROX_DTYPE_F16, .pattern = CAPTURE_EQUAL, .seed = 11},
     {.pool_width = 1, .budget.tokens = 111}},
    {"all scores equal, pooled, within heads",
     {{2, 4, 2, 32}, 90, 16, 40, LAPROX_DTYPE_F32, .pattern = CAPTURE_EQUAL, .seed = 12},
     {.window = 16, .scope = LAPROX_SCOPE_HEAD, .budget.tokens = 30}},
    {"half zero, within layers, cut among the zeros",
     {{2, 4, 2, 32}, 232, 32, 40, LAPROX_DTYPE_F16, .pattern = CAPTURE_HALF_ZERO, .seed = 13},
     {.scope = LAPROX_SCOPE_LAYER, .pool_width = 1, .budget.tokens = 170}},
    {"half zero, f32, joint",
     {{2, 4, 2, 32}, 132, 32, 40, LAPROX_DTYPE_F32, .pattern = CAPTURE_HALF_ZERO, .seed = 14},
     {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 60}},
    {"NaN in K, infinity in V, f16",
     {{2, 4, 2, 32}, 120, 32, 40, LAPROX_DTYPE_F16, .spoil = CAPTURE_NAN_KEY | CAPTURE_INF_VALUE, .seed = 15},
     {.budget.tokens = 50}},
    {"infinity in K, NaN in V, f32, joint",
     {{2, 4, 2, 32}, 120, 32, 40, LAPROX_DTYPE_F32, .spoil = CAPTURE_INF_KEY | CAPTURE_NAN_VALUE, .seed = 16},
     {.gqa = LAPROX_GQA_JOINT, .budget.tokens = 50}},
    {"everything spoilt, bf16, attention-mean",
     {{1, 3, 1, 32}, 90, 16, 40, LAPROX_DTYPE_BF16, .spoil = 15, .seed = 17},
     {.gqa = LAPROX_GQA_ATTENTION_MEAN, .window = 16, .budget.tokens = 40}},
    {"NaN in V, snapkv does not look at it",
     {{2, 4, 2, 32}, 90, 16, 40, LAPROX_DTYPE_F16, .spoil = CAPTURE_NAN_VALUE, .seed = 18},
     {.kind = LAPROX_POLICY_SNAPKV, .window = 16, .budget.tokens = 30}},
    {"budget 100 %", {{2, 2, 1, 32}, 70, 32, .dtype = LAPROX_DTYPE_F16, .seed = 19}, {.budget.share = 1}},
    {"budget of next to nothing is one entry",
     {{2, 4, 2, 32}, 150, 32, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 20},
     {.budget.share = 1e-9}},
    {"all but one entry",
     {{1, 2, 2, 32}, 150, 32, .dtype = LAPROX_DTYPE_F32, .seed = 21},
     {.scope = LAPROX_SCOPE_HEAD, .budget.tokens = 149}},
    {"ties, floor, within layers",
     {{2, 4, 2, 64}, 190, 32, 40, LAPROX_DTYPE_F16, .pattern = CAPTURE_TIES, .seed = 22},
     {.scope = LAPROX_SCOPE_LAYER, .pool_width = 1, .floor = 5, .budget.tokens = 60}},
    {"sinks and floor, global",
     {{3, 4, 2, 32}, 170, 32, 40, LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 23},
     {.sinks = 4, .floor = 3, .budget.tokens = 44}},
    {"floor as high as the budget allows",
     {{2, 4, 2, 32}, 170, 32, 40, LAPROX_DTYPE_F32, .seed = 24},
     {.sinks = 2, .floor = 10, .budget.tokens = 44}},
    {"attention-mean, within heads, bf16",
     {{2, 8, 2, 64}, 133, 32, 64, LAPROX_DTYPE_BF16, .pattern = CAPTURE_NEEDLES, .seed = 25},
     {.gqa = LAPROX_GQA_ATTENTION_MEAN, .scope = LAPROX_SCOPE_HEAD, .budget.share = 0.35}},
    {"snapkv",
     {{2, 4, 2, 64}, 180, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 26},
     {.kind = LAPROX_POLICY_SNAPKV, .budget.share = 0.3}},
    {"snapkv, global, layer sums, maximum of 5, sinks",
     {{2, 6, 2, 32}, 180, 32, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 27},
     {.kind = LAPROX_POLICY_SNAPKV,
      .scope = LAPROX_SCOPE_GLOBAL,
      .normalize = LAPROX_SWITCH_ON,
      .pool = LAPROX_POOL_MAX,
      .pool_width = 5,
      .sinks = 1,
      .budget.tokens = 50}},
    {"streaming",
     {{2, 2, 2, 32}, 120, 32, .dtype = LAPROX_DTYPE_F16, .seed = 28},
     {.kind = LAPROX_POLICY_STREAMING, .budget.tokens = 50}},
    {"streaming, a budget without room for four sinks",
     {{2, 2, 2, 32}, 120, 32, .dtype = LAPROX_DTYPE_F16, .seed = 28},
     {.kind = LAPROX_POLICY_STREAMING, .budget.share = 0.01}},
    {"adakv",
     {{3, 8, 4, 32}, 300, 32, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 60},
     {.kind = LAPROX_POLICY_ADAKV, .budget.tokens = 71}},
    {"adakv, ties over block borders, sinks",
     {{2, 6, 3, 32}, 1100, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_TIES, .seed = 61},
     {.kind = LAPROX_POLICY_ADAKV, .pool_width = 1, .sinks = 3, .budget.tokens = 333}},
    {"adakv, one entry a head",
     {{2, 6, 3, 32}, 90, 32, .dtype = LAPROX_DTYPE_F16, .seed = 62},
     {.kind = LAPROX_POLICY_ADAKV, .budget.tokens = 33}},
    {"adakv, all but one entry a head",
     {{2, 4, 4, 32}, 90, 32, .dtype = LAPROX_DTYPE_F16, .seed = 63},
     {.kind = LAPROX_POLICY_ADAKV, .pool = LAPROX_POOL_MAX, .budget.tokens = 89}},
    {"pyramidkv",
     {{7, 4, 2, 32}, 400, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 64},
     {.kind = LAPROX_POLICY_PYRAMIDKV, .budget.tokens = 93}},
    {"pyramidkv, the first layer has not so many",
     {{5, 2, 2, 32}, 150, 32, .dtype = LAPROX_DTYPE_F32, .seed = 65},
     {.kind = LAPROX_POLICY_PYRAMIDKV, .budget.tokens = 111}},
    {"pyramidkv, one entry a head, two layers",
     {{2, 2, 2, 32}, 80, 32, .dtype = LAPROX_DTYPE_F16, .seed = 66},
     {.kind = LAPROX_POLICY_PYRAMIDKV, .budget.tokens = 33}},
    {"pyramidkv, one layer",
     {{1, 4, 2, 32}, 80, 32, .dtype = LAPROX_DTYPE_F16, .seed = 67},
     {.kind = LAPROX_POLICY_PYRAMIDKV, .budget.tokens = 50}},
    {"vatp",
     {{2, 6, 2, 48}, 260, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 70},
     {.kind = LAPROX_POLICY_VATP, .budget.tokens = 90}},
    {"vatp, global, pooled, few places",
     {{3, 4, 2, 32}, 200, 32, .dtype = LAPROX_DTYPE_F32, .seed = 71},
     {.kind = LAPROX_POLICY_VATP, .scope = LAPROX_SCOPE_GLOBAL, .pool_width = 7, .budget.tokens = 47}},
    {"vatp, infinity in V",
     {{2, 4, 2, 32}, 120, 32, 40, LAPROX_DTYPE_BF16, .spoil = CAPTURE_INF_VALUE, .seed = 72},
     {.kind = LAPROX_POLICY_VATP, .sinks = LAPROX_NONE, .budget.tokens = 50}},
    {"tova",
     {{2, 8, 4, 32}, 210, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 73},
     {.kind = LAPROX_POLICY_TOVA, .budget.tokens = 60}},
    {"tova as published, over block borders",
     {{1, 6, 2, 64}, 2100, 16, .dtype = LAPROX_DTYPE_F32, .seed = 74},
     {.kind = LAPROX_POLICY_TOVA, .window = 1, .budget.share = 0.1}},
    {"tova, NaN in K",
     {{2, 4, 2, 32}, 120, 32, .dtype = LAPROX_DTYPE_F16, .spoil = CAPTURE_NAN_KEY, .seed = 75},
     {.kind = LAPROX_POLICY_TOVA, .sinks = 4, .budget.tokens = 50}},
    {"keydiff",
     {{2, 4, 2, 80}, 1300, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 76},
     {.kind = LAPROX_POLICY_KEYDIFF, .budget.share = 0.1}},
    {"keydiff, head_dim 256, global, floor, f32",
     {{3, 2, 2, 256}, 140, 32, .dtype = LAPROX_DTYPE_F32, .seed = 77},
     {.kind = LAPROX_POLICY_KEYDIFF, .scope = LAPROX_SCOPE_GLOBAL, .floor = 5, .budget.tokens = 60}},
    {"keydiff, head_dim 4, ties, infinity in K",
     {{2, 2, 2, 4},
      150,
      16,
      8,
      LAPROX_DTYPE_F16,
      .pattern = CAPTURE_TIES,
      .spoil = CAPTURE_INF_KEY,
      .seed = 78},
     {.kind = LAPROX_POLICY_KEYDIFF, .window = 16, .budget.tokens = 60}},
    {"knorm",
     {{2, 4, 2, 80}, 700, 32, .dtype = LAPROX_DTYPE_F16, .seed = 80},
     {.kind = LAPROX_POLICY_KNORM, .budget.share = 0.2}},
    {"knorm, within layers, floor, sinks, NaN in K, bf16",
     {{2, 4, 2, 32}, 170, 32, .dtype = LAPROX_DTYPE_BF16, .spoil = CAPTURE_NAN_KEY, .seed = 81},
     {.kind = LAPROX_POLICY_KNORM, .scope = LAPROX_SCOPE_LAYER, .floor = 3, .sinks = 4, .budget.tokens = 60}},
    {"criticalkv",
     {{2, 6, 2, 48}, 260, 32, 72, LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 90},
     {.kind = LAPROX_POLICY_CRITICALKV, .budget.tokens = 77}},
    {"criticalkv, within layers, over block borders, sinks, f32",
     {{2, 4, 2, 32}, 1100, 32, 200, LAPROX_DTYPE_F32, .seed = 91},
     {.kind = LAPROX_POLICY_CRITICALKV, .scope = LAPROX_SCOPE_LAYER, .sinks = 3, .budget.share = 0.1}},
    {"criticalkv, one place, not pooled, ties, bf16",
     {{2, 4, 2, 32}, 120, 32, 40, LAPROX_DTYPE_BF16, .pattern = CAPTURE_TIES, .seed = 92},
     {.kind = LAPROX_POLICY_CRITICALKV, .pool_width = 1, .budget.tokens = 33}},
    {"criticalkv, infinity in V, NaN in K",
     {{2, 4, 2, 32}, 120, 32, 40, LAPROX_DTYPE_F16, .spoil = CAPTURE_INF_VALUE | CAPTURE_NAN_KEY, .seed = 93},
     {.kind = LAPROX_POLICY_CRITICALKV, .pool = LAPROX_POOL_MAX, .budget.tokens = 50}},
    {"defensivekv",
     {{2, 6, 2, 48}, 260, 32, 72, LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 94},
     {.kind = LAPROX_POLICY_DEFENSIVEKV, .budget.tokens = 77}},
    {"defensivekv, most kept, half zero, sinks",
     {{2, 4, 2, 32}, 200, 16, 40, LAPROX_DTYPE_F16, .pattern = CAPTURE_HALF_ZERO, .seed = 95},
     {.kind = LAPROX_POLICY_DEFENSIVEKV, .sinks = 2, .window = 16, .budget.tokens = 180}},
    {"layer-defensivekv, over block borders, f32",
     {{3, 4, 2, 32}, 1100, 32, 150, LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 96},
     {.kind = LAPROX_POLICY_LAYER_DEFENSIVEKV, .budget.share = 0.95}},
    {"layer-defensivekv, maximum of 9, spoilt",
     {{2, 4, 2, 32},
      150,
      32,
      40,
      LAPROX_DTYPE_BF16,
      .spoil = CAPTURE_NAN_VALUE | CAPTURE_INF_KEY,
      .seed = 97},
     {.kind = LAPROX_POLICY_LAYER_DEFENSIVEKV,
      .pool = LAPROX_POOL_MAX,
      .pool_width = 9,
      .budget.tokens = 100}},
    {"pooled before the values",
     {{2, 6, 2, 48}, 300, 32, 72, LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 100},
     {.pool_before = LAPROX_SWITCH_ON, .budget.tokens = 70}},
    {"maximum of 31 before the values, attention-mean, sinks, spoilt",
     {{2, 4, 2, 32},
      300,
      32,
      40,
      LAPROX_DTYPE_F32,
      .spoil = CAPTURE_NAN_VALUE | CAPTURE_INF_KEY,
      .seed = 101},
     {.pool_before = LAPROX_SWITCH_ON,
      .gqa = LAPROX_GQA_ATTENTION_MEAN,
      .pool = LAPROX_POOL_MAX,
      .pool_width = 31,
      .sinks = 5,
      .budget.tokens = 70}},
    {"random",
     {{2, 4, 2, 32}, 220, 32, .dtype = LAPROX_DTYPE_F16, .seed = 29},
     {.kind = LAPROX_POLICY_RANDOM, .seed = 5, .budget.tokens = 70}},
    {"random, global, floor, sinks",
     {{3, 4, 2, 32}, 220, 32, .dtype = LAPROX_DTYPE_F32, .seed = 30},
     {.kind = LAPROX_POLICY_RANDOM,
      .scope = LAPROX_SCOPE_GLOBAL,
      .floor = 9,
      .sinks = 3,
      .budget.tokens = 50}},
    {"full",
     {{1, 2, 1, 32}, 80, 32, .dtype = LAPROX_DTYPE_BF16, .seed = 31},
     {.kind = LAPROX_POLICY_FULL, .budget.tokens = 50}},
    {"window of 1",
     {{2, 4, 2, 32}, 101, 1, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 32},
     {.window = 1, .budget.tokens = 12}},
    {"window of 7 in a capture of 32",
     {{2, 4, 2, 32}, 160, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 33},
     {.window = 7, .pool = LAPROX_POOL_MAX, .budget.tokens = 25}},
    {"window of 256",
     {{1, 4, 2, 32}, 400, 256, .dtype = LAPROX_DTYPE_F16, .seed = 34},
     {.window = 256, .budget.tokens = 300}},
    {"the window is the capture's",
     {{1, 4, 2, 32}, 100, 11, .dtype = LAPROX_DTYPE_F32, .seed = 35},
     {.budget.tokens = 30}},
    {"a scale of its own, not normalised",
     {{2, 4, 2, 64}, 150, 32, 64, LAPROX_DTYPE_F16, 0.35, CAPTURE_NEEDLES, 0, 36},
     {.normalize = LAPROX_SWITCH_OFF, .budget.tokens = 45}},
    {"1024 candidates",
     {{2, 2, 1, 32}, 1056, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 37},
     {.budget.share = 0.05}},
    {"1025 candidates, widest pooling",
     {{1, 2, 2, 32}, 1057, 32, .dtype = LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 38},
     {.pool_width = 31, .budget.share = 0.1}},
    {"whole tokens",
     {{3, 4, 2, 32}, 230, 32, 40, LAPROX_DTYPE_F32, .pattern = CAPTURE_NEEDLES, .seed = 41},
     {.scope = LAPROX_SCOPE_TOKEN, .budget.share = 0.3}},
    {"whole tokens, ties over block borders, sinks",
     {{2, 6, 3, 32}, 2085, 32, 40, LAPROX_DTYPE_F16, .pattern = CAPTURE_TIES, .seed = 42},
     {.scope = LAPROX_SCOPE_TOKEN, .sinks = 3, .pool_width = 1, .budget.share = 0.5}},
    {"whole tokens, half zero, joint, bf16",
     {{2, 4, 2, 32}, 150, 32, 40, LAPROX_DTYPE_BF16, .pattern = CAPTURE_HALF_ZERO, .seed = 43},
     {.scope = LAPROX_SCOPE_TOKEN, .gqa = LAPROX_GQA_JOINT, .pool_width = 1, .budget.tokens = 120}},
    {"whole tokens, NaN and infinity",
     {{2, 4, 2, 32}, 120, 32, 40, LAPROX_DTYPE_F16, .spoil = 15, .seed = 44},
     {.scope = LAPROX_SCOPE_TOKEN, .normalize = LAPROX_SWITCH_OFF, .budget.tokens = 60}},
    {"whole tokens, snapkv, all equal",
     {{3, 4, 1, 32}, 301, 32, 40, LAPROX_DTYPE_F16, .pattern = CAPTURE_EQUAL, .seed = 45},
     {.kind = LAPROX_POLICY_SNAPKV, .scope = LAPROX_SCOPE_TOKEN, .pool_width = 1, .budget.tokens = 99}},
    {"whole tokens, vatp",
     {{2, 4, 2, 64}, 260, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_NEEDLES, .seed = 46},
     {.kind = LAPROX_POLICY_VATP, .scope = LAPROX_SCOPE_TOKEN, .budget.tokens = 70}},
    {"whole tokens, random",
     {{2, 4, 2, 32}, 1200, 32, .dtype = LAPROX_DTYPE_F16, .seed = 47},
     {.kind = LAPROX_POLICY_RANDOM, .scope = LAPROX_SCOPE_TOKEN, .seed = 3, .budget.tokens = 333}},
    {"whole tokens, keydiff",
     {{2, 4, 2, 32}, 300, 32, .dtype = LAPROX_DTYPE_F32, .seed = 48},
     {.kind = LAPROX_POLICY_KEYDIFF, .scope = LAPROX_SCOPE_TOKEN, .budget.tokens = 80}},
    {"whole tokens, knorm, one candidate kept",
     {{2, 4, 2, 32}, 300, 32, .dtype = LAPROX_DTYPE_F16, .seed = 49},
     {.kind = LAPROX_POLICY_KNORM, .scope = LAPROX_SCOPE_TOKEN, .budget.tokens = 33}},
    {"2049 candidates, ties over block borders",
     {{2, 2, 2, 32}, 2081, 32, .dtype = LAPROX_DTYPE_F16, .pattern = CAPTURE_TIES, .seed = 39},
     {.pool_width = 1, .budget.share = 0.5}},
};
#define N_SCENARIOS (sizeof scenarios / sizeof *scenarios)

/* The shipped model has read so many tokens of the demonstration's document. */
static const evict_case real_scenarios[] = {
    {"real, 2,000 tokens", REAL(2000, LAPROX_DTYPE_F16), {.budget.share = 0.05}},
    {"real, f32", REAL(801, LAPROX_DTYPE_F32), {.budget.share = 0.1}},
    {"real, joint", REAL(700, LAPROX_DTYPE_F16), {.gqa = LAPROX_GQA_JOINT, .budget.share = 0.1}},
    {"real, within layers, attention-mean, sinks, floor",
     REAL(1111, LAPROX_DTYPE_F16),
     {.scope = LAPROX_SCOPE_LAYER,
      .gqa = LAPROX_GQA_ATTENTION_MEAN,
      .sinks = 4,
      .floor = 6,
      .budget.share = 0.2}},
    {"real, criticalkv",
     REAL(500, LAPROX_DTYPE_F16),
     {.kind = LAPROX_POLICY_CRITICALKV, .budget.tokens = 60}},
    {"real, layer-defensivekv",
     REAL(500, LAPROX_DTYPE_F16),
     {.kind = LAPROX_POLICY_LAYER_DEFENSIVEKV, .budget.share = 0.2}},
    {"real, whole tokens",
     REAL(1111, LAPROX_DTYPE_F16),
     {.scope = LAPROX_SCOPE_TOKEN, .sinks = 4, .budget.share = 0.1}},
    {"real, snapkv",
     REAL(500, LAPROX_DTYPE_F16),
     {.kind = LAPROX_POLICY_SNAPKV, .pool = LAPROX_POOL_MAX, .budget.tokens = 60}},
};
#define N_REAL (sizeof real_scenarios / sizeof *real_scenarios)

/* ---- the device ---- */

static struct {
  laprox_instance *instance;
  laprox_device *device;
  laprox_host host;
  int n_errors; /* messages of level ERROR, those of the validation layer among them */
} rig;

static void on_message(void *user, laprox_message_level level, const char *text) {
  (void)user;
  if (level == LAPROX_MESSAGE_ERROR) rig.n_errors++;
  print_message("%s\n", text);
}

static int set_up(void **state) {
  (void)state;
  rig.host.message = on_message;
  laprox_instance_info info = {
      .host = rig.host, .validation = test_validation(), .variants_off = test_variants_off()};
  if (laprox_instance_create(&info, &rig.instance) != LAPROX_OK) return -1;
  return laprox_device_open(rig.instance, getenv("LAPROX_DEVICE"), &rig.device) == LAPROX_OK ? 0 : -1;
}

static int tear_down(void **state) {
  (void)state;
  remove(INPUT);
  remove(OUTPUT);
  remove(OUTPUT_AGAIN);
  laprox_device_destroy(rig.device);
  laprox_instance_destroy(rig.instance);
  return rig.n_errors;
}

/* ---- result files ---- */

typedef struct result_file {
  lpx_safetensors *file;
  ref_kept kept;
  float *scores;                  /* NULL where there are none */
  unsigned char **keys, **values; /* of each layer */
} result_file;

static void *read_tensor(lpx_safetensors *file, size_t layer, const char *name, lpx_st_dtype dtype,
                         size_t n_elements) {
  char full_name[64];
  const lpx_st_tensor *tensor = NULL;
  snprintf(full_name, sizeof full_name, "layers.%zu.%s", layer, name);
  assert_int_equal(lpx_safetensors_get(file, full_name, &tensor), LAPROX_OK);
  assert_int_equal(tensor->dtype, dtype);
  assert_int_equal(tensor->n_elements, n_elements);
  void *data = malloc(tensor->bytes ? (size_t)tensor->bytes : 1);
  assert_non_null(data);
  assert_int_equal(lpx_safetensors_read_all(file, tensor, data), LAPROX_OK);
  return data;
}

static void append_layer(const capture_cache *capture, result_file *result, size_t layer) {
  const laprox_shape *shape = &capture->options.shape;
  lpx_st_dtype dtype = lpx_st_from_dtype(capture->options.dtype);
  size_t n_heads = shape->n_kv_heads, base = result->kept.offsets[layer * n_heads];
  int32_t *offsets = read_tensor(result->file, layer, "cu_seqlens", LPX_ST_I32, n_heads + 1);
  assert_int_equal(offsets[0], 0);
  for (size_t g = 0; g < n_heads; g++) {
    assert_true(offsets[g + 1] >= offsets[g]);
    result->kept.offsets[layer * n_heads + g + 1] = base + (size_t)offsets[g + 1];
  }
  size_t n = (size_t)offsets[n_heads];
  uint32_t *indices = read_tensor(result->file, layer, "indices", LPX_ST_I32, n);
  result->kept.entries = realloc(result->kept.entries, (base + n + 1) * sizeof *indices);
  assert_non_null(result->kept.entries);
  memcpy(result->kept.entries + base, indices, n * sizeof *indices);
  result->keys[layer] = read_tensor(result->file, layer, "k", dtype, n * shape->head_dim);
  result->values[layer] = read_tensor(result->file, layer, "v", dtype, n * shape->head_dim);
  free(offsets);
  free(indices);
}

static void read_scores(const ref_scores *expected, result_file *result) {
  size_t n_heads = expected->shape.n_kv_heads;
  result->scores = calloc(expected->offsets[expected->shape.n_layers * n_heads] + 1, sizeof(float));
  assert_non_null(result->scores);
  for (size_t l = 0; l < expected->shape.n_layers; l++) {
    size_t begin = expected->offsets[l * n_heads], n = expected->offsets[(l + 1) * n_heads] - begin;
    float *layer = read_tensor(result->file, l, "scores", LPX_ST_F32, n);
    memcpy(result->scores + begin, layer, n * sizeof *layer);
    free(layer);
  }
}

static void result_open(const capture_cache *capture, result_file *result) {
  size_t n_layers = capture->options.shape.n_layers, n_heads = n_layers * capture->options.shape.n_kv_heads;
  *result = (result_file){.kept = {n_heads, calloc(n_heads + 1, sizeof(size_t)), NULL},
                          .keys = calloc(n_layers, sizeof(unsigned char *)),
                          .values = calloc(n_layers, sizeof(unsigned char *))};
  assert_true(result->kept.offsets && result->keys && result->values);
  assert_int_equal(lpx_safetensors_open(&rig.host, OUTPUT, &result->file), LAPROX_OK);
  for (size_t layer = 0; layer < n_layers; layer++) append_layer(capture, result, layer);
}

static void result_close(const capture_cache *capture, result_file *result) {
  for (size_t layer = 0; layer < capture->options.shape.n_layers; layer++) {
    free(result->keys[layer]);
    free(result->values[layer]);
  }
  free(result->keys);
  free(result->values);
  free(result->scores);
  ref_kept_finish(&result->kept);
  lpx_safetensors_close(result->file);
}

/* ---- comparisons ---- */

static void expect_rows(const capture_cache *capture, const result_file *result) {
  const laprox_shape *shape = &capture->options.shape;
  size_t row_bytes = laprox_dtype_bytes(capture->options.dtype, shape->head_dim);
  for (size_t head = 0; head < result->kept.n_heads; head++) {
    size_t layer = head / shape->n_kv_heads, base = result->kept.offsets[layer * shape->n_kv_heads];
    size_t first_row = head % shape->n_kv_heads * capture->options.n_tokens;
    const unsigned char *keys = capture->layers[layer].key.data, *values = capture->layers[layer].value.data;
    for (size_t i = result->kept.offsets[head]; i < result->kept.offsets[head + 1]; i++) {
      size_t from = (first_row + result->kept.entries[i]) * row_bytes, to = (i - base) * row_bytes;
      assert_memory_equal(result->keys[layer] + to, keys + from, row_bytes);
      assert_memory_equal(result->values[layer] + to, values + from, row_bytes);
    }
  }
}

static unsigned char *read_file(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  *bytes = (size_t)ftell(file);
  rewind(file);
  unsigned char *data = malloc(*bytes + 1);
  assert_non_null(data);
  assert_int_equal(fread(data, 1, *bytes, file), *bytes);
  fclose(file);
  return data;
}

static void expect_same_files(const char *left_path, const char *right_path) {
  size_t left_bytes, right_bytes;
  unsigned char *left = read_file(left_path, &left_bytes), *right = read_file(right_path, &right_bytes);
  assert_int_equal(left_bytes, right_bytes);
  assert_memory_equal(left, right, left_bytes);
  free(left);
  free(right);
}

static void expect_report(const capture_cache *capture, const ref_scores *scores, const ref_rules *rules,
                          uint32_t budget, const ref_kept *kept, const laprox_evict_file_report *report) {
  const capture_options *options = &capture->options;
  size_t row_bytes = laprox_dtype_bytes(options->dtype, options->shape.head_dim),
         n = kept->offsets[kept->n_heads];
  uint32_t n_nonfinite = 0;
  for (size_t layer = 0; layer < options->shape.n_layers && budget != REF_KEEP_ALL; layer++)
    n_nonfinite += scores->n_nonfinite[layer];
  assert_memory_equal(&report->shape, &options->shape, sizeof options->shape);
  assert_int_equal(report->n_tokens, options->n_tokens);
  assert_int_equal(report->window, rules->window);
  assert_int_equal(n, kept->n_heads * (budget == REF_KEEP_ALL ? options->n_tokens : budget));
  assert_int_equal(report->eviction.kept, n);
  assert_int_equal(report->eviction.nonfinite_scores, n_nonfinite);
  assert_int_equal(report->eviction.bytes_before, 2 * kept->n_heads * options->n_tokens * row_bytes);
  assert_int_equal(report->eviction.bytes_after, 2 * n * row_bytes);
  for (size_t head = 0; head < kept->n_heads; head++)
    assert_int_equal(report->kept_per_head[head], kept->offsets[head + 1] - kept->offsets[head]);
}

static void expect_result(const evict_case *scenario, const capture_cache *capture,
                          const laprox_evict_file_report *report) {
  laprox_policy policy = scenario->policy;
  char message[REF_MESSAGE_BYTES];
  const char *complaint = NULL;
  double tolerance = capture_tolerance(scenario->capture.dtype);
  size_t n_different = 0;
  result_file result;
  ref_scores scores;
  if (!policy.window) policy.window = scenario->capture.window;
  ref_rules rules = ref_rules_decide(&policy);
  uint32_t budget = ref_budget(&rules, &policy.budget, scenario->capture.n_tokens);
  ref_score(&capture->cache, &rules, &scores);
  result_open(capture, &result);
  if (budget != REF_KEEP_ALL) read_scores(&scores, &result);
  if (budget != REF_KEEP_ALL && ref_has_stage(rules.kind)) {
    ref_stage_choose(&rules, budget, &scores);
    complaint = ref_stage_adopt(&rules, budget, result.scores, tolerance, &scores, message);
  }
  if (!complaint)
    complaint = ref_check_kept(&scores, &rules, budget, tolerance, &result.kept, &n_different, message);
  if (!complaint && budget != REF_KEEP_ALL) {
    complaint = ref_check_scores(&scores, result.scores, tolerance, message);
    if (!complaint)
      complaint = ref_check_choice(&scores, result.scores, &rules, budget, &result.kept, message);
  }
  if (complaint) fail_msg("%s", complaint);
  if (n_different) print_message("%zu entries differ, all within the error of the cut\n", n_different);
  expect_rows(capture, &result);
  expect_report(capture, &scores, &rules, budget, &result.kept, report);
  result_close(capture, &result);
  ref_scores_finish(&scores);
}

/* ---- captures of the shipped model ---- */

static char *data_path(char path[1024], const char *name) {
  snprintf(path, 1024, "%s/%s", getenv("LAPROX_TEST_DATA"), name);
  return path;
}

static void capture_document(const capture_options *options) {
  char path[1024];
  size_t n_bytes, n_tokens;
  uint32_t *tokens = NULL;
  laprox_model *model = NULL;
  laprox_session *session = NULL;
  const laprox_model_info info = {.path = data_path(path, "model-f16.gguf")};
  assert_int_equal(laprox_model_load(rig.device, &info, &model), LAPROX_OK);
  unsigned char *text = read_file(data_path(path, "demo.txt"), &n_bytes);
  assert_int_equal(laprox_model_tokenize(model, (char *)text, n_bytes, true, &tokens, &n_tokens), LAPROX_OK);
  assert_true(n_tokens >= options->n_tokens);
  const laprox_session_info session_info = {.kv_dtype = options->dtype, .window = options->window};
  assert_int_equal(laprox_session_create(model, &session_info, &session), LAPROX_OK);
  assert_int_equal(laprox_session_prefill(session, tokens, options->n_tokens), LAPROX_OK);
  assert_int_equal(laprox_session_capture(session, INPUT), LAPROX_OK);
  laprox_session_destroy(session);
  laprox_model_release(model, tokens);
  laprox_model_destroy(model);
  free(text);
}

static void run_scenario(const evict_case *scenario, bool real) {
  laprox_context *context = laprox_device_context(rig.device);
  uint64_t bytes_before = laprox_context_memory(context).bytes;
  laprox_evict_file_info info = {
      .input = INPUT, .output = OUTPUT, .policy = scenario->policy, .scores = true};
  laprox_evict_file_report report, report_again;
  capture_cache capture;
  int n_errors = rig.n_errors;
  capture_init(&capture, &scenario->capture);
  if (real) {
    capture_document(&scenario->capture);
    assert_int_equal(capture_read(&capture, &rig.host, INPUT), LAPROX_OK);
  } else {
    assert_int_equal(capture_write(&capture, &rig.host, INPUT), LAPROX_OK);
  }
  assert_int_equal(laprox_evict_file(rig.device, &info, &report), LAPROX_OK);
  info.output = OUTPUT_AGAIN;
  assert_int_equal(laprox_evict_file(rig.device, &info, &report_again), LAPROX_OK);
  expect_same_files(OUTPUT, OUTPUT_AGAIN);
  expect_result(scenario, &capture, &report);
  assert_int_equal(laprox_context_memory(context).bytes, bytes_before);
  assert_int_equal(rig.n_errors, n_errors);
  laprox_evict_file_report_finish(rig.device, &report);
  laprox_evict_file_report_finish(rig.device, &report_again);
  capture_finish(&capture);
}

static void test_scenario(void **state) {
  run_scenario(*state, false);
}

static void test_real(void **state) {
  run_scenario(*state, true);
}

/* cmocka's state is not const; it is not written. */
static struct CMUnitTest test_of(const evict_case *scenario, CMUnitTestFunction run) {
  return (struct CMUnitTest){scenario->name, run, NULL, NULL, (void *)(uintptr_t)scenario};
}

int main(void) {
  struct CMUnitTest tests[N_SCENARIOS + N_REAL];
  for (size_t i = 0; i < N_SCENARIOS; i++) tests[i] = test_of(&scenarios[i], test_scenario);
  for (size_t i = 0; i < N_REAL; i++) tests[N_SCENARIOS + i] = test_of(&real_scenarios[i], test_real);
  return cmocka_run_group_tests_name("evict_file", tests, set_up, tear_down);
}
