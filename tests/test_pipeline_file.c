/* test_pipeline_file.c: compiled pipelines on disk: written, read again, and never given to a driver when damaged. */
#define _POSIX_C_SOURCE 200809L /* mkdtemp */

#include "laprox/runtime.h"
#include "laprox/vulkan.h"
#include "support/bytes.h"
#include "support/host.h"
#include "support/variants.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { HEADER_BYTES = 56 };

static char directory[64], path[512];

/* Opens and destroys a device, whose self-test makes pipelines; gives the number of warnings. */
static unsigned open_device(const char *where) {
  test_host host;
  laprox_instance *instance = NULL;
  laprox_device *device = NULL;
  test_host_init(&host);
  const laprox_instance_info info = {
      .host = host.host, .variants_off = test_variants_off(), .cache_directory = where};
  assert_int_equal(laprox_instance_create(&info, &instance), LAPROX_OK);
  assert_int_equal(laprox_device_open(instance, getenv("LAPROX_DEVICE"), &device), LAPROX_OK);
  laprox_device_destroy(device);
  laprox_instance_destroy(instance);
  assert_int_equal(host.n_errors, 0);
  assert_int_equal(host.n_live, 0);
  return host.n_warnings;
}

/* The only file, whose name is the device's. */
static unsigned find_files(void) {
  unsigned n = 0;
  DIR *listing = opendir(directory);
  assert_non_null(listing);
  for (struct dirent *entry; (entry = readdir(listing)) != NULL;)
    if (entry->d_name[0] != '.') {
      (void)snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
      n++;
    }
  closedir(listing);
  return n;
}

static void test_written_and_read(void **state) {
  const unsigned expected = *(unsigned *)*state;
  assert_int_equal(open_device(directory), expected);
  assert_int_equal(find_files(), 1);
  size_t n, again;
  uint8_t *first = read_file(path, &n);
  assert_true(n > HEADER_BYTES);
  assert_int_equal(open_device(directory), expected);
  uint8_t *second = read_file(path, &again);
  assert_true(again >= n);
  free(first);
  free(second);
}

static void expect_ignored(const uint8_t *data, size_t n, unsigned expected) {
  write_file(path, data, n);
  assert_int_equal(open_device(directory), expected + 1);
  assert_int_equal(open_device(directory), expected); /* it has been written anew */
}

static void test_damaged(void **state) {
  const unsigned expected = *(unsigned *)*state;
  assert_int_equal(find_files(), 1);
  size_t n;
  uint8_t *data = read_file(path, &n);
  const size_t lengths[] = {0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 17, n - 1};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) expect_ignored(data, lengths[i], expected);
  /* magic, length, checksum, vendor, driver, UUID, the driver's own header and its last byte */
  const size_t places[] = {0, 8, 16, 24, 32, 40, HEADER_BYTES + 4, n - 1};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    data[places[i]] ^= 0x10;
    expect_ignored(data, n, expected);
    data[places[i]] ^= 0x10;
  }
  free(data);
}

/* A place where no file can be is no reason to fail. */
static void test_nowhere(void **state) {
  const unsigned expected = *(unsigned *)*state;
  assert_int_equal(open_device("/nonexistent/laprox"), expected + 1);
}

static unsigned n_always; /* warnings that the device has anyway */
static laprox_instance *kept;

static int set_up(void **state) {
  /* Some drivers don't survive being unloaded and loaded a few dozen times. */
  const laprox_instance_info info = {0};
  if (laprox_instance_create(&info, &kept)) return -1;
  (void)snprintf(directory, sizeof directory, "/tmp/laprox-test-XXXXXX");
  n_always = open_device(NULL);
  *state = &n_always;
  return mkdtemp(directory) ? 0 : -1;
}

static int tear_down(void **state) {
  (void)state;
  laprox_instance_destroy(kept);
  if (find_files()) remove(path);
  return rmdir(directory);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_written_and_read), cmocka_unit_test(test_damaged),
                                     cmocka_unit_test(test_nowhere)};
  return cmocka_run_group_tests_name("pipeline_file", tests, set_up, tear_down);
}
