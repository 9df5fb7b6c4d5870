/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Dirty bitmaps: found, made, merged, removed. */
#include "job/bitmap.h"
#include "base/address.h"
#include "base/error.h"

#include <string.h>

#define GRANULARITY_MIN 512        /* QEMU: BDRV_SECTOR_SIZE */
#define GRANULARITY_MAX (1u << 31) /* QEMU: block/qcow2-bitmap.c, BME_MAX_GRANULARITY_BITS */

/* --- Listing --- */

static void
add_those_of(JsonArray *all, JsonObject *shown, JsonObject *image, gboolean top)
{
  JsonArray *bitmaps = dr_json_arr(image, "bitmaps");

  for (guint i = 0; bitmaps && i < json_array_get_length(bitmaps); i++) {
    JsonObject *bitmap = dr_json_dup_object(json_array_get_object_element(bitmaps, i));

    json_object_set_string_member(bitmap, "disk", dr_json_str(shown, "name", ""));
    json_object_set_string_member(bitmap, "file", dr_json_str(image, "file", ""));
    json_object_set_string_member(bitmap, "node", dr_json_str(image, "node", ""));
    json_object_set_boolean_member(bitmap, "top", top);
    json_array_add_object_element(all, bitmap);
  }
}

static void
add_disk(JsonArray *all, const DrDisks *disks, const DrDisk *disk)
{
  g_autoptr(JsonObject) shown = dr_disk_json(disks, disk);
  JsonArray *chain = dr_json_arr(shown, "chain");

  for (guint i = 0; chain && i < json_array_get_length(chain); i++)
    add_those_of(all, shown, json_array_get_object_element(chain, i), i == 0);
}

JsonArray *
dr_bitmaps_list(const DrDisks *disks, const char *name, GError **error)
{
  const DrDisk *one = name ? dr_disks_find(disks, name, error) : NULL;
  JsonArray *all;

  if (name && !one)
    return NULL;
  all = json_array_new();
  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);

    if (disk->top && (!one || disk == one))
      add_disk(all, disks, disk);
  }
  return all;
}

/* --- Finding --- */

static gboolean
no_such_bitmap(const DrDisk *disk, const char *name, JsonArray *all, GError **error)
{
  g_autoptr(GString) names = g_string_new(NULL);
  const char *below = NULL;

  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *bitmap = json_array_get_object_element(all, i);

    if (dr_json_bool(bitmap, "top", FALSE))
      g_string_append_printf(names, "%s%s", names->len ? ", " : "", dr_json_str(bitmap, "name", ""));
    else if (g_str_equal(dr_json_str(bitmap, "name", ""), name))
      below = dr_json_str(bitmap, "file", "");
  }
  if (below) {
    dr_error_set(error, DR_ERROR_NOT_FOUND,
                 "bitmap '%s' is in '%s' below disk '%s', and not in the image that the guest writes to",
                 name, below, disk->name);
    return dr_error_remedy(error, "what has been written since is not in it: begin a new one");
  }
  dr_error_set(error, DR_ERROR_NOT_FOUND, "disk '%s' has no bitmap '%s'", disk->name, name);
  return names->len ? dr_error_remedy(error, "its bitmaps are: %s", names->str)
                    : dr_error_remedy(error, "it has none; a full backup with --bitmap begins one");
}

JsonObject *
dr_bitmap_find(const DrDisks *disks, const DrDisk *disk, const char *name, GError **error)
{
  g_autoptr(JsonArray) all = json_array_new();

  add_disk(all, disks, disk);
  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *bitmap = json_array_get_object_element(all, i);

    if (dr_json_bool(bitmap, "top", FALSE) && g_str_equal(dr_json_str(bitmap, "name", ""), name))
      return json_object_ref(bitmap);
  }
  no_such_bitmap(disk, name, all, error);
  return NULL;
}

static gboolean
is_usable(JsonObject *bitmap, GError **error)
{
  const char *name = dr_json_str(bitmap, "name", ""), *disk = dr_json_str(bitmap, "disk", "");

  if (dr_json_bool(bitmap, "inconsistent", FALSE)) {
    dr_error_set(error, DR_ERROR_REFUSED,
                 "bitmap '%s' of disk '%s' is inconsistent: a QEMU that recorded in it ended without writing "
                 "it, and nobody knows what it lacks",
                 name, disk);
    return dr_error_remedy(error, "remove it (drover bitmap remove), and begin a new one with a full backup");
  }
  if (dr_json_bool(bitmap, "busy", FALSE)) {
    dr_error_set(error, DR_ERROR_REFUSED, "bitmap '%s' of disk '%s' is in use", name, disk);
    return dr_error_remedy(error, "wait for the end of the backup, or of what else has it in use");
  }
  return TRUE;
}

JsonObject *
dr_bitmap_find_usable(const DrDisks *disks, const DrDisk *disk, const char *name, GError **error)
{
  g_autoptr(JsonObject) bitmap = dr_bitmap_find(disks, disk, name, error);

  return bitmap && is_usable(bitmap, error) ? g_steal_pointer(&bitmap) : NULL;
}

/* --- New ones --- */

static gboolean
check_granularity(gint64 granularity, GError **error)
{
  return granularity == 0 ||
         (granularity >= GRANULARITY_MIN && granularity <= GRANULARITY_MAX &&
          (granularity & (granularity - 1)) == 0) ||
         dr_error_set(error, DR_ERROR_INVALID,
                      "the granularity %" G_GINT64_FORMAT " is no power of 2 from %d to %u", granularity,
                      GRANULARITY_MIN, GRANULARITY_MAX);
}

gboolean
dr_bitmap_check_new(const DrDisks *disks, const DrDisk *disk, const char *name, gint64 granularity,
                    gboolean persistent, GError **error)
{
  g_autoptr(JsonObject) there = NULL;

  if (!dr_name_check(name, "a bitmap", error) || !check_granularity(granularity, error))
    return FALSE;
  if (disk->read_only)
    return dr_error_set(error, DR_ERROR_REFUSED, "disk '%s' is read-only: nothing in it gets dirty",
                        disk->name);
  there = dr_bitmap_find(disks, disk, name, NULL);
  if (there) {
    dr_error_set(error, DR_ERROR_EXISTS, "disk '%s' has a bitmap '%s' already", disk->name, name);
    return dr_error_remedy(error, "give another name, or remove it first: drover bitmap remove");
  }
  if (!persistent || g_str_equal(dr_node_driver(disk->top), "qcow2"))
    return TRUE;
  dr_error_set(error, DR_ERROR_UNSUPPORTED, "the image of disk '%s' is %s, which can keep no bitmaps",
               disk->name, dr_node_driver(disk->top));
  return dr_error_remedy(error,
                         "convert it (drover disk copy NAME %s TARGET --format qcow2 --pivot), leave it out, "
                         "or take a bitmap that is lost when this QEMU ends, by an upgrade too: drover "
                         "bitmap add --transient",
                         disk->name);
}

static gboolean
is_too_old(const GError *error)
{
  return error && strstr(error->message, "qcow2 v2") != NULL;
}

gboolean
dr_bitmap_add(DrQmp *qmp, const DrDisks *disks, const DrBitmapAdd *add, GError **error)
{
  const DrDisk *disk = dr_disks_find(disks, add->disk, error);
  g_autoptr(GError) local = NULL;
  JsonObject *arguments;

  if (!disk || !dr_bitmap_check_new(disks, disk, add->name, add->granularity, !add->transient, error))
    return FALSE;
  arguments = dr_json("{'node': <%s>, 'name': <%s>, 'persistent': <%b>, 'disabled': <%b>}",
                      dr_node_name(disk->top), add->name, !add->transient, add->disabled);
  if (add->granularity)
    json_object_set_int_member(arguments, "granularity", add->granularity);
  if (dr_qmp_do(qmp, "block-dirty-bitmap-add", arguments, &local))
    return TRUE;
  if (is_too_old(local))
    dr_error_remedy(&local,
                    "copy the disk into an image of today (drover disk copy --format qcow2 --pivot), or "
                    "amend it while the VM is down: qemu-img amend -o compat=1.1 FILE");
  g_propagate_prefixed_error(error, g_steal_pointer(&local),
                             "cannot add bitmap '%s' to disk '%s': ", add->name, disk->name);
  return FALSE;
}

/* --- Those that are there --- */

/* `command` with {"node","name"}. */
static gboolean
change(DrQmp *qmp, const DrDisk *disk, const char *name, const char *command, GError **error)
{
  if (dr_qmp_do(qmp, command, dr_json("{'node': <%s>, 'name': <%s>}", dr_node_name(disk->top), name), error))
    return TRUE;
  g_prefix_error(error, "bitmap '%s' of disk '%s': ", name, disk->name);
  return FALSE;
}

/* An inconsistent one can be removed, and nothing else. */
gboolean
dr_bitmap_remove(DrQmp *qmp, const DrDisks *disks, const char *name, const char *bitmap, GError **error)
{
  const DrDisk *disk = dr_disks_find(disks, name, error);
  g_autoptr(JsonObject) there = disk ? dr_bitmap_find(disks, disk, bitmap, error) : NULL;

  if (!there || (!dr_json_bool(there, "inconsistent", FALSE) && !is_usable(there, error)))
    return FALSE;
  return change(qmp, disk, bitmap, "block-dirty-bitmap-remove", error);
}

gboolean
dr_bitmap_enable(DrQmp *qmp, const DrDisks *disks, const char *name, const char *bitmap, gboolean on,
                 GError **error)
{
  const DrDisk *disk = dr_disks_find(disks, name, error);
  g_autoptr(JsonObject) there = disk ? dr_bitmap_find_usable(disks, disk, bitmap, error) : NULL;

  return there &&
         change(qmp, disk, bitmap, on ? "block-dirty-bitmap-enable" : "block-dirty-bitmap-disable", error);
}

gboolean
dr_bitmap_merge(DrQmp *qmp, const DrDisks *disks, const char *name, const char *into, const char *const *from,
                GError **error)
{
  const DrDisk *disk = dr_disks_find(disks, name, error);
  g_autoptr(JsonObject) target = disk ? dr_bitmap_find_usable(disks, disk, into, error) : NULL;
  JsonObject *arguments;

  for (const char *const *one = from; target && *one; one++) {
    g_autoptr(JsonObject) source = dr_bitmap_find_usable(disks, disk, *one, error);

    if (!source)
      return FALSE;
    if (g_str_equal(*one, into))
      return dr_error_set(error, DR_ERROR_INVALID, "bitmap '%s' cannot be merged into itself", into);
  }
  if (!target)
    return FALSE;
  arguments = dr_json("{'node': <%s>, 'target': <%s>}", dr_node_name(disk->top), into);
  json_object_set_array_member(arguments, "bitmaps", dr_json_array_from_strv(from));
  if (dr_qmp_do(qmp, "block-dirty-bitmap-merge", arguments, error))
    return TRUE;
  g_prefix_error(error, "cannot merge into bitmap '%s' of disk '%s': ", into, disk->name);
  return FALSE;
}
