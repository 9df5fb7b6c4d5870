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
#define DYING_MS 1000

void
dr_upgrade_init(DrUpgrade *u, DrJob *job)
{
  u->job = job;
  u->vm = dr_job_vm(job);
  u->host = dr_job_host(job);
  u->fds = g_array_new(FALSE, FALSE, sizeof(int));
  u->numbers = g_array_new(FALSE, FALSE, sizeof(int));
  u->tap_fds = g_array_new(FALSE, FALSE, sizeof(int));
  u->tap_source_fds = g_array_new(FALSE, FALSE, sizeof(int));
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

void
dr_upgrade_clear(DrUpgrade *u)
{
  g_clear_pointer(&u->guard, dr_tap_guard_free); /* before the descriptors that it watches */
  close_all(u->fds);
  close_all(u->ram_fds);
  g_array_unref(u->numbers);
  g_array_unref(u->tap_fds);
  g_array_unref(u->tap_source_fds);
  g_ptr_array_unref(u->tap_names);
  g_clear_pointer(&u->source, dr_qmp_free);
  g_clear_pointer(&u->dest, dr_qmp_free);
  g_clear_pointer(&u->pre, dr_preflight_free);
  dr_upgrade_plan_clear(&u->plan);
}

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
result(DrUpgrade *u)
{
  JsonObject *object = json_object_new();
  guint64 extra = u->memory_peak > u->memory_before ? u->memory_peak - u->memory_before : 0;

  json_object_set_string_member(object, "memory_mode", dr_memory_mode_name(u->plan.mode));
  json_object_set_string_member(object, "memory_reason", u->pre ? u->pre->reason : NULL);
  if (u->stopped_us && u->resumed_us)
    json_object_set_double_member(object, "pause_ms", (double)(u->resumed_us - u->stopped_us) / 1000.0);
  else
    json_object_set_null_member(object,
                                "pause_ms"); /* the guest was paused, or droverd was not there to see it */
  json_object_set_double_member(object, "total_ms", (double)(g_get_monotonic_time() - u->begun_us) / 1000.0);
  json_object_set_int_member(object, "bytes_moved", u->bytes_moved);
  json_object_set_int_member(object, "extra_memory_bytes", (gint64)extra);
  json_object_set_string_member(object, "qemu_before", u->plan.version_before);
  json_object_set_string_member(object, "qemu_after", u->plan.version);
  json_object_set_int_member(object, "pid_before", u->plan.source.pid);
  json_object_set_int_member(object, "pid_after", u->dest_id.pid);
  return object;
}

void
dr_upgrade_note(DrVm *vm, const char *text, gboolean ended)
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

void
dr_upgrade_finish(DrUpgrade *u, DrWhere where, const GError *reason)
{
  g_autoptr(GError) error = NULL;
  DrQmp *survivor = where == DR_ON_DESTINATION ? g_steal_pointer(&u->dest) : g_steal_pointer(&u->source);

  if (u->waited)
    dr_upgrade_note(u->vm, NULL, FALSE); /* what it waited for has come */
  if (survivor)
    dr_vm_refresh(u->vm, survivor);
  dr_vm_give(u->vm, survivor);
  dr_vm_check(u->vm);
  if (reason)
    dr_upgrade_note(u->vm, reason->message, where == DR_NOWHERE);
  if (!dr_vm_save(u->vm, &error))
    g_warning("%s", error->message);
}

void
dr_upgrade_say_if_ended(DrUpgrade *u, GError **error)
{
  if (dr_vm_check(u->vm))
    return;
  g_clear_error(error);
  dr_error_set(error, DR_ERROR_ATTENTION,
               "the guest of VM '%s' has ended before anything was moved: its QEMU %s", dr_vm_name(u->vm),
               dr_vm_record(u->vm)->exit_text);
  dr_error_remedy(error, "see drover show %s and its log, then start it again", dr_vm_name(u->vm));
}

static gboolean
move(DrUpgrade *u, GError **error)
{
  return dr_upgrade_start_destination(u, error) && dr_upgrade_verify_destination(u, error) &&
         dr_upgrade_transfer(u, error);
}

static gboolean
commit(DrUpgrade *u, GError **error)
{
  g_autoptr(DrFindings) own = dr_findings_new();
  DrFindings *findings = u->pre ? u->pre->findings : own;
  g_autoptr(GError) lost = NULL;

  dr_upgrade_commit(u, findings, &lost);
  if (u->pre || dr_findings_count(own))
    dr_job_set_findings(u->job, findings);
  dr_upgrade_tell_pause(u);
  dr_job_set_result(u->job, result(u));
  dr_upgrade_finish(u, DR_ON_DESTINATION, lost);
  /* A record that could not be written names the old QEMU: then a recovery needs the mark to know better. */
  dr_job_remove_at_end(u->job, u->plan.mark_path);
  if (!lost)
    return TRUE;
  g_propagate_error(error, g_steal_pointer(&lost));
  return FALSE;
}

/* An error on the way: finds out where that leaves the guest, and says so. */
static gboolean
settle(DrUpgrade *u, GError *cause, GError **error)
{
  g_autoptr(GError) reason = NULL;
  DrWhere where = dr_upgrade_settle(u, &reason);

  if (where == DR_ON_DESTINATION) {
    g_warning("VM '%s' runs under its new QEMU in spite of: %s", dr_vm_name(u->vm), cause->message);
    g_error_free(cause);
    return commit(u, error);
  }
  dr_upgrade_finish(u, where, reason);
  if (reason) {
    g_error_free(cause);
    g_propagate_error(error, g_steal_pointer(&reason));
  } else {
    g_propagate_error(error, cause);
  }
  return FALSE;
}

void
dr_upgrade_note_source(DrUpgrade *u)
{
  const DrVmRecord *record = dr_vm_record(u->vm);
  g_autofree char *run_dir = dr_host_run_dir(u->host, record->name, NULL);

  u->plan.source = record->id;
  u->plan.source_qmp = g_strdup(record->qmp_path);
  u->plan.borrowed = record->borrowed;
  u->plan.foreign = record->foreign;
  u->plan.source_exit = g_strdup(record->exit_path);
  u->plan.version_before = g_strdup(record->qemu_version);
  /* A console that is the user's own socket keeps its path. */
  if (record->console_path && run_dir && g_str_has_prefix(record->console_path, run_dir))
    u->plan.source_console = g_strdup(record->console_path);
}

/* A QEMU that ends closes its monitor before it has ended. */
static gboolean
may_be_ending(const GError *error)
{
  return g_error_matches(error, DR_ERROR, DR_ERROR_CLOSED) || g_error_matches(error, DR_ERROR, DR_ERROR_IO);
}

gboolean
dr_upgrade_give_up(DrUpgrade *u, gboolean ran, GError *cause, GError **error)
{
  if (may_be_ending(cause))
    dr_upgrade_ends_within(&u->plan.source, DYING_MS);
  if (u->source)
    dr_upgrade_finish(u, DR_ON_SOURCE, NULL); /* which gives the monitor back */
  if (ran)
    dr_upgrade_say_if_ended(u, &cause);
  g_propagate_error(error, cause);
  return FALSE;
}

gboolean
dr_upgrade_run(DrJob *job, GError **error)
{
  g_auto(DrUpgrade) u = { 0 };
  GError *cause = NULL;
  gboolean ran;

  dr_upgrade_init(&u, job);
  ran = dr_vm_check(u.vm);
  if (!dr_job_enter(job, DR_STAGE_PREFLIGHT, NULL, error))
    return FALSE;
  u.source = dr_vm_take(u.vm, "an upgrade", LEASE_MS, &cause);
  dr_upgrade_note_source(&u);
  if (!u.source || !preflight(&u, &cause))
    return dr_upgrade_give_up(&u, ran, cause, error);
  return move(&u, &cause) ? commit(&u, error) : settle(&u, cause, error);
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

/* The word of a command line that makes drover's own monitor of a QEMU there. */
static gboolean
is_monitor(const char *word, const char *qmp_path)
{
  g_autofree char *path = g_strdup_printf("path=%s,", qmp_path);

  return g_str_has_prefix(word, "socket,id=drover-qmp,") && strstr(word, path);
}

gboolean
dr_upgrade_find_by_socket(const char *qmp_path, DrProcId *ret_id)
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
      if (is_monitor(*word, qmp_path))
        return dr_proc_identify((pid_t)pid, ret_id, NULL);
  }
  return FALSE;
}

gboolean
dr_upgrade_load_plan(DrUpgrade *u, JsonArray *journal, const char **ret_stage)
{
  gboolean started = FALSE;

  for (guint i = 0; i < json_array_get_length(journal); i++) {
    JsonObject *entry = json_array_get_object_element(journal, i);
    JsonObject *entry_note = dr_json_obj(entry, "note");
    const char *stage = dr_json_str(entry, "stage", "");

    *ret_stage = stage;
    if (g_str_equal(stage, DR_STAGE_START)) {
      dr_upgrade_plan_read(&u->plan, entry_note);
      started = TRUE;
    } else if (g_str_equal(stage, DR_STAGE_VERIFY)) {
      u->dest_id.pid = (pid_t)dr_json_int(entry_note, "pid", 0);
      u->dest_id.start_time = (guint64)dr_json_int(entry_note, "start_time", 0);
    } else if (g_str_equal(stage, DR_STAGE_POSTCOPY)) {
      u->postcopy_begun = TRUE;
    }
    if (entry_note && json_object_has_member(entry_note, "halted"))
      u->plan.halted = dr_json_bool(entry_note, "halted", FALSE);
    /* Paused or resumed by somebody since the plan was made: see dr_upgrade_note_running(). */
    if (entry_note && json_object_has_member(entry_note, "was_running"))
      u->plan.was_running = dr_json_bool(entry_note, "was_running", TRUE);
  }
  return started;
}

static void
connect_both(DrUpgrade *u)
{
  if (!u->dest_id.pid && u->plan.foreign)
    dr_upgrade_find_by_listener(u, &u->dest_id);
  else if (!u->dest_id.pid)
    dr_upgrade_find_by_socket(u->plan.qmp_path, &u->dest_id);
  if (u->plan.foreign && u->dest_id.pid && dr_proc_alive(&u->dest_id)) {
    u->dest = dr_upgrade_connect(u, &u->dest_id, u->plan.qmp_path);
  } else if (u->dest_id.pid && dr_proc_alive(&u->dest_id)) {
    dr_autofd int pidfd = dr_proc_open(&u->dest_id, NULL);

    u->dest = dr_qmp_await(u->plan.qmp_path, pidfd, dr_deadline_in(CONNECT_MS), NULL);
  }
  /* The console, too, so that what it prints is not lost if it turns out to have the guest. */
  if (u->dest && u->plan.console)
    dr_console_prepare(dr_vm_console(u->vm), u->plan.console_path, NULL);
  if (dr_proc_alive(&u->plan.source))
    u->source = dr_upgrade_connect(u, &u->plan.source, u->plan.source_qmp);
}

DrWhere
dr_upgrade_find_guest(DrUpgrade *u, GError **ret_reason)
{
  DrWhere where = DR_ON_DESTINATION;

  connect_both(u);
  dr_upgrade_find_taps(u);
  if (!u->dest || !dr_upgrade_is_dest(u, &dr_vm_record(u->vm)->id))
    where = dr_upgrade_settle(u, ret_reason);
  if (u->dest && !u->plan.version)
    u->plan.version = g_strdup(dr_qmp_version(u->dest));
  return where;
}

gboolean
dr_upgrade_was_rebooted(DrUpgrade *u, const char *what, const char *stage, GError **error)
{
  if (g_strcmp0(dr_vm_record(u->vm)->boot_id, dr_boot_id()) == 0)
    return FALSE;
  u->dest_id = (DrProcId){ 0 };
  dr_upgrade_remove_leftovers(u);
  dr_error_set(error, DR_ERROR_ATTENTION, "the host was rebooted while the %s of VM '%s' was at stage '%s'",
               what, dr_vm_name(u->vm), stage);
  dr_error_remedy(error, "start the VM again");
  return TRUE;
}

static void
interrupted(DrUpgrade *u, const char *stage, GError **error)
{
  dr_error_set(
      error, DR_ERROR_CLOSED,
      "droverd ended while the upgrade of VM '%s' was at stage '%s'; the guest runs on under its old QEMU",
      dr_vm_name(u->vm), stage);
  dr_error_remedy(error, "start the upgrade again: drover upgrade %s", dr_vm_name(u->vm));
  dr_upgrade_say_if_ended(u, error);
}

/* The guest runs under the new QEMU, which droverd did not live to see. */
static gboolean
commit_late(DrUpgrade *u, const char *stage, GError **error)
{
  g_autofree char *text =
      g_strdup_printf("droverd ended while the upgrade was at stage '%s'; its next start finished it", stage);

  if (!commit(u, error))
    return FALSE;
  dr_upgrade_note(u->vm, text, FALSE);
  dr_vm_save(u->vm, NULL);
  return TRUE;
}

gboolean
dr_upgrade_recover(DrJob *job, GError **error)
{
  g_auto(DrUpgrade) u = { 0 };
  const char *stage = "queued";
  g_autoptr(JsonArray) journal = NULL;
  g_autoptr(GError) reason = NULL;
  DrWhere where = DR_ON_SOURCE;
  gboolean started;

  dr_upgrade_init(&u, job);
  dr_upgrade_note_source(&u);
  journal = dr_store_load_journal(u.host->store, dr_job_id(job), error);
  if (!journal) {
    dr_vm_give(u.vm, NULL);
    return FALSE;
  }
  started = dr_upgrade_load_plan(&u, journal, &stage);
  dr_job_step(job, stage);
  dr_job_hold(job, DR_STEP_RECOVER);
  if (!dr_upgrade_was_rebooted(&u, "upgrade", stage, &reason) && started)
    where = dr_upgrade_find_guest(&u, &reason);
  if (where == DR_ON_DESTINATION)
    return commit_late(&u, stage, error);
  if (where == DR_ON_SOURCE && !reason)
    interrupted(&u, stage, &reason);
  dr_upgrade_finish(&u, where, reason);
  g_propagate_error(error, g_steal_pointer(&reason));
  return FALSE;
}
