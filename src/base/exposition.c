/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lines for Prometheus. */
#include "base/exposition.h"

void
dr_exposition_head(GString *out, const char *name, const char *type, const char *help)
{
  g_string_append_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* A backslash, a quote and the end of a line are escaped, and nothing else. */
static void
append_value(GString *out, const char *value)
{
  g_autofree char *valid = g_utf8_make_valid(value, -1);

  for (const char *at = valid; *at; at++) {
    if (*at == '\n')
      g_string_append(out, "\\n");
    else if (*at == '\\' || *at == '"')
      g_string_append_printf(out, "\\%c", *at);
    else
      g_string_append_c(out, *at);
  }
}

void
dr_exposition_sample(GString *out, const char *name, const char *const *labels, double value)
{
  char number[G_ASCII_DTOSTR_BUF_SIZE];

  g_string_append(out, name);
  for (guint i = 0; labels && labels[i]; i += 2) {
    g_string_append_printf(out, "%c%s=\"", i ? ',' : '{', labels[i]);
    append_value(out, labels[i + 1]);
    g_string_append_c(out, '"');
  }
  if (labels && labels[0])
    g_string_append_c(out, '}');
  /* Whatever the locale; 15 digits, for with 17 a bucket of 0.1 s would be one of 0.10000000000000001 s. */
  g_string_append_printf(out, " %s\n", g_ascii_formatd(number, sizeof number, "%.15g", value));
}

void
dr_exposition_one(GString *out, const char *name, const char *type, const char *help, double value)
{
  dr_exposition_head(out, name, type, help);
  dr_exposition_sample(out, name, NULL, value);
}
