/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The link goes to the browser by a file that only its user reads: on a command line every user of this machine would see the
 * token, and could be faster. */
#include "cli/ui-browser.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

static char *
write_page(const char *url)
{
  g_autofree char *path = g_build_filename(g_get_user_runtime_dir(), "drover-ui-XXXXXX.html", NULL);
  g_autofree char *text = g_strdup_printf(
      "<!doctype html><meta charset=\"utf-8\"><title>drover</title>\n"
      "<meta http-equiv=\"refresh\" content=\"0; url=%s\"><a href=\"%s\">To the dashboard</a>\n",
      url, url);
  int fd = g_mkstemp_full(path, O_WRONLY | O_CLOEXEC, 0600);
  gsize len = strlen(text);

  if (fd < 0)
    return NULL;
  if (write(fd, text, len) != (gssize)len) { /* an unfinished one leads nowhere */
    g_unlink(path);
    g_clear_pointer(&path, g_free);
  }
  close(fd);
  return g_steal_pointer(&path);
}

char *
dr_ui_browser_open(const char *url)
{
  g_autofree char *opener = g_find_program_in_path("xdg-open");
  gboolean desktop = g_getenv("DISPLAY") || g_getenv("WAYLAND_DISPLAY");
  g_autofree char *path = desktop && opener ? write_page(url) : NULL;
  char *const argv[] = { opener, path, NULL };

  if (path && g_spawn_async(NULL, (char **)argv, NULL,
                            G_SPAWN_STDOUT_TO_DEV_NULL | G_SPAWN_STDERR_TO_DEV_NULL, NULL, NULL, NULL, NULL))
    return g_steal_pointer(&path);
  dr_ui_browser_forget(path);
  return NULL;
}

void
dr_ui_browser_forget(const char *path)
{
  if (path)
    g_unlink(path);
}
