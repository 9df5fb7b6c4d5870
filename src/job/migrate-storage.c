/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See migrate-storage.h: what of a move's disks goes. */
#include "argv/argv.h"
#include "base/error.h"
#include "job/disk-fetch.h"
#include "job/disk-image.h"
#include "job/migrate-storage-internal.h"
#include "job/upgrade-internal.h"

#include <string.h>

static void
image_free(gpointer data)
{
  DrMoveImage *image = data;
  char *texts[] = { image->disk,   image->path,  image->format,      image->backing, image->backing_format,
                    image->secret, image->root,  image->node,        image->job,     image->export_name,
                    image->top,    image->there, image->inconsistent };

  for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
    g_free(texts[i]);
  g_ptr_array_unref(image->below);
  g_strfreev(image->bitmaps);
  g_free(image);
}

void
dr_move_storage_free(DrMoveStorage *storage)
{
  if (!storage)
    return;
  g_clear_pointer(&storage->streams, dr_streams_free);
  g_strfreev(storage->tokens);
  g_free(storage->told);
  g_ptr_array_unref(storage->images);
  g_free(storage);
}

/* --- What there is --- */

/* As the list of the disks' files has it. */
static char *
path_of(const DrNode *node)
{
  const char *file = dr_node_file(node);

  return *file == '/' ? g_canonicalize_filename(file, "/") : g_strdup(file);
}

static void
take_bitmaps(DrMoveImage *image, const DrDisks *disks, const DrDisk *disk)
{
  g_autoptr(GStrvBuilder) names = g_strv_builder_new();
  g_autoptr(JsonObject) shown = dr_disk_json(disks, disk);
  JsonArray *bitmaps = dr_json_arr(shown, "bitmaps");

  for (guint i = 0; bitmaps && i < json_array_get_length(bitmaps); i++) {
    JsonObject *bitmap = json_array_get_object_element(bitmaps, i);

    if (!dr_json_bool(bitmap, "inconsistent", FALSE))
      g_strv_builder_add(names, dr_json_str(bitmap, "name", ""));
    else if (!image->inconsistent)
      image->inconsistent = g_strdup(dr_json_str(bitmap, "name", ""));
  }
  image->bitmaps = g_strv_builder_end(names);
}

static DrMoveImage *
image_new(const DrDisks *disks, const DrDisk *disk, guint i, gboolean inc)
{
  const DrNode *backing = dr_node_backing(disk->top);
  DrMoveImage *image = g_new0(DrMoveImage, 1);

  image->disk = g_strdup(disk->name);
  image->path = path_of(disk->top);
  image->read_only = disk->read_only;
  image->below = g_ptr_array_new_with_free_func(g_free);
  for (const DrNode *node = backing; node; node = dr_node_backing(node))
    g_ptr_array_add(image->below, path_of(node));
  image->format = g_strdup(dr_node_driver(disk->top));
  image->bytes = dr_node_bytes(disk->top);
  for (const DrNode *node = disk->top; node; node = inc ? NULL : dr_node_backing(node))
    image->allocated += MAX(dr_node_allocated(node), 0);
  image->secret = dr_node_secret(disk->top);
  image->root = g_strdup(dr_node_name(disk->root));
  image->top = g_strdup(dr_node_name(disk->top));
  take_bitmaps(image, disks, disk);
  image->node = dr_block_id("move");
  image->job = g_strconcat(image->node, "-job", NULL);
  image->export_name = g_strdup_printf("disk%u", i);
  image->copied = TRUE;
  if (inc && backing) {
    image->backing = path_of(backing);
    image->backing_format = g_strdup(dr_node_driver(backing));
  }
  return image;
}

/* A chain that the command line spells out cannot stand alone over there: it names images that would be missing. */
static gboolean
can_stand_alone(const DrDisk *disk)
{
  g_autoptr(GPtrArray) names =
      dr_node_backing(disk->top) ? dr_node_named_tree(dr_node_backing(disk->top), NULL) : NULL;

  return !names || names->len == 0;
}

static void
check(const DrDisk *disk, const DrMoveImage *image, gboolean inc, gboolean later, DrFindings *findings)
{
  if (!g_path_is_absolute(image->path))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-source",
                    "detach it, or copy it to a file first: drover disk copy",
                    "disk '%s' is on '%s', which is no file that the other host could make", image->disk,
                    image->path);
  else if (!g_str_equal(image->format, "qcow2") && !g_str_equal(image->format, "raw") &&
           !g_str_equal(image->format, "luks"))
    dr_findings_add(
        findings, DR_FINDING_BLOCKER, "storage-source", "convert it first: drover disk copy --format qcow2",
        "disk '%s' is of the format %s, which cannot be made on the other host", image->disk, image->format);
  else if (g_str_equal(image->format, "raw") && dr_node_is_partial(disk->top))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-source",
                    "copy it to a file of its own first: drover disk copy",
                    "disk '%s' is a part of '%s' (offset=, size=)", image->disk, image->path);
  else if (!inc && !can_stand_alone(disk))
    dr_findings_add(
        findings, DR_FINDING_BLOCKER, "storage-chain",
        "copy its top image only (--copy-storage-inc), or make it stand alone first: drover disk pull",
        "disk '%s' stands on backing images that have block nodes of their own", image->disk);
  else if (later && g_str_equal(image->format, "luks"))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-source",
                    "copy it before the guest (--copy-storage-all), or convert it first: drover disk copy "
                    "--format qcow2",
                    "disk '%s' is of the format luks, which cannot be copied after the guest", image->disk);
}

static gboolean
has_path(const DrMoveStorage *storage, const char *path)
{
  for (guint i = 0; i < storage->images->len; i++)
    if (g_str_equal(((DrMoveImage *)storage->images->pdata[i])->path, path))
      return TRUE;
  return FALSE;
}

DrMoveStorage *
dr_move_storage_new(DrQmp *source, const char *cwd, const DrMigrateOptions *options, DrFindings *findings,
                    GError **error)
{
  gboolean inc = options->copy_storage_inc;
  g_autoptr(DrDisks) disks = dr_disks_read(source, cwd, error);
  DrMoveStorage *storage;

  if (!disks)
    return NULL;
  storage = g_new0(DrMoveStorage, 1);
  storage->inc = inc;
  storage->later = options->storage_postcopy;
  storage->images = g_ptr_array_new_with_free_func(image_free);
  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);
    DrMoveImage *image = disk->top ? image_new(disks, disk, i, inc) : NULL;

    if (!image)
      continue;
    if (has_path(storage, image->path)) { /* a medium in two drives */
      image_free(image);
      continue;
    }
    g_ptr_array_add(storage->images, image);
    check(disk, image, inc, storage->later, findings);
  }
  return storage;
}

static DrMoveImage *
image_of(const DrMoveStorage *storage, const Migrate *m, const char *path)
{
  for (guint i = 0; i < storage->images->len; i++) {
    DrMoveImage *image = storage->images->pdata[i];
    g_autofree char *there = dr_migrate_there(m, image->path);

    if (g_str_equal(there, path))
      return image;
  }
  return NULL;
}

static void
mark_copy(const DrMoveImage *image, gboolean later, const Migrate *m, JsonObject *entry)
{
  json_object_set_string_member(entry, "role", image->copied ? "copy" : image->read_only ? "base" : "shared");
  json_object_set_string_member(entry, "format", image->format);
  json_object_set_int_member(entry, "bytes", image->bytes);
  json_object_set_int_member(entry, "allocated", MIN(image->allocated, image->bytes));
  if (image->secret)
    json_object_set_string_member(entry, "secret", image->secret);
  if (image->backing) {
    g_autofree char *there = dr_migrate_there(m, image->backing);

    json_object_set_string_member(entry, "backing", there);
    json_object_set_string_member(entry, "backing_format", image->backing_format);
  }
  if (!later || !image->copied)
    return;
  json_object_set_string_member(entry, "later", image->export_name);
  json_object_set_int_member(entry, "mib", m->options.bandwidth);
}

static gboolean
is_below_a_copied_one(const DrMoveStorage *storage, const Migrate *m, const char *path)
{
  for (guint i = 0; i < storage->images->len; i++) {
    const DrMoveImage *image = storage->images->pdata[i];

    for (guint n = 0; image->copied && n < image->below->len; n++) {
      g_autofree char *there = dr_migrate_there(m, image->below->pdata[n]);

      if (g_str_equal(there, path))
        return TRUE;
    }
  }
  return FALSE;
}

/* Images below those that are copied are not needed at all, or are to be there with the same contents, which is the user's word. */
void
dr_move_storage_mark(const DrMoveStorage *storage, const Migrate *m, gboolean overwrite, JsonArray *disks)
{
  for (guint i = json_array_get_length(disks); i-- > 0;) {
    JsonObject *entry = json_array_get_object_element(disks, i);
    const char *path = dr_json_str(entry, "path", "");
    const DrMoveImage *image = image_of(storage, m, path);

    if (image) {
      mark_copy(image, storage->later, m, entry);
      json_object_set_boolean_member(entry, "overwrite", overwrite && !image->read_only);
    } else if (is_below_a_copied_one(storage, m, path)) {
      if (storage->inc)
        json_object_set_string_member(entry, "role", "base");
      else
        json_array_remove_element(disks, i);
    }
  }
}

/* An image that is only read, and is there already, is taken as it is: an ISO, firmware. */
static void
heed_one(DrMoveImage *image, JsonObject *entry, gboolean later, gboolean overwrite, DrFindings *findings)
{
  const char *path = dr_json_str(entry, "path", "");
  gboolean shared = dr_json_bool(entry, "shared", FALSE), exists = dr_json_bool(entry, "exists", FALSE);

  image->named = TRUE;
  image->copied = !shared && !(exists && image->read_only);
  if (shared)
    dr_findings_add(findings, DR_FINDING_NOTE, "storage-shared", NULL,
                    "disk '%s' ('%s') is the same file on both hosts and is not copied", image->disk, path);
  else if (!image->copied)
    dr_findings_add(findings, DR_FINDING_NOTE, "storage-taken", NULL,
                    "disk '%s' is only read, and '%s' is taken as it is on the other host", image->disk,
                    path);
  else if (exists && !overwrite)
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-exists",
                    "remove it there, or have it written over (--overwrite-storage), or give the image "
                    "another name there "
                    "(--map disk=PATH:PATH)",
                    "the other host has another file '%s'", path);
  else if (later && image->read_only)
    dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-source",
                    "copy it there first, or copy all disks before the guest (--copy-storage-all)",
                    "disk '%s' ('%s') is only read: after the guest nothing could be written to it",
                    image->disk, path);
  else
    dr_findings_add(findings, DR_FINDING_NOTE, "storage-copied", NULL,
                    "disk '%s' ('%s', %" G_GINT64_FORMAT " MiB) is copied to the other host%s", image->disk,
                    path, image->bytes >> 20, later ? ", after the guest" : "");
}

/* QEMU carries the others of that node only where each of them is good (migration/block-dirty-bitmap.c, add_bitmaps_to_list()). */
static void
check_bitmaps(const DrMoveImage *image, DrFindings *findings)
{
  g_autofree char *quoted = image->inconsistent ? g_shell_quote(image->inconsistent) : NULL;
  g_autofree char *remedy = g_strdup_printf("it is of no use any more: drover bitmap remove NAME %s %s",
                                            image->disk, quoted ? quoted : "");

  if (image->copied && image->inconsistent && *image->bitmaps)
    dr_findings_add(findings, DR_FINDING_BLOCKER, "bitmap-inconsistent", remedy,
                    "bitmap '%s' of disk '%s' is inconsistent, and QEMU moves none beside such a one",
                    image->inconsistent, image->disk);
}

void
dr_move_storage_heed(DrMoveStorage *storage, const Migrate *m, JsonArray *report, gboolean overwrite,
                     DrFindings *findings)
{
  for (guint i = 0; report && i < json_array_get_length(report); i++) {
    JsonObject *entry = json_array_get_object_element(report, i);
    DrMoveImage *image = image_of(storage, m, dr_json_str(entry, "path", ""));

    if (!image)
      continue;
    heed_one(image, entry, storage->later, overwrite, findings);
    check_bitmaps(image, findings);
  }
  for (guint i = 0; i < storage->images->len; i++) {
    const DrMoveImage *image = storage->images->pdata[i];

    if (!image->named)
      dr_findings_add(findings, DR_FINDING_BLOCKER, "storage-source", "install the same drover on both hosts",
                      "the other host says nothing of the image '%s' of disk '%s'", image->path, image->disk);
  }
}

gboolean
dr_move_storage_is_empty(const DrMoveStorage *storage)
{
  for (guint i = 0; i < storage->images->len; i++)
    if (((DrMoveImage *)storage->images->pdata[i])->copied)
      return FALSE;
  return TRUE;
}

void
dr_move_storage_stand_alone(const DrMoveStorage *storage, DrInventory *inventory, gboolean alone)
{
  for (guint i = 0; i < storage->images->len && !storage->inc; i++) {
    const DrMoveImage *image = storage->images->pdata[i];

    if (image->copied)
      dr_inventory_stand_alone(inventory, image->path, alone);
  }
}

void
dr_move_storage_see_through(const DrMoveStorage *storage, const Migrate *m, DrInventory *theirs)
{
  for (guint i = 0; storage->later && i < storage->images->len; i++) {
    const DrMoveImage *image = storage->images->pdata[i];
    g_autofree char *there = dr_migrate_there(m, image->path);
    g_autofree char *overlay = dr_disk_fetch_overlay(there, image->format);

    if (!image->copied)
      continue;
    dr_inventory_rename_file(theirs, overlay, image->path);
    dr_inventory_stand_alone(theirs, image->path, TRUE);
  }
}

JsonArray *
dr_move_storage_lent(const DrMoveStorage *storage)
{
  JsonArray *images = json_array_new();

  for (guint i = 0; storage->later && i < storage->images->len; i++) {
    const DrMoveImage *image = storage->images->pdata[i];
    JsonObject *one;

    if (!image->copied)
      continue;
    one = dr_json("{'name': <%s>, 'path': <%s>, 'format': <%s>}", image->export_name, image->path,
                  image->format);
    if (image->secret)
      json_object_set_string_member(one, "secret", image->secret);
    json_array_add_object_element(images, one);
  }
  return images;
}

gboolean
dr_move_storage_goes_before(const DrMoveStorage *storage)
{
  return storage && !storage->later && !dr_move_storage_is_empty(storage);
}

gint64
dr_move_storage_bytes(const DrMoveStorage *storage)
{
  gint64 bytes = 0;

  for (guint i = 0; i < storage->images->len; i++)
    bytes += ((DrMoveImage *)storage->images->pdata[i])->done;
  return bytes;
}

void
dr_move_storage_progress(DrMoveStorage *storage, DrProgress *progress)
{
  guint n = 0;

  if (!storage->told)
    storage->told = g_new0(DrDiskProgress, storage->images->len + 1);
  for (guint i = 0; i < storage->images->len; i++) {
    const DrMoveImage *image = storage->images->pdata[i];

    if (image->copied && !storage->later)
      storage->told[n++] = (DrDiskProgress){ image->disk, image->done, MAX(image->total, image->done) };
  }
  progress->disks = storage->told;
  progress->n_disks = n;
}

/* --- Bitmaps --- */

static gboolean
has_bitmaps(const DrMoveImage *image)
{
  return image->copied && *image->bitmaps;
}

gboolean
dr_move_storage_has_bitmaps(const DrMoveStorage *storage)
{
  for (guint i = 0; i < storage->images->len; i++)
    if (has_bitmaps(storage->images->pdata[i]))
      return TRUE;
  return FALSE;
}

static char *
node_on(const DrDisks *disks, const char *path)
{
  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);
    g_autofree char *file = disk->top ? path_of(disk->top) : NULL;

    if (g_strcmp0(file, path) == 0)
      return g_strdup(dr_node_name(disk->top));
  }
  return NULL;
}

gboolean
dr_move_storage_map_bitmaps(DrMoveStorage *storage, const Migrate *m, DrQmp *there, GError **error)
{
  g_autoptr(DrDisks) disks = NULL;

  if (!dr_move_storage_has_bitmaps(storage))
    return TRUE;
  disks = dr_disks_read(there, NULL, error);
  for (guint i = 0; disks && i < storage->images->len; i++) {
    DrMoveImage *image = storage->images->pdata[i];
    g_autofree char *copy = dr_migrate_there(m, image->path);
    g_autofree char *path = storage->later ? dr_disk_fetch_overlay(copy, image->format) : g_strdup(copy);

    if (!has_bitmaps(image))
      continue;
    image->there = node_on(disks, path);
    if (!image->there)
      return dr_error_set(
          error, DR_ERROR_UNSUPPORTED,
          "the bitmaps of disk '%s' cannot be moved: the other host's QEMU does not show '%s'", image->disk,
          path);
  }
  return disks != NULL;
}

static JsonObject *
mapping_of(const DrMoveImage *image, gboolean there)
{
  JsonObject *object =
      dr_json("{'node-name': <%s>, 'alias': <%s>}", there ? image->there : image->top, image->export_name);
  JsonArray *bitmaps = json_array_new();

  for (char **name = image->bitmaps; *name; name++)
    json_array_add_object_element(bitmaps, dr_json("{'name': <%s>, 'alias': <%s>}", *name, *name));
  json_object_set_array_member(object, "bitmaps", bitmaps);
  return object;
}

JsonArray *
dr_move_storage_bitmaps(const DrMoveStorage *storage, gboolean there)
{
  JsonArray *array = json_array_new();

  for (guint i = 0; i < storage->images->len; i++)
    if (has_bitmaps(storage->images->pdata[i]))
      json_array_add_object_element(array, mapping_of(storage->images->pdata[i], there));
  return array;
}
