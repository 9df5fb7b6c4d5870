/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Backs disks up into images. */
#include "job/backup.h"
#include "base/error.h"
#include "job/backup-target.h"
#include "job/disk-job.h"

#include <string.h>

#define AGAIN_US (2 * G_USEC_PER_SEC)
#define STAGE_PREFLIGHT "preflight"
#define STAGE_CREATE "create"
#define STAGE_COPY "copy"
#define STAGE_COMMIT "commit"
#define KILL_MS 30000

typedef struct {
  DrDiskJob d;
  JsonObject *request;
  DrPoint point;
  GPtrArray *targets; /* of DrBackupTarget */
  DrFindings *findings;
} Backup;

/* --- The request --- */

static gboolean
check_onto(JsonObject *request, GError **error)
{
  JsonArray *onto = dr_json_arr(request, "onto");

  for (guint i = 0; onto && i < json_array_get_length(onto); i++) {
    const char *wish = json_array_get_string_element(onto, i), *file = strchr(wish, '=');

    if (*wish != '/' && (!file || file[1] != '/'))
      return dr_error_set(error, DR_ERROR_INVALID, "'%s' is neither FILE nor DISK=FILE with an absolute path",
                          wish);
  }
  return !onto || dr_json_str(request, "incremental", NULL) ||
         dr_error_set(error, DR_ERROR_INVALID, "only an incremental backup stands on another");
}

gboolean
dr_backup_check(JsonObject *request, GError **error)
{
  const char *format = dr_json_str(request, "format", "qcow2"), *target = dr_json_str(request, "target", "");
  gboolean incremental = dr_json_str(request, "incremental", NULL) != NULL;

  if (*target != '/')
    return dr_error_set(error, DR_ERROR_INVALID, "the target '%s' is no absolute path", target);
  if (!dr_point_check(request, error))
    return FALSE;
  if (!g_str_equal(format, "qcow2") && !g_str_equal(format, "raw"))
    return dr_error_set(error, DR_ERROR_INVALID, "format is 'qcow2' or 'raw', not '%s'", format);
  if (incremental && g_str_equal(format, "raw"))
    return dr_error_set(error, DR_ERROR_INVALID,
                        "an incremental backup stands on the one before it, which raw cannot");
  return check_onto(request, error);
}

/* --- Before --- */

static gboolean
choose(Backup *b, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&b->d, error);
  g_autoptr(DrDisks) disks = qmp ? dr_disks_read(qmp, dr_vm_record(b->d.vm)->cwd, error) : NULL;
  gboolean chosen = disks && dr_point_choose(&b->point, b->d.vm, qmp, disks, b->request, b->findings, error);

  if (qmp)
    dr_disk_job_give(&b->d, qmp);
  return chosen && (dr_findings_block(b->findings) ||
                    dr_backup_targets_choose(b->targets, &b->point, b->d.vm, b->request, b->findings, error));
}

static gboolean
preflight(Backup *b, GError **error)
{
  g_autofree char *doing = g_strdup_printf("back up VM '%s'", dr_vm_name(b->d.vm));

  if (!choose(b, error))
    return FALSE;
  dr_job_set_findings(b->d.job, b->findings);
  return dr_findings_block(b->findings) ? dr_findings_to_error(b->findings, doing, error) : TRUE;
}

/* --- The journal --- */

static JsonObject *
note(const Backup *b)
{
  JsonObject *object = json_object_new();
  JsonArray *targets = json_array_new();

  for (guint i = 0; i < b->targets->len; i++) {
    const DrBackupTarget *t = b->targets->pdata[i];

    json_array_add_object_element(
        targets,
        dr_json("{'disk': <%s>, 'file': <%s>, 'format': <%s>, 'node': <%s>, 'file_node': <%s>, 'job': <%s>}",
                t->disk, t->file, t->format, t->node, t->file_node, t->job));
  }
  json_object_set_object_member(object, "point", dr_point_write(&b->point));
  json_object_set_array_member(object, "targets", targets);
  return object;
}

static void
read_targets(Backup *b, JsonArray *targets)
{
  for (guint i = 0; targets && i < json_array_get_length(targets); i++) {
    JsonObject *object = json_array_get_object_element(targets, i);
    DrBackupTarget *target = g_new0(DrBackupTarget, 1);

    target->disk = g_strdup(dr_json_str(object, "disk", ""));
    target->file = g_strdup(dr_json_str(object, "file", ""));
    target->format = g_strdup(dr_json_str(object, "format", ""));
    target->node = g_strdup(dr_json_str(object, "node", ""));
    target->file_node = g_strdup(dr_json_str(object, "file_node", ""));
    target->job = g_strdup(dr_json_str(object, "job", ""));
    target->reserved = TRUE; /* it was not there when the journal was written */
    g_ptr_array_add(b->targets, target);
  }
}

/* --- The jobs in QEMU --- */

/* It reads what was, and writes nothing that the guest waits for: a target that is slow, full or away is none of the guest's. */
static gboolean
start_one(Backup *b, DrQmp *qmp, const DrPointDisk *disk, const DrBackupTarget *target, GError **error)
{
  JsonObject *arguments =
      dr_json("{'job-id': <%s>, 'device': <%s>, 'target': <%s>, 'sync': <%s>, 'speed': <%x>, "
              "'auto-finalize': <true>, 'auto-dismiss': <false>}",
              target->job, disk->node, target->node, b->point.incremental ? "bitmap" : "full",
              dr_json_int(b->request, "bandwidth", 0) * 1048576);

  if (b->point.incremental) {
    json_object_set_string_member(arguments, "bitmap", b->point.incremental);
    json_object_set_string_member(arguments, "bitmap-mode", "never");
  }
  if (dr_qmp_do(qmp, "blockdev-backup", arguments, error))
    return TRUE;
  g_prefix_error(error, "cannot back up disk '%s': ", disk->disk);
  return FALSE;
}

static gboolean
start_all(Backup *b, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < b->targets->len; i++)
    if (!start_one(b, qmp, b->point.disks->pdata[i], b->targets->pdata[i], error))
      return FALSE;
  return TRUE;
}

static void
watch_all(Backup *b)
{
  for (guint i = 0; i < b->targets->len; i++) {
    const DrBackupTarget *target = b->targets->pdata[i];
    g_autofree char *what = g_strdup_printf("the backup of disk '%s'", target->disk);

    dr_disk_job_watch(&b->d, target->job, what, target->disk);
  }
}

static gboolean
end_jobs(Backup *b, DrQmp *qmp, GError **error)
{
  for (guint i = 0; i < b->targets->len; i++)
    dr_block_job_cancel(qmp, ((DrBackupTarget *)b->targets->pdata[i])->job);
  for (guint i = 0; i < b->targets->len; i++)
    if (!dr_block_job_kill(qmp, ((DrBackupTarget *)b->targets->pdata[i])->job, dr_deadline_in(KILL_MS),
                           error))
      return FALSE;
  return TRUE;
}

static gboolean
tick(DrDiskJob *d, DrQmp *qmp, GError **error)
{
  const Backup *b = d->data;

  return dr_point_has_room(&b->point, error);
}

/* --- All of it --- */

static void
backup_init(Backup *b, DrJob *job)
{
  dr_disk_job_init(&b->d, job);
  dr_vm_set_aside(dr_job_vm(job));
  b->d.tick = tick;
  b->d.data = b;
  b->request = dr_job_request(job);
  dr_point_init(&b->point);
  b->targets = g_ptr_array_new_with_free_func((GDestroyNotify)dr_backup_target_free);
  b->findings = dr_findings_new();
}

static void
backup_clear(Backup *b)
{
  dr_disk_job_clear(&b->d);
  dr_point_clear(&b->point);
  g_ptr_array_unref(b->targets);
  dr_findings_free(b->findings);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Backup, backup_clear)

static JsonObject *
result(const Backup *b)
{
  gint64 bytes = 0;
  JsonObject *object =
      dr_json("{'incremental': <%b>, 'frozen': <%x>, 'total_ms': <%d>}", b->point.incremental != NULL,
              b->point.frozen, (double)(g_get_monotonic_time() - b->d.begun_us) / 1000);
  JsonArray *disks = json_array_new();

  for (guint i = 0; i < b->targets->len; i++) {
    const DrBackupTarget *target = b->targets->pdata[i];

    json_array_add_object_element(disks, dr_json("{'disk': <%s>, 'file': <%s>, 'format': <%s>}", target->disk,
                                                 target->file, target->format));
  }
  for (guint i = 0; i < b->d.watches->len; i++)
    bytes += ((DrBlockWatch *)b->d.watches->pdata[i])->look.done;
  json_object_set_array_member(object, "disks", disks);
  json_object_set_int_member(object, "bytes_moved", bytes);
  return object;
}

static gboolean
try_undo(Backup *b, const char *stage)
{
  g_autoptr(GError) error = NULL;
  DrQmp *qmp = dr_disk_job_take(&b->d, &error);
  gboolean ended = FALSE;

  if (qmp) {
    dr_point_let_go(&b->point, qmp, stage);
    ended = end_jobs(b, qmp, &error);
    dr_backup_targets_close(b->targets, qmp);
    ended = ended && dr_point_drop(&b->point, qmp, TRUE, &error);
    dr_disk_job_give(&b->d, qmp);
  }
  if (!ended)
    g_warning("VM '%s': %s", dr_vm_name(b->d.vm), error->message);
  return ended;
}

/* Takes `cause`. */
static gboolean
undo(Backup *b, const char *stage, GError *cause, GError **error)
{
  while (!try_undo(b, stage) &&
         dr_vm_check(b->d.vm)) /* a filter that stayed would fill the scratch file unseen */
    g_usleep(AGAIN_US);        /* ended by QEMU's answer, or its end */
  if (!dr_vm_check(b->d.vm))
    dr_point_forget(&b->point);
  dr_backup_targets_remove(b->targets);
  g_propagate_error(error, cause);
  return FALSE;
}

/* Again and again the same, if droverd ends in it. */
static gboolean
commit(Backup *b, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&b->d, error);
  const char *bitmap = b->point.incremental ? b->point.incremental : b->point.begin;
  gboolean done = FALSE, ended;

  if (qmp) {
    ended = end_jobs(b, qmp, error);
    dr_backup_targets_close(b->targets, qmp);
    done = ended && dr_backup_targets_sync(b->targets, error) &&
           dr_backup_targets_record(b->targets, b->d.vm, bitmap, error) &&
           dr_point_succeed(&b->point, b->d.vm, qmp, error);
    /* In any case: the bitmap never stopped recording, and a filter that stayed would fill the scratch file unseen. */
    if (ended && !dr_point_drop(&b->point, qmp, FALSE, done ? error : NULL))
      done = FALSE;
    dr_disk_job_give(&b->d, qmp);
  }
  if (done)
    dr_job_set_result(b->d.job, result(b));
  return done;
}

static gboolean
follow(Backup *b, GError **error)
{
  g_autoptr(GError) local = NULL;
  DrDiskEvent event;

  if (dr_disk_job_follow(&b->d, DR_DEADLINE_NEVER, FALSE, &event, &local))
    return TRUE;
  if (local->code == DR_ERROR_QMP)
    dr_error_remedy(&local,
                    "see whether the target can be written to; 'Permission denied' is said also when the "
                    "scratch file was full or took too long: --scratch DIR");
  g_propagate_error(error, g_steal_pointer(&local));
  return FALSE;
}

static gboolean
to_the_end(Backup *b, GError **error)
{
  GError *cause = NULL;

  if (!follow(b, &cause) || !dr_job_no_return(b->d.job, &cause) ||
      !dr_job_enter(b->d.job, STAGE_COMMIT, NULL, &cause))
    return undo(b, STAGE_COPY, cause, error);
  return commit(b, error);
}

static gboolean
begin(Backup *b, DrQmp *qmp, GError **error)
{
  return dr_job_enter(b->d.job, STAGE_CREATE, note(b), error) &&
         dr_backup_targets_make(b->targets, b->d.vm, qmp, error) &&
         dr_point_prepare(&b->point, b->d.vm, qmp, error) &&
         dr_point_take(&b->point, b->d.job, qmp, b->findings, error) &&
         dr_job_enter(b->d.job, STAGE_COPY, NULL, error) && start_all(b, qmp, error);
}

gboolean
dr_backup_run(DrJob *job, GError **error)
{
  g_auto(Backup) b = { 0 };
  GError *cause = NULL;
  gboolean begun;
  DrQmp *qmp;

  backup_init(&b, job);
  if (!dr_job_enter(job, STAGE_PREFLIGHT, NULL, error) || !preflight(&b, error))
    return FALSE;
  qmp = dr_disk_job_take(&b.d, error);
  if (!qmp)
    return FALSE;
  begun = begin(&b, qmp, &cause);
  dr_disk_job_give(&b.d, qmp);
  if (!begun)
    return undo(&b, STAGE_CREATE, cause, error);
  watch_all(&b);
  return to_the_end(&b, error);
}

/* --- Recovery --- */

static gboolean
load(Backup *b, const char **ret_stage, GError **error)
{
  g_autoptr(JsonArray) journal =
      dr_store_load_journal(dr_job_host(b->d.job)->store, dr_job_id(b->d.job), error);

  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i), *said = dr_json_obj(entry, "note");

    *ret_stage = g_intern_string(dr_json_str(entry, "stage", ""));
    if (said && dr_json_obj(said, "point")) {
      dr_point_read(&b->point, dr_json_obj(said, "point"));
      read_targets(b, dr_json_arr(said, "targets"));
    } else if (said) {
      b->point.was_running |= dr_json_bool(said, "was_running", FALSE);
    }
  }
  return journal != NULL;
}

/* Whether QEMU has all of the jobs: one may be lacking that was not begun any more. */
static gboolean
all_begun(Backup *b)
{
  DrQmp *qmp = dr_disk_job_take(&b->d, NULL);
  gboolean all = qmp != NULL;

  for (guint i = 0; all && i < b->targets->len; i++) {
    g_auto(DrBlockJobLook) look = { 0 };

    all = dr_block_job_look(qmp, ((DrBackupTarget *)b->targets->pdata[i])->job, &look, NULL) &&
          look.state != DR_BLOCK_JOB_GONE;
  }
  if (qmp)
    dr_disk_job_give(&b->d, qmp);
  return all;
}

gboolean
dr_backup_recover(DrJob *job, GError **error)
{
  g_auto(Backup) b = { 0 };
  const char *stage = "queued";
  GError *cause = NULL;

  backup_init(&b, job);
  if (!load(&b, &stage, error))
    return FALSE;
  dr_job_step(job, stage);
  watch_all(&b);
  if (g_str_equal(stage, STAGE_COMMIT))
    return commit(&b, error);
  if (g_str_equal(stage, STAGE_COPY) && all_begun(&b)) {
    dr_job_may_return(job);
    return to_the_end(&b, error);
  }
  dr_error_set(&cause, DR_ERROR_CLOSED, "droverd ended at stage '%s', before the backup had begun", stage);
  dr_error_remedy(&cause, "start it again");
  return undo(&b, stage, cause, error);
}
