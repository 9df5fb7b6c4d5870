/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A point in time by which something must have happened; every wait of drover takes one. */
#pragma once
#include <glib.h>

/* Monotonic microseconds, as g_get_monotonic_time(). */
typedef gint64 DrDeadline;

#define DR_DEADLINE_NEVER G_MAXINT64 /* for what something else ends */

static inline DrDeadline
dr_deadline_in(gint64 ms)
{
  return g_get_monotonic_time() + ms * 1000;
}

/* Milliseconds left, rounded up, never negative; fits poll(2)'s timeout. */
static inline int
dr_deadline_left(DrDeadline deadline)
{
  gint64 left = (deadline - g_get_monotonic_time() + 999) / 1000;

  return (int)CLAMP(left, 0, G_MAXINT);
}

static inline gboolean
dr_deadline_passed(DrDeadline deadline)
{
  return g_get_monotonic_time() >= deadline;
}
