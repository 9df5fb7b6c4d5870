/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The drives of a command line under the names that QEMU gives them ("ide1-cd0", "virtio2"), which query-block uses.
 *
 * Source: drive_new() of blockdev.c, the same in 5.2 to 11.1: a drive without an id is called after its interface, bus and
 * unit; index= is cut into bus and unit by the number of units that a bus of the interface has; a drive that says neither
 * takes the first free unit in the order of the options. */
#include "job/inventory-internal.h"

#include <stdio.h>
#include <string.h>

static void
drive_free(DrDrive *drive)
{
  dr_opts_free(drive->opts);
  g_free(drive->backend);
  g_free(drive);
}

/* The options that are a -drive in other words: what QEMU adds (vl.c, HD_OPTS, CDROM_OPTS …). */
static const struct {
  const char *name, *interface, *index, *media;
} shorthands[] = {
  { "hda", NULL, "0", "disk" },      { "hdb", NULL, "1", "disk" },       { "hdc", NULL, "2", "disk" },
  { "hdd", NULL, "3", "disk" },      { "cdrom", NULL, "2", "cdrom" },    { "fda", "floppy", "0", NULL },
  { "fdb", "floppy", "1", NULL },    { "pflash", "pflash", NULL, NULL }, { "sd", "sd", NULL, NULL },
  { "mtdblock", "mtd", NULL, NULL },
};

static DrOpts *
opts_of_shorthand(const DrOpt *opt)
{
  for (guint i = 0; i < G_N_ELEMENTS(shorthands); i++) {
    DrOpts *opts;

    if (!g_str_equal(shorthands[i].name, opt->info->name))
      continue;
    opts = dr_opts_new("drive", DR_OPTS_KEYVAL);
    if (shorthands[i].interface)
      dr_opts_set(opts, "if", shorthands[i].interface);
    if (shorthands[i].index)
      dr_opts_set(opts, "index", shorthands[i].index);
    if (shorthands[i].media)
      dr_opts_set(opts, "media", shorthands[i].media);
    dr_opts_set(opts, "file", opt->value);
    return opts;
  }
  return NULL;
}

/* What a drive without if= is connected to, by machine type; NULL: not known for this machine. */
static const char *
default_interface(const char *machine)
{
  static const struct {
    const char *prefix, *interface;
  } table[] = {
    { "pc-", "ide" },
    { "isapc", "ide" },
    { "xenfv", "ide" },
    { "microvm", "none" },
    { "none", "none" },
    { "virt", "virtio" },
    { "s390-ccw-virtio", "virtio" },
    { "pseries", "scsi" },
  };

  for (guint i = 0; i < G_N_ELEMENTS(table); i++)
    if (g_str_has_prefix(machine, table[i].prefix))
      return table[i].interface;
  return NULL;
}

/* Units on a bus of that interface; 0: it has no buses. */
static guint
units_per_bus(const char *machine, const char *interface)
{
  if (g_str_equal(interface, "ide"))
    return g_str_has_prefix(machine, "pc-q35") ? 1 : 2;
  return g_str_equal(interface, "scsi") ? 7 : 0;
}

static char *
name_drive(const char *interface, guint per_bus, guint bus, guint unit, gboolean cdrom)
{
  const char *media = "";

  if (g_str_equal(interface, "ide") || g_str_equal(interface, "scsi"))
    media = cdrom ? "-cd" : "-hd";
  if (per_bus)
    return g_strdup_printf("%s%u%s%u", interface, bus, media, unit);
  return g_strdup_printf("%s%s%u", interface, media, unit);
}

/* The place that the drive gets, as "interface:bus:unit"; `taken` has those of the drives before it. */
static void
find_place(const DrOpts *opts, const char *interface, guint per_bus, GHashTable *taken, guint *bus,
           guint *unit)
{
  guint64 value;

  *bus = *unit = 0;
  if (dr_opts_get_uint(opts, "bus", 0, &value, NULL))
    *bus = (guint)value;
  if (dr_opts_get(opts, "unit") && dr_opts_get_uint(opts, "unit", 0, &value, NULL)) {
    *unit = (guint)value;
  } else if (dr_opts_get(opts, "index") && dr_opts_get_uint(opts, "index", 0, &value, NULL)) {
    *bus = per_bus ? (guint)value / per_bus : 0;
    *unit = per_bus ? (guint)value % per_bus : (guint)value;
  } else {
    for (;;) {
      g_autofree char *place = g_strdup_printf("%s:%u:%u", interface, *bus, *unit);

      if (!g_hash_table_contains(taken, place))
        break;
      if (per_bus && ++*unit >= per_bus) {
        *unit -= per_bus;
        ++*bus;
      } else if (!per_bus) {
        ++*unit;
      }
    }
  }
  g_hash_table_add(taken, g_strdup_printf("%s:%u:%u", interface, *bus, *unit));
}

static char *
backend_name(const DrInventory *inv, const DrOpts *opts, GHashTable *taken)
{
  const char *interface = dr_opts_get(opts, "if");
  const char *media = dr_opts_get(opts, "media");
  guint bus, unit, per_bus;
  g_autofree char *name = NULL;

  if (!interface)
    interface = default_interface(inv->machine);
  if (!interface)
    interface = "none";
  per_bus = units_per_bus(inv->machine, interface);
  find_place(opts, interface, per_bus, taken, &bus, &unit);
  name = name_drive(interface, per_bus, bus, unit, media && g_str_equal(media, "cdrom"));
  return dr_opts_get(opts, "id") ? g_strdup(dr_opts_get(opts, "id")) : g_steal_pointer(&name);
}

GPtrArray *
dr_drives_of(DrApply *a, GError **error)
{
  g_autoptr(GPtrArray) drives = g_ptr_array_new_with_free_func((GDestroyNotify)drive_free);
  g_autoptr(GHashTable) taken = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, NULL, opt));) {
    gboolean full = g_str_equal(opt->info->name, "drive");
    DrOpts *opts = full ? dr_opt_parse(opt, error) : opts_of_shorthand(opt);
    DrDrive *drive;

    if (!opts && full)
      return NULL;
    if (!opts)
      continue;
    drive = g_new0(DrDrive, 1);
    drive->opt = opt;
    drive->opts = opts;
    drive->backend = backend_name(a->inventory, opts, taken);
    g_ptr_array_add(drives, drive);
  }
  return g_steal_pointer(&drives);
}

char *
dr_drive_head_of_default(const DrInventory *inventory, const char *backend)
{
  guint bus, unit, per_bus = units_per_bus(inventory->machine, "ide");

  if (sscanf(backend, "ide%u-cd%u", &bus, &unit) == 2)
    return g_strdup_printf("if=ide,index=%u,media=cdrom", bus * per_bus + unit);
  if (sscanf(backend, "scsi%u-cd%u", &bus, &unit) == 2)
    return g_strdup_printf("if=scsi,bus=%u,unit=%u,media=cdrom", bus, unit);
  if (sscanf(backend, "floppy%u", &unit) == 1)
    return g_strdup_printf("if=floppy,index=%u", unit);
  if (sscanf(backend, "sd%u", &unit) == 1)
    return g_strdup_printf("if=sd,index=%u", unit);
  return NULL;
}
