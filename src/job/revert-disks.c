/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The images of a revert: new overlays above the snapshot's, and what becomes of the old ones. */
#include "base/error.h"
#include "job/disk-image.h"
#include "job/disk-target.h"
#include "job/block-job.h"
#include "job/revert-internal.h"
#include "job/snapshot.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CREATE_MS 60000
#define SUFFIX ".qcow2"

/* Without the number that an earlier revert gave it. */
static void
cut_number(char *stem)
{
  char *dash = strrchr(stem, '-');

  if (dash && dash != stem && dash[1] && !dash[1 + strspn(dash + 1, "0123456789")])
    *dash = '\0';
}

char *
dr_revert_overlay_name(const char *overlay)
{
  g_autofree char *dir = g_path_get_dirname(overlay), *stem = g_path_get_basename(overlay);

  if (g_str_has_suffix(stem, SUFFIX))
    stem[strlen(stem) - strlen(SUFFIX)] = '\0';
  cut_number(stem);
  for (guint n = 2;; n++) {
    g_autofree char *file = g_strdup_printf("%s-%u" SUFFIX, stem, n);
    g_autofree char *path = g_build_filename(dir, file, NULL);
    struct stat st;

    if (lstat(path, &st) < 0)
      return g_steal_pointer(&path);
  }
}

/* --- The journal --- */

static JsonArray *
strings(const GPtrArray *array)
{
  JsonArray *out = json_array_new();

  for (guint i = 0; i < array->len; i++)
    json_array_add_string_element(out, array->pdata[i]);
  return out;
}

JsonObject *
dr_revert_note(const Revert *r)
{
  JsonObject *note = dr_json("{'snapshot': <%s>, 'dead': <%b>}", r->name, r->dead);
  JsonArray *items = json_array_new();

  for (guint i = 0; i < r->items->len; i++) {
    const Item *item = r->items->pdata[i];

    json_array_add_object_element(
        items, dr_json("{'disk': <%s>, 'base': <%s>, 'overlay': <%s>, 'node': <%s>, 'file_node': <%s>}",
                       item->disk, item->base, item->overlay, item->node, item->file_node));
  }
  json_object_set_array_member(note, "items", items);
  json_object_set_array_member(note, "left", strings(r->left));
  json_object_set_array_member(note, "surplus", strings(r->surplus));
  return note;
}

static void
load_strings(GPtrArray *into, JsonArray *array)
{
  for (guint i = 0; array && i < json_array_get_length(array); i++)
    g_ptr_array_add(into, g_strdup(json_array_get_string_element(array, i)));
}

void
dr_revert_load(Revert *r, JsonObject *note)
{
  JsonArray *items = dr_json_arr(note, "items");

  r->dead = dr_json_bool(note, "dead", FALSE);
  for (guint i = 0; items && i < json_array_get_length(items); i++) {
    JsonObject *object = json_array_get_object_element(items, i);
    Item *item = g_new0(Item, 1);

    item->disk = g_strdup(dr_json_str(object, "disk", ""));
    item->base = g_strdup(dr_json_str(object, "base", ""));
    item->overlay = g_strdup(dr_json_str(object, "overlay", ""));
    item->node = g_strdup(dr_json_str(object, "node", ""));
    item->file_node = g_strdup(dr_json_str(object, "file_node", ""));
    item->made = TRUE; /* it was not there when the journal was written */
    g_ptr_array_add(r->items, item);
  }
  load_strings(r->left, dr_json_arr(note, "left"));
  load_strings(r->surplus, dr_json_arr(note, "surplus"));
}

/* --- What is left --- */

static gboolean
is_of_a_snapshot(JsonArray *snapshots, const char *file)
{
  for (guint i = 0; i < json_array_get_length(snapshots); i++) {
    JsonArray *splits = dr_json_arr(json_array_get_object_element(snapshots, i), "disks");

    for (guint n = 0; splits && n < json_array_get_length(splits); n++)
      if (dr_snapshot_stands_on(json_array_get_object_element(splits, n), file))
        return TRUE;
  }
  return FALSE;
}

/* An overlay of drover's. */
static gboolean
is_ours(JsonArray *snapshots, const char *file)
{
  for (guint i = 0; i < json_array_get_length(snapshots); i++) {
    JsonArray *splits = dr_json_arr(json_array_get_object_element(snapshots, i), "disks");

    for (guint n = 0; splits && n < json_array_get_length(splits); n++)
      if (g_str_equal(dr_json_str(json_array_get_object_element(splits, n), "overlay", ""), file))
        return TRUE;
  }
  return FALSE;
}

/* From the top down to the first image that belongs to a snapshot: nobody stands on those afterwards. */
static void
choose_left_of(Revert *r, DrNode *top, JsonArray *snapshots)
{
  gboolean discard = dr_json_bool(r->request, "discard", FALSE);

  for (DrNode *node = top; node && !is_of_a_snapshot(snapshots, dr_node_file(node));
       node = dr_node_backing(node)) {
    const char *file = dr_node_file(node);

    g_ptr_array_add(r->left, g_strdup(file));
    if (discard && is_ours(snapshots, file))
      g_ptr_array_add(r->surplus, g_strdup(file));
  }
}

void
dr_revert_choose_left(Revert *r, const DrDisks *disks, JsonArray *snapshots)
{
  for (guint i = 0; i < r->items->len; i++) {
    const Item *item = r->items->pdata[i];
    const DrDisk *disk = dr_disks_find(disks, item->disk, NULL);

    if (disk)
      choose_left_of(r, disk->top, snapshots);
  }
}

/* Of what is on record: the overlays that no snapshot stands on. */
static gboolean
is_reverted(const Revert *r, const char *disk)
{
  for (guint i = 0; i < r->items->len; i++)
    if (g_str_equal(((const Item *)r->items->pdata[i])->disk, disk))
      return TRUE;
  return FALSE;
}

void
dr_revert_choose_left_dead(Revert *r, JsonArray *snapshots)
{
  gboolean discard = dr_json_bool(r->request, "discard", FALSE);

  for (guint i = 0; i < json_array_get_length(snapshots); i++) {
    JsonArray *splits = dr_json_arr(json_array_get_object_element(snapshots, i), "disks");

    for (guint n = 0; splits && n < json_array_get_length(splits); n++) {
      JsonObject *split = json_array_get_object_element(splits, n);
      const char *file = dr_json_str(split, "overlay", "");

      if (!is_reverted(r, dr_json_str(split, "disk", "")))
        continue; /* the snapshot knows nothing of it */
      if (is_of_a_snapshot(snapshots, file) || !g_file_test(file, G_FILE_TEST_EXISTS))
        continue;
      g_ptr_array_add(r->left, g_strdup(file));
      if (discard)
        g_ptr_array_add(r->surplus, g_strdup(file));
    }
  }
}

/* --- The overlays --- */

/* The QEMU that runs makes them, with blockdev-create, and closes them again. */
static gboolean
make_overlay(Revert *r, Item *item, GError **error)
{
  DrTargetKind kind;
  g_autoptr(JsonObject) protocol = dr_target_parse_options(item->overlay, &kind, error);
  DrImage image = { .protocol = protocol,
                    .node = item->node,
                    .file_node = item->file_node,
                    .format = "qcow2",
                    .create = TRUE,
                    .bytes = item->bytes,
                    .backing = item->base,
                    .backing_format = item->base_format,
                    .direct = item->direct,
                    .no_flush = item->no_flush };

  item->made = protocol && dr_image_reserve(item->overlay, dr_vm_record(r->u.vm)->id.pid, error);
  if (item->made && dr_image_open(r->u.source, &image, dr_deadline_in(CREATE_MS), error)) {
    dr_image_close(r->u.source, item->node, item->file_node);
    return TRUE;
  }
  g_prefix_error(error, "cannot make the overlay '%s' of disk '%s': ", item->overlay, item->disk);
  return FALSE;
}

gboolean
dr_revert_make_overlays(Revert *r, GError **error)
{
  for (guint i = 0; i < r->items->len; i++)
    if (!make_overlay(r, r->items->pdata[i], error))
      return FALSE;
  return TRUE;
}

void
dr_revert_remove_overlays(Revert *r, DrQmp *qmp)
{
  for (guint i = 0; i < r->items->len; i++) {
    const Item *item = r->items->pdata[i];

    if (qmp)
      dr_image_close(qmp, item->node, item->file_node);
    if (item->made && unlink(item->overlay) < 0 && errno != ENOENT)
      g_warning("cannot remove '%s': %s", item->overlay, g_strerror(errno));
  }
}

/* --- Afterwards --- */

static const Item *
item_on(const Revert *r, const char *base)
{
  for (guint i = 0; i < r->items->len; i++)
    if (g_str_equal(((Item *)r->items->pdata[i])->base, base))
      return r->items->pdata[i];
  return NULL;
}

/* What the disk stands on from now on: file -> the one above it. */
static void
note_above(GHashTable *above, const Item *item, JsonObject *split)
{
  JsonArray *chain = dr_json_arr(split, "chain");
  const char *upper = item->base;

  g_hash_table_insert(above, g_strdup(item->base), g_strdup(item->overlay));
  for (guint i = 0; chain && i < json_array_get_length(chain); i++) {
    const char *file = json_array_get_string_element(chain, i);

    g_hash_table_insert(above, g_strdup(file), g_strdup(upper));
    upper = file;
  }
}

static GHashTable *
files_above(Revert *r, JsonArray *all)
{
  GHashTable *above = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);

  for (guint i = 0; i < json_array_get_length(all); i++) {
    JsonObject *record = json_array_get_object_element(all, i);
    JsonArray *splits = dr_json_arr(record, "disks");

    for (guint n = 0; splits && n < json_array_get_length(splits); n++) {
      JsonObject *split = json_array_get_object_element(splits, n);
      const Item *item = item_on(r, dr_json_str(split, "base", ""));

      if (item && g_str_equal(dr_json_str(record, "name", ""), r->name))
        note_above(above, item, split);
    }
  }
  return above;
}

/* TRUE: it is in the chain of now, and says another overlay. */
static gboolean
take_overlay(JsonObject *split, GHashTable *above)
{
  const char *overlay = g_hash_table_lookup(above, dr_json_str(split, "base", ""));

  if (!overlay || g_str_equal(overlay, dr_json_str(split, "overlay", "")))
    return FALSE;
  json_object_set_string_member(split, "overlay", overlay);
  json_object_remove_member(split, "node"); /* of the old one */
  json_object_remove_member(split, "file_node");
  return TRUE;
}

/* A merge of a snapshot is one of the overlay that stands on its image now. */
gboolean
dr_revert_write_records(Revert *r, GError **error)
{
  g_autoptr(JsonArray) all = dr_store_load_snapshots(r->u.host->store, dr_vm_name(r->u.vm), error);
  g_autoptr(GHashTable) above = all ? files_above(r, all) : NULL;

  for (guint i = 0; all && i < json_array_get_length(all); i++) {
    JsonObject *record = json_array_get_object_element(all, i);
    JsonArray *splits = dr_json_arr(record, "disks");
    gboolean changed = FALSE;

    for (guint n = 0; splits && n < json_array_get_length(splits); n++)
      changed |= take_overlay(json_array_get_object_element(splits, n), above);
    if (changed && !dr_store_put_snapshot(r->u.host->store, dr_vm_name(r->u.vm),
                                          dr_json_str(record, "name", "?"), record, error))
      return FALSE;
  }
  return all != NULL;
}

void
dr_revert_discard(Revert *r)
{
  for (guint i = 0; i < r->surplus->len; i++)
    if (unlink(r->surplus->pdata[i]) < 0 && errno != ENOENT)
      g_warning("cannot remove '%s': %s", (char *)r->surplus->pdata[i], g_strerror(errno));
}
