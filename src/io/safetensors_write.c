/* safetensors_write.c: the writer. The header comes first in the file, so every tensor is declared before any
 * data. */
#include "io/file.h"
#include "io/safetensors.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define METADATA_KEY "__metadata__"

struct lpx_st_writer {
  lpx_output output;
  json_t *header;
  uint64_t declared_bytes, written_bytes;
  bool header_written, failed;
};

static const char *dtype_name(lpx_st_dtype dtype) {
  return dtype == LPX_ST_I32 ? "I32" : dtype == LPX_ST_U8 ? "U8" : laprox_dtype_name(lpx_st_to_dtype(dtype));
}

laprox_result lpx_st_writer_create(const laprox_host *host, const char *path, lpx_st_writer **out) {
  laprox_result result;
  *out = NULL;
  lpx_st_writer *writer = lpx_allocate(host, 1, sizeof *writer);
  if (!writer) return lpx_fail_memory(host, "a safetensors writer");
  if ((result = lpx_output_open(host, path, &writer->output)) != LAPROX_OK) {
    lpx_release(host, writer);
    return result;
  }
  writer->header = json_object();
  if (!writer->header) {
    lpx_st_writer_destroy(writer);
    return lpx_fail_memory(host, "a safetensors header");
  }
  *out = writer;
  return LAPROX_OK;
}

void lpx_st_writer_destroy(lpx_st_writer *writer) {
  if (!writer) return;
  laprox_host host = writer->output.host;
  json_decref(writer->header);
  lpx_output_close(&writer->output);
  lpx_release(&host, writer);
}

static laprox_result fail_writer(lpx_st_writer *writer, laprox_result result, const char *name,
                                 const char *problem) {
  writer->failed = true;
  return lpx_fail(&writer->output.host, result, "%s: '%s': %s", writer->output.path, name, problem);
}

laprox_result lpx_st_writer_metadata(lpx_st_writer *writer, const char *key, const char *value) {
  if (writer->header_written) {
    return fail_writer(writer, LAPROX_ERROR_INVALID_ARGUMENT, key, "metadata after the first data");
  }
  json_t *metadata = json_object_get(writer->header, METADATA_KEY);
  if (!metadata) {
    metadata = json_object();
    if (json_object_set_new(writer->header, METADATA_KEY, metadata) != 0) {
      return fail_writer(writer, LAPROX_ERROR_OUT_OF_MEMORY, key, "out of memory for metadata");
    }
  }
  if (json_object_get(metadata, key)) {
    return fail_writer(writer, LAPROX_ERROR_INVALID_ARGUMENT, key, "metadata given twice");
  }
  if (json_object_set_new(metadata, key, json_string(value)) != 0) {
    return fail_writer(writer, LAPROX_ERROR_INVALID_ARGUMENT, key, "metadata that is not UTF-8");
  }
  return LAPROX_OK;
}

static json_t *describe(lpx_st_dtype dtype, uint32_t n_dims, const uint64_t *dims, uint64_t begin,
                        uint64_t end) {
  json_t *shape = json_array();
  for (uint32_t i = 0; i < n_dims; i++) json_array_append_new(shape, json_integer((json_int_t)dims[i]));
  return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(dtype), "shape", shape, "data_offsets",
                   (json_int_t)begin, (json_int_t)end);
}

laprox_result lpx_st_writer_declare(lpx_st_writer *writer, const char *name, lpx_st_dtype dtype,
                                    uint32_t n_dims, const uint64_t *dims) {
  const uint64_t element_bytes = dtype == LPX_ST_F32 || dtype == LPX_ST_I32 ? 4 : dtype == LPX_ST_U8 ? 1 : 2;
  uint64_t n_elements, bytes;
  if (writer->header_written) {
    return fail_writer(writer, LAPROX_ERROR_INVALID_ARGUMENT, name, "declared after the first data");
  }
  if (strcmp(name, METADATA_KEY) == 0 || json_object_get(writer->header, name)) {
    return fail_writer(writer, LAPROX_ERROR_INVALID_ARGUMENT, name, "declared twice, or a reserved name");
  }
  if (dtype < LPX_ST_F32 || dtype > LPX_ST_U8 || n_dims > LPX_ST_MAX_DIMS) {
    return fail_writer(writer, LAPROX_ERROR_INVALID_ARGUMENT, name, "unknown type or more than 8 dimensions");
  }
  for (uint32_t i = 0; i < n_dims; i++) {
    if (dims[i] > INT64_MAX)
      return fail_writer(writer, LAPROX_ERROR_INVALID_ARGUMENT, name, "a dimension over 63 bits");
  }
  if (!lpx_product(dims, n_dims, &n_elements) || n_elements > UINT64_MAX / element_bytes) {
    return fail_writer(writer, LAPROX_ERROR_INVALID_ARGUMENT, name, "its size does not fit 64 bits");
  }
  bytes = n_elements * element_bytes;
  if (bytes > INT64_MAX - writer->declared_bytes) {
    return fail_writer(writer, LAPROX_ERROR_INVALID_ARGUMENT, name, "the file's size would not fit 63 bits");
  }
  uint64_t end = writer->declared_bytes + bytes;
  if (json_object_set_new(writer->header, name, describe(dtype, n_dims, dims, writer->declared_bytes, end)) !=
      0) {
    return fail_writer(writer, LAPROX_ERROR_INVALID_ARGUMENT, name,
                       "the name is not UTF-8, or memory is short");
  }
  writer->declared_bytes = end;
  return LAPROX_OK;
}

static laprox_result write_header(lpx_st_writer *writer) {
  uint8_t length_bytes[8];
  /* objects keep the order of insertion, so equal calls give equal bytes */
  char *text = json_dumps(writer->header, JSON_COMPACT);
  if (!text) return lpx_fail_memory(&writer->output.host, "a safetensors header");
  size_t length = strlen(text), padding = (8 - length % 8) % 8;
  for (size_t i = 0; i < 8; i++) length_bytes[i] = (uint8_t)((uint64_t)(length + padding) >> 8 * i);
  laprox_result result = lpx_output_write(&writer->output, length_bytes, sizeof length_bytes);
  if (result == LAPROX_OK) result = lpx_output_write(&writer->output, text, length);
  if (result == LAPROX_OK) result = lpx_output_write(&writer->output, "        ", padding);
  free(text);
  writer->header_written = true;
  return result;
}

laprox_result lpx_st_writer_write(lpx_st_writer *writer, const void *data, size_t bytes) {
  laprox_result result = LAPROX_OK;
  if (bytes > writer->declared_bytes - writer->written_bytes) {
    writer->failed = true;
    return lpx_fail(&writer->output.host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "%s: %zu bytes of data more after %" PRIu64 ", only %" PRIu64 " were declared",
                    writer->output.path, bytes, writer->written_bytes, writer->declared_bytes);
  }
  if (!writer->header_written) result = write_header(writer);
  if (result == LAPROX_OK) result = lpx_output_write(&writer->output, data, bytes);
  if (result != LAPROX_OK) {
    writer->failed = true;
    return result;
  }
  writer->written_bytes += bytes;
  return LAPROX_OK;
}

laprox_result lpx_st_writer_commit(lpx_st_writer *writer) {
  if (writer->failed || !writer->output.stream) {
    return lpx_fail(&writer->output.host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "%s: cannot be completed: an earlier call failed or it is complete already",
                    writer->output.path);
  }
  if (writer->written_bytes != writer->declared_bytes) {
    writer->failed = true;
    return lpx_fail(&writer->output.host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "%s: %" PRIu64 " bytes of data were written, %" PRIu64 " declared", writer->output.path,
                    writer->written_bytes, writer->declared_bytes);
  }
  if (!writer->header_written) {
    laprox_result result = write_header(writer);
    if (result != LAPROX_OK) return result;
  }
  return lpx_output_commit(&writer->output);
}
