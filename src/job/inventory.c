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

GPtrArray *
dr_plugged_list(void)
{
  return g_ptr_array_new_with_free_func((GDestroyNotify)plugged_free);
}

void
dr_inventory_free(DrInventory *inv)
{
  JsonArray **arrays[] = { &inv->cpus,  &inv->features, &inv->memdevs, &inv->dimms,   &inv->block,
                           &inv->nodes, &inv->chardevs, &inv->jobs,    &inv->exports, &inv->tpms };
  GPtrArray **lists[] = { &inv->ram,  &inv->qdevs,    &inv->plugged, &inv->objects,
                          &inv->nets, &inv->forwards, &inv->taps };

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

gboolean
dr_ask_array(DrQmp *qmp, const char *command, JsonObject *arguments, JsonArray **ret, GError **error)
{
  GError *local = NULL;

  *ret = dr_qmp_call_array(qmp, command, arguments, &local);
  return forgive_refusal(local, error);
}

gboolean
dr_ask_object(DrQmp *qmp, const char *command, JsonObject **ret, GError **error)
{
  GError *local = NULL;

  *ret = dr_qmp_call_object(qmp, command, NULL, &local);
  return forgive_refusal(local, error);
}

gboolean
dr_ask_property(DrQmp *qmp, const char *path, const char *property, JsonNode **ret, GError **error)
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

gboolean
dr_ask_into(DrQmp *qmp, const char *path, const char *property, GHashTable *props, GError **error)
{
  g_autoptr(JsonNode) node = NULL;
  char *text;

  if (!dr_ask_property(qmp, path, property, &node, error))
    return FALSE;
  text = node ? dr_value_text(node) : NULL;
  if (text)
    g_hash_table_replace(props, g_strdup(property), text);
  return TRUE;
}

GHashTable *
dr_props_new(void)
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
  if (!dr_ask_object(qmp, "query-uuid", &uuid, error) || !dr_ask_object(qmp, "query-name", &name, error) ||
      !dr_ask_object(qmp, "query-kvm", &kvm, error))
    return FALSE;
  inv->uuid = g_strdup(uuid ? dr_json_str(uuid, "UUID", NULL) : NULL);
  inv->name = g_strdup(name ? dr_json_str(name, "name", NULL) : NULL);
  inv->kvm = kvm && dr_json_bool(kvm, "enabled", FALSE);
  return TRUE;
}

static gboolean
read_cpu(DrInventory *inv, DrQmp *qmp, GError **error)
{
  static const char *const names[] = { "vendor",    "family",         "model",         "stepping",
                                       "model-id",  "level",          "xlevel",        "xlevel2",
                                       "phys-bits", "host-phys-bits", "tsc-frequency", "apic-id" };
  g_autoptr(JsonNode) features = NULL;
  const char *path;

  inv->cpu_props = dr_props_new();
  inv->cpus = dr_qmp_call_array(qmp, "query-cpus-fast", NULL, error);
  if (!inv->cpus)
    return FALSE;
  if (json_array_get_length(inv->cpus) == 0)
    return TRUE; /* -machine none */
  path = dr_json_str(json_array_get_object_element(inv->cpus, 0), "qom-path", "");
  inv->cpu = dr_qmp_qom_str(qmp, path, "type", error);
  if (!inv->cpu || !dr_ask_property(qmp, path, "feature-words", &features, error))
    return FALSE;
  if (!features || !JSON_NODE_HOLDS_ARRAY(features))
    return TRUE;
  inv->features = json_node_dup_array(features);
  for (guint i = 0; i < G_N_ELEMENTS(names); i++)
    if (!dr_ask_into(qmp, path, names[i], inv->cpu_props, error))
      return FALSE;
  return TRUE;
}

static gboolean
read_memory(DrInventory *inv, DrQmp *qmp, GError **error)
{
  g_autoptr(JsonObject) summary = NULL;
  g_autoptr(JsonNode) backend = NULL;
  g_autofree char *blocks = NULL;

  if (!dr_ask_object(qmp, "query-memory-size-summary", &summary, error) ||
      !dr_ask_array(qmp, "query-memdev", NULL, &inv->memdevs, error) ||
      !dr_ask_array(qmp, "query-memory-devices", NULL, &inv->dimms, error))
    return FALSE;
  if (summary) {
    inv->memory = (guint64)dr_json_int(summary, "base-memory", 0);
    inv->plugged_memory = (guint64)dr_json_int(summary, "plugged-memory", 0);
  }
  if (!dr_ask_property(qmp, "/machine", "memory-backend", &backend, error))
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
  return dr_ask_array(qmp, "query-block", NULL, &inv->block, error) &&
         dr_ask_array(qmp, "query-named-block-nodes", dr_json("{'flat': <true>}"), &inv->nodes, error) &&
         dr_ask_object(qmp, "x-debug-query-block-graph", &inv->graph, error) &&
         dr_ask_array(qmp, "query-jobs", NULL, &inv->jobs, error) &&
         dr_ask_array(qmp, "query-block-exports", NULL, &inv->exports, error);
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

  if (!dr_ask_array(qmp, "query-chardev", NULL, &inv->chardevs, error) ||
      !dr_ask_array(qmp, "query-tpm", NULL, &inv->tpms, error) ||
      !dr_ask_object(qmp, "query-spice", &spice, error) ||
      !dr_ask_object(qmp, "query-migrate", &inv->migrate, error))
    return FALSE;
  inv->spice = spice && dr_json_bool(spice, "enabled", FALSE);
  return TRUE;
}

DrInventory *
dr_inventory_read(DrQmp *qmp, GError **error)
{
  g_autoptr(DrInventory) inv = g_new0(DrInventory, 1);

  inv->version = dr_qmp_version_number(qmp);
  inv->plugged = dr_plugged_list();
  inv->objects = dr_plugged_list();
  inv->types = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)json_array_unref);
  if (!read_machine(inv, qmp, error) || !read_cpu(inv, qmp, error) || !read_memory(inv, qmp, error) ||
      !read_blocks(inv, qmp, error) || !read_network(inv, qmp, error) || !read_host_side(inv, qmp, error) ||
      !dr_read_devices(inv, qmp, error) || !dr_read_objects(inv, qmp, error)) {
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

guint64
dr_inventory_block_size(const DrInventory *inventory, const char *name)
{
  for (guint i = 0; i < inventory->ram->len; i++) {
    const DrRam *ram = inventory->ram->pdata[i];

    if (g_str_equal(ram->name, name))
      return ram->used;
  }
  return 0;
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

gboolean
dr_inventory_has_loose_drive(const DrInventory *inv)
{
  for (guint i = 0; inv->block && i < json_array_get_length(inv->block); i++) {
    JsonObject *entry = json_array_get_object_element(inv->block, i);

    if (!*dr_json_str(entry, "qdev", "") && dr_json_obj(entry, "inserted"))
      return TRUE;
  }
  return FALSE;
}

gboolean
dr_inventory_has_device(const DrInventory *inv, const char *path)
{
  for (guint i = 0; i < inv->plugged->len; i++) {
    const char *own = ((DrPlugged *)inv->plugged->pdata[i])->path;
    gsize length = strlen(own);

    if (g_str_has_prefix(path, own) && (path[length] == '\0' || path[length] == '/'))
      return TRUE;
  }
  return FALSE;
}
