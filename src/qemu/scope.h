/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A VM's own place among systemd's control groups: drover-vms.slice/drover-vm-NAME-PID.scope.
 *
 * What a service starts is in the service's control group. There a VM would count against droverd's limits, an out-of-memory kill of a VM
 * would be droverd's failure, and a new droverd would be told of left-over processes. */
#pragma once
#include "qemu/proc.h"

/* Where droverd is a service of the system's systemd: dr_scope_move() does its work from now on. Takes SYSTEMD_EXEC_PID out of the
 * environment; call it before the first thread. */
void dr_scope_init(void);

/* Puts a QEMU and its keeper into a scope. What fails is logged and no more: with KillMode=process the VM is as safe where it is. Blocks for
 * 5 s at most while the main loop runs. Does nothing where droverd is no service. */
void dr_scope_move(const char *vm, const DrProcId *id);
