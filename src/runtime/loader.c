/* loader.c: the one place where volk lives. It finds the system's Vulkan loader for devices of our own
 * making. */
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#endif
#define VOLK_IMPLEMENTATION
#include <volk.h>

#include "runtime/loader.h"

PFN_vkGetInstanceProcAddr lpx_loader_open(void) {
  return volkInitialize() == VK_SUCCESS ? vkGetInstanceProcAddr : NULL;
}
