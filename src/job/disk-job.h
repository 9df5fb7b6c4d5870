/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the jobs on disks share. Such a job may last for days while QEMU does the work: it takes the VM's monitor for each look
 * and gives it back, so that everything else can be asked of the VM meanwhile. */
#pragma once
#include "job/block-job.h"
#include "job/job.h"
#include "job/mailbox.h"

/* One of QEMU's block jobs that a job of ours waits for. */
typedef struct {
  char *id;
  char *what; /* for messages: "the copy of disk 'd0'" */
  char *disk; /* its name */
  /* Of dr_disk_job_watch_header(); nullable. */
  char *flush_node, *flush_file;
  DrBlockJobLook look;
} DrBlockWatch;

typedef struct DrDiskJob DrDiskJob;

/* A question from outside (mailbox.h). Sets *ret_reply, or the error. Returns whether the wait is to end. */
typedef gboolean (*DrDiskAsked)(DrDiskJob *d, const char *method, JsonObject *params, JsonObject **ret_reply,
                                GError **error);
/* Each look at the jobs, with the monitor. FALSE: the wait ends with that error. */
typedef gboolean (*DrDiskTick)(DrDiskJob *d, DrQmp *qmp, GError **error);

struct DrDiskJob {
  DrJob *job;
  DrVm *vm;
  DrMailbox *box;
  GPtrArray *watches; /* of DrBlockWatch */
  DrDiskAsked asked;  /* nullable: only what every disk job answers ("bandwidth" {"mib"}) */
  DrDiskTick tick;    /* nullable */
  /* Nullable: FALSE while nothing may be told that has QEMU wait for all requests under way. */
  gboolean (*calm)(DrDiskJob *d);
  gpointer data;
  gint64 begun_us;
  gint64 seen_us, seen_done; /* for the rate */
  double rate;
};

/* Publishes its mailbox under the VM's name. */
void dr_disk_job_init(DrDiskJob *d, DrJob *job);
void dr_disk_job_clear(DrDiskJob *d);
/* For `asked`, of a job that can be aborted and nothing else. */
gboolean dr_disk_job_asked_abort(DrDiskJob *d, const char *method, JsonObject *params, JsonObject **ret_reply,
                                 GError **error);
void dr_disk_job_watch(DrDiskJob *d, const char *id, const char *what, const char *disk);
/* A job that takes an image from a header at its end, begun with auto-finalize off and auto-dismiss on. `node`, and its `file` (nullable), are
 * written to the disk when it has done its work, and then it is finalized: QEMU drops the backing file while the tables of what was copied
 * are still in its memory, and a QEMU that is killed then leaves an image with holes. It is not on QEMU's list afterwards, and the block
 * graph tells how it ended: while a block-stream that has ended is on the list, query-named-block-nodes crashes QEMU (both seen on 7.2
 * and 10.0). */
void dr_disk_job_watch_header(DrDiskJob *d, const char *id, const char *what, const char *disk,
                              const char *node, const char *file);

/* What can be asked of the job that is at the VM's disks. NULL: there is none. (transfer full) */
DrMailbox *dr_disk_job_find(const char *vm);

/* Another job whose disks can be asked about under the VM's name for a while. */
void dr_disk_job_lend_box(const char *vm, DrMailbox *box);
void dr_disk_job_take_box_back(const char *vm, DrMailbox *box);

/* The VM's monitor. Waits as long as somebody else has it and the VM lives. Errors: NOT_FOUND when its QEMU has ended.
 * Not ended by a cancel: an undo needs it, too. */
DrQmp *dr_disk_job_take(DrDiskJob *d, GError **error);
void dr_disk_job_give(DrDiskJob *d, DrQmp *qmp);

/* Waits, with no job of QEMU's to look at, until asked() says so. tick() as ever. */
gboolean dr_disk_job_linger(DrDiskJob *d, GError **error);

typedef enum { DR_DISK_ENDED, DR_DISK_READY, DR_DISK_ASKED } DrDiskEvent;

/* Waits until all watched jobs are ready (or have ended; one that ended with an error ends the wait, and so does one that is gone), or
 * until asked() says so. With `deadline` over: DR_ERROR_TIMEOUT. With `stay` it does not end when all are ready. */
gboolean dr_disk_job_follow(DrDiskJob *d, DrDeadline deadline, gboolean stay, DrDiskEvent *ret_event,
                            GError **error);
