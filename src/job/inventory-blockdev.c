/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* -blockdev options brought up to date with the nodes that run under their names, new ones added for nodes that were
 * made later (snapshots, pivots, hot-plugged disks), and gone ones removed. */
#include "job/inventory-internal.h"
#include "base/error.h"

#include <string.h>

static gboolean adjust_node(DrApply *a, DrOpts *opts, const char *prefix, DrNode *node, const DrNode *parent);

static char *
key_of(const char *prefix, const char *name)
{
  return g_strconcat(prefix, name, NULL);
}

static const char *
get(const DrOpts *opts, const char *prefix, const char *name)
{
  g_autofree char *key = key_of(prefix, name);

  return dr_opts_get(opts, key);
}

/* --- A node that the command line has --- */

/* auto-read-only lets QEMU choose as writers come and go, and a hard read-only=on would stand in the way of the next
 * commit; on image formats nobody relies on it. */
static gboolean
chooses_read_only(const DrOpts *opts, const char *prefix, const DrNode *node)
{
  g_autofree char *key = key_of(prefix, "auto-read-only");
  gboolean automatic = FALSE;

  if (!dr_node_is_plain_file(node))
    return FALSE;
  return (dr_opts_get_bool(opts, key, FALSE, &automatic, NULL) && automatic) ||
         (dr_opts_get_bool(opts, "auto-read-only", FALSE, &automatic, NULL) && automatic);
}

static void
adjust_read_only(DrOpts *opts, const char *prefix, const DrNode *node, const DrNode *parent)
{
  g_autofree char *key = key_of(prefix, "read-only");
  gboolean runs = dr_json_bool(node->info, "ro", FALSE);
  gboolean given =
      parent && (g_str_has_suffix(prefix, "backing.") || dr_json_bool(parent->info, "ro", FALSE));

  if (chooses_read_only(opts, prefix, node))
    return;
  if (dr_opts_get_bool(opts, key, given, &given, NULL) && given != runs)
    dr_opts_set_bool(opts, key, runs);
}

static gboolean
adjust_edge(DrApply *a, DrOpts *opts, const char *prefix, DrNode *node, const DrEdge *edge)
{
  static const char *const replaceable[] = { "file", "backing", "data-file", NULL };
  g_autofree char *below = g_strconcat(prefix, edge->name, ".", NULL);
  const char *reference = get(opts, prefix, edge->name);
  const char *driver = get(opts, below, "driver");
  const char *name = get(opts, below, "node-name");

  if (driver && (name ? g_str_equal(name, edge->node->name) : dr_node_is_unnamed(edge->node)))
    return adjust_node(a, opts, below, edge->node, node);
  if (!driver && reference && g_str_equal(reference, edge->node->name))
    return dr_blockdev_ensure(a, edge->node) != NULL;
  if (!driver && !(reference && *reference) && dr_node_is_unnamed(edge->node) &&
      dr_chain_is_implicit(node, a->cwd))
    return TRUE; /* the image's header says it */
  if (!g_strv_contains(replaceable, edge->name)) {
    dr_apply_block(a, "disk-graph", "put the block graph back as it was at the start of the guest",
                   "%s: child '%s' of block node '%s' (%s) is another than the command line says", a->disk,
                   edge->name, node->name, node->driver);
    return FALSE;
  }
  return dr_place_child(a, opts, prefix, edge->name, node, edge->node);
}

/* A backing file that the command line or the header names and that is not there any more. */
static void
adjust_missing_backing(DrOpts *opts, const char *prefix, const DrNode *node)
{
  g_autofree char *key = key_of(prefix, "backing");
  const char *given = dr_opts_get(opts, key);

  if (dr_node_child(node, "backing"))
    return;
  if ((dr_opts_has(opts, key) && !(given && !*given)) ||
      (!dr_opts_has(opts, key) && dr_json_str(node->info, "image.backing-filename", NULL))) {
    dr_opts_unset(opts, key);
    dr_opts_set(opts, key, "");
  }
}

/* Another node took over the name, or the place inside of its parent: nothing of the old options holds. */
static gboolean
replace_node(DrApply *a, DrOpts *opts, const char *prefix, DrNode *node, const DrNode *parent)
{
  g_autoptr(GPtrArray) stale = g_ptr_array_new_with_free_func(g_free);

  for (guint i = 0; i < dr_opts_n(opts); i++) {
    const char *key = dr_opts_key(opts, i);

    if (g_str_has_prefix(key, prefix) && !(*prefix == '\0' && g_str_equal(key, "node-name")))
      g_ptr_array_add(stale, g_strdup(key));
  }
  for (guint i = 0; i < stale->len; i++)
    dr_opts_unset(opts, stale->pdata[i]);
  return dr_spell_node(a, opts, prefix, node, parent);
}

static gboolean
adjust_node(DrApply *a, DrOpts *opts, const char *prefix, DrNode *node, const DrNode *parent)
{
  const char *driver = get(opts, prefix, "driver");
  const char *filename = get(opts, prefix, "filename");

  if (!driver || !g_str_equal(driver, node->driver))
    return replace_node(a, opts, prefix, node, parent);
  if (dr_node_is_plain_file(node) && (!filename || !dr_same_file(filename, dr_node_path(node), a->cwd)))
    return replace_node(a, opts, prefix, node, parent);
  for (guint i = 0; i < node->edges->len; i++)
    if (!adjust_edge(a, opts, prefix, node, &g_array_index(node->edges, DrEdge, i)))
      return FALSE;
  adjust_missing_backing(opts, prefix, node);
  adjust_read_only(opts, prefix, node, parent);
  dr_spell_tuning(opts, prefix, node, parent);
  return TRUE;
}

/* --- All of them --- */

/* The -blockdev whose outermost node has this name. */
static DrOpt *
find_blockdev(const DrArgv *argv, const char *name)
{
  return dr_argv_find_id(argv, "blockdev", name);
}

static gboolean
name_is_taken(const DrApply *a, const char *name)
{
  return g_hash_table_contains(a->inventory->block_nodes, name) || find_blockdev(a->argv, name);
}

/* Names of at most 31 bytes (QEMU's node name field). */
static char *
make_name(DrApply *a)
{
  for (;;) {
    g_autofree char *name = g_strdup_printf("drover-node%u", a->made_up++);

    if (!name_is_taken(a, name))
      return g_steal_pointer(&name);
  }
}

static DrOpt *
last_blockdev(const DrArgv *argv)
{
  return dr_argv_find_last(argv, "blockdev");
}

static DrOpt *
add_blockdev(DrApply *a, const DrOpts *opts)
{
  g_autofree char *value = dr_opts_print(opts);
  DrOpt *last = last_blockdev(a->argv);

  return last ? dr_argv_insert_after(a->argv, last, "blockdev", value)
              : dr_argv_append(a->argv, "blockdev", value);
}

/* In the form that the command line already uses. */
static DrOpts *
new_blockdev(const DrArgv *argv)
{
  DrOpt *last = last_blockdev(argv);
  g_autoptr(DrOpts) opts = last ? dr_opt_parse(last, NULL) : NULL;

  return dr_opts_new("blockdev", opts ? dr_opts_form(opts) : DR_OPTS_KEYVAL);
}

static DrOpt *
create_blockdev(DrApply *a, DrNode *node, const char *name)
{
  g_autoptr(DrOpts) opts = new_blockdev(a->argv);

  dr_opts_set(opts, "driver", node->driver);
  dr_opts_set(opts, "node-name", name);
  if (!dr_spell_node(a, opts, "", node, NULL))
    return NULL;
  adjust_read_only(opts, "", node, NULL);
  a->reordered = TRUE;
  dr_findings_add(a->findings, DR_FINDING_NOTE, "blockdev", NULL,
                  "%s: block node '%s' gets a -blockdev of its own; aio=, discard=, locking= and cache sizes "
                  "cannot be read and "
                  "are the defaults",
                  a->disk, name);
  return add_blockdev(a, opts);
}

static gboolean
update_blockdev(DrApply *a, DrOpt *opt, DrNode *node)
{
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
  g_autofree char *before = opts ? dr_opts_print(opts) : NULL;
  g_autofree char *after = NULL;

  if (!opts)
    return FALSE;
  if (!adjust_node(a, opts, "", node, NULL))
    return FALSE;
  after = dr_opts_print(opts);
  if (!g_str_equal(before, after))
    dr_opt_set_opts(opt, opts);
  return TRUE;
}

const char *
dr_blockdev_ensure(DrApply *a, DrNode *node)
{
  char *name = g_hash_table_lookup(a->placed, node);
  DrOpt *opt;

  if (name)
    return name;
  name = dr_node_is_unnamed(node) ? make_name(a) : g_strdup(node->name);
  g_hash_table_insert(a->placed, node, name);
  opt = find_blockdev(a->argv, name);
  if (opt ? !update_blockdev(a, opt, node) : !(opt = create_blockdev(a, node, name))) {
    g_hash_table_remove(a->placed, node);
    return NULL;
  }
  g_ptr_array_add(a->node_order, opt);
  return name;
}

/* Nodes of the command line that no disk reaches: kept if they still run (the user's own), else gone. */
static gboolean
settle_unreached(DrApply *a, GError **error)
{
  g_autoptr(GPtrArray) gone = g_ptr_array_new();

  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, "blockdev", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);
    const char *name;
    DrNode *node;

    if (!opts)
      return FALSE;
    if (g_ptr_array_find(a->node_order, opt, NULL))
      continue;
    name = dr_opts_get(opts, "node-name");
    node = name ? g_hash_table_lookup(a->inventory->block_nodes, name) : NULL;
    if (!node) {
      g_ptr_array_add(gone, opt);
    } else if (!g_hash_table_contains(a->placed, node)) {
      g_autofree char *disk = g_strdup_printf("block node '%s'", name);

      a->disk = disk;
      dr_blockdev_ensure(a, node);
      a->disk = NULL;
    }
  }
  for (guint i = 0; i < gone->len; i++)
    dr_argv_remove(a->argv, gone->pdata[i]);
  return TRUE;
}

/* Every name that something refers to must be made by some option: one that stood inside of a -blockdev which is gone, or
 * was replaced, is not. */
static gboolean
makes_name(const DrArgv *argv, const char *name)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, NULL, opt));) {
    g_autoptr(DrOpts) opts = NULL;

    if (!g_str_equal(opt->info->name, "blockdev") && !g_str_equal(opt->info->name, "drive"))
      continue;
    opts = dr_opt_parse(opt, NULL);
    for (guint i = 0; opts && i < dr_opts_n(opts); i++)
      if (g_str_has_suffix(dr_opts_key(opts, i), "node-name") && g_str_equal(dr_opts_value(opts, i), name))
        return TRUE;
  }
  return FALSE;
}

static void
check_names(DrApply *a)
{
  GHashTableIter iter;
  gpointer node, name;

  g_hash_table_iter_init(&iter, a->placed);
  while (g_hash_table_iter_next(&iter, &node, &name))
    if (!makes_name(a->argv, name))
      dr_apply_block(
          a, "disk-graph", "give that node a -blockdev of its own, or shut the guest down and start it anew",
          "block node '%s' stood inside of another one that is not the same any more", (char *)name);
}

/* Nodes that have a name inside of a -blockdev or -drive are made by that option. */
void
dr_blockdev_begin(DrApply *a)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, NULL, opt));) {
    g_autoptr(DrOpts) opts = NULL;

    if (!g_str_equal(opt->info->name, "blockdev") && !g_str_equal(opt->info->name, "drive"))
      continue;
    opts = dr_opt_parse(opt, NULL);
    for (guint i = 0; opts && i < dr_opts_n(opts); i++) {
      gboolean nested = g_str_has_suffix(dr_opts_key(opts, i), ".node-name");
      DrNode *node = nested ? g_hash_table_lookup(a->inventory->block_nodes, dr_opts_value(opts, i)) : NULL;

      if (node && g_str_equal(opt->info->name, "blockdev"))
        g_hash_table_insert(a->placed, node, g_strdup(node->name));
    }
  }
}

/* QEMU opens -blockdev options in their order, and one that is referred to must come first. */
static void
sort_blockdevs(DrApply *a)
{
  g_autoptr(GPtrArray) values = g_ptr_array_new_with_free_func(g_free);
  guint last = 0, i = 0;
  gboolean in_order = TRUE;

  for (guint n = 0; n < a->node_order->len; n++) {
    guint at = 0;

    g_ptr_array_add(values, g_strdup(((DrOpt *)a->node_order->pdata[n])->value));
    while (at < dr_argv_n(a->argv) && dr_argv_opt(a->argv, at) != a->node_order->pdata[n])
      at++;
    in_order = in_order && at >= last;
    last = at;
  }
  if (!a->reordered || in_order || values->len != dr_argv_count(a->argv, "blockdev"))
    return;
  for (DrOpt *opt = NULL; (opt = dr_argv_next(a->argv, "blockdev", opt));)
    dr_opt_set_value(opt, values->pdata[i++]);
}

gboolean
dr_blockdev_finish(DrApply *a, GError **error)
{
  if (!settle_unreached(a, error))
    return FALSE;
  sort_blockdevs(a);
  check_names(a);
  return TRUE;
}
