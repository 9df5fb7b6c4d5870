/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The disks of a guest that comes, where this host does not have them: made before its QEMU starts, exported while the other host
 * copies into them, and removed again if the guest does not come. */
#pragma once
#include "base/finding.h"
#include "base/json.h"
#include "qmp/qmp.h"

/* Of the spec's "disks" those that the other host asks about: [{"path","shared","exists"}]. (transfer full) */
JsonArray *dr_arrival_storage_report(JsonArray *disks);

/* Blockers for what cannot be made: no directory, no room. */
void dr_arrival_storage_check(JsonArray *disks, DrFindings *findings);

/* The files that are to be made. (transfer full) (element-type utf8) */
GPtrArray *dr_arrival_storage_files(JsonArray *disks);

/* Makes them by qemu-img, behind `launcher` (vm/user.h). `objects`: the guest's "-object secret,…" words, by id. `link`: the prefix of image-link.h, for those that are
 * overlays over images of the other host ("later"). */
gboolean dr_arrival_storage_make(JsonArray *disks, GHashTable *objects, const char *const *launcher,
                                 const char *link, GError **error);

/* Whether the guest's disks stand on those images, as their headers say: a command line could say otherwise (backing=). `later`: as
 * dr_disk_fetch_list(). */
gboolean dr_arrival_storage_verify(DrQmp *dest, JsonArray *later, GError **error);

/* Exports images by NBD, each by nodes of its own: the guest's are asleep until it comes. `exports`: [{"path","export","format",
 * "secret"?}]. */
gboolean dr_arrival_storage_export(DrQmp *dest, JsonArray *exports, const char *socket, GError **error);
gboolean dr_arrival_storage_end(DrQmp *dest, JsonArray *exports, GError **error);
