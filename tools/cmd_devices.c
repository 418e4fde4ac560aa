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

/* What became of a device when it was opened, as it is for work. */
typedef struct opened {
  const char *problem; /* NULL: it can be used */
  char text[512];
  uint32_t variants;
  char reasons[LAPROX_N_VARIANTS][256]; /* why a variant is off */
} opened;

static void try_device(cli *c, const laprox_device_description *d, opened *out) {
  char index[16];
  laprox_device *device = NULL;
  *out = (opened){.problem = d->usable ? NULL : d->reason};
  if (out->problem) return;
  snprintf(index, sizeof index, "%u", d->index);
  if (laprox_device_open(c->instance, index, &device)) {
    snprintf(out->text, sizeof out->text, "%s", c->said.error);
    out->problem = out->text;
  } else {
    const laprox_context *context = laprox_device_context(device);
    out->variants = laprox_context_variants(context);
    for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
      snprintf(out->reasons[i], sizeof out->reasons[i], "%s",
               laprox_context_variant_reason(context, 1u << i));
  }
  laprox_device_destroy(device);
  /* said here, device by device */
  c->said.error[0] = 0;
  c->said.n_warnings = 0;
}

static json_t *variants_json(const opened *o) {
  json_t *out = json_pack("{s:b}", "baseline", (int)!o->problem), *off = json_object();
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++) {
    const char *name = laprox_variant_name(1u << i);
    json_object_set_new(out, name, json_boolean(o->variants >> i & 1));
    if (*o->reasons[i]) json_object_set_new(off, name, json_string(o->reasons[i]));
  }
  json_object_set_new(out, "off", off);
  return out;
}

static json_t *device_json(const laprox_device_description *d, const opened *o) {
  char version[32];
  snprintf(version, sizeof version, "%u.%u.%u", version_part(d->api_version, 22, 0x7f),
           version_part(d->api_version, 12, 0x3ff), version_part(d->api_version, 0, 0xfff));
  return json_pack("{s:I, s:s, s:s, s:I, s:I, s:s, s:s, s:s, s:b, s:s, s:I, s:o, s:o}", "index",
                   (json_int_t)d->index, "name", d->name, "type", d->type, "vendor_id",
                   (json_int_t)d->vendor_id, "device_id", (json_int_t)d->device_id, "driver", d->driver,
                   "driver_info", d->driver_info, "api_version", version, "usable", (int)!o->problem,
                   "reason", o->problem ? o->problem : "", "heap_bytes", (json_int_t)d->heap_bytes, "limits",
                   limits_json(d), "variants", variants_json(o));
}

static void print_device(const laprox_device_description *d, const opened *o) {
  printf("%u  %s (%s)\n", d->index, d->name, d->type);
  printf("   driver %s %s, Vulkan %u.%u.%u\n", d->driver, d->driver_info,
         version_part(d->api_version, 22, 0x7f), version_part(d->api_version, 12, 0x3ff),
         version_part(d->api_version, 0, 0xfff));
  printf("   %.1f GiB, buffers up to %.0f MiB, %u invocations, %u KiB shared, subgroup %u\n",
         (double)d->heap_bytes / (1 << 30), (double)d->max_storage_buffer_range / (1 << 20),
         d->max_compute_invocations, d->max_compute_shared_bytes / 1024, d->subgroup_size);
  if (o->problem) {
    printf("   not usable: %s\n", o->problem);
    return;
  }
  printf("   usable, kernels: baseline");
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
    if (o->variants >> i & 1) printf(", %s", laprox_variant_name(1u << i));
  printf("\n");
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++)
    if (*o->reasons[i]) printf("   without %s: %s\n", laprox_variant_name(1u << i), o->reasons[i]);
}

int cmd_devices(cli *c) {
  uint32_t n = 0;
  int status = cli_open_instance(c);
  if (status) return status;
  const laprox_device_description *devices = laprox_instance_devices(c->instance, &n);
  json_t *list = c->opt.json ? json_array() : NULL;
  for (uint32_t i = 0; i < n; i++) {
    opened o;
    try_device(c, &devices[i], &o);
    if (list)
      json_array_append_new(list, device_json(&devices[i], &o));
    else
      print_device(&devices[i], &o);
  }
  if (list) return print_json(json_pack("{s:o}", "devices", list));
  if (n == 0)
    return fail_impossible("there is a Vulkan loader, but no Vulkan device (is a driver installed?)");
  return EXIT_DONE;
}
