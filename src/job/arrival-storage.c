/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images for a guest that comes. */
#include "job/arrival-storage.h"
#include "base/error.h"
#include "job/disk-fetch.h"
#include "job/disk-image.h"
#include "job/disk.h"
#include "job/image-link.h"
#include "job/move-spec.h"
#include "job/room.h"
#include "qemu/tool.h"

#include <string.h>
#include <sys/stat.h>

#define CREATE_MS 60000
#define OPEN_MS 10000
#define SAYS_MAX 65536
#define TRIES 5

static gboolean
has_role(JsonObject *disk, const char *role)
{
  return g_str_equal(dr_json_str(disk, "role", ""), role);
}

/* --- Looking --- */

JsonArray *
dr_arrival_storage_report(JsonArray *disks)
{
  JsonArray *report = json_array_new();

  for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
    JsonObject *disk = json_array_get_object_element(disks, i);
    const char *path = dr_json_str(disk, "path", "");
    struct stat st;

    if (has_role(disk, "copy"))
      json_array_add_object_element(report, dr_json("{'path': <%s>, 'shared': <%b>, 'exists': <%b>}", path,
                                                    dr_move_tokens_is_same(disk), lstat(path, &st) == 0));
  }
  return report;
}

void
dr_arrival_storage_check(JsonArray *disks, DrFindings *findings)
{
  g_autoptr(DrRoom) room = dr_room_new();

  for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
    JsonObject *disk = json_array_get_object_element(disks, i);
    const char *path = dr_json_str(disk, "path", "");
    g_autofree char *dir = g_path_get_dirname(path);
    gint64 wanted = dr_json_int(disk, "allocated", 0);
    struct stat st;
    gint64 there;

    if (!has_role(disk, "copy") || dr_move_tokens_is_same(disk))
      continue;
    if (lstat(path, &st) == 0 && (!S_ISREG(st.st_mode) || !dr_json_str(disk, "token", NULL))) {
      dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-unproven",
                      "remove it there, or give the image another name: --map disk=PATH:PATH",
                      "whether '%s' on the other host is the guest's own image cannot be told, and it is not "
                      "written over",
                      path);
      continue;
    }
    there = g_path_is_absolute(path) ? dr_room_take(room, dir, wanted) : -1;
    if (there < 0)
      dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-directory",
                      "make it there, or give the image another name there: --map disk=PATH:PATH",
                      "the other host has no directory '%s' for the image '%s'", dir, path);
    else if (there < wanted)
      dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-room", "make room there",
                      "the image '%s' takes %" G_GINT64_FORMAT
                      " MiB, and the other host has %" G_GINT64_FORMAT " MiB free for it",
                      path, wanted >> 20, there >> 20);
  }
}

static char *
overlay_of(JsonObject *disk)
{
  return dr_disk_fetch_overlay(dr_json_str(disk, "path", ""), dr_json_str(disk, "format", ""));
}

static gboolean
is_overlay(JsonObject *disk)
{
  g_autofree char *overlay = overlay_of(disk);

  return g_str_equal(overlay, dr_json_str(disk, "path", ""));
}

GPtrArray *
dr_arrival_storage_files(JsonArray *disks)
{
  GPtrArray *files = g_ptr_array_new_with_free_func(g_free);

  for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
    JsonObject *disk = json_array_get_object_element(disks, i);

    if (has_role(disk, "copy"))
      g_ptr_array_add(files, g_strdup(dr_json_str(disk, "path", "")));
    if (has_role(disk, "copy") && dr_json_str(disk, "later", NULL) && !is_overlay(disk))
      g_ptr_array_add(files, overlay_of(disk));
  }
  return files;
}

/* --- Making --- */

static void
add(GPtrArray *argv, const char *option, char *value)
{
  g_ptr_array_add(argv, g_strdup(option));
  if (value)
    g_ptr_array_add(argv, value);
}

static gboolean
add_secret(GPtrArray *argv, JsonObject *disk, GHashTable *objects, GError **error)
{
  const char *id = dr_json_str(disk, "secret", NULL), *word = id ? g_hash_table_lookup(objects, id) : NULL;
  gboolean luks = g_str_equal(dr_json_str(disk, "format", ""), "luks");

  if (!id)
    return TRUE;
  if (!word)
    return dr_error_set(error, DR_ERROR_UNSUPPORTED,
                        "the secret '%s' of image '%s' is not on the VM's command line", id,
                        dr_json_str(disk, "path", "?"));
  add(argv, "--object", g_strdup(word));
  if (!luks)
    add(argv, "-o", g_strdup("encrypt.format=luks"));
  add(argv, "-o", g_strdup_printf("%s=%s", luks ? "key-secret" : "encrypt.key-secret", id));
  return TRUE;
}

/* `path`, `format`: the image's, or those of its overlay. */
static gboolean
make_one(JsonObject *disk, const char *path, const char *format, GHashTable *objects,
         const char *const *launcher, const char *link, GError **error)
{
  g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
  const char *backing = dr_json_str(disk, "backing", NULL);
  g_autofree char *said = NULL;

  for (; *launcher; launcher++)
    add(argv, *launcher, NULL);
  add(argv, "qemu-img", g_strdup("create"));
  add(argv, "-q", NULL);
  if (!add_secret(argv, disk, objects, error))
    return FALSE;
  add(argv, "-f", g_strdup(format));
  if (link) { /* unsafe: it is not opened, and its size is given */
    add(argv, "-u", NULL);
    add(argv, "-b", dr_image_link_backing(link, dr_json_str(disk, "later", "")));
    add(argv, "-F", g_strdup("raw"));
  } else if (backing) {
    add(argv, "-b", g_strdup(backing));
    add(argv, "-F", g_strdup(dr_json_str(disk, "backing_format", "raw")));
  }
  add(argv, "--", g_strdup(path));
  g_ptr_array_add(argv, g_strdup_printf("%" G_GINT64_FORMAT, dr_json_int(disk, "bytes", 0)));
  g_ptr_array_add(argv, NULL);
  /* The key's iterations are measured, which a busy host spoils ("Unable to get accurate CPU usage", 7.2). */
  for (guint i = 1; !said && dr_json_str(disk, "secret", NULL) && i < TRIES; i++)
    said = dr_tool_run((const char *const *)argv->pdata, SAYS_MAX, CREATE_MS, NULL);
  if (!said)
    said = dr_tool_run((const char *const *)argv->pdata, SAYS_MAX, CREATE_MS, error);
  if (!said)
    g_prefix_error(error, "cannot make the image '%s': ", path);
  return said != NULL;
}

static gboolean
make(JsonObject *disk, GHashTable *objects, const char *const *launcher, const char *link, GError **error)
{
  const char *path = dr_json_str(disk, "path", ""), *format = dr_json_str(disk, "format", "raw");
  g_autofree char *overlay = overlay_of(disk);
  gboolean later = dr_json_str(disk, "later", NULL) != NULL;

  if (dr_move_tokens_is_same(disk))
    return dr_error_set(error, DR_ERROR_REFUSED, "'%s' is the guest's own image", path);
  if ((!later || !is_overlay(disk)) && !make_one(disk, path, format, objects, launcher, NULL, error))
    return FALSE;
  return !later || make_one(disk, overlay, "qcow2", objects, launcher, link, error);
}

gboolean
dr_arrival_storage_make(JsonArray *disks, GHashTable *objects, const char *const *launcher, const char *link,
                        GError **error)
{
  for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
    JsonObject *disk = json_array_get_object_element(disks, i);

    if (has_role(disk, "copy") && !make(disk, objects, launcher, link, error))
      return FALSE;
  }
  return TRUE;
}

static gboolean
stands_on_ours(const DrDisks *disks, const char *path, GError **error)
{
  const DrDisk *disk = dr_disks_find(disks, path, error);
  const DrNode *backing = disk ? dr_node_backing(disk->top) : NULL;

  if (backing && g_str_has_prefix(dr_node_file(backing), "nbd"))
    return TRUE;
  return disk && dr_error_set(error, DR_ERROR_UNSUPPORTED,
                              "the command line of the guest keeps '%s' from standing on another image "
                              "(backing=)",
                              path);
}

gboolean
dr_arrival_storage_verify(DrQmp *dest, JsonArray *later, GError **error)
{
  g_autoptr(DrDisks) disks = dr_disks_read(dest, NULL, error);

  for (guint i = 0; disks && i < json_array_get_length(later); i++)
    if (!stands_on_ours(disks, dr_json_str(json_array_get_object_element(later, i), "overlay", "?"), error))
      return FALSE;
  return disks != NULL;
}

/* --- Exporting --- */

static void
names_of(JsonObject *one, char **ret_node, char **ret_file_node)
{
  *ret_node = g_strdup_printf("drover-in-%s", dr_json_str(one, "export", ""));
  *ret_file_node = g_strconcat(*ret_node, "-file", NULL);
}

/* Its chain as its header has it: a piece of a cluster that is written needs the rest from below. */
static gboolean
export_one(DrQmp *dest, JsonObject *one, GError **error)
{
  g_autoptr(JsonObject) protocol =
      dr_json("{'driver': <'file'>, 'filename': <%s>}", dr_json_str(one, "path", ""));
  g_autofree char *node = NULL, *file_node = NULL;
  DrImage image = { .protocol = protocol,
                    .format = dr_json_str(one, "format", "raw"),
                    .secret = dr_json_str(one, "secret", NULL),
                    .own_chain = TRUE };

  names_of(one, &node, &file_node);
  image.node = node;
  image.file_node = file_node;
  return dr_image_open(dest, &image, dr_deadline_in(OPEN_MS), error) &&
         dr_qmp_do(
             dest, "block-export-add",
             dr_json("{'type': <'nbd'>, 'id': <%s>, 'node-name': <%s>, 'name': <%s>, 'writable': <true>}",
                     node, node, dr_json_str(one, "export", "")),
             error);
}

gboolean
dr_arrival_storage_export(DrQmp *dest, JsonArray *exports, const char *socket, GError **error)
{
  if (!dr_qmp_do(dest, "nbd-server-start",
                 dr_json("{'addr': <{'type': <'unix'>, 'data': <{'path': <%s>}>}>}", socket), error))
    return FALSE;
  for (guint i = 0; exports && i < json_array_get_length(exports); i++) {
    JsonObject *one = json_array_get_object_element(exports, i);

    if (!export_one(dest, one, error)) {
      g_prefix_error(error, "cannot export the image '%s': ", dr_json_str(one, "path", "?"));
      return FALSE;
    }
  }
  return TRUE;
}

gboolean
dr_arrival_storage_end(DrQmp *dest, JsonArray *exports, GError **error)
{
  if (!dr_qmp_do(dest, "nbd-server-stop", NULL, error))
    return FALSE;
  for (guint i = 0; exports && i < json_array_get_length(exports); i++) {
    g_autofree char *node = NULL, *file_node = NULL;

    names_of(json_array_get_object_element(exports, i), &node, &file_node);
    if (!dr_qmp_do(dest, "blockdev-del", dr_json("{'node-name': <%s>}", node), error) ||
        !dr_qmp_do(dest, "blockdev-del", dr_json("{'node-name': <%s>}", file_node), error))
      return FALSE;
  }
  return TRUE;
}
