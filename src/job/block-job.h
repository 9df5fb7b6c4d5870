/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU's own background jobs (QAPI: query-jobs, job-dismiss). They run in QEMU whether or not a droverd is there; drover starts
 * each with auto-dismiss off, so that its end can be read however late somebody asks. */
#pragma once
#include "base/deadline.h"
#include "qmp/qmp.h"

typedef enum {
  DR_BLOCK_JOB_GONE,     /* QEMU knows no such job */
  DR_BLOCK_JOB_RUNNING,  /* or paused, or waiting for its turn */
  DR_BLOCK_JOB_STOPPED,  /* by an I/O error: it waits for block-job-resume */
  DR_BLOCK_JOB_NO_SPACE, /* the same, because the target is full */
  DR_BLOCK_JOB_PENDING,  /* has done its work, and waits for job-finalize (auto-finalize off) */
  DR_BLOCK_JOB_READY, /* a mirror or an active commit in step with its source: it waits to be told how to end */
  DR_BLOCK_JOB_ENDED, /* concluded: `error` says how */
} DrBlockJobState;

typedef struct {
  DrBlockJobState state;
  gint64 done, total; /* bytes; the total grows while the guest writes */
  char *error;        /* nullable; of a job that ended: NULL: well */
} DrBlockJobLook;

void dr_block_job_look_clear(DrBlockJobLook *look);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(DrBlockJobLook, dr_block_job_look_clear)

gboolean dr_block_job_look(DrQmp *qmp, const char *id, DrBlockJobLook *ret_look, GError **error);

/* Waits until it has ended and dismisses it. FALSE with QEMU's reason where it did not end well; "what" names it in messages. */
gboolean dr_block_job_end(DrQmp *qmp, const char *id, const char *what, DrDeadline deadline, GError **error);

/* Breaks the connection of an NBD node (QAPI: yank, since 6.0), if it is one: before a cancel, which waits for a server that is silent in
 * QEMU's main loop, guest and all (7.2). */
void dr_block_yank(DrQmp *qmp, const char *node);

/* Asks it to end now; where it is not there, nothing happens. */
void dr_block_job_cancel(DrQmp *qmp, const char *id);

/* Ends it now, whatever it has done so far, waits, and dismisses it. Nothing to do where it is gone. */
gboolean dr_block_job_kill(DrQmp *qmp, const char *id, DrDeadline deadline, GError **error);

/* block-stream, such that nothing is lost and nobody harmed at its end: it stops at an I/O error, waits to be finalized (flush before), and
 * goes from QEMU's list by itself; see dr_disk_job_watch_header(). */
typedef struct {
  const char *job, *top;        /* QEMU's job; the node that is streamed into */
  const char *base, *base_file; /* nullable: the node that stays below, and what the header has for it */
  gint64 bytes_s;               /* 0: no limit */
} DrBlockStream;
gboolean dr_block_stream(DrQmp *qmp, const DrBlockStream *stream, GError **error);

/* Has QEMU write what it still keeps of an image to the disk, its tables too: `file` (nullable) is synced first, by the calling thread, as
 * QEMU's guest stands still while QEMU itself does that (HMP `qemu-io … flush`). */
gboolean dr_block_flush(DrQmp *qmp, const char *node, const char *file, GError **error);

/* A blockdev-create of `options` from its beginning to its end. The job's id is made up. */
gboolean dr_block_create(DrQmp *qmp, JsonObject *options, DrDeadline deadline, GError **error);

/* "drover-3f9c01ab-NAME": an id for a node or a job that no other one has, here or on another host. (transfer full) */
char *dr_block_id(const char *name);
