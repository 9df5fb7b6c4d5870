/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of a revert share: revert.c (the job), revert-check.c (preflight), revert-disks.c (overlays, records),
 * revert-argv.c (the command line). */
#pragma once
#include "job/disk.h"
#include "job/revert.h"
#include "job/upgrade-internal.h"

#define DR_STAGE_CREATE "create"

typedef struct {
  char *disk;
  char *base, *base_format; /* the snapshot's image */
  char *top;                /* the file that the disk stands on now */
  char *overlay;            /* the one that it gets */
  char *node, *file_node;   /* of that, while it is made */
  gint64 bytes;
  gboolean direct, no_flush;
  gboolean made; /* the overlay's file is ours */
} Item;

typedef struct {
  DrUpgrade u;
  JsonObject *request;
  const char *name;
  JsonObject *record; /* the snapshot's; NULL in recovery */
  GPtrArray *items;
  GPtrArray *left;    /* of char*: images that nobody stands on afterwards */
  GPtrArray *surplus; /* of char*: those of them that are removed */
  gboolean dead;      /* its QEMU has ended: there is no old guest */
  gboolean keep;      /* a new guest may have written to the overlays: they stay whatever comes */
  int memory_number;  /* of the memory's file in the new QEMU; -1: a cold boot */
} Revert;

/* --- revert-check.c: fills u->pre, record, items --- */
gboolean dr_revert_preflight(Revert *r, GError **error);
/* What the guest would see is compared, and what its disks stand on. */
gboolean dr_revert_verify(Revert *r, GError **error);
/* Parts of both, without an old guest. */
void dr_revert_check_record(Revert *r);
void dr_revert_check_image(Revert *r, JsonObject *split);
gboolean dr_revert_swap_images(Revert *r, GError **error);
gboolean dr_revert_verify_disks(Revert *r, GError **error);

/* --- revert-dead.c --- */
gboolean dr_revert_run_dead(Revert *r, GError **error);
gboolean dr_revert_undo_dead(Revert *r, GError *cause, GError **error); /* `cause` consumed */

/* --- revert.c --- */
gboolean dr_revert_hand_memory(Revert *r, GError **error);
gboolean dr_revert_load_memory(Revert *r, GError **error);
gboolean dr_revert_commit(Revert *r, GError **error);

/* --- revert-disks.c --- */
JsonObject *dr_revert_note(const Revert *r);
void dr_revert_load(Revert *r, JsonObject *note);
/* `overlays`: those of all snapshots on record. Decides what is left, and what of it is removed. */
void dr_revert_choose_left(Revert *r, const DrDisks *disks, JsonArray *snapshots);
void dr_revert_choose_left_dead(
    Revert *r, JsonArray *snapshots); /* the same of a VM whose chains nobody tells any more */
gboolean dr_revert_make_overlays(Revert *r, GError **error);
void dr_revert_remove_overlays(Revert *r, DrQmp *qmp); /* `qmp` nullable */
/* After the commit; can be done twice. */
gboolean dr_revert_write_records(Revert *r, GError **error);
void dr_revert_discard(Revert *r);
/* Beside the one that a snapshot was made with, "disk.SNAPSHOT-2.qcow2": the first that nobody has. (transfer full) */
char *dr_revert_overlay_name(const char *overlay);

/* --- revert-argv.c --- */
/* The disk that stands on the image `from` is put on the qcow2 image `to`, whose header says what it stands on. Errors: UNSUPPORTED where
 * the command line does not say `from`. */
gboolean dr_revert_argv_swap(DrArgv *argv, const char *cwd, const char *from, const char *to, GError **error);
