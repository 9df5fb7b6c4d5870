/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover list, drover show. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/list.h"
#include "cli/render.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const DrColumn columns[] = {
  { "name" },
  { "state", .is_state = TRUE },
  { "pid" },
  { "qemu", .member = "qemu_version" },
  { "machine" },
  { "ram", .member = "memory_mode" },
  { "job" },
  { "uuid", .wide = TRUE },
  { "adopted", .wide = TRUE },
  { NULL },
};

int
dr_cmd_list(DrCli *cli, int argc, char **argv)
{
  DrListOptions options = { 0 };
  const GOptionEntry entries[] = { DR_LIST_ENTRIES(options, ""), { NULL } };
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonArray) rows = NULL;
  int code = -1;

  cli->columns = columns;
  if (dr_cli_parse(cli, argc, argv, entries, 0, 0, &error) && dr_list_check(cli, &options, columns, &error))
    rows = dr_cli_call_list(cli, "GET", "/v1/vms", NULL, &error);
  if (rows)
    code = dr_list_print(cli, &options, columns, rows,
                         "no VMs: start one with drover run, or take over one that runs with drover adopt");
  g_free(options.output);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}

/* --- show --- */

/* As the shell takes it; a plain word stays as it is. */
static char *
quote(const char *word)
{
  static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+,.:/@%";

  return *word && !word[strspn(word, plain)] ? g_strdup(word) : g_shell_quote(word);
}

static void
print_words(const char *title, JsonArray *array)
{
  g_auto(GStrv) words = dr_json_strv(array);

  if (!words)
    return;
  printf("%-14s", title);
  for (char **word = words; *word; word++) {
    g_autofree char *quoted = quote(*word);

    printf(" %s", quoted);
  }
  putchar('\n');
}

static void
print_member(JsonObject *vm, const char *name, const char *title, gboolean color)
{
  g_autofree char *text = dr_render_member(vm, name);
  g_autofree char *shown = dr_render_state(text, color && g_str_equal(name, "state"));

  if (json_object_has_member(vm, name) && !g_str_equal(text, "-"))
    printf("%-14s %s\n", title, shown);
}

static JsonObject *
nth_object(JsonArray *array, guint i)
{
  JsonNode *node = json_array_get_element(array, i);

  return JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

/* "disk0: /srv/web1.qcow2 (qcow2, 2.1 GB, on base.qcow2)" */
static void
print_disk(JsonObject *disk)
{
  const char *name = dr_json_str(disk, "device", dr_json_str(disk, "backend", "?"));
  const char *file = dr_json_str(disk, "file", NULL);
  JsonArray *backing = dr_json_arr(disk, "backing");
  g_autofree char *size = dr_render_bytes(dr_render_number(disk, "bytes", 0));

  if (!file) {
    printf("%-14s %s: empty\n", "disk", name);
    return;
  }
  printf("%-14s %s: %s (%s, %s%s", "disk", name, file, dr_json_str(disk, "format", "?"), size,
         dr_json_bool(disk, "read_only", FALSE) ? ", read-only" : "");
  if (backing && json_array_get_length(backing) > 0)
    printf(", on %s", json_array_get_string_element(backing, 0));
  puts(")");
}

static void
print_nic(JsonObject *nic)
{
  printf("%-14s %s: %s, %s, %s\n", "network", dr_json_str(nic, "id", "?"), dr_json_str(nic, "model", "?"),
         dr_json_str(nic, "mac", "?"), dr_json_str(nic, "type", "not connected"));
}

static void
print_devices(JsonArray *devices, void (*print_one)(JsonObject *device))
{
  for (guint i = 0; devices && i < json_array_get_length(devices); i++)
    if (nth_object(devices, i))
      print_one(nth_object(devices, i));
}

static void
print_memory(JsonObject *vm)
{
  double bytes = dr_render_number(dr_json_obj(vm, "memory"), "bytes", -1);

  if (bytes >= 0)
    printf("%-14s %.0f MiB\n", "memory", bytes / (1024 * 1024));
}

static void
print_vm(JsonObject *vm, gboolean color)
{
  static const char *const members[][2] = {
    { "name", "name" },     { "state", "state" },     { "note", "note" },         { "exit", "ended" },
    { "job", "job" },       { "pid", "pid" },         { "qemu_version", "QEMU" }, { "machine", "machine" },
    { "uuid", "UUID" },     { "memory_mode", "RAM" }, { "adopted", "adopted" },   { "upgrades", "upgrades" },
    { "cwd", "directory" }, { "qmp", "QMP socket" },  { "console", "console" },   { "log", "log" },
  };

  for (guint i = 0; i < G_N_ELEMENTS(members); i++)
    print_member(vm, members[i][0], members[i][1], color);
  print_memory(vm);
  print_devices(dr_json_arr(vm, "disks"), print_disk);
  print_devices(dr_json_arr(vm, "nics"), print_nic);
  print_words("command given", dr_json_arr(vm, "argv_given"));
  print_words("command now", dr_json_arr(vm, "argv_running"));
}

int
dr_cmd_show(DrCli *cli, int argc, char **argv)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) answer = NULL;

  if (!dr_cli_parse(cli, argc, argv, NULL, 1, 1, &error))
    return dr_cli_fail(cli, error);
  answer = dr_cli_call(cli, "GET", "/v1/vms/{}", cli->words[0], NULL, &error);
  if (!answer)
    return dr_cli_fail(cli, error);
  if (cli->json || !JSON_NODE_HOLDS_OBJECT(answer))
    dr_cli_print_json(answer);
  else
    print_vm(json_node_get_object(answer), dr_render_color(STDOUT_FILENO, cli->no_color));
  return DR_EXIT_DONE;
}
