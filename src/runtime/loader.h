/* loader.h: the system's Vulkan loader. */
#ifndef LPX_RUNTIME_LOADER_H
#define LPX_RUNTIME_LOADER_H

#include <vulkan/vulkan_core.h>

/* NULL where there is no Vulkan loader on the system. */
PFN_vkGetInstanceProcAddr lpx_loader_open(void);

#endif
