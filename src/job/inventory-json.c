/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The inventory for a reader: "memory", "disks", "nics" of `drover show --json`. */
#include "job/inventory-internal.h"

#include <string.h>

static JsonObject *
memory_json(const DrInventory *inv)
{
  JsonObject *object = json_object_new();
  JsonArray *backends = json_array_new();

  json_object_set_int_member(object, "bytes", (gint64)inv->memory);
  json_object_set_int_member(object, "plugged_bytes", (gint64)inv->plugged_memory);
  for (guint i = 0; inv->memdevs && i < json_array_get_length(inv->memdevs); i++) {
    JsonObject *memdev = json_array_get_object_element(inv->memdevs, i);
    JsonObject *entry = json_object_new();

    json_object_set_string_member(entry, "id", dr_json_str(memdev, "id", NULL));
    json_object_set_int_member(entry, "bytes", dr_json_int(memdev, "size", 0));
    json_array_add_object_element(backends, entry);
  }
  json_object_set_array_member(object, "backends", backends);
  return object;
}

/* The files under a node, top first: what holds the guest's data. */
static JsonArray *
chain_json(const DrNode *node)
{
  JsonArray *chain = json_array_new();

  for (node = node ? dr_node_child(node, "backing") : NULL; node; node = dr_node_child(node, "backing"))
    json_array_add_string_element(chain, node->file);
  return chain;
}

static JsonObject *
disk_json(const DrInventory *inv, JsonObject *entry)
{
  JsonObject *object = json_object_new();
  JsonObject *inserted = dr_json_obj(entry, "inserted");
  const char *backend = dr_json_str(entry, "device", "");
  const DrNode *root = dr_block_root(inv, entry);
  const DrNode *file = root ? dr_node_child(root, "file") : NULL;

  json_object_set_string_member(object, "backend", *backend ? backend : NULL);
  json_object_set_string_member(object, "device", dr_json_str(entry, "qdev", NULL));
  json_object_set_boolean_member(object, "removable", dr_json_bool(entry, "removable", FALSE));
  if (!inserted)
    return object;
  json_object_set_string_member(object, "node", dr_json_str(inserted, "node-name", NULL));
  json_object_set_string_member(object, "file", file ? file->file : dr_json_str(inserted, "file", NULL));
  json_object_set_string_member(object, "format", dr_json_str(inserted, "drv", NULL));
  json_object_set_boolean_member(object, "read_only", dr_json_bool(inserted, "ro", FALSE));
  json_object_set_int_member(object, "bytes", dr_json_int(inserted, "image.virtual-size", 0));
  json_object_set_array_member(object, "backing", chain_json(root));
  return object;
}

static JsonArray *
disks_json(const DrInventory *inv)
{
  JsonArray *disks = json_array_new();

  for (guint i = 0; inv->block && i < json_array_get_length(inv->block); i++) {
    JsonObject *entry = json_array_get_object_element(inv->block, i);

    /* A backend without a device is a drive slot of the board that nobody uses (sd0). */
    if (dr_json_obj(entry, "inserted") || dr_json_str(entry, "qdev", NULL))
      json_array_add_object_element(disks, disk_json(inv, entry));
  }
  return disks;
}

/* What a NIC is connected to: its peer, or what shares its hub with it. */
static const DrNet *
other_end(const DrInventory *inv, const DrNet *nic)
{
  if (nic->peer)
    return dr_net_find(inv, nic->peer);
  for (guint i = 0; nic->hub >= 0 && i < inv->nets->len; i++) {
    const DrNet *net = inv->nets->pdata[i];

    if (net->hub == nic->hub && !g_str_equal(net->type, "nic"))
      return net;
  }
  return NULL;
}

static JsonArray *
nics_json(const DrInventory *inv)
{
  JsonArray *nics = json_array_new();

  for (guint i = 0; i < inv->nets->len; i++) {
    const DrNet *net = inv->nets->pdata[i];
    const DrNet *other;
    JsonObject *object;

    if (!net->mac)
      continue;
    other = other_end(inv, net);
    object = json_object_new();
    json_object_set_string_member(object, "id", net->name);
    json_object_set_string_member(object, "model", net->model);
    json_object_set_string_member(object, "mac", net->mac);
    json_object_set_string_member(object, "netdev", other ? other->name : NULL);
    json_object_set_string_member(object, "type", other ? other->type : NULL);
    json_array_add_object_element(nics, object);
  }
  return nics;
}

JsonObject *
dr_inventory_json(const DrInventory *inventory)
{
  JsonObject *object = json_object_new();

  json_object_set_string_member(object, "machine", inventory->machine);
  json_object_set_string_member(object, "cpu", inventory->cpu);
  json_object_set_int_member(object, "cpus", json_array_get_length(inventory->cpus));
  json_object_set_object_member(object, "memory", memory_json(inventory));
  json_object_set_array_member(object, "disks", disks_json(inventory));
  json_object_set_array_member(object, "nics", nics_json(inventory));
  return object;
}
