/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A move's disks that the other host does not have: what of them goes, and its way there before the guest (pre-copy; after it:
 * migrate-lend.h): the other
 * host makes the images and exports them by NBD, each is mirrored there (blockdev-mirror) through the port of the peers, and the mirrors
 * end when the guest has stopped. The source keeps its own images, and goes on with them if anything fails. */
#pragma once
#include "job/disk.h"
#include "job/migrate-internal.h"

typedef struct DrMoveStorage DrMoveStorage;

/* What there is to copy, if the other host does not share it: the top images of all disks with a medium. Blockers into `findings`.
 * With copy_storage_inc each stands on backing images that the other host has; else all of a disk goes into one image. */
DrMoveStorage *dr_move_storage_new(DrQmp *source, const char *cwd, const DrMigrateOptions *options,
                                   DrFindings *findings, GError **error);
void dr_move_storage_free(DrMoveStorage *storage);

/* Into the spec's list of disks: which of them are asked for ("candidate") or, once dr_move_storage_heed() was called, made. */
void dr_move_storage_mark(const DrMoveStorage *storage, const Migrate *m, gboolean overwrite,
                          JsonArray *disks);
/* The other host's answer: [{"path","shared","exists"}]. Those that it shares are left out. */
void dr_move_storage_heed(DrMoveStorage *storage, const Migrate *m, JsonArray *report, gboolean overwrite,
                          DrFindings *findings);
gboolean dr_move_storage_is_empty(const DrMoveStorage *storage);
/* While the two machines are compared: the images that are copied stand alone over there. */
void dr_move_storage_stand_alone(const DrMoveStorage *storage, DrInventory *inventory, gboolean alone);
/* The same of theirs, where what is copied later stands on overlays. */
void dr_move_storage_see_through(const DrMoveStorage *storage, const Migrate *m, DrInventory *theirs);
/* Whether there is something to copy before the guest. `storage`: nullable. */
gboolean dr_move_storage_goes_before(const DrMoveStorage *storage);
/* What is copied after it: [{"name","path","format","secret"?}], the paths of here. (transfer full) */
JsonArray *dr_move_storage_lent(const DrMoveStorage *storage);

/* The bitmaps of the images that are copied go in the guest's stream: the new images have none. map: finds the nodes that they are to be
 * in over there. bitmaps: QEMU's "block-bitmap-mapping", for here or `there`. (transfer full) */
gboolean dr_move_storage_map_bitmaps(DrMoveStorage *storage, const Migrate *m, DrQmp *there, GError **error);
gboolean dr_move_storage_has_bitmaps(const DrMoveStorage *storage);
JsonArray *dr_move_storage_bitmaps(const DrMoveStorage *storage, gboolean there);

/* From the exports to the mirrors' being in step; the guest runs. FALSE: dr_move_storage_drop(). */
gboolean dr_move_storage_copy(Migrate *m, GError **error);
/* The guest has stopped: what it wrote last is there when this returns, and the mirrors are gone. */
gboolean dr_move_storage_finish(Migrate *m, GError **error);
/* Whatever is left of it in the source's QEMU goes; also what an earlier droverd began (m->storage_note). */
void dr_move_storage_drop(Migrate *m);
gint64 dr_move_storage_bytes(const DrMoveStorage *storage); /* that were copied */
/* How far each disk is, as the last look was; valid until the next call. */
void dr_move_storage_progress(DrMoveStorage *storage, DrProgress *progress);
