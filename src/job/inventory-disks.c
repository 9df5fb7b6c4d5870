/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The disks of the command line against the block graph that runs: every backend of query-block is found on the command
 * line, or put there, or refused. */
#include "job/inventory-internal.h"
#include "base/error.h"

#include <string.h>

/* --- What keeps the graph from being moved at all --- */

static void
check_jobs(DrApply *a)
{
  for (guint i = 0; a->inventory->jobs && i < json_array_get_length(a->inventory->jobs); i++) {
    JsonObject *job = json_array_get_object_element(a->inventory->jobs, i);
    const char *status = dr_json_str(job, "status", "?");

    if (g_str_equal(status, "concluded") || g_str_equal(status, "null"))
      continue;
    dr_apply_block(a, "block-job", "wait until it has finished, or cancel it (block-job-cancel)",
                   "block job '%s' (%s) is %s", dr_json_str(job, "id", "?"), dr_json_str(job, "type", "?"),
                   status);
  }
}

/* Without the graph a backing chain cannot be seen: unstable commands may be forbidden (-compat unstable-input=reject). */
static void
check_graph(DrApply *a)
{
  if (!a->inventory->graph && g_hash_table_size(a->inventory->block_nodes) > 0)
    dr_apply_block(a, "block-graph", "start the guest without -compat unstable-input=reject",
                   "QEMU does not tell how its block nodes stand on each other (x-debug-query-block-graph)");
}

/* One file twice in a chain: a file was renamed below QEMU, and its names are not to be trusted. */
static void
check_loops(DrApply *a)
{
  GHashTableIter iter;
  gpointer key, value;

  g_hash_table_iter_init(&iter, a->inventory->block_nodes);
  while (g_hash_table_iter_next(&iter, &key, &value)) {
    const DrNode *file = dr_node_child(value, "file");

    for (const DrNode *below = dr_node_child(value, "backing"); file && below;
         below = dr_node_child(below, "backing")) {
      const DrNode *other = dr_node_child(below, "file");

      if (other && dr_node_is_plain_file(file) && dr_node_is_plain_file(other) &&
          g_str_equal(file->file, other->file))
        dr_apply_block(
            a, "disk-replaced", "shut the guest down and start it on the right image",
            "two images of one backing chain have the same name '%s': a file was renamed while in use",
            file->file);
    }
  }
}

gboolean
dr_inventory_has_kept_bitmaps(const DrInventory *inventory)
{
  for (guint i = 0; inventory->nodes && i < json_array_get_length(inventory->nodes); i++) {
    JsonArray *bitmaps = dr_json_arr(json_array_get_object_element(inventory->nodes, i), "dirty-bitmaps");

    for (guint n = 0; bitmaps && n < json_array_get_length(bitmaps); n++)
      if (dr_json_bool(json_array_get_object_element(bitmaps, n), "persistent", FALSE))
        return TRUE;
  }
  return FALSE;
}

static void
warn_bitmaps(DrApply *a)
{
  for (guint i = 0; a->inventory->nodes && i < json_array_get_length(a->inventory->nodes); i++) {
    JsonObject *node = json_array_get_object_element(a->inventory->nodes, i);
    JsonArray *bitmaps = dr_json_arr(node, "dirty-bitmaps");

    for (guint n = 0; bitmaps && n < json_array_get_length(bitmaps); n++) {
      JsonObject *bitmap = json_array_get_object_element(bitmaps, n);
      const char *name = dr_json_str(bitmap, "name", NULL);

      if (name && !dr_json_bool(bitmap, "persistent", FALSE))
        dr_findings_add(a->findings, DR_FINDING_WARNING, "dirty-bitmap",
                        "make it persistent (block-dirty-bitmap-add persistent=true), or take a full backup "
                        "after the move",
                        "dirty bitmap '%s' of block node '%s' is not persistent and will be lost", name,
                        dr_json_str(node, "node-name", "?"));
    }
  }
}

/* --- Drives --- */

/* A drive of a bus that things are plugged into may have gone with its device. */
static gboolean
can_be_gone(const DrDrive *drive)
{
  const char *interface = dr_opts_get(drive->opts, "if");

  return interface && (g_str_equal(interface, "none") || g_str_equal(interface, "virtio") ||
                       g_str_equal(interface, "scsi"));
}

/* Its top is a temporary overlay, which dr_argv_blockers() refuses. */
static gboolean
is_temporary(const DrApply *a, const DrDrive *drive)
{
  gboolean snapshot = dr_argv_has(a->argv, "snapshot");

  return dr_opts_get_bool(drive->opts, "snapshot", snapshot, &snapshot, NULL) && snapshot;
}

static gboolean
apply_drives(DrApply *a, GError **error)
{
  g_autoptr(GPtrArray) drives = dr_drives_of(a, error);

  if (!drives)
    return FALSE;
  for (guint i = 0; i < drives->len; i++) {
    DrDrive *drive = drives->pdata[i];
    JsonObject *entry = dr_block_by_backend(a->inventory, drive->backend);

    if (entry) {
      g_hash_table_add(a->seen, entry);
      if (!is_temporary(a, drive))
        dr_drive_apply(a, drive, entry);
    } else if (can_be_gone(drive)) {
      dr_argv_remove(a->argv, drive->opt);
    } else {
      dr_apply_block(a, "disk", "compare query-block with the VM's command line",
                     "the command line's drive '%s' is not among the running QEMU's", drive->backend);
    }
  }
  return TRUE;
}

static DrOpt *
find_drive(const DrArgv *argv, const char *id)
{
  return dr_argv_find_id(argv, "drive", id);
}

/* --- Devices --- */

/* query-block names a device by its id, else by its path, or by that of the part which has the disk. */
static JsonObject *
entry_of_device(const DrInventory *inv, const DrPlugged *plugged)
{
  g_autofree char *inside = g_strconcat(plugged->path, "/virtio-backend", NULL);
  g_autofree char *below = g_strconcat(plugged->path, "/", NULL);
  JsonObject *entry = dr_block_by_qdev(inv, plugged->path);

  if (!entry && !plugged->anon)
    entry = dr_block_by_qdev(inv, plugged->name);
  if (!entry)
    entry = dr_block_by_qdev(inv, inside);
  if (entry || !g_str_equal(plugged->type, "usb-storage"))
    return entry;
  for (guint i = 0; inv->block && i < json_array_get_length(inv->block); i++) {
    entry = json_array_get_object_element(inv->block, i);
    if (g_str_has_prefix(dr_json_str(entry, "qdev", ""), below))
      return entry;
  }
  return NULL;
}

static void
refuse_limits(DrApply *a, JsonObject *inserted)
{
  if (dr_throttle_is_set(inserted) && !a->inventory->limits_by_command)
    dr_apply_block(a, "throttle",
                   "lift the limit for the move (block_set_io_throttle with zeroes), or use -drive "
                   "throttling.*, or a throttle node",
                   "%s: its I/O limits were set at run time and a -device cannot carry them", a->disk);
}

/* From HMP drive_add: what to do on an error is not told. */
static void
add_plugged_drive(DrApply *a, const char *backend, JsonObject *entry)
{
  g_autofree char *head = g_strdup_printf("if=none,id=%s", backend);

  dr_drive_add(a, head, backend, entry);
  dr_findings_add(
      a->findings, DR_FINDING_NOTE, "drive-added", NULL,
      "drive '%s' was added at run time; its werror=, rerror=, aio=, discard= and locking= cannot be read "
      "and are the defaults",
      backend);
}

/* What `drive=` has to say; NULL: nothing, it is empty. FALSE with a blocker. */
static gboolean
drive_of_device(DrApply *a, JsonObject *entry, char **ret_drive)
{
  const char *backend = dr_json_str(entry, "device", "");
  JsonObject *inserted = dr_json_obj(entry, "inserted");
  DrNode *root = dr_block_root(a->inventory, entry);
  const char *name;

  *ret_drive = NULL;
  if (*backend) {
    if (!g_hash_table_contains(a->seen, entry) && !find_drive(a->argv, backend))
      add_plugged_drive(a, backend, entry);
    *ret_drive = g_strdup(backend);
    return TRUE;
  }
  if (!inserted)
    return TRUE;
  refuse_limits(a, inserted);
  name = root ? dr_blockdev_ensure(a, root) : NULL;
  *ret_drive = g_strdup(name);
  return name != NULL;
}

static gboolean
apply_device(DrApply *a, DrOpt *opt, const DrPlugged *plugged, GError **error)
{
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);
  JsonObject *entry = entry_of_device(a->inventory, plugged);
  g_autofree char *disk = g_strdup_printf("disk of device '%s'", plugged->name);
  g_autofree char *drive = NULL;
  const char *given;
  gboolean ok;

  if (!opts)
    return FALSE;
  given = dr_opts_get(opts, "drive");
  if (!entry) {
    if (given)
      dr_apply_block(a, "disk", "compare query-block with the VM's command line",
                     "the disk of device '%s' is not among the running QEMU's", plugged->name);
    return TRUE;
  }
  a->disk = disk;
  ok = drive_of_device(a, entry, &drive);
  a->disk = NULL;
  g_hash_table_add(a->seen, entry);
  if (!ok)
    return TRUE;
  if (g_strcmp0(given, drive) == 0)
    return TRUE;
  if (drive && (given || !dr_json_str(entry, "device", NULL) || !*dr_json_str(entry, "device", "")))
    dr_opts_set(opts, "drive", drive);
  else if (!drive)
    dr_opts_unset(opts, "drive");
  dr_opt_set_opts(opt, opts);
  return TRUE;
}

static gboolean
apply_devices(DrApply *a, GError **error)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, "device", opt));) {
    const DrPlugged *plugged = g_hash_table_lookup(a->devices, opt);

    if (plugged && !apply_device(a, opt, plugged, error))
      return FALSE;
  }
  return TRUE;
}

/* -machine pflash0=NODE */
static gboolean
apply_firmware(DrApply *a, GError **error)
{
  static const char *const keys[] = { "pflash0", "pflash1" };
  static const char *const paths[] = { "/machine/system.flash0", "/machine/system.flash1" };

  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, "machine", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);

    if (!opts)
      return FALSE;
    for (guint i = 0; i < G_N_ELEMENTS(keys); i++) {
      const char *given = dr_opts_get(opts, keys[i]);
      JsonObject *entry = given ? dr_block_by_qdev(a->inventory, paths[i]) : NULL;
      g_autofree char *drive = NULL;

      if (!entry || *dr_json_str(entry, "device", ""))
        continue;
      a->disk = keys[i];
      g_hash_table_add(a->seen, entry);
      if (drive_of_device(a, entry, &drive) && drive && !g_str_equal(drive, given)) {
        dr_opts_set(opts, keys[i], drive);
        dr_opt_set_opts(opt, opts);
      }
      a->disk = NULL;
    }
  }
  return TRUE;
}

/* --- What is left --- */

/* A medium in a drive that the board has by itself, a drive_add that no device uses yet; anything else is a disk that the
 * guest has and the command line does not. */
static void
apply_rest(DrApply *a)
{
  for (guint i = 0; a->inventory->block && i < json_array_get_length(a->inventory->block); i++) {
    JsonObject *entry = json_array_get_object_element(a->inventory->block, i);
    const char *backend = dr_json_str(entry, "device", ""), *qdev = dr_json_str(entry, "qdev", NULL);
    g_autofree char *head = NULL;

    if (g_hash_table_contains(a->seen, entry) || !dr_json_obj(entry, "inserted"))
      continue;
    if (*backend && (!qdev || g_str_has_prefix(qdev, "/machine/unattached/")))
      head = dr_drive_head_of_default(a->inventory, backend);
    if (head)
      dr_drive_add(a, head, backend, entry);
    else if (*backend && !qdev)
      add_plugged_drive(a, backend, entry);
    else
      dr_apply_block(
          a, "disk",
          "unplug that disk, or shut the guest down and start it with the disk on its command line",
          "disk '%s' of %s (%s) is not on the command line and cannot be put there", backend,
          qdev ? qdev : "?", dr_json_str(entry, "inserted.file", "?"));
  }
}

gboolean
dr_apply_disks(DrApply *a, GError **error)
{
  check_jobs(a);
  check_graph(a);
  check_loops(a);
  warn_bitmaps(a);
  if (!a->inventory->block)
    return TRUE; /* a QEMU built without block devices */
  dr_blockdev_begin(a);
  if (!apply_drives(a, error) || !apply_devices(a, error) || !apply_firmware(a, error))
    return FALSE;
  apply_rest(a);
  return dr_blockdev_finish(a, error);
}
