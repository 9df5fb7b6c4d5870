/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest runs under the new QEMU: make that the VM. Each step can be done twice, because a crash may have come in
 * the middle; what fails here cannot be undone and is told as a warning. */
#include "base/error.h"
#include "base/fd.h"
#include "job/upgrade-internal.h"
#include "vm/console.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define KILL_MS 30000 /* the kernel takes back a large guest's memory */
#define PORT_TRIES 50 /* 20 ms each, for a port of the first QEMU's to become free */

static void G_GNUC_PRINTF(3, 4) warn(DrFindings *findings, const char *code, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  g_warning("%s", text);
  dr_findings_add(findings, DR_FINDING_WARNING, code, NULL, "%s", text);
}

/* A client that connects from now on gets the new QEMU; the old path never stops to exist. */
static void
rename_sockets(DrUpgrade *u, DrFindings *findings)
{
  for (guint i = 0; i < u->plan.renames->len; i++) {
    const DrRename *item = u->plan.renames->pdata[i];

    if (rename(item->private_path, item->public_path) < 0 && errno != ENOENT)
      warn(findings, "socket", "cannot rename '%s' to '%s': %s", item->private_path, item->public_path,
           g_strerror(errno));
  }
}

/* A client that came after the new QEMU was prepared is connected to the old one, whose end would leave it without a word. */
static void
follow_console(DrUpgrade *u, DrFindings *findings)
{
  const char *path = dr_vm_record(u->vm)->console_path;
  g_autoptr(GError) error = NULL;

  if (path && !(u->plan.console ? dr_console_open(dr_vm_console(u->vm), path, &error)
                                : dr_console_follow(dr_vm_console(u->vm), path, &error)))
    warn(findings, "console", "the console of VM '%s' is silent: %s", dr_vm_name(u->vm), error->message);
}

static void
take_record(DrUpgrade *u)
{
  DrVmRecord *record = dr_vm_record(u->vm);
  GStrvBuilder *sockets = g_strv_builder_new();

  dr_vm_lock(u->vm);
  for (char **path = record->public_sockets; path && *path; path++)
    g_strv_builder_add(sockets, *path);
  for (guint i = 0; i < u->plan.renames->len; i++) {
    const char *path = ((DrRename *)u->plan.renames->pdata[i])->public_path;

    if (!record->public_sockets || !g_strv_contains((const char *const *)record->public_sockets, path))
      g_strv_builder_add(sockets, path);
  }
  g_strfreev(record->public_sockets);
  record->public_sockets = g_strv_builder_end(sockets);
  g_strv_builder_unref(sockets);
  g_strfreev(record->argv_running);
  record->argv_running = g_strdupv(u->plan.argv);
  if (record->generation != u->plan.generation && !u->plan.revert)
    record->upgrades++; /* once, also where a recovery comes through here again */
  record->generation = u->plan.generation;
  g_clear_pointer(&record->exit_text, g_free);
  record->id = u->dest_id;
  g_free(record->qmp_path);
  record->qmp_path = g_strdup(u->plan.qmp_path);
  record->borrowed = u->plan.foreign;
  g_free(record->exit_path);
  record->exit_path = g_strdup(u->plan.exit_path);
  if (u->plan.console) {
    g_free(record->console_path);
    record->console_path = g_strdup(u->plan.console_path);
  }
  record->shared = u->plan.shared_after;
  g_free(record->machine);
  record->machine = g_strdup(u->plan.machine);
  g_free(record->qemu_version);
  record->qemu_version = g_strdup(u->plan.version);
  g_clear_pointer(&record->note, g_free);
  dr_vm_unlock(u->vm);
}

static void
end_source(DrUpgrade *u, DrFindings *findings)
{
  g_autoptr(GError) error = NULL;

  if (!u->plan.source.pid) /* it is on another host */
    return;
  /* SIGKILL, not quit: its disks are flushed and inactive, and a QEMU that quits would run tap down-scripts and unlink the
   * sockets that its successor listens on by now. */
  if (!dr_proc_kill(&u->plan.source, KILL_MS, &error))
    warn(findings, "old-qemu", "%s", error->message);
}

static gboolean
move_vnc(DrUpgrade *u, JsonObject *vnc, GError **error)
{
  const char *host = dr_json_str(vnc, "host", "");
  const char *port = dr_json_str(vnc, "port", "");

  if (dr_qmp_version_number(u->dest) < DR_QEMU(6, 0)) {
    g_autofree char *target = g_strdup_printf("%s:%d", host, atoi(port) - 5900);

    return dr_qmp_do(u->dest, "change", dr_json("{'device': <'vnc'>, 'target': <%s>}", target), error);
  }
  return dr_qmp_do(
      u->dest, "display-update",
      dr_json("{'type': <'vnc'>, 'addresses': <[{'type': <'inet'>, 'host': <%s>, 'port': <%s>}]>}", host,
              port),
      error);
}

static void
restore_vnc(DrUpgrade *u, DrFindings *findings)
{
  for (guint i = 0; i < json_array_get_length(u->plan.vnc); i++) {
    JsonObject *vnc = json_array_get_object_element(u->plan.vnc, i);
    g_autofree char *private_path = g_strdup_printf("%s.vnc%u", u->plan.qmp_path, i + 1);
    g_autoptr(GError) error = NULL;

    for (int try = 0; try < PORT_TRIES; try++) {
      g_clear_error(&error);
      if (move_vnc(u, vnc, &error) || dr_qmp_closed(u->dest))
        break;
      g_usleep(20000); /* as above */
    }
    if (error)
      warn(findings, "vnc", "VNC port %s of VM '%s' is not back: %s", dr_json_str(vnc, "port", "?"),
           dr_vm_name(u->vm), error->message);
    unlink(private_path);
  }
}

static void
restore_rest(DrUpgrade *u, DrFindings *findings)
{
  g_autoptr(GError) error = NULL;

  if (u->plan.gdb) {
    g_autofree char *said = dr_qmp_hmp(u->dest, NULL, "gdbserver %s", u->plan.gdb);

    if (!said || !strstr(said, "Waiting for gdb"))
      warn(findings, "gdb", "the gdb stub of VM '%s' is not back at %s: %s", dr_vm_name(u->vm), u->plan.gdb,
           said ? g_strstrip(said) : "the new QEMU does not answer");
  }
  if (u->plan.pidfile) {
    g_autofree char *path = g_canonicalize_filename(u->plan.pidfile, dr_vm_record(u->vm)->cwd);
    g_autofree char *text = g_strdup_printf("%d\n", u->dest_id.pid);

    if (!dr_file_write(path, text, &error))
      warn(findings, "pidfile", "%s", error->message);
    g_clear_error(&error);
  }
  if (!dr_upgrade_reset_capabilities(u->dest, &error))
    warn(findings, "capabilities", "%s", error->message);
}

/* What the old QEMU left: killed, it could remove nothing. */
static void
remove_old_files(DrUpgrade *u)
{
  if (!u->plan.borrowed && u->plan.source_qmp)
    unlink(u->plan.source_qmp);
  if (u->plan.source_console && u->plan.console)
    unlink(u->plan.source_console);
  unlink(u->plan.migration_path);
  dr_upgrade_remove_exit(u->plan.source_exit, &u->plan.source);
}

/* Nothing of the old QEMU is left by now. */
static gboolean
watch(DrUpgrade *u, GError **error)
{
  g_autoptr(GError) local = NULL;

  if (dr_vm_watch(u->vm, &local))
    return TRUE;
  if (dr_vm_check(u->vm)) {
    g_warning("VM '%s' runs, but its end will not be seen: %s", dr_vm_name(u->vm), local->message);
    return TRUE;
  }
  dr_error_set(error, DR_ERROR_ATTENTION,
               "the guest of VM '%s' has ended: the new QEMU, which had taken over, %s", dr_vm_name(u->vm),
               dr_vm_record(u->vm)->exit_text);
  return dr_error_remedy(error, "see drover show %s and its log, then start it again", dr_vm_name(u->vm));
}

gboolean
dr_upgrade_commit(DrUpgrade *u, DrFindings *findings, GError **error)
{
  g_autoptr(GError) local = NULL;
  gboolean prepared = dr_console_commit(dr_vm_console(u->vm));

  if (!dr_job_enter(u->job, DR_STAGE_COMMIT, NULL, &local)) {
    warn(findings, "journal", "%s", local->message); /* the mark says the same to a recovery */
    g_clear_error(&local);
  }
  rename_sockets(u, findings);
  take_record(u);
  if (!prepared)
    follow_console(u, findings);
  if (!dr_vm_save(u->vm, &local))
    warn(findings, "record", "%s", local->message);
  if (u->plan.foreign && u->host->on_commit)
    u->host->on_commit(dr_vm_name(u->vm), u->dest_id.pid, u->host->on_commit_data);
  end_source(u, findings);
  dr_upgrade_add_forwards(u, findings);
  restore_vnc(u, findings);
  restore_rest(u, findings);
  remove_old_files(u);
  return watch(u, error);
}
