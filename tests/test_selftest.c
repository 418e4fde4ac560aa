/* test_selftest.c: a Vulkan that computes wrongly, or refuses shaders that it claims to take, is found out before it is
 * used; and drivers with known quirks don't get the kernels that those hit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "shim/shim.h"

#include "laprox/runtime.h"
#include "support/app.h"
#include "support/host.h"
#include "vk/vk.h"

#include <cmocka.h>

/* SPIR-V's numbers */
enum {
  NOTHING = 0,
  OP_F_ADD = 129,
  OP_F_SUB = 131,
  OP_CONTROL_BARRIER = 224,
  OP_MEMORY_BARRIER = 225,
  OP_ATOMIC_I_ADD = 234,
  OP_ATOMIC_I_SUB = 235,
  OP_SHUFFLE = 345,
  OP_SHUFFLE_XOR = 346,
  OP_VOTE_ALL = 334,
  OP_VOTE_ANY = 335,
  OP_BALLOT_BIT_COUNT = 342,
  CAPABILITY_FLOAT16 = 9,
  CAPABILITY_SHUFFLE = 65,
  CAPABILITY_MATRIX = 6022
};

static app_vulkan vulkan;
static app_device device;
static test_host host;
static uint32_t honest; /* variants that this machine's device has */

static laprox_context_info shimmed_info(void) {
  laprox_context_info info = app_context_info(&vulkan, &device, &host.host);
  info.get_instance_proc_addr = shim_get_instance_proc_addr;
  info.variants_off = 0;
  return info;
}

static laprox_result import(laprox_device **out) {
  const laprox_device_import_info info = {
      .context = shimmed_info(), .queue = device.queue, .queue_family = device.family};
  host.n_errors = host.n_warnings = 0;
  return laprox_device_import(&info, out);
}

static int set_up(void **state) {
  (void)state;
  laprox_device *opened = NULL;
  test_host_init(&host);
  app_vulkan_init(&vulkan);
  app_device_init(&vulkan, 4096, &device);
  shim_reset();
  if (import(&opened) || host.n_warnings) return -1;
  if (laprox_device_context(opened)->avoid_atomics) return -1;
  honest = laprox_context_variants(laprox_device_context(opened));
  laprox_device_destroy(opened);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  app_device_finish(&device);
  (void)app_vulkan_finish(&vulkan); /* validation sees what the shim does to shaders */
  return 0;
}

static void expect_nothing_left(void) {
  assert_int_equal(shim.n_live, 0);
  assert_int_equal(host.n_live, 0);
}

/* The device opens without `lost`, says so once for each, and says why when it is asked. */
static void expect_variants_lost(uint32_t lost, uint32_t warned, const char *reason) {
  laprox_device *opened = NULL;
  if (!lost || (honest & lost) != lost) {
    print_message("this device has no such kernels\n");
    skip();
  }
  assert_int_equal(import(&opened), LAPROX_OK);
  const laprox_context *context = laprox_device_context(opened);
  assert_int_equal(host.n_errors, 0);
  assert_int_equal(host.n_warnings, warned);
  assert_int_equal(laprox_context_variants(context), honest & ~lost);
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++) {
    const char *why = laprox_context_variant_reason(context, 1u << i);
    assert_int_equal(!*why, (honest & ~lost) >> i & 1);
    if (lost >> i & 1 && reason) assert_non_null(strstr(why, reason));
  }
  for (size_t i = 0; i < lpx_n_shaders; i++)
    if (lpx_shaders[i].needs & lost) assert_false(lpx_shader_usable(context, lpx_shaders[i].name));
  laprox_device_destroy(opened);
  expect_nothing_left();
}

/* The device doesn't open; one message names what went wrong. */
static void expect_unusable(const char *reason) {
  laprox_device *opened = NULL;
  assert_int_equal(import(&opened), LAPROX_ERROR_UNSUPPORTED);
  assert_null(opened);
  assert_int_equal(host.n_errors, 1);
  assert_non_null(strstr(host.last_error, "self-test"));
  if (!strstr(host.last_error, reason)) fail_msg("%s: no %s", host.last_error, reason);
  expect_nothing_left();
}

static void mistake(uint32_t op, uint32_t taken_for) {
  shim_reset();
  shim.mistaken_ops[0] = op;
  shim.mistaken_for = taken_for;
}

static void refuse(uint32_t capability) {
  shim_reset();
  shim.refused_capability = capability;
}

static void test_wrong_atomics(void **state) {
  (void)state;
  laprox_device *opened = NULL;
  mistake(OP_ATOMIC_I_ADD, OP_ATOMIC_I_SUB);
  assert_int_equal(import(&opened), LAPROX_OK);
  assert_int_equal(host.n_errors, 0);
  assert_int_equal(host.n_warnings, 1);
  assert_true(laprox_device_context(opened)->avoid_atomics);
  assert_int_equal(laprox_context_variants(laprox_device_context(opened)), honest);
  laprox_device_destroy(opened);
  expect_nothing_left();
}

static void test_wrong_barriers(void **state) {
  (void)state;
  VkPhysicalDeviceProperties properties;
  vkGetPhysicalDeviceProperties(device.gpu, &properties);
  if (properties.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU) {
    print_message("without barriers a GPU may still be in time: nothing must be wrong\n");
    skip();
  }
  mistake(OP_CONTROL_BARRIER, NOTHING);
  shim.mistaken_ops[1] = OP_MEMORY_BARRIER; /* some lavapipes wait there, too */
  expect_unusable("word");
}

static void test_wrong_shuffles(void **state) {
  (void)state;
  mistake(OP_SHUFFLE_XOR, OP_SHUFFLE);
  expect_variants_lost(LAPROX_VARIANT_SUBGROUP, 1, "shuffles: word");
}

static void test_wrong_votes(void **state) {
  (void)state;
  mistake(OP_VOTE_ANY, OP_VOTE_ALL);
  expect_variants_lost(LAPROX_VARIANT_SUBGROUP, 1, "votes: word");
}

static void test_wrong_f16(void **state) {
  (void)state;
  mistake(OP_F_ADD, OP_F_SUB);
  expect_variants_lost(honest & (LAPROX_VARIANT_STORAGE16 | LAPROX_VARIANT_MATRIX), 1, NULL);
}

static void test_refused_shuffles(void **state) {
  (void)state;
  refuse(CAPABILITY_SHUFFLE);
  expect_variants_lost(LAPROX_VARIANT_SUBGROUP, 1, "vkCreateShaderModule");
}

/* Cooperative matrices go with the 16-bit floats that they are made of. */
static void test_refused_f16(void **state) {
  (void)state;
  refuse(CAPABILITY_FLOAT16);
  expect_variants_lost(honest & (LAPROX_VARIANT_STORAGE16 | LAPROX_VARIANT_MATRIX), 1, NULL);
}

static void test_refused_matrices(void **state) {
  (void)state;
  refuse(CAPABILITY_MATRIX);
  expect_variants_lost(LAPROX_VARIANT_MATRIX, 1, "vkCreateShaderModule");
}

/* What an application does that has a queue. */
static void test_application(void **state) {
  (void)state;
  shim_reset();
  laprox_context *context = NULL;
  const laprox_context_info info = shimmed_info();
  assert_int_equal(laprox_context_create(&info, &context), LAPROX_OK);
  host.n_errors = host.n_warnings = 0;
  assert_int_equal(laprox_context_self_test(context, VK_NULL_HANDLE, 0), LAPROX_ERROR_INVALID_ARGUMENT);
  assert_int_equal(host.n_errors, 1);
  for (int i = 0; i < 2; i++)
    assert_int_equal(laprox_context_self_test(context, device.queue, device.family), LAPROX_OK);
  assert_int_equal(host.n_warnings, 0);
  assert_int_equal(laprox_context_variants(context), honest);
  assert_true(laprox_context_memory(context).bytes == 0);
  assert_null(laprox_context_variant_reason(context, 0));
  laprox_context_destroy(context);
  expect_nothing_left();
}

/* ---- quirks ---- */

static uint32_t
    unquirky; /* variants of this machine's device where the driver is one that nothing is known about */

static void expect_quirk(const char *what, uint32_t vendor, uint32_t device_id, uint32_t driver,
                         VkPhysicalDeviceType type, uint32_t lost) {
  laprox_context *context = NULL;
  shim_reset();
  shim.alias.vendor = vendor;
  shim.alias.device = device_id;
  shim.alias.driver = driver;
  shim.alias.type = type;
  const laprox_context_info info = shimmed_info();
  assert_int_equal(laprox_context_create(&info, &context), LAPROX_OK);
  assert_int_equal(laprox_context_variants(context) & ~(uint32_t)LAPROX_VARIANT_LARGE_TILES,
                   unquirky & ~lost);
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++) {
    const char *why = laprox_context_variant_reason(context, 1u << i);
    if (!((lost & unquirky) >> i & 1)) continue;
    if (strncmp(why, what, strlen(what)) || why[strlen(why) - 1] != ')') fail_msg("%s", why);
  }
  laprox_context_destroy(context);
  expect_nothing_left();
}

/* Large tiles only where a device's maker, or llvmpipe, is known to have the registers. */
static void test_large_tiles(void **state) {
  (void)state;
  static const struct {
    uint32_t vendor, driver;
    bool large, few_registers;
  } devices[] = {{0x10de, VK_DRIVER_ID_NVIDIA_PROPRIETARY, true, false},
                 {0x10de, VK_DRIVER_ID_MESA_NVK, true, false},
                 {0x1002, VK_DRIVER_ID_MESA_RADV, true, false},
                 {0x1002, VK_DRIVER_ID_MOLTENVK, true, false},
                 {0x10005, VK_DRIVER_ID_MESA_LLVMPIPE, true, false},
                 {0x1ae0, VK_DRIVER_ID_GOOGLE_SWIFTSHADER, false, false},
                 {0x8086, VK_DRIVER_ID_INTEL_OPEN_SOURCE_MESA, false, false},
                 {0x106b, VK_DRIVER_ID_MOLTENVK, false, false},
                 {0x5143, VK_DRIVER_ID_MESA_TURNIP, false, false},
                 {0x1010, VK_DRIVER_ID_IMAGINATION_PROPRIETARY, false, true},
                 {0x13b5, VK_DRIVER_ID_ARM_PROPRIETARY, false, true},
                 {0x14e4, VK_DRIVER_ID_MESA_V3DV, false, true}};
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
    laprox_context *context = NULL;
    shim_reset();
    shim.alias.vendor = devices[i].vendor;
    shim.alias.device = 1;
    shim.alias.driver = devices[i].driver;
    const laprox_context_info info = shimmed_info();
    assert_int_equal(laprox_context_create(&info, &context), LAPROX_OK);
    const bool large = laprox_context_variants(context) & LAPROX_VARIANT_LARGE_TILES;
    assert_int_equal(large, devices[i].large);
    assert_int_equal(!*laprox_context_variant_reason(context, LAPROX_VARIANT_LARGE_TILES), large);
    assert_int_equal(context->few_registers, devices[i].few_registers);
    laprox_context_destroy(context);
  }
  expect_nothing_left();
}

static void test_quirks(void **state) {
  (void)state;
  const VkPhysicalDeviceType discrete = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU,
                             integrated = VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU;
  const uint32_t subgroup = LAPROX_VARIANT_SUBGROUP, matrix = LAPROX_VARIANT_MATRIX;
  shim_reset();
  shim.alias.vendor = shim.alias.device = 1;
  const laprox_context_info info = shimmed_info();
  laprox_context *context = NULL;
  assert_int_equal(laprox_context_create(&info, &context), LAPROX_OK);
  unquirky = laprox_context_variants(context) & ~(uint32_t)LAPROX_VARIANT_LARGE_TILES;
  laprox_context_destroy(context);
  expect_quirk("Adreno", 0x5143, 0x6030001, VK_DRIVER_ID_QUALCOMM_PROPRIETARY, integrated, subgroup | matrix);
  expect_quirk("Adreno", 0x5143, 0x7050001, VK_DRIVER_ID_MESA_TURNIP, integrated, subgroup | matrix);
  expect_quirk("PowerVR", 0x1010, 1, VK_DRIVER_ID_IMAGINATION_PROPRIETARY, integrated, subgroup);
  expect_quirk("MoltenVK", 0x1002, 0x73bf, VK_DRIVER_ID_MOLTENVK, discrete, subgroup | matrix);
  expect_quirk("", 0x106b, 0xd, VK_DRIVER_ID_MOLTENVK, integrated, 0);
  expect_quirk("NVIDIA Turing", 0x10de, 0x1f02, VK_DRIVER_ID_NVIDIA_PROPRIETARY, discrete, matrix);
  expect_quirk("", 0x10de, 0x2330, VK_DRIVER_ID_NVIDIA_PROPRIETARY, discrete, 0);
  expect_quirk("AMD before RDNA3", 0x1002, 0x73bf, VK_DRIVER_ID_AMD_PROPRIETARY, discrete, matrix);
  expect_quirk("", 0x1002, 0x744c, VK_DRIVER_ID_AMD_PROPRIETARY, discrete, 0);
  expect_quirk("", 0x1002, 0x73bf, VK_DRIVER_ID_MESA_RADV, discrete, 0);
  expect_quirk("AMD integrated", 0x1002, 0x1114, VK_DRIVER_ID_AMD_PROPRIETARY, integrated, matrix);
  expect_quirk("Intel before Xe2", 0x8086, 0x56a0, VK_DRIVER_ID_INTEL_OPEN_SOURCE_MESA, discrete, matrix);
  expect_quirk("Intel before Xe2", 0x8086, 0x7d55, VK_DRIVER_ID_INTEL_PROPRIETARY_WINDOWS, integrated,
               matrix);
  expect_quirk("", 0x8086, 0x64a0, VK_DRIVER_ID_INTEL_OPEN_SOURCE_MESA, integrated, 0);
  expect_quirk("", 0x8086, 0xe20b, VK_DRIVER_ID_INTEL_OPEN_SOURCE_MESA, discrete, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_wrong_atomics),  cmocka_unit_test(test_wrong_barriers),
      cmocka_unit_test(test_wrong_shuffles), cmocka_unit_test(test_wrong_votes),
      cmocka_unit_test(test_wrong_f16),      cmocka_unit_test(test_refused_shuffles),
      cmocka_unit_test(test_refused_f16),    cmocka_unit_test(test_refused_matrices),
      cmocka_unit_test(test_application),    cmocka_unit_test(test_quirks),
      cmocka_unit_test(test_large_tiles)};
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
