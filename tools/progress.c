/* progress.c: draws and removes the bar. */
#include "cli.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BAR_WIDTH = 30, PATIENCE_MS = 1000, FRAME_MS = 100 };

void progress_init(progress *p, bool wanted) {
  *p = (progress){.visible = wanted && isatty(STDERR_FILENO)};
}

void progress_clear(progress *p) {
  if (!p->drawn) return;
  fputs("\r\033[K", stderr);
  fflush(stderr);
  p->drawn = false;
}

bool progress_step(void *user, const char *what, double fraction) {
  progress *p = user;
  if (interrupted()) return false;
  if (!p->visible) return true;
  double now = now_ms();
  if (strncmp(p->what, what, sizeof p->what - 1) != 0) {
    progress_clear(p);
    snprintf(p->what, sizeof p->what, "%s", what);
    p->started_ms = now;
  }
  if (fraction >= 1) {
    progress_clear(p);
    return true;
  }
  if (now - p->started_ms < PATIENCE_MS || now - p->drawn_ms < FRAME_MS || !(fraction >= 0)) return true;
  char bar[BAR_WIDTH + 1];
  int filled = (int)(fraction * BAR_WIDTH);
  for (int i = 0; i < BAR_WIDTH; i++) bar[i] = i < filled ? '#' : '.';
  bar[BAR_WIDTH] = 0;
  fprintf(stderr, "\r%s [%s] %3.0f %%\033[K", p->what, bar, fraction * 100);
  fflush(stderr);
  p->drawn = true;
  p->drawn_ms = now;
  return true;
}
