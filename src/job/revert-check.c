/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whether a snapshot can be gone back to: its images, its memory, the machine; and whether the new QEMU is it. */
#include "argv/compare.h"
#include "base/error.h"
#include "job/block-job.h"
#include "job/revert-internal.h"
#include "job/snapshot.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void G_GNUC_PRINTF(4, 5)
    block(Revert *r, const char *code, const char *remedy, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  dr_findings_add(r->u.pre->findings, DR_FINDING_BLOCKER, code, remedy, "%s", text);
}

/* --- Of an upgrade's preflight --- */

/* A guest that has stopped on an error is one to go back from, and RAM does not come from the QEMU that runs. */
static void
keep_what_counts(Revert *r)
{
  DrFindings *all = r->u.pre->findings;

  r->u.pre->findings = dr_findings_new();
  for (guint i = 0; i < dr_findings_count(all); i++) {
    const DrFinding *finding = dr_findings_get(all, i);
    const char *remedy = finding->remedy;

    if (g_str_equal(finding->code, "state") || g_str_equal(finding->code, "tcg-aligned-ram") ||
        g_str_equal(finding->code, "memory-mode") || g_str_equal(finding->code, "disk-changed") ||
        g_str_equal(finding->code, "blockdev"))
      continue;
    if (g_str_equal(finding->code, "memory") && finding->severity == DR_FINDING_BLOCKER)
      remedy = "free some: until the old guest is ended, both have their memory";
    dr_findings_add(r->u.pre->findings, finding->severity, finding->code, remedy, "%s", finding->text);
  }
  dr_findings_free(all);
}

/* --- The snapshot --- */

static void
check_spoiled(Revert *r)
{
  if (dr_json_bool(r->record, "spoiled", FALSE))
    block(r, "snapshot-spoiled", "there is no way back to it; drover snapshot delete gives it up",
          "a merge down of snapshot '%s' has begun: its images are no point in time any more", r->name);
  if (dr_json_obj(r->record, "memory") && !dr_json_arr(r->record, "argv"))
    block(r, "snapshot-machine", "use its images by hand", "snapshot '%s' does not say what machine it is of",
          r->name);
}

static void
check_memory(Revert *r)
{
  const char *file = dr_json_str(r->record, "memory.file", NULL);
  gint64 bytes = dr_json_int(r->record, "memory.bytes", 0);
  struct stat st;

  if (!file)
    return;
  if (stat(file, &st) < 0)
    block(r, "snapshot-memory", "put it back", "the memory of snapshot '%s' cannot be read: '%s': %s",
          r->name, file, g_strerror(errno));
  else if (st.st_size != bytes)
    block(r, "snapshot-memory", "put the right file back",
          "the memory of snapshot '%s' was changed: '%s' has %" G_GINT64_FORMAT
          " bytes, not %" G_GINT64_FORMAT,
          r->name, file, (gint64)st.st_size, bytes);
}

void
dr_revert_check_record(Revert *r)
{
  check_spoiled(r);
  check_memory(r);
}

/* Which image a device stands on is compared by itself; what its node is called changes with each overlay. */
static gboolean
is_node_name(const DrArgvDiff *diff)
{
  return diff->key && (g_str_has_suffix(diff->key, "drive") || g_str_has_suffix(diff->key, "pflash0") ||
                       g_str_has_suffix(diff->key, "pflash1"));
}

/* What the guest could see has to be as it was: its drivers are in the middle of their work with it. */
static gboolean
check_machine(Revert *r, GError **error)
{
  g_auto(GStrv) words = dr_json_strv(dr_json_arr(r->record, "argv"));
  g_autoptr(DrArgv) then = words ? dr_argv_parse((const char *const *)words, error) : NULL;
  g_autoptr(GPtrArray) differences = NULL;

  if (!words || !dr_json_obj(r->record, "memory"))
    return TRUE; /* a guest that boots finds out */
  if (!then)
    return FALSE;
  differences = dr_argv_compare(then, r->u.pre->truth);
  for (guint i = 0; i < differences->len; i++) {
    const DrArgvDiff *diff = differences->pdata[i];

    if (is_node_name(diff))
      continue;
    block(r, "snapshot-machine", "make the machine again what it was then",
          "the machine is another one than at snapshot '%s': %s", r->name, diff->text);
  }
  return TRUE;
}

/* --- Its disks --- */

static JsonObject *
split_of(Revert *r, const char *disk)
{
  JsonArray *splits = dr_json_arr(r->record, "disks");

  for (guint i = 0; splits && i < json_array_get_length(splits); i++)
    if (g_str_equal(dr_json_str(json_array_get_object_element(splits, i), "disk", ""), disk))
      return json_array_get_object_element(splits, i);
  return NULL;
}

void
dr_revert_check_image(Revert *r, JsonObject *split)
{
  const char *base = dr_json_str(split, "base", "?");

  if (dr_json_bool(split, "encrypted", FALSE))
    block(r, "snapshot-image", "use the image by hand",
          "the image '%s' of disk '%s' is encrypted: an overlay that "
          "QEMU opens by its header alone does not have the key",
          base, dr_json_str(split, "disk", "?"));
  else if (access(base, R_OK) < 0)
    block(r, "snapshot-image", "put it back", "the image '%s' of disk '%s' cannot be read: %s", base,
          dr_json_str(split, "disk", "?"), g_strerror(errno));
  else if (!dr_snapshot_image_is_same(split))
    block(r, "snapshot-image", "put the right file back, with its time (cp -p)",
          "the image '%s' of disk '%s' was written to or replaced since the snapshot", base,
          dr_json_str(split, "disk", "?"));
}

static void
add_item(Revert *r, const DrDisk *disk, JsonObject *split)
{
  Item *item = g_new0(Item, 1);

  item->disk = g_strdup(disk->name);
  item->base = g_strdup(dr_json_str(split, "base", ""));
  item->base_format = g_strdup(dr_json_str(split, "base_format", ""));
  item->top = g_strdup(dr_node_file(disk->top));
  item->overlay = dr_revert_overlay_name(dr_json_str(split, "overlay", item->base));
  item->node = dr_block_id("revert");
  item->file_node = g_strconcat(item->node, "-file", NULL);
  item->bytes = dr_json_int(split, "bytes", 0);
  item->direct = dr_node_flag(disk->top, "cache.direct");
  item->no_flush = dr_node_flag(disk->top, "cache.no-flush");
  g_ptr_array_add(r->items, item);
}

static void
check_disks(Revert *r, const DrDisks *disks)
{
  JsonArray *splits = dr_json_arr(r->record, "disks");

  for (guint i = 0; i < dr_disks_count(disks); i++) {
    const DrDisk *disk = dr_disks_get(disks, i);
    JsonObject *split = disk->top && !disk->read_only ? split_of(r, disk->name) : NULL;

    if (split)
      add_item(r, disk, split);
    else if (disk->top && !disk->read_only)
      block(r, "snapshot-disks", "unplug it first, or merge what it is about by hand",
            "disk '%s' is not in snapshot '%s', and would stay as it is now", disk->name, r->name);
  }
  for (guint i = 0; splits && i < json_array_get_length(splits); i++) {
    JsonObject *split = json_array_get_object_element(splits, i);

    dr_revert_check_image(r, split);
    if (!dr_disks_find(disks, dr_json_str(split, "disk", ""), NULL))
      block(r, "snapshot-disks", "plug it in again", "the VM has no disk '%s', which snapshot '%s' has",
            dr_json_str(split, "disk", "?"), r->name);
  }
}

/* --- The new QEMU's command line --- */

gboolean
dr_revert_swap_images(Revert *r, GError **error)
{
  DrPreflight *p = r->u.pre;

  for (guint i = 0; i < r->items->len; i++) {
    const Item *item = r->items->pdata[i];

    if (!dr_revert_argv_swap(p->truth, dr_vm_record(r->u.vm)->cwd, item->top, item->overlay, error))
      return FALSE;
  }
  g_ptr_array_unref(p->needs);
  p->needs = dr_rewrite_needs(p->truth); /* they are told by their places */
  return TRUE;
}

gboolean
dr_revert_preflight(Revert *r, GError **error)
{
  DrUpgrade *u = &r->u;
  g_autofree char *doing = g_strdup_printf("revert VM '%s' to snapshot '%s'", dr_vm_name(u->vm), r->name);
  g_autoptr(JsonArray) snapshots = NULL;
  g_autoptr(DrDisks) disks = NULL;

  r->record = dr_snapshot_load(u->vm, r->name, error);
  if (!r->record)
    return FALSE;
  dr_qmp_set_cancel_fd(u->source, dr_job_cancel_fd(u->job));
  u->pre = dr_preflight(u->vm, u->source, NULL, DR_MEMORY_COPY, error);
  snapshots = u->pre ? dr_store_load_snapshots(u->host->store, dr_vm_name(u->vm), error) : NULL;
  disks = snapshots ? dr_disks_read(u->source, dr_vm_record(u->vm)->cwd, error) : NULL;
  if (!disks)
    return FALSE;
  keep_what_counts(r);
  dr_revert_check_record(r);
  check_disks(r, disks);
  if (!check_machine(r, error))
    return FALSE;
  dr_job_set_findings(u->job, u->pre->findings);
  if (dr_findings_block(u->pre->findings))
    return dr_findings_to_error(u->pre->findings, doing, error);
  dr_revert_choose_left(r, disks, snapshots);
  return dr_revert_swap_images(r, error);
}

/* --- Is it the machine? --- */

/* The disks are meant to be others: they are looked at by themselves. */
static gboolean
compare(Revert *r, GError **error)
{
  g_autofree char *doing = g_strdup_printf("revert VM '%s' to snapshot '%s', the new QEMU is another machine",
                                           dr_vm_name(r->u.vm), r->name);
  g_autoptr(DrInventory) inventory = dr_inventory_read(r->u.dest, error);
  g_autoptr(DrFindings) all = dr_findings_new(), findings = dr_findings_new();

  if (!inventory)
    return FALSE;
  dr_inventory_compare(r->u.pre->inventory, inventory, all);
  for (guint i = 0; i < dr_findings_count(all); i++) {
    const DrFinding *finding = dr_findings_get(all, i);

    if (!g_str_equal(finding->code, "disk"))
      dr_findings_add(findings, finding->severity, finding->code, finding->remedy, "%s", finding->text);
  }
  return !dr_findings_block(findings) || dr_findings_to_error(findings, doing, error);
}

static gboolean
check_item(const DrDisks *disks, const Item *item, const char *cwd, GError **error)
{
  const DrDisk *disk = dr_disks_find(disks, item->disk, error);
  DrNode *below = disk ? dr_node_backing(disk->top) : NULL;

  if (!disk)
    return FALSE;
  if (below && dr_same_file(dr_node_file(disk->top), item->overlay, cwd) &&
      dr_same_file(dr_node_file(below), item->base, cwd))
    return TRUE;
  return dr_error_set(error, DR_ERROR_INTERNAL,
                      "the new QEMU has disk '%s' on '%s' and not on '%s' above '%s'", item->disk,
                      dr_node_file(disk->top), item->overlay, item->base);
}

gboolean
dr_revert_verify_disks(Revert *r, GError **error)
{
  const char *cwd = dr_vm_record(r->u.vm)->cwd;
  g_autoptr(DrDisks) disks = dr_disks_read(r->u.dest, cwd, error);

  for (guint i = 0; disks && i < r->items->len; i++)
    if (!check_item(disks, r->items->pdata[i], cwd, error))
      return FALSE;
  return disks != NULL;
}

gboolean
dr_revert_verify(Revert *r, GError **error)
{
  return compare(r, error) && dr_revert_verify_disks(r, error) && dr_upgrade_prepare_console(&r->u, error);
}
