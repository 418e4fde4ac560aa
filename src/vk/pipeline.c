/* pipeline.c: compute pipelines from embedded SPIR-V, each made once for a context and kept until its end: a
   plan or a session that comes later pays nothing for what an earlier one has compiled. */
#include "vk/vk.h"

#include <string.h>

/* An entry of the context's list. The list only grows, by exchanging its head, so that readers need no lock;
   two threads that make the same pipeline at the same time both add theirs, which does no harm. */
struct lpx_pipeline_entry {
  struct lpx_pipeline_entry *next;
  const lpx_shader *shader;
  uint32_t n_bindings, n_constants;
  uint32_t constants[LPX_MAX_CONSTANTS];
  VkPipeline pipeline;
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

static bool matches(const lpx_pipeline_entry *a, const lpx_pipeline_entry *b) {
  return a->shader == b->shader && a->n_bindings == b->n_bindings && a->n_constants == b->n_constants &&
         (!a->n_constants || !memcmp(a->constants, b->constants, a->n_constants * sizeof a->constants[0]));
}

static laprox_result create(laprox_context *context, lpx_pipeline_entry *entry) {
  const lpx_shader *code = entry->shader;
  const VkShaderModuleCreateInfo module_info = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                                .codeSize = code->code_bytes,
                                                .pCode = code->code};
  VkShaderModule module = VK_NULL_HANDLE;
  laprox_result result =
      lpx_vk_result(context, context->vk.CreateShaderModule(context->device, &module_info, NULL, &module),
                    "vkCreateShaderModule");
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
  result = lpx_vk_result(context,
                         context->vk.CreateComputePipelines(context->device, context->pipeline_cache, 1,
                                                            &info, NULL, &entry->pipeline),
                         code->name);
  context->vk.DestroyShaderModule(context->device, module, NULL);
  if (!result) lpx_vk_name(context, VK_OBJECT_TYPE_PIPELINE, (uint64_t)entry->pipeline, code->name);
  return result;
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
  for (lpx_pipeline_entry *entry = atomic_load(&context->pipelines); entry; entry = entry->next)
    if (matches(entry, &wanted)) {
      out->pipeline = entry->pipeline;
      out->shader = entry->shader->name;
      return LAPROX_OK;
    }
  lpx_pipeline_entry *made = lpx_allocate(&context->host, 1, sizeof *made);
  if (!made) return lpx_fail_memory(&context->host, "a pipeline");
  *made = wanted;
  const laprox_result result = create(context, made);
  if (result) {
    lpx_release(&context->host, made);
    return result;
  }
  made->next = atomic_load(&context->pipelines);
  while (!atomic_compare_exchange_weak(&context->pipelines, &made->next, made)) {
  }
  out->pipeline = made->pipeline;
  out->shader = made->shader->name;
  return LAPROX_OK;
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
