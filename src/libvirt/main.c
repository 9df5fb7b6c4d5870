/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover-libvirt: the part of droverd that knows libvirt, as a program of its own, so that droverd needs no libvirt, and so that a run goes on
 * when droverd ends.
 *
 *   drover-libvirt check DIR RUN_DIR CACHE_DIR    the request on stdin, the report on stdout
 *   drover-libvirt upgrade DIR RUN_DIR CACHE_DIR  the request on stdin; how it goes is in DIR/run.json
 *   drover-libvirt recover DIR RUN_DIR CACHE_DIR
 *
 * 0: done; 1: an error, as {"error": {…}} on stdout. */
#include "base/error.h"
#include "base/log.h"
#include "libvirt/journal.h"
#include "libvirt/run.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_SPEC (1024 * 1024)

static JsonObject *
read_spec(GError **error)
{
  g_autoptr(GByteArray) bytes = g_byte_array_new();
  guint8 part[4096];
  gssize n;

  while ((n = read(STDIN_FILENO, part, sizeof part)) > 0 && bytes->len < MAX_SPEC)
    g_byte_array_append(bytes, part, (guint)n);
  return dr_json_parse_object((const char *)bytes->data, bytes->len, MAX_SPEC, error);
}

static void
print(JsonObject *object)
{
  g_autofree char *text = dr_json_print_object(object, FALSE);

  puts(text);
}

static gboolean
check(const DrLibvirtDirs *dirs, GError **error)
{
  g_autoptr(JsonObject) spec = read_spec(error);
  g_autoptr(JsonObject) report = spec ? dr_libvirt_run_check(dirs, spec, error) : NULL;

  if (report)
    print(report);
  return report != NULL;
}

static gboolean
upgrade(const DrLibvirtDirs *dirs, GError **error)
{
  g_autoptr(JsonObject) spec = read_spec(error);

  return spec && dr_libvirt_run_upgrade(dirs, spec, error);
}

static int
fail(const GError *error)
{
  g_autoptr(JsonObject) object = json_object_new();

  dr_libvirt_put_error(object, error);
  print(object);
  return 1;
}

int
main(int argc, char **argv)
{
  static const struct {
    const char *name;
    gboolean (*run)(const DrLibvirtDirs *dirs, GError **error);
  } commands[] = { { "check", check }, { "upgrade", upgrade }, { "recover", dr_libvirt_run_recover } };
  g_autoptr(GError) error = NULL;

  umask(
      022); /* libvirt's files are as libvirt makes them; droverd's umask may be another, and its directories are closed */
  signal(SIGPIPE, SIG_IGN);
  /* A run takes libvirt's daemon away: it is brought to its end. Whoever cannot wait kills it, and droverd recovers. */
  signal(SIGHUP, SIG_IGN);
  signal(SIGTERM, SIG_IGN);
  signal(SIGINT, SIG_IGN);
  for (guint i = 0; argc == 5 && i < G_N_ELEMENTS(commands); i++) {
    DrLibvirtDirs dirs = { .dir = argv[2], .run_dir = argv[3], .cache_dir = argv[4] };

    if (g_str_equal(argv[1], commands[i].name))
      return commands[i].run(&dirs, &error) ? 0 : fail(error);
  }
  fputs("drover-libvirt is started by droverd; see drover-upgrade(1), \"Domains of libvirt\"\n", stderr);
  return 2;
}
