/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover console. */
#include "api/pump.h"
#include "base/error.h"
#include "cli/cli.h"
#include "cli/terminal.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINGER_MS 5000
#define ESCAPE 0x1d /* Ctrl-], as virsh, telnet and xl have it */

typedef struct {
  GMainLoop *loop;
  int escape;    /* the byte that ends it; -1: none, what comes is not typed */
  gboolean left; /* by the escape */
  DrPumpEnd end;
  char *text;
} Console;

/* "^]", "^A" (case does not matter) or a single character. */
static gboolean
parse_escape(const char *text, int *ret_byte, GError **error)
{
  gsize len = strlen(text);

  if (len == 2 && text[0] == '^' && ((text[1] >= '@' && text[1] <= '_') || g_ascii_isalpha(text[1])))
    *ret_byte = g_ascii_toupper(text[1]) & 0x1f;
  else if (len == 1)
    *ret_byte = (guchar)text[0];
  else
    return dr_error_set(error, DR_ERROR_INVALID,
                        "console: --escape is a character or ^ with a letter, not '%s'", text);
  return TRUE;
}

static char *
escape_name(int byte)
{
  return byte < 0x20 ? g_strdup_printf("^%c", byte + '@') : g_strdup_printf("%c", byte);
}

static gsize
until_escape(gpointer data, const guint8 *bytes, gsize len)
{
  Console *console = data;
  const guint8 *found = console->escape >= 0 ? memchr(bytes, console->escape, len) : NULL;

  if (!found)
    return len;
  console->left = TRUE;
  return (gsize)(found - bytes);
}

static void
on_ended(gpointer data, DrPumpEnd end, const char *text)
{
  Console *console = data;

  console->end = end;
  console->text = g_strdup(text);
  g_main_loop_quit(console->loop);
}

/* A terminal gets raw; pipes are taken as they are, and have no escape. */
static void
run(Console *console, GIOStream *stream)
{
  gboolean typed = isatty(STDIN_FILENO);
  DrPump *pump;

  if (!typed)
    console->escape = -1;
  signal(SIGPIPE, SIG_IGN); /* a reader of ours that ends must not end us before the terminal is restored */
  if (typed)
    dr_terminal_raw();
  pump = dr_pump_new(&(DrPumpSetup){
      .stream = stream,
      .is_client = TRUE,
      .in_fd = STDIN_FILENO,
      .out_fd = STDOUT_FILENO,
      .stay = !typed,
      .linger_ms = LINGER_MS,
      .filter = until_escape,
      .ended = on_ended,
      .data = console,
  });
  g_main_loop_run(console->loop);
  dr_pump_free(pump);
  dr_terminal_restore();
}

static gboolean
how_it_ended(const Console *console, const char *name, GError **error)
{
  if (console->end == DR_PUMP_LOST) {
    dr_error_set(error, DR_ERROR_CLOSED, "lost the console of '%s': %s", name, console->text);
    return dr_error_remedy(error, "see what became of the VM: drover show %s", name);
  }
  if (console->end == DR_PUMP_CLOSED && isatty(STDERR_FILENO))
    fprintf(stderr, "\n%s: the console has ended%s%s\n", name, *console->text ? ": " : "", console->text);
  else if (console->left)
    fputc('\n', stderr);
  return TRUE;
}

static gboolean
connect_and_run(DrCli *cli, Console *console, GError **error)
{
  const char *name = cli->words[0];
  g_autofree char *escaped = g_uri_escape_string(name, NULL, FALSE);
  g_autofree char *path = g_strdup_printf("/v1/vms/%s/console", escaped);
  g_autofree char *escape = escape_name(console->escape);
  DrClient *client = dr_cli_client(cli, error);
  g_autoptr(GIOStream) stream = client ? dr_client_websocket(client, path, error) : NULL;

  if (!stream)
    return FALSE;
  if (isatty(STDIN_FILENO) && isatty(STDERR_FILENO))
    fprintf(stderr, "connected to %s, leave with %s\n", name, escape);
  console->loop = g_main_loop_new(NULL, FALSE);
  run(console, stream);
  g_main_loop_unref(console->loop);
  return how_it_ended(console, name, error);
}

int
dr_cmd_console(DrCli *cli, int argc, char **argv)
{
  g_autofree char *escape = NULL;
  const GOptionEntry entries[] = {
    { "escape", 'e', 0, G_OPTION_ARG_STRING, &escape, "What leaves the console (default: ^])", "CHAR" },
    { NULL },
  };
  g_autoptr(GError) error = NULL;
  Console console = { .escape = ESCAPE };
  gboolean done;

  done = dr_cli_parse(cli, argc, argv, entries, 1, 1, &error) &&
         (!escape || parse_escape(escape, &console.escape, &error)) && connect_and_run(cli, &console, &error);
  g_free(console.text);
  return done ? DR_EXIT_DONE : dr_cli_fail(cli, error);
}
