/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One job: its state and its journal. */
#include "base/error.h"
#include "base/fd.h"
#include "job/job-internal.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>

#define HOLD_MAX_MS 120000

DrJob *
dr_job_ref(DrJob *job)
{
  g_atomic_ref_count_inc(&job->refs);
  return job;
}

void
dr_job_unref(DrJob *job)
{
  if (!job || !g_atomic_ref_count_dec(&job->refs))
    return;
  close(job->cancel_fd);
  dr_vm_unref(job->vm);
  json_object_unref(job->record);
  dr_recorder_free(job->recorder);
  g_free(job->kind);
  g_free(job->state);
  g_free(job->stage);
  g_free(job->needed);
  g_mutex_clear(&job->lock);
  g_free(job);
}

gint64
dr_job_now_ms(void)
{
  return g_get_real_time() / 1000;
}

const char *
dr_job_kind(DrJob *job)
{
  return job->kind;
}

gint64
dr_job_id(DrJob *job)
{
  return job->id;
}

DrVm *
dr_job_vm(DrJob *job)
{
  return job->vm;
}

DrHost *
dr_job_host(DrJob *job)
{
  return job->jobs->host;
}

JsonObject *
dr_job_request(DrJob *job)
{
  return dr_json_obj(job->record, "request");
}

int
dr_job_cancel_fd(DrJob *job)
{
  return job->cancel_fd;
}

void
dr_job_publish(DrJob *job)
{
  JsonObject *event = json_object_new();

  json_object_set_string_member(event, "type", "job");
  json_object_set_int_member(event, "time_ms", dr_job_now_ms());
  json_object_set_object_member(event, "job", dr_job_json(job));
  dr_events_publish(job->jobs->host->events, event);
}

static void
set_stage(DrJob *job, const char *stage)
{
  JsonObject *progress;

  g_mutex_lock(&job->lock);
  g_free(job->stage);
  job->stage = g_strdup(stage);
  progress = dr_json_obj(job->record, "progress");
  if (progress) /* what was going on is over */
    json_object_set_string_member(progress, "phase", stage);
  dr_recorder_phase(job->recorder, stage, g_get_monotonic_time());
  g_mutex_unlock(&job->lock);
  dr_job_publish(job);
}

/* The test's handle: see dr_job_enter(). The file tells the test that the job is there. */
static void
hold(DrJob *job, const char *stage)
{
  const char *wanted = g_getenv("DROVER_HOLD_AT");
  g_auto(GStrv) stages = g_strsplit(wanted ? wanted : "", ",", -1);
  g_autofree char *path = NULL;
  DrDeadline deadline = dr_deadline_in(HOLD_MAX_MS);
  struct pollfd cancel = { .fd = job->cancel_fd, .events = POLLIN };

  if (!g_strv_contains((const char *const *)stages, stage))
    return;
  path = g_build_filename(job->jobs->host->run_dir, "hold", NULL);
  if (!dr_file_write(path, stage, NULL))
    return;
  g_message("job %" G_GINT64_FORMAT ": held at stage '%s' until '%s' is removed", job->id, stage, path);
  while (g_file_test(path, G_FILE_TEST_EXISTS) && !dr_deadline_passed(deadline))
    if (poll(&cancel, 1, 10) > 0 && !job->no_return)
      break;
}

gboolean
dr_job_enter(DrJob *job, const char *stage, JsonObject *note, GError **error)
{
  g_autoptr(JsonObject) owned = note;
  gboolean cancelled;

  g_mutex_lock(&job->lock);
  cancelled = job->cancelled && !job->no_return;
  g_mutex_unlock(&job->lock);
  if (cancelled)
    return dr_error_set(error, DR_ERROR_CANCELLED, "cancelled before stage '%s'", stage);
  if (!dr_store_journal(job->jobs->host->store, job->id, stage, owned, error))
    return FALSE;
  set_stage(job, stage);
  hold(job, stage);
  return TRUE;
}

void
dr_job_hold(DrJob *job, const char *point)
{
  hold(job, point);
}

void
dr_job_step(DrJob *job, const char *stage)
{
  set_stage(job, stage);
  hold(job, stage);
}

void
dr_job_may_return(DrJob *job)
{
  g_mutex_lock(&job->lock);
  job->no_return = FALSE;
  g_mutex_unlock(&job->lock);
}

gboolean
dr_job_no_return(DrJob *job, GError **error)
{
  gboolean cancelled;

  g_mutex_lock(&job->lock);
  cancelled = job->cancelled;
  job->no_return = !cancelled;
  g_mutex_unlock(&job->lock);
  return cancelled ? dr_error_set(error, DR_ERROR_CANCELLED, "cancelled") : TRUE;
}

/* Members of the record are replaced under the lock: dr_job_json() reads them from other threads. */
static void
set_member(DrJob *job, const char *name, JsonNode *node)
{
  g_mutex_lock(&job->lock);
  json_object_set_member(job->record, name, node);
  g_mutex_unlock(&job->lock);
}

void
dr_job_set_findings(DrJob *job, const DrFindings *findings)
{
  JsonNode *node = json_node_new(JSON_NODE_ARRAY);

  json_node_take_array(node, dr_findings_json(findings));
  set_member(job, "findings", node);
  dr_job_publish(job);
}

void
dr_job_set_result(DrJob *job, JsonObject *result)
{
  set_member(job, "result", dr_json_node(result));
}

/* Below 0: not known. */
static void
set_known(JsonObject *object, const char *name, double value, gboolean whole)
{
  if (value < 0)
    json_object_set_null_member(object, name);
  else if (whole)
    json_object_set_int_member(object, name, (gint64)value);
  else
    json_object_set_double_member(object, name, value);
}

static JsonArray *
disks_json(const DrProgress *progress)
{
  JsonArray *disks = json_array_new();

  for (guint i = 0; i < progress->n_disks; i++)
    json_array_add_object_element(disks, dr_json("{'disk': <%s>, 'bytes_done': <%x>, 'bytes_total': <%x>}",
                                                 progress->disks[i].disk, progress->disks[i].bytes_done,
                                                 progress->disks[i].bytes_total));
  return disks;
}

void
dr_job_progress(DrJob *job, const DrProgress *progress)
{
  JsonObject *object =
      dr_json("{'bytes_done': <%x>, 'bytes_total': <%x>, 'rate_mib': <%d>, 'pass': <%x>}",
              progress->bytes_done, progress->bytes_total, progress->rate_mib, progress->pass);
  const char *phase;

  set_known(object, "remaining_bytes", (double)progress->remaining, TRUE);
  set_known(object, "dirty_mib", progress->dirty_mib, FALSE);
  set_known(object, "expected_pause_ms", (double)progress->expected_pause_ms, TRUE);
  set_known(object, "expected_ms", (double)progress->expected_ms, TRUE);
  json_object_set_array_member(object, "disks", disks_json(progress));
  g_mutex_lock(&job->lock);
  phase = progress->phase ? progress->phase : job->stage;
  json_object_set_string_member(object, "phase", phase);
  json_object_set_object_member(job->record, "progress", object);
  dr_recorder_sample(job->recorder, progress, job->stage, g_get_monotonic_time());
  g_mutex_unlock(&job->lock);
  dr_job_publish(job);
}

void
dr_job_pause(DrJob *job, const DrPause *pause, gint64 begin_us, gint64 end_us)
{
  gint64 ago_us = g_get_real_time() - begin_us;

  g_mutex_lock(&job->lock);
  dr_recorder_pause(job->recorder, pause, begin_us, end_us, g_get_monotonic_time() - ago_us,
                    dr_recorder_expected_pause(job->recorder));
  g_mutex_unlock(&job->lock);
}

void
dr_job_remove_at_end(DrJob *job, const char *path)
{
  g_mutex_lock(&job->lock);
  g_free(job->needed);
  job->needed = g_strdup(path);
  g_mutex_unlock(&job->lock);
}

static void
copy_member(JsonObject *from, JsonObject *to, const char *name)
{
  JsonNode *node = json_object_get_member(from, name);

  if (node)
    json_object_set_member(to, name, dr_json_dup(node));
  else
    json_object_set_null_member(to, name);
}

JsonObject *
dr_job_show(gint64 id, const char *kind, const char *vm, const char *state, const char *stage,
            JsonObject *record)
{
  static const char *const members[] = { "error",      "result",     "progress", "findings",
                                         "created_ms", "started_ms", "ended_ms" };
  JsonObject *object = json_object_new();
  g_autofree char *text = g_strdup_printf("%" G_GINT64_FORMAT, id);

  json_object_set_string_member(object, "id", text);
  json_object_set_string_member(object, "kind", kind);
  json_object_set_string_member(object, "vm", vm);
  json_object_set_string_member(object, "state", state);
  json_object_set_string_member(object, "stage", stage);
  for (guint i = 0; i < G_N_ELEMENTS(members); i++)
    copy_member(record, object, members[i]);
  return object;
}

JsonObject *
dr_job_json(DrJob *job)
{
  JsonObject *object;

  g_mutex_lock(&job->lock);
  object = dr_job_show(job->id, job->kind, dr_vm_name(job->vm), job->state, job->stage, job->record);
  g_mutex_unlock(&job->lock);
  return object;
}
