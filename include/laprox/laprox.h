/* laprox.h: results, messages, memory, shapes and policies. No Vulkan types.
 *
 * laprox keeps the part of a transformer's KV cache that matters and gives the rest of the memory back. Which
 * entries matter is decided by the LaProx score (arXiv 2605.07234): what an entry contributes to its layer's
 * output, attention column norm times projected-value norm, on one scale for all heads and layers.
 *
 * Three headers: this one; vulkan.h, eviction recorded into your own command buffers; runtime.h, a runtime that
 * loads a GGUF model and generates.
 *
 * Conventions of all three:
 * - Functions that can fail return a laprox_result. On failure their `out` pointer is set to NULL, nothing is
 *   kept, and exactly one message of level LAPROX_MESSAGE_ERROR says what failed, where, and the value in question.
 * - Info structs set to zero mean defaults; enum value 0 is AUTO. Pointers inside an info struct need only live
 *   until the call returns.
 * - destroy(NULL) is legal. Handles are owned by the caller who created them and are destroyed before their parent.
 * - The library has no global state, reads no environment, prints nothing and never aborts.
 */
#ifndef LAPROX_LAPROX_H
#define LAPROX_LAPROX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32) && defined(LAPROX_SHARED)
#ifdef LAPROX_BUILDING
#define LAPROX_API __declspec(dllexport)
#else
#define LAPROX_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define LAPROX_API __attribute__((visibility("default")))
#else
#define LAPROX_API
#endif

/** Number of the binary interface, raised when a program built with older headers could go wrong. It is the number in
 *  the shared library's name, and part of the names under which the functions that make the first object
 *  (laprox_context_create, laprox_instance_create, laprox_device_import) are really exported: with a library of another
 *  number a program doesn't link or doesn't start, instead of misreading structs. */
#define LAPROX_API_NUMBER 1

#define LAPROX_JOIN_EXPANDED(name, number) name##_##number
#define LAPROX_JOIN(name, number)          LAPROX_JOIN_EXPANDED(name, number)
#define LAPROX_VERSIONED(name)             LAPROX_JOIN(name, LAPROX_API_NUMBER)

/** What a call came to. Negative values are failures; texts by laprox_result_string(). */
typedef enum laprox_result {
  LAPROX_OK = 0,
  LAPROX_ERROR_INVALID_ARGUMENT = -1, /**< an argument is outside what the function's documentation allows */
  LAPROX_ERROR_OUT_OF_MEMORY = -2,    /**< the host allocator returned NULL */
  LAPROX_ERROR_OUT_OF_DEVICE_MEMORY = -3, /**< the device has no such memory left */
  LAPROX_ERROR_DEVICE_LOST = -4, /**< sticky: every later call on the context fails in the same way */
  LAPROX_ERROR_VULKAN = -5,      /**< another Vulkan call failed; the message names call and VkResult */
  LAPROX_ERROR_UNSUPPORTED = -6, /**< valid, but beyond a limit of the device or of this version */
  LAPROX_ERROR_NO_DEVICE = -7,   /**< no Vulkan loader, no device, or none that fits */
  LAPROX_ERROR_FILE = -8,        /**< a file could not be opened, read, written or renamed */
  LAPROX_ERROR_FORMAT = -9,      /**< a file's content is damaged or is not what it should be */
  LAPROX_ERROR_CANCELLED = -10   /**< a progress callback asked to stop */
} laprox_result;

/** English text for a result, for logs. Never NULL; static storage. Thread-safe. */
LAPROX_API const char *laprox_result_string(laprox_result result);

/** Severity of a message. */
typedef enum laprox_message_level {
  LAPROX_MESSAGE_ERROR = 1,   /**< a call has failed; exactly one per failure */
  LAPROX_MESSAGE_WARNING = 2, /**< work goes on, but differently from what was asked or expected */
  LAPROX_MESSAGE_INFO = 3     /**< worth a line in a log */
} laprox_message_level;

/** Everything the library has to say arrives here: one line of UTF-8 without a newline, valid during the call only.
 *  May be called from any thread that is inside a laprox call; must not call laprox. */
typedef void (*laprox_message_fn)(void *user, laprox_message_level level, const char *text);

/** Host memory. All three functions or none; with none, the C library's are used.
 *  Requirements: like malloc, realloc and free of the C library; thread-safe if contexts are used by several threads. */
typedef struct laprox_allocator {
  void *user; /**< passed back as first argument */
  void *(*allocate)(void *user, size_t size);
  void *(*reallocate)(void *user, void *pointer, size_t size);
  void (*release)(void *user, void *pointer);
} laprox_allocator;

/** What the library needs from its surroundings; copied at creation. Zero: C library memory, no messages. */
typedef struct laprox_host {
  laprox_allocator allocator;
  laprox_message_fn message; /**< may be NULL */
  void *message_user;
} laprox_host;

/** Element types of tensors. Sizes by laprox_dtype_bytes(). */
typedef enum laprox_dtype {
  LAPROX_DTYPE_AUTO = 0,
  LAPROX_DTYPE_F32 = 1,
  LAPROX_DTYPE_F16 = 2,
  LAPROX_DTYPE_BF16 = 3,
  LAPROX_DTYPE_Q8_0 = 4, /**< GGUF blocks of 32: one f16 scale, 32 int8. Weights and caches. */
  /** GGUF blocks of 32: one f16 scale, 16 bytes with elements 0 … 15 in their low and 16 … 31 in their high halves, each
   *  plus 8. Caches only. */
  LAPROX_DTYPE_Q4_0 = 5
} laprox_dtype;

/** Bytes of `n` elements stored as `dtype` (Q8_0, Q4_0: n must be a multiple of 32). 0 for an unknown type, on overflow
 *  or for a bad n. Thread-safe. */
LAPROX_API size_t laprox_dtype_bytes(laprox_dtype dtype, size_t n);
/** "F32", "F16", … as safetensors spells it; "?" for an unknown type. Thread-safe. */
LAPROX_API const char *laprox_dtype_name(laprox_dtype dtype);

/** How entries are scored and chosen: LaProx and its rivals, each after its paper (README). "Places" are what the budget
 *  leaves of a head, a layer or the model beyond window and sinks. */
typedef enum laprox_policy_kind {
  LAPROX_POLICY_AUTO = 0,   /**< LAPROX_POLICY_LAPROX */
  LAPROX_POLICY_LAPROX = 1, /**< attention column norm x projected-value norm (arXiv 2605.07234, section 4) */
  LAPROX_POLICY_SNAPKV =
      2, /**< window attention summed over the queries, mean over the group (arXiv 2404.14469) */
  LAPROX_POLICY_STREAMING = 3, /**< the first tokens and the most recent ones (arXiv 2309.17453) */
  LAPROX_POLICY_RANDOM = 4,    /**< a seeded hash of layer, head and position: the floor for any method */
  LAPROX_POLICY_FULL = 5,      /**< keep everything */
  /** snapkv; a head's places are 4/5 of what it wins within its layer and 1/5 of an equal share, rounded by largest
   *  remainder (arXiv 2407.11550) */
  LAPROX_POLICY_ADAKV = 6,
  /** snapkv within heads; places fall linearly from the first layer to the last, which has 1/20 of the mean (arXiv
   *  2406.02069) */
  LAPROX_POLICY_PYRAMIDKV = 7,
  /** window attention summed over the queries, mean over the group, times the sum of |v| (arXiv 2406.12335) */
  LAPROX_POLICY_VATP = 8,
  /** the last query's attention, mean over all heads of a layer, which keep the same entries (arXiv 2401.06104) */
  LAPROX_POLICY_TOVA = 9,
  /** keys unlike the head's other keys: 1 - cos(k, mean of the keys at length 1) (arXiv 2504.15364) */
  LAPROX_POLICY_KEYDIFF = 10,
  /** keys of small norm, scored 1 / (1 + |k|) (arXiv 2406.11430) */
  LAPROX_POLICY_KNORM = 11,
  /** half the places by pooled window attention as in snapkv, the rest by that times the sum of |v W_O|, mean over the
   *  group (arXiv 2502.03805); entries of the first half have the score FLT_MAX */
  LAPROX_POLICY_CRITICALKV = 12,
  /** the most that any window query of the group pays to an entry, smoothed query by query, at least the head's mean of
   *  that, times the sum of |v W_O| as a share among the layer's heads, within layers; before, by attention alone, a
   *  head's best up to 9/10 of it and at most an equal share of the places, which have the score FLT_MAX
   *  (arXiv 2510.13334) */
  LAPROX_POLICY_DEFENSIVEKV = 13,
  LAPROX_POLICY_LAYER_DEFENSIVEKV = 14 /**< defensivekv, all layers together */
} laprox_policy_kind;

/** Which entries compete with each other for the same places. */
typedef enum laprox_scope {
  LAPROX_SCOPE_AUTO = 0, /**< global for laprox, layer for adakv, head for the others */
  LAPROX_SCOPE_GLOBAL = 1,
  LAPROX_SCOPE_LAYER = 2,
  LAPROX_SCOPE_HEAD = 3,
  /** Whole tokens compete, by the sum of their scores over all layers and KV heads, and all heads keep the same ones: for
   *  engines whose cells are shared by layers and heads. All heads must have equally many entries and sinks; entry i of
   *  each is taken for the same token. Without a floor. */
  LAPROX_SCOPE_TOKEN = 4
} laprox_scope;

/** How the r query heads of a KV head become one score (laprox only). */
typedef enum laprox_gqa {
  LAPROX_GQA_AUTO = 0,          /**< LAPROX_GQA_MEAN */
  LAPROX_GQA_MEAN = 1,          /**< mean over the heads of (column norm x value norm) */
  LAPROX_GQA_JOINT = 2,         /**< exact Frobenius norm of everything the entry contributes */
  LAPROX_GQA_ATTENTION_MEAN = 3 /**< column norm of the mean attention x mean value norm */
} laprox_gqa;

/** Smoothing of scores along positions. */
typedef enum laprox_pool {
  LAPROX_POOL_AUTO = 0,    /**< LAPROX_POOL_AVERAGE */
  LAPROX_POOL_AVERAGE = 1, /**< zeros beyond the ends, always divided by the width */
  LAPROX_POOL_MAX = 2
} laprox_pool;

/** On, off, or what the policy does by itself. */
typedef enum laprox_switch {
  LAPROX_SWITCH_AUTO = 0,
  LAPROX_SWITCH_ON = 1,
  LAPROX_SWITCH_OFF = 2
} laprox_switch;

/** For fields where 0 means "the policy's default": really none. */
#define LAPROX_NONE UINT32_MAX

/** Cache entries that a (layer, KV head) keeps on average, the window included. Exactly n_layers x n_kv_heads x
 *  budget entries survive. Set one field; with both zero everything is kept. */
typedef struct laprox_budget {
  /** entries; at least window + 1 and at least window + sinks + floor, else INVALID_ARGUMENT */
  uint32_t tokens;
  double share; /**< 0 … 1 of the tokens read so far, rounded to nearest and raised to that least value */
} laprox_budget;

/** A policy. Zero: LaProx as published (window 32, average pooling of 7, layer sums, global scope, mean over the
 *  group). A field that the chosen kind does not have must be left at 0, otherwise LAPROX_ERROR_INVALID_ARGUMENT; all
 *  have window, sinks and budget, and of the other fields
 *  laprox: scope, gqa, pool, pool_width, pool_before, normalize, floor; snapkv: scope, pool, pool_width, normalize, floor;
 *  random: scope, floor, seed; adakv, pyramidkv: pool, pool_width; vatp: scope, pool, pool_width, floor;
 *  keydiff, knorm: scope, floor; criticalkv: scope (layer or head), pool,
 *  pool_width; defensivekv, layer-defensivekv: pool, pool_width; tova, streaming, full: none. */
typedef struct laprox_policy {
  laprox_policy_kind kind;
  laprox_scope scope;
  laprox_gqa gqa;
  laprox_pool pool;
  uint32_t pool_width; /**< odd, 1 … 31; 0 = 7, for vatp 1, for defensivekv 5; 1 = no pooling */
  laprox_switch
      normalize; /**< divide a layer's scores by their sum; AUTO = on for laprox, off for the others */
  laprox_switch pool_before; /**< pool attention norms before they meet values; not with joint; AUTO = off */
  uint32_t window; /**< last tokens whose queries score and which all heads keep; 1 … 256; 0 = 32 */
  /** first positions that every head keeps; 0 = a default that yields to small budgets: 4 for streaming, 20 for vatp,
   *  but at most half of its places, else none */
  uint32_t sinks;
  uint32_t floor; /**< best candidates of its own that every (layer, KV head) keeps; 0 = none */
  uint32_t seed;  /**< for random */
  laprox_budget budget;
} laprox_policy;

/** "laprox", "snapkv", … NULL for an unknown kind. Thread-safe. */
LAPROX_API const char *laprox_policy_name(laprox_policy_kind kind);

/** What the attention of a model looks like. */
typedef struct laprox_shape {
  uint32_t n_layers;   /**< at least 1 */
  uint32_t n_heads;    /**< query heads, a multiple of n_kv_heads, at most 16 for each KV head */
  uint32_t n_kv_heads; /**< at least 1 */
  uint32_t head_dim;   /**< a multiple of 4, at most 256 */
} laprox_shape;

#ifdef __cplusplus
}
#endif

#endif
