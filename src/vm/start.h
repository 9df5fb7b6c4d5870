/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How a VM comes under drover: started by it, taken over while it runs, or found again after droverd was away. */
#pragma once
#include "vm/vm.h"

/* Starts the VM of a new record: `request` as in docs/API.md. Nothing is left behind on error. (transfer full) */
DrVm *dr_vm_run(DrHost *host, JsonObject *request, GError **error);

/* Takes over a QEMU that runs: {"name","pid"} or {"name","qmp"}. It is not touched. (transfer full) */
DrVm *dr_vm_adopt(DrHost *host, JsonObject *request, GError **error);

/* At droverd's start: watches a VM of the state file again, or notes that it has ended. */
void dr_vm_attach(DrVm *vm);
