/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The parts of a pause: see pause.h. */
#include "job/pause.h"

#include <stdlib.h>

void
dr_pause_mark(DrPause *pause, const char *name, gint64 us)
{
  guint i = 0;

  if (us <= 0)
    return;
  while (i < pause->n && !g_str_equal(pause->marks[i].name, name))
    i++;
  if (i == DR_PAUSE_MARKS)
    return;
  pause->marks[i] = (DrPauseMark){ name, us };
  pause->n = MAX(pause->n, i + 1);
}

void
dr_pause_mark_now(DrPause *pause, const char *name)
{
  dr_pause_mark(pause, name, g_get_real_time());
}

static gboolean
has(const DrPause *pause, const char *name)
{
  for (guint i = 0; i < pause->n; i++)
    if (g_str_equal(pause->marks[i].name, name))
      return TRUE;
  return FALSE;
}

/* With pause-before-switchover QEMU says "pre-switchover" and waits, then "device"; without it a newer one says "device" only, an older one
 * neither. Its last look at the dirty pages, a MIGRATION_PASS, comes behind them. "postcopy-active" comes before the STOP (7.2), where it says
 * nothing, or when the devices have been sent (10.0). */
static void
note_status(DrPause *pause, const char *status, gint64 us)
{
  if (g_str_equal(status, "pre-switchover"))
    dr_pause_mark(pause, DR_PAUSE_STOP, us);
  else if (g_str_equal(status, "device"))
    dr_pause_mark(pause, has(pause, DR_PAUSE_STOP) ? DR_PAUSE_CHECK : DR_PAUSE_STOP, us);
  else if (g_str_equal(status, "completed") && !pause->postcopy)
    dr_pause_mark(pause, DR_PAUSE_TRANSFER, us);
  else if (g_str_equal(status, "postcopy-active") && !has(pause, DR_PAUSE_TRANSFER))
    dr_pause_mark(pause, DR_PAUSE_TRANSFER, us);
  pause->postcopy |= g_str_has_prefix(status, "postcopy-");
}

void
dr_pause_source_event(DrPause *pause, const DrQmpEvent *event)
{
  if (g_str_equal(event->name, "STOP"))
    pause->n = 0; /* what was before belongs to a pause of somebody else's */
  else if (g_str_equal(event->name, "MIGRATION_PASS") && !has(pause, DR_PAUSE_TRANSFER))
    dr_pause_mark(pause, has(pause, DR_PAUSE_STOP) || pause->postcopy ? DR_PAUSE_SYNC : DR_PAUSE_STOP,
                  event->time_us);
  else if (g_str_equal(event->name, "MIGRATION") && event->data)
    note_status(pause, dr_json_str(event->data, "status", ""), event->time_us);
}

void
dr_pause_dest_event(DrPause *pause, const DrQmpEvent *event)
{
  const char *status = event->data ? dr_json_str(event->data, "status", "") : "";

  if (g_str_equal(event->name, "MIGRATION") && !has(pause, DR_PAUSE_LOAD) &&
      (g_str_equal(status, "completed") || g_str_equal(status, "postcopy-active")))
    dr_pause_mark(pause, DR_PAUSE_LOAD, event->time_us);
}

static int
by_time(const void *a, const void *b)
{
  const DrPauseMark *one = a, *other = b;

  return one->us < other->us ? -1 : one->us > other->us;
}

static guint
add_part(DrPausePart *parts, guint n, const char *name, gint64 us)
{
  if (us > 0)
    parts[n] = (DrPausePart){ name, (double)us / 1000.0 };
  return us > 0 ? n + 1 : n;
}

guint
dr_pause_parts(const DrPause *pause, gint64 begin_us, gint64 end_us,
               DrPausePart ret_parts[DR_PAUSE_MARKS + 1])
{
  DrPause sorted = *pause;
  guint n = 0;

  if (end_us <= begin_us)
    return 0;
  qsort(sorted.marks, sorted.n, sizeof *sorted.marks, by_time);
  for (guint i = 0; i < sorted.n && sorted.marks[i].us < end_us; i++) {
    gint64 us = sorted.marks[i].us - begin_us;

    if (us <= 0)
      continue;
    n = add_part(ret_parts, n, sorted.marks[i].name, us);
    begin_us = sorted.marks[i].us;
  }
  /* Loading that is not over when the guest runs ends with it: QEMU lets it run as soon as it can. */
  for (guint i = 0; i < sorted.n; i++)
    if (sorted.marks[i].us >= end_us && g_str_equal(sorted.marks[i].name, DR_PAUSE_LOAD))
      return add_part(ret_parts, n, DR_PAUSE_LOAD, end_us - begin_us);
  return add_part(ret_parts, n, DR_PAUSE_RESUME, end_us - begin_us);
}
