/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A command line as a shell would take it, for readers. */
#include "argv/argv.h"

#include <string.h>

/* Quotes only where sh(1) needs it, so that the usual line stays readable. */
static void
append_word(GString *out, const char *word)
{
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=+,./:@%^";
  g_autofree char *quoted = NULL;

  if (*word && word[strspn(word, plain)] == '\0') {
    g_string_append(out, word);
    return;
  }
  quoted = g_shell_quote(word);
  g_string_append(out, quoted);
}

char *
dr_argv_quote_shell(const DrArgv *argv, gboolean lines)
{
  GString *out = g_string_new(NULL);

  for (const char *const *word = dr_argv_launcher(argv); *word; word++) {
    append_word(out, *word);
    g_string_append_c(out, ' ');
  }
  append_word(out, dr_argv_program(argv));
  for (guint i = 0; i < dr_argv_n(argv); i++) {
    const DrOpt *opt = dr_argv_opt(argv, i);

    g_string_append(out, lines ? " \\\n  " : " ");
    if (opt->spelling)
      append_word(out, opt->spelling);
    if (opt->spelling && opt->value)
      g_string_append_c(out, ' ');
    if (opt->value)
      append_word(out, opt->value);
  }
  return g_string_free(out, FALSE);
}
