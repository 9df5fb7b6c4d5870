/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disks by name, for the jobs that change them and for `drover disk`. */
#include "job/disk.h"
#include "base/error.h"
#include "job/inventory-internal.h"

#include <string.h>

#define PERIPHERAL "/machine/peripheral/"

struct DrDisks {
  DrInventory *inventory; /* of which only the block layer was read */
  GPtrArray *disks;       /* of DrDisk */
  GPtrArray *names;       /* the strings made for them */
};

/* --- Reading --- */

/* "d2" of "/machine/peripheral/d2/virtio-backend"; an id is given as it is; NULL for a device without an id. */
static const char *
device_id(DrDisks *disks, const char *qdev)
{
  char *id;

  if (!qdev || g_str_has_prefix(qdev, "/machine/peripheral-anon/"))
    return NULL;
  if (!g_str_has_prefix(qdev, PERIPHERAL))
    return *qdev == '/' ? NULL : qdev;
  qdev += strlen(PERIPHERAL);
  id = g_strndup(qdev, strcspn(qdev, "/"));
  g_ptr_array_add(disks->names, id);
  return id;
}

/* What lies below the filters that a user put above an image. */
static DrNode *
below_filters(DrNode *node)
{
  static const char *const filters[] = { "throttle", "copy-on-read",      "preallocate",
                                         "compress", "copy-before-write", NULL };

  while (node && g_strv_contains(filters, node->driver) && dr_node_child(node, "file"))
    node = dr_node_child(node, "file");
  return node;
}

static void
add_disk(DrDisks *disks, JsonObject *entry)
{
  DrDisk *disk = g_new0(DrDisk, 1);
  const char *backend = dr_json_str(entry, "device", ""), *id;

  disk->device = dr_json_str(entry, "qdev", NULL);
  disk->backend = *backend ? backend : NULL;
  disk->removable = dr_json_bool(entry, "removable", FALSE);
  disk->read_only = dr_json_bool(entry, "inserted.ro", FALSE);
  disk->root = dr_block_root(disks->inventory, entry);
  disk->top = below_filters(disk->root);
  id = device_id(disks, disk->device);
  disk->name = id ? id : disk->backend ? disk->backend : disk->top ? disk->top->name : disk->device;
  g_ptr_array_add(disks->disks, disk);
}

/* Whoever writes a name into a header, or compares it with one that a user typed, is in another directory. */
static void
make_absolute(DrDisks *disks, const char *cwd)
{
  GHashTableIter iter;
  gpointer key, value;

  g_hash_table_iter_init(&iter, disks->inventory->block_nodes);
  while (cwd && g_hash_table_iter_next(&iter, &key, &value)) {
    DrNode *node = value;
    char *path;

    if (!dr_node_is_plain_file(node) || *dr_node_path(node) == '/')
      continue;
    path = g_canonicalize_filename(dr_node_path(node), cwd);
    g_ptr_array_add(disks->names, path);
    node->file = path;
  }
}

DrDisks *
dr_disks_read(DrQmp *qmp, const char *cwd, GError **error)
{
  g_autoptr(DrDisks) disks = g_new0(DrDisks, 1);
  JsonArray *block;

  disks->disks = g_ptr_array_new_with_free_func(g_free);
  disks->names = g_ptr_array_new_with_free_func(g_free);
  disks->inventory = dr_inventory_blocks(qmp, error);
  if (!disks->inventory)
    return NULL;
  if (!disks->inventory->graph) {
    dr_error_set(error, DR_ERROR_UNSUPPORTED,
                 "QEMU does not tell how its block nodes stand on each other (x-debug-query-block-graph)");
    dr_error_remedy(error, "start the guest without -compat unstable-input=reject");
    return NULL;
  }
  make_absolute(disks, cwd);
  block = disks->inventory->block;
  for (guint i = 0; block && i < json_array_get_length(block); i++) {
    JsonObject *entry = json_array_get_object_element(block, i);

    /* A backend without a device is a drive slot of the board that nobody uses (sd0). */
    if (dr_json_obj(entry, "inserted") || dr_json_str(entry, "qdev", NULL))
      add_disk(disks, entry);
  }
  return g_steal_pointer(&disks);
}

void
dr_disks_free(DrDisks *disks)
{
  if (!disks)
    return;
  g_clear_pointer(&disks->inventory, dr_inventory_free);
  g_ptr_array_unref(disks->disks);
  g_ptr_array_unref(disks->names);
  g_free(disks);
}

guint
dr_disks_count(const DrDisks *disks)
{
  return disks->disks->len;
}

const DrDisk *
dr_disks_get(const DrDisks *disks, guint i)
{
  return disks->disks->pdata[i];
}

/* --- Finding --- */

static gboolean
is_called(const DrDisk *disk, const char *name)
{
  return g_strcmp0(disk->name, name) == 0;
}

static gboolean
is_known_as(const DrDisk *disk, const char *name)
{
  return g_strcmp0(disk->device, name) == 0 || g_strcmp0(disk->backend, name) == 0 ||
         (disk->root && g_str_equal(disk->root->name, name)) ||
         (disk->top && (g_str_equal(disk->top->name, name) || g_strcmp0(dr_node_file(disk->top), name) == 0));
}

static guint
find_by(const DrDisks *disks, const char *name, gboolean (*fits)(const DrDisk *, const char *),
        const DrDisk **ret_disk)
{
  guint n = 0;

  for (guint i = 0; i < disks->disks->len; i++)
    if (fits(disks->disks->pdata[i], name)) {
      *ret_disk = disks->disks->pdata[i];
      n++;
    }
  return n;
}

static gboolean
no_such_disk(const DrDisks *disks, const char *name, GError **error)
{
  g_autoptr(GString) names = g_string_new(NULL);

  for (guint i = 0; i < disks->disks->len; i++)
    g_string_append_printf(names, "%s%s", i ? ", " : "", ((DrDisk *)disks->disks->pdata[i])->name);
  dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no disk '%s'", name);
  return names->len ? dr_error_remedy(error, "its disks are: %s", names->str)
                    : dr_error_remedy(error, "the VM has no disks");
}

const DrDisk *
dr_disks_find(const DrDisks *disks, const char *name, GError **error)
{
  const DrDisk *disk = NULL;
  guint n = find_by(disks, name, is_called, &disk);

  if (n == 0)
    n = find_by(disks, name, is_known_as, &disk);
  if (n == 0) {
    no_such_disk(disks, name, error);
    return NULL;
  }
  if (n > 1) {
    dr_error_set(error, DR_ERROR_INVALID, "%u disks are known as '%s'", n, name);
    dr_error_remedy(error, "give the one that is meant by its device: drover disk list shows them");
    return NULL;
  }
  if (!disk->top)
    dr_error_set(error, DR_ERROR_REFUSED, "disk '%s' has no medium", name);
  return disk->top ? disk : NULL;
}

/* --- Nodes --- */

const char *
dr_node_name(const DrNode *node)
{
  return node->name;
}

const char *
dr_node_driver(const DrNode *node)
{
  return node->driver;
}

/* A raw node over a file is its own node; its own name may be json:. */
const char *
dr_node_file(const DrNode *node)
{
  const DrNode *file = dr_node_child(node, "file");

  return file ? dr_node_file(file) : node->file;
}

gint64
dr_node_bytes(const DrNode *node)
{
  return dr_json_int(node->info, "image.virtual-size", 0);
}

gint64
dr_node_allocated(const DrNode *node)
{
  return dr_json_int(node->info, "image.actual-size", -1);
}

gboolean
dr_node_flag(const DrNode *node, const char *path)
{
  return dr_json_bool(node->info, path, FALSE);
}

DrNode *
dr_node_backing(const DrNode *node)
{
  return dr_node_child(node, "backing");
}

const char *
dr_node_backing_name(const DrNode *node)
{
  return dr_json_str(node->info, "image.backing-filename", NULL);
}

char *
dr_node_detect_zeroes(const DrNode *node)
{
  const char *zeroes = dr_json_str(node->info, "detect_zeroes", "off");

  return g_str_equal(zeroes, "off") ? NULL : g_strdup(zeroes);
}

gboolean
dr_node_is_partial(const DrNode *node)
{
  return g_str_has_prefix(node->file, "json:") &&
         (strstr(node->file, "\"offset\"") || strstr(node->file, "\"size\""));
}

/* Options that change the contents make QEMU name the node by json:, the secret's id among them. */
char *
dr_node_secret(const DrNode *node)
{
  static const char *const members[] = { "key-secret", "encrypt.key-secret" };
  g_autoptr(JsonObject) object = NULL;

  if (!g_str_has_prefix(node->file, "json:"))
    return NULL;
  object = dr_json_parse_object(node->file + strlen("json:"), -1, 1024 * 1024, NULL);
  for (guint i = 0; object && i < G_N_ELEMENTS(members); i++) {
    const char *flat =
        json_object_has_member(object, members[i]) ? json_object_get_string_member(object, members[i]) : NULL;
    const char *id = flat ? flat : dr_json_str(object, members[i], NULL);

    if (id)
      return g_strdup(id);
  }
  return NULL;
}

static void
add_named(DrNode *node, DrNode *until, GPtrArray *names)
{
  if (node == until)
    return;
  if (!dr_node_is_unnamed(node))
    g_ptr_array_add(names, g_strdup(node->name));
  for (guint i = 0; i < node->edges->len; i++)
    add_named(g_array_index(node->edges, DrEdge, i).node, until, names);
}

GPtrArray *
dr_node_named_tree(DrNode *from, DrNode *until)
{
  GPtrArray *names = g_ptr_array_new_with_free_func(g_free);

  add_named(from, until, names);
  return names;
}

/* --- For a reader --- */

static JsonObject *
bitmap_json(JsonObject *bitmap)
{
  JsonObject *object = json_object_new();

  json_object_set_string_member(object, "name", dr_json_str(bitmap, "name", NULL));
  json_object_set_int_member(object, "bytes", dr_json_int(bitmap, "count", 0));
  json_object_set_int_member(object, "granularity", dr_json_int(bitmap, "granularity", 0));
  json_object_set_boolean_member(object, "recording", dr_json_bool(bitmap, "recording", FALSE));
  json_object_set_boolean_member(object, "persistent", dr_json_bool(bitmap, "persistent", FALSE));
  json_object_set_boolean_member(object, "busy", dr_json_bool(bitmap, "busy", FALSE));
  json_object_set_boolean_member(object, "inconsistent", dr_json_bool(bitmap, "inconsistent", FALSE));
  return object;
}

/* Those without a name are a job's own. */
static JsonArray *
bitmaps_json(const DrNode *node)
{
  JsonArray *bitmaps = dr_json_arr(node->info, "dirty-bitmaps"), *array = json_array_new();

  for (guint i = 0; bitmaps && i < json_array_get_length(bitmaps); i++) {
    JsonObject *bitmap = json_array_get_object_element(bitmaps, i);

    if (*dr_json_str(bitmap, "name", ""))
      json_array_add_object_element(array, bitmap_json(bitmap));
  }
  return array;
}

static JsonObject *
find_graph_node(JsonObject *graph, const char *type, const char *name)
{
  JsonArray *nodes = dr_json_arr(graph, "nodes");

  for (guint i = 0; nodes && i < json_array_get_length(nodes); i++) {
    JsonObject *node = json_array_get_object_element(nodes, i);

    if (g_str_equal(dr_json_str(node, "type", ""), type) && g_str_equal(dr_json_str(node, "name", ""), name))
      return node;
  }
  return NULL;
}

/* Whether the block job `id` has a hand on `node`. */
static gboolean
works_on(JsonObject *graph, const char *id, const DrNode *node)
{
  JsonObject *job = find_graph_node(graph, "block-job", id),
             *block = find_graph_node(graph, "block-driver", node->name);
  JsonArray *edges = dr_json_arr(graph, "edges");

  for (guint i = 0; job && block && edges && i < json_array_get_length(edges); i++) {
    JsonObject *edge = json_array_get_object_element(edges, i);

    if (dr_json_int(edge, "parent", -1) == dr_json_int(job, "id", -2) &&
        dr_json_int(edge, "child", -1) == dr_json_int(block, "id", -2))
      return TRUE;
  }
  return FALSE;
}

static JsonObject *
job_json(const DrDisks *disks, const DrDisk *disk)
{
  JsonArray *jobs = disks->inventory->jobs;

  for (guint i = 0; jobs && i < json_array_get_length(jobs); i++) {
    JsonObject *job = json_array_get_object_element(jobs, i);

    if (works_on(disks->inventory->graph, dr_json_str(job, "id", ""), disk->top) ||
        works_on(disks->inventory->graph, dr_json_str(job, "id", ""), disk->root))
      return dr_json("{'id': <%s>, 'type': <%s>, 'status': <%s>, 'bytes_done': <%x>, 'bytes_total': <%x>}",
                     dr_json_str(job, "id", ""), dr_json_str(job, "type", ""), dr_json_str(job, "status", ""),
                     dr_json_int(job, "current-progress", 0), dr_json_int(job, "total-progress", 0));
  }
  return NULL;
}

static void
set_size(JsonObject *object, const char *name, gint64 bytes)
{
  if (bytes >= 0)
    json_object_set_int_member(object, name, bytes);
  else
    json_object_set_null_member(object, name);
}

static void
set_node(JsonObject *object, const DrNode *node)
{
  json_object_set_string_member(object, "node", node->name);
  json_object_set_string_member(object, "file", dr_node_file(node));
  json_object_set_string_member(object, "format", node->driver);
  json_object_set_int_member(object, "bytes", dr_node_bytes(node));
  set_size(object, "allocated_bytes", dr_node_allocated(node));
  json_object_set_boolean_member(object, "encrypted",
                                 dr_node_flag(node, "image.encrypted") || dr_node_flag(node, "encrypted"));
  json_object_set_array_member(object, "bitmaps", bitmaps_json(node));
}

static JsonArray *
chain_json(const DrNode *node)
{
  JsonArray *chain = json_array_new();

  for (; node; node = dr_node_child(node, "backing")) {
    JsonObject *object = json_object_new();

    set_node(object, node);
    json_array_add_object_element(chain, object);
  }
  return chain;
}

JsonObject *
dr_disk_json(const DrDisks *disks, const DrDisk *disk)
{
  JsonObject *object = json_object_new(), *job;

  json_object_set_string_member(object, "name", disk->name);
  json_object_set_string_member(object, "device", disk->device);
  json_object_set_string_member(object, "backend", disk->backend);
  json_object_set_boolean_member(object, "removable", disk->removable);
  json_object_set_boolean_member(object, "read_only", disk->read_only);
  if (!disk->top) {
    json_object_set_null_member(object, "file");
    return object;
  }
  json_object_set_string_member(object, "root", disk->root->name);
  set_node(object, disk->top);
  job = job_json(disks, disk);
  if (job)
    json_object_set_object_member(object, "job", job);
  else
    json_object_set_null_member(object, "job");
  json_object_set_array_member(object, "chain", chain_json(disk->top));
  return object;
}

JsonArray *
dr_disks_json(const DrDisks *disks)
{
  JsonArray *array = json_array_new();

  for (guint i = 0; i < disks->disks->len; i++)
    json_array_add_object_element(array, dr_disk_json(disks, disks->disks->pdata[i]));
  return array;
}
