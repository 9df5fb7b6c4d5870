/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading the devices of -device and device_add, and the objects of -object and object-add, with what it takes to write them
 * down again. */
#include "job/inventory-internal.h"

#include <string.h>

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

  if (!dr_ask_array(qmp, "qom-list", dr_json("{'path': <%s>}", path), &list, error))
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
  if (!dr_ask_array(qmp, "device-list-properties", dr_json("{'typename': <%s>}", type), &list, error))
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
        !dr_ask_into(qmp, plugged->path, name, plugged->props, error))
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
        !dr_ask_into(qmp, plugged->path, name, plugged->props, error))
      return FALSE;
  }
  return TRUE;
}

/* What cannot be had from info qtree, which has most of it for a device with an id: each of these is a round trip. */
static gboolean
read_anonymous(DrInventory *inv, DrQmp *qmp, DrPlugged *plugged, GError **error)
{
  g_autoptr(JsonNode) hot = NULL;

  if (!dr_ask_property(qmp, plugged->path, "hotplugged", &hot, error) ||
      !dr_ask_into(qmp, plugged->path, "parent_bus", plugged->props, error))
    return FALSE;
  plugged->hot = hot && JSON_NODE_HOLDS_VALUE(hot) && json_node_get_boolean(hot);
  return !plugged->hot ||
         (read_type(inv, qmp, plugged->type, error) && read_all_properties(inv, qmp, plugged, error));
}

static gboolean
read_plugged(DrInventory *inv, DrQmp *qmp, DrPlugged *plugged, GError **error)
{
  static const char *const extra[] = { "bootindex",
                                       "iothread-vq-mapping" }; /* not in info qtree, or without its value */

  plugged->props = dr_props_new();
  if (g_str_has_suffix(plugged->type, "-cpu"))
    return TRUE; /* hundreds of features, which -cpu gives; query-cpus-fast has the place */
  if (plugged->anon)
    return read_anonymous(inv, qmp, plugged, error);
  if (!read_type(inv, qmp, plugged->type, error))
    return FALSE;
  if (!dr_qtree_find(inv, plugged->name))
    return read_all_properties(inv, qmp, plugged, error);
  for (guint i = 0; i < G_N_ELEMENTS(extra); i++)
    if (type_has(inv, plugged->type, extra[i]) &&
        !dr_ask_into(qmp, plugged->path, extra[i], plugged->props, error))
      return FALSE;
  return read_links(inv, qmp, plugged, error);
}

gboolean
dr_list_plugged(DrInventory *inv, DrQmp *qmp, GError **error)
{
  if (!list_children(qmp, "/machine/peripheral", inv->plugged, error) ||
      !list_children(qmp, "/machine/peripheral-anon", inv->plugged, error))
    return FALSE;
  g_ptr_array_sort(inv->plugged, by_number);
  return TRUE;
}

gboolean
dr_read_devices(DrInventory *inv, DrQmp *qmp, GError **error)
{
  g_autofree char *qtree = dr_qmp_hmp(qmp, error, "info qtree");

  if (!qtree)
    return FALSE;
  inv->qdevs = dr_qtree_parse(qtree);
  if (!dr_list_plugged(inv, qmp, error))
    return FALSE;
  for (guint i = 0; i < inv->plugged->len; i++)
    if (!read_plugged(inv, qmp, inv->plugged->pdata[i], error))
      return FALSE;
  return TRUE;
}

/* The kinds of object that dr_apply_backends() can write; of others the name and type are enough. */
static gboolean
is_simple_object(const char *type)
{
  return g_str_equal(type, "iothread") || g_str_has_prefix(type, "rng-") ||
         g_str_has_prefix(type, "memory-backend-");
}

static gboolean
read_object(DrQmp *qmp, DrPlugged *object, GError **error)
{
  g_autoptr(JsonArray) list = NULL;

  object->props = dr_props_new();
  if (!is_simple_object(object->type))
    return TRUE;
  if (!dr_ask_array(qmp, "qom-list", dr_json("{'path': <%s>}", object->path), &list, error))
    return FALSE;
  for (guint i = 0; list && i < json_array_get_length(list); i++) {
    JsonObject *entry = json_array_get_object_element(list, i);
    const char *name = dr_json_str(entry, "name", "type");

    if (!g_str_equal(name, "type") && !g_str_has_prefix(dr_json_str(entry, "type", ""), "child<") &&
        !dr_ask_into(qmp, object->path, name, object->props, error))
      return FALSE;
  }
  return TRUE;
}

gboolean
dr_read_objects(DrInventory *inv, DrQmp *qmp, GError **error)
{
  if (!list_children(qmp, "/objects", inv->objects, error))
    return FALSE;
  for (guint i = 0; i < inv->objects->len; i++)
    if (!read_object(qmp, inv->objects->pdata[i], error))
      return FALSE;
  return TRUE;
}
