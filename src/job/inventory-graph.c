/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The block graph in force: which node stands on which, from x-debug-query-block-graph (4.0 and newer) joined with
 * query-named-block-nodes by node name. */
#include "job/inventory-internal.h"

static void
edge_clear(gpointer data)
{
  g_free(((DrEdge *)data)->name);
}

static void
node_free(DrNode *node)
{
  g_array_unref(node->edges);
  g_free(node);
}

static DrNode *
node_new(JsonObject *info)
{
  DrNode *node = g_new0(DrNode, 1);

  node->info = info;
  node->name = dr_json_str(info, "node-name", "");
  node->driver = dr_json_str(info, "drv", "");
  node->file = dr_json_str(info, "file", "");
  node->edges = g_array_new(FALSE, FALSE, sizeof(DrEdge));
  g_array_set_clear_func(node->edges, edge_clear);
  return node;
}

/* id of the graph -> node; backends and jobs are left out. */
static GHashTable *
index_by_id(JsonObject *graph, GHashTable *nodes)
{
  GHashTable *by_id = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
  JsonArray *list = dr_json_arr(graph, "nodes");

  for (guint i = 0; list && i < json_array_get_length(list); i++) {
    JsonObject *entry = json_array_get_object_element(list, i);
    gint64 id = dr_json_int(entry, "id", 0);
    DrNode *node = g_hash_table_lookup(nodes, dr_json_str(entry, "name", ""));

    if (node && g_str_equal(dr_json_str(entry, "type", ""), "block-driver"))
      g_hash_table_insert(by_id, g_memdup2(&id, sizeof id), node);
  }
  return by_id;
}

static void
add_edges(JsonObject *graph, GHashTable *by_id)
{
  JsonArray *list = dr_json_arr(graph, "edges");

  for (guint i = 0; list && i < json_array_get_length(list); i++) {
    JsonObject *entry = json_array_get_object_element(list, i);
    gint64 parent_id = dr_json_int(entry, "parent", 0), child_id = dr_json_int(entry, "child", 0);
    DrNode *parent = g_hash_table_lookup(by_id, &parent_id);
    DrNode *child = g_hash_table_lookup(by_id, &child_id);
    DrEdge edge = { NULL, child };

    if (!parent || !child)
      continue;
    edge.name = g_strdup(dr_json_str(entry, "name", ""));
    g_array_append_val(parent->edges, edge);
  }
}

GHashTable *
dr_block_nodes(const DrInventory *inventory)
{
  GHashTable *nodes = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, (GDestroyNotify)node_free);

  for (guint i = 0; inventory->nodes && i < json_array_get_length(inventory->nodes); i++) {
    DrNode *node = node_new(json_array_get_object_element(inventory->nodes, i));

    g_hash_table_insert(nodes, (char *)node->name, node);
  }
  if (inventory->graph) {
    g_autoptr(GHashTable) by_id = index_by_id(inventory->graph, nodes);

    add_edges(inventory->graph, by_id);
  }
  return nodes;
}

DrNode *
dr_node_child(const DrNode *node, const char *edge)
{
  for (guint i = 0; i < node->edges->len; i++) {
    const DrEdge *at = &g_array_index(node->edges, DrEdge, i);

    if (g_str_equal(at->name, edge))
      return at->node;
  }
  return NULL;
}

static JsonObject *
find_block(const DrInventory *inventory, const char *member, const char *value)
{
  for (guint i = 0; inventory->block && i < json_array_get_length(inventory->block); i++) {
    JsonObject *entry = json_array_get_object_element(inventory->block, i);

    if (g_str_equal(dr_json_str(entry, member, ""), value))
      return entry;
  }
  return NULL;
}

JsonObject *
dr_block_by_backend(const DrInventory *inventory, const char *backend)
{
  return *backend ? find_block(inventory, "device", backend) : NULL;
}

JsonObject *
dr_block_by_qdev(const DrInventory *inventory, const char *qdev)
{
  return *qdev ? find_block(inventory, "qdev", qdev) : NULL;
}

DrNode *
dr_block_root(const DrInventory *inventory, JsonObject *entry)
{
  const char *name = dr_json_str(entry, "inserted.node-name", NULL);

  return name ? g_hash_table_lookup(inventory->block_nodes, name) : NULL;
}
