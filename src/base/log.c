/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The log writer. */
#include "base/log.h"

#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static gboolean show_debug;
static gboolean to_journal;

/* JOURNAL_STREAM names what systemd has made of our stderr; it may have been inherited by somebody who writes elsewhere. */
static gboolean
is_journal(void)
{
  g_autofree char *ours = NULL;
  struct stat st;

  if (fstat(STDERR_FILENO, &st) < 0)
    return FALSE;
  ours = g_strdup_printf("%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
  return g_strcmp0(g_getenv("JOURNAL_STREAM"), ours) == 0;
}

/* As sd-daemon(3) has them: the numbers of syslog(3). */
static int
level_number(GLogLevelFlags level)
{
  if (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL))
    return 3;
  if (level & G_LOG_LEVEL_WARNING)
    return 4;
  return level & G_LOG_LEVEL_DEBUG ? 7 : 6;
}

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
  if (to_journal)
    fprintf(stderr, "<%d>%s\n", level_number(level), text); /* it knows the time */
  else
    fprintf(stderr, "%s.%03d %s %s\n", time, g_date_time_get_microsecond(now) / 1000, level_name(level),
            text);
  return G_LOG_WRITER_HANDLED;
}

void
dr_log_init(gboolean debug)
{
  show_debug = debug;
  to_journal = is_journal();
  g_log_set_writer_func(write_line, NULL, NULL);
}
