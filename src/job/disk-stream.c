/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Streams the disks of a VM that has just been started. */
#include "job/disk-stream.h"
#include "base/error.h"
#include "job/migration.h"
#include "job/pull-part.h"

#include <sys/statvfs.h>

#define STALL_US (15 * G_USEC_PER_SEC)

#define STAGE_PREFLIGHT "preflight"
#define STAGE_BEGIN "begin"
#define STAGE_PULL "pull"
#define STAGE_CLOSE "close"

typedef struct {
  DrDiskJob d;
  JsonObject *request;
  GPtrArray *parts; /* of DrPullPart */
  DrPullAgain again;
  gboolean told;
  gint64 done, moved_us; /* to see that nothing comes */
  gboolean stalled;
} Stream;

static JsonArray *
disks_of(const Stream *s)
{
  return dr_json_arr(s->request, "disks");
}

/* --- Preflight --- */

/* The image grows with what comes: that it may become too large one day is no reason not to begin. */
static void
check_room(Stream *s, const char *name, const DrDisk *disk)
{
  g_autofree char *dir = g_path_get_dirname(dr_node_file(disk->top));
  gint64 wanted = dr_node_bytes(disk->top) - MAX(dr_node_allocated(disk->top), 0), there;
  struct statvfs fs;

  if (statvfs(dir, &fs) < 0)
    return;
  there = (gint64)fs.f_bavail * (gint64)fs.f_frsize;
  if (there >= wanted)
    return;
  dr_findings_add(s->again.findings, DR_FINDING_WARNING, "stream-room", "make room there before it is needed",
                  "'%s' has %" G_GINT64_FORMAT " MiB free, and disk '%s' may take %" G_GINT64_FORMAT
                  " MiB more",
                  dir, there >> 20, name, wanted >> 20);
  dr_job_set_findings(s->d.job, s->again.findings);
}

static gboolean
look_at(Stream *s, const DrDisks *disks, JsonObject *wanted, GError **error)
{
  const char *name = dr_json_str(wanted, "disk", "");
  const DrDisk *disk = dr_disks_find(disks, dr_json_str(wanted, "file", ""), error);

  if (!disk || !dr_pull_part_has_work(name, disk, NULL, error))
    return FALSE;
  check_room(s, name, disk);
  g_ptr_array_add(s->parts, dr_pull_part_new(name, disk, NULL));
  return TRUE;
}

static gboolean
look(Stream *s, DrQmp *qmp, GError **error)
{
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, dr_vm_record(s->d.vm)->cwd, error);

  for (guint i = 0; disks && i < json_array_get_length(disks_of(s)); i++)
    if (!look_at(s, disks, json_array_get_object_element(disks_of(s), i), error))
      return FALSE;
  return disks != NULL;
}

/* --- Beginning --- */

static JsonObject *
note(const Stream *s)
{
  JsonObject *object = json_object_new();
  JsonArray *parts = json_array_new();

  for (guint i = 0; i < s->parts->len; i++)
    json_array_add_object_element(parts, dr_pull_part_note(s->parts->pdata[i]));
  json_object_set_array_member(object, "parts", parts);
  return object;
}

/* Those that an earlier droverd has begun go on. */
static gboolean
begin_all(Stream *s, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < s->parts->len; i++) {
    const DrPullPart *part = s->parts->pdata[i];
    g_auto(DrBlockJobLook) look = { 0 };

    if (!dr_block_job_look(qmp, part->job, &look, error) ||
        (look.state == DR_BLOCK_JOB_GONE &&
         !dr_pull_part_begin(part, qmp, dr_json_int(s->request, "bandwidth", 0), error)))
      return FALSE;
  }
  return TRUE;
}

static gboolean
has_status(DrQmp *qmp, const char *wanted)
{
  g_autoptr(JsonObject) status = dr_qmp_call_object(qmp, "query-status", NULL, NULL);

  return status && g_str_equal(dr_json_str(status, "status", ""), wanted);
}

static gboolean
resume(Stream *s, DrQmp *qmp, GError **error)
{
  gboolean done = dr_qmp_do(qmp, "cont", NULL, error);

  dr_vm_refresh(s->d.vm, qmp);
  return done;
}

/* Whatever has become of the pull, the guest was to run. One that somebody has let begin meanwhile is left alone. */
static gboolean
let_begin(Stream *s, DrQmp *qmp, GError **error)
{
  g_autofree char *state = dr_migration_run_state(qmp);

  if (g_str_equal(state, "unknown"))
    return dr_error_set(error, DR_ERROR_TIMEOUT, "QEMU does not say whether its guest runs");
  return !dr_json_bool(s->request, "run", FALSE) || !g_str_equal(state, "prelaunch") || resume(s, qmp, error);
}

static gboolean
prepare(Stream *s, DrQmp *qmp, GError **error)
{
  return s->parts->len || (look(s, qmp, error) && dr_job_enter(s->d.job, STAGE_BEGIN, note(s), error));
}

static gboolean
begin(Stream *s, GError **error)
{
  gboolean entered = dr_job_enter(s->d.job, STAGE_PREFLIGHT, NULL, error), begun;
  DrQmp *qmp = dr_disk_job_take(&s->d, entered ? error : NULL);

  if (!qmp)
    return FALSE;
  begun = entered && prepare(s, qmp, error) && begin_all(s, qmp, error);
  begun = let_begin(s, qmp, begun ? error : NULL) && begun;
  dr_disk_job_give(&s->d, qmp);
  return begun;
}

/* --- While it goes on --- */

/* Whether the guest was stopped by one of these disks, and not by another one or by a person. */
static gboolean
is_stopped_by_us(const Stream *s, DrQmp *qmp, const char **ret_disk)
{
  g_autoptr(JsonArray) block =
      has_status(qmp, "io-error") ? dr_qmp_call_array(qmp, "query-block", NULL, NULL) : NULL;

  for (guint i = 0; block && i < json_array_get_length(block); i++) {
    JsonObject *entry = json_array_get_object_element(block, i);

    for (guint n = 0; n < s->parts->len; n++) {
      const DrPullPart *part = s->parts->pdata[n];

      *ret_disk = part->disk;
      if (dr_pull_part_is(part, entry) && !g_str_equal(dr_json_str(entry, "io-status", "ok"), "ok"))
        return TRUE;
    }
  }
  return FALSE;
}

static void
revive(Stream *s, DrQmp *qmp)
{
  g_autoptr(GError) error = NULL;
  const char *disk;

  if (!is_stopped_by_us(s, qmp, &disk))
    return;
  if (!s->told) {
    dr_findings_add(s->again.findings, DR_FINDING_WARNING, "stream-waits",
                    "see to it that the source can be read, or that there is room",
                    "the guest stands still, as disk '%s' cannot be read or written, and goes on when it can",
                    disk);
    dr_job_set_findings(s->d.job, s->again.findings);
  }
  s->told = TRUE;
  if (!resume(s, qmp, &error))
    g_debug("cont: %s", error->message);
}

/* An NBD server that is away makes all who read from it wait, and QEMU says nothing. */
static void
look_for_stall(Stream *s)
{
  gint64 done = 0, now = g_get_monotonic_time();
  gboolean running = FALSE;

  for (guint i = 0; i < s->d.watches->len; i++) {
    const DrBlockWatch *watch = s->d.watches->pdata[i];

    done += watch->look.done;
    running = running || watch->look.state == DR_BLOCK_JOB_RUNNING;
  }
  if (s->moved_us == 0 || done != s->done)
    s->moved_us = now;
  s->done = done;
  if (s->stalled || !running || now - s->moved_us < STALL_US)
    return;
  s->stalled = TRUE;
  dr_findings_add(
      s->again.findings, DR_FINDING_WARNING, "stream-stalls", "see to it that the source can be reached",
      "nothing has come from the source for %d s; what the guest reads from there waits until it is back",
      (int)(STALL_US / G_USEC_PER_SEC));
  dr_job_set_findings(s->d.job, s->again.findings);
}

static gboolean
tick(DrDiskJob *d, DrQmp *qmp, GError **error)
{
  Stream *s = d->data;

  look_for_stall(s);
  if (!dr_pull_again_is_due(&s->again))
    return TRUE;
  dr_pull_try_again(&s->again, d, qmp);
  revive(s, qmp);
  return TRUE;
}

/* --- All of it --- */

static void
stream_init(Stream *s, DrJob *job)
{
  dr_disk_job_init(&s->d, job);
  dr_pull_again_init(&s->again);
  s->again.insists = TRUE;
  dr_vm_set_aside(dr_job_vm(job));
  s->d.asked = dr_disk_job_asked_abort;
  s->d.tick = tick;
  s->d.data = s;
  s->request = dr_job_request(job);
  s->parts = g_ptr_array_new_with_free_func((GDestroyNotify)dr_pull_part_free);
}

static void
stream_clear(Stream *s)
{
  dr_disk_job_clear(&s->d);
  dr_pull_again_clear(&s->again);
  g_clear_pointer(&s->parts, g_ptr_array_unref);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Stream, stream_clear)

static JsonObject *
result(const Stream *s)
{
  JsonArray *disks = json_array_new();
  gint64 bytes = 0;

  for (guint i = 0; i < s->parts->len; i++) {
    json_array_add_string_element(disks, ((DrPullPart *)s->parts->pdata[i])->disk);
    bytes += ((DrBlockWatch *)s->d.watches->pdata[i])->look.done;
  }
  JsonObject *object = dr_json("{'bytes_moved': <%x>, 'total_ms': <%d>}", bytes,
                               (double)(g_get_monotonic_time() - s->d.begun_us) / 1000);

  json_object_set_array_member(object, "disks", disks);
  return object;
}

static gboolean
close_all(Stream *s, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < s->parts->len; i++)
    if (!dr_pull_part_close(s->parts->pdata[i], qmp, error))
      return FALSE;
  revive(s, qmp); /* it may have stopped just before the last of its data came */
  return TRUE;
}

static gboolean
finish(Stream *s, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&s->d, error);
  gboolean done = qmp && close_all(s, qmp, error);

  if (qmp)
    dr_disk_job_give(&s->d, qmp);
  if (done)
    dr_job_set_result(s->d.job, result(s));
  return done;
}

/* What was pulled stays, and the rest stays where it was. */
static gboolean
undo(Stream *s, GError *cause, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&s->d, NULL);

  gboolean ended = TRUE;

  for (guint i = 0; qmp && i < s->parts->len; i++)
    ended = dr_pull_part_kill(s->parts->pdata[i], qmp) && ended;
  if (qmp)
    dr_disk_job_give(&s->d, qmp);
  g_propagate_error(error, cause);
  if (!ended)
    return dr_error_remedy(error, "the source does not answer: QEMU ends the pull when it is back");
  return dr_error_remedy(error, "%s",
                         qmp ? "the guest still reads from the source: go on by drover disk pull"
                             : "start the VM again with the same --stream: it goes on from what is there");
}

static gboolean
to_the_end(Stream *s, GError **error)
{
  GError *cause = NULL;
  DrDiskEvent event;

  if (!dr_disk_job_follow(&s->d, DR_DEADLINE_NEVER, FALSE, &event, &cause))
    return undo(s, cause, error);
  if (event == DR_DISK_ASKED) {
    dr_error_set(&cause, DR_ERROR_CANCELLED, "aborted; what was pulled stays");
    return undo(s, cause, error);
  }
  return dr_job_enter(s->d.job, STAGE_CLOSE, NULL, error) && finish(s, error);
}

static void
watch_all(Stream *s)
{
  for (guint i = 0; i < s->parts->len; i++)
    dr_pull_part_watch(s->parts->pdata[i], &s->d);
}

static gboolean
from_the_beginning(Stream *s, GError **error)
{
  GError *cause = NULL;

  if (!begin(s, &cause) || !dr_job_enter(s->d.job, STAGE_PULL, NULL, &cause))
    return undo(s, cause, error);
  watch_all(s);
  return to_the_end(s, error);
}

gboolean
dr_disk_stream_run(DrJob *job, GError **error)
{
  g_auto(Stream) s = { 0 };

  stream_init(&s, job);
  return from_the_beginning(&s, error);
}

/* --- Recovery --- */

static void
load_parts(Stream *s, JsonObject *said)
{
  JsonArray *parts = said ? dr_json_arr(said, "parts") : NULL;

  for (guint i = 0;
       parts && s->parts->len < json_array_get_length(disks_of(s)) && i < json_array_get_length(parts); i++) {
    JsonObject *disk = json_array_get_object_element(disks_of(s), i);
    DrPullPart *part =
        dr_pull_part_from_note(dr_json_str(disk, "disk", ""), json_array_get_object_element(parts, i));

    if (part)
      g_ptr_array_add(s->parts, part);
  }
}

static gboolean
load(Stream *s, const char **ret_stage, GError **error)
{
  g_autoptr(JsonArray) journal =
      dr_store_load_journal(dr_job_host(s->d.job)->store, dr_job_id(s->d.job), error);

  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i);

    *ret_stage = g_intern_string(dr_json_str(entry, "stage", ""));
    load_parts(s, dr_json_obj(entry, "note"));
  }
  return journal != NULL;
}

/* Before the pull is known to have begun, it is begun; QEMU has what an earlier droverd began under the names of the journal. */
gboolean
dr_disk_stream_recover(DrJob *job, GError **error)
{
  g_auto(Stream) s = { 0 };
  const char *stage = "queued";

  stream_init(&s, job);
  if (!load(&s, &stage, error))
    return FALSE;
  dr_job_step(job, stage);
  if (g_str_equal(stage, STAGE_CLOSE)) { /* it had ended well; it may have been dismissed */
    watch_all(&s);
    return finish(&s, error);
  }
  dr_job_may_return(job);
  if (!g_str_equal(stage, STAGE_PULL))
    return from_the_beginning(&s, error);
  watch_all(&s);
  return to_the_end(&s, error);
}
