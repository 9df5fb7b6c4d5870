/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* RAM and device state of a running guest, written into a file by QEMU's migration while the guest runs on.
 *
 * QEMU gets the open file (getfd, "fd:") and writes its usual stream, as into a socket: pass after pass over the pages that the guest
 * has written meanwhile, zero pages as a few bytes. At the end it stops the guest; that instant is the one that is saved, which is why
 * this is no "background-snapshot": its instant is the beginning, when nobody knows yet whether there will be room for the file, and
 * it needs userfaultfd's write protection, which shared RAM has only since Linux 5.19. The pause is kept short as an upgrade's copy does it: it is
 * asked for DR_MEMORY_SAVE_PAUSE_MS, twice that when the passes get no smaller, and so on; a guest that is still ahead of the disk
 * then, or after some passes, is stopped, so that the next pass is the last one and the file stays bounded. */
#pragma once
#include "job/job.h"

#define DR_MEMORY_SAVE_PAUSE_MS 50
#define DR_STAGE_MEMORY "memory"

typedef struct {
  int fd;                        /* the file, opened to write to; owned by the caller */
  gint64 bytes;                  /* of the file, at the end */
  gint64 stopped_us, resumed_us; /* wall clock; 0: not seen */
  gint64 passes;
} DrMemorySave;

/* The guest stands still, and its disks are QEMU's still. FALSE: the save is ended. */
typedef gboolean (*DrMemorySaveAt)(gpointer data, GError **error);

/* From its beginning to a guest that runs on, with all on disk. `at_stop` is called at the instant. Cancel is seen until then. FALSE: the
 * guest runs on where it was (DR_ERROR_ATTENTION: it does not), or QEMU has ended (CLOSED); what at_stop() did is still done. Errors:
 * REFUSED where somebody else has paused the guest meanwhile. */
gboolean dr_memory_save(DrMemorySave *save, DrJob *job, DrQmp *qmp, DrMemorySaveAt at_stop, gpointer data,
                        GError **error);

/* The same after at_stop() had been done and its droverd had died: goes on to the end. */
gboolean dr_memory_save_finish(DrMemorySave *save, DrJob *job, DrQmp *qmp, GError **error);

/* Ends whatever is left of a save, and lets the guest run; one that is "paused" only if `halted` (the journal's word: it was us).
 * Errors: ATTENTION if it does not go on. */
gboolean dr_memory_save_give_up(DrJob *job, DrQmp *qmp, gboolean halted, GError **error);
