/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a host needs so that a guest can come to it: checked before, made at the start of its QEMU. */
#pragma once
#include "job/move-spec.h"
#include "job/upgrade-internal.h"

/* Adds the findings of this host: the binary (which must match one of `binaries`, fnmatch patterns), machine type, options,
 * devices, files, storage, taps and bridges, memory. `qemu` nullable: the path that it has on the other host. */
void dr_arrival_check(DrPreflight *p, DrVm *vm, JsonObject *spec, const char *qemu,
                      const char *const *binaries);

/* A DrUpgradeNeedsFunc: taps are made by name and put on the bridge of the same name (they go with the last process that has
 * them open), TCP listeners are bound. */
gboolean dr_arrival_make_needs(DrUpgrade *u, GError **error);
