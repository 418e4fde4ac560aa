/* vulkan.h: the eviction method as steps that are recorded into command buffers, the application's or our own.
 *
 * An application that owns a VkDevice imports it (laprox_context_create), describes its cache once
 * (laprox_plan_create), asks what buffers that takes (laprox_plan_requirements), names its buffers
 * (laprox_binding_create) and records steps (laprox_cmd_steps). The recorder never allocates, submits, waits or
 * touches a queue. After the selection steps have run, the kept positions stand in the application's buffers; K and V
 * are packed by laprox_compaction_create and laprox_cmd_compact into buffers of exactly the size they need.
 *
 * Threads: a context, a plan, a binding and a compaction are immutable once created and may be used from all threads;
 * command buffers are externally synchronised, as Vulkan has it. Two recordings of one binding must not execute at
 * the same time, because they share its scratch buffer.
 */
#ifndef LAPROX_VULKAN_H
#define LAPROX_VULKAN_H

#include "laprox/laprox.h"

#include <vulkan/vulkan_core.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Kernels beyond the baseline, which every device has. Each gives the baseline's result; a context uses those that its
 *  device has, the application has enabled and `variants_off` does not name. */
typedef enum laprox_variant {
  /** up to 200 registers an invocation; where the device's maker is known to have them, nothing is to be enabled */
  LAPROX_VARIANT_LARGE_TILES = 1 << 0,
  LAPROX_VARIANT_SUBGROUP = 1 << 1,  /**< shuffles and ballots in subgroups of one known, full size */
  LAPROX_VARIANT_STORAGE16 = 1 << 2, /**< 16-bit floats in storage buffers and in arithmetic */
  /** KHR cooperative matrices of f16 with f32 sums; only with LAPROX_VARIANT_STORAGE16 */
  LAPROX_VARIANT_MATRIX = 1 << 3
} laprox_variant;
#define LAPROX_N_VARIANTS   4
#define LAPROX_ALL_VARIANTS ((1u << LAPROX_N_VARIANTS) - 1)

/** "large_tiles", "subgroup", "storage16" or "matrix"; NULL for anything else. */
LAPROX_API const char *laprox_variant_name(uint32_t variant);
/** A list of such names ("subgroup,matrix"), "all" or "baseline" as a mask; false where a name is unknown. */
LAPROX_API bool laprox_variants_parse(const char *names, uint32_t *variants);

/** Optional extensions and features of a physical device that laprox has a use for, for the application to enable when
 *  it creates its VkDevice: `extensions` among its own, `features` as pNext of VkDeviceCreateInfo (or the members merged
 *  into its own chain), and the same again in laprox_context_info. The chain points into the struct, so it must stay
 *  where laprox_features_query has filled it, and not be copied. */
typedef struct laprox_features {
  const char *extensions[8];
  uint32_t n_extensions;
  VkPhysicalDeviceFeatures2 features; /**< begins the chain; no feature of Vulkan 1.0 is asked for */
  VkPhysicalDevice16BitStorageFeatures storage16;
  VkPhysicalDeviceShaderFloat16Int8Features float16;
  VkPhysicalDeviceVulkanMemoryModelFeatures memory_model;
  VkPhysicalDeviceSubgroupSizeControlFeatures subgroup_size;
  /** VkPhysicalDeviceCooperativeMatrixFeaturesKHR, which older Vulkan headers lack */
  struct {
    VkStructureType sType;
    void *pNext;
    VkBool32 cooperativeMatrix, cooperativeMatrixRobustBufferAccess;
  } cooperative_matrix;
} laprox_features;
/** Fills `out` for a device of Vulkan 1.1 or later with what the wanted `variants` take, a mask of laprox_variant; asks
 *  for nothing where the device is older. Thread-safe. */
LAPROX_API void laprox_features_query(PFN_vkGetInstanceProcAddr get_instance_proc_addr, VkInstance instance,
                                      VkPhysicalDevice physical_device, uint32_t variants,
                                      laprox_features *out);

/** A device with what laprox needs to know about it. */
typedef struct laprox_context laprox_context;

/** A VkDevice to be used; all handles stay the application's and outlive the context. */
typedef struct laprox_context_info {
  laprox_host host;
  VkInstance instance;
  VkPhysicalDevice physical_device;
  VkDevice device; /**< created with apiVersion 1.1 or later enabled; no feature or extension is required */
  PFN_vkGetInstanceProcAddr get_instance_proc_addr; /**< required: laprox never opens a loader of its own */
  VkPipelineCache pipeline_cache;                   /**< optional; used, never destroyed */
  bool debug_utils; /**< VK_EXT_debug_utils is enabled on the instance: objects get names */
  /** device extensions that are enabled; NULL = none */
  const char *const *extensions;
  uint32_t n_extensions;
  /** what the device was created with, with its pNext chain; NULL = no feature. Only read during the call. */
  const VkPhysicalDeviceFeatures2 *features;
  uint32_t variants_off; /**< mask of laprox_variant: kernels not to use */
} laprox_context_info;

#define laprox_context_create LAPROX_VERSIONED(laprox_context_create)
/** Imports a device. Fails with LAPROX_ERROR_UNSUPPORTED where the device is below Vulkan 1.1 or lacks a compute
 *  queue, with INVALID_ARGUMENT where a handle is missing. Thread-safe. */
LAPROX_API laprox_result laprox_context_create(const laprox_context_info *info, laprox_context **out);
/** Everything made from the context must be gone, and no work of it pending. */
LAPROX_API void laprox_context_destroy(laprox_context *context);
/** The variants that the context uses beside the baseline, a mask of laprox_variant. Thread-safe. */
LAPROX_API uint32_t laprox_context_variants(const laprox_context *context);
/** Why the context doesn't use a variant: "" where it does, NULL for what is no variant. Valid as long as the context. */
LAPROX_API const char *laprox_context_variant_reason(const laprox_context *context, uint32_t variant);

/** Runs kernels of a millisecond whose answers are known, submits them to `queue`, of the device and of that family, and
 *  waits. Drivers have been seen that compute wrongly what they claim to support: a variant that fails is not used, with
 *  one warning, nor are atomics; fails with UNSUPPORTED where the rest of the baseline does, so that the device is of no
 *  use. laprox_device_open and laprox_device_import do it themselves; an application that has no queue to spare goes by
 *  the driver's word.
 *
 *  Before anything else is made from the context; not thread-safe. */
LAPROX_API laprox_result laprox_context_self_test(laprox_context *context, VkQueue queue,
                                                  uint32_t queue_family);

/** Device memory that laprox has allocated on this context itself, in bytes: now, and at most so far. The
 *  application's own buffers are not in it. Thread-safe. */
typedef struct laprox_memory_use {
  uint64_t bytes;
  uint64_t peak_bytes;
} laprox_memory_use;
LAPROX_API laprox_memory_use laprox_context_memory(const laprox_context *context);

/** A part of an application's buffer. `offset` is a multiple of 4. */
typedef struct laprox_buffer {
  VkBuffer buffer;
  VkDeviceSize offset; /**< bytes */
  VkDeviceSize size;   /**< bytes */
} laprox_buffer;

/** One stretch of every layer's cache: for each KV head some consecutive entries, each head_dim elements long.
 *  A dense cache is one segment; an evicted one that has grown is two, a ragged prefix and a dense tail. Entry i of head g
 *  begins, in the layer's K range and in its V range, at element
 *
 *      (row(g) + i) * entry_stride + g * head_stride
 *
 *  where row(g) is cu_seqlens[g] of the layer in a ragged segment, g * head_rows in a dense one without head_stride, and
 *  0 in a dense one with it. Everything beyond n_entries or cu_seqlens may be left out:
 *
 *      head-major   [n_kv_heads, n_entries, head_dim]   the default
 *      token-major  [n_entries, n_kv_heads, head_dim]   entry_stride = n_kv_heads * head_dim, head_stride = head_dim
 *      interleaved  [n_entries, 2, n_kv_heads, head_dim] entry_stride = 2 * n_kv_heads * head_dim, head_stride = head_dim,
 *                   the V range beginning n_kv_heads * head_dim elements behind the K range in the same buffer
 *      padded rows  entry_stride = elements from row to row; one buffer for all layers: ranges with offsets
 *
 *  K and V have the same strides. Rows of different entries must not overlap where K and V are packed in place. */
typedef struct laprox_segment {
  uint32_t n_entries; /**< entries of every head; dense segments only */
  /** rows from one head to the next, >= n_entries; dense segments without head_stride only; 0 = n_entries */
  uint32_t head_rows;
  /** ragged: n_layers x (n_kv_heads + 1) offsets in rows, each layer's from 0; else NULL */
  const uint32_t *cu_seqlens;
  /** elements from one entry of a head to the next, at least head_dim and a multiple of 4 bytes; 0 = head_dim */
  uint32_t entry_stride;
  /** elements from one head to the next, beside what row(g) says; likewise; 0 = none */
  uint64_t head_stride;
} laprox_segment;

#define LAPROX_MAX_SEGMENTS 2

/** The cache and the policy that a plan is for. */
typedef struct laprox_plan_info {
  laprox_shape shape;
  laprox_policy policy;
  /** of K and V: F32, F16, BF16, or, where head_dim is a multiple of 64, Q8_0 or Q4_0; AUTO = F16 */
  laprox_dtype cache_dtype;
  /** 1 or 2; a head's entries are those of segment 0, then those of segment 1, which may be dense with
   *  n_entries 0 */
  uint32_t n_segments;
  laprox_segment segments[LAPROX_MAX_SEGMENTS];
  /** tokens read so far, for budgets given as a share; 0 = entries of head 0 of layer 0 */
  uint32_t n_tokens;
  uint32_t query_rows; /**< rows of the query ring, >= window; 0 = window */
  /** row of the window's first query; row (query_start + t) % query_rows holds query t */
  uint32_t query_start;
  float scale;        /**< of the attention logits, not below 0; 0 = 1 / sqrt(head_dim) */
  uint32_t model_dim; /**< rows of the output projection; only criticalkv and defensivekv need it */
  /** Selecting while a model is still being read. Scores of a layer are normalised by that layer's own sum, so the best
   *  of layers 0 … l are known once layer l is scored, and what is not among them never comes back: cutting after every
   *  layer ends with exactly the set that one selection over all layers gives, and peaks at what is kept plus one full
   *  layer. shape.n_layers counts the layers read so far; model_layers all that share the budget. */
  uint32_t model_layers; /**< 0 = shape.n_layers */
  /** layers before it are not scored: the scores buffer holds their candidates' scores at
   *  laprox_plan_score_offset, and -1.0f behind them, before the selection steps run */
  uint32_t first_layer;
  const float *layer_scales; /**< of layers [0, first_layer): the scales of the results that scored them */
  /** The model's layers are spread over several devices or machines, and this plan's are layers layer_offset …
   *  layer_offset + n_layers - 1 of model_layers, which must be given. With scope global the selection then has rounds,
   *  between which the application adds up counters (laprox_binding_round): all devices come to one threshold, and what
   *  they keep together is exactly what one device would. All need the same policy, budget in entries (with a share the
   *  same n_tokens), window and shape but for n_layers; heads may differ in length everywhere. Not with first_layer or
   *  retain_scores. */
  bool distributed;
  uint32_t layer_offset;
  bool retain_scores; /**< a last step packs the kept candidates' scores to the front of each head's */
  /** the selection also writes one bit for every entry of the cache into laprox_binding_info.keep_mask */
  bool keep_mask;
  /** n_layers x n_kv_heads: leading entries that are protected as sinks in each head; NULL = the policy's
   *  sinks, for caches whose first entries are the first positions */
  const uint32_t *head_sinks;
  /** for applications whose frames share the queue: scoring steps cost no more than this where they can be cut so
   *  small, by laprox_binding_step_cost; 0 = what the watchdogs of the device's class bear. Results don't depend on it. */
  uint64_t step_cost;
} laprox_plan_info;

/** Kernels and sizes for one cache shape. No device memory. */
typedef struct laprox_plan laprox_plan;

/** Fails with UNSUPPORTED where a range would exceed the device's maxStorageBufferRange (the message gives both). K and V
 *  may be larger: they are bound in parts, of whole heads or of 512 entries of a head and more. */
LAPROX_API laprox_result laprox_plan_create(laprox_context *context, const laprox_plan_info *info,
                                            laprox_plan **out);
LAPROX_API void laprox_plan_destroy(laprox_plan *plan);

/** What a plan needs and does. All buffers need VK_BUFFER_USAGE_STORAGE_BUFFER_BIT, scratch and result TRANSFER_DST too,
 *  scores TRANSFER_SRC. What the application copies itself is its own matter. */
typedef struct laprox_requirements {
  /** of the offsets of scratch, scores, result, query and factor, and of K and V of type Q8_0 or Q4_0; other K and V,
   *  packed ones of all types, and the keep-mask may begin at any multiple of 4 */
  VkDeviceSize alignment;
  VkDeviceSize scratch_bytes; /**< device-local; contents are worthless before and after */
  /** f32, candidates layer-major then head, each head's from a multiple of 1,024 on; pooled, not yet divided
   *  by the layer's sum; -1 behind a head's last */
  VkDeviceSize scores_bytes;
  VkDeviceSize result_bytes;    /**< the result block: see laprox_result_layout */
  VkDeviceSize factor_bytes;    /**< of one layer's value factor; 0 where the policy has no use for it */
  VkDeviceSize query_bytes;     /**< of one layer's query ring, f32 */
  VkDeviceSize keep_mask_bytes; /**< 0 where the plan is not to write one */
  uint64_t
      n_kept; /**< entries that survive in all; with several devices at most, here: cu_seqlens tell how many */
  uint32_t budget; /**< entries per (layer, KV head) on average; UINT32_MAX: everything is kept, there are
                                   no steps, and no buffer is needed */
} laprox_requirements;
LAPROX_API void laprox_plan_requirements(const laprox_plan *plan, laprox_requirements *out);

/** Where the scores of a head's candidates begin in the scores buffer, in bytes. */
LAPROX_API VkDeviceSize laprox_plan_score_offset(const laprox_plan *plan, uint32_t layer, uint32_t head);

/** Where a head's part of the keep-mask begins, in bytes: uint32 words, bit e % 32 of word e / 32 is set where entry e is
 *  kept, and clear behind the last entry. Heads follow each other without gaps, layer by layer: in a dense cache the mask
 *  is [n_layers, n_kv_heads, (n_entries + 31) / 32]. */
LAPROX_API VkDeviceSize laprox_plan_keep_mask_offset(const laprox_plan *plan, uint32_t layer, uint32_t head);

/** Byte offsets inside the result block. */
typedef struct laprox_result_layout {
  /** uint32 n_layers x { non-finite scores, scale (float bits) }: a layer's final scores are its pooled ones
   *  times the scale, 1 / their sum where the policy normalises. Complete behind the last layer's steps */
  VkDeviceSize counters;
  /** uint32 n_layers * n_kv_heads + 1: row offsets over the whole model, layer-major */
  VkDeviceSize cu_seqlens;
  /** uint32 n_kept: kept entries of each (layer, head), ascending; numbers of entries in the head, which are
   *  positions where the cache was dense */
  VkDeviceSize indices;
} laprox_result_layout;
LAPROX_API void laprox_plan_result_layout(const laprox_plan *plan, laprox_result_layout *out);

/** Entries [first, end) of every head. */
typedef struct laprox_range {
  uint32_t first, end;
} laprox_range;
/** With scope token: what all heads lose, ascending, from a result block (result_bytes) that the application has read
 *  back; for engines that remove cells by position. `ranges` NULL: *n_ranges says how many there are, at most 1 more
 *  than a head keeps; else it is how many there is room for, and then how many were written. INVALID_ARGUMENT for
 *  another scope, a plan that keeps everything, and too little room; VULKAN where the block can't be a selection's.
 *  Thread-safe. */
LAPROX_API laprox_result laprox_removed_ranges(const laprox_plan *plan, const void *result,
                                               laprox_range *ranges, uint32_t *n_ranges);

/** Buffers of one layer. Ranges of segments that hold no entries may be zero, and so may be all that a policy doesn't look
 *  at: queries and K under streaming and random, queries under knorm and keydiff, V under all but laprox, vatp, criticalkv
 *  and defensivekv. A compaction takes both K and V. */
typedef struct laprox_layer_buffers {
  laprox_buffer query; /**< f32 [query_rows, n_heads, head_dim], after RoPE */
  laprox_buffer key[LAPROX_MAX_SEGMENTS];
  laprox_buffer value[LAPROX_MAX_SEGMENTS];
  laprox_buffer
      factor; /**< as laprox_value_factor writes it; for criticalkv and defensivekv the output projection
                            itself, f32 [model_dim, n_heads * head_dim]; else unused */
  /** optional, f32 [n_heads, query_rows], in the order of the rows of `query`: natural logarithm of the sum over all
   *  keys that a window query sees of the exponentials of its scaled logits, as the attention of the prompt has come
   *  to it. Where it is given, scoring reads K once less. It must be that of the cache as it is now: an eviction since
   *  then has made it wrong. */
  laprox_buffer lse;
} laprox_layer_buffers;

typedef struct laprox_binding_info {
  const laprox_layer_buffers *layers; /**< n_layers of the plan */
  laprox_buffer scratch;
  laprox_buffer scores;
  laprox_buffer result;
  laprox_buffer keep_mask; /**< where the plan writes one: laprox_plan_keep_mask_offset */
} laprox_binding_info;

/** A plan with buffers. Keep the plan alive. */
typedef struct laprox_binding laprox_binding;
LAPROX_API laprox_result laprox_binding_create(const laprox_plan *plan, const laprox_binding_info *info,
                                               laprox_binding **out);
/** No recorded command buffer may still be pending. */
LAPROX_API void laprox_binding_destroy(laprox_binding *binding);

/** Records steps [first, first + count). Every recording begins and ends with a barrier that covers compute and
 *  transfer reads and writes of device memory; for host reads of the result the application adds its own. Steps run
 *  in order, each once; they may be spread over command buffers and submits of one queue. Layers that one recording
 *  scores may run side by side, so that it is faster than a recording for each. */
LAPROX_API laprox_result laprox_cmd_steps(VkCommandBuffer command_buffer, const laprox_binding *binding,
                                          uint32_t first, uint32_t count);
/** Steps of the whole pass. Each is short enough for the watchdogs of the device's class. */
LAPROX_API uint32_t laprox_binding_n_steps(const laprox_binding *binding);
/** The steps [*first, *first + *count) that score a layer: they read only that layer's K, V, queries and factor, so they
 *  can run as soon as these exist. layer = n_layers gives the selection, the last steps. */
LAPROX_API void laprox_binding_layer_steps(const laprox_binding *binding, uint32_t layer, uint32_t *first,
                                           uint32_t *count);
/** A part of the selection that devices go through together. When its steps have run on all of them, uint32 counters
 *  stand at `offset` of each one's scratch: the application reads them, adds them up over all devices, element by element
 *  (overflow wraps), and writes the sums back on each before the next round, by copies of its own in the same queue
 *  (scratch needs TRANSFER_SRC). There are `bytes` / 4 of them, as many on all devices: some 2,048 in each of three rounds,
 *  then one for each of the model's layers. After the last round, which has none, the result is complete. */
typedef struct laprox_round {
  uint32_t first, count;      /**< steps */
  VkDeviceSize offset, bytes; /**< multiples of 4 */
} laprox_round;
/** 1 where nothing has to be exchanged: plans that aren't distributed or whose scope isn't global. */
LAPROX_API uint32_t laprox_binding_n_rounds(const laprox_binding *binding);
/** The rounds are the selection: those of laprox_binding_layer_steps for n_layers, in order. */
LAPROX_API void laprox_binding_round(const laprox_binding *binding, uint32_t round, laprox_round *out);
/** Relative cost of a step in floating-point operations, to spread steps over submits. */
LAPROX_API uint64_t laprox_binding_step_cost(const laprox_binding *binding, uint32_t step);

/** One layer's kept entries packed into new buffers, K and V bit for bit, in the result's order. Applications that only
 *  want to know what is kept do without: the result block lists it, the keep-mask marks it. */
typedef struct laprox_compaction_info {
  uint32_t layer;
  laprox_layer_buffers source; /**< query and factor are not used */
  laprox_buffer result;        /**< the result block, selection done */
  /** the result's cu_seqlens, n_layers * n_kv_heads + 1, read back by the application */
  const uint32_t *cu_seqlens;
  /** rows move to the front of their head's own rows in the source, whose strides they keep; for plans of one segment */
  bool in_place;
  laprox_buffer key, value; /**< destinations otherwise: rows of the layer x head_dim elements */
} laprox_compaction_info;
typedef struct laprox_compaction laprox_compaction;
LAPROX_API laprox_result laprox_compaction_create(const laprox_plan *plan, const laprox_compaction_info *info,
                                                  laprox_compaction **out);
LAPROX_API void laprox_compaction_destroy(laprox_compaction *compaction);
/** Records compactions of one context, in order, with the barriers of laprox_cmd_steps around them all. Between two of
 *  them there is one only where their buffers overlap, so that layers packed at once fill a large device. */
LAPROX_API laprox_result laprox_cmd_compact(VkCommandBuffer command_buffer,
                                            const laprox_compaction *const *compactions,
                                            uint32_t n_compactions);

/** The value factors of one layer: for query head h the upper triangular R_h with R_h^T R_h = W_h W_h^T, so that
 *  |v W_h| = |R_h v| (method: projected-value norm). Computed once per model on the host, in f64.
 *  `output_weight` is [model_dim, n_heads * head_dim] f32, row-major, as checkpoints store o_proj. With
 *  LAPROX_GQA_JOINT the heads of a group share one factor of the stacked W, so that inner products between heads are
 *  exact too. `factor` receives factor_bytes of the plan (laprox_value_factor_bytes).
 *  A singular W_h W_h^T (head_dim > model_dim, a dead head) is no error. Non-finite weights are. `host` may be NULL. */
LAPROX_API laprox_result laprox_value_factor(const laprox_host *host, const laprox_shape *shape,
                                             laprox_gqa gqa, uint32_t model_dim, const float *output_weight,
                                             float *factor);
/** Bytes that laprox_value_factor writes for one layer; 0 for a shape without heads. Thread-safe. */
LAPROX_API size_t laprox_value_factor_bytes(const laprox_shape *shape, laprox_gqa gqa);

#ifdef __cplusplus
}
#endif

#endif
