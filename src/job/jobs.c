/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* All jobs: which there are, the pool of threads that runs them, and what is asked of them. */
#include "base/error.h"
#include "job/job-internal.h"
#include "job/job-metrics.h"

#include <sys/eventfd.h>

#define LIST_MAX 200

typedef struct {
  DrJobs *jobs;
  DrJobFunc run;
  guint parallel;
  gboolean again; /* their beginning is in the journal already */
} Batch;

DrJobs *
dr_jobs_new(DrHost *host)
{
  DrJobs *jobs = g_new0(DrJobs, 1);

  dr_job_metrics_prepare();
  jobs->host = host;
  g_mutex_init(&jobs->lock);
  g_cond_init(&jobs->ended);
  jobs->active = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, (GDestroyNotify)dr_job_unref);
  jobs->unwritten = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, (GDestroyNotify)dr_job_unref);
  return jobs;
}

void
dr_jobs_free(DrJobs *jobs)
{
  if (!jobs)
    return;
  g_mutex_lock(&jobs->lock);
  while (jobs->writing) /* each write has the store's time limit */
    g_cond_wait(&jobs->ended, &jobs->lock);
  g_mutex_unlock(&jobs->lock);
  dr_job_write_ends(jobs);
  if (jobs->write_again)
    g_source_destroy(jobs->write_again);
  g_clear_pointer(&jobs->write_again, g_source_unref);
  g_hash_table_unref(jobs->active);
  g_hash_table_unref(jobs->unwritten);
  g_mutex_clear(&jobs->lock);
  g_cond_clear(&jobs->ended);
  g_free(jobs);
}

static DrJob *
job_new(DrJobs *jobs, const char *kind, DrVm *vm, JsonObject *record)
{
  DrJob *job = g_new0(DrJob, 1);

  g_atomic_ref_count_init(&job->refs);
  g_mutex_init(&job->lock);
  job->jobs = jobs;
  job->kind = g_strdup(kind);
  job->vm = dr_vm_ref(vm);
  job->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  job->state = g_strdup("queued");
  job->stage = g_strdup("queued");
  job->record = record;
  job->recorder = dr_recorder_new(g_get_monotonic_time());
  return job;
}

static void
register_job(DrJobs *jobs, DrJob *job)
{
  g_mutex_lock(&jobs->lock);
  g_hash_table_insert(jobs->active, &job->id, dr_job_ref(job));
  g_mutex_unlock(&jobs->lock);
}

DrJob *
dr_jobs_add(DrJobs *jobs, const char *kind, DrVm *vm, JsonObject *request, GError **error)
{
  JsonObject *record = json_object_new();
  g_autoptr(JsonNode) asked = dr_json_node(json_object_ref(request));
  g_autoptr(DrJob) job = NULL;

  dr_job_write_ends(jobs); /* this one's own journal must not come before the end of the last */
  json_object_set_member(record, "request", dr_json_dup(asked)); /* each job's own: they have threads */
  json_object_set_int_member(record, "created_ms", dr_job_now_ms());
  job = job_new(jobs, kind, vm, record);
  job->id = dr_store_add_job(jobs->host->store, kind, dr_vm_name(vm), record, error);
  if (job->id == 0)
    return NULL;
  if (!dr_vm_claim(vm, job->id, error)) {
    dr_job_metrics_ended(kind, "failed", record);
    dr_store_put_job(jobs->host->store, job->id, "failed", "queued", record, NULL);
    return NULL;
  }
  register_job(jobs, job);
  return g_steal_pointer(&job);
}

/* Its stages are in the journal, by the wall clock; its samples went with the droverd that made them. */
static DrRecorder *
recorder_of_journal(DrStore *store, gint64 id, JsonObject *record)
{
  g_autoptr(JsonArray) journal = dr_store_load_journal(store, id, NULL);
  gint64 started_ms = dr_json_int(record, "started_ms", dr_job_now_ms()),
         ago_ms = MAX(dr_job_now_ms() - started_ms, 0); /* the clock may have been set */
  gint64 origin_us = g_get_monotonic_time() - ago_ms * 1000;
  DrRecorder *recorder = dr_recorder_new(origin_us);

  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i);
    gint64 at_ms = MAX(dr_json_int(entry, "time_ms", started_ms) - started_ms, 0);

    dr_recorder_phase(recorder, dr_json_str(entry, "stage", "?"), origin_us + at_ms * 1000);
  }
  if (dr_json_int(record, "ended_ms", 0))
    dr_recorder_end(recorder, origin_us + MAX(dr_json_int(record, "ended_ms", 0) - started_ms, 0) * 1000);
  return recorder;
}

DrJob *
dr_jobs_resume(DrJobs *jobs, const DrJobRow *row, DrVm *vm, GError **error)
{
  g_autoptr(DrJob) job = job_new(jobs, row->kind, vm, json_object_ref(row->record));

  job->id = row->id;
  g_free(job->state);
  job->state = g_strdup("running");
  g_free(job->stage);
  job->stage = g_strdup(row->stage);
  dr_recorder_free(job->recorder);
  job->recorder = recorder_of_journal(jobs->host->store, row->id, row->record);
  job->no_return = TRUE; /* what it does now is recovery, which is not cancelled */
  if (!dr_vm_claim(vm, row->id, error))
    return NULL;
  register_job(jobs, job);
  return g_steal_pointer(&job);
}

static gboolean
begin(DrJob *job, GError **error)
{
  g_mutex_lock(&job->lock);
  g_free(job->state);
  job->state = g_strdup("running");
  json_object_set_int_member(job->record, "started_ms", dr_job_now_ms());
  dr_recorder_free(job->recorder);
  job->recorder = dr_recorder_new(g_get_monotonic_time());
  g_mutex_unlock(&job->lock);
  return dr_store_put_job(job->jobs->host->store, job->id, "running", "queued", job->record, error);
}

static void
run_one(gpointer data, gpointer user_data)
{
  g_autoptr(DrJob) job = data;
  Batch *batch = user_data;
  g_autoptr(GError) error = NULL;

  if (batch->again || begin(job, &error))
    batch->run(job, &error);
  dr_job_end(job, error);
}

/* Pushes a batch and waits for its end, so that the pool and its context have an owner. */
static gpointer
run_batch(gpointer data)
{
  GPtrArray *all = data;
  Batch *batch = g_ptr_array_steal_index(all, all->len - 1);
  GThreadPool *pool = g_thread_pool_new(run_one, batch, (int)batch->parallel, FALSE, NULL);

  for (guint i = 0; i < all->len; i++)
    g_thread_pool_push(pool, all->pdata[i], NULL);
  g_thread_pool_free(pool, FALSE, TRUE);
  g_ptr_array_set_free_func(all, NULL);
  g_ptr_array_unref(all);
  g_free(batch);
  return NULL;
}

static void
run_in_pool(GPtrArray *batch_jobs, const Batch *how)
{
  g_ptr_array_set_free_func(batch_jobs, NULL);
  g_ptr_array_add(batch_jobs, g_memdup2(how, sizeof *how));
  g_thread_unref(g_thread_new("jobs", run_batch, batch_jobs));
}

void
dr_jobs_run(DrJobs *jobs, GPtrArray *batch_jobs, DrJobFunc run, guint parallel)
{
  run_in_pool(batch_jobs, &(Batch){ .jobs = jobs, .run = run, .parallel = CLAMP(parallel, 1, 64) });
}

void
dr_jobs_recover(DrJobs *jobs, GPtrArray *batch_jobs, DrJobFunc recover)
{
  /* One that waits for a QEMU that does not answer must not hold up another. */
  run_in_pool(batch_jobs,
              &(Batch){ .jobs = jobs, .run = recover, .parallel = MAX(batch_jobs->len, 1), .again = TRUE });
}

/* --- For the service --- */

/* One of which the state file does not know all yet, or NULL. (transfer full) */
static DrJob *
find_live(DrJobs *jobs, gint64 id)
{
  DrJob *job;

  g_mutex_lock(&jobs->lock);
  job = g_hash_table_lookup(jobs->active, &id);
  if (!job)
    job = g_hash_table_lookup(jobs->unwritten, &id);
  if (job)
    dr_job_ref(job);
  g_mutex_unlock(&jobs->lock);
  return job;
}

JsonObject *
dr_jobs_show(DrJobs *jobs, gint64 id, GError **error)
{
  g_autoptr(DrJob) job = find_live(jobs, id);
  g_autoptr(DrJobRow) row = NULL;

  if (job)
    return dr_job_json(job);
  row = dr_store_get_job(jobs->host->store, id, error);
  return row ? dr_job_show(row->id, row->kind, row->vm, row->state, row->stage, row->record) : NULL;
}

static JsonObject *
live_report(DrJob *job)
{
  g_autoptr(DrRecorder) recorder = NULL;
  JsonObject *report;

  g_mutex_lock(&job->lock);
  recorder = dr_recorder_copy(job->recorder);
  g_mutex_unlock(&job->lock);
  report = dr_recorder_report(recorder, g_get_monotonic_time());
  json_object_set_object_member(report, "job", dr_job_json(job));
  return report;
}

/* A job of a droverd that kept no record has its stages. */
static JsonObject *
kept_report(DrStore *store, const DrJobRow *row, GError **error)
{
  g_autoptr(JsonObject) packed = NULL;
  g_autoptr(DrRecorder) recorder = NULL;

  if (!dr_store_get_report(store, row->id, &packed, error))
    return NULL;
  if (packed)
    return dr_recorder_unpack(packed);
  recorder = recorder_of_journal(store, row->id, row->record);
  return dr_recorder_report(recorder, g_get_monotonic_time());
}

JsonObject *
dr_jobs_report(DrJobs *jobs, gint64 id, GError **error)
{
  g_autoptr(DrJob) job = find_live(jobs, id);
  g_autoptr(DrJobRow) row = NULL;
  JsonObject *report;

  if (job)
    return live_report(job);
  row = dr_store_get_job(jobs->host->store, id, error);
  report = row ? kept_report(jobs->host->store, row, error) : NULL;
  if (report)
    json_object_set_object_member(
        report, "job", dr_job_show(row->id, row->kind, row->vm, row->state, row->stage, row->record));
  return report;
}

JsonArray *
dr_jobs_list(DrJobs *jobs, GError **error)
{
  g_autoptr(GPtrArray) rows = dr_store_list_jobs(jobs->host->store, FALSE, LIST_MAX, error);
  JsonArray *array;

  if (!rows)
    return NULL;
  array = json_array_new();
  for (guint i = 0; i < rows->len; i++) {
    DrJobRow *row = rows->pdata[i];
    g_autoptr(DrJob) job = find_live(jobs, row->id);

    json_array_add_object_element(
        array, job ? dr_job_json(job)
                   : dr_job_show(row->id, row->kind, row->vm, row->state, row->stage, row->record));
  }
  return array;
}

gboolean
dr_jobs_wait_gone(DrJobs *jobs, gint64 id, int timeout_ms)
{
  DrDeadline deadline = dr_deadline_in(timeout_ms);
  gboolean gone;

  g_mutex_lock(&jobs->lock);
  while (g_hash_table_contains(jobs->active, &id))
    if (!g_cond_wait_until(&jobs->ended, &jobs->lock, deadline))
      break;
  gone = !g_hash_table_contains(jobs->active, &id);
  g_mutex_unlock(&jobs->lock);
  return gone;
}

JsonObject *
dr_jobs_wait(DrJobs *jobs, gint64 id, int timeout_ms, GError **error)
{
  dr_jobs_wait_gone(jobs, id, timeout_ms);
  return dr_jobs_show(jobs, id, error);
}

/* What undoes a job that can only be finished. */
static const char *
way_back(const DrJob *job)
{
  if (g_str_equal(job->kind, "upgrade"))
    return ", then upgrade back with --qemu";
  return g_str_equal(job->kind, "migrate") ? ", then migrate back from over there" : "";
}

JsonObject *
dr_jobs_cancel(DrJobs *jobs, gint64 id, GError **error)
{
  g_autoptr(DrJob) job = find_live(jobs, id);
  gboolean refused;

  if (!job || job->finished) {
    g_autoptr(JsonObject) ended = dr_jobs_show(jobs, id, error);

    if (ended)
      dr_error_set(error, DR_ERROR_REFUSED, "job %" G_GINT64_FORMAT " has ended already (%s)", id,
                   dr_json_str(ended, "state", "?"));
    return NULL;
  }
  g_mutex_lock(&job->lock);
  refused = job->no_return;
  if (!refused) {
    job->cancelled = TRUE;
    eventfd_write(job->cancel_fd, 1);
  }
  g_mutex_unlock(&job->lock);
  if (refused) {
    dr_error_set(error, DR_ERROR_REFUSED,
                 "job %" G_GINT64_FORMAT " is past its point of no return: it can only be finished", id);
    dr_error_remedy(error, "let it finish (drover watch %" G_GINT64_FORMAT ")%s", id, way_back(job));
    return NULL;
  }
  return dr_job_json(job);
}

guint
dr_jobs_active(DrJobs *jobs)
{
  guint n;

  g_mutex_lock(&jobs->lock);
  n = g_hash_table_size(jobs->active);
  g_mutex_unlock(&jobs->lock);
  return n;
}

/* (transfer full) (element-type DrJob) */
static GPtrArray *
active_jobs(DrJobs *jobs)
{
  GPtrArray *all = g_ptr_array_new_with_free_func((GDestroyNotify)dr_job_unref);
  GHashTableIter iter;
  gpointer job;

  g_mutex_lock(&jobs->lock);
  g_hash_table_iter_init(&iter, jobs->active);
  while (g_hash_table_iter_next(&iter, NULL, &job))
    g_ptr_array_add(all, dr_job_ref(job));
  g_mutex_unlock(&jobs->lock);
  return all;
}

GPtrArray *
dr_jobs_running(DrJobs *jobs)
{
  g_autoptr(GPtrArray) all = active_jobs(jobs);
  GPtrArray *kinds = g_ptr_array_new_with_free_func(g_free);

  for (guint i = 0; i < all->len; i++) {
    DrJob *job = all->pdata[i];

    g_mutex_lock(&job->lock);
    if (g_str_equal(job->state, "running"))
      g_ptr_array_add(kinds, g_strdup(job->kind));
    g_mutex_unlock(&job->lock);
  }
  return kinds;
}

guint
dr_jobs_passing(DrJobs *jobs)
{
  GHashTableIter iter;
  gpointer job;
  guint n = 0;

  g_mutex_lock(&jobs->lock);
  g_hash_table_iter_init(&iter, jobs->active);
  while (g_hash_table_iter_next(&iter, NULL, &job))
    n += !dr_vm_is_aside(((DrJob *)job)->vm);
  g_mutex_unlock(&jobs->lock);
  return n;
}
