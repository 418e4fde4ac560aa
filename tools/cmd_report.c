/* cmd_report.c: `laprox report`: results of eval as one page. */
#include "report.h"

#include "io/file.h"

#include <stdlib.h>

static int write_page(cli *c, const text_buffer *page) {
  lpx_output to = {0};
  if (page->failed) return fail_impossible("out of memory for a page");
  laprox_result result = lpx_output_open(&c->host, c->opt.output, &to);
  if (!result) result = lpx_output_write(&to, page->bytes, page->n);
  if (!result) result = lpx_output_commit(&to);
  lpx_output_close(&to);
  return result ? cli_fail(c, result) : EXIT_DONE;
}

int cmd_report(cli *c) {
  const options *o = &c->opt;
  report *r = calloc(1, sizeof *r);
  text_buffer page = {0};
  if (!r) return fail_impossible("out of memory");
  int status = report_read(r, o->input);
  for (uint32_t i = 0; i < o->n_more_inputs && !status; i++) status = report_read(r, o->more_inputs[i]);
  if (!status && !r->n_rows && !r->n_fidelity) status = fail_impossible("%s: no results in it", o->input);
  if (!status) {
    report_compare_bytes(r);
    page_write(r, &page);
    status = write_page(c, &page);
  }
  if (!status && o->json)
    status = print_json(
        json_pack("{s:s, s:i, s:I}", "output", o->output, "pages", 1, "results", (json_int_t)r->n_rows));
  text_finish(&page);
  report_finish(r);
  free(r);
  return status;
}
