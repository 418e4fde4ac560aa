/* volk.c: the application's loader. The library has none: it is given vkGetInstanceProcAddr. */
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#endif
#define VOLK_IMPLEMENTATION
#include <volk.h>
