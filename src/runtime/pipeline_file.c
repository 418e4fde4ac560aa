/* pipeline_file.c: a file that no driver gets to see before it has been checked: some crash over a truncated one. */
#include "runtime/pipeline_file.h"
#include "io/file.h"

#include <stdio.h>
#include <string.h>

#define MAX_DATA_BYTES (UINT64_C(256) << 20)
#define MAGIC          "laproxP1"

/* In the machine's own byte order: the file never leaves it. */
typedef struct header {
  char magic[8];
  uint64_t data_bytes, checksum;
  uint32_t vendor, device, driver, reserved;
  uint8_t uuid[VK_UUID_SIZE];
} header;
_Static_assert(sizeof(header) == 56, "no padding in files");

static uint64_t checksum(const uint8_t *data, size_t n) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (size_t i = 0; i < n; i++) hash = (hash ^ data[i]) * UINT64_C(0x100000001b3);
  return hash;
}

static header make_header(const VkPhysicalDeviceProperties *properties, const uint8_t *data, size_t n) {
  header made = {.data_bytes = n,
                 .checksum = checksum(data, n),
                 .vendor = properties->vendorID,
                 .device = properties->deviceID,
                 .driver = properties->driverVersion};
  memcpy(made.magic, MAGIC, sizeof made.magic);
  memcpy(made.uuid, properties->pipelineCacheUUID, sizeof made.uuid);
  return made;
}

/* The first thing in a driver's data, which must agree with the device, too. */
static bool is_of_device(const VkPhysicalDeviceProperties *properties, const uint8_t *data, size_t n) {
  uint32_t words[4];
  if (n < sizeof words + VK_UUID_SIZE) return false;
  memcpy(words, data, sizeof words);
  return words[0] >= sizeof words + VK_UUID_SIZE && words[0] <= n &&
         words[1] == VK_PIPELINE_CACHE_HEADER_VERSION_ONE && words[2] == properties->vendorID &&
         words[3] == properties->deviceID &&
         !memcmp(data + sizeof words, properties->pipelineCacheUUID, VK_UUID_SIZE);
}

/* NULL where the file is as it should be, else what is wrong with it. */
static const char *read_data(lpx_file *file, const VkPhysicalDeviceProperties *properties, uint8_t **data,
                             size_t *n) {
  header found;
  if (file->size_bytes < sizeof found || lpx_file_read(file, 0, sizeof found, &found, "header"))
    return "it is too short";
  if (memcmp(found.magic, MAGIC, sizeof found.magic) != 0) return "it is no pipeline cache";
  if (found.data_bytes > MAX_DATA_BYTES || found.data_bytes != file->size_bytes - sizeof found)
    return "its length is wrong";
  *n = (size_t)found.data_bytes;
  *data = lpx_allocate(&file->host, *n, 1);
  if (!*data || lpx_file_read(file, sizeof found, *n, *data, "data")) return "it can't be read";
  const header wanted = make_header(properties, *data, *n);
  if (found.checksum != wanted.checksum) return "its checksum is wrong";
  if (memcmp(&found, &wanted, sizeof found) != 0 || !is_of_device(properties, *data, *n))
    return "it is another driver's";
  return NULL;
}

/* Reports nothing: a file that isn't there is nothing to speak of. */
static laprox_host quiet(const laprox_host *host) {
  laprox_host silent = *host;
  silent.message = NULL;
  return lpx_host_complete(&silent);
}

static void create_cache(lpx_pipeline_file *file, const VkPhysicalDeviceProperties *properties,
                         PFN_vkCreatePipelineCache create) {
  const laprox_host silent = quiet(&file->host);
  lpx_file input = {0};
  uint8_t *data = NULL;
  size_t n = 0;
  if (!lpx_file_open(&silent, file->path, &input)) {
    const char *problem = read_data(&input, properties, &data, &n);
    if (problem) {
      lpx_warn(&file->host, "pipeline cache %s is ignored: %s", file->path, problem);
      n = 0;
    }
  }
  lpx_file_close(&input);
  const VkPipelineCacheCreateInfo info = {
      .sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO, .initialDataSize = n, .pInitialData = data};
  if (create(file->device, &info, NULL, &file->cache)) file->cache = VK_NULL_HANDLE;
  file->read_bytes = n;
  file->read_checksum = checksum(data, n);
  lpx_release(&file->host, data);
}

/* Devices and drivers have files of their own, so that two of them don't overwrite each other's. */
static char *make_path(const laprox_host *host, const char *directory,
                       const VkPhysicalDeviceProperties *properties) {
  const size_t size = strlen(directory) + 64;
  char *path = lpx_allocate(host, size, 1);
  if (path)
    (void)snprintf(path, size, "%s/pipelines-%04x-%04x-%08x.bin", directory, properties->vendorID,
                   properties->deviceID, properties->driverVersion);
  return path;
}

void lpx_pipeline_file_open(const laprox_host *host, const char *directory,
                            const VkPhysicalDeviceProperties *properties, VkDevice device,
                            PFN_vkGetDeviceProcAddr get_device_proc_addr, lpx_pipeline_file *out) {
  *out = (lpx_pipeline_file){.host = *host, .device = device};
  if (!directory) return;
  PFN_vkCreatePipelineCache create =
      (PFN_vkCreatePipelineCache)get_device_proc_addr(device, "vkCreatePipelineCache");
  out->get_data = (PFN_vkGetPipelineCacheData)get_device_proc_addr(device, "vkGetPipelineCacheData");
  out->destroy = (PFN_vkDestroyPipelineCache)get_device_proc_addr(device, "vkDestroyPipelineCache");
  out->path = make_path(host, directory, properties);
  if (out->path && create && out->get_data && out->destroy) create_cache(out, properties, create);
}

static void write_file(const lpx_pipeline_file *file, const header *head, const uint8_t *data) {
  const laprox_host silent = quiet(&file->host);
  lpx_output output = {0};
  laprox_result result = lpx_output_open(&silent, file->path, &output);
  if (!result) result = lpx_output_write(&output, head, sizeof *head);
  if (!result) result = lpx_output_write(&output, data, (size_t)head->data_bytes);
  if (!result) result = lpx_output_commit(&output);
  lpx_output_close(&output);
  if (result) lpx_warn(&file->host, "pipeline cache %s could not be written", file->path);
}

void lpx_pipeline_file_close(lpx_pipeline_file *file, const VkPhysicalDeviceProperties *properties) {
  size_t n = 0;
  uint8_t *data = NULL;
  if (file->cache && !file->get_data(file->device, file->cache, &n, NULL) && n && n <= MAX_DATA_BYTES)
    data = lpx_allocate(&file->host, n, 1);
  if (data && !file->get_data(file->device, file->cache, &n, data)) {
    const header head = make_header(properties, data, n);
    if (head.data_bytes != file->read_bytes || head.checksum != file->read_checksum)
      write_file(file, &head, data);
  }
  lpx_release(&file->host, data);
  if (file->cache) file->destroy(file->device, file->cache, NULL);
  lpx_release(&file->host, file->path);
  *file = (lpx_pipeline_file){0};
}
