/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover snapshot. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/list.h"
#include "cli/render.h"
#include "cli/start-jobs.h"

#include <stdio.h>
#include <string.h>

typedef struct {
  char **disks, *name, *description, *memory_file;
  gboolean quiesce, memory, discard, up, metadata, async;
  int bandwidth;
  DrListOptions list;
} Options;

static char *
path_of(const DrCli *cli, const char *what)
{
  g_autofree char *name = g_uri_escape_string(cli->words[0], NULL, FALSE);

  return g_strdup_printf("/v1/vms/%s/snapshots%s", name, what);
}

static int
start(DrCli *cli, const char *what, JsonObject *body, gboolean async)
{
  g_autofree char *path = path_of(cli, what);
  g_autoptr(GError) error = NULL;
  int code = dr_cli_start_jobs(cli, path, body, TRUE, async, &error);

  return code >= 0 ? code : dr_cli_fail(cli, error);
}

/* --- create --- */

/* "DISK" or "DISK=FILE", the file from here. */
static JsonArray *
disks_of(char **disks)
{
  JsonArray *array = json_array_new();

  for (char **disk = disks; *disk; disk++) {
    const char *file = strchr(*disk, '=');
    g_autofree char *path = file ? g_canonicalize_filename(file + 1, NULL) : NULL;
    g_autofree char *text =
        file ? g_strdup_printf("%.*s=%s", (int)(file - *disk), *disk, path) : g_strdup(*disk);

    json_array_add_string_element(array, text);
  }
  return array;
}

static int
create(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autoptr(JsonObject) body = json_object_new();
  g_autofree char *file = o->memory_file ? g_canonicalize_filename(o->memory_file, NULL) : NULL;

  if (o->name)
    json_object_set_string_member(body, "name", o->name);
  if (o->description)
    json_object_set_string_member(body, "description", o->description);
  if (o->quiesce)
    json_object_set_boolean_member(body, "quiesce", TRUE);
  if (o->memory || o->memory_file)
    json_object_set_boolean_member(body, "memory", TRUE);
  if (file)
    json_object_set_string_member(body, "memory_file", file);
  if (o->disks)
    json_object_set_array_member(body, "disks", disks_of(o->disks));
  return start(cli, "", body, o->async);
}

/* --- list, show --- */

static JsonArray *
fetch(DrCli *cli, GError **error)
{
  g_autofree char *path = path_of(cli, "");

  return dr_cli_call_list(cli, "GET", path, NULL, error);
}

static char *
created_text(JsonObject *snapshot)
{
  return dr_list_time(snapshot, "created_ms");
}

static const char *
kind_of(JsonObject *snapshot)
{
  if (dr_json_bool(snapshot, "spoiled", FALSE))
    return "half merged";
  if (dr_json_obj(snapshot, "memory"))
    return "as it ran";
  return dr_json_bool(snapshot, "quiesced", FALSE) ? "file systems frozen" : "as after a power cut";
}

/* "153 MiB", or "-". */
static char *
memory_text(JsonObject *snapshot)
{
  return dr_json_obj(snapshot, "memory")
             ? dr_render_bytes(dr_render_number(dr_json_obj(snapshot, "memory"), "bytes", 0))
             : g_strdup("-");
}

static char *
disks_text(JsonObject *snapshot)
{
  JsonArray *disks = dr_json_arr(snapshot, "disks");

  return g_strdup_printf("%u", disks ? json_array_get_length(disks) : 0);
}

static char *
state_text(JsonObject *snapshot)
{
  return g_strdup(kind_of(snapshot));
}

static char *
memory_file_text(JsonObject *snapshot)
{
  return g_strdup(dr_json_str(snapshot, "memory.file", "-"));
}

static const DrColumn columns[] = {
  { "snapshot", .member = "name" },
  { "created", .text = created_text },
  { "disks", .text = disks_text },
  { "memory", .text = memory_text },
  { "state", .text = state_text },
  { "description" },
  { "memory-file", .text = memory_file_text, .wide = TRUE },
  { NULL },
};

static int
list(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autoptr(GError) error = NULL;
  g_autofree char *none = g_strdup_printf("%s has no snapshots: take one with drover snapshot create %s",
                                          cli->words[0], cli->words[0]);
  g_autoptr(JsonArray) snapshots = dr_list_check(cli, &o->list, columns, &error) ? fetch(cli, &error) : NULL;

  return snapshots ? dr_list_print(cli, &o->list, columns, snapshots, none) : dr_cli_fail(cli, error);
}

static void
print_snapshot(JsonObject *snapshot)
{
  g_autofree char *created = created_text(snapshot), *description = dr_render_member(snapshot, "description");
  JsonArray *disks = dr_json_arr(snapshot, "disks");

  printf("%-12s %s\n%-12s %s\n%-12s %s\n%-12s %s\n", "snapshot", dr_json_str(snapshot, "name", "?"),
         "created", created, "state", kind_of(snapshot), "description", description);
  if (dr_json_obj(snapshot, "memory")) {
    g_autofree char *bytes = memory_text(snapshot);

    printf("%-12s %s, %s\n", "memory", dr_json_str(snapshot, "memory.file", "?"), bytes);
  }
  for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
    JsonObject *disk = json_array_get_object_element(disks, i);

    printf("%-12s %s\n  as it was  %s (%s)\n  since      %s\n", "disk", dr_json_str(disk, "disk", "?"),
           dr_json_str(disk, "base", "?"), dr_json_str(disk, "base_format", "?"),
           dr_json_str(disk, "overlay", "?"));
  }
}

static JsonObject *
find_snapshot(JsonArray *snapshots, const char *name)
{
  for (guint i = 0; i < json_array_get_length(snapshots); i++) {
    JsonObject *snapshot = json_array_get_object_element(snapshots, i);

    if (g_str_equal(dr_json_str(snapshot, "name", ""), name))
      return snapshot;
  }
  return NULL;
}

static int
show(DrCli *cli, const void *data)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonArray) snapshots = fetch(cli, &error);
  JsonObject *snapshot = snapshots ? find_snapshot(snapshots, cli->words[1]) : NULL;

  if (snapshots && !snapshot) {
    dr_error_set(&error, DR_ERROR_NOT_FOUND, "VM '%s' has no snapshot '%s'", cli->words[0], cli->words[1]);
    dr_error_remedy(&error, "drover snapshot list %s shows them", cli->words[0]);
  }
  if (!snapshot)
    return dr_cli_fail(cli, error);
  if (cli->json) {
    g_autoptr(JsonNode) node = dr_json_node(json_object_ref(snapshot));

    dr_cli_print_json(node);
  } else {
    print_snapshot(snapshot);
  }
  return DR_EXIT_DONE;
}

/* --- merge, delete --- */

static JsonObject *
merge_request(const DrCli *cli, const Options *o)
{
  JsonObject *body = dr_json("{'snapshot': <%s>}", cli->words[1]);

  if (o->up)
    json_object_set_boolean_member(body, "up", TRUE);
  if (o->bandwidth > 0)
    json_object_set_int_member(body, "bandwidth", o->bandwidth);
  if (o->disks)
    json_object_set_array_member(body, "disks", dr_json_array_from_strv((const char *const *)o->disks));
  return body;
}

static int
merge(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autoptr(JsonObject) body = merge_request(cli, o);

  return start(cli, "/merge", body, o->async);
}

static int
revert(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autoptr(JsonObject) body = dr_json("{'snapshot': <%s>}", cli->words[1]);

  if (o->discard)
    json_object_set_boolean_member(body, "discard", TRUE);
  return start(cli, "/revert", body, o->async);
}

static int
forget(DrCli *cli)
{
  g_autofree char *path = path_of(cli, "/forget");
  g_autoptr(JsonObject) body = dr_json("{'snapshot': <%s>}", cli->words[1]);
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = dr_cli_call(cli, "POST", path, NULL, body, &error);

  if (!answer)
    return dr_cli_fail(cli, error);
  if (cli->json)
    dr_cli_print_json(answer);
  else
    printf("%s: snapshot %s is off the record; no file was touched\n", cli->words[0], cli->words[1]);
  return DR_EXIT_DONE;
}

static int
delete_snapshot(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autoptr(JsonObject) body = NULL;

  if (o->metadata)
    return forget(cli);
  body = merge_request(cli, o);
  json_object_set_boolean_member(body, "delete", TRUE);
  return start(cli, "/merge", body, o->async);
}

int
dr_cmd_snapshot(DrCli *cli, int argc, char **argv)
{
  static const DrSubverb subverbs[] = {
    { "create", "NAME", 1, 1, " disk name quiesce memory memory-file description async events ", create },
    { "list", "NAME", 1, 1, DR_LIST_OPTIONS, list, .columns = columns },
    { "show", "NAME SNAPSHOT", 2, 2, "", show },
    { "revert", "NAME SNAPSHOT", 2, 2, " discard async events ", revert },
    { "merge", "NAME SNAPSHOT", 2, 2, " up disk bandwidth async events ", merge },
    { "delete", "NAME SNAPSHOT", 2, 2, " metadata bandwidth async events ", delete_snapshot },
    { NULL },
  };
  Options o = { 0 };
  const GOptionEntry entries[] = {
    { "name", 0, 0, G_OPTION_ARG_STRING, &o.name, "create: its name (default: the time)", "SNAPSHOT" },
    { "disk", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o.disks,
      "create: this disk, and the overlay's file; several times (default: all that can be written). merge: "
      "only this disk",
      "DISK[=FILE]" },
    { "quiesce", 0, 0, G_OPTION_ARG_NONE, &o.quiesce,
      "create: freeze the guest's file systems by its agent meanwhile", NULL },
    { "memory", 0, 0, G_OPTION_ARG_NONE, &o.memory,
      "create: with RAM and device state, saved while the guest runs", NULL },
    { "memory-file", 0, 0, G_OPTION_ARG_FILENAME, &o.memory_file,
      "create: with memory, into this file (default: beside the first disk's overlay)", "PATH" },
    { "discard", 0, 0, G_OPTION_ARG_NONE, &o.discard,
      "revert: remove the overlays with what the guest has written since", NULL },
    { "description", 0, 0, G_OPTION_ARG_STRING, &o.description, "create: what it is for", "TEXT" },
    { "up", 0, 0, G_OPTION_ARG_NONE, &o.up,
      "merge: copy the images below into the overlays; they stay as they are", NULL },
    { "metadata", 0, 0, G_OPTION_ARG_NONE, &o.metadata, "delete: only forget it; the images stay as they are",
      NULL },
    { "bandwidth", 0, 0, G_OPTION_ARG_INT, &o.bandwidth, "merge, delete: at most so much", "MIB/S" },
    DR_LIST_ENTRIES(o.list, "list: "),
    { "async", 0, 0, G_OPTION_ARG_NONE, &o.async, "Start, and do not wait for the end", NULL },
    DR_CLI_EVENTS(cli),
    { NULL },
  };
  int code = dr_cli_subverb(cli, argc, argv, entries, subverbs, &o);

  g_strfreev(o.disks);
  g_free(o.name);
  g_free(o.description);
  g_free(o.memory_file);
  g_free(o.list.output);
  return code;
}
