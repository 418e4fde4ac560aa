/* progress.h: a bar on standard error, with the time left, for what takes longer than a second. */
#ifndef TOOLS_PROGRESS_H
#define TOOLS_PROGRESS_H

#include <stdbool.h>

typedef struct progress {
  bool visible; /* standard error is a terminal, and wanted */
  bool drawn;
  char what[32];
  double started_ms, drawn_ms;
  double first; /* the fraction that it began with: a run that goes on does not begin at 0 */
} progress;

void progress_init(progress *p, bool wanted);
/* A laprox_progress_fn; `user` is the progress. */
bool progress_step(void *user, const char *what, double fraction);
/* Removes the bar, before anything else is written. */
void progress_clear(progress *p);

#endif
