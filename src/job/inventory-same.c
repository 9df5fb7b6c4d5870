/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Are the devices of two QEMUs the same to a guest? Both have the same machine type, so each device must sit in the same
 * place with the same properties, but the two may be of different versions: what one does not know is no difference, and the
 * tables below hold what QEMU itself changed between 5.2 and 11.1 without a guest being able to tell. */
#include "job/inventory-internal.h"

#include <string.h>

/* The host's side of a device: a name of a backend, what to do on an error, how work is spread. */
static const char *const host_side[] = {
  "drive",
  "netdev",
  "chardev",
  "iothread",
  "iothread-vq-mapping",
  "rng",
  "audiodev",
  "display",
  "werror",
  "rerror",
  "account-failed",
  "account-invalid",
  "stats-intervals",
  "share-rw",
  "cryptodev",
  "memdev",
  "ebpf-rss-fds",
  "vhostfd",
  "head",
  "romfile",
  "x-max-bounce-buffer-size",
  "ioeventfd",
  NULL,
};

/* Changed by QEMU without a compatibility property, and not part of what a running guest sees. */
static const char *const changed[] = {
  "romsize",     /* 6.0: computed from the file; the size itself is compared as a memory block */
  "rombar",      /* 10.0: -1 for the old 1 */
  "busnr",       /* follows the guest's own numbering */
  "port",        /* USB: empty where QEMU chose; where the device sits is compared as its place */
  "MCFG",        /* the running firmware put it there; it travels with the device state */
  "smb_io_base", /* PIIX4_PM: as MCFG; 45312 until the firmware has set it */
  "xres",        /* 7.0: EDID's preferred mode 1280x800 for 1024x768; read by the guest at its start */
  "yres",
  "events", /* 9.0: pvpanic knows one more, asked for by the guest at its start and ignored by who does not know it */
  "osk", /* isa-applesmc: printed past its end, with what lies behind it in QEMU's memory */
  NULL,
};

/* Devices that some versions show and others have built in. */
static const char *const internal[] = {
  "ps2-kbd",
  "ps2-mouse", /* 7.1: own devices, before a part of i8042 */
  NULL,
};

/* "Not set" of the block size properties, which older versions leave as it is and newer ones replace by what is in force
 * (nvme since 6.0), or the other way round (usb-storage since 8.x). */
static gboolean
is_unset_block_size(const char *property, const char *value)
{
  static const char *const names[] = { "logical_block_size", "physical_block_size", "discard_granularity",
                                       "min_io_size",        "opt_io_size",         NULL };

  return g_strv_contains(names, property) && (g_str_equal(value, "0") || g_str_equal(value, "4294967295"));
}

static gboolean
is_different(const char *property, const char *before, const char *after)
{
  return !g_str_equal(before, after) && !g_strv_contains(host_side, property) &&
         !g_strv_contains(changed, property) && !is_unset_block_size(property, before) &&
         !is_unset_block_size(property, after);
}

static gboolean
same_type(const DrQdev *a, const DrQdev *b)
{
  return g_str_equal(dr_qdev_type(a), dr_qdev_type(b));
}

/* "1af4:1000 (sub 1af4:0001)": the address before it has the bus number, which the guest gave. Of a bridge without what QEMU prints as its
 * subsystem: a header of type 1 has a window's upper half there, which the firmware sets (OVMF does). (transfer full) */
static char *
pci_identity(const DrQdev *dev)
{
  const char *at = dev->pci ? strstr(dev->pci, "pci id ") : NULL;

  if (!at)
    return g_strdup("none");
  at += strlen("pci id ");
  return g_str_has_prefix(dev->pci, "class PCI bridge") ? g_strndup(at, strcspn(at, " ")) : g_strdup(at);
}

/* The virtio device behind a virtio-*-pci goes by that one's name. */
static const char *
name_of(const DrQdev *dev)
{
  if (!dev->id && dev->parent && g_str_equal(dev->bus, "virtio-bus"))
    dev = dev->parent;
  return dev->id ? dev->id : dev->type;
}

/* The first property that differs, or NULL; the values are put into *x and *y. */
static const char *
first_difference(const DrQdev *a, const DrQdev *b, const char **x, const char **y)
{
  GHashTableIter iter;
  gpointer name, value;

  g_hash_table_iter_init(&iter, a->props);
  while (g_hash_table_iter_next(&iter, &name, &value)) {
    const char *other = g_hash_table_lookup(b->props, name);

    if (!other || !is_different(name, value, other))
      continue;
    *x = value;
    *y = other;
    return name;
  }
  return NULL;
}

static void
report_properties(const DrQdev *a, const DrQdev *b, DrFindings *findings)
{
  GHashTableIter iter;
  gpointer name, value;

  g_hash_table_iter_init(&iter, a->props);
  while (g_hash_table_iter_next(&iter, &name, &value)) {
    const char *other = g_hash_table_lookup(b->props, name);

    if (other && is_different(name, value, other))
      dr_compare_block(findings, "device-property",
                       "property '%s' of device '%s' (%s) is '%s' before and '%s' after", (char *)name,
                       name_of(a), a->type, (char *)value, other);
  }
}

static void
report_pair(const DrQdev *a, const DrQdev *b, const char *key, DrFindings *findings)
{
  g_autofree char *pci_a = pci_identity(a), *pci_b = pci_identity(b);

  if (!same_type(a, b)) {
    dr_compare_block(findings, "device", "at %s the guest has a '%s' before and a '%s' after", key, a->type,
                     b->type);
    return;
  }
  if (!g_str_equal(pci_a, pci_b))
    dr_compare_block(findings, "device", "device '%s' at %s is PCI %s before and %s after", name_of(a), key,
                     pci_a, pci_b);
  report_properties(a, b, findings);
}

/* --- Pairing --- */

/* key -> GPtrArray of DrQdev */
static GHashTable *
index_devices(const DrInventory *inv)
{
  GHashTable *index =
      g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)g_ptr_array_unref);

  for (guint i = 0; i < inv->qdevs->len; i++) {
    DrQdev *dev = inv->qdevs->pdata[i];
    g_autofree char *key = dr_qdev_key(dev);
    GPtrArray *list;

    if (g_strv_contains(internal, dev->type))
      continue;
    list = g_hash_table_lookup(index, key);
    if (!list) {
      list = g_ptr_array_new();
      g_hash_table_insert(index, g_steal_pointer(&key), list);
    }
    g_ptr_array_add(list, dev);
  }
  return index;
}

/* Devices that share a place (two i8257 on the ISA bus) are paired by their properties, then in order. */
static DrQdev *
take_equal(GPtrArray *list, const DrQdev *dev)
{
  const char *x, *y;

  for (guint i = 0; i < list->len; i++) {
    DrQdev *other = list->pdata[i];

    if (same_type(dev, other) && !first_difference(dev, other, &x, &y))
      return g_ptr_array_remove_index(list, i);
  }
  return NULL;
}

static void
compare_place(const char *key, GPtrArray *before, GPtrArray *after, DrFindings *findings)
{
  g_autoptr(GPtrArray) rest = g_ptr_array_new();

  for (guint i = 0; i < before->len; i++) {
    DrQdev *dev = before->pdata[i];
    DrQdev *other = after ? take_equal(after, dev) : NULL;

    if (other)
      report_pair(dev, other, key, findings);
    else
      g_ptr_array_add(rest, dev);
  }
  for (guint i = 0; i < rest->len; i++) {
    DrQdev *dev = rest->pdata[i];

    if (after && after->len)
      report_pair(dev, g_ptr_array_remove_index(after, 0), key, findings);
    else
      dr_compare_block(findings, "device", "device '%s' (%s) at %s does not exist after", name_of(dev),
                       dev->type, key);
  }
}

/* CPUs and memory modules sit on no bus. */
static void
compare_loose(const DrInventory *before, const DrInventory *after, const char *when, DrFindings *findings)
{
  for (guint i = 0; i < before->plugged->len; i++) {
    const DrPlugged *dev = before->plugged->pdata[i];
    gboolean found = dev->anon || dr_qtree_find(before, dev->name);

    for (guint n = 0; !found && n < after->plugged->len; n++) {
      const DrPlugged *other = after->plugged->pdata[n];

      found = g_str_equal(other->name, dev->name) && g_str_equal(other->type, dev->type);
    }
    if (!found)
      dr_compare_block(findings, "device", "device '%s' (%s) does not exist %s", dev->name, dev->type, when);
  }
}

void
dr_same_devices(const DrInventory *before, const DrInventory *after, DrFindings *findings)
{
  g_autoptr(GHashTable) index = index_devices(before);
  g_autoptr(GHashTable) others = index_devices(after);
  GHashTableIter iter;
  gpointer key, list;

  g_hash_table_iter_init(&iter, index);
  while (g_hash_table_iter_next(&iter, &key, &list))
    compare_place(key, list, g_hash_table_lookup(others, key), findings);
  g_hash_table_iter_init(&iter, others);
  while (g_hash_table_iter_next(&iter, &key, &list))
    for (guint i = 0; i < ((GPtrArray *)list)->len; i++) {
      const DrQdev *dev = ((GPtrArray *)list)->pdata[i];

      dr_compare_block(findings, "device", "device '%s' (%s) at %s does not exist before", name_of(dev),
                       dev->type, (char *)key);
    }
  compare_loose(before, after, "after", findings);
  compare_loose(after, before, "before", findings);
}
