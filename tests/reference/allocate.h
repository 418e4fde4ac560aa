#ifndef REFERENCE_ALLOCATE_H
#define REFERENCE_ALLOCATE_H

#include <stddef.h>

/* Zeroed memory, or the end of the program. */
void *ref_allocate(size_t count, size_t size);

#endif
