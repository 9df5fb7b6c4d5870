/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A VM's record as JSON: to the state file, back, and to a user. */
#pragma once
#include "vm/vm.h"

JsonObject *dr_vm_record_write(const DrVmRecord *record);
void dr_vm_record_read(DrVmRecord *record, JsonObject *object);
void dr_vm_record_clear(DrVmRecord *record);

/* The object of docs/API.md; `job` 0: none. */
JsonObject *dr_vm_record_show(const DrVmRecord *record, gint64 job, gboolean all);
