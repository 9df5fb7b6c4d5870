/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bars of text. */
#include "cli/bar.h"

#include <math.h>

gboolean
dr_bar_utf8(void)
{
  return g_get_charset(NULL);
}

static void
append_times(GString *text, const char *what, int n)
{
  for (int i = 0; i < n; i++)
    g_string_append(text, what);
}

/* Not before all of it is done does it look so. */
char *
dr_bar(double fraction, int width, gboolean utf8)
{
  static const char *const eighths[] = { "", "▏", "▎", "▍", "▌", "▋", "▊", "▉" };
  GString *text = g_string_new(utf8 ? "▕" : "[");
  int parts = (int)(CLAMP(fraction, 0, 1) * width * 8), full = parts / 8;
  gboolean partly = utf8 && parts % 8 != 0;

  append_times(text, utf8 ? "█" : "#", full);
  if (partly)
    g_string_append(text, eighths[parts % 8]);
  append_times(text, " ", width - full - partly);
  g_string_append(text, utf8 ? "▏" : "]");
  return g_string_free(text, FALSE);
}

char *
dr_bar_span(double begin, double end, int width, gboolean utf8)
{
  int from = CLAMP((int)floor(begin * width), 0, width - 1);
  int to = CLAMP((int)ceil(end * width), from + 1, width);
  GString *text = g_string_new(utf8 ? "▕" : "[");

  append_times(text, " ", from);
  append_times(text, utf8 ? "█" : "#", to - from);
  append_times(text, " ", width - to);
  g_string_append(text, utf8 ? "▏" : "]");
  return g_string_free(text, FALSE);
}
