/* encode.h: tensors as they are stored; blocks as GGUF's reference encodes them. */
#ifndef TESTS_SUPPORT_ENCODE_H
#define TESTS_SUPPORT_ENCODE_H

#include "core/core.h"

/* n values, whole blocks of them where the type has blocks; the values become what is really stored. */
void encode_values(laprox_dtype dtype, float *values, size_t n, void *to);

/* A block's scale as f32, before it is stored. */
float block_scale(laprox_dtype dtype, const float *values);

#endif
