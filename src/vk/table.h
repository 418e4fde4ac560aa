/* table.h: the Vulkan functions of one context, loaded through the address the application gives. No loader
   is opened and no vk* symbol is defined, so that an application with a loader of its own doesn't clash with
   us. */
#ifndef LPX_VK_TABLE_H
#define LPX_VK_TABLE_H

#include <stdbool.h>
#include <vulkan/vulkan_core.h>

/* Headers before 1.3.255 lack the extension. */
#ifndef VK_KHR_cooperative_matrix
#define VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME                          "VK_KHR_cooperative_matrix"
#define VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR ((VkStructureType)1000506000)
#define VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR               ((VkStructureType)1000506001)
#define VK_COMPONENT_TYPE_FLOAT16_KHR                                     0
#define VK_COMPONENT_TYPE_FLOAT32_KHR                                     1
#define VK_SCOPE_SUBGROUP_KHR                                             3
typedef struct VkCooperativeMatrixPropertiesKHR {
  VkStructureType sType;
  void *pNext;
  uint32_t MSize, NSize, KSize;
  uint32_t AType, BType, CType, ResultType;
  VkBool32 saturatingAccumulation;
  uint32_t scope;
} VkCooperativeMatrixPropertiesKHR;
typedef VkResult(VKAPI_PTR *PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)(
    VkPhysicalDevice, uint32_t *, VkCooperativeMatrixPropertiesKHR *);
#endif

#define LPX_INSTANCE_FUNCTIONS(X)                                                                            \
  X(GetPhysicalDeviceProperties)                                                                             \
  X(GetPhysicalDeviceProperties2)                                                                            \
  X(GetPhysicalDeviceMemoryProperties)                                                                       \
  X(GetPhysicalDeviceMemoryProperties2)                                                                      \
  X(GetPhysicalDeviceQueueFamilyProperties)                                                                  \
  X(GetDeviceProcAddr)

#define LPX_DEVICE_FUNCTIONS(X)                                                                              \
  X(AllocateCommandBuffers)                                                                                  \
  X(AllocateDescriptorSets)                                                                                  \
  X(AllocateMemory)                                                                                          \
  X(BeginCommandBuffer)                                                                                      \
  X(BindBufferMemory)                                                                                        \
  X(CmdBindDescriptorSets)                                                                                   \
  X(CmdBindPipeline)                                                                                         \
  X(CmdCopyBuffer)                                                                                           \
  X(CmdDispatch)                                                                                             \
  X(CmdFillBuffer)                                                                                           \
  X(CmdPipelineBarrier)                                                                                      \
  X(CmdPushConstants)                                                                                        \
  X(CmdResetQueryPool)                                                                                       \
  X(CmdUpdateBuffer)                                                                                         \
  X(CmdWriteTimestamp)                                                                                       \
  X(CreateBuffer)                                                                                            \
  X(CreateCommandPool)                                                                                       \
  X(CreateComputePipelines)                                                                                  \
  X(CreateDescriptorPool)                                                                                    \
  X(CreateDescriptorSetLayout)                                                                               \
  X(CreateFence)                                                                                             \
  X(CreatePipelineLayout)                                                                                    \
  X(CreateQueryPool)                                                                                         \
  X(CreateShaderModule)                                                                                      \
  X(DestroyBuffer)                                                                                           \
  X(DestroyCommandPool)                                                                                      \
  X(DestroyDescriptorPool)                                                                                   \
  X(DestroyDescriptorSetLayout)                                                                              \
  X(DestroyFence)                                                                                            \
  X(DestroyPipeline)                                                                                         \
  X(DestroyPipelineLayout)                                                                                   \
  X(DestroyQueryPool)                                                                                        \
  X(DestroyShaderModule)                                                                                     \
  X(EndCommandBuffer)                                                                                        \
  X(FreeMemory)                                                                                              \
  X(GetBufferMemoryRequirements)                                                                             \
  X(GetQueryPoolResults)                                                                                     \
  X(MapMemory)                                                                                               \
  X(QueueSubmit)                                                                                             \
  X(QueueWaitIdle)                                                                                           \
  X(ResetCommandPool)                                                                                        \
  X(ResetDescriptorPool)                                                                                     \
  X(ResetFences)                                                                                             \
  X(UpdateDescriptorSets)                                                                                    \
  X(WaitForFences)

typedef struct lpx_vk {
#define LPX_MEMBER(name) PFN_vk##name name;
  LPX_INSTANCE_FUNCTIONS(LPX_MEMBER)
  LPX_DEVICE_FUNCTIONS(LPX_MEMBER)
#undef LPX_MEMBER
  PFN_vkSetDebugUtilsObjectNameEXT SetDebugUtilsObjectNameEXT; /* NULL without VK_EXT_debug_utils */
} lpx_vk;

/* Returns NULL when everything was found, else the name of the first function that is missing. */
const char *lpx_vk_load(lpx_vk *table, PFN_vkGetInstanceProcAddr get_instance_proc_addr, VkInstance instance,
                        VkDevice device);

#endif
