/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Upgrades of libvirt's domains: one run at a time, by a drover-libvirt that survives droverd, and is looked after: one that is killed is
 * followed by a `recover`, by this droverd or by the next. */
#pragma once
#include "base/deadline.h"
#include "daemon/service-internal.h"

/* Takes up what an earlier droverd has left: waits for a helper that is at work, recovers a run that is not at its end. */
DrServiceLibvirt *dr_service_libvirt_new(DrHost *host);

/* Waits until the deadline for a run that is under way; one that is left goes on by itself. Accepts NULL. */
void dr_service_libvirt_free(DrServiceLibvirt *libvirt, DrDeadline deadline);
