/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The upgrade from its beginning to its end; the parts are in upgrade-*.c. */
#include "job/upgrade.h"
#include "base/error.h"
#include "base/fd.h"
#include "job/upgrade-internal.h"
#include "vm/console.h"

#include <fcntl.h>
#include <string.h>

#define LEASE_MS 10000
#define CONNECT_MS 5000

static void
upgrade_init(DrUpgrade *u, DrJob *job)
{
  u->job = job;
  u->vm = dr_job_vm(job);
  u->host = dr_job_host(job);
  u->fds = g_array_new(FALSE, FALSE, sizeof(int));
  u->numbers = g_array_new(FALSE, FALSE, sizeof(int));
  u->tap_fds = g_array_new(FALSE, FALSE, sizeof(int));
  u->tap_names = g_ptr_array_new_with_free_func(g_free);
  u->ram_fds = g_array_new(FALSE, FALSE, sizeof(int));
  u->begun_us = g_get_monotonic_time();
}

static void
close_all(GArray *fds)
{
  for (guint i = 0; i < fds->len; i++)
    close(g_array_index(fds, int, i));
  g_array_unref(fds);
}

static void
upgrade_clear(DrUpgrade *u)
{
  g_clear_pointer(&u->guard, dr_tap_guard_free); /* before the descriptors that it watches */
  close_all(u->fds);
  close_all(u->ram_fds);
  g_array_unref(u->numbers);
  g_array_unref(u->tap_fds);
  g_ptr_array_unref(u->tap_names);
  g_clear_pointer(&u->source, dr_qmp_free);
  g_clear_pointer(&u->dest, dr_qmp_free);
  g_clear_pointer(&u->pre, dr_preflight_free);
  dr_upgrade_plan_clear(&u->plan);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(DrUpgrade, upgrade_clear)

static gboolean
read_request(JsonObject *request, const char **ret_qemu, DrMemoryMode *ret_mode, GError **error)
{
  *ret_qemu = dr_json_str(request, "qemu", NULL);
  return dr_memory_mode_parse(dr_json_str(request, "memory", "auto"), ret_mode, error);
}

static gboolean
preflight(DrUpgrade *u, GError **error)
{
  g_autofree char *doing = g_strdup_printf("upgrade VM '%s'", dr_vm_name(u->vm));
  const char *qemu;
  DrMemoryMode mode;

  if (!read_request(dr_job_request(u->job), &qemu, &mode, error))
    return FALSE;
  dr_qmp_set_cancel_fd(u->source, dr_job_cancel_fd(u->job));
  u->pre = dr_preflight(u->vm, u->source, qemu, mode, error);
  if (!u->pre)
    return FALSE;
  dr_job_set_findings(u->job, u->pre->findings);
  return dr_findings_block(u->pre->findings) ? dr_findings_to_error(u->pre->findings, doing, error) : TRUE;
}

static JsonObject *
result(DrUpgrade *u, const char *version_before)
{
  JsonObject *object = json_object_new();
  guint64 extra = u->memory_peak > u->memory_before ? u->memory_peak - u->memory_before : 0;

  json_object_set_string_member(object, "memory_mode", dr_memory_mode_name(u->plan.mode));
  json_object_set_string_member(object, "memory_reason", u->pre ? u->pre->reason : NULL);
  if (u->stopped_us && u->resumed_us)
    json_object_set_double_member(object, "pause_ms", (double)(u->resumed_us - u->stopped_us) / 1000.0);
  else
    json_object_set_null_member(object, "pause_ms"); /* the guest was paused, or droverd was not there to see it */
  json_object_set_double_member(object, "total_ms", (double)(g_get_monotonic_time() - u->begun_us) / 1000.0);
  json_object_set_int_member(object, "bytes_moved", u->bytes_moved);
  json_object_set_int_member(object, "extra_memory_bytes", (gint64)extra);
  json_object_set_string_member(object, "qemu_before", version_before);
  json_object_set_string_member(object, "qemu_after", u->plan.version);
  json_object_set_int_member(object, "pid_before", u->plan.source.pid);
  json_object_set_int_member(object, "pid_after", u->dest_id.pid);
  return object;
}

static void
note(DrVm *vm, const char *text, gboolean ended)
{
  DrVmRecord *record = dr_vm_record(vm);

  dr_vm_lock(vm);
  g_free(record->note);
  record->note = g_strdup(text);
  if (ended) {
    g_free(record->exit_text);
    record->exit_text = g_strdup(text);
  }
  dr_vm_unlock(vm);
}

/* The last steps, wherever the guest is: the monitor goes back to the VM, the record says how things are. */
static void
finish(DrUpgrade *u, DrWhere where, const GError *reason)
{
  g_autoptr(GError) error = NULL;
  DrQmp *survivor = where == DR_ON_DESTINATION ? g_steal_pointer(&u->dest) : g_steal_pointer(&u->source);

  if (survivor)
    dr_vm_refresh(u->vm, survivor);
  dr_vm_give(u->vm, survivor);
  if (!dr_vm_check(u->vm) && reason)
    note(u->vm, reason->message, TRUE);
  if (!dr_vm_save(u->vm, &error))
    g_warning("%s", error->message);
}

static gboolean
move(DrUpgrade *u, GError **error)
{
  return dr_upgrade_start_destination(u, error) && dr_upgrade_verify_destination(u, error) &&
         dr_upgrade_transfer(u, error);
}

static gboolean
commit(DrUpgrade *u, const char *version_before, GError **error)
{
  g_autoptr(DrFindings) own = dr_findings_new();
  DrFindings *findings = u->pre ? u->pre->findings : own;
  gboolean done;

  done = dr_upgrade_commit(u, findings, error);
  dr_job_set_findings(u->job, findings);
  dr_job_set_result(u->job, result(u, version_before));
  unlink(u->plan.mark_path);
  finish(u, DR_ON_DESTINATION, NULL);
  return done;
}

/* An error on the way: finds out where that leaves the guest, and says so. */
static gboolean
settle(DrUpgrade *u, const char *version_before, GError *cause, GError **error)
{
  g_autoptr(GError) reason = NULL;
  DrWhere where = dr_upgrade_settle(u, &reason);

  if (where == DR_ON_DESTINATION) {
    g_warning("VM '%s' runs under its new QEMU in spite of: %s", dr_vm_name(u->vm), cause->message);
    g_error_free(cause);
    return commit(u, version_before, error);
  }
  finish(u, where, reason);
  if (reason) {
    g_error_free(cause);
    g_propagate_error(error, g_steal_pointer(&reason));
  } else {
    g_propagate_error(error, cause);
  }
  return FALSE;
}

gboolean
dr_upgrade_run(DrJob *job, GError **error)
{
  g_auto(DrUpgrade) u = { 0 };
  g_autofree char *version_before = NULL;
  GError *cause = NULL;

  upgrade_init(&u, job);
  if (!dr_job_enter(job, DR_STAGE_PREFLIGHT, NULL, error))
    return FALSE;
  u.source = dr_vm_take(u.vm, "an upgrade", LEASE_MS, error);
  if (!u.source)
    return FALSE;
  u.plan.source = dr_vm_record(u.vm)->id;
  version_before = g_strdup(dr_qmp_version(u.source));
  if (!preflight(&u, error)) {
    finish(&u, DR_ON_SOURCE, NULL);
    return FALSE;
  }
  return move(&u, &cause) ? commit(&u, version_before, error) : settle(&u, version_before, cause, error);
}

JsonObject *
dr_upgrade_check(DrVm *vm, JsonObject *request, GError **error)
{
  g_autoptr(DrPreflight) pre = NULL;
  const char *qemu;
  DrMemoryMode mode;
  JsonObject *report = NULL;
  DrQmp *source;

  if (!read_request(request, &qemu, &mode, error))
    return NULL;
  source = dr_vm_take(vm, "a preflight check", LEASE_MS, error);
  if (!source)
    return NULL;
  pre = dr_preflight(vm, source, qemu, mode, error);
  if (pre)
    report = dr_preflight_json(pre, vm, source);
  dr_vm_give(vm, source);
  return report;
}

/* --- Recovery --- */

/* A destination that was spawned, but whose pid did not reach the journal, has its monitor's path on its command line. */
static gboolean
find_by_socket(const char *qmp_path, DrProcId *ret_id)
{
  g_autoptr(GDir) proc = g_dir_open("/proc", 0, NULL);
  const char *name;

  while (proc && (name = g_dir_read_name(proc))) {
    guint64 pid;
    g_auto(GStrv) words = NULL;

    if (!g_ascii_string_to_unsigned(name, 10, 1, G_MAXINT, &pid, NULL))
      continue;
    words = dr_proc_cmdline((pid_t)pid, NULL);
    for (char **word = words; word && *word; word++)
      if (g_str_has_prefix(*word, "socket,id=drover-qmp,") && strstr(*word, qmp_path))
        return dr_proc_identify((pid_t)pid, ret_id, NULL);
  }
  return FALSE;
}

/* Reads the journal. FALSE: nothing had been started. */
static gboolean
load_plan(DrUpgrade *u, JsonArray *journal)
{
  gboolean started = FALSE;

  for (guint i = 0; i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i);
    JsonObject *entry_note = dr_json_obj(entry, "note");
    const char *stage = dr_json_str(entry, "stage", "");

    if (g_str_equal(stage, DR_STAGE_START)) {
      dr_upgrade_plan_read(&u->plan, entry_note);
      started = TRUE;
    } else if (g_str_equal(stage, DR_STAGE_VERIFY)) {
      u->dest_id.pid = (pid_t)dr_json_int(entry_note, "pid", 0);
      u->dest_id.start_time = (guint64)dr_json_int(entry_note, "start_time", 0);
    }
  }
  if (started && !u->dest_id.pid)
    find_by_socket(u->plan.qmp_path, &u->dest_id);
  return started;
}

static void
connect_both(DrUpgrade *u)
{
  g_autoptr(GError) error = NULL;
  const DrVmRecord *record = dr_vm_record(u->vm);

  /* The console of the destination, too, so that what it prints is not lost if it turns out to have the guest. */
  if (u->dest_id.pid && dr_proc_alive(&u->dest_id)) {
    dr_autofd int pidfd = dr_proc_open(&u->dest_id, NULL);

    u->dest = dr_qmp_await(u->plan.qmp_path, pidfd, dr_deadline_in(CONNECT_MS), &error);
    if (u->dest && u->plan.console)
      dr_console_prepare(dr_vm_console(u->vm), u->plan.console_path, NULL);
    g_clear_error(&error);
  }
  if (dr_proc_alive(&u->plan.source) && record->id.pid == u->plan.source.pid)
    u->source = dr_qmp_connect(record->qmp_path, FALSE, dr_deadline_in(CONNECT_MS), &error);
}

static gboolean
has_committed(const DrUpgrade *u)
{
  return dr_vm_record(u->vm)->id.pid == u->dest_id.pid && u->dest_id.pid && u->dest;
}

static gboolean
interrupted(DrUpgrade *u, const DrJobRow *row, GError **error)
{
  g_autofree char *text = g_strdup_printf("droverd ended while the upgrade of VM '%s' was at stage '%s'; the guest runs on "
                                          "under its old QEMU",
                                          row->vm, row->stage);

  note(u->vm, text, FALSE);
  dr_error_set(error, DR_ERROR_CLOSED, "%s", text);
  return dr_error_remedy(error, "start the upgrade again: drover upgrade %s", row->vm);
}

gboolean
dr_upgrade_recover(DrJob *job, const DrJobRow *row, GError **error)
{
  g_auto(DrUpgrade) u = { 0 };
  g_autoptr(JsonArray) journal = dr_store_load_journal(dr_job_host(job)->store, row->id, error);
  g_autoptr(GError) reason = NULL;
  DrWhere where;

  if (!journal)
    return FALSE;
  upgrade_init(&u, job);
  u.plan.source = dr_vm_record(u.vm)->id;
  if (!load_plan(&u, journal))
    return interrupted(&u, row, error);
  connect_both(&u);
  where = has_committed(&u) ? DR_ON_DESTINATION : dr_upgrade_settle(&u, &reason);
  if (where == DR_ON_DESTINATION)
    return commit(&u, dr_vm_record(u.vm)->qemu_version, error);
  if (where == DR_ON_SOURCE && !reason)
    interrupted(&u, row, &reason);
  finish(&u, where, reason);
  g_propagate_error(error, g_steal_pointer(&reason));
  return FALSE;
}
