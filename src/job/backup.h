/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The job that writes a VM's disks, as they are at one moment, into images (push). */
#pragma once
#include "job/job.h"

/* {"target","disks":[DISK],"incremental":BITMAP,"bitmap":a new one,"format","onto":[FILE or DISK=FILE],"bandwidth":MiB/s,"quiesce",
 * "scratch": a directory}: docs/API.md. Errors: INVALID. */
gboolean dr_backup_check(JsonObject *request, GError **error);

gboolean dr_backup_run(DrJob *job, GError **error);
gboolean dr_backup_recover(DrJob *job, GError **error);
