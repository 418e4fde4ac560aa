/* eval_metrics.h: how good an answer is, from 0 to 1, and how sure one can be of a mean. */
#ifndef TOOLS_EVAL_METRICS_H
#define TOOLS_EVAL_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum metric {
  METRIC_BEGINS = 0, /* the trimmed answer begins with the reference: laprox's own tasks */
  METRIC_MATCH_ALL,  /* share of the references that are in it, whatever the case: RULER */
  METRIC_MATCH_PART, /* 1 where any reference is in it: RULER's questions */
  METRIC_F1,         /* words in common, without punctuation and articles: LongBench's questions */
  METRIC_ROUGE_L,    /* F1 of the longest common subsequence of words: LongBench's summaries */
  METRIC_EDIT, /* twice the common letters in order, over all letters, of the first line of code: LongBench */
  METRIC_CLASSIFICATION, /* the reference among the classes that are named, over their number: LongBench */
  METRIC_RETRIEVAL,      /* share of the numbers in it that are the reference's "Paragraph N": LongBench */
  METRIC_COUNT,          /* share of the numbers in it that are the reference: LongBench */
  N_METRICS
} metric;

extern const char *const metric_names[N_METRICS];
/* N_METRICS where there is none of that name. */
metric metric_find(const char *name);

typedef struct references {
  const char *const *texts;
  size_t n;
  const char *const *classes; /* all that there are, for METRIC_CLASSIFICATION */
  size_t n_classes;
} references;

/* The best score over the references; for METRIC_MATCH_ALL their mean. Negative: out of memory. */
double metric_score(metric which, const char *answer, const references *to);
/* Whether nothing that may follow can change the score. */
bool metric_is_settled(metric which, const char *answer, const references *to);

/* The interval of 95 % after Wilson for a mean of n scores between 0 and 1. */
void wilson_interval(double mean, uint64_t n, double *low, double *high);

#endif
