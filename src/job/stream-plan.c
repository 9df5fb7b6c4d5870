/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images that stand on what is elsewhere, made before the VM is started. */
#include "job/stream-plan.h"
#include "base/error.h"
#include "job/argv-disk.h"
#include "job/disk-image.h"
#include "job/stream-source.h"
#include "qemu/tool.h"
#include "vm/user.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#define TOOL_MS 15000
#define INFO_MAX (4 * 1024 * 1024)
#define MAX_STREAMS 16

typedef struct {
  char *disk, *path;
  DrStreamSource *source;
  char *backing;            /* what the header of its image is to say */
  gboolean is_new, is_made; /* to be made; its file is there, and ours */
  gboolean says_otherwise;  /* its header names the same source in other words */
} Item;

struct DrStreamPlan {
  JsonArray *streams;
  gint64 bandwidth;
  GPtrArray *items;
  gboolean waits; /* QEMU was to be started without the guest running anyway */
};

static void
item_free(gpointer data)
{
  Item *item = data;

  g_free(item->disk);
  g_free(item->path);
  g_free(item->backing);
  g_clear_pointer(&item->source, dr_stream_source_free);
  g_free(item);
}

/* --- The request --- */

gboolean
dr_stream_check(JsonArray *streams, GError **error)
{
  guint n = streams ? json_array_get_length(streams) : 0;

  if (n == 0 || n > MAX_STREAMS)
    return dr_error_set(error, DR_ERROR_INVALID, "stream: 1 to %d disks, each with its source", MAX_STREAMS);
  for (guint i = 0; i < n; i++) {
    JsonNode *node = json_array_get_element(streams, i);
    JsonObject *one = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;

    if (!one || !*dr_json_str(one, "disk", "") || !*dr_json_str(one, "source", ""))
      return dr_error_set(error, DR_ERROR_INVALID,
                          "each stream is {\"disk\", \"source\"}, with a \"format\" if need be");
  }
  return TRUE;
}

DrStreamPlan *
dr_stream_plan_new(JsonArray *streams, gint64 bandwidth)
{
  DrStreamPlan *plan = g_new0(DrStreamPlan, 1);

  plan->streams = json_array_ref(streams);
  plan->bandwidth = bandwidth;
  plan->items = g_ptr_array_new_with_free_func(item_free);
  return plan;
}

void
dr_stream_plan_free(DrStreamPlan *plan)
{
  if (!plan)
    return;
  json_array_unref(plan->streams);
  g_ptr_array_unref(plan->items);
  g_free(plan);
}

/* --- What is there --- */

static gboolean
refuse(const Item *item, const char *why, const char *remedy, GError **error)
{
  dr_error_set(error, DR_ERROR_REFUSED, "disk '%s' cannot be streamed: %s", item->disk, why);
  return dr_error_remedy(error, "%s", remedy);
}

static gboolean
check_disk(const Item *item, const DrArgvDisk *disk, GError **error)
{
  if (!disk->path)
    return refuse(item, "its image is not a file of this host",
                  "name a qcow2 file in the QEMU command, which need not exist", error);
  if (disk->format && !g_str_equal(disk->format, "qcow2"))
    return refuse(item, "only a qcow2 image can stand on another one and take its data over",
                  "give the disk format=qcow2 (drover disk copy makes a raw one of it later)", error);
  if (disk->read_only || disk->temporary)
    return refuse(item, "nothing can be written to its image",
                  "leave out readonly=on, snapshot=on, media=cdrom", error);
  if (disk->has_backing)
    return refuse(item, "the command line says what its image stands on", "leave out backing", error);
  return TRUE;
}

static gboolean
check_others(const DrStreamPlan *plan, const Item *item, GError **error)
{
  for (guint i = 0; i < plan->items->len; i++)
    if (g_str_equal(((Item *)plan->items->pdata[i])->path, item->path))
      return dr_error_set(error, DR_ERROR_INVALID, "disk '%s' is named twice", item->disk);
  return !g_str_equal(item->path, item->source->text) ||
         dr_error_set(error, DR_ERROR_INVALID, "disk '%s' cannot be streamed from its own image", item->disk);
}

static gboolean
exists(const Item *item, const char *why, GError **error)
{
  dr_error_set(error, DR_ERROR_EXISTS, "'%s' is there already, and %s", item->path, why);
  return dr_error_remedy(error, "start the VM without --stream for it, or name a file that does not exist");
}

static JsonObject *
ask(const char *path, GError **error)
{
  const char *argv[] = { "qemu-img", "info", "--output=json", "-f", "qcow2", path, NULL };
  g_autofree char *said = dr_tool_run(argv, INFO_MAX, TOOL_MS, error);

  return said ? dr_json_parse_object(said, -1, INFO_MAX, error) : NULL;
}

/* Its own data must stand on the same image as before: anything else would give the guest a mixture of two disks. */
static gboolean
goes_on(Item *item, GError **error)
{
  g_autoptr(GError) local = NULL;
  g_autoptr(JsonObject) info = ask(item->path, &local);
  const char *backing = info ? dr_json_str(info, "backing-filename", NULL) : NULL;
  g_autofree char *dir = g_path_get_dirname(item->path);
  g_autofree char *why = NULL;

  if (!info)
    why = g_strdup_printf("is no image that can be gone on with (%s)", local->message);
  else if (!backing)
    why = g_strdup("stands on no other: it has been pulled to its end, or is another disk's");
  else if (!dr_stream_source_is(item->source, backing, dir) ||
           !g_str_equal(dr_json_str(info, "backing-filename-format", ""), item->source->format))
    why = g_strdup_printf("stands on '%s' (%s)", backing,
                          dr_json_str(info, "backing-filename-format", "no format"));
  else if (dr_json_int(info, "virtual-size", 0) != item->source->bytes)
    why = g_strdup_printf("has %" G_GINT64_FORMAT " bytes, while '%s' has %" G_GINT64_FORMAT " by now",
                          dr_json_int(info, "virtual-size", 0), item->source->text, item->source->bytes);
  item->says_otherwise = backing && !g_str_equal(backing, item->backing);
  return !why || exists(item, why, error);
}

/* An empty file is what is left where making it was interrupted. */
static gboolean
look_at_image(Item *item, GError **error)
{
  struct stat st;

  if (stat(item->path, &st) < 0) {
    item->is_new = errno == ENOENT;
    return item->is_new || dr_error_set_errno(error, errno, "cannot look at '%s'", item->path);
  }
  if (!S_ISREG(st.st_mode))
    return exists(item, "is no file", error);
  item->is_new = st.st_size == 0;
  return item->is_new || goes_on(item, error);
}

static gboolean
look(DrStreamPlan *plan, JsonObject *stream, DrArgv *argv, const char *cwd, GError **error)
{
  Item *item = g_new0(Item, 1);
  g_autoptr(DrArgvDisk) disk = dr_argv_disk_find(argv, dr_json_str(stream, "disk", ""), cwd, error);
  gboolean stops;

  item->disk = g_strdup(dr_json_str(stream, "disk", ""));
  if (disk && check_disk(item, disk, error))
    item->source =
        dr_stream_source_look(dr_json_str(stream, "source", ""), dr_json_str(stream, "format", NULL),
                              dr_json_bool(stream, "sslverify", TRUE), error);
  if (!item->source) {
    item_free(item);
    return FALSE;
  }
  item->path = g_strdup(disk->path);
  if (!check_others(plan, item, error)) {
    item_free(item);
    return FALSE;
  }
  g_ptr_array_add(plan->items, item);
  stops = dr_argv_disk_stop_on_error(argv, disk);
  if (!stops && item->source->kind == DR_TARGET_HTTP)
    return refuse(item, "its device tells the guest of each error, and HTTP has some",
                  "use virtio-blk, ide-hd or scsi-hd, or serve the image by NBD", error);
  item->backing = dr_stream_source_name(item->source, error);
  return item->backing && look_at_image(item, error);
}

/* --- Making --- */

static gboolean
run_tool(const Item *item, const char *const *argv, GError **error)
{
  g_autofree char *said = dr_tool_run(argv, INFO_MAX, TOOL_MS, error);

  if (!said)
    g_prefix_error(error, "cannot make '%s': ", item->path);
  return said != NULL;
}

static gboolean
make(Item *item, const DrArgv *argv, GError **error)
{
  g_autofree char *bytes = g_strdup_printf("%" G_GINT64_FORMAT, item->source->bytes);
  const char *create[] = { "qemu-img",           "create", "-q",          "-u",       "-f",  "qcow2", "-F",
                           item->source->format, "-b",     item->backing, item->path, bytes, NULL };
  const char *rebase[] = { "qemu-img",           "rebase", "-q",          "-u",       "-f", "qcow2", "-F",
                           item->source->format, "-b",     item->backing, item->path, NULL };

  if (!item->is_new)
    return !item->says_otherwise || run_tool(item, rebase, error);
  if (!g_file_test(item->path, G_FILE_TEST_EXISTS)) {
    if (!dr_image_reserve(item->path, getpid(), error))
      return FALSE;
    item->is_made = TRUE;
  }
  return run_tool(item, create, error) && dr_qemu_user_give(argv, item->path, error);
}

void
dr_stream_plan_undo(DrStreamPlan *plan)
{
  for (guint i = 0; i < plan->items->len; i++) {
    Item *item = plan->items->pdata[i];

    if (item->is_made && unlink(item->path) < 0)
      g_warning("cannot remove '%s': %s", item->path, g_strerror(errno));
    item->is_made = FALSE;
  }
}

/* The guest begins when its disks are pulled: then nothing that it reads is fetched twice. */
static gboolean
hold_guest(DrStreamPlan *plan, DrArgv *argv, GError **error)
{
  if (dr_argv_has(argv, "incoming"))
    return dr_error_set(error, DR_ERROR_REFUSED,
                        "a VM that waits for a migration (-incoming) cannot be streamed");
  plan->waits = dr_argv_has(argv, "S");
  if (!plan->waits)
    dr_argv_append(argv, "S", NULL);
  return TRUE;
}

gboolean
dr_stream_plan_make(DrStreamPlan *plan, DrArgv *argv, const char *cwd, GError **error)
{
  for (guint i = 0; i < json_array_get_length(plan->streams); i++)
    if (!look(plan, json_array_get_object_element(plan->streams, i), argv, cwd, error))
      return FALSE;
  if (!hold_guest(plan, argv, error))
    return FALSE;
  for (guint i = 0; i < plan->items->len; i++)
    if (!make(plan->items->pdata[i], argv, error)) {
      dr_stream_plan_undo(plan);
      return FALSE;
    }
  return TRUE;
}

JsonObject *
dr_stream_plan_request(const DrStreamPlan *plan)
{
  JsonObject *request = dr_json("{'bandwidth': <%x>, 'run': <%b>}", plan->bandwidth, !plan->waits);
  JsonArray *disks = json_array_new();

  for (guint i = 0; i < plan->items->len; i++) {
    const Item *item = plan->items->pdata[i];

    json_array_add_object_element(disks, dr_json("{'disk': <%s>, 'file': <%s>, 'source': <%s>}", item->disk,
                                                 item->path, item->source->text));
  }
  json_object_set_array_member(request, "disks", disks);
  return request;
}
