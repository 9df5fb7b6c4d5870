/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* --map: what has another name on the other host, bridges and images. */
#include "base/error.h"
#include "job/migrate-internal.h"
#include "job/move-spec.h"

#include <string.h>

/* --- Networks --- */

/* The index of the need behind network `id`; -1: none of that name has a tap. */
static int
need_of(Migrate *m, const char *id)
{
  for (guint i = 0; i < m->pre->needs->len; i++)
    if (g_strcmp0(((DrNeed *)m->pre->needs->pdata[i])->netdev, id) == 0)
      return (int)i;
  return -1;
}

static gboolean
map_netdev(Migrate *m, const char *id, const char *bridge, GError **error)
{
  int need = need_of(m, id);
  JsonObject *tap = need >= 0 ? dr_move_spec_tap(m->spec, (guint)need) : NULL;

  if (!tap)
    return dr_error_set(error, DR_ERROR_INVALID, "VM '%s' has no network '%s' with a tap", dr_vm_name(m->vm),
                        id);
  json_object_set_string_member(tap, "bridge", bridge);
  return TRUE;
}

/* --- Disks --- */

static gboolean
has_file(Migrate *m, const char *path)
{
  g_autoptr(GPtrArray) files = dr_inventory_files(m->pre->inventory, dr_vm_record(m->vm)->cwd);

  return g_ptr_array_find_with_equal_func(files, path, g_str_equal, NULL);
}

static gboolean
map_disk(Migrate *m, const char *from, const char *to, GError **error)
{
  if (!g_path_is_absolute(from) || !g_path_is_absolute(to))
    return dr_error_set(error, DR_ERROR_INVALID, "'disk=%s:%s': both are absolute paths of an image", from,
                        to);
  if (!has_file(m, from)) {
    dr_error_set(error, DR_ERROR_INVALID, "VM '%s' has no image '%s'", dr_vm_name(m->vm), from);
    return dr_error_remedy(error, "drover show %s lists its disks", dr_vm_name(m->vm));
  }
  if (!m->disks)
    m->disks = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
  g_hash_table_replace(m->disks, g_strdup(from), g_strdup(to));
  return TRUE;
}

static const char *
mapped(const Migrate *m, const char *path)
{
  g_autofree char *whole = path && *path ? g_canonicalize_filename(path, dr_vm_record(m->vm)->cwd) : NULL;

  return whole ? g_hash_table_lookup(m->disks, whole) : NULL;
}

char *
dr_migrate_there(const Migrate *m, const char *path)
{
  const char *to = m->disks ? mapped(m, path) : NULL;

  return g_strdup(to ? to : path);
}

/* -drive and -blockdev name an image in one of some leaves; -hda and its like are the image. */
static void
map_option(const Migrate *m, DrOpt *opt)
{
  static const char *const keys[] = { "file", "filename", "file.filename" };
  const char *to = opt->value ? mapped(m, opt->value) : NULL;
  g_autoptr(DrOpts) opts = NULL;
  gboolean changed = FALSE;

  if (to) {
    dr_opt_set_value(opt, to);
    return;
  }
  opts = g_str_equal(opt->info->name, "drive") || g_str_equal(opt->info->name, "blockdev")
             ? dr_opt_parse(opt, NULL)
             : NULL;
  for (guint i = 0; opts && i < G_N_ELEMENTS(keys); i++) {
    to = mapped(m, dr_opts_get(opts, keys[i]));
    if (to)
      dr_opts_set(opts, keys[i], to);
    changed |= to != NULL;
  }
  if (changed)
    dr_opt_set_opts(opt, opts);
}

static gboolean
map_words(const Migrate *m, const char *member, GError **error)
{
  g_auto(GStrv) words = dr_json_strv(dr_json_arr(m->spec, member));
  g_autoptr(DrArgv) argv = dr_argv_parse((const char *const *)words, error);
  g_auto(GStrv) changed = NULL;

  if (!argv)
    return FALSE;
  for (guint i = 0; i < dr_argv_n(argv); i++)
    map_option(m, dr_argv_opt(argv, i));
  changed = dr_argv_to_strv(argv);
  json_object_set_array_member(m->spec, member, dr_json_array_from_strv((const char *const *)changed));
  return TRUE;
}

void
dr_migrate_map_disks(const Migrate *m, JsonArray *disks)
{
  for (guint i = 0; m->disks && i < json_array_get_length(disks); i++) {
    JsonObject *disk = json_array_get_object_element(disks, i);
    const char *to = mapped(m, dr_json_str(disk, "path", NULL));

    if (to)
      json_object_set_string_member(disk, "path", to);
  }
}

void
dr_migrate_map_back(const Migrate *m, DrInventory *theirs)
{
  GHashTableIter iter;
  gpointer from, to;

  if (!m->disks)
    return;
  g_hash_table_iter_init(&iter, m->disks);
  while (g_hash_table_iter_next(&iter, &from, &to))
    dr_inventory_rename_file(theirs, to, from);
}

/* --- All of it --- */

/* "netdev=ID:BRIDGE", "disk=PATH:PATH". */
static gboolean
map_one(Migrate *m, const char *text, GError **error)
{
  const char *equals = strchr(text, '='), *colon = strrchr(text, ':');
  g_autofree char *from =
      equals && colon > equals ? g_strndup(equals + 1, (gsize)(colon - equals) - 1) : NULL;

  if (from && *from && colon[1] && g_str_has_prefix(text, "netdev="))
    return map_netdev(m, from, colon + 1, error);
  if (from && *from && colon[1] && g_str_has_prefix(text, "disk="))
    return map_disk(m, from, colon + 1, error);
  return dr_error_set(error, DR_ERROR_INVALID, "'%s' is no mapping: netdev=ID:BRIDGE or disk=PATH:PATH",
                      text);
}

gboolean
dr_migrate_map(Migrate *m, GError **error)
{
  g_auto(GStrv) maps = dr_json_strv(dr_json_arr(m->request, "map"));

  for (char **one = maps; one && *one; one++)
    if (!map_one(m, *one, error))
      return FALSE;
  return !m->disks || (map_words(m, "argv", error) && map_words(m, "argv_given", error));
}
