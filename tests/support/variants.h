/* variants.h: which kernels a test's device uses. */
#ifndef TESTS_SUPPORT_VARIANTS_H
#define TESTS_SUPPORT_VARIANTS_H

#include "laprox/vulkan.h"

/* The variants that the environment's LAPROX_VARIANTS leaves out (a list as `laprox --variants` takes it; unset: none),
   so that every test can be run with every variant. */
uint32_t test_variants_off(void);

#endif
