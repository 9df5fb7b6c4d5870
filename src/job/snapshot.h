/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Snapshots: all disks of a running VM at one point in time, as the images that they stood on; what the guest writes from then on
 * goes to an overlay of each. What is on record of them is in the state file. docs/STATES.md has the stages. */
#pragma once
#include "job/job.h"

/* Request: {"name","disks":["DISK" or "DISK=FILE"…], absent: all that can be written,"quiesce","description"}. */
gboolean dr_snapshot_check(JsonObject *request, GError **error);
gboolean dr_snapshot_run(DrJob *job, GError **error);
gboolean dr_snapshot_recover(DrJob *job, GError **error);

/* One by its name. Errors: NOT_FOUND. (transfer full) */
JsonObject *dr_snapshot_load(DrVm *vm, const char *name, GError **error);
