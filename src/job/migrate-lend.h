/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Storage post-copy at the host that the guest leaves: its images stay here, and the other host runs the guest on overlays over them,
 * until it has fetched all of their blocks. They are not let go of before it says so, however long that takes and whoever is
 * restarted meanwhile. Each of these does nothing, and succeeds, where no disk is copied after the guest. */
#pragma once
#include "job/migrate-internal.h"

/* For the journal: {"move","lent"?: […]}, all that a later droverd needs. (transfer full) */
JsonObject *dr_migrate_lend_note(Migrate *m);
void dr_migrate_lend_load(Migrate *m, JsonObject *note);

/* A blocker, where this host cannot serve images. */
void dr_migrate_lend_check(const Migrate *m, DrFindings *findings);
/* Before the other host's QEMU starts, which opens the overlays: it is shown the images as they are, while the guest writes to them. */
gboolean dr_migrate_lend_begin(Migrate *m, GError **error);
/* It has opened them. Asks whether each of its disks stands on our image; from now on it is shown nothing, as that would be old. */
gboolean dr_migrate_lend_verify(Migrate *m, GError **error);
/* In the job's own thread, with which the server ends: it is there, and has only to open the images. */
gboolean dr_migrate_lend_ready(Migrate *m, GError **error);
/* The source has stopped, its images are written and at rest: the guest may read them over there. What fails is logged, and tried
 * again by dr_migrate_lend_tend(): the guest's reads wait. From a thread of its own, while the job waits for the other host's answer. */
void dr_migrate_lend(Migrate *m);
/* The same while the other host may run the guest already; once in a while, from any wait. */
void dr_migrate_lend_tend(Migrate *m);
/* The guest is to go on here: the images are its own again when this returns. */
void dr_migrate_lend_end(Migrate *m);

gboolean dr_migrate_lends(const Migrate *m);
/* The source's QEMU has ended: stays until the other host has the last block. */
void dr_migrate_lend_serve(Migrate *m);
