/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Compares -device: which there are, their properties, and their order where the order gives them their
 * place. */
#include "argv/compare-private.h"

#include <string.h>

typedef struct _Device Device;
struct _Device {
  const DrArgv *argv;
  DrOpts *opts;
  char *driver; /* canonical */
  const char *id;
  char *label;  /* for messages and keys: the id, or "driver #2" */
  Device *twin; /* the same device on the other side; NULL if there is none */
};

static void
device_free(Device *device)
{
  dr_opts_free(device->opts);
  g_free(device->driver);
  g_free(device->label);
  g_free(device);
}

/* Names that the x86 binaries take for another (system/qdev-monitor.c). */
static char *
canonical_driver(const char *driver)
{
  static const char *const virtio[] = {
    "virtio-9p",    "virtio-balloon",  "virtio-blk",    "virtio-crypto", "virtio-gpu",    "virtio-input-host",
    "virtio-iommu", "virtio-keyboard", "virtio-mem",    "virtio-mouse",  "virtio-net",    "virtio-pmem",
    "virtio-rng",   "virtio-scsi",     "virtio-serial", "virtio-sound",  "virtio-tablet", NULL,
  };

  if (g_strv_contains(virtio, driver))
    return g_strconcat(driver, "-pci", NULL);
  if (g_str_equal(driver, "e1000-82540em"))
    return g_strdup("e1000");
  if (g_str_equal(driver, "lsi53c895a"))
    return g_strdup("lsi");
  return g_strdup(driver);
}

static GPtrArray *
list_devices(const DrArgv *argv)
{
  GPtrArray *devices = g_ptr_array_new_with_free_func((GDestroyNotify)device_free);
  g_autoptr(GHashTable) counts = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "device", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *driver = opts ? dr_opts_get(opts, "driver") : NULL;
    Device *device = g_new0(Device, 1);
    guint n;

    device->argv = argv;
    device->driver = canonical_driver(driver ? driver : opt->value);
    device->opts = opts ? g_steal_pointer(&opts) : dr_opts_new("device", DR_OPTS_KEYVAL);
    device->id = dr_opts_get(device->opts, "id");
    n = GPOINTER_TO_UINT(g_hash_table_lookup(counts, device->driver)) + 1;
    g_hash_table_insert(counts, g_strdup(device->driver), GUINT_TO_POINTER(n));
    device->label = device->id ? g_strdup(device->id) : g_strdup_printf("%s #%u", device->driver, n);
    g_ptr_array_add(devices, device);
  }
  return devices;
}

static void
pair(Device *one, Device *other)
{
  one->twin = other;
  other->twin = one;
}

/* The same id first, whatever the driver; then, among those left, the same driver in order. */
static void
match(GPtrArray *a, GPtrArray *b, gboolean by_id)
{
  for (guint i = 0; i < a->len; i++) {
    Device *one = a->pdata[i];

    for (guint j = 0; j < b->len && !one->twin; j++) {
      Device *other = b->pdata[j];
      gboolean same =
          by_id ? one->id && g_strcmp0(one->id, other->id) == 0 : g_str_equal(one->driver, other->driver);

      if (same && !other->twin)
        pair(one, other);
    }
  }
}

/* Properties that are the host's: names of what stands behind the device, and how the host serves it. */
static gboolean
is_host_property(const char *key)
{
  static const char *const keys[] = {
    "driver",
    "id",
    "chardev",
    "netdev",
    "drive",
    "audiodev",
    "fsdev",
    "tpmdev",
    "memdev",
    "iothread",
    "rng",
    "cryptodev",
    "vhostfd",
    "vhostfds",
    "vhost",
    "werror",
    "rerror",
    "share-rw",
    "host",
    "sysfsdev",
    "hostbus",
    "hostaddr",
    "hostdevice",
    "fd",
    "ioeventfd",
    "tx",
    "x-txtimer",
    "x-txburst",
    "evdev",
    "dbus",
    "pcap",
    "stats-intervals",
    "account-invalid",
    "account-failed",
    NULL,
  };

  return g_strv_contains(keys, key) || g_str_has_prefix(key, "iothread-vq-mapping");
}

static char *
key_of(const Device *device, const char *property)
{
  return g_strdup_printf("%s %s", device->label, property);
}

static void
compare_property(Device *one, Device *other, const char *property, const char *a, const char *b,
                 GPtrArray *diffs)
{
  g_autofree char *key = key_of(one, property);
  g_autofree char *canonical_a = a ? dr_compare_canonical("device", property, a) : NULL;
  g_autofree char *canonical_b = b ? dr_compare_canonical("device", property, b) : NULL;

  if (g_strcmp0(canonical_a, canonical_b) != 0)
    dr_compare_add(diffs, "device", key, a, b);
}

static void
compare_properties(Device *one, Device *other, GPtrArray *diffs)
{
  if (!g_str_equal(one->driver, other->driver))
    compare_property(one, other, "driver", one->driver, other->driver, diffs);
  for (guint i = 0; i < dr_opts_n(one->opts); i++) {
    const char *key = dr_opts_key(one->opts, i), *value = dr_opts_value(one->opts, i);

    /* Of a key that is there twice only the last counts. */
    if (!is_host_property(key) && value == dr_opts_get(one->opts, key))
      compare_property(one, other, key, value, dr_opts_get(other->opts, key), diffs);
  }
  for (guint i = 0; i < dr_opts_n(other->opts); i++) {
    const char *key = dr_opts_key(other->opts, i), *value = dr_opts_value(other->opts, i);

    if (!is_host_property(key) && !dr_opts_get(one->opts, key) && value == dr_opts_get(other->opts, key))
      compare_property(one, other, key, NULL, value, diffs);
  }
}

/* Backends may be called otherwise on the other side; but if the other side has one of the first name as well
 * and gives the device another, two of them have been swapped. */
static void
compare_reference(Device *one, Device *other, const char *property, const char *const *options,
                  GPtrArray *diffs)
{
  const char *a = dr_opts_get(one->opts, property), *b = dr_opts_get(other->opts, property);
  g_autofree char *key = NULL;

  if (!a || !b || g_str_equal(a, b))
    return;
  for (; *options; options++) {
    if (!dr_argv_find_id(other->argv, *options, a))
      continue;
    key = key_of(one, property);
    dr_compare_add(diffs, "device", key, a, b);
    return;
  }
}

static char *
memory_size(const Device *device)
{
  return dr_compare_backend_value(device->argv, "object", dr_opts_get(device->opts, "memdev"), "size");
}

/* Whether the disk behind it is write-protected: -drive's two spellings, or the -blockdev of that node
 * name. */
static const char *
write_protection(const Device *device)
{
  static const char *const spellings[][2] = {
    { "drive", "read-only" },
    { "drive", "readonly" },
    { "blockdev", "read-only" },
  };
  const char *id = dr_opts_get(device->opts, "drive");

  for (gsize i = 0; id && i < G_N_ELEMENTS(spellings); i++) {
    DrOpt *opt = dr_argv_find_id(device->argv, spellings[i][0], id);
    g_autoptr(DrOpts) opts = opt ? dr_opt_parse(opt, NULL) : NULL;
    gboolean on = FALSE;

    if (opts && dr_opts_get_bool(opts, spellings[i][1], FALSE, &on, NULL) && on)
      return "on";
  }
  return id ? "off" : NULL;
}

static void
compare_backends(Device *one, Device *other, GPtrArray *diffs)
{
  static const char *const disks[] = { "drive", "blockdev", NULL }, *const nets[] = { "netdev", NULL };
  static const char *const chardevs[] = { "chardev", NULL };
  g_autofree char *size_a = memory_size(one), *size_b = memory_size(other);

  compare_reference(one, other, "drive", disks, diffs);
  compare_reference(one, other, "netdev", nets, diffs);
  compare_reference(one, other, "chardev", chardevs, diffs);
  compare_property(one, other, "memdev size", size_a, size_b, diffs);
  compare_property(one, other, "read-only", write_protection(one), write_protection(other), diffs);
}

/* The bus on which the device looks for a place by itself; NULL if it says its place. The kind of bus is
 * guessed from the driver's name: a wrong guess can only put two devices into different groups, or report an
 * order too much. */
static const char *
group_of(const Device *device)
{
  static const char *const places[] = { "addr", "port", "nr",     "unit", "scsi-id",
                                        "lun",  "slot", "iobase", "index" };
  static const char *const kinds[] = { "usb-", "isa-", "ide-", "scsi-", "virtserial", "virtconsole" };
  const char *bus = dr_opts_get(device->opts, "bus");

  for (gsize i = 0; i < G_N_ELEMENTS(places); i++) {
    if (dr_opts_has(device->opts, places[i]))
      return NULL;
  }
  if (bus && !g_str_equal(bus, "pci.0") && !g_str_equal(bus, "pcie.0"))
    return bus;
  for (gsize i = 0; i < G_N_ELEMENTS(kinds); i++) {
    if (g_str_has_prefix(device->driver, kinds[i]))
      return kinds[i];
  }
  return "pci";
}

/* The labels of a group's devices that both sides have, in this side's order and the first side's labels. */
static char *
order_in(GPtrArray *devices, const char *group, gboolean second)
{
  g_autoptr(GString) order = g_string_new(NULL);

  for (guint i = 0; i < devices->len; i++) {
    const Device *device = devices->pdata[i];
    const Device *first = second ? device->twin : device;

    if (device->twin && g_strcmp0(group_of(first), group) == 0)
      g_string_append_printf(order, "%s%s", order->len ? ", " : "", first->label);
  }
  return g_string_free(g_steal_pointer(&order), FALSE);
}

static void
compare_order(GPtrArray *a, GPtrArray *b, GPtrArray *diffs)
{
  g_autoptr(GHashTable) groups = g_hash_table_new(g_str_hash, g_str_equal);

  for (guint i = 0; i < a->len; i++) {
    const char *group = group_of(a->pdata[i]);
    g_autofree char *order_a = NULL, *order_b = NULL, *key = NULL;

    if (!group || !g_hash_table_add(groups, (char *)group))
      continue;
    order_a = order_in(a, group, FALSE);
    order_b = order_in(b, group, TRUE);
    key = g_strdup_printf("order on %s", group);
    if (!g_str_equal(order_a, order_b))
      dr_compare_add(diffs, "device", key, order_a, order_b);
  }
}

void
dr_compare_devices(const DrArgv *argv_a, const DrArgv *argv_b, GPtrArray *diffs)
{
  g_autoptr(GPtrArray) a = list_devices(argv_a), b = list_devices(argv_b);

  match(a, b, /* by_id= */ TRUE);
  match(a, b, /* by_id= */ FALSE);
  for (guint i = 0; i < a->len; i++) {
    Device *one = a->pdata[i];

    if (!one->twin) {
      dr_compare_add(diffs, "device", one->label, one->driver, NULL);
      continue;
    }
    compare_properties(one, one->twin, diffs);
    compare_backends(one, one->twin, diffs);
  }
  for (guint i = 0; i < b->len; i++) {
    Device *other = b->pdata[i];

    if (!other->twin)
      dr_compare_add(diffs, "device", other->label, NULL, other->driver);
  }
  compare_order(a, b, diffs);
}
