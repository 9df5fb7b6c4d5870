/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Are the images that QEMU has open those that a new QEMU would find under their names? */
#include "job/inventory-internal.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* Of a device its number: a QEMU of libvirt's has nodes of its own in its /dev. */
static char *
identity(const struct stat *st)
{
  if (S_ISBLK(st->st_mode))
    return g_strdup_printf("block %" G_GUINT64_FORMAT, (guint64)st->st_rdev);
  return g_strdup_printf("%" G_GUINT64_FORMAT ":%" G_GUINT64_FORMAT, (guint64)st->st_dev,
                         (guint64)st->st_ino);
}

/* "dev:inode" of everything the process has open; NULL if that cannot be read. */
static GHashTable *
open_files(pid_t pid)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/fd", (int)pid);
  g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
  GHashTable *files;
  const char *name;

  if (!dir)
    return NULL;
  files = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  while ((name = g_dir_read_name(dir))) {
    g_autofree char *link = g_build_filename(path, name, NULL);
    struct stat st;

    if (stat(link, &st) == 0)
      g_hash_table_add(files, identity(&st));
  }
  return files;
}

static void
check_file(const DrNode *node, const char *cwd, GHashTable *files, DrFindings *findings)
{
  g_autofree char *path = g_canonicalize_filename(dr_node_path(node), cwd);
  g_autofree char *id = NULL;
  struct stat st;

  if (g_str_has_prefix(path, "/dev/fdset/"))
    return;
  if (stat(path, &st) < 0) {
    dr_findings_add(findings, DR_FINDING_BLOCKER, "disk-missing",
                    "put the file back (it is still open in QEMU: /proc/PID/fd)",
                    "image '%s' is in use by the guest and not there any more: %s", path, g_strerror(errno));
    return;
  }
  id = identity(&st);
  if (!g_hash_table_contains(files, id))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "disk-replaced", "move the right file back to that name",
                    "image '%s' is another file than the one that the guest has open", path);
}

void
dr_inventory_check_files(const DrInventory *inventory, pid_t pid, const char *cwd, DrFindings *findings)
{
  g_autoptr(GHashTable) files = open_files(pid);
  GHashTableIter iter;
  gpointer key, node;

  if (!files)
    return;
  g_hash_table_iter_init(&iter, inventory->block_nodes);
  while (g_hash_table_iter_next(&iter, &key, &node))
    if (dr_node_is_plain_file(node))
      check_file(node, cwd, files, findings);
}

GPtrArray *
dr_inventory_files(const DrInventory *inventory, const char *cwd)
{
  GPtrArray *paths = g_ptr_array_new_with_free_func(g_free);
  GHashTableIter iter;
  gpointer key, node;

  g_hash_table_iter_init(&iter, inventory->block_nodes);
  while (g_hash_table_iter_next(&iter, &key, &node))
    if (dr_node_is_plain_file(node))
      g_ptr_array_add(paths, g_canonicalize_filename(dr_node_path(node), cwd));
  return paths;
}

void
dr_inventory_rename_file(DrInventory *inventory, const char *from, const char *to)
{
  GHashTableIter iter;
  gpointer key, value;

  g_hash_table_iter_init(&iter, inventory->block_nodes);
  while (g_hash_table_iter_next(&iter, &key, &value)) {
    DrNode *node = value;

    if (g_str_equal(node->file, from))
      node->file = g_intern_string(to);
  }
}

void
dr_inventory_stand_alone(DrInventory *inventory, const char *path, gboolean alone)
{
  GHashTableIter iter;
  gpointer key, value;

  g_hash_table_iter_init(&iter, inventory->block_nodes);
  while (g_hash_table_iter_next(&iter, &key, &value)) {
    DrNode *node = value;

    if (dr_node_child(node, "backing") && g_str_equal(dr_node_file(node), path))
      node->alone = alone;
  }
}

const char *
dr_inventory_local_export(const DrInventory *inventory)
{
  static const char *const prefixes[] = { "nbd+unix:", "nbd:unix:", "nbd://localhost", "nbd://127.",
                                          "nbd://[::1]" };
  GHashTableIter iter;
  gpointer key, value;

  g_hash_table_iter_init(&iter, inventory->block_nodes);
  while (g_hash_table_iter_next(&iter, &key, &value))
    for (guint i = 0; i < G_N_ELEMENTS(prefixes); i++)
      if (g_str_has_prefix(((DrNode *)value)->file, prefixes[i]))
        return ((DrNode *)value)->file;
  return NULL;
}
