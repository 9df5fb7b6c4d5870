/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The CPU models that are something else under each QEMU: host and max. */
#pragma once
#include "job/preflight.h"

/* Writes into the truth's -cpu which features the guest does not have, although the new QEMU would give them to it. What
 * it has and the new QEMU would not give is found when the two are compared. FALSE only when the running QEMU does not
 * answer. p->caps may be NULL. */
gboolean dr_preflight_cpu(DrPreflight *p, DrQmp *source, GError **error);
