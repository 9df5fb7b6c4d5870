/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lines of a log, bounded. */
#include "net/refusals.h"
#include "base/metrics.h"

#define LINES_A_SECOND 10

void
dr_refusals_prepare(void)
{
  static const char *const reasons[] = { DR_REFUSED_BUSY, DR_REFUSED_TIMEOUT, "refused", "closed", "io" };

  for (guint i = 0; i < G_N_ELEMENTS(reasons); i++)
    dr_metric_add(DR_METRIC_REFUSED, 0, reasons[i], NULL);
}

void
dr_refusals_log(DrRefusals *refusals, const char *address, const char *reason, const char *why)
{
  gint64 second = g_get_monotonic_time() / G_USEC_PER_SEC;
  guint left_out = 0;
  gboolean show;

  dr_metric_add(DR_METRIC_REFUSED, 1, reason, NULL);
  g_mutex_lock(&refusals->lock);
  if (second != refusals->second) {
    left_out = refusals->lines > LINES_A_SECOND ? refusals->lines - LINES_A_SECOND : 0;
    refusals->second = second;
    refusals->lines = 0;
  }
  show = refusals->lines++ < LINES_A_SECOND;
  g_mutex_unlock(&refusals->lock);
  if (left_out)
    g_message("%u more connections were refused in a second before", left_out);
  if (show)
    g_message("connection of %s refused: %s", address, why);
}
