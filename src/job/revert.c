/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The revert from its beginning to its end. */
#include "base/error.h"
#include "base/fd.h"
#include "job/migration.h"
#include "job/revert-internal.h"
#include "vm/console.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define LEASE_MS 10000
#define CONNECT_MS 5000
#define LOAD_MS (60 * 60 * 1000)
#define SAMPLE_MS 250

static void
item_free(gpointer data)
{
  Item *item = data;
  char *texts[] = { item->disk, item->base,    item->base_format, item->top,
                    item->node, item->overlay, item->file_node };

  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
  g_free(item);
}

static void
revert_init(Revert *r, DrJob *job)
{
  dr_upgrade_init(&r->u, job);
  r->request = dr_job_request(job);
  r->name = dr_json_str(r->request, "snapshot", "");
  r->items = g_ptr_array_new_with_free_func(item_free);
  r->left = g_ptr_array_new_with_free_func(g_free);
  r->surplus = g_ptr_array_new_with_free_func(g_free);
  r->memory_number = -1;
}

static void
revert_clear(Revert *r)
{
  dr_upgrade_clear(&r->u);
  g_clear_pointer(&r->record, json_object_unref);
  g_ptr_array_unref(r->items);
  g_ptr_array_unref(r->left);
  g_ptr_array_unref(r->surplus);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Revert, revert_clear)

/* --- The new QEMU --- */

/* It may run as another user than droverd, and gets the open file. */
gboolean
dr_revert_hand_memory(Revert *r, GError **error)
{
  const char *file = dr_json_str(r->record, "memory.file", NULL);
  int fd = file ? open(file, O_RDONLY | O_CLOEXEC | O_NOCTTY) : -1;

  if (file && fd < 0)
    return dr_error_set_errno(error, errno, "cannot open '%s'", file);
  if (file)
    r->memory_number = dr_upgrade_hand(&r->u, fd, -1);
  return TRUE;
}

static gboolean
start(Revert *r, GError **error)
{
  r->u.plan.revert = TRUE;
  r->u.plan.cold = !dr_json_obj(r->record, "memory");
  r->u.pre->was_running = TRUE; /* only a guest that runs is saved, and one that boots is to run */
  return dr_revert_hand_memory(r, error) && dr_upgrade_start_destination(&r->u, error) &&
         dr_revert_verify(r, error);
}

/* --- From the old guest to the one of then --- */

static void
note_stop(Revert *r)
{
  DrQmpEvent *event;

  while ((event = dr_qmp_pop_event(r->u.source))) {
    if (g_str_equal(event->name, "STOP"))
      r->u.stopped_us = event->time_us;
    dr_qmp_event_free(event);
  }
}

/* It is whole, and goes on if the new one does not come to run. */
static gboolean
stop_source(Revert *r, GError **error)
{
  g_autofree char *state = dr_migration_run_state(r->u.source);
  gboolean runs = g_str_equal(state, "running");

  if (!dr_job_enter(r->u.job, DR_STAGE_TRANSFER, dr_json("{'halted': <%b>}", runs), error))
    return FALSE;
  r->u.plan.halted = runs;
  dr_console_hold(dr_vm_console(r->u.vm), &r->u.plan.source);
  if (!dr_qmp_do(r->u.source, "stop", NULL, error))
    return FALSE;
  note_stop(r);
  if (r->u.many_queues)
    dr_tap_guard_hand_over(r->u.guard);
  return TRUE;
}

static gboolean
cannot_load(Revert *r, const char *why, GError **error)
{
  dr_error_set(error, DR_ERROR_QMP, "the new QEMU cannot load the memory of snapshot '%s'%s%s", r->name,
               why ? ": " : "", why ? why : "");
  dr_upgrade_add_log(&r->u, error);
  return FALSE;
}

static gboolean
wait_loaded(Revert *r, GError **error)
{
  DrDeadline deadline = dr_deadline_in(LOAD_MS);
  DrQmp *dest[] = { r->u.dest };

  for (;;) {
    g_autoptr(GError) local = NULL;
    g_autoptr(JsonObject) info =
        dr_qmp_closed(r->u.dest) ? NULL : dr_qmp_call_object(r->u.dest, "query-migrate", NULL, &local);
    const char *status = info ? dr_json_str(info, "status", "") : "";

    if (g_str_equal(status, "completed"))
      return TRUE;
    if (g_error_matches(local, DR_ERROR, DR_ERROR_CANCELLED) ||
        g_error_matches(local, DR_ERROR, DR_ERROR_TIMEOUT)) {
      g_propagate_error(error, g_steal_pointer(&local));
      return FALSE;
    }
    if (!info || g_str_equal(status, "failed"))
      return cannot_load(r, info ? dr_json_str(info, "error-desc", NULL) : NULL, error);
    if (dr_deadline_passed(deadline))
      return dr_error_set(error, DR_ERROR_TIMEOUT, "loading the memory of snapshot '%s' takes too long",
                          r->name);
    if (!dr_qmp_wait_many(dest, 1, dr_deadline_in(SAMPLE_MS), &local) &&
        g_error_matches(local, DR_ERROR, DR_ERROR_CANCELLED)) {
      g_propagate_error(error, g_steal_pointer(&local));
      return FALSE;
    }
    dr_upgrade_note_resume(&r->u); /* takes its events */
  }
}

gboolean
dr_revert_load_memory(Revert *r, GError **error)
{
  static const char *const none[] = { NULL };
  g_autofree char *uri = g_strdup_printf("fd:%d", r->memory_number);

  if (r->u.plan.cold)
    return TRUE;
  return dr_migration_set_capabilities(r->u.dest, none, error) &&
         dr_qmp_do(r->u.dest, "migrate-incoming", dr_json("{'uri': <%s>}", uri), error) &&
         wait_loaded(r, error);
}

/* Until the commit ends the old guest it can still go on. */
static gboolean
still_runs(Revert *r, GError **error)
{
  g_autoptr(JsonObject) status = dr_qmp_call_object(r->u.dest, "query-status", NULL, error);

  if (status)
    return TRUE;
  g_prefix_error(error, "the new QEMU ended as soon as it ran: ");
  dr_upgrade_add_log(&r->u, error);
  return FALSE;
}

/* Nothing but `stop` keeps it from running, and somebody's monitor may have said `cont` while the file was read. */
static gboolean
source_stands(Revert *r, GError **error)
{
  g_autofree char *state = dr_migration_run_state(r->u.source);

  return !g_str_equal(state, "running") ||
         dr_error_set(error, DR_ERROR_REFUSED,
                      "the guest of VM '%s' was resumed by somebody else while the snapshot was loaded",
                      dr_vm_name(r->u.vm));
}

static gboolean
transfer(Revert *r, GError **error)
{
  return dr_upgrade_prepare_mark(&r->u, error) && stop_source(r, error) && dr_revert_load_memory(r, error) &&
         source_stands(r, error) && dr_upgrade_switch_over(&r->u, error) && still_runs(r, error);
}

/* --- The end --- */

static JsonArray *
disks_json(const Revert *r)
{
  JsonArray *disks = json_array_new();

  for (guint i = 0; i < r->items->len; i++) {
    const Item *item = r->items->pdata[i];

    json_array_add_object_element(disks, dr_json("{'disk': <%s>, 'base': <%s>, 'overlay': <%s>}", item->disk,
                                                 item->base, item->overlay));
  }
  return disks;
}

/* What the guest had written since the snapshot, and who wants it can still have. */
static JsonArray *
kept_json(const Revert *r)
{
  JsonArray *kept = json_array_new();

  for (guint i = 0; i < r->left->len; i++)
    if (!g_ptr_array_find_with_equal_func(r->surplus, r->left->pdata[i], g_str_equal, NULL))
      json_array_add_string_element(kept, r->left->pdata[i]);
  return kept;
}

static JsonObject *
result(const Revert *r)
{
  const DrUpgrade *u = &r->u;
  JsonArray *removed = json_array_new();
  JsonObject *object =
      dr_json("{'snapshot': <%s>, 'memory': <%b>, 'total_ms': <%d>, 'qemu_before': <%s>, "
              "'qemu_after': <%s>, 'pid_before': <%x>, 'pid_after': <%x>}",
              r->name, !u->plan.cold, (double)(g_get_monotonic_time() - u->begun_us) / 1000,
              u->plan.version_before, u->plan.version, (gint64)u->plan.source.pid, (gint64)u->dest_id.pid);

  dr_upgrade_tell_pause(u);
  if (u->stopped_us && u->resumed_us)
    json_object_set_double_member(object, "pause_ms", (double)(u->resumed_us - u->stopped_us) / 1000);
  for (guint i = 0; i < r->surplus->len; i++)
    json_array_add_string_element(removed, r->surplus->pdata[i]);
  json_object_set_array_member(object, "disks", disks_json(r));
  json_object_set_array_member(object, "kept", kept_json(r));
  json_object_set_array_member(object, "removed", removed);
  return object;
}

/* All of it can be done twice. */
gboolean
dr_revert_commit(Revert *r, GError **error)
{
  DrUpgrade *u = &r->u;
  g_autoptr(DrFindings) own = dr_findings_new();
  DrFindings *findings = u->pre ? u->pre->findings : own;
  g_autoptr(GError) lost = NULL, local = NULL;

  dr_upgrade_commit(u, findings, &lost);
  /* Its disks go on from before what the last backups have. */
  if (!dr_revert_write_records(r, &local) ||
      !dr_store_drop_backups(u->host->store, dr_vm_name(u->vm), &local))
    dr_findings_add(findings, DR_FINDING_WARNING, "record", NULL, "%s", local->message);
  dr_revert_discard(r);
  dr_job_set_findings(u->job, findings);
  dr_job_set_result(u->job, result(r));
  dr_upgrade_finish(u, DR_ON_DESTINATION, lost);
  dr_job_remove_at_end(u->job, u->plan.mark_path);
  if (!lost)
    return TRUE;
  g_propagate_error(error, g_steal_pointer(&lost));
  return FALSE;
}

/* Whether the new guest may have run: then its overlays have what it wrote, wherever the guest is in the end. */
static void
note_run(Revert *r)
{
  r->keep = dr_upgrade_is_chosen(&r->u) && !dr_upgrade_never_ran(&r->u);
}

/* The guest is where it was: nothing stands on the new overlays. */
static void
clean_up(Revert *r, DrWhere where)
{
  if (where == DR_ON_SOURCE && !r->keep)
    dr_revert_remove_overlays(r, r->u.source);
  else
    g_warning(
        "VM '%s': the overlays of its revert to snapshot '%s' stay: its new QEMU may have written to them",
        dr_vm_name(r->u.vm), r->name);
}

static gboolean
settle(Revert *r, GError *cause, GError **error)
{
  g_autoptr(GError) reason = NULL;
  DrWhere where;

  note_run(r);
  where = dr_upgrade_settle(&r->u, &reason);
  r->keep = r->keep || r->u.resumed_us != 0;
  if (where == DR_ON_DESTINATION) {
    g_warning("VM '%s' runs under its new QEMU in spite of: %s", dr_vm_name(r->u.vm), cause->message);
    g_error_free(cause);
    return dr_revert_commit(r, error);
  }
  clean_up(r, where);
  dr_upgrade_finish(&r->u, where, reason);
  if (reason) {
    g_error_free(cause);
    g_propagate_error(error, g_steal_pointer(&reason));
  } else {
    g_propagate_error(error, cause);
  }
  return FALSE;
}

static gboolean
prepare(Revert *r, GError **error)
{
  if (!dr_job_enter(r->u.job, DR_STAGE_CREATE, dr_revert_note(r), error))
    return FALSE;
  if (dr_revert_make_overlays(r, error))
    return TRUE;
  dr_revert_remove_overlays(r, r->u.source);
  return FALSE;
}

gboolean
dr_revert_run(DrJob *job, GError **error)
{
  g_auto(Revert) r = { 0 };
  GError *cause = NULL;
  gboolean ran;

  revert_init(&r, job);
  ran = dr_vm_check(r.u.vm);
  if (!dr_job_enter(job, DR_STAGE_PREFLIGHT, NULL, error))
    return FALSE;
  if (!ran)
    return dr_revert_run_dead(&r, error);
  r.u.source = dr_vm_take(r.u.vm, "a revert", LEASE_MS, &cause);
  dr_upgrade_note_source(&r.u);
  if (!r.u.source || !dr_revert_preflight(&r, &cause) || !prepare(&r, &cause))
    return dr_upgrade_give_up(&r.u, ran, cause, error);
  return start(&r, &cause) && transfer(&r, &cause) ? dr_revert_commit(&r, error) : settle(&r, cause, error);
}

/* --- Recovery --- */

static gboolean
commit_late(Revert *r, const char *stage, GError **error)
{
  g_autofree char *text =
      g_strdup_printf("droverd ended while the revert was at stage '%s'; its next start finished it", stage);

  if (!dr_revert_commit(r, error))
    return FALSE;
  dr_upgrade_note(r->u.vm, text, FALSE);
  dr_vm_save(r->u.vm, NULL);
  return TRUE;
}

/* There is no guest but the new one: with the mark it is that, whatever it does, as long as it lives. */
static gboolean
recover_dead(Revert *r, gboolean started, const char *stage, GError **error)
{
  DrUpgrade *u = &r->u;
  GError *cause = NULL;
  gboolean rebooted = dr_upgrade_was_rebooted(u, "revert", stage, &cause);

  r->keep = rebooted || (started && dr_upgrade_is_chosen(u)); /* the mark goes with a boot */
  if (!rebooted && r->keep && dr_upgrade_find_guest(u, &cause) == DR_ON_DESTINATION)
    return commit_late(r, stage, error);
  if (!cause) {
    if (started)
      dr_upgrade_find_by_socket(u->plan.qmp_path, &u->dest_id);
    dr_error_set(&cause, DR_ERROR_CLOSED, "droverd ended while the revert of VM '%s' was at stage '%s'",
                 dr_vm_name(u->vm), stage);
    dr_error_remedy(&cause, "start it again: drover snapshot revert %s %s", dr_vm_name(u->vm), r->name);
  }
  return dr_revert_undo_dead(r, cause, error);
}

static void
interrupted(Revert *r, const char *stage, GError **error)
{
  dr_error_set(error, DR_ERROR_CLOSED,
               "droverd ended while the revert of VM '%s' was at stage '%s'; the guest runs on where it was",
               dr_vm_name(r->u.vm), stage);
  dr_error_remedy(error, "start it again: drover snapshot revert %s %s", dr_vm_name(r->u.vm), r->name);
  dr_upgrade_say_if_ended(&r->u, error);
}

static void
load_items(Revert *r, JsonArray *journal)
{
  for (guint i = 0; i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i);

    if (g_str_equal(dr_json_str(entry, "stage", ""), DR_STAGE_CREATE) && dr_json_obj(entry, "note"))
      dr_revert_load(r, dr_json_obj(entry, "note"));
  }
}

/* An image that is being made is still open in the QEMU that makes it. */
static void
reach_source(Revert *r)
{
  if (!r->u.source && dr_proc_alive(&r->u.plan.source))
    r->u.source = dr_qmp_connect(r->u.plan.source_qmp, FALSE, dr_deadline_in(CONNECT_MS), NULL);
}

gboolean
dr_revert_recover(DrJob *job, GError **error)
{
  g_auto(Revert) r = { 0 };
  const char *stage = "queued";
  g_autoptr(JsonArray) journal = NULL;
  g_autoptr(GError) reason = NULL;
  DrWhere where = DR_ON_SOURCE;
  gboolean started;

  revert_init(&r, job);
  dr_upgrade_note_source(&r.u);
  journal = dr_store_load_journal(r.u.host->store, dr_job_id(job), error);
  if (!journal) {
    dr_vm_give(r.u.vm, NULL);
    return FALSE;
  }
  started = dr_upgrade_load_plan(&r.u, journal, &stage);
  load_items(&r, journal);
  dr_job_step(job, stage);
  dr_job_hold(job, DR_STEP_RECOVER);
  if (r.dead)
    return recover_dead(&r, started, stage, error);
  if (dr_upgrade_was_rebooted(&r.u, "revert", stage, &reason))
    where = DR_NOWHERE;
  else if (started) {
    note_run(&r);
    where = dr_upgrade_find_guest(&r.u, &reason);
  }
  if (where == DR_ON_DESTINATION)
    return commit_late(&r, stage, error);
  if (where == DR_ON_SOURCE)
    reach_source(&r);
  clean_up(&r, where);
  if (where == DR_ON_SOURCE && !reason)
    interrupted(&r, stage, &reason);
  dr_upgrade_finish(&r.u, where, reason);
  g_propagate_error(error, g_steal_pointer(&reason));
  return FALSE;
}
