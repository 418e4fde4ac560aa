#include "support/variants.h"

#include <stdlib.h>
#include <string.h>

uint32_t test_variants_off(void) {
  const char *names = getenv("LAPROX_VARIANTS");
  uint32_t variants = LAPROX_ALL_VARIANTS;
  if (names && *names && !laprox_variants_parse(names, &variants)) abort();
  return LAPROX_ALL_VARIANTS & ~variants;
}

bool test_validation(void) {
  const char *validation = getenv("LAPROX_TEST_VALIDATION");
  return !validation || strcmp(validation, "0") != 0;
}
