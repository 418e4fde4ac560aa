/* app.h: what an application with Vulkan has before it meets laprox: a device, up to two queues, memory. The device's
 * part of the memory and the host's have the same layout, so that one place serves a tensor and its staging copy. What
 * goes wrong here ends the program. */
#ifndef EXAMPLES_APP_H
#define EXAMPLES_APP_H

#include <volk.h>

#include <laprox/vulkan.h>

typedef struct app {
  VkInstance instance;
  VkDebugUtilsMessengerEXT messenger;
  unsigned n_findings; /* of the validation layer */
  VkPhysicalDevice gpu;
  VkDevice device;
  uint32_t family[2];
  VkQueue queue[2]; /* the same one twice where the device has one that computes */
  VkBuffer arena, host;
  VkDeviceMemory memory[2];
  char *mapped;
  VkDeviceSize arena_bytes, used_bytes, alignment;
} app;

/* Synchronisation validation where `validate` says so; then the program ends with 77 if the layer isn't there. */
void app_open(app *a, bool validate, VkDeviceSize arena_bytes);
void app_close(app *a);
/* The device as the library wants it described; messages go to standard error. */
laprox_context_info app_context_info(const app *a);

/* A part of the arena, and where the host has the same part. */
laprox_buffer app_take(app *a, VkDeviceSize bytes, float **host);
/* What a forward pass would leave of a layer, f32 and made up from its number, in the host's memory: queries, keys, values,
 * factor. */
void app_fill_layer(app *a, const laprox_shape *shape, uint32_t number, uint32_t n_tokens,
                    const laprox_requirements *needs, laprox_layer_buffers *layer);

/* One submitter's command buffer, for one of the queues. */
typedef struct app_commands {
  const app *a;
  VkQueue queue;
  VkCommandPool pool;
  VkCommandBuffer buffer;
  VkFence fence;
} app_commands;
void app_commands_create(const app *a, int queue, app_commands *out);
void app_commands_destroy(app_commands *c);
void app_begin(const app_commands *c);
void app_copy(const app_commands *c, VkBuffer from, VkBuffer to, laprox_buffer part);
/* Ends the recording with the barrier that the library leaves to the application: copies before host reads. */
void app_end(const app_commands *c);
void app_wait(const app_commands *c);
/* Ends, submits and waits. */
void app_run(const app_commands *c);

/* Ends the program where `result` is not 0. */
void must(int result, const char *what);

#endif
