/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How a VM comes under drover: started by it, taken over while it runs, or found again after droverd was away. */
#pragma once
#include "argv/argv.h"
#include "vm/vm.h"

/* Called once the command line has been read, before anything is made of it: may change `argv`, which is then started while the one that
 * was given stays on record, and the record. */
typedef gboolean (*DrVmPrepare)(DrVmRecord *record, DrArgv *argv, gpointer data, GError **error);

/* Starts the VM of a new record: `request` as in docs/API.md; `prepare` is nullable. Nothing is left behind on error. (transfer full) */
DrVm *dr_vm_run(DrHost *host, JsonObject *request, DrVmPrepare prepare, gpointer data, GError **error);

/* Takes over a QEMU that runs: {"name","pid"} or {"name","qmp"}. It is not touched. (transfer full) */
DrVm *dr_vm_adopt(DrHost *host, JsonObject *request, GError **error);

/* The same for a QEMU that belongs to another manager and stays its (DrVmRecord's foreign): nobody else is connected to its monitor at the
 * path `qmp`, which is not on its command line. `log_path`: where what it prints ends up. Asks nothing yet: describe does. (transfer full) */
DrVm *dr_vm_adopt_foreign(DrHost *host, const char *name, const DrProcId *id, const char *qmp,
                          const char *log_path, GError **error);
gboolean dr_vm_describe_foreign(DrVm *vm, GError **error);

/* At droverd's start: watches a VM of the state file again, or notes that it has ended. */
void dr_vm_attach(DrVm *vm);
