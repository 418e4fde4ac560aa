/* cache_directory.h: where the user's system wants files that can be made again. */
#ifndef TOOLS_CACHE_DIRECTORY_H
#define TOOLS_CACHE_DIRECTORY_H

#include <stddef.h>

/* laprox's directory there, made if need be: $XDG_CACHE_HOME or ~/.cache, on Windows %LOCALAPPDATA%. NULL where there is
 * none and none can be made. */
const char *cache_directory(char *path, size_t size);

#endif
