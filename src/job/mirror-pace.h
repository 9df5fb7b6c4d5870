/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whether a mirror gets closer to the disk that its guest writes to. Pure: looks at the job go in, and the time. */
#pragma once
#include "job/block-job.h"

typedef struct {
  gint64 done, moved_us;  /* bytes at the last look; when they last became more */
  gint64 least, least_us; /* the fewest bytes that were ever left, and since when */
} DrMirrorPace;

/* TRUE: it moves, and has for 10 s not come closer than it was: it never will while the guest writes as it does. The 10 s begin anew
 * then. FALSE of one that does not move at all (2 s): that is its target's doing. */
gboolean dr_mirror_pace_falls_behind(DrMirrorPace *pace, const DrBlockJobLook *look, gint64 now_us);

/* For how long (microseconds) it has not moved though there is something to do; 0: it does, or has not begun. */
gint64 dr_mirror_pace_stands_still(const DrMirrorPace *pace, const DrBlockJobLook *look, gint64 now_us);
