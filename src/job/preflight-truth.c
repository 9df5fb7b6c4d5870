/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the guest is in truth, as a command line; and whether it still is that a while later. */
#include "base/error.h"
#include "job/blockers.h"
#include "job/preflight.h"

#define REMEDY_AGAIN "start the upgrade again"

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

gboolean
dr_preflight_truth(DrPreflight *p, DrVm *vm, DrQmp *source, GError **error)
{
  if (!parse_given(p, dr_vm_record(vm), error))
    return FALSE;
  p->inventory = dr_inventory_read(source, error);
  if (!p->inventory)
    return FALSE;
  p->machine = g_strdup(dr_inventory_machine(p->inventory));
  p->kvm = dr_inventory_kvm(p->inventory);
  if (!dr_inventory_apply(p->inventory, p->truth, dr_vm_record(vm)->cwd, p->findings, error))
    return FALSE;
  dr_inventory_check_files(p->inventory, dr_vm_record(vm)->id.pid, dr_vm_record(vm)->cwd, p->findings);
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
