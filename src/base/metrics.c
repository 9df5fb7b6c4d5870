/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Counters and histograms, under one lock: they change when a job ends, not while bytes pass. */
#include "base/metrics.h"
#include "base/exposition.h"

#include <string.h>

#define LABELS 2
#define BUCKETS_MAX 16

typedef struct {
  const char *name, *help;
  const char *labels[LABELS]; /* NULL: it has fewer */
  double bounds[BUCKETS_MAX]; /* upper ends, rising, the last followed by 0; none: a counter */
} Family;

/* A pause is a millisecond or some with memory that stays where it is, and as long as somebody allows it to be (--downtime) otherwise.
 * A job takes from a tenth of a second to hours, where it copies disks. */
static const Family families[DR_METRIC_COUNT] = {
  [DR_METRIC_JOBS] = { "drover_jobs_total", "Jobs that have ended.", { "kind", "result" } },
  [DR_METRIC_JOB_PAUSE] = { "drover_job_pause_seconds",
                            "How long guests stood still in jobs.",
                            { "kind" },
                            { 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5 } },
  [DR_METRIC_JOB_DURATION] = { "drover_job_duration_seconds",
                               "How long jobs took that succeeded.",
                               { "kind" },
                               { 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400 } },
  [DR_METRIC_JOB_BYTES] = { "drover_job_bytes_total",
                            "Bytes of guests' memory and disks that jobs moved which succeeded.",
                            { "kind", "what" } },
  [DR_METRIC_RECOVERIES] = { "drover_migration_recoveries_total",
                             "Times that post-copy went on after its streams had broken." },
  [DR_METRIC_REFUSED] = { "drover_refused_connections_total",
                          "Connections over the network that were refused.",
                          { "reason" } },
  [DR_METRIC_LIBVIRT] = { "drover_libvirt_domains_total",
                          "Domains of libvirt's that were to be upgraded.",
                          { "result" } },
};

typedef struct {
  char *labels[LABELS];
  double sum; /* the counter itself */
  guint64 count, buckets[BUCKETS_MAX];
} Series;

static GMutex lock;
static GPtrArray *all[DR_METRIC_COUNT]; /* of Series, in the order in which they came; under `lock` */

static guint
n_labels(const Family *family)
{
  return !family->labels[0] ? 0 : !family->labels[1] ? 1 : 2;
}

static gboolean
is_histogram(const Family *family)
{
  return family->bounds[0] > 0;
}

static Series *
find(DrMetric metric, const char *const *labels)
{
  for (guint i = 0; i < all[metric]->len; i++) {
    Series *series = all[metric]->pdata[i];

    if (g_strcmp0(series->labels[0], labels[0]) == 0 && g_strcmp0(series->labels[1], labels[1]) == 0)
      return series;
  }
  return NULL;
}

static Series *
add(DrMetric metric, const char *const *labels)
{
  Series *series = g_new0(Series, 1);

  for (guint i = 0; i < LABELS; i++)
    series->labels[i] = g_strdup(labels[i]);
  g_ptr_array_add(all[metric], series);
  return series;
}

/* Under the lock. One place is kept for those that find no other. */
static Series *
series_of(DrMetric metric, const char *label_1, const char *label_2)
{
  const char *labels[LABELS] = { label_1, label_2 };
  guint n = n_labels(&families[metric]);
  Series *series;

  g_assert(!label_1 == (n < 1) && !label_2 == (n < 2));
  if (!all[metric])
    all[metric] = g_ptr_array_new();
  series = find(metric, labels);
  if (!series && all[metric]->len >= DR_METRIC_SERIES_MAX - 1) {
    for (guint i = 0; i < n; i++)
      labels[i] = "other";
    series = find(metric, labels);
  }
  return series ? series : add(metric, labels);
}

void
dr_metric_add(DrMetric counter, double amount, const char *label_1, const char *label_2)
{
  g_assert(!is_histogram(&families[counter]) && amount >= 0);
  g_mutex_lock(&lock);
  series_of(counter, label_1, label_2)->sum += amount;
  g_mutex_unlock(&lock);
}

void
dr_metric_prepare(DrMetric histogram, const char *label)
{
  g_assert(is_histogram(&families[histogram]));
  g_mutex_lock(&lock);
  series_of(histogram, label, NULL);
  g_mutex_unlock(&lock);
}

void
dr_metric_observe(DrMetric histogram, double seconds, const char *label)
{
  const Family *family = &families[histogram];
  Series *series;

  g_assert(is_histogram(family));
  seconds = MAX(seconds, 0);
  g_mutex_lock(&lock);
  series = series_of(histogram, label, NULL);
  series->count++;
  series->sum += seconds;
  for (guint i = 0; i < BUCKETS_MAX && family->bounds[i] > 0; i++)
    series->buckets[i] += seconds <= family->bounds[i];
  g_mutex_unlock(&lock);
}

/* --- Printing --- */

static void
print_part(const Family *family, const Series *series, const char *part, const char *bound, double value,
           GString *out)
{
  g_autofree char *name = g_strconcat(family->name, part, NULL);
  const char *pairs[2 * (LABELS + 1) + 1] = { NULL };
  guint n = 0;

  for (guint i = 0; i < n_labels(family); i++) {
    pairs[n++] = family->labels[i];
    pairs[n++] = series->labels[i];
  }
  if (bound) {
    pairs[n++] = "le";
    pairs[n++] = bound;
  }
  dr_exposition_sample(out, name, pairs, value);
}

static void
print_series(const Family *family, const Series *series, GString *out)
{
  char bound[G_ASCII_DTOSTR_BUF_SIZE];

  if (!is_histogram(family)) {
    print_part(family, series, "", NULL, series->sum, out);
    return;
  }
  for (guint i = 0; i < BUCKETS_MAX && family->bounds[i] > 0; i++)
    print_part(family, series, "_bucket", g_ascii_formatd(bound, sizeof bound, "%.15g", family->bounds[i]),
               (double)series->buckets[i], out);
  print_part(family, series, "_bucket", "+Inf", (double)series->count, out);
  print_part(family, series, "_sum", NULL, series->sum, out);
  print_part(family, series, "_count", NULL, (double)series->count, out);
}

void
dr_metrics_print(GString *out)
{
  g_mutex_lock(&lock);
  for (guint metric = 0; metric < DR_METRIC_COUNT; metric++) {
    const Family *family = &families[metric];

    dr_exposition_head(out, family->name, is_histogram(family) ? "histogram" : "counter", family->help);
    for (guint i = 0; all[metric] && i < all[metric]->len; i++)
      print_series(family, all[metric]->pdata[i], out);
    if (!all[metric] && n_labels(family) == 0)
      dr_exposition_sample(out, family->name, NULL, 0);
  }
  g_mutex_unlock(&lock);
}
