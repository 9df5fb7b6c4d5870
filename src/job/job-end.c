/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The end of a job.
 *
 * A state file that cannot be written must not turn a move that is done into one that failed: that is logged and tried again.
 * As long as the end of a job is not on disk, the next droverd takes the job up and settles it once more, which changes
 * nothing; so the record of its VM has to be there before. */
#include "base/error.h"
#include "job/job-internal.h"
#include "job/job-metrics.h"

#define WRITE_AGAIN_S 5

static const char *
end_state(const GError *error)
{
  if (!error)
    return "succeeded";
  if (g_error_matches(error, DR_ERROR, DR_ERROR_CANCELLED))
    return "cancelled";
  return g_error_matches(error, DR_ERROR, DR_ERROR_ATTENTION) ? "attention" : "failed";
}

static JsonObject *
error_json(const GError *error)
{
  JsonObject *object = json_object_new();

  json_object_set_string_member(object, "code", dr_error_code_name(error));
  json_object_set_string_member(object, "message", error->message);
  json_object_set_string_member(object, "remedy", dr_error_get_remedy(error));
  return object;
}

/* Once the end is on disk: what little room there is is for that. Under the lock only a copy is made. */
static void
keep_record(DrJob *job)
{
  g_autoptr(DrRecorder) recorder = NULL;
  g_autoptr(GError) error = NULL;
  g_autofree char *text = NULL;

  g_mutex_lock(&job->lock);
  recorder = dr_recorder_copy(job->recorder);
  g_mutex_unlock(&job->lock);
  text = dr_recorder_pack(recorder);
  if (!dr_store_put_report(job->jobs->host->store, job->id, text, &error))
    g_warning("job %" G_GINT64_FORMAT ": %s", job->id, error->message);
}

static gboolean
write_end(DrJob *job, GError **error)
{
  gboolean written;

  if (!dr_vm_is_saved(job->vm) && !dr_vm_save(job->vm, error))
    return FALSE;
  g_mutex_lock(&job->lock);
  written = dr_store_put_job(job->jobs->host->store, job->id, job->state, job->stage, job->record, error);
  if (written && job->needed)
    unlink(job->needed);
  g_mutex_unlock(&job->lock);
  if (written)
    keep_record(job);
  return written;
}

/* Those that could not be written when they ended. */
void
dr_job_write_ends(DrJobs *jobs)
{
  g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_unref);
  GHashTableIter iter;
  gpointer job;

  g_mutex_lock(&jobs->lock);
  g_hash_table_iter_init(&iter, jobs->unwritten);
  while (g_hash_table_iter_next(&iter, NULL, &job))
    g_ptr_array_add(all, dr_job_ref(job));
  g_mutex_unlock(&jobs->lock);
  for (guint i = 0; i < all->len; i++) {
    DrJob *one = all->pdata[i];

    if (!write_end(one, NULL))
      continue;
    g_message("job %" G_GINT64_FORMAT ": its end is in the state file now", one->id);
    g_mutex_lock(&jobs->lock);
    g_hash_table_remove(jobs->unwritten, &one->id);
    g_mutex_unlock(&jobs->lock);
  }
}

static void
write_ends_task(GTask *task, gpointer object, gpointer data, GCancellable *cancellable)
{
  DrJobs *jobs = data;

  dr_job_write_ends(jobs);
  g_mutex_lock(&jobs->lock);
  jobs->writing = FALSE;
  g_cond_broadcast(&jobs->ended);
  g_mutex_unlock(&jobs->lock);
}

static gboolean
on_write_again(gpointer data)
{
  DrJobs *jobs = data;
  g_autoptr(GTask) task = g_task_new(NULL, NULL, NULL, NULL);
  gboolean more, writing;

  g_mutex_lock(&jobs->lock);
  more = g_hash_table_size(jobs->unwritten) > 0;
  writing = jobs->writing;
  jobs->writing |= more;
  if (!more)
    g_clear_pointer(&jobs->write_again, g_source_unref);
  g_mutex_unlock(&jobs->lock);
  if (!more)
    return G_SOURCE_REMOVE;
  if (writing)
    return G_SOURCE_CONTINUE;
  g_task_set_task_data(task, jobs, NULL);
  g_task_run_in_thread(task, write_ends_task);
  return G_SOURCE_CONTINUE;
}

static void
write_later(DrJob *job)
{
  DrJobs *jobs = job->jobs;

  g_mutex_lock(&jobs->lock);
  g_hash_table_insert(jobs->unwritten, &job->id, dr_job_ref(job));
  if (!jobs->write_again) {
    jobs->write_again = g_timeout_source_new_seconds(WRITE_AGAIN_S);
    g_source_set_callback(jobs->write_again, on_write_again, jobs, NULL);
    g_source_attach(jobs->write_again, jobs->host->context);
  }
  g_mutex_unlock(&jobs->lock);
}

void
dr_job_end(DrJob *job, const GError *error)
{
  g_autoptr(GError) store_error = NULL;
  DrJobs *jobs = job->jobs;

  g_mutex_lock(&job->lock);
  g_free(job->state);
  job->state = g_strdup(end_state(error));
  if (error)
    json_object_set_object_member(job->record, "error", error_json(error));
  json_object_set_int_member(job->record, "ended_ms", dr_job_now_ms());
  dr_recorder_end(job->recorder, g_get_monotonic_time());
  job->finished = TRUE;
  g_mutex_unlock(&job->lock);
  dr_job_metrics_ended(job->kind, job->state, job->record); /* before dr_jobs_wait() returns */
  if (!write_end(job, &store_error)) {
    g_warning("job %" G_GINT64_FORMAT " has ended (%s), but %s", job->id, job->state, store_error->message);
    write_later(job);
  }
  dr_vm_release(job->vm);
  dr_vm_note_end(job->vm);
  if (error)
    g_message("job %" G_GINT64_FORMAT " (%s %s) %s at stage '%s': %s", job->id, job->kind,
              dr_vm_name(job->vm), job->state, job->stage, error->message);
  else
    g_message("job %" G_GINT64_FORMAT " (%s %s) succeeded", job->id, job->kind, dr_vm_name(job->vm));
  dr_job_publish(job);
  g_mutex_lock(&jobs->lock);
  g_hash_table_remove(jobs->active, &job->id);
  g_cond_broadcast(&jobs->ended);
  g_mutex_unlock(&jobs->lock);
}
