/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disks by name, before there is a QEMU to ask. */
#include "job/argv-disk.h"
#include "base/error.h"

#include <string.h>

#define DEPTH_MAX 8 /* of filters on each other */

void
dr_argv_disk_free(DrArgvDisk *disk)
{
  if (!disk)
    return;
  g_free(disk->path);
  g_free(disk->format);
  g_free(disk->node);
  g_free(disk->file_node);
  g_free(disk);
}

/* --- What an option says --- */

static const char *
get(const DrOpts *opts, const char *prefix, const char *name)
{
  g_autofree char *key = g_strconcat(prefix, name, NULL);

  return dr_opts_get(opts, key);
}

static gboolean
flag(const DrOpts *opts, const char *prefix, const char *name)
{
  g_autofree char *key = g_strconcat(prefix, name, NULL);
  gboolean value = FALSE;

  return dr_opts_get_bool(opts, key, FALSE, &value, NULL) && value;
}

/* As -blockdev takes it: any name is one of a file. */
static char *
whole_path(const char *name, const char *cwd)
{
  return name && *name ? g_canonicalize_filename(name, cwd) : NULL;
}

/* NULL for "nbd:…", "json:…": no file. */
static char *
local_path(const char *name, const char *cwd)
{
  if (name && g_str_has_prefix(name, "file:"))
    name += strlen("file:");
  if (!name || !*name || name[strcspn(name, ":/")] == ':')
    return NULL;
  return g_canonicalize_filename(name, cwd);
}

/* -hda FILE and the like: the option's value is the file. */
static gboolean
is_shorthand(const DrOpt *opt)
{
  static const char *const names[] = { "hda", "hdb", "hdc", "hdd", NULL };

  return g_strv_contains(names, opt->info->name);
}

static DrArgvDisk *
read_drive(DrOpt *opt, const char *cwd)
{
  DrArgvDisk *disk = g_new0(DrArgvDisk, 1);
  g_autoptr(DrOpts) opts = is_shorthand(opt) ? NULL : dr_opt_parse(opt, NULL);
  const char *file;

  disk->drive = opt;
  if (!opts) {
    disk->path = local_path(opt->value, cwd);
    return disk;
  }
  file = dr_opts_get(opts, "file");
  disk->path = file ? local_path(file, cwd) : local_path(dr_opts_get(opts, "file.filename"), cwd);
  disk->format =
      g_strdup(dr_opts_get(opts, "format") ? dr_opts_get(opts, "format") : dr_opts_get(opts, "driver"));
  disk->node = g_strdup(dr_opts_get(opts, "node-name"));
  disk->file_node = g_strdup(dr_opts_get(opts, "file.node-name"));
  disk->read_only = flag(opts, "", "readonly") || flag(opts, "", "read-only") ||
                    g_strcmp0(dr_opts_get(opts, "media"), "cdrom") == 0;
  disk->temporary = flag(opts, "", "snapshot");
  disk->has_backing = dr_opts_has(opts, "backing");
  return disk;
}

static gboolean
is_filter(const char *driver)
{
  static const char *const filters[] = { "throttle", "copy-on-read", "preallocate", "compress", NULL };

  return driver && g_strv_contains(filters, driver);
}

static DrOpts *
blockdev(const DrArgv *argv, const char *node)
{
  DrOpt *opt = node ? dr_argv_find_id(argv, "blockdev", node) : NULL;

  return opt ? dr_opt_parse(opt, NULL) : NULL;
}

/* A protocol node, written inside of its parent (below `prefix`) or referred to. */
static void
read_file(DrArgvDisk *disk, const DrArgv *argv, const DrOpts *opts, const char *prefix, const char *cwd)
{
  g_autofree char *below = g_strconcat(prefix, "file.", NULL);
  const char *reference = get(opts, prefix, "file");
  g_autoptr(DrOpts) other = blockdev(argv, reference);
  const DrOpts *at = other ? other : opts;

  if (reference && !other)
    return;
  disk->file_node = g_strdup(other ? reference : get(opts, below, "node-name"));
  if (g_strcmp0(get(at, other ? "" : below, "driver"), "file") == 0)
    disk->path = whole_path(get(at, other ? "" : below, "filename"), cwd);
}

/* The image below filters. */
static void
read_node(DrArgvDisk *disk, const DrArgv *argv, const DrOpts *opts, const char *prefix, const char *cwd,
          guint depth)
{
  g_autofree char *below = g_strconcat(prefix, "file.", NULL);
  const char *driver = get(opts, prefix, "driver"), *reference = get(opts, prefix, "file");
  g_autofree char *backing = g_strconcat(prefix, "backing", NULL);
  g_autoptr(DrOpts) other = blockdev(argv, reference);

  if (is_filter(driver) && depth < DEPTH_MAX) {
    read_node(disk, argv, other ? other : opts, other ? "" : below, cwd, depth + 1);
    return;
  }
  disk->format = g_strdup(driver);
  disk->node = g_strdup(get(opts, prefix, "node-name"));
  disk->read_only = flag(opts, prefix, "read-only");
  disk->has_backing = dr_opts_has(opts, backing);
  read_file(disk, argv, opts, prefix, cwd);
}

/* --- Finding --- */

static gboolean
is_drive(const DrOpt *opt)
{
  return g_str_equal(opt->info->name, "drive") || is_shorthand(opt);
}

static char *
id_of(const DrOpt *opt, const char *key)
{
  g_autoptr(DrOpts) opts = opt && !is_shorthand(opt) ? dr_opt_parse(opt, NULL) : NULL;

  return opts ? g_strdup(dr_opts_get(opts, key)) : NULL;
}

static DrOpt *
device_of(const DrArgv *argv, const char *drive)
{
  for (DrOpt *opt = NULL; drive && (opt = dr_argv_next(argv, "device", opt));) {
    g_autofree char *of = id_of(opt, "drive");

    if (g_strcmp0(of, drive) == 0)
      return opt;
  }
  return NULL;
}

static DrArgvDisk *
disk_of_blockdev(const DrArgv *argv, DrOpt *device, const char *cwd)
{
  g_autofree char *node = id_of(device, "drive");
  g_autoptr(DrOpts) opts = blockdev(argv, node);
  DrArgvDisk *disk;

  if (!opts)
    return NULL;
  disk = g_new0(DrArgvDisk, 1);
  disk->device = device;
  read_node(disk, argv, opts, "", cwd, 0);
  return disk;
}

/* In the command line's order. */
static GPtrArray *
all_disks(const DrArgv *argv, const char *cwd)
{
  GPtrArray *disks = g_ptr_array_new_with_free_func((GDestroyNotify)dr_argv_disk_free);

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, NULL, opt));) {
    DrArgvDisk *disk = NULL;

    if (is_drive(opt)) {
      g_autofree char *id = id_of(opt, "id");

      disk = read_drive(opt, cwd);
      disk->device = device_of(argv, id);
    } else if (g_str_equal(opt->info->name, "device")) {
      disk = disk_of_blockdev(argv, opt, cwd);
    }
    if (disk)
      g_ptr_array_add(disks, disk);
  }
  return disks;
}

static gboolean
is_called(const DrArgvDisk *disk, const char *name, const char *cwd)
{
  g_autofree char *path = g_canonicalize_filename(name, cwd);
  g_autofree char *device = id_of(disk->device, "id");
  g_autofree char *drive = id_of(disk->drive, "id");
  const char *names[] = { device, drive, disk->node, disk->file_node };

  for (guint i = 0; i < G_N_ELEMENTS(names); i++)
    if (g_strcmp0(names[i], name) == 0)
      return TRUE;
  return g_strcmp0(disk->path, path) == 0;
}

static gboolean
no_such_disk(const GPtrArray *disks, const char *name, GError **error)
{
  g_autoptr(GString) names = g_string_new(NULL);

  for (guint i = 0; i < disks->len; i++) {
    const DrArgvDisk *disk = disks->pdata[i];
    g_autofree char *device = id_of(disk->device, "id");
    g_autofree char *drive = id_of(disk->drive, "id");
    const char *best = device ? device : drive ? drive : disk->node ? disk->node : disk->path;

    if (best)
      g_string_append_printf(names, "%s%s", names->len ? ", " : "", best);
  }
  dr_error_set(error, DR_ERROR_NOT_FOUND, "the command line has no disk '%s'", name);
  return names->len ? dr_error_remedy(error, "its disks are: %s", names->str)
                    : dr_error_remedy(error, "give it one, by -drive or -blockdev");
}

DrArgvDisk *
dr_argv_disk_find(const DrArgv *argv, const char *name, const char *cwd, GError **error)
{
  g_autoptr(GPtrArray) disks = all_disks(argv, cwd);
  guint found = 0, n = 0;

  for (guint i = 0; i < disks->len; i++)
    if (is_called(disks->pdata[i], name, cwd)) {
      found = i;
      n++;
    }
  if (n == 0)
    no_such_disk(disks, name, error);
  if (n > 1)
    dr_error_set(error, DR_ERROR_INVALID, "%u disks of the command line are known as '%s'", n, name);
  return n == 1 ? g_ptr_array_steal_index(disks, found) : NULL;
}

/* --- Errors --- */

/* Those that tell QEMU of each error and may be told to wait (blk_error_action() in their sources; 5.2 to 11.1). */
static gboolean
device_can_stop(const DrOpt *device)
{
  static const char *const prefixes[] = { "virtio-blk", "ide-hd", "scsi-hd" };
  g_autofree char *driver = id_of(device, "driver");

  for (guint i = 0; driver && i < G_N_ELEMENTS(prefixes); i++)
    if (g_str_has_prefix(driver, prefixes[i]))
      return TRUE;
  return FALSE;
}

/* if= of a drive whose device the board makes: QEMU refuses rerror= for any other. */
static gboolean
board_can_stop(const DrOpts *opts)
{
  static const char *const interfaces[] = { "ide", "scsi", "virtio", NULL };
  const char *interface = dr_opts_get(opts, "if");

  return !interface || g_strv_contains(interfaces, interface);
}

static void
set_stop(DrOpts *opts)
{
  static const char *const keys[] = { "rerror", "werror" };

  for (guint i = 0; i < G_N_ELEMENTS(keys); i++)
    if (!dr_opts_has(opts, keys[i]))
      dr_opts_set(opts, keys[i], "stop");
}

static void
spell_out(DrArgv *argv, DrOpt *opt)
{
  g_autoptr(DrOpts) opts = dr_opts_new("drive", DR_OPTS_KEYVAL);
  g_autofree char *value = NULL;
  char index[] = { (char)('0' + opt->info->name[2] - 'a'), '\0' };

  dr_opts_set(opts, "index", index);
  dr_opts_set(opts, "media", "disk");
  dr_opts_set(opts, "file", opt->value);
  set_stop(opts);
  value = dr_opts_print(opts);
  dr_argv_insert_after(argv, opt, "drive", value);
  dr_argv_remove(argv, opt);
}

gboolean
dr_argv_disk_stop_on_error(DrArgv *argv, const DrArgvDisk *disk)
{
  DrOpt *opt = disk->drive ? disk->drive : disk->device;
  g_autoptr(DrOpts) opts = is_shorthand(opt) ? NULL : dr_opt_parse(opt, NULL);

  if (opts && !(disk->device ? device_can_stop(disk->device) : board_can_stop(opts)))
    return FALSE;
  if (!opts) {
    spell_out(argv, opt);
    return TRUE;
  }
  set_stop(opts);
  dr_opt_set_opts(opt, opts);
  return TRUE;
}
