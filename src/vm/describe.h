/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a running QEMU says of itself, for the record. */
#pragma once
#include "argv/rewrite.h"
#include "qemu/caps.h"
#include "vm/vm.h"

/* Whether the QEMU behind the monitor is the process that was started for it. If not (a wrapper script that does not exec it
 * stands between), that QEMU is killed: whoever kills the process that was started would leave it behind. */
gboolean dr_describe_is_process(DrQmp *qmp, const DrProcId *id, const char *program, GError **error);

/* Fills machine, uuid, qemu_version. */
gboolean dr_describe(DrVm *vm, DrQmp *qmp, GError **error);

/* Fills `shared`: whether a second process can map all of its RAM. */
gboolean dr_describe_memory(DrVm *vm, DrQmp *qmp, GError **error);

/* The id of the RAM block that a QEMU makes for a plain -m. `type`: the -machine type or NULL for the default.
 * NULL without an error: that machine has none. (transfer full) */
char *dr_describe_ram_id(const DrArgv *argv, const char *type, DrHost *host, const DrVmRecord *record,
                         GError **error);

/* What a QEMU that `caps` tell of is to be told about its stream for a machine type, canonical or alias (nullable). */
DrSwitchover dr_describe_switchover(const DrCaps *caps, const char *machine);

/* Whether a machine type has a version in its name: pc-q35-7.2, pc-i440fx-rhel7.6.0; not microvm. */
gboolean dr_describe_is_versioned(const char *machine);

/* The program of a command line as an absolute path, looked up as execvpe(3) with the VM's environment would. (transfer full) */
char *dr_describe_program(const char *program, const DrVmRecord *record);
