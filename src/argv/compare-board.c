/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Facts of the board: machine, accelerator, CPU, memory, topology, firmware tables, clock. */
#include "argv/compare-private.h"

#include <string.h>

/* -machine keys that are the host's; memory-backend only names what the memory is made of. */
static const char *const host_machine_keys[] = {
  "accel", "memory-backend", "dump-guest-core", "mem-merge", "aux-ram-share", "suppress-vmdesc", NULL,
};

static void
put_machine(DrFacts *facts, const DrArgv *argv)
{
  g_autoptr(DrOpts) opts = dr_argv_effective(argv, "machine", NULL);

  for (guint i = 0; opts && i < dr_opts_n(opts); i++) {
    g_autofree char *key = g_strdelimit(g_strdup(dr_opts_key(opts, i)), "_", '-');

    if (g_str_equal(key, "kernel-irqchip"))
      dr_facts_put(facts, "accel", key, dr_opts_value(opts, i));
    else if (!g_strv_contains(host_machine_keys, key))
      dr_facts_put(facts, "machine", key, dr_opts_value(opts, i));
  }
}

/* Options that are short for a property of the machine. `value` NULL: the option's own argument. */
static void
put_machine_shorthands(DrFacts *facts, const DrArgv *argv)
{
  static const struct {
    const char *option, *key, *value;
  } shorthands[] = {
    { "no-acpi", "acpi", "off" },       { "no-hpet", "hpet", "off" }, { "usb", "usb", "on" },
    { "nographic", "graphics", "off" }, { "kernel", "kernel", NULL }, { "initrd", "initrd", NULL },
    { "append", "append", NULL },       { "dtb", "dtb", NULL },       { "shim", "shim", NULL },
    { "bios", "firmware", NULL },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(shorthands); i++) {
    const DrOpt *opt = dr_argv_find_last(argv, shorthands[i].option);

    if (opt)
      dr_facts_put(facts, "machine", shorthands[i].key,
                   shorthands[i].value ? shorthands[i].value : opt->value);
  }
}

/* The accelerators in the order in which QEMU tries them, "kvm:tcg". */
static char *
accelerators(const DrArgv *argv)
{
  g_autoptr(GString) names = g_string_new(NULL);
  g_autoptr(DrOpts) machine = dr_argv_effective(argv, "machine", NULL);

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "accel", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *name = opts ? dr_opts_get(opts, "accel") : NULL;

    g_string_append_printf(names, "%s%s", names->len ? ":" : "", name ? name : "");
  }
  if (names->len == 0 && dr_argv_has(argv, "enable-kvm"))
    g_string_append(names, "kvm");
  if (names->len == 0 && machine && dr_opts_get(machine, "accel"))
    g_string_append(names, dr_opts_get(machine, "accel"));
  return g_strdup(names->len ? names->str : "tcg"); /* the default since 2.x */
}

static void
put_accel(DrFacts *facts, const DrArgv *argv)
{
  g_autofree char *names = accelerators(argv);

  dr_facts_put(facts, "accel", "accel", names);
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "accel", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);

    if (opts)
      dr_facts_put(facts, "accel", "kernel-irqchip", dr_opts_get(opts, "kernel-irqchip"));
  }
}

/* Without -cpu every x86 board has qemu64. */
static void
put_cpu(DrFacts *facts, const DrArgv *argv)
{
  g_autoptr(DrOpts) opts = dr_argv_effective(argv, "cpu", NULL);

  if (!opts)
    dr_facts_put(facts, "cpu", "model", "qemu64");
  for (guint i = 0; opts && i < dr_opts_n(opts); i++) {
    const char *key = dr_opts_key(opts, i);
    g_autofree char *name = g_strdelimit(g_strdup(key), "_.", '-');

    if (*key)
      dr_facts_put(facts, "cpu", name, dr_opts_get(opts, key));
  }
}

static void
put_size(DrFacts *facts, const char *option, const char *key, const DrOpts *opts, const char *from)
{
  g_autofree char *text = NULL;
  guint64 bytes = 0;

  if (!dr_opts_get(opts, from))
    return;
  if (dr_opts_get_size(opts, from, 0, &bytes, NULL))
    text = g_strdup_printf("%" G_GUINT64_FORMAT, bytes);
  dr_facts_put(facts, option, key, text ? text : dr_opts_get(opts, from));
}

/* Without a size the boards have 128 MiB (MachineClass.default_ram_size). */
static void
put_memory(DrFacts *facts, const DrArgv *argv)
{
  g_autoptr(DrOpts) opts = dr_argv_effective(argv, "m", NULL);

  dr_facts_put(facts, "m", "size", "134217728");
  if (!opts)
    return;
  put_size(facts, "m", "size", opts, "size");
  put_size(facts, "m", "maxmem", opts, "maxmem");
  dr_facts_put(facts, "m", "slots", dr_opts_get(opts, "slots"));
}

static guint64
count_of(const DrOpts *opts, const char *key, guint64 otherwise)
{
  guint64 value = otherwise;

  return opts && dr_opts_get_uint(opts, key, otherwise, &value, NULL) ? value : otherwise;
}

static guint64
product_of(const DrOpts *opts, const char *const *levels)
{
  guint64 product = 1;

  for (; *levels; levels++)
    product *= count_of(opts, *levels, 1);
  return product;
}

static void
put_count(DrFacts *facts, const char *key, guint64 count)
{
  g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, count);

  dr_facts_put(facts, "smp", key, text);
}

/* CPUs and maximum as they come out. Levels whose product is the maximum leave nothing open, and missing ones
 * are 1; else they are taken as they are given, because what QEMU makes of them depends on the machine type
 * (from pc-*-6.2 on it prefers cores to sockets). */
static void
put_smp(DrFacts *facts, const DrArgv *argv)
{
  static const char *const levels[] = {
    "drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads", NULL,
  };
  g_autoptr(DrOpts) opts = dr_argv_effective(argv, "smp", NULL);
  guint64 product = product_of(opts, levels);
  guint64 cpus = count_of(opts, "cpus", count_of(opts, "maxcpus", product));
  guint64 max_cpus = count_of(opts, "maxcpus", MAX(cpus, product));

  put_count(facts, "cpus", cpus);
  put_count(facts, "maxcpus", max_cpus);
  for (guint i = 0; levels[i]; i++) {
    if (product == max_cpus)
      put_count(facts, levels[i], count_of(opts, levels[i], 1));
    else if (opts)
      dr_facts_put(facts, "smp", levels[i], dr_opts_get(opts, levels[i]));
  }
}

static int
compare_strings(const void *a, const void *b)
{
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* All of a value as "key=value,…" in the order of the keys. (transfer full) */
static char *
sorted_text(const char *option, const DrOpts *opts)
{
  g_autoptr(GPtrArray) parts = g_ptr_array_new_with_free_func(g_free);

  for (guint i = 0; i < dr_opts_n(opts); i++) {
    g_autofree char *value = dr_compare_canonical(option, dr_opts_key(opts, i), dr_opts_value(opts, i));

    g_ptr_array_add(parts, g_strdup_printf("%s=%s", dr_opts_key(opts, i), value));
  }
  g_ptr_array_sort(parts, compare_strings);
  g_ptr_array_add(parts, NULL);
  return g_strjoinv(",", (char **)parts->pdata);
}

/* A node's memory may be given as a size or as a backend, whose name is the host's business. */
static void
put_numa_node(DrFacts *facts, const DrArgv *argv, const DrOpts *opts, guint number)
{
  g_autofree char *ordinal = g_strdup_printf("%u", number);
  const char *given = dr_opts_get(opts, "nodeid");
  g_autofree char *node = g_strdup_printf("node %s", given ? given : ordinal);
  g_autofree char *memory = g_strconcat(node, " mem", NULL), *cpus = g_strconcat(node, " cpus", NULL);
  g_autofree char *initiator = g_strconcat(node, " initiator", NULL);
  g_autofree char *backend = dr_compare_backend_value(argv, "object", dr_opts_get(opts, "memdev"), "size");
  g_auto(GStrv) ranges = dr_opts_get_all(opts, "cpus");
  g_autofree char *all_cpus = g_strjoinv(",", ranges);

  dr_facts_put(facts, "numa", node, "on");
  dr_facts_put(facts, "numa", memory, backend);
  put_size(facts, "numa", memory, opts, "mem");
  dr_facts_put(facts, "numa", cpus, *all_cpus ? all_cpus : NULL);
  dr_facts_put(facts, "numa", initiator, dr_opts_get(opts, "initiator"));
}

static void
put_numa(DrFacts *facts, const DrArgv *argv)
{
  guint nodes = 0;

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "numa", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    g_autofree char *text = opts ? sorted_text("numa", opts) : NULL;

    if (opts && g_strcmp0(dr_opts_get(opts, "type"), "node") == 0)
      put_numa_node(facts, argv, opts, nodes++);
    else
      dr_facts_put(facts, "numa", text, "on");
  }
}

/* Tables 0 to 4 and 17 exist once and later options add to them; of 8 and 41 there may be many, in order. */
static void
put_smbios(DrFacts *facts, const DrArgv *argv)
{
  guint number = 0;

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "smbios", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *type = opts ? dr_opts_get(opts, "type") : NULL;
    gboolean one_of_many = !type || g_str_equal(type, "8") || g_str_equal(type, "41");
    g_autofree char *prefix = one_of_many ? g_strdup_printf("type %s #%u", type ? type : "file", ++number)
                                          : g_strdup_printf("type %s", type);

    for (guint i = 0; opts && i < dr_opts_n(opts); i++) {
      const char *name = dr_opts_key(opts, i);
      g_autofree char *key = g_strdup_printf("%s %s", prefix, name);
      g_auto(GStrv) values = dr_opts_get_all(opts, name);
      g_autofree char *value = g_strjoinv(",", values);

      dr_facts_put(facts, "smbios", key, value);
    }
  }
}

static void
put_fw_cfg(DrFacts *facts, const DrArgv *argv)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "fw_cfg", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *name = opts ? dr_opts_get(opts, "name") : NULL;
    const char *text = opts ? dr_opts_get(opts, "string") : NULL;

    if (name && text)
      dr_facts_put(facts, "fw_cfg", name, text);
    else if (name && dr_opts_get(opts, "file"))
      dr_facts_put(facts, "fw_cfg", name, dr_opts_get(opts, "file"));
    else if (name)
      dr_facts_put(facts, "fw_cfg", name, dr_opts_get(opts, "gen_id"));
  }
}

/* The last of several counts. "migration" is no device: its properties are settings of the mover. */
static void
put_globals(DrFacts *facts, const DrArgv *argv)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "global", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *driver = opts ? dr_opts_get(opts, "driver") : NULL;
    const char *property = opts ? dr_opts_get(opts, "property") : NULL;
    g_autofree char *key = g_strdup_printf("%s.%s", driver ? driver : "", property ? property : "");

    if (opts && g_strcmp0(driver, "migration") != 0)
      dr_facts_put(facts, "global", key, dr_opts_get(opts, "value"));
  }
}

/* Objects that are part of the machine; memory backends are looked at where something uses them. */
static void
put_objects(DrFacts *facts, const DrArgv *argv)
{
  static const char *const types[] = {
    "sev-guest", "sev-snp-guest", "tdx-guest", "igvm-cfg", "acpi-generic-initiator", "acpi-generic-port",
    NULL,
  };

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "object", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *type = opts ? dr_opts_get(opts, "qom-type") : NULL,
               *id = opts ? dr_opts_get(opts, "id") : NULL;
    g_autofree char *text = type && g_strv_contains(types, type) ? sorted_text("object", opts) : NULL;

    dr_facts_put(facts, "object", id, text);
  }
}

/* Options whose keys are all facts. */
static void
put_all_keys(DrFacts *facts, const DrArgv *argv, const char *name)
{
  g_autoptr(DrOpts) opts = dr_argv_effective(argv, name, NULL);

  for (guint i = 0; opts && i < dr_opts_n(opts); i++)
    dr_facts_put(facts, name, dr_opts_key(opts, i), dr_opts_value(opts, i));
}

/* Options that each add one thing, in an order that counts. */
static void
put_list(DrFacts *facts, const DrArgv *argv, const char *name)
{
  guint n = 0;

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, name, opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    g_autofree char *key = g_strdup_printf("#%u", ++n);
    g_autofree char *text = opts ? sorted_text(name, opts) : g_strdup(opt->value);

    dr_facts_put(facts, name, key, text);
  }
}

static void
put_last(DrFacts *facts, const DrArgv *argv, const char *name)
{
  const DrOpt *opt = dr_argv_find_last(argv, name);

  if (opt)
    dr_facts_put(facts, name, NULL, opt->value ? opt->value : "on");
}

void
dr_facts_board(DrFacts *facts, const DrArgv *argv)
{
  static const char *const last[] = {
    "uuid", "vga", "nodefaults", "no-fd-bootchk", "win2k-hack", "xen-attach", "xen-domid", "watchdog",
  };
  static const char *const lists[] = {
    "acpitable", "option-rom", "soundhw", "usbdevice", "set", "readconfig"
  };
  g_autoptr(DrOpts) overcommit = dr_argv_effective(argv, "overcommit", NULL);

  put_machine(facts, argv);
  put_machine_shorthands(facts, argv);
  put_accel(facts, argv);
  put_cpu(facts, argv);
  put_memory(facts, argv);
  put_smp(facts, argv);
  put_numa(facts, argv);
  put_smbios(facts, argv);
  put_fw_cfg(facts, argv);
  put_globals(facts, argv);
  put_objects(facts, argv);
  dr_facts_put(facts, "rtc", "base", "utc");
  put_all_keys(facts, argv, "rtc");
  put_all_keys(facts, argv, "boot");
  put_all_keys(facts, argv, "icount");
  if (overcommit)
    dr_facts_put(facts, "overcommit", "cpu-pm", dr_opts_get(overcommit, "cpu-pm"));
  for (gsize i = 0; i < G_N_ELEMENTS(last); i++)
    put_last(facts, argv, last[i]);
  for (gsize i = 0; i < G_N_ELEMENTS(lists); i++)
    put_list(facts, argv, lists[i]);
}
