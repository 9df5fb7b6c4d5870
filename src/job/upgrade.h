/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The upgrade job: the QEMU beneath a running VM is replaced by another one on the same host.
 *
 * Stages, in order (docs/STATES.md has the drawing): preflight, start, verify, transfer, [postcopy], commit. */
#pragma once
#include "job/job.h"

/* A DrJobFunc. The job's request: {"qemu": path or null, "memory": mode}. */
gboolean dr_upgrade_run(DrJob *job, GError **error);

/* Preflight only. (transfer full) */
JsonObject *dr_upgrade_check(DrVm *vm, JsonObject *request, GError **error);

/* A DrJobFunc. Brings a job that an earlier droverd left at its stage to an end, whatever is dead; afterwards exactly one
 * QEMU of the VM is left, or none where the guest's own was killed. TRUE: the guest runs under the new QEMU. FALSE: the
 * error says where it is and why. */
gboolean dr_upgrade_recover(DrJob *job, GError **error);
