/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Verbs whose first word says what to do. */
#include "base/error.h"
#include "cli/cli.h"

#include <string.h>

static const DrSubverb *
find_subverb(const DrSubverb *subverbs, const char *name)
{
  for (; subverbs->name; subverbs++)
    if (g_str_equal(subverbs->name, name))
      return subverbs;
  return NULL;
}

/* Its name is left out: a VM's may be that of another one. */
static const DrSubverb *
find_unnamed(const DrCli *cli, const DrSubverb *subverbs, gboolean named)
{
  gboolean behind = cli->rest && g_strv_length(cli->rest) == g_strv_length(cli->words);

  for (; subverbs->name; subverbs++)
    if (subverbs->otherwise && (behind || !named))
      return subverbs;
  return NULL;
}

static gboolean
usage(const DrCli *cli, const DrSubverb *sub, GError **error)
{
  return dr_error_remedy(error, "usage: drover %s %s%s%s (see drover help %s)", cli->verb->name, sub->name,
                         *sub->words ? " " : "", sub->words, cli->verb->name);
}

static gboolean
check_words(const DrCli *cli, const DrSubverb *sub, GError **error)
{
  int n = (int)g_strv_length(cli->words);
  g_auto(GStrv) names = g_strsplit(sub->words, " ", -1);

  if (n >= sub->min && n <= sub->max)
    return TRUE;
  if (n < sub->min)
    dr_error_set(error, DR_ERROR_INVALID, "%s %s: %s is missing", cli->verb->name, sub->name, names[n]);
  else
    dr_error_set(error, DR_ERROR_INVALID, "%s %s: unexpected argument '%s'", cli->verb->name, sub->name,
                 cli->words[sub->max]);
  return usage(cli, sub, error);
}

static gboolean
was_given(char **argv, const GOptionEntry *option)
{
  g_autofree char *plain = g_strconcat("--", option->long_name, NULL);
  g_autofree char *with_value = g_strconcat(plain, "=", NULL);
  const char one[] = { '-', option->short_name ? option->short_name : '-', '\0' };

  for (; *argv && !g_str_equal(*argv, "--"); argv++)
    if (g_str_equal(*argv, plain) || g_str_has_prefix(*argv, with_value) ||
        (option->short_name && g_str_has_prefix(*argv, one)))
      return TRUE;
  return FALSE;
}

/* GOption knows the options of the whole verb only. */
static gboolean
check_options(const DrCli *cli, const DrSubverb *sub, char **argv, const GOptionEntry *entries,
              GError **error)
{
  for (; entries->long_name; entries++) {
    g_autofree char *name = g_strconcat(" ", entries->long_name, " ", NULL);

    if (strstr(sub->options, name) || !was_given(argv, entries))
      continue;
    dr_error_set(error, DR_ERROR_INVALID, "%s %s takes no --%s", cli->verb->name, sub->name,
                 entries->long_name);
    return dr_error_remedy(error, "drover help %s shows its options", cli->verb->name);
  }
  return TRUE;
}

static void
drop_first_word(DrCli *cli)
{
  char **rest = g_strdupv(cli->words + 1);

  g_strfreev(cli->words);
  cli->words = rest;
}

int
dr_cli_subverb(DrCli *cli, int argc, char **argv, const GOptionEntry *entries, const DrSubverb *subverbs,
               const void *options)
{
  g_autoptr(GError) error = NULL;
  const DrSubverb *sub, *unnamed;

  cli->subverbs = subverbs;
  if (!dr_cli_parse(cli, argc, argv, entries, 1, -1, &error))
    return dr_cli_fail(cli, error);
  sub = find_subverb(subverbs, cli->words[0]);
  unnamed = find_unnamed(cli, subverbs, sub != NULL);
  if (unnamed)
    sub = unnamed;
  if (!sub) {
    dr_error_set(&error, DR_ERROR_INVALID, "%s: there is no '%s' in it", cli->verb->name, cli->words[0]);
    dr_error_remedy(&error, "drover help %s shows what there is", cli->verb->name);
    return dr_cli_fail(cli, error);
  }
  if (!unnamed)
    drop_first_word(cli);
  if (!check_options(cli, sub, argv, entries, &error) || !check_words(cli, sub, &error))
    return dr_cli_fail(cli, error);
  return sub->run(cli, options);
}
