/* fingerprint.h: which model a file belongs to. */
#ifndef LPX_RUNTIME_FINGERPRINT_H
#define LPX_RUNTIME_FINGERPRINT_H

#include "runtime/model.h"

/* 64 bits (FNV-1a) over everything in the model's file that decides what K, V and logits mean:
 * hyperparameters, vocabulary, and every tensor's name, type, shape and first and last bytes. The context
 * length, which can be raised, and the order of the file are not in it. Reads the file. */
laprox_result lpx_model_fingerprint(const laprox_model *model, uint64_t *out);

#endif
