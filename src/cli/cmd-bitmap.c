/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover bitmap. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/list.h"
#include "cli/render.h"

#include <stdio.h>

typedef struct {
  gint64 granularity;
  gboolean disabled, transient;
  DrListOptions list;
} Options;

static char *
path_of(const DrCli *cli, const char *what)
{
  g_autofree char *name = g_uri_escape_string(cli->words[0], NULL, FALSE);

  return g_strdup_printf("/v1/vms/%s/bitmaps%s", name, what);
}

/* --- list --- */

static JsonArray *
fetch(DrCli *cli, GError **error)
{
  g_autofree char *disk = cli->words[1] ? g_uri_escape_string(cli->words[1], NULL, FALSE) : NULL;
  g_autofree char *query = disk ? g_strconcat("?disk=", disk, NULL) : g_strdup("");
  g_autofree char *path = path_of(cli, query);

  return dr_cli_call_list(cli, "GET", path, NULL, error);
}

static char *
state_of(JsonObject *bitmap)
{
  if (dr_json_bool(bitmap, "inconsistent", FALSE))
    return g_strdup("inconsistent");
  return g_strconcat(dr_json_bool(bitmap, "recording", FALSE) ? "recording" : "disabled",
                     dr_json_bool(bitmap, "persistent", FALSE) ? "" : ", transient",
                     dr_json_bool(bitmap, "busy", FALSE) ? ", in use" : "",
                     dr_json_bool(bitmap, "top", FALSE) ? "" : ", below", NULL);
}

static char *
dirty_text(JsonObject *bitmap)
{
  return dr_render_bytes(dr_render_number(bitmap, "bytes", 0));
}

static const DrColumn columns[] = {
  { "disk" },
  { "bitmap", .member = "name", .id = TRUE },
  { "dirty", .text = dirty_text },
  { "granularity" },
  { "state", .text = state_of },
  { "image", .member = "file" },
  { "node", .wide = TRUE },
  { NULL },
};

static int
list(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autoptr(GError) error = NULL;
  g_autofree char *none =
      g_strdup_printf("there are no bitmaps: begin one with drover bitmap add %s DISK BITMAP", cli->words[0]);
  g_autoptr(JsonArray) bitmaps = dr_list_check(cli, &o->list, columns, &error) ? fetch(cli, &error) : NULL;

  return bitmaps ? dr_list_print(cli, &o->list, columns, bitmaps, none) : dr_cli_fail(cli, error);
}

/* --- What changes them --- */

static int
change(DrCli *cli, const char *what, JsonObject *body, const char *said)
{
  g_autofree char *path = path_of(cli, what);
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = dr_cli_call(cli, "POST", path, NULL, body, &error);

  if (!answer)
    return dr_cli_fail(cli, error);
  if (cli->json)
    dr_cli_print_json(answer);
  else
    printf("%s: bitmap %s of disk %s %s\n", cli->words[0], cli->words[2], cli->words[1], said);
  return DR_EXIT_DONE;
}

static JsonObject *
body_of(const DrCli *cli)
{
  return dr_json("{'disk': <%s>, 'bitmap': <%s>}", cli->words[1], cli->words[2]);
}

static int
add(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autoptr(JsonObject) body = body_of(cli);

  if (o->granularity)
    json_object_set_int_member(body, "granularity", o->granularity);
  if (o->disabled)
    json_object_set_boolean_member(body, "disabled", TRUE);
  if (o->transient)
    json_object_set_boolean_member(body, "transient", TRUE);
  return change(cli, "", body, o->disabled ? "added, disabled" : "records from now on");
}

static int
remove_bitmap(DrCli *cli, const void *data)
{
  g_autoptr(JsonObject) body = body_of(cli);

  return change(cli, "/remove", body, "removed");
}

static int
enable(DrCli *cli, const void *data)
{
  g_autoptr(JsonObject) body = body_of(cli);

  return change(cli, "/enable", body, "records from now on");
}

static int
disable(DrCli *cli, const void *data)
{
  g_autoptr(JsonObject) body = body_of(cli);

  return change(cli, "/disable", body, "stays as it is from now on");
}

static int
merge(DrCli *cli, const void *data)
{
  g_autoptr(JsonObject) body = body_of(cli);

  json_object_set_array_member(body, "from", dr_json_array_from_strv((const char *const *)cli->words + 3));
  return change(cli, "/merge", body, "has the others in it");
}

int
dr_cmd_bitmap(DrCli *cli, int argc, char **argv)
{
  static const DrSubverb subverbs[] = {
    { "add", "NAME DISK BITMAP", 3, 3, " granularity disabled transient ", add },
    { "list", "NAME [DISK]", 1, 2, DR_LIST_OPTIONS, list, .columns = columns },
    { "remove", "NAME DISK BITMAP", 3, 3, "", remove_bitmap },
    { "enable", "NAME DISK BITMAP", 3, 3, "", enable },
    { "disable", "NAME DISK BITMAP", 3, 3, "", disable },
    { "merge", "NAME DISK INTO FROM…", 4, 64, "", merge },
    { NULL },
  };
  Options o = { 0 };
  const GOptionEntry entries[] = {
    { "granularity", 0, 0, G_OPTION_ARG_INT64, &o.granularity,
      "add: how much of the disk one bit stands for, a power of 2 (default: 65536)", "BYTES" },
    { "disabled", 0, 0, G_OPTION_ARG_NONE, &o.disabled, "add: do not record yet", NULL },
    { "transient", 0, 0, G_OPTION_ARG_NONE, &o.transient,
      "add: only as long as this QEMU runs; for images that can keep none (raw)", NULL },
    DR_LIST_ENTRIES(o.list, "list: "),
    { NULL },
  };
  int code = dr_cli_subverb(cli, argc, argv, entries, subverbs, &o);

  g_free(o.list.output);
  return code;
}
