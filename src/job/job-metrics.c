/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Jobs, counted when they end. */
#include "job/job-metrics.h"
#include "base/json.h"
#include "base/metrics.h"

const char *const dr_job_kinds[] = { "upgrade",    "migrate",     "incoming",    "snapshot-revert",
                                     "disk-copy",  "disk-pull",   "disk-stream", "disk-snapshot",
                                     "disk-merge", "disk-backup", "disk-serve",  NULL };

/* Those of them in which a guest stands still, and where the result says for how long. */
static const struct {
  const char *kind, *member;
} pauses[] = {
  { "upgrade", "pause_ms" },
  { "migrate", "pause_ms" },
  { "snapshot-revert", "pause_ms" },
  { "disk-snapshot", "memory.pause_ms" },
};

static gboolean
is_about_memory(const char *kind)
{
  return g_str_equal(kind, "upgrade") || g_str_equal(kind, "migrate");
}

void
dr_job_metrics_prepare(void)
{
  static const char *const results[] = { "succeeded", "failed", "cancelled", "attention" };
  static const char *const copies[] = { "disk-copy", "disk-pull", "disk-stream", "disk-merge",
                                        "disk-backup" };

  for (const char *const *kind = dr_job_kinds; *kind; kind++) {
    for (guint i = 0; i < G_N_ELEMENTS(results); i++)
      dr_metric_add(DR_METRIC_JOBS, 0, *kind, results[i]);
    dr_metric_prepare(DR_METRIC_JOB_DURATION, *kind);
  }
  for (guint i = 0; i < G_N_ELEMENTS(pauses); i++)
    dr_metric_prepare(DR_METRIC_JOB_PAUSE, pauses[i].kind);
  dr_metric_add(DR_METRIC_JOB_BYTES, 0, "upgrade", "memory");
  dr_metric_add(DR_METRIC_JOB_BYTES, 0, "migrate", "memory");
  dr_metric_add(DR_METRIC_JOB_BYTES, 0, "migrate", "storage");
  for (guint i = 0; i < G_N_ELEMENTS(copies); i++)
    dr_metric_add(DR_METRIC_JOB_BYTES, 0, copies[i], "storage");
}

/* A pause is null where there was none, or nobody saw it. */
static void
observe_pause(const char *kind, JsonObject *result)
{
  for (guint i = 0; i < G_N_ELEMENTS(pauses); i++) {
    double ms = g_str_equal(kind, pauses[i].kind) ? dr_json_double(result, pauses[i].member, -1) : -1;

    if (ms >= 0)
      dr_metric_observe(DR_METRIC_JOB_PAUSE, ms / 1000, kind);
  }
}

static void
add_bytes(const char *kind, const char *what, JsonObject *result, const char *member)
{
  gint64 bytes = dr_json_int(result, member, 0);

  if (bytes > 0)
    dr_metric_add(DR_METRIC_JOB_BYTES, (double)bytes, kind, what);
}

/* By the clock on the wall, for a job may have been begun by an earlier droverd. */
static void
observe_duration(const char *kind, JsonObject *record)
{
  gint64 started = dr_json_int(record, "started_ms", 0), ended = dr_json_int(record, "ended_ms", 0);

  if (started && ended)
    dr_metric_observe(DR_METRIC_JOB_DURATION, (double)(ended - started) / 1000, kind);
}

void
dr_job_metrics_ended(const char *kind, const char *state, JsonObject *record)
{
  JsonObject *result = dr_json_obj(record, "result");

  dr_metric_add(DR_METRIC_JOBS, 1, kind, state);
  if (result)
    observe_pause(kind, result);
  if (!g_str_equal(state, "succeeded"))
    return;
  observe_duration(kind, record);
  if (!result)
    return;
  add_bytes(kind, is_about_memory(kind) ? "memory" : "storage", result, "bytes_moved");
  add_bytes(kind, "storage", result, "storage_bytes");
}
