/* safetensors.c: the reader. An 8-byte little-endian length, a JSON header, then the tensors' data without
 * gaps. */
#include "io/safetensors.h"

#include "io/file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* A model of 10,000 tensors has 1 MB; parsed JSON takes many times its text's memory. */
#define MAX_HEADER_BYTES (16u << 20)
#define METADATA_KEY     "__metadata__"

struct lpx_safetensors {
  lpx_file file;
  json_t *header; /* owns names and metadata */
  lpx_st_tensor *tensors;
  size_t n_tensors;
  uint64_t data_offset;
};

typedef struct dtype_row {
  const char *name;
  uint32_t bytes;
  lpx_st_dtype dtype;
} dtype_row;

/* Types without a lpx_st_dtype are here for their size. */
static const dtype_row dtypes[] = {
    {"F32", 4, LPX_ST_F32},         {"F16", 2, LPX_ST_F16},      {"BF16", 2, LPX_ST_BF16},
    {"I32", 4, LPX_ST_I32},         {"BOOL", 1, LPX_ST_UNKNOWN}, {"U8", 1, LPX_ST_U8},
    {"I8", 1, LPX_ST_UNKNOWN},      {"I16", 2, LPX_ST_UNKNOWN},  {"U16", 2, LPX_ST_UNKNOWN},
    {"U32", 4, LPX_ST_UNKNOWN},     {"I64", 8, LPX_ST_UNKNOWN},  {"U64", 8, LPX_ST_UNKNOWN},
    {"F64", 8, LPX_ST_UNKNOWN},     {"C64", 8, LPX_ST_UNKNOWN},  {"F8_E4M3", 1, LPX_ST_UNKNOWN},
    {"F8_E5M2", 1, LPX_ST_UNKNOWN},
};

laprox_dtype lpx_st_to_dtype(lpx_st_dtype dtype) {
  switch (dtype) {
  case LPX_ST_F32:
    return LAPROX_DTYPE_F32;
  case LPX_ST_F16:
    return LAPROX_DTYPE_F16;
  case LPX_ST_BF16:
    return LAPROX_DTYPE_BF16;
  case LPX_ST_I32:
  case LPX_ST_U8:
  case LPX_ST_UNKNOWN:
    break;
  }
  return LAPROX_DTYPE_AUTO;
}

lpx_st_dtype lpx_st_from_dtype(laprox_dtype dtype) {
  switch (dtype) {
  case LAPROX_DTYPE_F32:
    return LPX_ST_F32;
  case LAPROX_DTYPE_F16:
    return LPX_ST_F16;
  case LAPROX_DTYPE_BF16:
    return LPX_ST_BF16;
  case LAPROX_DTYPE_Q8_0:
  case LAPROX_DTYPE_Q4_0:
  case LAPROX_DTYPE_AUTO:
    break;
  }
  return LPX_ST_UNKNOWN;
}

static laprox_result fail_tensor(const lpx_safetensors *file, const char *name, const char *problem) {
  return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT, "%s: tensor '%s': %s", file->file.path, name,
                  problem);
}

/* A JSON integer that is not negative. */
static bool read_count(const json_t *value, uint64_t *out) {
  if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
  *out = (uint64_t)json_integer_value(value);
  return true;
}

static laprox_result read_shape(const lpx_safetensors *file, const json_t *shape, lpx_st_tensor *tensor) {
  size_t n = json_array_size(shape);
  if (!json_is_array(shape)) return fail_tensor(file, tensor->name, "'shape' is not an array");
  if (n > LPX_ST_MAX_DIMS) {
    return lpx_fail(&file->file.host, LAPROX_ERROR_UNSUPPORTED,
                    "%s: tensor '%s': %zu dimensions, the limit is %d", file->file.path, tensor->name, n,
                    LPX_ST_MAX_DIMS);
  }
  tensor->n_dims = (uint32_t)n;
  for (size_t i = 0; i < n; i++) {
    if (!read_count(json_array_get(shape, i), &tensor->dims[i])) {
      return fail_tensor(file, tensor->name, "a dimension is not a number of 0 or more");
    }
  }
  if (!lpx_product(tensor->dims, tensor->n_dims, &tensor->n_elements)) {
    return fail_tensor(file, tensor->name, "its dimensions' product does not fit 64 bits");
  }
  return LAPROX_OK;
}

/* Sets the type and checks the size where the type is known. */
static laprox_result read_dtype(const lpx_safetensors *file, const char *name, lpx_st_tensor *tensor) {
  if (!name) return fail_tensor(file, tensor->name, "'dtype' is not a string");
  strncpy(tensor->dtype_name, name, sizeof tensor->dtype_name - 1);
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
    if (strcmp(name, dtypes[i].name) != 0) continue;
    tensor->dtype = dtypes[i].dtype;
    if (tensor->n_elements > UINT64_MAX / dtypes[i].bytes ||
        tensor->n_elements * dtypes[i].bytes != tensor->bytes) {
      return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT,
                      "%s: tensor '%s': %" PRIu64 " elements of %s are not the %" PRIu64
                      " bytes of its data_offsets",
                      file->file.path, tensor->name, tensor->n_elements, name, tensor->bytes);
    }
  }
  return LAPROX_OK;
}

static laprox_result read_tensor(const lpx_safetensors *file, const char *name, const json_t *entry,
                                 lpx_st_tensor *tensor) {
  uint64_t begin, end, limit = file->file.size_bytes - file->data_offset;
  const json_t *offsets = json_object_get(entry, "data_offsets");
  tensor->name = name;
  if (!json_is_object(entry)) return fail_tensor(file, name, "its entry is not an object");
  laprox_result result = read_shape(file, json_object_get(entry, "shape"), tensor);
  if (result != LAPROX_OK) return result;
  if (json_array_size(offsets) != 2 || !read_count(json_array_get(offsets, 0), &begin) ||
      !read_count(json_array_get(offsets, 1), &end)) {
    return fail_tensor(file, name, "'data_offsets' is not an array of two numbers of 0 or more");
  }
  if (begin > end || end > limit) {
    return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT,
                    "%s: tensor '%s': data_offsets %" PRIu64 " to %" PRIu64 " are not within the %" PRIu64
                    " bytes of data that the file has",
                    file->file.path, name, begin, end, limit);
  }
  tensor->offset = file->data_offset + begin;
  tensor->bytes = end - begin;
  return read_dtype(file, json_string_value(json_object_get(entry, "dtype")), tensor);
}

static laprox_result check_metadata(const lpx_safetensors *file, json_t *metadata) {
  const char *key;
  json_t *value;
  if (!json_is_object(metadata)) return fail_tensor(file, METADATA_KEY, "it is not an object");
  json_object_foreach(metadata, key, value) {
    if (!json_is_string(value)) {
      return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT, "%s: metadata '%s' is not a string",
                      file->file.path, key);
    }
  }
  return LAPROX_OK;
}

static int by_offset(const void *left, const void *right) {
  const lpx_st_tensor *a = left, *b = right;
  if (a->offset != b->offset) return a->offset < b->offset ? -1 : 1;
  return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

static int by_name(const void *left, const void *right) {
  const lpx_st_tensor *a = left, *b = right;
  return strcmp(a->name, b->name);
}

/* The format allows neither gaps nor overlaps; a gap is where something hides or is lost. */
static laprox_result check_layout(const lpx_safetensors *file) {
  uint64_t end = file->data_offset;
  for (size_t i = 0; i < file->n_tensors; i++) {
    const lpx_st_tensor *tensor = &file->tensors[i];
    if (tensor->offset != end) {
      return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT,
                      "%s: tensor '%s': its data begins at %" PRIu64 ", but the data before ends at %" PRIu64,
                      file->file.path, tensor->name, tensor->offset - file->data_offset,
                      end - file->data_offset);
    }
    end += tensor->bytes;
  }
  if (end != file->file.size_bytes) {
    return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT,
                    "%s: the file has %" PRIu64 " bytes, but its tensors end at %" PRIu64, file->file.path,
                    file->file.size_bytes, end);
  }
  return LAPROX_OK;
}

static laprox_result read_header(lpx_safetensors *file) {
  uint8_t length_bytes[8];
  uint64_t length = 0;
  laprox_result result =
      lpx_file_read(&file->file, 0, sizeof length_bytes, length_bytes, "the header's length");
  if (result != LAPROX_OK) return result;
  for (size_t i = 8; i-- > 0;) length = length << 8 | length_bytes[i];
  if (length > MAX_HEADER_BYTES) {
    return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT,
                    "%s: not a safetensors file: a header of %" PRIu64 " bytes, the limit is %u",
                    file->file.path, length, MAX_HEADER_BYTES);
  }
  char *text = lpx_allocate(&file->file.host, (size_t)length, 1);
  if (!text) return lpx_fail_memory(&file->file.host, "a safetensors header");
  result = lpx_file_read(&file->file, sizeof length_bytes, (size_t)length, text, "the header");
  if (result == LAPROX_OK) {
    json_error_t error;
    file->header = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(file->header)) {
      result = lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT, "%s: damaged safetensors header: %s",
                        file->file.path, file->header ? "not a JSON object" : error.text);
    }
  }
  lpx_release(&file->file.host, text);
  file->data_offset = sizeof length_bytes + length;
  return result;
}

static laprox_result read_tensors(lpx_safetensors *file) {
  const char *name;
  json_t *entry;
  laprox_result result;
  file->tensors = lpx_allocate(&file->file.host, json_object_size(file->header), sizeof *file->tensors);
  if (!file->tensors) return lpx_fail_memory(&file->file.host, "a list of tensors");
  json_object_foreach(file->header, name, entry) {
    if (strcmp(name, METADATA_KEY) == 0) {
      result = check_metadata(file, entry);
    } else {
      result = read_tensor(file, name, entry, &file->tensors[file->n_tensors++]);
    }
    if (result != LAPROX_OK) return result;
  }
  qsort(file->tensors, file->n_tensors, sizeof *file->tensors, by_offset);
  result = check_layout(file);
  qsort(file->tensors, file->n_tensors, sizeof *file->tensors, by_name);
  return result;
}

laprox_result lpx_safetensors_open(const laprox_host *host, const char *path, lpx_safetensors **out) {
  laprox_result result;
  *out = NULL;
  lpx_safetensors *file = lpx_allocate(host, 1, sizeof *file);
  if (!file) return lpx_fail_memory(host, "a safetensors file");
  file->file.host = lpx_host_complete(host);
  if ((result = lpx_file_open(host, path, &file->file)) != LAPROX_OK) {
    lpx_release(host, file);
    return result;
  }
  if ((result = read_header(file)) != LAPROX_OK) goto fail;
  if ((result = read_tensors(file)) != LAPROX_OK) goto fail;
  *out = file;
  return LAPROX_OK;
fail:
  lpx_safetensors_close(file);
  return result;
}

void lpx_safetensors_close(lpx_safetensors *file) {
  if (!file) return;
  laprox_host host = file->file.host;
  lpx_release(&host, file->tensors);
  json_decref(file->header);
  lpx_file_close(&file->file);
  lpx_release(&host, file);
}

const char *lpx_safetensors_path(const lpx_safetensors *file) {
  return file->file.path;
}

size_t lpx_safetensors_count(const lpx_safetensors *file) {
  return file->n_tensors;
}

const lpx_st_tensor *lpx_safetensors_tensor(const lpx_safetensors *file, size_t index) {
  return index < file->n_tensors ? &file->tensors[index] : NULL;
}

const lpx_st_tensor *lpx_safetensors_find(const lpx_safetensors *file, const char *name) {
  lpx_st_tensor key = {.name = name};
  if (file->n_tensors == 0) return NULL;
  return bsearch(&key, file->tensors, file->n_tensors, sizeof key, by_name);
}

laprox_result lpx_safetensors_get(const lpx_safetensors *file, const char *name, const lpx_st_tensor **out) {
  *out = NULL;
  const lpx_st_tensor *tensor = lpx_safetensors_find(file, name);
  if (!tensor) return fail_tensor(file, name, "missing");
  if (tensor->dtype == LPX_ST_UNKNOWN) {
    return lpx_fail(&file->file.host, LAPROX_ERROR_UNSUPPORTED,
                    "%s: tensor '%s': type %s is not F32, F16, BF16 or I32", file->file.path, name,
                    tensor->dtype_name);
  }
  *out = tensor;
  return LAPROX_OK;
}

const char *lpx_safetensors_metadata(const lpx_safetensors *file, const char *key) {
  return json_string_value(json_object_get(json_object_get(file->header, METADATA_KEY), key));
}

laprox_result lpx_safetensors_read(lpx_safetensors *file, const lpx_st_tensor *tensor, uint64_t offset,
                                   size_t bytes, void *to) {
  if (offset > tensor->bytes || bytes > tensor->bytes - offset) {
    return lpx_fail(&file->file.host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "%s: tensor '%s': %zu bytes at %" PRIu64 " are not within its %" PRIu64, file->file.path,
                    tensor->name, bytes, offset, tensor->bytes);
  }
  return lpx_file_read(&file->file, tensor->offset + offset, bytes, to, tensor->name);
}

laprox_result lpx_safetensors_read_all(lpx_safetensors *file, const lpx_st_tensor *tensor, void *to) {
  return lpx_safetensors_read(file, tensor, 0, (size_t)tensor->bytes, to);
}
