/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A VM's record as JSON: to the state file, back, and to a user. */
#pragma once
#include "vm/vm.h"

JsonObject *dr_vm_record_write(const DrVmRecord *record);
void dr_vm_record_read(DrVmRecord *record, JsonObject *object);
void dr_vm_record_clear(DrVmRecord *record);

/* A copy of the record beside the VM's log. A QEMU that drover started does not tell by its command line what the VM is
 * (host forwards, VNC and paths change after its start); the copy does, also when the VM was forgotten or the state file
 * was lost. Its failure is no error: the state file is what counts. */
void dr_vm_record_keep(DrHost *host, const char *vm, JsonObject *object);

void dr_vm_record_drop(DrHost *host, const char *vm);

/* The copy for this process of this boot, or NULL. (transfer full) */
JsonObject *dr_vm_record_find(DrHost *host, const DrProcId *id);

/* The object of docs/API.md; `job` 0: none. */
JsonObject *dr_vm_record_show(const DrVmRecord *record, gint64 job, gboolean all);
