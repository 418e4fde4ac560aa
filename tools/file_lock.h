/* file_lock.h: a file for one process at a time. */
#ifndef TOOLS_FILE_LOCK_H
#define TOOLS_FILE_LOCK_H

#include <stdbool.h>
#include <stdio.h>

/* Until the file is closed or the process ends, however it does. False where another process holds it. */
bool file_lock(FILE *file);

#endif
