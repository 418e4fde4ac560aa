/* quirks.c: what single drivers are known to do wrong, or too slowly to be of use. The self-test finds what fails in
   the small; here stands what it can't find: large kernels that are compiled wrongly, compilers that crash, rates. */
#include "vk/vk.h"

#include <stddef.h>

/* What a row says of the driver. */
typedef struct quirks {
  bool wrong_subgroups; /* shuffles or ballots that are wrong now and then, or don't compile */
  bool
      wrong_matrices; /* cooperative matrices that are compiled wrongly in larger kernels, or crash the compiler */
  bool slow_matrices; /* advertised, but emulated: slower than the baseline */
} quirks;

enum {
  VENDOR_ANY = 0,
  VENDOR_AMD = 0x1002,
  VENDOR_IMAGINATION = 0x1010,
  VENDOR_NVIDIA = 0x10de,
  VENDOR_ARM = 0x13b5,
  VENDOR_BROADCOM = 0x14e4,
  VENDOR_QUALCOMM = 0x5143,
  VENDOR_INTEL = 0x8086,
  DRIVER_ANY = 0
};

typedef struct row {
  uint32_t vendor;
  uint32_t driver;            /* VkDriverId */
  uint32_t first_id, last_id; /* of devices; 0, 0: all of them */
  uint32_t subgroup_size;     /* 0: any */
  bool integrated;            /* only such devices */
  quirks has;
  const char *what, *link;
  const char *since;  /* when the row was written */
  const char *remove; /* when it may go */
} row;

static const row rows[] = {
    {.vendor = VENDOR_QUALCOMM,
     .has.wrong_subgroups = true,
     .what = "Adreno: shuffles are wrong on several generations, with the vendor's driver and with Turnip",
     .link = "https://github.com/Tencent/ncnn/issues/6778",
     .since = "2026-11",
     .remove = "an Adreno of each generation from 6xx on passes all tests with LAPROX_VARIANTS=subgroup"},
    {.vendor = VENDOR_QUALCOMM,
     .has.wrong_matrices = true,
     .what = "Adreno: kernels with cooperative matrices are refused or compiled wrongly",
     .link = "https://github.com/Tencent/ncnn/issues/6972",
     .since = "2026-11",
     .remove = "an Adreno that has them passes all tests with LAPROX_VARIANTS=matrix"},
    {.vendor = VENDOR_IMAGINATION,
     .has.wrong_subgroups = true,
     .what = "PowerVR: kernels with subgroup operations don't compile",
     .link = "https://github.com/ggml-org/llama.cpp/issues/28341",
     .since = "2026-11",
     .remove = "a PowerVR with the vendor's driver passes all tests with LAPROX_VARIANTS=subgroup"},
    {.vendor = VENDOR_AMD,
     .driver = VK_DRIVER_ID_MOLTENVK,
     .has.wrong_subgroups = true,
     .has.wrong_matrices = true,
     .what = "MoltenVK on AMD: subgroup operations answer wrongly",
     .link = "https://github.com/ggml-org/llama.cpp/issues/15846",
     .since = "2026-11",
     .remove = "MoltenVK drops Macs with AMD GPUs"},
    {.vendor = VENDOR_NVIDIA,
     .driver = VK_DRIVER_ID_NVIDIA_PROPRIETARY,
     .first_id = 0x1e00,
     .last_id = 0x21ff,
     .has.wrong_matrices = true,
     .what = "NVIDIA Turing: attention with cooperative matrices is compiled wrongly",
     .link = "https://github.com/ggml-org/llama.cpp/issues/19290",
     .since = "2026-11",
     .remove = "a Turing card passes all tests with LAPROX_VARIANTS=matrix"},
    {.vendor = VENDOR_AMD,
     .driver = VK_DRIVER_ID_AMD_PROPRIETARY,
     .first_id = 0x6600,
     .last_id = 0x743f,
     .has.slow_matrices = true,
     .what = "AMD before RDNA3: cooperative matrices are advertised, but emulated",
     .link = "https://github.com/ggml-org/llama.cpp/pull/11074",
     .since = "2026-11",
     .remove = "the driver no longer advertises them there"},
    {.vendor = VENDOR_AMD,
     .driver = VK_DRIVER_ID_AMD_PROPRIETARY,
     .integrated = true,
     .has.wrong_matrices = true,
     .what = "AMD integrated: the driver crashes when asked for the shapes of cooperative matrices",
     .link = "https://github.com/GPUOpen-Drivers/AMDVLK/issues/422",
     .since = "2026-11",
     .remove = "the issue is closed and the fixed driver is a year old"},
    {.vendor = VENDOR_INTEL,
     .first_id = 0x0001,
     .last_id = 0x63ff,
     .has.slow_matrices = true,
     .what = "Intel before Xe2: cooperative matrices are no faster or slower than none",
     .link = "https://github.com/ggml-org/llama.cpp/pull/14001",
     .since = "2026-11",
     .remove = "laprox bench shows the matrix kernels ahead on Alchemist with Mesa and on Windows"},
    {.vendor = VENDOR_INTEL,
     .first_id = 0x6500,
     .last_id = 0xafff,
     .has.slow_matrices = true,
     .what = "Intel before Xe2: cooperative matrices are no faster or slower than none",
     .link = "https://github.com/ggml-org/llama.cpp/pull/24404",
     .since = "2026-11",
     .remove = "laprox bench shows the matrix kernels ahead on Meteor Lake with Mesa and on Windows"},
    {.driver = VK_DRIVER_ID_MESA_LLVMPIPE,
     .subgroup_size = 16,
     .has.wrong_matrices = true,
     .what = "lavapipe with 512-bit vectors: the driver crashes compiling cooperative matrices",
     .link = "Mesa 26.2.6, LP_NATIVE_VECTOR_WIDTH=512",
     .since = "2026-11",
     .remove = "a Mesa without the crash is in every suite of tools/matrix.sh"},
};

static uint32_t read_driver(const laprox_context *context, PFN_vkGetInstanceProcAddr get_instance_proc_addr) {
  VkPhysicalDeviceDriverPropertiesKHR driver = {.sType =
                                                    VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES_KHR};
  VkPhysicalDeviceProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                     .pNext = &driver};
  if (!lpx_device_offers(get_instance_proc_addr, context->instance, context->physical_device,
                         VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME))
    return DRIVER_ANY;
  context->vk.GetPhysicalDeviceProperties2(context->physical_device, &all);
  return (uint32_t)driver.driverID;
}

static bool applies(const row *known, const laprox_context *context, uint32_t driver) {
  const uint32_t id = context->properties.deviceID;
  return (known->vendor == VENDOR_ANY || known->vendor == context->properties.vendorID) &&
         (known->driver == DRIVER_ANY || known->driver == driver) &&
         (!known->last_id || (id >= known->first_id && id <= known->last_id)) &&
         (!known->integrated || context->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU) &&
         (!known->subgroup_size || known->subgroup_size == context->subgroup_size);
}

/* The kernels with large tiles hold up to 200 registers an invocation. AMD's and NVIDIA's devices have 255; with Intel's
   128 of 8 lanes, Apple's and Adreno's 128, and what phones have, they spill: see tools/matrix.sh. Processors spill
   either way; llvmpipe takes a fifth less time with large tiles, SwiftShader minutes and gigabytes to compile them. */
static bool has_many_registers(const laprox_context *context, uint32_t driver) {
  const uint32_t vendor = context->properties.vendorID;
  return vendor == VENDOR_AMD || vendor == VENDOR_NVIDIA || driver == VK_DRIVER_ID_MESA_LLVMPIPE;
}

/* Arm's and Broadcom's have 64, or twice as many threads with 32; with Imagination's, what is larger spills. */
static bool has_few_registers(const laprox_context *context) {
  const uint32_t vendor = context->properties.vendorID;
  return vendor == VENDOR_ARM || vendor == VENDOR_BROADCOM || vendor == VENDOR_IMAGINATION;
}

void lpx_quirks_apply(laprox_context *context, PFN_vkGetInstanceProcAddr get_instance_proc_addr) {
  const uint32_t driver = read_driver(context, get_instance_proc_addr);
  context->few_registers = has_few_registers(context);
  if (!has_many_registers(context, driver))
    lpx_variant_drop(context, LAPROX_VARIANT_LARGE_TILES, "too few registers an invocation, or not known");
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    const row *known = &rows[i];
    if (!applies(known, context, driver)) continue;
    if (known->has.wrong_subgroups)
      lpx_variant_drop(context, LAPROX_VARIANT_SUBGROUP, "%s (%s)", known->what, known->link);
    if (known->has.wrong_matrices || known->has.slow_matrices)
      lpx_variant_drop(context, LAPROX_VARIANT_MATRIX, "%s (%s)", known->what, known->link);
  }
}
