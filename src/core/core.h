/* core.h: what every room may use: failures, host memory, half precision, policies made concrete. No Vulkan. */
#ifndef LPX_CORE_H
#define LPX_CORE_H

#include "laprox/laprox.h"

#if defined(__GNUC__)
#define LPX_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))
#else
#define LPX_PRINTF(format_index, first)
#endif

/* Copies `from` (may be NULL) with every function filled in. An incomplete allocator is replaced as a whole. */
laprox_host lpx_host_complete(const laprox_host *from);

/* Sends one error message, at most 511 bytes, and returns `result`, so that `return lpx_fail(…)` is the idiom. */
laprox_result lpx_fail(const laprox_host *host, laprox_result result, const char *format, ...)
    LPX_PRINTF(3, 4);
void lpx_warn(const laprox_host *host, const char *format, ...) LPX_PRINTF(2, 3);

/* count x size zeroed bytes, or NULL on overflow or exhaustion (no message: the caller knows what it was for).
   A request for 0 bytes returns a valid pointer. What was allocated can be cast to size_t on 32-bit machines too. */
void *lpx_allocate(const laprox_host *host, uint64_t count, size_t size);
/* Grows an array; the new part is not zeroed. NULL leaves the old one as it was. */
void *lpx_reallocate(const laprox_host *host, void *pointer, uint64_t count, size_t size);
void lpx_release(const laprox_host *host, void *pointer);
/* The one message for a failed lpx_allocate. */
laprox_result lpx_fail_memory(const laprox_host *host, const char *what);

/* *out = a op b, false on overflow. For sizes that come from files or callers. */
bool lpx_multiply(size_t a, size_t b, size_t *out);
bool lpx_add(size_t a, size_t b, size_t *out);

/* Monotonic wall time. */
uint64_t lpx_now_ns(void);

/* Round to nearest even; NaN stays NaN, overflow becomes infinity. */
uint16_t lpx_f32_to_f16(float value);
float lpx_f16_to_f32(uint16_t bits);
uint16_t lpx_f32_to_bf16(float value);
float lpx_bf16_to_f32(uint16_t bits);
/* What elements are stored in: so many in so many bytes. Blocks count by twos, because one alone is no whole number of
   32-bit words. */
typedef struct lpx_unit {
  uint32_t elements, bytes;
} lpx_unit;
lpx_unit lpx_dtype_unit(laprox_dtype dtype);
bool lpx_dtype_is_blocks(laprox_dtype dtype);
/* Fails where K and V of such heads can't be stored as `dtype`; `where` begins the message. */
laprox_result lpx_check_cache_dtype(const laprox_host *host, const char *where, laprox_dtype dtype,
                                    uint32_t head_dim);
/* n elements of any laprox_dtype to f32; of blocks, whole ones. */
void lpx_to_f32(laprox_dtype dtype, const void *from, size_t n, float *to);

/* A policy with every AUTO decided and everything checked against a shape. */
typedef struct lpx_rules {
  laprox_policy_kind kind;
  laprox_scope scope;
  laprox_gqa gqa;
  laprox_pool pool;
  uint32_t pool_width; /* 1 = none */
  bool normalize, pool_before;
  uint32_t window, sinks, floor, seed;
  bool sinks_yield; /* the sinks are a default: a budget too small for them has fewer */
} lpx_rules;

/* Decides every AUTO. Invalid combinations fail with a message that names the field. */
laprox_result lpx_rules_resolve(const laprox_host *host, const laprox_policy *policy, lpx_rules *out);

/* The budget b in entries for a cache that has read n_tokens; *out = UINT32_MAX when everything is kept (kind full,
   no budget given, n_tokens <= window, or b >= n_tokens). */
laprox_result lpx_budget_resolve(const laprox_host *host, const lpx_rules *rules, const laprox_budget *budget,
                                 uint32_t n_tokens, uint32_t *out);

/* Fits the sinks to a budget, where they may yield. */
void lpx_rules_fit(lpx_rules *rules, uint32_t budget);

/* What a policy looks at: keys, the window's attention to them, values. */
bool lpx_rules_use_keys(const lpx_rules *rules);
bool lpx_rules_use_attention(const lpx_rules *rules);
bool lpx_rules_use_values(const lpx_rules *rules);

/* Which value factors a policy needs: those of laprox_value_factor, or the output projection itself. */
typedef enum lpx_factor {
  LPX_FACTOR_NONE = 0,
  LPX_FACTOR_TRIANGLE = 1,
  LPX_FACTOR_PROJECTION = 2
} lpx_factor;
lpx_factor lpx_rules_factor(const lpx_rules *rules);

/* Of the n_layers x `places` places that a head of each layer has in all, those of one layer: falling from the first
   layer to the last, which has 1/20 of the mean. At most `most`, in which case the last layers have more. */
uint32_t lpx_pyramid_places(uint32_t n_layers, uint32_t layer, uint32_t places, uint32_t most);

/* Scopes as independent selection problems over the heads of the model, numbered layer-major:
   problem of head i = i / heads_per_problem. Scope token has one problem, of one head's length. */
uint32_t lpx_heads_per_problem(const lpx_rules *rules, const laprox_shape *shape);

laprox_result lpx_shape_check(const laprox_host *host, const laprox_shape *shape);

#endif
