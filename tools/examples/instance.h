/* instance.h: a Vulkan instance, alone or under the validation layer. */
#ifndef EXAMPLES_INSTANCE_H
#define EXAMPLES_INSTANCE_H

#include <volk.h>

/* After volkInitialize. With n_findings, which must outlive the instance, all is validated, synchronisation too, and
 * findings are counted and printed; VK_ERROR_LAYER_NOT_PRESENT if the layer isn't there. */
VkResult instance_create(unsigned *n_findings, VkInstance *instance, VkDebugUtilsMessengerEXT *messenger);
void instance_destroy(VkInstance instance, VkDebugUtilsMessengerEXT messenger);

#endif
