/* parallel.c: threads that live for one call. */
#include "runtime/parallel.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <pthread.h>
#include <unistd.h>
#endif

#define MAX_THREADS 16 /* this one included */

typedef struct work {
  uint32_t n;
  lpx_task_fn task;
  void *user;
  _Atomic uint32_t next;
} work;

static void do_work(work *shared) {
  for (uint32_t i; (i = atomic_fetch_add(&shared->next, 1)) < shared->n;) shared->task(shared->user, i);
}

#ifdef _WIN32

typedef HANDLE thread;

static DWORD WINAPI run(void *user) {
  do_work(user);
  return 0;
}

static bool start(work *shared, thread *out) {
  *out = CreateThread(NULL, 0, run, shared, 0, NULL);
  return *out != NULL;
}

static void join(thread started) {
  (void)WaitForSingleObject(started, INFINITE);
  (void)CloseHandle(started);
}

static uint32_t count_processors(void) {
  SYSTEM_INFO info;
  GetSystemInfo(&info);
  return info.dwNumberOfProcessors;
}

#else

/* Shader compilers are C++ that expects the stack of a program's first thread; musl's threads have 128 kB. */
#define STACK_BYTES ((size_t)8 << 20)

typedef pthread_t thread;

static void *run(void *user) {
  do_work(user);
  return NULL;
}

static bool start(work *shared, thread *out) {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes)) return false;
  const bool started =
      !pthread_attr_setstacksize(&attributes, STACK_BYTES) && !pthread_create(out, &attributes, run, shared);
  (void)pthread_attr_destroy(&attributes);
  return started;
}

static void join(thread started) {
  (void)pthread_join(started, NULL);
}

static uint32_t count_processors(void) {
  const long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n < 1 ? 1 : (uint32_t)n;
}

#endif

void lpx_parallel_for_each(uint32_t n, lpx_task_fn task, void *user) {
  work shared = {.n = n, .task = task, .user = user};
  thread others[MAX_THREADS - 1];
  uint32_t wanted = count_processors(), n_others = 0;
  if (wanted > MAX_THREADS) wanted = MAX_THREADS;
  if (wanted > n) wanted = n;
  while (n_others + 1 < wanted && start(&shared, &others[n_others])) n_others++;
  do_work(&shared);
  for (uint32_t i = 0; i < n_others; i++) join(others[i]);
}
