/* file.c: input at 64-bit offsets, output that appears when it is complete. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* fseeko, fdopen, fstat under -std=c11 */
#endif
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif
#ifndef O_BINARY
#define O_BINARY 0
#endif

#define MAX_TEMPORARY_FILES 1000

char *lpx_copy_string(const laprox_host *host, const char *text) {
  size_t bytes = strlen(text) + 1;
  char *copy = lpx_allocate(host, bytes, 1);
  if (copy) memcpy(copy, text, bytes);
  return copy;
}

bool lpx_product(const uint64_t *numbers, uint32_t n, uint64_t *out) {
  uint64_t product = 1;
  for (uint32_t i = 0; i < n; i++) {
    if (numbers[i] != 0 && product > UINT64_MAX / numbers[i]) return false;
    product *= numbers[i];
  }
  *out = product;
  return true;
}

static laprox_result fail_errno(const laprox_host *host, const char *path, const char *what, int error) {
  return lpx_fail(host, LAPROX_ERROR_FILE, "%s: cannot %s: %s", path, what, strerror(error));
}

laprox_result lpx_file_open(const laprox_host *host, const char *path, lpx_file *out) {
  laprox_result result = LAPROX_OK;
  struct stat status;
  lpx_file file = {.host = lpx_host_complete(host)};
  *out = (lpx_file){0};
  file.path = lpx_copy_string(&file.host, path);
  if (!file.path) return lpx_fail_memory(host, "a file's path");
  file.stream = fopen(path, "rb");
  if (!file.stream) {
    result = fail_errno(host, path, "open", errno);
    goto fail;
  }
  if (fstat(fileno(file.stream), &status) != 0) {
    result = fail_errno(host, path, "open", errno);
    goto fail;
  }
  if (!S_ISREG(status.st_mode)) {
    result = lpx_fail(host, LAPROX_ERROR_FILE, "%s: cannot open: not a regular file", path);
    goto fail;
  }
  file.size_bytes = (uint64_t)status.st_size;
  *out = file;
  return LAPROX_OK;
fail:
  lpx_file_close(&file);
  return result;
}

void lpx_file_close(lpx_file *file) {
  if (file->stream) fclose(file->stream);
  lpx_release(&file->host, file->path);
  *file = (lpx_file){0};
}

laprox_result lpx_file_read(lpx_file *file, uint64_t offset, size_t bytes, void *to, const char *what) {
  if (offset > file->size_bytes || bytes > file->size_bytes - offset) {
    return lpx_fail(&file->host, LAPROX_ERROR_FORMAT,
                    "%s: truncated: %s needs %llu bytes at offset %llu, the file has %llu", file->path, what,
                    (unsigned long long)bytes, (unsigned long long)offset,
                    (unsigned long long)file->size_bytes);
  }
  if (bytes == 0) return LAPROX_OK;
  /* a seek throws the stream's buffer away, so reading on is kept free of it */
  if (offset != file->position && fseeko(file->stream, (off_t)offset, SEEK_SET) != 0) {
    file->position = UINT64_MAX;
    return fail_errno(&file->host, file->path, "seek", errno);
  }
  errno = 0;
  if (fread(to, 1, bytes, file->stream) != bytes) {
    int error = errno;
    file->position = UINT64_MAX;
    if (error) return fail_errno(&file->host, file->path, "read", error);
    return lpx_fail(&file->host, LAPROX_ERROR_FILE, "%s: cannot read %s: the file became shorter", file->path,
                    what);
  }
  file->position = offset + bytes;
  return LAPROX_OK;
}

/* Creates a file that did not exist: 0, or an errno. */
static int create_beside(lpx_output *output) {
  size_t length = strlen(output->path) + sizeof ".tmp-000";
  int error = EEXIST;
  for (int i = 0; i < MAX_TEMPORARY_FILES && error == EEXIST; i++) {
    snprintf(output->temporary_path, length, "%s.tmp-%03d", output->path, i);
    int descriptor = open(output->temporary_path, O_WRONLY | O_CREAT | O_EXCL | O_BINARY, 0666);
    error = descriptor < 0 ? errno : 0;
    if (descriptor < 0) continue;
    output->stream = fdopen(descriptor, "wb");
    if (!output->stream) {
      error = errno;
      close(descriptor);
      remove(output->temporary_path);
    }
  }
  return error;
}

laprox_result lpx_output_open(const laprox_host *host, const char *path, lpx_output *out) {
  laprox_result result = LAPROX_OK;
  struct stat status;
  int error;
  lpx_output output = {.host = lpx_host_complete(host)};
  *out = (lpx_output){0};
  if (path[0] == '\0') return lpx_fail(host, LAPROX_ERROR_FILE, "cannot write: the path is empty");
  /* renaming over a device or a directory would replace it or fail only at the very end */
  if (stat(path, &status) == 0 && !S_ISREG(status.st_mode)) {
    return lpx_fail(host, LAPROX_ERROR_FILE, "%s: cannot write: not a regular file", path);
  }
  output.path = lpx_copy_string(&output.host, path);
  output.temporary_path = lpx_allocate(&output.host, strlen(path) + sizeof ".tmp-000", 1);
  if (!output.path || !output.temporary_path) {
    result = lpx_fail_memory(host, "a file's path");
    goto fail;
  }
  error = create_beside(&output);
  if (error) {
    result = fail_errno(host, path, "write", error);
    goto fail;
  }
  *out = output;
  return LAPROX_OK;
fail:
  lpx_output_close(&output);
  return result;
}

laprox_result lpx_output_write(lpx_output *output, const void *data, size_t bytes) {
  if (bytes == 0) return LAPROX_OK;
  if (fwrite(data, 1, bytes, output->stream) != bytes) {
    return fail_errno(&output->host, output->path, "write", errno);
  }
  return LAPROX_OK;
}

laprox_result lpx_output_commit(lpx_output *output) {
  FILE *stream = output->stream;
  bool failed = fflush(stream) != 0 || ferror(stream) != 0;
  int error = errno;
  output->stream = NULL;
  if (fclose(stream) != 0 && !failed) {
    error = errno;
    failed = true;
  }
#ifdef _WIN32
  if (!failed) remove(output->path); /* rename does not replace there */
#endif
  if (!failed && rename(output->temporary_path, output->path) != 0) {
    error = errno;
    failed = true;
  }
  if (failed) {
    remove(output->temporary_path);
    fail_errno(&output->host, output->path, "write", error);
  }
  lpx_release(&output->host, output->temporary_path);
  output->temporary_path = NULL;
  return failed ? LAPROX_ERROR_FILE : LAPROX_OK;
}

void lpx_output_close(lpx_output *output) {
  if (output->stream) {
    fclose(output->stream);
    remove(output->temporary_path);
  }
  lpx_release(&output->host, output->temporary_path);
  lpx_release(&output->host, output->path);
  *output = (lpx_output){0};
}
