/* parallel.h: work on all of the machine's processors. Only the runtime starts threads; the core never does. */
#ifndef LPX_RUNTIME_PARALLEL_H
#define LPX_RUNTIME_PARALLEL_H

#include "vk/vk.h"

/* Calls task(user, 0 … n - 1), each once and in any order, from this thread and others, and returns when all are done.
 * Tasks call nothing of the host. It cannot fail: where threads can't be had, this one does everything. */
void lpx_parallel_for_each(uint32_t n, lpx_task_fn task, void *user);

#endif
