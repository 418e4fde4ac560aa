/* cmd_report.c: `laprox report`. */
#include "cli.h"

int cmd_report(cli *c) {
  (void)c;
  return fail_usage("report is not available in this version");
}
