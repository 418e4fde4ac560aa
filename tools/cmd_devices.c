/* cmd_devices.c: `laprox devices`: every Vulkan device and what can be done with it. */
#include "cli.h"

#include <stdio.h>

static unsigned version_part(uint32_t version, int shift, uint32_t mask) {
  return (unsigned)((version >> shift) & mask);
}

static json_t *limits_json(const laprox_device_description *d) {
  return json_pack(
      "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "max_compute_invocations",
      (json_int_t)d->max_compute_invocations, "max_compute_shared_bytes",
      (json_int_t)d->max_compute_shared_bytes, "max_push_constant_bytes",
      (json_int_t)d->max_push_constant_bytes, "max_storage_buffers", (json_int_t)d->max_storage_buffers,
      "max_workgroup_count_x", (json_int_t)d->max_workgroup_count_x, "subgroup_size",
      (json_int_t)d->subgroup_size, "max_storage_buffer_range", (json_int_t)d->max_storage_buffer_range,
      "min_storage_buffer_alignment", (json_int_t)d->min_storage_buffer_alignment, "max_allocations",
      (json_int_t)d->max_allocations, "timestamp_period_ns", (double)d->timestamp_period_ns);
}

/* What an opened device uses beside the baseline kernels; 0 where it can't be opened. */
static uint32_t variants_of(cli *c, const laprox_device_description *d) {
  char index[16];
  laprox_device *device = NULL;
  snprintf(index, sizeof index, "%u", d->index);
  if (!d->usable || laprox_device_open(c->instance, index, &device)) return 0;
  const uint32_t variants = laprox_context_variants(laprox_device_context(device));
  laprox_device_destroy(device);
  return variants;
}

static json_t *variants_json(const laprox_device_description *d, uint32_t variants) {
  json_t *out = json_pack("{s:b}", "baseline", (int)d->usable);
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
    json_object_set_new(out, laprox_variant_name(1u << i), json_boolean(variants >> i & 1));
  return out;
}

static json_t *device_json(const laprox_device_description *d, uint32_t variants) {
  char version[32];
  snprintf(version, sizeof version, "%u.%u.%u", version_part(d->api_version, 22, 0x7f),
           version_part(d->api_version, 12, 0x3ff), version_part(d->api_version, 0, 0xfff));
  return json_pack("{s:I, s:s, s:s, s:I, s:I, s:s, s:s, s:s, s:b, s:s, s:I, s:o, s:o}", "index",
                   (json_int_t)d->index, "name", d->name, "type", d->type, "vendor_id",
                   (json_int_t)d->vendor_id, "device_id", (json_int_t)d->device_id, "driver", d->driver,
                   "driver_info", d->driver_info, "api_version", version, "usable", (int)d->usable, "reason",
                   d->reason, "heap_bytes", (json_int_t)d->heap_bytes, "limits", limits_json(d), "variants",
                   variants_json(d, variants));
}

static void print_device(const laprox_device_description *d, uint32_t variants) {
  printf("%u  %s (%s)\n", d->index, d->name, d->type);
  printf("   driver %s %s, Vulkan %u.%u.%u\n", d->driver, d->driver_info,
         version_part(d->api_version, 22, 0x7f), version_part(d->api_version, 12, 0x3ff),
         version_part(d->api_version, 0, 0xfff));
  printf("   %.1f GiB, buffers up to %.0f MiB, %u invocations, %u KiB shared, subgroup %u\n",
         (double)d->heap_bytes / (1 << 30), (double)d->max_storage_buffer_range / (1 << 20),
         d->max_compute_invocations, d->max_compute_shared_bytes / 1024, d->subgroup_size);
  if (!d->usable) {
    printf("   not usable: %s\n", d->reason);
    return;
  }
  printf("   usable, kernels: baseline");
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
    if (variants >> i & 1) printf(", %s", laprox_variant_name(1u << i));
  printf("\n");
}

int cmd_devices(cli *c) {
  uint32_t n = 0;
  int status = cli_open_instance(c);
  if (status) return status;
  const laprox_device_description *devices = laprox_instance_devices(c->instance, &n);
  if (c->opt.json) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < n; i++)
      json_array_append_new(list, device_json(&devices[i], variants_of(c, &devices[i])));
    return print_json(json_pack("{s:o}", "devices", list));
  }
  for (uint32_t i = 0; i < n; i++) print_device(&devices[i], variants_of(c, &devices[i]));
  if (n == 0)
    return fail_impossible("there is a Vulkan loader, but no Vulkan device (is a driver installed?)");
  return EXIT_DONE;
}
