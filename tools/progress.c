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

/* " 12 min left", once there is something to go by. */
static void say_left(const progress *p, double now, double fraction, char text[32]) {
  const double done = fraction - p->first, seconds = (now - p->started_ms) / 1e3;
  const double left = done > 0 ? seconds * (1 - fraction) / done : 0;
  text[0] = 0;
  if (seconds < 5 || left < 1 || left > 1e7) return;
  if (left < 90)
    snprintf(text, 32, ", %.0f s left", left);
  else if (left < 5400)
    snprintf(text, 32, ", %.0f min left", left / 60);
  else
    snprintf(text, 32, ", %.1f h left", left / 3600);
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
    p->first = fraction;
  }
  if (fraction >= 1) {
    progress_clear(p);
    return true;
  }
  if (now - p->started_ms < PATIENCE_MS || now - p->drawn_ms < FRAME_MS || !(fraction >= 0)) return true;
  char bar[BAR_WIDTH + 1], left[32];
  int filled = (int)(fraction * BAR_WIDTH);
  for (int i = 0; i < BAR_WIDTH; i++) bar[i] = i < filled ? '#' : '.';
  bar[BAR_WIDTH] = 0;
  say_left(p, now, fraction, left);
  fprintf(stderr, "\r%s [%s] %3.0f %%%s\033[K", p->what, bar, fraction * 100, left);
  fflush(stderr);
  p->drawn = true;
  p->drawn_ms = now;
  return true;
}
