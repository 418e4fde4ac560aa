/* mpi: one eviction over the processes of mpirun, each with a device and some of a model's layers. Together they keep what
 * one process with all layers keeps: `mpirun -n 2 mpi` prints what `mpi` alone does. K and V are made up. */
#include "app.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { LAYERS = 7, HEADS = 8, KV_HEADS = 2, DIM = 64, TOKENS = 1200, ARENA = 24 << 20 };

typedef struct process {
  int rank, n_ranks;
  app a;
  app_commands c;
  uint32_t first_layer, n_layers;
  laprox_plan *plan;
  laprox_binding *binding;
  laprox_buffer scratch, result;
  float *host_scratch, *host_result;
} process;

/* Ends all processes where `result` is not 0. */
static void must_all(int result, const char *what) {
  if (!result) return;
  (void)fprintf(stderr, "%s failed (%d)\n", what, result);
  (void)MPI_Abort(MPI_COMM_WORLD, 1);
}

static void plan_and_bind(process *p, laprox_context *context) {
  const laprox_plan_info plan_info = {.shape = {p->n_layers, HEADS, KV_HEADS, DIM},
                                      .policy.budget.share = 0.1,
                                      .cache_dtype = LAPROX_DTYPE_F32,
                                      .n_segments = 1,
                                      .segments = {{.n_entries = TOKENS}},
                                      .n_tokens = TOKENS,
                                      .distributed = p->n_ranks > 1,
                                      .layer_offset = p->first_layer,
                                      .model_layers = LAYERS};
  laprox_requirements needs;
  laprox_layer_buffers layers[LAYERS] = {0};
  must_all(laprox_plan_create(context, &plan_info, &p->plan), "laprox_plan_create");
  laprox_plan_requirements(p->plan, &needs);
  for (uint32_t l = 0; l < p->n_layers; l++)
    app_fill_layer(&p->a, &plan_info.shape, p->first_layer + l, TOKENS, &needs, &layers[l]);
  const laprox_buffer uploads = {p->a.host, 0, p->a.used_bytes};
  p->scratch = app_take(&p->a, needs.scratch_bytes, &p->host_scratch);
  p->result = app_take(&p->a, needs.result_bytes, &p->host_result);
  const laprox_binding_info buffers = {.layers = layers,
                                       .scratch = p->scratch,
                                       .scores = app_take(&p->a, needs.scores_bytes, NULL),
                                       .result = p->result};
  must_all(laprox_binding_create(p->plan, &buffers, &p->binding), "laprox_binding_create");
  app_begin(&p->c);
  app_copy(&p->c, p->a.host, p->a.arena, uploads);
  app_run(&p->c);
}

/* Steps [first, first + count) between copies of what comes from the host before, and goes there after. */
static void run(const process *p, uint32_t first, uint32_t count, laprox_buffer from_host,
                laprox_buffer to_host) {
  app_begin(&p->c);
  if (from_host.size) app_copy(&p->c, p->a.host, p->a.arena, from_host);
  must_all(laprox_cmd_steps(p->c.buffer, p->binding, first, count), "laprox_cmd_steps");
  if (to_host.size) app_copy(&p->c, p->a.arena, p->a.host, to_host);
  app_run(&p->c);
}

/* Scoring needs nobody else; then all choose together, round by round. */
static void score_and_choose(const process *p) {
  laprox_buffer counters = {0};
  laprox_round round;
  laprox_binding_round(p->binding, 0, &round);
  run(p, 0, round.first, counters, counters);
  for (uint32_t i = 0; i < laprox_binding_n_rounds(p->binding); i++) {
    const laprox_buffer sums = counters;
    laprox_binding_round(p->binding, i, &round);
    counters = (laprox_buffer){p->a.arena, p->scratch.offset + round.offset, round.bytes};
    run(p, round.first, round.count, sums, round.bytes ? counters : p->result);
    if (round.bytes)
      must_all(MPI_Allreduce(MPI_IN_PLACE, p->a.mapped + counters.offset, (int)(round.bytes / 4),
                             MPI_UINT32_T, MPI_SUM, MPI_COMM_WORLD),
               "MPI_Allreduce");
  }
}

/* How many entries each head keeps, and a sum over all that are kept which any other set would change. */
static void print_kept(const process *p) {
  uint32_t n_kept[LAYERS * KV_HEADS] = {0};
  uint64_t hash = 0;
  laprox_result_layout layout;
  laprox_plan_result_layout(p->plan, &layout);
  const uint32_t *words = (const uint32_t *)(const void *)p->host_result;
  const uint32_t *rows = words + layout.cu_seqlens / 4, *indices = words + layout.indices / 4;
  for (uint32_t head = 0; head < p->n_layers * KV_HEADS; head++) {
    const uint32_t number = p->first_layer * KV_HEADS + head;
    n_kept[number] = rows[head + 1] - rows[head];
    for (uint32_t row = rows[head]; row < rows[head + 1]; row++) {
      const uint64_t mixed = ((uint64_t)number << 32 | indices[row]) * UINT64_C(0x9e3779b97f4a7c15);
      hash += (mixed ^ mixed >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
    }
  }
  const void *own = p->rank ? (const void *)n_kept : MPI_IN_PLACE,
             *own_hash = p->rank ? (void *)&hash : MPI_IN_PLACE;
  must_all(MPI_Reduce(own, n_kept, LAYERS * KV_HEADS, MPI_UINT32_T, MPI_SUM, 0, MPI_COMM_WORLD),
           "MPI_Reduce");
  must_all(MPI_Reduce(own_hash, &hash, 1, MPI_UINT64_T, MPI_SUM, 0, MPI_COMM_WORLD), "MPI_Reduce");
  uint32_t sum = 0;
  for (uint32_t head = 0; head < LAYERS * KV_HEADS && !p->rank; head++) {
    (void)printf("layer %u, KV head %u keeps %u of %d\n", head / KV_HEADS, head % KV_HEADS, n_kept[head],
                 TOKENS);
    sum += n_kept[head];
  }
  if (!p->rank) (void)printf("%u entries in all, %016llx\n", sum, (unsigned long long)hash);
}

int main(int argc, char **argv) {
  process p = {0};
  laprox_context *context = NULL;
  must(MPI_Init(&argc, &argv), "MPI_Init");
  (void)MPI_Comm_rank(MPI_COMM_WORLD, &p.rank);
  (void)MPI_Comm_size(MPI_COMM_WORLD, &p.n_ranks);
  p.first_layer = (uint32_t)(LAYERS * p.rank / p.n_ranks);
  p.n_layers = (uint32_t)(LAYERS * (p.rank + 1) / p.n_ranks) - p.first_layer;
  must_all(p.n_layers == 0, "giving every process a layer");
  app_open(&p.a, false, ARENA);
  app_commands_create(&p.a, 0, &p.c);
  const laprox_context_info info = app_context_info(&p.a);
  must_all(laprox_context_create(&info, &context), "laprox_context_create");
  plan_and_bind(&p, context);
  score_and_choose(&p);
  print_kept(&p);
  laprox_binding_destroy(p.binding);
  laprox_plan_destroy(p.plan);
  laprox_context_destroy(context);
  app_commands_destroy(&p.c);
  app_close(&p.a);
  return MPI_Finalize();
}
