/* progress.h: a bar on standard error for what takes longer than a second. */
#ifndef TOOLS_PROGRESS_H
#define TOOLS_PROGRESS_H

#include <stdbool.h>

typedef struct progress {
  bool visible; /* standard error is a terminal, and wanted */
  bool drawn;
  char what[32];
  double started_ms, drawn_ms;
} progress;

void progress_init(progress *p, bool wanted);
/* A laprox_progress_fn; `user` is the progress. */
bool progress_step(void *user, const char *what, double fraction);
/* Removes the bar, before anything else is written. */
void progress_clear(progress *p);

#endif
