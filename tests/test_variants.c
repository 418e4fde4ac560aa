/* Which kernels a context may use follows from what its application has enabled, and from what it forbids. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "support/app.h"
#include "support/host.h"
#include "vk/vk.h"

#include <cmocka.h>

static app_vulkan vulkan;
static app_device device;
static test_host host;

static int set_up(void **state) {
  (void)state;
  test_host_init(&host);
  app_vulkan_init(&vulkan);
  app_device_init(&vulkan, 4096, &device);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  app_device_finish(&device);
  return app_vulkan_finish(&vulkan) ? -1 : 0;
}

static uint32_t variants_of(const laprox_context_info *info, laprox_context **out) {
  laprox_context *context = NULL;
  assert_int_equal(laprox_context_create(info, &context), LAPROX_OK);
  const uint32_t variants = laprox_context_variants(context);
  if (out)
    *out = context;
  else
    laprox_context_destroy(context);
  return variants;
}

static void test_names(void **state) {
  (void)state;
  uint32_t variants = 99;
  assert_true(laprox_variants_parse("all", &variants));
  assert_int_equal(variants, LAPROX_ALL_VARIANTS);
  assert_true(laprox_variants_parse("baseline", &variants));
  assert_int_equal(variants, 0);
  assert_true(laprox_variants_parse("subgroup,storage16", &variants));
  assert_int_equal(variants, LAPROX_VARIANT_SUBGROUP | LAPROX_VARIANT_STORAGE16);
  assert_true(laprox_variants_parse("matrix", &variants));
  assert_int_equal(variants, LAPROX_VARIANT_STORAGE16 | LAPROX_VARIANT_MATRIX);
  const char *const bad[] = {"", "subgroups", "sub", "subgroup,", ",subgroup", "subgroup storage16", "ALL"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    assert_false(laprox_variants_parse(bad[i], &variants));
  for (uint32_t i = 0; i < LAPROX_N_VARIANTS; i++) {
    assert_true(laprox_variants_parse(laprox_variant_name(1u << i), &variants));
    assert_true(variants & 1u << i);
  }
  assert_null(laprox_variant_name(0));
  assert_null(laprox_variant_name(3));
  assert_null(laprox_variant_name(1u << LAPROX_N_VARIANTS));
}

/* An application that has enabled nothing gets what needs nothing, whatever the device could do. */
static void test_nothing_enabled(void **state) {
  (void)state;
  laprox_context_info info = app_context_info(&vulkan, &device, &host.host);
  info.variants_off = 0;
  info.features = NULL;
  assert_int_equal(variants_of(&info, NULL) & ~(uint32_t)LAPROX_VARIANT_LARGE_TILES, 0);
  info = app_context_info(&vulkan, &device, &host.host);
  info.variants_off = 0;
  info.extensions = NULL;
  info.n_extensions = 0;
  assert_false(variants_of(&info, NULL) & LAPROX_VARIANT_MATRIX);
}

/* Features as the structs of Vulkan's core versions name them count as those of the extensions. */
static void test_core_structs(void **state) {
  (void)state;
  laprox_context_info info = app_context_info(&vulkan, &device, &host.host);
  info.variants_off = 0;
  const uint32_t wanted = variants_of(&info, NULL) & ~(uint32_t)LAPROX_VARIANT_MATRIX;
  const bool storage16 = wanted & LAPROX_VARIANT_STORAGE16, subgroup = wanted & LAPROX_VARIANT_SUBGROUP;
  VkPhysicalDeviceVulkan11Features core11 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
                                             .storageBuffer16BitAccess = storage16};
  VkPhysicalDeviceVulkan12Features core12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                             .pNext = &core11,
                                             .shaderFloat16 = storage16};
  VkPhysicalDeviceVulkan13Features core13 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES,
                                             .pNext = &core12,
                                             .subgroupSizeControl = subgroup,
                                             .computeFullSubgroups = subgroup};
  const VkPhysicalDeviceFeatures2 chain = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                           .pNext = &core13};
  info.features = &chain;
  assert_int_equal(variants_of(&info, NULL), wanted);
}

static void test_forbidden(void **state) {
  (void)state;
  laprox_context_info info = app_context_info(&vulkan, &device, &host.host);
  info.variants_off = 0;
  const uint32_t all = variants_of(&info, NULL);
  for (uint32_t off = 0; off <= LAPROX_ALL_VARIANTS; off++) {
    info.variants_off = off;
    uint32_t expected = all & ~off;
    if (off & LAPROX_VARIANT_STORAGE16) expected &= ~(uint32_t)LAPROX_VARIANT_MATRIX;
    assert_int_equal(variants_of(&info, NULL), expected);
  }
}

/* Pipelines are made of what the context may use, and of nothing else. */
static void test_pipelines(void **state) {
  (void)state;
  laprox_context_info info = app_context_info(&vulkan, &device, &host.host);
  laprox_context *all = NULL, *none = NULL;
  info.variants_off = LAPROX_ALL_VARIANTS;
  (void)variants_of(&info, &none);
  info.variants_off = 0;
  const uint32_t variants = variants_of(&info, &all);
  unsigned n_errors = host.n_errors;
  for (size_t i = 0; i < lpx_n_shaders; i++) {
    const lpx_shader *shader = &lpx_shaders[i];
    assert_int_equal(lpx_shader_usable(none, shader->name), !shader->needs);
    assert_int_equal(lpx_shader_usable(all, shader->name), !(shader->needs & ~variants));
    if (!shader->needs) continue;
    lpx_pipeline pipeline;
    assert_int_equal(lpx_pipeline_get(none, shader->name, 4, NULL, 0, &pipeline), LAPROX_ERROR_UNSUPPORTED);
    assert_int_equal(host.n_errors, ++n_errors);
  }
  assert_false(lpx_shader_usable(all, "no such shader"));
  laprox_context_destroy(none);
  laprox_context_destroy(all);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_names), cmocka_unit_test(test_nothing_enabled),
                                     cmocka_unit_test(test_core_structs), cmocka_unit_test(test_forbidden),
                                     cmocka_unit_test(test_pipelines)};
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
