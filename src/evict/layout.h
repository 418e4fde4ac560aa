/* layout.h: how the host describes a cache to the eviction kernels; the same numbers stand in
   shaders/evict/layout.glsl and select.glsl. */
#ifndef LPX_EVICT_LAYOUT_H
#define LPX_EVICT_LAYOUT_H

#include <stdint.h>

/* What a dispatch sees of a layer's K or V, among its push constants; strides and origin in units that the host chooses,
   mostly elements. */
typedef struct lpx_row_layout {
  uint32_t segment, begin_entry, end_entry, origin, entry_stride, head_stride;
} lpx_row_layout;

enum {
  HEAD_N_CANDIDATES = 0,
  HEAD_N_SINKS = 1,
  HEAD_N_ENTRIES = 2,
  HEAD_FIRST_BLOCK = 3,
  HEAD_FIRST_TILE = 4,
  HEAD_FIRST_SPLIT = 5,
  HEAD_ROW = 6,
  HEAD_ROWS = 7,
  HEAD_PROTECTED = 10,
  HEAD_MASK = 11,
  HEAD_WORDS = 12,

  TILE_ENTRIES = 64,
  SPLIT_ENTRIES = 512,
  BLOCK_ENTRIES = 1024,

  RUN_PROBLEM = 3,
  RUN_WORDS = 4, /* first block, number of blocks, first run of the problem, problem */
  MIN_RUN_BLOCKS = 4,
  MAX_RUN_BLOCKS = 128,

  PROBLEM_K = 0,
  PROBLEM_BASE = 1,
  PROBLEM_LOW = 2,
  PROBLEM_HIGH = 3,
  PROBLEM_RUNS = 4,
  PROBLEM_WORDS = 11,
  N_DIGITS = 3,
  N_SHARES = 2, /* places less sinks, and candidates, of a device */
  MAX_ROUNDS = 5,
  HISTOGRAM_BINS = 2048,
  PLAIN_COUNTS = 32, /* words of a run in place of histograms where atomics fail */
  COMPACT_ROWS = 128 /* rows of a compaction workgroup: one an invocation */
};

#endif
