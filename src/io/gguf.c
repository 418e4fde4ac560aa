/* gguf.c: parses metadata and tensor list. Every count is held against the bytes that are left in the file
 * before memory is taken for it, so a damaged file cannot ask for more than a small multiple of its own size.
 */
#include "io/gguf.h"

#include "io/gguf_value.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_ALIGNMENT 32
#define MAX_NAME_BYTES    65535 /* the format's limit for keys */

/* Least bytes that an entry takes: lengths and types alone. */
#define MIN_PAIR_BYTES   (8 + 1 + 4 + 1)
#define MIN_TENSOR_BYTES (8 + 1 + 4 + 8 + 4 + 8)

static const struct {
  const char *name;
  uint32_t bytes;
} value_types[LPX_GGUF_N_TYPES] = {
    [LPX_GGUF_U8] = {"u8", 1},       [LPX_GGUF_I8] = {"i8", 1},     [LPX_GGUF_U16] = {"u16", 2},
    [LPX_GGUF_I16] = {"i16", 2},     [LPX_GGUF_U32] = {"u32", 4},   [LPX_GGUF_I32] = {"i32", 4},
    [LPX_GGUF_F32] = {"f32", 4},     [LPX_GGUF_BOOL] = {"bool", 1}, [LPX_GGUF_STRING] = {"string", 0},
    [LPX_GGUF_ARRAY] = {"array", 0}, [LPX_GGUF_U64] = {"u64", 8},   [LPX_GGUF_I64] = {"i64", 8},
    [LPX_GGUF_F64] = {"f64", 8},
};

static const char *const ggml_types[] = {
    [0] = "F32",     [1] = "F16",    [2] = "Q4_0",     [3] = "Q4_1",    [6] = "Q5_0",     [7] = "Q5_1",
    [8] = "Q8_0",    [9] = "Q8_1",   [10] = "Q2_K",    [11] = "Q3_K",   [12] = "Q4_K",    [13] = "Q5_K",
    [14] = "Q6_K",   [15] = "Q8_K",  [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S",
    [20] = "IQ4_NL", [21] = "IQ3_S", [22] = "IQ2_S",   [23] = "IQ4_XS", [24] = "I8",      [25] = "I16",
    [26] = "I32",    [27] = "I64",   [28] = "F64",     [29] = "IQ1_M",  [30] = "BF16",    [34] = "TQ1_0",
    [35] = "TQ2_0",  [39] = "MXFP4",
};

const char *lpx_ggml_type_name(uint32_t ggml_type) {
  if (ggml_type >= sizeof ggml_types / sizeof *ggml_types || !ggml_types[ggml_type]) return "?";
  return ggml_types[ggml_type];
}

const char *lpx_gguf_type_name(uint32_t type) {
  return type < LPX_GGUF_N_TYPES ? value_types[type].name : "?";
}

static laprox_dtype dtype_of(uint32_t ggml_type) {
  switch (ggml_type) {
  case 0:
    return LAPROX_DTYPE_F32;
  case 1:
    return LAPROX_DTYPE_F16;
  case 8:
    return LAPROX_DTYPE_Q8_0;
  case 30:
    return LAPROX_DTYPE_BF16;
  default:
    return LAPROX_DTYPE_AUTO;
  }
}

/* ---- reading on ---- */

static uint64_t bytes_left(const lpx_gguf *gguf) {
  return gguf->file.size_bytes - gguf->at;
}

static laprox_result read_bytes(lpx_gguf *gguf, size_t bytes, void *to, const char *what) {
  laprox_result result = lpx_file_read(&gguf->file, gguf->at, bytes, to, what);
  if (result == LAPROX_OK) gguf->at += bytes;
  return result;
}

static laprox_result read_number(lpx_gguf *gguf, uint32_t bytes, uint64_t *out, const char *what) {
  uint8_t raw[8] = {0};
  laprox_result result = read_bytes(gguf, bytes, raw, what);
  *out = 0;
  for (size_t i = 8; i-- > 0;) *out = *out << 8 | raw[i];
  return result;
}

static laprox_result read_u32(lpx_gguf *gguf, uint32_t *out, const char *what) {
  uint64_t number;
  laprox_result result = read_number(gguf, 4, &number, what);
  *out = (uint32_t)number;
  return result;
}

/* A count of things that take at least `least_bytes` each. */
static laprox_result read_count(lpx_gguf *gguf, uint64_t least_bytes, uint64_t *out, const char *what) {
  laprox_result result = read_number(gguf, 8, out, what);
  if (result == LAPROX_OK && (*out > bytes_left(gguf) / least_bytes || *out > SIZE_MAX / 64)) {
    result = lpx_fail(&gguf->file.host, LAPROX_ERROR_FORMAT,
                      "%s: %s: %" PRIu64 " is more than the %" PRIu64 " bytes left can hold", gguf->file.path,
                      what, *out, bytes_left(gguf));
  }
  return result;
}

/* Length and bytes of a string, into memory of its own with a zero byte behind. */
static laprox_result read_string(lpx_gguf *gguf, lpx_gguf_string *out, const char *what) {
  uint64_t bytes;
  *out = (lpx_gguf_string){0};
  laprox_result result = read_count(gguf, 1, &bytes, what);
  if (result != LAPROX_OK) return result;
  char *data = lpx_allocate(&gguf->file.host, (size_t)bytes + 1, 1);
  if (!data) return lpx_fail_memory(&gguf->file.host, what);
  *out = (lpx_gguf_string){data, (size_t)bytes};
  return read_bytes(gguf, (size_t)bytes, data, what);
}

/* A key or a tensor's name: not empty, no zero bytes. *out is set even on failure, for the destructor. */
static laprox_result read_name(lpx_gguf *gguf, char **out, const char *what) {
  lpx_gguf_string string;
  laprox_result result = read_string(gguf, &string, what);
  *out = (char *)(uintptr_t)string.data;
  if (result != LAPROX_OK) return result;
  if (string.bytes == 0 || string.bytes > MAX_NAME_BYTES || memchr(string.data, 0, string.bytes)) {
    return lpx_fail(&gguf->file.host, LAPROX_ERROR_FORMAT,
                    "%s: %s of %zu bytes at offset %" PRIu64 " is empty, too long or has a zero byte",
                    gguf->file.path, what, string.bytes, gguf->at - string.bytes);
  }
  return LAPROX_OK;
}

/* ---- metadata ---- */

/* Strings of an array: one block for all bytes, since a vocabulary has 100,000 of them. */
static laprox_result read_strings(lpx_gguf *gguf, lpx_gguf_value *value) {
  const laprox_host *host = &gguf->file.host;
  size_t used = 0, capacity = 0;
  laprox_result result;
  value->strings = lpx_allocate(host, value->count, sizeof *value->strings);
  if (!value->strings) return lpx_fail_memory(host, value->key);
  for (size_t i = 0; i < value->count; i++) {
    uint64_t bytes;
    if ((result = read_count(gguf, 1, &bytes, value->key)) != LAPROX_OK) return result;
    size_t needed = used + (size_t)bytes + 1;
    if (needed > capacity) {
      capacity = needed + needed / 2;
      char *grown = lpx_reallocate(host, value->data, capacity, 1);
      if (!grown) return lpx_fail_memory(host, value->key);
      value->data = grown;
    }
    char *data = (char *)value->data + used;
    if ((result = read_bytes(gguf, (size_t)bytes, data, value->key)) != LAPROX_OK) return result;
    data[bytes] = '\0';
    value->strings[i].bytes = (size_t)bytes;
    used = needed;
  }
  const char *data = value->data;
  for (size_t i = 0; i < value->count; i++) {
    value->strings[i].data = data;
    data += value->strings[i].bytes + 1;
  }
  return LAPROX_OK;
}

static laprox_result read_elements(lpx_gguf *gguf, lpx_gguf_value *value) {
  uint64_t count;
  laprox_result result = read_u32(gguf, &value->element_type, value->key);
  if (result != LAPROX_OK) return result;
  if (value->element_type >= LPX_GGUF_N_TYPES || value->element_type == LPX_GGUF_ARRAY) {
    return lpx_fail(&gguf->file.host, LAPROX_ERROR_FORMAT, "%s: metadata '%s': array of unknown type %u",
                    gguf->file.path, value->key, value->element_type);
  }
  uint32_t bytes = value_types[value->element_type].bytes;
  if ((result = read_count(gguf, bytes ? bytes : 8, &count, value->key)) != LAPROX_OK) return result;
  value->count = (size_t)count;
  if (value->element_type == LPX_GGUF_STRING) return read_strings(gguf, value);
  value->data = lpx_allocate(&gguf->file.host, value->count, bytes);
  if (!value->data) return lpx_fail_memory(&gguf->file.host, value->key);
  return read_bytes(gguf, value->count * bytes, value->data, value->key);
}

static laprox_result read_pair(lpx_gguf *gguf, lpx_gguf_value *value) {
  laprox_result result = read_name(gguf, &value->key, "a metadata key");
  if (result != LAPROX_OK) return result;
  if ((result = read_u32(gguf, &value->type, value->key)) != LAPROX_OK) return result;
  switch (value->type) {
  case LPX_GGUF_ARRAY:
    return read_elements(gguf, value);
  case LPX_GGUF_STRING:
    value->strings = lpx_allocate(&gguf->file.host, 1, sizeof *value->strings);
    if (!value->strings) return lpx_fail_memory(&gguf->file.host, value->key);
    result = read_string(gguf, value->strings, value->key);
    value->data = (void *)(uintptr_t)value->strings->data;
    return result;
  default:
    break;
  }
  if (value->type >= LPX_GGUF_N_TYPES) {
    return lpx_fail(&gguf->file.host, LAPROX_ERROR_FORMAT, "%s: metadata '%s' has unknown type %u",
                    gguf->file.path, value->key, value->type);
  }
  result = read_number(gguf, value_types[value->type].bytes, &value->bits, value->key);
  if (result == LAPROX_OK && value->type == LPX_GGUF_BOOL && value->bits > 1) {
    return lpx_fail(&gguf->file.host, LAPROX_ERROR_FORMAT, "%s: metadata '%s': bool of value %" PRIu64,
                    gguf->file.path, value->key, value->bits);
  }
  return result;
}

static int by_key(const void *left, const void *right) {
  const lpx_gguf_value *a = left, *b = right;
  return strcmp(a->key, b->key);
}

static laprox_result read_metadata(lpx_gguf *gguf, size_t count) {
  gguf->values = lpx_allocate(&gguf->file.host, count, sizeof *gguf->values);
  if (!gguf->values) return lpx_fail_memory(&gguf->file.host, "metadata");
  for (size_t i = 0; i < count; i++) {
    gguf->n_values = i + 1;
    laprox_result result = read_pair(gguf, &gguf->values[i]);
    if (result != LAPROX_OK) return result;
  }
  qsort(gguf->values, count, sizeof *gguf->values, by_key);
  for (size_t i = 1; i < count; i++) {
    if (by_key(&gguf->values[i - 1], &gguf->values[i]) != 0) continue;
    return lpx_fail(&gguf->file.host, LAPROX_ERROR_FORMAT, "%s: metadata '%s' occurs twice", gguf->file.path,
                    gguf->values[i].key);
  }
  return LAPROX_OK;
}

const lpx_gguf_value *lpx_gguf_value_of(const lpx_gguf *file, const char *key) {
  lpx_gguf_value wanted = {.key = (char *)(uintptr_t)key};
  if (file->n_values == 0) return NULL;
  return bsearch(&wanted, file->values, file->n_values, sizeof wanted, by_key);
}

/* ---- tensors ---- */

static laprox_result fail_tensor(const lpx_gguf *gguf, const lpx_gguf_tensor *tensor, const char *problem,
                                 uint64_t value) {
  return lpx_fail(&gguf->file.host, LAPROX_ERROR_FORMAT, "%s: tensor '%s': %s (%" PRIu64 ")", gguf->file.path,
                  tensor->name, problem, value);
}

static laprox_result read_dims(lpx_gguf *gguf, lpx_gguf_tensor *tensor) {
  laprox_result result = read_u32(gguf, &tensor->n_dims, tensor->name);
  if (result != LAPROX_OK) return result;
  if (tensor->n_dims > LPX_GGUF_MAX_DIMS)
    return fail_tensor(gguf, tensor, "more than 4 dimensions", tensor->n_dims);
  for (uint32_t i = 0; i < LPX_GGUF_MAX_DIMS; i++) {
    tensor->dims[i] = 1;
    if (i >= tensor->n_dims) continue;
    if ((result = read_number(gguf, 8, &tensor->dims[i], tensor->name)) != LAPROX_OK) return result;
    if (tensor->dims[i] == 0) return fail_tensor(gguf, tensor, "a dimension of 0", i);
  }
  if (!lpx_product(tensor->dims, LPX_GGUF_MAX_DIMS, &tensor->n_elements)) {
    return fail_tensor(gguf, tensor, "its dimensions' product does not fit 64 bits, the first is",
                       tensor->dims[0]);
  }
  return LAPROX_OK;
}

static laprox_result read_tensor(lpx_gguf *gguf, lpx_gguf_tensor *tensor) {
  char *name;
  laprox_result result = read_name(gguf, &name, "a tensor's name");
  tensor->name = name;
  if (result != LAPROX_OK) return result;
  if ((result = read_dims(gguf, tensor)) != LAPROX_OK) return result;
  if ((result = read_u32(gguf, &tensor->ggml_type, name)) != LAPROX_OK) return result;
  if ((result = read_number(gguf, 8, &tensor->offset, name)) != LAPROX_OK) return result;
  tensor->dtype = dtype_of(tensor->ggml_type);
  if (tensor->dtype == LAPROX_DTYPE_AUTO) return LAPROX_OK;
  if (tensor->dtype == LAPROX_DTYPE_Q8_0 && tensor->dims[0] % 32 != 0) {
    return fail_tensor(gguf, tensor, "Q8_0 rows must be a multiple of 32 long", tensor->dims[0]);
  }
  if (tensor->n_elements <= SIZE_MAX)
    tensor->bytes = laprox_dtype_bytes(tensor->dtype, (size_t)tensor->n_elements);
  if (tensor->bytes == 0) return fail_tensor(gguf, tensor, "too many elements", tensor->n_elements);
  return LAPROX_OK;
}

static int by_name(const void *left, const void *right) {
  const lpx_gguf_tensor *a = left, *b = right;
  return strcmp(a->name, b->name);
}

static int by_offset(const void *left, const void *right) {
  const lpx_gguf_tensor *a = left, *b = right;
  return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static laprox_result data_alignment(const lpx_gguf *gguf, uint32_t *out) {
  *out = DEFAULT_ALIGNMENT;
  laprox_result result = lpx_gguf_get_u32(gguf, "general.alignment", LPX_GGUF_OPTIONAL, out);
  if (result == LAPROX_OK && (*out == 0 || (*out & (*out - 1)) != 0)) {
    return lpx_fail(&gguf->file.host, LAPROX_ERROR_FORMAT, "%s: general.alignment %u is not a power of two",
                    gguf->file.path, *out);
  }
  return result;
}

/* Turns offsets into absolute ones, once the end of the tensor list is known. */
static laprox_result place_tensors(lpx_gguf *gguf) {
  uint32_t alignment;
  uint64_t end = 0, size = gguf->file.size_bytes;
  laprox_result result = data_alignment(gguf, &alignment);
  if (result != LAPROX_OK) return result;
  uint64_t data = (gguf->at + alignment - 1) & ~(uint64_t)(alignment - 1);
  qsort(gguf->tensors, gguf->n_tensors, sizeof *gguf->tensors, by_offset);
  for (size_t i = 0; i < gguf->n_tensors; i++) {
    lpx_gguf_tensor *tensor = &gguf->tensors[i];
    if (tensor->offset % alignment != 0)
      return fail_tensor(gguf, tensor, "its offset is not aligned", tensor->offset);
    if (data > size || tensor->offset > size - data || tensor->bytes > size - data - tensor->offset) {
      return fail_tensor(gguf, tensor, "its data reaches beyond the end of the file, from offset",
                         tensor->offset);
    }
    if (tensor->offset < end)
      return fail_tensor(gguf, tensor, "its data overlaps another's, at", tensor->offset);
    end = tensor->offset + tensor->bytes;
    tensor->offset += data;
  }
  qsort(gguf->tensors, gguf->n_tensors, sizeof *gguf->tensors, by_name);
  for (size_t i = 1; i < gguf->n_tensors; i++) {
    if (by_name(&gguf->tensors[i - 1], &gguf->tensors[i]) == 0) {
      return fail_tensor(gguf, &gguf->tensors[i], "it occurs twice, at", gguf->tensors[i].offset);
    }
  }
  return LAPROX_OK;
}

static laprox_result read_tensors(lpx_gguf *gguf, size_t count) {
  gguf->tensors = lpx_allocate(&gguf->file.host, count, sizeof *gguf->tensors);
  if (!gguf->tensors) return lpx_fail_memory(&gguf->file.host, "a list of tensors");
  for (size_t i = 0; i < count; i++) {
    gguf->n_tensors = i + 1;
    laprox_result result = read_tensor(gguf, &gguf->tensors[i]);
    if (result != LAPROX_OK) return result;
  }
  return place_tensors(gguf);
}

/* ---- the file ---- */

static laprox_result read_file(lpx_gguf *gguf) {
  uint8_t magic[4];
  uint32_t version;
  uint64_t n_tensors, n_values;
  laprox_result result = read_bytes(gguf, sizeof magic, magic, "the magic");
  if (result != LAPROX_OK) return result;
  if (memcmp(magic, "GGUF", 4) != 0) {
    return lpx_fail(&gguf->file.host, LAPROX_ERROR_FORMAT,
                    "%s: not a GGUF file: it begins with bytes %02x %02x %02x %02x", gguf->file.path,
                    magic[0], magic[1], magic[2], magic[3]);
  }
  if ((result = read_u32(gguf, &version, "the version")) != LAPROX_OK) return result;
  if (version != 2 && version != 3) {
    return lpx_fail(&gguf->file.host, LAPROX_ERROR_UNSUPPORTED,
                    "%s: GGUF version %u%s, only 2 and 3 can be read", gguf->file.path, version,
                    (version & 0xffff) == 0 ? " (or a big-endian file)" : "");
  }
  if ((result = read_count(gguf, MIN_TENSOR_BYTES, &n_tensors, "the number of tensors")) != LAPROX_OK)
    return result;
  if ((result = read_count(gguf, MIN_PAIR_BYTES, &n_values, "the number of metadata pairs")) != LAPROX_OK) {
    return result;
  }
  if ((result = read_metadata(gguf, (size_t)n_values)) != LAPROX_OK) return result;
  return read_tensors(gguf, (size_t)n_tensors);
}

laprox_result lpx_gguf_open(const laprox_host *host, const char *path, lpx_gguf **out) {
  *out = NULL;
  lpx_gguf *gguf = lpx_allocate(host, 1, sizeof *gguf);
  if (!gguf) return lpx_fail_memory(host, "a GGUF file");
  laprox_result result = lpx_file_open(host, path, &gguf->file);
  if (result != LAPROX_OK) {
    lpx_release(host, gguf);
    return result;
  }
  if ((result = read_file(gguf)) != LAPROX_OK) {
    lpx_gguf_close(gguf);
    return result;
  }
  *out = gguf;
  return LAPROX_OK;
}

void lpx_gguf_close(lpx_gguf *file) {
  if (!file) return;
  laprox_host host = file->file.host;
  for (size_t i = 0; i < file->n_values; i++) {
    lpx_release(&host, file->values[i].key);
    lpx_release(&host, file->values[i].data);
    lpx_release(&host, file->values[i].strings);
  }
  for (size_t i = 0; i < file->n_tensors; i++) lpx_release(&host, (void *)(uintptr_t)file->tensors[i].name);
  lpx_release(&host, file->values);
  lpx_release(&host, file->tensors);
  lpx_file_close(&file->file);
  lpx_release(&host, file);
}

const char *lpx_gguf_path(const lpx_gguf *file) {
  return file->file.path;
}

size_t lpx_gguf_count(const lpx_gguf *file) {
  return file->n_tensors;
}

const lpx_gguf_tensor *lpx_gguf_tensor_at(const lpx_gguf *file, size_t index) {
  return index < file->n_tensors ? &file->tensors[index] : NULL;
}

const lpx_gguf_tensor *lpx_gguf_find(const lpx_gguf *file, const char *name) {
  lpx_gguf_tensor key = {.name = name};
  if (file->n_tensors == 0) return NULL;
  return bsearch(&key, file->tensors, file->n_tensors, sizeof key, by_name);
}

laprox_result lpx_gguf_get(const lpx_gguf *file, const char *name, const lpx_gguf_tensor **out) {
  *out = NULL;
  const lpx_gguf_tensor *tensor = lpx_gguf_find(file, name);
  if (!tensor) {
    return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT, "%s: tensor '%s' is missing", file->file.path,
                    name);
  }
  if (tensor->dtype == LAPROX_DTYPE_AUTO) {
    return lpx_fail(
        &file->file.host, LAPROX_ERROR_UNSUPPORTED,
        "%s: tensor '%s': unknown quantisation %s (type %u), only F32, F16, BF16 and Q8_0 can be read",
        file->file.path, name, lpx_ggml_type_name(tensor->ggml_type), tensor->ggml_type);
  }
  *out = tensor;
  return LAPROX_OK;
}

laprox_result lpx_gguf_read(lpx_gguf *file, const lpx_gguf_tensor *tensor, uint64_t offset, size_t bytes,
                            void *to) {
  if (offset > tensor->bytes || bytes > tensor->bytes - offset) {
    return lpx_fail(&file->file.host, LAPROX_ERROR_INVALID_ARGUMENT,
                    "%s: tensor '%s': %zu bytes at %" PRIu64 " are not within its %" PRIu64, file->file.path,
                    tensor->name, bytes, offset, tensor->bytes);
  }
  return lpx_file_read(&file->file, tensor->offset + offset, bytes, to, tensor->name);
}

laprox_result lpx_gguf_read_all(lpx_gguf *file, const lpx_gguf_tensor *tensor, void *to) {
  return lpx_gguf_read(file, tensor, 0, (size_t)tensor->bytes, to);
}
