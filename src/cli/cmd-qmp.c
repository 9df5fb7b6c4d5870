/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover qmp. */
#include "base/error.h"
#include "cli/cli.h"

#include <stdio.h>

#define COMMAND_MAX (1024 * 1024)

/* `{"execute":…}` as it is, or a command's name with its arguments. */
static JsonObject *
read_command(const char *word, const char *arguments, GError **error)
{
  g_autoptr(JsonObject) parsed = NULL;
  JsonObject *command;

  if (word[0] == '{') {
    if (!arguments)
      return dr_json_parse_object(word, -1, COMMAND_MAX, error);
    dr_error_set(error, DR_ERROR_INVALID, "qmp: a JSON command has its arguments inside");
    return NULL;
  }
  if (arguments && !(parsed = dr_json_parse_object(arguments, -1, COMMAND_MAX, error))) {
    g_prefix_error(error, "qmp: arguments of '%s': ", word);
    return NULL;
  }
  command = json_object_new();
  json_object_set_string_member(command, "execute", word);
  if (parsed)
    json_object_set_object_member(command, "arguments", g_steal_pointer(&parsed));
  return command;
}

int
dr_cmd_qmp(DrCli *cli, int argc, char **argv)
{
  gboolean pretty = FALSE;
  const GOptionEntry entries[] = {
    { "pretty", 0, 0, G_OPTION_ARG_NONE, &pretty, "Print the answer over several lines", NULL },
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) command = NULL;
  g_autoptr(JsonNode) answer = NULL;
  g_autofree char *text = NULL;

  if (!dr_cli_parse(cli, argc, argv, entries, 2, 3, &error))
    return dr_cli_fail(cli, error);
  command = read_command(cli->words[1], cli->words[2], &error);
  if (command)
    answer = dr_cli_call(cli, "POST", "/v1/vms/{}/qmp", cli->words[0], command, &error);
  if (!answer)
    return dr_cli_fail(cli, error);
  text = dr_json_print(answer, pretty);
  puts(text);
  return DR_EXIT_DONE;
}
