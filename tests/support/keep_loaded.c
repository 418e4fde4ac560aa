/* keep_loaded.c: preloaded where leaks are looked for. A driver that has been unloaded has lost its name, by
 * which its own leaks are excused, and the data through which its globals are still reachable. */
__attribute__((visibility("default"))) int dlclose(void *handle);

int dlclose(void *handle) {
  (void)handle;
  return 0;
}
