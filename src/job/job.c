/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Jobs: their state, their journal, and the pool of threads that runs them. */
#include "job/job.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>

#define HOLD_MAX_MS 120000
#define WRITE_AGAIN_S 5
#define LIST_MAX 200

struct DrJobs {
  DrHost *host;
  GMutex lock;
  GCond ended;
  GHashTable *active;    /* gint64* -> DrJob */
  GHashTable *unwritten; /* the same: ended, but the state file does not know yet (its disk is full) */
  GSource *write_again;  /* while there are any */
  gboolean writing;      /* a thread is at them */
};

struct DrJob {
  gatomicrefcount refs;
  DrJobs *jobs;
  gint64 id;
  char *kind;
  DrVm *vm;
  int cancel_fd;
  gboolean cancelled, no_return, finished;
  char *state, *stage;
  char *needed;       /* nullable: see dr_job_remove_at_end() */
  JsonObject *record; /* request, findings, error, result, progress, times: what docs/API.md shows */
  GMutex lock;
};

typedef struct {
  DrJobs *jobs;
  DrJobFunc run;
  guint parallel;
  gboolean again; /* their beginning is in the journal already */
} Batch;

static void write_ends(DrJobs *jobs);

DrJobs *
dr_jobs_new(DrHost *host)
{
  DrJobs *jobs = g_new0(DrJobs, 1);

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
  write_ends(jobs);
  if (jobs->write_again)
    g_source_destroy(jobs->write_again);
  g_clear_pointer(&jobs->write_again, g_source_unref);
  g_hash_table_unref(jobs->active);
  g_hash_table_unref(jobs->unwritten);
  g_mutex_clear(&jobs->lock);
  g_cond_clear(&jobs->ended);
  g_free(jobs);
}

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
  g_free(job->kind);
  g_free(job->state);
  g_free(job->stage);
  g_free(job->needed);
  g_mutex_clear(&job->lock);
  g_free(job);
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
  return job;
}

static void
register_job(DrJobs *jobs, DrJob *job)
{
  g_mutex_lock(&jobs->lock);
  g_hash_table_insert(jobs->active, &job->id, dr_job_ref(job));
  g_mutex_unlock(&jobs->lock);
}

static gint64
now_ms(void)
{
  return g_get_real_time() / 1000;
}

DrJob *
dr_jobs_add(DrJobs *jobs, const char *kind, DrVm *vm, JsonObject *request, GError **error)
{
  JsonObject *record = json_object_new();
  g_autoptr(DrJob) job = NULL;

  write_ends(jobs); /* this one's own journal must not come before the end of the last */
  json_object_set_object_member(record, "request", json_object_ref(request));
  json_object_set_int_member(record, "created_ms", now_ms());
  job = job_new(jobs, kind, vm, record);
  job->id = dr_store_add_job(jobs->host->store, kind, dr_vm_name(vm), record, error);
  if (job->id == 0)
    return NULL;
  if (!dr_vm_claim(vm, job->id, error)) {
    dr_store_put_job(jobs->host->store, job->id, "failed", "queued", record, NULL);
    return NULL;
  }
  register_job(jobs, job);
  return g_steal_pointer(&job);
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
  job->no_return = TRUE; /* what it does now is recovery, which is not cancelled */
  if (!dr_vm_claim(vm, row->id, error))
    return NULL;
  register_job(jobs, job);
  return g_steal_pointer(&job);
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

static void
publish(DrJob *job)
{
  JsonObject *event = json_object_new();

  json_object_set_string_member(event, "type", "job");
  json_object_set_int_member(event, "time_ms", now_ms());
  json_object_set_object_member(event, "job", dr_job_json(job));
  dr_events_publish(job->jobs->host->events, event);
}

static void
set_stage(DrJob *job, const char *stage)
{
  g_mutex_lock(&job->lock);
  g_free(job->stage);
  job->stage = g_strdup(stage);
  g_mutex_unlock(&job->lock);
  publish(job);
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
  publish(job);
}

void
dr_job_set_result(DrJob *job, JsonObject *result)
{
  set_member(job, "result", dr_json_node(result));
}

void
dr_job_progress(DrJob *job, gint64 bytes_done, gint64 bytes_total, double rate_mib, gint64 pass)
{
  set_member(job, "progress",
             dr_json_node(dr_json("{'bytes_done': <%x>, 'bytes_total': <%x>, 'rate_mib': <%d>, 'pass': <%x>}",
                                  bytes_done, bytes_total, rate_mib, pass)));
  publish(job);
}

void
dr_job_remove_at_end(DrJob *job, const char *path)
{
  g_mutex_lock(&job->lock);
  g_free(job->needed);
  job->needed = g_strdup(path);
  g_mutex_unlock(&job->lock);
}

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

/* --- The end ---
 *
 * A state file that cannot be written must not turn a move that is done into one that failed: that is logged and tried again.
 * As long as the end of a job is not on disk, the next droverd takes the job up and settles it once more, which changes
 * nothing; so the record of its VM has to be there before. */

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
  return written;
}

/* Those that could not be written when they ended. */
static void
write_ends(DrJobs *jobs)
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

  write_ends(jobs);
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
  json_object_set_int_member(job->record, "ended_ms", now_ms());
  job->finished = TRUE;
  g_mutex_unlock(&job->lock);
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
  publish(job);
  g_mutex_lock(&jobs->lock);
  g_hash_table_remove(jobs->active, &job->id);
  g_cond_broadcast(&jobs->ended);
  g_mutex_unlock(&jobs->lock);
}

static gboolean
begin(DrJob *job, GError **error)
{
  g_mutex_lock(&job->lock);
  g_free(job->state);
  job->state = g_strdup("running");
  json_object_set_int_member(job->record, "started_ms", now_ms());
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

static void
copy_member(JsonObject *from, JsonObject *to, const char *name)
{
  JsonNode *node = json_object_get_member(from, name);

  if (node)
    json_object_set_member(to, name, dr_json_dup(node));
  else
    json_object_set_null_member(to, name);
}

static JsonObject *
show(gint64 id, const char *kind, const char *vm, const char *state, const char *stage, JsonObject *record)
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
  object = show(job->id, job->kind, dr_vm_name(job->vm), job->state, job->stage, job->record);
  g_mutex_unlock(&job->lock);
  return object;
}

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
  return row ? show(row->id, row->kind, row->vm, row->state, row->stage, row->record) : NULL;
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
        array,
        job ? dr_job_json(job) : show(row->id, row->kind, row->vm, row->state, row->stage, row->record));
  }
  return array;
}

JsonObject *
dr_jobs_wait(DrJobs *jobs, gint64 id, int timeout_ms, GError **error)
{
  DrDeadline deadline = dr_deadline_in(timeout_ms);

  g_mutex_lock(&jobs->lock);
  while (g_hash_table_contains(jobs->active, &id))
    if (!g_cond_wait_until(&jobs->ended, &jobs->lock, deadline))
      break;
  g_mutex_unlock(&jobs->lock);
  return dr_jobs_show(jobs, id, error);
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
    dr_error_remedy(error, "let it finish (drover watch %" G_GINT64_FORMAT "), then upgrade back with --qemu",
                    id);
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
