/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading what a guest is from its QEMU, and handing it out. */
#include "job/inventory-internal.h"
#include "base/error.h"

#include <string.h>

static void
plugged_free(DrPlugged *plugged)
{
  g_free(plugged->name);
  g_free(plugged->path);
  g_free(plugged->type);
  g_clear_pointer(&plugged->props, g_hash_table_unref);
  g_free(plugged);
}

void
dr_inventory_free(DrInventory *inv)
{
  JsonArray **arrays[] = { &inv->cpus, &inv->features, &inv->memdevs, &inv->dimms, &inv->block,   &inv->nodes,
                           &inv->chardevs, &inv->jobs,    &inv->exports, &inv->tpms };
  GPtrArray **lists[] = { &inv->ram, &inv->qdevs, &inv->plugged, &inv->objects, &inv->nets, &inv->forwards, &inv->taps };

  if (!inv)
    return;
  for (guint i = 0; i < G_N_ELEMENTS(arrays); i++)
    g_clear_pointer(arrays[i], json_array_unref);
  for (guint i = 0; i < G_N_ELEMENTS(lists); i++)
    g_clear_pointer(lists[i], g_ptr_array_unref);
  g_clear_pointer(&inv->graph, json_object_unref);
  g_clear_pointer(&inv->migrate, json_object_unref);
  g_clear_pointer(&inv->block_nodes, g_hash_table_unref);
  g_clear_pointer(&inv->cpu_props, g_hash_table_unref);
  g_clear_pointer(&inv->types, g_hash_table_unref);
  g_free(inv->machine);
  g_free(inv->uuid);
  g_free(inv->name);
  g_free(inv->cpu);
  g_free(inv->ram_backend);
  g_free(inv);
}

/* --- Asking --- */

/* A command or property that not every QEMU or machine has: a refusal is no error, and *ret stays NULL. */
static gboolean
forgive_refusal(GError *local, GError **error)
{
  if (local && !g_error_matches(local, DR_ERROR, DR_ERROR_QMP)) {
    g_propagate_error(error, local);
    return FALSE;
  }
  g_clear_error(&local);
  return TRUE;
}

static gboolean
ask_array(DrQmp *qmp, const char *command, JsonObject *arguments, JsonArray **ret, GError **error)
{
  GError *local = NULL;

  *ret = dr_qmp_call_array(qmp, command, arguments, &local);
  return forgive_refusal(local, error);
}

static gboolean
ask_object(DrQmp *qmp, const char *command, JsonObject **ret, GError **error)
{
  GError *local = NULL;

  *ret = dr_qmp_call_object(qmp, command, NULL, &local);
  return forgive_refusal(local, error);
}

static gboolean
ask_property(DrQmp *qmp, const char *path, const char *property, JsonNode **ret, GError **error)
{
  GError *local = NULL;

  *ret = dr_qmp_qom_get(qmp, path, property, &local);
  return forgive_refusal(local, error);
}

char *
dr_value_text(JsonNode *node)
{
  if (JSON_NODE_HOLDS_NULL(node))
    return g_strdup("");
  if (JSON_NODE_HOLDS_ARRAY(node))
    return g_strdup(json_array_get_length(json_node_get_array(node)) ? DR_VALUE_LIST : "");
  if (!JSON_NODE_HOLDS_VALUE(node))
    return NULL;
  switch (json_node_get_value_type(node)) {
  case G_TYPE_BOOLEAN:
    return g_strdup(json_node_get_boolean(node) ? "true" : "false");
  case G_TYPE_INT64:
    return g_strdup_printf("%" G_GINT64_FORMAT, json_node_get_int(node));
  case G_TYPE_STRING:
    return json_node_dup_string(node);
  default:
    return NULL;
  }
}

static gboolean
read_into(DrQmp *qmp, const char *path, const char *property, GHashTable *props, GError **error)
{
  g_autoptr(JsonNode) node = NULL;
  char *text;

  if (!ask_property(qmp, path, property, &node, error))
    return FALSE;
  text = node ? dr_value_text(node) : NULL;
  if (text)
    g_hash_table_replace(props, g_strdup(property), text);
  return TRUE;
}

static GHashTable *
new_props(void)
{
  return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
}

/* --- Machine, CPU, memory --- */

static gboolean
read_machine(DrInventory *inv, DrQmp *qmp, GError **error)
{
  g_autoptr(JsonObject) status = dr_qmp_call_object(qmp, "query-status", NULL, error);
  g_autoptr(JsonObject) uuid = NULL;
  g_autoptr(JsonObject) name = NULL;
  g_autoptr(JsonObject) kvm = NULL;

  if (!status)
    return FALSE;
  inv->running = dr_json_bool(status, "running", FALSE);
  inv->machine = dr_qmp_qom_str(qmp, "/machine", "type", error);
  if (!inv->machine)
    return FALSE;
  if (g_str_has_suffix(inv->machine, "-machine"))
    inv->machine[strlen(inv->machine) - strlen("-machine")] = '\0';
  if (!ask_object(qmp, "query-uuid", &uuid, error) || !ask_object(qmp, "query-name", &name, error) ||
      !ask_object(qmp, "query-kvm", &kvm, error))
    return FALSE;
  inv->uuid = g_strdup(uuid ? dr_json_str(uuid, "UUID", NULL) : NULL);
  inv->name = g_strdup(name ? dr_json_str(name, "name", NULL) : NULL);
  inv->kvm = kvm && dr_json_bool(kvm, "enabled", FALSE);
  return TRUE;
}

static gboolean
read_cpu(DrInventory *inv, DrQmp *qmp, GError **error)
{
  static const char *const names[] = { "vendor", "family", "model", "stepping", "model-id", "level", "xlevel", "xlevel2",
                                       "phys-bits", "host-phys-bits", "tsc-frequency", "apic-id" };
  g_autoptr(JsonNode) features = NULL;
  const char *path;

  inv->cpu_props = new_props();
  inv->cpus = dr_qmp_call_array(qmp, "query-cpus-fast", NULL, error);
  if (!inv->cpus)
    return FALSE;
  if (json_array_get_length(inv->cpus) == 0)
    return TRUE; /* -machine none */
  path = dr_json_str(json_array_get_object_element(inv->cpus, 0), "qom-path", "");
  inv->cpu = dr_qmp_qom_str(qmp, path, "type", error);
  if (!inv->cpu || !ask_property(qmp, path, "feature-words", &features, error))
    return FALSE;
  if (!features || !JSON_NODE_HOLDS_ARRAY(features))
    return TRUE;
  inv->features = json_node_dup_array(features);
  for (guint i = 0; i < G_N_ELEMENTS(names); i++)
    if (!read_into(qmp, path, names[i], inv->cpu_props, error))
      return FALSE;
  return TRUE;
}

static gboolean
read_memory(DrInventory *inv, DrQmp *qmp, GError **error)
{
  g_autoptr(JsonObject) summary = NULL;
  g_autoptr(JsonNode) backend = NULL;
  g_autofree char *blocks = NULL;

  if (!ask_object(qmp, "query-memory-size-summary", &summary, error) ||
      !ask_array(qmp, "query-memdev", NULL, &inv->memdevs, error) ||
      !ask_array(qmp, "query-memory-devices", NULL, &inv->dimms, error))
    return FALSE;
  if (summary) {
    inv->memory = (guint64)dr_json_int(summary, "base-memory", 0);
    inv->plugged_memory = (guint64)dr_json_int(summary, "plugged-memory", 0);
  }
  if (!ask_property(qmp, "/machine", "memory-backend", &backend, error))
    return FALSE;
  if (backend) { /* an id up to 6.2, "/objects/ID" since */
    g_autofree char *text = dr_value_text(backend);

    inv->ram_backend = text && *text ? g_path_get_basename(text) : NULL;
  }
  blocks = dr_qmp_hmp(qmp, error, "info ramblock");
  if (!blocks)
    return FALSE;
  inv->ram = dr_ram_parse(blocks);
  return TRUE;
}

/* --- Disks, network, the rest of the host's side --- */

static gboolean
read_blocks(DrInventory *inv, DrQmp *qmp, GError **error)
{
  return ask_array(qmp, "query-block", NULL, &inv->block, error) &&
         ask_array(qmp, "query-named-block-nodes", dr_json("{'flat': <true>}"), &inv->nodes, error) &&
         ask_object(qmp, "x-debug-query-block-graph", &inv->graph, error) &&
         ask_array(qmp, "query-jobs", NULL, &inv->jobs, error) &&
         ask_array(qmp, "query-block-exports", NULL, &inv->exports, error);
}

static gboolean
read_network(DrInventory *inv, DrQmp *qmp, GError **error)
{
  g_autofree char *network = dr_qmp_hmp(qmp, error, "info network");
  g_autofree char *usernet = network ? dr_qmp_hmp(qmp, error, "info usernet") : NULL;

  if (!usernet)
    return FALSE;
  inv->nets = dr_net_parse(network);
  inv->forwards = dr_forwards_parse(usernet);
  inv->taps = dr_taps_of(inv->nets);
  return TRUE;
}

static gboolean
read_host_side(DrInventory *inv, DrQmp *qmp, GError **error)
{
  g_autoptr(JsonObject) spice = NULL;

  if (!ask_array(qmp, "query-chardev", NULL, &inv->chardevs, error) || !ask_array(qmp, "query-tpm", NULL, &inv->tpms, error) ||
      !ask_object(qmp, "query-spice", &spice, error) || !ask_object(qmp, "query-migrate", &inv->migrate, error))
    return FALSE;
  inv->spice = spice && dr_json_bool(spice, "enabled", FALSE);
  return TRUE;
}

/* --- Devices and objects --- */

/* "child<virtio-net-pci>" -> "virtio-net-pci" */
static char *
child_type(const char *type)
{
  if (!g_str_has_prefix(type, "child<") || !g_str_has_suffix(type, ">"))
    return NULL;
  return g_strndup(type + strlen("child<"), strlen(type) - strlen("child<>"));
}

static gboolean
list_children(DrQmp *qmp, const char *path, GPtrArray *into, GError **error)
{
  g_autoptr(JsonArray) list = NULL;

  if (!ask_array(qmp, "qom-list", dr_json("{'path': <%s>}", path), &list, error))
    return FALSE;
  for (guint i = 0; list && i < json_array_get_length(list); i++) {
    JsonObject *entry = json_array_get_object_element(list, i);
    char *type = child_type(dr_json_str(entry, "type", ""));
    DrPlugged *plugged;

    if (!type)
      continue;
    plugged = g_new0(DrPlugged, 1);
    plugged->name = g_strdup(dr_json_str(entry, "name", ""));
    plugged->path = g_strdup_printf("%s/%s", path, plugged->name);
    plugged->type = type;
    plugged->anon = g_str_has_suffix(path, "/peripheral-anon");
    g_ptr_array_add(into, plugged);
  }
  return TRUE;
}

/* qom-list has no order; "device[N]" counts up from the first device without an id. */
static int
by_number(gconstpointer a, gconstpointer b)
{
  const DrPlugged *first = *(DrPlugged *const *)a, *second = *(DrPlugged *const *)b;
  gint64 x = g_ascii_strtoll(strchr(first->name, '[') ? strchr(first->name, '[') + 1 : "0", NULL, 10);
  gint64 y = g_ascii_strtoll(strchr(second->name, '[') ? strchr(second->name, '[') + 1 : "0", NULL, 10);

  if (first->anon != second->anon)
    return first->anon ? 1 : -1;
  return first->anon ? (x > y) - (x < y) : strcmp(first->name, second->name);
}

static gboolean
read_type(DrInventory *inv, DrQmp *qmp, const char *type, GError **error)
{
  JsonArray *list;

  if (g_hash_table_contains(inv->types, type))
    return TRUE;
  if (!ask_array(qmp, "device-list-properties", dr_json("{'typename': <%s>}", type), &list, error))
    return FALSE;
  if (list)
    g_hash_table_insert(inv->types, g_strdup(type), list);
  return TRUE;
}

static gboolean
type_has(const DrInventory *inv, const char *type, const char *property)
{
  JsonArray *list = g_hash_table_lookup(inv->types, type);

  for (guint i = 0; list && i < json_array_get_length(list); i++)
    if (g_str_equal(dr_json_str(json_array_get_object_element(list, i), "name", ""), property))
      return TRUE;
  return FALSE;
}

/* Links to objects ("iothread", "rng"), which info qtree does not print before 9.x. */
static gboolean
read_links(DrInventory *inv, DrQmp *qmp, DrPlugged *plugged, GError **error)
{
  JsonArray *list = g_hash_table_lookup(inv->types, plugged->type);
  const DrQdev *dev = plugged->anon ? NULL : dr_qtree_find(inv, plugged->name);

  for (guint i = 0; list && i < json_array_get_length(list); i++) {
    JsonObject *entry = json_array_get_object_element(list, i);
    const char *name = dr_json_str(entry, "name", "");

    if (g_str_has_prefix(dr_json_str(entry, "type", ""), "link<") && !(dev && dr_qdev_prop(inv, dev, name)) &&
        !read_into(qmp, plugged->path, name, plugged->props, error))
      return FALSE;
  }
  return TRUE;
}

/* Every property by itself, for the few devices that info qtree does not name. */
static gboolean
read_all_properties(DrInventory *inv, DrQmp *qmp, DrPlugged *plugged, GError **error)
{
  JsonArray *list = g_hash_table_lookup(inv->types, plugged->type);

  for (guint i = 0; list && i < json_array_get_length(list); i++) {
    JsonObject *entry = json_array_get_object_element(list, i);
    const char *name = dr_json_str(entry, "name", "");

    if (!g_str_has_prefix(dr_json_str(entry, "type", ""), "child<") &&
        !read_into(qmp, plugged->path, name, plugged->props, error))
      return FALSE;
  }
  /* "addr" is a number there, and 7.2 wants the "SLOT.FUNCTION" that only the old twin of the property has. */
  if (g_hash_table_contains(plugged->props, "addr")) {
    g_autoptr(JsonNode) addr = NULL;

    if (!ask_property(qmp, plugged->path, "legacy-addr", &addr, error))
      return FALSE;
    if (addr)
      g_hash_table_replace(plugged->props, g_strdup("addr"), dr_value_text(addr));
  }
  return TRUE;
}

static gboolean
is_cpu(const char *type)
{
  return g_str_has_suffix(type, "-cpu");
}

static gboolean
read_plugged(DrInventory *inv, DrQmp *qmp, DrPlugged *plugged, GError **error)
{
  static const char *const extra[] = { "parent_bus", "bootindex", "iothread-vq-mapping" }; /* not in info qtree */
  g_autoptr(JsonNode) hot = NULL;

  plugged->props = new_props();
  if (!read_type(inv, qmp, plugged->type, error) || !ask_property(qmp, plugged->path, "hotplugged", &hot, error))
    return FALSE;
  plugged->hot = hot && JSON_NODE_HOLDS_VALUE(hot) && json_node_get_boolean(hot);
  if (is_cpu(plugged->type))
    return TRUE; /* hundreds of features, which -cpu gives; query-cpus-fast has the place */
  for (guint i = 0; i < G_N_ELEMENTS(extra); i++)
    if ((i == 0 || type_has(inv, plugged->type, extra[i])) &&
        !read_into(qmp, plugged->path, extra[i], plugged->props, error))
      return FALSE;
  /* A device without an id cannot be found in info qtree; one from the command line need not be. */
  if (plugged->anon ? plugged->hot : !dr_qtree_find(inv, plugged->name))
    return read_all_properties(inv, qmp, plugged, error);
  return read_links(inv, qmp, plugged, error);
}

static gboolean
read_devices(DrInventory *inv, DrQmp *qmp, GError **error)
{
  g_autofree char *qtree = dr_qmp_hmp(qmp, error, "info qtree");

  if (!qtree)
    return FALSE;
  inv->qdevs = dr_qtree_parse(qtree);
  if (!list_children(qmp, "/machine/peripheral", inv->plugged, error) ||
      !list_children(qmp, "/machine/peripheral-anon", inv->plugged, error))
    return FALSE;
  g_ptr_array_sort(inv->plugged, by_number);
  for (guint i = 0; i < inv->plugged->len; i++)
    if (!read_plugged(inv, qmp, inv->plugged->pdata[i], error))
      return FALSE;
  return TRUE;
}

/* The kinds of object that dr_apply_backends() can write; of others the name and type are enough. */
static gboolean
is_simple_object(const char *type)
{
  return g_str_equal(type, "iothread") || g_str_has_prefix(type, "rng-") || g_str_has_prefix(type, "memory-backend-");
}

static gboolean
read_object(DrQmp *qmp, DrPlugged *object, GError **error)
{
  g_autoptr(JsonArray) list = NULL;

  object->props = new_props();
  if (!is_simple_object(object->type))
    return TRUE;
  if (!ask_array(qmp, "qom-list", dr_json("{'path': <%s>}", object->path), &list, error))
    return FALSE;
  for (guint i = 0; list && i < json_array_get_length(list); i++) {
    JsonObject *entry = json_array_get_object_element(list, i);
    const char *name = dr_json_str(entry, "name", "type");

    if (!g_str_equal(name, "type") && !g_str_has_prefix(dr_json_str(entry, "type", ""), "child<") &&
        !read_into(qmp, object->path, name, object->props, error))
      return FALSE;
  }
  return TRUE;
}

static gboolean
read_objects(DrInventory *inv, DrQmp *qmp, GError **error)
{
  if (!list_children(qmp, "/objects", inv->objects, error))
    return FALSE;
  for (guint i = 0; i < inv->objects->len; i++)
    if (!read_object(qmp, inv->objects->pdata[i], error))
      return FALSE;
  return TRUE;
}

DrInventory *
dr_inventory_read(DrQmp *qmp, GError **error)
{
  g_autoptr(DrInventory) inv = g_new0(DrInventory, 1);

  inv->version = dr_qmp_version_number(qmp);
  inv->plugged = g_ptr_array_new_with_free_func((GDestroyNotify)plugged_free);
  inv->objects = g_ptr_array_new_with_free_func((GDestroyNotify)plugged_free);
  inv->types = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)json_array_unref);
  if (!read_machine(inv, qmp, error) || !read_cpu(inv, qmp, error) || !read_memory(inv, qmp, error) ||
      !read_blocks(inv, qmp, error) || !read_network(inv, qmp, error) || !read_host_side(inv, qmp, error) ||
      !read_devices(inv, qmp, error) || !read_objects(inv, qmp, error)) {
    g_prefix_error(error, "cannot read what the guest is: ");
    return NULL;
  }
  inv->block_nodes = dr_block_nodes(inv);
  return g_steal_pointer(&inv);
}

/* --- Handing out --- */

const char *
dr_inventory_machine(const DrInventory *inventory)
{
  return inventory->machine;
}

const char *
dr_inventory_uuid(const DrInventory *inventory)
{
  return inventory->uuid;
}

const char *
dr_inventory_cpu(const DrInventory *inventory)
{
  return inventory->cpu;
}

guint64
dr_inventory_memory(const DrInventory *inventory)
{
  return inventory->memory;
}

gboolean
dr_inventory_kvm(const DrInventory *inventory)
{
  return inventory->kvm;
}

GPtrArray *
dr_inventory_forwards(const DrInventory *inventory)
{
  return inventory->forwards;
}

GPtrArray *
dr_inventory_taps(const DrInventory *inventory)
{
  return inventory->taps;
}
