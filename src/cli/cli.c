/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the verbs share: options, errors, exit codes. */
#include "cli/cli.h"
#include "base/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What stands behind "--" is never looked at for options. */
static void
split_rest(DrCli *cli, char **argv)
{
  for (int i = 1; argv[i]; i++) {
    if (!g_str_equal(argv[i], "--"))
      continue;
    cli->rest = g_strdupv(&argv[i + 1]);
    g_free(argv[i]);
    for (int j = i; argv[j]; j++) {
      if (j > i)
        g_free(argv[j]);
    }
    argv[i] = NULL;
    return;
  }
}

static gboolean
check_words(DrCli *cli, int n, int min, int max, GError **error)
{
  if (n >= min && (max < 0 || n <= max))
    return TRUE;
  dr_error_set(error, DR_ERROR_INVALID, "%s: %s", cli->verb->name, n < min ? "an argument is missing" : "too many arguments");
  return dr_error_remedy(error, "usage: drover %s %s (see drover help %s)", cli->verb->name, cli->verb->words,
                         cli->verb->name);
}

static GOptionContext *
new_context(DrCli *cli, const GOptionEntry *entries)
{
  g_autofree char *title = g_strconcat(cli->verb->name, " ", cli->verb->words, NULL);
  const GOptionEntry common[] = {
    { "connect", 0, 0, G_OPTION_ARG_FILENAME, &cli->connect, "droverd's socket", "unix:PATH" },
    { "json", 0, 0, G_OPTION_ARG_NONE, &cli->json, "Print JSON", NULL },
    { "no-color", 0, 0, G_OPTION_ARG_NONE, &cli->no_color, "Print no colours", NULL },
    { "verbose", 'v', 0, G_OPTION_ARG_NONE, &cli->verbose, "Say more", NULL },
    { NULL },
  };
  g_autofree char *summary = g_strconcat("drover ", title, "\n\n", cli->verb->summary, ".", NULL);
  GOptionContext *context = g_option_context_new(title);
  
  g_option_context_set_summary(context, cli->verb->summary);
  if (cli->verb->more)
    g_option_context_set_description(context, cli->verb->more);
  if (entries)
    g_option_context_add_main_entries(context, entries, NULL);
  g_option_context_add_main_entries(context, common, NULL);
  return context;
}

gboolean
dr_cli_parse(DrCli *cli, int argc, char **argv, const GOptionEntry *entries, int min, int max, GError **error)
{
  g_autoptr(GOptionContext) context = new_context(cli, entries);
  g_autoptr(GError) parse_error = NULL;

  cli->words = g_strdupv(argv);
  split_rest(cli, cli->words);
  if (!g_option_context_parse_strv(context, &cli->words, &parse_error)) {
    dr_error_set(error, DR_ERROR_INVALID, "%s: %s", cli->verb->name, parse_error->message);
    return dr_error_remedy(error, "drover help %s", cli->verb->name);
  }
  return check_words(cli, (int)g_strv_length(cli->words) - 1, min, max, error);
}

DrClient *
dr_cli_client(DrCli *cli, GError **error)
{
  if (!cli->client)
    cli->client = dr_client_new(cli->connect, error);
  return cli->client;
}

int
dr_exit_of(const GError *error)
{
  if (g_error_matches(error, DR_ERROR, DR_ERROR_INVALID))
    return DR_EXIT_USAGE;
  return g_error_matches(error, DR_ERROR, DR_ERROR_ATTENTION) ? DR_EXIT_ATTENTION : DR_EXIT_FAILED;
}

int
dr_exit_worse(int a, int b)
{
  static const int rank[] = { [DR_EXIT_DONE] = 0, [DR_EXIT_USAGE] = 1, [DR_EXIT_FAILED] = 2, [DR_EXIT_ATTENTION] = 3 };

  return rank[a] > rank[b] ? a : b;
}

void
dr_cli_print_json(JsonNode *node)
{
  g_autofree char *text = dr_json_print(node, TRUE);

  puts(text);
}

/* --- Calls --- */
