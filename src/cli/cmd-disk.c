/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover disk. */
#include "base/error.h"
#include "cli/cli.h"
#include "cli/list.h"
#include "cli/render.h"
#include "cli/start-jobs.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct {
  char *format, *sync, *base;
  gboolean reuse, pivot, finish, async, synchronous;
  int bandwidth, granularity, buf_size, timeout;
  DrListOptions list;
} Options;

/* The path with the VM's name in its place. (transfer full) */
static char *
path_of(const DrCli *cli, const char *what)
{
  g_autofree char *name = g_uri_escape_string(cli->words[0], NULL, FALSE);

  return g_strdup_printf("/v1/vms/%s/disks%s", name, what);
}

/* --- list, show --- */

static JsonArray *
fetch(DrCli *cli, GError **error)
{
  g_autofree char *path = path_of(cli, "");

  return dr_cli_call_list(cli, "GET", path, NULL, error);
}

static char *
size_text(JsonObject *object, const char *member)
{
  double bytes = dr_render_number(object, member, -1);

  return bytes < 0 ? g_strdup("-") : dr_render_bytes(bytes);
}

static char *
job_text(JsonObject *disk)
{
  JsonObject *job = dr_json_obj(disk, "job");
  double total = dr_render_number(job, "bytes_total", 0);

  if (!job)
    return g_strdup("-");
  return g_strdup_printf("%s %s %.0f%%", dr_json_str(job, "type", "?"), dr_json_str(job, "status", "?"),
                         total > 0 ? 100 * dr_render_number(job, "bytes_done", 0) / total : 0);
}

static char *
flags_text(JsonObject *disk)
{
  g_autoptr(GString) text = g_string_new(NULL);

  if (dr_json_bool(disk, "read_only", FALSE))
    g_string_append(text, "read-only ");
  if (dr_json_bool(disk, "removable", FALSE))
    g_string_append(text, "removable ");
  if (dr_json_bool(disk, "encrypted", FALSE))
    g_string_append(text, "encrypted ");
  g_strchomp(text->str);
  return g_strdup(*text->str ? text->str : "-");
}

static char *
virtual_text(JsonObject *disk)
{
  return size_text(disk, "bytes");
}

static char *
allocated_text(JsonObject *disk)
{
  return size_text(disk, "allocated_bytes");
}

/* How many images are below the one that the guest writes to. */
static char *
backing_text(JsonObject *disk)
{
  JsonArray *chain = dr_json_arr(disk, "chain");
  guint images = chain ? json_array_get_length(chain) : 0;

  return g_strdup_printf("%u", images ? images - 1 : 0);
}

static const DrColumn columns[] = {
  { "disk", .member = "name" },
  { "format" },
  { "size", .text = virtual_text },
  { "allocated", .text = allocated_text },
  { "backing", .text = backing_text },
  { "flags", .text = flags_text },
  { "job", .text = job_text },
  { "file" },
  { "device", .wide = TRUE },
  { "backend", .wide = TRUE },
  { "node", .wide = TRUE },
  { NULL },
};

static int
list(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autoptr(GError) error = NULL;
  g_autofree char *none = g_strdup_printf("%s has no disks", cli->words[0]);
  g_autoptr(JsonArray) disks = dr_list_check(cli, &o->list, columns, &error) ? fetch(cli, &error) : NULL;

  return disks ? dr_list_print(cli, &o->list, columns, disks, none) : dr_cli_fail(cli, error);
}

static JsonObject *
find_disk(JsonArray *disks, const char *name)
{
  static const char *const members[] = { "name", "backend", "device", "node", "root", "file", NULL };

  for (const char *const *member = members; *member; member++)
    for (guint i = 0; i < json_array_get_length(disks); i++) {
      JsonObject *disk = json_array_get_object_element(disks, i);

      if (g_strcmp0(dr_json_str(disk, *member, NULL), name) == 0)
        return disk;
    }
  return NULL;
}

static void
print_image(JsonObject *image, guint depth)
{
  g_autofree char *size = size_text(image, "bytes"), *allocated = size_text(image, "allocated_bytes");
  JsonArray *bitmaps = dr_json_arr(image, "bitmaps");

  printf("%*s%s%s\n", (int)depth * 2, "", depth ? "on " : "", dr_json_str(image, "file", "-"));
  printf("%*s  %s, %s, %s allocated, node %s\n", (int)depth * 2, "", dr_json_str(image, "format", "?"), size,
         allocated, dr_json_str(image, "node", "?"));
  for (guint i = 0; bitmaps && i < json_array_get_length(bitmaps); i++) {
    JsonObject *bitmap = json_array_get_object_element(bitmaps, i);
    g_autofree char *dirty = size_text(bitmap, "bytes");

    printf("%*s  bitmap %s: %s dirty%s%s\n", (int)depth * 2, "", dr_json_str(bitmap, "name", "?"), dirty,
           dr_json_bool(bitmap, "persistent", FALSE) ? ", persistent" : "",
           dr_json_bool(bitmap, "recording", FALSE) ? "" : ", disabled");
  }
}

static void
print_disk(JsonObject *disk)
{
  static const char *const members[] = { "device", "backend", NULL };
  JsonArray *chain = dr_json_arr(disk, "chain");
  g_autofree char *flags = flags_text(disk), *job = job_text(disk);

  printf("%-10s %s\n", "disk", dr_json_str(disk, "name", "?"));
  for (const char *const *member = members; *member; member++) {
    g_autofree char *text = dr_render_member(disk, *member);

    printf("%-10s %s\n", *member, text);
  }
  printf("%-10s %s\n%-10s %s\n", "flags", flags, "job", job);
  for (guint i = 0; chain && i < json_array_get_length(chain); i++)
    print_image(json_array_get_object_element(chain, i), i);
}

static int
show(DrCli *cli, const void *data)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonArray) disks = fetch(cli, &error);
  JsonObject *disk = disks ? find_disk(disks, cli->words[1]) : NULL;

  if (disks && !disk) {
    dr_error_set(&error, DR_ERROR_NOT_FOUND, "VM '%s' has no disk '%s'", cli->words[0], cli->words[1]);
    dr_error_remedy(&error, "drover disk list %s shows its disks", cli->words[0]);
  }
  if (!disk)
    return dr_cli_fail(cli, error);
  if (cli->json) {
    g_autoptr(JsonNode) node = dr_json_node(json_object_ref(disk));

    dr_cli_print_json(node);
  } else {
    print_disk(disk);
  }
  return DR_EXIT_DONE;
}

/* --- Jobs --- */

/* A path begins here, not where droverd is; what has a scheme is none. */
static char *
absolute(const char *target)
{
  gsize scheme = strspn(target, "abcdefghijklmnopqrstuvwxyz+");

  return g_str_has_prefix(target + scheme, "://") ? g_strdup(target) : g_canonicalize_filename(target, NULL);
}

static gboolean
check_copy(const DrCli *cli, const Options *o, GError **error)
{
  if (g_strv_length(cli->words) % 2 == 0)
    return dr_error_set(error, DR_ERROR_INVALID, "disk copy: disk '%s' has no target",
                        cli->words[g_strv_length(cli->words) - 1]);
  if (o->pivot && o->finish)
    return dr_error_set(error, DR_ERROR_INVALID, "disk copy: --pivot and --finish exclude each other");
  if (o->bandwidth < 0 || o->granularity < 0 || o->buf_size < 0 || o->timeout < 0)
    return dr_error_set(error, DR_ERROR_INVALID, "disk copy: a number below 0 makes no sense");
  return TRUE;
}

static JsonObject *
copy_request(const DrCli *cli, const Options *o)
{
  JsonObject *body = json_object_new();
  JsonArray *copies = json_array_new();

  for (guint i = 1; cli->words[i]; i += 2) {
    g_autofree char *target = absolute(cli->words[i + 1]);

    json_array_add_object_element(copies, dr_json("{'disk': <%s>, 'target': <%s>}", cli->words[i], target));
  }
  json_object_set_array_member(body, "copies", copies);
  dr_json_add_text(body, "format", o->format);
  dr_json_add_text(body, "sync", o->sync);
  dr_json_add_flag(body, "reuse_external", o->reuse);
  dr_json_add_flag(body, "synchronous_writes", o->synchronous);
  dr_json_add_number(body, "bandwidth", o->bandwidth);
  dr_json_add_number(body, "granularity", o->granularity);
  dr_json_add_number(body, "buf_size", o->buf_size);
  dr_json_add_number(body, "timeout", o->timeout);
  dr_json_add_text(body, "then", o->pivot ? "pivot" : o->finish ? "finish" : NULL);
  return body;
}

/* A copy that waits for its user's word is as far as it gets by itself. */
static int
copy(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autofree char *path = path_of(cli, "/copy");
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = check_copy(cli, o, &error) ? copy_request(cli, o) : NULL;
  int code;

  cli->until = o->pivot || o->finish ? NULL : "ready";
  code = body ? dr_cli_start_jobs(cli, path, body, TRUE, o->async, &error) : -1;
  return code >= 0 ? code : dr_cli_fail(cli, error);
}

static int
pull(DrCli *cli, const void *data)
{
  const Options *o = data;
  g_autofree char *path = path_of(cli, "/pull"),
                  *base = o->base && strchr(o->base, '/') ? absolute(o->base) : g_strdup(o->base);
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = dr_json("{'disk': <%s>}", cli->words[1]);
  int code;

  dr_json_add_text(body, "base", base);
  dr_json_add_number(body, "bandwidth", o->bandwidth);
  code = dr_cli_start_jobs(cli, path, body, TRUE, o->async, &error);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}

/* --- To a job under way --- */

static JsonObject *
ask(DrCli *cli, const char *what, JsonObject *body, GError **error)
{
  g_autofree char *path = path_of(cli, what);
  g_autoptr(JsonNode) answer = dr_cli_call(cli, "POST", path, NULL, body, error);

  if (!answer)
    return NULL;
  if (cli->json)
    dr_cli_print_json(answer);
  return JSON_NODE_HOLDS_OBJECT(answer) ? json_node_dup_object(answer) : json_object_new();
}

static int
pivot(DrCli *cli, const void *data)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) answer = ask(cli, "/pivot", NULL, &error);
  JsonArray *jobs;
  int code;

  if (!answer)
    return dr_cli_fail(cli, error);
  if (cli->json)
    return DR_EXIT_DONE;
  jobs = json_array_new();
  json_array_add_object_element(jobs, dr_json("{'id': <%s>, 'vm': <%s>, 'state': <'running'>}",
                                              dr_json_str(answer, "job", ""), cli->words[0]));
  code = dr_cli_follow(cli, jobs, &error);
  json_array_unref(jobs);
  return code >= 0 ? code : dr_cli_fail(cli, error);
}

static int
abort_job(DrCli *cli, const void *data)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) answer = ask(cli, "/abort", NULL, &error);

  if (!answer)
    return dr_cli_fail(cli, error);
  if (!cli->json)
    printf("%s: %s\n", cli->words[0],
           dr_json_bool(answer, "complete", FALSE)
               ? "the disk is kept as it is; the copy stays as it is at this moment"
               : "aborted; the disk is kept as it is");
  return DR_EXIT_DONE;
}

static int
set_bandwidth(DrCli *cli, const void *data)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = json_object_new(), answer = NULL;
  guint64 mib;

  if (!g_ascii_string_to_unsigned(cli->words[1], 10, 0, 1000000, &mib, NULL)) {
    dr_error_set(&error, DR_ERROR_INVALID, "disk bandwidth: '%s' is no number from 0 (no limit) to 1000000",
                 cli->words[1]);
    return dr_cli_fail(cli, error);
  }
  json_object_set_int_member(body, "mib", (gint64)mib);
  answer = ask(cli, "/bandwidth", body, &error);
  if (!answer)
    return dr_cli_fail(cli, error);
  if (!cli->json)
    printf("%s: the limit is set\n", cli->words[0]);
  return DR_EXIT_DONE;
}

int
dr_cmd_disk(DrCli *cli, int argc, char **argv)
{
  static const DrSubverb subverbs[] = {
    { "list", "NAME", 1, 1, DR_LIST_OPTIONS, list, .columns = columns },
    { "show", "NAME DISK", 2, 2, "", show },
    { "copy", "NAME DISK TARGET", 3, 33,
      " format sync reuse-external pivot finish async events synchronous-writes bandwidth granularity "
      "buf-size "
      "timeout ",
      copy },
    { "pivot", "NAME", 1, 1, "", pivot },
    { "abort", "NAME", 1, 1, "", abort_job },
    { "bandwidth", "NAME MIB/S", 2, 2, "", set_bandwidth },
    { "pull", "NAME DISK", 2, 2, " base bandwidth async events ", pull },
    { NULL },
  };
  Options o = { 0 };
  const GOptionEntry entries[] = {
    { "format", 0, 0, G_OPTION_ARG_STRING, &o.format, "copy: format of the copy (default: the disk's)",
      "FORMAT" },
    { "sync", 0, 0, G_OPTION_ARG_STRING, &o.sync, "copy: all of it, or the top image only (default: full)",
      "full|top" },
    { "reuse-external", 0, 0, G_OPTION_ARG_NONE, &o.reuse, "copy: the target is there and is written over",
      NULL },
    { "pivot", 0, 0, G_OPTION_ARG_NONE, &o.pivot, "copy: when it is complete, let the VM go on with the copy",
      NULL },
    { "finish", 0, 0, G_OPTION_ARG_NONE, &o.finish, "copy: when it is complete, end it and keep the disk",
      NULL },
    { "async", 0, 0, G_OPTION_ARG_NONE, &o.async, "copy, pull: start, and do not wait", NULL },
    DR_CLI_EVENTS(cli),
    { "synchronous-writes", 0, 0, G_OPTION_ARG_NONE, &o.synchronous,
      "copy: each write of the guest's is done when both have it", NULL },
    { "bandwidth", 0, 0, G_OPTION_ARG_INT, &o.bandwidth, "copy, pull: at most so much", "MIB/S" },
    { "granularity", 0, 0, G_OPTION_ARG_INT, &o.granularity, "copy: size of a piece, a power of 2", "BYTES" },
    { "buf-size", 0, 0, G_OPTION_ARG_INT, &o.buf_size, "copy: how much may be under way", "BYTES" },
    { "timeout", 0, 0, G_OPTION_ARG_INT, &o.timeout, "copy: abort it if it is not complete by then", "S" },
    { "base", 0, 0, G_OPTION_ARG_STRING, &o.base, "pull: the image that stays below (default: none)",
      "FILE|NODE" },
    DR_LIST_ENTRIES(o.list, "list: "),
    { NULL },
  };
  int code = dr_cli_subverb(cli, argc, argv, entries, subverbs, &o);

  g_free(o.format);
  g_free(o.sync);
  g_free(o.base);
  g_free(o.list.output);
  return code;
}
