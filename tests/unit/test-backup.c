/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a backup can be asked for, and what of it is in the journal. */
#include "base/error.h"
#include "job/backup-listen.h"
#include "job/backup-point.h"
#include "job/backup-serve.h"
#include "job/backup.h"

#include <string.h>

static void
test_listen(void)
{
  static const struct {
    const char *text, *uri; /* NULL: refused */
  } cases[] = {
    { "unix:/run/s", "nbd+unix:///a%2Fb?socket=/run/s" },
    { "unix:/run/a b", "nbd+unix:///a%2Fb?socket=/run/a%20b" },
    { "tcp:10809", "nbd://127.0.0.1:10809/a%2Fb" },
    { "tcp:localhost:1", "nbd://localhost:1/a%2Fb" },
    { "tcp:127.9.9.9:1", "nbd://127.9.9.9:1/a%2Fb" },
    { "tcp:[::1]:65535", "nbd://[::1]:65535/a%2Fb" },
    { "tcp:0", NULL },
    { "tcp:65536", NULL },
    { "tcp:", NULL },
    { "tcp:0.0.0.0:1", NULL },
    { "tcp:[::]:1", NULL },
    { "tcp:example.org:1", NULL },
    { "tcp:localhost", NULL },
    { "unix:relative", NULL },
    { "/run/s", NULL },
    { "", NULL },
  };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    DrListen listen = { 0 }, again = { 0 };
    g_autoptr(GError) error = NULL;
    gboolean right = dr_listen_parse(&listen, cases[i].text, &error);
    g_autoptr(JsonObject) written = NULL;
    g_autofree char *uri = NULL;

    g_assert_cmpint(right, ==, cases[i].uri != NULL);
    if (!right) {
      g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
      continue;
    }
    written = dr_listen_write(&listen);
    dr_listen_read(&again, written);
    uri = dr_listen_uri(&again, "a/b");
    g_assert_cmpstr(uri, ==, cases[i].uri);
    dr_listen_clear(&listen);
    dr_listen_clear(&again);
  }
}

static void
test_requests(void)
{
  static const struct {
    gboolean (*check)(JsonObject *, GError **);
    const char *text;
    gboolean right;
  } cases[] = {
    { dr_backup_check, "{\"target\":\"/b\"}", TRUE },
    { dr_backup_check, "{\"target\":\"/b\",\"incremental\":\"x\",\"onto\":[\"/f\",\"d0=/g\"]}", TRUE },
    { dr_backup_check, "{\"target\":\"/b\",\"format\":\"raw\",\"bitmap\":\"x\"}", TRUE },
    { dr_backup_check, "{}", FALSE },
    { dr_backup_check, "{\"target\":\"b\"}", FALSE },
    { dr_backup_check, "{\"target\":\"/b\",\"format\":\"vmdk\"}", FALSE },
    { dr_backup_check, "{\"target\":\"/b\",\"incremental\":\"x\",\"format\":\"raw\"}", FALSE },
    { dr_backup_check, "{\"target\":\"/b\",\"incremental\":\"x\",\"bitmap\":\"y\"}", FALSE },
    { dr_backup_check, "{\"target\":\"/b\",\"onto\":[\"/f\"]}", FALSE },
    { dr_backup_check, "{\"target\":\"/b\",\"incremental\":\"x\",\"onto\":[\"d0=f\"]}", FALSE },
    { dr_backup_check, "{\"target\":\"/b\",\"disks\":[]}", FALSE },
    { dr_backup_check, "{\"target\":\"/b\",\"scratch\":\"s\"}", FALSE },
    { dr_backup_serve_check, "{}", TRUE },
    { dr_backup_serve_check, "{\"listen\":\"tcp:1\",\"scratch\":\"/s\"}", TRUE },
    { dr_backup_serve_check, "{\"listen\":\"1\"}", FALSE },
    { dr_backup_serve_check, "{\"incremental\":\"x\",\"bitmap\":\"y\"}", FALSE },
  };

  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(JsonObject) request = dr_json_parse_object(cases[i].text, -1, 4096, NULL);
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(cases[i].check(request, &error), ==, cases[i].right);
    if (!cases[i].right)
      g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
  }
}

static void
test_journal(void)
{
  g_autoptr(JsonObject) object = dr_json(
      "{'incremental': <'b'>, 'begin': <''>, 'agent': <''>, 'disks': <[{'bytes': <%x>, 'keep': <%x>, 'disk': "
      "<'d'>, "
      "'path': <'/p'>, 'root': <'r'>, 'top': <'t'>, 'node': <'n'>, 'filter': <'f'>, 'scratch_node': <'s'>, "
      "'scratch': <'/s'>, 'since': <'c'>}]>}",
      (gint64)7, (gint64)9);
  g_autoptr(JsonObject) written = NULL;
  DrPoint point = { 0 };
  g_autofree char *one = NULL, *two = NULL;
  const DrPointDisk *disk;

  dr_point_init(&point);
  dr_point_read(&point, object);
  g_assert_cmpstr(point.incremental, ==, "b");
  g_assert_null(point.begin);
  g_assert_cmpuint(point.disks->len, ==, 1);
  disk = point.disks->pdata[0];
  g_assert_cmpstr(disk->filter, ==, "f");
  g_assert_cmpint(disk->keep, ==, 9);
  written = dr_point_write(&point);
  g_assert_cmpuint(json_object_get_size(written), ==, json_object_get_size(object));
  one = dr_json_print_object(json_array_get_object_element(dr_json_arr(written, "disks"), 0), FALSE);
  two = dr_json_print_object(json_array_get_object_element(dr_json_arr(object, "disks"), 0), FALSE);
  g_assert_cmpuint(strlen(one), ==, strlen(two));
  dr_point_clear(&point);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/backup/listen", test_listen);
  g_test_add_func("/backup/requests", test_requests);
  g_test_add_func("/backup/journal", test_journal);
  return g_test_run();
}
