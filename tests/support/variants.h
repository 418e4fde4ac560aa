/* variants.h: which kernels a test's device uses, and whether validation watches it. */
#ifndef TESTS_SUPPORT_VARIANTS_H
#define TESTS_SUPPORT_VARIANTS_H

#include "laprox/vulkan.h"

#include <stdbool.h>

/* The variants that the environment's LAPROX_VARIANTS leaves out (a list as `laprox --variants` takes it; unset: none),
   so that every test can be run with every variant. */
uint32_t test_variants_off(void);

/* With the validation layer, unless the environment's LAPROX_TEST_VALIDATION is 0: for machines that have no such layer. */
bool test_validation(void);

#endif
