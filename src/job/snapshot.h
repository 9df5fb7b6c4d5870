/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Snapshots: all disks of a running VM at one point in time, as the images that they stood on; what the guest writes from then on
 * goes to an overlay of each. What is on record of them is in the state file. docs/STATES.md has the stages. */
#pragma once
#include "job/disk.h"
#include "job/job.h"

/* Request: {"name","disks":["DISK" or "DISK=FILE"…], absent: all that can be written,"quiesce","description",
 * "memory": with RAM and devices,"memory_file"}. */
gboolean dr_snapshot_check(JsonObject *request, GError **error);
gboolean dr_snapshot_run(DrJob *job, GError **error);
gboolean dr_snapshot_recover(DrJob *job, GError **error);

/* One by its name. Errors: NOT_FOUND. (transfer full) */
JsonObject *dr_snapshot_load(DrVm *vm, const char *name, GError **error);

/* --- snapshot-machine.c: what is on record of the images. `split`: an element of a record's "disks". --- */

/* The files below an image, top first. (transfer full) */
JsonArray *dr_snapshot_chain(DrNode *base);

/* Notes how the images look (inode, size, time of the last write) that nobody is to write to from now on; and whether one still does so:
 * FALSE where it was changed, is gone, or was never noted. */
void dr_snapshot_mark_image(JsonObject *split);
void dr_snapshot_mark_images(JsonObject *record);
gboolean dr_snapshot_image_is_same(JsonObject *split);

/* Whether `file` is its base or below it. */
gboolean dr_snapshot_stands_on(JsonObject *split, const char *file);

/* --- snapshot-rebase.c --- */

/* Before a merge down into `base`, which is in the chain of `disk`: whether all other snapshots in `all` that stand on it are in that chain
 * too, above it, and so lose nothing. REFUSED names one that is not: somebody went back to an earlier snapshot since. */
gboolean dr_snapshot_others_allow(JsonArray *all, const char *name, const DrDisk *disk, const char *base,
                                  GError **error);

/* After `overlay` was merged down into `base`, or `base` up into it: another snapshot's `split` says what it stands on by now. Returns
 * whether anything was changed. */
gboolean dr_snapshot_rebase(JsonObject *split, const char *overlay, const char *base, const char *base_format,
                            gboolean up);
