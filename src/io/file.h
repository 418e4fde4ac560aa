/* file.h: a file that is read at 64-bit offsets with no more memory than asked for, and one that appears
 * whole or not at all. */
#ifndef LPX_FILE_H
#define LPX_FILE_H

#include "core/core.h"

#include <stdio.h>

/* An open file and what its failures are reported with. Zeroed = closed. One thread at a time. */
typedef struct lpx_file {
  laprox_host host; /* complete */
  char *path;
  FILE *stream;
  uint64_t size_bytes, position;
} lpx_file;

laprox_result lpx_file_open(const laprox_host *host, const char *path, lpx_file *out);
void lpx_file_close(lpx_file *file);

/* Reads bytes [offset, offset + bytes). Beyond the end is LAPROX_ERROR_FORMAT: the file is shorter than it
   claims. `what` names what was to be read. */
laprox_result lpx_file_read(lpx_file *file, uint64_t offset, size_t bytes, void *to, const char *what);

/* A file under construction beside its final path. Zeroed = nothing. */
typedef struct lpx_output {
  laprox_host host;
  char *path, *temporary_path;
  FILE *stream;
} lpx_output;

/* Fails where the path is something other than a regular file, or where no file can be created beside it. */
laprox_result lpx_output_open(const laprox_host *host, const char *path, lpx_output *out);
laprox_result lpx_output_write(lpx_output *output, const void *data, size_t bytes);
/* Puts the file in place of whatever was at the path. */
laprox_result lpx_output_commit(lpx_output *output);
/* Without a successful commit before: removes what was written. */
void lpx_output_close(lpx_output *output);

/* A copy in the host's memory, NULL when there is none. */
char *lpx_copy_string(const laprox_host *host, const char *text);
/* The product of n numbers, false on overflow. */
bool lpx_product(const uint64_t *numbers, uint32_t n, uint64_t *out);

#endif
