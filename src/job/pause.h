/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the milliseconds of a guest's pause went to.
 *
 * The pause is from QEMU's STOP to the other QEMU's RESUME. Between them lie moments that a job hears of anyway: QEMU's events,
 * which carry their own time, and its own steps. Each ends the part that is called after it; so the parts lie in one row without gaps,
 * and their sum is the pause, whichever of them are known. Nothing is asked of a QEMU or of another host for it. */
#pragma once
#include "qmp/qmp.h"

#define DR_PAUSE_STOP "stop"         /* the guest's devices and disks come to rest */
#define DR_PAUSE_CHECK "check"       /* droverd looks at the guest once more, and lets QEMU go on */
#define DR_PAUSE_DISKS "disks"       /* what the guest has written last goes to the copies of its disks */
#define DR_PAUSE_SYNC "sync"         /* which pages are still to be sent */
#define DR_PAUSE_TRANSFER "transfer" /* those pages, and the state of the devices */
#define DR_PAUSE_LOAD "load"         /* the new QEMU has read it all */
#define DR_PAUSE_DECIDE "decide"     /* it is written down whose the guest is */
#define DR_PAUSE_MESSAGE "message"   /* the way to the other host */
#define DR_PAUSE_GO "go"             /* the new QEMU is told to run it */
#define DR_PAUSE_RESUME "resume"     /* it does: the RESUME event */

#define DR_PAUSE_MARKS 12

typedef struct {
  const char *name; /* static */
  gint64 us;        /* wall clock */
} DrPauseMark;

typedef struct {
  DrPauseMark marks[DR_PAUSE_MARKS];
  guint n;
  gboolean postcopy; /* the old QEMU has begun it: its end has nothing to do with the pause */
} DrPause;

/* The part `name` (static) ended at `us`, wall clock of this host; 0: not known, nothing happens. A later mark of that name takes the place of
 * the first. */
void dr_pause_mark(DrPause *pause, const char *name, gint64 us);
/* The same now. */
void dr_pause_mark_now(DrPause *pause, const char *name);
/* What an event of the old or of the new QEMU says; others are passed over. */
void dr_pause_source_event(DrPause *pause, const DrQmpEvent *event);
void dr_pause_dest_event(DrPause *pause, const DrQmpEvent *event);

typedef struct {
  const char *name;
  double ms;
} DrPausePart;

/* Those of the time between, in their order, without those that took none; their sum is end_us - begin_us. Returns: how many (at most
 * DR_PAUSE_MARKS + 1). */
guint dr_pause_parts(const DrPause *pause, gint64 begin_us, gint64 end_us,
                     DrPausePart ret_parts[DR_PAUSE_MARKS + 1]);
