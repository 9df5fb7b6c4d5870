/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A live block copy's request and preflight. */
#include "base/error.h"
#include "job/disk-copy-internal.h"
#include "job/room.h"

/* --- The request --- */

static gboolean
check_pair(JsonArray *copies, guint i, GError **error)
{
  JsonNode *node = json_array_get_element(copies, i);
  JsonObject *pair = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
  const char *disk = pair ? dr_json_str(pair, "disk", "") : "",
             *target = pair ? dr_json_str(pair, "target", "") : "";

  if (!*disk || !*target)
    return dr_error_set(error, DR_ERROR_INVALID, "each copy is {\"disk\", \"target\"}");
  for (guint n = 0; n < i; n++) {
    JsonObject *other = json_array_get_object_element(copies, n);

    if (g_str_equal(dr_json_str(other, "disk", ""), disk) ||
        g_str_equal(dr_json_str(other, "target", ""), target))
      return dr_error_set(error, DR_ERROR_INVALID, "disk '%s' or its target '%s' is named twice", disk,
                          target);
  }
  return TRUE;
}

gboolean
dr_disk_copy_check(JsonObject *request, GError **error)
{
  JsonArray *copies = dr_json_arr(request, "copies");
  const char *sync = dr_json_str(request, "sync", "full"), *then = dr_json_str(request, "then", NULL);
  gint64 granularity = dr_json_int(request, "granularity", 0);

  if (!copies || json_array_get_length(copies) == 0 || json_array_get_length(copies) > DR_COPY_MAX)
    return dr_error_set(error, DR_ERROR_INVALID, "name 1 to %d disks, each with its target", DR_COPY_MAX);
  for (guint i = 0; i < json_array_get_length(copies); i++)
    if (!check_pair(copies, i, error))
      return FALSE;
  if (!g_str_equal(sync, "full") && !g_str_equal(sync, "top"))
    return dr_error_set(error, DR_ERROR_INVALID, "sync is 'full' or 'top', not '%s'", sync);
  if (then && !g_str_equal(then, "pivot") && !g_str_equal(then, "finish"))
    return dr_error_set(error, DR_ERROR_INVALID, "then is 'pivot' or 'finish', not '%s'", then);
  if (granularity && (granularity & (granularity - 1)))
    return dr_error_set(error, DR_ERROR_INVALID, "the granularity %" G_GINT64_FORMAT " is no power of 2",
                        granularity);
  return TRUE;
}

gboolean
dr_copy_is_top_only(const DrCopy *c)
{
  return g_str_equal(dr_json_str(c->request, "sync", "full"), "top");
}

/* --- Preflight --- */

static void
block(DrCopy *c, const char *code, const char *remedy, const char *text)
{
  dr_findings_add(c->findings, DR_FINDING_BLOCKER, code, remedy, "%s", text);
}

static void
block_error(DrCopy *c, const char *code, const GError *error)
{
  block(c, code, dr_error_get_remedy(error), error->message);
}

/* Any image of any disk of this VM. */
static gboolean
is_in_use_here(const DrDisks *disks, const char *target)
{
  for (guint i = 0; i < dr_disks_count(disks); i++)
    for (const DrNode *node = dr_disks_get(disks, i)->top; node; node = dr_node_backing(node))
      if (dr_same_file(dr_node_file(node), target, NULL))
        return TRUE;
  return FALSE;
}

/* A file that is to be made needs a directory, and room for what the disk has by now. */
static void
check_room(DrCopy *c, DrRoom *room, const DrCopyItem *item, const DrDisk *disk)
{
  g_autofree char *dir = g_path_get_dirname(item->target);
  g_autofree char *text = NULL;
  gint64 wanted = 0, there;

  for (const DrNode *node = disk->top; node; node = dr_copy_is_top_only(c) ? NULL : dr_node_backing(node))
    wanted += MAX(dr_node_allocated(node), 0);
  wanted = MIN(wanted, item->bytes);
  there = dr_room_take(room, dir, wanted);
  if (there < 0) {
    text = g_strdup_printf("there is no directory '%s' for the target '%s'", dir, item->target);
    block(c, "target", "make it, or name another target", text);
    return;
  }
  if (there >= wanted)
    return;
  text =
      g_strdup_printf("'%s' has %" G_GINT64_FORMAT " MiB free, and disk '%s' takes %" G_GINT64_FORMAT " MiB",
                      dir, there >> 20, item->disk, wanted >> 20);
  block(c, "target-room", "make room there, or name another target", text);
}

/* What is there stays below the copy, unless it is just what the copy is to stand on. */
static void
check_backing(DrCopy *c, const DrCopyItem *item, const DrTarget *target)
{
  g_autofree char *text = NULL;

  if (item->backing && (!target->backing || !dr_same_file(target->backing, item->backing, NULL) ||
                        g_strcmp0(target->backing_format, item->backing_format) != 0)) {
    text = g_strdup_printf("the target '%s' does not stand on '%s' (%s), as disk '%s' does", item->target,
                           item->backing, item->backing_format, item->disk);
    block(c, "target-backing", "make it so: qemu-img create -f qcow2 -b FILE -F FORMAT TARGET", text);
  } else if (!item->backing && target->images > 1) {
    text = g_strdup_printf("the target '%s' stands on another image, '%s'", item->target,
                           target->backing ? target->backing : "?");
    block(c, "target-backing", "give one that stands alone, or have a new one made", text);
  }
}

static void
check_size(DrCopy *c, DrCopyItem *item, const DrTarget *target)
{
  gboolean raw = g_str_equal(item->format, "raw");
  g_autofree char *text = NULL;

  if (target->bytes < 0 || target->bytes == item->bytes)
    return;
  if (target->bytes > item->bytes && raw) {
    item->size = item->bytes; /* QEMU mirrors between equals only */
    return;
  }
  if (target->kind == DR_TARGET_DEVICE && !raw)
    return; /* it gets a new header */
  text = g_strdup_printf("the target '%s' has %" G_GINT64_FORMAT " bytes, disk '%s' %" G_GINT64_FORMAT,
                         item->target, target->bytes, item->disk, item->bytes);
  block(c, "target-size", raw ? "give one of at least the disk's size" : "give one of just the disk's size",
        text);
}

static void
check_existing(DrCopy *c, DrCopyItem *item, const DrTarget *target)
{
  g_autofree char *text = NULL;

  if (target->kind == DR_TARGET_HTTP) {
    text = g_strdup_printf("'%s' cannot be written to", item->target);
    block(c, "target", "give a file, a block device or an NBD export", text);
  } else if (target->kind == DR_TARGET_FILE && !dr_json_bool(c->request, "reuse_external", FALSE)) {
    text = g_strdup_printf("the target '%s' is there already", item->target);
    block(c, "target-exists", "name another one, or have it written over: --reuse-external", text);
  } else {
    check_size(c, item, target);
    check_backing(c, item, target);
  }
}

static void
check_target(DrCopy *c, DrRoom *room, DrCopyItem *item, const DrDisks *disks, const DrDisk *disk)
{
  gboolean again = dr_json_bool(c->request, "reuse_external", FALSE);
  const DrTarget *target = item->there;
  g_autofree char *text = NULL;

  if (!target) {
    block_error(c, "target", item->there_error);
    return;
  }
  if (is_in_use_here(disks, item->target)) {
    text = g_strdup_printf("the target '%s' is one of the VM's own images", item->target);
    block(c, "target-in-use", "name another one", text);
    return;
  }
  /* What is there keeps its format; a block device gets that of the disk, but raw needs no making. */
  item->made = target->kind == DR_TARGET_FILE && !target->exists;
  if (target->exists && (again || target->kind == DR_TARGET_NBD) &&
      !dr_json_str(c->request, "format", NULL)) {
    g_free(item->format);
    item->format = g_strdup(target->format);
  }
  if (target->exists)
    check_existing(c, item, target);
  else
    check_room(c, room, item, disk);
}

/* Formats that QEMU can make, grow and write (QAPI: BlockdevCreateOptions); the others are read-only in practice. */
static void
check_format(DrCopy *c, const DrCopyItem *item)
{
  static const char *const known[] = { "raw", "qcow2", "qed", "luks",      "vmdk",
                                       "vdi", "vhdx",  "vpc", "parallels", NULL };
  g_autofree char *text = NULL;

  if (item->there && item->there->kind == DR_TARGET_HTTP)
    return;
  if (!g_strv_contains(known, item->format)) {
    text = g_strdup_printf("'%s' is no format that a copy can have", item->format);
    block(c, "target-format", "give --format raw or --format qcow2", text);
  } else if (item->backing && !g_str_equal(item->format, "qcow2")) {
    text = g_strdup_printf("a copy of the top image only (--sync top) cannot be %s", item->format);
    block(c, "target-format", "give --format qcow2, or copy all of it: --sync full", text);
  } else if (item->secret && !g_str_equal(item->format, "luks") && !g_str_equal(item->format, "qcow2")) {
    text = g_strdup_printf("disk '%s' is encrypted, and a copy in format %s would not be", item->disk,
                           item->format);
    block(c, "target-format", "give --format luks or --format qcow2", text);
  }
}

static void
describe(DrCopy *c, DrCopyItem *item, const DrDisk *disk)
{
  const DrNode *backing = dr_node_backing(disk->top);
  const char *format = dr_json_str(c->request, "format", NULL);

  item->bytes = dr_node_bytes(disk->top);
  item->source = g_strdup(dr_node_name(disk->root));
  item->replaces = disk->root != disk->top ? g_strdup(dr_node_name(disk->top)) : NULL;
  item->format = g_strdup(format ? format : dr_node_driver(disk->top));
  item->secret = dr_node_secret(disk->top);
  item->detect_zeroes = dr_node_detect_zeroes(disk->top);
  item->direct = dr_node_flag(disk->top, "cache.direct");
  item->no_flush = dr_node_flag(disk->top, "cache.no-flush");
  item->old = dr_node_named_tree(disk->top, dr_copy_is_top_only(c) ? dr_node_backing(disk->top) : NULL);
  if (dr_copy_is_top_only(c) && backing) {
    item->backing = g_strdup(dr_node_file(backing));
    item->backing_format = g_strdup(dr_node_driver(backing));
    item->backing_node = g_strdup(dr_node_name(backing));
  }
}

/* What changes by the copy without anybody's having asked for it. */
static void
warn(DrCopy *c, const DrCopyItem *item, const DrDisks *disks, const DrDisk *disk)
{
  g_autoptr(JsonObject) shown = dr_disk_json(disks, disk);
  JsonArray *bitmaps = dr_json_arr(shown, "bitmaps");

  if (disk->root != disk->top)
    dr_findings_add(c->findings, DR_FINDING_WARNING, "disk-throttle",
                    "give the copy a part of it only: --bandwidth MIB/S",
                    "disk '%s' is read through its filter '%s': where that limits it, the copy and the guest "
                    "share what it allows",
                    item->disk, dr_node_driver(disk->root));
  if (bitmaps && json_array_get_length(bitmaps) > 0)
    dr_findings_add(c->findings, DR_FINDING_WARNING, "disk-bitmaps", "take a full backup after a pivot",
                    "the bitmaps of disk '%s' stay with its image: the copy has none", item->disk);
}

static gboolean
is_named_twice(const DrCopy *c, const DrCopyItem *item, GError **error)
{
  for (guint i = 0; i < c->items->len; i++) {
    const DrCopyItem *other = c->items->pdata[i];

    if (other != item && g_strcmp0(other->source, item->source) == 0) {
      dr_error_set(error, DR_ERROR_INVALID, "a disk is named twice: '%s' and '%s' are the same", other->disk,
                   item->disk);
      return TRUE;
    }
  }
  return FALSE;
}

static void
check_disk(DrCopy *c, const DrCopyItem *item, const DrDisk *disk)
{
  g_autofree char *text = NULL;

  if (disk->read_only) {
    text = g_strdup_printf("disk '%s' is read-only: there is nothing to keep in step", item->disk);
    block(c, "disk-read-only", "copy its file with qemu-img convert", text);
  } else if (dr_copy_is_top_only(c) && !item->backing) {
    text = g_strdup_printf(
        "disk '%s' has no backing image that a copy of its top (--sync top) could stand on", item->disk);
    block(c, "disk-chain", "copy all of it: --sync full", text);
  }
}

/* Without the monitor: a server may take its time to answer. */
void
dr_copy_look_at_targets(DrCopy *c)
{
  const char *format =
      dr_json_bool(c->request, "reuse_external", FALSE) ? dr_json_str(c->request, "format", NULL) : NULL;

  for (guint i = 0; i < c->items->len; i++) {
    DrCopyItem *item = c->items->pdata[i];

    item->there = dr_target_look(item->target, format, &item->there_error);
  }
}

static gboolean
look_at_item(DrCopy *c, DrRoom *room, DrCopyItem *item, const DrDisks *disks, GError **error)
{
  const DrDisk *disk = dr_disks_find(disks, item->disk, error);

  if (!disk)
    return FALSE;
  describe(c, item, disk);
  if (is_named_twice(c, item, error))
    return FALSE;
  warn(c, item, disks, disk);
  check_disk(c, item, disk);
  check_target(c, room, item, disks, disk);
  check_format(c, item);
  return TRUE;
}

gboolean
dr_copy_preflight(DrCopy *c, DrQmp *qmp, GError **error)
{
  g_autoptr(DrRoom) room = dr_room_new();
  g_autoptr(DrDisks) disks = dr_disks_read(qmp, dr_vm_record(c->d.vm)->cwd, error);
  g_autofree char *doing = g_strdup_printf("copy disks of VM '%s'", dr_vm_name(c->d.vm));

  for (guint i = 0; disks && i < c->items->len; i++)
    if (!look_at_item(c, room, c->items->pdata[i], disks, error))
      return FALSE;
  if (!disks)
    return FALSE;
  dr_job_set_findings(c->d.job, c->findings);
  return dr_findings_block(c->findings) ? dr_findings_to_error(c->findings, doing, error) : TRUE;
}
