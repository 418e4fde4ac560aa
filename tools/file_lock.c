/* file_lock.c: the system's own locks, which end with the process. */
#if !defined(_WIN32)
#define _DEFAULT_SOURCE
#endif
#include "file_lock.h"

#if defined(_WIN32)
#include <io.h>
#include <windows.h>

/* A byte beyond any content: what is locked can't be read through another handle. */
bool file_lock(FILE *file) {
  OVERLAPPED at = {.OffsetHigh = 0x7fffffff};
  const HANDLE handle = (HANDLE)_get_osfhandle(_fileno(file));
  return LockFileEx(handle, LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at);
}
#else
#include <errno.h>
#include <sys/file.h>

/* File systems without locks are taken at their word that nobody else is there. */
bool file_lock(FILE *file) {
  return flock(fileno(file), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}
#endif
