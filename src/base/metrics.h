/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What this process has counted since it began, for GET /metrics: counters and histograms, each a family of series by its labels.
 * docs/METRICS.md says what each means.
 *
 * They are the process' own and begin at 0 with it, which Prometheus expects of a counter. All functions may be called from any
 * thread, and take no time worth mentioning: no job, no stream and no monitor waits for them. What is true only at the moment (how many
 * VMs there are) is not kept here but looked up when it is asked for. */
#pragma once
#include <glib.h>

typedef enum {
  DR_METRIC_JOBS,         /* counter: kind, result */
  DR_METRIC_JOB_PAUSE,    /* histogram: kind */
  DR_METRIC_JOB_DURATION, /* histogram: kind */
  DR_METRIC_JOB_BYTES,    /* counter: kind, what */
  DR_METRIC_RECOVERIES,   /* counter */
  DR_METRIC_REFUSED,      /* counter: reason */
  DR_METRIC_LIBVIRT,      /* counter: result */
  DR_METRIC_COUNT,
} DrMetric;

/* Series of one family. Of a label that takes more values than that, the rest is counted under "other". */
#define DR_METRIC_SERIES_MAX 128

/* `label_1`, `label_2`: as many as the family has, NULL for those that it has not. `amount` is not negative; with 0 the series is there
 * from now on, so that its first step is seen as one: Prometheus takes a series that begins at 1 for one that always was. */
void dr_metric_add(DrMetric counter, double amount, const char *label_1, const char *label_2);

/* `prepare`: the same for a histogram. What is less than 0 (a clock was set back) counts as 0. */
void dr_metric_observe(DrMetric histogram, double seconds, const char *label);
void dr_metric_prepare(DrMetric histogram, const char *label);

/* All of them, in the order of the enum. */
void dr_metrics_print(GString *out);
