/* laprox.c: finds the subcommand, helps, and sees to it that what was printed has arrived. */
#include "cli.h"

#include <errno.h>
#ifdef _WIN32
#include <io.h>
#else
#include <fcntl.h>
#endif
#include <stdio.h>
#include <string.h>

typedef struct subcommand {
  command which;
  const char *name;
  int (*run)(cli *c); /* NULL: of a later version */
  const char *usage, *about, *examples;
} subcommand;

static const subcommand subcommands[] = {
    {COMMAND_RUN, "run", cmd_run,
     "laprox run MODEL.gguf (-f FILE, -p TEXT or both | --ids 1,2,3 | --interactive | --load-cache FILE) "
     "[options]",
     "Reads a prompt, evicts the KV cache to a budget, and generates from what is left.",
     "  laprox run model.gguf -f document.txt --budget 5% -n 32\n"
     "      what the model answers from 5 % of its cache\n"
     "  laprox run model.gguf -f document.txt --budget 512 --scope layer --gqa joint\n"
     "      512 entries a KV head on average, heads of one layer competing, exact group scores\n"
     "  laprox run model.gguf -f document.txt --policy streaming --budget 5%\n"
     "      the same memory, spent on the first and the last tokens\n"
     "  laprox run model.gguf -p 'Once upon a time' --temp 0.8 --top-p 0.9 --seed 7\n"
     "      nothing evicted, tokens drawn\n"
     "  laprox run model.gguf -f document.txt --budget 5% --dry-run\n"
     "      what memory that takes, and whether it fits\n"
     "  laprox run model.gguf -f document.txt --budget 5% --interactive --tail 256\n"
     "      a conversation about a document, never more than 5 % and 256 entries between two questions\n"
     "  laprox run model.gguf -f document.txt --budget 512 -n 0 --save-cache document.cache\n"
     "  laprox run model.gguf --load-cache document.cache -p 'Question: Who wrote it? Answer:'\n"
     "      read once, asked later\n"
     "  laprox run model.gguf -f long.txt --budget 1024 --chunk-evict 2048\n"
     "      a prompt of which not even one layer fits: approximate\n"},
    {COMMAND_CAPTURE, "capture", cmd_capture,
     "laprox capture MODEL.gguf (-p TEXT | -f FILE | --ids 1,2,3) -o CAPTURE.safetensors [options]",
     "Reads a prompt and writes the window's queries, K, V and the output projections of every layer.",
     "  laprox capture model.gguf -f document.txt -o capture.safetensors\n"
     "  laprox capture model.gguf -f document.txt -o capture.safetensors --kv f32 --window 64\n"},
    {COMMAND_EVICT, "evict", cmd_evict,
     "laprox evict CAPTURE.safetensors -o KEPT.safetensors --budget 5% [options]",
     "Runs a policy over a captured KV cache and writes what survives, bit for bit.",
     "  laprox evict capture.safetensors -o kept.safetensors --budget 5%\n"
     "  laprox evict capture.safetensors -o kept.safetensors --budget 256 --policy snapkv --pool max:7\n"
     "  laprox evict capture.safetensors -o kept.safetensors --budget 10% --scores --json\n"},
    {COMMAND_DEVICES, "devices", cmd_devices, "laprox devices [options]",
     "Lists the Vulkan devices, whether they can be used and, if not, why.",
     "  laprox devices\n"
     "  laprox devices --json\n"},
    {COMMAND_EVAL, "eval", cmd_eval, "laprox eval MODEL.gguf --tasks TASKS.jsonl [options]",
     "Answers every task under every policy and budget; each prompt is read once.",
     "  laprox eval model.gguf --tasks needle_1024.jsonl\n"
     "  laprox eval model.gguf --tasks needle_1024.jsonl --budgets 100%,5% --policies laprox,snapkv "
     "--json\n"
     "  laprox eval model.gguf --tasks tasks.jsonl --policies laprox,laprox+gqa=joint,laprox+no-normalize "
     "--question both -o results.json\n"
     "      settings compared, with the question known and unknown; goes on where it was stopped\n"
     "  laprox eval model.gguf --fidelity 8 -o fidelity.json\n"
     "      how far the evicted cache's predictions are from the full one's\n"},
    {COMMAND_TASKS, "tasks", cmd_tasks, "laprox tasks MODEL.gguf -o TASKS.jsonl [options]",
     "Makes prompts with known answers for eval, of a length in the model's own tokens.",
     "  laprox tasks model.gguf -o needles.jsonl --task niah_single,niah_multikey --tokens 512,1024 -n 50\n"
     "  laprox tasks model.gguf -o ruler.jsonl --tokens 4096 --wording ruler --seed 7\n"
     "  laprox tasks model.gguf -o own.jsonl --task niah_single --haystack my_text.txt --tokens 8192\n"},
    {COMMAND_REPORT, "report", cmd_report, "laprox report RESULTS.json ... -o PAGE.html [options]",
     "Makes one page of eval's results: accuracy against memory, depths, what each head keeps.",
     "  laprox report results.json -o report.html\n"
     "  laprox report short.json long.json timing.json -o report.html\n"},
    {COMMAND_BENCH, "bench", cmd_bench, "laprox bench [options] | --compare A.json B.json ... -o PAGE.html",
     "Times every kernel on caches of models' shapes, beside what the device can do at most.",
     "  laprox bench --geometry llama-3.1-8b --tokens 4096,131072\n"
     "      eviction and decode attention, in every variant that the device takes\n"
     "  laprox bench --geometry all --tokens 8192 --json > here.json\n"
     "  laprox bench --compare here.json there.json -o devices.html\n"
     "      one page for several devices\n"
     "  laprox bench --model model.gguf --tokens 2048\n"
     "      reading and generating, with the full and the evicted cache\n"},
};

enum { N_SUBCOMMANDS = sizeof subcommands / sizeof *subcommands };

static void print_help(void) {
  printf("laprox keeps the part of a KV cache that matters and gives the rest of the memory back.\n\n"
         "usage: laprox SUBCOMMAND [options]\n\n");
  for (int i = 0; i < N_SUBCOMMANDS; i++)
    if (subcommands[i].run) printf("  %-9s %s\n", subcommands[i].name, subcommands[i].about);
  printf("\nA first walk:\n"
         "  laprox devices\n"
         "      is there a device?\n"
         "  laprox run model.gguf -f document.txt -n 32\n"
         "      the answer with the full cache, and what the cache takes\n"
         "  laprox run model.gguf -f document.txt -n 32 --budget 5%%\n"
         "      the answer with a twentieth of it\n"
         "  laprox run --help\n"
         "      all options of a subcommand\n\n"
         "With --json a result is one JSON object on standard output.\n"
         "LAPROX_DEVICE chooses a device by number or part of its name, as --device does.\n"
         "Exit status: 0 done, 1 could not be done, 2 wrong usage.\n");
}

static void print_subcommand_help(const subcommand *s) {
  printf("usage: %s\n\n%s\n\nOptions:\n", s->usage, s->about);
  options_describe(s->which);
  printf("\nExamples:\n%s", s->examples);
}

static const subcommand *find(const char *name) {
  for (int i = 0; i < N_SUBCOMMANDS; i++)
    if (strcmp(name, subcommands[i].name) == 0) return &subcommands[i];
  return NULL;
}

static bool is_one_of(const char *text, const char *a, const char *b, const char *c) {
  return strcmp(text, a) == 0 || strcmp(text, b) == 0 || strcmp(text, c) == 0;
}

static int dispatch(int argc, char **argv) {
  cli c;
  if (argc < 2) return fail_usage("which subcommand? (laprox --help)");
  bool helping = is_one_of(argv[1], "--help", "-h", "help");
  if (helping && (argc == 2 || argv[1][0] == '-')) {
    print_help();
    return EXIT_DONE;
  }
  if (is_one_of(argv[1], "--version", "-V", "version")) {
    printf("laprox %s\n", LAPROX_VERSION);
    return EXIT_DONE;
  }
  const char *name = helping ? argv[2] : argv[1];
  const subcommand *s = find(name);
  if (!s)
    return fail_usage("unknown %s \"%s\" (laprox --help)", name[0] == '-' ? "option" : "subcommand", name);
  if (!s->run) return fail_usage("%s is not available in this version", name);
  if (helping) {
    print_subcommand_help(s);
    return EXIT_DONE;
  }
  int status = cli_init(&c, s->which, argc - 1, argv + 1);
  if (!status && c.opt.help)
    print_subcommand_help(s);
  else if (!status)
    status = cli_finish(&c, s->run(&c));
  return status;
}

/* A closed standard stream would lend its number to the next file that is opened, and printing would damage
 * it. */
static bool is_open(int number) {
#ifdef _WIN32
  return _get_osfhandle(number) >= 0;
#else
  return fcntl(number, F_GETFD) != -1 || errno != EBADF;
#endif
}

int main(int argc, char **argv) {
  if (!is_open(1) || !is_open(2)) return fail_impossible("standard output or standard error is closed");
  catch_interrupts();
  int status = dispatch(argc, argv);
  bool arrived = fflush(stdout) == 0 && !ferror(stdout);
  if (status == EXIT_DONE && !arrived) status = fail_impossible("standard output: %s", strerror(errno));
  return status;
}
