/* cache_directory.c: the user's cache directory. */
#include "cache_directory.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#ifdef _WIN32
#include <direct.h>
#define make_directory(path) _mkdir(path)
#else
#define make_directory(path) mkdir(path, 0700)
#endif

static bool is_directory(const char *path) {
  struct stat found;
  return stat(path, &found) == 0 && S_ISDIR(found.st_mode);
}

/* Makes every directory on the way. */
static bool make_all(char *path) {
  for (char *end = path + 1; *end; end++) {
    if (*end != '/') continue;
    *end = 0;
    (void)make_directory(path);
    *end = '/';
  }
  return make_directory(path) == 0 || is_directory(path);
}

const char *cache_directory(char *path, size_t size) {
#ifdef _WIN32
  const char *base = getenv("LOCALAPPDATA"), *below = "/laprox/cache";
#else
  const char *base = getenv("XDG_CACHE_HOME"), *below = "/laprox";
  if (!base || base[0] != '/') {
    base = getenv("HOME");
    below = "/.cache/laprox";
  }
#endif
  if (!base || !*base || strlen(base) + strlen(below) >= size) return NULL;
  (void)snprintf(path, size, "%s%s", base, below);
  return make_all(path) ? path : NULL;
}
