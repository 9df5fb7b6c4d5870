/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the guest is in truth, as a command line; and whether it still is that a while later. */
#include "base/deadline.h"
#include "base/error.h"
#include "job/blockers.h"
#include "job/preflight.h"

#include <string.h>

#define REMEDY_AGAIN "start the upgrade again"
/* A device that the guest let go of is out of QEMU's list at once, and its -drive goes some ms later (RCU). */
#define SETTLE_MS 1000
#define SETTLE_STEP_MS 20

/* The given command line, under the program that the VM runs on by now. */
static gboolean
parse_given(DrPreflight *p, const DrVmRecord *record, GError **error)
{
  g_autoptr(DrArgv) running = dr_argv_parse((const char *const *)record->argv_running, error);

  p->truth = running ? dr_argv_parse((const char *const *)record->argv_given, error) : NULL;
  if (!p->truth)
    return FALSE;
  dr_argv_set_launcher(p->truth, dr_argv_launcher(running));
  dr_argv_set_program(p->truth, dr_argv_program(running));
  return TRUE;
}

/* A QEMU that drover put there began with its VNC server on a socket beside its monitor, and got its port when that was free: the next one is
 * to be given the port, which only the QEMU knows (another manager's VM has no other record). */
static gboolean
restore_vnc(DrPreflight *p, const DrVmRecord *record, DrQmp *source, GError **error)
{
  g_autofree char *ours = g_strdup_printf("unix:%s.vnc", record->qmp_path);
  g_autoptr(JsonObject) info = NULL;

  for (DrOpt *opt = NULL; (opt = dr_argv_next(p->truth, "vnc", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);
    g_autofree char *address = NULL;
    const char *host;
    guint64 port;

    if (!opts)
      return FALSE;
    if (!g_str_has_prefix(dr_opts_get(opts, "vnc") ? dr_opts_get(opts, "vnc") : "", ours))
      continue;
    info = info ? info : dr_qmp_call_object(source, "query-vnc", NULL, error);
    if (!info)
      return FALSE;
    host = dr_json_str(info, "host", "");
    if (!g_ascii_string_to_unsigned(dr_json_str(info, "service", ""), 10, 5900, 65535, &port, NULL))
      continue; /* it is still there: its port was taken */
    address = g_strdup_printf(strchr(host, ':') ? "[%s]:%d" : "%s:%d", host, (int)port - 5900);
    dr_opts_set(opts, "vnc", address);
    dr_opt_set_opts(opt, opts);
  }
  return TRUE;
}

static gboolean
read_once(DrPreflight *p, DrVm *vm, DrQmp *source, DrFindings *findings, GError **error)
{
  const DrVmRecord *record = dr_vm_record(vm);

  g_clear_pointer(&p->truth, dr_argv_free);
  g_clear_pointer(&p->inventory, dr_inventory_free);
  if (!parse_given(p, record, error) || (record->foreign && !restore_vnc(p, record, source, error)))
    return FALSE;
  p->inventory = dr_inventory_read(source, error);
  if (p->inventory && record->foreign)
    dr_inventory_limits_by_command(
        p->inventory); /* libvirt sets all of its disks' so: see upgrade-foreign.c */
  if (!p->inventory || !dr_inventory_apply(p->inventory, p->truth, record->cwd, findings, error))
    return FALSE;
  dr_inventory_check_files(p->inventory, record->id.pid, record->cwd, findings);
  return TRUE;
}

static gboolean
has_unplugged(const DrFindings *findings)
{
  for (guint i = 0; i < dr_findings_count(findings); i++)
    if (g_str_equal(dr_findings_get(findings, i)->code, "unplugged"))
      return TRUE;
  return FALSE;
}

/* What was read is of more than one moment: whether it is one guest, and none of its disks is on its way out. */
static gboolean
is_settled(const DrPreflight *p, DrQmp *source, const DrFindings *findings, gboolean *ret_settled,
           GError **error)
{
  g_autoptr(DrInventory) now = dr_inventory_glance(source, error);
  g_autoptr(DrFindings) changes = dr_findings_new();

  if (!now)
    return FALSE;
  dr_inventory_changes(p->inventory, now, changes);
  *ret_settled =
      !dr_findings_block(changes) && !(has_unplugged(findings) && dr_inventory_has_loose_drive(p->inventory));
  return TRUE;
}

static gboolean
read_settled(DrPreflight *p, DrVm *vm, DrQmp *source, GError **error)
{
  DrDeadline deadline = dr_deadline_in(SETTLE_MS);

  for (;;) {
    g_autoptr(DrFindings) findings = dr_findings_new();
    gboolean settled;

    if (!read_once(p, vm, source, findings, error) || !is_settled(p, source, findings, &settled, error))
      return FALSE;
    if (settled || dr_deadline_passed(deadline)) {
      dr_findings_merge(p->findings, findings);
      return TRUE;
    }
    g_usleep(SETTLE_STEP_MS * 1000);
  }
}

gboolean
dr_preflight_truth(DrPreflight *p, DrVm *vm, DrQmp *source, GError **error)
{
  if (!read_settled(p, vm, source, error))
    return FALSE;
  p->machine = g_strdup(dr_inventory_machine(p->inventory));
  p->kvm = dr_inventory_kvm(p->inventory);
  dr_inventory_blockers(p->inventory, p->findings);
  dr_argv_blockers(p->truth, p->findings);
  return TRUE;
}

/* --- Again --- */

/* Differences between the guest and itself, earlier: each is a blocker that says so. */
static void
tell_changes(const DrFindings *differences, DrFindings *findings)
{
  for (guint i = 0; i < dr_findings_count(differences); i++) {
    const DrFinding *finding = dr_findings_get(differences, i);

    if (finding->severity == DR_FINDING_BLOCKER)
      dr_findings_add(findings, DR_FINDING_BLOCKER, "changed", REMEDY_AGAIN,
                      "the guest was changed after the upgrade had begun: %s", finding->text);
  }
}

gboolean
dr_preflight_again(const DrPreflight *p, DrVm *vm, DrQmp *source, DrFindings *findings, GError **error)
{
  const DrVmRecord *record = dr_vm_record(vm);
  g_autoptr(DrInventory) now = dr_inventory_glance(source, error);
  g_autoptr(DrFindings) differences = dr_findings_new();

  if (!now)
    return FALSE;
  dr_inventory_changes(p->inventory, now, differences);
  dr_inventory_check_files(now, record->id.pid, record->cwd, differences);
  tell_changes(differences, findings);
  return TRUE;
}
