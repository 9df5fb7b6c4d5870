/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The pace of a mirror. */
#include "job/mirror-pace.h"

#define STILL_US (10 * G_USEC_PER_SEC)
#define MOVES_US (2 * G_USEC_PER_SEC)

gboolean
dr_mirror_pace_falls_behind(DrMirrorPace *pace, const DrBlockJobLook *look, gint64 now_us)
{
  gint64 left = look->total - look->done;

  if (look->done > pace->done)
    pace->moved_us = now_us;
  pace->done = look->done;
  if (look->total == 0) { /* it looks through the disk, and does not know yet what there is to do */
    pace->least_us = 0;
    return FALSE;
  }
  if (look->state != DR_BLOCK_JOB_RUNNING || pace->least_us == 0 || left < pace->least) {
    pace->least = left;
    pace->least_us = now_us;
    return FALSE;
  }
  if (left == 0 || now_us - pace->least_us <= STILL_US || now_us - pace->moved_us >= MOVES_US)
    return FALSE;
  pace->least_us = 0;
  return TRUE;
}

gint64
dr_mirror_pace_stands_still(const DrMirrorPace *pace, const DrBlockJobLook *look, gint64 now_us)
{
  gboolean waits = look->state == DR_BLOCK_JOB_RUNNING && look->total > look->done && pace->moved_us;

  return waits ? now_us - pace->moved_us : 0;
}
