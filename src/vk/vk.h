/* vk.h: one Vulkan device as the rooms above see it: context, buffers, pipelines, programs, our own queue. */
#ifndef LPX_VK_H
#define LPX_VK_H

#include "core/core.h"
#include "laprox/vulkan.h"
#include "vk/table.h"

#include <stdatomic.h>

#define LPX_MAX_BINDINGS  4   /* storage buffers a dispatch, Vulkan's guaranteed minimum */
#define LPX_MAX_PUSH      128 /* bytes of push constants, likewise */
#define LPX_MAX_CONSTANTS 12  /* specialisation constants, ids 0 … n-1 */
/* Costs are counted in flops of a device without matrices; with them it does at least so many in the time of one. */
#define LPX_MATRIX_FLOPS 8

/* Shaders, in the order of the generated table (shaders/meson.build). */
typedef struct lpx_shader {
  const char *name;
  const uint32_t *code;
  size_t code_bytes;
  uint32_t needs; /* mask of laprox_variant */
} lpx_shader;
extern const lpx_shader lpx_shaders[];
extern const size_t lpx_n_shaders;

typedef struct lpx_pipeline_entry lpx_pipeline_entry;

#define LPX_REASON_BYTES 160

struct laprox_context {
  laprox_host host;
  VkInstance instance;
  VkPhysicalDevice physical_device;
  VkDevice device;
  lpx_vk vk;
  VkPhysicalDeviceProperties properties;
  VkPhysicalDeviceMemoryProperties memory;
  VkDeviceSize max_range;       /* of one storage buffer binding */
  VkDeviceSize range_alignment; /* of a binding's offset */
  uint32_t max_groups;          /* workgroups in x */
  uint32_t n_processors;        /* that workgroups are shared out to; 0: not known */
  uint64_t
      dispatch_cost;    /* flops that one dispatch, and one submit, should not exceed: watchdogs bite after */
  uint64_t submit_cost; /* half a second on some phones, and desktops share the queue */
  uint32_t variants;    /* mask of laprox_variant that may be used */
  char variant_reasons[LAPROX_N_VARIANTS][LPX_REASON_BYTES]; /* why not */
  /* With LAPROX_VARIANT_SUBGROUP or _MATRIX: pipelines that need them run in full subgroups of this size. Else
     what the device reports, which need not be true. */
  uint32_t subgroup_size;
  struct {
    uint32_t m, n, k;
    bool half_sums; /* f16 in and out too: sums may be turned into f16 */
  } matrix;         /* with LAPROX_VARIANT_MATRIX: A is m x k, B k x n */
  VkPipelineCache pipeline_cache;
  bool has_debug_utils, has_memory_budget;
  bool few_registers; /* for an invocation: see lpx_tile_size_of */
  bool wide_operands; /* of matrices: an invocation holds more of each, as on AMD in subgroups of 64 */
  bool avoid_atomics; /* they fail on this device; read when plans are made */
  VkDescriptorSetLayout set_layouts[LPX_MAX_BINDINGS + 1];
  VkPipelineLayout pipeline_layouts[LPX_MAX_BINDINGS + 1];
  _Atomic(lpx_pipeline_entry *) pipelines;
  struct lpx_pipeline_list *wanted; /* NULL, or what is asked for is only noted: lpx_pipelines_note */
  atomic_bool lost;
  atomic_uint_fast64_t bytes, peak_bytes;
};

/* What a context of these features and extensions can use; fills variants, subgroup_size and matrix. */
void lpx_features_read(laprox_context *context, const laprox_context_info *info);
/* Takes away one variant, and those that need it. The first reason stays. */
void lpx_variant_drop(laprox_context *context, uint32_t variant, const char *format, ...) LPX_PRINTF(3, 4);
bool lpx_device_offers(PFN_vkGetInstanceProcAddr get_instance_proc_addr, VkInstance instance,
                       VkPhysicalDevice physical_device, const char *extension);
/* Takes away what is known not to work on this driver. */
void lpx_quirks_apply(laprox_context *context, PFN_vkGetInstanceProcAddr get_instance_proc_addr);

/* Turns a VkResult into ours with one message "what: VK_ERROR_…". Remembers a lost device. VK_SUCCESS gives
   OK without a message. */
laprox_result lpx_vk_result(laprox_context *context, VkResult result, const char *what);
/* The same for an error where there is no context yet. */
laprox_result lpx_vk_error(const laprox_host *host, VkResult result, const char *what);
/* The message of every call after the one that found the device lost; OK while it is not. */
laprox_result lpx_vk_check_lost(const laprox_context *context);
/* VK_OBJECT_TYPE_… by name, where debug utils are there. */
void lpx_vk_name(const laprox_context *context, VkObjectType type, uint64_t handle, const char *name);

/* ---- buffers: each its own VkDeviceMemory, so that destroying one really gives memory back ---- */

typedef enum lpx_memory {
  LPX_MEMORY_DEVICE,  /* device-local, not mapped */
  LPX_MEMORY_UPLOAD,  /* mapped, host writes */
  LPX_MEMORY_READBACK /* mapped, host reads; cached where there is such memory */
} lpx_memory;

typedef struct lpx_buffer {
  VkBuffer buffer;
  VkDeviceMemory memory;
  VkDeviceSize size;      /* as asked for */
  VkDeviceSize allocated; /* as taken from the device */
  void *mapped;           /* coherent; NULL for device memory */
} lpx_buffer;

/* A zeroed lpx_buffer is empty. size 0 is taken as 4. Storage, transfer source and destination. */
laprox_result lpx_buffer_init(laprox_context *context, lpx_memory memory, VkDeviceSize size, const char *name,
                              lpx_buffer *out);
void lpx_buffer_finish(laprox_context *context, lpx_buffer *buffer);
laprox_buffer lpx_buffer_whole(const lpx_buffer *buffer);
/* Bytes [offset, offset + size) of a range. */
laprox_buffer lpx_buffer_part(laprox_buffer whole, VkDeviceSize offset, VkDeviceSize size);
/* The binding that covers bytes [offset, offset + size) and obeys the device's alignment: its offset is
 *rounded down, residual receives the bytes that this adds in front. */
laprox_buffer lpx_buffer_aligned_part(const laprox_context *context, laprox_buffer whole, VkDeviceSize offset,
                                      VkDeviceSize size, VkDeviceSize *residual);
/* The same of a range of units. `residual` receives elements, and whole units stand before: where those are blocks, the
 * range itself is aligned as bindings are. */
laprox_buffer lpx_buffer_aligned_units(const laprox_context *context, lpx_unit unit, laprox_buffer whole,
                                       VkDeviceSize offset, VkDeviceSize size, uint32_t *residual);
/* Bytes that fit such a binding wherever they begin, and whose elements 32 bits can count. */
VkDeviceSize lpx_buffer_units_room(const laprox_context *context, lpx_unit unit);

/* What the device's own heap still has, by VK_EXT_memory_budget where it is enabled, else by our own count.
 */
uint64_t lpx_context_free_bytes(laprox_context *context);

/* ---- pipelines ---- */

typedef struct lpx_pipeline {
  VkPipeline pipeline;
  const char *shader; /* its name in the table */
  uint32_t n_bindings;
} lpx_pipeline;

/* constants[i] is specialisation constant i. n_bindings storage buffers at set 0, bindings 0 … n-1. The
   pipeline belongs to the context, which makes each only once. Thread-safe. */
laprox_result lpx_pipeline_get(laprox_context *context, const char *shader, uint32_t n_bindings,
                               const uint32_t *constants, uint32_t n_constants, lpx_pipeline *out);
/* Whether the variant is in this build and the context may use it. */
bool lpx_shader_usable(const laprox_context *context, const char *shader);
void lpx_pipelines_destroy(laprox_context *context);

/* ---- what kernels are chosen by ---- */

/* Rows of the tiles in products: 32, 64 or 128, as fit the device's registers. Shaders "…_small", "…" and "…_large". */
typedef enum lpx_tile_size {
  LPX_TILES_SMALL,
  LPX_TILES_MIDDLE,
  LPX_TILES_LARGE,
  LPX_N_TILE_SIZES
} lpx_tile_size;

static inline bool lpx_large_tiles(const laprox_context *context) {
  return context->variants & LAPROX_VARIANT_LARGE_TILES;
}

static inline lpx_tile_size lpx_tile_size_of(const laprox_context *context) {
  return lpx_large_tiles(context) ? LPX_TILES_LARGE
         : context->few_registers ? LPX_TILES_SMALL
                                  : LPX_TILES_MIDDLE;
}

/* A processor runs the shaders, whose compiler takes loops and not the same written out. */
static inline bool lpx_is_software(const laprox_context *context) {
  return context->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
}

/* With memory of its own, and room for much work at once. */
static inline bool lpx_is_discrete(const laprox_context *context) {
  return context->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
}

/* Whether kernels on matrices are the faster ones where they can be used: not in software. A context that has no
 * subgroup kernels, as tests choose it, still gets them. */
static inline bool lpx_matrices_pay(const laprox_context *context) {
  return !lpx_is_software(context) || !(context->variants & LAPROX_VARIANT_SUBGROUP);
}

/* Whether the device has matrices as attention and scoring take them: square, of 8 or 16, by subgroups of 128 at
 * most. */
static inline bool lpx_has_square_matrices(const laprox_context *context) {
  const uint32_t size = context->matrix.m;
  return (size == 8 || size == 16) && size == context->matrix.n && size == context->matrix.k &&
         context->subgroup_size <= 128;
}

/* Whether the device takes workgroups of so many subgroups and bytes of shared memory. */
bool lpx_workgroup_fits(const laprox_context *context, uint32_t n_subgroups, uint32_t shared_bytes);

/* ---- pipelines ahead of their use ---- */

/* Pipelines that aren't there yet. */
typedef struct lpx_pipeline_list {
  lpx_pipeline_entry *first;
  uint32_t n;
} lpx_pipeline_list;

typedef void (*lpx_task_fn)(void *user, uint32_t index);
/* Calls task(user, 0 … n - 1), each once, from any threads, and returns when all are done. */
typedef void (*lpx_for_each_fn)(uint32_t n, lpx_task_fn task, void *user);

/* A look-alike of a context, of which plans and kernels can be made for what they tell, but not to run: pipelines that
 * are asked of it come to the list instead. It must not outlive the context and is not destroyed. */
void lpx_pipelines_note(const laprox_context *context, lpx_pipeline_list *list, laprox_context *out);
/* Makes the pipelines of the list, which is empty then, all at once; whoever asks the context for them finds them. */
laprox_result lpx_pipelines_compile(laprox_context *context, lpx_pipeline_list *list,
                                    lpx_for_each_fn for_each);
void lpx_pipeline_list_release(const laprox_host *host, lpx_pipeline_list *list);

/* ---- programs: dispatches, copies and barriers prepared once, recorded any number of times ---- */

/* Built by appending; errors stick and are reported by lpx_program_finish_building, so that builders need no
   checks in between. Between two commands the builder says where a barrier is needed (lpx_program_barrier).
 */
typedef struct lpx_program lpx_program;

laprox_result lpx_program_create(laprox_context *context, const char *name, lpx_program **out);
void lpx_program_destroy(lpx_program *program);
/* Forgets all commands, keeps the memory. The last recording must have finished executing. */
void lpx_program_reset(lpx_program *program);

/* One dispatch of n_groups workgroups of a pipeline; the shader finds its number by workgroup_index() of
   include/index.glsl and must return at once when it is >= n_groups, which stands in the first word of the
   push constants: `push` begins with a uint32_t that this call overwrites with n_groups. n_groups 0 is no
   command. Ranges must lie within max_range. cost in flops (or bytes where there are none), for splitting
   submits. */
void lpx_program_dispatch(lpx_program *program, const lpx_pipeline *pipeline, const laprox_buffer *ranges,
                          void *push, uint32_t push_bytes, uint64_t n_groups, uint64_t cost);
/* All earlier shader and transfer accesses before all later ones. */
void lpx_program_barrier(lpx_program *program);
void lpx_program_copy(lpx_program *program, laprox_buffer from, laprox_buffer to); /* from.size bytes */
void lpx_program_fill(lpx_program *program, laprox_buffer range, uint32_t value);
/* At most 65536 bytes, multiple of 4; copied into the program. */
void lpx_program_update(lpx_program *program, laprox_buffer range, const void *data, size_t bytes);
/* Ends a step; commands so far since the last mark belong to it. */
void lpx_program_mark_step(lpx_program *program);
/* Ends a step, if one is begun, and begins a section: commands that stay in order. Up to n_beside sections in a row of the
   same n_beside may run side by side, so each of them uses nothing that others write, but for places that every n_beside-th
   one shares. Sections of 0 or 1, as all are where nothing is said, run alone. */
void lpx_program_begin_section(lpx_program *program, uint32_t n_beside);
/* From here on a step also ends where the next dispatch would take it beyond this cost. 0: no more. */
void lpx_program_limit_steps(lpx_program *program, uint64_t cost);

/* Writes all descriptors. Must be called once before recording. */
laprox_result lpx_program_finish_building(lpx_program *program);
uint32_t lpx_program_n_steps(const lpx_program *program);
uint64_t lpx_program_step_cost(const lpx_program *program, uint32_t step);
/* Compute and transfer, reads and writes, on both sides. */
void lpx_record_barrier(const laprox_context *context, VkCommandBuffer command_buffer);
/* Records steps without a barrier before or after them; sections among them side by side. */
void lpx_program_record_bare(const lpx_program *program, VkCommandBuffer command_buffer, uint32_t first,
                             uint32_t count);
/* The same with both. */
void lpx_program_record(const lpx_program *program, VkCommandBuffer command_buffer, uint32_t first,
                        uint32_t count);
/* One section after the other, with a timestamp in query i of the pool behind the i-th stretch of dispatches of one
   shader, whose name names[i] receives; a null pool gives the names alone. Returns how many there are; what is beyond
   n_queries belongs to the last one. */
uint32_t lpx_program_record_timed(const lpx_program *program, VkCommandBuffer command_buffer, uint32_t first,
                                  uint32_t count, VkQueryPool pool, uint32_t n_queries, const char **names);

/* ---- our own queue (runtime and tools only) ---- */

typedef struct lpx_queue lpx_queue;
laprox_result lpx_queue_create(laprox_context *context, VkQueue queue, uint32_t family, lpx_queue **out);
void lpx_queue_destroy(lpx_queue *queue);
/* One submit of steps from `first` on, before `end`, as many as it may take, and waiting; *count receives how many, not 0.
   *device_ns as below. */
laprox_result lpx_queue_run_some(lpx_queue *queue, const lpx_program *program, uint32_t first, uint32_t end,
                                 uint32_t *count, uint64_t *device_ns);
/* Runs a whole program and waits; steps are spread over submits of bounded cost. Device time of it, measured
   by timestamps where the queue has them, is added to *device_ns (may be NULL). */
laprox_result lpx_queue_run(lpx_queue *queue, const lpx_program *program, uint64_t *device_ns);
/* The same for steps [first, first + count). */
laprox_result lpx_queue_run_steps(lpx_queue *queue, const lpx_program *program, uint32_t first,
                                  uint32_t count, uint64_t *device_ns);
/* One submit of what `record` records, which must be short enough for the device's watchdog. */
typedef void (*lpx_record_fn)(void *user, VkCommandBuffer command_buffer);
laprox_result lpx_queue_record(lpx_queue *queue, lpx_record_fn record, void *user, uint64_t *device_ns);
/* Host memory to and from device buffers, through a bounded staging buffer. */
laprox_result lpx_queue_upload(lpx_queue *queue, laprox_buffer to, const void *data, size_t bytes);
laprox_result lpx_queue_download(lpx_queue *queue, laprox_buffer from, void *data, size_t bytes);
laprox_context *lpx_queue_context(const lpx_queue *queue);
/* laprox_context_self_test on a queue that is there. */
laprox_result lpx_self_test(lpx_queue *queue);
/* Device memory that the queue holds itself. */
uint64_t lpx_queue_bytes(const lpx_queue *queue);

/* ---- programs that run again and again ---- */

/* A program that is built anew for every run, although mostly the data of its updates alone have changed: then
   what was recorded for the last run is submitted again, and nothing is allocated, written to descriptors or
   recorded. */
typedef struct lpx_replay lpx_replay;
laprox_result lpx_replay_create(lpx_queue *queue, const char *name, lpx_replay **out);
void lpx_replay_destroy(lpx_replay *replay);
/* An empty program, to be appended to and then given to lpx_replay_run. */
lpx_program *lpx_replay_begin(lpx_replay *replay);
/* One call of vkQueueSubmit, in batches of bounded cost, and waiting. */
laprox_result lpx_replay_run(lpx_replay *replay);

/* ---- for this room only ---- */

/* Steps from `first` on, before `end`, that make up one submit. */
uint32_t lpx_queue_batch(const lpx_queue *queue, const lpx_program *program, uint32_t first, uint32_t end);
/* Ends a command buffer after which the host may read what the device has written. */
laprox_result lpx_queue_end(lpx_queue *queue, VkCommandBuffer command_buffer);
/* Submits and waits. */
laprox_result lpx_queue_submit(lpx_queue *queue, const VkSubmitInfo *batches, uint32_t n_batches,
                               const char *what);
uint32_t lpx_queue_family(const lpx_queue *queue);

/* Whether two programs differ in nothing but the data of their updates. */
bool lpx_program_same(const lpx_program *a, const lpx_program *b);
/* Updates' data, one after the other; recorded updates copy them from `source` once that is set. */
VkDeviceSize lpx_program_update_bytes(const lpx_program *program);
void lpx_program_write_updates(const lpx_program *program, void *to);
void lpx_program_set_update_source(lpx_program *program, laprox_buffer source);

#endif
