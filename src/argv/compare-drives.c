/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Facts of what the board itself plugs in: disks without -device, -nic and -net, user networks, ports, shared
 * folders. */
#include "argv/compare-private.h"

#include <string.h>

/* The drives of one interface take numbers: the one they ask for, else the first that is free. */
static guint
take_index(GHashTable *taken, const char *interface, int wanted)
{
  guint index = wanted >= 0 ? (guint)wanted : 0;
  char *slot = g_strdup_printf("%s%u", interface, index);

  while (wanted < 0 && g_hash_table_contains(taken, slot)) {
    g_free(slot);
    slot = g_strdup_printf("%s%u", interface, ++index);
  }
  g_hash_table_add(taken, slot);
  return index;
}

static void
put_drive(DrFacts *facts, GHashTable *taken, const char *interface, int wanted, const DrOpts *opts,
          const char *media)
{
  static const char *const keys[] = { "serial", "cyls", "heads", "secs", "addr" };
  g_autofree char *place = g_strdup_printf("%s%u", interface, take_index(taken, interface, wanted));
  g_autofree char *read_only = g_strconcat(place, " read-only", NULL);
  const char *given = opts ? dr_opts_get(opts, "media") : media;
  gboolean is_read_only = FALSE;

  dr_facts_put(facts, "drive", place, given ? given : "disk");
  if (!opts)
    return;
  /* "readonly" is the old name. */
  if (dr_opts_get_bool(opts, dr_opts_has(opts, "readonly") ? "readonly" : "read-only", FALSE, &is_read_only,
                       NULL))
    dr_facts_put(facts, "drive", read_only, is_read_only ? "on" : NULL);
  for (gsize i = 0; i < G_N_ELEMENTS(keys); i++) {
    g_autofree char *key = g_strdup_printf("%s %s", place, keys[i]);

    dr_facts_put(facts, "drive", key, dr_opts_get(opts, keys[i]));
  }
}

static int
number_of(const DrOpts *opts, const char *key, int otherwise)
{
  guint64 value = 0;

  if (!dr_opts_get_uint(opts, key, 0, &value, NULL) || !dr_opts_has(opts, key))
    return otherwise;
  return (int)MIN(value, 1000);
}

/* blockdev.c's if_max_devs: an IDE bus has two units, a SCSI bus seven. -1: wherever there is room. */
static int
wanted_index(const DrOpts *opts, const char *interface)
{
  int units = g_str_equal(interface, "ide") ? 2 : g_str_equal(interface, "scsi") ? 7 : 0;
  int unit = number_of(opts, "unit", -1);

  if (dr_opts_has(opts, "index"))
    return number_of(opts, "index", -1);
  return unit < 0 ? -1 : number_of(opts, "bus", 0) * units + unit;
}

/* A drive with if=none is plugged in by a -device and compared there. */
static void
put_drive_option(DrFacts *facts, GHashTable *taken, const DrOpt *opt)
{
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
  const char *interface = opts ? dr_opts_get(opts, "if") : NULL;

  if (!opts || g_strcmp0(interface, "none") == 0)
    return;
  /* "ide" is the default interface of pc and q35. */
  interface = interface ? interface : "ide";
  put_drive(facts, taken, interface, wanted_index(opts, interface), opts, NULL);
}

static void
put_drives(DrFacts *facts, const DrArgv *argv)
{
  static const struct {
    const char *option, *interface, *media;
    int index;
  } shorthands[] = {
    { "hda", "ide", "disk", 0 },       { "hdb", "ide", "disk", 1 },        { "hdc", "ide", "disk", 2 },
    { "hdd", "ide", "disk", 3 },       { "cdrom", "ide", "cdrom", 2 },     { "fda", "floppy", "disk", 0 },
    { "fdb", "floppy", "disk", 1 },    { "pflash", "pflash", "disk", -1 }, { "sd", "sd", "disk", -1 },
    { "mtdblock", "mtd", "disk", -1 },
  };
  g_autoptr(GHashTable) taken = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, NULL, opt));) {
    if (g_str_equal(opt->info->name, "drive"))
      put_drive_option(facts, taken, opt);
    for (gsize i = 0; i < G_N_ELEMENTS(shorthands); i++) {
      if (g_str_equal(opt->info->name, shorthands[i].option))
        put_drive(facts, taken, shorthands[i].interface, shorthands[i].index, NULL, shorthands[i].media);
    }
  }
}

/* What slirp tells the guest about its network: addresses, names, files. */
static void
put_user_network(DrFacts *facts, const char *option, const char *id, const DrOpts *opts)
{
  static const char *const keys[] = {
    "net",         "host",           "ipv4",
    "ipv6",        "ipv6-net",       "ipv6-host",
    "ipv6-prefix", "ipv6-prefixlen", "restrict",
    "dhcpstart",   "hostname",       "domainname",
    "dns",         "ipv6-dns",       "tftp-server-name",
    "bootfile",
  };

  if (g_strcmp0(dr_opts_get(opts, "type"), "user") != 0)
    return;
  for (gsize i = 0; i < G_N_ELEMENTS(keys); i++) {
    g_autofree char *key = g_strdup_printf("%s %s", id ? id : "", keys[i]);

    dr_facts_put(facts, option, key, dr_opts_get(opts, keys[i]));
  }
}

static void
put_netdevs(DrFacts *facts, const DrArgv *argv)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "netdev", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);

    if (opts)
      put_user_network(facts, "netdev", dr_opts_get(opts, "id"), opts);
  }
}

/* -nic makes a card each, -net only with type nic. The cards are numbered in their order. */
static void
put_cards(DrFacts *facts, const DrArgv *argv, const char *option)
{
  static const char *const keys[] = { "model", "mac", "macaddr", "addr", "vectors" };
  gboolean is_net = g_str_equal(option, "net");
  guint n = 0;

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, option, opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *type = opts ? dr_opts_get(opts, "type") : NULL;
    g_autofree char *number = g_strdup_printf("#%u", n + 1);

    if (!type)
      continue;
    put_user_network(facts, option, number, opts);
    if (is_net && !g_str_equal(type, "nic") && !g_str_equal(type, "none"))
      continue;
    n++;
    dr_facts_put(facts, option, number, g_str_equal(type, "none") ? "none" : "card");
    for (gsize i = 0; i < G_N_ELEMENTS(keys); i++) {
      g_autofree char *key = g_strdup_printf("%s %s", number, keys[i]);

      dr_facts_put(facts, option, key, dr_opts_get(opts, keys[i]));
    }
  }
}

/* Which of the serial or parallel ports there are. Without the option the board has one, unless -nodefaults
 * or an ISA serial device says otherwise (vl.c, default_serial). */
static void
put_ports(DrFacts *facts, const DrArgv *argv, const char *option, const char *device)
{
  guint n = 0;

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, option, opt));) {
    g_autofree char *key = g_strdup_printf("#%u", ++n);

    dr_facts_put(facts, option, key, g_str_equal(opt->value, "none") ? NULL : "port");
  }
  if (n > 0 || dr_argv_has(argv, "nodefaults"))
    return;
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "device", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);

    if (opts && g_strcmp0(dr_opts_get(opts, "driver"), device) == 0)
      return;
  }
  dr_facts_put(facts, option, "#1", "port");
}

static void
put_folders(DrFacts *facts, const DrArgv *argv, const char *option)
{
  static const char *const keys[] = { "fsdriver", "mount_tag", "security_model", "readonly", "multidevs" };
  guint n = 0;

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, option, opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);

    n++;
    for (gsize i = 0; opts && i < G_N_ELEMENTS(keys); i++) {
      g_autofree char *key = g_strdup_printf("#%u %s", n, keys[i]);

      dr_facts_put(facts, option, key, dr_opts_get(opts, keys[i]));
    }
  }
}

void
dr_facts_drives(DrFacts *facts, const DrArgv *argv)
{
  g_autoptr(DrOpts) audio = dr_argv_effective(argv, "audio", NULL);

  put_drives(facts, argv);
  put_netdevs(facts, argv);
  put_cards(facts, argv, "nic");
  put_cards(facts, argv, "net");
  put_ports(facts, argv, "serial", "isa-serial");
  put_ports(facts, argv, "parallel", "isa-parallel");
  put_folders(facts, argv, "virtfs");
  put_folders(facts, argv, "fsdev");
  dr_facts_put(facts, "debugcon", NULL, dr_argv_has(argv, "debugcon") ? "port" : NULL);
  if (audio)
    dr_facts_put(facts, "audio", "model", dr_opts_get(audio, "model"));
}
