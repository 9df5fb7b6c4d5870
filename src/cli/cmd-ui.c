/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover ui. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/ui-browser.h"
#include "cli/ui-proxy.h"
#include "cli/ui-watch.h"

#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>

#define AWAY_S 300

typedef struct {
  int port;
  int away;
  gboolean no_open;
} Options;

static gboolean
check(const Options *options, GError **error)
{
  if (options->port < 0 || options->port > 65535)
    return dr_error_set(error, DR_ERROR_INVALID, "ui: --port is 1 to 65535, or 0 for any, not %d",
                        options->port);
  if (options->away < 1 || options->away > 86400)
    return dr_error_set(error, DR_ERROR_INVALID, "ui: --away is 1 to 86400 s, not %d", options->away);
  return TRUE;
}

static gboolean
on_signal(gpointer loop)
{
  g_main_loop_quit(loop);
  return G_SOURCE_CONTINUE;
}

static void
tell(const DrCli *cli, const DrUiProxy *proxy)
{
  g_autoptr(JsonNode) node = NULL;

  if (cli->json) {
    node = dr_json_node(
        dr_json("{'url': <%s>, 'port': <%x>}", dr_ui_proxy_url(proxy), (gint64)dr_ui_proxy_port(proxy)));
    dr_cli_print_json(node);
  } else {
    puts(dr_ui_proxy_url(proxy));
    fflush(stdout);
    fputs("The link opens the dashboard once, in one browser. Ctrl-C ends it.\n", stderr);
  }
  fflush(stdout);
}

/* Until somebody ends it, or droverd has been away for too long. */
static int
run(DrCli *cli, const Options *options, const DrUiProxy *proxy, GError **error)
{
  g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, FALSE);
  static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
  g_autofree char *opened = NULL;
  DrUiWatch *watch;
  gboolean here;

  signal(SIGPIPE, SIG_IGN);
  for (guint i = 0; i < G_N_ELEMENTS(signals); i++)
    g_unix_signal_add(signals[i], on_signal, loop);
  tell(cli, proxy);
  if (!options->no_open && !cli->json)
    opened = dr_ui_browser_open(dr_ui_proxy_url(proxy));
  watch = dr_ui_watch_new(cli, (guint)options->away, loop);
  g_main_loop_run(loop);
  here = dr_ui_watch_end(watch, error);
  dr_ui_browser_forget(opened);
  return here ? DR_EXIT_DONE : -1;
}

int
dr_cmd_ui(DrCli *cli, int argc, char **argv)
{
  Options options = { .away = AWAY_S };
  const GOptionEntry entries[] = {
    { "port", 'p', 0, G_OPTION_ARG_INT, &options.port,
      "Listen on this port of 127.0.0.1 (default: a free one)", "N" },
    { "no-open", 0, 0, G_OPTION_ARG_NONE, &options.no_open, "Only print the link, open no browser", NULL },
    { "away", 0, 0, G_OPTION_ARG_INT, &options.away,
      "End when droverd has not answered for so long (default: 300)", "S" },
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) version = NULL;
  g_autoptr(DrUiProxy) proxy = NULL;
  int code = -1;

  if (dr_cli_parse(cli, argc, argv, entries, 0, 0, &error) && check(&options, &error))
    version = dr_cli_call(cli, "GET", "/v1/version", NULL, NULL, &error);
  if (version)
    proxy = dr_ui_proxy_new(cli, (guint)options.port, &error);
  if (proxy)
    code = run(cli, &options, proxy, &error);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}
