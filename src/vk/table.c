#include "vk/table.h"

#include <stddef.h>

const char *lpx_vk_load(lpx_vk *table, PFN_vkGetInstanceProcAddr get_instance_proc_addr, VkInstance instance,
                        VkDevice device) {
#define LOAD(name)                                                                                           \
  table->name = (PFN_vk##name)get_instance_proc_addr(instance, "vk" #name);                                  \
  if (!table->name) return "vk" #name;
  LPX_INSTANCE_FUNCTIONS(LOAD)
#undef LOAD
#define LOAD(name)                                                                                           \
  table->name = (PFN_vk##name)table->GetDeviceProcAddr(device, "vk" #name);                                  \
  if (!table->name) return "vk" #name;
  LPX_DEVICE_FUNCTIONS(LOAD)
#undef LOAD
  table->SetDebugUtilsObjectNameEXT =
      (PFN_vkSetDebugUtilsObjectNameEXT)get_instance_proc_addr(instance, "vkSetDebugUtilsObjectNameEXT");
  return NULL;
}
