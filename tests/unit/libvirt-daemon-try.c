/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libvirt's daemon by hand: libvirt-daemon-try STATE_DIR FILE VERB…
 * find: looks, and writes FILE. read: reads FILE. stop, start. wait: until there is a line to read. Each says one line when it is done. */
#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/log.h"
#include "libvirt/daemon.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX 1048576

static int seconds = 20;

static gboolean
find(DrLibvirtDaemon **daemon, const char *state_dir, const char *file, GError **error)
{
  g_autoptr(JsonObject) object = NULL;
  g_autofree char *text = NULL;

  *daemon = dr_libvirt_daemon_find(state_dir, error);
  if (!*daemon)
    return FALSE;
  object = dr_libvirt_daemon_write(*daemon);
  text = dr_json_print_object(object, TRUE);
  return dr_file_write(file, text, error);
}

static gboolean
read_back(DrLibvirtDaemon **daemon, const char *file, GError **error)
{
  g_autofree char *text = dr_file_read(file, FILE_MAX, NULL, error);
  g_autoptr(JsonObject) object = text ? dr_json_parse_object(text, -1, FILE_MAX, error) : NULL;

  return object && (*daemon = dr_libvirt_daemon_read(object, error));
}

static gboolean
run(const char *verb, DrLibvirtDaemon **daemon, char **argv, GError **error)
{
  char line[16];

  if (!strcmp(verb, "find") || !strcmp(verb, "read"))
    g_clear_pointer(daemon, dr_libvirt_daemon_free);
  if (!strcmp(verb, "find"))
    return find(daemon, argv[1], argv[2], error);
  if (!strcmp(verb, "read"))
    return read_back(daemon, argv[2], error);
  if (!strcmp(verb, "wait"))
    return fgets(line, sizeof line, stdin) != NULL;
  if (*daemon && !strcmp(verb, "stop"))
    return dr_libvirt_daemon_stop(*daemon, dr_deadline_in(seconds * 1000), error);
  if (*daemon && !strcmp(verb, "start"))
    return dr_libvirt_daemon_start(*daemon, dr_deadline_in(seconds * 1000), error);
  return dr_error_set(error, DR_ERROR_INVALID, "no such verb, or no daemon");
}

int
main(int argc, char **argv)
{
  g_autoptr(DrLibvirtDaemon) daemon = NULL;

  dr_log_init(TRUE);
  if (g_getenv("SECONDS_EACH"))
    seconds = atoi(g_getenv("SECONDS_EACH"));
  for (int i = 3; i < argc; i++) {
    g_autoptr(GError) error = NULL;

    if (!run(argv[i], &daemon, argv, &error)) {
      const char *remedy = dr_error_get_remedy(error);

      printf("%s: error %s: %s (%s)\n", argv[i], error ? dr_error_code_name(error) : "",
             error ? error->message : "", remedy ? remedy : "");
      return 1;
    }
    printf("%s: %s\n", argv[i], daemon ? dr_libvirt_daemon_name(daemon) : "");
    fflush(stdout);
  }
  return 0;
}
