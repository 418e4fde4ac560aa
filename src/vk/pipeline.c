/* pipeline.c: compute pipelines from embedded SPIR-V, each made once for a context and kept until its end: a
   plan or a session that comes later pays nothing for what an earlier one has compiled. */
#include "vk/vk.h"

#include <stdio.h>
#include <string.h>

/* An entry of the context's list. The list only grows, by exchanging its head, so that readers need no lock;
   two threads that make the same pipeline at the same time both add theirs, which does no harm. */
struct lpx_pipeline_entry {
  struct lpx_pipeline_entry *next;
  const lpx_shader *shader;
  uint32_t n_bindings, n_constants;
  uint32_t constants[LPX_MAX_CONSTANTS];
  VkPipeline pipeline;
  const char *failed; /* the function, where compiling came to nothing */
};

static const lpx_shader *find_shader(const char *name) {
  for (size_t i = 0; i < lpx_n_shaders; i++)
    if (!strcmp(lpx_shaders[i].name, name)) return &lpx_shaders[i];
  return NULL;
}

bool lpx_shader_usable(const laprox_context *context, const char *shader) {
  const lpx_shader *found = find_shader(shader);
  return found && !(found->needs & ~context->variants);
}

bool lpx_workgroup_fits(const laprox_context *context, uint32_t n_subgroups, uint32_t shared_bytes) {
  const VkPhysicalDeviceLimits *limits = &context->properties.limits;
  const uint32_t n = n_subgroups * context->subgroup_size;
  return n <= limits->maxComputeWorkGroupInvocations && n <= limits->maxComputeWorkGroupSize[0] &&
         shared_bytes <= limits->maxComputeSharedMemorySize;
}

static bool matches(const lpx_pipeline_entry *a, const lpx_pipeline_entry *b) {
  return a->shader == b->shader && a->n_bindings == b->n_bindings && a->n_constants == b->n_constants &&
         (!a->n_constants || !memcmp(a->constants, b->constants, a->n_constants * sizeof a->constants[0]));
}

/* Says nothing and calls nothing of the host, so that it may run in several threads. */
static VkResult compile(const laprox_context *context, lpx_pipeline_entry *entry) {
  const lpx_shader *code = entry->shader;
  const VkShaderModuleCreateInfo module_info = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                                .codeSize = code->code_bytes,
                                                .pCode = code->code};
  VkShaderModule module = VK_NULL_HANDLE;
  VkResult result = context->vk.CreateShaderModule(context->device, &module_info, NULL, &module);
  entry->failed = "vkCreateShaderModule";
  if (result) return result;
  VkSpecializationMapEntry map[LPX_MAX_CONSTANTS];
  for (uint32_t i = 0; i < entry->n_constants; i++)
    map[i] = (VkSpecializationMapEntry){.constantID = i, .offset = i * 4, .size = 4};
  const VkSpecializationInfo specialization = {.mapEntryCount = entry->n_constants,
                                               .pMapEntries = map,
                                               .dataSize = entry->n_constants * 4,
                                               .pData = entry->constants};
  const bool pinned = code->needs & (LAPROX_VARIANT_SUBGROUP | LAPROX_VARIANT_MATRIX);
  const VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size = {
      .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
      .requiredSubgroupSize = context->subgroup_size};
  const VkComputePipelineCreateInfo info = {
      .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
      .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                .pNext = pinned ? &size : NULL,
                .flags = pinned ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT : 0,
                .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                .module = module,
                .pName = "main",
                .pSpecializationInfo = &specialization},
      .layout = context->pipeline_layouts[entry->n_bindings],
  };
  result = context->vk.CreateComputePipelines(context->device, context->pipeline_cache, 1, &info, NULL,
                                              &entry->pipeline);
  entry->failed = "vkCreateComputePipelines";
  context->vk.DestroyShaderModule(context->device, module, NULL);
  return result;
}

/* Into the context's list, or, after a failure, its end and message. */
static laprox_result take(laprox_context *context, lpx_pipeline_entry *entry, VkResult compiled) {
  if (compiled) {
    char what[128];
    (void)snprintf(what, sizeof what, "%s of %s", entry->failed, entry->shader->name);
    const laprox_result result = lpx_vk_result(context, compiled, what);
    lpx_release(&context->host, entry);
    return result;
  }
  lpx_vk_name(context, VK_OBJECT_TYPE_PIPELINE, (uint64_t)entry->pipeline, entry->shader->name);
  entry->next = atomic_load(&context->pipelines);
  while (!atomic_compare_exchange_weak(&context->pipelines, &entry->next, entry)) {
  }
  return LAPROX_OK;
}

static const lpx_pipeline_entry *find_entry(const lpx_pipeline_entry *first,
                                            const lpx_pipeline_entry *wanted) {
  while (first && !matches(first, wanted)) first = first->next;
  return first;
}

laprox_result lpx_pipeline_get(laprox_context *context, const char *shader, uint32_t n_bindings,
                               const uint32_t *constants, uint32_t n_constants, lpx_pipeline *out) {
  *out = (lpx_pipeline){.n_bindings = n_bindings};
  lpx_pipeline_entry wanted = {
      .shader = find_shader(shader), .n_bindings = n_bindings, .n_constants = n_constants};
  if (!wanted.shader || n_bindings < 1 || n_bindings > LPX_MAX_BINDINGS || n_constants > LPX_MAX_CONSTANTS)
    return lpx_fail(&context->host, LAPROX_ERROR_INVALID_ARGUMENT, "no shader variant \"%s\" with %u buffers",
                    shader, n_bindings);
  if (wanted.shader->needs & ~context->variants)
    return lpx_fail(&context->host, LAPROX_ERROR_UNSUPPORTED, "shader variant \"%s\" needs what %s lacks",
                    shader, context->properties.deviceName);
  if (n_constants) memcpy(wanted.constants, constants, n_constants * sizeof *constants);
  out->shader = wanted.shader->name;
  const lpx_pipeline_entry *found = find_entry(atomic_load(&context->pipelines), &wanted);
  if (found) out->pipeline = found->pipeline;
  if (found || (context->wanted && find_entry(context->wanted->first, &wanted))) return LAPROX_OK;
  lpx_pipeline_entry *made = lpx_allocate(&context->host, 1, sizeof *made);
  if (!made) return lpx_fail_memory(&context->host, "a pipeline");
  *made = wanted;
  if (context->wanted) {
    made->next = context->wanted->first;
    context->wanted->first = made;
    context->wanted->n++;
    return LAPROX_OK;
  }
  const laprox_result result = take(context, made, compile(context, made));
  if (!result) out->pipeline = made->pipeline;
  return result;
}

/* ---- ahead of their use ---- */

void lpx_pipelines_note(const laprox_context *context, lpx_pipeline_list *list, laprox_context *out) {
  *list = (lpx_pipeline_list){0};
  *out = *context;
  out->wanted = list;
}

void lpx_pipeline_list_release(const laprox_host *host, lpx_pipeline_list *list) {
  for (lpx_pipeline_entry *entry = list->first, *next; entry; entry = next) {
    next = entry->next;
    lpx_release(host, entry);
  }
  *list = (lpx_pipeline_list){0};
}

typedef struct compilation {
  const laprox_context *context;
  lpx_pipeline_entry **entries;
  VkResult *results;
} compilation;

static void compile_one(void *user, uint32_t index) {
  const compilation *c = user;
  c->results[index] = compile(c->context, c->entries[index]);
}

/* The first failure is the one that is told; what has been made stays. */
static laprox_result take_all(laprox_context *context, const compilation *c, uint32_t n) {
  laprox_result result = LAPROX_OK;
  for (uint32_t i = 0; i < n; i++) {
    if (result && c->results[i])
      lpx_release(&context->host, c->entries[i]);
    else {
      const laprox_result taken = take(context, c->entries[i], c->results[i]);
      if (taken) result = taken;
    }
  }
  return result;
}

laprox_result lpx_pipelines_compile(laprox_context *context, lpx_pipeline_list *list,
                                    lpx_for_each_fn for_each) {
  const laprox_host *host = &context->host;
  const uint32_t n = list->n;
  if (!n) return LAPROX_OK;
  compilation c = {.context = context,
                   .entries = lpx_allocate(host, n, sizeof *c.entries),
                   .results = lpx_allocate(host, n, sizeof *c.results)};
  laprox_result result = LAPROX_OK;
  if (c.entries && c.results) {
    for (uint32_t i = 0; i < n; i++, list->first = list->first->next) c.entries[i] = list->first;
    list->n = 0;
    for_each(n, compile_one, &c);
    result = take_all(context, &c, n);
  } else {
    result = lpx_fail_memory(host, "pipelines");
  }
  lpx_release(host, c.entries);
  lpx_release(host, c.results);
  return result;
}

void lpx_pipelines_destroy(laprox_context *context) {
  lpx_pipeline_entry *entry = atomic_load(&context->pipelines);
  while (entry) {
    lpx_pipeline_entry *next = entry->next;
    context->vk.DestroyPipeline(context->device, entry->pipeline, NULL);
    lpx_release(&context->host, entry);
    entry = next;
  }
}
