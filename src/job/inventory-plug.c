/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A -device for a device that was plugged in: the same type in the same place with the same properties.
 *
 * Written is each settable property (device-list-properties) whose value is not the type's default. Left out is what a
 * machine type sets by itself (x-…, migrate-…, and the few below): the other QEMU has the same machine type, may not know
 * such a property, and dr_inventory_compare() looks at all of them before the guest moves. */
#include "job/inventory-internal.h"

#include <string.h>

static gboolean
refuse(DrApply *a, const DrPlugged *plugged, const char *why)
{
  dr_apply_block(a, "hotplug-device",
                 "unplug the device for the move (device_del), or restart the guest with it on its "
                 "command line",
                 "device '%s' (%s) was plugged in and cannot be put on the command line: %s", plugged->name,
                 plugged->type, why);
  return FALSE;
}

/* Not the user's: QEMU computes them as the device comes up, or old machine types set them (hw_compat_5_2 to hw_compat_10_0
 * of hw/core/machine.c) and older QEMUs do not know them. */
static gboolean
is_not_written(const char *type, const char *name)
{
  static const char *const names[] = { "bus",
                                       "addr",
                                       "port",
                                       "parent_bus",
                                       "attached",
                                       "hotplugged",
                                       "realized",
                                       "romsize",
                                       "busnr",
                                       "sriov-pf",
                                       "class",
                                       "report-discard-granularity",
                                       "init-vet",
                                       "queue_reset",
                                       "in_order",
                                       "guest_uso4",
                                       "guest_uso6",
                                       "host_uso",
                                       "host_tunnel",
                                       "host_tunnel_csum",
                                       "guest_tunnel",
                                       "guest_tunnel_csum",
                                       "msix-exclusive-bar",
                                       "legacy-cmb",
                                       "eui64-default",
                                       "shared",
                                       "seqpacket",
                                       NULL };
  static const char *const with_vectors[] = { "virtio-net-", "virtio-blk-", "virtio-scsi-", "virtio-serial-",
                                              "vhost-user-" };

  if (g_strv_contains(names, name) || g_str_has_prefix(name, "x-") || g_str_has_prefix(name, "migrate-"))
    return TRUE;
  if (!g_str_equal(name, "vectors") || !g_str_has_prefix(type, "virtio-"))
    return FALSE;
  for (guint i = 0; i < G_N_ELEMENTS(with_vectors); i++)
    if (g_str_has_prefix(type, with_vectors[i]))
      return FALSE;
  return TRUE; /* virtio-rng-pci has it since 7.2, virtio-balloon-pci since 10.0 */
}

static const char *
last_part(const char *path)
{
  const char *slash = strrchr(path, '/');

  return slash ? slash + 1 : path;
}

/* "/objects/r0" and "/machine/peripheral/d0" are written as the id; what the board made has none. */
static const char *
reference_of(const char *value)
{
  if (g_str_has_prefix(value, "/objects/") || g_str_has_prefix(value, "/machine/peripheral/"))
    return last_part(value);
  return value;
}

static void
want(DrApply *a, const char *kind, const char *id)
{
  g_hash_table_add(a->wanted, g_strdup_printf("%s:%s", kind, id));
}

static void
note_references(DrApply *a, const char *name, const char *value)
{
  if (g_str_has_prefix(value, "/objects/"))
    want(a, "object", last_part(value));
  else if (g_str_equal(name, "netdev") || g_str_equal(name, "chardev"))
    want(a, name, value);
}

static const char *
running_value(DrApply *a, const DrPlugged *plugged, const DrQdev *dev, const char *name)
{
  const char *value = g_hash_table_lookup(plugged->props, name);

  return value || !dev ? value : dr_qdev_prop(a->inventory, dev, name);
}

/* A ROM that is the type's own is found again; one that was chosen, or taken away from a NIC, is the user's. */
static gboolean
is_own_rom(const DrPlugged *plugged, const char *value)
{
  gboolean empty = *value == '\0';
  gboolean nic = strstr(plugged->type, "net") || g_str_has_prefix(plugged->type, "e1000") ||
                 g_str_has_prefix(plugged->type, "rtl") || g_str_has_prefix(plugged->type, "igb");

  return empty ? !nic : strchr(value, '/') == NULL;
}

static gboolean
is_default(JsonObject *property, const char *value)
{
  JsonNode *node = json_object_get_member(property, "default-value");
  g_autofree char *text = node ? dr_value_text(node) : NULL;

  if (g_str_equal(dr_json_str(property, "name", ""), "bootindex"))
    return g_str_equal(value, "-1");
  return text ? g_str_equal(text, value) : *value == '\0';
}

/* -device in JSON wants numbers and booleans as such. */
static gboolean
write_value(DrApply *a, DrOpts *opts, const DrPlugged *plugged, const char *name, const char *type,
            const char *value)
{
  gboolean number = strstr(type, "int") || g_str_equal(type, "size");
  char *end = NULL;
  guint64 count;

  if (g_str_equal(type, "bool")) {
    dr_opts_set_bool(opts, name, g_str_equal(value, "true"));
    return TRUE;
  }
  count = number ? g_ascii_strtoull(value, &end, 10) : 0;
  if (!number || dr_opts_form(opts) != DR_OPTS_JSON)
    dr_opts_set(opts, name, value);
  else if (g_ascii_isdigit(*value) && *end == '\0')
    dr_opts_set_uint(opts, name, count);
  else
    return refuse(a, plugged, name);
  return TRUE;
}

static gboolean
write_property(DrApply *a, DrOpts *opts, const DrPlugged *plugged, const DrQdev *dev, JsonObject *property)
{
  const char *name = dr_json_str(property, "name", "");
  const char *value = running_value(a, plugged, dev, name);

  if (!value || is_not_written(plugged->type, name) ||
      g_str_has_prefix(dr_json_str(property, "type", ""), "child<"))
    return TRUE;
  if (g_str_equal(name, "romfile")) {
    if (!is_own_rom(plugged, value))
      dr_opts_set(opts, name, value);
    return TRUE;
  }
  if (is_default(property, value) || g_str_has_prefix(value, "/machine/unattached/"))
    return TRUE;
  if (g_str_equal(value, DR_VALUE_LIST))
    return refuse(a, plugged, name);
  note_references(a, name, value);
  return write_value(a, opts, plugged, name, dr_json_str(property, "type", ""), reference_of(value));
}

/* Where it sits: the bus by name, the place on it as that kind of bus counts. */
static gboolean
write_place(DrApply *a, DrOpts *opts, const DrPlugged *plugged, const DrQdev *dev)
{
  const char *path = g_hash_table_lookup(plugged->props, "parent_bus");
  const char *bus = dev ? dev->bus : path && *path ? last_part(path) : NULL; /* memory has none */
  const char *addr = dev ? g_hash_table_lookup(dev->props, "addr") : NULL;
  guint same = 0;

  if (!bus)
    return TRUE; /* memory and CPUs have none */
  for (guint i = 0; i < a->inventory->qdevs->len; i++) {
    const DrQdev *other = a->inventory->qdevs->pdata[i];

    if (g_str_equal(other->bus, bus) && dev && other->parent != dev->parent)
      same++;
  }
  if (same)
    return refuse(a, plugged, "two buses have the name of the one it sits on");
  dr_opts_set(opts, "bus", bus);
  if (addr && *addr)
    dr_opts_set(opts, "addr", addr);
  if (dev && dev->usb_port)
    dr_opts_set(opts, "port", dev->usb_port);
  return TRUE;
}

/* CPUs: only the place; the features are those of -cpu, as for the others. */
static gboolean
write_cpu(DrApply *a, DrOpts *opts, const DrPlugged *plugged)
{
  for (guint i = 0; i < json_array_get_length(a->inventory->cpus); i++) {
    JsonObject *cpu = json_array_get_object_element(a->inventory->cpus, i);
    JsonObject *place = dr_json_obj(cpu, "props");
    g_autoptr(GList) names = place ? json_object_get_members(place) : NULL;

    if (!g_str_equal(dr_json_str(cpu, "qom-path", ""), plugged->path))
      continue;
    for (GList *at = names; at; at = at->next)
      dr_opts_set_uint(opts, at->data, (guint64)dr_json_int(place, at->data, 0));
    return names != NULL;
  }
  return refuse(a, plugged, "query-cpus-fast does not list it");
}

static int
by_name(gconstpointer a, gconstpointer b)
{
  return strcmp(dr_json_str(*(JsonObject *const *)a, "name", ""),
                dr_json_str(*(JsonObject *const *)b, "name", ""));
}

/* In an order that does not depend on the version. */
static GPtrArray *
sorted_properties(JsonArray *list)
{
  GPtrArray *sorted = g_ptr_array_new();

  for (guint i = 0; i < json_array_get_length(list); i++)
    g_ptr_array_add(sorted, json_array_get_object_element(list, i));
  g_ptr_array_sort(sorted, by_name);
  return sorted;
}

static gboolean
write_properties(DrApply *a, DrOpts *opts, const DrPlugged *plugged, const DrQdev *dev)
{
  JsonArray *list = g_hash_table_lookup(a->inventory->types, plugged->type);
  g_autoptr(GPtrArray) sorted = list ? sorted_properties(list) : NULL;

  if (!sorted)
    return refuse(a, plugged, "its properties cannot be read");
  for (guint i = 0; i < sorted->len; i++)
    if (!write_property(a, opts, plugged, dev, sorted->pdata[i]))
      return FALSE;
  if (strstr(plugged->type, "dimm")) {
    const char *addr = g_hash_table_lookup(plugged->props, "addr");

    dr_opts_unset(opts, "size"); /* the backend's; read-only */
    if (addr)
      dr_opts_set_uint(opts, "addr", g_ascii_strtoull(addr, NULL, 10));
  }
  return TRUE;
}

static gboolean
write_device(DrApply *a, DrOpts *opts, const DrPlugged *plugged)
{
  const DrQdev *dev = dr_qtree_find_plugged(a->inventory, plugged, a->taken);

  if (g_str_has_suffix(plugged->type, "-cpu"))
    return write_cpu(a, opts, plugged);
  if (g_str_has_prefix(plugged->type, "virtio-mem") || g_str_has_prefix(plugged->type, "virtio-pmem"))
    return refuse(a, plugged, "its memory layout cannot be read");
  if (plugged->anon && !plugged->hot)
    return refuse(a, plugged, "it has no id");
  return write_place(a, opts, plugged, dev) && write_properties(a, opts, plugged, dev);
}

/* A device without an id gets one, or it could not be told from its like at the next move. */
static char *
id_of(DrApply *a, const DrPlugged *plugged)
{
  if (!plugged->anon)
    return g_strdup(plugged->name);
  for (;;) {
    g_autofree char *id = g_strdup_printf("drover-dev%u", a->made_up++);

    if (!dr_argv_find_id(a->argv, "device", id) && !dr_qtree_find(a->inventory, id))
      return g_steal_pointer(&id);
  }
}

/* QEMU makes all devices of the key=value form before those in JSON (6.2 and newer), and one that sits on a bus of the
 * latter could not be made yet. */
static DrOptsForm
form_of_devices(const DrArgv *argv)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "device", opt));)
    if (opt->value[0] == '{')
      return DR_OPTS_JSON;
  return DR_OPTS_KEYVAL;
}

void
dr_plug_device(DrApply *a, const DrPlugged *plugged)
{
  g_autoptr(DrOpts) opts = dr_opts_new("device", form_of_devices(a->argv));
  g_autofree char *id = id_of(a, plugged);
  g_autofree char *value = NULL;

  dr_opts_set(opts, "driver", plugged->type);
  dr_opts_set(opts, "id", id);
  if (!write_device(a, opts, plugged))
    return;
  value = dr_opts_print(opts);
  g_hash_table_insert(a->devices, dr_argv_append(a->argv, "device", value), (DrPlugged *)plugged);
  dr_findings_add(a->findings, DR_FINDING_NOTE, "hotplug", NULL,
                  "device '%s' (%s) was plugged in and moves along", plugged->name, plugged->type);
}
