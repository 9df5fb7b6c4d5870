/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of a live block copy share. */
#pragma once
#include "job/disk-copy.h"
#include "job/disk-job.h"
#include "job/disk-target.h"
#include "job/disk.h"
#include "job/mirror-pace.h"

#define DR_COPY_STAGE_READY "ready"
#define DR_COPY_STAGE_PIVOT "pivot"
#define DR_COPY_STAGE_FINISH "finish"
#define DR_COPY_STAGE_COPY "copy"
#define DR_COPY_MAX 16
#define DR_COPY_KILL_MS 30000

typedef enum { KEEP_UNDECIDED, KEEP_COPY, KEEP_DISK } Keep;

typedef struct {
  char *disk, *target, *format, *backing, *backing_format, *backing_node, *secret;
  char *node, *file_node, *job;
  char *source;      /* the node that is mirrored: what the device sees */
  char *replaces;    /* nullable: the node below filters, which stay */
  gboolean made;     /* its file is to be made */
  gboolean reserved; /* and is: one of that name that came meanwhile is somebody else's */
  gboolean direct, no_flush;
  gint64 bytes, size; /* `size`: see DrImage */
  char *detect_zeroes;
  DrTarget *there; /* what the target is; NULL: see `there_error` */
  GError *there_error;
  GPtrArray *old; /* names of nodes that nobody needs after the pivot */
  DrMirrorPace pace;
  gboolean blocking; /* each write of the guest's goes to both, and is acknowledged then */
} DrCopyItem;

typedef struct {
  DrDiskJob d;
  JsonObject *request;
  GPtrArray *items;
  DrFindings *findings;
  Keep keep;
  gboolean was_ready;
} DrCopy;

/* Sets the job up; run() reads the items from the request, recover() from the journal. */
void dr_copy_init(DrCopy *c, DrJob *job);
void dr_copy_clear(DrCopy *c);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(DrCopy, dr_copy_clear)

/* disk-copy-check.c. `look`: at the targets, without the monitor, as a server may take its time to answer; then preflight, with it. */
gboolean dr_copy_is_top_only(const DrCopy *c);
void dr_copy_look_at_targets(DrCopy *c);
gboolean dr_copy_preflight(DrCopy *c, DrQmp *qmp, GError **error);

/* disk-copy-note.c: what recovery needs of the items. (transfer full) */
JsonObject *dr_copy_note(const DrCopy *c);
void dr_copy_item_load(DrCopyItem *item, JsonObject *object);

/* disk-copy.c, for recovery, too. undo: an error, or the word to keep the disks while the copies were not complete; consumes
 * `cause`. */
void dr_copy_watch(DrCopy *c);
gboolean dr_copy_is_pivoted(const DrDisks *disks, const DrCopyItem *item);
gboolean dr_copy_end_mirror(DrQmp *qmp, const DrCopyItem *item, const char *command, GError **error);
JsonObject *dr_copy_result(const DrCopy *c);
gboolean dr_copy_undo(DrCopy *c, GError *cause, GError **error);
gboolean dr_copy_to_the_end(DrCopy *c, GError **error);
