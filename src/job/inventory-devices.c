/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which -device of the command line is which device of the guest; those that were unplugged go, those plugged in come.
 *
 * A device with an id is found by it in /machine/peripheral. One without is "device[N]" in /machine/peripheral-anon, N
 * counting in the order in which QEMU makes them: -device and -virtfs as written, then what -drive if=virtio and -watchdog
 * add, then -device in JSON (6.2 and newer keep those apart). */
#include "job/inventory-internal.h"

#include <string.h>

/* A device without an id that the command line asks for. */
typedef struct {
  DrOpt *opt;
  char *driver;
  gboolean is_device;
} Expected;

static void
expected_free(Expected *expected)
{
  g_free(expected->driver);
  g_free(expected);
}

static void
expect(GPtrArray *list, DrOpt *opt, const char *driver)
{
  Expected *expected = g_new0(Expected, 1);

  expected->opt = opt;
  expected->driver = g_strdup(driver);
  expected->is_device = g_str_equal(opt->info->name, "device");
  g_ptr_array_add(list, expected);
}

static gboolean
is_virtio_drive(const DrOpt *opt, const char *machine)
{
  g_autoptr(DrOpts) opts = g_str_equal(opt->info->name, "drive") ? dr_opt_parse(opt, NULL) : NULL;
  const char *interface = opts ? dr_opts_get(opts, "if") : NULL;

  if (interface)
    return g_str_equal(interface, "virtio");
  return opts && (g_str_has_prefix(machine, "virt") || g_str_has_prefix(machine, "s390"));
}

/* In QEMU's order of creation. */
static gboolean
list_expected(DrApply *a, GPtrArray *list, GError **error)
{
  g_autoptr(GPtrArray) late = g_ptr_array_new();
  g_autoptr(GPtrArray) json = g_ptr_array_new();

  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, NULL, opt));) {
    if (g_str_equal(opt->info->name, "device")) {
      g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);

      if (!opts)
        return FALSE;
      if (dr_opts_get(opts, "id"))
        continue;
      if (dr_opts_form(opts) == DR_OPTS_JSON)
        g_ptr_array_add(json, opt);
      else
        expect(list, opt, dr_opts_get(opts, "driver"));
    } else if (g_str_equal(opt->info->name, "virtfs")) {
      expect(list, opt, "virtio-9p-pci");
    } else if (is_virtio_drive(opt, a->inventory->machine)) {
      g_ptr_array_add(late, opt);
    }
  }
  for (guint i = 0; i < late->len; i++)
    expect(list, late->pdata[i], "virtio-blk");
  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, "watchdog", opt));)
    expect(list, opt, opt->value);
  for (guint i = 0; i < json->len; i++) {
    g_autoptr(DrOpts) opts = dr_opt_parse(json->pdata[i], NULL);

    expect(list, json->pdata[i], dr_opts_get(opts, "driver"));
  }
  return TRUE;
}

/* -device takes names that are not types ("virtio-blk" is virtio-blk-pci on a PC). */
static gboolean
is_type_of(const char *driver, const char *type)
{
  static const char *const aliases[][2] = {
    { "lsi", "lsi53c895a" }, { "ahci", "ich9-ahci" }, { "e1000-82540em", "e1000" },
    { "ES1370", "es1370" },  { "ac97", "AC97" },      { "virtio-input-host", "virtio-input-host-pci" }
  };

  if (!driver)
    return FALSE;
  if (g_str_equal(driver, type))
    return TRUE;
  if (g_str_has_prefix(driver, "v") && g_str_has_prefix(type, driver)) { /* virtio-*, vhost-* */
    const char *rest = type + strlen(driver);

    return g_str_equal(rest, "-pci") || g_str_equal(rest, "-ccw") || g_str_equal(rest, "-device");
  }
  for (guint i = 0; i < G_N_ELEMENTS(aliases); i++)
    if (g_str_equal(driver, aliases[i][0]) && g_str_equal(type, aliases[i][1]))
      return TRUE;
  return FALSE;
}

static guint
number_of(const DrPlugged *plugged)
{
  return (guint)g_ascii_strtoull(plugged->name + strlen("device["), NULL, 10);
}

/* Those of the guest without an id that were not plugged in. */
static GPtrArray *
list_anonymous(const DrInventory *inv)
{
  GPtrArray *list = g_ptr_array_new();

  for (guint i = 0; i < inv->plugged->len; i++) {
    DrPlugged *plugged = inv->plugged->pdata[i];

    if (plugged->anon && !plugged->hot)
      g_ptr_array_add(list, plugged);
  }
  return list;
}

/* The numbers have gaps: the process in which a device went still runs, and they count the command line's devices. */
static gboolean
pair_by_number(const GPtrArray *expected, const GPtrArray *found, GPtrArray *pairs)
{
  for (guint i = 0; i < found->len; i++) {
    DrPlugged *plugged = found->pdata[i];
    guint n = number_of(plugged);

    if (n >= expected->len || !is_type_of(((Expected *)expected->pdata[n])->driver, plugged->type))
      return FALSE;
    pairs->pdata[n] = plugged;
  }
  return TRUE;
}

/* The numbers were given anew by a QEMU that was started without the gone ones: in order, if there is only one way to do
 * it, that is if pairing from the front and from the back gives the same. */
static gboolean
pair_in_order(const GPtrArray *expected, const GPtrArray *found, GPtrArray *pairs)
{
  guint n = 0, back = expected->len;

  for (guint i = 0; i < found->len; i++, n++) {
    DrPlugged *plugged = found->pdata[i];

    while (n < expected->len && !is_type_of(((Expected *)expected->pdata[n])->driver, plugged->type))
      n++;
    if (n >= expected->len)
      return FALSE;
    pairs->pdata[n] = plugged;
  }
  for (guint i = found->len; i > 0; i--) {
    DrPlugged *plugged = found->pdata[i - 1];

    while (back > 0 && !is_type_of(((Expected *)expected->pdata[back - 1])->driver, plugged->type))
      back--;
    if (back == 0 || pairs->pdata[--back] != plugged)
      return FALSE;
  }
  return TRUE;
}

/* Entry n of the result is the device for the n-th expected one, or NULL: it is gone. NULL: it cannot be told. */
static GPtrArray *
pair_up(const GPtrArray *expected, const GPtrArray *found)
{
  g_autoptr(GPtrArray) pairs = g_ptr_array_new();
  gboolean gaps = found->len > 0 && number_of(found->pdata[found->len - 1]) >= found->len;

  g_ptr_array_set_size(pairs, (int)expected->len);
  if (gaps ? !pair_by_number(expected, found, pairs) : !pair_in_order(expected, found, pairs))
    return NULL;
  return g_steal_pointer(&pairs);
}

static gboolean
match_anonymous(DrApply *a, GHashTable *known, GPtrArray *gone, GError **error)
{
  g_autoptr(GPtrArray) expected = g_ptr_array_new_with_free_func((GDestroyNotify)expected_free);
  g_autoptr(GPtrArray) found = list_anonymous(a->inventory);
  g_autoptr(GPtrArray) pairs = NULL;

  if (!list_expected(a, expected, error))
    return FALSE;
  pairs = pair_up(expected, found);
  if (!pairs) {
    dr_apply_block(a, "devices", "give each -device an id=, so that it can be told which is which",
                   "the guest's devices without an id (%u) are others than the command line's (%u)",
                   found->len, expected->len);
    return TRUE;
  }
  for (guint n = 0; n < expected->len; n++) {
    const Expected *want = expected->pdata[n];

    if (pairs->pdata[n])
      g_hash_table_add(known, pairs->pdata[n]);
    if (pairs->pdata[n] && want->is_device)
      g_hash_table_insert(a->devices, want->opt, pairs->pdata[n]);
    else if (!pairs->pdata[n] && want->is_device)
      g_ptr_array_add(gone, want->opt);
  }
  return TRUE;
}

static DrPlugged *
find_plugged(const DrInventory *inv, const char *id)
{
  for (guint i = 0; i < inv->plugged->len; i++) {
    DrPlugged *plugged = inv->plugged->pdata[i];

    if (!plugged->anon && g_str_equal(plugged->name, id))
      return plugged;
  }
  return NULL;
}

static gboolean
match_by_id(DrApply *a, GHashTable *known, GPtrArray *gone, GError **error)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, "device", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);
    const char *id = opts ? dr_opts_get(opts, "id") : NULL;
    DrPlugged *plugged = id ? find_plugged(a->inventory, id) : NULL;

    if (!opts)
      return FALSE;
    if (!id)
      continue;
    /* Another type under the same id: the first was unplugged, then another one plugged in. */
    if (!plugged || !is_type_of(dr_opts_get(opts, "driver"), plugged->type)) {
      g_ptr_array_add(gone, opt);
      continue;
    }
    g_hash_table_add(known, plugged);
    g_hash_table_insert(a->devices, opt, plugged);
  }
  return TRUE;
}

/* --- Unplugged --- */

static const char *
driver_of(const DrOpt *opt, char **ret_text)
{
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);

  return *ret_text = g_strdup(opts && dr_opts_get(opts, "driver") ? dr_opts_get(opts, "driver") : "");
}

/* Places on a bus are given out in order: with one device less, the later ones of its kind would move up. */
static void
pin_place(DrApply *a, DrOpt *opt, const DrQdev *dev, gboolean usb, gboolean scsi)
{
  static const char *const scsi_keys[] = { "channel", "scsi-id", "lun", NULL }, *const pci_keys[] = { "addr",
                                                                                                      "nr",
                                                                                                      NULL };
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
  g_autofree char *before = opts ? dr_opts_print(opts) : NULL;
  g_autofree char *after = NULL;

  if (!opts)
    return;
  for (const char *const *key = scsi ? scsi_keys : usb ? pci_keys + 2 : pci_keys; *key; key++) {
    const char *value = g_hash_table_lookup(dev->props, *key);

    if (!value || !*value || dr_opts_has(opts, *key))
      continue;
    if (scsi || g_str_equal(*key, "nr"))
      dr_opts_set_uint(opts, *key, g_ascii_strtoull(value, NULL, 10));
    else
      dr_opts_set(opts, *key, value);
  }
  if (usb && dev->usb_port && !dr_opts_has(opts, "port"))
    dr_opts_set(opts, "port", dev->usb_port);
  after = dr_opts_print(opts);
  if (!g_str_equal(before, after))
    dr_opt_set_opts(opt, opts);
}

/* In the order of the command line, which is that of creation. */
static void
pin_places(DrApply *a, const char *driver)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, "device", opt));) {
    const DrPlugged *plugged = g_hash_table_lookup(a->devices, opt);
    const DrQdev *dev = plugged ? dr_qtree_find_plugged(a->inventory, plugged, a->taken) : NULL;

    if (dev)
      pin_place(a, opt, dev, g_str_has_prefix(driver, "usb-"), g_str_has_prefix(driver, "scsi-"));
  }
  g_hash_table_remove_all(a->taken);
}

static void
remove_gone(DrApply *a, GPtrArray *gone)
{
  for (guint i = 0; i < gone->len; i++) {
    DrOpt *old = gone->pdata[i];
    g_autofree char *driver = NULL;

    driver_of(old, &driver);
    dr_findings_add(a->findings, DR_FINDING_NOTE, "unplugged", NULL,
                    "device '%s' was unplugged and is left out", old->value);
    dr_argv_remove(a->argv, old);
    pin_places(a, driver);
  }
}

/* --- Plugged in --- */

/* Things in /machine/peripheral that other options than -device put there. */
static gboolean
is_from_other_option(const DrApply *a, const DrPlugged *plugged)
{
  return g_str_equal(plugged->name, "debugcon") && dr_argv_has(a->argv, "debugcon");
}

static guint
depth_of(const DrInventory *inv, const DrPlugged *plugged)
{
  const DrQdev *dev = dr_qtree_find_plugged(inv, plugged, NULL);

  return dev ? dev->depth : 0;
}

/* A controller before what sits on it. */
static int
by_depth(gconstpointer x, gconstpointer y, gpointer inventory)
{
  const DrPlugged *a = *(DrPlugged *const *)x, *b = *(DrPlugged *const *)y;
  int depth = (int)depth_of(inventory, a) - (int)depth_of(inventory, b);

  if (depth)
    return depth;
  if (a->anon && b->anon)
    return (int)number_of(a) - (int)number_of(b);
  return strcmp(a->anon ? "drover-dev" : a->name, b->anon ? "drover-dev" : b->name); /* by the ids they get */
}

static void
add_plugged(DrApply *a, GHashTable *known)
{
  g_autoptr(GPtrArray) list = g_ptr_array_new();

  for (guint i = 0; i < a->inventory->plugged->len; i++) {
    DrPlugged *plugged = a->inventory->plugged->pdata[i];

    if (!g_hash_table_contains(known, plugged) && !(plugged->anon && !plugged->hot) &&
        !is_from_other_option(a, plugged))
      g_ptr_array_add(list, plugged);
  }
  g_ptr_array_sort_with_data(list, by_depth, (gpointer)a->inventory);
  for (guint i = 0; i < list->len; i++)
    dr_plug_device(a, list->pdata[i]);
}

gboolean
dr_apply_devices(DrApply *a, GError **error)
{
  g_autoptr(GHashTable) known = g_hash_table_new(NULL, NULL);
  g_autoptr(GPtrArray) gone = g_ptr_array_new();

  if (!match_by_id(a, known, gone, error) || !match_anonymous(a, known, gone, error))
    return FALSE;
  remove_gone(a, gone);
  add_plugged(a, known);
  return TRUE;
}
