/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The log writer. */
#include "base/log.h"

#include <stdio.h>

static gboolean show_debug;

static const char *
level_name(GLogLevelFlags level)
{
  if (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL))
    return "BUG    ";
  if (level & G_LOG_LEVEL_WARNING)
    return "warning";
  return level & G_LOG_LEVEL_DEBUG ? "debug  " : "info   ";
}

static GLogWriterOutput
write_line(GLogLevelFlags level, const GLogField *fields, gsize n_fields, gpointer unused)
{
  g_autoptr(GDateTime) now = g_date_time_new_now_utc();
  g_autofree char *time = g_date_time_format(now, "%H:%M:%S");
  const char *text = "";

  if (level & G_LOG_LEVEL_DEBUG && !show_debug)
    return G_LOG_WRITER_HANDLED;
  for (gsize i = 0; i < n_fields; i++)
    if (g_str_equal(fields[i].key, "MESSAGE"))
      text = fields[i].value;
  fprintf(stderr, "%s.%03d %s %s\n", time, g_date_time_get_microsecond(now) / 1000, level_name(level), text);
  return G_LOG_WRITER_HANDLED;
}

void
dr_log_init(gboolean debug)
{
  show_debug = debug;
  g_log_set_writer_func(write_line, NULL, NULL);
}
