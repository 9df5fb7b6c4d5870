/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One VM: what is on record about it, and the right to talk to its QEMU.
 *
 * Exactly one owner at a time talks to a QEMU: whoever needs it takes its monitor with dr_vm_take() and gives it back.
 * While nobody has it, the main loop reads its events. Two kinds of monitor: drover's own (every QEMU that drover
 * started has one; it stays connected) and a borrowed one (an adopted QEMU before its first upgrade has only the
 * user's; it is connected for each use and let go, so that the user's own tools get at it).
 */
#pragma once
#include "qemu/proc.h"
#include "qmp/qmp.h"
#include "vm/host.h"

typedef struct DrConsole DrConsole;
typedef struct DrVm DrVm;

/* The record, as it is in the state file. Read and changed only under dr_vm_lock(), or by the owner of the VM's job. */
typedef struct {
  char *name;
  char *uuid;
  gboolean adopted; /* it was not started by drover */
  gboolean
      foreign; /* it belongs to another manager (libvirt) and is to stay its: the next QEMU listens on the same monitor, lives where
                       this one lives, and gets nothing of drover's own */
  char *cwd;
  char **env;
  char **argv_given;   /* as the user gave it, or as /proc had it at adoption */
  char **argv_running; /* what the QEMU of now was started with */
  guint generation;    /* counts the QEMUs that this VM has had; part of socket names */
  DrProcId id;
  char *boot_id;      /* pid and start time mean something in this boot only */
  char *qmp_path;     /* its monitor */
  gboolean borrowed;  /* that monitor is the user's */
  char *console_path; /* nullable: QEMU's side of the console */
  char *exit_path;    /* nullable (adopted): where the keeper tells the end */
  char *log_path;
  char **public_sockets; /* paths that drover renamed a socket onto; it removes them when the VM ends */
  gboolean want_shared;  /* `run`'s --memory */
  guint64 hugepage;      /* bytes, 0: normal pages */
  gboolean shared;       /* RAM of the QEMU of now is shared and can be handed over */
  char *machine;
  char *qemu_version;
  char *state;     /* starting, running, paused, stopped, attention */
  char *exit_text; /* nullable: how it ended */
  char *note;      /* nullable: what recovery found */
  char *
      stream; /* nullable: JSON, the request of the job that is to pull its disks and has not been made yet */
  guint upgrades;
} DrVmRecord;

DrVm *dr_vm_new(DrHost *host, const char *name);
DrVm *dr_vm_from_record(DrHost *host, const char *name, JsonObject *record);
DrVm *dr_vm_ref(DrVm *vm);
void dr_vm_unref(DrVm *vm);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrVm, dr_vm_unref)

const char *dr_vm_name(DrVm *vm);
DrHost *dr_vm_host(DrVm *vm);
DrVmRecord *dr_vm_record(DrVm *vm);
void dr_vm_lock(DrVm *vm);
void dr_vm_unlock(DrVm *vm);

/* A name: letters, digits, '.', '_', '-', not beginning with '.' or '-', 1 to 63 of them. */
gboolean dr_vm_check_name(const char *name, GError **error);

/* Writes the record to the state file. is_saved: the last time succeeded. */
gboolean dr_vm_save(DrVm *vm, GError **error);
gboolean dr_vm_is_saved(DrVm *vm);

/* The right to talk to its QEMU. `who` stands in the message for the next who asks. take: waits for another owner until
 * the deadline, connects when it is not connected. give: takes the connection back (NULL: it is broken and freed).
 * Errors: BUSY, CLOSED, and NOT_FOUND when the VM has ended. */
DrQmp *dr_vm_take(DrVm *vm, const char *who, int timeout_ms, GError **error);
/* The same without a connection, for a recovery, which does not know yet whose monitor is the VM's; before anybody can
 * have it. Ends with dr_vm_give(). */
void dr_vm_reserve(DrVm *vm, const char *who);
void dr_vm_give(DrVm *vm, DrQmp *qmp);

/* One job a VM at a time. claim: DR_ERROR_BUSY naming the other. */
#define DR_VM_ENDING (-1) /* instead of a job's number: it is being stopped or forgotten */
gboolean dr_vm_claim(DrVm *vm, gint64 job, GError **error);
gboolean dr_vm_is_free(DrVm *vm, GError **error);
void dr_vm_release(DrVm *vm);
/* The job that has it leaves the VM's process in its place: the VM may be stopped meanwhile. Until it is released. */
void dr_vm_set_aside(DrVm *vm);
gboolean dr_vm_is_aside(DrVm *vm);
gint64 dr_vm_job(DrVm *vm);

/* Starts watching the process of the record for its end. Call after every change of record->id. */
gboolean dr_vm_watch(DrVm *vm, GError **error);

/* Whether the process of the record lives; if not, notes its end (state "stopped", exit_text). Blocks up to 1 s for the
 * keeper's exit file. */
gboolean dr_vm_check(DrVm *vm);

/* If it has ended and that is not noted yet: notes it, saves it, says so. */
void dr_vm_note_end(DrVm *vm);

/* Sets state from query-status; the caller owns `qmp`. */
void dr_vm_refresh(DrVm *vm, DrQmp *qmp);
void dr_vm_set_state(DrVm *vm, const char *state);

/* The console hub of this VM (console.h), made at first use. (transfer none) */
DrConsole *dr_vm_console(DrVm *vm);

/* The objects of docs/API.md. long form without memory/disks/nics, which need QMP. (transfer full) */
JsonObject *dr_vm_json(DrVm *vm, gboolean all);

/* Takes the record out of use: stops watching, closes the monitor. */
void dr_vm_detach(DrVm *vm);

/* The boot id of this kernel. (transfer none) */
const char *dr_boot_id(void);
