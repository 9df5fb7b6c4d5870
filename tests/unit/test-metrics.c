/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Metrics: the text format, counters and histograms, and what is counted of a job. The registry is the process' own: what another test
 * has counted is there already, so each looks at what it has added, or has a label of its own. */
#include "base/exposition.h"
#include "base/json.h"
#include "base/metrics.h"
#include "job/job-metrics.h"
#include "net/meter.h"

#include <string.h>

/* --- The text --- */

static void
test_escaping(void)
{
  g_autoptr(GString) out = g_string_new(NULL);

  dr_exposition_sample(out, "x", (const char *const[]){ "a", "q\"b\\n\nz", "b", "\xff", NULL }, 1);
  g_assert_cmpstr(out->str, ==, "x{a=\"q\\\"b\\\\n\\nz\",b=\"\xEF\xBF\xBD\"} 1\n");
}

static void
test_numbers(void)
{
  g_autoptr(GString) out = g_string_new(NULL);

  dr_exposition_sample(out, "a", NULL, 0.1);
  dr_exposition_sample(out, "b", NULL, 123456789012345);
  dr_exposition_one(out, "c", "gauge", "Help.", 0);
  g_assert_cmpstr(out->str, ==, "a 0.1\nb 123456789012345\n# HELP c Help.\n# TYPE c gauge\nc 0\n");
}

/* --- The registry --- */

static char *
scrape(void)
{
  GString *out = g_string_new(NULL);

  dr_metrics_print(out);
  return g_string_free(out, FALSE);
}

/* Of the line that begins with `series`; -1: there is none. */
static double
value_of(const char *series)
{
  g_autofree char *text = scrape();
  g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
  gsize len = strlen(series);

  for (char **line = lines; *line; line++)
    if (g_str_has_prefix(*line, series) && (*line)[len] == ' ')
      return g_ascii_strtod(*line + len, NULL);
  return -1;
}

static void
test_counter(void)
{
  static const char series[] = "drover_refused_connections_total{reason=\"test\"}";

  g_assert_cmpfloat(value_of(series), ==, -1);
  dr_metric_add(DR_METRIC_REFUSED, 0, "test", NULL);
  g_assert_cmpfloat(value_of(series), ==, 0);
  dr_metric_add(DR_METRIC_REFUSED, 1, "test", NULL);
  dr_metric_add(DR_METRIC_REFUSED, 2, "test", NULL);
  g_assert_cmpfloat(value_of(series), ==, 3);
}

/* One without labels is always there. */
static void
test_counter_without_labels(void)
{
  g_assert_cmpfloat(value_of("drover_migration_recoveries_total"), ==, 0);
  dr_metric_add(DR_METRIC_RECOVERIES, 1, NULL, NULL);
  g_assert_cmpfloat(value_of("drover_migration_recoveries_total"), ==, 1);
}

static double
pause_bucket(const char *bound)
{
  g_autofree char *series =
      g_strdup_printf("drover_job_pause_seconds_bucket{kind=\"test\",le=\"%s\"}", bound);

  return value_of(series);
}

/* A bound belongs to its bucket, and each bucket counts all those below, too. */
static void
test_histogram(void)
{
  static const double seconds[] = { 0.001, 0.0011, 0.3, 4, 100, -1 };

  dr_metric_prepare(DR_METRIC_JOB_PAUSE, "test");
  g_assert_cmpfloat(pause_bucket("+Inf"), ==, 0);
  for (guint i = 0; i < G_N_ELEMENTS(seconds); i++)
    dr_metric_observe(DR_METRIC_JOB_PAUSE, seconds[i], "test");
  g_assert_cmpfloat(pause_bucket("0.001"), ==, 2); /* -1 counts as 0 */
  g_assert_cmpfloat(pause_bucket("0.002"), ==, 3);
  g_assert_cmpfloat(pause_bucket("0.2"), ==, 3);
  g_assert_cmpfloat(pause_bucket("0.3"), ==, 4);
  g_assert_cmpfloat(pause_bucket("5"), ==, 5);
  g_assert_cmpfloat(pause_bucket("+Inf"), ==, 6);
  g_assert_cmpfloat(value_of("drover_job_pause_seconds_count{kind=\"test\"}"), ==, 6);
  g_assert_cmpfloat_with_epsilon(value_of("drover_job_pause_seconds_sum{kind=\"test\"}"), 104.3021, 1e-9);
}

/* What a label says may come from elsewhere one day: it does not fill the memory. */
static void
test_bound(void)
{
  g_autofree char *text = NULL;
  guint lines = 0;

  for (guint i = 0; i < 1000; i++) {
    g_autofree char *kind = g_strdup_printf("kind %u", i);

    dr_metric_add(DR_METRIC_JOB_BYTES, 1, kind, "memory");
  }
  text = scrape();
  for (const char *at = text; (at = strstr(at, "\ndrover_job_bytes_total{")); at++)
    lines++;
  g_assert_cmpuint(lines, ==, DR_METRIC_SERIES_MAX);
  g_assert_cmpfloat(value_of("drover_job_bytes_total{kind=\"other\",what=\"other\"}"), >,
                    1000 - DR_METRIC_SERIES_MAX);
}

#define THREADS 4
#define EACH 2000

static gpointer
count_and_scrape(gpointer data)
{
  for (guint i = 0; i < EACH; i++) {
    dr_metric_add(DR_METRIC_REFUSED, 1, "threads", NULL);
    dr_metric_observe(DR_METRIC_JOB_DURATION, 1, "threads");
    if (i % 100 == 0)
      g_free(scrape());
  }
  return NULL;
}

static void
test_threads(void)
{
  GThread *threads[THREADS];

  for (guint i = 0; i < THREADS; i++)
    threads[i] = g_thread_new("count", count_and_scrape, NULL);
  for (guint i = 0; i < THREADS; i++)
    g_thread_join(threads[i]);
  g_assert_cmpfloat(value_of("drover_refused_connections_total{reason=\"threads\"}"), ==, THREADS * EACH);
  g_assert_cmpfloat(value_of("drover_job_duration_seconds_sum{kind=\"threads\"}"), ==, THREADS * EACH);
}

/* --- Jobs --- */

static void
ended(const char *kind, const char *state, const char *record)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) object = dr_json_parse_object(record, -1, 4096, &error);

  g_assert_no_error(error);
  dr_job_metrics_ended(kind, state, object);
}

static void
test_jobs_begin_at_0(void)
{
  dr_job_metrics_prepare();
  for (const char *const *kind = dr_job_kinds; *kind; kind++) {
    g_autofree char *series = g_strdup_printf("drover_jobs_total{kind=\"%s\",result=\"attention\"}", *kind);

    g_assert_cmpfloat(value_of(series), ==, 0);
  }
}

static void
test_a_move(void)
{
  ended("migrate", "succeeded",
        "{\"started_ms\": 1000, \"ended_ms\": 3500, \"result\": {\"pause_ms\": 12.5, \"bytes_moved\": 1000, "
        "\"storage_bytes\": 500}}");
  g_assert_cmpfloat(value_of("drover_jobs_total{kind=\"migrate\",result=\"succeeded\"}"), ==, 1);
  g_assert_cmpfloat(value_of("drover_job_pause_seconds_sum{kind=\"migrate\"}"), ==, 0.0125);
  g_assert_cmpfloat(value_of("drover_job_duration_seconds_sum{kind=\"migrate\"}"), ==, 2.5);
  g_assert_cmpfloat(value_of("drover_job_bytes_total{kind=\"migrate\",what=\"memory\"}"), ==, 1000);
  g_assert_cmpfloat(value_of("drover_job_bytes_total{kind=\"migrate\",what=\"storage\"}"), ==, 500);
}

/* A paused guest has no pause; one whose pause is a whole number of milliseconds has one. */
static void
test_pauses(void)
{
  ended("upgrade", "succeeded", "{\"result\": {\"pause_ms\": null}}");
  ended("upgrade", "succeeded", "{\"result\": {\"pause_ms\": 3}}");
  ended("disk-snapshot", "succeeded", "{\"result\": {\"memory\": {\"pause_ms\": 250.0}}}");
  ended("disk-snapshot", "succeeded", "{\"result\": {}}");
  g_assert_cmpfloat(value_of("drover_job_pause_seconds_count{kind=\"upgrade\"}"), ==, 1);
  g_assert_cmpfloat(value_of("drover_job_pause_seconds_sum{kind=\"upgrade\"}"), ==, 0.003);
  g_assert_cmpfloat(value_of("drover_job_pause_seconds_count{kind=\"disk-snapshot\"}"), ==, 1);
  g_assert_cmpfloat(value_of("drover_job_pause_seconds_sum{kind=\"disk-snapshot\"}"), ==, 0.25);
}

/* Only the count of one that failed: how long it took says nothing of how long they take. */
static void
test_a_failure(void)
{
  ended("disk-copy", "failed", "{\"started_ms\": 1000, \"ended_ms\": 9000, \"error\": {\"code\": \"io\"}}");
  ended("disk-copy", "cancelled", "{}");
  g_assert_cmpfloat(value_of("drover_jobs_total{kind=\"disk-copy\",result=\"failed\"}"), ==, 1);
  g_assert_cmpfloat(value_of("drover_jobs_total{kind=\"disk-copy\",result=\"cancelled\"}"), ==, 1);
  g_assert_cmpfloat(value_of("drover_job_duration_seconds_count{kind=\"disk-copy\"}"), ==, 0);
}

/* --- The relays' meter --- */

static gpointer
burn(gpointer stop)
{
  DrMeterThread *thread = dr_meter_begin();
  volatile guint n = 0;

  while (!g_atomic_int_get((gint *)stop))
    n++;
  dr_meter_end(thread);
  return NULL;
}

/* The CPU time of a thread counts while it runs, and is not forgotten with it. */
static void
test_cpu_time(void)
{
  DrMeterTotals begin, live, end;
  gint stop = 0;
  GThread *thread;
  gint64 deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;

  dr_meter_read(&begin);
  thread = g_thread_new("burn", burn, &stop);
  do {
    dr_meter_read(&live);
  } while (live.cpu_ns - begin.cpu_ns < 20000000 && g_get_monotonic_time() < deadline);
  g_assert_cmpint(live.cpu_ns - begin.cpu_ns, >=, 20000000);
  g_atomic_int_set(&stop, 1);
  g_thread_join(thread);
  dr_meter_read(&end);
  g_assert_cmpint(end.cpu_ns, >=, live.cpu_ns);
  dr_meter_read(&live);
  g_assert_cmpint(end.cpu_ns, ==, live.cpu_ns);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/metrics/escaping", test_escaping);
  g_test_add_func("/metrics/numbers", test_numbers);
  g_test_add_func("/metrics/counter", test_counter);
  g_test_add_func("/metrics/counter-without-labels", test_counter_without_labels);
  g_test_add_func("/metrics/histogram", test_histogram);
  g_test_add_func("/metrics/threads", test_threads);
  g_test_add_func("/metrics/jobs-begin-at-0", test_jobs_begin_at_0);
  g_test_add_func("/metrics/a-move", test_a_move);
  g_test_add_func("/metrics/pauses", test_pauses);
  g_test_add_func("/metrics/a-failure", test_a_failure);
  g_test_add_func("/metrics/bound", test_bound); /* last: it fills a family */
  g_test_add_func("/metrics/cpu-time", test_cpu_time);
  return g_test_run();
}
