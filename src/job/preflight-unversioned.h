/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A machine type without a version (microvm): what nothing but drover keeps the same under another QEMU. */
#pragma once
#include "job/preflight.h"

/* Names the firmware of the guest on p->truth where the new QEMU would load another one by itself, and blocks where that
 * cannot be, or where the running QEMU sends what the new one cannot read. `qemu`: as for dr_preflight(). p->caps is known. */
void dr_preflight_unversioned(DrPreflight *p, DrVm *vm, const char *qemu, int source_version);
