/* pipeline_file.h: compiled pipelines on disk, between runs. */
#ifndef LPX_RUNTIME_PIPELINE_FILE_H
#define LPX_RUNTIME_PIPELINE_FILE_H

#include "core/core.h"

#include <vulkan/vulkan_core.h>

/* A VkPipelineCache and the file that it comes from and goes to. Zeroed = none: no cache, which is as good but
 * slower. */
typedef struct lpx_pipeline_file {
  laprox_host host;
  char *path;
  VkDevice device;
  VkPipelineCache cache;
  PFN_vkGetPipelineCacheData get_data;
  PFN_vkDestroyPipelineCache destroy;
  uint64_t read_bytes, read_checksum; /* of what the file held */
} lpx_pipeline_file;

/* Takes what the directory's file for this device and driver holds. A file that is damaged, or another driver's,
 * is not given to the driver: it is ignored with a warning, as is all else that fails. */
void lpx_pipeline_file_open(const laprox_host *host, const char *directory,
                            const VkPhysicalDeviceProperties *properties, VkDevice device,
                            PFN_vkGetDeviceProcAddr get_device_proc_addr, lpx_pipeline_file *out);
/* Writes the file anew where there is more to be kept than it held. */
void lpx_pipeline_file_close(lpx_pipeline_file *file, const VkPhysicalDeviceProperties *properties);

#endif
