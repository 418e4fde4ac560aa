// Rows of K or V for the scoring kernels on cooperative matrices, a step after the other: while one step is worked on, the
// next is on its way. There is one place for steps in shared memory, so that a processor has room for more workgroups. The
// includer has HEAD_DIM, STEP_ENTRIES, N_INVOCATIONS and a push with rows.
#ifndef STEP_MATRIX_GLSL
#define STEP_MATRIX_GLSL

const uint ROW_LOADS = HEAD_DIM / 8;   // of 16 bytes
const uint ROW_STRIDE = ROW_LOADS + 1; // neighbouring rows hit different banks
const uint STEP_OCTETS = STEP_ENTRIES * ROW_STRIDE;
const uint LOADS = (STEP_ENTRIES * ROW_LOADS + N_INVOCATIONS - 1) / N_INVOCATIONS; // an invocation's in a step

layout(set = 0, binding = 0) readonly buffer Rows { uint row_words[]; };
layout(set = 0, binding = 0) readonly buffer Rows4 { uvec4 row_octets[]; };

shared uvec4 staged[STEP_OCTETS];

uvec4 fetched[LOADS];
uint steps_begin, n_steps; // entry that the first step begins with

// An octet that the invocation takes part in fetching: entry of the step, and place in its row, mostly the same in all.
const bool ONE_OCTET = N_INVOCATIONS % ROW_LOADS == 0;
#define FETCHED(i)       ((i) * N_INVOCATIONS + gl_LocalInvocationIndex)
#define FETCHED_ENTRY(i)                                                                                             \
  (ONE_OCTET ? (i) * (N_INVOCATIONS / ROW_LOADS) + gl_LocalInvocationIndex / ROW_LOADS : FETCHED(i) / ROW_LOADS)
#define FETCHED_OCTET(i) ((ONE_OCTET ? gl_LocalInvocationIndex : FETCHED(i)) % ROW_LOADS)
#define IS_FETCHED(i)    (FETCHED(i) < STEP_ENTRIES * ROW_LOADS)

// Most steps are within the binding, and all rows begin at 16 bytes.
void fetch_step(uint step) {
  const uint first_entry = steps_begin + step * STEP_ENTRIES;
  if (step >= n_steps) return;
  if (first_entry >= entries_begin && first_entry + STEP_ENTRIES <= entries_end && rows_are_wide()) {
    const uint at = row_start(first_entry) / 8, stride = push.rows.entry_stride / 8;
    UNROLLED for (uint i = 0; i < LOADS; i++)
      if (IS_FETCHED(i)) fetched[i] = row_octets[at + FETCHED_ENTRY(i) * stride + FETCHED_OCTET(i)];
    return;
  }
  UNROLLED for (uint i = 0; i < LOADS; i++) {
    const uint entry = first_entry + FETCHED_ENTRY(i), at = row_start(entry) / 2 + FETCHED_OCTET(i) * 4;
    fetched[i] = uvec4(0);
    if (IS_FETCHED(i) && has_row(entry))
      fetched[i] = uvec4(row_words[at], row_words[at + 1], row_words[at + 2], row_words[at + 3]);
  }
}

void begin_steps(uint first_entry, uint count) {
  steps_begin = first_entry;
  n_steps = count;
  fetch_step(0);
}

// Its rows are there, and what subgroups have written to shared memory in the step before. What is fetched next is up to the
// caller: the step behind.
void enter_step(uint step) {
  barrier();
  UNROLLED for (uint i = 0; i < LOADS; i++)
    if (IS_FETCHED(i)) staged[FETCHED_ENTRY(i) * ROW_STRIDE + FETCHED_OCTET(i)] = fetched[i];
  barrier();
}

#endif
