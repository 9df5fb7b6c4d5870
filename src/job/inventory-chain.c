/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Running block nodes written down as sub-options of -blockdev and -drive.
 *
 * Only what is known to be complete is written: files, host devices and NBD exports, and the image formats that consist of a file and
 * maybe a backing chain, encrypted by LUKS or not. All else (filters, other network protocols) has options that QEMU does not tell; there
 * the answer is a blocker. Options of the host's side that no query shows (aio, locking, discard, cache sizes) get what the
 * surrounding option gives, or the default: they change speed, not data. */
#include "job/disk-target.h"
#include "job/inventory-internal.h"

#include <string.h>

static const char *const formats[] = { "raw",  "qcow2",     "qcow",  "qed",   "vmdk", "vdi",  "vpc",
                                       "vhdx", "parallels", "bochs", "cloop", "dmg",  "luks", NULL };
static const char *const plain_files[] = { "file", "host_device", "host_cdrom", NULL };

gboolean
dr_node_is_unnamed(const DrNode *node)
{
  return node->name[0] == '#';
}

gboolean
dr_node_is_plain_file(const DrNode *node)
{
  return g_strv_contains(plain_files, node->driver) && !g_str_has_prefix(node->file, "json:");
}

const char *
dr_node_path(const DrNode *node)
{
  return g_str_has_prefix(node->file, "file:") ? node->file + strlen("file:") : node->file;
}

static gboolean
refuse(DrApply *a, const DrNode *node, const char *why)
{
  dr_apply_block(a, "disk-graph",
                 "finish what was begun on that disk, or shut the guest down and start it on this image",
                 "%s: block node '%s' (%s, %s) cannot be rebuilt: %s", a->disk, node->name, node->driver,
                 node->file, why);
  return FALSE;
}

static void
set_number(DrOpts *opts, const char *prefix, const char *name, JsonNode *value)
{
  g_autofree char *key = g_strconcat(prefix, name, NULL);

  if (JSON_NODE_HOLDS_VALUE(value) && json_node_get_value_type(value) == G_TYPE_INT64)
    dr_opts_set_uint(opts, key, (guint64)json_node_get_int(value));
  else if (JSON_NODE_HOLDS_VALUE(value) && json_node_get_value_type(value) == G_TYPE_STRING)
    dr_opts_set_uint(opts, key, g_ascii_strtoull(json_node_get_string(value), NULL, 0));
}

/* --- Encryption --- */

static gboolean
is_encrypted(const DrNode *node)
{
  return dr_json_bool(node->info, "image.encrypted", FALSE) || dr_json_bool(node->info, "encrypted", FALSE) ||
         g_str_equal(node->driver, "luks");
}

/* The key is an object of the command line, which the new QEMU has, too; its name is in QEMU's name of the node. */
static gboolean
spell_secret(DrApply *a, DrOpts *opts, const char *prefix, const DrNode *node)
{
  gboolean luks = g_str_equal(node->driver, "luks");
  g_autofree char *secret = dr_node_secret(node);
  g_autofree char *format = g_strconcat(prefix, "encrypt.format", NULL);
  g_autofree char *key = g_strconcat(prefix, luks ? "key-secret" : "encrypt.key-secret", NULL);

  if (!is_encrypted(node))
    return TRUE;
  if (!secret)
    return refuse(a, node, "it is encrypted, and QEMU does not tell its secret");
  if (!dr_argv_find_id(a->argv, "object", secret))
    return refuse(a, node, "it is encrypted, and its secret is not on the command line");
  if (!luks && !g_str_equal(dr_json_str(node->info, "image.format-specific.data.encrypt.format", ""), "luks"))
    return refuse(a, node, "it is encrypted, and not by LUKS");
  if (!luks)
    dr_opts_set(opts, format, "luks");
  dr_opts_set(opts, key, secret);
  return TRUE;
}

/* An URL names all of it but what concerns a connection that breaks. With TLS, QEMU's name is json:. */
gboolean
dr_node_is_export(const DrNode *node)
{
  return g_str_equal(node->driver, "nbd") && g_str_has_prefix(node->file, "nbd") &&
         strstr(node->file, "://") != NULL;
}

static gboolean
spell_export(DrApply *a, DrOpts *opts, const char *prefix, const DrNode *node)
{
  static const char *const members[] = { "server.type", "server.path", "server.host", "server.port",
                                         "export" };
  DrTargetKind kind;
  g_autoptr(JsonObject) options = dr_target_parse_options(node->file, &kind, NULL);

  if (!options)
    return refuse(a, node, "its name does not tell its server");
  for (guint i = 0; i < G_N_ELEMENTS(members); i++) {
    g_autofree char *key = g_strconcat(prefix, members[i], NULL);
    const char *value = dr_json_str(options, members[i], NULL);

    if (value && *value)
      dr_opts_set(opts, key, value);
  }
  dr_note_export(a, node);
  return TRUE;
}

void
dr_note_export(DrApply *a, const DrNode *node)
{
  dr_findings_add(
      a->findings, DR_FINDING_WARNING, "disk-nbd",
      "let the server take two clients at a time (qemu-nbd --shared=2)",
      "%s: the new QEMU connects to '%s' while the first is still connected; reconnect-delay= cannot "
      "be read and is the default",
      a->disk, node->file);
}

gboolean
dr_spell_strong_options(DrApply *a, DrOpts *opts, const char *prefix, const DrNode *node)
{
  static const char *const spelled[] = { "driver",     "file",    "backing",        "data-file",
                                         "key-secret", "encrypt", "encrypt.format", "encrypt.key-secret",
                                         NULL };
  g_autoptr(JsonObject) object = NULL;
  g_autoptr(GList) members = NULL;

  if (!spell_secret(a, opts, prefix, node))
    return FALSE;
  if (!g_str_has_prefix(node->file, "json:"))
    return TRUE;
  object = dr_json_parse_object(node->file + strlen("json:"), -1, 1024 * 1024, NULL);
  if (!object)
    return refuse(a, node, "its name is cut off"); /* QEMU's filename field has 4096 bytes */
  members = json_object_get_members(object);
  for (GList *at = members; at; at = at->next) {
    const char *name = at->data;

    if (g_strv_contains(spelled, name))
      continue;
    if (!g_str_equal(node->driver, "raw") || !(g_str_equal(name, "offset") || g_str_equal(name, "size")))
      return refuse(a, node, name);
    set_number(opts, prefix, name, json_object_get_member(object, name));
  }
  return TRUE;
}

void
dr_spell_tuning(DrOpts *opts, const char *prefix, const DrNode *node, const DrNode *parent)
{
  static const char *const flags[] = { "direct", "no-flush" };
  const char *zeroes = dr_json_str(node->info, "detect_zeroes", "off");
  g_autofree char *zeroes_key = g_strconcat(prefix, "detect-zeroes", NULL);

  if (!g_str_equal(zeroes, dr_opts_get(opts, zeroes_key) ? dr_opts_get(opts, zeroes_key) : "off"))
    dr_opts_set(opts, zeroes_key, zeroes);
  for (guint i = 0; i < G_N_ELEMENTS(flags); i++) {
    g_autofree char *key = g_strconcat(prefix, "cache.", flags[i], NULL);
    g_autofree char *path = g_strconcat("cache.", flags[i], NULL);
    gboolean runs = dr_json_bool(node->info, path, FALSE);
    gboolean given = parent ? dr_json_bool(parent->info, path, FALSE) : FALSE;

    if (dr_opts_get_bool(opts, key, given, &given, NULL) && given != runs)
      dr_opts_set_bool(opts, key, runs);
  }
}

/* A child inherits its parent's, a backing file is always opened read-only. */
static void
spell_read_only(DrOpts *opts, const char *prefix, const DrNode *node, gboolean inherited)
{
  g_autofree char *key = g_strconcat(prefix, "read-only", NULL);
  gboolean runs = dr_json_bool(node->info, "ro", FALSE);

  if (runs != inherited)
    dr_opts_set_bool(opts, key, runs);
}

gboolean
dr_place_child(DrApply *a, DrOpts *opts, const char *prefix, const char *edge, const DrNode *parent,
               DrNode *child)
{
  g_autofree char *key = g_strconcat(prefix, edge, NULL);
  g_autofree char *below = g_strconcat(key, ".", NULL);
  const char *name;

  dr_opts_unset(opts, key);
  if (dr_node_is_unnamed(child)) {
    if (!dr_spell_node(a, opts, below, child, parent))
      return FALSE;
    spell_read_only(opts, below, child,
                    g_str_equal(edge, "backing") || dr_json_bool(parent->info, "ro", FALSE));
    return TRUE;
  }
  name = dr_blockdev_ensure(a, child);
  a->reordered = TRUE;
  if (name)
    dr_opts_set(opts, key, name);
  return name != NULL;
}

/* The children of an image format: its file, a separate data file, the backing chain or its absence. */
static gboolean
spell_children(DrApply *a, DrOpts *opts, const char *prefix, DrNode *node)
{
  static const char *const known[] = { "file", "backing", "data-file", NULL };
  g_autofree char *backing = g_strconcat(prefix, "backing", NULL);

  if (!dr_node_child(node, "file"))
    return refuse(a, node, "it has no file");
  for (guint i = 0; i < node->edges->len; i++)
    if (!g_strv_contains(known, g_array_index(node->edges, DrEdge, i).name))
      return refuse(a, node, g_array_index(node->edges, DrEdge, i).name);
  for (const char *const *edge = known; *edge; edge++) {
    DrNode *child = dr_node_child(node, *edge);

    if (child && !dr_place_child(a, opts, prefix, *edge, node, child))
      return FALSE;
  }
  if (!dr_node_child(node, "backing") && dr_json_str(node->info, "image.backing-filename", NULL))
    dr_opts_set(opts, backing, ""); /* the header names one that was not opened */
  return TRUE;
}

gboolean
dr_spell_node(DrApply *a, DrOpts *opts, const char *prefix, DrNode *node, const DrNode *parent)
{
  g_autofree char *driver = g_strconcat(prefix, "driver", NULL);
  g_autofree char *name = g_strconcat(prefix, "node-name", NULL);
  g_autofree char *filename = g_strconcat(prefix, "filename", NULL);

  dr_opts_set(opts, driver, node->driver);
  if (!dr_node_is_unnamed(node))
    dr_opts_set(opts, name, node->name);
  if (dr_node_is_plain_file(node)) {
    if (g_str_has_prefix(dr_node_path(node), "/dev/fdset/"))
      return refuse(a, node, "its descriptor was passed to the running QEMU");
    dr_opts_set(opts, filename, dr_node_path(node));
  } else if (dr_node_is_export(node)) {
    if (!spell_export(a, opts, prefix, node))
      return FALSE;
  } else if (!g_strv_contains(formats, node->driver)) {
    return refuse(a, node, "drover does not know all options of this driver");
  } else if (!dr_spell_strong_options(a, opts, prefix, node) || !spell_children(a, opts, prefix, node)) {
    return FALSE;
  }
  dr_spell_tuning(opts, prefix, node, parent);
  return TRUE;
}
