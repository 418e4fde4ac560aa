/* pipeline.c: compute pipelines from embedded SPIR-V. */
#include "vk/vk.h"

#include <string.h>

static const lpx_shader *find_shader(const char *name) {
  for (size_t i = 0; i < lpx_n_shaders; i++)
    if (!strcmp(lpx_shaders[i].name, name)) return &lpx_shaders[i];
  return NULL;
}

laprox_result lpx_pipeline_init(laprox_context *context, const char *shader, uint32_t n_bindings,
                                const uint32_t *constants, uint32_t n_constants, lpx_pipeline *out) {
  *out = (lpx_pipeline){.n_bindings = n_bindings};
  const lpx_shader *code = find_shader(shader);
  if (!code || n_bindings < 1 || n_bindings > LPX_MAX_BINDINGS || n_constants > LPX_MAX_CONSTANTS)
    return lpx_fail(&context->host, LAPROX_ERROR_INVALID_ARGUMENT, "no shader variant \"%s\" with %u buffers",
                    shader, n_bindings);
  const VkShaderModuleCreateInfo module_info = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                                .codeSize = code->code_bytes,
                                                .pCode = code->code};
  VkShaderModule module = VK_NULL_HANDLE;
  laprox_result result =
      lpx_vk_result(context, context->vk.CreateShaderModule(context->device, &module_info, NULL, &module),
                    "vkCreateShaderModule");
  if (result) return result;
  VkSpecializationMapEntry entries[LPX_MAX_CONSTANTS];
  for (uint32_t i = 0; i < n_constants; i++)
    entries[i] = (VkSpecializationMapEntry){.constantID = i, .offset = i * 4, .size = 4};
  const VkSpecializationInfo specialization = {
      .mapEntryCount = n_constants, .pMapEntries = entries, .dataSize = n_constants * 4, .pData = constants};
  const VkComputePipelineCreateInfo info = {
      .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
      .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                .module = module,
                .pName = "main",
                .pSpecializationInfo = &specialization},
      .layout = context->pipeline_layouts[n_bindings],
  };
  result = lpx_vk_result(context,
                         context->vk.CreateComputePipelines(context->device, context->pipeline_cache, 1,
                                                            &info, NULL, &out->pipeline),
                         shader);
  context->vk.DestroyShaderModule(context->device, module, NULL);
  if (!result) lpx_vk_name(context, VK_OBJECT_TYPE_PIPELINE, (uint64_t)out->pipeline, shader);
  return result;
}

void lpx_pipeline_finish(laprox_context *context, lpx_pipeline *pipeline) {
  if (pipeline->pipeline) context->vk.DestroyPipeline(context->device, pipeline->pipeline, NULL);
  *pipeline = (lpx_pipeline){0};
}
