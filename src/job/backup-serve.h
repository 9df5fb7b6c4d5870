/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The job that serves a VM's disks, as they are at one moment, by NBD (pull): other tools read them, with the meta context
 * "qemu:dirty-bitmap:BITMAP" for what an incremental backup needs, until somebody says that they have finished. */
#pragma once
#include "job/job.h"

/* {"disks":[DISK],"incremental":BITMAP,"bitmap":a new one,"listen":"unix:PATH", "tcp:PORT" or "tcp:HOST:PORT" (loopback only; default: a socket in the run
 * directory),"quiesce","scratch": a directory}: docs/API.md. Errors: INVALID. */
gboolean dr_backup_serve_check(JsonObject *request, GError **error);

/* From the stage "serve" on the job has a result: {"disks":[{"disk","uri","bytes","context"}]}. It can be asked to "finish"
 * {"success"}. */
gboolean dr_backup_serve_run(DrJob *job, GError **error);
gboolean dr_backup_serve_recover(DrJob *job, GError **error);
