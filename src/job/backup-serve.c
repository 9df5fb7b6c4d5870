/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Serves a point in time of disks by NBD. */
#include "job/backup-serve.h"
#include "base/error.h"
#include "job/backup-listen.h"
#include "job/backup-point.h"
#include "job/disk-job.h"
#include "vm/user.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define AGAIN_US (2 * G_USEC_PER_SEC)
#define STAGE_PREFLIGHT "preflight"
#define STAGE_CREATE "create"
#define STAGE_EXPORT "export"
#define STAGE_SERVE "serve"
#define STAGE_FINISH "finish"
#define SOCKET "backup.nbd"
#define EXPORTS_MS 10000 /* until QEMU has let its clients go */
#define LOOK_US 20000

typedef struct {
  DrDiskJob d;
  JsonObject *request;
  DrPoint point;
  DrFindings *findings;
  DrListen listen;
  gboolean started; /* QEMU's NBD server is ours */
  gboolean success;
} Serve;

/* --- The request --- */

gboolean
dr_backup_serve_check(JsonObject *request, GError **error)
{
  const char *text = dr_json_str(request, "listen", NULL);
  DrListen listen = { 0 };
  gboolean right = (!text || dr_listen_parse(&listen, text, error)) && dr_point_check(request, error);

  dr_listen_clear(&listen);
  return right;
}

/* --- Before --- */

/* QEMU would write over what is there. */
static gboolean
choose_listen(Serve *s, GError **error)
{
  const char *text = dr_json_str(s->request, "listen", NULL);
  g_autofree char *dir = NULL;
  struct stat st;

  if (!text) {
    dir = dr_host_socket_dir(dr_job_host(s->d.job), dr_vm_name(s->d.vm), NULL,
                             (const char *const *)dr_vm_record(s->d.vm)->argv_running, error);
    s->listen.path = dir ? g_build_filename(dir, SOCKET, NULL) : NULL;
    return s->listen.path != NULL;
  }
  if (!dr_listen_parse(&s->listen, text, error))
    return FALSE;
  if (s->listen.path && lstat(s->listen.path, &st) == 0)
    dr_findings_add(s->findings, DR_FINDING_BLOCKER, "target-exists", "name another one",
                    "the socket '%s' is there already", s->listen.path);
  return TRUE;
}

static gboolean
choose(Serve *s, DrQmp *qmp, GError **error)
{
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, dr_vm_record(s->d.vm)->cwd, error);
  g_autofree char *doing = g_strdup_printf("serve the disks of VM '%s'", dr_vm_name(s->d.vm));

  if (!disks || !dr_point_choose(&s->point, s->d.vm, qmp, disks, s->request, s->findings, error) ||
      !choose_listen(s, error))
    return FALSE;
  dr_job_set_findings(s->d.job, s->findings);
  return dr_findings_block(s->findings) ? dr_findings_to_error(s->findings, doing, error) : TRUE;
}

/* --- Exports --- */

static gboolean
start_server(Serve *s, DrQmp *qmp, GError **error)
{
  JsonObject *arguments = json_object_new();

  json_object_set_object_member(arguments, "addr", dr_listen_address(&s->listen));
  s->started = dr_qmp_do(qmp, "nbd-server-start", arguments, error);
  if (s->started)
    return TRUE;
  g_prefix_error(error, "cannot serve the disks of VM '%s': ", dr_vm_name(s->d.vm));
  return dr_error_remedy(error, "if somebody else has started its NBD server: drover qmp %s nbd-server-stop",
                         dr_vm_name(s->d.vm));
}

static gboolean
add_export(Serve *s, DrQmp *qmp, const DrPointDisk *disk, GError **error)
{
  JsonObject *arguments =
      dr_json("{'type': <'nbd'>, 'id': <%s>, 'node-name': <%s>, 'name': <%s>, 'writable': <false>}",
              disk->node, disk->node, disk->disk);

  if (s->point.incremental)
    json_object_set_array_member(
        arguments, "bitmaps", dr_json_array_from_strv((const char *const[]){ s->point.incremental, NULL }));
  return dr_qmp_do(qmp, "block-export-add", arguments, error);
}

static gboolean
export_all(Serve *s, DrQmp *qmp, GError **error)
{
  if (!start_server(s, qmp, error))
    return FALSE;
  for (guint i = 0; i < s->point.disks->len; i++)
    if (!add_export(s, qmp, s->point.disks->pdata[i], error))
      return FALSE;
  return TRUE;
}

static gboolean
is_ours(const Serve *s, const char *id)
{
  for (guint i = 0; i < s->point.disks->len; i++)
    if (g_str_equal(((DrPointDisk *)s->point.disks->pdata[i])->node, id))
      return TRUE;
  return FALSE;
}

static gboolean
count_exports(const Serve *s, DrQmp *qmp, guint *ret_n, GError **error)
{
  g_autoptr(JsonArray) exports = dr_qmp_call_array(qmp, "query-block-exports", NULL, error);

  *ret_n = 0;
  for (guint i = 0; exports && i < json_array_get_length(exports); i++)
    *ret_n += is_ours(s, dr_json_str(json_array_get_object_element(exports, i), "id", ""));
  return exports != NULL;
}

static gboolean
end_exports(const Serve *s, DrQmp *qmp, GError **error)
{
  DrDeadline deadline = dr_deadline_in(EXPORTS_MS);
  g_autoptr(GError) local = NULL;
  guint n;

  if (s->started && !dr_qmp_do(qmp, "nbd-server-stop", NULL, &local))
    g_debug("nbd-server-stop: %s", local->message); /* it has been stopped */
  for (;;) {
    if (!count_exports(s, qmp, &n, error))
      return FALSE;
    if (n == 0)
      break;
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "QEMU does not let the clients of the backup go");
    g_usleep(LOOK_US);
  }
  if (s->started && s->listen.path)
    unlink(s->listen.path);
  return TRUE;
}

/* --- All of it --- */

static gboolean
asked(DrDiskJob *d, const char *method, JsonObject *params, JsonObject **ret_reply, GError **error)
{
  Serve *s = d->data;
  g_autofree char *id = NULL;

  if (!g_str_equal(method, "finish") && !g_str_equal(method, "abort"))
    return FALSE;
  s->success = g_str_equal(method, "finish") && dr_json_bool(params, "success", FALSE);
  id = g_strdup_printf("%" G_GINT64_FORMAT, dr_job_id(d->job));
  *ret_reply = dr_json("{'job': <%s>}", id);
  return TRUE;
}

static gboolean
tick(DrDiskJob *d, DrQmp *qmp, GError **error)
{
  const Serve *s = d->data;

  return dr_point_has_room(&s->point, error);
}

static void
serve_init(Serve *s, DrJob *job)
{
  dr_disk_job_init(&s->d, job);
  dr_vm_set_aside(dr_job_vm(job));
  s->d.asked = asked;
  s->d.tick = tick;
  s->d.data = s;
  s->request = dr_job_request(job);
  s->findings = dr_findings_new();
  dr_point_init(&s->point);
}

static void
serve_clear(Serve *s)
{
  dr_disk_job_clear(&s->d);
  dr_point_clear(&s->point);
  dr_findings_free(s->findings);
  dr_listen_clear(&s->listen);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Serve, serve_clear)

static JsonObject *
result(const Serve *s)
{
  JsonObject *object = dr_json("{'success': <%b>, 'frozen': <%x>, 'total_ms': <%d>}", s->success,
                               s->point.frozen, (double)(g_get_monotonic_time() - s->d.begun_us) / 1000);
  JsonArray *disks = json_array_new();

  for (guint i = 0; i < s->point.disks->len; i++) {
    const DrPointDisk *disk = s->point.disks->pdata[i];
    g_autofree char *uri = dr_listen_uri(&s->listen, disk->disk);
    JsonObject *one = dr_json("{'disk': <%s>, 'uri': <%s>, 'bytes': <%x>}", disk->disk, uri, disk->bytes);

    if (s->point.incremental) {
      g_autofree char *context = g_strconcat("qemu:dirty-bitmap:", s->point.incremental, NULL);

      json_object_set_string_member(one, "context", context);
    }
    json_array_add_object_element(disks, one);
  }
  json_object_set_array_member(object, "disks", disks);
  return object;
}

static gboolean
try_undo(Serve *s, const char *stage)
{
  g_autoptr(GError) error = NULL;
  DrQmp *qmp = dr_disk_job_take(&s->d, &error);
  gboolean ended = FALSE;

  if (qmp) {
    dr_point_let_go(&s->point, qmp, stage);
    ended = end_exports(s, qmp, &error) && dr_point_drop(&s->point, qmp, TRUE, &error);
    dr_disk_job_give(&s->d, qmp);
  }
  if (!ended)
    g_warning("VM '%s': %s", dr_vm_name(s->d.vm), error->message);
  return ended;
}

/* Takes `cause`. */
static gboolean
undo(Serve *s, const char *stage, GError *cause, GError **error)
{
  while (!try_undo(s, stage) &&
         dr_vm_check(s->d.vm)) /* a filter that stayed would fill the scratch file unseen */
    g_usleep(AGAIN_US);        /* ended by QEMU's answer, or its end */
  if (!dr_vm_check(s->d.vm))
    dr_point_forget(&s->point);
  g_propagate_error(error, cause);
  return FALSE;
}

/* Whoever read it has what the next backup stands on, and no file of drover's. Before the bitmap changes: a crash in between costs an
 * --onto only. */
static gboolean
forget_files(const Serve *s, GError **error)
{
  const char *bitmap = s->point.incremental ? s->point.incremental : s->point.begin;

  for (guint i = 0; bitmap && i < s->point.disks->len; i++)
    if (!dr_store_drop_backup(dr_vm_host(s->d.vm)->store, dr_vm_name(s->d.vm), bitmap,
                              ((const DrPointDisk *)s->point.disks->pdata[i])->disk, error))
      return FALSE;
  return TRUE;
}

/* Again and again the same, if droverd ends in it. The filters go in any case: the bitmap never stopped recording. */
static gboolean
finish(Serve *s, GError **error)
{
  DrQmp *qmp = dr_disk_job_take(&s->d, error);
  gboolean ended = qmp && end_exports(s, qmp, error);
  gboolean done =
      ended && (!s->success || (forget_files(s, error) && dr_point_succeed(&s->point, s->d.vm, qmp, error)));

  if (ended && !dr_point_drop(&s->point, qmp, !s->success, done ? error : NULL))
    done = FALSE;
  if (qmp)
    dr_disk_job_give(&s->d, qmp);
  if (done)
    dr_job_set_result(s->d.job, result(s));
  return done;
}

static gboolean
to_the_end(Serve *s, GError **error)
{
  GError *cause = NULL;

  if (!dr_disk_job_linger(&s->d, &cause) || !dr_job_no_return(s->d.job, &cause) ||
      !dr_job_enter(s->d.job, STAGE_FINISH, dr_json("{'success': <%b>}", s->success), &cause))
    return undo(s, STAGE_SERVE, cause, error);
  return finish(s, error);
}

static JsonObject *
note(const Serve *s)
{
  JsonObject *object = json_object_new();

  json_object_set_object_member(object, "listen", dr_listen_write(&s->listen));
  json_object_set_object_member(object, "point", dr_point_write(&s->point));
  return object;
}

/* The last stage's name is seen only when all can be read. */
static gboolean
begin(Serve *s, DrQmp *qmp, GError **error)
{
  if (!dr_job_enter(s->d.job, STAGE_CREATE, note(s), error) ||
      !dr_point_prepare(&s->point, s->d.vm, qmp, error) ||
      !dr_point_take(&s->point, s->d.job, qmp, s->findings, error) ||
      !dr_job_enter(s->d.job, STAGE_EXPORT, NULL, error) || !export_all(s, qmp, error))
    return FALSE;
  dr_job_set_result(s->d.job, result(s));
  return dr_job_enter(s->d.job, STAGE_SERVE, NULL, error);
}

gboolean
dr_backup_serve_run(DrJob *job, GError **error)
{
  g_auto(Serve) s = { 0 };
  GError *cause = NULL;
  gboolean begun;
  DrQmp *qmp;

  serve_init(&s, job);
  if (!dr_job_enter(job, STAGE_PREFLIGHT, NULL, error))
    return FALSE;
  qmp = dr_disk_job_take(&s.d, error);
  if (!qmp)
    return FALSE;
  if (!choose(&s, qmp, error)) {
    dr_disk_job_give(&s.d, qmp);
    return FALSE;
  }
  begun = begin(&s, qmp, &cause);
  dr_disk_job_give(&s.d, qmp);
  return begun ? to_the_end(&s, error) : undo(&s, STAGE_CREATE, cause, error);
}

/* --- Recovery --- */

static void
read_note(Serve *s, JsonObject *said)
{
  if (dr_json_obj(said, "point")) {
    dr_point_read(&s->point, dr_json_obj(said, "point"));
    dr_listen_read(&s->listen, dr_json_obj(said, "listen"));
  }
  s->point.was_running |= dr_json_bool(said, "was_running", FALSE);
  s->success |= dr_json_bool(said, "success", FALSE);
}

static gboolean
load(Serve *s, const char **ret_stage, GError **error)
{
  g_autoptr(JsonArray) journal =
      dr_store_load_journal(dr_job_host(s->d.job)->store, dr_job_id(s->d.job), error);

  for (guint i = 0; journal && i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i), *said = dr_json_obj(entry, "note");

    *ret_stage = g_intern_string(dr_json_str(entry, "stage", ""));
    if (said)
      read_note(s, said);
  }
  return journal != NULL;
}

/* QEMU has gone on serving meanwhile. */
static gboolean
is_served(Serve *s)
{
  DrQmp *qmp = dr_disk_job_take(&s->d, NULL);
  guint n = 0;

  if (qmp) {
    count_exports(s, qmp, &n, NULL);
    dr_disk_job_give(&s->d, qmp);
  }
  return n == s->point.disks->len;
}

gboolean
dr_backup_serve_recover(DrJob *job, GError **error)
{
  g_auto(Serve) s = { 0 };
  const char *stage = "queued";
  GError *cause = NULL;

  serve_init(&s, job);
  if (!load(&s, &stage, error))
    return FALSE;
  s.started = g_strv_contains((const char *const[]){ STAGE_EXPORT, STAGE_SERVE, STAGE_FINISH, NULL }, stage);
  if (g_str_equal(stage, STAGE_SERVE))
    dr_job_set_result(job, result(&s));
  dr_job_step(job, stage);
  if (g_str_equal(stage, STAGE_FINISH))
    return finish(&s, error);
  if (g_str_equal(stage, STAGE_SERVE) && is_served(&s)) {
    dr_job_may_return(job);
    return to_the_end(&s, error);
  }
  dr_error_set(&cause, DR_ERROR_CLOSED, "droverd ended at stage '%s', before the disks were served", stage);
  dr_error_remedy(&cause, "start it again");
  return undo(&s, stage, cause, error);
}
