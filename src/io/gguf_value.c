/* gguf_value.c: typed access to the metadata. */
#include "io/gguf_value.h"

#include <float.h>
#include <inttypes.h>
#include <string.h>

static laprox_result fail_missing(const lpx_gguf *file, const char *key) {
  return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT, "%s: metadata '%s' is missing", file->file.path,
                  key);
}

static laprox_result fail_type(const lpx_gguf *file, const lpx_gguf_value *value, const char *wanted) {
  bool is_array = value->type == LPX_GGUF_ARRAY;
  return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT, "%s: metadata '%s' is %s%s, %s was expected",
                  file->file.path, value->key, is_array ? "an array of " : "",
                  lpx_gguf_type_name(is_array ? value->element_type : value->type), wanted);
}

/* The one way to a key: OK with *out NULL where an optional one is missing. */
static laprox_result look_up(const lpx_gguf *file, const char *key, lpx_gguf_need need,
                             const lpx_gguf_value **out) {
  *out = lpx_gguf_value_of(file, key);
  return *out || need == LPX_GGUF_OPTIONAL ? LAPROX_OK : fail_missing(file, key);
}

/* The bits of an array's, string's or number's type, if it is this one. */
static laprox_result look_up_typed(const lpx_gguf *file, const char *key, lpx_gguf_need need, uint32_t type,
                                   const lpx_gguf_value **out) {
  laprox_result result = look_up(file, key, need, out);
  if (result == LAPROX_OK && *out && (*out)->type != type) {
    result = fail_type(file, *out, lpx_gguf_type_name(type));
  }
  return result;
}

bool lpx_gguf_has(const lpx_gguf *file, const char *key) {
  return lpx_gguf_value_of(file, key) != NULL;
}

/* ---- numbers ---- */

static uint64_t sign_extend(uint64_t bits, uint32_t n_bits) {
  uint64_t sign = UINT64_C(1) << (n_bits - 1);
  return (bits ^ sign) - sign;
}

/* A number of any integer type in two's complement; false for what is no integer. */
static bool integer_of(const lpx_gguf_value *value, bool *is_negative, uint64_t *bits) {
  *bits = value->bits;
  switch (value->type) {
  case LPX_GGUF_U8:
  case LPX_GGUF_U16:
  case LPX_GGUF_U32:
  case LPX_GGUF_U64:
    *is_negative = false;
    return true;
  case LPX_GGUF_I8:
    *bits = sign_extend(value->bits, 8);
    break;
  case LPX_GGUF_I16:
    *bits = sign_extend(value->bits, 16);
    break;
  case LPX_GGUF_I32:
    *bits = sign_extend(value->bits, 32);
    break;
  case LPX_GGUF_I64:
    break;
  default:
    return false;
  }
  *is_negative = *bits >> 63 != 0;
  return true;
}

/* lowest: 0, or the magnitude of the least negative number that is allowed. */
static laprox_result get_integer(const lpx_gguf *file, const char *key, lpx_gguf_need need, uint64_t lowest,
                                 uint64_t highest, bool *found, uint64_t *out) {
  const lpx_gguf_value *value;
  bool is_negative;
  laprox_result result = look_up(file, key, need, &value);
  *found = false;
  if (result != LAPROX_OK || !value) return result;
  if (!integer_of(value, &is_negative, out)) return fail_type(file, value, "an integer");
  uint64_t magnitude = is_negative ? 0 - *out : *out;
  if (magnitude > (is_negative ? lowest : highest)) {
    return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT,
                    "%s: metadata '%s' is %s%" PRIu64 ", the limits are %s%" PRIu64 " and %" PRIu64,
                    file->file.path, key, is_negative ? "-" : "", magnitude, lowest ? "-" : "", lowest,
                    highest);
  }
  *found = true;
  return LAPROX_OK;
}

laprox_result lpx_gguf_get_u32(const lpx_gguf *file, const char *key, lpx_gguf_need need, uint32_t *out) {
  bool found;
  uint64_t bits;
  laprox_result result = get_integer(file, key, need, 0, UINT32_MAX, &found, &bits);
  if (found) *out = (uint32_t)bits;
  return result;
}

laprox_result lpx_gguf_get_i32(const lpx_gguf *file, const char *key, lpx_gguf_need need, int32_t *out) {
  bool found;
  uint64_t bits;
  laprox_result result = get_integer(file, key, need, UINT64_C(1) << 31, INT32_MAX, &found, &bits);
  if (found) *out = (int32_t)(int64_t)bits;
  return result;
}

laprox_result lpx_gguf_get_u64(const lpx_gguf *file, const char *key, lpx_gguf_need need, uint64_t *out) {
  bool found;
  uint64_t bits;
  laprox_result result = get_integer(file, key, need, 0, UINT64_MAX, &found, &bits);
  if (found) *out = bits;
  return result;
}

static float f32_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

laprox_result lpx_gguf_get_f32(const lpx_gguf *file, const char *key, lpx_gguf_need need, float *out) {
  const lpx_gguf_value *value;
  laprox_result result = look_up(file, key, need, &value);
  if (result != LAPROX_OK || !value) return result;
  if (value->type != LPX_GGUF_F32 && value->type != LPX_GGUF_F64) return fail_type(file, value, "f32");
  double number;
  memcpy(&number, &value->bits, sizeof number);
  if (value->type == LPX_GGUF_F32) number = (double)f32_of((uint32_t)value->bits);
  /* written so that NaN fails too */
  if (!(number >= -(double)FLT_MAX && number <= (double)FLT_MAX)) {
    return lpx_fail(&file->file.host, LAPROX_ERROR_FORMAT, "%s: metadata '%s' is %g, not a finite f32",
                    file->file.path, key, number);
  }
  *out = (float)number;
  return LAPROX_OK;
}

laprox_result lpx_gguf_get_bool(const lpx_gguf *file, const char *key, lpx_gguf_need need, bool *out) {
  const lpx_gguf_value *value;
  laprox_result result = look_up_typed(file, key, need, LPX_GGUF_BOOL, &value);
  if (result == LAPROX_OK && value) *out = value->bits != 0;
  return result;
}

laprox_result lpx_gguf_get_string(const lpx_gguf *file, const char *key, lpx_gguf_need need,
                                  lpx_gguf_string *out) {
  const lpx_gguf_value *value;
  laprox_result result = look_up_typed(file, key, need, LPX_GGUF_STRING, &value);
  if (result == LAPROX_OK && value) *out = value->strings[0];
  return result;
}

/* ---- arrays ---- */

static laprox_result get_array(const lpx_gguf *file, const char *key, lpx_gguf_need need,
                               uint32_t element_type, const char *wanted, const lpx_gguf_value **out) {
  laprox_result result = look_up(file, key, need, out);
  if (result != LAPROX_OK || !*out) return result;
  if ((*out)->type != LPX_GGUF_ARRAY || (*out)->element_type != element_type)
    return fail_type(file, *out, wanted);
  return LAPROX_OK;
}

laprox_result lpx_gguf_get_strings(const lpx_gguf *file, const char *key, lpx_gguf_need need,
                                   const lpx_gguf_string **out, size_t *count) {
  const lpx_gguf_value *value;
  laprox_result result = get_array(file, key, need, LPX_GGUF_STRING, "an array of string", &value);
  if (result != LAPROX_OK || !value) return result;
  *out = value->strings;
  *count = value->count;
  return LAPROX_OK;
}

laprox_result lpx_gguf_get_i32s(const lpx_gguf *file, const char *key, lpx_gguf_need need,
                                const int32_t **out, size_t *count) {
  const lpx_gguf_value *value;
  laprox_result result = get_array(file, key, need, LPX_GGUF_I32, "an array of i32", &value);
  if (result != LAPROX_OK || !value) return result;
  *out = value->data;
  *count = value->count;
  return LAPROX_OK;
}

laprox_result lpx_gguf_get_f32s(const lpx_gguf *file, const char *key, lpx_gguf_need need, const float **out,
                                size_t *count) {
  const lpx_gguf_value *value;
  laprox_result result = get_array(file, key, need, LPX_GGUF_F32, "an array of f32", &value);
  if (result != LAPROX_OK || !value) return result;
  *out = value->data;
  *count = value->count;
  return LAPROX_OK;
}
