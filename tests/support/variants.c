#include "support/variants.h"

#include <stdlib.h>

uint32_t test_variants_off(void) {
  const char *names = getenv("LAPROX_VARIANTS");
  uint32_t variants = LAPROX_ALL_VARIANTS;
  if (names && *names && !laprox_variants_parse(names, &variants)) abort();
  return LAPROX_ALL_VARIANTS & ~variants;
}
