/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A -drive made to say what runs: after a live snapshot, a commit, a pivot, a change of medium.
 *
 * The danger (reproduced): the command line still names the base image while the guest runs on an overlay; a second QEMU
 * built from it runs on the base, and the migration says "completed". So the source is compared for every drive, and what
 * cannot be compared is refused. The options of the host's side (cache, aio, discard …) stay as they were given: QEMU
 * carries them over to an overlay too. */
#include "job/inventory-internal.h"

#include <string.h>

static const DrNode *
protocol_of(const DrNode *top)
{
  const DrNode *file = dr_node_child(top, "file");

  return file ? file : top;
}

static gboolean
is_cdrom(const DrOpts *opts)
{
  const char *media = dr_opts_get(opts, "media");

  return media && g_str_equal(media, "cdrom");
}

/* --- Writing --- */

/* Whether a drive with no medium may have this option; any other would ask QEMU to open one (5.2 to 11.1). */
static gboolean
is_option_of_slot(const char *key)
{
  static const char *const keys[] = { "if",       "index",  "bus",    "unit",  "media",        "id",
                                      "readonly", "werror", "rerror", "group", "read-only",    "iops",
                                      "bps",      "serial", "locked", "addr",  "copy-on-read", NULL };

  return g_strv_contains(keys, key) || g_str_has_prefix(key, "throttling.") ||
         g_str_has_prefix(key, "iops_") || g_str_has_prefix(key, "bps_");
}

/* What holds for any image in the drive. Others are of the format that was named, or even of the one image (offset=). */
static gboolean
is_option_of_any_image(const char *key)
{
  static const char *const keys[] = { "file",           "format",        "cache",    "aio",
                                      "discard",        "detect-zeroes", "snapshot", "cyls",
                                      "heads",          "secs",          "trans",    "file.locking",
                                      "auto-read-only", "file.aio",      NULL };

  return is_option_of_slot(key) || g_strv_contains(keys, key) || g_str_has_prefix(key, "cache.") ||
         g_str_has_prefix(key, "file.cache.");
}

/* Likewise, with those that tune qcow2 and change nothing that the guest reads. */
static gboolean
is_option_of_any_qcow2(const char *key)
{
  static const char *const keys[] = { "lazy-refcounts",       "overlap-check",
                                      "cache-size",           "l2-cache-size",
                                      "l2-cache-entry-size",  "refcount-cache-size",
                                      "cache-clean-interval", NULL };

  return is_option_of_any_image(key) || g_strv_contains(keys, key) ||
         g_str_has_prefix(key, "pass-discard-") || g_str_has_prefix(key, "overlap-check.");
}

static void
keep_only(DrOpts *opts, gboolean (*wanted)(const char *key))
{
  g_autoptr(GPtrArray) unwanted = g_ptr_array_new_with_free_func(g_free);

  for (guint i = 0; i < dr_opts_n(opts); i++)
    if (!wanted(dr_opts_key(opts, i)))
      g_ptr_array_add(unwanted, g_strdup(dr_opts_key(opts, i)));
  for (guint i = 0; i < unwanted->len; i++)
    dr_opts_unset(opts, unwanted->pdata[i]);
}

/* A path that -drive file= cannot take for a protocol. */
static char *
file_argument(const char *path)
{
  return path[strcspn(path, ":/")] == ':' ? g_strconcat("./", path, NULL) : g_strdup(path);
}

static gboolean
write_source(DrApply *a, DrOpts *opts, const DrNode *top)
{
  const DrNode *file = protocol_of(top);
  g_autofree char *path = NULL;

  if (!(dr_node_is_plain_file(file) || dr_node_is_export(file)) ||
      g_str_has_prefix(dr_node_path(file), "/dev/fdset/")) {
    dr_apply_block(
        a, "disk-source",
        "move the disk back onto a file or a host device, or shut the guest down and start it anew",
        "%s runs on block node '%s' (%s, %s), which drover cannot rebuild, or cannot tell from what the "
        "command line "
        "says",
        a->disk, top->name, file->driver, file->file);
    return FALSE;
  }
  keep_only(opts, g_strcmp0(dr_drive_format(opts), "qcow2") == 0 && g_str_equal(top->driver, "qcow2")
                      ? is_option_of_any_qcow2
                      : is_option_of_any_image);
  if (dr_node_is_export(file))
    dr_note_export(a, file);
  path = dr_node_is_export(file) ? g_strdup(file->file) : file_argument(dr_node_path(file));
  dr_opts_set(opts, "file", path);
  dr_opts_set(opts, "format", top->driver);
  return dr_spell_strong_options(a, opts, "", top);
}

static void
write_name(DrOpts *opts, const char *key, const DrNode *node)
{
  const char *given = dr_opts_get(opts, key);

  if (node && !dr_node_is_unnamed(node)) {
    if (!given || !g_str_equal(given, node->name))
      dr_opts_set(opts, key, node->name);
  } else if (given) {
    dr_opts_unset(opts, key);
  }
}

static gboolean
write_backing(DrApply *a, DrOpts *opts, DrNode *top)
{
  DrNode *below = dr_node_child(top, "backing");

  if (below && dr_drive_spells(a, opts, "backing.", below))
    return TRUE;
  dr_opts_unset(opts, "backing");
  if (dr_chain_is_implicit(top, a->cwd))
    return TRUE;
  if (below)
    return dr_place_child(a, opts, "", "backing", top, below);
  if (dr_json_str(top->info, "image.backing-filename", NULL))
    dr_opts_set(opts, "backing", "");
  return TRUE;
}

static void
write_read_only(DrOpts *opts, const DrNode *top)
{
  const char *key = dr_opts_has(opts, "readonly") ? "readonly" : "read-only";
  gboolean given = is_cdrom(opts), runs = dr_json_bool(top->info, "ro", FALSE);

  if (dr_opts_get_bool(opts, key, given, &given, NULL) && given != runs)
    dr_opts_set_bool(opts, key, runs);
}

/* cache=MODE is short for three flags; only direct and no-flush are compared: the guest itself may switch write-back. */
static void
write_cache(DrOpts *opts, const DrNode *top)
{
  const char *mode = dr_opts_get(opts, "cache");
  gboolean direct =
      mode && (g_str_equal(mode, "none") || g_str_equal(mode, "off") || g_str_equal(mode, "directsync"));
  gboolean no_flush = mode && g_str_equal(mode, "unsafe");
  gboolean runs_direct = dr_json_bool(top->info, "cache.direct", FALSE);
  gboolean runs_no_flush = dr_json_bool(top->info, "cache.no-flush", FALSE);

  dr_opts_get_bool(opts, "cache.direct", direct, &direct, NULL);
  dr_opts_get_bool(opts, "cache.no-flush", no_flush, &no_flush, NULL);
  if (direct == runs_direct && no_flush == runs_no_flush)
    return;
  if (mode && (g_str_equal(mode, "directsync") || g_str_equal(mode, "writethrough")))
    dr_opts_set_bool(opts, "cache.writeback", FALSE);
  dr_opts_unset(opts, "cache");
  dr_opts_unset(opts, "cache.no-flush");
  dr_opts_set_bool(opts, "cache.direct", runs_direct);
  if (runs_no_flush)
    dr_opts_set_bool(opts, "cache.no-flush", TRUE);
}

static void
write_zeroes(DrOpts *opts, const DrNode *top)
{
  const char *runs = dr_json_str(top->info, "detect_zeroes", "off");
  const char *given = dr_opts_get(opts, "detect-zeroes");

  if (!g_str_equal(runs, given ? given : "off"))
    dr_opts_set(opts, "detect-zeroes", runs);
}

static gboolean
write_medium(DrApply *a, DrOpts *opts, JsonObject *entry)
{
  DrNode *top = dr_block_root(a->inventory, entry);

  if (!top) {
    dr_apply_block(a, "disk-graph", "ask QEMU by query-named-block-nodes what the disk runs on",
                   "%s: QEMU does not tell the block node it runs on", a->disk);
    return FALSE;
  }
  if (!dr_drive_is_on(a, opts, top)) {
    if (!write_source(a, opts, top))
      return FALSE;
  }
  write_name(opts, "node-name", top);
  write_name(opts, "file.node-name", dr_node_child(top, "file"));
  if (!write_backing(a, opts, top))
    return FALSE;
  write_read_only(opts, top);
  write_cache(opts, top);
  write_zeroes(opts, top);
  return TRUE;
}

/* --- Comparing --- */

/* The same keys with the same values, in whatever order. */
static gboolean
same_options(const DrOpts *a, const DrOpts *b)
{
  if (dr_opts_n(a) != dr_opts_n(b))
    return FALSE;
  for (guint i = 0; i < dr_opts_n(a); i++) {
    const char *other = dr_opts_get(b, dr_opts_key(a, i));

    if (!other || !g_str_equal(other, dr_opts_value(a, i)))
      return FALSE;
  }
  return TRUE;
}

static void
store(DrApply *a, DrDrive *drive, const DrOpts *opts)
{
  g_autofree char *value = NULL;
  DrOpt *opt = drive->opt;

  if (same_options(drive->opts, opts))
    return;
  value = dr_opts_print(opts);
  dr_findings_add(a->findings, DR_FINDING_NOTE, "disk-changed", NULL,
                  "%s is not what the command line says any more: -drive %s", a->disk, value);
  if (g_str_equal(opt->info->name, "drive")) {
    dr_opt_set_value(opt, value);
  } else {
    drive->opt = dr_argv_insert_after(a->argv, opt, "drive", value);
    dr_argv_remove(a->argv, opt);
  }
}

void
dr_drive_apply(DrApply *a, DrDrive *drive, JsonObject *entry)
{
  JsonObject *inserted = dr_json_obj(entry, "inserted");
  g_autoptr(DrOpts) opts = dr_opts_copy(drive->opts);
  g_autofree char *disk = g_strdup_printf("disk '%s'", drive->backend);

  a->disk = disk;
  if (inserted)
    dr_throttle_apply(opts, drive->backend, inserted);
  else if (dr_drive_has_source(drive->opts))
    keep_only(opts, is_option_of_slot); /* ejected */
  if (!inserted || write_medium(a, opts, entry))
    store(a, drive, opts);
  a->disk = NULL;
}

void
dr_drive_add(DrApply *a, const char *head, const char *backend, JsonObject *entry)
{
  g_autofree char *disk = g_strdup_printf("disk '%s'", backend);
  g_autoptr(DrOpts) opts = dr_opts_parse("drive", head, NULL);
  JsonObject *inserted = dr_json_obj(entry, "inserted");
  g_autofree char *value = NULL;

  g_assert(opts);
  a->disk = disk;
  if (inserted)
    dr_throttle_apply(opts, backend, inserted);
  if (!inserted || write_medium(a, opts, entry)) {
    value = dr_opts_print(opts);
    dr_argv_append(a->argv, "drive", value);
  }
  a->disk = NULL;
}
