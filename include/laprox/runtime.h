/* runtime.h: a runtime that loads a GGUF model on a Vulkan device, reads a prompt, evicts, and generates.
 *
 * device -> model -> session. A session is one sequence: tokens go in by laprox_session_prefill and
 * laprox_session_decode, logits come out, laprox_session_evict shrinks the KV cache in between as often as wanted.
 *
 * Threads: one thread at a time for a device and everything made from it. Shaders are compiled on several threads,
 * which end before the call does; callbacks and allocators of yours are only called from the caller's.
 */
#ifndef LAPROX_RUNTIME_H
#define LAPROX_RUNTIME_H

#include "laprox/laprox.h"
#include "laprox/vulkan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- devices ---- */

/** A Vulkan instance made by laprox, with its physical devices. */
typedef struct laprox_instance laprox_instance;

typedef struct laprox_instance_info {
  laprox_host host;
  bool validation; /**< the Khronos validation layer with synchronisation validation; its messages arrive as
                        LAPROX_MESSAGE_ERROR lines that begin with "validation: ". Fails where there is no such layer. */
  uint32_t variants_off; /**< mask of laprox_variant: kernels that opened devices don't use */
  /** Where devices opened from the instance keep compiled pipelines from one run to the next, one file for each device
   *  and driver; must exist. NULL: nowhere. The files need not be trusted: what is damaged, or another driver's, is
   *  ignored with a warning and written anew, beside and renamed, when the device is destroyed. */
  const char *cache_directory;
} laprox_instance_info;

#define laprox_instance_create LAPROX_VERSIONED(laprox_instance_create)
LAPROX_API laprox_result laprox_instance_create(const laprox_instance_info *info, laprox_instance **out);
LAPROX_API void laprox_instance_destroy(laprox_instance *instance);

/** What can be said about a physical device before it is opened. */
typedef struct laprox_device_description {
  uint32_t index; /**< in the loader's order */
  char name[256];
  const char *type; /**< "discrete", "integrated", "virtual", "software" or "other" */
  uint32_t vendor_id, device_id;
  char driver[256],
      driver_info[256]; /**< VK_KHR_driver_properties where available, else the driver version */
  uint32_t api_version; /**< as Vulkan packs it */
  bool usable;
  char reason[160];    /**< why not usable; empty otherwise */
  uint64_t heap_bytes; /**< of the device-local heaps */
  uint32_t max_compute_invocations, max_compute_shared_bytes, max_push_constant_bytes, max_storage_buffers;
  uint32_t max_workgroup_count_x, subgroup_size;
  uint64_t max_storage_buffer_range, min_storage_buffer_alignment, max_allocations;
  float timestamp_period_ns; /**< 0: no timestamps on the compute queue */
} laprox_device_description;

/** All physical devices; valid as long as the instance. */
LAPROX_API const laprox_device_description *laprox_instance_devices(const laprox_instance *instance,
                                                                    uint32_t *count);

/** A device with a queue that the runtime submits to. */
typedef struct laprox_device laprox_device;

/** Opens a device. `selector`: an index, or a part of a name (case-insensitive); NULL: the best usable one, real GPUs
 *  (discrete, integrated, virtual) before software. Fails with NO_DEVICE, naming the devices there are. */
LAPROX_API laprox_result laprox_device_open(laprox_instance *instance, const char *selector,
                                            laprox_device **out);

/** Uses an application's device instead. The queue must support compute; the runtime submits to it from the thread
 *  that calls, and the application must not submit at the same time. */
typedef struct laprox_device_import_info {
  laprox_context_info context;
  VkQueue queue;
  uint32_t queue_family;
} laprox_device_import_info;
#define laprox_device_import LAPROX_VERSIONED(laprox_device_import)
LAPROX_API laprox_result laprox_device_import(const laprox_device_import_info *info, laprox_device **out);
LAPROX_API void laprox_device_destroy(laprox_device *device);
LAPROX_API laprox_context *laprox_device_context(laprox_device *device);
/** The device's name as Vulkan gives it. */
LAPROX_API const char *laprox_device_name(const laprox_device *device);

/** Called now and then during long work with a fraction of 0 … 1; return false to cancel. */
typedef bool (*laprox_progress_fn)(void *user, const char *what, double fraction);

/* ---- models ---- */

/** Weights on a device, and the tokenizer. Immutable once loaded. */
typedef struct laprox_model laprox_model;

typedef struct laprox_model_info {
  const char *path;            /**< GGUF v2 or v3, architecture llama, weights F32, F16, BF16 or Q8_0 */
  laprox_progress_fn progress; /**< may be NULL */
  void *progress_user;
  /** hyperparameters and tokenizer only, nothing on the device: for laprox_plan_memory. Sessions need a model
   *  with weights. */
  bool without_weights;
} laprox_model_info;

LAPROX_API laprox_result laprox_model_load(laprox_device *device, const laprox_model_info *info,
                                           laprox_model **out);
LAPROX_API void laprox_model_destroy(laprox_model *model);

typedef struct laprox_model_description {
  laprox_shape shape;
  uint32_t model_dim, feed_forward_dim, n_vocab, context_length;
  uint32_t bos, eos;        /**< LAPROX_NONE where there is none */
  uint64_t weight_bytes;    /**< on the device */
  const char *architecture; /**< "llama" */
  const char *name;         /**< general.name, or "" */
} laprox_model_description;
LAPROX_API void laprox_model_describe(const laprox_model *model, laprox_model_description *out);

/** Text (UTF-8, `bytes` long) to tokens; the BOS token comes first where the model wants one and `add_bos`. Free
 *  *tokens with laprox_model_release. Special tokens inside the text are not recognised. */
LAPROX_API laprox_result laprox_model_tokenize(const laprox_model *model, const char *text, size_t bytes,
                                               bool add_bos, uint32_t **tokens, size_t *count);
/** Tokens to text, zero-terminated (it may hold zero bytes before; *bytes counts). Special tokens give nothing. Free
 *  *text with laprox_model_release. */
LAPROX_API laprox_result laprox_model_detokenize(const laprox_model *model, const uint32_t *tokens,
                                                 size_t count, char **text, size_t *bytes);
LAPROX_API void laprox_model_release(const laprox_model *model, void *pointer);

/* ---- sessions ---- */

/** One sequence with its KV cache. */
typedef struct laprox_session laprox_session;

/** Where a device has cooperative matrices (LAPROX_VARIANT_MATRIX), prompts are multiplied with weights other than F32 on
 *  them: activations are rounded to f16, sums are f32. With a cache of F32 they are not used. */
typedef struct laprox_session_info {
  laprox_dtype kv_dtype; /**< F16, F32, or, where head_dim is a multiple of 64, Q8_0 or Q4_0; AUTO = F16 */
  uint32_t window;       /**< last queries kept for scoring, at least the window of every eviction; 0 = 32 */
  uint32_t chunk;        /**< prompt tokens that run through a layer at once; 0 = a good size */
  bool keep_logits;      /**< keep the logits of every prompt token on the host, not only of the last */
  laprox_progress_fn progress;
  void *progress_user;
} laprox_session_info;

LAPROX_API laprox_result laprox_session_create(laprox_model *model, const laprox_session_info *info,
                                               laprox_session **out);
LAPROX_API void laprox_session_destroy(laprox_session *session);
/** A copy with memory of its own: one document, many questions. */
LAPROX_API laprox_result laprox_session_fork(const laprox_session *session, laprox_session **out);

/** Reads `count` tokens after those read so far, layer by layer. Fails with INVALID_ARGUMENT on an empty prompt, a token
 *  outside the vocabulary, or when the model's context length would be exceeded. */
LAPROX_API laprox_result laprox_session_prefill(laprox_session *session, const uint32_t *tokens,
                                                size_t count);
/** Reads one generated token. */
LAPROX_API laprox_result laprox_session_decode(laprox_session *session, uint32_t token);
/** Logits after the last token read, n_vocab floats; NULL before any. Valid until the next call on the session. */
LAPROX_API const float *laprox_session_logits(const laprox_session *session);
/** With keep_logits: [*count, n_vocab] of the last prefill. */
LAPROX_API const float *laprox_session_prompt_logits(const laprox_session *session, size_t *count);
/** Whether the next prefills keep the logits of every token, in a session that was created with keep_logits or is a fork
 *  of one (INVALID_ARGUMENT otherwise): none for a document, all for what is compared behind it. */
LAPROX_API laprox_result laprox_session_keep_logits(laprox_session *session, bool keep);

/** What an eviction did. */
typedef struct laprox_eviction {
  uint32_t budget;                    /**< entries per (layer, KV head) on average */
  uint64_t kept;                      /**< entries that survived, in all layers and heads */
  uint64_t nonfinite_scores;          /**< scores that were NaN or infinite and counted as 0 */
  uint64_t bytes_before, bytes_after; /**< device memory of K and V */
  double score_ms, select_ms, compact_ms;
} laprox_eviction;

/** Evicts to the policy's budget. Does nothing (and says so in `out`) where everything fits the budget. `out` may be
 *  NULL. On failure the cache is unchanged. */
LAPROX_API laprox_result laprox_session_evict(laprox_session *session, const laprox_policy *policy,
                                              laprox_eviction *out);

/* ---- scores apart from budgets ---- */

/** What a policy thinks of every entry of a session's cache: made once, used for any number of budgets. */
typedef struct laprox_scores laprox_scores;

/** A text whose queries score what was read before it: a guess at the question to come. */
typedef struct laprox_probe {
  const uint32_t *tokens;
  uint32_t n_tokens; /**< 1 to the session's window (laprox_session_info) */
} laprox_probe;

/** What becomes of an entry's scores by several probes. */
typedef enum laprox_combine {
  LAPROX_COMBINE_AUTO = 0,
  LAPROX_COMBINE_MEAN = 1,
  LAPROX_COMBINE_MAX = 2
} laprox_combine;

typedef struct laprox_score_info {
  /** the budget only says how many sinks there are room for, where the policy's sinks yield to it; none: room for all */
  laprox_policy policy;
  /** Each is read after what the session has read, every one of its queries scores, and its own K and V are dropped
   *  again. The probe is the window then: the policy must leave its own open, all that the session has read competes for
   *  places, and no part of a budget goes to a window. Fails with INVALID_ARGUMENT for policies that look at no query. */
  const laprox_probe *probes;
  uint32_t n_probes;      /**< 0: the last tokens read score, as in laprox_session_evict */
  laprox_combine combine; /**< AUTO = mean */
} laprox_score_info;

/** Scores the session's cache, which stays as it is: what has been read, its logits and its queries. On failure too. */
LAPROX_API laprox_result laprox_session_score(laprox_session *session, const laprox_score_info *info,
                                              laprox_scores **out);
LAPROX_API void laprox_scores_destroy(laprox_scores *scores);
/** Whether they are what a budget is decided by: not where the policy's sinks yield to it and would be others. */
LAPROX_API bool laprox_scores_serve(const laprox_scores *scores, const laprox_budget *budget);
/** Evicts to a budget as laprox_session_evict does. `session`: the one that was scored, or a fork, nothing read or
 *  evicted since; others fail with INVALID_ARGUMENT where their cache tells. `out` may be NULL; its score_ms is 0. */
LAPROX_API laprox_result laprox_session_evict_scored(laprox_session *session, const laprox_scores *scores,
                                                     const laprox_budget *budget, laprox_eviction *out);

/** What an eviction does to a layer's attention. */
typedef struct laprox_attention_error {
  /** share of attention that goes to entries that are kept, mean over queries and query heads */
  double mass;
  double output; /**< |O' - O| / |O| of the attention's output behind the output projection */
} laprox_attention_error;
/** Takes the last queries of a session that holds everything it has read, as many as its window, and that session's K
 *  and V; of the other one, which has read as many tokens, only which entries it still holds. Worked out on the host in
 *  double precision: slow for large models. `layers`: n_layers of them. */
LAPROX_API laprox_result laprox_session_compare(const laprox_session *full, const laprox_session *evicted,
                                                laprox_attention_error *layers);

/* ---- eviction while reading ---- */

/** laprox_session_prefill and laprox_session_evict in one, in little memory: the first prompt of a session is cut after
 *  every layer, with exactly the set that an eviction afterwards would keep, and K and V take at most what is kept plus
 *  one full layer. Later turns are read whole beside what is kept, and then evicted; so is the first with scope token,
 *  which needs the scores of all layers. On failure a session that was empty is empty again. */
LAPROX_API laprox_result laprox_session_prefill_evict(laprox_session *session, const uint32_t *tokens,
                                                      size_t count, const laprox_policy *policy,
                                                      laprox_eviction *out);

/** For prompts of which not even one layer, or the hidden states, fit: reads `chunk` tokens (at least 1), evicts to the
 *  budget, reads the next ones. A budget given as a share is one of the tokens read when the whole prompt has been read.
 *  The cache holds budget + chunk entries per (layer, KV head) on average at most.
 *
 *  Approximate: a chunk's tokens attend to what is left of those before, and the last queries of each chunk, not of the
 *  prompt, choose. `out` adds up the evictions; `kept` and the bytes after are those of the last one. On failure a
 *  session that was empty is empty again, and another one keeps the chunks that were read. */
LAPROX_API laprox_result laprox_session_prefill_chunks(laprox_session *session, const uint32_t *tokens,
                                                       size_t count, uint32_t chunk,
                                                       const laprox_policy *policy, laprox_eviction *out);

typedef struct laprox_session_memory {
  uint64_t kv_bytes;      /**< device memory of K and V now */
  uint64_t kv_peak_bytes; /**< and at most so far */
  uint64_t kv_full_bytes; /**< what a full cache of all tokens read so far takes */
} laprox_session_memory;
LAPROX_API laprox_session_memory laprox_session_get_memory(const laprox_session *session);
/** Tokens read so far; the position of the next one. */
LAPROX_API uint32_t laprox_session_n_tokens(const laprox_session *session);
/** Of them, those read since the last eviction that had something to evict; all where there was none. Every KV head
 *  still holds them. */
LAPROX_API uint32_t laprox_session_n_tail(const laprox_session *session);
/** Entries of each (layer, KV head), layer-major, n_layers * n_kv_heads numbers. */
LAPROX_API void laprox_session_kept_per_head(const laprox_session *session, uint32_t *counts);
/** True positions of a layer's entries, head after head as laprox_session_kept_per_head counts them, ascending in each. */
LAPROX_API void laprox_session_kept_positions(const laprox_session *session, uint32_t layer,
                                              uint32_t *positions);

/** Writes what `laprox evict` reads: q of the last `window` tokens, K, V and o_proj of every layer, as safetensors.
 *  The cache must not have been evicted. Written beside and renamed. */
LAPROX_API laprox_result laprox_session_capture(const laprox_session *session, const char *path);
/** Writes layers.{l}.cu_seqlens and layers.{l}.indices (true positions) of what is kept now. */
LAPROX_API laprox_result laprox_session_dump_kept(const laprox_session *session, const char *path);
/** Writes the prompt logits (all with keep_logits, else the last) as tensor `logits` F32 [T, n_vocab]. */
LAPROX_API laprox_result laprox_session_dump_logits(const laprox_session *session, const char *path);

/** Writes the whole state of a sequence, so that laprox_session_load goes on where this session is: the same tokens
 *  with the same logits, bit for bit, and the same set at the next eviction. What was evicted stays evicted.
 *
 *  safetensors: for each layer `layers.{l}.k` and `layers.{l}.v` [n_l, head_dim] in the cache's type, bit for bit, head
 *  after head in order of positions; `layers.{l}.cu_seqlens` I32 [n_kv_heads + 1]; `layers.{l}.indices` I32 [n_l], true
 *  positions; `layers.{l}.q` F32 [n_heads, w, head_dim], the last w <= window queries; and `logits` F32 [n_vocab] after
 *  the last token. `__metadata__` has format, model (a fingerprint, see load), kv_dtype, n_tokens, n_tail and tail_room
 *  (how many of every head's last entries were read since the last eviction, and the room behind them), window (w) and
 *  policy.
 *
 *  `policy` is only recorded, as text: what the cache was evicted with; NULL: nothing is recorded. Needs logits, hence
 *  a session that has read something and whose last reading did not fail. Written beside and renamed: on failure `path`
 *  is as it was. */
LAPROX_API laprox_result laprox_session_save(const laprox_session *session, const laprox_policy *policy,
                                             const char *path);
/** Brings an empty session (nothing read, INVALID_ARGUMENT otherwise) to where the saved one was. Chunk and window of
 *  the two may differ; where this session's window is larger, policies that use all of it must wait until as many tokens
 *  more have been read.
 *
 *  The file need not be trusted: one that is damaged or inconsistent, and one of another model, cache type or shape, is
 *  refused with FORMAT and a message that says what is wrong where; a sequence beyond this model's context length with
 *  UNSUPPORTED. Models are told apart by a fingerprint of hyperparameters, vocabulary and both ends of every tensor;
 *  the context length is not in it. On failure the session is still empty. */
LAPROX_API laprox_result laprox_session_load(laprox_session *session, const char *path);

/* ---- memory, before any is taken ---- */

/** A prompt that is going to be read, and what is to be kept of it. */
typedef struct laprox_memory_plan_info {
  laprox_session_info session;
  laprox_policy policy; /**< kind FULL, or no budget: nothing is evicted */
  uint32_t n_prompt;    /**< tokens, at least 1 */
  uint32_t n_question;  /**< tokens that are read together after the prompt has been evicted; 0: none */
  uint32_t n_generate;  /**< tokens read one by one after it */
  bool layerwise;       /**< laprox_session_prefill_evict; else prefill, then evict */
  uint32_t chunk; /**< laprox_session_prefill_chunks with so many tokens a chunk, whatever `layerwise` says;
                             0: no */
  /** evicts again when so many tokens have been generated since the last eviction; 0: never */
  uint32_t tail;
  uint64_t memory_bytes; /**< plan against so much of the device's memory at most; 0: all that is free */
} laprox_memory_plan_info;

/** Device memory in bytes, computed from shapes alone. */
typedef struct laprox_memory_plan {
  uint64_t weight_bytes;
  uint64_t hidden_bytes;     /**< hidden states of the whole prompt, or of a chunk */
  uint64_t activation_bytes; /**< everything else that device and session hold besides K and V */
  uint64_t eviction_bytes;   /**< scores, tables, scratch and value factors of an eviction */
  uint64_t kv_full_bytes;    /**< K and V of all prompt tokens */
  uint64_t kv_peak_bytes;    /**< K and V at most */
  uint64_t kv_steady_bytes;  /**< K and V after the eviction, with the generated tokens */
  uint64_t peak_bytes;       /**< all of it together at most */
  /** what the device has for it: VK_EXT_memory_budget, else the size of its heap less what laprox has taken;
   *  the weights of a loaded model count as still to be taken. At most memory_bytes */
  uint64_t free_bytes;
  bool fits;
  uint32_t largest_prompt; /**< tokens that would fit, everything else being equal; 0: none */
  uint32_t largest_budget; /**< entries per (layer, KV head) that would fit; 0: none */
} laprox_memory_plan;

/** Says what a run will take. Fails like the run itself on a policy or prompt that can't be. */
LAPROX_API laprox_result laprox_plan_memory(laprox_model *model, const laprox_memory_plan_info *info,
                                            laprox_memory_plan *out);

/* ---- sampling ---- */

/** temperature 0 is greedy (the lowest token wins a tie), whatever the other fields say. */
typedef struct laprox_sampler {
  float temperature;
  uint32_t top_k; /**< 0 = all */
  float top_p;    /**< 0 or 1 = all */
  uint64_t state; /**< seed before the first call, advanced by every sample */
} laprox_sampler;
/** Draws a token from n_vocab logits. `scratch`: n_vocab * 2 floats of the caller, may be NULL for greedy. */
LAPROX_API uint32_t laprox_sample(laprox_sampler *sampler, const float *logits, uint32_t n_vocab,
                                  float *scratch);

/* ---- captures ---- */

typedef struct laprox_evict_file_info {
  const char *input, *output; /**< safetensors; the output is written beside and renamed */
  laprox_policy policy;
  bool scores; /**< add layers.{l}.scores */
  laprox_progress_fn progress;
  void *progress_user;
} laprox_evict_file_info;

typedef struct laprox_evict_file_report {
  laprox_shape shape;
  uint32_t n_tokens, window;
  laprox_eviction eviction;
  double upload_ms, download_ms;
  uint32_t *kept_per_head; /**< n_layers * n_kv_heads; free with laprox_evict_file_report_finish */
} laprox_evict_file_report;

/** Runs a policy over a captured cache. Where a policy's window is not given it is the capture's; where it is given it
 *  must not exceed the capture's. */
LAPROX_API laprox_result laprox_evict_file(laprox_device *device, const laprox_evict_file_info *info,
                                           laprox_evict_file_report *out);
LAPROX_API void laprox_evict_file_report_finish(laprox_device *device, laprox_evict_file_report *report);

#ifdef __cplusplus
}
#endif

#endif
