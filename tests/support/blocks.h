/* blocks.h: encodes blocks as GGUF's reference does. */
#ifndef TEST_BLOCKS_H
#define TEST_BLOCKS_H

#include "core/core.h"

/* n values, whole blocks of them, as Q8_0 or Q4_0. */
void encode_blocks(laprox_dtype dtype, const float *values, size_t n, uint8_t *to);

/* A block's scale as f32, before it is stored. */
float block_scale(laprox_dtype dtype, const float *values);

#endif
