/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One disk into which its backing images are pulled (QEMU's block-stream): what the jobs that do so have in common. */
#pragma once
#include "job/disk-job.h"
#include "job/disk.h"

typedef struct {
  char *disk;      /* as it was named, for messages */
  char *device;    /* nullable: as query-block names it */
  char *job, *top; /* QEMU's job; the node that is pulled into */
  char *file;      /* nullable: the image of that */
  char *base;      /* nullable: node that stays below */
  char *base_file; /* nullable: its file, for the header */
  GPtrArray *old;  /* of the names of nodes to close at last */
} DrPullPart;

/* `base` (nullable): the node that stays below the disk's top image. */
DrPullPart *dr_pull_part_new(const char *name, const DrDisk *disk, DrNode *base);
void dr_pull_part_free(DrPullPart *part);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrPullPart, dr_pull_part_free)

/* What a journal needs to know of it, and back. FALSE, NULL: a journal's note has nothing of it. (transfer full) */
JsonObject *dr_pull_part_note(const DrPullPart *part);
DrPullPart *dr_pull_part_from_note(const char *name, JsonObject *note);

/* Refuses a disk into which nothing can be pulled, or that has nothing to pull. */
gboolean dr_pull_part_has_work(const char *name, const DrDisk *disk, const DrNode *base, GError **error);

/* `mib`: MiB/s, 0: no limit. An I/O error stops the job in QEMU; see dr_pull_try_again(). */
gboolean dr_pull_part_begin(const DrPullPart *part, DrQmp *qmp, gint64 mib, GError **error);
/* Whether an entry of query-block is its disk. */
gboolean dr_pull_part_is(const DrPullPart *part, JsonObject *entry);
void dr_pull_part_watch(const DrPullPart *part, DrDiskJob *d);
/* QEMU's job has ended. Where it has done its work, the images below go; else an error. */
gboolean dr_pull_part_close(const DrPullPart *part, DrQmp *qmp, GError **error);
/* It has not, and is to end. FALSE: it has not yet. */
gboolean dr_pull_part_kill(const DrPullPart *part, DrQmp *qmp);

/* What stopped is tried again now and then. */
typedef struct {
  gint64 again_us;
  DrFindings *findings; /* of the job */
  gboolean told;
  gboolean
      insists; /* a job that is paused goes on, whatever the reason: a guest's `cont` wipes out QEMU's note of the error */
} DrPullAgain;

void dr_pull_again_init(DrPullAgain *again);
void dr_pull_again_clear(DrPullAgain *again);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(DrPullAgain, dr_pull_again_clear)

/* At each look: TRUE every 2 s, when what waits is to be tried again. */
gboolean dr_pull_again_is_due(DrPullAgain *again);
/* Has each watched job that an I/O error stopped go on; the job's findings tell of the first. */
void dr_pull_try_again(DrPullAgain *again, DrDiskJob *d, DrQmp *qmp);
