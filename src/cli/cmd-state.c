/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover pause, resume, stop, forget. */
#include "base/error.h"
#include "cli/cli.h"

#include <stdio.h>

#define STOP_TIMEOUT_S 60
#define STOP_MARGIN_S 30 /* droverd's own end of a stop, over the guest's */

static void
tell_state(const char *name, JsonObject *vm)
{
  const char *exit_text = dr_json_str(vm, "exit", NULL);

  if (exit_text)
    printf("%s: %s (%s)\n", name, dr_json_str(vm, "state", "?"), exit_text);
  else
    printf("%s: %s\n", name, dr_json_str(vm, "state", "?"));
}

int
dr_cmd_pause(DrCli *cli, int argc, char **argv)
{
  g_autoptr(GError) error = NULL;

  if (!dr_cli_parse(cli, argc, argv, NULL, 1, -1, &error))
    return dr_cli_fail(cli, error);
  return dr_cli_each(cli, "POST", "/v1/vms/{}/pause", NULL, tell_state);
}

int
dr_cmd_resume(DrCli *cli, int argc, char **argv)
{
  g_autoptr(GError) error = NULL;

  if (!dr_cli_parse(cli, argc, argv, NULL, 1, -1, &error))
    return dr_cli_fail(cli, error);
  return dr_cli_each(cli, "POST", "/v1/vms/{}/resume", NULL, tell_state);
}

int
dr_cmd_stop(DrCli *cli, int argc, char **argv)
{
  gboolean force = FALSE;
  int timeout = STOP_TIMEOUT_S;
  const GOptionEntry entries[] = {
    { "force", 'f', 0, G_OPTION_ARG_NONE, &force, "End the process at once, as pulling the plug", NULL },
    { "timeout", 't', 0, G_OPTION_ARG_INT, &timeout, "How long the guest may take (default: 60)", "SECONDS" },
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = NULL;

  if (!dr_cli_parse(cli, argc, argv, entries, 1, -1, &error))
    return dr_cli_fail(cli, error);
  if (timeout < 1 || timeout > 86400) {
    dr_error_set(&error, DR_ERROR_INVALID, "stop: --timeout is 1 to 86400 seconds");
    return dr_cli_fail(cli, error);
  }
  if (!dr_cli_client(cli, &error))
    return dr_cli_fail(cli, error);
  dr_client_set_timeout(cli->client, (guint)timeout + STOP_MARGIN_S);
  body = dr_json("{'force': <%b>, 'timeout': <%i>}", force, timeout);
  return dr_cli_each(cli, "POST", "/v1/vms/{}/stop", body, tell_state);
}

static void
tell_forgotten(const char *name, JsonObject *nothing)
{
  printf("%s: forgotten\n", name);
}

int
dr_cmd_forget(DrCli *cli, int argc, char **argv)
{
  gboolean force = FALSE;
  const GOptionEntry entries[] = {
    { "force", 'f', 0, G_OPTION_ARG_NONE, &force, "Also one that runs and that drover started", NULL },
    { NULL },
  };
  g_autoptr(GError) error = NULL;

  if (!dr_cli_parse(cli, argc, argv, entries, 1, 1, &error))
    return dr_cli_fail(cli, error);
  return dr_cli_each(cli, "DELETE", force ? "/v1/vms/{}?force=true" : "/v1/vms/{}", NULL, tell_forgotten);
}
