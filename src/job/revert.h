/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Back to a snapshot. A new QEMU is started beside the one that runs, as for an upgrade, on new overlays above the snapshot's images, which
 * nobody writes to: the snapshot stays, and can be gone back to again. With memory it loads that, and goes on at the snapshot's
 * instant; without, it boots from the disks. Then the old one is killed.
 *
 * What the two have in common with an upgrade (the point of no return, where the guest is after a crash) is an upgrade's: see
 * upgrade-settle.c. One thing is simpler: the two share neither RAM nor images, so the old guest is whole until it is killed.
 * Stages (docs/STATES.md): preflight, create, start, verify, transfer, commit. */
#pragma once
#include "job/job.h"

/* Request: {"snapshot": name,"discard": remove the overlays with what the guest has written since}. */
gboolean dr_revert_run(DrJob *job, GError **error);
gboolean dr_revert_recover(DrJob *job, GError **error);
