/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Storage post-copy at the host that the guest has come to: it runs on overlays over images of the other host (image-link.h), and their
 * blocks are fetched until each overlay stands alone. It goes on until it is done: over broken links, full disks, restarts of
 * droverd; when the VM's QEMU ends, qemu-img fetches the rest. */
#pragma once
#include "job/job.h"

#define DR_STAGE_FETCH "fetch"

/* The image that the guest runs on meanwhile: itself, or one beside an image whose format cannot stand on another. (transfer full) */
char *dr_disk_fetch_overlay(const char *path, const char *format);

/* Of the spec's "disks" those that were made as overlays: [{"name","path","overlay","format","secret"?,"mib"}]. (transfer full) */
JsonArray *dr_disk_fetch_list(JsonArray *disks);

/* The job's stage behind the guest's arrival; the link is there, the VM's monitor is free. `move`: under which the other host asks how far
 * it is. `arrived`: FALSE for a guest that was lost. `note` (nullable): that of the stage's last row in the journal. FALSE only when a user
 * has given it up. */
gboolean dr_disk_fetch_run(DrJob *job, const char *move, const char *peer, JsonArray *images,
                           gboolean arrived, JsonObject *note, GError **error);

/* What the other host may ask at any time: {"state","done","total"}, state "fetching", "fetched" or "abandoned". NULL: nothing is known
 * of such a move. (transfer full) */
JsonObject *dr_disk_fetch_status(DrStore *store, const char *move, const char *peer);
