/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* All devices and their properties from one `info qtree`, and the RAM blocks from one `info ramblock`.
 *
 * The same through qom-get would be a round trip for each of the 500 to 1500 properties of a usual guest (50 to 100 µs
 * each); qom-list-get does it in one, but only since 10.1. The text is regular, and has kept its shape from 5.2 to 11.1:
 *
 *   bus: main-system-bus
 *     type System
 *     dev: q35-pcihost, id ""
 *       MCFG = -1 (0xffffffffffffffff)
 *       bus: pcie.0
 *         type PCIE
 *         dev: virtio-net-pci, id "n0"
 *           disable-legacy = "off"
 *           addr = 02.0
 *           class Ethernet controller, addr 00:02.0, pci id 1af4:1000 (sub 1af4:0001)
 *           bus: virtio-bus
 */
#include "job/inventory-internal.h"

#include <stdlib.h>
#include <string.h>

static void
qdev_free(DrQdev *dev)
{
  g_free(dev->type);
  g_free(dev->id);
  g_free(dev->bus);
  g_free(dev->pci);
  g_free(dev->usb_port);
  g_hash_table_unref(dev->props);
  g_free(dev);
}

/* "dev: TYPE, id "ID"" */
static DrQdev *
parse_dev(const char *line, guint depth, DrQdev *parent, const char *bus)
{
  const char *comma = strstr(line, ", id \"");
  DrQdev *dev;
  g_autofree char *id = NULL;

  if (!comma)
    return NULL;
  id = g_strdup(comma + strlen(", id \""));
  if (g_str_has_suffix(id, "\""))
    id[strlen(id) - 1] = '\0';
  dev = g_new0(DrQdev, 1);
  dev->type = g_strndup(line + strlen("dev: "), comma - line - strlen("dev: "));
  dev->id = *id ? g_steal_pointer(&id) : NULL;
  dev->bus = g_strdup(bus);
  dev->parent = parent;
  dev->depth = depth;
  dev->props = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
  return dev;
}

/* `"text"` -> text, `4096 (4 KiB)` -> 4096, `<null>` -> "". */
static char *
plain_value(const char *value)
{
  gsize len = strlen(value);
  const char *space;

  if (len >= 2 && value[0] == '"' && value[len - 1] == '"')
    return g_strndup(value + 1, len - 2);
  if (g_str_equal(value, "<null>"))
    return g_strdup("");
  space = strstr(value, " (");
  if (space && (g_ascii_isdigit(value[0]) || value[0] == '-'))
    return g_strndup(value, space - value);
  return g_strdup(value);
}

/* "addr 0.1, port 1.2, speed 480, name QEMU USB Tablet, attached" */
static char *
usb_port_of(const char *line)
{
  const char *port = strstr(line, ", port ");

  if (!g_str_has_prefix(line, "addr ") || !port)
    return NULL;
  port += strlen(", port ");
  return g_strndup(port, strcspn(port, ","));
}

static void
parse_property(DrQdev *dev, const char *line)
{
  const char *equals = strstr(line, " = ");

  if (g_str_has_prefix(line, "class ") && strstr(line, ", pci id ")) {
    g_free(dev->pci);
    dev->pci = g_strdup(line);
  } else if (equals) {
    g_hash_table_replace(dev->props, g_strndup(line, equals - line), plain_value(equals + 3));
  } else if (!dev->usb_port) {
    dev->usb_port = usb_port_of(line);
  }
}

/* The device whose lines are indented less than `depth`, from the innermost outwards. */
static DrQdev *
owner_at(const GPtrArray *stack, guint depth)
{
  for (guint i = stack->len; i > 0; i--) {
    DrQdev *dev = stack->pdata[i - 1];

    if (dev->depth < depth)
      return dev;
  }
  return NULL;
}

static void
pop_to(GPtrArray *stack, guint depth)
{
  while (stack->len > 0 && ((DrQdev *)stack->pdata[stack->len - 1])->depth >= depth)
    g_ptr_array_set_size(stack, stack->len - 1);
}

GPtrArray *
dr_qtree_parse(const char *text)
{
  GPtrArray *devs = g_ptr_array_new_with_free_func((GDestroyNotify)qdev_free);
  g_autoptr(GPtrArray) stack = g_ptr_array_new(); /* the devices around the current line */
  g_autoptr(GPtrArray) buses = g_ptr_array_new_with_free_func(g_free); /* by depth */
  g_auto(GStrv) lines = g_strsplit_set(text, "\r\n", -1);

  for (char **at = lines; *at; at++) {
    guint depth = strspn(*at, " ");
    const char *line = *at + depth;

    if (g_str_has_prefix(line, "bus: ")) {
      pop_to(stack, depth);
      while (buses->len <= depth)
        g_ptr_array_add(buses, NULL);
      g_free(buses->pdata[depth]);
      buses->pdata[depth] = g_strdup(line + strlen("bus: "));
    } else if (g_str_has_prefix(line, "dev: ")) {
      const char *bus = depth >= 2 && buses->len > depth - 2 ? buses->pdata[depth - 2] : NULL;
      DrQdev *dev;

      pop_to(stack, depth);
      dev = parse_dev(line, depth, owner_at(stack, depth), bus ? bus : "?");
      if (!dev)
        continue;
      g_ptr_array_add(devs, dev);
      g_ptr_array_add(stack, dev);
    } else if (stack->len > 0) {
      parse_property(stack->pdata[stack->len - 1], line);
    }
  }
  return devs;
}

DrQdev *
dr_qtree_find(const DrInventory *inventory, const char *id)
{
  for (guint i = 0; i < inventory->qdevs->len; i++) {
    DrQdev *dev = inventory->qdevs->pdata[i];

    if (dev->id && g_str_equal(dev->id, id))
      return dev;
  }
  return NULL;
}

/* The one device on a bus inside of `dev` that does its work: virtio-net-device below virtio-net-pci. */
static const DrQdev *
backend_of(const DrInventory *inventory, const DrQdev *dev)
{
  for (guint i = 0; i < inventory->qdevs->len; i++) {
    const DrQdev *child = inventory->qdevs->pdata[i];

    if (child->parent == dev && g_str_equal(child->bus, "virtio-bus"))
      return child;
  }
  return NULL;
}

const char *
dr_qdev_prop(const DrInventory *inventory, const DrQdev *dev, const char *name)
{
  const char *value = g_hash_table_lookup(dev->props, name);
  const DrQdev *backend;

  if (value)
    return value;
  backend = backend_of(inventory, dev);
  return backend ? g_hash_table_lookup(backend->props, name) : NULL;
}

/* Same type, same bus, no id, and no property that says otherwise. ("addr" is a number in QOM and SLOT.FUNCTION here.) */
static gboolean
may_be(const DrInventory *inventory, const DrQdev *dev, const DrPlugged *plugged)
{
  const char *path = g_hash_table_lookup(plugged->props, "parent_bus");
  g_autofree char *bus = path && *path ? g_path_get_basename(path) : NULL;
  GHashTableIter iter;
  gpointer name, value;

  if (dev->id || !bus || !g_str_equal(dev->type, plugged->type) || !g_str_equal(dev->bus, bus))
    return FALSE;
  g_hash_table_iter_init(&iter, plugged->props);
  while (g_hash_table_iter_next(&iter, &name, &value)) {
    const char *other = g_str_equal(name, "addr") ? NULL : dr_qdev_prop(inventory, dev, name);

    if (other && !g_str_equal(value, other))
      return FALSE;
  }
  return TRUE;
}

DrQdev *
dr_qtree_find_plugged(const DrInventory *inventory, const DrPlugged *plugged, GHashTable *taken)
{
  if (!plugged->anon)
    return dr_qtree_find(inventory, plugged->name);
  /* A bus is listed with the newest device first, and those without an id are asked for from the oldest on. */
  for (guint i = inventory->qdevs->len; i > 0; i--) {
    DrQdev *dev = inventory->qdevs->pdata[i - 1];

    if (!may_be(inventory, dev, plugged) || (taken && g_hash_table_contains(taken, dev)))
      continue;
    if (taken)
      g_hash_table_add(taken, dev);
    return dev;
  }
  return NULL;
}

const char *
dr_qdev_type(const DrQdev *dev)
{
  static const char *const renamed[][2] = { { "ICH9 SMB", "ICH9-SMB" }, { "acpi-ged-x86", "acpi-ged" } };

  for (guint i = 0; i < G_N_ELEMENTS(renamed); i++)
    if (g_str_equal(dev->type, renamed[i][0]))
      return renamed[i][1];
  return dev->type;
}

/* What tells a device from its neighbours on the same bus, by the kind of bus. NULL: nothing but its type. */
static char *
unit_of(const DrQdev *dev)
{
  static const char *const names[] = { "addr", "port", "slot", "nr", "unit", "address" };
  const char *scsi = g_hash_table_lookup(dev->props, "scsi-id");

  if (dev->usb_port)
    return g_strdup(dev->usb_port);
  if (scsi)
    return g_strdup_printf("%s:%s:%s", (char *)g_hash_table_lookup(dev->props, "channel"), scsi,
                           (char *)g_hash_table_lookup(dev->props, "lun"));
  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    const char *value = g_hash_table_lookup(dev->props, names[i]);

    if (value && *value)
      return g_strdup(value);
  }
  return NULL;
}

char *
dr_qdev_key(const DrQdev *dev)
{
  g_autofree char *unit = unit_of(dev);
  g_autofree char *above = dev->parent ? dr_qdev_key(dev->parent) : NULL;

  return g_strdup_printf("%s%s%s%s%s", above ? above : "", above ? "/" : "", dev->bus, unit ? "@" : "/",
                         unit ? unit : dr_qdev_type(dev));
}

static void
ram_free(DrRam *ram)
{
  g_free(ram->name);
  g_free(ram);
}

/* "NAME  4 KiB  OFFSET USED TOTAL …": the name may hold anything but is followed by the page size. */
static DrRam *
parse_ram(const char *line)
{
  g_autoptr(GRegex) regex =
      g_regex_new("^ *(.+?) +[0-9]+ [KMGT]iB +0x[0-9a-f]+ +(0x[0-9a-f]+) +(0x[0-9a-f]+)", 0, 0, NULL);
  g_autoptr(GMatchInfo) match = NULL;
  g_autofree char *used = NULL;
  g_autofree char *total = NULL;
  DrRam *ram;

  if (!g_regex_match(regex, line, 0, &match))
    return NULL;
  used = g_match_info_fetch(match, 2);
  total = g_match_info_fetch(match, 3);
  ram = g_new0(DrRam, 1);
  ram->name = g_match_info_fetch(match, 1);
  ram->used = g_ascii_strtoull(used, NULL, 16);
  ram->total = g_ascii_strtoull(total, NULL, 16);
  return ram;
}

GPtrArray *
dr_ram_parse(const char *text)
{
  GPtrArray *blocks = g_ptr_array_new_with_free_func((GDestroyNotify)ram_free);
  g_auto(GStrv) lines = g_strsplit_set(text, "\r\n", -1);

  for (char **line = lines; *line; line++) {
    DrRam *ram = parse_ram(*line);

    if (ram)
      g_ptr_array_add(blocks, ram);
  }
  return blocks;
}

char *
dr_inventory_port_chardev(DrQmp *qmp, const char *name, GError **error)
{
  g_autofree char *text = dr_qmp_hmp(qmp, error, "info qtree");
  g_autoptr(GPtrArray) qdevs = text ? dr_qtree_parse(text) : NULL;

  for (guint i = 0; qdevs && i < qdevs->len; i++) {
    const DrQdev *dev = qdevs->pdata[i];

    if (g_str_equal(dev->type, "virtserialport") &&
        g_strcmp0(g_hash_table_lookup(dev->props, "name"), name) == 0)
      return g_strdup(g_hash_table_lookup(dev->props, "chardev"));
  }
  return NULL;
}
